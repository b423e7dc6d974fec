"""SciPy's methods behind the contract: known solutions, dtypes, domains, dependent constraints."""

import warnings

import numpy as np
import pytest
import torch
from bounds import rounding, solved
from ddnkit_manifolds import Sphere, Stiefel
from torch.testing import assert_close

from ddnkit import DeclarativeLayer, DeclarativeNode, InputError, Problem, Status, registry, testing
from ddnkit.lagrangian import constraint_jacobian, least_squares_multipliers
from ddnkit.solvers import SLSQP, Deadline, Newton, Root, TrustConstr
from ddnkit.solvers.scipy_base import ScipyItem
from ddnkit.solvers.scipy_inequalities import EndOfSolve

SOLVERS = [SLSQP, TrustConstr, Root]
MINIMISERS = [SLSQP, TrustConstr]
#: The backward error that they promise (docs/solvers.md).
PROMISED = {torch.float64: 1e-8, torch.float32: 1e-6}
each_solver = pytest.mark.parametrize("solver", SOLVERS)
each_minimiser = pytest.mark.parametrize("solver", MINIMISERS)

# SLSQP's BFGS matrix serves badly where the solution is not unique or hardly so.
ALL = [n for n in testing.bank() if n.unique and n.well_conditioned and "ETF" not in n.label]
BANK = [node for node in ALL if not node.has_inequalities]
INEQUALITIES = [node for node in ALL if node.has_inequalities]


class QP(DeclarativeNode):
    """min ½yᵀQy + yᵀ1, y₁ + y₂ = b: y = (¼, ¾) for b = 1."""

    def objective(self, b, y):
        Q = torch.tensor([[4.0, 1.0], [1.0, 2.0]], dtype=y.dtype)
        return 0.5 * y @ Q @ y + y.sum()

    def equality_constraints(self, b, y):
        return y.sum() - b

    def initial_point(self, b):
        return torch.tensor([3.0, -2.0], dtype=b.dtype)


class TwiceConstrained(QP):
    def equality_constraints(self, b, y):
        return torch.stack([y.sum() - b, 3 * (b - y.sum())])


class OnCircle(DeclarativeNode):
    """min y₁ + x y₂ on the circle: y = −(1, x)/√(1 + x²); the start is the circle's centre."""

    def objective(self, x, y):
        return y[0] + x * y[1]

    def equality_constraints(self, x, y):
        return y @ y - 1

    def initial_point(self, x):
        return torch.zeros(2, dtype=x.dtype)


class Barrier(DeclarativeNode):
    """min −Σ log sᵢ over a square: its centre. A trial step from near the edge leaves the domain."""

    def objective(self, x, y):
        return -(1 - (y - x)).log().sum() - (1 + (y - x)).log().sum()

    def initial_point(self, x):
        return x + torch.tensor([0.999, -0.5], dtype=x.dtype)


class Polar(DeclarativeNode):
    """min −⟨A, y⟩ over the Stiefel manifold: the polar factor of A."""

    manifold = Stiefel()

    def objective(self, A, y):
        return -(A * y).sum()

    def initial_point(self, A):
        return Stiefel().project(A + 0.3)


