"""Several starting points: the best minimum of each item is kept, and the certificate says which."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import ddnkit
from ddnkit import DeclarativeLayer, DeclarativeNode, InputError, UntrustedGradientError
from ddnkit.members import read

SOLVERS = ["newton", "lbfgs", "interior_point", "trust_constr", "slsqp"]


class Wells(DeclarativeNode):
    """Two wells at about ±1, of which the tilt −x·y makes the one on the side of x the lower."""

    input_dims = (1,)
    starts: Any = 6

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return ((y.square() - 1).square() - 0.3 * x * y).sum()

    def initial_point(self, x: Tensor) -> Tensor:
        return torch.full_like(x, 0.9)

    def sample_inputs(self) -> tuple[Tensor]:
        return (torch.rand(1, dtype=torch.float64) + 0.5,)


def lowest(x: Tensor) -> Tensor:
    """The lower of the wells, by Newton's method on 4y³ − 4y = 0.3 x from the right side."""
    y = x.sign()
    for _ in range(30):
        y = y - (4 * y**3 - 4 * y - 0.3 * x) / (12 * y**2 - 4)
    return y


def sloped(*shape: int) -> Tensor:
    """Tilts of both signs, away from 0."""
    x = torch.linspace(-1, 1, shape[0], dtype=torch.float64).reshape(-1, *[1] * (len(shape) - 1))
    return (x.sign() * (0.4 + x.abs())).expand(shape).clone().requires_grad_()


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    size = expected.abs().amax().clamp(min=1e-6)
    assert float((found - expected).detach().abs().amax()) <= tolerance * float(size)


@pytest.mark.parametrize("solver", SOLVERS)
def test_each_item_keeps_its_lowest_minimum(solver: str) -> None:
    node = Wells()
    node.solver = solver
    x = sloped(4, 1)
    layer = DeclarativeLayer(node, policy="raise")
    y = layer(x)
    assert_near(y, lowest(x.detach()))
    (found,) = torch.autograd.grad(y.sum(), x)
    assert_near(found, 0.3 / (12 * y.detach() ** 2 - 4), 1e-4)
    branch, gap = layer.certificate.branch, layer.certificate.branch_gap
    assert branch[x[:, 0] > 0].tolist() == [0, 0]  # its own start is on that side
    assert (branch[x[:, 0] < 0] > 0).all()
    assert (gap > 1e-3).all() and gap.isfinite().all()


def test_one_start_keeps_to_its_side() -> None:
    node = Wells()
    node.starts = 1
    layer = DeclarativeLayer(node)
    assert (layer(sloped(4, 1)) > 0).all()
    assert layer.certificate.branch is None and layer.certificate.branch_gap is None


def test_derivatives_of_every_order() -> None:
    layer, x = DeclarativeLayer(Wells()), sloped(2, 1)
    assert gradcheck(layer, (x,))
    assert gradgradcheck(layer, (x,))
    one = torch.ones_like(x)
    y, dy = torch.func.jvp(layer, (x.detach(),), (one,))
    assert_near(dy, 0.3 / (12 * y**2 - 4))
    rows = torch.func.vmap(torch.func.grad(lambda x: layer(x).sum()))(x.detach())
    assert_near(rows, 0.3 / (12 * y**2 - 4))


def test_equal_minima_are_reported_for_their_item_alone() -> None:
    x = sloped(3, 1).detach()
    x[1] = 0
    layer = DeclarativeLayer(Wells(), policy="warn")
    y = layer(x.requires_grad_())
    with pytest.warns(ddnkit.DdnkitWarning, match="1 of 3 two minima are equally low"):
        y.sum().backward()
    assert (layer.certificate.branch_gap == 0).tolist() == [False, True, False]
    assert layer.certificate.verdicts() == ["trusted", "invalid", "trusted"]
    assert int(layer.certificate.branch[1]) == 0  # of two that are equal the first
    with pytest.raises(UntrustedGradientError, match="equally low"):
        DeclarativeLayer(Wells(), policy="raise")(x).sum().backward()


