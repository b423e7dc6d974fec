"""Solutions by enumeration: of all sets of inequality constraints the one that holds at the solution.

For programs with few constraints this needs no iteration, and no part of the library: each set gives one
linear system, and one of them has a feasible point with multipliers λ ≥ 0.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

#: Q (n, n), q (n,), A (p, n), b (p,), C (k, n), d (k,): min ½yᵀQy + qᵀy with A y = b, C y ≤ d.
Program = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

#: What the solution of a small system may be off by, beside entries of size one.
_ROUNDING = 1e-9


def on_active_set(
    Q: Tensor, q: Tensor, A: Tensor, b: Tensor, C: Tensor, d: Tensor, active: Tensor
) -> Tensor:
    """The stationary point of ½yᵀQy + qᵀy, (n,), on A y = b and the ``active`` rows of C y = d.

    A function of the data at a fixed active set, to be differentiated.

    Args:
        Q: (n, n), of which the symmetric part is used. A: (p, n). C: (k, n).
        active: which of the rows of C, (k,) of bool.
    """
    y, _ = _kkt(Q, q, torch.cat([A, C[active]]), torch.cat([b, d[active]]))
    return y


def active_set(Q: Tensor, q: Tensor, A: Tensor, b: Tensor, C: Tensor, d: Tensor) -> Tensor:
    """Which of the constraints C y ≤ d (k,) hold as equations at the minimum of ½yᵀQy + qᵀy on A y = b.

    The program is to be convex there, with a unique solution and unique multipliers.

    Raises:
        ValueError: no set of constraints has a solution.
    """
    for count in range(len(d) + 1):
        for rows in itertools.combinations(range(len(d)), count):
            active = torch.zeros_like(d, dtype=torch.bool)
            active[list(rows)] = True
            y, multipliers = _kkt(Q, q, torch.cat([A, C[active]]), torch.cat([b, d[active]]))
            if not bool(y.isfinite().all()):
                continue
            feasible = (C @ y - d)[~active] <= _ROUNDING
            if bool(feasible.all()) and bool((multipliers[len(b) :] >= -_ROUNDING).all()):
                return active
    raise ValueError("no set of active constraints solves the program")


def _kkt(Q: Tensor, q: Tensor, rows: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """y and λ with ½(Q + Qᵀ)y + q + rowsᵀλ = 0 and rows y = right; not finite where there is none."""
    n, k = len(q), len(right)
    K = torch.cat(
        [
            torch.cat([(Q + Q.T) / 2, rows.T], dim=1),
            torch.cat([rows, rows.new_zeros(k, k)], dim=1),
        ]
    )
    found, info = torch.linalg.solve_ex(K, torch.cat([-q, right]).unsqueeze(1))
    found = torch.where(info == 0, found.squeeze(1), torch.nan)
    return found[:n], found[n:]
