"""geoopt's and pymanopt's manifolds as sets of a node: what they become, and derivatives on them."""

import warnings

import geoopt
import numpy as np
import pymanopt.manifolds as pm
import pytest
import torch
from ddnkit_manifolds import (
    SPD,
    Birkhoff,
    Copies,
    Euclidean,
    FixedRank,
    Grassmann,
    Hyperbolic,
    Image,
    Oblique,
    Positive,
    Product,
    SpecialOrthogonal,
    Sphere,
    Stereographic,
    Stiefel,
    from_geoopt,
    from_pymanopt,
)

import ddnkit
from ddnkit import DeclarativeLayer, DeclarativeNode, InputError, Manifold

like = torch.zeros((), dtype=torch.float64)
#: Of matrices of order ten at most, with entries and condition of order ten: a thousand roundings of ten.
ROUNDING = 1e4 * torch.finfo(torch.float64).eps
_FRAME = np.random.default_rng(0).normal(size=(5, 3))
_PACKED = geoopt.ProductManifold((geoopt.Sphere(), 3), (geoopt.Stiefel(), (3, 2)))

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that geoopt's metric is "not fully implemented"
    _LOG_EUCLIDEAN = geoopt.SymmetricPositiveDefinite("LEM")
    _STEIN = geoopt.SymmetricPositiveDefinite("SM")

#: What a manifold becomes, and the shape of a point.
BECOME = [
    (geoopt.Euclidean(1), "Euclidean()", (3,)),
    (geoopt.Stiefel(), "Stiefel()", (4, 2)),
    (geoopt.CanonicalStiefel(), "Stiefel()", (4, 2)),
    (geoopt.EuclideanStiefelExact(), "Stiefel()", (4, 2)),
    (geoopt.Sphere(), "Sphere()", (4,)),
    (geoopt.SphereExact(), "Sphere()", (4,)),
    (geoopt.PoincareBall(), "Stereographic(-1)", (3,)),
    (geoopt.PoincareBall(c=0.5), "Stereographic(-0.5)", (3,)),
    (geoopt.SphereProjection(), "Stereographic(1)", (3,)),
    (geoopt.Stereographic(k=0.0), "Stereographic(0)", (3,)),
    (geoopt.Lorentz(), "Hyperbolic()", (4,)),
    (geoopt.SymmetricPositiveDefinite(), "SPD()", (3, 3)),
    (_LOG_EUCLIDEAN, "SPD('log_euclidean')", (3, 3)),
    (_STEIN, "SPD()", (3, 3)),
    (geoopt.BirkhoffPolytope(), "Birkhoff()", (3, 3)),
    (geoopt.Scaled(geoopt.Sphere(), 2.0), "Sphere()", (4,)),
    (_PACKED, "Product(Sphere(), Stiefel())", (9,)),
    (
        geoopt.StereographicProductManifold(
            (geoopt.PoincareBall(), 2), (geoopt.SphereProjection(), 2)
        ),
        "Product(Stereographic(-1), Stereographic(1))",
        (4,),
    ),
    (pm.Euclidean(2, 3), "Euclidean(2)", (2, 3)),
    (pm.Sphere(4), "Sphere()", (4,)),
    (pm.Stiefel(4, 2), "Stiefel()", (4, 2)),
    (pm.Stiefel(4, 2, k=3), "Copies(Stiefel())", (3, 4, 2)),
    (pm.Grassmann(4, 2, k=2), "Copies(Grassmann())", (2, 4, 2)),
    (pm.Oblique(3, 2), "Oblique()", (3, 2)),
    (pm.SpecialOrthogonalGroup(3), "SpecialOrthogonal()", (3, 3)),
    (pm.SymmetricPositiveDefinite(3, k=2), "Copies(SPD())", (2, 3, 3)),
    (pm.Positive(2, 3), "Positive(2)", (2, 3)),
    (pm.PoincareBall(3, k=2), "Copies(Stereographic(-1))", (2, 3)),
    (pm.FixedRankEmbedded(4, 3, 2), "FixedRank(rows=4, rank=2)", (7, 2)),
]
#: Those without a counterpart, the shape of a point and its number of equations, of the gauge included.
WRAPPED = [
    (geoopt.Sphere(intersection=torch.from_numpy(_FRAME)), (5,), 3),
    (geoopt.Lorentz(k=2.0), (4,), 1),
    (pm.Sphere(2, 3), (2, 3), 1),
    (pm.Symmetric(3), (3, 3), 3),
    (pm.Symmetric(3, 2), (2, 3, 3), 6),
    (pm.SkewSymmetric(3), (3, 3), 6),
    (pm.Elliptope(4, 2), (4, 2), 5),
    (pm.PSDFixedRank(4, 2), (4, 2), 1),
    (pm.SphereSubspaceIntersection(_FRAME), (5,), 3),
    (pm.SphereSubspaceComplementIntersection(_FRAME[:, :2]), (5,), 3),
]
ALL = [(m, shape) for m, _, shape in BECOME] + [(m, shape) for m, shape, _ in WRAPPED]