def test_nearly_equal_minima_are_not_reported_beyond_the_tolerance() -> None:
    x = torch.full((1, 1), 1e-3, dtype=torch.float64, requires_grad=True)
    layer = DeclarativeLayer(Wells(), policy="raise")
    layer(x).sum().backward()
    # f₂ − f₁ is 0.6 x, and a relative change of x by ε changes it by ε of that.
    gap = float(layer.certificate.branch_gap)
    assert 0.2 < gap < 2


def test_gap_is_infinite_where_all_starts_agree() -> None:
    class Bowl(Wells):
        def objective(self, x: Tensor, y: Tensor) -> Tensor:
            return (y - x).square().sum()

    layer = DeclarativeLayer(Bowl(), policy="raise")
    x = sloped(3, 2)
    layer(x).sum().backward()
    assert layer.certificate.branch_gap.isinf().all()
    assert layer.certificate.branch.tolist() == [0, 0, 0]


def test_the_same_in_every_call_and_alone() -> None:
    x = sloped(5, 3).detach() + 0.1 * torch.arange(3)
    layer = DeclarativeLayer(Wells())
    whole = layer(x)
    assert torch.equal(whole, layer(x))
    branches = layer.certificate.branch.tolist()
    for i in range(len(x)):
        assert_near(layer(x[i]), whole[i], 1e-9)
        assert int(layer.certificate.branch) == branches[i]


def test_start_of_the_call_is_one_more() -> None:
    node = Wells()
    node.starts = lambda x: torch.full((2, 1), 0.9, dtype=x.dtype)  # both on the wrong side
    x = torch.tensor([[-1.0]], dtype=torch.float64)
    layer = DeclarativeLayer(node)
    assert float(layer(x)) > 0
    assert float(layer(x, start=torch.tensor([[-0.8]], dtype=torch.float64))) < 0
    assert int(layer.certificate.branch) == 2


def test_points_given_by_the_node() -> None:
    class Given(Wells):
        def starts(self, x: Tensor) -> Tensor:
            return torch.stack([x.abs(), -x.abs()])

        def initial_point(self, x: Tensor) -> Tensor:
            raise AssertionError("nobody asks for it")

    x = sloped(4, 1)
    layer = DeclarativeLayer(Given(), policy="raise")
    assert_near(layer(x), lowest(x.detach()))
    assert layer.certificate.branch.tolist() == [1, 1, 0, 0]


def test_constraints_bounds_and_a_failing_start() -> None:
    class Boxed(Wells):
        """On ½ ≤ |y| ≤ 1.5, which parts the wells."""

        bounds = (-1.5, 1.5)

        def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
            return 0.25 - y.square()

    x = sloped(4, 1)
    layer = DeclarativeLayer(Boxed(), policy="raise")
    y = layer(x)
    assert_near(y, lowest(x.detach()))
    y.sum().backward()

    class Logarithm(DeclarativeNode):
        """(log y − x)², of y > 0 alone: a start at y < 0 has no objective."""

        input_dims = (0,)
        solver = "newton"

        def objective(self, x: Tensor, y: Tensor) -> Tensor:
            return (y.log() - x).square() / y

        def starts(self, x: Tensor) -> Tensor:
            return torch.stack([-torch.ones_like(x), torch.ones_like(x)])

    x = torch.tensor([0.1, 0.3], dtype=torch.float64, requires_grad=True)
    layer = DeclarativeLayer(Logarithm(), policy="raise")
    y = layer(x)
    assert_near(y, x.detach().exp())
    assert layer.certificate.branch.tolist() == [1, 1]


def test_on_a_manifold() -> None:
    manifolds = pytest.importorskip("ddnkit_manifolds")

    class Quartic(DeclarativeNode):
        """−Σ xᵢ yᵢ⁴ on the sphere: a minimum at each axis."""

        input_dims = (1,)
        manifold = manifolds.Sphere()
        starts = 8

        def objective(self, x: Tensor, y: Tensor) -> Tensor:
            return -(x * (y + 0.1) ** 4).sum()

        def initial_point(self, x: Tensor) -> Tensor:
            return torch.nn.functional.normalize(
                torch.tensor([1.0, 0.1, 0.2], dtype=x.dtype), dim=0
            )

    x = torch.tensor([[1.0, 3.0, 2.0], [3.0, 1.0, 2.0]], dtype=torch.float64)
    y = DeclarativeLayer(Quartic(), policy="raise")(x)
    assert y.argmax(dim=1).tolist() == [1, 0]


