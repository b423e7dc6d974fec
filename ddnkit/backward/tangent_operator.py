"""What the forms on the tangent space share: its projector, and products with the Hessian."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..lagrangian import constraint_jacobian, lagrangian_gradient, row_basis
from ..problem import Problem, derivative, flat

Operator = Callable[[Tensor], Tensor]


def projector(problem: Problem, y: Tensor) -> Operator:
    """P on vectors (..., B, m): by the manifold, or by the constraint gradients' span.

    P v = v − Q Qᵀv for an orthonormal basis Q of it; constraints may be dependent.
    """
    manifold = problem.manifold
    if not problem.has_constraints(y):
        if manifold is None:
            return lambda v: v

        def on_manifold(v: Tensor) -> Tensor:
            shaped = v.reshape(v.shape[:-1] + y.shape[1:])
            tangent: Tensor = manifold.tangent(y.expand_as(shaped), shaped)
            return tangent.reshape(v.shape)

        return on_manifold
    A = constraint_jacobian(problem, y)
    assert A is not None
    basis = row_basis(A)

    def tangent(v: Tensor) -> Tensor:
        return v - _apply(basis, _apply(basis.mT, v))

    # Twice: what rounding leaves of the normal part is removed by the second.
    return lambda v: tangent(tangent(v))


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


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
