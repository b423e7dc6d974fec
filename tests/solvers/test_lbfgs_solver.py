"""L-BFGS: known solutions with and without constraints, batches, size, dtypes, and its parts alone."""

import pytest
import torch
from bounds import rounding, solved
from ddnkit_manifolds import Sphere, Stiefel
from torch.testing import assert_close

from ddnkit import DeclarativeLayer, DeclarativeNode, Problem, Status, testing
from ddnkit.lagrangian import constraint_jacobian, least_squares_multipliers
from ddnkit.solvers import LBFGS, ConstraintProducts, Newton, Scales
from ddnkit.solvers.augmented_lagrangian import AugmentedLagrangian
from ddnkit.solvers.lbfgs import History
from ddnkit.solvers.residual import constraint_norm
from ddnkit.solvers.wolfe_search import search

#: The backward error that it promises (docs/solvers.md).
PROMISED = {torch.float64: 1e-9, torch.float32: 1e-5}
BANK = [node for node in testing.bank() if node.unique and not node.has_inequalities]


class Chain(DeclarativeNode):
    """Rosenbrock's function in n dimensions: y = (x, x², x⁴, …) for x = 1 only, the ones."""

    size = 10

    def objective(self, x, y):
        return 100 * (y[1:] - y[:-1] ** 2).square().sum() + (x - y[:-1]).square().sum()

    def initial_point(self, x):
        return torch.full((self.size,), -0.5, dtype=x.dtype)


class Diagonal(DeclarativeNode):
    """min ½ Σ dᵢ yᵢ² − bᵀy: y = b/d."""

    def objective(self, d, b, y):
        return (d * y * y).sum() / 2 - b @ y

    def initial_point(self, d, b):
        return torch.zeros_like(b)


class NearestOnPlane(DeclarativeNode):
    """min ½‖y − x‖² with 1ᵀy = 1: y = x + (1 − 1ᵀx)/n."""

    def objective(self, x, y):
        return (y - x).square().sum() / 2

    def equality_constraints(self, x, y):
        return y.sum() - 1

    def initial_point(self, x):
        return torch.zeros_like(x)

    def answer(self, x):
        return x + (1 - x.sum()) / len(x)


class SamePlaneThrice(NearestOnPlane):
    def equality_constraints(self, x, y):
        return (y.sum() - 1) * torch.tensor([1.0, -2.0, 0.5], dtype=y.dtype)


class NearestOnSphere(NearestOnPlane):
    """min ½‖y − x‖² on the sphere, by the manifold's constraint: y = x/‖x‖."""

    manifold = Sphere()
    equality_constraints = DeclarativeNode.equality_constraints

    def initial_point(self, x):
        return torch.nn.functional.normalize(torch.ones_like(x), dim=0)

    def answer(self, x):
        return x / x.norm()


class OnCircleOfSphere(NearestOnSphere):
    """The same with y₁ = ½ besides: (½, √¾ x₂, √¾ x₃) with (x₂, x₃) normalised."""

    def equality_constraints(self, x, y):
        return y[0] - 0.5

    def answer(self, x):
        rest = x[1:] / x[1:].norm() * 0.75**0.5
        return torch.cat([torch.full_like(x[:1], 0.5), rest])


class Polar(DeclarativeNode):
    """min −⟨A, y⟩ over the Stiefel manifold: the polar factor of A."""

    manifold = Stiefel()

    def objective(self, A, y):
        return -(A * y).sum()

    def initial_point(self, A):
        return torch.eye(*A.shape, dtype=A.dtype)

    def answer(self, A):
        return Stiefel().project(A)


def assert_solved(problem, y, expected):
    """Within what the promised backward error leaves of the solution, item by item."""
    off = (y - expected).flatten(1).norm(dim=1)
    bound = solved(problem, expected, PROMISED[y.dtype]).y
    assert (off <= bound).all(), (off, bound)


def closed_forms():
    torch.manual_seed(3)
    x = torch.randn(4, 3, dtype=torch.float64)
    A = torch.randn(4, 6, 3, dtype=torch.float64)
    nodes = [NearestOnPlane(), SamePlaneThrice(), NearestOnSphere(), OnCircleOfSphere()]
    return [(node, x) for node in nodes] + [(Polar(), A)]


