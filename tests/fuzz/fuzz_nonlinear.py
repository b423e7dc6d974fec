"""Drawn nonlinear programs, convex and not, and their gradients against differences of solutions.

    f = ½ yᵀQy + q·y + ¼ c Σ yⱼ⁴ + w Σ sin(a·y + j),      h = e·y + ½ s |y|² − b,
    g = (G y − h, |y|² − r²),      bounds on some of the entries.
v·(y(θ + εd) − y(θ − εd))/2ε, from solutions that start at y(θ), against the gradient along d. A solution that
moved by more than a hundred times what the gradient says has jumped to another minimum: nothing to compare.
"""

from __future__ import annotations

import collections
import sys
import time
import warnings

import torch
from torch import Tensor

from ddnkit import DdnkitWarning, DeclarativeLayer, DeclarativeNode

#: Relative to y and the data, all of size one. y is good to rounding times its condition.
STEP = 1e-5
#: Largest relative error of a gradient: of a central difference over STEP, of functions bent by 10 or so.
ALLOWED = 1e-4
#: Smaller derivatives are nothing but what a difference of solutions leaves.
LEAST = 1e-6


class Drawn(DeclarativeNode):
    """One drawn program; what is drawn are its inputs."""

    input_dims = (2, 1, 2, 1, 0, 0, 0, 1, 1, 0)
    policy = "nan"

    def __init__(self, ball: bool, equation: bool, bounded: bool):
        self.ball, self.equation, self.bounded = ball, equation, bounded

    def objective(self, Q, q, G, h, r, c, w, a, e, b, y):
        waves = torch.sin(a * y.sum() + torch.arange(len(q)))
        return 0.5 * y @ Q @ y + q @ y + 0.25 * c * (y**4).sum() + w * waves.sum()

    def equality_constraints(self, Q, q, G, h, r, c, w, a, e, b, y):
        return e @ y + 0.1 * y @ y - b if self.equation else None

    def inequality_constraints(self, Q, q, G, h, r, c, w, a, e, b, y):
        linear = G @ y - h
        return torch.cat([linear, (y @ y - r**2).reshape(1)]) if self.ball else linear

    def bounds(self, Q, q, G, h, r, c, w, a, e, b):
        return (-0.7 * r * torch.ones_like(q), None) if self.bounded else None

    def initial_point(self, Q, q, G, h, r, c, w, a, e, b):
        return torch.zeros_like(q)


def drawn(seed: int, size: int) -> tuple[Drawn, list[Tensor]]:
    """A node, and a batch of its inputs."""
    torch.manual_seed(seed)
    n, k = int(torch.randint(2, 6, ())), int(torch.randint(1, 5, ()))
    ball, equation, bounded, convex = (torch.rand(4) < torch.tensor([0.6, 0.4, 0.4, 0.5])).tolist()
    numbers = {"dtype": torch.float64}
    Q = torch.randn(size, n, n, **numbers)
    Q = Q @ Q.mT / n + 0.1 * torch.eye(n, **numbers) if convex else (Q + Q.mT) / 2
    waves = 0.0 if convex else 0.3
    e = torch.randn(size, n, **numbers)
    G = torch.randn(size, k, n, **numbers)
    inputs = [
        Q, 2 * torch.randn(size, n, **numbers), G, torch.rand(size, k, **numbers) + 0.1,
        torch.rand(size, **numbers) + 0.5, torch.rand(size, **numbers) + 0.2,
        waves * torch.rand(size, **numbers), torch.rand(size, n, **numbers),
        e, 0.1 * torch.randn(size, **numbers),
    ]  # fmt: skip
    return Drawn(ball, equation, bounded), inputs


def check(node: Drawn, inputs: list[Tensor]) -> collections.Counter[str]:
    """What came of the items: "right", "alarm", "wrong", "jump"."""
    layer = DeclarativeLayer(node)
    moving = (1, 3, 4, 9)
    xs = [x.clone().requires_grad_(k in moving) for k, x in enumerate(inputs)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DdnkitWarning)
        y = layer(*xs)
        v = torch.randn_like(y)
        gradients = torch.autograd.grad((v * y).sum(), [xs[k] for k in moving], allow_unused=True)
        fine = layer.certificate.differentiable
        directions = {k: torch.randn_like(inputs[k]) for k in moving}
        expected = torch.zeros_like(y[:, 0])
        for k, g in zip(moving, gradients, strict=True):
            if g is not None:
                expected = expected + (g * directions[k]).reshape(len(y), -1).sum(dim=1)
        ends = []
        for sign in (1, -1):
            moved = [x + sign * STEP * directions.get(k, 0.0) for k, x in enumerate(inputs)]
            start = y.detach().nan_to_num(0.0)
            ends.append(DeclarativeLayer(node)(*moved, start=start))
    found = (v * (ends[0] - ends[1])).sum(dim=1) / (2 * STEP)
    outcome: collections.Counter[str] = collections.Counter()
    for i in range(len(y)):
        if not fine[i] or not bool(gradients[0][i].isfinite().all()):
            outcome["alarm"] += 1
            continue
        size = max(float(expected[i].abs()), LEAST * float(v[i].norm()))
        gap = abs(float(expected[i] - found[i]))
        far = max(float((end[i] - y[i].detach()).norm()) for end in ends) > 100 * STEP * max(
            1.0, size
        )
        if gap != gap or (gap > ALLOWED * size and far):
            outcome["jump"] += 1
        elif gap <= ALLOWED * size:
            outcome["right"] += 1
        else:
            outcome["wrong"] += 1
            outcome[f"  item {i}: {float(expected[i]):.6e}, difference {float(found[i]):.6e}"] += 1
    return outcome


if __name__ == "__main__":
    total, size = int(sys.argv[1]), int(sys.argv[2])
    begun, outcome = time.time(), collections.Counter()
    for seed in range(total // size):
        result = check(*drawn(seed, size))
        if result["wrong"]:
            print(seed, dict(result), flush=True)
        outcome.update({k: n for k, n in result.items() if not k.startswith(" ")})
    print(f"{time.time() - begun:.1f} s", dict(outcome), flush=True)
