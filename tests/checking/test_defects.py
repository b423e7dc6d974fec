"""Twelve seeded defects, each beside its correct twin: `check` names the one and is silent on the other."""

import functools

import pytest
import torch

import ddnkit
from ddnkit import DeclarativeNode, testing


class Projection(testing.AffineConstraint):
    """The nearest point with sum 1, with its adjoint."""

    def adjoint(self, x, y, v):
        return (v - v.mean(),)


class WrongFactor(Projection):
    def adjoint(self, x, y, v):
        return (3 * (v - v.mean()),)


class WrongSign(Projection):
    def adjoint(self, x, y, v):
        return (v.mean() - v,)


class LinearSystem(DeclarativeNode):
    """min ½‖Ay − b‖²: y = A⁻¹b, whose way back solves with Aᵀ."""

    input_dims = (2, 1)

    def objective(self, A, b, y):
        return ((A @ y - b) ** 2).sum() / 2

    def solve(self, A, b):
        return torch.linalg.solve(A, b)

    def adjoint(self, A, b, y, v):
        u = torch.linalg.solve(A.T, v)
        return -torch.outer(u, y), u

    def sample_inputs(self):
        return 3 * torch.eye(4) + torch.randn(4, 4), torch.randn(4)


class TransposedHessianTerm(LinearSystem):
    def adjoint(self, A, b, y, v):
        u = torch.linalg.solve(A, v)
        return -torch.outer(u, y), u


class ForgottenInput(LinearSystem):
    def adjoint(self, A, b, y, v):
        return torch.zeros_like(A), torch.linalg.solve(A.T, v)


class Descent(DeclarativeNode):
    """min Σ(y−x)⁴ + (y−x)² + y², by gradient descent."""

    input_dims = (1,)
    steps = 150  # of a factor of 0.8 at most: down to rounding

    def objective(self, x, y):
        return ((y - x) ** 4 + (y - x) ** 2 + y**2).sum()

    def solve(self, x):
        y = torch.zeros_like(x)
        for _ in range(self.steps):
            y = y - 0.05 * (4 * (y - x) ** 3 + 2 * (y - x) + 2 * y)
        return y


class StopsEarly(Descent):
    steps = 12


class RightRoot(testing.Polynomial):
    """The stationary point with the least objective."""


class WrongRoot(testing.Polynomial):
    """The other minimum, which is not as deep."""

    def answer(self, x):
        return (-3 * x**2 + (9 * x**4 + 96 * x).sqrt()) / (4 * x)


class OnSphere(testing.QuadraticOnSphere):
    """The point of the unit sphere nearest to x."""


class Infeasible(OnSphere):
    def answer(self, x):
        return 1.05 * x / x.norm()


class SquaredConstraint(OnSphere):
    """The same sphere, stated so that the gradient of the constraint vanishes on it."""

    def equality_constraints(self, x, y):
        return ((y**2).sum() - 1) ** 2


class Shrinkage(DeclarativeNode):
    """min ½‖y−x‖² + ½‖y‖², for a whole batch at once."""

    input_dims = (1,)
    batched_solve = True

    def objective(self, x, y):
        return ((y - x) ** 2).sum() / 2 + (y**2).sum() / 2

    def solve(self, x):
        return x / 2


class BatchLeak(Shrinkage):
    def solve(self, x):
        # Of a batch of one the mean is the item itself, and all is well.
        return x / 2 + 0.1 * (x.mean(dim=0) - x)


class LogSumExp(DeclarativeNode):
    """min ½(y − log Σ eˣ)²."""

    input_dims = (1,)

    def objective(self, x, y):
        return (y - x.logsumexp(0)) ** 2 / 2

    def solve(self, x):
        return x.logsumexp(0)

    def sample_inputs(self):
        return (150 + 10 * torch.randn(4),)


class Float32Overflow(LogSumExp):
    def solve(self, x):
        return x.exp().sum().log()


class Cached(testing.Ridge):
    """Ridge regression that keeps the factorisation of its matrix."""

    def __init__(self):
        self.cache = {}

    def key(self, X, lam):
        return (*X.reshape(-1).tolist(), lam.item())

    def answer(self, X, t, lam):
        key = self.key(X, lam)
        if key not in self.cache:
            K = X.T @ X + len(t) * lam * torch.eye(X.shape[1], dtype=X.dtype)
            self.cache[key] = torch.linalg.cholesky(K)
        return torch.cholesky_solve((X.T @ t).unsqueeze(-1), self.cache[key]).squeeze(-1)


