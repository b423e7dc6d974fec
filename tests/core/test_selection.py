"""Solutions that are a set: the one of least norm is returned, and its gradient is that of the selected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bounds import rounding
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import ddnkit
from ddnkit import DeclarativeLayer, DeclarativeNode, InputError, UntrustedGradientError
from ddnkit.members import read

FORMS = ["dense", "embedded_field", "krylov"]
F64: dict[str, Any] = {"dtype": torch.float64}


class LeastSquares(DeclarativeNode):
    """½‖A y − b‖², whose solution of least norm is A⁺ b."""

    input_dims = (2, 1)
    selection: str | None = "least_norm"

    def objective(self, A: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (A @ y - b).square().sum()

    def initial_point(self, A: Tensor, b: Tensor) -> Tensor:
        return torch.ones(A.shape[1], dtype=b.dtype)

    def sample_inputs(self) -> tuple[Tensor, Tensor]:
        return torch.randn(2, 4, **F64), torch.randn(2, **F64)


class Product(DeclarativeNode):
    """(y₁y₂ − x)²: a hyperbola of solutions, nearest to 0 at √x (1, 1)."""

    input_dims = (0,)
    selection = "least_norm"

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return (y[0] * y[1] - x).square()

    def initial_point(self, x: Tensor) -> Tensor:
        return torch.tensor([3.0, 0.4], dtype=x.dtype)

    def sample_inputs(self) -> tuple[Tensor]:
        return (torch.rand((), **F64) + 1,)


class LinearProgram(DeclarativeNode):
    """min cᵀy over y ≥ 0 with aᵀy ≥ b."""

    input_dims = (1, 1, 0)
    selection = "least_norm"
    bounds = (0.0, None)

    def objective(self, c: Tensor, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return c @ y

    def inequality_constraints(self, c: Tensor, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return b - a @ y

    def initial_point(self, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return torch.ones_like(c)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **F64)


def systems(batch: int = 3, rows: int = 2, unknowns: int = 4) -> tuple[Tensor, Tensor]:
    A, b = draw(batch, rows, unknowns), draw(batch, rows, seed=1)
    return A.requires_grad_(), b.requires_grad_()


def pinv(A: Tensor, b: Tensor) -> Tensor:
    return (torch.linalg.pinv(A) @ b.unsqueeze(-1)).squeeze(-1)


def assert_near(found: Tensor, expected: Tensor, bound: float | None = None) -> None:
    size = float(expected.detach().abs().amax().clamp(min=1e-3))
    bound = rounding(expected.dtype, 1e5, size=size) if bound is None else bound * size
    assert float((found - expected).detach().abs().amax()) <= bound


# -- least squares ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [*FORMS, "auto"])
def test_least_squares_is_the_pseudo_inverse_in_every_form(form: str) -> None:
    A, b = systems()
    layer = DeclarativeLayer(LeastSquares(), backward=form, policy="raise")
    y, expected = layer(A, b), pinv(A, b)
    assert_near(y, expected)
    v = draw(*y.shape, seed=2)
    found = torch.autograd.grad(y, (A, b), v)
    for a, e in zip(found, torch.autograd.grad(expected, (A, b), v), strict=True):
        assert_near(a, e)
    assert layer.certificate.verdicts() == ["trusted"] * 3


def test_derivatives_of_every_order_and_transform() -> None:
    A, b = systems(2)
    layer = DeclarativeLayer(LeastSquares(), policy="raise")
    assert gradcheck(layer, (A, b), fast_mode=True)
    assert gradgradcheck(layer, (A, b), fast_mode=True)
    A, b = A.detach(), b.detach()
    tangents = draw(*A.shape, seed=3), draw(*b.shape, seed=4)
    for a, e in zip(
        torch.func.jvp(layer, (A, b), tangents), torch.func.jvp(pinv, (A, b), tangents), strict=True
    ):
        assert_near(a, e)
    rows = torch.func.vmap(torch.func.jacrev(layer, argnums=(0, 1)))(A, b)
    for a, e in zip(
        rows, torch.func.vmap(torch.func.jacrev(pinv, argnums=(0, 1)))(A, b), strict=True
    ):
        assert_near(a, e)
    columns = torch.func.jacfwd(layer, argnums=1)(A, b)
    assert_near(columns, torch.func.jacfwd(pinv, argnums=1)(A, b))


@pytest.mark.parametrize("solver", ["newton", "lbfgs", "trust_constr"])
def test_whatever_solution_the_solver_finds(solver: str) -> None:
    node = LeastSquares()
    node.solver = solver
    A, b = systems()
    layer = DeclarativeLayer(node, policy="raise")
    y = layer(A, b)
    assert_near(y, pinv(A, b), 1e-9)
    y.sum().backward()


def test_float32_and_a_solve_of_its_own() -> None:
    class Corner(LeastSquares):
        """One of the solutions: that of the first two unknowns."""

        def solve(self, A: Tensor, b: Tensor) -> Tensor:
            return torch.cat([torch.linalg.solve(A[:, :2], b), b.new_zeros(2)])

    for dtype in (torch.float32, torch.float64):
        A, b = (x.detach().to(dtype).requires_grad_() for x in systems())
        layer = DeclarativeLayer(Corner(), policy="raise")
        y, expected = layer(A, b), pinv(A, b)
        assert y.dtype == dtype
        assert_near(y, expected)
        found = torch.autograd.grad(y.sum(), (A, b))
        for a, e in zip(found, torch.autograd.grad(expected.sum(), (A, b)), strict=True):
            assert_near(a, e)


def test_without_the_selection_the_solution_is_not_unique() -> None:
    node = LeastSquares()
    node.selection = None
    A, b = systems()
    with pytest.raises(UntrustedGradientError, match="not unique"):
        DeclarativeLayer(node, policy="raise")(A, b).sum().backward()


def test_an_item_with_one_solution_among_others() -> None:
    flat = torch.tensor([[1.0, 2.0], [2.0, 4.0]], **F64)
    A, b = torch.stack([draw(2, 2), flat]), draw(2, 2, seed=1).requires_grad_()
    node = LeastSquares()
    layer = DeclarativeLayer(node, policy="raise")
    y = layer(A, b)
    assert_near(y, pinv(A, b))
    (found,) = torch.autograd.grad(y.sum(), b)
    assert_near(found, torch.linalg.pinv(A).sum(dim=1))
    # The one with one solution is as it would be without a selection.
    node.selection = None
    assert torch.equal(DeclarativeLayer(node)(A[0], b[0]), y[0])


def test_zero_is_a_solution() -> None:
    A, _ = systems()
    b = torch.zeros(3, 2, **F64).requires_grad_()
    layer = DeclarativeLayer(LeastSquares(), policy="raise")
    y = layer(A, b)
    assert torch.equal(y, torch.zeros_like(y))
    found = torch.autograd.grad(y.sum(), (A, b))
    assert_near(found[1], torch.linalg.pinv(A).sum(dim=1))
    assert_near(found[0], torch.zeros_like(A))


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(k, marks=pytest.mark.long) for k in range(1, 20))]
)
def test_drawn_systems_at_any_scale(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, unknowns = (int(torch.randint(1, most, (1,), generator=generator)) for most in (5, 6))
    scales = 10 ** (12 * torch.rand(2, generator=generator, **F64) - 6)
    A = (scales[0] * draw(2, rows, unknowns, seed=seed)).requires_grad_()
    b = (scales[1] * draw(2, rows, seed=seed + 100)).requires_grad_()
    layer = DeclarativeLayer(LeastSquares(), policy="raise")
    y, expected = layer(A, b), pinv(A, b)
    condition = float(torch.linalg.cond(A.detach()).amax()) ** 2
    pairs = [(y, expected)]
    pairs += zip(
        torch.autograd.grad(y.sum(), (A, b)),
        torch.autograd.grad(expected.sum(), (A, b)),
        strict=True,
    )
    for found, wanted in pairs:
        size = float(wanted.detach().abs().amax())
        bound = rounding(wanted.dtype, 1e5, size=size, condition=condition)
        assert float((found - wanted).detach().abs().amax()) <= bound


# -- where the selected solution jumps -------------------------------------------------------------


@pytest.mark.parametrize("b", [[1.0, 2.0], [1.0, 1.0]])
def test_a_rank_that_the_inputs_change(b: list[float]) -> None:
    A = torch.tensor([[1.0, 2.0], [2.0, 4.0]], **F64)
    right = torch.tensor(b, **F64)
    layer = DeclarativeLayer(LeastSquares(), policy="raise")
    assert_near(layer(A, right), pinv(A, right))
    # In b it is smooth, in A it is not: A⁺ jumps where the rank does.
    right.requires_grad_()
    layer(A, right).sum().backward()
    assert_near(right.grad, torch.linalg.pinv(A).sum(dim=0))
    with pytest.raises(UntrustedGradientError, match="least norm jumps"):
        layer(A.requires_grad_(), right).sum().backward()


def test_only_the_item_that_jumps_is_reported() -> None:
    A = torch.stack([draw(2, 2), torch.tensor([[1.0, 2.0], [2.0, 4.0]], **F64)]).requires_grad_()
    b = draw(2, 2, seed=1)
    layer = DeclarativeLayer(LeastSquares(), policy="mask")
    layer(A, b).sum().backward()
    assert layer.certificate.verdicts() == ["trusted", "invalid"]
    assert (layer.certificate.selection_error > 0).tolist() == [False, True]
    assert bool(A.grad[0].any()) and not bool(A.grad[1].any())


def test_a_valley_that_is_flat_to_a_higher_order() -> None:
    class Quartic(Product):
        """One solution, (x, x), and no curvature along the first axis."""

        def objective(self, x: Tensor, y: Tensor) -> Tensor:
            return (y[0] - x) ** 4 + (y[1] - x).square()

        def solve(self, x: Tensor) -> Tensor:
            return torch.stack([x, x])

    x = torch.tensor([0.0, 1.0], **F64, requires_grad=True)
    layer = DeclarativeLayer(Quartic(), policy="nan")
    y = layer(x)
    y.sum().backward()
    # At 0 the least norm is that of the solution by chance; beside it nothing selects it.
    assert layer.certificate.verdicts() == ["invalid", "invalid"]
    assert x.grad.isnan().all()


def test_a_selection_that_is_not_unique() -> None:
    class Circle(Product):
        def objective(self, x: Tensor, y: Tensor) -> Tensor:
            return (y.square().sum() - x).square()

    x = torch.tensor(2.0, **F64, requires_grad=True)
    y = DeclarativeLayer(Circle(), policy="mask")(x)
    assert_near(y.square().sum(), x)
    with pytest.raises(UntrustedGradientError):
        DeclarativeLayer(Circle(), policy="raise")(x).sum().backward()


# -- curved sets, constraints ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_curved_set(dtype: torch.dtype) -> None:
    x = torch.tensor([2.0, 3.0, 0.5], dtype=dtype, requires_grad=True)
    layer = DeclarativeLayer(Product(), policy="raise")
    y = layer(x)
    root = x.detach().sqrt()
    assert_near(y, torch.stack([root, root], dim=-1))
    y.sum().backward()
    assert_near(x.grad, 1 / root)


def test_a_curved_set_to_second_order() -> None:
    class Near(Product):
        def initial_point(self, x: Tensor) -> Tensor:
            return torch.tensor([1.5, 1.2], dtype=x.dtype)

    x = torch.tensor([2.0], **F64, requires_grad=True)
    layer = DeclarativeLayer(Near(), policy="raise")
    assert gradcheck(layer, (x,), fast_mode=True)
    assert gradgradcheck(layer, (x,), fast_mode=True)


class OnPlane(LeastSquares):
    def equality_constraints(self, A: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return y.sum() - b[0]


class OnSphere(LeastSquares):
    def equality_constraints(self, A: Tensor, b: Tensor, y: Tensor) -> Tensor:
        return y.square().sum() + y[0] - 3


def test_with_linear_equations() -> None:
    A, b = systems(2, 1, 4)
    layer = DeclarativeLayer(OnPlane(), policy="raise")
    # The plane is met exactly; on it A y − b is met as well, being one equation more.
    rows = torch.cat([A, torch.ones_like(A)], dim=1)
    expected = pinv(rows, torch.cat([b, b], dim=1))
    assert_near(layer(A, b), expected)


@pytest.mark.parametrize("kind", [OnPlane, pytest.param(OnSphere, marks=pytest.mark.long)])
def test_with_equations_to_second_order(kind: type[LeastSquares]) -> None:
    A, b = systems(2, 1, 4)
    layer = DeclarativeLayer(kind(), policy="raise")
    assert gradcheck(layer, (A, b), fast_mode=True)
    assert gradgradcheck(layer, (A, b), fast_mode=True)


def test_a_face_of_a_linear_program() -> None:
    c, a = torch.tensor([1.0, 2.0, 3.0], **F64), torch.tensor([1.0, 2.0, 1.0], **F64)
    b = torch.tensor([2.0, 5.0], **F64, requires_grad=True)
    layer = DeclarativeLayer(LinearProgram(), policy="raise")
    y, multipliers = layer(c, a, b, return_multipliers=True)
    # The face y₁ + 2 y₂ = b, y₃ = 0, y ≥ 0: nearest to 0 at b (1, 2) / 5.
    expected = b.detach().unsqueeze(1) * torch.tensor([0.2, 0.4, 0.0], **F64)
    assert_near(y, expected)
    assert gradcheck(lambda b: layer(c, a, b), (b,), fast_mode=True)
    # A price of 1 for b, and of 2 for y₃ = 0.
    assert_near(multipliers.inequality, torch.ones(2, 1, **F64))
    assert_near(multipliers.lower, torch.tensor([[0.0, 0.0, 2.0]], **F64).expand(2, 3))
    # c turns the face, and y jumps to a vertex.
    with pytest.raises(UntrustedGradientError, match="least norm jumps"):
        layer(c.requires_grad_(), a, b).sum().backward()


def test_a_face_that_reaches_to_infinity_and_a_program_without_a_solution() -> None:
    class Rays(LinearProgram):
        """min cᵀy over y ≥ 0 with A y = b."""

        input_dims = (1, 2, 1)
        inequality_constraints = DeclarativeNode.inequality_constraints

        def equality_constraints(self, c: Tensor, A: Tensor, b: Tensor, y: Tensor) -> Tensor:
            return A @ y - b

    # c = Aᵀ(1, 2) but for an entry that keeps y₄ at 0; (1, 1, 1, 0) is a ray of solutions.
    A = torch.tensor([[1.0, 1.0, -2.0, 0.3], [0.7, -1.3, 0.6, 1.0]], **F64)
    c = A.mT @ torch.tensor([1.0, 2.0], **F64) + torch.tensor([0.0, 0.0, 0.0, 0.5], **F64)
    b = (A @ torch.tensor([0.9, 0.2, 0.1, 0.0], **F64)).requires_grad_()
    layer = DeclarativeLayer(Rays(), policy="raise")
    y = layer(c, A, b)
    two = pinv(A[None, :, :2], b.detach()[None])[0]
    least = torch.cat([two, two.new_zeros(2)])
    # Two entries are enough for b, and the least of all is between that point and (1, 1, 1, 0).
    ray = torch.tensor([1.0, 1.0, 1.0, 0.0], **F64)
    expected = least - ray * ((least @ ray) / 3).clamp(max=float(least[:3].min()))
    assert_near(y, expected, 1e-9)
    y.sum().backward()
    with pytest.raises(UntrustedGradientError, match="UNBOUNDED"):
        layer(-torch.ones(4, **F64), A, b)


def test_a_quadratic_program_of_data() -> None:
    node = ddnkit.QPNode("A", "b", "lower")
    node.selection = "least_norm"
    A, b = draw(1, 2, 4), draw(1, 4, seed=1)
    right = (A @ b.abs().unsqueeze(-1)).squeeze(-1).requires_grad_()
    Q, q, lower = torch.zeros(4, 4, **F64), torch.zeros(4, **F64), torch.full((4,), -10.0, **F64)
    layer = DeclarativeLayer(node, policy="raise")
    y = layer(Q, q, A, right, lower)
    assert_near(y, pinv(A, right), 1e-9)
    (found,) = torch.autograd.grad(y.sum(), right)
    assert_near(found, torch.linalg.pinv(A).sum(dim=1), 1e-9)


def test_a_program_with_one_solution() -> None:
    c, a = torch.tensor([1.0, 3.0, 3.0], **F64), torch.tensor([1.0, 2.0, 1.0], **F64)
    xs = [x.requires_grad_() for x in (c, a, torch.tensor(2.0, **F64))]
    layer = DeclarativeLayer(LinearProgram(), policy="raise")
    assert_near(layer(*xs), torch.tensor([2.0, 0.0, 0.0], **F64))
    assert gradcheck(layer, xs, fast_mode=True)


def test_bounds_that_hold_on_the_way_to_the_least_norm() -> None:
    class Positive(LeastSquares):
        bounds = (0.0, None)

    A = torch.tensor([[[2.0, 1.0, -1.0]], [[2.0, 1.0, 1.0]]], **F64).requires_grad_()
    b = torch.tensor([[1.0], [1.0]], **F64).requires_grad_()
    layer = DeclarativeLayer(Positive(), policy="raise")
    y = layer(A, b)
    # The third entry of A⁺b is negative in the first item, and 0 in its place the nearest.
    expected = torch.tensor([[0.4, 0.2, 0.0], [1 / 3, 1 / 6, 1 / 6]], **F64)
    assert_near(y, expected)
    assert 0.1 < layer.certificate.active_margin[0] < 2  # of a multiplier 0.2 beside ‖y‖
    assert gradcheck(layer, (A, b), fast_mode=True)


def test_a_bound_that_is_just_met_is_a_kink() -> None:
    class Positive(LeastSquares):
        bounds = (0.0, None)

    A = torch.tensor([[2.0, 1.0, 0.0]], **F64)
    b = torch.ones(1, **F64, requires_grad=True)
    A.requires_grad_()
    with pytest.raises(UntrustedGradientError, match="weakly active"):
        DeclarativeLayer(Positive(), policy="raise")(A, b).sum().backward()


def test_at_kinks() -> None:
    class Sparse(LeastSquares):
        """½(a·y − b)² + |y₃|: the third entry is 0, the others a line of solutions."""

        def objective(self, A: Tensor, b: Tensor, y: Tensor) -> Tensor:
            return 0.5 * (A @ y - b).square().sum() + y[2].abs()

        def solve(self, A: Tensor, b: Tensor) -> Tensor:
            return torch.cat([b / A[0, 0], b.new_zeros(2)])

    A, b = torch.tensor([[[2.0, 1.0, 0.5]]], **F64), torch.ones(1, 1, **F64)
    xs = A.requires_grad_(), b.requires_grad_()
    layer = DeclarativeLayer(Sparse(), policy="raise")
    assert_near(layer(*xs), torch.tensor([[0.4, 0.2, 0.0]], **F64))
    found = torch.autograd.grad(layer(*xs).sum(), xs)
    expected = torch.autograd.grad(pinv(A[..., :2], b).sum(), xs)
    for a, e in zip(found, expected, strict=True):
        assert_near(a, e)


# -- the layer -------------------------------------------------------------------------------------


def test_parts_parameters_and_certify_full() -> None:
    class Parts(DeclarativeNode):
        input_dims = (0,)
        selection = "least_norm"

        def __init__(self) -> None:
            self.weight = torch.nn.Parameter(torch.tensor(2.0, **F64))

        def objective(self, x: Tensor, y: dict[str, Tensor]) -> Tensor:
            return (y["u"] + self.weight * y["v"] - x).square()

        def initial_point(self, x: Tensor) -> dict[str, Tensor]:
            return {"u": torch.ones_like(x), "v": torch.ones_like(x)}

    node, x = Parts(), torch.tensor([1.0, 3.0], **F64, requires_grad=True)
    layer = DeclarativeLayer(node, certify="full", policy="raise")
    y = layer(x)
    assert_near(y["u"], x / 5)
    assert_near(y["v"], 2 * x / 5)
    y["v"].sum().backward()
    assert_near(x.grad, torch.full_like(x, 0.4))
    w = 2.0  # d/dw of w x / (1 + w²)
    assert_near(node.weight.grad, x.detach().sum() * (1 - w**2) / (1 + w**2) ** 2)
    assert (layer.certificate.curvature > 0).all()


def test_an_item_that_is_not_finite_spoils_no_other() -> None:
    A, b = systems()
    b = b.detach().clone()
    b[1] = torch.nan
    layer = DeclarativeLayer(LeastSquares(), policy="nan")
    y = layer(A, b.requires_grad_())
    assert y[1].isnan().all()
    assert_near(y[::2], pinv(A[::2], b[::2]))
    (found,) = torch.autograd.grad(y[::2].sum(), b)
    assert_near(found[::2], torch.linalg.pinv(A[::2]).sum(dim=1))
    assert layer.certificate.verdicts() == ["trusted", "invalid", "trusted"]


def test_with_several_starts_a_valley_is_one_solution() -> None:
    class Searching(Product):
        starts = 5

    x = torch.tensor([2.0, 3.0], **F64, requires_grad=True)
    layer = DeclarativeLayer(Searching(), policy="warn")
    y = layer(x)
    assert_near(y.abs(), x.sqrt().unsqueeze(1).expand(2, 2))

    class Lines(LeastSquares):
        starts = 4

    A, b = systems()
    layer = DeclarativeLayer(Lines(), policy="raise")
    layer(A, b).sum().backward()
    assert layer.certificate.branch_gap.isinf().all()


def test_a_warm_start_and_calls_that_are_not_short() -> None:
    A, b = systems()
    layer = DeclarativeLayer(LeastSquares(), policy="raise")
    y = layer(A, b)
    assert_near(layer(A, b, start=y.detach() + 1), y)
    for _ in range(10):
        layer(A, b)
    assert layer.short.taken == 0
    assert layer.short.reasons() == ["the node selects one of its solutions"]
    assert layer(A[:0], b[:0]).shape == (0, 4)


# -- what is refused, and the check ----------------------------------------------------------------


def test_no_selection() -> None:
    node = LeastSquares()
    node.selection = "least_nrom"
    with pytest.raises(InputError, match="Did you mean 'least_norm'"):
        read(node)


def test_a_misspelt_selection() -> None:
    class Slip(DeclarativeNode):
        input_dims = (2, 1)
        selecting = "least_norm"
        objective = LeastSquares.objective
        initial_point = LeastSquares.initial_point

    with pytest.raises(InputError, match="did you mean `selection`"):
        read(Slip())


def test_nodes_without_a_selection() -> None:
    manifolds = pytest.importorskip("ddnkit_manifolds")

    class OnSphere(LeastSquares):
        manifold = manifolds.Sphere()

    class Map(ddnkit.FixedPointNode):
        selection = "least_norm"

        def fixed_point(self, x: Tensor, y: Tensor) -> Tensor:
            return 0.5 * (x + y)

    for node, message in ((OnSphere(), "not on a manifold"), (Map(), "says which point is meant")):
        with pytest.raises(InputError, match=message):
            read(node)

    class Own(LeastSquares):
        def solve(self, A: Tensor, b: Tensor) -> Tensor:
            return torch.linalg.pinv(A) @ b

    with pytest.raises(InputError, match="select no solution"):
        DeclarativeLayer(Own(), backward="unrolled")(*systems())


@pytest.mark.parametrize("kind", [LeastSquares, pytest.param(Product, marks=pytest.mark.long)])
def test_check_finds_nothing_wrong(kind: type[DeclarativeNode]) -> None:
    report = ddnkit.check(kind(), examples=1)
    assert report.ok, str(report)
