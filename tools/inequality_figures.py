"""The figure of docs/inequalities.md, drawn from what layers return: `make figures`.

Left: points and their projections on {y ≥ 0, Σ y ≤ 1}, with the directions in which each projection moves.
Middle: a weakly active constraint, y = max(x, 0) at x = 0, and what each policy takes for its slope. Right:
constraints whose gradients are dependent at a point, and whether that does harm.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import ddnkit

DOCS = Path(__file__).parents[1] / "docs"
_FREE, _HELD, _SET = "tab:green", "tab:red", "#dbe9f6"


class OnTriangle(ddnkit.DeclarativeNode):
    """The nearest point of {y ≥ 0, Σ y ≤ 1} in the plane."""

    input_dims = (1,)
    bounds = (0.0, None)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """½‖y − x‖²."""
        return 0.5 * (y - x).square().sum()

    def inequality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        """Σ y − 1."""
        return y.sum() - 1

    def initial_point(self, x: Tensor) -> Tensor:
        """Within."""
        return torch.full_like(x, 0.25)


class Ramp(ddnkit.DeclarativeNode):
    """y = max(x, 0)."""

    input_dims = (0,)
    bounds = (0.0, None)

    def __init__(self, degenerate: str = "least_norm") -> None:
        self.degenerate = degenerate

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """½(y − x)²."""
        return 0.5 * (y - x).square()

    def solve(self, x: Tensor) -> Tensor:
        """The clamp."""
        return x.clamp(min=0)


def draw(path: Path) -> None:
    """Draw the figure into a file."""
    figure = Figure(figsize=(12, 3.9))
    axes = figure.subplots(1, 3)
    _active_sets(axes[0])
    _kink(axes[1])
    _dependent(axes[2])
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _active_sets(axis: Any) -> None:
    axis.fill([0, 1, 0], [0, 0, 1], color=_SET)
    points = torch.tensor(
        [[0.25, 0.3], [0.85, 0.75], [0.55, -0.35], [-0.3, -0.3], [1.5, 0.1], [-0.4, 0.55]],
        dtype=torch.float64,
    )
    layer = ddnkit.DeclarativeLayer(OnTriangle())
    ys, multipliers = layer(points, return_multipliers=True)
    J = torch.func.vmap(torch.func.jacrev(layer))(points)
    count = (torch.cat([multipliers.inequality, multipliers.lower], dim=1) > 0).sum(dim=1)
    for x, y, D, active in zip(points, ys, J, count.tolist(), strict=True):
        axis.plot([x[0], y[0]], [x[1], y[1]], ":", color="gray", zorder=1)
        axis.plot(*x, "o", color="black", markersize=4)
        left, sizes, _ = torch.linalg.svd(D)
        for way in left.T[sizes > 0.5]:
            ends = torch.stack([y - 0.13 * way, y + 0.13 * way])
            axis.plot(ends[:, 0], ends[:, 1], color=_FREE, linewidth=2, zorder=2)
        axis.plot(*y, "s", color=_HELD if active else _FREE, markersize=6, zorder=3)
        axis.annotate(f" {active} active", y, fontsize=8, xytext=(4, 4), textcoords="offset points")
    axis.set_title("the active set: green, where y can move")
    axis.set_aspect("equal")
    axis.set(xlim=(-0.6, 1.7), ylim=(-0.55, 1.2), xticks=[0, 1], yticks=[0, 1])


def _kink(axis: Any) -> None:
    xs = torch.linspace(-1, 1, 201, dtype=torch.float64)
    axis.plot(xs, ddnkit.DeclarativeLayer(Ramp())(xs), color="black")
    near = torch.linspace(-0.35, 0.35, 2)
    for degenerate, style in (("least_norm", _HELD), ("one_sided", _FREE)):
        x = torch.zeros((), dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(ddnkit.DeclarativeLayer(Ramp(degenerate))(x), x)
        axis.plot(near, float(slope) * near, color=style, linewidth=3, alpha=0.6,
                  label=f'"{degenerate}": slope {float(slope):.0f}')  # fmt: skip
    axis.annotate("constraint active,\nλ = −x > 0", (-0.95, 0.12), fontsize=8)
    axis.annotate("inactive,\ny > 0", (0.55, 0.2), fontsize=8)
    axis.plot(0, 0, "s", color="black", markersize=5, label="weakly active: y = 0, λ = 0")
    axis.legend(fontsize=8, loc="upper left")
    axis.set_title("a weakly active constraint: y = max(x, 0)")
    axis.set(xlabel="x", ylabel="y", ylim=(-0.45, 1.1))


def _dependent(axis: Any) -> None:
    axis.set_title("dependent gradients")
    t = torch.linspace(0, 2 * torch.pi, 200)
    # A third line through a corner; two that coincide; two discs with a point in common.
    axis.fill([-0.9, 0, 0, -0.9], [2.1, 2.1, 3, 3], color=_SET)
    for xs, ys in (([0, 0], [2.1, 3.3]), ([-0.9, 0.4], [3, 3]), ([-0.45, 0.35], [3.45, 2.65])):
        axis.plot(xs, ys, color="black", linewidth=1)
    axis.fill([-0.9, 0.4, 0.4, -0.9], [0.6, 0.6, 1.3, 1.3], color=_SET)
    axis.plot([-0.9, 0.4], [1.3, 1.3], color="black", linewidth=1)
    axis.plot([-0.9, 0.4], [1.36, 1.36], color="black", linewidth=1, linestyle="--")
    for centre in (-0.72, 0.22):
        axis.fill(centre + 0.47 * t.cos(), -0.5 + 0.47 * t.sin(), color=_SET, ec="black")
    texts = (
        ("follows from the others:\nharmless", 2.75, _FREE),
        ("y ≤ a and y ≤ b meet at a = b:\na kink, where a or b is differentiated", 1.0, _HELD),
        ("touch: no constraint qualification,\nno gradient", -0.5, _HELD),
    )
    for text, height, colour in texts:
        axis.text(0.85, height, text, color=colour, fontsize=9, va="center")
    for x, y in ((0, 3), (-0.25, 1.3), (-0.25, -0.5)):
        axis.plot(x, y, "s", color="black", markersize=5)
    axis.set(xlim=(-1.4, 4.2), ylim=(-1.2, 3.7))
    axis.set_axis_off()


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("error", ddnkit.DdnkitWarning)
        draw(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "active_set.png")
