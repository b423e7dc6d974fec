"""The interior point on problems with known answers: projections, programs, statuses, batches, layers."""

import itertools

import pytest
import torch
from bounds import eps
from ddnkit_manifolds import Sphere
from torch.autograd import gradcheck, gradgradcheck

from ddnkit import DeclarativeLayer, DeclarativeNode, InputError, Problem, Status
from ddnkit.solvers import LBFGS, SLSQP, InteriorPoint, Newton, Picard, TrustConstr

#: What `InteriorPoint` promises in float64, times a condition of these problems of at most ten.
PROMISED = 1e-8
DOUBLE = torch.float64


class Projection(DeclarativeNode):
    solver = InteriorPoint()
    input_dims = (1,)

    def __init__(self, size=1.0):
        self.size = size

    def objective(self, x, y):
        return ((y - x) ** 2).sum() / 2

    def initial_point(self, x):
        return torch.zeros_like(x)


class OnBox(Projection):
    def bounds(self, x):
        return -self.size, self.size

    def answer(self, x):
        return x.clamp(-self.size, self.size)


class OnBall(Projection):
    def inequality_constraints(self, x, y):
        return (y**2).sum() - self.size**2

    def answer(self, x):
        length = x.norm(dim=-1, keepdim=True)
        return torch.where(length > self.size, x * self.size / length, x)


class OnHalfSpace(Projection):
    def inequality_constraints(self, x, y):
        return y.sum() - self.size

    def answer(self, x):
        return x - (x.sum(dim=-1, keepdim=True) - self.size).clamp_min(0) / x.shape[-1]


class OnSimplex(Projection):
    def bounds(self, x):
        return 0, None

    def equality_constraints(self, x, y):
        return y.sum() - self.size

    def answer(self, x):
        return on_simplex(x, self.size)


class OnDiamond(Projection):
    """‖y‖₁ ≤ size, y = p − q with p, q ≥ 0."""

    def objective(self, x, y):
        return ((y["p"] - y["q"] - x) ** 2).sum() / 2

    def bounds(self, x):
        return {"p": 0, "q": torch.zeros_like(x)}, None

    def inequality_constraints(self, x, y):
        return y["p"].sum() + y["q"].sum() - self.size

    def initial_point(self, x):
        return {"p": torch.zeros_like(x), "q": torch.zeros_like(x)}

    def answer(self, x):
        outside = x.abs().sum(dim=-1, keepdim=True) > self.size
        return torch.where(outside, x.sign() * on_simplex(x.abs(), self.size), x)


def on_simplex(x, size):
    descending = x.sort(dim=-1, descending=True).values
    excess = (descending.cumsum(dim=-1) - size) / torch.arange(1, x.shape[-1] + 1)
    support = (descending > excess).sum(dim=-1, keepdim=True)
    return (x - excess.gather(-1, support - 1)).clamp_min(0)


def solve(node, *xs, start=None, **settings):
    problem = Problem(node, xs, len(xs[0]))
    solver = InteriorPoint(**settings) if settings else node.solver
    return solver.solve(problem, start)


def points(size=1.0, n=5):
    """Inside, on and outside of each of the sets; ties, and zero."""
    torch.manual_seed(3)
    x = torch.randn(8, n, dtype=DOUBLE)
    x[:2] *= 0.05
    x[2:4] *= 30
    one, first = torch.ones(n, dtype=DOUBLE), torch.eye(n, dtype=DOUBLE)[0]
    special = [0 * one, one, one / n, first, first + torch.eye(n, dtype=DOUBLE)[1], 3 * first - one]
    return torch.cat([x, torch.stack(special)]) * size


PROJECTIONS = [OnBox, OnBall, OnHalfSpace, OnSimplex, OnDiamond]


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("kind", PROJECTIONS)
@pytest.mark.covering
def test_projections_inside_on_and_outside_at_all_scales(kind, size):
    node = kind(size)
    x = points(size)
    solution = solve(node, x)
    y = solution.y
    if kind is OnDiamond:
        y = y[:, : x.shape[1]] - y[:, x.shape[1] :]
    assert set(solution.statuses()) == {Status.CONVERGED}
    apart = (y - node.answer(x)).abs().amax(dim=1)
    assert (apart <= PROMISED * torch.maximum(x.abs().amax(dim=1), torch.tensor(size))).all()