@pytest.mark.parametrize("dtype", PROMISED, ids=str)
@pytest.mark.parametrize(("node", "x"), closed_forms(), ids=lambda v: type(v).__name__)
def test_reaches_the_closed_form_for_every_item_of_a_batch(node, x, dtype):
    x = x.to(dtype)
    problem = Problem(node, [x], len(x))
    solution = LBFGS().solve(problem)
    assert solution.statuses() == [Status.CONVERGED] * len(x)
    assert solution.y.dtype == dtype
    assert_solved(problem, solution.y, torch.stack([node.answer(each) for each in x]))


@pytest.mark.parametrize(
    "node",
    [
        node if index % 2 == 0 else pytest.param(node, marks=pytest.mark.long)
        for index, node in enumerate(BANK)
    ],
    ids=lambda node: node.label,
)
def test_is_stationary_on_the_known_problems_and_stays_there(node):
    xs = testing.sample(node, seed=1)
    problem = Problem.single(node, xs)
    solution = LBFGS().solve(problem)
    assert solution.statuses() == [Status.CONVERGED]
    jacobian = constraint_jacobian(problem, solution.y)
    residual = problem.gradient(solution.y).reshape(1, -1)
    promised = solved(problem, solution.y, PROMISED[torch.float64])
    if jacobian is not None:
        nu = least_squares_multipliers(jacobian, residual)
        residual = residual - (nu.unsqueeze(1) @ jacobian).squeeze(1)
        assert problem.all_constraints(solution.y).norm() <= promised.feasibility
    assert residual.norm() <= promised.stationarity
    again = LBFGS().solve(problem, start=solution.y)
    assert again.statuses() == [Status.CONVERGED]
    assert int(again.iterations[0]) == 0
    assert torch.equal(again.y, solution.y)


def test_a_batch_is_solved_as_its_items_are():
    x = torch.tensor([1.0, 0.9, 1.2], dtype=torch.float64)
    problem = Problem(Chain(), [x], 3)
    together = LBFGS().solve(problem)
    for index in range(3):
        alone = LBFGS().solve(Problem.single(Chain(), [x[index]]))
        assert together.statuses()[index] == alone.statuses()[0] == Status.CONVERGED
        assert_solved(problem.at(index), together.y[index, None], alone.y)
    ones = torch.ones(1, Chain.size, dtype=torch.float64)
    assert_solved(problem.at(0), together.y[:1], ones)


def test_converges_at_the_rate_of_the_condition():
    d = torch.logspace(0, 2, 100, dtype=torch.float64)
    b = torch.randn(2, 100, dtype=torch.float64)
    problem = Problem(Diagonal(), [d.expand(2, -1), b], 2)
    solution = LBFGS().solve(problem)
    assert solution.statuses() == [Status.CONVERGED] * 2
    # Conjugate gradients, which it is no better than, take ½√100 ln(2·1e9) = 107; descent along the
    # gradient would take 100 times ½ ln 1e9: 1,000.
    assert solution.iterations.max() < 300
    assert_solved(problem, solution.y, b / d)


def test_memory_is_linear_in_the_size():
    # A matrix of this size would take 80 GB.
    d = torch.linspace(1, 5, 100_000, dtype=torch.float64).unsqueeze(0)
    b = torch.ones_like(d)
    solution = LBFGS(history=5).solve(Problem(Diagonal(), [d, b], 1))
    assert solution.statuses() == [Status.CONVERGED]
    # d∘y − b is b for each of d, y and b, relative to it, and d ≥ 1 (`solved`, of a diagonal matrix).
    assert (solution.y - b / d).norm() < 2 * PROMISED[torch.float64] * 3 * b.norm()


