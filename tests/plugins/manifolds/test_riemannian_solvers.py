"""Every iterative solver on every problem: known solutions, dtypes, statuses, refusals."""

import numpy as np
import pytest
import torch
from bounds import factorised, infeasibility, rounding
from ddnkit_manifolds import (
    ConjugateGradient,
    NelderMead,
    ParticleSwarm,
    Procrustes,
    RiemannianAdam,
    RiemannianLineSearch,
    RiemannianSGD,
    Sphere,
    SteepestDescent,
    Stiefel,
    TrustRegions,
)

from ddnkit import DeclarativeNode, InputError, Manifold, Problem, Status, registry

SOLVERS = [
    TrustRegions,
    ConjugateGradient,
    SteepestDescent,
    RiemannianSGD,
    RiemannianAdam,
    RiemannianLineSearch,
]
DERIVATIVE_FREE = [NelderMead, ParticleSwarm]
each_solver = pytest.mark.parametrize("solver", SOLVERS)
every_solver = pytest.mark.parametrize("solver", SOLVERS + DERIVATIVE_FREE)
derivative_free = pytest.mark.parametrize("solver", DERIVATIVE_FREE)


@pytest.fixture(autouse=True)
def one_thread():
    """These matrices are too small to share among threads, which costs far more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class NearestETF(DeclarativeNode):
    """min ‖H − U M̃‖² + (δ/2)‖U − P‖² over St(d, C), from U = P."""

    manifold = Stiefel()
    delta = 1e-3

    def simplex(self, H):
        C = H.shape[-1]
        return (torch.eye(C, dtype=H.dtype) - 1 / C) / (C - 1) ** 0.5

    def objective(self, H, P, y):
        distance = (H - y @ self.simplex(H)).square().sum()
        return distance + self.delta / 2 * (y - P).square().sum()

    def initial_point(self, H, P):
        return P

    def procrustes_target(self, H, P):
        return 2 * H @ self.simplex(H) + self.delta * P


class Quadratic(DeclarativeNode):
    """min ½‖y‖² − xᵀy over the sphere: y = x/‖x‖."""

    manifold = Sphere()

    def objective(self, x, y):
        return 0.5 * y @ y - x @ y

    def initial_point(self, x):
        return torch.ones_like(x)

    def solution(self, x):
        return x / x.norm()


class Linear(Quadratic):
    """min y₁ + x y₂ over the circle: y = −(1, x)/√(1 + x²)."""

    def objective(self, x, y):
        return y[0] + x * y[1]

    def initial_point(self, x):
        # The gradient is tangent here for x = 0.75: the multiplier says nothing about curvature.
        return torch.stack([0.6 * torch.ones_like(x), -0.8 * torch.ones_like(x)])

    def solution(self, x):
        y = torch.stack([torch.ones_like(x), x])
        return -y / y.norm()


class Rayleigh(Quadratic):
    """min yᵀXy over the sphere, scaled far from one: the smallest eigenvector, up to sign."""

    def objective(self, X, y):
        return 1e6 * y @ X @ y

    def initial_point(self, X):
        return torch.ones_like(X[0])

    def solution(self, X):
        return torch.linalg.eigh(X).eigenvectors[:, 0]


def nearest_etf(d, C, batch, dtype=torch.float64):
    H = torch.randn(batch, d, C, dtype=torch.float64)
    H = H / H.flatten(1).norm(dim=1)[:, None, None]
    P = Stiefel().random((batch, d, C), like=H)
    return Problem(NearestETF(), [H.to(dtype), P.to(dtype)], batch)


@each_solver
def test_reaches_the_closed_form_of_the_nearest_etf(solver):
    problem = nearest_etf(64, 10, batch=2)
    closed_form = problem.objective(Procrustes().solve(problem).y)
    solution = solver().solve(problem)
    gap = problem.objective(solution.y) - closed_form
    assert solution.statuses() == [Status.CONVERGED] * 2
    assert (solution.iterations > 0).all()
    # The loosest default is 1e-7 of gradients of size one, and curvatures are δ or more: what is left
    # of the objective is g²/2δ, 5e-12.
    assert gap.max() <= 1e-9
    assert gap.min() >= -rounding(gap, 64 * 10)
    assert Stiefel().infeasibility(solution.y).max() < factorised(solution.y, 64)


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(solver, marks=pytest.mark.long if solver is SteepestDescent else ())
        for solver in SOLVERS
    ],
)
def test_takes_float32(solver):
    problem = nearest_etf(32, 6, batch=2, dtype=torch.float32)
    closed_form = problem.objective(Procrustes().solve(problem).y)
    solution = solver().solve(problem)
    assert solution.y.dtype == torch.float32
    assert solution.statuses() == [Status.CONVERGED] * 2
    gap = (problem.objective(solution.y) - closed_form).abs().max()
    assert gap < rounding(gap, 32 * 6, size=float(closed_form.max()))
    assert Stiefel().infeasibility(solution.y).max() < 2 * infeasibility(solution.y, 32, 6)


X = torch.tensor([[2.0, 0.3, 0.1], [0.3, 1.0, -0.4], [0.1, -0.4, 3.0]])
VECTORS = [
    (Quadratic(), torch.tensor([[1.0, -2.0, 0.5], [0.1, 0.2, 0.3]])),
    (Linear(), torch.tensor([0.75, -3.0])),
    (Rayleigh(), torch.stack([X, X + torch.eye(3)])),
]


@every_solver
# The gradient tolerances of the docstrings, 1e-7 and 1e-5, and 1e-3 of those without derivatives,
# times 100, 20 and 5: for the size of a gradient at the start beside the curvature at the solution.
@pytest.mark.parametrize(
    ("node", "x", "dtype", "tolerance"),
    [
        *((*vector, torch.float64, 1e-5) for vector in VECTORS),
        (*VECTORS[0], torch.float32, 2e-4),
        *(pytest.param(*v, torch.float32, 2e-4, marks=pytest.mark.long) for v in VECTORS[1:]),
    ],
    ids=lambda value: str(value) if isinstance(value, torch.dtype) else type(value).__name__,
)
@pytest.mark.covering
def test_reaches_the_solution_on_the_sphere(solver, node, x, dtype, tolerance):
    if solver in DERIVATIVE_FREE:
        tolerance = 5e-3
    problem = Problem(node, [x.to(dtype)], 2)
    solution = solver().solve(problem)
    assert solution.statuses() == [Status.CONVERGED] * 2
    assert solution.y.dtype == dtype
    for index in range(2):
        expected = node.solution(x[index].to(dtype))
        cosine = (solution.y[index] @ expected).abs()
        if not isinstance(node, Rayleigh):
            cosine = solution.y[index] @ expected
        assert 1 - cosine < tolerance**2 + rounding(dtype, 8)


def closeness(solver):
    """A hundred times the gradient tolerance, ten times that of a solver without derivatives."""
    return 1e-2 if solver in DERIVATIVE_FREE else 1e-5


@every_solver
def test_an_exact_start_needs_no_step(solver):
    x = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    solution = solver().solve(Problem(Quadratic(), [x], 1), start=x)
    assert solution.statuses() == [Status.CONVERGED]
    assert solution.iterations.tolist() == [0]
    assert torch.allclose(solution.y, x)


@every_solver
def test_iteration_limit_is_reported(solver):
    problem = nearest_etf(12, 4, batch=1)
    solution = solver(max_iterations=2).solve(problem)
    assert solution.statuses() == [Status.MAX_ITERATIONS]
    assert solution.iterations.tolist() == [2]
    assert problem.objective(solution.y) <= problem.objective(problem.start())


@every_solver
def test_scale_of_the_objective_does_not_matter(solver):
    class Scaled(Quadratic):
        def objective(self, x, y):
            return 1e-7 * super().objective(x, y=y)

    x = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    solution = solver().solve(Problem(Scaled(), [x], 1))
    assert solution.statuses() == [Status.CONVERGED]
    assert torch.allclose(solution.y[0], Quadratic().solution(x[0]), atol=closeness(solver))


@every_solver
def test_non_finite_items_are_reported_and_leave_the_others_alone(solver):
    x = torch.tensor([[1.0, 2.0], [torch.nan, 1.0], [3.0, -1.0]], dtype=torch.float64)
    solution = solver().solve(Problem(Quadratic(), [x], 3))
    assert solution.statuses() == [Status.CONVERGED, Status.NON_FINITE, Status.CONVERGED]
    assert solution.y.isfinite().all()
    assert torch.allclose(solution.y[2], Quadratic().solution(x[2]), atol=closeness(solver))


class EdgeOfDomain(Quadratic):
    """min y₁ + √(y₁): the derivative blows up at the edge y₁ = 0 of the domain, the minimum."""

    def objective(self, x, y):
        return x[0] * y[0] + y[0].sqrt()


@every_solver
def test_leaving_the_domain_is_a_status_and_no_exception(solver):
    x = torch.ones(1, 2, dtype=torch.float64)
    solution = solver(max_iterations=200).solve(Problem(EdgeOfDomain(), [x], 1))
    assert solution.statuses()[0] != Status.CONVERGED
    assert solution.y.isfinite().all()


class NoDerivative(Quadratic):
    """min y₁, finite everywhere, but `where` hides a NaN for y₁ < ½ from the value alone."""

    def objective(self, x, y):
        return x[0] * y[0] + torch.where(y[0] < 0.5, 0.0, 0 * (y[0] - 0.5).sqrt())


@every_solver
def test_a_derivative_that_is_not_finite_is_reported(solver):
    x = torch.ones(1, 2, dtype=torch.float64)
    solution = solver().solve(Problem(NoDerivative(), [x], 1))
    assert solution.statuses() == [Status.NON_FINITE]
    assert solution.y[0, 0] > 0.5


@pytest.mark.parametrize("solver", [TrustRegions, ConjugateGradient, SteepestDescent])
def test_time_limit_is_reported(solver):
    solution = solver(max_time=0.0).solve(nearest_etf(12, 4, batch=1))
    assert solution.statuses() == [Status.TIME_LIMIT]


@pytest.mark.parametrize(
    "solver",
    [SteepestDescent, RiemannianAdam, pytest.param(RiemannianLineSearch, marks=pytest.mark.long)],
)
def test_a_tolerance_out_of_reach_stalls(solver):
    # An offset hides the last decreases of the objective from a line search.
    class Offset(NearestETF):
        def objective(self, H, P, y):
            return super().objective(H, P, y=y) + 1e6

    problem = nearest_etf(12, 4, batch=1)
    problem = Problem(Offset(), problem.inputs, 1)
    solution = solver(gradient_tolerance=1e-15).solve(problem)
    assert solution.statuses() == [Status.STALLED]


@every_solver
def test_no_output(solver, capfd):
    x = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    solver().solve(Problem(Quadratic(), [x], 1))
    assert capfd.readouterr() == ("", "")


@every_solver
def test_leaves_the_random_state_alone(solver):
    before, numpy_before = torch.random.get_rng_state(), np.random.get_state()
    problem = Problem(Quadratic(), [torch.tensor([[1.0, -2.0, 0.5]])], 1)
    solver().solve(problem)
    assert torch.equal(torch.random.get_rng_state(), before)
    for part, part_before in zip(np.random.get_state(), numpy_before, strict=True):
        assert np.array_equal(part, part_before)


@every_solver
def test_refuses_with_a_reason(solver):
    class Free(Quadratic):
        manifold = None

    class Constrained(Quadratic):
        def equality_constraints(self, x, y):
            return y.sum()

    x = torch.ones(3)
    assert "manifold" in solver().unsupported(Problem.single(Free(), [x]))
    assert "equality_constraints" in solver().unsupported(Problem.single(Constrained(), [x]))
    assert solver().unsupported(Problem.single(Quadratic(), [x])) is None


@every_solver
def test_is_found_by_name(solver):
    assert registry.get("solvers", solver.name) is solver


@every_solver
def test_empty_batch(solver):
    problem = Problem(Quadratic(), [torch.zeros(0, 3)], 0)
    solution = solver().solve(problem, start=torch.zeros(0, 3))
    assert solution.y.shape == (0, 3)
    assert solution.statuses() == []


@pytest.mark.parametrize("direction", ["fr", "steepest"])
def test_other_directions_of_the_line_search(direction):
    x = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    solution = RiemannianLineSearch(direction=direction).solve(Problem(Quadratic(), [x], 1))
    assert solution.statuses() == [Status.CONVERGED]


def test_an_unknown_direction_is_an_error():
    with pytest.raises(InputError, match="'uphill'"):
        RiemannianLineSearch(direction="uphill")


def test_plain_gradient_descent_without_momentum():
    x = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    solution = RiemannianSGD(momentum=0.0).solve(Problem(Quadratic(), [x], 1))
    assert solution.statuses() == [Status.CONVERGED]


@derivative_free
@pytest.mark.parametrize(("d", "C"), [(3, 1), (3, 2), pytest.param(4, 2, marks=pytest.mark.long)])
def test_derivative_free_on_the_stiefel_manifold(solver, d, C):
    A = torch.randn(1, d, C, dtype=torch.float64)

    class Nearest(Quadratic):
        manifold = Stiefel()

        def objective(self, x, y):
            return (y - x).square().sum()

        def initial_point(self, x):
            return torch.eye(d, C, dtype=x.dtype)

    problem = Problem(Nearest(), [A], 1)
    solution = solver().solve(problem)
    assert solution.statuses() == [Status.CONVERGED]
    assert Stiefel().infeasibility(solution.y).max() < factorised(solution.y, d)
    polar = Stiefel().project(A)
    # 1e-3 and 1e-4 of gradients of size 2‖A‖, over curvatures of 2s: less than ‖A‖/s = 10 here.
    assert (solution.y - polar).norm() < 2e-2
    assert problem.objective(solution.y) < problem.objective(problem.start())


@derivative_free
def test_derivative_free_converges_only_to_its_tolerance(solver):
    problem = Problem(Quadratic(), [torch.tensor([[1.0, -2.0, 0.5]]).double()], 1)
    best = solver(gradient_tolerance=1e-14, max_iterations=60).solve(problem)
    assert best.statuses() == [Status.MAX_ITERATIONS]
    loose = solver(gradient_tolerance=0.1).solve(problem)
    assert loose.statuses() == [Status.CONVERGED]
    assert int(loose.iterations[0]) < 60
    tangent = Sphere().tangent(loose.y, problem.gradient(loose.y)).norm()
    start = problem.start()
    scale = problem.gradient(start).norm() + problem.hessian_vector(start, start).norm()
    assert tangent <= 0.1 * scale


def test_particle_swarm_is_deterministic_for_a_seed_and_searches_everywhere():
    class TwoWells(Quadratic):
        def objective(self, x, y):
            return -(y[0] ** 4) - 0.2 * y[0] + x.sum() * 0

        def initial_point(self, x):
            return torch.tensor([-1.0, 0.05, 0.0], dtype=x.dtype) / (1 + 0.05**2) ** 0.5

    problem = Problem(TwoWells(), [torch.zeros(1, 3, dtype=torch.float64)], 1)
    first, again = ParticleSwarm().solve(problem), ParticleSwarm().solve(problem)
    other = ParticleSwarm(seed=1).solve(problem)
    assert torch.equal(first.y, again.y)
    assert not torch.equal(first.y, other.y)
    assert first.y[0, 0] > 0.9 and other.y[0, 0] > 0.9
    assert TrustRegions().solve(problem).y[0, 0] < -0.9


class Plane(Manifold):
    """Vectors orthogonal to a, of length one: a manifold that holds the origin and has no end."""

    name = "plane"
    event_dims = 1

    def normal_vector(self, y):
        a = torch.arange(1, y.shape[-1] + 1, dtype=y.dtype)
        return a / a.norm()

    def constraint(self, y):
        return (y * self.normal_vector(y)).sum(dim=-1, keepdim=True)

    def constraint_jacobian(self, y):
        return self.normal_vector(y).expand(*y.shape[:-1], 1, -1)

    def infeasibility(self, y):
        return self.constraint(y).abs().squeeze(-1)

    def project(self, y):
        return y - self.constraint(y) * self.normal_vector(y)

    def retract(self, y, tangent):
        return y + tangent

    def multipliers(self, y, gradient):
        return self.constraint(gradient)

    def normal(self, y, multipliers):
        return multipliers * self.normal_vector(y)

    def constraint_curvature(self, y, multipliers, direction):
        return torch.zeros_like(direction)

    def random(self, shape, *, generator=None, like):
        return self.project(torch.randn(shape, generator=generator, dtype=like.dtype))


@every_solver
def test_a_manifold_of_ones_own_from_the_origin_where_a_point_has_no_size(solver):
    class FromOrigin(Quadratic):
        manifold = Plane()

        def objective(self, x, y):
            return (y - x).square().sum() + 0.1 * (y**4).sum()

        def initial_point(self, x):
            return torch.zeros_like(x)

    x = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.1, -1.0]], dtype=torch.float64)
    problem = Problem(FromOrigin(), [x], 2)
    solution = solver().solve(problem)
    assert solution.statuses() == [Status.CONVERGED] * 2
    assert Plane().infeasibility(solution.y).max() < rounding(x, 8, size=4.0)
    # The curvature is 2 at least, and the scale of gradients 2‖x‖ = 4.6: ‖y − y*‖ is at most 2.3 times
    # the gradient tolerance, well within the hundred, or ten, of `closeness`.
    reference = registry.make("solvers", "newton").solve(problem).y
    assert (solution.y - reference).norm() < closeness(solver)
