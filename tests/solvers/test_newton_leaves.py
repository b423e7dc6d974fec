"""Newton from points that are stationary and no minimum: it leaves them on purpose, not by rounding."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from ddnkit_manifolds import Sphere, Stiefel

from ddnkit import DeclarativeNode, Problem, Status
from ddnkit.solvers import Newton

# Small integers: the points below are stationary to the last digit in any precision and arithmetic.
SYMMETRIC = torch.tensor(
    [[4.0, 0, 0, 0], [0, 3.0, 0, 0], [0, 0, -1.0, 0], [0, 0, 0, -5.0]], dtype=torch.float64
)
TALL = torch.tensor([[2.0, 0], [0, 1.0], [0, 0]], dtype=torch.float64)


class Unconstrained(DeclarativeNode):
    def __init__(self, objective):
        self.of = objective

    def objective(self, x, y):
        return self.of(x, y)


class Constrained(Unconstrained):
    def __init__(self, objective, constraints):
        super().__init__(objective)
        self.constraints = constraints

    def equality_constraints(self, x, y):
        return self.constraints(x, y)


class OnManifold(Unconstrained):
    def __init__(self, objective, manifold):
        super().__init__(objective)
        self.manifold = manifold


def wells(x, y):
    return ((y.square() - 1).square() * (x + torch.arange(len(y), dtype=y.dtype))).sum()


def quadratic(x, y):
    return x * y @ SYMMETRIC.to(y.dtype) @ y


def unit(x, y):
    return y @ y - 1


def twice_unit(x, y):
    return torch.stack([y @ y - 1, 2 * (y @ y) - 2])


def brockett(x, y):
    weights = torch.arange(1, y.shape[1] + 1, dtype=y.dtype)
    return x * (y.mT @ SYMMETRIC.to(y.dtype) @ y * torch.diag(weights)).sum()


def pair(x, y):
    return -x * y[:3] @ TALL.to(y.dtype) @ y[3:]


def both_unit(x, y):
    return torch.stack([y[:3] @ y[:3] - 1, y[3:] @ y[3:] - 1])


def factorised(x, y):
    return x * (TALL.to(y.dtype) - torch.outer(y[:3], y[3:])).square().sum()


@dataclass
class Case:
    name: str
    node: DeclarativeNode
    start: Any

    def __str__(self):
        return self.name


def unit_vector(index, size=4):
    return [float(i == index) for i in range(size)]


def columns(*indices, rows=4):
    return [[float(i == index) for index in indices] for i in range(rows)]


CASES = [
    Case("maximum", Unconstrained(lambda x, y: x * (-(y @ y) + (y @ y).square())), [0.0] * 3),
    Case("saddle", Unconstrained(lambda x, y: x * (y[0] ** 2 - y[1] ** 2 + y[1] ** 4)), [0.0] * 2),
    Case(
        "turned saddle",
        Unconstrained(lambda x, y: x * (-y[0] * y[1] + (y @ y).square())),
        [0.0] * 2,
    ),
    Case("crests of cosines", Unconstrained(lambda x, y: x * y.cos().sum()), [0.0] * 3),
    Case("bump", Unconstrained(lambda x, y: x * ((-y @ y).exp() + y @ y / 16)), [0.0] * 2),
    Case("between all wells", Unconstrained(wells), [0.0] * 3),
    Case("between two wells", Unconstrained(wells), [1.0, 0.0, -1.0]),
    Case("scalar", Unconstrained(lambda x, y: x * y**4 + 2 * x**2 * y**3 - 12 * y**2), 0.0),
    Case("rank one", Unconstrained(factorised), [0.0] * 5),
    Case(
        "line",
        Constrained(lambda x, y: x * ((y - 0.5) ** 4 - (y - 0.5) ** 2).sum(), lambda x, y: y.sum() - 1),
        [0.5, 0.5],
    ),
    Case("circle", Constrained(lambda x, y: x * y[0], unit), [1.0, 0.0]),
    Case(
        "circle's far side",
        Constrained(lambda x, y: x * (y - 2 * y.new_tensor([1.0, 0.0])).square().sum(), unit),
        [-1.0, 0.0],
    ),
    Case("circle twice", Constrained(lambda x, y: x * y[0], twice_unit), [1.0, 0.0]),
    Case("first of a spectrum", Constrained(quadratic, unit), unit_vector(0)),
    Case("amid a spectrum", Constrained(quadratic, unit), unit_vector(2)),
    Case("first of a spectrum on the sphere", OnManifold(quadratic, Sphere()), unit_vector(0)),
    Case("amid a spectrum on the sphere", OnManifold(quadratic, Sphere()), unit_vector(1)),
    Case("opposite a target", OnManifold(lambda x, y: -x * (y * TALL.to(y.dtype)).sum(), Stiefel()),
         (-TALL.clamp(max=1)).tolist()),
    Case("two columns in the wrong order", OnManifold(brockett, Stiefel()), columns(3, 2)),
    Case("singular vectors of the wrong sign", Constrained(pair, both_unit), [1.0, 0, 0, -1.0, 0]),
    Case("second singular vectors", Constrained(pair, both_unit), [0, 1.0, 0, 0, 1.0]),
]  # fmt: skip


def curvature(problem, y):
    """The least eigenvalue of the Hessian of the Lagrangian on the tangent space, and ‖∇L‖, ‖∇f‖.

    By hand, in float64: f and h as functions of one vector.
    """
    shape = y.shape
    inputs = [x[0].double() for x in problem.inputs]
    node = problem.node

    def f(v):
        return node.objective(*inputs, v.reshape(shape))

    def h(v):
        point = v.reshape(shape)
        if node.manifold is not None:
            return node.manifold.constraint(point)
        found = node.equality_constraints(*inputs, point)
        return point.new_zeros(0) if found is None else found.reshape(-1)

    v = y.double().reshape(-1)
    gradient, A = torch.func.grad(f)(v), torch.func.jacrev(h)(v)
    multipliers = torch.linalg.lstsq(A.mT, gradient.unsqueeze(1), driver="gelsd").solution[:, 0]
    H = torch.func.hessian(lambda v: f(v) - multipliers @ h(v))(v)
    _, s, right = torch.linalg.svd(A)
    rank = int((s > 1e-6 * s.max()).sum()) if len(s) else 0
    tangent = right[rank:].mT
    least = torch.linalg.eigvalsh(tangent.mT @ H @ tangent).min()
    return least, (gradient - multipliers @ A).norm(), torch.linalg.matrix_norm(H)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("scale", [1.0, 1024.0])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.covering
def test_ends_in_a_minimum(case, scale, dtype):
    x = torch.tensor([scale], dtype=dtype)
    start = torch.tensor([case.start], dtype=dtype)
    problem = Problem(case.node, [x], 1)
    solution = Newton().solve(problem, start)
    assert solution.statuses() == [Status.CONVERGED]
    least, stationarity, size = curvature(problem, solution.y[0])
    before, _, _ = curvature(problem, start[0])
    assert before < 0
    # Newton stops at steps of eps^{2/3}, relative to y: ∇L is within ‖H‖ times that of zero, and the
    # Hessian within a Lipschitz constant of the size of ‖H‖ times that of the minimum's.
    tolerance = 10 * torch.finfo(dtype).eps ** (2 / 3) * size * (1 + solution.y.double().norm())
    assert stationarity <= tolerance
    assert least >= -tolerance
    assert problem.objective(solution.y) < problem.objective(start)


def weakly_curved(turned):
    """u² − s v² + s v⁴, s the input: a saddle at 0, minima of −s/4 at v = ±√½."""

    def objective(s, y):
        u, v = (y[0] + y[1], y[0] - y[1]) if turned else (y[0], y[1])
        return u**2 - s * v**2 + s * v**4

    return objective


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("floors", [2, 16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_weak_negative_curvature_is_left_where_the_objective_falls(dtype, floors, turned):
    """s is below √eps times the largest curvature, and a few times what the steps resolve, eps^{3/4}.

    With s = 0, in the same batch, the saddle is a singular minimum, and stays.
    """
    s = floors * torch.finfo(dtype).eps ** 0.75
    x = torch.tensor([s, 0.0], dtype=dtype)
    problem = Problem(Unconstrained(weakly_curved(turned)), [x], 2)
    solution = Newton().solve(problem, torch.zeros(2, 2, dtype=dtype))
    assert solution.statuses() == [Status.CONVERGED] * 2
    # Half of the way down to the minimum at least: the last steps are as small as eps^{2/3}.
    assert problem.objective(solution.y)[0] < -s / 8
    assert solution.y[1].norm() == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_singular_minima_are_not_left_by_the_rounding_of_their_curvature(dtype):
    """Least squares of rank 3 in 8 unknowns: five curvatures are zero but for rounding."""
    A = torch.randn(6, 3, 8, dtype=dtype)
    target = torch.randn(6, 3, dtype=dtype)

    class LeastSquares(DeclarativeNode):
        def objective(self, A, b, y):
            return (A @ y - b).square().sum()

    problem = Problem(LeastSquares(), [A, target], 6)
    solution = Newton().solve(problem, torch.randn(6, 8, dtype=dtype))
    assert solution.statuses() == [Status.CONVERGED] * 6
    again = Newton().solve(problem, solution.y)
    assert again.statuses() == [Status.CONVERGED] * 6
    assert int(again.iterations.max()) <= int(solution.iterations.max()) + 1