def of(manifold) -> Manifold:
    theirs = isinstance(manifold, geoopt.Manifold)
    return from_geoopt(manifold) if theirs else from_pymanopt(manifold)


def named(case):
    return str(case) if isinstance(case, geoopt.Manifold) or hasattr(case, "point_layout") else ""


@pytest.mark.parametrize(("manifold", "expected", "shape"), BECOME, ids=named)
def test_one_with_a_counterpart_becomes_it(manifold, expected, shape):
    assert repr(of(manifold)) == expected


@pytest.mark.parametrize(("manifold", "shape", "count"), WRAPPED, ids=named)
def test_one_without_has_independent_equations(manifold, shape, count):
    found = of(manifold)
    y = found.random((2, *shape), generator=torch.Generator().manual_seed(0), like=like)
    rows = found.equation_rows(y)
    assert rows.shape[-2] == count
    assert (torch.linalg.svdvals(rows)[..., -1] > 0.1).all()
    assert found.infeasibility(y).max() <= ROUNDING


@pytest.mark.parametrize(
    "manifold", [m for m, _ in ALL if not isinstance(m, pm.Product)], ids=named
)
def test_a_point_of_theirs_is_one_here(manifold):
    shape = {id(m): s for m, s in ALL}[id(manifold)]
    found = of(manifold)
    torch.manual_seed(0)
    np.random.seed(0)
    if isinstance(manifold, pm.FixedRankEmbedded):  # points there are triples
        return
    if isinstance(manifold, geoopt.Manifold):
        point = manifold.projx(found.random(shape, like=like) if shape == (9,) else start(shape))
    else:
        point = torch.from_numpy(manifold.random_point())
        assert tuple(point.shape) == shape
    assert found.infeasibility(point.double()) <= 1e-5  # Sinkhorn's iteration there ends at that


def start(shape):
    drawn = torch.randn(shape, dtype=torch.float64).abs() / 4
    return drawn @ drawn.mT + torch.eye(3) if shape == (3, 3) else drawn


