"""`ddnkit.check`: silent about right nodes, and each kind of wrong one named as what it is."""

import json
import pathlib
import re

import pytest
import torch
from ddnkit_manifolds import Sphere

import ddnkit
from ddnkit import DeclarativeNode, InputError, Solution, testing
from ddnkit.checking.cases import sample
from ddnkit.checking.report import Diagnosis


class Affine(testing.AffineConstraint):
    def adjoint(self, x, y, v):
        return (v - v.mean(),)


class AdjointTwice(Affine):
    def adjoint(self, x, y, v):
        return (2 * (v - v.mean()),)


class FactorOrConstraint(Affine):
    """Off by a factor for large inputs, and without the constraint for small ones."""

    def adjoint(self, x, y, v):
        return (2 * (v - v.mean()),) if x.abs().max() > 0.5 else (v,)


class ConstraintOrFactor(Affine):
    """The same the other way about: small inputs cannot show what the large ones do."""

    def adjoint(self, x, y, v):
        return (v,) if x.abs().max() > 0.5 else (2 * (v - v.mean()),)


class FactorBySize(Affine):
    """One diagnosis, whose figure is another for small inputs."""

    def adjoint(self, x, y, v):
        return ((3 if x.abs().max() > 0.5 else 2) * (v - v.mean()),)


class FormulaOrAdjoint(Affine):
    """Another formula for large inputs, a wrong adjoint for all."""

    def solve(self, x):
        y = super().solve(x)
        return y if x.abs().max() < 0.5 else y + 0.3 * (x - x.mean())

    def adjoint(self, x, y, v):
        return (v.mean() - v,)


class LateLeak(Affine):
    """A wrong adjoint for some inputs only, where items of a batch are also mixed."""

    batched_solve = True

    def solve(self, x):
        y = x + (1 - x.sum(dim=1, keepdim=True)) / x.shape[1]
        mean = y.mean(dim=0, keepdim=True)
        return torch.where(x[:1, :1] > 0.4, y + 0.1 * (mean - y) if len(y) > 1 else y, y)

    def adjoint(self, x, y, v):
        return (v - v.mean(dim=-1, keepdim=True)) * torch.where(x[..., :1] > 0.4, 2, 1)


class AdjointWithoutConstraint(Affine):
    def adjoint(self, x, y, v):
        return (v,)


class Nearest(DeclarativeNode):
    """min ‖y − x‖²: y = x, from which the wrong ones below differ in one thing each."""

    input_dims = (1,)

    def objective(self, x, y):
        return ((y - x) ** 2).sum()

    def solve(self, x):
        return x.clone()


class OtherFormula(Nearest):
    def solve(self, x):
        return 0.9 * x


class OtherIteration(Nearest):
    def solve(self, x):
        y = torch.zeros_like(x)
        for _ in range(200):
            y = y - 0.1 * 2 * (y - 0.9 * x)
        return y


class FarOff(Nearest):
    def solve(self, x):
        return torch.from_numpy(-3 * x.numpy())


class SaysSo(Nearest):
    def solve(self, x):
        return Solution(0.9 * x, ddnkit.Status.MAX_ITERATIONS)


class RunsOutOfIterations(DeclarativeNode):
    input_dims = (1,)
    solver = ddnkit.registry.get("solvers", "newton")(max_iterations=1)

    def objective(self, x, y):
        return ((y - x) ** 4).sum() + (y**2).sum()

    def initial_point(self, x):
        return torch.zeros_like(x)


class Maximum(testing.QuadraticOnSphere):
    def solve(self, x):
        return -x / x.norm()


class Random(Nearest):
    tolerance = 0.2

    def solve(self, x):
        return x + 0.01 * torch.randn_like(x)


class Raises(Nearest):
    def solve(self, x):
        raise ZeroDivisionError("on purpose")


class ReturnsNaN(Nearest):
    def solve(self, x):
        return x * torch.nan


class AdjointReturnsNone(Nearest):
    def adjoint(self, x, y, v):
        return (None,)


class Jumps(DeclarativeNode):
    """Two minima ±1 of the same depth; `solve` picks by the input's last digits."""

    input_dims = (1,)

    def objective(self, x, y):
        return ((y**2 - 1) ** 2).sum() + 0 * x.sum()

    def solve(self, x):
        return torch.where((x * 1e7).floor() % 2 == 0, 1.0, -1.0).to(x)