@pytest.mark.parametrize("kind", PROJECTIONS[:4])
def test_in_float32_the_solution_is_the_one_of_float64_rounded(kind):
    x = points().float()
    solution = solve(kind(), x)
    assert solution.y.dtype == torch.float32
    found = solution.y.double()
    exact = kind().answer(x.double())
    # One rounding of y, and what the promised error is beside it.
    size = x.abs().amax(dim=1, keepdim=True).double().clamp_min(1)
    assert ((found - exact).abs() <= (eps(torch.float32) + PROMISED) * size).all()


def test_a_node_that_is_none_in_float64_is_solved_in_its_own_dtype():
    class Held(OnBall):
        weights = torch.tensor([1.0, 2.0, 3.0])

        def objective(self, x, y):
            return self.weights @ ((y - x) ** 2)

    x = torch.tensor([[3.0, 1.0, -2.0], [0.1, 0.2, 0.3]])
    y = solve(Held(), x).y
    assert y.dtype == torch.float32
    wide = solve(Held(), x.double(), start=torch.zeros(2, 3)).y
    torch.testing.assert_close(y, wide.to(y), atol=1e-4, rtol=0)  # ten times the promised 1e-5


def test_active_bounds_hold_exactly():
    x = torch.tensor([[3.0, 0.2, -7.0]], dtype=DOUBLE)
    y = solve(OnBox(0.1), x).y
    assert y.tolist() == [[0.1, 0.1, -0.1]]


class Program(DeclarativeNode):
    """½yᵀQy + cᵀy subject to Gy ≤ b."""

    solver = InteriorPoint()
    input_dims = (2, 1, 2, 1)

    def objective(self, Q, c, G, b, y):
        return y @ Q @ y / 2 + c @ y

    def inequality_constraints(self, Q, c, G, b, y):
        return G @ y - b

    def initial_point(self, Q, c, G, b):
        return torch.zeros_like(c)


def programs(batch, n, q, seed):
    draw = torch.Generator().manual_seed(seed)
    root, c, G, inside = (
        torch.randn(batch, *shape, generator=draw, dtype=DOUBLE)
        for shape in ((n, n), (n,), (q, n), (n,))
    )
    Q = root @ root.mT / n + 0.2 * torch.eye(n, dtype=DOUBLE)
    slack = torch.rand(batch, q, generator=draw, dtype=DOUBLE)
    return Q, c, G, (G @ inside.unsqueeze(2)).squeeze(2) + slack


def enumerated(Q, c, G, b):
    """The solution of one regular program, by trying each active set."""
    n, q = len(c), len(b)
    for count in range(min(n, q) + 1):
        for held in itertools.combinations(range(q), count):
            A, right = G[list(held)], b[list(held)]
            K = torch.cat(
                [torch.cat([Q, A.T], dim=1), torch.cat([A, A.new_zeros(count, count)], dim=1)]
            )
            found = torch.linalg.solve(K, torch.cat([-c, right]))
            y, lam = found[:n], found[n:]
            if (lam >= 0).all() and (G @ y - b <= PROMISED).all():
                return y, lam, list(held)
    raise AssertionError("no active set fits")


def test_random_quadratic_programs_against_the_enumeration_of_active_sets():
    xs = programs(40, 3, 5, seed=0)
    solution = solve(Program(), *xs)
    assert set(solution.statuses()) == {Status.CONVERGED}
    _, lam = solution.multipliers
    for i in range(40):
        y, of_held, held = enumerated(*(x[i] for x in xs))
        expected = torch.zeros(5, dtype=DOUBLE)
        expected[held] = of_held
        # 1e-9, the tolerance, times a condition of at most the 1/0.2 of Q and the size of the data.
        limit = 1e-9 * 100 * (1 + torch.linalg.vector_norm(expected))
        torch.testing.assert_close(solution.y[i], y, atol=float(limit), rtol=0)
        torch.testing.assert_close(lam[i], expected, atol=float(limit), rtol=1e-6)


def test_degenerate_programs_are_solved_like_regular_ones():
    Q, c, G, b = programs(30, 4, 5, seed=1)
    regular = solve(Program(), Q, c, G, b)
    _, lam = regular.multipliers
    at = (G @ regular.y.unsqueeze(2)).squeeze(2)
    weak = torch.where(lam > 0, b, at)  # every inactive constraint made weakly active
    doubled = torch.cat([G, 1e6 * G], dim=1), torch.cat([b, 1e6 * b], dim=1)
    for G_, b_ in ((G, weak), doubled):
        solution = solve(Program(), Q, c, G_, b_)
        assert set(solution.statuses()) == {Status.CONVERGED}
        torch.testing.assert_close(solution.y, regular.y)