@pytest.mark.parametrize(("manifold", "shape"), ALL, ids=named)
def test_methods_agree_with_what_the_constraint_says(manifold, shape):
    found = of(manifold)
    generator = torch.Generator().manual_seed(1)
    y = found.random((2, *shape), generator=generator, like=like)
    u, v, g = torch.randn(3, 2, *shape, generator=generator, dtype=torch.float64)
    # Rows: those of automatic differentiation, which a method in closed form replaces.
    J = found.constraint_jacobian(y)
    if J.numel():
        assert (J - Manifold.constraint_jacobian(found, y)).abs().max() <= ROUNDING
    # The tangent part: what is orthogonal to all rows.
    rows, flat = found.equation_rows(y), g.reshape(2, -1, 1)
    expected = flat - rows.mT @ (torch.linalg.pinv(rows.mT) @ flat)
    assert (found.tangent(y, g) - expected.reshape(g.shape)).abs().max() <= ROUNDING
    # Multipliers, in whatever shape: the normal part of a vector; their curvature, its derivative.
    u, v, sigma = found.tangent(y, u), found.tangent(y, v), found.multipliers(y, g)
    moved = torch.func.jvp(lambda y: found.normal(y, sigma), (y,), (v,))[1]
    bent = found.constraint_curvature(y, sigma, v)
    if type(found) is not Image:  # whose normal, off y, is that of other rows
        assert (moved - bent).abs().max() <= ROUNDING
    # The metric: of the gradient, the derivative; of the Hessian, symmetric.
    slope = (g * v).flatten(1).sum(dim=1)
    assert (found.inner(y, found.gradient(y, g), v) - slope).abs().max() <= ROUNDING

    def product(z):
        return found.hessian(y, g, torch.sin(torch.arange(z[0].numel())).reshape(shape) * z, z)

    both = found.inner(y, u, product(v)) - found.inner(y, v, product(u))
    assert both.abs().max() <= ROUNDING
    # The retraction: y + v to first order.
    step = 1e-5
    error = (found.retract(y, step * v) - y) / step - v
    assert error.abs().max() <= 100 * step
    assert found.infeasibility(found.retract(y, step * v)).max() <= ROUNDING


@pytest.mark.parametrize(
    "manifold", [Stereographic(-1.0), Stereographic(0.6), Stereographic(0.0), Positive()], ids=repr
)
def test_the_hessian_is_the_second_derivative_along_a_geodesic(manifold):
    generator = torch.Generator().manual_seed(2)
    y = manifold.random((4,), generator=generator, like=like)
    A, z = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    A, z = A + A.mT, z[0] / 4

    def f(y):
        return y @ A @ y / 2 + y.pow(3).sum()

    def along(t):
        return f(manifold.retract(y, t * z))

    t = torch.zeros((), dtype=torch.float64)
    second = torch.func.grad(torch.func.grad(along))(t)
    gradient, product = torch.func.jvp(torch.func.grad(f), (y,), (z,))
    found = manifold.inner(y, z, manifold.hessian(y, gradient, product, z))
    assert abs(second - found) <= ROUNDING * (1 + abs(second))


@pytest.mark.parametrize("curvature", [-1.0, -0.25, 0.0, 2.0])
def test_the_exponential_is_geoopts(curvature):
    theirs = geoopt.Stereographic(k=torch.tensor(curvature, dtype=torch.float64))
    y, z = 0.3 * torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).double()
    expected = theirs.expmap(y, z)
    found = Stereographic(curvature).exponential(y, z)
    # geoopt clamps and adds 1e-15, a few roundings, here and there.
    assert (found - expected).abs().max() <= ROUNDING


class Nearest(DeclarativeNode):
    """The point nearest to c in a metric that depends on w, where the y is what a gauge leaves of it."""

    input_dims = (1, 1)
    solver = "riemannian"

    def __init__(self, manifold, shape, seen):
        self.manifold, self.shape, self.seen = manifold, shape, seen

    def objective(self, c, w, y):
        far = self.seen(y).flatten() - c
        return (w.exp() * far.square()).sum() / 2

    def initial_point(self, c, w):
        generator = torch.Generator().manual_seed(5)
        return self.manifold.random(self.shape, generator=generator, like=like)


def seen_of(manifold):
    """What a gauge leaves of a point, and all of it without one."""
    if isinstance(manifold, pm.FixedRankEmbedded):
        return FixedRank(4, 2).matrix
    if isinstance(manifold, pm.Grassmann | pm.Elliptope | pm.PSDFixedRank):
        return lambda y: y @ y.mT
    return lambda y: y


