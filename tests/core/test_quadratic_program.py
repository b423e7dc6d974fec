"""QPNode: solutions against known answers and each choice of active constraints, gradients, refusals."""

from __future__ import annotations

import importlib
import itertools
import warnings

import pytest
import torch
from bounds import rounding
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ddnkit import (
    DeclarativeLayer,
    InputError,
    Problem,
    QPNode,
    Solution,
    UntrustedGradientError,
)
from ddnkit.quadratic import QuadraticProgram
from ddnkit.quadratic import solve as solve_in_matrices
from ddnkit.solvers.interior_point import InteriorPoint


def program(batch: int, n: int, p: int, k: int) -> dict[str, Tensor]:
    """Convex programs with a feasible point, by Q's factor."""
    numbers = {"dtype": torch.float64}
    y = torch.randn(batch, n, **numbers)
    A, G = torch.randn(batch, p, n, **numbers), torch.randn(batch, k, n, **numbers)
    return {
        "Q": torch.eye(n, **numbers) + 0.3 * torch.randn(batch, n, n, **numbers),
        "q": torch.randn(batch, n, **numbers),
        "A": A,
        "b": (A @ y.unsqueeze(-1)).squeeze(-1),
        "G": G,
        "h": (G @ y.unsqueeze(-1)).squeeze(-1) + torch.rand(batch, k, **numbers),
    }


def by_enumeration(Q: Tensor, q: Tensor, A: Tensor, b: Tensor, G: Tensor, h: Tensor) -> Tensor:
    """The best of the solutions with each set of rows of G as equations that satisfies all of them."""
    n, best, value = len(q), q, torch.inf
    for size in range(min(len(h), n - len(b)) + 1):
        for rows in itertools.combinations(range(len(h)), size):
            C, d = torch.cat([A, G[list(rows)]]), torch.cat([b, h[list(rows)]])
            none = torch.zeros(len(C), len(C), dtype=q.dtype)
            K = torch.cat([torch.cat([Q, C.mT], 1), torch.cat([C, none], 1)])
            y = torch.linalg.solve(K, torch.cat([-q, d]))[:n]
            reached = 0.5 * y @ Q @ y + q @ y
            if (G @ y <= h + 1e-9).all() and reached < value:
                best, value = y, reached
    return best


def solve(layer: DeclarativeLayer, data: dict[str, Tensor]) -> Tensor:
    factor, *rest = data.values()
    return layer(factor @ factor.mT, *rest)


@pytest.mark.parametrize("p", [0, 2])
def test_solutions_are_those_of_the_best_active_set(p: int) -> None:
    data = program(12, 4, p, 5)
    layer = DeclarativeLayer(QPNode("A", "b", "G", "h"), policy="raise")
    y = solve(layer, data)
    for i, found in enumerate(y):
        one = [x[i] for x in data.values()]
        expected = by_enumeration(one[0] @ one[0].mT, *one[1:])
        # Of condition about a thousand, the rows of G among them.
        assert (found - expected).abs().max() < rounding(torch.float64, 4096) * (
            1 + expected.norm()
        )


@pytest.mark.long
def test_derivatives_to_second_order_of_every_input() -> None:
    data = program(2, 3, 1, 4)
    layer = DeclarativeLayer(QPNode("A", "b", "G", "h"), policy="raise")
    xs = [x.requires_grad_() for x in data.values()]
    assert gradcheck(lambda Q, *rest: layer(Q @ Q.mT, *rest), xs)
    assert gradgradcheck(lambda Q, *rest: layer(Q @ Q.mT, *rest), xs)


def test_derivatives_of_every_input() -> None:
    data = program(1, 2, 1, 2)
    layer = DeclarativeLayer(QPNode("A", "b", "G", "h"), policy="raise")
    xs = [x.requires_grad_() for x in data.values()]
    assert gradcheck(lambda Q, *rest: layer(Q @ Q.mT, *rest), xs, fast_mode=True)


def test_bounds_are_met_exactly_and_matrices_may_be_shared() -> None:
    layer = DeclarativeLayer(QPNode("lower", "upper"), policy="raise")
    x = torch.tensor([[-2.0, 0.3, 5.0], [0.1, -0.7, 0.2]], dtype=torch.float64)
    lower = torch.tensor([-1.0, -0.5, -torch.inf], dtype=torch.float64)
    upper = torch.tensor([torch.inf, 1.0, 2.0], dtype=torch.float64)
    y = layer(torch.eye(3, dtype=torch.float64), -x, lower, upper)
    expected = x.clamp(lower, upper)
    assert torch.equal(y == lower, expected == lower) and torch.equal(y == upper, expected == upper)
    assert (y - expected).abs().max() < rounding(torch.float64, 64)


def test_prices_of_an_equality_program() -> None:
    # ½yᵀQy + qᵀy with y₁ + y₂ = b: y = (¼, ¾), ν = 2.75, dy/db = (¼, ¾).
    numbers = {"dtype": torch.float64}
    Q = torch.tensor([[4.0, 1.0], [1.0, 2.0]], **numbers)
    b = torch.ones(1, **numbers, requires_grad=True)
    layer = DeclarativeLayer(QPNode("A", "b"), policy="raise")
    y, multipliers = layer(
        Q, torch.ones(2, **numbers), torch.ones(1, 2, **numbers), b, return_multipliers=True
    )
    (of_b,) = torch.autograd.grad(y[1], b)
    expected = torch.tensor([0.25, 0.75, 2.75, 0.75], **numbers)
    found = torch.cat([y, multipliers.equality, of_b])
    assert (found - expected).abs().max() < rounding(torch.float64, 64)