class StaleCache(Cached):
    def key(self, X, lam):
        return tuple(X.shape)


class Random(OnSphere):
    def answer(self, x):
        y = x + 0.01 * torch.randn_like(x)
        return y / y.norm()


#: Each with the name of its diagnosis (docs/check.md) and what is named in it.
PAIRS = [
    (WrongFactor, Projection, "the node's own adjoint is wrong", "3"),
    (WrongSign, Projection, "the node's own adjoint is wrong", "-1"),
    (TransposedHessianTerm, LinearSystem, "the node's own adjoint is wrong", "dy/dx"),
    (StopsEarly, Descent, "inexact solve", ""),
    (WrongRoot, RightRoot, "another branch", "`solve`"),
    (Infeasible, OnSphere, "infeasible", ""),
    (SquaredConstraint, OnSphere, "degenerate constraints", ""),
    (BatchLeak, Shrinkage, "items of a batch influence one another", "`solve`"),
    (Float32Overflow, LogSumExp, "float32 overflows", ""),
    (StaleCache, Cached, "stale cache", ""),
    (ForgottenInput, LinearSystem, "the node's own adjoint is wrong", "input 0"),
    (Random, OnSphere, "not deterministic", ""),
]


#: Defects that three samples need not show: for these inputs are drawn, and shrunk, in `make test` too.
SELDOM = {
    "BatchLeak",
    "Float32Overflow",
    "ForgottenInput",
    "NearlyDone",
    "StopsEarly",
    "TransposedHessianTerm",
    "WithoutActive",
    "WrongRoot",
}


def by_samples_or_draws(pairs):
    """Each pair by samples, and by draws in `make test-long`: to shrink takes ten times as long."""
    found = []
    for pair in pairs:
        values, marks = getattr(pair, "values", pair), getattr(pair, "marks", ())
        if values[0].__name__ not in SELDOM:
            found.append(pytest.param(*values, False, marks=marks))
            marks = pytest.mark.long
        found.append(pytest.param(*values, True, marks=marks))
    return found


def named(value):
    return {True: "drawn", False: ""}.get(value, getattr(value, "__name__", ""))


def report_of(node, drawn):
    if drawn:
        return ddnkit.check(node, examples=3)
    samples = [node.sample_inputs() for _ in range(3)]
    return ddnkit.check(node, *(torch.stack(xs) for xs in zip(*samples, strict=True)))


@functools.cache
def report_of_twin(twin, drawn):
    """Of a node that several of the wrong ones are made from."""
    return report_of(twin(), drawn)


@pytest.mark.parametrize(
    ("defect", "twin", "cause", "named", "drawn"), by_samples_or_draws(PAIRS), ids=named
)
def test_a_defect_is_named_and_its_twin_passes(defect, twin, cause, named, drawn):
    report = report_of(defect(), drawn)
    assert not report.ok
    assert report.verdict == "invalid"
    assert report.diagnosis[0].startswith(cause), report.diagnosis
    assert named in report.diagnosis[0].removeprefix(cause), report.diagnosis
    assert report.next[0]
    right = report_of_twin(twin, drawn)
    assert right.ok, str(right)
    assert right.diagnosis == right.next == ()
    assert right.snippet == right.inputs == ""


def test_a_weakly_active_constraint_is_named_and_one_beside_it_passes():
    class Clamp(DeclarativeNode):
        """The nearest point with no entry below zero."""

        input_dims = (1,)
        bounds = (0.0, None)

        def objective(self, x, y):
            return 0.5 * (y - x).square().sum()

        def solve(self, x):
            return x.clamp(min=0)

    at_it = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    report = ddnkit.check(Clamp(), at_it)
    assert [kind.value for kind in report.kinds] == ["weakly_active"]
    assert ddnkit.check(Clamp(), at_it + 0.1).ok


# -- inequality constraints and bounds ------------------------------------------------------------


