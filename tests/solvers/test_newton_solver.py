"""Newton on problems with known solutions: solver × problem, batches, statuses."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from bounds import rounding, solved
from ddnkit_manifolds import Sphere, Stiefel

from ddnkit import DeclarativeNode, Problem, Status, registry
from ddnkit.solvers import Newton


class Node(DeclarativeNode):
    start = (0.0, 0.0)

    def initial_point(self, *xs):
        like = next((x for x in xs if isinstance(x, torch.Tensor)), torch.zeros(()))
        return torch.tensor(self.start, dtype=like.dtype)


class Rosenbrock(Node):
    start = (-1.2, 1.0)

    def objective(self, a, y):
        return (a - y[0]) ** 2 + 100 * (y[1] - y[0] ** 2) ** 2


class Polynomial(Node):
    start = -1.0

    def objective(self, x, y):
        return x * y**4 + 2 * x**2 * y**3 - 12 * y**2


class Circle(Node):
    start = (0.6, 0.8)

    def objective(self, x, y):
        return y[0] + x * y[1]

    def equality_constraints(self, x, y):
        return y @ y - 1


class CircleFromTheMaximum(Circle):
    def initial_point(self, x):
        y = torch.stack([torch.ones_like(x), x])
        return y / y.norm()


class CircleAsManifold(Circle):
    manifold = Sphere()
    equality_constraints = DeclarativeNode.equality_constraints


class CircleInfeasibleStart(Circle):
    start = (3.0, -0.5)


class ScaledCircle(Node):
    start = (1.0, 1.0)

    def objective(self, x, y):
        return y[0] + x[0] * y[1]

    def equality_constraints(self, x, y):
        return y @ y - x[1] ** 2


class PseudoHuber(Node):
    start = 40.0

    def objective(self, x, y):
        return (torch.sqrt(1 + (y - x) ** 2) - 1).sum()


class EntropicTransport(DeclarativeNode):
    def objective(self, M, r, c, y):
        return (M * y).sum() + (y * y.log()).sum()

    def equality_constraints(self, M, r, c, y):
        return torch.cat([y.sum(dim=1) - r, y.sum(dim=0) - c])

    def initial_point(self, M, r, c):
        return torch.full_like(M, 1 / M.numel())


class AnalyticCentre(Node):
    def objective(self, A, b, y):
        return -(b - A @ y).log().sum()


class EqualityQP(Node):
    def objective(self, b, y):
        Q = torch.tensor([[4.0, 1.0], [1.0, 2.0]], dtype=y.dtype)
        return 0.5 * y @ Q @ y + y.sum()

    def equality_constraints(self, b, y):
        return y.sum() - b


class TwiceConstrainedQP(EqualityQP):
    def equality_constraints(self, b, y):
        return torch.stack([y.sum() - b, y.sum() - b])


class SingularHessian(Node):
    start = (5.0, -7.0)

    def objective(self, x, y):
        return 0.5 * (y[0] - x[0]) ** 2

    def equality_constraints(self, x, y):
        return y[1] - x[1]


class SingularHessianTwice(SingularHessian):
    def equality_constraints(self, x, y):
        return torch.stack([y[1] - x[1], 2 * (y[1] - x[1])])


class SphereQuadratic(DeclarativeNode):
    manifold = Sphere()

    def objective(self, x, y):
        return 0.5 * y @ y - x @ y

    def initial_point(self, x):
        return torch.nn.functional.normalize(torch.ones_like(x), dim=0)


class ProcrustesByNewton(DeclarativeNode):
    manifold = Stiefel()

    def objective(self, A, y):
        return -(A * y).sum()

    def initial_point(self, A):
        return Stiefel().project(A + 0.5)


def sinkhorn(M, r, c):
    K = (-M).exp()
    v = torch.ones_like(c)
    for _ in range(500):
        u = r / (K @ v)
        v = c / (K.mT @ u)
    return u[:, None] * K * v


def polynomial_solution(x):
    root = math.sqrt(9 * x**4 + 96 * x)
    candidates = torch.tensor(
        [0.0, (-3 * x**2 + root) / (4 * x), (-3 * x**2 - root) / (4 * x)], dtype=x.dtype
    )
    values = x * candidates**4 + 2 * x**2 * candidates**3 - 12 * candidates**2
    return candidates[values.argmin()]


def circle_solution(x):
    y = torch.stack([torch.ones_like(x), x])
    return -y / y.norm()


@dataclass
class Case:
    node: DeclarativeNode
    inputs: tuple[Any, ...]
    solution: Any  # a tensor, or what takes the inputs to one

    def __str__(self):
        return type(self.node).__name__

    def expected(self, inputs):
        return self.solution(*inputs) if callable(self.solution) else self.solution.to(inputs[0])


def tensors(*values):
    return tuple(torch.tensor(value, dtype=torch.float64) for value in values)


_M = torch.tensor([[0.3, 1.2, 0.7], [0.9, 0.1, 1.5]])
_R, _C = [0.4, 0.6], [0.2, 0.5, 0.3]
_POLYGON = [[1.0, 0.2], [-1.0, 0.5], [0.1, 1.0], [0.3, -1.0]]
_QP = torch.tensor([0.25, 0.75])
CASES = [
    Case(Rosenbrock(), tensors(1.0), torch.tensor([1.0, 1.0])),
    Case(Polynomial(), tensors(0.7), polynomial_solution),
    Case(Circle(), tensors(2.0), circle_solution),
    Case(CircleFromTheMaximum(), tensors(2.0), circle_solution),
    Case(CircleAsManifold(), tensors(-0.4), circle_solution),
    Case(CircleInfeasibleStart(), tensors(0.3), circle_solution),
    Case(ScaledCircle(), tensors([0.5, -3.0]), lambda x: x[1].abs() * circle_solution(x[0])),
    Case(PseudoHuber(), tensors([-1.0, 0.0, 1.0]), torch.tensor(0.0)),
    Case(EntropicTransport(), tensors(_M.tolist(), _R, _C), sinkhorn),
    Case(EqualityQP(), tensors(1.0), _QP),
    Case(TwiceConstrainedQP(), tensors(1.0), _QP),
    Case(SingularHessian(), tensors([1.0, 2.0]), lambda x: x),
    Case(SingularHessianTwice(), tensors([1.0, 2.0]), lambda x: x),
    Case(SphereQuadratic(), tensors([1.0, -2.0, 0.5]), lambda x: x / x.norm()),
    Case(
        ProcrustesByNewton(),
        tensors([[2.0, 0.3], [0.1, 1.5], [-0.4, 0.8]]),
        lambda A: Stiefel().project(A),
    ),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_reaches_the_known_solution(case, dtype):
    inputs = tuple(x.to(dtype) for x in case.inputs)
    solution = Newton().solve(Problem.single(case.node, inputs))
    expected = case.expected(inputs)
    assert solution.statuses() == [Status.CONVERGED]
    assert solution.y.dtype == dtype
    # A few tens, Rosenbrock's valley the most: not a run to the limit of 100.
    assert int(solution.iterations[0]) <= 60
    error = (solution.y[0] - expected).norm()
    # Quadratic convergence ends in the rounding of gradient and constraints, sums of up to 10 terms.
    problem = Problem.single(case.node, inputs)
    assert error <= solved(problem, solution.y, rounding(dtype, 10)).y[0]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_finds_a_minimum_of_several_instances_at_once(case):
    batch = 4
    factors = 1 + 0.1 * torch.arange(batch, dtype=torch.float64)
    stacked = [torch.stack([factor * x for factor in factors]) for x in case.inputs]
    if isinstance(case.node, EntropicTransport):
        stacked[1:] = [x.expand(batch, *x.shape) for x in case.inputs[1:]]
    problem = Problem(case.node, stacked, batch)
    solution = Newton().solve(problem)
    assert solution.statuses() == [Status.CONVERGED] * batch
    for index in range(batch):
        single = Newton().solve(Problem.single(case.node, problem.item(index)))
        # The last step is at most eps^{2/3} = 4e-11, which rounding may have it take or not.
        assert torch.allclose(solution.y[index], single.y[0], atol=1e-10)
        assert abs(int(solution.iterations[index]) - int(single.iterations[0])) <= 1


def test_analytic_centre_stays_inside_its_polygon():
    A, b = tensors(_POLYGON, [1.0, 1.0, 1.0, 1.0])
    problem = Problem.single(AnalyticCentre(), [A, b])
    close_to_the_wall = torch.tensor([[0.0, -0.999]], dtype=torch.float64)
    solution = Newton().solve(problem, close_to_the_wall)
    assert solution.statuses() == [Status.CONVERGED]
    slack = b - A @ solution.y[0]
    assert slack.min() > 0.1
    assert (A.mT @ (1 / slack)).norm() < rounding(slack, 4, condition=100)


def test_keeps_away_from_a_saddle_point():
    class Saddle(Node):
        def objective(self, x, y):
            return y[0] ** 2 - y[1] ** 2 + y[1] ** 4 + 0 * x

    solution = Newton().solve(Problem.single(Saddle(), tensors(0.0)))
    assert solution.statuses() == [Status.CONVERGED]
    assert torch.allclose(solution.y[0].abs(), torch.tensor([0, 0.5**0.5], dtype=torch.float64))


def test_is_the_default_solver_of_a_node():
    assert registry.get("solvers", "newton") is Newton
    solution = EqualityQP().solve(torch.tensor(1.0, dtype=torch.float64))
    assert torch.allclose(solution.y, _QP.double())


class Unbounded(Node):
    def objective(self, x, y):
        return x * y.sum()


class Contradiction(EqualityQP):
    def equality_constraints(self, b, y):
        return torch.stack([y.sum() - b, y.sum() - b - 1])


class RootOfNegative(Node):
    start = (-1.0, -1.0)

    def objective(self, x, y):
        return y.sqrt().sum() + x


@pytest.mark.parametrize(
    ("node", "settings", "status"),
    [
        (Unbounded(), {}, Status.UNBOUNDED),
        (RootOfNegative(), {}, Status.NON_FINITE),
        (Contradiction(), {}, Status.INFEASIBLE),
        (Rosenbrock(), {"max_iterations": 3}, Status.MAX_ITERATIONS),
        (Rosenbrock(), {"max_iterations": 40}, Status.CONVERGED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, DeclarativeNode) else "",
)
def test_status_says_how_it_ended(node, settings, status):
    solution = Newton(**settings).solve(Problem.single(node, tensors(1.0)))
    assert solution.statuses() == [status]
    if status == Status.MAX_ITERATIONS:
        assert int(solution.iterations[0]) == settings["max_iterations"]


def test_a_step_without_curvature_is_lengthened_to_where_it_sets_in():
    class FlatFirst(Node):
        start = (0.0, 0.0)

        def objective(self, x, y):
            return -y[0] + torch.relu(y[0] - 1e6).square() + (y[1] - x).square()

    solution = Newton().solve(Problem.single(FlatFirst(), tensors(1.0)))
    assert solution.statuses() == [Status.CONVERGED]
    assert torch.allclose(solution.y[0], torch.tensor([1e6 + 0.5, 1.0], dtype=torch.float64))
    assert int(solution.iterations[0]) < 20


def test_steps_that_get_short_towards_a_singularity_are_no_convergence():
    # Constant along rays: the steps shrink with y, and the direction never settles.
    class Cosine(Node):
        start = (1.0, 1.0)

        def objective(self, x, y):
            return -(y[0] + x * y[1]) / y.norm()

    solution = Newton().solve(Problem.single(Cosine(), tensors(-3.0)))
    assert solution.statuses() != [Status.CONVERGED]


def test_one_bad_item_leaves_the_others_alone():
    x = torch.tensor([1.0, float("nan"), 3.0], dtype=torch.float64)
    solution = Newton().solve(Problem(EqualityQP(), [x], 3))
    assert solution.statuses()[0] == solution.statuses()[2] == Status.CONVERGED
    assert solution.statuses()[1] == Status.NON_FINITE
    assert torch.allclose(solution.y[0], _QP.double())


def test_a_looser_tolerance_ends_sooner():
    problem = Problem.single(PseudoHuber(), tensors([-1.0, 0.3, 5.0]))
    loose, tight = Newton(tolerance=1e-1).solve(problem), Newton().solve(problem)
    assert int(loose.iterations[0]) < int(tight.iterations[0])


def test_empty_batch():
    problem = Problem(EqualityQP(), [torch.zeros(0)], 0)
    solution = Newton().solve(problem, torch.zeros(0, 2))
    assert solution.y.shape == (0, 2)
    assert solution.statuses() == []
