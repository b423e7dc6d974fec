"""Solving a batch the way its node asks for, with items that hold NaN or infinity set aside.

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

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .captured import is_wrapped
from .errors import DdnkitError, InputError, UntrustedGradientError
from .node import DeclarativeNode
from .observation import operands_called
from .problem import Problem, flat
from .selection import least_norm
from .several_starts import best_of_starts, starts_at_several_points
from .solution import Solution, Status
from .solver import as_solver
from .structure import Structure


def solve(
    problem: Problem, start: Tensor | None = None, *, keep_graph: bool = False
) -> tuple[Problem, Solution]:
    """The solution of each item, batched, and the problem with the structure of y.

    Args:
        start: (B, *y), where an iterative solver starts; the node's own point if None.
        keep_graph: leave y attached to the graph of the node's own `solve`, if that made one.

    Raises:
        InputError: the node's `solve` returned something else than it should.
    """
    if problem.batch_size == 0:
        try:
            return shape_of_solution(problem)
        except InputError as error:
            name = type(problem.node).__name__
            raise InputError(f"{name} was given an empty batch; {error}") from error
    node, size = problem.node, problem.batch_size
    if type(node).solve is DeclarativeNode.solve:
        several = starts_at_several_points(node)
        solution = (best_of_starts if several else node.solve_problem)(problem, start)
        _refuse_parts_on_manifold(problem)
    elif node.batched_solve and problem.shares_captured:
        with problem.substitute():
            solution = _as_solution(node, node.solve(*problem.inputs))
        problem = _with_structure(problem, solution.y, 1)
        solution = _join_parts(problem, solution, 1)
        if solution.y.shape[:1] != (size,):
            raise InputError(
                f"{type(node).__name__}.solve has batched_solve = True and must return a batch "
                f"of {size}; it returned shape {tuple(solution.y.shape)}"
            )
    else:
        items = [_solve_item(problem, i) for i in range(size)]
        problem = _with_structure(problem, items[0].y, 0)
        solution = _stack([_join_parts(problem, item, 0) for item in items])
    solution = solution.batched(size, _in_dtype(problem, solution.y, keep_graph))
    return problem, solution if node.selection is None else least_norm(problem, solution)


def _solve_item(problem: Problem, index: int) -> Solution:
    node = problem.node
    if not node.batched_solve:
        with problem.substitute(index):
            return _as_solution(node, node.solve(*problem.item(index)))
    # A batched `solve` sees one value of what it captures: each item with another is solved alone.
    single, solution = solve(problem.at(index))
    one = Problem.item_solution(solution)
    return one if single.structure is None else dataclasses.replace(
        one, y=single.structure.split(one.y)
    )  # fmt: skip


def _with_structure(problem: Problem, y: Any, batch_dims: int) -> Problem:
    structure = Structure.of(y, f"{type(problem.node).__name__}.solve")
    if structure is not None:
        structure = structure.without_batch(batch_dims)
    problem = problem.with_structure(structure)
    _refuse_parts_on_manifold(problem)
    return problem


def _refuse_parts_on_manifold(problem: Problem) -> None:
    if problem.structure is not None:
        try:
            _ = problem.manifold
        except InputError as error:
            raise InputError(f"{type(problem.node).__name__}: {error}") from error


def _join_parts(problem: Problem, solution: Solution, batch_dims: int) -> Solution:
    structure = problem.structure
    if structure is None:
        return solution
    return dataclasses.replace(solution, y=structure.join(solution.y, batch_dims))


def _in_dtype(problem: Problem, y: Tensor, keep_graph: bool) -> Tensor:
    """y in the dtype of the inputs, in memory of its own."""
    y = y if keep_graph else y.detach()
    if not y.is_floating_point():
        name = type(problem.node).__name__
        raise InputError(f"{name}.solve returned dtype {y.dtype}; y must be floating")
    dtype = next((x.dtype for x in problem.operands if x.is_floating_point()), y.dtype)
    y = y.to(dtype)
    # One that shares memory with an input would change with it; with what the node or its solver keeps, in
    # their next call.
    return y if keep_graph else y.clone()


def _as_solution(node: DeclarativeNode, returned: Any) -> Solution:
    if isinstance(returned, (Tensor, tuple, list, dict)):
        returned = Solution(returned)  # type: ignore[arg-type]
    if not isinstance(returned, Solution):
        raise InputError(
            f"{type(node).__name__}.solve must return a Tensor (or several, in a tuple or "
            f"dictionary) or a ddnkit.Solution, not {type(returned).__name__}"
        )
    return returned


def _stack(items: Sequence[Solution]) -> Solution:
    first = items[0]
    return Solution(
        torch.stack([item.y for item in items]),
        torch.stack([torch.as_tensor(item.status) for item in items]),
        torch.stack([torch.as_tensor(item.iterations) for item in items]),
        first.solver,
        {key: torch.stack([item.aux[key] for item in items]) for key in first.aux},
        _stack_known([item.uniqueness for item in items]),
        _stack_multipliers(items),
        _stack_known([item.branch for item in items]),
        _stack_known([item.branch_gap for item in items]),
    )


def _stack_known(figures: Sequence[Tensor | None]) -> Tensor | None:
    known = [figure for figure in figures if figure is not None]
    return torch.stack(known) if len(known) == len(figures) else None


def _stack_multipliers(items: Sequence[Solution]) -> tuple[Tensor, Tensor] | None:
    known = [item.multipliers for item in items if item.multipliers is not None]
    if len(known) < len(items):
        return None
    return torch.stack([nu for nu, _ in known]), torch.stack([lam for _, lam in known])


def shape_of_solution(problem: Problem) -> tuple[Problem, Solution]:
    """The problem with the structure of y, and a solution of no item in the shape of a made-up one's.

    Raises:
        InputError: the made-up one has no solution.
    """

    def make_up(x: Tensor, batched: bool) -> Tensor:
        if not batched:
            return x
        if not x.is_floating_point():
            return x.new_zeros(1, *x.shape[1:])
        # Not constant: many problems are degenerate at equal numbers.
        entries = torch.arange(1, x.shape[1:].numel() + 1, dtype=x.dtype, device=x.device)
        return (0.5 + (entries * 0.6180339887498949) % 1).reshape(1, *x.shape[1:])

    flags = problem.operands_batched
    operands = [make_up(x, own) for x, own in zip(problem.operands, flags, strict=True)]
    try:
        one, solution = solve(problem.resize(operands, 1, flags))
    except Exception as error:
        raise InputError(
            f"the shape of y is only known from solving a problem, and solving a made-up one failed: "
            f"{error}"
        ) from error
    return problem.with_structure(one.structure), dataclasses.replace(
        solution,
        y=solution.y[:0],
        status=torch.as_tensor(solution.status)[:0],
        iterations=torch.as_tensor(solution.iterations)[:0],
        aux={key: value[:0] for key, value in solution.aux.items()},
        uniqueness=None if solution.uniqueness is None else solution.uniqueness[:0],
        multipliers=None,
        branch=None if solution.branch is None else solution.branch[:0],
        branch_gap=None if solution.branch_gap is None else solution.branch_gap[:0],
    )


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
    sound = _sound_items(finite)
    if sound is None or problem.batch_size == 0:
        return *solve(problem, start, keep_graph=keep_graph), None
    if may_look(problem, policy) and not bool(sound.all()):
        return _solve_with_stand_ins(problem, start, finite, sound, keep_graph)
    try:
        return *solve(problem, start, keep_graph=keep_graph), None
    except DdnkitError:
        raise
    except Exception:
        if bool(sound.all()):
            raise
    return _solve_with_stand_ins(problem, start, finite, sound, keep_graph)


def finite_inputs(problem: Problem, start: Tensor | None = None) -> dict[str, Tensor]:
    """Which items of each tensor that the solution depends on are finite, (B,), by its name."""
    size = problem.batch_size
    names = operands_called(problem)
    pairs = list(zip(names, problem.operands, problem.operands_batched, strict=True))
    if start is not None:
        pairs.append(("start", start, True))
    return {
        name: _finite_items(x, size if own else None).expand(size)
        for name, x, own in pairs
        if x.is_floating_point()
    }


def may_look(problem: Problem, policy: str) -> bool:
    """Whether values may be read before the backward pass, although on a GPU that waits for the device."""
    node = problem.node
    solver = as_solver(node.solver) if type(node).solve is DeclarativeNode.solve else None
    if solver is not None:
        return not solver.keeps_items_apart
    return problem.operands[0].device.type == "cpu" or policy in ("raise", "warn")


def with_stand_ins(problem: Problem, aside: Tensor) -> tuple[Problem, Tensor]:
    """The batch with a finite item's copy for each item set aside, and whose copy each item is now."""
    source = _stand_in_of(~aside)
    flags = problem.operands_batched
    operands = [x[source] if own else x for x, own in zip(problem.operands, flags, strict=True)]
    problem = problem.with_operands(operands)
    # Inside of a transform, whose tensors must not stay on the problem, a copy keeps the kinks of its item:
    # nothing comes of it.
    if problem.kinks is not None and not is_wrapped(source):
        problem = problem.with_kinks(problem.kinks.of_items(source))
    if problem.active_set is not None and not is_wrapped(source):
        problem = problem.with_active_set(problem.active_set.of_items(source))
    if problem.known is not None:
        problem = problem.with_known(problem.known.of_items(source))
    if problem.selection is not None and not is_wrapped(source):
        problem = problem.with_selection(problem.selection.of_items(source))
    return problem, source


