"""One short call: y by programs, its certificate, and the way back.

Whatever is not plain in the call is left to the eager way, which says what is to be said of it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..backward.closed_form import copy_aliases
from ..batch_solve import solve
from ..certificate import Certificate, LateCertificate
from ..errors import InputError
from ..implicit.own_adjoint import difference
from ..node import DeclarativeNode
from ..node_state import NodeState
from ..problem import Problem
from ..recording import Held
from ..solution import Solution, Status
from ..transforms import under_transform
from .call_programs import (
    CallPrograms,
    ChangedError,
    Signature,
    manifold_settings,
    outside_tensors,
    plain,
    plain_inputs,
)
from .operations import NotAProgramError

if TYPE_CHECKING:
    from ..layer import DeclarativeLayer

#: How far apart, relative, one solution may come out twice: where the system is nearly singular.
_SAME = 1e-2


def by_programs(
    programs: CallPrograms, signature: Signature, layer: DeclarativeLayer, xs: Sequence[Tensor]
) -> Tensor | None:
    """y with its certificate and its way back; None if something is not plain."""
    lead, node = signature.lead, layer.node
    number = layer.comparisons.begin()
    with torch.no_grad():
        # Whatever is raised: the eager way knows which items to set aside, or raises it.
        try:
            inputs = plain_inputs(xs, signature, programs.copies)
            # What a `solve` that works in place would write on.
            given = inputs if programs.copies else xs
            versions = [x._version for x in given]
            if programs.manifold != manifold_settings(node):
                return None
            solution, outside = solution_of(programs, node, inputs)
            y = solution.y.contiguous()
            if y.shape != programs.y_shape or y.dtype != inputs[0].dtype:
                return None
            # What a solver's program has looked at was the start.
            if outside is None or programs.evaluation.values_count:
                outside = outside_tensors(programs, node, inputs, y)
            if [x._version for x in given] != versions or (outside and _is_swapped(layer, outside)):
                return None
            operands = inputs + [plain(x, programs.copies) for x in outside]
            clear, stationarity, feasibility, licq, *rest = programs.figures(y, *operands)
            late_licq = None
            if not clear.item() or not _ended_well(programs, solution):
                return None
            settled, margin, aux = programs.settled, None, {}
            if programs.margin is not None:
                margin, *rest = rest
                late_licq = partial(programs.margin, rest)
            if programs.own is not None:
                (settled,), aux = rest, {k: x.detach() for k, x in solution.aux.items()}
                rest = list(aux.values())
        except Exception:
            return None
        held = y.untyped_storage().data_ptr()
        others = outside if programs.copies else operands
        # Nor in memory of the node's, which it may write on in its next call, where no version would tell;
        # nor as a view, on which a function of its own lets nobody write.
        shared = programs.own_solve or any(held == x.untyped_storage().data_ptr() for x in others)
        if len(lead) != 1:
            y = y.reshape(lead + y.shape[1:])
        if shared or len(lead) != 1:
            y = y.clone()
    figures = stationarity, feasibility, late_licq or licq, settled, margin
    shown = LateCertificate(partial(_certificate, programs, lead, figures, solution))
    layer.show(shown)
    if not programs.derives:
        return y
    everything = [*xs, *outside]
    tracked = [everything[k] for k in programs.tracked]
    kept = None if programs.own is None else NodeState(node)
    # The caller has y, and may write on it where no version tells.
    held_then = [] if programs.copies else [Held(x) for x in (*operands, y.detach())]
    state = _State(programs, layer, xs, operands, held_then, shown, tuple(aux), kept, number)
    found: Tensor = _Short.apply(state, [y], rest, *tracked)
    return found


def _certificate(
    programs: CallPrograms,
    lead: torch.Size,
    figures: tuple[Tensor, Tensor, Tensor | Callable[[], Tensor], Tensor, Tensor | None],
    solution: Solution,
    residual: Tensor | None,
) -> Certificate:
    """That of a short call, each figure in memory of its own."""
    stationarity, feasibility, licq, settled, margin = figures
    certificate = Certificate(
        stationarity,
        feasibility,
        torch.as_tensor(solution.status).clone(),
        torch.as_tensor(solution.iterations).clone(),
        programs.tolerance,
        solution.solver,
        solution.uniqueness,
        adjoint_residual=residual,
        licq=licq if isinstance(licq, Tensor) else licq(),
        settled=settled.clone(),
        active_margin=margin,
        form=programs.form,
    )
    return certificate if len(lead) == 1 else certificate.reshape(lead)


def solution_of(
    programs: CallPrograms, node: DeclarativeNode, inputs: list[Tensor]
) -> tuple[Solution, list[Tensor] | None]:
    """y, and the tensors from outside where they had to be looked for."""
    solver = programs.solver
    if solver is None and programs.own_solve:
        returned = node.solve(*inputs)
        if type(returned) is Tensor and len(returned) == len(inputs[0]):
            return Solution(returned.detach(), programs.unknown, programs.untold), None
        # Not to be asked twice
        if type(returned) is Solution and type(returned.y) is Tensor:
            return replace(returned, y=returned.y.detach()).batched(len(inputs[0])), None
        raise NotAProgramError("its `solve` returns something else")
    problem = Problem(node, inputs, len(inputs[0]))
    start = None if solver is None else solver.start(problem)
    if solver is not None and start is not None:
        outside = outside_tensors(programs, node, inputs, start)
        solution = solver.solve(start, inputs + [plain(x, programs.copies) for x in outside])
        if solution is not None:
            # Nothing of the node's own was called since.
            return solution, outside
    problem, solution = solve(problem)
    if problem.structure is not None:
        raise NotAProgramError("y has several parts")
    return solution, None


def _is_swapped(layer: DeclarativeLayer, outside: Sequence[Tensor]) -> bool:
    """Whether a tensor stands in for a parameter, as in torch.func.functional_call: it will be gone from the
    node when a second derivative is asked for, for which the eager way is prepared."""
    others = [x for x in outside if x.requires_grad and type(x) is not torch.nn.Parameter]
    return bool(others) and any(x is p for p in layer.parameters() for x in others)


def _ended_well(programs: CallPrograms, solution: Solution) -> bool:
    unique = solution.uniqueness
    if unique is not None and not _all(unique, torch.finfo(unique.dtype).eps ** 0.5, operator.ge):
        return False
    if solution.status is programs.unknown:
        return True
    return _all(torch.as_tensor(solution.status), Status.NON_FINITE, operator.lt)


def _all(values: Tensor, limit: float, compared: Callable[[Any, Any], Any]) -> bool:
    """Whether all of them stand so to the limit."""
    if values.numel() == 1:  # a call in C, in place of three operations
        return bool(compared(values.item(), limit))
    return bool(compared(values, limit).all())


@dataclass
class _State:
    """What a short call keeps for its way back.

    Attributes:
        operands: as the program takes them.
        held: what they held then, and then y, where they are no copies.
        aux: names of what the solver has left, for the node's own adjoint; and the node as it was.
        number: of the call, see `Comparisons.begin`.
    """

    programs: CallPrograms
    layer: DeclarativeLayer
    xs: Sequence[Tensor]
    operands: list[Tensor]
    held: list[Held]
    shown: LateCertificate
    aux: tuple[str, ...]
    node: NodeState | None
    number: int

    @property
    def certificate(self) -> Certificate:
        """That of the call."""
        return self.shown.certificate()


class _Short(torch.autograd.Function):
    """y of a short call: it in a list, as it is no input; what the figures have left for the way back; and
    what wants a gradient."""

    @staticmethod
    def forward(
        ctx: Any, state: _State, y: list[Tensor], rest: Sequence[Tensor], *tracked: Tensor
    ) -> Tensor:
        ctx.state = state
        kept = y[0].clone() if state.programs.copies else y[0]
        ctx.save_for_backward(*tracked, kept, *rest)
        return y[0]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        state: _State = ctx.state
        programs, count = state.programs, len(state.programs.tracked)
        saved = ctx.saved_tensors
        tracked, y, rest = saved[:count], saved[count].detach(), saved[count + 1 :]
        for held, x in zip(state.held, (*state.operands, y), strict=False):
            if held.differs(Held(x)):
                what = "its y" if x is y else "what it was solved with"
                raise InputError(
                    f"{type(state.layer.node).__name__}: {what} was changed in place after the layer was "
                    "called, so its gradient cannot be computed any more: change a copy, or change it "
                    "after backward()"
                )
        if torch.is_grad_enabled() or type(v) is not Tensor or not _plain_on_the_way_back(v):
            return (None, None, None, *_eagerly(state, y, tracked, v))
        flat = y.ndim == len(programs.y_shape)
        point = y if flat else y.reshape(programs.y_shape)
        right = (v if flat else v.reshape(programs.y_shape)).contiguous()
        try:
            if programs.own is not None:
                aux = dict(zip(state.aux, rest, strict=True))
                sound, residual, gradients = _own_way_back(state, point, right, aux)
            else:
                assert programs.back is not None
                clear, residual, *gradients = programs.back(right, point, *rest, *state.operands)
                sound = bool(clear.item())
        except Exception:  # whatever a system with no solution throws: the eager way knows it
            sound = False
        if not sound:
            return (None, None, None, *_eagerly(state, y, tracked, v))
        lead = y.shape[: y.ndim - len(programs.y_shape) + 1]
        state.shown.solved(residual if residual is None or flat else residual.reshape(lead))
        if flat:
            return (None, None, None, *gradients)
        return (
            None,
            None,
            None,
            *(g.reshape(x.shape) for g, x in zip(gradients, tracked, strict=True)),
        )


def _own_way_back(
    state: _State, y: Tensor, v: Tensor, aux: Mapping[str, Tensor]
) -> tuple[bool, Tensor | None, list[Tensor]]:
    """The node's own adjoint, of the node as it was: whether it passes, its residual, and the gradients."""
    assert state.node is not None and state.programs.own is not None
    node = state.node.node() if state.node.changed() else state.layer.node
    count = len(state.xs)
    problem = Problem(node, state.operands[:count], len(y))
    with torch.no_grad():
        outside = outside_tensors(state.programs, node, problem.inputs, y)
    if not all(map(_same_values, outside, state.operands[count:])):
        raise ChangedError
    if _own_differs(state, problem, y, aux):
        return False, None, []
    # An adjoint may work in the memory of v, or give back what it was given.
    gradients, residual = state.programs.own.adjoint(
        problem, y, v.clone(), aux, state.programs.tracked
    )
    passes = residual is None or bool((residual <= state.programs.tolerance).all())
    gradients = copy_aliases(gradients, [*state.operands, y, *aux.values()])
    # What autograd accumulates is written on by others: a tensor that repeats itself cannot be.
    return passes, residual, [g.contiguous() for g in gradients]