class TouchingConstraints(DeclarativeNode):
    """A circle and the tangent y₂ = 1: the point is alone, and the gradients are parallel there."""

    input_dims = (0,)

    def objective(self, x, y):
        return (y[0] - x) ** 2 + y[1] ** 2

    def equality_constraints(self, x, y):
        return torch.stack([(y**2).sum() - 1, y[1] - 1])

    def solve(self, x):
        return torch.stack([0 * x, 1 + 0 * x])


class HiddenInput(DeclarativeNode):
    input_dims = (1, 1)

    def objective(self, a, b, y):
        return ((y - a) ** 2).sum() + ((y - b.detach()) ** 2).sum()

    def solve(self, a, b):
        return (a + b) / 2


class FactorOnTheNode(testing.Ridge):
    """Keeps the matrix of the last solve for the way back."""

    def answer(self, X, t, lam):
        self.K = X.T @ X + len(t) * lam * torch.eye(X.shape[1], dtype=X.dtype)
        return torch.linalg.solve(self.K, X.T @ t)

    def adjoint(self, X, t, lam, y, v):
        z = torch.linalg.solve(self.K, v)
        return torch.outer(t - X @ y, z) - torch.outer(X @ z, y), X @ z, -len(t) * (z @ y)


class CachedInPlace(Nearest):
    """Keeps answers by the address of the input."""

    def __init__(self):
        self.cache = {}

    def solve(self, x):
        key = x.data_ptr()
        if key not in self.cache:
            self.cache[key] = x, x.clone()  # kept alive, so that no other takes its place
        return self.cache[key][1]


class WarmStartOnTheNode(Nearest):
    def __init__(self):
        self.last = None

    def objective(self, x, y):
        return ((y - x) ** 4).sum() + (y**2).sum()

    def solve(self, x):
        y = torch.zeros_like(x) if self.last is None else self.last.to(x)
        for _ in range(100):
            step = (4 * (y - x) ** 3 + 2 * y) / (12 * (y - x) ** 2 + 2)
            y = y - step
            if step.norm() < 1e-5:
                break
        self.last = y
        return y


class AdjointLeak(Nearest):
    batched_solve = True

    def adjoint(self, x, y, v):
        return (v + 0.1 * (v.mean(0) - v),)


class Float32Inside(Nearest):
    def objective(self, x, y):
        return (y - x.logsumexp(0)) ** 2

    def solve(self, x):
        return x.float().exp().sum().log().double()

    def sample_inputs(self):
        return (150 + 10 * torch.randn(4),)


class WeightedFit(DeclarativeNode):
    """min ½yᵀ(AAᵀ + I)y − xᵀy, whose adjoint can go wrong in its linear algebra."""

    input_dims = (2, 1)

    def matrix(self, A):
        return A @ A.T + torch.eye(len(A)).to(A)

    def objective(self, A, x, y):
        return y @ self.matrix(A) @ y / 2 - y @ x

    def solve(self, A, x):
        return torch.linalg.solve(self.matrix(A), x)

    def adjoint(self, A, x, y, v):
        z = torch.linalg.solve(self.matrix(A), v)
        return -(torch.outer(z, A.T @ y) + torch.outer(y, A.T @ z)), z

    def sample_inputs(self):
        return torch.randn(3, 3), torch.randn(3)


class TransposedGradient(WeightedFit):
    def adjoint(self, A, x, y, v):
        wrt_A, wrt_x = super().adjoint(A, x, y, v)
        return wrt_A.T, wrt_x


class WithoutHessian(WeightedFit):
    def adjoint(self, A, x, y, v):
        return -(torch.outer(v, A.T @ y) + torch.outer(y, A.T @ v)), v


class MixedDerivative(DeclarativeNode):
    """min ½Σ kyₖ² − yᵀWx."""

    input_dims = (1,)
    W = torch.tensor([[1.0, 2, 0], [0, 1, 3], [1, 0, 1]], dtype=torch.float64)
    k = torch.tensor([1.0, 2, 3], dtype=torch.float64)

    def objective(self, x, y):
        return (self.k * y**2).sum() / 2 - y @ self.W @ x

    def solve(self, x):
        return self.W @ x / self.k

    def adjoint(self, x, y, v):
        return (self.W @ (v / self.k),)

    def sample_inputs(self):
        return (torch.randn(3),)


