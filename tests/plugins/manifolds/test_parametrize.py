"""`ddnkit.parametrize`: weights on a manifold, or solutions of a node, in all that torch does with them."""

import copy
import warnings

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
from torch import nn
from torch.nn.utils import parametrize as torch_parametrize

from ddnkit import (
    DdnkitWarning,
    DeclarativeNode,
    InputError,
    Manifold,
    gaussian,
    nearest_point,
    parametrize,
)

EACH = {
    "stiefel": (Stiefel(), (5, 3)),
    "orthogonal": (Stiefel(), (3, 3)),
    "wide": (Stiefel(), (3, 5)),
    "batch": (Stiefel(), (2, 4, 3)),
    "grassmann": (Grassmann(), (5, 3)),
    "rotations": (SpecialOrthogonal(), (3, 3)),
    "motions": (SpecialEuclidean(), (3, 4)),
    "sphere": (Sphere(), (3, 4)),
    "oblique": (Oblique(), (4, 3)),
    "hyperbolic": (Hyperbolic(), (4,)),
    "spd": (SPD(), (3, 3)),
    "fixed_rank": (FixedRank(4, 2), (4, 3)),
    "simplex": (PositiveSimplex(), (3, 4)),
    "euclidean": (Euclidean(2), (3, 2)),
    "positive": (Positive(), (3,)),
    "birkhoff": (Birkhoff(), (3, 3)),
    "ball": (Stereographic(), (3,)),
    "sphere_chart": (Stereographic(0.5), (3,)),
    "copies": (Copies(Stiefel()), (2, 4, 2)),
    "wide_copies": (Copies(Grassmann()), (2, 2, 4)),
}
each = pytest.mark.parametrize("name", EACH)
#: Of products of matrices of order five, with condition of order ten.
ROUNDING = 1e3 * torch.finfo(torch.float64).eps


def holder(weight: torch.Tensor) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(weight)
    return module


def made(name: str, seed: int = 0) -> nn.Module:
    manifold, shape = EACH[name]
    drawn = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return parametrize(holder(drawn / 2), "weight", manifold)