def test_units_do_not_matter():
    Q, c, G, b = programs(20, 4, 6, seed=2)
    torch.manual_seed(0)
    u, w = (10 ** (12 * torch.rand(20, k, dtype=DOUBLE) - 6) for k in (4, 6))
    other = (
        Q / u.unsqueeze(1) / u.unsqueeze(2), c / u, G * w.unsqueeze(2) / u.unsqueeze(1), b * w
    )  # fmt: skip
    solution, regular = solve(Program(), *other), solve(Program(), Q, c, G, b)
    assert set(solution.statuses()) == {Status.CONVERGED}
    torch.testing.assert_close(solution.y / u, regular.y)


def test_equations_inequalities_and_bounds_together():
    class Together(Projection):
        def bounds(self, x):
            upper = torch.tensor([1, 1e9, torch.inf, torch.inf, 2.0])
            return torch.tensor([0.0, 0.0, 0.0, -1.0, 2.0]), upper

        def equality_constraints(self, x, y):
            return y.sum() - 3

        def inequality_constraints(self, x, y):
            return torch.stack([(y[:2] ** 2).sum() - 0.5, y[2] - y[3]])

    torch.manual_seed(0)
    x = torch.randn(6, 5, dtype=DOUBLE)
    solution = solve(Together(), x)
    y = solution.y
    nu, lam = solution.multipliers
    own, lower, upper = lam[:, :2], lam[:, 2:7], lam[:, 7:]
    assert set(solution.statuses()) == {Status.CONVERGED}
    assert (y[:, 4] == 2).all() and (y[:, :3] >= 0).all()
    assert (lam >= 0).all()
    # ∇f − Aᵀν + Gᵀλ − zₗ + zᵤ
    slope = y - x - nu - lower + upper
    slope[:, :2] += 2 * own[:, :1] * y[:, :2]
    slope[:, 2] += own[:, 1]
    slope[:, 3] -= own[:, 1]
    torch.testing.assert_close(slope, torch.zeros_like(slope))
    gaps = torch.stack([(y[:, :2] ** 2).sum(dim=1) - 0.5, y[:, 2] - y[:, 3]], dim=1)
    assert (gaps <= PROMISED).all()
    torch.testing.assert_close(own * gaps, torch.zeros_like(gaps))


def test_nonconvex_problems_end_at_minima():
    class Rosenbrock(DeclarativeNode):
        solver = InteriorPoint()
        input_dims = (0,)

        def objective(self, r, y):
            return (1 - y[0]) ** 2 + 100 * (y[1] - y[0] ** 2) ** 2

        def inequality_constraints(self, r, y):
            return (y**2).sum() - r**2

        def initial_point(self, r):
            return torch.tensor([-1.2, 1.0]).to(r)

    r = torch.tensor([0.5, 1.0, 3.0], dtype=DOUBLE)
    solution = solve(Rosenbrock(), r)
    assert set(solution.statuses()) == {Status.CONVERGED}
    torch.testing.assert_close(solution.y[2], torch.ones(2, dtype=DOUBLE))
    torch.testing.assert_close(solution.y[:2].norm(dim=1), r[:2])
    assert (solution.multipliers[1][:2] > 0).all()

    class Wells(DeclarativeNode):
        solver = InteriorPoint()
        input_dims = (0,)

        def objective(self, a, y):
            return ((y**2 - 1) ** 2).sum() + a * y.sum()

        def bounds(self, a):
            return -0.5, 2

        def initial_point(self, a):
            return torch.tensor([0.1, 0.7]).to(a)

    y = solve(Wells(), torch.tensor([0.0, 2.0], dtype=DOUBLE)).y
    # From either side of the maximum at 0: to the well at 1, and where it is tilted to the bound.
    torch.testing.assert_close(y[0], torch.ones(2, dtype=DOUBLE))
    assert y[1].tolist() == [-0.5, -0.5]


