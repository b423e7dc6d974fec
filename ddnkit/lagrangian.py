"""The Lagrangian L(x, y, ν) = f(x, y) − νᵀ h(x, y): multipliers, tangent space, Hessian.

Three sets of routines. Those of the first part work on plain numbers, with torch.autograd, for solvers,
certificates and the linear algebra of the backward forms. Those of the second part are functions of
operands and y built on torch.func, so that any transform may go through them; the implicit function
theorem (`ddnkit.implicit`) is written in them. The third is the set of constraints at a point, in both
ways, and the one place that asks of which kind they are.
"""

from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from .linalg.items import apply, distinct, merge_equal
from .linalg.kkt import without_bad_items
from .linalg.rows import DependentRows, IndependentRows, rows_of
from .problem import Problem, derivative, flat
from .transforms import under_transform

if TYPE_CHECKING:
    from .manifold import Manifold

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
        parts.append(problem.manifold.equation_rows(y.detach()))
    return merge_equal(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)) if parts else None


def inequality_jacobian(problem: Problem, y: Tensor, rows: Tensor) -> Tensor:
    """D_y g of those ``rows`` (k,) of `Problem.inequalities`, shape (B, k, m)."""
    with torch.enable_grad():
        variable = y.detach().requires_grad_()
        g = problem.inequalities(variable)
        return (
            variable.new_zeros(len(y), 0, flat(y).shape[1])
            if g is None
            else _rows(torch.where(g.isfinite(), g, 0.0)[:, rows].sum(dim=0), variable)
        )


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


def lagrangian_gradient(
    problem: Problem, y: Tensor, nu: Tensor | None, lam: Tensor | None = None
) -> Tensor:
    """∇_y L for multipliers of `Problem.all_constraints` and λ (B, k) of the first k of
    `Problem.inequalities`; keeps the graph if grad mode is on."""
    value = problem.objective(y).sum()
    if nu is not None:
        constraints = problem.all_constraints(y)
        if constraints is not None:
            value = value - (nu * constraints).sum()
    if lam is not None and lam.shape[1]:
        g = problem.inequalities(y)
        assert g is not None  # what λ belongs to
        value = value + (lam * g[:, : lam.shape[1]]).sum()
    return derivative(value, y, create_graph=True)


def lagrangian_hessian(
    problem: Problem, y: Tensor, nu: Tensor | None, lam: Tensor | None = None
) -> Tensor:
    """G = D²_yy L, shape (B, m, m): m backward passes for the whole batch, side by side."""
    with torch.enable_grad():
        variable = y.detach().requires_grad_()
        gradient = flat(lagrangian_gradient(problem, variable, nu, lam)).sum(dim=0)
        return _rows(gradient, variable)


# -- functions -------------------------------------------------------------------------------------


def objective_gradient(problem: Problem, y: Tensor) -> Tensor:
    """∇_y f, (B, m)."""
    return flat(grad(lambda y: problem.objective(y).sum())(y))


def stationarity(problem: Problem, y: Tensor, nu: Tensor) -> Tensor:
    """∇_y L for the multipliers of the problem's `constraint_set`, (B, m)."""
    return constraint_set(problem, y).slope(nu)


def hessian_product(problem: Problem, y: Tensor, nu: Tensor, z: Tensor) -> Tensor:
    """G z for G = D²_yy L and z (k, B, m): one backward pass a vector."""
    _, pull = vjp(lambda y: stationarity(problem, y, nu), y)
    return flat_after(pull_back_each(pull, z), 2)


def vjp(function: Callable[..., Any], *primals: Tensor) -> tuple[Any, Callable[..., Any]]:
    """``torch.func.vjp`` without auxiliary output."""
    value, pull, *_ = torch.func.vjp(function, *primals)
    return value, pull


def pull_back_each(pull: Callable[..., Any], vectors: Tensor) -> Tensor:
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

    def of_all(*values: Tensor) -> Tensor:
        here = problem.with_operands(values[:-1])
        slope = stationarity(here, values[-1], nu)
        h = here.constraints(values[-1])
        return slope if h is None else torch.cat([slope, h], dim=-1)

    with torch.enable_grad():
        change = pushforward(of_all, primals, tangents)
    m = flat(y).shape[1]
    return change[:, :m], change[:, m:]


def flat_after(x: Tensor, dims: int) -> Tensor:
    """(a, B, *y) as (a, B, m)."""
    return x.reshape(*x.shape[:dims], x.shape[dims:].numel())


# -- the constraints at a point --------------------------------------------------------------------