def free(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The map from free tensor to weight, and a free tensor that is not on the manifold."""
    module = made(name)
    x = module.parametrizations.weight.original.detach()
    drawn = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    return module.parametrizations.weight[0], x + 0.3 * drawn


@each
def test_first_and_second_derivatives(name):
    function, x = free(name)
    x.requires_grad_()
    assert torch.autograd.gradcheck(function, (x,))
    assert torch.autograd.gradgradcheck(function, (x,), fast_mode=True)


@each
def test_transforms_of_torch_func(name):
    function, x = free(name)
    (gradient,) = torch.autograd.functional.jacobian(function, (x,))
    torch.testing.assert_close(torch.func.jacrev(function)(x), gradient, atol=ROUNDING, rtol=0)
    torch.testing.assert_close(torch.func.jacfwd(function)(x), gradient, atol=ROUNDING, rtol=0)
    several = torch.func.vmap(function)(torch.stack([x, 2 * x]))
    torch.testing.assert_close(several[1], function(2 * x), atol=ROUNDING, rtol=0)


@each
def test_a_weight_is_a_point_and_stays_where_it_is_put(name):
    manifold, shape = EACH[name]
    module = made(name)
    weight = module.weight.detach().clone()
    assert weight.shape == shape
    module.weight = weight  # by the right inverse
    torch.testing.assert_close(module.weight.detach(), weight, atol=ROUNDING, rtol=0)
    if name == "fixed_rank":
        assert torch.linalg.matrix_rank(weight) == 2
        return
    seen = weight.mT if manifold.tall and shape[-2] < shape[-1] else weight
    assert manifold.infeasibility(seen).max() <= ROUNDING


@each
def test_copies_and_state(name):
    module, other = made(name), made(name, seed=7)
    again = copy.deepcopy(module)
    assert torch.equal(again.weight, module.weight)
    assert again.parametrizations.weight.original is not module.parametrizations.weight.original
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.weight, module.weight)
    torch_parametrize.remove_parametrizations(other, "weight")
    assert torch.equal(other.weight, module.weight)
    assert isinstance(other.weight, nn.Parameter)
    assert list(other.state_dict()) == ["weight"]


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:]
)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (4, 4)], ids=str)
@pytest.mark.parametrize("manifold", [Stiefel(), Grassmann(), SpecialOrthogonal()], ids=repr)
def test_a_layer_in_training_stays_orthonormal(manifold, shape, dtype):
    if isinstance(manifold, SpecialOrthogonal) and shape != (4, 4):
        return
    torch.manual_seed(0)
    layer = parametrize(nn.Linear(shape[1], shape[0], bias=False, dtype=dtype), "weight", manifold)
    x, target = torch.randn(16, shape[1], dtype=dtype), torch.randn(16, shape[0], dtype=dtype)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = (layer(x) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert layer.weight.dtype == dtype
    weight = layer.weight.detach().double()
    weight = weight.mT if shape[0] < shape[1] else weight
    gram = weight.mT @ weight - torch.eye(weight.shape[1], dtype=torch.float64)
    # Each entry of a unit column is rounded once on its way out, after a factorisation of order six.
    assert gram.abs().max() <= 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("ratio", [1.0, 1e-2, 1e-4, 2e-5, 3e-6])
@pytest.mark.parametrize("shape", [(6, 4), (4, 4)], ids=str)
def test_a_gradient_in_float32_keeps_its_digits(shape, ratio):
    """Of the same matrix in float64, whatever the condition."""
    generator = torch.Generator().manual_seed(0)
    A, v = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    left, _, right = torch.linalg.svd(A, full_matrices=False)
    s = torch.tensor([1.0, 0.8, ratio, ratio], dtype=torch.float64)
    A = ((left * s) @ right).float()

    def gradient(A, v):
        A = A.clone().requires_grad_()
        return torch.autograd.grad(Stiefel().point_of(A), A, v)[0].double()

    found, expected = gradient(A, v.float()), gradient(A.double(), v)
    # The condition of A is none of the gradient's, whose factors are those of A in float64.
    assert (found - expected).norm() <= 100 * torch.finfo(torch.float32).eps * expected.norm()


def test_the_weight_of_a_convolution_is_one_matrix_for_each_pair_of_channels():
    layer = parametrize(nn.Conv2d(3, 8, 3), "weight", Stiefel())
    weight = layer.weight.double()
    assert weight.shape == (8, 3, 3, 3)
    gram = weight.mT @ weight - torch.eye(3, dtype=torch.float64)
    assert gram.abs().max() <= 8 * torch.finfo(torch.float32).eps
    layer(torch.randn(1, 3, 5, 5)).sum().backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()


def test_functional_call_and_an_ensemble():
    torch.manual_seed(0)
    layer = parametrize(nn.Linear(4, 6, dtype=torch.float64), "weight", Stiefel())
    parameters = {key: p.detach() for key, p in layer.named_parameters()}
    x = torch.randn(5, 4, dtype=torch.float64)

    def loss(parameters):
        return torch.func.functional_call(layer, parameters, (x,)).pow(3).sum()

    gradients = torch.func.grad(loss)(parameters)
    layer(x).pow(3).sum().backward()
    for key, p in layer.named_parameters():
        scale = 1 + p.grad.abs().max()
        assert (gradients[key] - p.grad).abs().max() <= ROUNDING * scale
    both = {key: torch.stack([p, p + 0.1]) for key, p in parameters.items()}
    losses = torch.func.vmap(loss)(both)
    second = loss({key: p[1] for key, p in both.items()})
    assert abs(losses[1] - second) <= ROUNDING * (1 + abs(second))


class Shrunk(DeclarativeNode):
    """y + 0.4 y³ = x, entry by entry."""

    input_dims = (1,)

    def objective(self, x, y):
        return (y - x).square().sum() / 2 + 0.1 * y.pow(4).sum()

    def initial_point(self, x):
        return x.clone()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_a_node_with_one_input(dtype):
    layer = parametrize(nn.Linear(4, 3, dtype=dtype), "weight", Shrunk())
    x, y = layer.parametrizations.weight.original, layer.weight
    assert y.dtype == dtype
    bound = 100 * torch.finfo(dtype).eps
    assert (y + 0.4 * y**3 - x).abs().max() <= bound
    y.sum().backward()
    assert (x.grad - 1 / (1 + 1.2 * y**2)).abs().max() <= bound


@pytest.mark.parametrize(
    ("manifold", "weight"),
    [
        (Stiefel(), torch.ones(6, 4)),
        (Stiefel(), torch.zeros(6, 4)),
        (Stiefel(), torch.ones(4, 6)),
        (Grassmann(), torch.zeros(6, 4)),
        (SpecialOrthogonal(), torch.zeros(3, 3)),
        (Sphere(), torch.zeros(4)),
        (Sphere(), torch.tensor([[1.0, 2.0], [0.0, 0.0]])),
        (Oblique(), torch.tensor([[1.0, 0.0], [1.0, 0.0]])),
    ],
    ids=str,
)
def test_a_weight_with_several_nearest_points_is_told(manifold, weight):
    """A module may begin at such a weight, next to one of them; in training it is told."""
    module = parametrize(holder(weight.clone()), "weight", manifold)
    assert module.weight.isfinite().all()
    module.weight.sum().backward()  # there the nearest is one
    with torch.no_grad():
        module.parametrizations.weight.original.copy_(weight)
    with pytest.warns(DdnkitWarning, match="not solved"):
        (module.weight * torch.randn_like(module.weight)).sum().backward()


@pytest.mark.parametrize("manifold", [Stiefel(), Grassmann(), SpecialOrthogonal()], ids=repr)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_no_number_stays_none_in_its_item(manifold, value):
    weight = torch.eye(3).repeat(2, 1, 1)
    module = parametrize(holder(weight), "weight", manifold)
    with torch.no_grad():
        module.parametrizations.weight.original[0, 1, 1] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DdnkitWarning)
        found = module.weight
    assert found[0].isnan().all()
    assert (found[1] - torch.eye(3)).abs().max() <= 8 * torch.finfo(torch.float32).eps


class Line(Manifold):
    """Pairs that stand for their sum: a quotient without a constraint or a `point_of` of its own."""

    name, event_dims = "line", 1

    def constraint(self, y):
        return y[..., :0]

    def project(self, y):
        return y.clone()

    def random(self, shape, *, generator=None, like):
        return gaussian(shape, generator, like)

    def vertical(self, y):
        return torch.ones_like(y).cumsum(-1).sub(1.5).sign().unsqueeze(-2)


def test_the_nearest_point_of_a_quotient_is_not_held_to_the_slice():
    x = torch.tensor([1.0, 3.0], dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda x: nearest_point(Line(), x))(x)
    torch.testing.assert_close(jacobian, torch.eye(2, dtype=torch.float64))


def test_what_cannot_be_is_refused_when_it_is_asked_for():
    linear = nn.Linear(4, 3)
    with pytest.raises(InputError, match=r"no weight 'wieght'; it has weight, bias"):
        parametrize(linear, "wieght", Stiefel())
    with pytest.raises(InputError, match=r"no weight 'bias'; it has weight$"):
        parametrize(nn.Linear(4, 3, bias=False), "bias", Sphere())
    with pytest.raises(InputError, match=r"2 dimensions; 'bias' of Linear has shape \(3,\)"):
        parametrize(linear, "bias", Stiefel())
    with pytest.raises(InputError, match=r"ddnkit.Manifold or a DeclarativeNode, not <class"):
        parametrize(linear, "weight", Stiefel)
    for manifold in (SPD(), SpecialOrthogonal(), Birkhoff()):
        with pytest.raises(InputError, match=r"square|\(3, 4\)"):
            parametrize(linear, "weight", manifold)
    with pytest.raises(InputError, match="2 parts"):
        parametrize(linear, "weight", Product(Sphere(), Sphere()))
    with pytest.raises(InputError, match=r"expected FixedRank\(rows=3, rank=…\)"):
        parametrize(linear, "weight", FixedRank())
    with pytest.raises(InputError, match="rank of 1 to 3"):
        parametrize(linear, "weight", FixedRank(3, 4))
    integers = nn.Module()
    integers.register_buffer("weight", torch.arange(6).reshape(3, 2))
    with pytest.raises(InputError, match=r"int64.*real"):
        parametrize(integers, "weight", Stiefel())
    assert not torch_parametrize.is_parametrized(linear)


def test_a_node_that_cannot_make_a_weight_is_refused_when_it_is_asked_for():
    class OfTwo(Shrunk):
        input_dims = (1, 1)

        def objective(self, x, z, y):
            return (y - x - z).square().sum()

        def initial_point(self, x, z):
            return x.clone()

    class OfTensors(Shrunk):
        input_dims = (3,)

    class Shorter(Shrunk):
        def objective(self, x, y):
            return (y - x[:2]).square().sum()

        def initial_point(self, x):
            return x[:2].clone()

    class Parts(Shrunk):
        def objective(self, x, y):
            return (y["a"] - x).square().sum()

        def initial_point(self, x):
            return {"a": x.clone()}

    linear = nn.Linear(4, 3)
    for node, text in (
        (OfTwo(), "2 inputs"),
        (OfTensors(), "at least 3 dimensions"),
        (Shorter(), r"makes shape \(3, 2\) of it"),
        (Parts(), "makes dict of it"),
    ):
        with pytest.raises(InputError, match=text):
            parametrize(linear, "weight", node)
    assert not torch_parametrize.is_parametrized(linear)


def test_an_empty_weight_is_left_as_it_is():
    assert parametrize(holder(torch.zeros(4, 0)), "weight", Stiefel()).weight.shape == (4, 0)