@pytest.mark.parametrize(
    ("constraints", "named"),
    [(("A",), "A and b"), (("G", "g"), "'g'"), (("lower", "lower"), "twice"), (("Q",), "'Q'")],
)
def test_what_it_refuses(constraints: tuple[str, ...], named: str) -> None:
    with pytest.raises(InputError, match=named):
        QPNode(*constraints)


def test_an_infeasible_item_leaves_the_others_as_they_are() -> None:
    data = program(3, 3, 0, 4)
    G, h = data["G"].clone(), data["h"].clone()
    G[1, 1], h[1, 1] = -G[1, 0], -h[1, 0] - 1.0  # g·y ≤ h and g·y ≥ h + 1
    layer = DeclarativeLayer(QPNode("G", "h"), policy="nan")
    Q = data["Q"] @ data["Q"].mT
    y, multipliers = layer(Q, data["q"], G, h, return_multipliers=True)
    assert y[1].isnan().all() and multipliers.inequality[1].isnan().all()
    assert (multipliers.inequality[::2] >= 0).all()
    alone = layer(Q[::2], data["q"][::2], G[::2], h[::2])
    assert (y[::2] - alone).abs().max() < rounding(torch.float64, 4096)


def test_programs_in_float32_are_solved_to_their_rounding() -> None:
    data = {name: x.float() for name, x in program(3, 4, 1, 3).items()}
    y = solve(DeclarativeLayer(QPNode("A", "b", "G", "h"), policy="raise"), data)
    exact = {name: x.double() for name, x in data.items()}
    expected = solve(DeclarativeLayer(QPNode("A", "b", "G", "h"), policy="raise"), exact)
    # Q is a product in float32, of condition below a hundred.
    bound = rounding(torch.float32, 4096) * (1 + expected.norm())
    assert y.dtype == torch.float32 and (y - expected).abs().max() < bound


