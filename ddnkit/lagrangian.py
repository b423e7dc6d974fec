"""Multipliers, Hessian and input derivatives of the Lagrangian L(x, y, ν) = f(x, y) − νᵀ h(x, y).

At a solution ∇_y L = 0 and h = 0. Differentiating both, with G = D²_yy L, B = D²_xy L, A = D_y h and
C = D_x h:
    G dy − Aᵀ dν + B dx = 0,      A dy + C dx = 0.
For an incoming gradient v, let z and μ solve G z + Aᵀ μ = −v, A z = 0. Then
    vᵀ dy = −zᵀG dy − μᵀA dy = −zᵀ(Aᵀ dν − B dx) + μᵀC dx = (Bᵀz + Cᵀμ)ᵀ dx,
because A z = 0. So the gradient for the inputs is the derivative with respect to x of
    zᵀ ∇_y L(x, y, ν) + μᵀ h(x, y),
one backward pass, whatever the sizes. A manifold's constraints do not depend on x and drop out of it.
Checked against finite differences, and for the signs against PROBLEMS 3 and 10.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .linalg.kkt import without_bad_items
from .problem import Problem, derivative, flat


def constraint_jacobian(problem: Problem, y: Tensor) -> Tensor | None:
    """A = D_y h with the manifold's constraints last, shape (B, p, m); None without constraints."""
    parts = []
    with torch.enable_grad():
        variable = y.detach().requires_grad_()
        own = problem.constraints(variable)
        if own is not None:
            total = own.sum(dim=0)  # items are independent: each keeps its own rows
            rows = [
                flat(_row(total[k], variable, last=k == len(total) - 1)) for k in range(len(total))
            ]
            parts.append(torch.stack(rows, dim=1))
    if problem.manifold is not None:
        parts.append(problem.manifold.constraint_jacobian(y.detach()))
    return torch.cat(parts, dim=1) if parts else None


def _row(scalar: Tensor, variable: Tensor, last: bool) -> Tensor:
    if not scalar.requires_grad:
        return torch.zeros_like(variable)
    (row,) = torch.autograd.grad(scalar, variable, retain_graph=not last, allow_unused=True)
    return torch.zeros_like(variable) if row is None else row


def least_squares_multipliers(jacobian: Tensor, gradient: Tensor) -> Tensor:
    """The ν of least norm that minimises ‖∇f − Aᵀν‖, shape (B, p)."""
    (finite,) = without_bad_items(jacobian)
    return (torch.linalg.pinv(finite.mT) @ flat(gradient).unsqueeze(-1)).squeeze(-1)


def lagrangian_gradient(problem: Problem, y: Tensor, nu: Tensor | None) -> Tensor:
    """∇_y L for multipliers of `Problem.all_constraints`; keeps the graph if grad mode is on."""
    value = problem.objective(y).sum()
    if nu is not None:
        constraints = problem.all_constraints(y)
        if constraints is not None:
            value = value - (nu * constraints).sum()
    return derivative(value, y, create_graph=True)


def lagrangian_hessian(problem: Problem, y: Tensor, nu: Tensor | None) -> Tensor:
    """G = D²_yy L, shape (B, m, m), row by row: m backward passes for the whole batch."""
    with torch.enable_grad():
        variable = y.detach().requires_grad_()
        gradient = flat(lagrangian_gradient(problem, variable, nu)).sum(dim=0)
        rows = [
            flat(_row(gradient[k], variable, last=k == len(gradient) - 1))
            for k in range(len(gradient))
        ]
    return torch.stack(rows, dim=1)


def input_gradients(
    problem: Problem,
    y: Tensor,
    z: Tensor,
    wrt: Sequence[int],
    nu: Tensor | None = None,
    mu: Tensor | None = None,
) -> list[Tensor | None]:
    """Bᵀz + Cᵀμ for each input whose index is in ``wrt``; None for the others.

    Args:
        z: (B, *y).
        nu, mu: (B, p) for the node's own constraints; None where it has none.
    """
    gradients: list[Tensor | None] = [None] * len(problem.inputs)
    with torch.enable_grad():
        inputs = list(problem.inputs)
        for index in wrt:
            inputs[index] = inputs[index].detach().requires_grad_()
        problem = problem.with_inputs(inputs)
        variable = y.detach().requires_grad_()
        value = problem.objective(variable).sum()
        constraints = problem.constraints(variable)
        if constraints is not None and nu is not None:
            value = value - (nu * constraints).sum()
        pairing = (derivative(value, variable, create_graph=True) * z).sum()
        if constraints is not None and mu is not None:
            pairing = pairing + (mu * constraints).sum()
        if not pairing.requires_grad:
            found: Sequence[Tensor | None] = [None] * len(wrt)
        else:
            found = torch.autograd.grad(pairing, [inputs[i] for i in wrt], allow_unused=True)
    for index, gradient in zip(wrt, found, strict=True):
        gradients[index] = torch.zeros_like(inputs[index]) if gradient is None else gradient
    return gradients
