"""The orthogonal Procrustes problem in closed form.

    minimise  −⟨A, U⟩  over  U in St(d, C).

With A = P diag(s) Vᵀ, ⟨A, U⟩ = Σᵢ sᵢ ⟨pᵢ, U vᵢ⟩ ≤ Σᵢ sᵢ, reached at U vᵢ = pᵢ: U = P Vᵀ, the polar
factor of A, unique where all sᵢ > 0.

Where A has rank r < C, every U = P_r V_rᵀ + Q V_0ᵀ with Q orthonormal and orthogonal to P_r is
a minimiser. Given a preferred point P̂, the nearest of them maximises ⟨P̂, Q V_0ᵀ⟩, which is again a
Procrustes problem, for R = (I − P_r P_rᵀ) P̂ V_0 V_0ᵀ. It is also the limit of polar(A + δP̂) for
δ → 0: to first order in δ the perturbation acts on the null space through R alone.
Three steps give it for a batch of mixed ranks, with masks in place of slices:
    B₀ = P_r V_rᵀ;   B₁ = B₀ + Q₊W₊ᵀ, from R = Q diag(t) Wᵀ and the directions with t > 0;
    U = polar(B₁).
The singular values of B₁ are ones and zeros. The zeros are the directions in which R says nothing
either; there the last step fills in the SVD's own vectors, so that U is orthonormal in every case.

On a GPU the same solution is found by matrix products alone (`procrustes_products`).

Source: Schönemann, *A generalized solution of the orthogonal Procrustes problem*.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddnkit import InputError, Problem, Solution, Solver, Status, UnsupportedProblemError
from ddnkit.linalg import (
    gram,
    polar_adjoint,
    polar_adjoint_by_products,
    polar_adjoint_by_vectors,
    precision,
    product,
)
from ddnkit.solvers import check_settings, choice, reason_to_decline

from . import procrustes_products
from .orthonormal import Stiefel

#: Below this ratio of singular values AᵀA has lost too much of the least one; an SVD of A has not.
_LEAST_BY_GRAM = 1e-5

#: Roundings that a gradient may be off by, of an objective whose terms may cancel.
_GRADIENT_ROUNDINGS = 1e3
_SEED = 0x9206

#: Columns up to which products of the size of AᵀA cost next to nothing.
_FEW_COLUMNS = 32

#: The factor by which the rounding of a left singular vector may be enlarged.
_ENLARGED = 4


@dataclass(frozen=True)
class Procrustes(Solver):
    """Solves  min ½c‖U‖² − ⟨A(x), U⟩ + const over St(d, C)  exactly: U* = polar(A).

    ½c‖U‖² is constant there: ‖U − W‖² is such an objective, with A = 2W. A comes from two gradients of the
    objective, and a third, at the solution, shows whether it is one; or the node says what it is. Methods
    of a node, on the whole batch (one batch dimension in front), which may be left out:

    * ``procrustes_target(*xs)``: A, (B, d, C), such that the node's objective equals −⟨A, U⟩ plus a
      constant wherever UᵀU = I. It is taken as it is.
    * ``procrustes_completion(*xs)``: a preferred point, (B, d, C). Where A is rank-deficient (a
      singular value at most eps · d · the largest, eps that of the input's dtype) the solution
      nearest to it is taken. Without it the completion is arbitrary.

    Args:
        method: "factors", by eigen- or singular vectors; "products", by matrix products alone, for
            float32: it neither factorises nor waits for the device (see `procrustes_products` for
            what it does where A is rank-deficient); "auto", "products" on a GPU and "factors" else.

    Singular values are computed in float64 whatever the input, and on its device. `aux` of the
    Solution is for `procrustes_adjoint`. An item with a non-finite A has status NON_FINITE and a
    solution of NaN.

    Raises:
        InputError: where A is not a (B, d, C) tensor with d ≥ C, or the objective is no such.
    """

    name = "procrustes"
    keeps_items_apart = True

    method: str = choice("auto", "factors", "products")

    def __post_init__(self) -> None:
        check_settings(self)

    def unsupported(self, problem: Problem) -> str | None:
        """Needs a node on a Stiefel manifold."""
        if not isinstance(problem.manifold, Stiefel):
            return f"its manifold is {problem.manifold!r}; this solver needs Stiefel()"
        return reason_to_decline(problem)

    def solve(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """U* = polar(A) of each item; of ``start`` the shape alone matters."""
        node: Any = problem.node
        part: _LinearPart | None = None
        if callable(getattr(node, "procrustes_target", None)):
            A = node.procrustes_target(*problem.inputs).detach()
            if A.dim() != 3 or A.shape[-2] < A.shape[-1]:
                raise InputError(
                    f"{type(node).__name__}.procrustes_target must return (B, d, C) with d ≥ C; "
                    f"it returned shape {tuple(A.shape)}"
                )
        else:
            part = _LinearPart.of(problem, problem.start() if start is None else start)
            A = part.A
        if self._takes_products(A):
            found = procrustes_products.solution(A, _preferred(node, problem, A), self.name)
        else:
            found = self._by_factors(node, problem, A)
        if part is not None:
            part.refuse_another(problem, found.y)
        return found

    def _takes_products(self, A: Tensor) -> bool:
        if self.method == "auto":
            return A.is_cuda and A.dtype == torch.float32
        if self.method == "products" and A.dtype != torch.float32:
            # The square of a condition number that counts as full in float64 is beyond float64.
            raise InputError(
                f"method 'products' is for float32; A is {A.dtype}: use 'factors', or 'auto'"
            )
        return self.method == "products"

    def _by_factors(self, node: Any, problem: Problem, A: Tensor) -> Solution:
        threshold = torch.finfo(A.dtype).eps * A.shape[-2]
        # A factorisation synchronises with the host: what is asked here costs nothing more.
        clean, finite, all_finite = A, None, math.isfinite(A.sum().item())
        if not all_finite:  # or too large to be added up
            finite = A.isfinite().flatten(1).all(dim=1)
            # In the place of another, one of full rank, which asks nothing more of the batch.
            sound = torch.eye(*A.shape[-2:], dtype=A.dtype, device=A.device)
            clean = torch.where(finite[:, None, None], A, sound)
        factors = _of_full_rank(clean, threshold)
        if factors is None:
            preferred = _preferred(node, problem, A)
            if preferred is not None and not bool(preferred.isfinite().all()):
                # An item of full rank has no use for its own; one that has is not solved.
                known = preferred.isfinite().flatten(1).all(dim=1)
                s = torch.linalg.svdvals(clean.to(torch.float64))
                usable = known | (s > threshold * s[:, :1]).all(dim=-1)
                finite = usable if finite is None else finite & usable
                preferred = torch.where(known[:, None, None], preferred, 0.0)
            factors = _deficient(clean, preferred, threshold)
        if finite is None:
            status = torch.full(A.shape[:1], int(Status.CONVERGED), device=A.device)
        else:
            factors = factors.only(finite)
            status = torch.where(finite, int(Status.CONVERGED), int(Status.NON_FINITE))
        return Solution(
            factors.U.to(A.dtype),
            status,
            torch.zeros_like(status),
            self.name,
            factors.aux(precision(A)),
            uniqueness=factors.curvature.to(A.dtype),
        )


def procrustes_adjoint(
    U: Tensor, v: Tensor, aux: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """∂ℓ/∂A for v = ∂ℓ/∂U, both (B, d, C), from what `Procrustes` kept, and a residual (B,).

    The gradient is in `ddnkit.linalg.precision`. None for the residual where the solution was found
    by factors: nothing is left to be solved.
    """
    if "polar_factor" in aux:
        return polar_adjoint(
            aux["polar_factor"], aux["right_vectors"], aux["singular_values"], v
        ), None
    if "left_vectors" in aux:
        left, right, s = (aux[k] for k in ("left_vectors", "right_vectors", "singular_values"))
        return polar_adjoint_by_vectors(left, right, s, v), None
    bounds = aux["bounds"][..., 0], aux["bounds"][..., -1]
    ratio = procrustes_products.least_ratio(*U.shape[-2:])
    gradient, residual = polar_adjoint_by_products(
        U, aux["symmetric"], aux["inverse"], bounds, v, ratio=ratio
    )
    return gradient, residual.to(v.dtype)


def relative_curvature(s: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Least curvature over largest, (B,), of −⟨A, U⟩ on St(d, C) at its minimum, from A's s (B, C).

    The curvatures are sᵢ + sⱼ (i < j), and for d > C also each sᵢ; one of 2s counts as s.
    """
    s = s.sort(dim=-1).values
    return torch.where(s[..., -1] > 0, _ratios(s, shape)[1], 0.0)


def _ratios(ascending: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Of the least of s (B, C) to the largest, and `relative_curvature`; NaN where all are zero."""
    largest = ascending.select(-1, -1)
    ratio = ascending.select(-1, 0) / largest
    if not shape[-2] == shape[-1] > 1:
        return ratio, ratio
    return ratio, (ratio + ascending.select(-1, 1) / largest) / 2


def _all_above(ratio: Tensor, limit: float) -> bool:
    # Of one item without three operations.
    return ratio.item() > limit if len(ratio) == 1 else bool((ratio > limit).all())


class _Factors(NamedTuple):
    """U, and A = U V diag(s) Vᵀ: right V (B, C, C), s (B, C); left U V, where the adjoint goes by that.

    curvature: see `relative_curvature`.
    """

    U: Tensor
    right: Tensor
    s: Tensor
    curvature: Tensor
    left: Tensor | None = None

    def aux(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What `procrustes_adjoint` takes, with the matrices in that dtype."""
        kept = {"right_vectors": self.right.to(dtype), "singular_values": self.s}
        if self.left is None:
            return {"polar_factor": self.U.to(dtype), **kept}
        return {"left_vectors": self.left.to(dtype), **kept}

    def only(self, finite: Tensor) -> _Factors:
        """The same with NaN in the other items (B,)."""
        matrices, NaN = finite[:, None, None], torch.nan
        return self._replace(
            U=torch.where(matrices, self.U, NaN),
            s=torch.where(finite[:, None], self.s, NaN),
            curvature=torch.where(finite, self.curvature, 0.0),
            left=None if self.left is None else torch.where(matrices, self.left, NaN),
        )


def _is_tall(A: Tensor) -> bool:
    """Whether the adjoint takes less time by U than by U V: three products of A's size and five of AᵀA's in
    place of four, and one less on the way there."""
    d, C = A.shape[-2:]
    return precision(A) == torch.float64 and (d >= 3 * C or C <= _FEW_COLUMNS)


def _of_full_rank(A: Tensor, threshold: float) -> _Factors | None:
    """The factors of A; None where an item is of deficient rank, or so near to it that an SVD must tell."""
    if A.dtype != torch.float64:
        return _by_gram(A, max(threshold, _LEAST_BY_GRAM))
    left, s, right = torch.linalg.svd(A, full_matrices=False)
    ratio, curvature = _ratios(s.flip(-1), A.shape)
    if not _all_above(ratio, threshold):
        return None
    return _Factors(left @ right, right.mT, s, curvature, None if _is_tall(A) else left)


def _by_gram(A: Tensor, least: float) -> _Factors | None:
    """From AᵀA = V diag(s²) Vᵀ in float64, in half the time of an SVD; None where that is too rough.

    The square costs accuracy: eps₆₄ κ² in the directions of the least singular values, 2e-6 at the
    κ up to which this is used. U = A (V diag(1/s) Vᵀ), one product of the size of A where that is tall.

    P = A V diag(1/s) and V are orthonormal, so that of many columns U = P Vᵀ can be
    formed in the input's precision: that costs rounding alone. So can the columns of P whose 1/s
    enlarges the rounding of A V by a small factor; only the others are worth the double of their
    time.

    Args:
        least: singular value, relative to the largest, that is not too small for this.
    """
    wide = A.to(torch.float64)
    squares, V = torch.linalg.eigh(gram(wide))
    s = squares.sqrt_()  # ascending; NaN for what rounding made negative, which is above nothing
    ratio, curvature = _ratios(s, A.shape)
    if not _all_above(ratio, least):
        return None
    if _is_tall(A):
        root = torch.bmm(V / s.unsqueeze(-2), V.mT)
        return _Factors(torch.bmm(wide, root), V, s, curvature)
    narrow = A.to(precision(A))
    if narrow.dtype == wide.dtype:
        left = wide @ (V / s.unsqueeze(-2))
        return _Factors(left @ V.mT, V, s, curvature, left)
    right = V.to(narrow.dtype, memory_format=torch.contiguous_format)
    few = int((s < s[:, -1:] / _ENLARGED).sum(dim=-1).amax())
    scaled = V.div_(s.unsqueeze(-2))
    # All columns at first: a product into the others alone is slower by what they are fewer.
    left = product(narrow, scaled.to(narrow.dtype))
    left[..., :few] = wide @ scaled[..., :few]
    return _Factors(product(left, right.mT), right, s, curvature, left)


class _LinearPart(NamedTuple):
    """Of an objective ½c‖U‖² − ⟨A, U⟩ + const, whose gradient is g(U) = cU − A.

    Attributes:
        A: (B, d, C). c: (B, 1, 1).
        point: P, drawn, the same for all items. gradients: at P and −P, from which A and c are taken.
    """

    A: Tensor
    c: Tensor
    point: Tensor
    gradients: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, problem: Problem, like: Tensor) -> _LinearPart:
        """A = −½(g(P) + g(−P)) and cP = ½(g(P) − g(−P))."""
        point = Stiefel().random(tuple(like.shape[1:]), generator=_fixed_generator(like), like=like)
        point = point.expand_as(like).contiguous()
        gradients = problem.gradient(point).detach(), problem.gradient(-point).detach()
        here, opposite = (g / 2 for g in gradients)
        c = ((here - opposite) * point).sum(dim=(-2, -1), keepdim=True) / point.shape[-1]
        return cls(-(here + opposite), c, point, gradients)

    def refuse_another(self, problem: Problem, U: Tensor) -> None:
        """Raise if the gradient is not cU − A, at P or at the solution U.

        Of an objective with another odd part it is another at P, with probability one. At U it is of one
        that bends anywhere else: the even part, or an odd one where nobody has looked, is not the same.
        """
        there = problem.gradient(U).detach()
        entries = [*self.gradients, there, self.c * self.point, self.c * U, self.A]
        # In double, and of size 1: no square overflows, or vanishes.
        each = torch.stack(entries).double()
        largest = each.abs().amax(dim=(0, -2, -1), keepdim=True)
        each = each / torch.where(largest > 0, largest, 1.0)
        size = torch.linalg.vector_norm(each[:3], dim=(-2, -1)).sum(dim=0)
        off = torch.linalg.vector_norm(each[0:3:2] - each[3:5] + each[5], dim=(-2, -1)).amax(dim=0)
        # An item that is no number is none of another kind.
        wrong = off > _GRADIENT_ROUNDINGS * torch.finfo(U.dtype).eps * size
        if bool(wrong.any()):
            worst = float((off / size)[wrong].max())
            raise UnsupportedProblemError(
                f"solver 'procrustes' cannot solve {type(problem.node).__name__}: its objective is not "
                f"½c‖y‖² − ⟨A, y⟩ + const: its gradient is {worst:.0e} off what that would have. "
                "Other solvers on this manifold take any smooth objective: 'newton', say, or 'trust_regions'"
            )


def _fixed_generator(like: Tensor) -> torch.Generator:
    return torch.Generator(device=like.device).manual_seed(_SEED)


def _preferred(node: Any, problem: Problem, A: Tensor) -> Tensor | None:
    if not hasattr(node, "procrustes_completion"):
        return None
    point: Tensor = node.procrustes_completion(*problem.inputs)
    return point.detach().expand_as(A)


def _deficient(A: Tensor, preferred: Tensor | None, threshold: float) -> _Factors:
    left, s, right = torch.linalg.svd(A.to(torch.float64), full_matrices=False)
    U = left @ right
    if preferred is not None:
        kept = s > threshold * s[:, :1]
        partial = left * kept.unsqueeze(1) @ right
        U = complete(partial, preferred.to(torch.float64), threshold)
    left_vectors = None if _is_tall(A) else U @ right.mT
    return _Factors(U, right.mT, s, relative_curvature(s, A.shape), left_vectors)


def complete(partial: Tensor, preferred: Tensor, threshold: float) -> Tensor:
    """The orthonormal U nearest to ``preferred`` that extends a partial isometry.

    Args:
        partial: B₀ = P_r V_rᵀ, (B, d, C): singular values one and zero.
        preferred: P̂, (B, d, C).
        threshold: singular values of the remainder below this, relative to ‖P̂‖, count as zero.
    """
    # B₀ᵀB₀ = V_r V_rᵀ and B₀B₀ᵀ = P_r P_rᵀ: no basis of the null space is needed.
    remainder = preferred - preferred @ (partial.mT @ partial)
    remainder = remainder - partial @ (partial.mT @ remainder)
    left, t, right = torch.linalg.svd(remainder, full_matrices=False)
    size = torch.linalg.vector_norm(preferred, dim=(-2, -1)).unsqueeze(-1)
    kept = t > threshold * size
    left, _, right = torch.linalg.svd(
        partial + (left * kept.unsqueeze(1)) @ right, full_matrices=False
    )
    return left @ right