def _own_differs(state: _State, problem: Problem, y: Tensor, aux: Mapping[str, Tensor]) -> bool:
    """Whether the node's own adjoint, after another call of the layer, is not that of this one any more.

    In calls where that is due. Made anew, the eager way, the call is the last one again.
    """
    comparisons, programs = state.layer.comparisons, state.programs
    if comparisons.begun == state.number:
        return False
    shapes = [x.shape for x in problem.operands]
    signature = (programs.form, y.shape, y.dtype, programs.tracked, True, *shapes)
    if not comparisons.due(signature):
        return False

    def adjoint(v: Tensor) -> tuple[list[Tensor], Tensor | None]:
        assert programs.own is not None
        kept = {name: value.clone() for name, value in aux.items()}
        return programs.own.adjoint(problem, y, v, kept, programs.tracked)

    certificate = state.certificate
    backward_error = torch.maximum(certificate.stationarity, certificate.feasibility).reshape(-1)
    found = difference(problem, y, adjoint, programs.tracked, backward_error)
    if found is None or bool((found <= certificate.tolerance).all()):
        return False
    comparisons.again(signature)
    return True


def _same_values(x: Tensor, operand: Tensor) -> bool:
    return torch.equal(x.detach().reshape(operand.shape), operand)


def _plain_on_the_way_back(v: Tensor) -> bool:
    return not under_transform() and not torch._C._functorch.is_legacy_batchedtensor(v)


