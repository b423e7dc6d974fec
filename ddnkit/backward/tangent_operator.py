"""What the forms on the tangent space share: its projector, and products with the Hessian."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..lagrangian import constraint_set, lagrangian_gradient, row_basis
from ..linalg.items import apply, distinct
from ..linalg.kkt import without_bad_items
from ..linalg.rows import rows_of
from ..problem import Problem, flat, pull_back

Operator = Callable[[Tensor], Tensor]


class Projector:
    """P on vectors (..., B, m): by the manifold, or by the constraint gradients' span.

    P v = v − Q Qᵀv for an orthonormal basis Q of it; constraints may be dependent. Called, it is
    applied twice: what rounding leaves of the normal part (of a basis, or of a point that is on its
    manifold to rounding) is removed by the second. With `unit` (B, m) of the unknowns, in those: the
    constraint gradients are A·unit then, a manifold's too, whose own projection is in one unit.
    `eps`: what they are known to, where that is less than y's dtype.
    """

    def __init__(
        self, problem: Problem, y: Tensor, unit: Tensor | None = None, eps: float | None = None
    ):
        self._constraints, self._eps = constraint_set(problem, y, in_numbers=True), eps
        #: the constraint gradients that are not a manifold's alone
        self.A = self._constraints.A
        if self.A is not None and unit is not None:
            self.A = self.A * unit.unsqueeze(-2)
        rows = self.A
        if rows is None and unit is not None and problem.manifold is not None:
            rows = problem.manifold.equation_rows(y) * unit.unsqueeze(-2)
        self._basis = None if rows is None else row_basis(rows, eps)

    def multipliers(self, v: Tensor) -> Tensor:
        """μ (..., B, p) that minimises ‖v − Aᵀμ‖, with nothing for a manifold's own constraints."""
        if self.A is None:
            return v[..., :0]
        (A,) = without_bad_items(distinct(self.A))
        return rows_of(A, self._eps).multipliers(v)

    def __call__(self, v: Tensor) -> Tensor:
        """P v."""
        return self.once(self.once(v))

    def once(self, v: Tensor) -> Tensor:
        """Enough where v is tangent but for rounding, and what is made of it projected in the end."""
        if self._basis is None:
            return self._constraints.project(v)
        return v - apply(self._basis, apply(self._basis.mT, v))


def hessian_operator(problem: Problem, y: Tensor, nu: Tensor) -> Operator:
    """G on vectors (..., B, m): one backward pass through the gradient, whose graph is kept."""
    constraints = constraint_set(problem, y, in_numbers=True)
    with torch.enable_grad():
        variable = y.detach().requires_grad_()
        gradient = flat(lagrangian_gradient(problem, variable, constraints.in_lagrangian(nu)))

    def one(v: Tensor) -> Tensor:
        return flat(pull_back(gradient, [variable], v)[0])

    def G(v: Tensor) -> Tensor:
        if v.ndim == 2:
            product = one(v)
        else:
            columns = v.reshape(-1, *v.shape[-2:])
            product = torch.stack([one(column) for column in columns]).reshape(v.shape)
        return constraints.less_curvature(product, v, nu)

    return G


def matrix_of(operator: Operator, like: Tensor) -> Tensor:
    """The matrices (B, m, m) of a linear operator on (..., B, m); ``like`` is (B, m)."""
    B, m = like.shape
    basis = torch.eye(m, dtype=like.dtype, device=like.device)
    return operator(basis.unsqueeze(1).expand(m, B, m)).permute(1, 2, 0)
