"""The columns of a sweep: what is asked of a backward form on one instance of a problem.

Each column is a function of a `Trial` that returns the worst relative error of its comparisons.
Below f is θ ↦ y, J = dy/dθ, V the incoming gradients of the instance, v and w combinations of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import torch
from torch import Tensor
from torch.func import jacfwd, jvp, vjp, vmap

from ..parts import join_parts
from .case import NotApplicableError, Trial, phi, push_forward, value_and_gradient


def analytic(trial: Trial) -> float:
    """V J against the one on paper, and vᵀJ by autograd without any transform."""
    case = trial.case
    if not case.problem.analytic:
        raise NotApplicableError("no analytic Jacobian")
    known = [_times(case.incoming, J) for J in case.jacobians]
    _, gradient = value_and_gradient(trial.f, case.operands, case.weights)
    single = [_times(case.weights, J) for J in case.jacobians]
    return max(worst(trial.rows, known), worst(gradient, single))


def differences(trial: Trial) -> float:
    """V J u against V dy/dt of problems solved again at θ + tu."""
    case = trial.case
    found = [push_forward(trial.rows, u) for u in case.directions]
    return worst(found, [case.incoming @ slope for slope in case.slopes])


def transpose(trial: Trial) -> float:
    """V J by forward mode, by jacfwd and along one direction, against reverse mode."""
    case = trial.case
    count = len(case.operands)
    columns = jacfwd(trial.f, argnums=tuple(range(count)))(*case.operands)
    u = case.directions[-1]
    along = jvp(trial.f, case.operands, tuple(u))[1]
    found = [*(_times(case.incoming, J) for J in columns), case.incoming @ along]
    return worst(found, [*trial.rows, push_forward(trial.rows, u)])


def second(trial: Trial) -> float:
    """H u of φ(y(θ)), by reverse over reverse and forward over reverse, against differences of ∇φ."""
    case, f = trial.case, trial.f
    if not case.problem.unique:
        raise NotApplicableError("not unique: the gradient is not a function of the inputs")
    u = case.directions[-1]
    leaves = [x.clone().requires_grad_() for x in case.operands]
    first = torch.autograd.grad(phi(f(*leaves), case.weights), leaves, create_graph=True)
    slope = torch.stack([(g * d).sum() for g, d in zip(first, u, strict=True)]).sum()
    by_reverse = torch.autograd.grad(slope, leaves, materialize_grads=True)
    gradient = torch.func.grad(
        lambda *theta: phi(f(*theta), case.weights), argnums=tuple(range(len(leaves)))
    )
    by_forward = jvp(gradient, case.operands, tuple(u))[1]
    known = case.hessian_product
    return max(worst(by_reverse, known), worst(by_forward, known), worst(by_reverse, by_forward))


def under_vmap(trial: Trial) -> float:
    """f and wᵀJ under vmap against one by one: with every operand mapped, and with one alone."""
    f = trial.f
    if trial.form.unrolls and not _can_be_mapped(trial):
        raise NotApplicableError("its own `solve` cannot go through vmap")
    operands, weights = trial.batch
    dims: list[int | None] = [0] * len(operands)

    def of_one(w: Tensor, *theta: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, pull = vjp(f, *theta)[:2]
        return y, pull(w)

    found = _flatten(vmap(of_one)(weights, *operands))
    error = worst(found, _stack(trial.items))
    if len(dims) == 1 or not trial.case.problem.unique:
        return error
    # The rest is that of the first instance, for all.
    dims[1:] = [None] * (len(dims) - 1)
    w, shared = weights[0], [x[0] for x in operands[1:]]
    some = vmap(of_one, in_dims=(None, *dims))(w, operands[0], *shared)
    others = [value_and_gradient(f, [x, *shared], w) for x in operands[0][1:]]
    alone = [trial.items[0], *others]
    return max(error, worst(_flatten(some), _stack(alone)))


def batch(trial: Trial) -> float:
    """f and wᵀJ of a batch against its items; a parameter, which they share, has the sum."""
    operands, weights = trial.batch
    count = trial.f.inputs
    shared = trial.case.operands[count:]
    found = value_and_gradient(trial.f, [*operands[:count], *shared], weights)
    value, *gradients = _stack(trial.items)
    gradients[count:] = [g.sum(dim=0) for g in gradients[count:]]
    return worst(_flatten(found), [value, *gradients])


#: Name: column, in the order of tables.
COLUMNS = MappingProxyType(
    {
        "analytic": analytic,
        "differences": differences,
        "transpose": transpose,
        "second": second,
        "vmap": under_vmap,
        "batch": batch,
    }
)


def worst(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest ‖found − expected‖/‖expected‖, or ‖found‖ where nothing is expected; NaN is infinite."""
    errors = []
    for mine, right in zip(found, expected, strict=True):
        size = right.norm()
        error = (mine - right).norm() / torch.where(size > 0, size, 1.0)
        errors.append(torch.nan_to_num(error, nan=torch.inf))
    return float(torch.stack(errors).max())


def _times(V: Tensor, J: Tensor) -> Tensor:
    """V J for V (k, m) or (m,) and J (m, *θ)."""
    return torch.tensordot(V, J, dims=1)


def _flatten(pair: tuple[Tensor, Sequence[Tensor]]) -> list[Tensor]:
    return [pair[0], *pair[1]]


def _stack(items: Sequence[tuple[Tensor, Sequence[Tensor]]]) -> list[Tensor]:
    return [torch.stack(column) for column in zip(*map(_flatten, items), strict=True)]


def _can_be_mapped(trial: Trial) -> bool:
    operands, weights = trial.batch

    def alone(w: Tensor, *theta: Tensor) -> tuple[Tensor, ...]:
        def y(*theta: Tensor) -> Tensor:
            problem = trial.case.problem
            y = problem.solve(*trial.f.arguments(theta))
            return join_parts(problem.observed(y)).reshape(-1)

        gradients: tuple[Tensor, ...] = vjp(y, *theta)[1](w)
        return gradients

    try:
        vmap(alone)(weights, *operands)
    except RuntimeError:
        return False
    return True