def test_a_point_of_inadmissible_values_is_left_alone():
    class Entropy(Projection):
        """log y is NaN where y < 0, and y log y at 0."""

        def objective(self, x, y):
            return (y * y.log()).sum() - x @ y

        def bounds(self, x):
            return 0, None

        def equality_constraints(self, x, y):
            return y.sum() - 1

    torch.manual_seed(0)
    for size in (1, 20, 100):
        x = size * torch.randn(20, 5, dtype=DOUBLE)
        solution = solve(Entropy(), x)
        assert set(solution.statuses()) == {Status.CONVERGED}
        expected = x.softmax(dim=-1)
        # Each in itself, however small.
        assert ((solution.y / expected - 1).abs() <= PROMISED).all()
        # And a layer has nothing to say.
        layer = DeclarativeLayer(Entropy(), policy="raise")
        x.requires_grad_()
        v = torch.arange(5, dtype=DOUBLE)
        (found,) = torch.autograd.grad((layer(x) * v).sum(), x)
        (of_softmax,) = torch.autograd.grad((x.softmax(dim=-1) * v).sum(), x)
        assert ((found - of_softmax).abs() <= PROMISED).all()


def linear_programs():
    """Regular, unbounded, infeasible, regular in other units, and one that holds NaN."""
    corner = torch.tensor([[-1.0, 0.0], [0.0, -1.0], [1.0, 1.0]], dtype=DOUBLE)
    open_ = torch.tensor([[-1.0, 0.0], [0.0, -1.0], [-1.0, -1.0]], dtype=DOUBLE)
    apart = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=DOUBLE)
    G = torch.stack([corner, open_, apart, 1e6 * corner, corner * torch.nan])
    c = torch.tensor([[-1, -2], [-1, -1], [0, -1], [-1, -2], [1, 1]], dtype=DOUBLE)
    b = torch.tensor([[0, 0, 1], [0, 0, 1], [-1, -1, 3], [0, 0, 1e6], [0, 0, 1]], dtype=DOUBLE)
    return torch.zeros(5, 2, 2, dtype=DOUBLE), c, G, b


def test_items_without_a_solution_are_told_apart_and_spoil_no_other():
    xs = linear_programs()
    solution = solve(Program(), *xs)
    assert solution.statuses() == [
        Status.CONVERGED, Status.UNBOUNDED, Status.INFEASIBLE, Status.CONVERGED, Status.NON_FINITE,
    ]  # fmt: skip
    expected = torch.tensor([0.0, 1.0], dtype=DOUBLE)
    for i in (0, 3):
        torch.testing.assert_close(solution.y[i], expected)
        alone = solve(Program(), *(x[i : i + 1] for x in xs))
        torch.testing.assert_close(solution.y[i], alone.y[0])
    assert solution.y[4].isnan().all()


@pytest.mark.parametrize("gap", [1.0, 1e-6])
def test_contradictions_however_small_are_infeasible(gap):
    Q, c, G, b = programs(10, 3, 4, seed=4)
    G = torch.cat([G, -G[:, :1]], dim=1)
    b = torch.cat([b, -b[:, :1] - gap], dim=1)
    assert set(solve(Program(), Q, c, G, b).statuses()) == {Status.INFEASIBLE}


@pytest.mark.parametrize("gap", [0, 1e-9])
def test_constraints_that_touch_or_nearly_do_are_solved(gap):
    # −gap ≤ y₀ ≤ gap, y₁ ≤ 1
    G = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=DOUBLE).expand(2, 3, 2)
    b = torch.tensor([gap, gap, 1.0], dtype=DOUBLE).expand(2, 3)
    c = torch.tensor([[2.0, 0.5], [-2.0, -3.0]], dtype=DOUBLE)
    solution = solve(Program(), torch.eye(2, dtype=DOUBLE).expand(2, 2, 2), c, G, b)
    assert set(solution.statuses()) == {Status.CONVERGED}
    expected = torch.tensor([[-gap, -0.5], [gap, 1.0]], dtype=DOUBLE)
    # To a thousandth of the gap: the roundings of y are 2e-16.
    torch.testing.assert_close(solution.y, expected, atol=1e-12, rtol=0)


def test_a_start_at_a_maximum_is_left():
    class Hill(Projection):
        def objective(self, x, y):
            return -((y - x) ** 2).sum()

        def bounds(self, x):
            return -1, 1

    y = solve(Hill(), torch.zeros(1, 3, dtype=DOUBLE)).y
    assert (y.abs() == 1).all()