class Parameter(DeclarativeNode):
    """min ‖y − wx‖²."""

    input_dims = (1,)

    def __init__(self):
        self.w = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.copy = self.w.detach().clone()

    def objective(self, x, y):
        return ((y - self.w * x) ** 2).sum()

    def solve(self, x):
        return self.w * x

    def adjoint(self, x, y, v):
        return (self.w.detach() * v,)


class CopyOfParameter(Parameter):
    def solve(self, x):
        return self.copy * x


class Parts(DeclarativeNode):
    """A y of two parts."""

    input_dims = (1, 0)

    def objective(self, x, s, y):
        return ((y["a"] - x) ** 2).sum() + (y["b"] - s * y["a"].sum()) ** 2

    def solve(self, x, s):
        return {"a": x.clone(), "b": s * x.sum()}


class TwoWells(DeclarativeNode):
    """min Σ(y² − 1)² − 0.1xy from a start that depends on x: which well is found does so too."""

    input_dims = (1,)

    def objective(self, x, y):
        return ((y**2 - 1) ** 2).sum() - 0.1 * (x * y).sum()

    def initial_point(self, x):
        return torch.where(x > 0.5, 1.0, -1.0).to(x)


UNIQUE = [problem for problem in testing.bank() if problem.unique]
#: The sweep has all of these, too.
SOME = [
    problem if index % 4 == 0 else pytest.param(problem, marks=pytest.mark.long)
    for index, problem in enumerate(UNIQUE)
]


@pytest.mark.parametrize(
    "node",
    [*SOME, Affine(), WeightedFit(), Parameter(), Parts(), TwoWells()],
    ids=lambda node: getattr(node, "label", type(node).__name__),
)
def test_right_nodes_pass(node):
    report = ddnkit.check(node, examples=2)
    assert report.ok, str(report)
    assert report.cases == 2
    assert report.diagnosis == report.next == ()
    assert report.inputs == report.snippet == ""
    assert report.verdict == "trusted"
    assert report.verdict in str(report)


#: Each with the name of its diagnosis, as the table of docs/check.md has it, and what is named in it:
#: a factor, an input, a form, a matrix, a status, an exception.
WRONG = [
    (AdjointTwice(), "the node's own adjoint is wrong", "2"),
    (AdjointWithoutConstraint(), "the node's own adjoint is wrong", "constraints"),
    (WithoutHessian(), "the node's own adjoint is wrong", "Hessian"),
    (TransposedGradient(), "the node's own adjoint is wrong", "input 0"),
    (MixedDerivative(), "the node's own adjoint is wrong", "D²_xy L"),
    (HiddenInput(), "forgotten input", "input 1"),
    (AdjointReturnsNone(), "the form 'closed_form'", "input 0"),
    (OtherFormula(), "the objective is not what is solved", "`solve`"),
    (OtherIteration(), "the objective is not what is solved", "`solve`"),
    (FarOff(), "the objective is not what is solved", "the solver stops"),
    (SaysSo(), "inexact solve", "MAX_ITERATIONS"),
    (RunsOutOfIterations(), "inexact solve", "MAX_ITERATIONS"),
    (Maximum(), "not a minimum", ""),
    (testing.CosineDistance(), "the solution is not unique", ""),
    (TouchingConstraints(), "degenerate constraints", ""),
    (Random(), "not deterministic", ""),
    (WarmStartOnTheNode(), "the answer depends on earlier calls", ""),
    (FactorOnTheNode(), "stale cache", "`adjoint`"),
    (CachedInPlace(), "stale cache", ""),
    (AdjointLeak(), "items of a batch influence one another", "closed_form"),
    (Float32Inside(), "float32 is too coarse", ""),
    (Raises(), "the node does not run", "ZeroDivisionError: on purpose"),
    (ReturnsNaN(), "the solver returns NaN or infinity", ""),
    (Jumps(), "another branch", ""),
    (CopyOfParameter(), "parameter w", ""),
]


