"""ddnkit's own solvers on manifolds: known minima, batches, statuses, saddle points, warm starts."""

import pytest
import torch
from bounds import factorised
from ddnkit_manifolds import (
    SPD,
    Euclidean,
    FixedRank,
    Grassmann,
    Hyperbolic,
    PositiveSimplex,
    Product,
    SpecialOrthogonal,
    Sphere,
    Stiefel,
)

from ddnkit import DeclarativeLayer, DeclarativeNode, InputError, Problem, Status, registry

OURS = (
    "riemannian",
    "riemannian_trust_regions",
    "riemannian_lbfgs",
    "riemannian_conjugate_gradient",
)
each_solver = pytest.mark.parametrize("name", OURS)
eps = torch.finfo(torch.float64).eps


def sym(A):
    return (A + A.mT) / 2


class Node(DeclarativeNode):
    input_dims = (2,)


class Rayleigh(Node):
    """The eigenvector of the least eigenvalue."""

    manifold = Sphere()

    def objective(self, A, y):
        return y @ sym(A) @ y

    def initial_point(self, A):
        return Sphere().project(torch.ones_like(A[0]) + 0.1 * A[0])

    def least(self, A):
        return torch.linalg.eigvalsh(sym(A))[:, 0]


class Subspace(Node):
    """The trailing subspace of dimension two."""

    manifold = Grassmann()

    def objective(self, A, y):
        return ((sym(A) @ y) * y).sum()

    def initial_point(self, A):
        return Grassmann().project(A[:, :2])

    def least(self, A):
        return torch.linalg.eigvalsh(sym(A))[:, :2].sum(dim=1)


class Brockett(Subspace):
    """The two eigenvectors themselves."""

    manifold = Stiefel()

    def objective(self, A, y):
        return ((sym(A) @ y) * y * y.new_tensor([2.0, 1.0])).sum()

    def least(self, A):
        return (torch.linalg.eigvalsh(sym(A))[:, :2] * A.new_tensor([2.0, 1.0])).sum(dim=1)


class Nearest(Node):
    """The nearest matrix of rank two."""

    manifold = FixedRank(rows=6)

    def objective(self, A, y):
        return (self.manifold.matrix(y) - A).square().sum()

    def initial_point(self, A):
        return self.manifold.project(torch.cat([A[:, :2], torch.ones_like(A[:, :2]) + A[:, 2:4]]))

    def least(self, A):
        return torch.linalg.svdvals(A)[:, 2:].square().sum(dim=1)


class Stein(Node):
    """tr(Y⁻¹ S) + log det Y is least at Y = S."""

    manifold = SPD()

    def S(self, A):
        return A @ A.mT / 6 + torch.eye(6, dtype=A.dtype)

    def objective(self, A, y):
        return torch.linalg.solve(y, self.S(A)).diagonal().sum() + torch.linalg.slogdet(y)[1]

    def initial_point(self, A):
        return torch.eye(6, dtype=A.dtype)

    def least(self, A):
        return 6 + torch.linalg.slogdet(self.S(A))[1]


class LogStein(Stein):
    manifold = SPD("log_euclidean")


class Softmax(Node):
    """⟨a, y⟩ + Σ y log y is least at softmax(−a)."""

    manifold = PositiveSimplex()
    input_dims = (2,)

    def objective(self, A, y):
        return (3 * A[0] * y).sum() + torch.xlogy(y, y).sum()

    def initial_point(self, A):
        return torch.full_like(A[0], 1 / 6)

    def least(self, A):
        return -torch.logsumexp(-3 * A[:, 0], dim=1)


class Above(Node):
    """Σ (yᵢ − aᵢ)² + … on hyperbolic space: −⟨y, p⟩ is least, 1, at the point p itself."""

    manifold = Hyperbolic()

    def objective(self, A, y):
        p = Hyperbolic().project(A[0])
        return y[0] * p[0] - (y[1:] * p[1:]).sum()

    def initial_point(self, A):
        return Hyperbolic().project(torch.zeros_like(A[0]))

    def least(self, A):
        return torch.ones_like(A[:, 0, 0])