def _finite_items(x: Tensor, size: int | None) -> Tensor:
    """Whether all is finite: (B,) of a batch, else (1,)."""
    x = x.detach() if size is not None else x.detach().unsqueeze(0)
    dims = tuple(range(1, x.ndim))
    if x.shape[1:].numel() == 0:
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    # Makes no tensor of this size; the largest entry is NaN where one is.
    return (torch.linalg.vector_norm(x, torch.inf, dim=dims) if dims else x.abs()) < torch.inf


def _sound_items(finite: Mapping[str, Tensor]) -> Tensor | None:
    masks = list(finite.values())
    return torch.stack(masks).all(dim=0) if masks else None


def _stand_in_of(sound: Tensor) -> Tensor:
    here = torch.arange(len(sound), device=sound.device)
    return torch.where(sound, here, sound.int().argmax())


def _solve_with_stand_ins(
    problem: Problem,
    start: Tensor | None,
    finite: Mapping[str, Tensor],
    sound: Tensor,
    keep_graph: bool,
) -> tuple[Problem, Solution, Tensor | None]:
    # A start that is no number is none for any node.
    startable = finite.get("start", torch.ones_like(sound))
    if not bool(sound.any()):
        return _solve_unsound(problem, start, startable, keep_graph)
    result = _solve_copies(problem, start, sound, keep_graph)
    read = _readable_items(problem, result) & startable
    if bool((read & ~sound).any()):
        try:
            return _solve_copies(problem, start, sound | read, keep_graph)
        except Exception:  # whatever a solver makes of such an item, it is not to stop the others
            return result
    return result