def test_scale_of_the_problem_does_not_matter():
    class Scaled(NearestOnPlane):
        def objective(self, x, y):
            return 1e9 * super().objective(1e-6 * x, y=1e-6 * y)

        def equality_constraints(self, x, y):
            return 1e4 * super().equality_constraints(x, y=y)

    x = torch.tensor([[3.0, -1.0, 2.0]], dtype=torch.float64)
    solution = LBFGS().solve(Problem(Scaled(), [x], 1))
    assert solution.statuses() == [Status.CONVERGED]
    # A backward error has no units: as without the scaling.
    assert_solved(Problem(NearestOnPlane(), [x], 1), solution.y, Scaled().answer(x[0])[None])


def test_an_offset_of_the_objective_does_not_hide_the_gradient():
    class Offset(NearestOnPlane):
        def objective(self, x, y):
            return super().objective(x, y=y) + 1e6

    x = torch.tensor([[3.0, -1.0, 2.0]], dtype=torch.float64)
    problem = Problem(Offset(), [x], 1)
    solution = LBFGS().solve(problem)
    assert solution.statuses() == [Status.CONVERGED]
    assert_solved(problem, solution.y, Offset().answer(x[0])[None])


def test_an_objective_that_only_the_constraint_bounds():
    class Concave(NearestOnPlane):
        def objective(self, x, y):
            return -5 * y[0] ** 2 + y[1] ** 2 - y[1] - y[0] ** 4

        def equality_constraints(self, x, y):
            return y[0] - x[0]

    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    problem = Problem(Concave(), [x], 1)
    solution = LBFGS().solve(problem)
    assert solution.statuses() == [Status.CONVERGED]
    assert_solved(problem, solution.y, torch.tensor([[1.0, 0.5]], dtype=torch.float64))


def test_stays_inside_the_domain():
    class Barrier(DeclarativeNode):
        def objective(self, x, y):
            return x * y - y.log() - (1 - y).log()

        def initial_point(self, x):
            return 0.999 * torch.ones_like(x)

    x = torch.tensor([-50.0, 0.0, 700.0], dtype=torch.float64)
    problem = Problem(Barrier(), [x], 3)
    solution = LBFGS().solve(problem)
    assert solution.statuses() == [Status.CONVERGED] * 3
    y = solution.y
    assert ((y > 0) & (y < 1)).all()
    promised = solved(problem, y, PROMISED[torch.float64])
    assert ((x - 1 / y + 1 / (1 - y)).abs() <= promised.stationarity).all()


def test_once_differentiable_is_enough():
    class Huber(DeclarativeNode):
        def objective(self, x, y):
            return torch.nn.functional.smooth_l1_loss(y.expand(len(x)), x, reduction="sum")

        def initial_point(self, x):
            return x.new_tensor(7.0)

    x = torch.tensor([[0.1, 0.2, 0.3, 50.0]], dtype=torch.float64)
    solution = LBFGS().solve(Problem(Huber(), [x], 1))
    assert solution.statuses() == [Status.CONVERGED]
    assert_close(solution.y, torch.tensor([1.6 / 3], dtype=torch.float64))


def test_a_layer_with_it_passes_its_certificate_and_its_gradient_is_newtons():
    class Node(OnCircleOfSphere):
        solver = "lbfgs"
        policy = "raise"
        input_dims = (1,)

    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    gradients, points = [], []
    for solver in ("lbfgs", "newton"):
        node = Node()
        node.solver = solver
        y = DeclarativeLayer(node)(x)
        (gradient,) = torch.autograd.grad(y[:, 1].sum(), x)
        gradients.append(gradient)
        points.append(y.detach())
    problem = Problem(node, [x.detach()], 2)
    assert_solved(problem, *points)
    # J = −K⁻¹B: where (y, ν) is off by e, K is by 4e of y and 2e of ν at most, and δJ = −K⁻¹ δK J.
    # ‖K⁻¹‖ and ‖J‖ are below 1/‖x₂,₃‖ + 2 on this circle of radius √¾: two rows, and what they leave.
    e = solved(problem, points[1], PROMISED[torch.float64]).y
    slope = (1 / x.detach()[:, 1:].norm(dim=1) + 2) ** 2
    assert ((gradients[0] - gradients[1]).norm(dim=1) <= 6 * e * slope).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_goes_through(dtype):
    x = torch.tensor([[1.0, -2.0, 0.5]], dtype=dtype)
    solution = LBFGS().solve(Problem(Diagonal(), [torch.ones_like(x), x], 1))
    assert solution.y.dtype == dtype
    assert_close(solution.y, x, atol=2 * 1e-2, rtol=0)  # the tolerance in half precision, and ‖x‖