class Pose(Node):
    """Registration of six points: R and t in two parts."""

    manifold = Product(SpecialOrthogonal(), Euclidean())

    def objective(self, A, y):
        R, t = y
        model = torch.linspace(0, 4, 18, dtype=A.dtype).sin().reshape(6, 3)
        return (model @ R.mT + t - A[:, :3]).square().sum()

    def initial_point(self, A):
        return torch.eye(3, dtype=A.dtype), torch.zeros(3, dtype=A.dtype)

    def least(self, A):
        model = torch.linspace(0, 4, 18, dtype=A.dtype).sin().reshape(6, 3)
        x, z = model - model.mean(dim=0), A[..., :3] - A[..., :3].mean(dim=-2, keepdim=True)
        U, s, Vh = torch.linalg.svd(z.mT @ x)
        s = torch.cat([s[:, :2], s[:, 2:] * torch.linalg.det(U @ Vh).unsqueeze(-1)], dim=1)
        return x.square().sum() + z.square().sum(dim=(1, 2)) - 2 * s.sum(dim=1)


NODES = (Rayleigh, Subspace, Brockett, Nearest, Stein, LogStein, Softmax, Above, Pose)


def drawn(batch=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 6, 6, generator=generator, dtype=torch.float64).to(dtype)


def solved(node, A, name, **settings):
    problem = Problem(node, [A], len(A))
    return problem, registry.get("solvers", name)(**settings).solve(problem)


@each_solver
@pytest.mark.parametrize("node", NODES)
def test_the_minimum_is_found(node, name):
    node, A = node(), drawn()
    problem, found = solved(node, A, name)
    assert found.status.tolist() == [Status.CONVERGED] * 4
    # First-order solvers stop at a backward error of 1e-9, of which f has the square.
    size = A.square().sum(dim=(1, 2)) + node.least(A).abs()
    assert ((problem.objective(found.y) - node.least(A)).abs() <= 1e3 * eps * size).all()
    assert (problem.manifold.infeasibility(found.y) <= 100 * eps).all()


@pytest.mark.parametrize("node", NODES)
def test_each_item_is_solved_as_if_alone(node):
    node, A = node(), drawn()
    _, together = solved(node, A, "riemannian_trust_regions")
    for i in range(len(A)):
        _, alone = solved(node, A[i : i + 1], "riemannian_trust_regions")
        assert alone.iterations.tolist() == [together.iterations[i]]
        # The tolerance of the solver, and a condition of a hundred.
        promised = 100 * eps ** (2 / 3)
        torch.testing.assert_close(alone.y[0], together.y[i], rtol=promised, atol=promised)


@pytest.mark.parametrize("node", NODES)
def test_it_is_the_default_and_certified_in_both_dtypes(node):
    assert node.solver == "riemannian"
    for dtype in (torch.float64, torch.float32):
        layer = DeclarativeLayer(node(), policy="raise")
        y = layer(drawn(2, dtype=dtype).requires_grad_())
        part = y if isinstance(y, torch.Tensor) else y[0]
        assert part.dtype == dtype
        part.square().sum().backward()
        assert layer.certificate.differentiable.all()


@each_solver
def test_a_solution_is_left_as_it_is(name):
    node, A = Brockett(), drawn()
    problem, found = solved(node, A, "riemannian_trust_regions")
    again = registry.make("solvers", name).solve(problem, found.y)
    assert again.iterations.max() <= 1
    rounding = factorised(torch.float64, 6, condition=100)
    torch.testing.assert_close(again.y, found.y, rtol=0, atol=rounding)


def test_a_saddle_point_is_left():
    A = torch.diag(torch.tensor([3.0, 2.0, 1.0, 5.0, 4.0, 6.0], dtype=torch.float64)).unsqueeze(0)
    problem = Problem(Rayleigh(), [A], 1)
    for k in range(6):
        start = torch.eye(6, dtype=torch.float64)[k : k + 1]
        found = registry.make("solvers", "riemannian_trust_regions").solve(problem, start)
        assert found.status.tolist() == [Status.CONVERGED]
        torch.testing.assert_close(problem.objective(found.y), A.new_ones(1))


