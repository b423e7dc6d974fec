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

from torch import Tensor

from .. import registry
from ..errors import InputError
from ..problem import Problem

if TYPE_CHECKING:
    from ..node import DeclarativeNode

#: z (k, B, m) and the relative residual (k, B) for right sides r (k, B, m); and, from a form that has
#: them, the multipliers μ (k, B, p) of `Problem.all_constraints` with G z + Aᵀμ = r
TangentSolve = Callable[[Tensor], tuple[Tensor, ...]]


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
            a function of right sides r (k, B, m) that returns z (k, B, m) and the residual (k, B), and
            may return μ (k, B, p) after them: the gradient for what constraints depend on is made of μ,
            and z, rounded to y's dtype, may not tell it.
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
