"""One Newton step of an equality-constrained problem, made a direction of descent.

    minimise f(y)  subject to  h(y) = 0,      L(y, ν) = f − νᵀh,   g = ∇f,  A = Dh,  H = ∇²_yy L.

The Newton step of the KKT conditions solves  [H Aᵀ; A 0][d; −ν⁺] = [−g; −h].  With V_r an
orthonormal basis of the row space of A (its right singular vectors, r the numerical rank) and W one
of its null space, the tangent space, it falls apart into
    normal step      d_n = −A⁺ h,
    tangent step     d_t = −W (WᵀHW)⁻¹ Wᵀ(g + H d_n),
    multipliers      ν⁺ = (Aᵀ)⁺ (g + H d),      d = d_n + d_t.
Nothing here asks for a nonsingular H or for independent constraints. Replacing the eigenvalues λ of
WᵀHW by max(|λ|, floor) keeps d_t a direction of descent for L on the tangent space, so that the
iteration is not drawn to saddle points and maxima, where the plain step would go. A batch of mixed
ranks is treated with masks: W has all m columns, those of the row space set to zero, and ones take
their place on the diagonal of WᵀHW.

Source: Nocedal and Wright, *Numerical Optimization*, chapters 3 and 18.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..lagrangian import constraint_jacobian, lagrangian_hessian
from ..problem import Problem, flat

_ROUNDINGS = 16


@dataclass(frozen=True)
class LocalModel:
    """f, h and their derivatives at one point of each problem; y flattened to m, p constraints.

    Attributes:
        value: (B,). gradient: (B, m).
        constraints: (B, p). jacobian: (B, p, m).
    """

    value: Tensor
    gradient: Tensor
    constraints: Tensor
    jacobian: Tensor


@dataclass(frozen=True)
class Step:
    """A step and what is needed to judge it.

    Attributes:
        direction: (B, m), normal and tangent step together.
        tangent: (B, m), the tangent step alone.
        escape: (B, m), unit direction of the most negative curvature, downhill; zero without one.
        lowest: (B,), the eigenvalue along ``escape``, at most 0.
        multipliers: (B, p).
        stationarity: (B,), ‖Wᵀg‖. hessian_norm: (B,), Frobenius norm of the full H.
        change: (B,), ‖|H||y|‖, what may have cancelled in the gradient.
    """

    direction: Tensor
    tangent: Tensor
    escape: Tensor
    lowest: Tensor
    multipliers: Tensor
    stationarity: Tensor
    hessian_norm: Tensor
    change: Tensor


def local_model(problem: Problem, y: Tensor) -> LocalModel:
    """Evaluate f, ∇f, h and Dh at y of shape (B, *y)."""
    value, gradient = problem.value_and_gradient(y)
    gradient = flat(gradient)
    jacobian = constraint_jacobian(problem, y)
    if jacobian is None:
        jacobian = gradient.new_zeros(len(y), 0, gradient.shape[1])
    with torch.no_grad():
        h = problem.all_constraints(y)
    return LocalModel(value, gradient, gradient[:, :0] if h is None else h, jacobian)


def newton_step(problem: Problem, y: Tensor, model: LocalModel) -> Step:
    """The step at y for the model there; every entry of the model must be finite."""
    g, h, A = model.gradient, model.constraints, model.jacobian
    eps = torch.finfo(g.dtype).eps
    left, s, right = _svd(A)
    inverse = torch.where(s > eps * max(A.shape[1:]) * s.amax(dim=-1, keepdim=True), 1 / s, 0.0)
    rank = inverse.count_nonzero(dim=-1).unsqueeze(-1)
    in_row_space = torch.arange(g.shape[1], device=g.device) < rank
    W = right.mT * ~in_row_space.unsqueeze(1)

    def transposed_pinv(vector: Tensor) -> Tensor:
        coefficients = _apply(right[:, : s.shape[1]], vector) * inverse
        return _apply(left, coefficients)

    # Multipliers by least squares give H, and H the multipliers of the step.
    H = lagrangian_hessian(problem, y, transposed_pinv(g)).nan_to_num(nan=0, posinf=0, neginf=0)
    normal = -_apply(right[:, : s.shape[1]].mT, _apply(left.mT, h) * inverse)
    reduced = W.mT @ H @ W + torch.diag_embed(in_row_space.to(g.dtype))
    eigenvalues, Q = torch.linalg.eigh(reduced)
    basis = W @ Q
    # Columns that belong to the row space are zero; their unit eigenvalues are no curvature.
    curvature = torch.where(basis.square().sum(dim=1) > 0.5, eigenvalues, 0.0)
    hessian_norm = torch.linalg.matrix_norm(H)
    floor = (eps**0.75 * hessian_norm).clamp_min(torch.finfo(g.dtype).tiny ** 0.5).unsqueeze(-1)
    slope = _apply(basis.mT, g + _apply(H, normal))
    tangent = -_apply(basis, slope / torch.maximum(curvature.abs(), floor))
    direction = normal + tangent

    lowest, at = curvature.min(dim=-1)
    # Below the floor the steps do not tell a curvature from none.
    lowest = torch.where(lowest < -floor.squeeze(-1), lowest, 0.0)
    escape = basis.gather(2, at.reshape(-1, 1, 1).expand(-1, g.shape[1], 1)).squeeze(-1)
    uphill = _uphill(escape, g)
    escape = torch.where(uphill.unsqueeze(-1), -escape, escape) * (lowest < 0).unsqueeze(-1)
    return Step(
        direction=direction,
        tangent=tangent,
        escape=escape,
        lowest=lowest,
        multipliers=transposed_pinv(g + _apply(H, direction)),
        stationarity=torch.linalg.vector_norm(_apply(W.mT, g), dim=-1),
        hessian_norm=hessian_norm,
        change=torch.linalg.vector_norm(_apply(H.abs(), flat(y).abs()), dim=-1),
    )


def _uphill(direction: Tensor, gradient: Tensor) -> Tensor:
    """Whether a unit direction (B, m) leads up; where ∇f does not say, if its largest entry is negative.

    An eigenvector has no sign of its own: without a rule it would be that of this processor's library.
    """
    slope = (direction * gradient).sum(dim=-1)
    rounding = torch.finfo(gradient.dtype).eps * torch.linalg.vector_norm(gradient, dim=-1)
    largest = direction.gather(1, direction.abs().argmax(dim=-1, keepdim=True)).squeeze(-1)
    said = slope.abs() > _ROUNDINGS * rounding
    return torch.where(said, slope > 0, largest < 0)


def _svd(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left (B, p, k), s (B, k) and the full right factor (B, m, m), with a zero row for p = 0."""
    batch, p, m = A.shape
    if p == 0:
        identity = torch.eye(m, dtype=A.dtype, device=A.device).expand(batch, m, m)
        return A.new_zeros(batch, 0, 1), A.new_zeros(batch, 1), identity
    left, s, right = torch.linalg.svd(A, full_matrices=True)
    return left[..., : s.shape[-1]], s, right


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