class ConstraintSet(abc.ABC):
    """The equality constraints of a problem at a point y: multipliers, tangent space, slope of L.

    Here alone it matters of which kind they are: `Unconstrained`, `OnManifold` (a manifold's and no
    others) or `Linearised` (any others, a manifold's among them). Vectors are flat, (..., B, m).

    Attributes:
        problem, y: the problem and the point (B, *y).
        in_numbers: True: by torch.autograd, plain numbers; False: by torch.func, differentiable in the
            problem's operands and in y. Inside of torch.func nothing may leave torch, as numpy does.
    """

    #: whether the constraints can depend on the operands, as a manifold's cannot
    parametric = False

    def __init__(self, problem: Problem, y: Tensor, in_numbers: bool = False):
        self.problem, self.y, self.in_numbers = problem, y, in_numbers

    @property
    def A(self) -> Tensor | None:
        """D_y h, (B, p, m), of constraints that are not a manifold's alone."""
        return None

    @property
    def any_units(self) -> bool:
        """Whether the unknowns may be measured in units of their own. A manifold has one for all."""
        return self.problem.manifold is None

    def off_manifold(self) -> Tensor:
        """How far y is from the manifold, relative to a point on it, (B,); 0 without one."""
        manifold = self.problem.manifold
        if manifold is None:
            return self.y.new_zeros(self.problem.batch_size)
        distance: Tensor = manifold.infeasibility(self.y)
        return distance

    @property
    def normal_by_rows(self) -> bool:
        """Whether `less_normal` of rows of y that are scaled is scaled with them (`Manifold`)."""
        return False

    def margin(self, clear: float) -> Tensor:
        """Of the constraint gradients that are taken as independent the least over the largest singular
        value, (B,): 0 where others depend on them, unless the margin is below ``clear``."""
        return self.y.new_ones(self.problem.batch_size)

    def gradient(self) -> Tensor:
        """∇_y f, (B, m)."""
        if self.in_numbers:
            return flat(self.problem.gradient(self.y))
        return objective_gradient(self.problem, self.y)

    def values(self) -> Tensor:
        """h, (B, p), a manifold's with others alone."""
        return flat(self.y)[:, :0]

    @abc.abstractmethod
    def multipliers(self, gradient: Tensor) -> Tensor:
        """The ν that minimises ‖gradient − Aᵀν‖, for (B, m)."""

    @abc.abstractmethod
    def less_normal(self, vector: Tensor, nu: Tensor) -> Tensor:
        """``vector`` − Aᵀν, (B, m)."""

    @abc.abstractmethod
    def project(self, vector: Tensor) -> Tensor:
        """P v, the orthogonal projection on the tangent space."""

    def slope(self, nu: Tensor) -> Tensor:
        """∇_y L at fixed multipliers, (B, m)."""
        return self.less_normal(self.gradient(), nu)

    def in_lagrangian(self, nu: Tensor) -> Tensor | None:
        """The multipliers with which `lagrangian_gradient` has all of the constraints, or None where it is
        ∇f: a manifold brings its normal part, and the derivative of that, by itself."""
        return None

    def less_curvature(self, product: Tensor, vector: Tensor, nu: Tensor) -> Tensor:
        """``product`` less Σ νₖ D²hₖ v for constraints that `in_lagrangian` leaves out, (..., B, m)."""
        return product

    def restore(self, violation: Tensor, unit: Tensor | None = None) -> Tensor:
        """A⁺ r, (B, m) for r (B, p): the least change of y that changes h by r; with the unknowns in
        units (B, m), the least in those."""
        return torch.zeros_like(flat(self.y))

    def move(self, step: Tensor) -> Tensor:
        """y + step, (B, *y), and on the manifold where that is all there is."""
        return self.y + step.reshape(self.y.shape)


class Unconstrained(ConstraintSet):
    """No constraint: P = I."""

    def multipliers(self, gradient: Tensor) -> Tensor:
        """(B, 0)."""
        return gradient[..., :0]

    def less_normal(self, vector: Tensor, nu: Tensor) -> Tensor:
        """v."""
        return vector

    def project(self, vector: Tensor) -> Tensor:
        """v."""
        return vector


