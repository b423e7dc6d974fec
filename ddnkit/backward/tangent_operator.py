"""What the forms on the tangent space share: its projector, and products with the Hessian."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..lagrangian import constraint_jacobian, lagrangian_gradient, row_basis
from ..linalg.items import apply, distinct
from ..linalg.kkt import without_bad_items
from ..linalg.rows import rows_of
from ..problem import Problem, derivative, flat

Operator = Callable[[Tensor], Tensor]


class Projector:
    """P on vectors (..., B, m): by the manifold, or by the constraint gradients' span.

    P v = v − Q Qᵀv for an orthonormal basis Q of it; constraints may be dependent. Called, it is
    applied twice: what rounding leaves of the normal part (of a basis, or of a point that is on its
    manifold to rounding) is removed by the second. With `unit` (B, m) of the unknowns, in those: the
    constraint gradients are A·unit then. `eps`: what they are known to, where that is less than y's dtype.
    """

    def __init__(
        self, problem: Problem, y: Tensor, unit: Tensor | None = None, eps: float | None = None
    ):
        self._y, self._eps = y, eps
        self._manifold = problem.manifold
        self._basis: Tensor | None = None
        #: the constraint gradients that are not a manifold's alone
        self.A: Tensor | None = None
        if problem.has_constraints(y):
            A = constraint_jacobian(problem, y)
            assert A is not None
            self.A = A if unit is None else A * unit.unsqueeze(-2)
            self._basis = row_basis(self.A, eps)

    def multipliers(self, v: Tensor) -> Tensor:
        """μ (..., B, p) that minimises ‖v − Aᵀμ‖, with nothing for a manifold's own constraints."""
        if self.A is None:
            return v[..., :0]
        (A,) = without_bad_items(distinct(self.A))
        return rows_of(A, self._eps).multipliers(v)

    def __call__(self, v: Tensor) -> Tensor:
        """P v."""
        constrained = self._basis is not None or self._manifold is not None
        return self.once(self.once(v)) if constrained else v

    def once(self, v: Tensor) -> Tensor:
        """Enough where v is tangent but for rounding, and what is made of it projected in the end."""
        if self._basis is not None:
            return v - apply(self._basis, apply(self._basis.mT, v))
        if self._manifold is None:
            return v
        shaped = v.reshape(v.shape[:-1] + self._y.shape[1:])
        tangent: Tensor = self._manifold.tangent(self._y.expand_as(shaped), shaped)
        return tangent.reshape(v.shape)


def hessian_operator(problem: Problem, y: Tensor, nu: Tensor) -> Operator:
    """G on vectors (..., B, m): one backward pass through the gradient, whose graph is kept."""
    manifold = problem.manifold if not problem.has_constraints(y) else None
    with torch.enable_grad():
        variable = y.detach().requires_grad_()
        if manifold is None:
            gradient = flat(lagrangian_gradient(problem, variable, nu))
        else:
            gradient = flat(
                derivative(problem.objective(variable).sum(), variable, create_graph=True)
            )

    def one(v: Tensor) -> Tensor:
        if not gradient.requires_grad:
            return torch.zeros_like(v)
        (product,) = torch.autograd.grad(
            gradient, variable, v, retain_graph=True, allow_unused=True
        )
        return torch.zeros_like(v) if product is None else flat(product)

    def G(v: Tensor) -> Tensor:
        if v.ndim == 2:
            product = one(v)
        else:
            columns = v.reshape(-1, *v.shape[-2:])
            product = torch.stack([one(column) for column in columns]).reshape(v.shape)
        if manifold is None:
            return product
        shaped = v.reshape(v.shape[:-1] + y.shape[1:])
        extra = [1] * (shaped.ndim - y.ndim)
        sigma = nu.reshape(*extra, *nu.shape).expand(*shaped.shape[: len(extra)], *nu.shape)
        curvature: Tensor = manifold.constraint_curvature(y.expand_as(shaped), sigma, shaped)
        return product - curvature.reshape(v.shape)

    return G


def matrix_of(operator: Operator, like: Tensor) -> Tensor:
    """The matrices (B, m, m) of a linear operator on (..., B, m); ``like`` is (B, m)."""
    B, m = like.shape
    basis = torch.eye(m, dtype=like.dtype, device=like.device)
    return operator(basis.unsqueeze(1).expand(m, B, m)).permute(1, 2, 0)
