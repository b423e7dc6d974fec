"""A node that its author misread: what is refused before anything is solved, and what is the author's own."""

import inspect
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ddnkit
from ddnkit import DeclarativeLayer, DeclarativeNode, InputError


class Projection(DeclarativeNode):
    input_dims = (1,)

    def objective(self, x, y):
        return ((y - x) ** 2).sum()

    def initial_point(self, x):
        return torch.zeros_like(x)

    def sample_inputs(self):
        return (torch.randn(5),)


def made(name="Slip", base=Projection, without=(), **members):
    """A class with these members, ``without`` some of those that `Projection` has."""
    kept = {k: v for k, v in vars(base).items() if not k.startswith("_") and k not in without}
    return type(name, (DeclarativeNode,), {**kept, **members})


def of_xs(self, x):
    return x.clone()


def of_xs_y(self, x, y):
    return y.sum() - 1


def of_xs_y_v(self, x, y, v):
    return (v,)


def of_nothing(self):
    return (torch.randn(5),)


SLIPS = [
    ("input_dim", (1,), "input_dims"),
    ("inputs_dims", [1], "input_dims"),
    ("input_dimensions", (1,), "input_dims"),
    ("inputDims", (1,), "input_dims"),
    ("equality_constraint", of_xs_y, "equality_constraints"),
    ("equality_constrains", of_xs_y, "equality_constraints"),
    ("equalityConstraints", of_xs_y, "equality_constraints"),
    ("constraints", of_xs_y, "equality_constraints"),
    ("initial_points", of_xs, "initial_point"),
    ("inital_point", of_xs, "initial_point"),
    ("initial_guess", of_xs, "initial_point"),
    ("sovle", of_xs, "solve"),
    ("adjoints", of_xs_y_v, "adjoint"),
    ("gradient", of_xs_y_v, "adjoint"),
    ("sample_input", of_nothing, "sample_inputs"),
    ("preconditioner", of_xs_y_v, "precondition"),
    ("fixedpoint", of_xs_y, "fixed_point"),
    ("solvers", "lbfgs", "solver"),
    ("sovler", "newton", "solver"),
    ("polcy", "raise", "policy"),
    ("tolerence", 1e-9, "tolerance"),
    ("batch_solve", True, "batched_solve"),
]


@pytest.mark.parametrize(("name", "value", "meant"), SLIPS, ids=[s[0] for s in SLIPS])
def test_a_misspelt_member_is_refused_with_the_one_that_was_meant(name, value, meant):
    node = made(without=(meant,), **{name: value})()
    for make in (DeclarativeLayer, lambda node: ddnkit.check(node, examples=1)):
        with pytest.raises(InputError, match=rf"Slip\.{name}\b.*`{meant}`"):
            make(node)


def test_file_and_line_are_named():
    class Slip(Projection):
        tolerence = 1e-9

        def equality_constraint(self, x, y):
            return y.sum() - 1

    with pytest.raises(InputError) as caught:
        DeclarativeLayer(Slip())
    lines, start = inspect.getsourcelines(Slip)
    for name in ("tolerence", "equality_constraint"):
        line = start + next(i for i, text in enumerate(lines) if name in text)
        assert f"Slip.{name} ({__file__}, line {line})" in str(caught.value)


def test_what_the_constructor_sets_counts_too():
    class Slip(Projection):
        input_dims = None

        def __init__(self):
            self.input_dim = (1,)

    with pytest.raises(InputError, match=r"Slip\.input_dim \(.*`input_dims`"):
        DeclarativeLayer(Slip())


@pytest.mark.parametrize("name", ["inequality_constraint", "ineq_constraints"])
def test_inequalities_by_another_name_are_told_theirs(name):
    with pytest.raises(InputError, match=rf"Slip\.{name}\b.*`inequality_constraints`"):
        DeclarativeLayer(made(**{name: of_xs_y})())


@pytest.mark.parametrize("bounds", [(0.0,), 1.0, (0, 1, 2)])
def test_bounds_that_are_no_pair_are_refused(bounds):
    with pytest.raises(InputError, match=r"Slip\.bounds\b.*\(lower, upper\)"):
        DeclarativeLayer(made(bounds=bounds)())


def test_what_a_kink_gives_is_one_of_a_few():
    with pytest.raises(InputError, match=r"Slip\.degenerate\b.*'one_sided'"):
        DeclarativeLayer(made(degenerate="onesided")())


