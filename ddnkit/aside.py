"""Items that hold NaN or infinity, set aside so that the rest of a batch does not suffer from them.

The items of a batch are problems of their own, but they are computed together: a factorisation refuses a
batch for one NaN in it. An item that is not finite is therefore solved, measured and differentiated as a
copy of a sound one, and what comes of it is thrown away. If there is no sound one nothing is solved.

Some nodes read NaN as a missing entry, or infinity as no bound. Where objective, gradient and constraints
are finite all the same, such an item is a problem like any other.

To look at the inputs is to wait for a GPU. It is not done there before the solve, under the policies that
promise not to wait, unless the solver waits anyway; nor anywhere for a solver that keeps items apart by
itself (`Solver.keeps_items_apart`). If the solve then fails, that is the time to look.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .captured import is_wrapped
from .errors import DdnkitError, InputError, UntrustedGradientError
from .node import DeclarativeNode
from .observation import operands_called
from .problem import Problem, flat
from .solution import Solution, Status
from .solver import as_solver
from .solving import shape_of_solution, solve


def solve_apart(
    problem: Problem,
    start: Tensor | None,
    finite: Mapping[str, Tensor],
    *,
    policy: str,
    keep_graph: bool = False,
) -> tuple[Problem, Solution, Tensor | None]:
    """`solve`, with items that are not finite set aside.

    Args:
        finite: see `finite_inputs`.

    Returns:
        the problem and its solution, with a copy of a sound item in the place of each that was set
        aside, and which those are, (B,), or None. NaN for all where no item is sound.

    Raises:
        UntrustedGradientError: no item is sound, and what shape y has is not known.
    """
    sound = _sound(finite)
    if sound is None or problem.batch_size == 0:
        return *solve(problem, start, keep_graph=keep_graph), None
    if may_look(problem, policy) and not bool(sound.all()):
        return _apart(problem, start, finite, sound, keep_graph)
    try:
        return *solve(problem, start, keep_graph=keep_graph), None
    except DdnkitError:
        raise
    except Exception:
        if bool(sound.all()):
            raise
    return _apart(problem, start, finite, sound, keep_graph)


def finite_inputs(problem: Problem, start: Tensor | None = None) -> dict[str, Tensor]:
    """Which items of each tensor that the solution depends on are finite, (B,), by its name."""
    size = problem.batch_size
    names = operands_called(problem)
    pairs = list(zip(names, problem.operands, problem.operands_batched, strict=True))
    if start is not None:
        pairs.append(("start", start, True))
    return {
        name: _finite(x, size if own else None).expand(size)
        for name, x, own in pairs
        if x.is_floating_point()
    }


def may_look(problem: Problem, policy: str) -> bool:
    """Whether looking at values before the way back costs nothing that was promised not to be paid."""
    node = problem.node
    solver = as_solver(node.solver) if type(node).solve is DeclarativeNode.solve else None
    if solver is not None:
        return not solver.keeps_items_apart
    return problem.operands[0].device.type == "cpu" or policy in ("raise", "warn")


def without(problem: Problem, aside: Tensor) -> tuple[Problem, Tensor]:
    """The batch with a copy of an item that is left in the place of each set aside, and whose copies."""
    source = _source(~aside)
    flags = problem.operands_batched
    operands = [x[source] if own else x for x, own in zip(problem.operands, flags, strict=True)]
    problem = problem.with_operands(operands)
    # Inside of a transform, whose tensors must not stay on the problem, a copy keeps the kinks of its item:
    # nothing comes of it.
    if problem.kinks is not None and not is_wrapped(source):
        problem = problem.with_kinks(problem.kinks.of_items(source))
    return problem, source


def _finite(x: Tensor, size: int | None) -> Tensor:
    """Whether all is finite: (B,) of a batch, else (1,)."""
    x = x.detach() if size is not None else x.detach().unsqueeze(0)
    dims = tuple(range(1, x.ndim))
    if x.shape[1:].numel() == 0:
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    # Makes no tensor of this size; the largest entry is NaN where one is.
    return (torch.linalg.vector_norm(x, torch.inf, dim=dims) if dims else x.abs()) < torch.inf


def _sound(finite: Mapping[str, Tensor]) -> Tensor | None:
    masks = list(finite.values())
    return torch.stack(masks).all(dim=0) if masks else None


def _source(sound: Tensor) -> Tensor:
    here = torch.arange(len(sound), device=sound.device)
    return torch.where(sound, here, sound.int().argmax())


def _apart(
    problem: Problem,
    start: Tensor | None,
    finite: Mapping[str, Tensor],
    sound: Tensor,
    keep_graph: bool,
) -> tuple[Problem, Solution, Tensor | None]:
    # A start that is no number is none for any node.
    startable = finite.get("start", torch.ones_like(sound))
    if not bool(sound.any()):
        return _none_sound(problem, start, startable, keep_graph)
    result = _with_copies(problem, start, sound, keep_graph)
    read = _read(problem, result) & startable
    if bool((read & ~sound).any()):
        try:
            return _with_copies(problem, start, sound | read, keep_graph)
        except Exception:  # whatever a solver makes of such an item, it is not to stop the others
            return result
    return result


def _with_copies(
    problem: Problem, start: Tensor | None, sound: Tensor, keep_graph: bool
) -> tuple[Problem, Solution, Tensor | None]:
    if bool(sound.all()):
        return *solve(problem, start, keep_graph=keep_graph), None
    copies, source = without(problem, ~sound)
    start = None if start is None else start[source]
    return *solve(copies, start, keep_graph=keep_graph), ~sound


def _none_sound(
    problem: Problem, start: Tensor | None, startable: Tensor, keep_graph: bool
) -> tuple[Problem, Solution, Tensor | None]:
    try:
        found, solution = solve(problem, start, keep_graph=keep_graph)
        read = _read(problem, (found, solution, None)) & startable
        if bool(read.any()):
            return _with_copies(problem, start, read, keep_graph)
    except Exception:
        try:
            found, solution = shape_of_solution(problem)
        except InputError as error:
            name = type(problem.node).__name__
            raise UntrustedGradientError(
                f"{name}: every item holds NaN or infinity, and what shape y has is not known: {error}"
            ) from error
    size = problem.batch_size
    nothing = solution.y.new_full((size, *solution.y.shape[1:]), torch.nan)
    solution = Solution(nothing, Status.NON_FINITE, -1, solution.solver).batched(size)
    return problem.with_structure(found.structure), solution, torch.ones_like(startable)


def _read(problem: Problem, result: tuple[Problem, Solution, Tensor | None]) -> Tensor:
    """Which items have a finite objective, gradient and constraints, whatever they hold, (B,)."""
    found, solution, _ = result
    problem, y = problem.with_structure(found.structure), solution.y.detach()
    try:
        value, gradient = problem.value_and_gradient(y)
        h = problem.constraints(y)
    except Exception:  # the objective itself may factorise
        return torch.zeros(len(y), dtype=torch.bool, device=y.device)
    read = value.isfinite() & flat(gradient).isfinite().all(dim=1) & flat(y).isfinite().all(dim=1)
    return read if h is None else read & h.isfinite().all(dim=1)
