"""Drawn quadratic programs whose solution is known, a third of them degenerate, and their gradients on paper.

A program is made from its solution: y, the rows S that hold with multipliers λ, and slacks of the others give
q = −Q y − Cᵀλ and the sides. What is expected of each kind:

    regular       the gradient by a dense LU of the KKT matrix, and no alarm
    semidefinite  the same, Q being singular, but not along S
    weak          an alarm: one row of S has λ = 0. Rounded to float32 the program may be beside the kink by
                  more than what rounding leaves, and then has the gradient of that side ("beside")
    dependent     the gradient of y for q, or an alarm: a row of S is stated twice
    touching      the same: two rows leave no interior, a·y ≤ b and −a·y ≤ −b
    infeasible    an alarm: a·y ≤ b and −a·y ≤ −b − size
    unbounded     an alarm: Q d = 0, q·d < 0, C d ≤ 0
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import torch
from torch import Tensor

from ddnkit import DeclarativeLayer, QPNode

KINDS = ("regular", "semidefinite", "weak", "dependent", "touching", "infeasible", "unbounded")
#: How often each is drawn: two thirds have a gradient.
SHARES = (0.52, 0.14, 0.1, 0.08, 0.06, 0.05, 0.05)
#: Largest relative error of a gradient that nobody would call wrong, the tolerance of a layer.
ALLOWED = {torch.float64: 1e-6, torch.float32: 2e-2}


@dataclasses.dataclass
class Batch:
    """Programs of one shape.

    Attributes:
        names: of the inputs beside Q and q. data: all inputs, in float64, by name.
        kinds: of each item. y, held: the solution and the rows that hold there: of A, G, lower, upper.
    """

    names: tuple[str, ...]
    data: dict[str, Tensor]
    kinds: list[str]
    y: np.ndarray
    held: np.ndarray


def drawn(seed: int, size: int, kinds: tuple[str, ...] = KINDS) -> Batch:
    """A batch, everything about it drawn."""
    rng = np.random.default_rng(seed)
    n, p = int(rng.integers(2, 9)), int(rng.integers(0, 2))
    k = int(rng.integers(3, n + 6))
    with_bounds = bool(rng.random() < 0.4)
    shares = np.array([SHARES[KINDS.index(kind)] for kind in kinds])
    chosen = [str(kind) for kind in rng.choice(kinds, size, p=shares / shares.sum())]
    items = [_item(rng, kind, n, p, k, with_bounds) for kind in chosen]
    names = ("A", "b") * bool(p) + ("G", "h") + ("lower", "upper") * with_bounds
    data = {
        name: torch.from_numpy(np.stack([item[name] for item in items]))
        for name in ("Q", "q", *names)
    }
    return Batch(
        names, data, chosen, np.stack([i["y"] for i in items]), np.stack([i["held"] for i in items])
    )


def _item(rng, kind, n, p, k, with_bounds):
    unit = 10.0 ** rng.uniform(-3, 3)
    size = 10.0 ** rng.uniform(-2, 2)
    basis = np.linalg.qr(rng.standard_normal((n, n)))[0]
    values = 10.0 ** rng.uniform(-1.5, 1.5, n)
    y = rng.standard_normal(n)
    A, G = rng.standard_normal((p, n)), rng.standard_normal((k, n))
    active = int(rng.integers(1, max(2, min(k, n - p))))
    if kind in ("semidefinite", "unbounded"):
        values[0] = 0.0
        # The row 0 holds, and bends what Q leaves straight.
        if kind == "semidefinite":
            G[0] = basis[:, 0] + 0.3 * rng.standard_normal(n)
        else:
            d = basis[:, 0]
            A = A - np.outer(A @ d, d)
            G = G - np.outer(np.maximum(G @ d, 0.0), d)
    Q = (basis * values) @ basis.T
    lam = np.zeros(k)
    lam[:active] = rng.uniform(0.2, 2.0, active)
    slack = rng.uniform(0.2, 2.0, k)
    slack[:active] = 0.0
    if kind == "weak":
        lam[active - 1] = 0.0
    if kind == "dependent":
        factor = rng.uniform(0.5, 2.0)
        G[k - 1], slack[k - 1] = factor * G[0], 0.0
        lam[k - 1] = rng.uniform(0.0, 1.0)
    h = G @ y + slack
    if kind == "touching":
        G[k - 1], h[k - 1], slack[k - 1] = -G[0], -h[0], 0.0
    if kind == "infeasible":
        G[k - 1], h[k - 1] = -G[0], -h[0] - rng.uniform(0.1, 1.0)
    nu = rng.standard_normal(p)
    lower, upper = np.full(n, -np.inf), np.full(n, np.inf)
    of_bounds = np.zeros(n)
    at_lower = at_upper = np.zeros(n, bool)
    if with_bounds:
        lower, upper = y - rng.uniform(0.2, 2.0, n), y + rng.uniform(0.2, 2.0, n)
        lower[rng.random(n) < 0.3] = -np.inf
        upper[rng.random(n) < 0.3] = np.inf
        # One bound holds where there is room for it.
        if p + active < n and kind in ("regular", "weak"):
            at_lower = np.arange(n) == int(rng.integers(n))
            lower = np.where(at_lower, y, lower)
            of_bounds = np.where(at_lower, rng.uniform(0.2, 2.0, n), 0.0)
    q = -Q @ y + A.T @ nu - G.T @ lam + of_bounds
    if kind == "unbounded":
        lower, upper = np.full(n, -np.inf), np.full(n, np.inf)
        q = q - (q @ basis[:, 0] + size) * basis[:, 0]
    rows = (slack == 0.0) & (kind not in ("dependent",) or np.arange(k) < k - 1)
    if kind == "touching":
        rows[k - 1] = False
    held = np.concatenate([np.ones(p, bool), rows, at_lower, at_upper])
    # y in units, f in others.
    return {
        "Q": size * Q / unit**2, "q": size * q / unit, "A": A, "b": unit * (A @ y), "G": G,
        "h": unit * h, "lower": unit * lower, "upper": unit * upper, "y": unit * y, "held": held,
    }  # fmt: skip


def gradients(
    batch: Batch, index: int, v: np.ndarray
) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, float]]]:
    """y and the gradient of v·y for each vector among the inputs, by the KKT matrix of the rows that hold."""
    data = {name: x[index].double().numpy() for name, x in batch.data.items()}
    n, p, k = len(data["q"]), len(data.get("b", ())), len(data["h"])
    eye = np.eye(n)
    C = np.concatenate([data.get("A", np.zeros((0, n))), data["G"], eye, eye])
    t = np.concatenate([data.get("b", np.zeros(0)), data["h"]])
    bounds = [data.get("lower", np.full(n, -np.inf)), data.get("upper", np.full(n, np.inf))]
    t = np.concatenate([t, *bounds])
    held = batch.held[index]
    rows, sides = C[held], t[held]
    # Of what is nothing but rounding, the sizes tell. At a vertex y does not depend on q.
    vertex = int(held.sum()) == n
    of_v = (1.0 if vertex else 1e-6) * np.linalg.norm(v)
    sizes = {"q": of_v / np.linalg.norm(data["Q"]), "h": of_v / np.linalg.norm(C)}
    sizes["b"] = sizes["h"]
    K = np.block([[data["Q"], rows.T], [rows, np.zeros((len(rows), len(rows)))]])
    y = np.linalg.solve(K, np.concatenate([-data["q"], sides]))[:n]
    z = np.linalg.solve(K, np.concatenate([v, np.zeros(len(rows))]))
    of_rows = np.zeros(len(C))
    of_rows[held] = z[n:]
    found = {"q": np.zeros(n) if vertex else -z[:n], "h": of_rows[p : p + k]}
    if p:
        found["b"] = of_rows[:p]
    return y, {name: (g, max(float(np.linalg.norm(g)), sizes[name])) for name, g in found.items()}


def check(batch: Batch, dtype: torch.dtype, **settings: object) -> collections.Counter[str]:
    """Solve and differentiate the batch; what came of its items: "right", "alarm", "wrong" and the kind.

    An item counts as alarmed where its gradient is NaN, as the policy "nan" has it.
    """
    rounded = {name: x.to(dtype) for name, x in batch.data.items()}
    batch = dataclasses.replace(batch, data=rounded)
    layer = DeclarativeLayer(QPNode(*batch.names), policy="nan", **settings)
    xs = [x.clone().requires_grad_() for x in rounded.values()]
    y = layer(*xs)
    v = torch.linspace(-1, 2, y.shape[1], dtype=dtype) / y.detach().nan_to_num(0.0).norm(
        dim=1, keepdim=True
    )
    v = v.nan_to_num(posinf=1.0)
    found = dict(zip(rounded, torch.autograd.grad((v * y).sum(), xs), strict=True))
    outcome: collections.Counter[str] = collections.Counter()
    for i, kind in enumerate(batch.kinds):
        known = [found[name][i] for name in ("q", "h", "b") if name in found]
        alarmed = not all(bool(g.isfinite().all()) for g in known)
        if alarmed:
            outcome["alarm " + kind] += 1
            continue
        if kind == "weak" and dtype == torch.float32:
            outcome["beside weak" if _of_a_side(batch, i, v[i], known[0]) else "wrong weak"] += 1
            continue
        if kind in ("weak", "infeasible", "unbounded"):
            outcome["wrong " + kind] += 1
            continue
        expected_y, expected = gradients(batch, i, v[i].double().numpy())
        names = ["q"] if kind in ("dependent", "touching") else list(expected)
        errors = [_error(found[name][i], *expected[name]) for name in names]
        errors.append(_error(y[i], expected_y, float(np.linalg.norm(expected_y))))
        outcome[("right " if max(errors) <= ALLOWED[dtype] else "wrong ") + kind] += 1
    return outcome


def _of_a_side(batch: Batch, index: int, v: Tensor, of_q: Tensor) -> bool:
    """Whether the gradient for q is that with one of the rows that hold, or with one less."""
    direction = v.double().numpy()
    held = batch.held[index]
    sides = [held.copy(), *(held & (np.arange(len(held)) != row) for row in np.flatnonzero(held))]
    for rows in sides:
        changed = batch.held.copy()
        changed[index] = rows
        _, expected = gradients(dataclasses.replace(batch, held=changed), index, direction)
        if _error(of_q, *expected["q"]) <= ALLOWED[torch.float32]:
            return True
    return False


def _error(found: Tensor, expected: np.ndarray, size: float) -> float:
    gap = float(np.linalg.norm(found.detach().double().numpy() - expected))
    return gap / size


if __name__ == "__main__":
    import sys
    import time

    total, size = int(sys.argv[1]), int(sys.argv[2])
    kinds = tuple(sys.argv[3].split(",")) if len(sys.argv) > 3 else KINDS
    for dtype in (torch.float64, torch.float32):
        begun, outcome = time.time(), collections.Counter()
        for seed in range(total // size):
            result = check(drawn(seed, size, kinds), dtype)
            for name in result:
                if name.startswith("wrong") or name in ("alarm regular", "alarm semidefinite"):
                    print(seed, dtype, dict(result), flush=True)
                    break
            outcome.update(result)
        print(dtype, f"{time.time() - begun:.1f} s", dict(sorted(outcome.items())), flush=True)