def test_a_missing_objective_is_told_with_what_was_written():
    kind = made(without=("objective",), objectiv=of_xs_y)
    with pytest.raises(InputError, match=r"`objectiv`.*`objective`"):
        kind()
    with pytest.raises(InputError, match="no `objective`"):
        DeclarativeNode()
    with pytest.raises(TypeError, match="no arguments"):
        Projection(3)


#: What nodes hold of their own, name and value.
OWN = {
    "dim": 3, "dims": (3, 4), "input_dim": 16, "inputs": (1,), "start": torch.zeros(3),
    "weights": torch.ones(5),
    "_input_dim": (1,), "_equality_constraint": of_xs_y, "net": torch.nn.Linear(2, 2), "tol": 1e-8,
    "constraint": torch.ones(2), "constraints": [1, 2], "gradient": of_xs_y, "jacobian": of_xs_y,
    "solver_options": {"a": 1}, "solution": of_xs, "initial": 0.5, "sample": of_xs, "sampler": of_xs,
    "samples": 100, "policies": ("a",), "objectives": [1.0], "manifold_dim": 4, "steps": 150,
    "adjoint_solve": of_xs_y_v, "point": of_xs, "batched": True, "batch_solve": of_xs,
    "forward": of_xs, "preconditioner": torch.nn.Linear(2, 2), "input_shape": (3, 32, 32), "resolve": of_xs_y,
    "inequality": 1.0, "solved": of_xs_y, "radius": 2.0, "K": 3, "eps": 1e-3, "iterations": 10,
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_what_is_the_authors_own_passes(name):
    kind = made(**{name: OWN[name]})
    node = kind()
    DeclarativeLayer(node)(torch.randn(2, 5))
    instance = Projection()
    setattr(instance, name, OWN[name])
    DeclarativeLayer(instance)


def test_what_the_node_uses_itself_is_its_own():
    class Penalty(Projection):
        def objective(self, x, y):
            return ((y - x) ** 2).sum() + self.constraint(x, y) ** 2 + self.inequality_constraint(y)

        def constraint(self, x, y):
            return y.sum() - 1

        def inequality_constraint(self, y):
            return y.clamp(min=0).square().sum()

    DeclarativeLayer(Penalty(), policy="raise")(torch.randn(2, 5))


@settings(max_examples=200, deadline=None)
@given(
    st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12),
    st.sampled_from([of_xs, of_xs_y, 3, (1,)]),
)
def test_no_drawn_name_is_a_false_alarm(name, value):
    known = {m for m in dir(DeclarativeNode) if not m.startswith("_")} | {
        "inequality",
        "constraints",
    }
    known |= {written for written, _, _ in SLIPS}
    if name.startswith("__") or any(
        name.replace("_", "")[:4] == m.replace("_", "")[:4] for m in known
    ):
        return  # too near to tell
    node = Projection()
    setattr(node, name, value)
    DeclarativeLayer(node)


@pytest.mark.parametrize(
    "members",
    [
        {"objective": lambda self, x, u: (u - x).square().sum()},
        {"objective": lambda self, x: x.sum()},
        {"objective": lambda self, *xs: xs[0].sum()},
        {"objective": lambda self, y, x: (y - x).square().sum()},
        {"objective": lambda self, x, y, scale: scale * (y - x).square().sum()},
        {"objective": lambda self, x, y, /: (y - x).square().sum()},
        {"objective": lambda self, x, *, y, scale: scale * (y - x).square().sum()},
        {"equality_constraints": lambda self, x, z: z.sum()},
        {"equality_constraints": lambda self, y: y.sum()},
        {"solve": lambda self: torch.zeros(5)},
        {"solve": lambda self, x, w: x + w},
        {"adjoint": lambda self, x, y, grad: (grad,)},
        {"adjoint": lambda self, x, v: (v,)},
        {"initial_point": lambda self: torch.zeros(5)},
        {"input_dims": (1, 1)},
        {"input_dims": 1},
        {"input_dims": (1.5,)},
        {"manifold": dict},
        {"tolerance": "small"},
        {"tolerance": -1.0},
        {"batched_solve": "no"},
    ],
    ids=lambda members: next(iter(members)),
)  # fmt: skip
def test_what_cannot_be_called_so_is_refused_before_it_is_called(members):
    (name,) = members
    for make in (DeclarativeLayer, lambda node: ddnkit.check(node, examples=1)):
        with pytest.raises(InputError, match=rf"Slip\.{name}\b"):
            make(made(**members)())