@pytest.mark.parametrize(
    ("node", "diagnosis", "named"),
    WRONG,
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_wrong_nodes_are_named_as_what_they_are(node, diagnosis, named):
    report = ddnkit.check(node, *sample(node, seed=1))
    assert not report.ok
    assert report.diagnosis[0].startswith(diagnosis), report.diagnosis
    assert named in report.diagnosis[0].removeprefix(diagnosis), report.diagnosis
    assert len(report.next) == len(report.diagnosis)
    assert "FAIL" in str(report)  # as docs/check.md has it
    assert report.next[0] in str(report)


# -- comparisons ----------------------------------------------------------------------------------


def names_of(report):
    return {row.name for row in report.rows}


def test_all_applicable_forms_are_compared_forward_and_backward():
    report = ddnkit.check(Affine(), examples=1)
    assert set(report.forms) == {"closed_form", "dense", "embedded_field", "krylov", "unrolled"}
    for form in report.forms:
        assert f"{form}: finite differences" in names_of(report)
        assert f"{form}: forward against backward" in names_of(report)


def test_a_wrong_adjoint_without_another_form_is_found_by_differences():
    report = ddnkit.check(AdjointTwice(), backward="closed_form", examples=2)
    assert report.diagnosis[0].startswith("the node's own adjoint is wrong")
    assert re.search(r"\b2\b", report.diagnosis[0])
    assert report.forms == ("closed_form",)


def test_parameters_are_compared_and_left_as_they_are():
    node = Parameter()
    report = ddnkit.check(node, examples=2)
    assert "dense: parameter w" in names_of(report)
    assert node.w.requires_grad
    assert node.w == 2
    assert node.w.grad is None
    module = ddnkit.check(testing.TwoInputsOptionAndModule(), examples=1)
    assert {"krylov: parameter linear.weight", "krylov: parameter linear.bias"} <= names_of(module)


def test_a_node_with_parameters_has_its_own_adjoint_compared_too():
    class Twice(Parameter):
        def adjoint(self, x, y, v):
            return (2 * self.w.detach() * v,)

    (told,) = ddnkit.check(Twice(), examples=1).diagnosis
    assert told.startswith("the node's own adjoint is wrong") and re.search(r"\b2\b", told)


def test_differences_are_warm_started_on_the_branch_of_an_iterative_solver():
    starts = []

    class Watched(ddnkit.registry.get("solvers", "newton")):
        def solve(self, problem, start=None):
            starts.append(start)
            return super().solve(problem, start)

    class Wells(TwoWells):
        solver = Watched()

    x = torch.tensor([0.5 - 1e-9, 0.2], dtype=torch.float64)
    report = ddnkit.check(Wells(), x)
    # Anew, the solver changes wells within a step; the differences do not.
    assert all(row.ok for row in report.rows if "finite differences" in row.name)
    assert report.diagnosis[0].startswith("another branch:")
    assert any(start is not None for start in starts)


def test_steps_without_a_derivative_are_not_what_the_others_are_held_against():
    class ManyUnknowns(Nearest):
        """So many that the dense forms, of which one is the reference, are left out."""

        def solve(self, x):
            return x.detach() + 0 * x

    report = ddnkit.check(ManyUnknowns(), torch.linspace(1, 2, 1100, dtype=torch.float64))
    assert report.ok, str(report)
    assert any(note.startswith("unrolled") for note in report.notes)
    assert any(note.startswith("dense") for note in report.notes)
    assert "krylov: finite differences" in names_of(report)


def test_harmless_dependent_constraints_are_noted():
    report = ddnkit.check(testing.RepeatedConstraint(), examples=1)
    assert report.ok
    assert any("dependent constraints" in note for note in report.notes)


def test_a_lower_minimum_fails_a_formula_that_does_not_say_it_is_local():
    class OtherMinimum(testing.Polynomial):
        def answer(self, x):
            return (-3 * x**2 + (9 * x**4 + 96 * x).sqrt()) / (4 * x)

    assert not ddnkit.check(OtherMinimum(), examples=1).ok
    report = ddnkit.check(OtherMinimum(), examples=1, local=True)
    assert report.ok, str(report)
    assert any("local" in note for note in report.notes)


def test_steps_that_torch_cannot_differentiate_fail_only_where_they_are_asked_for():
    class Numpy(Nearest):
        def solve(self, x):
            return torch.from_numpy(x.numpy().copy())

    report = ddnkit.check(Numpy(), examples=1)
    assert report.ok, str(report)
    assert any(note.startswith("unrolled:") for note in report.notes)
    assert not ddnkit.check(Numpy(), examples=1, backward="unrolled").ok


def test_given_inputs_are_checked_as_they_are():
    x = torch.randn(3, 4, dtype=torch.float64)
    report = ddnkit.check(Affine(), x)
    assert report.ok, str(report)
    assert report.cases == 1
    assert "batch: each y alone" in names_of(report)
    wide = ddnkit.check(AdjointTwice(), torch.randn(100, dtype=torch.float64))
    assert "# x0: (100,)" in wide.inputs


def test_float32_inputs_are_held_against_what_float32_can_do():
    report = ddnkit.check(Affine(), torch.randn(4))
    assert report.ok, str(report)
    assert "float32: gradient against float64" in names_of(report)
    assert not ddnkit.check(AdjointTwice(), torch.randn(4)).ok


def test_float32_inputs_that_are_too_coarse_are_named():
    class Cancels(Nearest):
        def objective(self, x, y):
            return ((y - self.centred(x)) ** 2).sum()

        def centred(self, x):
            return (x + 1e4) ** 2 - 1e8  # 2e4 x + x², less what rounding takes

        def solve(self, x):
            return self.centred(x)

    x = torch.tensor([1e-3, 2e-4])
    report = ddnkit.check(Cancels(), x)
    assert report.diagnosis[0].startswith("float32 is too coarse"), str(report)
    assert ddnkit.check(Cancels(), x.double()).ok


def test_a_float32_constraint_leaves_rounding_not_a_saddle_point():
    report = ddnkit.check(testing.QuadraticOnSphere(), torch.randn(60))
    assert report.ok, str(report)


def test_a_node_without_differentiable_inputs_is_checked_as_a_solver():
    class Index(DeclarativeNode):
        input_dims = (0,)

        def objective(self, k, y):
            return (y - k) ** 2

        def solve(self, k):
            return k.double()

    report = ddnkit.check(Index(), torch.tensor(3))
    assert report.ok, str(report)
    assert not any("finite differences" in row.name for row in report.rows)


def test_the_global_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(())
    torch.manual_seed(3)
    ddnkit.check(Affine(), examples=2)
    assert torch.rand(()) == expected


# -- layers ---------------------------------------------------------------------------------------


def test_a_layer_is_checked_with_its_form_and_batch():
    class Unsized(DeclarativeNode):
        def objective(self, x, y):
            return ((y - x) ** 2).sum() + (y**4).sum()

        def initial_point(self, x):
            return torch.zeros_like(x)

    layer = ddnkit.DeclarativeLayer(Unsized(), "krylov", batch_dims=1)
    report = ddnkit.check(layer, torch.randn(2, 3, dtype=torch.float64))
    assert report.ok, str(report)
    assert report.forms == ("krylov",)
    assert report.target == "Unsized"


def test_a_layers_tolerance_counts():
    node = OtherFormula()
    assert not ddnkit.check(ddnkit.DeclarativeLayer(node), examples=1).ok
    loose = ddnkit.check(ddnkit.DeclarativeLayer(node, tolerance=0.5), examples=1)
    assert next(row for row in loose.rows if row.name == "stationarity").ok


def test_assertions_in_a_users_test():
    testing.assert_gradients(ddnkit.DeclarativeLayer(Affine()), examples=2)
    testing.assert_gradients(Affine(), torch.randn(2, 4, dtype=torch.float64))
    with pytest.raises(AssertionError, match=r"the node's own adjoint is wrong.*\b2\b"):
        testing.assert_gradients(ddnkit.DeclarativeLayer(AdjointTwice()), examples=1)


# -- the report -----------------------------------------------------------------------------------


def checked_by(snippet, **scope):
    """The reports that a script prints."""
    printed = []
    exec(snippet, {"print": printed.append, **scope})
    return printed


def test_failing_inputs_are_shrunk_to_simple_ones():
    class WrongForLargeFirstEntry(Affine):
        def adjoint(self, x, y, v):
            return (v - v.mean() + (x[0].abs() > 0.3) * v,)

    report = ddnkit.check(WrongForLargeFirstEntry(), examples=50)
    assert not report.ok
    scope = {"torch": torch}
    exec(report.inputs.replace("    ", ""), scope)
    x = scope["x0"]
    assert x.dtype == torch.float64
    assert (x[1:] == 0).all()
    assert abs(float(x[0])) > 0.3
    assert len(f"{float(x[0])}") <= 4


@pytest.mark.parametrize(
    "node",
    [
        AdjointTwice(),
        Raises(),
        pytest.param(testing.NearestSimplexETF("missing"), marks=pytest.mark.long),
        pytest.param(HiddenInput(), marks=pytest.mark.long),
        pytest.param(AdjointLeak(), marks=pytest.mark.long),
    ],
    ids=lambda node: type(node).__name__,
)
def test_the_snippet_makes_the_failure_again(node, monkeypatch):
    if isinstance(node, testing.NearestSimplexETF):
        monkeypatch.setattr(testing.NearestSimplexETF, "answer", lambda self, H, P: P.clone())
    report = ddnkit.check(node, examples=2)
    (again,) = checked_by(report.snippet)
    assert again.diagnosis[0].split(":")[0] == report.diagnosis[0].split(":")[0]
    assert again.cases == 1


def test_the_snippet_has_what_the_check_was_made_with():
    report = ddnkit.check(AdjointTwice(), backward="closed_form", examples=1)
    assert "backward='closed_form'" in report.snippet
    layer = ddnkit.DeclarativeLayer(OtherFormula(), "dense", tolerance=1e-3)
    report = ddnkit.check(layer, torch.randn(2, 3))
    assert "ddnkit.DeclarativeLayer(node, 'dense', tolerance=0.001)" in report.snippet
    assert "dtype=torch.float32" in report.snippet
    (again,) = checked_by(report.snippet)
    assert not again.ok


TWO_DEFECTS = [
    (FactorOrConstraint(), "adjoint_factor"),
    (FormulaOrAdjoint(), "other_objective"),
    (ConstraintOrFactor(), "adjoint_without_constraints"),
    (FactorBySize(), "adjoint_factor"),
    (LateLeak(), "batch_leak"),
]


@pytest.mark.parametrize(
    ("node", "kind", "form"),
    [
        pytest.param(*TWO_DEFECTS[0], "closed_form", marks=pytest.mark.long),
        (*TWO_DEFECTS[1], None),
        *(pytest.param(*case, None, marks=pytest.mark.long) for case in TWO_DEFECTS),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, DeclarativeNode) else value,
)
def test_the_script_has_the_diagnosis_that_is_printed_above_it(node, kind, form):
    report = ddnkit.check(node, backward=form)
    (again,) = checked_by(report.snippet)
    assert report.kinds == again.kinds == (kind,)
    assert again.diagnosis == report.diagnosis
    assert {row.name for row in again.rows if not row.ok} <= {
        row.name for row in report.rows if not row.ok
    }


def test_figures_are_relative_to_what_is_not_zero():
    class LastInput(Nearest):
        def objective(self, x, y):
            return ((y - x**2) ** 2).sum()

        def solve(self, x):
            self.kept = x.detach().clone()
            return x**2

        def adjoint(self, x, y, v):
            return (2 * self.kept * v,)

    # Shrunk inputs are often zero, and so is the gradient there.
    zeros = torch.zeros(3, dtype=torch.float64)
    report = ddnkit.check(LastInput(), zeros, backward="closed_form")
    assert report.kinds == ("stale_gradient",)
    assert all(row.error <= 2 for row in report.rows)


def test_rows_of_a_parameter_are_its_own():
    class Two(Nearest):
        def __init__(self):
            self.w = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
            self.w2 = torch.nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

        def objective(self, x, y):
            return ((y - self.w * self.w2 * x) ** 2).sum()

        def solve(self, x):
            return self.w * self.w2.detach() * x

        def sample_inputs(self):
            return (torch.ones(3),)

    report = ddnkit.check(Two(), backward="unrolled", examples=1)
    off = {row.name.split()[-1]: row.ok for row in report.rows if ": parameter" in row.name}
    assert off == {"w": True, "w2": False}
    assert report.kinds == ("parameter",)
    assert report.diagnosis[0].startswith("parameter w2:")


@pytest.mark.long
def test_a_snippet_of_a_local_class_leaves_the_node_to_its_owner():
    class Local(AdjointTwice):
        pass

    node = Local()
    report = ddnkit.check(node, examples=1)
    assert "# node = Local(...)" in report.snippet
    (again,) = checked_by(report.snippet, node=node)
    assert not again.ok


def test_the_snippet_repeats_constructor_arguments():
    node = testing.NearestSimplexETF("square", delta=0.5)
    report = ddnkit.check(node, torch.zeros(4, 4), torch.zeros(4, 4))
    assert not report.ok
    assert "from ddnkit.testing import NearestSimplexETF\n" in report.snippet
    assert "node = NearestSimplexETF(case='square', delta=0.5)" in report.snippet


def test_numbers_that_python_does_not_write_as_such():
    report = ddnkit.check(Nearest(), torch.tensor([torch.nan, -torch.inf]))
    assert 'float("nan"), float("-inf")' in report.snippet
    (again,) = checked_by(report.snippet)
    assert not again.ok


@pytest.mark.parametrize("node", [Affine(), Raises(), ReturnsNaN(), Float32Inside()])
def test_report_is_plain_data(node):
    report = ddnkit.check(node, examples=1)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["ok"] is report.ok
    assert {"name", "error", "tolerance", "ok"} <= set(data["rows"][0])
    assert data["verdict"] == report.verdict
    assert data["diagnosis"] == list(report.diagnosis)
    assert data["next"] == list(report.next)
    assert data["kinds"] == [kind.value for kind in report.kinds]
    assert data["notes"] == list(report.notes)
    assert data["snippet"] == report.snippet


def test_the_page_on_checking_has_every_word_of_a_diagnosis():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "check.md").read_text()
    assert [kind for kind in Diagnosis if f"`{kind.value}`" not in page] == []