@pytest.mark.parametrize(("manifold", "shape"), ALL, ids=named)
def test_a_node_on_it_has_the_derivative_of_finite_differences(manifold, shape):
    found, seen = of(manifold), seen_of(manifold)
    node = Nearest(found, shape, seen)
    generator = torch.Generator().manual_seed(3)
    # A point near the manifold, or the nearest would be on an edge that an open set has not.
    target = seen(node.initial_point(None, None)).flatten()
    drawn = torch.randn(3, target.numel(), generator=generator, dtype=torch.float64)
    c = (target + 0.02 * drawn[0]).requires_grad_()
    w = (0.3 * drawn[1]).requires_grad_()
    layer = DeclarativeLayer(node, policy="nan")

    def loss(c, w):
        return (seen(layer(c, w)).flatten() * drawn[2]).sum()

    gradients = torch.autograd.grad(loss(c, w), (c, w))
    assert layer.certificate.verdicts() == ["trusted"]
    step = 1e-4
    for index, gradient in enumerate(gradients):
        z = torch.randn(c.shape, generator=generator, dtype=torch.float64)
        ends = []
        with torch.no_grad():
            for sign in (step, -step):
                at = [c, w]
                at[index] = at[index] + sign * z
                ends.append(loss(*at))
        difference = (ends[0] - ends[1]) / (2 * step)
        # Of second order in the step, and what the solver leaves, over the step.
        assert abs(difference - gradient @ z) <= 1e-5 * (1 + abs(difference))


class Ellipse(geoopt.Manifold):
    """A set that geoopt has not: x² + 4y² = 1, with the map along rays."""

    name, ndim, reversible = "Ellipse", 1, False

    def projx(self, x):
        return x / (x[..., :1].square() + 4 * x[..., 1:].square()).sqrt()

    def _unused(self, *_, **__):
        raise NotImplementedError

    proju = egrad2rgrad = inner = retr = expmap = transp = _unused

    def _check_point_on_manifold(self, x, **_):
        return True, None

    _check_vector_on_tangent = _check_point_on_manifold


def test_a_class_of_your_own_is_known_by_its_projection():
    """min −⟨c, y⟩ on x² + 4y² = 1: y = (c₁, c₂/4)/√(c₁² + c₂²/4)."""

    class Farthest(DeclarativeNode):
        input_dims = (1,)
        manifold = from_geoopt(Ellipse())

        def objective(self, c, y):
            return -(c @ y)

        def initial_point(self, c):
            return torch.tensor([0.6, 0.4], dtype=c.dtype)

    def closed(c):
        return torch.stack([c[0], c[1] / 4]) / (c[0] ** 2 + c[1] ** 2 / 4).sqrt()

    layer = DeclarativeLayer(Farthest())
    c = torch.tensor([1.0, 2.0], dtype=torch.float64)
    # The solver's tolerance, and rounding.
    torch.testing.assert_close(layer(c), closed(c), atol=1e-7, rtol=0)
    jacobian = torch.func.jacrev(closed)(c)
    torch.testing.assert_close(torch.func.jacrev(layer)(c), jacobian, atol=1e-6, rtol=0)
    second = torch.func.hessian(lambda c: layer(c)[0])(c)
    expected = torch.func.hessian(lambda c: closed(c)[0])(c)
    torch.testing.assert_close(second, expected, atol=1e-6, rtol=0)


def test_a_map_that_is_no_projection_is_refused():
    with pytest.raises(InputError, match="not a smooth one"):
        Image(lambda y: y / 2).constraint(torch.ones(3, dtype=torch.float64))
    with pytest.raises(InputError, match="not a smooth one"):  # once is not enough
        Image(torch.tanh).constraint(torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    "manifold",
    [
        geoopt.UpperHalf(),
        geoopt.BoundedDomain(),
        pm.ComplexCircle(3),
        pm.ComplexEuclidean(3),
        pm.ComplexGrassmann(4, 2),
        pm.HermitianPositiveDefinite(3),
        pm.SpecialHermitianPositiveDefinite(3),
        pm.PSDFixedRankComplex(4, 2),
        pm.UnitaryGroup(3),
    ],
    ids=named,
)
def test_complex_points_are_refused(manifold):
    with pytest.raises(InputError, match=r"complex points.*imaginary part"):
        of(manifold)


