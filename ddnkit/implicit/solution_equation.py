"""y(θ): the solution of a node, by the implicit function theorem.

At a solution ∇_y L = 0 and h = 0. Differentiating both, with G = D²_yy L, B = D²_θy L, A = D_y h and
C = D_θ h:
    G dy − Aᵀ dν + B dθ = 0,      A dy + C dθ = 0.
For an incoming gradient v, let z and μ solve G z + Aᵀ μ = −v, A z = 0. Then
    vᵀ dy = −zᵀG dy − μᵀA dy = −zᵀ(Aᵀ dν − B dθ) + μᵀC dθ = (Bᵀz + Cᵀμ)ᵀ dθ,
because A z = 0. So the gradient for the operands is the derivative with respect to θ of
    zᵀ ∇_y L(θ, y, ν) + μᵀ h(θ, y),
with z = (P G P)⁺ P(−v) and μ = (Aᵀ)⁺(−v − G z). The number μ is the form's own where it has it: made of
the z that was rounded to y's dtype, or that leaves a residual where G is large, it may have no digit
right. Its derivative is that of the formula. In the other direction, dy has the normal part
n = −A⁺ C dθ and the tangent part (P G P)⁺ P(−B dθ − G n). A manifold's constraints do not depend on θ:
μ is not needed and n = 0 there. Checked for the signs against PROBLEMS 3 and 10.

ν(θ, y) = (A⁺)ᵀ∇_y f is an explicit function of θ and y here, z an equation of its own
(`tangent_equation`), and y has its own history: everything can be differentiated again.

A form may know a shorter way to the gradient alone (`BackwardForm.adjoint`). It is used for the value,
and the formula above for the derivative of that value (`AdjointEquation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..batch_solve import with_stand_ins
from ..lagrangian import (
    constraint_set,
    hessian_product,
    lagrangian_gradient,
    pushforward,
    stationarity,
    vjp,
)
from ..problem import Problem, flat, pull_back
from ..transforms import under_transform
from .function import Equation, Unfold, solution_of
from .tangent_equation import LinearSystems, TangentEquation, fold_operands

if TYPE_CHECKING:
    from .call import Call


def gradient_of_operands(
    call: LinearSystems, problem: Problem, y: Tensor, v: Tensor, wrt: Sequence[int]
) -> list[Tensor]:
    """Bᵀz + Cᵀμ for the operands of ``wrt``: v·dy/dθ, differentiable in θ, y and v."""
    if _is_numbers(problem, v, wrt):
        return _in_numbers(call, problem, y, v, wrt)
    constraints = constraint_set(problem, y)
    nu = constraints.multipliers(constraints.gradient())
    right = -flat(v)
    found = TangentEquation(call, problem).solve_unmasked(y, nu, right.unsqueeze(0))
    dropped = _dropped(found[0])
    z, right, own_mu = _mask_dropped(call, *found, dropped, right)
    chosen = [problem.operands[i] for i in wrt]
    # One pass back through ∇_y L gives Bᵀz and, for μ, G z.
    _, pull = vjp(
        lambda y, *values: stationarity(with_operands_at(problem, wrt, values), y, nu), y, *chosen
    )
    curvature, *gradients = pull(z)
    if not constraints.parametric:
        return _fill_dropped(call, problem, wrt, gradients, dropped)
    mu = constraints.multipliers(right - flat(curvature))
    if own_mu.shape[-1]:
        mu = mu + (own_mu - mu).detach()
    _, pull = vjp(
        lambda *values: constraint_set(with_operands_at(problem, wrt, values), y).values(), *chosen
    )
    total = [g + c for g, c in zip(gradients, pull(mu), strict=True)]
    return _fill_dropped(call, problem, wrt, total, dropped)


def _is_numbers(problem: Problem, v: Tensor, wrt: Sequence[int]) -> bool:
    # Captured tensors are put in their places by torch's functions, which autograd.Function is not
    # one of unless torch.func is at work.
    inputs = problem.input_count
    legacy = torch._C._functorch.is_legacy_batchedtensor(v)
    graph = torch.is_grad_enabled() or under_transform() or legacy
    return not graph and all(i < inputs for i in wrt)


def _in_numbers(
    call: LinearSystems, problem: Problem, y: Tensor, v: Tensor, wrt: Sequence[int]
) -> list[Tensor]:
    """The same where no derivative of it is asked for: one graph of ∇_y L serves it all."""
    constraints, right = constraint_set(problem, y, in_numbers=True), -flat(v)
    nu = constraints.multipliers(constraints.gradient())
    with torch.enable_grad():
        chosen = [problem.operands[i].detach().requires_grad_() for i in wrt]
        moved, variable = with_operands_at(problem, wrt, chosen), y.detach().requires_grad_()
        h = constraint_set(moved, y.detach()).values()
    # Where no constraint moves with these operands, C is zero, and μ without a meaning.
    parts = h.requires_grad
    z, mu = call.solve_system(problem, y, nu, right.unsqueeze(0), multipliers=parts)
    dropped = _dropped(z)
    z, right, own_mu = _mask_dropped(
        call, z, right.unsqueeze(0)[..., :0] if mu is None else mu, dropped, right
    )
    with torch.enable_grad():
        # A manifold's normal part does not depend on θ.
        slope = flat(lagrangian_gradient(moved, variable, constraints.in_lagrangian(nu)))
        curvature, *gradients = pull_back(slope, [variable, *chosen], z)
        if not parts:
            return _fill_dropped(call, problem, wrt, gradients, dropped)
        mu = own_mu
        if not mu.shape[-1]:
            mu = constraints.multipliers(right - flat(curvature))
        of_constraints = pull_back(h, chosen, mu)
    total = [g + c for g, c in zip(gradients, of_constraints, strict=True)]
    return _fill_dropped(call, problem, wrt, total, dropped)


def _dropped(z: Tensor) -> Tensor:
    """The items without a derivative, (1, B, 1) of z (1, B, m)."""
    return z.isnan().any(dim=-1, keepdim=True)


def _fill_dropped(
    call: LinearSystems,
    problem: Problem,
    wrt: Sequence[int],
    gradients: Sequence[Tensor],
    dropped: Tensor,
) -> list[Tensor]:
    """NaN for such items and what all share, unless the policy "mask" drops them. It does not get to inputs
    of inequality constraints by itself: those that are not active are no part of what is differentiated."""
    if problem.active_set is None or call.policy == "mask":
        return list(gradients)
    flags, dropped = problem.operands_batched, dropped.reshape(-1)
    found = []
    for i, g in zip(wrt, gradients, strict=True):
        items = dropped.reshape(-1, *[1] * (g.ndim - 1)) if flags[i] else dropped.any()
        found.append(torch.where(items, torch.nan, g))
    return found


def _mask_dropped(
    call: LinearSystems, z: Tensor, mu: Tensor, dropped: Tensor, right: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """z (B, m) of (1, B, m), the right side and the form's μ: for items without a derivative NaN like
    their z, and zero for those that the policy "mask" drops."""
    fill = torch.nan
    if call.policy == "mask":
        z, right = torch.where(dropped, 0.0, z), torch.where(dropped.squeeze(0), 0.0, right)
        fill = 0.0
    if mu.shape[-1]:
        mu = torch.where(dropped, fill, mu)
    return z.squeeze(0), right, mu.squeeze(0)


def with_operands_at(problem: Problem, indices: Sequence[int], values: Sequence[Tensor]) -> Problem:
    """The problem with other operands at those positions."""
    operands = problem.operands
    for index, value in zip(indices, values, strict=True):
        operands[index] = value
    return problem.with_operands(operands)


def _merge(
    gradients: list[Tensor | None], indices: Sequence[int], found: Sequence[Tensor]
) -> list[Tensor | None]:
    at = dict(zip(indices, found, strict=True))
    return [at.get(i, gradient) for i, gradient in enumerate(gradients)]


def _without_failed(
    problem: Problem, y: Tensor, v: Tensor, good: Tensor
) -> tuple[Problem, Tensor, Tensor]:
    """The batch with a copy of a good item in the place of each failed one, and v zero there.

    What a failed item computes could be NaN, which no zero takes back from a tensor that all share.
    """
    if len(good) == 0:
        return problem, y, v
    problem, source = with_stand_ins(problem, ~good)
    v = torch.where(good.reshape(-1, *[1] * (v.ndim - 1)), v, 0.0)
    return problem, y[source], v


def _numbers_alone(problem: Problem, y: Tensor) -> tuple[Problem, Tensor]:
    """Zero in the place of NaN and infinity: a batch inside a vmap may have no good item to copy."""
    return problem.with_operands(
        [x.nan_to_num(0.0, 0.0, 0.0) if x.is_floating_point() else x for x in problem.operands]
    ), y.nan_to_num(0.0, 0.0, 0.0)


class SolutionEquation(Equation):
    """Operands: those of the problem. Outputs: y (B, *y), and what the solver kept (`Solution.aux`)."""

    def __init__(self, call: Call, problem: Problem, lead: tuple[int, ...] = ()):
        self.call = call
        self.problem = problem
        self.lead = lead  # sizes of the vmaps that the batch has taken in, outermost first

    @property
    def auxiliary(self) -> int:  # type: ignore[override]
        """As many as the solver kept, known once it has run."""
        return len(self.call.aux_names)

    def solve(self, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """By the node's solver, with its certificate."""
        return self.call.solve(self.problem.with_operands(operands), self.lead)

    def vjp(
        self,
        operands: Sequence[Tensor],
        outputs: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        wrt: Sequence[int],
    ) -> list[Tensor | None]:
        """Bᵀz + Cᵀμ."""
        problem = self.problem.with_operands(operands)
        self.call.refuse_changed(problem, outputs[0])
        problem = self.call.complete(problem, outputs)
        wrt = [i for i in wrt if operands[i].is_floating_point()]
        gradients: list[Tensor | None] = [None] * len(operands)
        if problem.batch_size == 0:
            return [torch.zeros_like(x) if i in wrt else None for i, x in enumerate(operands)]
        if not wrt:
            return gradients
        y, *aux = outputs
        v = cotangents[0]
        if self.call.nothing_derived:
            fill = self._fill
            return [torch.full_like(x, fill) if i in wrt else None for i, x in enumerate(operands)]
        good = aux[-1] if self.call.tells_good else None
        if good is not None:
            problem, y, v = _without_failed(problem, y, v, good)
        if self.call.underived is not None:
            problem, y = _numbers_alone(problem, y)
        short = self.call.shortcut(problem, wrt)
        problem = self.call.as_solved(problem, y, by_its_own=len(short) == len(wrt))
        if short:
            equation = AdjointEquation(self.call, problem, short)
            found = solution_of(equation, *problem.operands, y, v, *aux)
            gradients = _merge(gradients, short, found)
        rest = [i for i in wrt if i not in short]
        if rest:
            found = tuple(gradient_of_operands(self.call, problem, y, v, rest))
            gradients = _merge(gradients, rest, found)
        return self._fill_underived(gradients, good)

    @property
    def _fill(self) -> float:
        return 0.0 if self.call.policy == "mask" else torch.nan

    def _fill_underived(
        self, gradients: Sequence[Tensor | None], good: Tensor | None
    ) -> list[Tensor | None]:
        """NaN, or by the policy zero, for items without a derivative, and NaN for what all share."""
        if good is None or self.call.underived is None:
            return list(gradients)
        found: list[Tensor | None] = []
        for g, own in zip(gradients, self.problem.operands_batched, strict=True):
            if g is not None and own:
                g = torch.where(good.reshape(-1, *[1] * (g.ndim - 1)), g, self._fill)
            elif g is not None and self.call.policy != "mask":
                g = torch.where(good.all(), g, torch.nan)
            found.append(g)
        return found

    def jvp(
        self,
        operands: Sequence[Tensor],
        outputs: Sequence[Tensor],
        tangents: Sequence[Tensor | None],
    ) -> tuple[Tensor, ...]:
        """n + (P G P)⁺ P(−B dθ − G n), n = −A⁺ C dθ."""
        problem = self.problem.with_operands(operands)
        self.call.refuse_changed(problem, outputs[0])
        problem = self.call.complete(problem, outputs)
        y = outputs[0]
        if problem.batch_size == 0:
            return (torch.zeros_like(y),)
        moving = [
            t if x.is_floating_point() else None for x, t in zip(operands, tangents, strict=True)
        ]
        if self.call.underived is None:
            problem = self.call.as_solved(problem, y)
            return (self._push_forward(problem, y, moving),)
        if self.call.nothing_derived:
            return (torch.full_like(y, self._fill),)
        good, flags = outputs[-1], problem.operands_batched
        problem, source = with_stand_ins(problem, ~good)
        problem, copies = _numbers_alone(problem, y[source])
        copied = [
            t[source] if own and t is not None else t for t, own in zip(moving, flags, strict=True)
        ]
        dy = self._push_forward(problem, copies, copied)
        return (torch.where(good.reshape(-1, *[1] * (y.ndim - 1)), dy, self._fill),)

    def _push_forward(self, problem: Problem, y: Tensor, moving: Sequence[Tensor | None]) -> Tensor:
        """n + (P G P)⁺ P(−B dθ − G n) along the tangents ``moving``."""
        operands = problem.operands
        constraints = constraint_set(problem, y)
        nu = constraints.multipliers(constraints.gradient())
        right = -pushforward(
            lambda *theta: stationarity(problem.with_operands(theta), y, nu), operands, moving
        )
        normal = torch.zeros_like(right)
        if constraints.parametric:
            dh = pushforward(
                lambda *theta: constraint_set(problem.with_operands(theta), y).values(),
                operands,
                moving,
            )
            normal = -constraints.restore(dh)
            right = right - hessian_product(problem, y, nu, normal.unsqueeze(0)).squeeze(0)
        z = TangentEquation(self.call, problem).apply(y, nu, right.unsqueeze(0)).squeeze(0)
        return (normal + z).reshape(y.shape)

    def fold(
        self, size: int, in_dims: Sequence[int | None], operands: Sequence[Tensor]
    ) -> tuple[Equation, list[Tensor], Unfold]:
        """A larger batch."""
        B = self.problem.batch_size
        inside, flags = fold_operands(operands, in_dims, self.problem.operands_batched, size, B)
        problem = self.problem.resize(inside, size * B, flags)
        equation = SolutionEquation(self.call, problem, (size, *self.lead))
        return equation, inside, lambda w: w.reshape(size, B, *w.shape[1:])


