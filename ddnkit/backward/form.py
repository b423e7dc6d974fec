"""The BackwardForm contract: from a solved batch and an incoming gradient to input gradients."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .. import registry
from ..errors import InputError
from ..problem import Problem
from ..solution import Solution


@dataclass(frozen=True)
class Adjoint:
    """Gradients for the inputs, one an input (None for those not asked for), and how far to trust them.

    Attributes:
        residual: relative residual of the adjoint system, (B,); None for a form that solves none.
    """

    gradients: Sequence[Tensor | None]
    residual: Tensor | None = None


class BackwardForm(abc.ABC):
    """Computes v·dy/dxᵢ at a solution. Stateless, constructible without arguments."""

    name: str

    @abc.abstractmethod
    def vjp(self, problem: Problem, solution: Solution, v: Tensor, wrt: Sequence[int]) -> Adjoint:
        """Gradients for the inputs whose indices are in ``wrt``; v is (B, *y)."""

    def unsupported(self, problem: Problem) -> str | None:
        """Why this form cannot take ``problem``, or None if it can."""
        return None


def as_form(backward: str | BackwardForm, problem: Problem) -> BackwardForm:
    """The form itself, the registered one of that name, or for "auto" the best that applies.

    "auto" takes the node's `preferred_backward`, else its own adjoint, else the closed-form
    multipliers of its manifold, else the dense form.

    Raises:
        InputError: the form cannot take this node; the reason is given.
    """
    if backward == "auto":
        backward = _automatic(problem)
    if isinstance(backward, str):
        form: BackwardForm = registry.get("backwards", backward)()
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


def _automatic(problem: Problem) -> str:
    node = problem.node
    if node.preferred_backward is not None:
        return node.preferred_backward
    if node.adjoint is not None:
        return "closed_form"
    return "embedded_field" if node.manifold is not None else "dense"