def test_a_looser_tolerance_and_a_longer_history_end_sooner():
    problem = Problem.single(Chain(), [torch.tensor(1.0, dtype=torch.float64)])
    tight, loose = LBFGS().solve(problem), LBFGS(tolerance=1e-3).solve(problem)
    assert int(loose.iterations[0]) < int(tight.iterations[0])
    short = LBFGS(history=1).solve(problem)
    assert int(tight.iterations[0]) < int(short.iterations[0])


def test_empty_batch():
    solution = LBFGS().solve(Problem(NearestOnPlane(), [torch.zeros(0, 2)], 0), torch.zeros(0, 2))
    assert solution.y.shape == (0, 2)
    assert solution.statuses() == []


# -- the parts -------------------------------------------------------------------------------------


def test_history_is_the_bfgs_formula_of_each_item():
    m, batch = 5, 3
    gradient = torch.randn(batch, m, dtype=torch.float64)
    history = History(4, gradient, torch.full((batch,), 0.7, dtype=torch.float64))
    assert_close(history.apply(gradient), 0.7 * gradient)
    R = torch.randn(batch, m, m, dtype=torch.float64)
    H = R.mT @ R + torch.eye(m)
    pairs = []
    for step in range(6):
        s = torch.randn(batch, m, dtype=torch.float64)
        u = (H @ s.unsqueeze(-1)).squeeze(-1)
        items = torch.tensor([True, step % 2 == 0, step < 5])
        history.push(items, s, u)
        pairs.append((items, s, u))
    for index in range(batch):
        own = [(s[index], u[index]) for items, s, u in pairs if items[index]][-4:]
        s, u = own[-1]
        inverse = (s @ u) / (u @ u) * torch.eye(m, dtype=torch.float64)
        for s, u in own:
            V = torch.eye(m) - torch.outer(u, s) / (s @ u)
            inverse = V.T @ inverse @ V + torch.outer(s, s) / (s @ u)
        assert_close(history.apply(gradient)[index], inverse @ gradient[index])


def test_history_forgets_and_refuses_negative_curvature():
    gradient = torch.ones(2, 3, dtype=torch.float64)
    history = History(4, gradient, torch.ones(2, dtype=torch.float64))
    s = torch.randn(2, 3, dtype=torch.float64)
    history.push(torch.tensor([True, True]), s, torch.stack([s[0] * s[0].abs(), -s[1]]))
    assert_close(history.apply(gradient)[1], gradient[1])
    assert not torch.allclose(history.apply(gradient)[0], history.gamma[0] * gradient[0])
    history.forget(torch.tensor([True, False]))
    assert_close(history.apply(gradient)[0], history.gamma[0] * gradient[0])