class AdjointEquation(Equation):
    """v·dy/dθ by the form's own way; its derivative by the general one.

    Operands: those of the problem, y, v, and what the solver kept. Outputs: the gradients for ``wrt``.
    """

    def __init__(self, call: Call, problem: Problem, wrt: Sequence[int]):
        self.call = call
        self.problem = problem
        self.wrt = list(wrt)

    def _split(self, operands: Sequence[Tensor]) -> tuple[Problem, Tensor, Tensor, list[Tensor]]:
        count = len(self.problem.operands)
        y, v, *aux = operands[count:]
        return self.problem.with_operands(operands[:count]), y, v, aux

    def solve(self, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """By the form's shortcut."""
        problem, y, v, aux = self._split(operands)
        return tuple(self.call.adjoint(problem, y, v, aux, self.wrt))

    def _general(self, *values: Tensor) -> tuple[Tensor, ...]:
        *theta, y, v = values
        problem = self.problem.with_operands(theta)
        return tuple(gradient_of_operands(self.call, problem, y, v, self.wrt))

    def vjp(
        self,
        operands: Sequence[Tensor],
        outputs: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        wrt: Sequence[int],
    ) -> list[Tensor | None]:
        """By differentiating the general formula."""
        values = operands[: len(self.problem.operands) + 2]
        inner = [i for i in wrt if i < len(values) and values[i].is_floating_point()]

        def of_inner(*moving: Tensor) -> tuple[Tensor, ...]:
            moved = list(values)
            for i, value in zip(inner, moving, strict=True):
                moved[i] = value
            return self._general(*moved)

        gradients: list[Tensor | None] = [None] * len(operands)
        _, pull = vjp(of_inner, *(values[i] for i in inner))
        for i, gradient in zip(inner, pull(tuple(cotangents)), strict=True):
            gradients[i] = gradient
        return gradients

    def jvp(
        self,
        operands: Sequence[Tensor],
        outputs: Sequence[Tensor],
        tangents: Sequence[Tensor | None],
    ) -> tuple[Tensor, ...]:
        """By differentiating the general formula."""
        count = len(self.problem.operands) + 2
        values = operands[:count]
        moving = [
            t if x.is_floating_point() else None
            for x, t in zip(values, tangents[:count], strict=True)
        ]
        return tuple(
            pushforward(lambda *moved, k=k: self._general(*moved)[k], values, moving)
            for k in range(len(self.wrt))
        )

    def fold(
        self, size: int, in_dims: Sequence[int | None], operands: Sequence[Tensor]
    ) -> tuple[Equation, list[Tensor], Unfold]:
        """A larger batch. A shortcut is for inputs alone: each gradient carries the batch."""
        B = self.problem.batch_size
        count = len(self.problem.operands)
        batched = [*self.problem.operands_batched, *[True] * (len(operands) - count)]
        inside, flags = fold_operands(operands, in_dims, batched, size, B)
        problem = self.problem.resize(inside[:count], size * B, flags[:count])
        equation = AdjointEquation(self.call, problem, self.wrt)
        return equation, inside, lambda w: w.reshape(size, B, *w.shape[1:])


class _AtSolution(Equation):
    """A quantity at a known solution. Operands: those of the problem, and y (B, *y)."""

    def __init__(self, call: Call, problem: Problem, lead: tuple[int, ...] = ()):
        self.call, self.problem, self.lead = call, problem, lead

    def fold(
        self, size: int, in_dims: Sequence[int | None], operands: Sequence[Tensor]
    ) -> tuple[Equation, list[Tensor], Unfold]:
        """A larger batch."""
        B = self.problem.batch_size
        batched = [*self.problem.operands_batched, True]
        inside, flags = fold_operands(operands, in_dims, batched, size, B)
        problem = self.problem.resize(inside[:-1], size * B, flags[:-1])
        equation = type(self)(self.call, problem, (size, *self.lead))
        return equation, inside, lambda w: w.reshape(size, B, *w.shape[1:])


class MultiplierEquation(_AtSolution):
    """ν(θ, y) and λ(θ, y) at a solution: explicit functions, (A⁺)ᵀ∇f of the equations that hold there.

    Output: ν (B, p) of the node's own equations and λ (B, q)
    of its inequality constraints and bounds, zero where one is not active, in a row.
    """

    def _values(self, *operands: Tensor) -> Tensor:
        *theta, y = operands
        problem = self.problem.with_operands(theta).stated
        constraints, g = constraint_set(problem, y), problem.inequalities(y)
        if not constraints.parametric:
            return flat(y)[:, :0] if g is None else torch.zeros_like(g)
        found = constraints.multipliers(constraints.gradient())
        h = problem.with_active_set(None).with_kinks(None).constraints(y)
        p = 0 if h is None else h.shape[-1]
        active = problem.active_set
        if g is None or active is None:
            rest = [] if g is None else [torch.zeros_like(g)]
            return torch.cat([found[:, :p], *rest], dim=-1)
        of_active = -found[:, p : p + active.count]
        of_active = torch.where(active.active, of_active, 0.0)
        # Of a weakly active one rounding may be below zero, which makes no difference to its derivative.
        of_active = of_active + (of_active.clamp(min=0) - of_active).detach()
        of_all = torch.zeros_like(g).detach().index_add(1, active.rows, of_active)
        return torch.cat([found[:, :p], of_all], dim=-1)

    def solve(self, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """By its formula."""
        return (self._values(*operands).detach(),)

    def vjp(
        self,
        operands: Sequence[Tensor],
        outputs: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        wrt: Sequence[int],
    ) -> list[Tensor | None]:
        """By torch.func."""
        wrt = [i for i in wrt if operands[i].is_floating_point()]

        def of_chosen(*values: Tensor) -> Tensor:
            everything = list(operands)
            for i, value in zip(wrt, values, strict=True):
                everything[i] = value
            return self._values(*everything)

        _, pull = vjp(of_chosen, *(operands[i] for i in wrt))
        return _merge([None] * len(operands), wrt, pull(cotangents[0]))

    def jvp(
        self,
        operands: Sequence[Tensor],
        outputs: Sequence[Tensor],
        tangents: Sequence[Tensor | None],
    ) -> tuple[Tensor, ...]:
        """By two passes back."""
        moving = [
            t if x.is_floating_point() else None for x, t in zip(operands, tangents, strict=True)
        ]
        return (pushforward(self._values, operands, moving),)


class MeasuredEquation(_AtSolution):
    """y, measured: the identity on a solution that torch differentiates by itself.

    A form that `unrolls` leaves the derivative to the steps of the solver. What it returns still gets its
    certificate, by plain numbers, under whatever transform the steps were run. Output: y.
    """

    def solve(self, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """y, with its certificate."""
        *theta, y = operands
        return (self.call.certify_only(self.problem.with_operands(theta), y, self.lead),)

    def vjp(
        self,
        operands: Sequence[Tensor],
        outputs: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        wrt: Sequence[int],
    ) -> list[Tensor | None]:
        """v for y, nothing for the rest."""
        return [*[None] * (len(operands) - 1), cotangents[0]]

    def jvp(
        self,
        operands: Sequence[Tensor],
        outputs: Sequence[Tensor],
        tangents: Sequence[Tensor | None],
    ) -> tuple[Tensor, ...]:
        """dy."""
        dy = tangents[-1]
        return (outputs[0].new_zeros(outputs[0].shape) if dy is None else dy.clone(),)
