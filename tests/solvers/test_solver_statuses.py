"""Every solver says honestly how it ended: each solver × each way to end, a warm start, a bad item."""

import pytest
import torch
from bounds import rounding
from ddnkit_manifolds import (
    ConjugateGradient,
    NelderMead,
    ParticleSwarm,
    RiemannianAdam,
    RiemannianLineSearch,
    RiemannianSGD,
    Sphere,
    SteepestDescent,
    TrustRegions,
)

from ddnkit import (
    DeclarativeLayer,
    DeclarativeNode,
    InputError,
    Problem,
    Solution,
    Solver,
    Status,
)
from ddnkit.solvers import LBFGS, SLSQP, Deadline, Newton, Root, TrustConstr
from ddnkit.solvers.no_solution import falls_along, least_violation

GENERAL = [Newton, LBFGS, SLSQP, TrustConstr, Root]
RIEMANNIAN = [
    TrustRegions,
    ConjugateGradient,
    SteepestDescent,
    RiemannianSGD,
    RiemannianAdam,
    RiemannianLineSearch,
    NelderMead,
    ParticleSwarm,
]
general = pytest.mark.parametrize("solver", GENERAL)
minimisers = pytest.mark.parametrize("solver", [s for s in GENERAL if s is not Root])
every = pytest.mark.parametrize("solver", GENERAL + RIEMANNIAN)


class Node(DeclarativeNode):
    start = (0.7, -0.4)

    def initial_point(self, x):
        return torch.tensor(self.start, dtype=x.dtype)

    def objective(self, x, y):
        return (y - x).square().sum() / 2


def case(node, dtype=torch.float64, x=1.0):
    return Problem.single(node, [torch.tensor(x, dtype=dtype)])


# -- infeasible ------------------------------------------------------------------------------------


class ZeroAndOne(Node):
    """y₁ = 0 and y₁ = 1: least violated at ½."""

    def equality_constraints(self, x, y):
        return torch.stack([y[0], y[0] - 1])


class OneUnknown(ZeroAndOne):
    start = (0.3,)


class Circles(Node):
    """Two circles that do not meet: least violated half-way between their centres."""

    def equality_constraints(self, x, y):
        away = torch.tensor([5.0, 0.0], dtype=y.dtype)
        return torch.stack([y @ y - x, (y - away) @ (y - away) - x])


class NoRoot(Node):
    """‖y‖² + 1 = 0: least violated at 0, where the derivative vanishes, too."""

    def equality_constraints(self, x, y):
        return y @ y + x


@general
@pytest.mark.parametrize(
    ("node", "nearest", "dtype"),
    [
        (ZeroAndOne(), 0.5, torch.float64),
        (ZeroAndOne(), 0.5, torch.float32),
        pytest.param(OneUnknown(), 0.5, torch.float64, marks=pytest.mark.long),
        (Circles(), 2.5, torch.float64),
        (NoRoot(), 0.0, torch.float64),
        pytest.param(NoRoot(), 0.0, torch.float32, marks=pytest.mark.long),
    ],
    ids=lambda v: str(v) if isinstance(v, torch.dtype) else type(v).__name__,
)
@pytest.mark.covering
def test_contradictory_constraints_are_infeasible(solver, node, nearest, dtype):
    solution = solver(max_iterations=50).solve(case(node, dtype))
    assert solution.statuses() == [Status.INFEASIBLE]
    # Where nothing is to be solved a point is not a promise: the place is right, not its digits. At 0
    # the violation is flat, too: y² + 1 tells 1e-4 from 0 by 1e-8.
    assert abs(float(solution.y[0, 0]) - nearest) < 1e-2
    assert solution.y.dtype == dtype


@general
def test_constraints_that_are_met_only_far_away_are_not_infeasible(solver):
    class Far(Node):
        def equality_constraints(self, x, y):
            return y.sum() - 1e6 * x

    solution = solver().solve(case(Far()))
    assert solution.statuses() == [Status.CONVERGED]
    assert abs(float(solution.y.sum()) - 1e6) < 1e6 * 1e-6  # the loosest tolerance is 1e-8


def test_least_violation_leaves_a_point_that_is_stationary_by_symmetry():
    class Circle(Node):
        def equality_constraints(self, x, y):
            return y @ y - x

    y, hopeless = least_violation(case(Circle()), torch.zeros(1, 2).double(), Deadline(None))
    assert not bool(hopeless)
    assert abs(float(y.norm()) - 1) < rounding(y, 1e3)  # what it takes for a root


# -- unbounded -------------------------------------------------------------------------------------


class Linear(Node):
    def objective(self, x, y):
        return x * y[0]


