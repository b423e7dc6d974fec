"""Simplex equiangular tight frames and the frames U (orthonormal columns) that orient them.

A simplex ETF of C classes in R^d is √(C/(C−1)) U (I − 11ᵀ/C): C unit vectors with pairwise cosine
−1/(C−1), as columns (*Guiding Neural Collapse*, eq. 1). M̃ = (I − 11ᵀ/C)/√(C−1) is the standard one
of unit Frobenius norm.

The direction 1 is in the null space of M̃. With E (C×(C−1)) an orthonormal basis of its complement,
U E carries all that an ETF needs; `reduce` and `expand` multiply by E and Eᵀ in O(dC) by one
Householder reflection, Q = I − 2wwᵀ with Q e₁ = 1/√C, whose other columns are E.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddnkit import InputError


def simplex_etf(
    classes: int,
    dimension: int | None = None,
    *,
    direction: str = "canonical",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """A simplex ETF, shape (d, C): unit columns with pairwise cosine −1/(C−1).

    Args:
        dimension: d ≥ C − 1; C by default.
        direction: "canonical" (the frame is the first C columns of the identity) or "haar" (a
            uniformly random frame, from torch's generator).

    Example:
        >>> simplex_etf(3, 8).shape
        torch.Size([8, 3])
    """
    dimension = classes if dimension is None else dimension
    return etf_of_frame(named_frame(direction, dimension, classes, dtype=dtype, device=device))


def named_frame(
    direction: str,
    dimension: int,
    classes: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The frame (d, C) called ``direction``: `canonical_frame` or `haar_frame`."""
    frames = {"canonical": canonical_frame, "haar": haar_frame}
    if direction not in frames:
        raise InputError(f"direction is 'canonical' or 'haar', not {direction!r}")
    return frames[direction](dimension, classes, dtype=dtype, device=device)


def etf_of_frame(U: Tensor) -> Tensor:
    """√(C/(C−1)) U (I − 11ᵀ/C) for U of shape (..., d, C)."""
    C = U.shape[-1]
    return centre(U, (C / (C - 1)) ** 0.5)


def canonical_frame(
    dimension: int,
    classes: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The first C columns of the identity of R^d; for d = C − 1 the partial isometry Eᵀ."""
    _require(dimension, classes)
    if dimension == classes - 1:
        return expand(torch.eye(dimension, dtype=dtype, device=device))
    return torch.eye(dimension, classes, dtype=dtype, device=device)


def haar_frame(
    dimension: int,
    classes: int,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """A frame drawn uniformly (Haar measure, Mezzadri 2007), from torch's generator."""
    _require(dimension, classes)
    columns = min(dimension, classes)
    gaussian = torch.randn(dimension, columns, dtype=dtype, device=device)
    Q, R = torch.linalg.qr(gaussian)
    # LAPACK writes by columns, and every tensor that is made of one would be too.
    frame = (Q * R.diagonal().sign()).contiguous()
    return expand(frame) if dimension == classes - 1 else frame


def complete_frame(reduced: Tensor, preferred: Tensor | None = None) -> Tensor:
    """A frame U (..., d, C) with U E = ``reduced`` (..., d, C−1), completed in one fixed way.

    U = reduced·Eᵀ + u 1ᵀ/√C, with u the unit vector orthogonal to ``reduced`` that is nearest to
    ``preferred`` (d, 1), by default the canonical frame's own, √C⁻¹ Σ_{i≤C} e_i; where that has no
    component there, the unit vector of the axis that has the largest. The same on every rank and
    device, and differentiable.
    """
    d, C = reduced.shape[-2], reduced.shape[-1] + 1
    if preferred is None:
        preferred = reduced.new_zeros(d, 1)
        preferred[:C] = C**-0.5
    first = _reject(reduced, preferred.expand(*reduced.shape[:-2], d, 1))
    axis = (1 - reduced.detach().square().sum(-1)).argmax(-1)
    second = _reject(
        reduced, torch.eye(d, dtype=reduced.dtype, device=reduced.device)[axis, :, None]
    )
    near = first.norm(dim=-2, keepdim=True) > 0.1
    u = torch.where(near, first, second)
    u = _reject(reduced, u / u.norm(dim=-2, keepdim=True))
    u = u / u.norm(dim=-2, keepdim=True)
    return expand(reduced) + u * C**-0.5


def _reject(frame: Tensor, vector: Tensor) -> Tensor:
    return vector - frame @ (frame.mT @ vector)


def centre(X: Tensor, scale: float = 1.0, columns: int | None = None) -> Tensor:
    """scale · X (I − 11ᵀ/C): subtract the mean of the columns, C of them where that is known already."""
    C = X.shape[-1] if columns is None else columns
    # In this form neither the value nor its derivative makes more tensors like X than one or two.
    minus_mean = X.sum(dim=-1, keepdim=True) * (-scale / C)
    return torch.add(minus_mean, X, alpha=scale)


def reduce(X: Tensor) -> Tensor:
    """X E, shape (..., d, C−1) from (..., d, C)."""
    w = _reflector(X.shape[-1], X)
    return (X - 2 * (X @ w).unsqueeze(-1) * w)[..., 1:]


def expand(Y: Tensor) -> Tensor:
    """Y Eᵀ, shape (..., d, C) from (..., d, C−1)."""
    padded = torch.nn.functional.pad(Y, (1, 0))
    w = _reflector(padded.shape[-1], padded)
    return padded - 2 * (padded @ w).unsqueeze(-1) * w


def _reflector(C: int, like: Tensor) -> Tensor:
    # w ∝ e₁ − 1/√C, so that the reflection exchanges the two.
    # Made where it is needed: a copy to a device would wait for it.
    w = torch.full((C,), -(C**-0.5), dtype=torch.float64, device=like.device)
    w[0] += 1
    return (w / w.norm()).to(like.dtype)


def _require(dimension: int, classes: int) -> None:
    if classes < 2:
        raise InputError(f"a simplex ETF needs at least 2 classes, not {classes}")
    if dimension < classes - 1:
        raise InputError(
            f"a simplex ETF of {classes} classes needs dimension {classes - 1} or more, "
            f"not {dimension}"
        )
