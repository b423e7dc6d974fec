"""The programs of a layer's calls of one signature: what they are, and when there are some.

Programs are made where the functions are plain (no random numbers, nothing hidden, no kinks, no
autograd.Function of the user's own), the solution is regular, and the way back is one system of equations, or
the node's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..backward.automatic import Automatic
from ..backward.closed_form import ClosedForm
from ..backward.dense import DENSE_SIZE, Dense
from ..backward.embedded_field import EmbeddedField
from ..backward.form import BackwardForm, resolve_form
from ..batch_solve import solve
from ..captured import Captured, attributes, is_tracked
from ..certificate import tolerance_of
from ..node import DeclarativeNode
from ..problem import Problem
from ..solution import Solution
from .equations import Limits, Shape, at_solution, measure, stated, way_back
from .evaluation import Evaluation
from .held import Sides, held_solution, margin_of_rows
from .newton import NewtonProgram
from .operations import NotAProgramError
from .program import Program, trace
from .quadratic import QuadraticProgram

if TYPE_CHECKING:
    from ..layer import DeclarativeLayer

#: Of a system as a matrix: its unknowns, and the entries of those of a batch.
MOST_UNKNOWNS, MOST_ENTRIES = 256, 2**22
#: Unknowns up to which a matrix is as good as its diagonal, and up to which that is looked for.
FEW_UNKNOWNS, MOST_DIAGONAL = 1, 2**20
#: Entries of what a call was given up to which it keeps a copy, and looks for no change.
_MOST_COPIED = 2**14
_CONTIGUOUS = torch.contiguous_format
#: Figures that `equations.at_solution` gives before what the way back needs.
FIGURES = 4


@dataclass
class CallPrograms:
    """What calls of one signature run.

    Attributes:
        evaluation: of the functions that were traced.
        figures: `equations.at_solution`.
        back: `equations.way_back`; None where nothing asks for a derivative, or the node has its own.
        own: the node's own way back: then the figures are those of `equations.measured`.
        tracked: which of inputs and outside tensors want one.
        form: the backward form that the eager way takes.
        y_shape: of the batch.
        manifold: the node's class of manifold and its settings.
        solver: what solves, for a node that leaves that to newton, or a quadratic program to interior_point.
        unknown, untold: status and iterations (B,) of a `solve` of the node's own.
        settled: true for each item: only a y that is solved to rounding is clear.
        own_solve: whether the node's own `solve` takes the batch.
        tolerance: what the certificate's figures are held against.
        copies: whether a call keeps copies of what it was given: where these are small.
        margin: where there are inequality constraints, licq of what the figures leave for the way back: they
            give a lower bound of it, and then the margin of the active set.
        compared: how many comparisons the layer had made when one was last due.
    """

    evaluation: Evaluation
    figures: Program
    back: Program | None
    own: ClosedForm | None
    tracked: tuple[int, ...]
    form: str
    y_shape: torch.Size
    manifold: Any
    solver: NewtonProgram | QuadraticProgram | None
    unknown: Tensor
    untold: Tensor
    settled: Tensor
    own_solve: bool
    tolerance: float
    copies: bool
    margin: Callable[[Sequence[Tensor]], Tensor] | None = None
    calls: int = 0
    refused: int = 0
    compared: int = 0

    @property
    def shown(self) -> int:
        """How many figures there are before what the way back needs."""
        return FIGURES + (self.margin is not None)

    @property
    def derives(self) -> bool:
        """Whether there is a way back."""
        return bool(self.tracked) and (self.back is not None or self.own is not None)


@dataclass
class Signature:
    """Calls with inputs of the same shapes and types.

    Attributes:
        own: dimensions of each input of one problem.
        lead: the batch dimensions.
        reason: why there are no programs, and will be none.
    """

    own: tuple[int, ...]
    lead: torch.Size
    reason: str | None = None
    calls: int = 0
    traces: int = 0
    programs: CallPrograms | None = None


class ChangedError(NotAProgramError):
    """The functions are not what they were when they were traced."""


class UnclearError(NotAProgramError):
    """Of these inputs, something is not plain; it may be of others."""


def call_programs(
    layer: DeclarativeLayer, xs: Sequence[Tensor], signature: Signature
) -> CallPrograms:
    """The programs for calls like this one.

    Raises:
        NotAProgramError: there are none.
    """
    node = layer.node
    with torch.no_grad():
        inputs = plain_inputs(xs, signature)
        generator = torch.get_rng_state()
        problem, solution = solve(Problem(node, inputs, len(inputs[0])))
    if not torch.equal(generator, torch.get_rng_state()):
        # What goes the eager way after all would be solved with other numbers than without a try.
        raise NotAProgramError("its `solve` draws random numbers")
    y = solution.y.contiguous()
    if problem.structure is not None:
        raise NotAProgramError("y has several parts")
    bounded = node.has_inequalities and problem.inequalities(y) is not None
    unknowns = y.shape[1:].numel()
    form = resolve_form(layer.form, problem, unknowns)
    own = form if type(form) is ClosedForm else None
    if bounded:
        _refuse_inequalities(problem, y, own is not None)
    if own is None and isinstance(layer.form, Automatic) and unknowns > DENSE_SIZE:
        form = Dense()  # without Python around it, it is the quicker one for longer
    if own is None and (not _is_plain(form) or unknowns > MOST_DIAGONAL):
        raise NotAProgramError(f"the backward form is {form.name}, with {unknowns} unknowns")
    manifold = manifold_settings(node)
    if manifold is not None and not _immutable(tuple(manifold[1].values())):
        raise NotAProgramError("its manifold has settings other than numbers")
    _refuse_what_shows(problem, y)
    with torch.no_grad():
        given = _one_problem(inputs, y)
        evaluation = Evaluation(partial(_evaluate, node), given)
        outside, evaluation.outside = evaluation.outside, []  # not to be kept alive
        if evaluation.changes_outside:
            raise NotAProgramError("it changes an attribute of the node")
        if evaluation.autocasts:
            raise NotAProgramError("it runs under autocast")
        again = evaluation.repeat(partial(_evaluate, node), lambda: given)
        if again is None or any(a is not b for a, b in zip(outside, again, strict=True)):
            # A tensor of numpy, or of a scripted function: in the trace it would be a constant.
            raise NotAProgramError("it creates tensors in a way that torch cannot trace")
    if any(x.device.type != "cpu" or x.layout != torch.strided for x in outside):
        raise NotAProgramError("it uses a tensor that is not on the CPU")
    if any(type(x) not in (Tensor, torch.nn.Parameter) for x in outside):
        # What a class of the user's own does with it, no operation shows.
        raise NotAProgramError("it uses a tensor subclass")
    if any(is_tracked(x) and all(x is not z for z in outside) for _, x in attributes(node)):
        # Its gradient is zero, and not None.
        raise NotAProgramError("it holds a tensor that requires a gradient but does not use it")
    problem = problem.with_captured([Captured(x) for x in outside], outside)
    tolerance = tolerance_of(problem, y, layer.tolerance)
    limits = Limits.of(y.dtype, tolerance)
    operands = problem.operands
    everything = [*xs, *outside]
    tracked = [k for k, x in enumerate(everything) if x.requires_grad]
    untold = Solution(y).batched(len(y))
    programs = partial(
        CallPrograms,
        evaluation=evaluation,
        form=form.name,
        y_shape=y.shape,
        manifold=manifold,
        unknown=torch.as_tensor(untold.status),
        untold=torch.as_tensor(untold.iterations),
        settled=torch.ones(len(y), dtype=torch.bool),
        own_solve=node.batched_solve and type(node).solve is not DeclarativeNode.solve,
        tolerance=tolerance,
        copies=sum(x.numel() for x in operands) <= _MOST_COPIED,
    )
    if own is not None:
        if any(x.requires_grad for x in outside):
            raise NotAProgramError("its own adjoint has no gradient for a tensor that it holds")
        figures = trace(measure(problem, y, limits, tolerance), [y, *operands], FIGURES + 1)
        if not bool(figures(y, *(x.detach().contiguous() for x in operands))[0]):
            raise UnclearError("its figures are not clear")
        asked = tuple(tracked) if torch.is_grad_enabled() else ()
        return programs(figures=figures, back=None, own=own, tracked=asked, solver=None)
    shown = FIGURES + bounded
    for shape in _shapes(len(y), unknowns):
        at_y = at_solution(problem, limits, shape)
        if bounded:
            at_y = held_solution(problem, y, limits, shape, tolerance)
        figures = trace(at_y, [y, *operands], shown)
        found = figures(y, *(x.detach().contiguous() for x in operands))
        if bool(found[0]):
            break
    else:
        raise UnclearError("its figures are not clear")
    solver: NewtonProgram | QuadraticProgram | None
    if bounded:
        solver = QuadraticProgram.of(problem, y, limits, shape)
    else:
        solver = NewtonProgram.of(problem, y, limits, shape)
    back = None
    rest = found[shown:]

    def traced_back() -> Program:
        pull = way_back(problem, limits, shape, tracked)

        def flat_way_back(v: Tensor, y: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
            return pull(v, y, others[: len(rest)], *others[len(rest) :])

        return trace(flat_way_back, [torch.ones_like(y), y, *rest, *operands])

    if tracked and torch.is_grad_enabled():
        back = traced_back()
        # A tensor of the scope that is used without its graph has no gradient: None. What the node holds
        # has one of zero; optimisers tell the two apart.
        held = {id(x) for _, x in attributes(node)}
        idle = [
            k
            for k, g in zip(tracked, back.constant[2:], strict=True)
            if k >= len(xs)
            and id(everything[k]) not in held
            and g is not None
            and not bool(g.any())
        ]
        if idle:
            tracked = [k for k in tracked if k not in idle]
            back = traced_back() if tracked else None
    return programs(
        figures=figures,
        back=back,
        own=None,
        tracked=tuple(tracked),
        solver=solver,
        margin=margin_of_rows(problem, y, shape) if bounded else None,
    )


def _is_plain(form: BackwardForm) -> bool:
    """Whether the form is for the plain case: the system as a matrix, whose solution is what it is."""
    if isinstance(form, Dense):
        return form.singular == "minimum_norm" and not form.schur
    return isinstance(form, EmbeddedField)


def _shapes(batch: int, unknowns: int) -> list[Shape]:
    """What G may be taken for, in turn: a matrix where it fits."""
    small = unknowns <= MOST_UNKNOWNS and batch * unknowns**2 <= MOST_ENTRIES
    matrices = [Shape.DEFINITE, Shape.TANGENT] if small else []
    return [*([Shape.DIAGONAL] if unknowns > FEW_UNKNOWNS else []), *matrices]


def _refuse_inequalities(problem: Problem, y: Tensor, has_adjoint: bool) -> None:
    """Raise if they are more than a program is made for."""
    if problem.manifold is not None:
        raise NotAProgramError("it has inequality constraints on a manifold")
    if has_adjoint:
        raise NotAProgramError("it has inequality constraints, and an adjoint of its own")
    sides, rows = Sides.of(problem, y), stated(problem, y)
    if not any(sides):
        raise NotAProgramError("its bounds are none")
    count = 0 if rows is None else rows.shape[1]
    if sides.own and (count > MOST_UNKNOWNS or len(y) * count**2 > MOST_ENTRIES):
        raise NotAProgramError(f"it has {sides.own} inequality constraints")


def _refuse_what_shows(problem: Problem, y: Tensor) -> None:
    """Raise if the eager way has more to do than to differentiate."""
    for shown in problem.record(y).traces:
        if shown.random:
            raise NotAProgramError("it draws random numbers")
        if shown.hidden:
            raise NotAProgramError("it hides from torch what its values depend on")
        if shown.kinks:
            raise NotAProgramError("it has kinks")
    ahead: list[Any] = []
    with torch.enable_grad():
        given = [x.requires_grad_() for x in _one_problem([x.detach() for x in problem.inputs], y)]
        values = _evaluate(problem.node, given)
        ahead = [x.grad_fn for x in values if isinstance(x, Tensor)]
    seen: set[Any] = set()
    while ahead:
        function = ahead.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if isinstance(function, torch.autograd.function.BackwardCFunction):
            raise NotAProgramError("it uses an autograd.Function")
        ahead.extend(f for f, _ in function.next_functions)


def _evaluate(node: DeclarativeNode, given: Sequence[Tensor]) -> list[Any]:
    """The values of the node's functions; of bounds, and of what is none, whatever is returned."""
    *xs, y = given
    found: list[Any] = [node.objective(*xs, y=y)]
    if node.constrained:
        found.append(node.equality_constraints(*xs, y=y))
    if node.has_inequalities:
        found.append(node.inequality_constraints(*xs, y=y))
        bounds = node.bounds(*xs) if callable(node.bounds) else node.bounds
        found += [None, None] if bounds is None else bounds
    return found


