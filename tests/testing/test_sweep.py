"""Every known problem through every backward form that applies, to 1e-6 in every column."""

import collections
import functools
import os
from pathlib import Path

import pytest
import torch
from bounds import factorised
from sweep_problems import more_problems
from torch.autograd import gradcheck, gradgradcheck

import ddnkit
from ddnkit import testing
from ddnkit.backward.dense import Dense
from ddnkit.testing.sweeping.__main__ import main
from ddnkit.testing.sweeping.case import Case, SolutionMap, derivatives_at_zero
from ddnkit.testing.sweeping.columns import COLUMNS
from ddnkit.testing.sweeping.forms import Variant, all_forms, reason_against
from ddnkit.testing.sweeping.table import page

PROBLEMS = {problem.label: problem for problem in [*testing.bank(), *more_problems()]}
FORMS = {form.name: form for form in all_forms()}
PAIRS = [
    (label, name)
    for label, problem in PROBLEMS.items()
    for name, form in FORMS.items()
    if reason_against(problem, form) is None
]
#: What `ddnkit.testing.sweeping` says of every row, and the tolerance of a layer in float64.
TOLERANCE = 1e-6
#: Of a ridge regression with three unknowns, by a solve at a condition below 1e4.
ROUNDING = factorised(torch.float64, 4, condition=1e4)
#: More of them, and then every column of every form, in `make fuzz`.
SEEDS = int(os.environ.get("DDNKIT_SWEEP_SEEDS", "1"))


def short_sweep():
    """Of every other problem the form that "auto" takes, of the others the one that fewest had before."""
    chosen, times = [], collections.Counter()
    of_form = collections.Counter(name for _, name in PAIRS)
    for index, label in enumerate(PROBLEMS):
        names = [name for of, name in PAIRS if of == label]
        rarest = min(names, key=lambda name: (times[name], of_form[name]))
        chosen.append((label, rarest if index % 2 else "auto"))
        times[chosen[-1][1]] += 1
    return chosen


#: For `make test`; `make test-all` has all of them.
SHORT = short_sweep()


def some(values, every=3):
    """The values, of which all but each third are left to `make test-all`."""
    return [
        value if index % every == 0 else pytest.param(value, marks=pytest.mark.long)
        for index, value in enumerate(values)
    ]


@functools.cache
def taken_by_auto(label):
    layer = ddnkit.DeclarativeLayer(PROBLEMS[label], "auto")
    layer(*testing.sample(PROBLEMS[label]))
    return layer.certificate.form


def columns_of(label, form):
    """All of them in `make fuzz`; here, what a form can be wrong in that no other shares with it.

    The settings of "dense" change one linear system, and what "auto" takes is swept as "auto".
    """
    if SEEDS > 1 or FORMS[form].has_adjoint or form in ("auto", "unrolled"):
        return tuple(COLUMNS)
    if isinstance(FORMS[form], Variant) or form == taken_by_auto(label):
        return ("analytic" if PROBLEMS[label].analytic else "differences", "transpose")
    return tuple(column for column in COLUMNS if column != "vmap")


@functools.lru_cache(maxsize=4)
def rows_of(label, columns, short):
    forms = [
        FORMS[name]
        for of, name in PAIRS
        if of == label and columns_of(of, name) == columns and ((of, name) in SHORT) == short
    ]
    rows = testing.sweep([PROBLEMS[label]], forms, seeds=range(SEEDS), columns=columns)
    return {row.form: row for row in rows}


@pytest.mark.parametrize(
    ("label", "form", "column"),
    [
        pytest.param(*pair, column, marks=() if pair in SHORT else pytest.mark.long)
        for pair in PAIRS
        for column in columns_of(*pair)
    ],
)
def test_derivatives_are_exact(label, form, column):
    row = rows_of(label, columns_of(label, form), (label, form) in SHORT)[form]
    error = row.errors[column]
    if error is None:
        assert may_be_left_out(PROBLEMS[label], form, column), row
    else:
        assert error <= TOLERANCE, f"{column} of {row}"


def test_the_short_sweep_has_every_problem_form_and_column():
    assert {label for label, _ in SHORT} == set(PROBLEMS)
    assert {form for _, form in SHORT} == set(FORMS)
    assert {column for pair in SHORT for column in columns_of(*pair)} == set(COLUMNS)


def may_be_left_out(problem, form, column):
    if column == "vmap":
        return form == "unrolled"
    return {"analytic": not problem.analytic, "second": not problem.unique}.get(column, False)