def test_a_doubtful_certificate_makes_a_doubtful_report():
    class Loose(DeclarativeNode):
        input_dims = (1,)
        tolerance = 1e-1

        def objective(self, x, y):
            return ((y - x) ** 4).sum() + (y**2).sum()

        def solve(self, x):
            y = torch.zeros_like(x)
            for _ in range(6):
                y = y - (4 * (y - x) ** 3 + 2 * y) / (12 * (y - x) ** 2 + 2)
            return y * (1 + 3e-2)

    report = ddnkit.check(Loose(), torch.tensor([1.0, 2.0], dtype=torch.float64), backward="dense")
    assert report.verdict != "trusted"


# -- inputs ---------------------------------------------------------------------------------------


def test_inputs_are_guessed_where_a_node_has_no_sample():
    class NoSample(DeclarativeNode):
        def objective(self, a, b, y):
            return ((y - a) ** 2).sum() + ((y - b) ** 2).sum()

        def solve(self, a, b):
            return (a + b) / 2

    class Option(NoSample):
        input_dims = (1, None)

        def objective(self, a, b, y):
            return ((y - a) ** 2).sum() if b is None else torch.nan

        def solve(self, a, b):
            return a.clone()

    assert ddnkit.check(NoSample(), examples=2).ok
    assert ddnkit.check(Option(), examples=2).ok


