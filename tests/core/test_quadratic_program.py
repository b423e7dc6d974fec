"""QPNode: solutions against known answers and each choice of active constraints, gradients, refusals."""

from __future__ import annotations

import itertools

import pytest
import torch
from bounds import rounding
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ddnkit import DeclarativeLayer, InputError, Problem, QPNode, Solution
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