def test_a_dead_end_of_the_constraints_is_left_for_where_they_hold():
    class Ring(Projection):
        """½ ≤ ‖y‖ ≤ 1, from the centre, where the first has no slope."""

        def inequality_constraints(self, x, y):
            return torch.stack([0.25 - y @ y, y @ y - 1])

    x = torch.tensor([[0.3, 0.4], [0.0, 3.0], [0.1, 0.0]], dtype=DOUBLE)
    solution = solve(Ring(), x)
    assert set(solution.statuses()) == {Status.CONVERGED}
    length = x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(solution.y, x / length * length.clamp(0.5, 1))


def test_on_a_manifold():
    class Cap(Projection):
        manifold = Sphere()

        def objective(self, x, y):
            return -(x @ y)

        def inequality_constraints(self, x, y):
            return y[2] - 0.5

        def initial_point(self, x):
            return torch.eye(3, dtype=x.dtype)[0]

    x = torch.tensor([[0.1, 0.2, 3.0], [1.0, 1.0, -1.0]], dtype=DOUBLE)
    solution = solve(Cap(), x)
    assert set(solution.statuses()) == {Status.CONVERGED}
    edge = (3 / 4 / (x[0, :2] @ x[0, :2])).sqrt() * x[0, :2]
    torch.testing.assert_close(solution.y[0], torch.cat([edge, torch.tensor([0.5]).double()]))
    torch.testing.assert_close(solution.y[1], x[1] / x[1].norm())


@pytest.mark.parametrize("kind", PROJECTIONS[:4])
@pytest.mark.parametrize("solver", [SLSQP(), TrustConstr()])
@pytest.mark.covering
def test_the_solvers_of_scipy_project_as_it_does(solver, kind):
    x = points()[::3]
    solution = solver.solve(Problem(kind(), (x,), len(x)))
    assert set(solution.statuses()) == {Status.CONVERGED}
    limit = PROMISED * x.abs().amax(dim=1, keepdim=True).clamp_min(1)
    assert ((solution.y - kind().answer(x)).abs() <= limit).all()


@pytest.mark.parametrize("solver", [SLSQP(), TrustConstr()])
def test_the_solvers_of_scipy_give_the_same(solver):
    xs = linear_programs()
    assert solver.solve(Problem(Program(), xs, 5)).statuses() == solve(Program(), *xs).statuses()
    xs = programs(5, 3, 4, seed=0)
    solution, ours = solver.solve(Problem(Program(), xs, 5)), solve(Program(), *xs)
    torch.testing.assert_close(solution.y, ours.y)
    torch.testing.assert_close(solution.multipliers[1], ours.multipliers[1])
    assert solver.takes_inequalities


@pytest.mark.parametrize("solver", [SLSQP(), TrustConstr()])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_solvers_of_scipy_take_equations_and_several_inequalities_together(solver, dtype):
    class OnPlane(OnHalfSpace):
        def equality_constraints(self, x, y):
            return torch.stack([y.sum(), y[0] - y[1]])

        def inequality_constraints(self, x, y):
            return torch.cat([y[2:] ** 2 - 4, -1 - y[:1]])

        def answer(self, x):
            # (t, t, −2t): t = (x₀ + x₁ − 2x₂)/6, |t| ≤ 1
            t = ((x[:, 0] + x[:, 1] - 2 * x[:, 2]) / 6).clamp(-1, 1)
            return torch.stack([t, t, -2 * t], dim=1)

    x = torch.tensor([[1, 2, -9], [0.3, 0.1, 0.2], [-4, -1, 5]], dtype=dtype)
    solution = solver.solve(Problem(OnPlane(), (x,), len(x)))
    assert set(solution.statuses()) == {Status.CONVERGED}
    apart = (solution.y - OnPlane().answer(x)).abs()
    assert (apart <= (PROMISED + eps(dtype)) * x.abs().amax()).all()


@pytest.mark.parametrize("solver", [SLSQP(), TrustConstr()])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_the_solvers_of_scipy_take_no_point_where_a_constraint_is_no_number(solver, dtype):
    class Positive(Projection):
        """y ≥ e⁻², by a logarithm that the first steps lead out of the domain of."""

        def inequality_constraints(self, x, y):
            return -y.log() - 2

        def initial_point(self, x):
            return torch.ones_like(x)

    x = torch.tensor([[-1, -2], [-0.5, -3], [2, -1]], dtype=dtype)
    solution = solver.solve(Problem(Positive(), (x,), len(x)))
    assert set(solution.statuses()) == {Status.CONVERGED}
    answer = x.double().clamp_min(torch.tensor(-2, dtype=DOUBLE).exp())
    assert ((solution.y - answer).abs() <= (PROMISED + eps(dtype)) * 3).all()