def _eagerly(state: _State, y: Tensor, tracked: Sequence[Tensor], v: Tensor) -> list[Tensor | None]:
    """The gradients of the same call made anew, the eager way."""
    layer, programs = state.layer, state.programs
    at = dict(zip(programs.tracked, tracked, strict=True))
    xs = [at.get(k, x) for k, x in enumerate(state.xs)]
    inputs, point = state.operands[: len(xs)], y.detach().reshape(programs.y_shape)
    same = programs.manifold == manifold_settings(layer.node)
    try:
        with torch.no_grad():
            outside = outside_tensors(programs, layer.node, inputs, point)
    except ChangedError:
        same = False
    # What does not lie in memory as a program has it was copied: a change of it does not show there.
    if not same or not all(map(_same_values, [*xs, *outside], state.operands)):
        raise InputError(
            f"{type(layer.node).__name__}: its functions, or what they use, have changed since the layer was "
            "called. The gradient would be that of another problem. Call backward() before you change them, "
            "or pass what changes to the layer as an input"
        )
    shown, graph = layer.shown, torch.is_grad_enabled()
    # A solver that starts there ends at the same solution where there are several.
    start = y.detach() if type(layer.node).solve is DeclarativeNode.solve else None
    with torch.enable_grad():
        found_y = layer.eager(xs, start)
        size = torch.linalg.vector_norm
        if not bool(size(found_y.detach() - y.detach()) <= _SAME * size(y.detach())):
            raise InputError(
                f"{type(layer.node).__name__}: solving it again (for a second derivative, or because more "
                "accuracy was needed) gave another solution. `solve` must give the same y for the same inputs"
            )
        found = torch.autograd.grad(found_y, tracked, v, create_graph=graph, allow_unused=True)
    if shown is not state.shown:
        layer.show(shown)
    return list(found)
