"""The Lagrangian L(x, y, ν) = f(x, y) − νᵀ h(x, y): multipliers, tangent space, Hessian.

Two sets of routines. Those of the first part work on plain numbers, with torch.autograd, for solvers,
certificates and the linear algebra of the backward forms. Those of the second part are functions of
operands and y built on torch.func, so that any transform may go through them; the implicit function
theorem (`ddnkit.implicit`) is written in them.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from .linalg.items import apply, distinct, merged
from .linalg.kkt import without_bad_items
from .linalg.rows import rows_of
from .problem import Problem, derivative, flat
from .transforms import under_transform

# -- numbers ---------------------------------------------------------------------------------------


def constraint_jacobian(problem: Problem, y: Tensor) -> Tensor | None:
    """A = D_y h with the manifold's constraints last, shape (B, p, m); None without constraints.

    An expanded view of one item's where they are all the same (`ddnkit.linalg.items`).
    """
    parts = []
    with torch.enable_grad():
        variable = y.detach().requires_grad_()
        own = problem.constraints(variable)
        if own is not None:
            # Items are independent: the gradient of a sum over the batch keeps each one's own row.
            parts.append(_rows(own.sum(dim=0), variable))
    if problem.manifold is not None:
        parts.append(problem.manifold.constraint_jacobian(y.detach()))
    return merged(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)) if parts else None


def _rows(values: Tensor, variable: Tensor) -> Tensor:
    """∂valuesₖ/∂variable for values (n,) and variable (B, *y), shape (B, n, m)."""
    count, shape = len(values), (len(variable), len(values), variable.shape[1:].numel())
    if not values.requires_grad or count == 0:
        return variable.new_zeros(shape)
    basis = torch.eye(count, dtype=values.dtype, device=values.device)

    def row(e: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(values, variable, e, retain_graph=True, allow_unused=True)
        return torch.zeros_like(variable) if found is None else found

    if count > 1:
        # Not `is_grads_batched`: its products of a matrix with many vectors are not one product.
        with contextlib.suppress(RuntimeError):  # a derivative that cannot be batched
            return vmap(row)(basis).movedim(0, 1).reshape(shape)
    return torch.stack([row(e) for e in basis], 1).reshape(shape)


def least_squares_multipliers(jacobian: Tensor, gradient: Tensor) -> Tensor:
    """The ν of least norm that minimises ‖∇f − Aᵀν‖, shape (B, p)."""
    (A,) = without_bad_items(distinct(jacobian))
    return rows_of(A).multipliers(flat(gradient))


def multipliers_at(problem: Problem, y: Tensor, gradient: Tensor, A: Tensor | None) -> Tensor:
    """ν of the problem's `constraint_set` for a gradient (B, *y), from the Jacobian A if there is one.

    In numbers alone: torch.func lets nothing leave torch on its way, as numpy does.
    """
    if A is not None:
        return least_squares_multipliers(A, gradient)
    if problem.manifold is not None:
        sigma: Tensor = problem.manifold.multipliers(y, gradient)
        return sigma
    return flat(gradient)[:, :0]


def multipliers_and_margin(
    jacobian: Tensor, gradient: Tensor, clear: float
) -> tuple[Tensor, Tensor]:
    """`least_squares_multipliers`, and of the rows that these take as independent the least over the largest
    singular value, (B,): 0 where others depend on them, unless the margin is below ``clear``."""
    (A,) = without_bad_items(distinct(jacobian))
    rows = rows_of(A)
    return rows.multipliers(flat(gradient)), rows.margin(clear).expand(len(jacobian))


def pseudo_inverse(jacobian: Tensor) -> Tensor:
    """A⁺ (B, m, p), differentiable where the rank is constant nearby; 0 for an item that is not finite."""
    if under_transform() or (torch.is_grad_enabled() and jacobian.requires_grad):
        (A,) = without_bad_items(jacobian)
        return torch.linalg.pinv(A)
    (A,) = without_bad_items(distinct(jacobian))
    return rows_of(A).pseudo_inverse().expand(len(jacobian), -1, -1)


def row_basis(jacobian: Tensor, eps: float | None = None) -> Tensor:
    """Orthonormal columns (B, m, min(p, m)) that span the rows of A, with columns of zero for those
    that depend on others, to what the entries are known to (`rows_of`); nothing for a bad item.

    Not through a Gram matrix where rows are nearly dependent: it has the square of their condition,
    and half of the digits would tell two constraints for one.
    """
    (A,) = without_bad_items(distinct(jacobian))
    return rows_of(A, eps).basis().expand(len(jacobian), -1, -1)


def lagrangian_gradient(problem: Problem, y: Tensor, nu: Tensor | None) -> Tensor:
    """∇_y L for multipliers of `Problem.all_constraints`; keeps the graph if grad mode is on."""
    value = problem.objective(y).sum()
    if nu is not None:
        constraints = problem.all_constraints(y)
        if constraints is not None:
            value = value - (nu * constraints).sum()
    return derivative(value, y, create_graph=True)


def lagrangian_hessian(problem: Problem, y: Tensor, nu: Tensor | None) -> Tensor:
    """G = D²_yy L, shape (B, m, m): m backward passes for the whole batch, side by side."""
    with torch.enable_grad():
        variable = y.detach().requires_grad_()
        gradient = flat(lagrangian_gradient(problem, variable, nu)).sum(dim=0)
        return _rows(gradient, variable)


# -- functions -------------------------------------------------------------------------------------


class ConstraintSet(abc.ABC):
    """The constraints at a point y, linearised: A = D_y h, and the projector P on its null space.

    Vectors are flat, (..., B, m). Everything is differentiable in the problem's operands and in y.
    """

    #: whether the constraints can depend on the operands, as a manifold's cannot
    parametric: bool

    @abc.abstractmethod
    def multipliers(self, gradient: Tensor) -> Tensor:
        """The ν that minimises ‖gradient − Aᵀν‖, for (B, m)."""

    @abc.abstractmethod
    def project(self, vector: Tensor) -> Tensor:
        """P v, the orthogonal projection on the tangent space."""

    @abc.abstractmethod
    def restore(self, violation: Tensor) -> Tensor:
        """A⁺ r, (B, m) for r (B, p): the least change of y that changes h by r."""


class Unconstrained(ConstraintSet):
    """No constraint: P = I."""

    parametric = False

    def multipliers(self, gradient: Tensor) -> Tensor:
        """(B, 0)."""
        return gradient[..., :0]

    def project(self, vector: Tensor) -> Tensor:
        """v."""
        return vector

    def restore(self, violation: Tensor) -> Tensor:
        """Nothing to restore."""
        raise NotImplementedError


class OnManifold(ConstraintSet):
    """The constraints of a manifold alone, with multipliers in closed form (Birtea's field)."""

    parametric = False

    def __init__(self, problem: Problem, y: Tensor):
        self.manifold, self.y = problem.manifold, y

    def multipliers(self, gradient: Tensor) -> Tensor:
        """σ(y), in the manifold's own shape."""
        sigma: Tensor = self.manifold.multipliers(self.y, gradient.reshape(self.y.shape))
        return sigma

    def project(self, vector: Tensor) -> Tensor:
        """The manifold's own projection."""
        shaped = vector.reshape(vector.shape[:-1] + self.y.shape[1:])
        tangent: Tensor = self.manifold.tangent(self.y.expand_as(shaped), shaped)
        return tangent.reshape(vector.shape)

    def restore(self, violation: Tensor) -> Tensor:
        """A manifold's constraints do not depend on the operands."""
        raise NotImplementedError


class Linearised(ConstraintSet):
    """Constraints of any kind through their Jacobian A and its pseudo-inverse.

    ν = (A⁺)ᵀ∇f and P = I − A⁺A need A to have constant rank nearby, not full rank: a constraint that
    is written twice does no harm.
    """

    parametric = True

    def __init__(self, problem: Problem, y: Tensor):
        def h(y: Tensor) -> Tensor:
            values = problem.all_constraints(y)
            assert values is not None
            return values

        values, pull = vjp(h, y)
        basis = torch.eye(values.shape[-1], dtype=values.dtype, device=values.device)
        basis = basis.unsqueeze(1).expand(-1, *values.shape)
        A = flat_after(pulled(pull, basis), 2).movedim(0, 1)
        self.A = A if under_transform() else merged(A)
        self.pinv = pseudo_inverse(self.A)

    def multipliers(self, gradient: Tensor) -> Tensor:
        """(A⁺)ᵀ g, (B, p)."""
        return apply(self.pinv.mT, gradient)

    def project(self, vector: Tensor) -> Tensor:
        """v − A⁺A v."""
        return vector - apply(self.pinv, apply(self.A, vector))

    def restore(self, violation: Tensor) -> Tensor:
        """A⁺ r."""
        return apply(self.pinv, violation)


def constraint_set(problem: Problem, y: Tensor) -> ConstraintSet:
    """The constraints of a problem at y."""
    if problem.has_constraints(y):
        return Linearised(problem, y)
    return Unconstrained() if problem.manifold is None else OnManifold(problem, y)


def objective_gradient(problem: Problem, y: Tensor) -> Tensor:
    """∇_y f, (B, m)."""
    return flat(grad(lambda y: problem.objective(y).sum())(y))


def stationarity(problem: Problem, y: Tensor, nu: Tensor) -> Tensor:
    """∇_y L for the multipliers of the problem's `constraint_set`, (B, m)."""
    if problem.manifold is not None and not problem.has_constraints(y):
        normal = problem.manifold.normal(y, nu)
        return objective_gradient(problem, y) - flat(normal)

    def lagrangian(y: Tensor) -> Tensor:
        value = problem.objective(y).sum()
        constraints = problem.all_constraints(y)
        return value if constraints is None else value - (nu * constraints).sum()

    return flat(grad(lagrangian)(y))


def hessian_product(problem: Problem, y: Tensor, nu: Tensor, z: Tensor) -> Tensor:
    """G z for G = D²_yy L and z (k, B, m): one backward pass a vector."""
    _, pull = vjp(lambda y: stationarity(problem, y, nu), y)
    return flat_after(pulled(pull, z), 2)


def vjp(function: Callable[..., Any], *primals: Tensor) -> tuple[Any, Callable[..., Any]]:
    """``torch.func.vjp`` without auxiliary output."""
    value, pull, *_ = torch.func.vjp(function, *primals)
    return value, pull


def pulled(pull: Callable[..., Any], vectors: Tensor) -> Tensor:
    """The pull-back of k vectors, side by side."""
    if len(vectors) == 1:
        return pull(vectors[0])[0].unsqueeze(0)
    try:
        found: Tensor = vmap(pull)(vectors)[0]
    except RuntimeError:
        found = torch.stack([pull(vector)[0] for vector in vectors])
    return found


def pushforward(
    function: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor | None]
) -> Tensor:
    """The derivative of ``function`` along the tangents, by two transposed passes.

    torch does not nest forward mode inside its own dual levels; the pull-back is linear in its
    argument, and its derivative there is the push-forward.
    """
    moving = [i for i, t in enumerate(tangents) if t is not None]

    def of_moving(*values: Tensor) -> Tensor:
        everything = list(primals)
        for i, value in zip(moving, values, strict=True):
            everything[i] = value
        return function(*everything)

    if not moving:
        return torch.zeros_like(function(*primals))
    out, pull = vjp(of_moving, *(primals[i] for i in moving))

    def paired(u: Tensor) -> Tensor:
        total = torch.zeros((), dtype=u.dtype, device=u.device)
        for i, gradient in zip(moving, pull(u), strict=True):
            total = total + (gradient * tangents[i]).sum()
        return total

    return grad(paired)(torch.zeros_like(out))


def first_order_change(
    problem: Problem, y: Tensor, nu: Tensor, operands: Sequence[Tensor], moved: Tensor
) -> tuple[Tensor, Tensor]:
    """How ∇_y L (B, m) and h (B, p) change on the way to other operands and another y, to first order.

    At fixed multipliers ν, as `stationarity` takes them; p = 0 without constraints.
    """
    primals = [*problem.operands, y]
    tangents = [
        b - a if a.is_floating_point() else None
        for a, b in zip(primals, [*operands, moved], strict=True)
    ]
    constrained = problem.has_constraints(y)

    def of_all(*values: Tensor) -> Tensor:
        here = problem.with_operands(values[:-1])
        slope = stationarity(here, values[-1], nu)
        if not constrained:
            return slope
        h = here.constraints(values[-1])
        assert h is not None
        return torch.cat([slope, h], dim=-1)

    with torch.enable_grad():
        change = pushforward(of_all, primals, tangents)
    m = flat(y).shape[1]
    return change[:, :m], change[:, m:]


def flat_after(x: Tensor, dims: int) -> Tensor:
    """(a, B, *y) as (a, B, m)."""
    return x.reshape(*x.shape[:dims], x.shape[dims:].numel())