def test_bounds_that_contradict_each_other_and_bounds_that_are_equal():
    class Between(Projection):
        input_dims = (1, 0)

        def objective(self, x, upper, y):
            return ((y - x) ** 2).sum()

        def bounds(self, x, upper):
            return 0.5, upper

        def initial_point(self, x, upper):
            return torch.zeros_like(x)

    x = torch.zeros(3, 2, dtype=DOUBLE)
    solution = solve(Between(), x, torch.tensor([1.0, 0.5, 0.4], dtype=DOUBLE))
    assert solution.statuses() == [Status.CONVERGED, Status.CONVERGED, Status.INFEASIBLE]
    assert solution.y[:2].tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_limits_are_kept():
    x = points()[2:4]
    assert set(solve(OnBall(), x, max_iterations=1).statuses()) <= {
        Status.CONVERGED, Status.MAX_ITERATIONS,
    }  # fmt: skip
    late = solve(OnBall(), x, max_time=0)
    assert (late.iterations <= 1).all()
    assert set(late.statuses()) == {Status.TIME_LIMIT}


def test_a_start_at_or_near_the_solution_saves_steps():
    x = points()[:6]
    cold = solve(OnSimplex(), 1.001 * x)
    warm = solve(OnSimplex(), 1.001 * x, start=solve(OnSimplex(), x).y)
    assert (warm.iterations <= cold.iterations).all()
    assert warm.iterations.sum() < cold.iterations.sum()
    torch.testing.assert_close(warm.y, cold.y)


def test_no_item_depends_on_its_neighbours():
    x = points()
    together = solve(OnDiamond(), x)
    for i in range(0, len(x), 3):
        alone = solve(OnDiamond(), x[i : i + 1])
        torch.testing.assert_close(alone.y[0], together.y[i])


def test_an_empty_batch_and_an_empty_constraint():
    class Empty(Projection):
        def inequality_constraints(self, x, y):
            return x.new_zeros(0)

    x = points()[:3]
    torch.testing.assert_close(solve(Empty(), x).y, x)
    nothing = torch.zeros(0, 3, dtype=DOUBLE)
    assert solve(OnBox(), nothing, start=nothing).y.shape == (0, 3)


@pytest.mark.parametrize("kind", PROJECTIONS[:4])
def test_layers_have_first_and_second_derivatives(kind):
    torch.manual_seed(1)
    x = (2 * torch.randn(1, 3, dtype=DOUBLE)).requires_grad_()
    layer = DeclarativeLayer(kind(), policy="raise")
    assert gradcheck(layer, x, fast_mode=True)
    assert gradgradcheck(layer, x, fast_mode=True)


@pytest.mark.parametrize("solver", [Newton(), LBFGS(), "newton"])
def test_solvers_that_take_no_inequalities_refuse_them(solver):
    class Refused(OnBox):
        pass

    Refused.solver = solver
    with pytest.raises(InputError, match=r"Refused.*inequality constraints or bounds"):
        DeclarativeLayer(Refused())(torch.ones(2, 3))


def test_a_class_with_inequalities_that_names_no_solver_has_this_one():
    class Bounded(DeclarativeNode):
        def objective(self, x, y): ...
        def bounds(self, x): ...

    class Plain(DeclarativeNode):
        def objective(self, x, y): ...

    class Named(Bounded):
        solver = "slsqp"

    assert (Bounded.solver, Plain.solver, Named.solver) == ("interior_point", "newton", "slsqp")
    assert InteriorPoint.takes_inequalities and not Picard.takes_inequalities


class Margin(DeclarativeNode):
    """The dual of a support vector machine: min ½yᵀKy − Σy with labelsᵀy = 0 and 0 ≤ y ≤ C."""

    input_dims = (2, 1, 0)

    def objective(self, K, labels, C, y):
        return y @ K @ y / 2 - y.sum()

    def equality_constraints(self, K, labels, C, y):
        return labels @ y

    def bounds(self, K, labels, C):
        return 0.0, C

    def initial_point(self, K, labels, C):
        return torch.zeros_like(labels)


