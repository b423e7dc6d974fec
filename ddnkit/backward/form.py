"""The BackwardForm contract: how the linear system of the implicit function theorem is solved.

The theorem itself is stated once, in `ddnkit.implicit`. A form brings the numbers: at a solution y
with multipliers ν, z = (P G P)⁺ P r for right sides r, where G = D²_yy L and P projects on the tangent
space of the constraints. From it follow gradients, forward derivatives and all higher ones.
A form may also know a shorter way to the gradient (`BackwardForm.adjoint`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import registry
from ..errors import InputError
from ..problem import Problem

if TYPE_CHECKING:
    from ..node import DeclarativeNode

#: z (k, B, m) and the relative residual (k, B) for right sides r (k, B, m)
TangentSolve = Callable[[Tensor], tuple[Tensor, Tensor]]


class SystemSolve:
    """A `TangentSolve` that knows the multipliers of the system as well, G z + Aᵀμ = r.

    The gradient for what constraints depend on is made of μ. The z that was rounded to y's dtype, or that
    leaves a residual where G is large, may not tell it.

    Args:
        with_multipliers: z, the residual and μ (k, B, p) of `Problem.all_constraints` for r.
    """

    def __init__(self, with_multipliers: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]):
        self.with_multipliers = with_multipliers

    def __call__(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """z and the residual."""
        z, residual, _ = self.with_multipliers(r)
        return z, residual


def solved(solve: TangentSolve, r: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """z, the residual, and μ where the solve knows it."""
    if isinstance(solve, SystemSolve):
        return solve.with_multipliers(r)
    return *solve(r), None


def replaced(
    mask: Tensor,
    found: tuple[Tensor, Tensor, Tensor],
    other: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """z, residual and μ of ``other`` for the items (k, B) of ``mask``."""
    wide = mask.unsqueeze(-1)
    return (
        torch.where(wide, other[0], found[0]),
        torch.where(mask, other[1], found[1]),
        torch.where(wide, other[2], found[2]),
    )


class BackwardForm(abc.ABC):
    """Solves P G P z = P r at a solution. Stateless, constructible without arguments."""

    name: str
    #: True: `adjoint` is implemented, a shorter way to v·dy/dx
    has_adjoint: bool = False

    @abc.abstractmethod
    def tangent_solve(self, problem: Problem, y: Tensor, nu: Tensor) -> TangentSolve:
        """Prepare (factorise, if the form does) the system at y.

        Args:
            y: (B, *y), plain numbers.
            nu: multipliers: (B, p) of `Problem.all_constraints`; in the manifold's own shape where a
                manifold is all there is; (B, 0) without constraints.

        Returns:
            a function of right sides r (k, B, m) that returns z (k, B, m) and the residual (k, B); a
            `SystemSolve` where the form knows μ too.
        """

    def adjoint(
        self,
        problem: Problem,
        y: Tensor,
        v: Tensor,
        aux: Mapping[str, Tensor],
        wrt: Sequence[int],
    ) -> tuple[list[Tensor], Tensor | None]:
        """v·dy/dx for the inputs of ``wrt`` (positions among the tensors) and a residual (B,) or None.

        Used for the value of a gradient where `has_adjoint`; its derivatives go the general way.
        """
        raise NotImplementedError

    def unsupported(self, problem: Problem) -> str | None:
        """Why this form cannot take ``problem``, or None if it can."""
        return None

    def taken(self, problem: Problem, size: int) -> BackwardForm:
        """The form that does the work for y of ``size`` unknowns: itself, but for "auto"."""
        return self


def as_form(backward: str | BackwardForm, problem: Problem) -> BackwardForm:
    """The form itself, or the registered one of that name; "auto" chooses at each call.

    Raises:
        InputError: the form cannot take this node; the reason is given.
    """
    if isinstance(backward, str):
        form: BackwardForm = registry.make("backwards", backward)
    elif isinstance(backward, BackwardForm):
        form = backward
    else:
        raise InputError(f"backward is a name or a ddnkit.BackwardForm, not {backward!r}")
    reason = form.unsupported(problem)
    if reason is not None:
        raise InputError(
            f"backward form '{form.name}' cannot take {type(problem.node).__name__}: {reason}"
        )
    return form


def applicable_forms(node: DeclarativeNode) -> list[str]:
    """Registered forms that can take the node, the reference form last. "auto" takes one of them."""
    problem = Problem(node, (), 0)
    names = [
        name
        for name, form in registry.working("backwards").items()
        if name != "auto" and form.unsupported(problem) is None
    ]
    return sorted(names, key=lambda name: (name == "dense", name))