class OnManifold(ConstraintSet):
    """The constraints of a manifold alone, with multipliers in closed form (Birtea's field)."""

    @property
    def manifold(self) -> Manifold:
        """The node's."""
        manifold: Manifold = self.problem.manifold
        return manifold

    @property
    def normal_by_rows(self) -> bool:
        """The manifold's."""
        return self.manifold.normal_by_rows

    def multipliers(self, gradient: Tensor) -> Tensor:
        """σ(y), in the manifold's own shape."""
        return self.manifold.multipliers(self.y, gradient.reshape(self.y.shape))

    def less_normal(self, vector: Tensor, nu: Tensor) -> Tensor:
        """v − Σ σᵢ ∇jᵢ."""
        return flat(self.manifold.less_normal(vector.reshape(self.y.shape), self.y, nu))

    def project(self, vector: Tensor) -> Tensor:
        """The manifold's own projection."""
        shaped = self._shaped(vector)
        return self.manifold.tangent(self.y.expand_as(shaped), shaped).reshape(vector.shape)

    def less_curvature(self, product: Tensor, vector: Tensor, nu: Tensor) -> Tensor:
        """``product`` − Σ σᵢ D²jᵢ v."""
        shaped = self._shaped(vector)
        extra = shaped.ndim - self.y.ndim
        sigma = nu.reshape(*[1] * extra, *nu.shape).expand(*shaped.shape[:extra], *nu.shape)
        curvature = self.manifold.constraint_curvature(self.y.expand_as(shaped), sigma, shaped)
        return product - curvature.reshape(vector.shape)

    def move(self, step: Tensor) -> Tensor:
        """By the retraction."""
        return self.manifold.retract(self.y, step.reshape(self.y.shape))

    def _shaped(self, vector: Tensor) -> Tensor:
        return vector.reshape(vector.shape[:-1] + self.y.shape[1:])


class Linearised(ConstraintSet):
    """Constraints of any kind through their Jacobian A and its pseudo-inverse.

    ν = (A⁺)ᵀ∇f and P = I − A⁺A need A to have constant rank nearby, not full rank: a constraint that
    is written twice does no harm.
    """

    parametric = True

    def values(self) -> Tensor:
        """h, (B, p), a manifold's last."""
        values = self.problem.all_constraints(self.y)
        assert values is not None  # what makes this kind of set
        return values

    @functools.cached_property
    def A(self) -> Tensor:
        """D_y h, (B, p, m)."""
        if self.in_numbers:
            found = constraint_jacobian(self.problem, self.y)
            assert found is not None
            return found
        values, pull = vjp(lambda y: Linearised(self.problem, y).values(), self.y)
        basis = torch.eye(values.shape[-1], dtype=values.dtype, device=values.device)
        basis = basis.unsqueeze(1).expand(-1, *values.shape)
        A = flat_after(pull_back_each(pull, basis), 2).movedim(0, 1)
        return A if under_transform() else merge_equal(A)

    @functools.cached_property
    def rows(self) -> IndependentRows | DependentRows:
        """Which of the rows of A are independent, in numbers; for an item that is not finite nothing."""
        (A,) = without_bad_items(distinct(self.A))
        return rows_of(A)

    @functools.cached_property
    def _pseudo_inverse(self) -> Tensor:
        return pseudo_inverse(self.A)

    def multipliers(self, gradient: Tensor) -> Tensor:
        """(A⁺)ᵀ g, (B, p)."""
        if self.in_numbers:
            return self.rows.multipliers(gradient)
        return apply(self._pseudo_inverse.mT, gradient)

    def margin(self, clear: float) -> Tensor:
        """See `ConstraintSet.margin`."""
        return self.rows.margin(clear).expand(len(self.A))

    def less_normal(self, vector: Tensor, nu: Tensor) -> Tensor:
        """v − Aᵀν."""
        return vector - apply(self.A.mT, nu)

    def project(self, vector: Tensor) -> Tensor:
        """v − A⁺A v."""
        if self.in_numbers:
            return self.less_normal(vector, self.multipliers(vector))
        return vector - apply(self._pseudo_inverse, apply(self.A, vector))

    def slope(self, nu: Tensor) -> Tensor:
        """∇_y L, without A."""
        if self.in_numbers:
            with torch.enable_grad():
                variable = self.y.detach().requires_grad_()
                return flat(lagrangian_gradient(self.problem, variable, nu).detach())

        def lagrangian(y: Tensor) -> Tensor:
            return (
                self.problem.objective(y).sum() - (nu * Linearised(self.problem, y).values()).sum()
            )

        return flat(grad(lagrangian)(self.y))

    def in_lagrangian(self, nu: Tensor) -> Tensor | None:
        """ν."""
        return nu

    def restore(self, violation: Tensor, unit: Tensor | None = None) -> Tensor:
        """A⁺ r."""
        if unit is None:
            return apply(self._pseudo_inverse, violation)
        return unit * apply(pseudo_inverse(self.A * unit.unsqueeze(-2)), violation)


def constraint_set(problem: Problem, y: Tensor, *, in_numbers: bool = False) -> ConstraintSet:
    """The constraints of a problem at y."""
    if problem.has_constraints(y):
        return Linearised(problem, y, in_numbers)
    kind = Unconstrained if problem.manifold is None else OnManifold
    return kind(problem, y, in_numbers)