def around(problem):
    """y as a function of steps from sampled inputs, along directions for which it is defined."""
    case = Case(problem, seed=1)
    f = SolutionMap(problem, "auto", case.xs)

    def of_steps(*steps):
        feasible = problem.feasible_directions(case.xs, steps[: f.inputs])
        moves = [*feasible, *steps[f.inputs :]]
        y = f(*(x + u for x, u in zip(case.operands, moves, strict=True)))
        return y if problem.unique else case.incoming @ y

    return of_steps, [torch.zeros_like(x).requires_grad_() for x in case.operands]


@pytest.mark.parametrize(
    "problem", some(PROBLEMS.values(), every=12), ids=lambda problem: problem.label
)
def test_gradcheck(problem):
    function, steps = around(problem)
    assert gradcheck(function, steps, check_forward_ad=True, fast_mode=True, rtol=1e-5)


@pytest.mark.parametrize(
    "problem",
    some((problem for problem in PROBLEMS.values() if problem.unique), every=12),
    ids=lambda problem: problem.label,
)
def test_gradgradcheck(problem):
    function, steps = around(problem)
    assert gradgradcheck(
        function,
        steps,
        check_fwd_over_rev=True,
        check_undefined_grad=False,
        fast_mode=True,
        rtol=1e-5,
    )


# -- what a sweep sees, and how it says so ---------------------------------------------------------


class Distorted(ddnkit.BackwardForm):
    """The dense form with its solution distorted: a stranger's form, and a wrong one."""

    name = "distorted"

    def __init__(self, distort):
        self.distort = distort

    def tangent_solve(self, problem, y, nu):
        exact = Dense().tangent_solve(problem, y, nu)

        def solve(r):
            z, residual = exact(r)
            return self.distort(z), residual

        return solve


def row(distort, problem=None, **settings):
    (found,) = testing.sweep([problem or testing.Ridge()], [Distorted(distort)], **settings)
    return found


def test_a_strangers_form_is_swept_under_its_own_name():
    found = row(lambda z: z)
    assert (found.problem, found.form, found.applies) == ("Ridge", "distorted", True)
    assert list(found.errors) == list(COLUMNS) and found.worst <= TOLERANCE
    assert "Ridge" in str(found) and "distorted" in str(found)


def test_a_wrong_scale_is_seen_where_the_truth_is_another_way():
    found = row(lambda z: (1 + 1e-5) * z)
    for column in ("analytic", "differences", "second"):
        assert 1e-6 < found.errors[column] < 1e-4
    for column in ("transpose", "vmap", "batch"):
        assert found.errors[column] < ROUNDING


def test_an_asymmetric_solve_is_no_transpose():
    assert row(lambda z: z + 1e-5 * z.roll(1, -1)).errors["transpose"] > 1e-6


def test_a_solve_that_mixes_items_is_seen_by_batch_and_vmap():
    found = row(lambda z: z + 1e-5 * z.mean(dim=1, keepdim=True), columns=["vmap", "batch"])
    assert min(found.errors.values()) > 1e-7


def test_a_wrong_derivative_of_a_right_gradient_is_second():
    # The first solve of each call is the gradient; what follows are its derivatives.
    calls = []

    def later_wrong(z):
        calls.append(z)
        return z if len(calls) % 2 else 1.1 * z

    found = row(later_wrong, columns=["second"])
    assert found.errors["second"] > 1e-3


def test_a_failure_is_infinite_and_named():
    found = row(lambda z: z * torch.nan, columns=["analytic"])
    assert found.errors == {"analytic": float("inf")} and found.worst == float("inf")

    def fail(z):
        raise ValueError("no luck")

    found = row(fail, columns=["analytic", "second"])
    assert found.notes == dict.fromkeys(["analytic", "second"], "ValueError: no luck")
    assert "inf" in str(found) and "no luck" in str(found)


def test_what_the_certificate_does_not_trust_is_a_failure():
    class Halfway(testing.Ridge):
        def solve(self, *xs):
            return 0.9 * self.answer(*xs)

    (found,) = testing.sweep([Halfway()], ["dense"], columns=["differences"])
    assert "not stationary" in found.notes["differences"]


def test_forms_that_do_not_apply_say_why():
    wanted = ["closed_form", "dense(schur)", "unrolled"]
    problems = [testing.SingularHessian(), testing.ProcrustesEqualValues()]
    rows = testing.sweep(problems, wanted, columns=["analytic"])
    assert [r.applies for r in rows] == [False, False, True, False, True, False]
    assert rows[0].worst is None and rows[0].errors == {}
    assert "`adjoint" in rows[0].notes["form"]
    assert rows[1].notes["form"] in str(rows[1])
    assert rows[5].notes["form"]
    with pytest.raises(ddnkit.InputError, match="'dense'"):
        testing.sweep([testing.Ridge()], ["densee"])