def tensor(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


def assert_solved(problem, y, expected):
    """Within what the promised backward error leaves of the solution, item by item."""
    off = (y - expected).flatten(1).norm(dim=1)
    bound = solved(problem, expected, PROMISED[y.dtype]).y
    assert (off <= bound).all(), (off, bound)


@each_solver
@pytest.mark.parametrize("dtype", PROMISED, ids=str)
@pytest.mark.parametrize("node", [QP(), TwiceConstrained()], ids=lambda v: type(v).__name__)
def test_reaches_the_known_solution(solver, node, dtype):
    problem = Problem(node, [tensor(1.0, 1.0, dtype=dtype)], 2)
    solution = solver().solve(problem)
    assert solution.statuses() == [Status.CONVERGED] * 2
    assert solution.y.dtype == dtype
    assert solution.iterations.min() >= 1
    assert_solved(problem, solution.y, tensor([0.25, 0.75], [0.25, 0.75], dtype=dtype))


@each_solver
def test_reaches_the_polar_factor_on_the_stiefel_manifold(solver):
    A = tensor([2.0, 0.3], [0.1, 1.5], [-0.4, 0.8])
    problem = Problem.single(Polar(), [A])
    solution = solver().solve(problem)
    assert solution.statuses() == [Status.CONVERGED]
    assert_solved(problem, solution.y, Stiefel().project(A)[None])


@pytest.mark.parametrize(
    ("node", "solver"),
    [
        pytest.param(node, solver, marks=pytest.mark.long if (index + second) % 2 else ())
        for index, node in enumerate(BANK)
        for second, solver in enumerate(MINIMISERS)
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else value.label,
)
def test_is_a_minimum_of_the_known_problems(solver, node):
    problem = Problem.single(node, testing.sample(node, seed=1))
    solution, newton = solver().solve(problem), Newton().solve(problem)
    assert solution.statuses() == [Status.CONVERGED]
    # f = L + νᵀh, where L is off by the square of a distance: ∇L/2 times δy at most.
    bound = solved(problem, newton.y, PROMISED[torch.float64])
    gradient = problem.gradient(newton.y).reshape(1, -1)
    A = constraint_jacobian(problem, newton.y)
    nu = torch.zeros(1) if A is None else least_squares_multipliers(A, gradient)
    gap = problem.objective(solution.y) - problem.objective(newton.y)
    size = 1 + float(problem.objective(newton.y).detach().abs())
    assert gap.abs() <= (
        nu.norm() * bound.feasibility
        + bound.stationarity * bound.y
        + rounding(gap, newton.y.numel(), size=size)
    )


@pytest.mark.parametrize(
    ("node", "solver"),
    [
        pytest.param(node, solver, marks=pytest.mark.long if (index + second) % 4 else ())
        for index, node in enumerate(INEQUALITIES)
        for second, solver in enumerate(MINIMISERS)
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else value.label,
)
def test_reaches_the_known_answers_under_inequalities(solver, node):
    for seed in range(2):
        xs = testing.sample(node, seed)
        solution = solver().solve(Problem.single(node, xs))
        assert solution.statuses() == [Status.CONVERGED]
        expected = testing.join_parts(node.answer(*xs))
        # Polished to rounding at conditions below 1e4, or good to the promise times these.
        assert_close(solution.y[0], expected, rtol=0, atol=1e4 * PROMISED[torch.float64])


@each_minimiser
def test_a_decrease_that_rounding_hides_does_not_keep_it_from_its_tolerance(solver):
    # The backward error of 1e-8 is a step of which f shows the square, half a rounding. At these draws one
    # of the two or both stopped short of it.
    statuses = set()
    for seed in (1, 13, 21, 22, 27):
        problem = Problem.single(testing.Softmax(), testing.sample(testing.Softmax(), seed))
        statuses |= set(solver().solve(problem).statuses())
    assert statuses == {Status.CONVERGED}


@each_minimiser
def test_leaves_a_start_where_the_constraint_has_no_slope(solver):
    problem = Problem.single(OnCircle(), [torch.tensor(2.0).double()])
    solution = solver().solve(problem)
    assert solution.statuses() == [Status.CONVERGED]
    assert_solved(problem, solution.y, -tensor([1.0, 2.0]) / 5**0.5)


@each_solver
def test_survives_trial_points_outside_the_domain(solver):
    problem = Problem(Barrier(), [tensor([0.2, 5.0], [0.3, -1.0])], 2)
    solution = solver().solve(problem)
    assert solution.statuses() == [Status.CONVERGED] * 2
    assert_solved(problem, solution.y, tensor([0.2, 5.0], [0.3, -1.0]))


@each_solver
def test_units_of_the_objective_do_not_matter(solver):
    class Scaled(QP):
        def objective(self, b, y):
            return 1e-9 * super().objective(b, y=y)

        def equality_constraints(self, b, y):
            return 1e6 * super().equality_constraints(b, y=y)

    one = torch.tensor(1.0).double()
    solution = solver().solve(Problem.single(Scaled(), [one]))
    assert solution.statuses() == [Status.CONVERGED]
    assert_solved(Problem.single(QP(), [one]), solution.y, tensor([0.25, 0.75]))


@each_solver
def test_a_manifold_with_further_constraints(solver):
    class OnSmallCircle(DeclarativeNode):
        manifold = Sphere()

        def objective(self, x, y):
            return (y - x).square().sum()

        def equality_constraints(self, x, y):
            return y[0] - 0.5

        def initial_point(self, x):
            return torch.nn.functional.normalize(torch.ones_like(x), dim=0)

    problem = Problem.single(OnSmallCircle(), [tensor(0.1, 2.0, 1.0)])
    solution = solver().solve(problem)
    assert solution.statuses() == [Status.CONVERGED]
    rest = 0.75**0.5 / 5**0.5
    assert_solved(problem, solution.y, tensor([0.5, 2 * rest, rest]))


@each_solver
def test_a_y_of_several_parts_and_inputs_that_are_no_tensors(solver):
    class Parts(DeclarativeNode):
        def objective(self, x, weight, y):
            return weight * (y["a"] - x).square().sum() + (y["b"] - 2).square()

        def equality_constraints(self, x, weight, y):
            return y["a"].sum() - y["b"]

        def initial_point(self, x, weight):
            return {"a": torch.zeros_like(x), "b": x.new_ones(())}

    problem = Problem(Parts(), [tensor([1.0, 2.0], [0.0, 1.0]), 3.0], 2)
    solution, newton = solver().solve(problem), Newton().solve(problem)
    assert solution.statuses() == [Status.CONVERGED] * 2
    assert_solved(problem, solution.y, newton.y)


@each_solver
def test_a_node_with_float32_tensors_of_its_own(solver):
    class Held(DeclarativeNode):
        W = torch.tensor([[2.0, 0.5], [0.5, 1.0]])

        def objective(self, x, y):
            return (self.W @ y - x).square().sum()

        def equality_constraints(self, x, y):
            return torch.stack([y.sum() - 1, 3 * y.sum() - 3])

        def initial_point(self, x):
            return torch.zeros_like(x)

    problem = Problem(Held(), [torch.tensor([[1.0, 2.0], [0.3, -0.2]])], 2)
    solution, newton = solver().solve(problem), Newton().solve(problem)
    assert solution.statuses() == [Status.CONVERGED] * 2
    assert solution.y.dtype == torch.float32
    # To 1e-5, as such a node is evaluated in float32; Newton's last step is good to eps^(2/3).
    Held.W = Held.W.double()
    newtons = torch.finfo(torch.float32).eps ** (2 / 3) * newton.y.norm(dim=1)
    bound = solved(problem, newton.y, 1e-5).y + newtons
    assert ((solution.y - newton.y).norm(dim=1) <= bound).all()


@each_solver
def test_a_layer_with_it_passes_its_certificate(solver):
    node = QP()
    node.solver, node.policy, node.input_dims = solver(), "raise", (0,)
    b = tensor(1.0, 2.0).requires_grad_()
    y = DeclarativeLayer(node)(b)
    assert_close(torch.autograd.grad(y[:, 0].sum(), b)[0], tensor(0.25, 0.25))


@each_solver
def test_is_found_by_name_and_takes_the_same_settings_as_the_others(solver):
    assert registry.get("solvers", solver.name) is solver
    settings = {"max_iterations": 7, "tolerance": 1e-3, "max_time": 2.0}
    assert vars(solver(**settings)).items() >= settings.items()


@each_solver
def test_no_output_no_warning_and_numpy_settings_left_alone(solver, capfd):
    before = np.geterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solver().solve(Problem(Barrier(), [tensor([0.0, 0.0])], 1))
    assert np.geterr() == before
    assert capfd.readouterr() == ("", "")


@each_solver
def test_an_error_of_the_node_comes_through(solver):
    class Wrong(QP):
        def objective(self, b, y):
            return (y @ torch.ones(3, dtype=y.dtype)).sum()

    for dtype in (torch.float64, torch.float32):
        with pytest.raises(RuntimeError, match="size"):
            solver().solve(Problem.single(Wrong(), [torch.tensor(1.0, dtype=dtype)]))


@each_solver
def test_empty_batch(solver):
    solution = solver().solve(Problem(QP(), [torch.zeros(0)], 0), torch.zeros(0, 2))
    assert solution.y.shape == (0, 2)
    assert solution.statuses() == []


@each_solver
def test_a_looser_tolerance_ends_sooner(solver):
    class Curved(QP):
        def objective(self, b, y):
            return (y - b).square().square().sum() + y.exp().sum()

    problem = Problem.single(Curved(), [torch.tensor(1.0).double()])
    loose, tight = solver(tolerance=1e-1).solve(problem), solver().solve(problem)
    assert int(loose.iterations[0]) < int(tight.iterations[0])


@pytest.mark.parametrize("method", ["hybr", "lm"])
def test_root_takes_any_stationary_point_for_a_solution(method):
    # Close to the maximum of y₁ + x y₂ on the circle, which is what it finds.
    start = tensor([0.5, 0.9])
    problem = Problem.single(OnCircle(), [torch.tensor(2.0).double()])
    solution = Root(method=method).solve(problem, start)
    assert solution.statuses() == [Status.CONVERGED]
    assert_solved(problem, solution.y, tensor([1.0, 2.0]) / 5**0.5)


def test_root_knows_its_methods():
    with pytest.raises(InputError, match=r"hybr, lm.*'broyden1'"):
        Root(method="broyden1")


def test_root_of_a_saddle_point_is_reported_as_what_it_is_a_root():
    class Saddle(DeclarativeNode):
        def objective(self, x, y):
            return x * y[0] ** 2 - y[1] ** 2

        def initial_point(self, x):
            return tensor(0.4, 0.1)

    solution = Root().solve(Problem.single(Saddle(), [torch.tensor(1.0).double()]))
    assert solution.statuses() == [Status.CONVERGED]
    assert not solution.y.any()  # nothing but 0 has a backward error below 1, beside its own size


def item(node, *xs, start=None):
    problem = Problem.single(node, xs)
    y = problem.start() if start is None else start
    return ScipyItem(problem, y, 1e-9, 100, Deadline(None))


def test_dependent_constraints_are_handed_over_as_independent_ones():
    one = item(TwiceConstrained(), torch.tensor(1.0).double())
    x = np.array([0.3, 0.4])
    assert one.constraints(x).shape == (1,)
    assert one.jacobian(x).shape == (1, 2)
    # A combination of length one of h = (−0.3, 0.9).
    assert abs(one.constraints(x)[0]) == pytest.approx(0.9**0.5)
    assert item(QP(), torch.tensor(1.0).double()).constraints(x).shape == (1,)
    assert item(OnCircle(), torch.tensor(1.0).double()).constraints(x).shape == (1,)


def test_derivatives_of_an_item_are_those_of_the_lagrangian():
    A = tensor([2.0, 0.3], [0.1, 1.5], [-0.4, 0.8])
    one = item(Polar(), A)
    x, v = np.linspace(-1, 1, 6), np.linspace(2, 1, 6)
    weights = np.array([0.3, -2.0, 0.7])

    def pulled(x):
        return one.combinations.T @ weights @ one.local(x).jacobian[0].numpy()

    difference = (pulled(x + 1e-6 * v) - pulled(x - 1e-6 * v)) / 2e-6
    product = one.constraint_hessian_vector(x, weights, v)
    # Of second degree: differences are exact but for rounding over the step, of sums up to 30.
    bound = rounding(torch.float64, 10, size=30) / 1e-6
    np.testing.assert_allclose(product, difference, rtol=0, atol=bound)
    hessian = one.lagrangian_hessian(x, weights)
    np.testing.assert_allclose(hessian @ v, one.hessian_vector(x, v) - product, rtol=0,
                               atol=rounding(torch.float64, 10, size=30))  # fmt: skip


def test_outside_the_domain_an_item_is_infinite_and_an_iterate_ends_the_solve():
    one = item(Barrier(), tensor(0.0, 0.0))
    outside = np.array([5.0, 0.0])
    assert one.objective(outside) == np.inf
    with pytest.raises(EndOfSolve) as end:
        one.gradient(outside)
    assert end.value.status == Status.NON_FINITE
    assert np.array_equal(one.last, one.x0)


def test_an_item_counts_and_limits_its_iterates():
    one = item(QP(), torch.tensor(1.0).double())
    for step in range(100):
        one.gradient(np.array([float(step), 10.0]))
        one.gradient(np.array([float(step), 10.0]))
    assert one.steps == 100
    with pytest.raises(EndOfSolve) as end:
        one.gradient(np.zeros(2))
    assert end.value.status == Status.MAX_ITERATIONS