def test_what_cannot_be_checked():
    class Many(DeclarativeNode):
        def objective(self, *xs, y):
            return sum(((y - x) ** 2).sum() for x in xs)

    class List(Affine):
        def sample_inputs(self):
            return [torch.randn(4)]

    with pytest.raises(InputError, match="sample_inputs"):
        ddnkit.check(Many())
    with pytest.raises(InputError, match="tuple"):
        ddnkit.check(List())
    with pytest.raises(InputError):
        ddnkit.check(Affine)
    with pytest.raises(InputError, match=r"fixed_point.*closed_form, "):
        ddnkit.check(Affine(), backward="fixed_point")


def test_a_failure_on_inputs_without_an_entry_is_told_like_any_other() -> None:
    class Nothing(DeclarativeNode):
        input_dims = (1,)

        def objective(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return ((y - x) ** 2).sum()

        def solve(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("there is nothing to solve")

        def sample_inputs(self) -> tuple[torch.Tensor]:
            return (torch.empty(0),)

    assert not ddnkit.check(Nothing(), examples=2).ok


class UnitInPlace(ddnkit.DeclarativeNode):
    """`solve` normalises what it is given, which is the caller's."""

    input_dims = (1,)

    def objective(self, x, y):
        return ((y - x) ** 2).sum()

    def equality_constraints(self, x, y):
        return y @ y - 1

    def solve(self, x):
        return x.div_(x.norm())

    def sample_inputs(self):
        return (3 * torch.randn(5),)


@pytest.mark.parametrize("shape", [None, (5,), (2, 5)])
def test_a_solve_that_writes_on_its_input_does_not_pass_and_leaves_it(shape):
    given = () if shape is None else (torch.full(shape, 3.0, dtype=torch.float64),)
    report = ddnkit.check(UnitInPlace(), *given)
    assert not report.ok and "in place" in report.diagnosis[0] and len(report.diagnosis) == 1
    for x in given:
        assert bool((x == 3).all())


class TotalVariation(DeclarativeNode):
    """½‖y − x‖² + |y₁ − y₀|, which newton solves from x, and stays where it is once it is at the kink."""

    input_dims = (1,)

    def objective(self, x, y):
        return 0.5 * ((y - x) ** 2).sum() + (y[1] - y[0]).abs()

    def initial_point(self, x):
        return x


def test_a_solver_that_cannot_leave_a_kink_is_solved_anew():
    report = ddnkit.check(TotalVariation(), torch.tensor([1.0, 1.5], dtype=torch.float64))
    assert report.ok, str(report)


class SoftThreshold(DeclarativeNode):
    """½‖y − x‖² + ‖y‖₁, which newton solves from x = 0 alone."""

    input_dims = (1,)

    def objective(self, x, y):
        return 0.5 * ((y - x) ** 2).sum() + y.abs().sum()

    def initial_point(self, x):
        return x


@pytest.mark.long
def test_a_solver_that_fails_at_inputs_nearby_is_named():
    report = ddnkit.check(SoftThreshold(), torch.tensor([0.0, 3.0], dtype=torch.float64))
    assert report.kinds[0] == "inexact_solve"


class MeanForMedian(DeclarativeNode):
    """The mean as the minimum of a smooth median's objective: wrong, and hidden by an offset of the data."""

    input_dims = (1,)

    def objective(self, x, y):
        return ((y - x) ** 2 + 0.01).sqrt().sum()

    def solve(self, x):
        return x.mean().reshape(1)


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e9])
def test_a_wrong_solution_beside_an_offset_is_no_fault_of_the_system(offset):
    x = torch.tensor([0.0, 1.0, 9.0], dtype=torch.float64) + offset
    report = ddnkit.check(MeanForMedian(), x)
    assert report.kinds[0] == "other_objective"