class LinearOnLine(Node):
    """min x y₁ + ½y₂² with y₂ = x: falls along the constraint."""

    def objective(self, x, y):
        return x * y[0] + y[1] ** 2 / 2

    def equality_constraints(self, x, y):
        return y[1] - x


class Concave(Node):
    def objective(self, x, y):
        return -x * (y @ y)


class ConcaveOnLine(Concave):
    def equality_constraints(self, x, y):
        return y[1] - y[0] - x


class Logarithm(Node):
    """min −Σ log yᵢ: it falls for ever, but slowly."""

    start = (1.0, 2.0)

    def objective(self, x, y):
        return -(x * y).log().sum()


class Exponential(Node):
    """min −Σ exp yᵢ: overflows long before y is large."""

    def objective(self, x, y):
        return -(x * y).exp().sum()


FALLING = [Linear(), LinearOnLine(), Logarithm()]
CONCAVE = [Concave(), ConcaveOnLine(), Exponential()]


@general
@pytest.mark.parametrize("node", FALLING, ids=lambda v: type(v).__name__)
def test_an_objective_that_falls_for_ever_is_unbounded(solver, node):
    problem = case(node)
    solution = solver().solve(problem)
    assert solution.statuses() == [Status.UNBOUNDED]
    assert solution.y.isfinite().all()


@minimisers
@pytest.mark.parametrize("node", CONCAVE, ids=lambda v: type(v).__name__)
def test_a_concave_objective_is_unbounded(solver, node):
    problem = case(node)
    solution = solver().solve(problem)
    assert solution.statuses() == [Status.UNBOUNDED]
    assert problem.objective(solution.y) < problem.objective(problem.start())


@pytest.mark.parametrize("solver", [Newton, LBFGS])
@pytest.mark.parametrize(
    "node", [Linear(), LinearOnLine(), Concave()], ids=lambda node: type(node).__name__
)
def test_unbounded_in_float32_too(solver, node):
    assert solver().solve(case(node, torch.float32)).statuses() == [Status.UNBOUNDED]


@general
def test_an_objective_that_levels_off_is_not_unbounded(solver):
    class LevelsOff(Node):
        def objective(self, x, y):
            return x / (1 + y @ y)

    (status,) = solver(max_iterations=300).solve(case(LevelsOff())).statuses()
    assert status in (Status.STALLED, Status.MAX_ITERATIONS)


@general
def test_a_minimum_far_away_is_not_unbounded(solver):
    class Far(Node):
        start = (1.0, 1.0)

        def objective(self, x, y):
            return (y - 1e8 * x).square().sum()

    solution = solver().solve(case(Far()))
    if solver is Root:
        assert solution.statuses()[0] in (Status.CONVERGED, Status.STALLED)
    else:
        assert solution.statuses() == [Status.CONVERGED]


def test_falls_along_keeps_to_the_constraints():
    problem = case(LinearOnLine())
    y = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    along, across = torch.tensor([[[-1.0, 0.0]], [[-1.0, 0.1]]], dtype=torch.float64)
    assert bool(falls_along(problem, y, along))
    assert not bool(falls_along(problem, y, -along))
    assert not bool(falls_along(problem, y, across))
    assert not bool(falls_along(problem, y, 0 * along))


# -- limits ----------------------------------------------------------------------------------------


class Valley(Node):
    """Rosenbrock's: no solver is done with it in two steps."""

    start = (-1.2, 1.0)

    def objective(self, x, y):
        return (x - y[0]) ** 2 + 100 * (y[1] - y[0] ** 2) ** 2


class OnSphere(DeclarativeNode):
    """min ½yᵀXy − y₁ over the sphere."""

    manifold = Sphere()

    def objective(self, x, y):
        X = torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=y.dtype))
        return y @ X @ y / 2 - x * y.sum() / 3

    def initial_point(self, x):
        return torch.nn.functional.normalize(torch.tensor([2.0, -0.3, 1.0], dtype=x.dtype), dim=0)


def unfinished(solver):
    return case(OnSphere() if solver in RIEMANNIAN else Valley())


@every
def test_iteration_limit(solver):
    solution = solver(max_iterations=2).solve(unfinished(solver))
    assert solution.statuses() == [Status.MAX_ITERATIONS]
    assert solution.iterations.tolist() == [2]
    assert solution.y.isfinite().all()


@every
def test_time_limit(solver):
    solution = solver(max_time=1e-6).solve(unfinished(solver))
    assert solution.statuses() == [Status.TIME_LIMIT]
    assert int(solution.iterations[0]) <= 2
    assert solution.y.isfinite().all()