def test_columns_that_mean_nothing_say_why():
    (cosine,) = testing.sweep([testing.CosineDistance()], ["dense"], columns=["second"])
    assert cosine.errors == {"second": None} and cosine.notes["second"]
    (brockett,) = testing.sweep([testing.Brockett()], ["dense"], columns=["analytic"])
    assert brockett.worst is None and brockett.notes["analytic"]


def test_a_wrong_jacobian_on_paper_is_seen():
    class Wrong(testing.TwoInputsOptionAndModule):
        def parameter_jacobians(self, *xs, y):
            named = super().parameter_jacobians(*xs, y=y)
            return {**named, "linear.bias": 1.001 * named["linear.bias"]}

    (found,) = testing.sweep([Wrong()], ["dense"], columns=["analytic", "differences"])
    assert found.errors["analytic"] > 1e-4 > TOLERANCE > found.errors["differences"]


def test_problems_need_not_name_their_input_dims():
    class NoDims(testing.WeightedLeastSquares):
        input_dims = None

    (found,) = testing.sweep([NoDims()], ["dense"])
    assert found.worst <= TOLERANCE and None not in found.errors.values()


def test_instances_of_different_shapes_are_not_stacked():
    class Growing(testing.AffineConstraint):
        sizes = iter(range(3, 9))

        def sample_inputs(self):
            return (torch.randn(next(self.sizes), dtype=torch.float64),)

    (found,) = testing.sweep([Growing()], ["dense"], columns=["analytic", "batch"])
    assert found.errors["analytic"] < ROUNDING and found.notes["batch"]


def test_differences_find_a_step_of_their_own():
    wave, jump, root = derivatives_at_zero(
        lambda t: [(300 * t).sin(), torch.where(t > 1e-4, torch.nan, t.exp()), (t - 1).sqrt()]
    )
    # A thousandth of what the sweep promises is left to them.
    torch.testing.assert_close(wave, torch.tensor(300.0).double(), rtol=TOLERANCE / 1e3, atol=0)
    torch.testing.assert_close(jump, torch.tensor(1.0).double(), rtol=TOLERANCE / 1e3, atol=0)
    assert root.isnan()


# -- the page --------------------------------------------------------------------------------------


def test_the_committed_page_has_every_problem_and_form():
    text = (Path(__file__).parents[2] / "docs" / "sweep.md").read_text()
    head, *body = [line for line in text.splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in head.split("|")[2:-1]] == list(FORMS)
    named = {line.split("|")[1].strip() for line in body}
    assert {problem.label for problem in testing.bank()} <= named


def test_the_page_is_written(tmp_path, monkeypatch, capsys):
    problems = [testing.AffineConstraint(), testing.CosineDistance()]
    monkeypatch.setattr("ddnkit.testing.sweeping.__main__.bank", lambda: problems)
    main(["--seeds", "1", "--markdown", str(tmp_path / "sweep.md")])
    text = (tmp_path / "sweep.md").read_text()
    assert "| CosineDistance |" in text
    assert (
        f"torch {torch.__version__}" in text
        and "AffineConstraint × auto" in capsys.readouterr().out
    )


def test_pages_survive_notes_of_any_kind():
    rows = [
        testing.SweepRow("P", "auto", {"analytic": float("inf")}, {"analytic": "a | b\nc"}),
        testing.SweepRow("P", "mine", {"analytic": None}),
    ]
    assert "a \\| b c" in page(rows, [0])


# -- single problems, and the assertion for nodes of one's own -------------------------------------


def test_equality_qp_has_the_published_solution():
    y = ddnkit.DeclarativeLayer(testing.EqualityQP())(
        torch.ones(2).double(), torch.ones(()).double()
    )
    torch.testing.assert_close(y, torch.tensor([0.25, 0.75]).double())


def test_a_batch_has_a_certificate_for_each_item():
    layer = ddnkit.DeclarativeLayer(testing.AffineConstraint())
    layer(torch.randn(3, 4).double().requires_grad_()).sum().backward()
    assert layer.certificate.stationarity.shape == layer.certificate.adjoint_residual.shape == (3,)


def test_assert_gradients_passes_and_fails():
    testing.assert_gradients(testing.AffineConstraint(), examples=3)

    class Wrong(testing.AffineConstraint):
        def solve(self, x):
            return x

    with pytest.raises(AssertionError, match="infeasible"):
        testing.assert_gradients(Wrong(), examples=2)