@pytest.mark.parametrize(
    ("member", "wrong"),
    [
        ("transport", lambda self, y, to, vector: vector[..., :1]),
        ("transport", lambda self, y, to, vector: None),
        ("retract", lambda self, y, tangent: y.sum(-1)),
        ("tangent", lambda self, y, vector: vector[0]),
        ("multipliers", lambda self, y, gradient: None),
        ("normal", lambda self, y, multipliers: y @ y),
        ("constraint", lambda self, y: y.sum()),
        ("constraint_jacobian", lambda self, y: y),
        ("constraint_curvature", lambda self, y, multipliers: y),
        ("project", lambda self, y: y.nothing),
        ("infeasibility", lambda self, y: y),
        ("random", lambda self, shape: like),  # noqa: F821
    ],
)
def test_a_manifold_is_told_which_member_gives_something_else(member, wrong):
    class OnSphere(DeclarativeNode):
        input_dims = (1,)
        manifold = type("Ball", (Sphere,), {member: wrong})()

        def objective(self, x, y):
            return ((y - x) ** 2).sum()

        def initial_point(self, x):
            return x / x.norm()

    with pytest.raises(InputError, match=f"Ball.*{member} "):
        ddnkit.check(OnSphere(), torch.randn(4, dtype=torch.float64))
