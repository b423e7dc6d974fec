"""docs/manifold_sweep.md, how exact nodes on every manifold are differentiated: `make sweep`.

Beside the columns of `ddnkit.testing.sweep`: torch's own gradgradcheck, and what float32 makes of a gradient.
"""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ddnkit_manifolds.testing import bank
from torch import Tensor
from torch.autograd import gradgradcheck

import ddnkit
from ddnkit import testing
from ddnkit.testing.sweeping.case import Case, SolutionMap
from ddnkit.testing.sweeping.columns import COLUMNS
from ddnkit.testing.sweeping.table import error_text

PAGE = Path(__file__).parents[1] / "docs" / "manifold_sweep.md"
SEEDS = range(3)

_TEXT = """\
# Nodes on manifolds through every form

The problems of `ddnkit_manifolds.testing.bank()`, each with a solution on paper, by every backward form that
applies. Written by `make sweep`: torch {torch}, {date}, seeds {seeds}. Of quotients (subspaces, matrices of
fixed rank) what is compared is the same for every representative: UUᵀ, LRᵀ.

| problem | manifold | own methods | forms | {columns} | gradgradcheck | float32 |
|---|---|---|---|{dashes}|---|---|
{rows}

| column | what it says |
|---|---|
| own methods | how many of a manifold's methods are written; the others follow by automatic differentiation |
| forms | how many backward forms apply |
| {columns_in_words} | the worst relative error over all of them, in float64; see [the sweep](sweep.md) |
| gradgradcheck | by torch, of "auto" |
| float32 | the gradient by "auto" in float32 beside that in float64, relative, in roundings (6e-8) |
"""


def main() -> None:
    """Sweep, and write the page."""
    torch.set_num_threads(1)  # the matrices are tiny
    rows = []
    for problem in bank():
        rows.append(_row(problem))
        print(rows[-1], flush=True)
    PAGE.write_text(
        _TEXT.format(
            torch=torch.__version__,
            date=datetime.date.today().isoformat(),
            seeds=", ".join(map(str, SEEDS)),
            columns=" | ".join(COLUMNS),
            columns_in_words=", ".join(COLUMNS),
            dashes="|".join(["---"] * len(COLUMNS)),
            rows="\n".join(rows),
        ),
        encoding="utf-8",
    )


def _row(problem: testing.KnownProblem) -> str:
    swept = [row for row in testing.sweep([problem], seeds=SEEDS) if row.applies]
    worst: list[float | None] = []
    for column in COLUMNS:
        found = [error for row in swept if (error := row.errors[column]) is not None]
        worst.append(max(found, default=None))
    cells = [
        problem.label,
        repr(problem.manifold),
        _own_methods(problem.manifold),
        str(len(swept)),
        *map(error_text, worst),
        "passes" if all(_gradgradcheck(problem, seed) for seed in SEEDS) else "FAILS",
        f"{max(float32_error(problem, seed) for seed in SEEDS):.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _own_methods(manifold: Any) -> str:
    """Of each part of a product."""
    parts: Sequence[Any] = getattr(manifold, "manifolds", (manifold,))
    names = [
        name
        for name, value in vars(ddnkit.Manifold).items()
        if inspect.isfunction(value) and not name.startswith("_") and name not in _OF_CORE
    ]
    own = [
        sum(getattr(type(m), name) is not getattr(ddnkit.Manifold, name) for name in names)
        for m in parts
    ]
    return f"{', '.join(map(str, own))} of {len(names)}"


#: Not for a manifold to write.
_OF_CORE = ("of_parts", "equations", "equation_rows")


def _gradgradcheck(problem: testing.KnownProblem, seed: int) -> bool:
    case = Case(problem, seed)
    function = SolutionMap(problem, "auto", case.xs)
    operands = [x.clone().requires_grad_() for x in case.operands]
    return gradgradcheck(
        function,
        operands,
        check_undefined_grad=False,
        fast_mode=True,
        rtol=1e-5,
        raise_exception=False,
    )


def float32_error(problem: testing.KnownProblem, seed: int) -> float:
    """‖g₃₂ − g₆₄‖/‖g₆₄‖ in roundings, of Σ cos(k) yₖ at the same inputs."""
    xs = [x.float() for x in testing.sample(problem, seed)]
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype).requires_grad_() for x in xs]
        y = SolutionMap(problem, "auto", leaves)(*leaves)
        weights = torch.arange(1, len(y) + 1, dtype=torch.float64).cos().to(dtype)
        found: tuple[Tensor, ...] = torch.autograd.grad(weights @ y, leaves)
        gradients.append(torch.cat([g.double().reshape(-1) for g in found]))
    narrow, wide = gradients
    return float((narrow - wide).norm() / wide.norm()) / (torch.finfo(torch.float32).eps / 2)


if __name__ == "__main__":
    main()
