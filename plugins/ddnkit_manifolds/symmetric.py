"""Symmetric positive definite matrices, in the affine-invariant and the log-Euclidean metric.

Among all matrices they are an open set of the symmetric ones: j(Y) = (Y − Yᵀ)/2 below the diagonal, with
    Σᵢ σᵢ ∇jᵢ = Ω skew,      Ω(Y) = ½(∇f − ∇fᵀ),      ∇²jᵢ = 0.
A derivative by the implicit function theorem does not depend on the metric; a solver's steps do.

* Affine-invariant: ⟨U, V⟩ = tr(Y⁻¹U Y⁻¹V). With S = sym(∇f), the gradient is Y S Y and the Hessian
      Y sym(∇²f[Z]) Y + sym(Z S Y).
  The boundary is infinitely far away. Y + Z + ½ Z Y⁻¹Z = ½(Y + (Y + Z) Y⁻¹(Y + Z)) is positive definite for
  every symmetric Z, and equal to the geodesic to second order.
* Log-Euclidean: that of S = log Y in the Euclidean one: with D the derivative of log at Y, ⟨U, V⟩ = ⟨DU, DV⟩.
  In the eigenvectors of Y it is the product, entry by entry, with (log λᵢ − log λⱼ)/(λᵢ − λⱼ). Geodesics
  are exp(log Y + t DZ).

Source: Bhatia, *Positive Definite Matrices*, chapter 6; Arsigny, Fillard, Pennec and Ayache, *Geometric means
in a novel vector space structure on symmetric positive-definite matrices*; Jeuris, Vandebril and
Vandereycken, *A survey and comparison of contemporary algorithms for computing the matrix geometric mean*
(the retraction).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.func import grad

from ddnkit import InputError, Manifold, gaussian, nearest_choice

from .matrices import lapack_dtype, matrix_exponential, roots, skew_part, symmetric_part

_METRICS = ("affine_invariant", "log_euclidean")


class SPD(Manifold):
    """Symmetric positive definite matrices, y of shape (..., n, n). Multipliers are skew, (..., n, n).

    Args:
        metric: "affine_invariant" or "log_euclidean".

    Raises:
        InputError: for another metric.
    """

    name = "spd"
    event_dims = 2

    def __init__(self, metric: str = "affine_invariant"):
        if metric not in _METRICS:
            raise InputError(f"no metric '{metric}'.{nearest_choice(metric, _METRICS)}")
        self.metric = metric

    def constraint(self, y: Tensor) -> Tensor:
        """(yᵢⱼ − yⱼᵢ)/2 for i > j, row by row, (..., n(n−1)/2)."""
        n = y.shape[-1]
        rows, columns = torch.tril_indices(n, n, offset=-1, device=y.device)
        return skew_part(y)[..., rows, columns]

    def infeasibility(self, y: Tensor) -> Tensor:
        """How far from symmetric, relative to ‖y‖, or how negative, relative to the largest eigenvalue."""
        size = torch.linalg.matrix_norm(y)
        skew = torch.linalg.matrix_norm(skew_part(y)) / torch.where(size > 0, size, 1.0)
        values = torch.linalg.eigvalsh(symmetric_part(y).nan_to_num())
        least, largest = values[..., 0], values.abs().amax(dim=-1)
        negative = torch.where(least > 0, 0.0, -least / torch.where(largest > 0, largest, 1.0))
        return torch.maximum(skew, torch.where(largest > 0, negative, 1.0))

    def project(self, y: Tensor) -> Tensor:
        """The nearest symmetric matrix with eigenvalues of at least ε times the largest."""
        values, vectors = torch.linalg.eigh(symmetric_part(y))
        least = torch.finfo(y.dtype).eps * values.abs().amax(dim=-1, keepdim=True)
        least = torch.where(least > 0, least, torch.finfo(y.dtype).eps)
        return symmetric_part((vectors * torch.maximum(values, least).unsqueeze(-2)) @ vectors.mT)

    def point_of(self, x: Tensor) -> Tensor:
        """exp of the symmetric part of x."""
        return symmetric_part(matrix_exponential(symmetric_part(x)))

    def free_of(self, weight: Tensor) -> Tensor:
        """The logarithm of the projection."""
        return _Log(self.project(weight)).value

    def multipliers(self, y: Tensor, gradient: Tensor) -> Tensor:
        """½(∇f − ∇fᵀ)."""
        return skew_part(gradient)

    def normal(self, y: Tensor, multipliers: Tensor) -> Tensor:
        """The skew matrix itself."""
        return skew_part(multipliers)

    def constraint_curvature(self, y: Tensor, multipliers: Tensor, direction: Tensor) -> Tensor:
        """0: the constraint is linear."""
        return torch.zeros_like(direction)

    def tangent(self, y: Tensor, vector: Tensor) -> Tensor:
        """½(V + Vᵀ)."""
        return symmetric_part(vector)

    def inner(self, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Of the metric."""
        if self.metric == "log_euclidean":
            log = _Log(y)
            return (log.derivative(u) * log.derivative(v)).sum(dim=(-2, -1))
        factor = torch.linalg.cholesky_ex(y)[0]
        left, right = torch.cholesky_solve(u, factor), torch.cholesky_solve(v, factor)
        return (left * right.mT).sum(dim=(-2, -1))

    def gradient(self, y: Tensor, gradient: Tensor) -> Tensor:
        """Of the metric."""
        S = symmetric_part(gradient)
        if self.metric == "log_euclidean":
            log = _Log(y)
            return log.inverse(log.inverse(S))
        return y @ S @ y

    def hessian(self, y: Tensor, gradient: Tensor, product: Tensor, direction: Tensor) -> Tensor:
        """Of the metric."""
        S = symmetric_part(gradient)
        if self.metric == "affine_invariant":
            return y @ symmetric_part(product) @ y + symmetric_part(direction @ S @ y)
        # In S = log Y the function is f(exp S), with the Hessian product Dexp[∇²f[Z]] + D²exp[DZ][∇f].
        log = _Log(y)
        along = log.derivative(direction)

        def paired(s: Tensor) -> Tensor:
            first = grad(lambda s: (matrix_exponential(s) * S).sum())(s)
            return (first * along).sum()

        return log.inverse(
            log.inverse(symmetric_part(product)) + symmetric_part(grad(paired)(log.value))
        )

    def retract(self, y: Tensor, tangent: Tensor) -> Tensor:
        """Y + Z + ½ Z Y⁻¹Z, or exp(log Y + DZ)."""
        if self.metric == "log_euclidean":
            return self.exponential(y, tangent)
        solved = torch.cholesky_solve(tangent, torch.linalg.cholesky_ex(y)[0])
        return symmetric_part(y + tangent + tangent @ solved / 2)

    def transport(self, y: Tensor, to: Tensor, vector: Tensor) -> Tensor:
        """E V Eᵀ with E = (to Y⁻¹)^½, along the geodesic; log-Euclidean: D⁻¹ at ``to`` of D at y."""
        if self.metric == "log_euclidean":
            return _Log(to).inverse(_Log(y).derivative(vector))
        root, inverse = roots(y)
        values, vectors = torch.linalg.eigh(symmetric_part(inverse @ to @ inverse))
        middle = (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT
        E = root @ middle @ inverse
        return symmetric_part(E @ vector @ E.mT)

    def exponential(self, y: Tensor, tangent: Tensor) -> Tensor:
        """The geodesic from y in the direction of a tangent vector: Y^½ exp(Y^−½ Z Y^−½) Y^½, or
        exp(log Y + DZ)."""
        if self.metric == "log_euclidean":
            log = _Log(y)
            return symmetric_part(matrix_exponential(log.value + log.derivative(tangent)))
        root, inverse = roots(y)
        middle = matrix_exponential(symmetric_part(inverse @ tangent @ inverse))
        return symmetric_part(root @ middle @ root)

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """exp of a symmetric matrix with normal entries of variance 1/n, of the given shape (..., n, n)."""
        drawn = gaussian(shape, generator, like).to(lapack_dtype(like.dtype))
        drawn = matrix_exponential(symmetric_part(drawn) / max(shape[-1], 1) ** 0.5)
        return symmetric_part(drawn).to(like.dtype)

    def __repr__(self) -> str:
        return "SPD()" if self.metric == "affine_invariant" else f"SPD({self.metric!r})"


class _Log:
    """log at Y, and its derivative in Y's eigenvectors."""

    def __init__(self, y: Tensor):
        values, self.vectors = torch.linalg.eigh(symmetric_part(y))
        values = values.clamp_min(torch.finfo(y.dtype).tiny)
        logs = values.log()
        self.value = (self.vectors * logs.unsqueeze(-2)) @ self.vectors.mT
        apart = values.unsqueeze(-1) - values.unsqueeze(-2)
        mean = (values.unsqueeze(-1) + values.unsqueeze(-2)) / 2
        # log(a/b)/(a − b) = 2 artanh(x)/(x (a + b)), x = (a − b)/(a + b), which does not cancel.
        x = apart / (2 * mean)
        same = x.abs() < 1e-3
        series = 1 + x.square() / 3 + x.square().square() / 5
        self.ratios = (
            torch.where(
                same, series, torch.atanh(torch.where(same, 0.5, x)) / torch.where(same, 0.5, x)
            )
            / mean
        )

    def derivative(self, z: Tensor) -> Tensor:
        """D z."""
        return symmetric_part(
            self.vectors @ (self.ratios * (self.vectors.mT @ z @ self.vectors)) @ self.vectors.mT
        )

    def inverse(self, z: Tensor) -> Tensor:
        """D⁻¹ z."""
        return symmetric_part(
            self.vectors @ ((self.vectors.mT @ z @ self.vectors) / self.ratios) @ self.vectors.mT
        )