def test_all_of_their_manifolds_are_known():
    known = {type(m).__name__ for m, _ in ALL} | {
        *("ComplexCircle", "ComplexEuclidean", "ComplexGrassmann", "HermitianPositiveDefinite"),
        *("SpecialHermitianPositiveDefinite", "PSDFixedRankComplex", "UnitaryGroup", "Product"),
        *("UpperHalf", "BoundedDomain", "Manifold", "EuclideanStiefel", "Stereographic"),
        *("StereographicExact", "PoincareBallExact", "SphereProjectionExact"),
    }
    theirs = {
        name for name in dir(geoopt.manifolds) if isinstance(getattr(geoopt.manifolds, name), type)
    }
    assert theirs | set(pm.__all__) <= known


def test_a_curvature_that_is_learned_is_refused():
    with pytest.raises(InputError, match="learned"):
        from_geoopt(geoopt.PoincareBall(learnable=True))
    with pytest.raises(InputError, match="learned"):
        from_geoopt(geoopt.Lorentz(learnable=True))


def test_several_points_as_one_y_are_refused_without_copies():
    """Each would have constraints of its own, where those of one point are asked for."""

    class Frames(DeclarativeNode):
        input_dims = (3,)
        manifold = Stiefel()

        def objective(self, x, y):
            return (y - x).square().sum()

        def initial_point(self, x):
            return x

    class Copied(Frames):
        manifold = Copies(Stiefel())

    x = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match=r"shape \(2, 4, 3\).*2 dimensions.*Copies"):
        DeclarativeLayer(Frames())(x)
    y = DeclarativeLayer(Copied())(x)
    torch.testing.assert_close(y, Stiefel().project(x), atol=1e-7, rtol=0)  # the solver's tolerance


def test_a_product_has_a_y_of_several_parts():
    assert repr(from_pymanopt(pm.Product([pm.Sphere(3), pm.Stiefel(3, 2)]))) == (
        "Product(Sphere(), Stiefel())"
    )


def test_a_class_of_numpy_is_refused_with_what_to_write():
    class Mine(pm.Sphere):
        pass

    with pytest.raises(InputError, match=r"numpy.*constraint.*project"):
        from_pymanopt(Mine(3))
    with pytest.raises(InputError, match="from_pymanopt takes"):
        from_pymanopt(geoopt.Sphere())
    with pytest.raises(InputError, match="from_geoopt takes"):
        from_geoopt(pm.Sphere(3))


@pytest.mark.parametrize(
    ("manifold", "shape"),
    [(geoopt.PoincareBall(), (3,)), (_PACKED, (9,)), (pm.Symmetric(3), (3, 3))],
)
def test_a_weight_on_it(manifold, shape):
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(0.1 * torch.randn(shape, dtype=torch.float64))
    found = of(manifold)
    ddnkit.parametrize(module, "weight", found)
    assert found.infeasibility(module.weight) <= ROUNDING
    module.weight.square().sum().backward()
    assert module.parametrizations.weight.original.grad.isfinite().all()


def test_classes():
    made = {type(of(m)) for m, _, _ in BECOME}
    assert {
        *(SPD, Birkhoff, Copies, Euclidean, FixedRank, Hyperbolic, Oblique, Positive),
        *(SpecialOrthogonal, Sphere, Stereographic, Stiefel),
    } < made
    assert type(from_pymanopt(pm.Grassmann(5, 2))) is Grassmann
    assert type(from_pymanopt(pm.Product([pm.Sphere(3)]))) is Product