def general_solver_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many items each call of the general solver is given from here on."""
    sizes: list[int] = []
    solve_general = InteriorPoint.solve

    def counted(self: InteriorPoint, problem: Problem, start: Tensor | None = None) -> Solution:
        sizes.append(problem.batch_size)
        return solve_general(self, problem, start)

    monkeypatch.setattr(InteriorPoint, "solve", counted)
    return sizes


def test_the_general_solver_is_given_what_matrices_do_not_solve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = general_solver_calls(monkeypatch)
    data = program(32, 6, 1, 8)
    layer = DeclarativeLayer(QPNode("A", "b", "G", "h"), policy="nan")
    solve(layer, data)
    assert sizes == []
    data["G"][5, 1], data["h"][5, 1] = -data["G"][5, 0], -data["h"][5, 0] - 1.0
    y = solve(layer, data)
    assert sizes == [1]
    assert torch.equal(y.isnan().any(dim=1), torch.arange(32) == 5)
    # Asked for as an object, it solves all of them.
    general = QPNode("A", "b", "G", "h")
    general.solver = InteriorPoint()
    solve(DeclarativeLayer(general, policy="nan"), data)
    assert sizes == [1, 32]


# -- calls in matrices -----------------------------------------------------------------------------

NUMBERS = {"dtype": torch.float64}
KINDS = {
    "no constraint": (),
    "equations": ("A", "b"),
    "inequalities": ("G", "h"),
    "both": ("A", "b", "G", "h"),
    "lower": ("lower",),
    "upper": ("upper",),
    "lower and upper": ("lower", "upper"),
    "all": ("A", "b", "G", "h", "lower", "upper"),
}


def inputs_of(names: tuple[str, ...], batch: int = 4, n: int = 4) -> list[Tensor]:
    """A feasible batch; bounds some of which are active."""
    data = program(batch, n, 1, 5)
    point = torch.linalg.lstsq(data["A"], data["b"].unsqueeze(-1)).solution.squeeze(-1)
    data["h"] = (data["G"] @ point.unsqueeze(-1)).squeeze(-1) + torch.rand(batch, 5, **NUMBERS)
    data["lower"], data["upper"] = point - 0.3, point + 0.4
    factor = data.pop("Q")
    return [factor @ factor.mT, data["q"], *(data[name] for name in names)]


def values_and_gradients(
    layer: DeclarativeLayer, xs: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """y with every multiplier there is, and the gradient of a sum of them all."""
    xs = [x.clone().requires_grad_() for x in xs]
    y, multipliers = layer(*xs, return_multipliers=True)
    found = [y, *(x for x in multipliers if x is not None)]
    weights = [torch.linspace(-1, 2, x.numel(), dtype=x.dtype).reshape(x.shape) for x in found]
    total = sum((w * x).sum() for w, x in zip(weights, found, strict=True))
    assert isinstance(total, Tensor)
    return [x.detach() for x in found], list(torch.autograd.grad(total, xs))


def general(names: tuple[str, ...]) -> DeclarativeLayer:
    """The same layer without its own way of calling."""
    layer = DeclarativeLayer(QPNode(*names), policy="raise")
    layer.short.on = False
    return layer


def assert_equal(found: list[Tensor], expected: list[Tensor], times: float = 2**14) -> None:
    """To rounding, of systems whose condition is a few hundred."""
    for a, b in zip(found, expected, strict=True):
        size = 1.0 + float(b.abs().max()) if b.numel() else 1.0
        assert a.shape == b.shape and bool(((a - b).abs() <= rounding(a.dtype, times) * size).all())


@pytest.mark.parametrize("names", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_calls_in_matrices_give_what_the_general_way_gives(
    names: tuple[str, ...], dtype: torch.dtype
) -> None:
    xs = [x.to(dtype) for x in inputs_of(names)]
    layer = DeclarativeLayer(QPNode(*names), policy="raise")
    found, expected = values_and_gradients(layer, xs), values_and_gradients(general(names), xs)
    assert_equal(found[0], expected[0])
    assert_equal(found[1], expected[1])
    assert layer.certificate is not None and bool(layer.certificate.differentiable.all())


@pytest.mark.parametrize("shared", [(0,), (0, 2), (1, 3), (2, 3), (0, 1, 2, 3)])
def test_what_items_share_gets_the_sum_of_their_gradients(shared: tuple[int, ...]) -> None:
    xs = inputs_of(("G", "h"))
    xs[3] = xs[3] + 3.0  # every item is feasible with the rows of the first
    apart = [x[:1].expand_as(x) if k in shared else x for k, x in enumerate(xs)]
    joined = [x[0] if k in shared else x for k, x in enumerate(xs)]
    layer = DeclarativeLayer(QPNode("G", "h"), policy="raise")
    values, gradients = values_and_gradients(layer, apart)
    expected = [g.sum(dim=0) if k in shared else g for k, g in enumerate(gradients)]
    found_values, found = values_and_gradients(layer, joined)
    if len(shared) == 4:
        values = [x[0] for x in values]
        alone = [x[:1] for x in xs]
        found_values = [x[0] for x in values_and_gradients(layer, alone)[0]]
        expected = [g[0] for g in values_and_gradients(layer, alone)[1]]
    assert_equal(found_values, values)
    assert_equal(found, expected)


def test_several_batch_dimensions() -> None:
    xs = inputs_of(("G", "h"))
    layer = DeclarativeLayer(QPNode("G", "h"), policy="raise")
    values, gradients = values_and_gradients(layer, xs)
    folded = [x.reshape(2, 2, *x.shape[1:]) for x in xs]
    found = values_and_gradients(layer, folded)
    assert_equal(found[0], [x.reshape(2, 2, *x.shape[1:]) for x in values])
    assert_equal(found[1], [x.reshape(2, 2, *x.shape[1:]) for x in gradients])
    assert layer.certificate is not None and layer.certificate.stationarity.shape == (2, 2)


@pytest.mark.long  # `test_multipliers.py` has the same with every kind of row active
def test_multipliers_have_their_derivatives() -> None:
    xs = [x.requires_grad_() for x in inputs_of(("A", "b", "G", "h", "lower", "upper"), 2, 3)]
    layer = DeclarativeLayer(QPNode("A", "b", "G", "h", "lower", "upper"), policy="raise")

    def multipliers(Q: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        _, found = layer((Q + Q.mT) / 2, *rest, return_multipliers=True)
        return tuple(x for x in found if x is not None)

    assert gradcheck(multipliers, xs, fast_mode=True)
    assert gradgradcheck(multipliers, xs, fast_mode=True)


def test_programs_whose_Q_is_singular() -> None:
    # A linear program whose solution is a vertex, and one that is flat where a bound stops it.
    layer = DeclarativeLayer(QPNode("A", "b", "lower"), policy="raise")
    prices = torch.tensor([-2.0, -1.0, -1.5], **NUMBERS)
    b = torch.ones(1, **NUMBERS, requires_grad=True)
    y = layer(
        torch.zeros(3, 3, **NUMBERS),
        prices,
        torch.ones(1, 3, **NUMBERS),
        b,
        torch.zeros(3, **NUMBERS),
    )
    (of_b,) = torch.autograd.grad(y[0], b)
    expected = torch.tensor([1.0, 0.0, 0.0, 1.0], **NUMBERS)
    assert_equal([torch.cat([y.detach(), of_b])], [expected])
    flat = DeclarativeLayer(QPNode("upper"), policy="raise")
    y = flat(
        torch.diag(torch.tensor([1.0, 0.0], **NUMBERS)),
        torch.tensor([-0.5, -1.0], **NUMBERS),
        torch.tensor([1.0, 2.0], **NUMBERS),
    )
    assert_equal([y], [torch.tensor([0.5, 2.0], **NUMBERS)])


def test_more_rows_than_unknowns() -> None:
    data = program(16, 3, 0, 40)
    Q = data["Q"] @ data["Q"].mT
    given = {"Q": Q, "q": data["q"], "G": data["G"], "h": data["h"]}
    found = solve_in_matrices(QuadraticProgram.from_data(given, 16))
    assert bool(found.done.all())
    value = (data["G"] @ found.y.unsqueeze(-1)).squeeze(-1) - data["h"]
    slope = (Q @ found.y.unsqueeze(-1)).squeeze(-1) + data["q"]
    slope = slope + (data["G"].mT @ found.w.unsqueeze(-1)).squeeze(-1)
    size = rounding(torch.float64, 2**14) * (1 + found.w.abs().sum(dim=1).max())
    assert bool((value <= size).all()) and bool((found.w >= -size).all())
    assert float(slope.abs().max()) < size and float((found.w * value).abs().max()) < size


def test_a_start_saves_rounds() -> None:
    data = program(3, 20, 0, 30)
    Q = data["Q"] @ data["Q"].mT
    given = {"Q": Q, "q": data["q"], "G": data["G"], "h": data["h"]}
    quadratic = QuadraticProgram.from_data(given, 3)
    cold = solve_in_matrices(quadratic)
    warm = solve_in_matrices(quadratic, cold.y)
    assert bool((warm.rounds == 1).all()) and bool((cold.rounds > 1).all())
    assert_equal([warm.y], [cold.y])
    layer = DeclarativeLayer(QPNode("G", "h"), policy="raise")
    assert_equal([layer(*given.values(), start=cold.y)], [cold.y])


AT_A_KINK = [
    torch.eye(3, **NUMBERS) + 0.2,
    # ∇f = 0 at y = 0 in the first two unknowns of the first item; the second item is at no kink.
    torch.tensor([[0.2, 0.2, 1.2], [1.0, -1.0, 0.5]], **NUMBERS),
    torch.tensor([0.0, 0.0, -1.0], **NUMBERS),
    torch.tensor([1.0, 2.0, 3.0], **NUMBERS),
]


@pytest.mark.parametrize("degenerate", ["warn", "raise", "one_sided", "least_norm"])
@pytest.mark.parametrize("policy", ["warn", "nan", "mask", "raise"])
def test_a_weakly_active_row_is_as_in_the_general_way(degenerate: str, policy: str) -> None:
    found = []
    for short in (True, False):
        node = QPNode("lower", "upper")
        node.degenerate = degenerate
        layer = DeclarativeLayer(node, policy=policy)
        layer.short.on = short
        xs = [x.clone().requires_grad_() for x in AT_A_KINK]
        y = layer(*xs)
        chosen = degenerate in ("one_sided", "least_norm")
        if not chosen and "raise" in (degenerate, policy):
            with pytest.raises(UntrustedGradientError, match="weakly active"):
                y.sum().backward()
            continue
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            y.sum().backward()
        weakly = [w for w in said if "weakly active" in str(w.message)]
        assert len(weakly) == (policy == "warn" and not chosen)
        assert layer.certificate is not None
        assert layer.certificate.weakly_active.tolist() == [not chosen, False]
        found.append([x.grad for x in xs])
    if found:
        for a, b in zip(*found, strict=True):
            assert torch.equal(a.isnan(), b.isnan())
            assert_equal([a.nan_to_num()], [b.nan_to_num()])


def test_a_bound_that_is_both_goes_the_general_way() -> None:
    names = ("lower", "upper")
    xs = inputs_of(names)
    xs[3] = torch.where(torch.arange(4) == 0, xs[2], xs[3])
    layer = DeclarativeLayer(QPNode(*names), policy="nan")
    q = xs[1].clone().requires_grad_()
    y = layer(xs[0], q, *xs[2:])
    (of_q,) = torch.autograd.grad(y.sum(), q)
    assert torch.equal(y[:, 0], xs[2][:, 0]) and not bool(of_q[:, 0].any())


def test_an_input_changed_before_the_way_back_is_an_error() -> None:
    xs = [x.requires_grad_() for x in inputs_of(("G", "h"))]
    layer = DeclarativeLayer(QPNode("G", "h"))
    q = xs[1] * 1.0
    y = layer(xs[0], q, *xs[2:])
    with torch.no_grad():
        q.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_the_solution_may_be_written_on() -> None:
    xs = [x.requires_grad_() for x in inputs_of(("G", "h"))]
    layer = DeclarativeLayer(QPNode("G", "h"))
    (expected,) = torch.autograd.grad(layer(*xs).sum(), xs[1])
    y, multipliers = layer(*xs, return_multipliers=True)
    y.data.zero_()
    multipliers.inequality.data.zero_()
    (found,) = torch.autograd.grad(y.sum(), xs[1])
    assert torch.equal(found, expected)


def test_rows_that_were_written_on_are_not_measured_afterwards() -> None:
    xs = inputs_of(("G", "h"))
    layer = DeclarativeLayer(QPNode("G", "h"))
    layer(*xs)
    xs[2].zero_()
    assert layer.certificate is not None and layer.certificate.licq is None
    assert layer.certificate.verdicts() == ["trusted"] * 4


def test_nothing_is_measured_where_nobody_asks() -> None:
    xs = [x.clone().requires_grad_() for x in AT_A_KINK]
    layer = DeclarativeLayer(QPNode("lower", "upper"), policy="raise", certify="off")
    layer(*xs).sum().backward()
    assert layer.certificate is not None and not layer.certificate.measured
    assert layer.certificate.verdicts() == ["not measured"] * 2
    assert xs[1].grad is not None and not bool(xs[1].grad[0, :2].any())


class Shifted(QPNode):
    """A program of another objective."""

    def objective(self, *xs: Tensor, **named: Tensor) -> Tensor:
        """½ |y|² + q·y."""
        return 0.5 * named["y"] @ named["y"] + xs[1] @ named["y"]


def test_a_class_with_functions_of_its_own_is_solved_by_them() -> None:
    xs = inputs_of(("lower",))
    y = DeclarativeLayer(Shifted("lower"), policy="raise")(*xs)
    assert_equal([y], [torch.maximum(-xs[1], xs[2])])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.parametrize("batched", [False, True])
def test_sparse_inputs_have_sparse_gradients(batched: bool) -> None:
    xs = inputs_of(("G", "h"))
    G = xs[2] * (xs[2][:1] > 0)
    G = G if batched else G[0]
    h = G @ torch.ones(4, **NUMBERS) + 0.1
    dense, sparse = G.clone().requires_grad_(), G.to_sparse_csr().requires_grad_()
    layer = DeclarativeLayer(QPNode("G", "h"), policy="raise")
    for given in (dense, sparse):
        layer(xs[0], xs[1], given, h).square().sum().backward()
    assert dense.grad is not None and sparse.grad is not None
    assert sparse.grad.layout == torch.sparse_csr
    assert torch.equal(sparse.grad.to_dense(), dense.grad * (G != 0))


def test_transforms_and_second_derivatives_go_the_general_way() -> None:
    xs = inputs_of(("G", "h"), 1, 3)
    one = [x[0] for x in xs]
    layer = DeclarativeLayer(QPNode("G", "h"), policy="raise")

    def of_q(q: Tensor) -> Tensor:
        y: Tensor = layer(one[0], q, *one[2:])
        return y

    q = one[1].clone().requires_grad_()
    rows = [torch.autograd.grad(of_q(q)[k], q)[0] for k in range(3)]
    assert_equal([torch.func.jacfwd(of_q)(one[1])], [torch.stack(rows)])
    assert_equal([torch.func.jacrev(of_q)(one[1])], [torch.stack(rows)])


# -- data at the edges -----------------------------------------------------------------------------

EYE = torch.eye(2, **NUMBERS)
NONE = torch.zeros(2, **NUMBERS)


def both_ways(
    names: tuple[str, ...], xs: list[Tensor], policy: str = "raise"
) -> list[tuple[Tensor, list[Tensor], list[str]]]:
    """y, the gradients of a sum of it and the verdicts, in matrices and the general way."""
    found = []
    for short in (True, False):
        layer = DeclarativeLayer(QPNode(*names), policy=policy)
        layer.short.on = short
        inputs = [x.clone().requires_grad_(x.is_floating_point()) for x in xs]
        y = layer(*inputs)
        tracked = [x for x in inputs if x.requires_grad]
        gradients = torch.autograd.grad((y * torch.linspace(-1, 2, y.shape[-1])).sum(), tracked)
        assert layer.certificate is not None
        found.append((y.detach(), list(gradients), layer.certificate.verdicts()))
    return found


@pytest.mark.parametrize(
    ("names", "data"),
    [
        ((), []),
        (("G", "h"), [[[1.0, 1.0]], [1.0]]),
        (("lower", "upper"), [[-1.0, -1.0], [1.0, 2.0]]),
        (("A", "b"), [[[1.0, 1.0]], [0.0]]),
    ],
)
def test_a_solution_that_is_zero_for_data_that_are_zero(
    names: tuple[str, ...], data: list[list[float]]
) -> None:
    xs = [EYE, NONE, *(torch.tensor(x, **NUMBERS) for x in data)]
    for y, gradients, verdicts in both_ways(names, xs):
        assert verdicts == ["trusted"] and not bool(y.any())
        v = torch.linspace(-1, 2, 2, **NUMBERS)
        expected = v.mean() - v if names == ("A", "b") else -v
        assert_equal([gradients[1]], [expected])


@pytest.mark.parametrize("q", [[0.0, 0.0], [0.0, 1.0]])
def test_a_kink_at_zero_is_told(q: list[float]) -> None:
    xs = [EYE, torch.tensor(q, **NUMBERS), NONE]
    for _, gradients, verdicts in both_ways(("lower",), xs, "nan"):
        assert verdicts == ["invalid"] and bool(gradients[1].isnan().all())
    rows = [*xs[:2], -EYE, NONE]
    for _, gradients, verdicts in both_ways(("G", "h"), rows, "nan"):
        assert verdicts == ["invalid"] and bool(gradients[1].isnan().all())


def test_bounds_that_have_changed_places_are_infeasible() -> None:
    lower, upper = torch.tensor([1.0, 0.0], **NUMBERS), torch.tensor([0.0, 1.0], **NUMBERS)
    # So that one side, the other, or none of the first unknown has the multiplier of its sign.
    for first in (1.0, 5.0, -5.0, -0.5):
        xs = [EYE, torch.tensor([first, -2.0], **NUMBERS), lower, upper]
        for y, _, verdicts in both_ways(("lower", "upper"), xs, "nan"):
            assert verdicts == ["invalid"] and bool(y.isnan().all())


def test_rows_that_say_nothing_are_no_constraints() -> None:
    q = torch.tensor([1.0, -2.0], **NUMBERS)
    G, h = torch.tensor([[1.0, 1.0]], **NUMBERS), torch.tensor([-0.5], **NUMBERS)
    (y, expected, _), _ = both_ways(("G", "h"), [EYE, q, G, h])
    no_bound = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 1.0]], **NUMBERS)
    sides = torch.tensor([0.0, 1.0, torch.inf], **NUMBERS)
    more = [EYE, q, torch.cat([no_bound, G]), torch.cat([sides, h])]
    for found, gradients, verdicts in both_ways(("G", "h"), more):
        assert verdicts == ["trusted"]
        assert_equal([found, *gradients[:2]], [y, *expected[:2]])
        assert not bool(gradients[2][:3].any()) and not bool(gradients[3][:3].any())
    node = QPNode("G", "h")
    node.solver = InteriorPoint()
    found = DeclarativeLayer(node, policy="raise")(*more)
    assert_equal([found], [y], 2**20)
    never = [EYE, q, no_bound, torch.tensor([-1.0, 1.0, 1.0], **NUMBERS)]
    for _, _, verdicts in both_ways(("G", "h"), never, "mask"):
        assert verdicts == ["invalid"]


def test_integers_are_numbers_too() -> None:
    xs = [EYE.long(), torch.tensor([1.0, -2.0], **NUMBERS), torch.tensor([0, 0])]
    for y, gradients, verdicts in both_ways(("lower",), xs):
        assert verdicts == ["trusted"]
        assert_equal([y, gradients[0]], [torch.tensor([0.0, 2.0], **NUMBERS), -y.sign() * 2.0])


@pytest.mark.parametrize(
    ("names", "sizes", "message"),
    [
        ((), [(2, 2), (3,)], r"Q has shape \(2, 2\) .* beside q \(3,\); expected \(3, 3\)"),
        ((), [(2, 3), (2,)], r"Q has shape \(2, 3\)"),
        ((), [(0, 0), (0,)], "q has no entries"),
        (("G", "h"), [(2, 2), (2,), (1, 3), (1,)], r"G has shape \(1, 3\) .*expected \(1, 2\)"),
        (("G", "h"), [(2, 2), (2,), (2, 2), (1,)], r"h has shape \(1,\) .* beside G \(2, 2\)"),
        (("lower",), [(2, 2), (2,), (1,)], r"lower has shape \(1,\)"),
    ],
)
def test_a_call_refuses_shapes_that_do_not_fit(
    names: tuple[str, ...], sizes: list[tuple[int, ...]], message: str
) -> None:
    layer = DeclarativeLayer(QPNode(*names))
    with pytest.raises(InputError, match=message):
        layer(*(torch.ones(size, **NUMBERS) for size in sizes))


def test_a_call_refuses_what_is_no_tensor() -> None:
    with pytest.raises(InputError, match="lower is a float"):
        DeclarativeLayer(QPNode("lower"))(EYE, NONE, 0.0)


def test_programs_that_are_not_convex_are_told() -> None:
    names = ("lower", "upper")
    Q = torch.diag_embed(torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, 1e10]], **NUMBERS))
    # The two bounds of the first unknown are both minima of the second item.
    xs = [Q, torch.tensor([0.1, -0.2], **NUMBERS), -EYE.sum(dim=0), EYE.sum(dim=0)]
    for _, gradients, verdicts in both_ways(names, xs, "nan"):
        assert verdicts == ["trusted", "invalid", "invalid"]
        assert gradients[0].isnan().flatten(1).all(dim=1).tolist() == [False, True, True]
    layer = DeclarativeLayer(QPNode(*names), policy="raise")
    with pytest.raises(UntrustedGradientError, match=r"not convex: relative curvature -1.0e\+00"):
        layer(Q[1], xs[1].clone().requires_grad_(), *xs[2:]).sum().backward()
    # Along the equation this one is, and its only minimum the least one; so is each with equations alone.
    A, b = torch.tensor([[1.0, 0.0], [2.0, 0.0]], **NUMBERS), torch.tensor([1.0, 2.0], **NUMBERS)
    expected = torch.tensor([1.0, 0.2], **NUMBERS)
    for rows in (1, 2):
        for given in (("A", "b", "lower"), ("A", "b")):
            program_of = [Q[1], xs[1], A[:rows], b[:rows], xs[2]][: 2 + len(given)]
            for y, _, verdicts in both_ways(given, program_of):
                assert verdicts == ["trusted"]
                assert_equal([y], [expected])


def test_rounding_of_a_semidefinite_matrix_is_no_negative_curvature() -> None:
    for dtype in (torch.float64, torch.float32):
        factor = torch.randn(16, 3, 6, dtype=dtype)
        q = torch.randn(16, 6, dtype=dtype)
        ends = torch.ones(6, dtype=dtype)
        for y, _, verdicts in both_ways(("lower", "upper"), [factor.mT @ factor, q, -ends, ends]):
            assert verdicts == ["trusted"] * 16 and bool((y.abs() <= 1.0).all())


@pytest.mark.parametrize("policy", ["nan", "mask", "raise"])
def test_multipliers_at_a_kink_have_the_derivative_of_what_the_node_chooses(policy: str) -> None:
    # Rounding of a multiplier that is zero may have either sign.
    for degenerate, slope in (("warn", 1.0), ("least_norm", 1.0), ("one_sided", 0.0)):
        failing = degenerate == "warn"
        if failing and policy == "raise":
            continue
        for short in (True, False):
            node = QPNode("lower", "upper")
            node.degenerate = degenerate
            layer = DeclarativeLayer(node, policy=policy)
            layer.short.on = short
            q = AT_A_KINK[1].clone().requires_grad_()
            _, multipliers = layer(AT_A_KINK[0], q, *AT_A_KINK[2:], return_multipliers=True)
            assert multipliers.lower is not None and multipliers.upper is not None
            assert bool((multipliers.lower >= 0).all() and (multipliers.upper >= 0).all())
            (found,) = torch.autograd.grad(multipliers.lower[0].sum(), q)
            expected = torch.full((3,), slope, **NUMBERS)
            if failing:
                expected = torch.full((3,), torch.nan if policy == "nan" else 0.0, **NUMBERS)
            assert torch.equal(found[0].isnan(), expected.isnan())
            assert_equal([found[0].nan_to_num()], [expected.nan_to_num()])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_work_in_place_on_the_solution(dtype: torch.dtype) -> None:
    xs = [x.to(dtype).requires_grad_() for x in inputs_of(("G", "h"))]
    layer = DeclarativeLayer(QPNode("G", "h"), policy="raise")
    expected = torch.autograd.grad(2 * layer(*xs).sum(), xs)
    for multipliers in (False, True):
        found = layer(*xs, return_multipliers=multipliers)
        y = found[0] if multipliers else found
        assert_equal(list(torch.autograd.grad(y.mul_(2).sum(), xs)), list(expected))


@pytest.mark.parametrize("size", [(4,), (4, 3)])
def test_a_start_of_another_shape_is_refused(size: tuple[int, ...]) -> None:
    layer = DeclarativeLayer(QPNode("G", "h"))
    with pytest.raises(InputError, match=r"start has shape .* but y has \(4, 4\)"):
        layer(*inputs_of(("G", "h")), start=torch.zeros(size, **NUMBERS))


def test_many_more_rows_than_unknowns_take_no_more_rounds() -> None:
    # Exchanged one at a time, as many as there are rows and more.
    data = program(6, 10, 0, 120)
    given = {"Q": data["Q"] @ data["Q"].mT, "q": data["q"], "G": data["G"], "h": data["h"]}
    found = solve_in_matrices(QuadraticProgram.from_data(given, 6))
    assert bool(found.done.all()) and int(found.rounds.max()) <= 60


def test_a_vertex_at_which_a_further_row_nearly_holds() -> None:
    # An interior point that is near takes it for one that holds: five rows in four unknowns.
    batch, n = 32, 4
    rows, y = torch.randn(batch, n, n, **NUMBERS), torch.randn(batch, n, 1, **NUMBERS)
    further = (torch.rand(batch, 1, n, **NUMBERS) + 0.1) @ rows
    slack = further.norm(dim=2) * 10.0 ** torch.linspace(-9, -6, batch, **NUMBERS).unsqueeze(1)
    strength = torch.rand(batch, n, 1, **NUMBERS) + 0.2
    given = {
        "Q": torch.zeros(1, n, n, **NUMBERS),
        "q": -(rows.mT @ strength).squeeze(-1),
        "G": torch.cat([rows, further], dim=1),
        "h": torch.cat([(rows @ y).squeeze(-1), (further @ y).squeeze(-1) + slack], dim=1),
    }
    found = solve_in_matrices(QuadraticProgram.from_data(given, batch))
    assert bool(found.done.all())
    assert bool(found.rows.held[:, :n].all()) and not bool(found.rows.held[:, n].any())


def test_singular_items_leave_the_others_their_rounds() -> None:
    Q, q, lower = inputs_of(("lower",), batch=8, n=6)
    quadratic = {"Q": Q, "q": q, "lower": lower}
    alone = solve_in_matrices(QuadraticProgram.from_data(quadratic, 8))
    assert bool(alone.done.all())
    # A linear program with a minimum, no number, and no minimum.
    Q, q = Q.clone(), q.clone()
    Q[1:4], q[1] = 0.0, q[1].abs() + 0.1
    Q[2, 0, 0], q[3] = torch.nan, -q[3].abs() - 0.1
    found = solve_in_matrices(QuadraticProgram.from_data({"Q": Q, "q": q, "lower": lower}, 8))
    assert found.done.tolist() == [True, True, False, False, True, True, True, True]
    others = found.done & (torch.arange(8) != 1)
    assert int(found.rounds[others].max()) <= int(alone.rounds.max())
    assert_equal([found.y[others], found.y[1]], [alone.y[others], lower[1]])


#: What may be wrong with an item.
ODD = ("dependent", "infeasible", "unbounded", "nan", "nonconvex")


def with_odd_item(kind: str, item: int = 1) -> list[Tensor]:
    """Programs of which one is not as the others: min |y − x|²/2, the first of two rows active."""
    Q = torch.eye(3, **NUMBERS).expand(5, 3, 3).clone()
    x = torch.linspace(1.0, 2.0, 15, **NUMBERS).reshape(5, 3)
    G = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0]], **NUMBERS).expand(5, 2, 3).clone()
    h = torch.tensor([1.0, 5.0], **NUMBERS).expand(5, 2).clone()
    q = -x
    if kind == "dependent":
        G[item, 1], h[item, 1] = 2 * G[item, 0], 2 * h[item, 0]
    elif kind == "infeasible":
        G[item, 1], h[item, 1] = -G[item, 0], -h[item, 0] - 1
    elif kind == "unbounded":
        Q[item, 2, 2], G[item, :, 2] = 0.0, -1.0
    elif kind == "nan":
        q[item, 0] = torch.nan
    elif kind == "nonconvex":
        Q[item, 2, 2] = -0.5
    return [Q, q, G, h]


def value_and_gradients(layer: DeclarativeLayer, xs: list[Tensor]) -> list[Tensor]:
    xs = [x.clone().requires_grad_() for x in xs]
    y = layer(*xs)
    return [
        y.detach(),
        *torch.autograd.grad((torch.linspace(-1, 2, y.shape[-1], **NUMBERS) * y).sum(), xs),
    ]


def watched(policy: str, sizes: list[int]) -> DeclarativeLayer:
    """A layer that notes how many items it solves the general way."""

    class Watched(DeclarativeLayer):
        def _solve_batch(self, xs, *args):  # type: ignore[no-untyped-def]
            sizes.append(len(xs[1]))
            return super()._solve_batch(xs, *args)

    layer = Watched(QPNode("G", "h"), policy=policy)
    layer.looks_for_hidden = False
    return layer


@pytest.mark.parametrize(("kind", "policy"), list(zip(ODD, ["nan", "mask"] * 3, strict=False)))
def test_an_odd_item_leaves_the_others_their_direct_call(kind: str, policy: str) -> None:
    xs, sizes = with_odd_item(kind), []
    layer = watched(policy, sizes)
    found = value_and_gradients(layer, xs)
    assert sizes == [1]
    certificate, alone = layer.certificate, watched(policy, [])
    assert certificate is not None
    for i in range(5):
        expected = value_and_gradients(alone, [x[i : i + 1] for x in xs])
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a[i].isnan(), b[0].isnan())
            assert_equal([a[i].nan_to_num()], [b[0].nan_to_num()])
        of_item = alone.certificate
        assert of_item is not None
        assert certificate.verdicts()[i] == of_item.verdicts()[0]
        assert certificate.status[i] == of_item.status[0]


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind in ("dependent", "nan") else pytest.param(kind, marks=pytest.mark.long)
        for kind in ODD
    ],
)
def test_what_is_said_of_an_odd_item_is_said_of_the_whole_batch(kind: str) -> None:
    xs = [x.reshape(1, 5, *x.shape[1:]) for x in with_odd_item(kind)]
    said = []
    for short in (True, False):
        layer = watched("warn", [])
        layer.short.on = short
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            value_and_gradients(layer, xs)
        said.append([str(w.message).split(":")[:2] for w in told])
        assert layer.certificate is not None and layer.certificate.stationarity.shape == (1, 5)
    assert said[0] == said[1] and "1 of 5" in str(said[0])
    assert kind != "nan" or "item (0, 1): " in str(told[0].message)
    raising = watched("raise", [])
    with pytest.raises(UntrustedGradientError, match="1 of 5"):
        value_and_gradients(raising, xs)
    assert raising.certificate is not None
    assert raising.certificate.verdicts().count("trusted") == 4


def test_an_odd_item_and_a_kink_are_said_in_one_warning() -> None:
    xs = with_odd_item("dependent")
    xs[1][3] = -torch.full((3,), 1 / 3, **NUMBERS)  # the minimum is on the first row
    layer = watched("warn", [])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        value_and_gradients(layer, xs)
    assert ["2 of 5" in str(w.message) for w in told] == [True]
    assert layer.certificate is not None
    assert layer.certificate.weakly_active.tolist() == [False, True, False, True, False]


def test_a_batch_in_parts_shares_inputs_and_has_multipliers() -> None:
    xs = with_odd_item("infeasible")
    xs[0] = xs[0][0]
    both = []
    for short in (True, False):
        layer = DeclarativeLayer(QPNode("G", "h"), policy="mask")
        layer.short.on = short
        values, gradients = values_and_gradients(layer, xs)
        sound = torch.arange(5) != 1
        both.append([*(x[sound] for x in values), gradients[0], *(x[sound] for x in gradients[1:])])
    assert_equal(*both)


@pytest.mark.long
def test_a_batch_in_parts_has_second_derivatives() -> None:
    # Rows that depend on each other are harmless where they stay as they are.
    Q, q, G, h = with_odd_item("dependent")
    layer = DeclarativeLayer(QPNode("G", "h"), policy="raise")
    chosen = (Q[:3].requires_grad_(), q[:3].requires_grad_())
    assert gradgradcheck(lambda Q, q: layer(Q, q, G[:3], h[:3]), chosen, fast_mode=True)


def test_dependent_rows_that_stay_as_they_are_keep_the_direct_call() -> None:
    Q, q, G, h = with_odd_item("dependent")
    G[3, 1], h[3, 1] = -G[3, 0], -h[3, 0]  # the first row, as an equation
    found = []
    for short in (True, False):
        sizes: list[int] = []
        layer = watched("raise", sizes)
        layer.short.on = short
        chosen = [Q.clone().requires_grad_(), q.clone().requires_grad_()]
        y = layer(*chosen, G, h)
        found.append([y.detach(), *torch.autograd.grad((y * y).sum(), chosen)])
        assert sizes == ([] if short else [5])
        assert layer.certificate is not None and layer.certificate.licq is not None
        assert not bool(layer.certificate.licq[[1, 3]].any())
    assert_equal(*found)
    # A kink beside them is told, by whichever way.
    q[1] = -1 / 3
    layer = watched("raise", [])
    with pytest.raises(UntrustedGradientError, match="weakly active"):
        layer(Q, q.requires_grad_(), G, h).sum().backward()


def test_a_singular_item_without_constraints_leaves_the_others_as_they_are() -> None:
    Q = torch.eye(3, **NUMBERS).repeat(2, 1, 1)
    Q[1, 2, 2] = 0.0
    layer = DeclarativeLayer(QPNode(), policy="nan")
    y = layer(Q, -torch.ones(2, 3, **NUMBERS))
    assert torch.equal(y[0], torch.ones(3, **NUMBERS)) and bool(y[1].isnan().any())
    assert layer.certificate is not None
    assert layer.certificate.verdicts() == ["trusted", "invalid"]


def test_what_was_solved_is_not_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    call, node = (importlib.import_module(f"ddnkit.quadratic.{name}") for name in ("call", "node"))
    solved = []
    for module in (call, node):
        original = module.solve

        def counted(program, start=None, original=original):  # type: ignore[no-untyped-def]
            solved.append(len(program.q))
            return original(program, start)

        monkeypatch.setattr(module, "solve", counted)
    layer = DeclarativeLayer(QPNode("G", "h"), policy="nan")
    xs = with_odd_item("infeasible")
    layer(*xs)
    assert solved == [5]
    layer(*(x[1:2] for x in xs))
    assert solved == [5, 1]


def test_a_batch_with_an_odd_item_needs_no_certificate():
    G = torch.eye(2, 3, dtype=torch.float64).repeat(3, 1, 1)
    G[1, 1], h = -G[1, 0], torch.ones(3, 2, dtype=torch.float64)
    h[1] = -1  # y₁ ≤ −1 and y₁ ≥ 1
    Q, q = torch.eye(3, dtype=torch.float64).repeat(3, 1, 1), torch.ones(3, 3, dtype=torch.float64)
    layer = DeclarativeLayer(QPNode("G", "h"), certify="off", policy="mask")
    q.requires_grad_()
    y = layer(Q, q, G, h)
    torch.testing.assert_close(y[::2], -q[::2])
    y.sum().backward()
    assert not layer.certificate.measured and (q.grad[::2] == -1).all()