@every
def test_a_start_at_the_solution_needs_fewer_iterations(solver):
    problem = case(OnSphere())
    assert solver().max_time is None
    cold = solver(max_time=1000.0).solve(problem)
    warm = solver().solve(problem, start=cold.y)
    assert cold.statuses() == warm.statuses() == [Status.CONVERGED]
    assert int(warm.iterations[0]) < int(cold.iterations[0])
    # The loosest gradient tolerance, 1e-3 of `ParticleSwarm`, and no step from there.
    assert (warm.y - cold.y).norm() < 1e-3


@every
def test_the_start_decides_which_minimum_is_found(solver):
    class Poles(OnSphere):
        def objective(self, x, y):
            return -x * y[0] ** 2 + y[1] * 0.1

    problem = case(Poles())
    for sign in (1.0, -1.0):
        start = torch.tensor([[sign, 0.2, 0.1]], dtype=torch.float64)
        solution = solver().solve(problem, start=start / start.norm())
        assert solution.statuses() == [Status.CONVERGED]
        if solver is not ParticleSwarm:  # it searches the whole sphere
            assert float(solution.y[0, 0]) * sign > 0.9


# -- not finite, and one among others --------------------------------------------------------------


class Root2(Node):
    """√y is NaN at the start."""

    start = (-1.0, -1.0)

    def objective(self, x, y):
        return x * y.sqrt().sum()


@general
def test_a_start_outside_the_domain_is_not_finite(solver):
    solution = solver().solve(case(Root2()))
    assert solution.statuses() == [Status.NON_FINITE]
    assert solution.iterations.tolist() == [0]
    assert torch.equal(solution.y, torch.tensor([[-1.0, -1.0]], dtype=torch.float64))


@every
def test_inputs_that_are_not_finite_leave_the_other_items_alone(solver):
    x = torch.tensor([float("nan"), 1.0, float("inf")], dtype=torch.float64)
    solution = solver().solve(Problem(OnSphere(), [x], 3))
    assert solution.statuses() == [Status.NON_FINITE, Status.CONVERGED, Status.NON_FINITE]
    alone = solver().solve(case(OnSphere()))
    # What other items are in the batch may change the order of sums, and with it the last step, which
    # is within the tolerance: 1e-3 without derivatives, else 1e-7.
    loose = 1e-3 if solver in (NelderMead, ParticleSwarm) else 1e-6
    assert torch.allclose(solution.y[1], alone.y[0], atol=loose)


class Anything(Node):
    """By x: 0 a minimum, 1 no feasible point, 2 no bound."""

    def objective(self, x, y):
        return torch.where(x > 1.5, y[0], (y - 0.5).square().sum())

    def equality_constraints(self, x, y):
        contradiction = y[1] - torch.where((x > 0.5) & (x < 1.5), 1.0, 0.25)
        return torch.stack([y[1] - 0.25, contradiction])


@general
def test_each_item_of_a_batch_ends_in_its_own_way(solver):
    x = torch.tensor([0.0, 1.0, 2.0, float("nan"), 0.0], dtype=torch.float64)

    class Mixed(Anything):
        def objective(self, x, y):
            return super().objective(x, y=y) + 0 * x

    solution = solver().solve(Problem(Mixed(), [x], 5))
    assert solution.statuses() == [
        Status.CONVERGED,
        Status.INFEASIBLE,
        Status.UNBOUNDED,
        Status.NON_FINITE,
        Status.CONVERGED,
    ]
    expected = torch.tensor([0.5, 0.25], dtype=torch.float64)
    for index in (0, 4):
        assert torch.allclose(solution.y[index], expected, atol=1e-7)  # ten times 1e-8, promised


class Returns(Solver):
    """A solver that returns what ``of`` makes of the start."""

    name = "returns"

    def __init__(self, of):
        self.of = of

    def solve(self, problem, start=None):
        return self.of(problem.start())


@pytest.mark.parametrize(
    ("of", "named"),
    [
        (lambda y: y, "Tensor"),
        (lambda y: None, "NoneType"),
        (lambda y: Solution(y[:1]), "y"),
        (lambda y: Solution(y, torch.zeros(7)), "status"),
        (lambda y: Solution(y, Status.CONVERGED, torch.zeros(2, 3)), "iterations"),
    ],
)
def test_a_solver_that_returns_something_else_is_told(of, named):
    class Nearest(DeclarativeNode):
        input_dims = (1,)
        solver = Returns(of)

        def objective(self, x, y):
            return ((y - x) ** 2).sum()

        def initial_point(self, x):
            return x.clone()

    with pytest.raises(InputError, match=f"returns.*{named}"):
        DeclarativeLayer(Nearest())(torch.randn(3, 4))