def manifold_settings(node: DeclarativeNode) -> tuple[type, dict[str, Any]] | None:
    """What its constraints are made of. They are no functions of the node's, and none of their
    operations is looked at."""
    manifold = node.manifold
    return None if manifold is None else (type(manifold), dict(getattr(manifold, "__dict__", {})))


def _immutable(x: Any) -> bool:
    if isinstance(x, tuple):
        return all(map(_immutable, x))
    return x is None or isinstance(x, (int, float, str, torch.dtype))


def outside_tensors(
    programs: CallPrograms, node: DeclarativeNode, inputs: Sequence[Tensor], y: Tensor
) -> list[Tensor]:
    """The tensors that the functions use without being given them, as they are now.

    Raises:
        ChangedError: the functions are not those that were traced.
    """
    found = programs.evaluation.repeat(partial(_evaluate, node), lambda: _one_problem(inputs, y))
    if found is None:
        raise ChangedError
    return found


def _one_problem(inputs: Sequence[Tensor], y: Tensor) -> list[Tensor]:
    return [*(x[0] for x in inputs), y[0]]


def plain_inputs(xs: Sequence[Tensor], signature: Signature, copies: bool = False) -> list[Tensor]:
    """The inputs without a graph, with one batch dimension in front, contiguous."""
    lead = signature.lead
    if len(lead) == 1:
        return [plain(x, copies) for x in xs]
    size, count = lead.numel(), len(lead)
    return [plain(x.reshape(size, *x.shape[count:]), copies) for x in xs]


def plain(x: Tensor, copies: bool) -> Tensor:
    """A tensor as programs take it, without a graph."""
    return x.clone(memory_format=_CONTIGUOUS) if copies else x.detach().contiguous()