class OnBall(DeclarativeNode):
    """The nearest point of the unit ball."""

    input_dims = (1,)

    def objective(self, x, y):
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x, y):
        return 0.5 * (y @ y - 1)

    def solve(self, x):
        return x / x.norm().clamp(min=1)

    def sample_inputs(self):
        return (torch.randn(3),)


class OtherSign(OnBall):
    """g ≥ 0 written where g ≤ 0 is meant."""

    def inequality_constraints(self, x, y):
        return 0.5 * (1 - y @ y)


class OneOtherSign(OnBall):
    """Of two constraints the second."""

    def inequality_constraints(self, x, y):
        return torch.stack([0.5 * (y @ y - 1), y[0] + 9])


class AdjointOfBall(OnBall):
    def adjoint(self, x, y, v):
        outside = x.norm() > 1
        return ((v - y * (y @ v)) / x.norm() if outside else v,)


class WithoutActive(OnBall):
    """An adjoint that forgets the constraint that is active."""

    def adjoint(self, x, y, v):
        return (v,)


class Barrier(DeclarativeNode):
    """The nearest point of the simplex by an interior point: y = ½(s + √(s² + 4μ)), s = x + ν."""

    input_dims = (1,)
    bounds = (0.0, None)
    mu = 1e-30

    def objective(self, x, y):
        return 0.5 * (y - x).square().sum()

    def equality_constraints(self, x, y):
        return y.sum() - 1

    def solve(self, x):
        low, high = -x.max() - 1, 1 - x.min()
        for _ in range(64):  # as many bits as ν has, and more
            nu = (low + high) / 2
            if self.of(x + nu).sum() > 1:
                high = nu
            else:
                low = nu
        return self.of(x + nu)

    def of(self, s):
        root = (s.square() + 4 * self.mu).sqrt()
        # The smaller of the two roots by their product, without cancellation.
        return torch.where(s > 0, (s + root) / 2, 2 * self.mu / (root - s).clamp(min=1e-300))

    def sample_inputs(self):
        return (torch.randn(4),)


class LooseBarrier(Barrier):
    mu = 1e-3


class NearlyDone(Barrier):
    mu = 1e-6


class Stuck(Barrier):
    """The first entry is held at its bound, whatever its multiplier says."""

    def solve(self, x):
        return torch.cat([0 * x[:1], super().solve(x[1:])])


class StuckByChoice(Stuck):
    """And a gradient is asked for that takes it for active."""

    degenerate = "least_norm"


class Logarithm(DeclarativeNode):
    """min Σ yᵢ − xᵢ log yᵢ, y ≤ 2: y = min(x, 2)."""

    input_dims = (1,)
    bounds = (None, 2.0)

    def objective(self, x, y):
        return (y - x * y.log()).sum()

    def initial_point(self, x):
        return torch.ones_like(x)

    def sample_inputs(self):
        return (0.5 + torch.rand(3),)


class StartsOutside(Logarithm):
    def initial_point(self, x):
        return -torch.ones_like(x)


class Crossed(DeclarativeNode):
    input_dims = (1,)

    def bounds(self, x):
        return torch.tensor([0.0, 0.0, 1.0]).to(x), torch.tensor([1.0, 1.0, 0.5]).to(x)

    def objective(self, x, y):
        return 0.5 * (y - x).square().sum()

    def initial_point(self, x):
        return x.clone()

    def sample_inputs(self):
        return (torch.randn(3),)


class CrossedAndClamped(Crossed):
    def solve(self, x):
        lower, upper = self.bounds(x)
        return torch.minimum(torch.maximum(x, lower), upper)


class Uncrossed(Crossed):
    def bounds(self, x):
        lower, upper = super().bounds(x)
        return torch.minimum(lower, upper), torch.maximum(lower, upper)


class WithMultipliers(testing.ProjectionOnSimplex):
    """ν = θ and λ = y − x − ν in L = f − ν(Σy − r) − λᵀy, beside y; none of an upper bound."""

    def solve(self, x, r):
        y = self.answer(x, r)
        nu = (y - x)[y > 0][:1]
        return ddnkit.Solution(y, multipliers=self.reported(nu, y - x - nu))

    def reported(self, nu, lower):
        return nu, torch.cat([lower, torch.zeros_like(lower)])


