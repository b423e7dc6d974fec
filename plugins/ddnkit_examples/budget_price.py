"""The price of a budget: λ of the constraint p·y ≤ b as an output of a node, and learning through it.

A household with tastes a, at prices p and with a budget b, buys

    y = argmax u(y; a)  subject to  p·y ≤ b,  y ≥ 0,

u = Σ a_j log(1 + y_j) or Σ a_j y_j − ½ y_j². The multiplier λ of the budget is what one more unit of money
would be worth to it (du/db at the best y), and so what it would pay for credit. It is 0 where the household
has had enough, which a logarithm never has.

*Closed form.* Stationarity is y_j = max(0, a_j/(λp_j) − 1), or max(0, a_j − λp_j): those goods are bought
whose a_j/p_j is above λ. With k goods of the largest a_j/p_j, p·y = b gives

    λ_k = Σ a_j / (b + Σ p_j),    or    λ_k = (Σ a_j p_j − b) / Σ p_j²,        j of the k goods,

and λ = max(0, max_k λ_k): a good adds to the maximum just where its a_j/p_j is above what λ is without it.

*Learning.* Prices, budgets and λ of many households are observed, the tastes a that they share are not.
Gradient descent on Σ (λ(a, p, b) − λ observed)² finds them; dλ/da is the implicit one. Where a good enters,
λ has a kink in a: the certificate tells it, and the policy "mask" leaves that household out of that step.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddnkit import DeclarativeLayer, DeclarativeNode, Job

from .budget_price_report import PRICES
from .settings import BudgetPrice

_SMOKE_STEPS = 3
_BUDGETS = 24
_ROWS = 10


class Household(DeclarativeNode):
    """Which amounts y ≥ 0 of n goods, at prices p, make the most of a budget b."""

    input_dims = (1, 1, 0)
    bounds = (0.0, None)

    def inequality_constraints(self, a: Tensor, p: Tensor, b: Tensor, y: Tensor) -> Tensor:
        """p·y − b."""
        return p @ y - b

    def initial_point(self, a: Tensor, p: Tensor, b: Tensor) -> Tensor:
        """The same money for each good."""
        return b / (len(p) * p)

    def sample_inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tastes and prices of three goods, and a budget."""
        a, p = 0.5 + torch.rand(2, 3, dtype=torch.float64)
        return a, p, 0.1 + torch.rand((), dtype=torch.float64)


class LogarithmicHousehold(Household):
    """u = Σ a_j log(1 + y_j)."""

    def objective(self, a: Tensor, p: Tensor, b: Tensor, y: Tensor) -> Tensor:
        """−u."""
        return -a @ torch.log1p(y)


class QuadraticHousehold(Household):
    """u = Σ a_j y_j − ½ y_j²."""

    def objective(self, a: Tensor, p: Tensor, b: Tensor, y: Tensor) -> Tensor:
        """−u."""
        return 0.5 * y @ y - a @ y


_HOUSEHOLDS: dict[str, Callable[[], Household]] = {
    "logarithmic": LogarithmicHousehold,
    "quadratic": QuadraticHousehold,
}


def price_in_closed_form(a: Tensor, p: Tensor, b: Tensor, *, utility: str) -> Tensor:
    """λ of the budget of each household, as the text above derives it.

    Args:
        a: tastes ``(n,)`` or ``(N, n)``, positive.
        p: prices ``(N, n)``, positive.
        b: budgets ``(N,)``.
        utility: "logarithmic" or "quadratic".

    Returns:
        ``(N,)``.
    """
    a = a.expand_as(p)
    order = (a / p).argsort(dim=-1, descending=True)
    a, p, b = a.gather(-1, order), p.gather(-1, order), b.unsqueeze(-1)
    if utility == "logarithmic":
        of_k = a.cumsum(dim=-1) / (b + p.cumsum(dim=-1))
    else:
        of_k = ((a * p).cumsum(dim=-1) - b) / p.square().cumsum(dim=-1)
    return of_k.amax(dim=-1).clamp(min=0)


def learn_tastes(settings: BudgetPrice, job: Job) -> None:
    """One job: `BudgetPrice.run`."""
    # All draws on the CPU, so that the same seed draws the same on every device.
    generator = torch.Generator().manual_seed(job.seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
        return (low + (high - low) * drawn).to(job.device)

    goods, steps = (
        settings.goods,
        min(settings.steps, _SMOKE_STEPS if job.smoke else settings.steps),
    )
    tastes = uniform(0.5, 2.5, goods)
    p, b = uniform(0.5, 1.5, settings.households, goods), uniform(0.1, 3.1, settings.households)
    observed = price_in_closed_form(tastes, p, b, utility=settings.utility)

    layer = DeclarativeLayer(_HOUSEHOLDS[settings.utility](), policy="mask")
    logarithms = torch.zeros_like(tastes, requires_grad=True)
    optimizer = torch.optim.Adam([logarithms], lr=settings.rate)
    every = max(steps // _ROWS, 1)
    for step in range(steps + 1):
        a = logarithms.exp()
        _, multipliers = layer(a, p, b, return_multipliers=True)
        price = multipliers.inequality.squeeze(-1)
        loss = (price - observed).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step % every == 0 or step == steps:
            a = a.detach()
            expected = price_in_closed_form(a, p, b, utility=settings.utility)
            figures = {
                "loss": float(loss.detach()),
                "taste_error": float((a - tastes).norm() / tastes.norm()),
                "price_error": float((price.detach() - expected).abs().max() / expected.max()),
            }
            assert layer.certificate is not None  # after a call
            masked = len(p) - layer.certificate.verdicts().count("trusted")
            job.record({"epoch": step, "step": step, **figures, "masked": masked})
            job.progress(step, steps, figures)
        if step < steps:
            optimizer.step()
    if job.rank == 0:
        with (job.folder / PRICES).open("w", newline="", encoding="utf-8") as file:
            rows = _over_budgets(layer, settings.utility, logarithms.detach().exp(), tastes, p[:1])
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def _over_budgets(
    layer: DeclarativeLayer, utility: str, learned: Tensor, tastes: Tensor, p: Tensor
) -> list[dict[str, Any]]:
    """Of the first household at other budgets: λ by the node and by the closed form, goods bought."""
    enough = 1.25 * (tastes * p).sum() if utility == "quadratic" else 4 * p.sum()
    b = enough * torch.arange(1, _BUDGETS + 1, dtype=p.dtype, device=p.device) / _BUDGETS
    p = p.expand(_BUDGETS, -1)
    with torch.no_grad():
        y, multipliers = layer(tastes, p, b, return_multipliers=True)
        _, by_learned = layer(learned, p, b, return_multipliers=True)
    columns = {
        "budget": b,
        "price": multipliers.inequality.squeeze(-1),
        "closed_form": price_in_closed_form(tastes, p, b, utility=utility),
        "by_learned": by_learned.inequality.squeeze(-1),
        "bought": (y > 0).sum(dim=1),
    }
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*map(Tensor.tolist, columns.values()), strict=True)
    ]
