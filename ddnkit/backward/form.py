"""The BackwardForm contract: how the linear system of the implicit function theorem is solved.

The theorem itself is stated once, in `ddnkit.implicit`. A form brings the numbers: at a solution y
with multipliers ν, z = (P G P)⁺ P r for right sides r, where G = D²_yy L and P projects on the tangent
space of the constraints. From it follow gradients, forward derivatives and all higher ones.
A form may also know a shorter way to the gradient (`BackwardForm.adjoint`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import registry
from ..errors import InputError
from ..problem import Problem
from ..renamed import OldMethod

if TYPE_CHECKING:
    from ..node import DeclarativeNode

#: z (k, B, m) and the relative residual (k, B) for right sides r (k, B, m)
TangentSolve = Callable[[Tensor], tuple[Tensor, Tensor]]


class SystemSolution(NamedTuple):
    """The solution of one linear system  G z + Aᵀμ = r,  A z = 0,  for k right sides r of B problems.

    Attributes:
        z: (k, B, m).
        residual: how much of r is left, relative to it, (k, B).
        mu: μ (k, B, p), multipliers of `Problem.all_constraints`; None if the form does not know them.
        doubt: how far μ may be wrong although the residual is small, relative to the larger of μ and r,
            (k, B); None: no further than the residual says.
        saddle: how negative the least curvature on the tangent space is, relative to the largest, (B,),
            and 0 where it is not negative; None: the form showed a minimum, or nothing.
        then: the name of the form that solved again what the first one left; "" if none did.
    """

    z: Tensor
    residual: Tensor
    mu: Tensor | None
    doubt: Tensor | None = None
    saddle: Tensor | None = None
    then: str = ""


class SystemSolve:
    """A `TangentSolve` that knows the multipliers of the system as well.

    The gradient for what constraints depend on is made of μ. The z that was rounded to y's dtype, or that
    leaves a residual where G is large, may not tell it.

    Args:
        system: z, the residual and μ, of `Problem.all_constraints`, for r.
    """

    def __init__(self, system: Callable[[Tensor], SystemSolution]):
        self.system = system

    def __call__(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """z and the residual."""
        found = self.system(r)
        return found.z, found.residual


def resolve_form(form: BackwardForm, problem: Problem, size: int) -> BackwardForm:
    """The form that does the work of ``form``, for y of ``size`` unknowns.

    Raises:
        InputError: its `resolve` returned something else.
    """
    found: object = form.resolve(problem, size)
    if not isinstance(found, BackwardForm):
        raise InputError(
            f"form '{form.name}': its method resolve returned {found!r:.100}; expected a ddnkit.BackwardForm"
        )
    return found


def system_solution(solve: TangentSolve, r: Tensor, multipliers: bool) -> SystemSolution:
    """The solution for r, with μ if it is asked for and known: its doubt then counts as residual."""
    if not isinstance(solve, SystemSolve):
        pair: object = solve(r)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise InputError(f"a backward form gave {_kind(pair)}; expected z and the residual")
        found = SystemSolution(*pair, None, saddle=getattr(solve, "saddle", None))
        return _checked(found, r)
    found = _checked(solve.system(r), r)
    if not multipliers:
        return found._replace(mu=None)
    residual = found.residual
    if found.doubt is not None:
        residual = torch.maximum(residual, found.doubt)
    return found._replace(residual=residual)


def _checked(found: object, r: Tensor) -> SystemSolution:
    if not isinstance(found, SystemSolution):
        raise InputError(f"a backward form gave {_kind(found)}; expected a ddnkit.SystemSolution")
    for name, expected in (("z", r.shape), ("residual", r.shape[:-1])):
        value = getattr(found, name)
        if not isinstance(value, Tensor) or value.shape != expected:
            raise InputError(
                f"a backward form gave {_kind(value)} as {name} for right sides (k, B, m) of shape "
                f"{tuple(r.shape)}; expected a tensor of shape {tuple(expected)}"
            )
    return found


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    count = f" of {len(value)}" if isinstance(value, tuple) else ""
    return f"a {type(value).__name__}{count}"


def merge_solutions(mask: Tensor, found: SystemSolution, other: SystemSolution) -> SystemSolution:
    """``other`` for the items (k, B) of ``mask``."""
    wide = mask.unsqueeze(-1)
    doubt = found.doubt
    if doubt is not None or other.doubt is not None:
        a, b = (
            torch.zeros_like(x.residual) if x.doubt is None else x.doubt for x in (found, other)
        )
        doubt = torch.where(mask, b, a)
    assert found.mu is not None and other.mu is not None
    saddle = found.saddle
    if saddle is not None or other.saddle is not None:
        a, b = (torch.zeros_like(mask[0], dtype=found.z.dtype) if x.saddle is None else x.saddle
                for x in (found, other))  # fmt: skip
        saddle = torch.where(mask.any(dim=0), b, a)
    return SystemSolution(
        torch.where(wide, other.z, found.z),
        torch.where(mask, other.residual, found.residual),
        torch.where(wide, other.mu, found.mu),
        doubt,
        saddle,
    )


class BackwardForm(abc.ABC):
    """Solves P G P z = P r at a solution. Stateless, constructible without arguments.

    Class attributes tell `ddnkit check` and `ddnkit bench` how to treat the form.
    """

    name: str
    #: True: `adjoint` is implemented, a shorter way to v·dy/dx
    has_adjoint: bool = False
    #: The member of the node whose code `adjoint` runs: a wrong gradient is the node's then, else the form's.
    node_member: str = ""
    #: True: its memory grows with m², as that of an m×m matrix. A check of many unknowns leaves it out, and a
    #: bench does not run it where the memory is not there.
    dense: bool = False
    #: True: it differentiates the steps of the node's own `solve`, which need not carry the derivative. It is
    #: there to be compared with: what it gets wrong is a note, and a failure only if it is asked for by name.
    unrolls: bool = False

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
        raise NotImplementedError(f"{type(self).__name__} has has_adjoint, but no method adjoint")

    def unsupported(self, problem: Problem) -> str | None:
        """Why this form cannot take ``problem``, or None if it can."""
        return None

    def resolve(self, problem: Problem, size: int) -> BackwardForm:
        """The form that does the work for y of ``size`` unknowns: itself, but for "auto"."""
        return self

    taken = OldMethod("resolve")

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        vars(BackwardForm)["taken"].move_override(cls)


def as_form(backward: str | BackwardForm, problem: Problem) -> BackwardForm:
    """The form itself, or the registered one of that name; "auto" chooses at each call.

    Raises:
        InputError: the form cannot take this node; the reason is given.
    """
    if isinstance(backward, str):
        form = _with_name(backward, registry.make("backwards", backward))
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


def forms_of(node: DeclarativeNode) -> dict[str, BackwardForm]:
    """Registered forms that can take the node, an object of each, the reference form last. "auto" takes one
    of them."""
    problem = Problem(node, (), 0)
    forms = {
        name: form
        for name, form in registered_forms().items()
        if name != "auto" and form.unsupported(problem) is None
    }
    return {name: forms[name] for name in sorted(forms, key=lambda name: (name == "dense", name))}


def registered_forms() -> dict[str, BackwardForm]:
    """An object of each registered form that works, by name, sorted."""
    return {name: _with_name(name, form) for name, form in registry.working("backwards").items()}


def _with_name(name: str, form: BackwardForm) -> BackwardForm:
    """The form, which goes by its registered name: two packages may call theirs alike."""
    if form.name != name:
        object.__setattr__(form, "name", name)  # it may be a frozen dataclass
    return form
