"""The adjoint system of an equality-constrained minimum, dense, with its residual.

At a solution y with multipliers ν, let G = D²_yy L (m×m) and A = D_y h (p×m). For right sides r the
routines find z and μ with

    [ G  Aᵀ ] [ z ]   [ r ]
    [ A  0  ] [ μ ] = [ 0 ].

The system may be regular where G is not (min ½(y₁−x₁)² s.t. y₂ = x₂), and z may be unique where A has
dependent rows (a constraint written twice).

Units. Another unit for the unknowns, y = S y', and for the constraints, h' = E h, turns the system into
one with S G S and E A S, whose solution is the same: z = S z', μ = E μ'. What is singular must not
depend on the choice either: an entropy has curvatures 1/yⱼ over any number of decades, and all of them
are curvatures. So the unknowns are first measured in units in which each has curvature 1,
    z = D z̃,   r̃ = D r,   G̃ = D G D,   Ã = A D,   Dⱼ = |Gⱼⱼ|^-½
(`unit_curvature`, which also says what Dⱼ is where Gⱼⱼ is 0), and the rows of Ã get length 1. Both are
covariant: D becomes S⁻¹D, so that G̃ and r̃ stay as they are, and with them every decision below. With
an orthonormal basis Q of Ã's rows, P = I − QQᵀ and
    M = P G̃ P + Q Qᵀ,      z̃ = P M⁻¹ P r̃,      Ãᵀμ = r̃ − (G̃ − I) z̃ in the least-squares sense
(z̃ itself is at right angles to the rows; left in, its rounding would come back with the square of their
condition). M is regular exactly where G̃ is on the tangent space, and it maps that space to itself. It is
factorised by Cholesky where that shows a strict minimum, by its eigenvalues up to `RANK_REVEALING_SIZE`
unknowns where it does not. What is done where eigenvalues vanish is a declared choice:
    minimum_norm   they are left out: the solution of least norm, of least residual, of the system as it
                   was given: with N an orthonormal basis of the null space of P G P, which is D times
                   that of M, r loses its part in N before it is scaled, and z after;
    damped         λ/(λ² + ε²) in place of 1/λ, ε = `DAMPING`·|λ|max: smooth through the singularity
                   (of the matrix as it was given, whose pseudo-inverse is the limit: no scaling);
    error          NaN for that item, and a NaN residual, on which the policy of a layer acts.
Above that size a matrix that is no strict minimum's is factorised by LU, which needs it regular.

Residual: ‖r̃ − G̃z̃ − Ãᵀμ, unit rows · z̃‖/‖r̃‖, in the same units, of the z and μ that are returned. In
y's own units the component of an unknown near zero, with its curvature of 1/yⱼ, would drown all others
in its rounding. A part of r in the null space is one that no z answers for. How much of r that is must
not depend on the unit of those unknowns, which have no curvature to take one from: it is taken relative
to r on these unknowns alone.

μ has a condition of its own, that of Ã's rows, of which a residual shows nothing. Where they are nearly
dependent it is refined, and what the last steps still change of it is reported as `doubt`
(`solve_scaled`); a rank that only the units have taken from A is no answer at all (`lost_rank`). z needs
neither: its error is that of the rows' span.

Precision. A float32 system is factorised and solved in float64. Its G has been rounded all the same, by
eps |G|, which z feels as a residual of eps |G̃||z̃|: that is added.

The Schur complement of *Guiding Neural Collapse*, Proposition 1, needs G itself regular; it is kept as
the paper's reference (`schur=True`), in the same units, and gives way to M where that is not clearly
regular, or where rows of Ã are so nearly dependent that no digits would be left.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .items import lu_factor
from .krylov import LinearMap
from .lanczos import extreme_eigenvalues
from .rows import DependentRows, IndependentRows, rows_of

#: Unknowns up to which an eigendecomposition is affordable (a second or so on two cores).
RANK_REVEALING_SIZE = 1024
#: ε of the damped choice, relative to the largest eigenvalue.
DAMPING = 1e-6
#: An eigenvalue that is smaller, in roundings of the largest, is what differentiation leaves of zero.
HESSIAN_ROUNDINGS = 512
#: A figure is told from its noise, measured once, where it is larger by this factor.
NOISE_FACTOR = 16
#: A scaled entry may have as many roundings of the largest curvature in it, grown by its units.
_GROWN_ROUNDINGS = 64
#: So far above that cut-off, a matrix is regular without a look at its eigenvalues.
_CLEARLY = 8
#: A residual beyond so many roundings is worth a step of refinement.
_REFINED_ROUNDINGS = 64
#: Steps of refinement where the rows are nearly dependent.
_STEPS_OF_DEPENDENT = 3
#: Parts of a null vector below this, of 1, are its own rounding.
_NULL_ROUNDING = 1e-10
#: Ratio of curvatures up to which the unknowns are as good as in one unit.
ONE_UNIT = 1e4
SINGULAR = ("minimum_norm", "damped", "error")


@dataclass(frozen=True)
class KKTSolution:
    """z (B, m), μ (B, p), and the relative residual of the system, (B,).

    `doubt`: how far μ may be wrong although the residual is small, relative to the larger of it and r̃, (B,);
    None: as far as that says.
    `saddle`: see `SymmetricInverse.saddle`, of the curvatures on the tangent space.
    """

    z: Tensor
    mu: Tensor
    residual: Tensor
    doubt: Tensor | None = None
    saddle: Tensor | None = None


class SymmetricInverse(abc.ABC):
    """K⁻¹ for a batch of symmetric matrices (B, n, n), factorised once."""

    #: orthonormal eigenvectors that were left out, (B, n, n) with columns of zero; None: there are none
    null: Tensor | None = None
    #: (B,), how negative the least eigenvalue is, relative to the largest: 0 where it is not, by more than
    #: its rounding; None: K is positive definite
    saddle: Tensor | None = None

    @abc.abstractmethod
    def __call__(self, right: Tensor) -> Tensor:
        """K⁻¹ applied to right (..., B, n)."""


class CholeskyInverse(SymmetricInverse):
    """By the inverse of a Cholesky factor."""

    def __init__(self, inverse: Tensor):
        self.inverse = inverse

    def __call__(self, right: Tensor) -> Tensor:
        """L⁻ᵀL⁻¹ r."""
        return _apply(self.inverse.mT, _apply(self.inverse, right))


class EigenInverse(SymmetricInverse):
    """By eigenvalues, which tell what is singular.

    Args:
        size: (B,), what the least eigenvalue is held against; None: the largest.
        eps: in units of this rounding; None: that of K's dtype.
        noise: (B,), how much the matrix is uncertain by.
    """

    def __init__(
        self,
        K: Tensor,
        singular: str = "minimum_norm",
        size: Tensor | None = None,
        eps: float | None = None,
        noise: Tensor | None = None,
    ):
        # LAPACK raises for what has overflowed: no answer for that item, which its residual then tells.
        bad = ~finite_items(K).unsqueeze(-1)
        (K,) = without_bad_items(K)
        values, self.vectors = torch.linalg.eigh((K + K.mT) / 2)
        values = values.masked_fill(bad, torch.nan)
        largest = values.abs().amax(dim=-1, keepdim=True)
        if singular == "damped":
            size = torch.where(largest > 0, largest, 1.0)  # whose square may be infinite
            self.inverse = (values / size) / ((values / size) ** 2 + DAMPING**2) / size
            self.values = values
            return
        if size is not None:
            largest = torch.maximum(largest, size.unsqueeze(-1))
        cutoff = largest * (_roundings(K) * (eps or torch.finfo(K.dtype).eps))
        if noise is not None:
            cutoff = torch.maximum(cutoff, NOISE_FACTOR * noise.unsqueeze(-1))
        kept = (values.abs() > cutoff) | bad
        left_out = torch.nan if singular == "error" else 0.0
        self.inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), left_out)
        lowest = values.amin(dim=-1, keepdim=True) if values.shape[-1] else largest
        self.saddle = torch.where(lowest < -cutoff, -lowest / largest, 0.0).squeeze(-1)
        if singular == "minimum_norm" and not bool(kept.all()):
            self.null = self.vectors * (~kept).unsqueeze(-2)

    def __call__(self, right: Tensor) -> Tensor:
        """K⁺ r."""
        return _apply(self.vectors, self.inverse * _apply(self.vectors.mT, right))


class LUInverse(SymmetricInverse):
    """By LU, for matrices that must be regular: inf or NaN where one is not.

    Args:
        cutoff: what an eigenvalue below 0 must exceed to be told from rounding, relative to the largest;
            None: nobody asks for `saddle`.
    """

    def __init__(self, K: Tensor, cutoff: float | None = None):
        self.LU, self.pivots = lu_factor(K)
        if cutoff is not None:
            # An upper bound of the least; a few dozen products beside m³.
            lowest, largest, _ = extreme_eigenvalues(lambda v: _apply(K, v), K[..., 0])
            least = lowest / torch.maximum(lowest.abs(), largest.abs())
            self.saddle = torch.where(least < -cutoff, -least, 0.0)

    def __call__(self, right: Tensor) -> Tensor:
        """K⁻¹ r."""
        columns = right.reshape(-1, *right.shape[-2:]).permute(1, 2, 0)
        solved = torch.linalg.lu_solve(self.LU, self.pivots, columns)
        return solved.permute(2, 0, 1).reshape(right.shape)


def _roundings(K: Tensor) -> int:
    return max(HESSIAN_ROUNDINGS, 4 * K.shape[-1])


def clearly_regular(
    M: Tensor,
    size: Tensor,
    eps: float,
    ratio: Tensor | None = None,
    noise: Tensor | None = None,
) -> CholeskyInverse | None:
    """M⁻¹ where Cholesky's factors show every item regular, whatever rounding has made of G; else None.

    Args:
        size: (B,), a bound of M's eigenvalues.
        eps: the rounding that G was computed with.
        ratio: (B,), largest over least of the curvatures that were scaled to 1, by which the rounding of
            the largest may have grown in the least.
        noise: (B,), what M was measured to be uncertain by; then ``ratio`` has no say.
    """
    factor, failed = torch.linalg.cholesky_ex(M)
    eye = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
    enough = (_CLEARLY * _roundings(M) * eps) * size
    if noise is not None:
        enough = enough.maximum(_CLEARLY * NOISE_FACTOR * noise)
    elif ratio is not None:
        enough = enough.maximum(_GROWN_ROUNDINGS * eps * ratio * size)
    # λ_min ≥ 1/tr M⁻¹ = 1/‖L⁻¹‖²_F, and mostly that will do; it is also ≥ 1/‖M⁻¹‖_∞, which is nearer.
    found = failed == 0
    if not bool((found & (enough * torch.linalg.matrix_norm(inverse).square() < 1)).all()):
        rows = (inverse.mT @ inverse).abs().sum(dim=-1).amax(dim=-1)
        if not bool((found & (enough * rows < 1)).all()):
            return None
    return CholeskyInverse(inverse)


def _inverse(
    M: Tensor, singular: str, size: Tensor, eps: float, noise: Tensor | None = None
) -> SymmetricInverse:
    """M⁻¹ by the quickest way that tells whether there is one; ``size`` (B,) bounds its eigenvalues."""
    if noise is not None:  # which has the rounding of G in it
        eps = torch.finfo(M.dtype).eps
    regular = clearly_regular(M, size, eps, noise=noise)
    if regular is not None:
        return regular
    if M.shape[-1] > RANK_REVEALING_SIZE:
        return LUInverse(M, _roundings(M) * eps)
    return EigenInverse(M, singular, size, eps, noise)


def curvature_ratio_of_units(D: Tensor) -> Tensor:
    """Largest over least curvature (B,) for the units D (B, m) in which each is 1."""
    if D.shape[-1] == 0:
        return torch.ones_like(D.sum(dim=-1))
    return (D.amax(dim=-1) / D.amin(dim=-1)).square()


def unit_curvature(G: Tensor, A: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
    """D (B, m): the unit of each unknown in which its curvature is 1, for G (B, m, m) and A (B, p, m).

    Dⱼ = hⱼ^-½ with hⱼ = |Gⱼⱼ|. An unknown without a curvature of its own (0, or not told from ``noise``,
    (B, m) of the diagonal) takes its unit from those that it meets: of a constraint k, wₖ Aₖⱼ² with
    wₖ = min hᵢ/Aₖᵢ² over the others, which makes no entry of √wₖ Aₖ D larger than 1; of the Hessian,
    Gᵢⱼ²/hᵢ, which does that for Dᵢ Gᵢⱼ Dⱼ. Each is covariant under S and E, and so is what comes of a few
    rounds of them. Where nothing says what it is (y₂ = x₂ alone), the constraint is solved for it as it
    stands, or nothing is.
    """
    h = G.diagonal(dim1=-2, dim2=-1).abs()
    if noise is not None:
        h = torch.where(h > NOISE_FACTOR * noise, h, 0.0)
    if not bool((h > 0).all()):
        h = _with_neighbours(h, G, A)
    return h.rsqrt()


def tangent_part(G: Tensor, A: Tensor, eps: float) -> Tensor:
    """P G P (B, m, m) for the projector P on the null space of A (B, p, m).

    With M = I + |Q||Q|ᵀ, the rounding of its entries is below m ε (M|G|M), and what is within that is 0: an
    unknown that no tangent vector moves has no curvature, and what is left of one would be its unit.
    """
    Q = rows_of(A, eps).basis()
    tangent = G - Q @ (Q.mT @ G)
    tangent = tangent - (tangent @ Q) @ Q.mT
    m, known = G.shape[-1], torch.finfo(G.dtype).eps
    least = tangent.diagonal(dim1=-2, dim2=-1).abs().amin(dim=-1)
    # M is at most 1 + m: elsewhere no entry of the diagonal can be within the bound.
    if bool((least > m * (1 + m) ** 2 * known * G.abs().sum(dim=(-2, -1))).all()):
        return tangent
    left = G.abs() + Q.abs() @ (Q.abs().mT @ G.abs())
    left = left + (left @ Q.abs()) @ Q.abs().mT
    return torch.where(tangent.abs() > m * known * left, tangent, 0.0)


def _with_neighbours(h: Tensor, G: Tensor, A: Tensor | None) -> Tensor:
    for _ in range(4):
        have = h > 0
        known = torch.where(have, h, 1.0)
        found = torch.where(have.unsqueeze(-1), G.square() / known.unsqueeze(-1), 0.0).amax(dim=-2)
        if A is not None and A.shape[-2]:
            squares = A.square()
            used = have.unsqueeze(-2) & (squares > 0)
            ratio = known.unsqueeze(-2) / torch.where(used, squares, 1.0)
            weight = torch.where(used, ratio, torch.inf).amin(dim=-1, keepdim=True)
            weight = torch.where(weight.isfinite(), weight, 0.0)
            found = torch.maximum(found, (weight * squares).amax(dim=-2))
        h = torch.where(have, h, found)
    alone = G.abs().amax(dim=-1)
    if A is not None and A.shape[-2]:
        alone = torch.where(alone > 0, alone, A.square().amax(dim=-2))
    h = torch.where(h > 0, h, alone)
    return torch.where(h > 0, h, 1.0)


class KKTInverse:
    """The system for G (B, m, m) and A (B, p, m) or None, factorised once for any right sides.

    Args:
        noise: (B, m, m), how much each entry of G is uncertain by, where that was measured. Without it,
            `HESSIAN_ROUNDINGS` of G̃ are.
        measure: measures it, where the rounding of G's largest entries, grown by the units, might make a
            singular system look regular.
        eps: what the entries of A are known to; None: the rounding of G's dtype.
        tangent_units: the units are those of P G P, not of G: for a manifold's constraints, across which an
            objective may have any curvature (of a symmetric matrix, that of entries apart).
    """

    def __init__(
        self,
        G: Tensor,
        A: Tensor | None,
        *,
        tangent_units: bool = False,
        singular: str = "minimum_norm",
        schur: bool = False,
        noise: Tensor | None = None,
        measure: Callable[[], Tensor] | None = None,
        eps: float | None = None,
    ):
        self.m = G.shape[-1]
        self._eps = torch.finfo(G.dtype).eps if eps is None else eps
        self.p = 0 if A is None else A.shape[-2]
        self._given = G.dtype
        self.of_whole: EigenInverse | None = None
        self.null: Tensor | None = None
        self._null_of_scaled: Tensor | None = None
        wide = wide_dtype(G)
        G = G.to(wide)
        A = G.new_zeros(*G.shape[:-2], 0, self.m) if A is None else A.to(wide)
        self.good = finite_items(G, A)
        G, A = without_bad_items(G, A)
        if singular == "damped" and not schur:
            self._scale(G, A, torch.ones_like(G[..., 0]))
            self.schur = False
            self._prepare_damped()
            return
        in_units = tangent_part(G, A, self._eps) if tangent_units and self.p else G
        if noise is None:
            self._scale(G, A, unit_curvature(in_units, A))
            ratio = curvature_ratio_of_units(self.D)
            by_cholesky = self._by_cholesky(
                ratio if measure is not None else torch.ones_like(ratio)
            )
            if by_cholesky is not None:
                self.inverse: SymmetricInverse = by_cholesky
            elif measure is not None:
                noise = measure()
            else:
                self.inverse = self._revealing(singular, None)
        if noise is not None:
            noise = torch.where(self.good.reshape(-1, 1, 1), noise.to(wide), 0.0)
            D = unit_curvature(in_units, A, noise.diagonal(dim1=-2, dim2=-1))
            self._scale(G, A, D)
            scaled = (D.unsqueeze(-1) * noise * D.unsqueeze(-2)).flatten(1).norm(dim=1)
            self.inverse = self._revealing(singular, scaled)
        # The complement ÃG̃⁻¹Ãᵀ has the square of the rows' condition, and tells no singular system.
        regular = isinstance(self.inverse, CholeskyInverse)
        self.schur = schur and regular and not isinstance(self.rows, DependentRows)
        if self.schur:
            self._prepare_schur()

    def _scale(self, G: Tensor, A: Tensor, D: Tensor) -> None:
        self.D = D
        self.G = D.unsqueeze(-1) * G * D.unsqueeze(-2)
        self.A = A * D.unsqueeze(-2)
        self.rows: IndependentRows | DependentRows | None = (
            rows_of(self.A, self._eps) if self.p else None
        )
        self.Q = None if self.rows is None else self.rows.basis()
        self.lost = lost_rank(self.rows, A, self._eps)
        # G̃ − I, and in it 0 for what rounding makes of its diagonal.
        self.apart = self.G.clone()
        of_unit = self.apart.diagonal(dim1=-2, dim2=-1)
        of_unit.sub_(1)
        of_unit.masked_fill_(of_unit.abs() < 8 * torch.finfo(G.dtype).eps, 0.0)
        self.M = self.G
        if self.Q is not None:
            # P G̃ P + QQᵀ = G̃ − Q Wᵀ − W Qᵀ with W = G̃Q − ½ Q (QᵀG̃Q + I).
            GQ = self.G @ self.Q
            C = self.Q.mT @ GQ
            C.diagonal(dim1=-2, dim2=-1).add_(1)
            WQ = (GQ - 0.5 * (self.Q @ C)) @ self.Q.mT
            self.M = self.G - (WQ + WQ.mT)
        self.size = self.G.abs().sum(dim=-1).amax(dim=-1).clamp(min=1.0)

    # -- factorisation --------------------------------------------------------------------------

    def _by_cholesky(self, ratio: Tensor | None) -> SymmetricInverse | None:
        return clearly_regular(self.M, self.size, torch.finfo(self._given).eps, ratio)

    def _revealing(self, singular: str, noise: Tensor | None) -> SymmetricInverse:
        inverse = _inverse(self.M, singular, self.size, torch.finfo(self._given).eps, noise)
        if inverse.null is not None:
            self._null_of_scaled = inverse.null
            # D maps null vectors to null vectors, orthonormal ones to others.
            basis = self.D.unsqueeze(-1) * inverse.null
            length = torch.linalg.vector_norm(basis, dim=-2, keepdim=True)
            left, sizes, _ = torch.linalg.svd(basis / torch.where(length > 0, length, 1.0))
            self.null = left * (sizes > 1e-6 * sizes[..., :1]).unsqueeze(-2)
        return inverse

    def _prepare_schur(self) -> None:
        unit = self.A if self.rows is None else self.A / self.rows.length
        self.by_G = LUInverse(self.G)
        self.GiA = self.by_G(unit.movedim(-2, 0)).movedim(0, -1)
        self.complement = LUInverse(unit @ self.GiA)

    def _prepare_damped(self) -> None:
        Q = self.G.new_zeros(*self.G.shape[:-1], 0) if self.rows is None else self.rows.basis()
        self.Q = Q
        corner = Q.new_zeros(*Q.shape[:-2], Q.shape[-1], Q.shape[-1])
        K = torch.cat([torch.cat([self.G, Q], -1), torch.cat([Q.mT, corner], -1)], -2)
        self.of_whole = EigenInverse(K, "damped")
        # Each independent row makes one eigenvalue negative: the next belongs to the tangent space.
        rank = (Q.abs().amax(dim=-2) > 0).sum(dim=-1, keepdim=True)
        least = self.of_whole.values.gather(-1, rank).squeeze(-1)
        least = least / self.of_whole.values.abs().amax(dim=-1)
        cutoff = _roundings(K) * torch.finfo(self._given).eps
        self.of_whole.saddle = torch.where(least < -cutoff, -least, 0.0)

    # -- solution -------------------------------------------------------------------------------

    def __call__(self, r: Tensor) -> KKTSolution:
        """z, μ and residual for r (..., B, m), in r's dtype."""
        given = r.to(self.D.dtype)
        given = torch.where(given.isfinite().all(dim=-1, keepdim=True), given, 0.0)
        right = self.D * self._without_null(given)
        size = right.norm(dim=-1)
        # The damped solution's residual is meant.
        steps = 0 if self.of_whole is not None else None
        solution = solve_scaled(
            right, self.curvature, self._step, self.rows, self.A, self.apart, steps
        )
        z, mu, residual, uncertain = solution
        if self._given != right.dtype:
            felt = _apply(self.G.abs(), z.abs()).norm(dim=-1)
            residual = residual + torch.finfo(self._given).eps * felt
        residual = relative(residual, size)
        if uncertain is not None and self.lost is not None:
            uncertain = torch.where(self.lost & (size > 0), 1.0, uncertain).to(r.dtype)
        z = self._without_null(self.D * z)
        if self._null_of_scaled is not None:
            residual = torch.maximum(
                residual, part_in_null_space(self._null_of_scaled, self.D * given)
            )
        sound = self.good & r.isfinite().all(dim=-1)
        residual = torch.where(sound, residual, torch.nan)
        saddle = (self.of_whole or self.inverse).saddle
        return KKTSolution(z.to(r.dtype), mu.to(r.dtype), residual.to(r.dtype), uncertain, saddle)

    def _step(self, right: Tensor) -> Tensor:
        """z̃ for r̃, once through the factors."""
        if self.schur:
            # Proposition 1, transposed: μ = (A G⁻¹Aᵀ)⁻¹ A G⁻¹r, z = G⁻¹r − G⁻¹Aᵀμ.
            z = self.by_G(right)
            if self.rows is None:
                return z
            z = z - _apply(self.GiA, self.complement(_apply(self.A / self.rows.length, z)))
            # What an entry that is nearly all of a constraint's sum cancels to is rounding of r̃ so far.
            return self._project(z)
        if self.of_whole is not None:
            assert self.Q is not None
            corner = right.new_zeros(*right.shape[:-1], self.Q.shape[-1])
            return self.of_whole(torch.cat([right, corner], -1))[..., : self.m]
        return self._project(self.inverse(self._project(right)))

    def _project(self, v: Tensor) -> Tensor:
        return v if self.Q is None else v - _apply(self.Q, _apply(self.Q.mT, v))

    def curvature(self, z: Tensor) -> Tensor:
        """G̃ z̃."""
        return _apply(self.G, z)

    def _without_null(self, vector: Tensor) -> Tensor:
        if self.null is None:
            return vector
        return vector - _apply(self.null, _apply(self.null.mT, vector))