def test_limits_and_statuses():
    node, A = Brockett(), drawn()
    _, short = solved(node, A, "riemannian_trust_regions", max_iterations=2)
    assert short.status.tolist() == [Status.MAX_ITERATIONS] * 4
    assert short.iterations.tolist() == [2] * 4
    _, none = solved(node, A, "riemannian_lbfgs", max_time=0)
    assert none.status.tolist() == [Status.TIME_LIMIT] * 4
    A[1, 0, 0] = torch.nan
    y = DeclarativeLayer(node, policy="nan")(A)
    assert y[1].isnan().all() and y[[0, 2, 3]].isfinite().all()


def test_without_a_bound():
    class Falling(Node):
        manifold = Euclidean()

        def objective(self, A, y):
            return A[0] @ y

        def initial_point(self, A):
            return torch.zeros_like(A[0])

    for name in OURS[1:]:
        _, found = solved(Falling(), drawn(), name)
        assert found.status.tolist() == [Status.UNBOUNDED] * 4, name


def test_what_they_decline():
    class Free(Node):
        def objective(self, A, y):
            return y.square().sum()

        def initial_point(self, A):
            return A[0]

    class More(Rayleigh):
        def equality_constraints(self, A, y):
            return y[0]

    assert Free.solver == More.solver == "newton"
    for node in (Free, More):
        for name in OURS:
            chosen = type("Chosen", (node,), {"solver": name})
            with pytest.raises(InputError, match="manifold"):
                DeclarativeLayer(chosen())(drawn())


def test_a_subclass_has_the_solver_of_what_it_states():
    class Free(Rayleigh):
        manifold = None

    class Stated(Rayleigh):
        def equality_constraints(self, A, y):
            return y.square().sum() - 1

    assert (Free.solver, Stated.solver) == ("newton", "newton")

    class Bounded(Rayleigh):
        bounds = (0.0, None)

    class Named(Rayleigh):
        solver = "newton"

    class Again(Named):
        manifold = Stiefel()

    assert (Bounded.solver, Named.solver, Again.solver) == ("interior_point", "newton", "newton")


def test_a_closed_form_comes_first():
    class Orthogonal(Node):
        manifold = Stiefel()

        def objective(self, A, y):
            return (y - A[:, :3]).square().sum()

        def initial_point(self, A):
            return torch.eye(6, 3, dtype=A.dtype)

    layer = DeclarativeLayer(Orthogonal())
    A = drawn()
    U, _, Vh = torch.linalg.svd(A[:, :, :3], full_matrices=False)
    torch.testing.assert_close(layer(A), U @ Vh)
    assert layer.certificate.solver == "procrustes"
    # The whole Hessian of twelve unknowns is cheap, and short calls have Newton's programs; not of 80, nor in
    # another metric.
    large = torch.randn(1, 40, 40, dtype=torch.float64)
    assert solved(Brockett(), A, "riemannian")[1].solver == "newton"
    assert solved(Brockett(), large, "riemannian")[1].solver == "riemannian_trust_regions"
    assert solved(Stein(), A, "riemannian")[1].solver == "riemannian_trust_regions"


def test_what_newton_leaves_unsolved_is_solved_along_the_manifold():
    class Walled(Node):
        """Without a value off the sphere, where Newton's steps lead."""

        manifold = Sphere()

        def objective(self, A, y):
            inside = (y.square().sum() - 1).abs() < 1e-3
            return torch.where(inside, y @ sym(A) @ y, torch.nan)

        def initial_point(self, A):
            return Sphere().project(A[0])

    A = drawn()
    problem, found = solved(Walled(), A, "riemannian")
    assert found.status.tolist() == [Status.CONVERGED] * 4
    least = torch.linalg.eigvalsh(sym(A))[:, 0]
    torch.testing.assert_close(problem.objective(found.y), least)