def _solve_copies(
    problem: Problem, start: Tensor | None, sound: Tensor, keep_graph: bool
) -> tuple[Problem, Solution, Tensor | None]:
    if bool(sound.all()):
        return *solve(problem, start, keep_graph=keep_graph), None
    copies, source = with_stand_ins(problem, ~sound)
    start = None if start is None else start[source]
    return *solve(copies, start, keep_graph=keep_graph), ~sound


def _solve_unsound(
    problem: Problem, start: Tensor | None, startable: Tensor, keep_graph: bool
) -> tuple[Problem, Solution, Tensor | None]:
    try:
        found, solution = solve(problem, start, keep_graph=keep_graph)
        read = _readable_items(problem, (found, solution, None)) & startable
        if bool(read.any()):
            return _solve_copies(problem, start, read, keep_graph)
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


def _readable_items(problem: Problem, result: tuple[Problem, Solution, Tensor | None]) -> Tensor:
    """Which items have a finite objective, gradient and constraints, whatever they hold, (B,)."""
    found, solution, _ = result
    problem, y = problem.with_structure(found.structure), solution.y.detach()
    try:
        value, gradient = problem.value_and_gradient(y)
        h, g = problem.constraints(y), problem.inequalities(y)
    except Exception:  # the objective itself may factorise
        return torch.zeros(len(y), dtype=torch.bool, device=y.device)
    read = value.isfinite() & flat(gradient).isfinite().all(dim=1) & flat(y).isfinite().all(dim=1)
    if g is not None:
        read = read & (g < torch.inf).all(dim=1)  # of no bound it is −∞
    return read if h is None else read & h.isfinite().all(dim=1)