def test_parts_float32_and_captured_tensors() -> None:
    class Parts(DeclarativeNode):
        input_dims = (0,)
        starts = 6

        def __init__(self) -> None:
            self.weight = torch.nn.Parameter(torch.tensor(0.3))

        def objective(self, x: Tensor, y: dict[str, Tensor]) -> Tensor:
            u, v = y["u"], y["v"]
            return (u.square() - 1).square() - self.weight * x * u + (v - u).square()

        def initial_point(self, x: Tensor) -> dict[str, Tensor]:
            return {"u": 0.9 * torch.ones_like(x), "v": torch.ones_like(x)}

    node = Parts()
    x = torch.tensor([-1.0, 1.0])
    y = DeclarativeLayer(node, policy="raise")(x)
    assert y["u"].sign().tolist() == [-1, 1] and y["u"].dtype == torch.float32
    y["u"].sum().backward()
    expected = (x / (12 * y["u"].detach() ** 2 - 4)).sum()
    assert_near(node.weight.grad, expected, 1e-3)  # a third of the digits of float32


def test_an_item_that_is_not_finite_spoils_no_other() -> None:
    x = sloped(4, 1).detach()
    x[0] = torch.nan
    layer = DeclarativeLayer(Wells(), policy="nan")
    y = layer(x.requires_grad_())
    assert y[0].isnan().all()
    assert_near(y[1:], lowest(x.detach())[1:])
    y[1:].sum().backward()
    assert x.grad[1:].isfinite().all()
    assert layer.certificate.branch.tolist()[0] == -1


def test_an_item_without_a_solution_keeps_its_status() -> None:
    class Falls(Wells):
        def objective(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.where(x.sum() > 0, (y - x).square().sum(), (x * y).sum())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = DeclarativeLayer(Falls(), policy="warn")
        layer(torch.tensor([[1.0], [-1.0]], dtype=torch.float64))
    status = [ddnkit.Status(int(s)) for s in layer.certificate.status]
    assert status[0] is ddnkit.Status.CONVERGED and status[1] >= ddnkit.Status.NON_FINITE


def test_calls_are_not_short() -> None:
    layer, x = DeclarativeLayer(Wells()), sloped(2, 1)
    for _ in range(12):
        layer(x).sum().backward()
    assert layer.short.taken == 0
    assert layer.short.reasons() == ["the node starts at several points"]


@pytest.mark.parametrize("starts", [0, -1, 2.5, True, "many"])
def test_no_number_of_starts(starts: Any) -> None:
    node = Wells()
    node.starts = starts
    with pytest.raises(InputError, match="whole number of at least 1"):
        read(node)


def test_a_solve_of_its_own_has_no_starts() -> None:
    class Own(Wells):
        def solve(self, x: Tensor) -> Tensor:
            return x.sign()

    with pytest.raises(InputError, match="would never start anywhere else"):
        DeclarativeLayer(Own())


@pytest.mark.parametrize("name", ["n_starts", "num_starts", "start", "restarts", "multistart"])
def test_other_names(name: str) -> None:
    members = {key: vars(Wells)[key] for key in ("objective", "initial_point", "input_dims")}
    kind = type("Slip", (DeclarativeNode,), {**members, name: 5})
    with pytest.raises(InputError, match="did you mean `starts`"):
        read(kind())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x: torch.ones(()), r"expected points in a row"),
        (lambda x: torch.ones(2, 1, dtype=torch.long), "must be floating"),
        (lambda x: torch.ones(1 + int(x > 0), 1), "as many for each"),
    ],
)
def test_points_of_a_wrong_kind(given: Any, message: str) -> None:
    node = Wells()
    node.starts = given
    with pytest.raises(InputError, match=message):
        DeclarativeLayer(node)(torch.tensor([[-1.0], [1.0]]))


def test_check_finds_nothing_wrong() -> None:
    report = ddnkit.check(Wells(), examples=3)
    assert report.ok, str(report)
