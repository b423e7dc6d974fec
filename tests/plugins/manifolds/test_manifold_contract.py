"""What every manifold must fulfil: projection, retraction, multipliers and derivatives agree."""

import pytest
import torch
from bounds import condition, factorised, infeasibility
from ddnkit_manifolds import (
    SPD,
    Birkhoff,
    Euclidean,
    FixedRank,
    Grassmann,
    Hyperbolic,
    Oblique,
    Positive,
    PositiveSimplex,
    Product,
    SpecialEuclidean,
    SpecialOrthogonal,
    Sphere,
    Stereographic,
    Stiefel,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddnkit import InputError, check_manifold, registry

MANIFOLDS = {
    "stiefel": (Stiefel(), [(5, 3), (4, 4), (6, 1)]),
    "sphere": (Sphere(), [(5,), (2,), (7,)]),
}
#: All that are registered, at shapes that `ddnkit check` is made at.
EVERY = {
    "sphere": [(Sphere(), (5,)), (Sphere(), (2,)), (Sphere(), (1,))],
    "stiefel": [(Stiefel(), (5, 3)), (Stiefel(), (3, 3)), (Stiefel(), (6, 1))],
    "grassmann": [(Grassmann(), (6, 2)), (Grassmann(), (5, 1))],
    "oblique": [(Oblique(), (4, 3)), (Oblique(), (2, 5))],
    "special_orthogonal": [(SpecialOrthogonal(), (3, 3)), (SpecialOrthogonal(), (2, 2))],
    "special_euclidean": [(SpecialEuclidean(), (3, 4)), (SpecialEuclidean(), (2, 3))],
    "spd": [(SPD(), (3, 3)), (SPD("log_euclidean"), (3, 3)), (SPD(), (1, 1))],
    "fixed_rank": [(FixedRank(4), (9, 2)), (FixedRank(3), (6, 3)), (FixedRank(), (4, 1))],
    "positive_simplex": [(PositiveSimplex(), (5,)), (PositiveSimplex(), (2,))],
    "hyperbolic": [(Hyperbolic(), (4,)), (Hyperbolic(), (2,))],
    "birkhoff": [(Birkhoff(), (3, 3)), (Birkhoff(), (2, 2))],
    "positive": [(Positive(), (4,)), (Positive(), (1,))],
    "stereographic": [
        (Stereographic(), (3,)),
        (Stereographic(2.0), (2,)),
        (Stereographic(0.0), (3,)),
    ],
    "euclidean": [(Euclidean(), (4,)), (Euclidean(2), (4, 2)), (Euclidean(0), ())],
    "product": [
        (Product(SpecialOrthogonal(), Euclidean(), Grassmann()), [(3, 3), (3,), (5, 2)]),
        (Product(Sphere(), PositiveSimplex()), None),
    ],
}
each_manifold = pytest.mark.parametrize("name", MANIFOLDS)
drawn = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
like = torch.zeros((), dtype=torch.float64)
#: Of matrices of order seven at most, with entries of order one; vectors of norm 20 at most besides.
ROUNDING = factorised(torch.float64, 7)
OF_VECTORS = 20 * ROUNDING


@st.composite
def instances(draw):
    """Index of a shape, leading batch dimensions and a generator."""
    batch = draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    seed = draw(st.integers(0, 2**31))
    return draw(st.integers(0, 2)), batch, torch.Generator().manual_seed(seed)


def instance(name, drawn_instance):
    manifold, shapes = MANIFOLDS[name]
    index, batch, generator = drawn_instance
    shape = batch + shapes[index]
    y = manifold.random(shape, generator=generator, like=like)
    vectors = torch.randn(2, *shape, generator=generator, dtype=like.dtype)
    return manifold, y, vectors[0], vectors[1], len(shapes[index])


def inner(a, b, event_dims):
    return (a * b).flatten(-event_dims).sum(dim=-1)


@each_manifold
@drawn
@given(drawn_instance=instances())
def test_projection_lands_on_the_manifold_and_stays(name, drawn_instance):
    manifold, y, vector, _, event_dims = instance(name, drawn_instance)
    projected = manifold.project(vector)
    assert projected.shape == vector.shape
    assert event_dims == manifold.event_dims
    assert manifold.infeasibility(projected).max() < ROUNDING
    torch.testing.assert_close(manifold.project(projected), projected, atol=ROUNDING, rtol=0)
    # It is the nearest point: no other is nearer.
    distance = inner(vector - projected, vector - projected, event_dims)
    assert (distance <= inner(vector - y, vector - y, event_dims) + OF_VECTORS).all()


@each_manifold
@drawn
@given(drawn_instance=instances())
def test_tangent_is_an_orthogonal_projection(name, drawn_instance):
    manifold, y, vector, other, event_dims = instance(name, drawn_instance)
    tangent = manifold.tangent(y, vector)
    torch.testing.assert_close(manifold.tangent(y, tangent), tangent, atol=OF_VECTORS, rtol=0)
    normal = other - manifold.tangent(y, other)
    assert inner(tangent, normal, event_dims).abs().max() < OF_VECTORS
    rows = manifold.constraint_jacobian(y)
    assert (rows @ tangent.flatten(-event_dims).unsqueeze(-1)).abs().max() < OF_VECTORS


@each_manifold
@drawn
@given(drawn_instance=instances())
def test_retraction_agrees_to_first_order(name, drawn_instance):
    manifold, y, vector, _, event_dims = instance(name, drawn_instance)
    tangent = manifold.tangent(y, vector)
    errors = []
    for step in (1e-3, 1e-4):
        point = manifold.retract(y, step * tangent)
        assert manifold.infeasibility(point).max() < ROUNDING
        difference = point - (y + step * tangent)
        errors.append(inner(difference, difference, event_dims).sqrt().max())
    assert errors[1] <= 0.02 * errors[0] + ROUNDING  # by the square of the step, a hundredth


@each_manifold
@drawn
@given(drawn_instance=instances())
def test_jacobian_is_that_of_the_constraint(name, drawn_instance):
    manifold, y, vector, _, event_dims = instance(name, drawn_instance)
    for point in (y, y + vector):  # the formula holds off the manifold too
        ones = point.reshape(-1, *point.shape[-event_dims:])
        expected = [torch.func.jacrev(manifold.constraint)(one).flatten(1) for one in ones]
        jacobian = manifold.constraint_jacobian(point)
        assert jacobian.shape[:-2] == point.shape[:-event_dims]
        assert torch.allclose(
            jacobian, torch.stack(expected).reshape(jacobian.shape), rtol=0, atol=ROUNDING
        )
    assert manifold.constraint(y).abs().max() < ROUNDING


@each_manifold
@drawn
@given(drawn_instance=instances())
def test_normal_spans_the_rows_of_the_jacobian(name, drawn_instance):
    manifold, y, vector, _, event_dims = instance(name, drawn_instance)
    normal = manifold.normal(y, manifold.multipliers(y, vector)).flatten(-event_dims)
    rows = manifold.constraint_jacobian(y)
    # The orthogonal projection on the row space, by least squares.
    coefficients = torch.linalg.pinv(rows.mT) @ vector.flatten(-event_dims).unsqueeze(-1)
    expected = (rows.mT @ coefficients).squeeze(-1)
    torch.testing.assert_close(normal, expected, atol=OF_VECTORS, rtol=0)


@each_manifold
@drawn
@given(drawn_instance=instances())
def test_curvature_is_the_derivative_of_the_normal_at_fixed_multipliers(name, drawn_instance):
    manifold, y, vector, direction, _ = instance(name, drawn_instance)
    multipliers = manifold.multipliers(y, vector)
    step = 1e-4
    difference = manifold.normal(y + step * direction, multipliers) - manifold.normal(
        y - step * direction, multipliers
    )
    curvature = manifold.constraint_curvature(y, multipliers, direction)
    # The normal is linear in y: rounding over the step is all.
    torch.testing.assert_close(difference / (2 * step), curvature, atol=OF_VECTORS / step, rtol=0)


@each_manifold
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_is_kept(name, dtype):
    manifold, shapes = MANIFOLDS[name]
    y = manifold.random((2, *shapes[0]), like=torch.zeros((), dtype=dtype))
    point = manifold.retract(y, manifold.tangent(y, torch.ones_like(y)))
    results = [y, point, manifold.project(2 * y), manifold.constraint_jacobian(y)]
    assert {result.dtype for result in results} == {dtype}
    # Twice, for what the factorisation of a retraction adds.
    assert manifold.infeasibility(point).max() <= 2 * infeasibility(dtype, *(*shapes[0], 1)[:2])


@each_manifold
def test_random_is_reproducible_and_found_by_name(name):
    manifold, shapes = MANIFOLDS[name]
    first, second = (
        manifold.random(shapes[0], generator=torch.Generator().manual_seed(3), like=like)
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert registry.get("manifolds", name) is type(manifold)
    assert repr(manifold) == f"{type(manifold).__name__}()"


def test_stiefel_jacobian_is_in_the_order_of_the_row_major_lower_triangle():
    U = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 1.0]])
    assert Stiefel().constraint(U).tolist() == [0.0, 0.0, 4.0]
    rows = Stiefel().constraint_jacobian(U).reshape(3, 3, 2)
    assert rows[1].tolist() == [[0.0, 1.0], [2.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize("shape", [(2, 3), (3,)])
def test_stiefel_says_which_shape_is_wrong(shape):
    with pytest.raises(InputError, match=r"shape \(" + str(shape[0])):
        Stiefel().random(shape, like=like)
    with pytest.raises(InputError):
        Stiefel().project(torch.ones(shape))


def test_haar_has_no_preferred_direction():
    U = Stiefel().random((4000, 3, 3), generator=torch.Generator().manual_seed(0), like=like)
    # Entries have variance 1/3, their squares 1/5 − 1/9: six standard deviations of 4,000 of them.
    assert U.mean(dim=0).abs().max() < 6 * (1 / 3 / 4000) ** 0.5
    assert (U.square().mean(dim=0) - 1 / 3).abs().max() < 6 * ((1 / 5 - 1 / 9) / 4000) ** 0.5


@pytest.mark.parametrize("size", [1e-300, 1e300])
def test_sphere_projects_vectors_of_any_size(size):
    y = Sphere().project(torch.tensor([3.0, 4.0], dtype=torch.float64) * size)
    assert torch.allclose(y, torch.tensor([0.6, 0.8], dtype=torch.float64))


def test_sphere_projects_the_origin_somewhere():
    assert Sphere().project(torch.zeros(2, 3)).tolist() == [[1.0, 0.0, 0.0]] * 2


def test_no_point_of_the_sphere_is_nearest_to_what_is_no_number():
    y = Sphere().project(torch.tensor([[torch.nan, 1.0], [3.0, 4.0]]))
    assert y[0].isnan().all()
    assert torch.allclose(y[1], torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("name", EVERY)
def test_each_manifold_is_what_it_must_be(name):
    for manifold, shape in EVERY[name]:
        report = check_manifold(manifold, shape)
        assert report.ok and not report.wrong, str(report)
        assert report.points == 18
        assert {"constraint", "tangent", "constraint_curvature"} <= {
            row.method for row in report.rows
        }


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("name", EVERY)
def test_each_manifold_is_what_it_must_be_at_more_points(name, seed):
    for manifold, shape in EVERY[name]:
        report = check_manifold(manifold, shape, seed=seed, examples=1)
        assert report.ok, str(report)


def test_each_registered_manifold_is_among_these():
    own = {name for name in registry.names("manifolds") if ":" not in name}
    assert own <= set(EVERY)
    for name in own:
        assert type(EVERY[name][0][0]) is registry.get("manifolds", name)


def test_balanced_factors_of_a_badly_conditioned_product_are_balanced_to_rounding():
    manifold = FixedRank(3)
    factors = torch.randn(200, 6, 3, generator=torch.Generator().manual_seed(0), dtype=like.dtype)
    y = manifold.project(factors)
    assert manifold.infeasibility(y).max() < factorised(like.dtype, 3)
    exact = manifold.matrix(factors)
    apart = torch.linalg.matrix_norm(manifold.matrix(y) - exact) / torch.linalg.matrix_norm(exact)
    # Of T and its inverse, whose condition is at most the root of that of the product.
    assert (apart < factorised(like.dtype, 3, condition=condition(exact))).all()


@pytest.mark.parametrize("angle", [0.01, 0.0464, 0.2, 2.0])
def test_a_single_turn_goes_as_far_as_it_says(angle):
    # `torch.linalg.matrix_exp` of a single matrix is off by 2e-10 at the second.
    y, turn = torch.eye(2, dtype=like.dtype), torch.tensor([[0.0, -angle], [angle, 0.0]]).to(like)
    U = SpecialOrthogonal().exponential(y, turn)
    angle = turn[1, 0]
    right = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
    torch.testing.assert_close(U, right, rtol=0, atol=factorised(like.dtype, 2))
    S = SPD().exponential(torch.eye(1, dtype=like.dtype), angle.reshape(1, 1))
    torch.testing.assert_close(S, angle.exp().reshape(1, 1), rtol=factorised(like.dtype, 1), atol=0)


@pytest.mark.parametrize("shape", [(4, 3), (2, 1)])
def test_factors_with_fewer_rows_than_their_rank_are_refused(shape):
    with pytest.raises(InputError, match="r ≤ 2"):
        FixedRank(2).random(shape, like=like)