@pytest.mark.parametrize(
    "objective",
    [
        lambda self, x, y: (y - x).square().sum(),
        lambda self, x, *, y: (y - x).square().sum(),
        lambda self, *xs, y: (y - xs[0]).square().sum(),
        lambda self, *xs, **named: (named["y"] - xs[0]).square().sum(),
        lambda self, x, y=None: (y - x).square().sum(),
        lambda self, x, y, scale=2.0: scale * (y - x).square().sum(),
        lambda self, x, w=None, *, y: (y - x).square().sum(),
    ],
)
def test_signatures_that_can_be_called_pass(objective):
    layer = DeclarativeLayer(made(objective=objective)(), policy="raise")
    for x in (torch.randn(5), torch.randn(3, 5)):
        torch.testing.assert_close(layer(x), x)


@pytest.mark.parametrize("count", [0, 2, 3])
def test_the_number_of_inputs_is_named(count):
    layer = DeclarativeLayer(Projection())
    with pytest.raises(InputError, match=rf"takes 1 input \(x\), but {count} "):
        layer(*[torch.randn(5)] * count)
    with pytest.raises(InputError, match=r"batch_dims is a whole number"):
        DeclarativeLayer(Projection(), batch_dims=-1)


# -- input_dims left out ---------------------------------------------------------------------------


class NoDims(Projection):
    input_dims = None

    def equality_constraints(self, x, y):
        return y.sum() - 1


@given(
    st.lists(st.integers(1, 3), min_size=0, max_size=2).map(tuple),
    st.integers(0, 2),
    st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=20, deadline=None)
def test_a_batch_is_not_taken_for_one_problem(batch, own, dtype):
    class Sampled(NoDims):
        def sample_inputs(self):
            return (torch.randn([4] * own),)

    x = torch.randn((*batch, *[4] * own), dtype=dtype)
    if not batch:
        assert DeclarativeLayer(Sampled())(x).shape == x.shape
        return
    with pytest.raises(InputError, match=re.escape(f"input_dims = {(own,)}")):
        DeclarativeLayer(Sampled())(x)
    with pytest.raises(InputError, match=re.escape(f"input_dims = {(own,)}")):
        ddnkit.check(Sampled(), x)
    # Said, it is what was said.
    y = DeclarativeLayer(Sampled(), batch_dims=len(batch))(x)
    sums = y.reshape(*batch, -1).sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    torch.testing.assert_close(DeclarativeLayer(Sampled(), batch_dims=0)(x).sum(), x.new_ones(()))


def test_where_nothing_says_what_one_problem_is_check_does():
    class Unsampled(NoDims):
        def sample_inputs(self):
            raise RuntimeError("not today")

    class NoTuple(NoDims):
        def sample_inputs(self):
            return torch.randn(3)

    for kind in (Unsampled, NoTuple):
        assert DeclarativeLayer(kind())(torch.randn(2, 3)).shape == (2, 3)
    notes = " ".join(ddnkit.check(NoDims(), examples=1).notes)
    assert "input_dims = (1,)" in notes
    assert "input_dims" not in " ".join(ddnkit.check(Projection(), examples=1).notes)
    layer = DeclarativeLayer(NoDims(), batch_dims=1)
    assert "input_dims" not in " ".join(ddnkit.check(layer, torch.randn(2, 5)).notes)


def test_the_sample_leaves_the_random_numbers_of_the_caller_as_they_are():
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    DeclarativeLayer(NoDims())(torch.ones(5))
    assert torch.equal(torch.randn(3), expected)


def test_check_exits_with_status_two(tmp_path):
    from click.testing import CliRunner

    from ddnkit.cli import main

    file = tmp_path / "slip.py"
    file.write_text(
        "import ddnkit\nclass Slip(ddnkit.DeclarativeNode):\n    input_dim = (1,)\n"
        "    def objective(self, x, y): return ((y - x) ** 2).sum()\n"
        "    def initial_point(self, x): return x\n"
    )
    result = CliRunner().invoke(main, ["check", str(file)])
    assert result.exit_code == 2
    assert f"Slip.input_dim ({file}, line 3)" in result.output
