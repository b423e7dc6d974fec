"""`nearest_etf`: the nearest simplex ETF as one differentiable function."""

from __future__ import annotations

from torch import Tensor

from ddnkit import BackwardForm, DeclarativeLayer, InputError, Solver

from .node import NearestETF
from .simplex import complete_frame, expand


def nearest_etf(
    H: Tensor,
    prox: Tensor | None = None,
    delta: float = 1e-3,
    *,
    reduced: bool = False,
    solver: str | Solver = "procrustes",
    backward: str | BackwardForm = "auto",
    policy: str = "warn",
) -> Tensor:
    """The frame U of the simplex ETF nearest to class means H, differentiable in H and ``prox``:

        argmin over UᵀU = I of  ‖H − U M̃‖²_F + (δ/2) ‖U − P‖²_F,    M̃ = (I − 11ᵀ/C)/√(C−1).

    The ETF itself is `etf_of_frame(U)`. H enters as it is: for the paper's H̃ centre it and give it
    unit Frobenius norm (`ClassMeans` does).

    Args:
        H: class means as columns, (..., d, C), d ≥ C (d ≥ C − 1 in reduced form); leading
            dimensions are batch. float16 and bfloat16 are solved, and returned, in float32.
        prox: proximal target P, (..., d, C), a frame. None: the problem without the proximal term
            (the paper's first step). Its solution is free in the null direction of M̃, and completed
            there in one fixed way (`complete_frame`), which is differentiated too.
        delta: proximal coefficient δ; used with ``prox``.
        reduced: solve for U E on St(d, C−1) and return U E Eᵀ, which has U 1 = 0: the same ETF
            without a null direction. Allows d = C − 1 and ``delta=0``.
        solver: "procrustes" (closed form), or a manifold solver such as "trust_regions".
        backward: "auto" (closed form), or "dense", "embedded_field", "krylov".
        policy: "raise", "warn", "nan" or "mask", for items whose certificate fails.

    Returns:
        U, (..., d, C), float32 or float64.

    Example:
        >>> H = torch.randn(2048, 1000, requires_grad=True)
        >>> U = nearest_etf(H / H.norm())          # (2048, 1000)
        >>> U = nearest_etf(H / H.norm(), prox=U.detach())

    Source: *Guiding Neural Collapse* (NeurIPS 2024), eq. 6, 7.
    """
    if H.ndim < 2:
        raise InputError(f"H must be (..., d, C); it has shape {tuple(H.shape)}")
    in_reduced_form = reduced or prox is None
    node = NearestETF(delta, reduced=in_reduced_form, solver=solver)
    layer = DeclarativeLayer(node, backward, policy=policy)
    U: Tensor = layer(H, prox)
    if not in_reduced_form:
        return U
    if reduced or H.shape[-2] == H.shape[-1] - 1:
        return expand(U)
    return complete_frame(U)