def test_products_with_the_jacobian_are_those_of_the_matrix():
    x = torch.randn(2, 3, dtype=torch.float64)
    problem = Problem(OnCircleOfSphere(), [x], 2)
    y = torch.randn(2, 3, dtype=torch.float64)
    A, products = constraint_jacobian(problem, y), ConstraintProducts(problem, y)
    v, w = torch.randn(2, 2, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    assert_close(products.transpose_times(v), (A.mT @ v.unsqueeze(-1)).squeeze(-1))
    assert_close(products.times(w), (A @ w.unsqueeze(-1)).squeeze(-1))
    assert_close(products.least_squares(w), least_squares_multipliers(A, w))
    ratio = constraint_norm(products) / torch.linalg.matrix_norm(A)
    # Three probes of χ² distribution, fixed ones: within three times in either direction.
    assert ((ratio > 1 / 3) & (ratio < 3)).all()


def test_least_squares_multipliers_of_dependent_constraints_have_the_least_norm():
    x = torch.randn(2, 4, dtype=torch.float64)
    problem = Problem(SamePlaneThrice(), [x], 2)
    products, A = ConstraintProducts(problem, x), constraint_jacobian(problem, x)
    g = torch.randn(2, 4, dtype=torch.float64)
    assert_close(products.least_squares(g), least_squares_multipliers(A, g))


def test_gradient_of_the_augmented_lagrangian_is_that_of_the_estimated_multipliers():
    x = torch.randn(2, 3, dtype=torch.float64)
    problem = Problem(OnCircleOfSphere(), [x], 2)
    y = torch.randn(2, 3, dtype=torch.float64)
    merit = AugmentedLagrangian(problem, y.shape, problem.all_constraints(y))
    merit.multipliers = torch.randn(2, 2, dtype=torch.float64)
    merit.penalty = torch.tensor([2.0, 30.0], dtype=torch.float64)
    at = merit.evaluate(y)
    nu = merit.estimates(at.constraints)
    A = constraint_jacobian(problem, y)
    assert_close(at.gradient, problem.gradient(y) - (nu.unsqueeze(1) @ A).squeeze(1))
    step = 1e-6 * torch.randn(2, 3, dtype=torch.float64)
    rise = merit.evaluate(y + step).value - merit.evaluate(y - step).value
    # The third derivative, of size penalty, is left with the cube of the step: below rounding, which
    # values of up to 1,000 have.
    expected = 2 * (at.gradient * step).sum(-1)
    assert_close(rise, expected, atol=rounding(rise, 10, size=1e3), rtol=0)


class Line(DeclarativeNode):
    """f along a line: the sine, a wall, a slope, a well far away."""

    def objective(self, kind, y):
        t = y.squeeze()
        # Where another shape is chosen, the wall must not be felt in the derivative either.
        near = torch.where(kind == 1, t, 0.0)
        shapes = [-(t.sin()), -t - (1 - near).log() * 1e-3, -t, (t - 1e6).square()]
        return sum(torch.where(kind == k, shape, 0.0) for k, shape in enumerate(shapes))


def test_line_search_satisfies_the_wolfe_conditions_or_goes_as_far_as_it_may():
    kind = torch.arange(4)
    problem = Problem(Line(), [kind], 4)
    y = torch.zeros(4, 1, dtype=torch.float64)
    merit = AugmentedLagrangian(problem, y.shape, y[:, :0])
    here, direction = merit.evaluate(y), torch.ones_like(y)
    longest = torch.full((4,), 1e9, dtype=torch.float64)
    direction[0] = 0.01
    active = torch.tensor([True, True, True, True])
    t, there = search(merit.evaluate, y, here, direction, longest, active)
    slope = (here.gradient * direction).sum(-1)
    assert (there.value < here.value).all()
    flat = (there.gradient * direction).sum(-1).abs() <= 0.9 * slope.abs()
    assert flat[0] and flat[3]
    assert 0.4 < t[1] < 1
    assert t[2] == 1e9
    t, there = search(merit.evaluate, y, here, direction, longest, ~active)
    assert (t == 0).all() and torch.equal(there.value, here.value)


def test_scales_are_free_of_units():
    x = torch.tensor([[3.0, -1.0, 2.0]], dtype=torch.float64)

    class Scaled(NearestOnPlane):
        def objective(self, x, y):
            return 1e-7 * super().objective(x, y=y)

        def equality_constraints(self, x, y):
            return 1e5 * super().equality_constraints(x, y=y)

    ratios = []
    for node in (NearestOnPlane(), Scaled()):
        problem = Problem(node, [x], 1)
        y = x + 0.1
        residual, h = problem.gradient(y), problem.all_constraints(y)
        scales = Scales(problem, 1e-9)
        scales.measure(y, torch.zeros_like(h), residual, h)
        ratios.append((residual.norm() / scales.stationarity, h.norm() / scales.feasibility))
    # Differences of gradients over a relative step, which loses half of the digits.
    assert_close(ratios[0], ratios[1], atol=0, rtol=100 * torch.finfo(x.dtype).eps ** 0.5)


def test_agrees_with_newton_where_there_are_several_constraints():
    problem = Problem(OnCircleOfSphere(), [torch.randn(3, 3, dtype=torch.float64)], 3)
    assert_solved(problem, LBFGS().solve(problem).y, Newton().solve(problem).y)