class ZeroMultipliers(WithMultipliers):
    def reported(self, nu, lower):
        return nu, torch.zeros(8).to(lower)


class OtherConvention(WithMultipliers):
    """L = f + νᵀh."""

    def reported(self, nu, lower):
        return -nu, torch.cat([lower, torch.zeros_like(lower)])


class MissingMultipliers(WithMultipliers):
    def reported(self, nu, lower):
        return nu, lower


class AbsoluteValues(DeclarativeNode):
    """The point of Σ|yᵢ| ≤ 1 nearest to x, as it is on paper."""

    input_dims = (1,)

    def objective(self, x, y):
        return ((y - x) ** 2).sum() / 2

    def inequality_constraints(self, x, y):
        return y.abs().sum() - 1

    def initial_point(self, x):
        return torch.zeros_like(x)

    def sample_inputs(self):
        return (torch.tensor([2.0, -0.3, 1.4, 0.2]) + 0.1 * torch.rand(4, dtype=torch.float64),)


class InParts(AbsoluteValues):
    """The same by y = p − q, where p and q have a curvature each: one of them is 0 at the minimum."""

    bounds = (0.0, None)

    def objective(self, x, y):
        return ((y["p"] - x) ** 2 + (y["q"] + x) ** 2).sum() / 2

    def inequality_constraints(self, x, y):
        return (y["p"] + y["q"]).sum() - 1

    def initial_point(self, x):
        return {"p": torch.zeros_like(x), "q": torch.zeros_like(x)}


INEQUALITY_PAIRS = [
    (OtherSign, OnBall, "inequality_sign", "wrong sign"),
    (OneOtherSign, OnBall, "inequality_sign", "inequality constraint 1"),
    (WithoutActive, AdjointOfBall, "adjoint_without_constraints", "constraints"),
    (LooseBarrier, Barrier, "keeps_off_a_constraint", "the lower bound of entry"),
    pytest.param(
        NearlyDone,
        Barrier,
        "keeps_off_a_constraint",
        "the lower bound of entry",
        marks=pytest.mark.long,
    ),
    (Stuck, Barrier, "inactive_held", "the lower bound of entry 0"),
    pytest.param(
        StuckByChoice,
        Barrier,
        "inactive_held",
        "the lower bound of entry 0",
        marks=pytest.mark.long,
    ),
    (StartsOutside, Logarithm, "start_outside", "`initial_point`"),
    (
        Crossed,
        Uncrossed,
        "bounds_contradict",
        "entry 2 of y the lower one is 1 and the upper one 0.5",
    ),
    pytest.param(
        CrossedAndClamped, Uncrossed, "bounds_contradict", "`bounds`", marks=pytest.mark.long
    ),
    pytest.param(
        AbsoluteValues,
        InParts,
        "not_smooth",
        "`inequality_constraints` has kinks, by `abs`",
        marks=pytest.mark.long,
    ),
    (ZeroMultipliers, WithMultipliers, "wrong_multipliers", "λ of the lower bound of entry"),
    (OtherConvention, WithMultipliers, "wrong_multipliers", "ν of equality constraint 0"),
    (MissingMultipliers, WithMultipliers, "wrong_multipliers", "5 numbers"),
]


@pytest.mark.parametrize(
    ("defect", "twin", "kind", "named", "drawn"),
    by_samples_or_draws(INEQUALITY_PAIRS),
    ids=named,
)
def test_a_defect_of_inequalities_is_named_and_its_twin_passes(defect, twin, kind, named, drawn):
    report = report_of(defect(), drawn)
    assert not report.ok
    assert report.kinds[0].value == kind, report.diagnosis
    assert named in report.diagnosis[0], report.diagnosis
    assert report.next[0]
    right = report_of_twin(twin, drawn)
    assert right.ok, str(right)
    assert right.diagnosis == ()


def test_a_solution_that_holds_an_inactive_constraint_is_none_in_a_layer_either():
    # Whatever the node has chosen for kinks, which this is not.
    x = torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64, requires_grad=True)
    for kind in (Stuck, StuckByChoice):
        layer = ddnkit.DeclarativeLayer(kind(), policy="raise")
        with pytest.raises(ddnkit.UntrustedGradientError, match="not stationary"):
            layer(x)