def solve_scaled(
    right: Tensor,
    curvature: LinearMap,
    step: LinearMap,
    rows: IndependentRows | DependentRows | None,
    A: Tensor,
    apart: Tensor | None = None,
    steps: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """z̃ and μ for r̃ (..., B, m), refined: with the size of what is left, and how far μ is uncertain beyond
    that (None: no further).

    Args:
        curvature: G̃ on vectors.
        step: P M⁻¹ P.
        rows, A: of Ã.
        apart: G̃ − I; None where that is 0.
        steps: of refinement; None for as many as the rows ask for.

    A step of refinement solves the same system for what is left of both its rows, f = r̃ − G̃z̃ − Ãᵀμ and
    −Ãz̃: with n the shortest vector of −Ãz̃, dz = n + P M⁻¹P(f − G̃n) and Ãᵀdμ = f − G̃dz. It makes the
    components of z̃ right beside themselves, not beside the largest (Skeel, *Iterative refinement implies
    numerical stability for Gaussian elimination*, 1980), and with them μ, in which a singular value σ of
    Ã's rows makes an error of eps |z̃|/σ². No residual shows that error; ‖dμ‖ of the last two does. With
    unit rows μ has the unit of r̃, and ‖dμ‖ is taken relative to the larger of the two: the μ of an r̃ at
    right angles to the rows is nothing but the rounding of r̃, which changes with every step.
    """
    z = step(right)
    dependent = isinstance(rows, DependentRows)
    mu = right[..., :0] if rows is None else rows.multipliers(_less(right, apart, z))
    left, off, residual = _left(right, z, mu, curvature, rows, A)
    changes: list[Tensor] = []
    rounding = _REFINED_ROUNDINGS * torch.finfo(right.dtype).eps * right.norm(dim=-1)
    if steps is None:
        steps = _STEPS_OF_DEPENDENT if dependent else int(not bool((residual <= rounding).all()))
    for _ in range(steps):
        if rows is None or off is None:
            dz, dmu = step(left), mu
        else:
            normal = rows.lift(-off)
            dz = normal + step(left - curvature(normal))
            dmu = rows.multipliers(left - curvature(dz))
        again = z + dz, mu if rows is None else mu + dmu
        left_again, off_again, residual_again = _left(right, *again, curvature, rows, A)
        better = residual_again < residual
        if dependent:
            assert rows is not None
            better = residual_again <= torch.maximum(2 * residual, rounding)
            length = rows.length.squeeze(-1)
            size = torch.maximum((again[1] * length).norm(dim=-1), right.norm(dim=-1))
            changes.append(relative((dmu * length).norm(dim=-1), size))
        mask = better.unsqueeze(-1)
        z, mu, left = (
            torch.where(mask, b, a) for a, b in ((z, again[0]), (mu, again[1]), (left, left_again))
        )
        off = off_again if off is None or off_again is None else torch.where(mask, off_again, off)
        residual = torch.where(better, residual_again, residual)
    uncertain = torch.maximum(*changes[-2:]) if len(changes) > 1 else None
    return z, mu, residual, uncertain


def _less(right: Tensor, apart: Tensor | None, z: Tensor) -> Tensor:
    return right if apart is None else right - _apply(apart, z)


def _left(
    right: Tensor,
    z: Tensor,
    mu: Tensor,
    curvature: LinearMap,
    rows: IndependentRows | DependentRows | None,
    A: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """f, unit rows · z̃, and their size."""
    left = right - curvature(z)
    if rows is None:
        return left, None, left.norm(dim=-1)
    left = left - _apply(A.mT, mu)
    off = _apply(A, z) / rows.length.squeeze(-1)
    return left, off, torch.hypot(left.norm(dim=-1), off.norm(dim=-1))


def lost_rank(rows: IndependentRows | DependentRows | None, A: Tensor, eps: float) -> Tensor | None:
    """Items (B,) whose Ã has fewer independent rows than A itself, to working precision; None: none has.

    Units change no rank, so these rows are independent, by less than the rounding of Ã can tell.
    """
    if not isinstance(rows, DependentRows):
        return None
    rank = (rows.sizes > 0).sum(dim=-1)
    own = rows_of(A, eps)
    return rank < ((own.sizes > 0).sum(dim=-1) if isinstance(own, DependentRows) else A.shape[-2])


def part_in_null_space(null: Tensor, right: Tensor) -> Tensor:
    """How much of ``right`` (..., B, m) lies in the span of orthonormal ``null`` (B, m, k), relative to
    what of it is on the unknowns that the span moves: weighted by their share in it. (..., B)"""
    null = torch.where(null.abs() > _NULL_ROUNDING, null, 0.0)
    part = _apply(null.mT, right).norm(dim=-1)
    on_these = (right * torch.linalg.vector_norm(null, dim=-1)).norm(dim=-1)
    return relative(part, on_these)


def solve_kkt(G: Tensor, A: Tensor | None, v: Tensor) -> KKTSolution:
    """Solve the full system for G (B, m, m), A (B, p, m) or None, and r = −v, v (B, m)."""
    return KKTInverse(G, A)(-v)


class TangentInverse:
    """z on the tangent space with P G z = P r, for G and the orthogonal projector P, both (B, m, m).

    In one unit, P G P + ‖G‖ (I − P) is regular exactly where G is on the tangent space, and maps that
    space to itself. Where the curvatures are not of one unit, P gives its null space, and `KKTInverse`
    solves for the rows that span it: the system and its solution are the same.
    """

    def __init__(self, G: Tensor, P: Tensor, *, noise: Tensor | None = None):
        wide = wide_dtype(G)
        self.given = G.dtype
        self.G, self.P = G.to(wide), P.to(wide)
        self.good = finite_items(self.G, self.P)
        G, P = without_bad_items(self.G, self.P)
        self.scaled: KKTInverse | None = None
        if not bool((curvature_ratio(P @ G @ P) <= ONE_UNIT).all()):
            eye = torch.eye(G.shape[-1], dtype=wide, device=G.device)
            values, vectors = torch.linalg.eigh(eye - (P + P.mT) / 2)
            normal = vectors * (values > 0.5).unsqueeze(-2)
            most = max(int((values > 0.5).sum(dim=-1).max()), 1) if len(G) else 1
            rows = normal.mT[..., -most:, :]
            self.scaled = KKTInverse(self.G.to(self.given), rows, noise=noise, tangent_units=True)
            return
        eye = torch.eye(G.shape[-1], dtype=wide, device=G.device)
        self.unit = power_of_two(G.flatten(1)).reshape(-1, 1, 1)
        self.G, G = self.G / self.unit, G / self.unit
        norm = torch.linalg.matrix_norm(G)
        # Without any curvature, as of a linear objective at a vertex, any size will do.
        norm = torch.where(norm > 0, norm, 1.0)
        scale = norm / G.shape[-1] ** 0.5
        matrix = P @ G @ P + scale.reshape(-1, 1, 1) * (eye - P)
        uncertain = None if noise is None else (noise.to(wide) / self.unit).flatten(1).norm(dim=1)
        self.inverse = _inverse(
            matrix, "minimum_norm", norm, torch.finfo(self.given).eps, uncertain
        )

    @property
    def saddle(self) -> Tensor | None:
        """See `SymmetricInverse.saddle`."""
        return self.inverse.saddle if self.scaled is None else self.scaled.inverse.saddle

    def __call__(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """z (..., B, m) and the relative residual (..., B)."""
        if self.scaled is not None:
            solution = self.scaled(r)
            return solution.z, torch.where(self.good, solution.residual, torch.nan)
        given = r.to(self.G.dtype)
        right = _apply(self.P, given)
        finite = torch.where(right.isfinite().all(dim=-1, keepdim=True), right, 0.0)
        z = _apply(self.P, self.inverse(finite))
        residual = (_apply(self.P, _apply(self.G, z)) - right).norm(dim=-1)
        if self.given != given.dtype:
            felt = _apply(self.G.abs(), z.abs()).norm(dim=-1)
            residual = residual + torch.finfo(self.given).eps * felt
        z = (z / self.unit.squeeze(-1)).to(r.dtype)
        return z, relative(residual, given.norm(dim=-1)).to(r.dtype)


def power_of_two(x: Tensor) -> Tensor:
    """The power of 2 (B,) next below the largest entry of x (B, n), or 1: a unit in which squares do not
    overflow, and which rounds nothing."""
    if x.shape[-1] == 0:
        return x.new_ones(len(x))
    largest = x.abs().amax(dim=-1)
    usual = largest.isfinite() & (largest > 0)
    largest = torch.where(usual, largest, 1.0)
    return largest / (2 * torch.frexp(largest).mantissa)


def curvature_ratio(G: Tensor) -> Tensor:
    """Largest over least |Gⱼⱼ| of (B, m, m), (B,); 1 where there are none, infinity beside a 0."""
    h = G.diagonal(dim1=-2, dim2=-1).abs()
    if h.shape[-1] == 0:
        return h.new_ones(len(h))
    least, largest = h.amin(dim=-1), h.amax(dim=-1)
    return torch.where(largest > 0, largest / least, 1.0)


def solve_tangent(G: Tensor, tangent: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """z on the tangent space with P G z = −P v, and the relative residual."""
    return TangentInverse(G, tangent)(-v)


def wide_dtype(like: Tensor) -> torch.dtype:
    """float64, where the device has it."""
    return like.dtype if like.device.type == "mps" else torch.float64


def finite_items(*tensors: Tensor) -> Tensor:
    """(B,): items that hold neither NaN nor infinity in any of the tensors."""
    return torch.stack([t.flatten(1).isfinite().all(dim=1) for t in tensors]).all(dim=0)


def without_bad_items(*tensors: Tensor) -> list[Tensor]:
    """The tensors with items that hold NaN or infinity in any of them set to zero in all.

    LAPACK refuses a whole batch for one such item. The residuals are taken with the tensors as they
    were given, so such an item's is NaN.
    """
    good = finite_items(*tensors)
    return [torch.where(good.reshape(-1, *[1] * (t.ndim - 1)), t, 0.0) for t in tensors]


def relative(residual: Tensor, size: Tensor) -> Tensor:
    """residual / size, and 0 where the residual is: r = 0 has the exact solution 0."""
    return torch.where(residual == 0, residual, residual / size)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