def machines(n, rank, C, scale=1.0, count=20):
    draw = torch.Generator().manual_seed(n)
    X = scale * torch.randn(count, n, rank, generator=draw, dtype=DOUBLE)
    labels = torch.randn(count, n, generator=draw, dtype=DOUBLE).sign()
    labels[:, 0], labels[:, 1] = 1.0, -1.0
    rows = labels.unsqueeze(2) * X
    return rows @ rows.mT, labels, torch.full((count,), C, dtype=DOUBLE)


@pytest.mark.parametrize(
    ("n", "C", "scale"),
    [(20, 0.1, 1.0), (20, 1e3, 1.0), (25, 0.1, 0.01)],
)
def test_support_vector_machines_of_low_rank_are_solved_whatever_the_box(n, C, scale):
    K, labels, box = machines(n, 2, C, scale)
    layer = DeclarativeLayer(Margin(), policy="mask")
    y = layer(K, labels, box)
    assert (layer.certificate.status == Status.CONVERGED).all()
    # By how much f could fall at most, by its slope and some ν, as it is convex.
    slope = (K @ y.unsqueeze(2)).squeeze(2) - 1
    free = (y > 0) & (y < C)
    nu = (labels * slope * free).sum(dim=1, keepdim=True) / free.sum(dim=1, keepdim=True).clamp(1)
    rest = torch.where(free.any(dim=1, keepdim=True), slope - labels * nu, 0.0)
    gap = torch.maximum(rest * y, rest * (y - C)).sum(dim=1)
    terms = (K.abs() @ y.unsqueeze(2)).squeeze(2) + 1
    assert (gap <= PROMISED * C * terms.sum(dim=1)).all()


class Transport(DeclarativeNode):
    """min cᵀy over plans y ≥ 0 with row sums and column sums 1."""

    bounds = (0.0, None)

    def objective(self, c, y):
        return (c * y).sum()

    def equality_constraints(self, c, y):
        return torch.cat([y.sum(dim=0) - 1, y.sum(dim=1) - 1])

    def initial_point(self, c):
        return torch.ones_like(c)


def test_linear_programs_with_several_solutions_end_at_one():
    draw = torch.Generator().manual_seed(0)
    c = torch.randint(0, 4, (20, 4, 4), generator=draw).to(DOUBLE)
    solution = InteriorPoint().solve(Problem(Transport(), (c,), len(c)))
    assert (solution.status == Status.CONVERGED).all()
    orders = torch.tensor(list(itertools.permutations(range(4))))
    least = c[:, torch.arange(4), orders].sum(dim=2).amin(dim=1)
    assert torch.allclose((c * solution.y).sum(dim=(1, 2)), least, rtol=0, atol=PROMISED)


def test_where_f_is_constant_any_point_within_will_do():
    class Anywhere(DeclarativeNode):
        input_dims = (2, 1)

        def objective(self, C, d, y):
            return 0 * y.sum()

        def inequality_constraints(self, C, d, y):
            return C @ y - d

        def initial_point(self, C, d):
            return 10 + 0 * C[0]

    draw = torch.Generator().manual_seed(0)
    C = torch.rand(20, 9, 3, generator=draw, dtype=DOUBLE) - 0.5
    d = torch.rand(20, 9, generator=draw, dtype=DOUBLE)
    layer = DeclarativeLayer(Anywhere(), policy="mask")
    y = layer(C, d)
    assert (layer.certificate.status == Status.CONVERGED).all()
    assert ((C @ y.unsqueeze(2)).squeeze(2) < d).all()


def test_a_linear_objective_has_its_curvature_from_the_constraints():
    """min cᵀy with y₁y₂ ≥ 1 and y ≥ 0."""

    class Hyperbola(DeclarativeNode):
        input_dims = (1,)
        bounds = (0.0, None)

        def objective(self, c, y):
            return c @ y

        def inequality_constraints(self, c, y):
            return 1 - y[0] * y[1]

        def initial_point(self, c):
            return 2 + 0 * c

    c = 0.5 + torch.rand(20, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    expected = (c.flip(1) / c).sqrt()
    for solver in (SLSQP(), TrustConstr(), InteriorPoint()):
        solution = solver.solve(Problem(Hyperbola(), (c,), len(c)))
        assert solution.statuses() == [Status.CONVERGED] * len(c)
        assert torch.allclose(solution.y, expected, rtol=0, atol=PROMISED)
