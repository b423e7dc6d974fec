"""How far two right results may be apart on any processor: the bounds that the tests hold.

A bound of a test is one of three.

* Of rounding: a multiple of the unit roundoff u times a size that the mathematics gives. It is made by
  a function of this module, or stands as `torch.testing.assert_close` takes it without a tolerance:
  1e-7 in float64, 10⁸ roundings more than any well-posed calculation of a few hundred terms makes; in
  float32 1e-5 + 1.3e-6 |x|, the rounding of a sum of 80 terms of size one.
* Of a reference: the same figure, computed another way in the same run.
* Of a promise: a tolerance that the docs or a docstring give to users. A solver's tolerance is a
  backward error of what it solves, `TOLERANCE` of `ddnkit.certificate` that of a layer; the solution
  inherits it times the condition of the problem, an objective at its minimum the square of that.

A figure that one machine gave is none of them. `pytest --rounding SEED` shows which is.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rounding(
    like: Tensor | torch.dtype, terms: float = 1, *, size: float = 1, condition: float = 1
) -> float:
    """What two sums of so many ``terms``, each in any order, may differ by.

    A sum of n terms is off by at most (n − 1) u Σ|t| to first order, in any order (Higham, *Accuracy
    and Stability of Numerical Algorithms*, section 4.2), and so is an inner product by n u Σ|aᵢbᵢ|; a
    difference of two by twice that, which is eps = 2u times n. In the mean square √n takes the place
    of n, so that n leaves much to spare for what else is computed in a few operations each.

    Args:
        like: in whose precision.
        size: Σ|t|, or what bounds it.
        condition: what an error of the data grows by on its way into the result.
    """
    return eps(like) * terms * size * condition


def factorised(
    like: Tensor | torch.dtype, n: int, *, size: float = 1, condition: float = 1
) -> float:
    """What a factorisation of order ``n``, or a solve by one, may be off by.

    LAPACK's own tests let ‖A − QR‖/‖A‖ and ‖QᵀQ − I‖, and those of its other factorisations, be 30
    times n eps: it is backward stable with that constant, on whatever processor it passed them.

    Args:
        size: of what is measured; 1 for an orthogonal factor.
        condition: of what is solved for: an inverse, a singular vector, a polar factor.
    """
    return 30 * n * eps(like) * size * condition


def infeasibility(like: Tensor | torch.dtype, d: int, columns: int) -> float:
    """What ‖UᵀU − I‖_F/√C may be of a d × C matrix that is orthonormal but for its rounding.

    For an exact frame plus an error E, ‖UᵀE + EᵀU‖_F ≤ 2‖E‖_F, and ‖U‖_F = √C. In units of u:

    * 6, as U is rounded: |E| ≤ u|U| gives 2, and so does each factor, where it is a product P Vᵀ;
    * √(2C), as that product has C terms. Its rounding is in the mean square u² C (S²/3 + Σt²/6) for
      an entry S = Σt (`rounding.py` in this folder), and over all entries ΣS² = C and ΣΣt² = C:
      ‖E‖_F = u C/√2;
    * √(d/2), as UᵀU is computed, in sums of d terms: u² d (S²/3 + Σt²/6) for an entry, where ΣS² = C
      and ΣΣt² is the sum of the rows' fourth powers, at most C as well.
    """
    return eps(like) / 2 * (6 + (2 * columns) ** 0.5 + (d / 2) ** 0.5)


def condition(A: Tensor) -> float:
    """Largest singular value over the least, the worst of a batch's."""
    s = torch.linalg.svdvals(A.detach().double())
    return float((s[..., 0] / s[..., -1]).max())


def eps(like: Tensor | torch.dtype) -> float:
    """Twice the unit roundoff: 2.2e-16 in float64, 1.2e-7 in float32."""
    return torch.finfo(like if isinstance(like, torch.dtype) else like.dtype).eps
