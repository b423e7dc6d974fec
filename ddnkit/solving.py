"""Solving a batch in the way that its node asks for, and finding what else the objective depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .captured import Captured, discover, is_wrapped, unused
from .errors import InputError
from .node import DeclarativeNode
from .problem import Evaluation, Problem
from .solution import Solution
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
        solution = node.solve_problem(problem, start)
        _refuse_parts_on_manifold(problem)
    elif node.batched_solve and problem.shares_captured:
        with problem.substituted():
            solution = _as_solution(node, node.solve(*problem.inputs))
        problem = _structured(problem, solution.y, 1)
        solution = _joined(problem, solution, 1)
        if solution.y.shape[:1] != (size,):
            raise InputError(
                f"{type(node).__name__}.solve has batched_solve = True and must return a batch "
                f"of {size}; it returned shape {tuple(solution.y.shape)}"
            )
    else:
        items = [_solve_item(problem, i) for i in range(size)]
        problem = _structured(problem, items[0].y, 0)
        solution = _stacked([_joined(problem, item, 0) for item in items])
    return problem, solution.batched(size, _in_dtype(problem, solution.y, keep_graph))


def _solve_item(problem: Problem, index: int) -> Solution:
    node = problem.node
    if not node.batched_solve:
        with problem.substituted(index):
            return _as_solution(node, node.solve(*problem.item(index)))
    # A batched `solve` sees one value of what it captures: each item with another is solved alone.
    single, solution = solve(problem.at(index))
    one = Problem.item_solution(solution)
    return one if single.structure is None else dataclasses.replace(
        one, y=single.structure.split(one.y)
    )  # fmt: skip


def _structured(problem: Problem, y: Any, batch_dims: int) -> Problem:
    structure = Structure.of(y, f"{type(problem.node).__name__}.solve")
    if structure is not None:
        structure = structure.without_batch(batch_dims)
    problem = problem.with_structure(structure)
    _refuse_parts_on_manifold(problem)
    return problem


def _refuse_parts_on_manifold(problem: Problem) -> None:
    if problem.structure is not None and problem.manifold is not None:
        raise InputError(
            f"{type(problem.node).__name__}: a y of several parts cannot be on a manifold; write its "
            "constraints as `equality_constraints`"
        )


def _joined(problem: Problem, solution: Solution, batch_dims: int) -> Solution:
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


def _stacked(items: Sequence[Solution]) -> Solution:
    first = items[0]
    return Solution(
        torch.stack([item.y for item in items]),
        torch.stack([torch.as_tensor(item.status) for item in items]),
        torch.stack([torch.as_tensor(item.iterations) for item in items]),
        first.solver,
        {key: torch.stack([item.aux[key] for item in items]) for key in first.aux},
        None
        if first.uniqueness is None
        else torch.stack([item.uniqueness for item in items if item.uniqueness is not None]),
    )


def shape_of_solution(problem: Problem) -> tuple[Problem, Solution]:
    """The problem with the structure of y, and a solution of no item in the shape of a made-up one's.

    Raises:
        InputError: the made-up one has no solution.
    """

    def made_up(x: Tensor, batched: bool) -> Tensor:
        if not batched:
            return x
        if not x.is_floating_point():
            return x.new_zeros(1, *x.shape[1:])
        # Not constant: many problems are degenerate at equal numbers.
        entries = torch.arange(1, x.shape[1:].numel() + 1, dtype=x.dtype, device=x.device)
        return (0.5 + (entries * 0.6180339887498949) % 1).reshape(1, *x.shape[1:])

    flags = problem.operands_batched
    operands = [made_up(x, own) for x, own in zip(problem.operands, flags, strict=True)]
    try:
        one, solution = solve(problem.resized(operands, 1, flags))
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
    )


def captured_tensors(
    problem: Problem, y: Tensor, *, transformed: bool, evaluation: Evaluation | None = None
) -> list[Captured]:
    """Tensors that the node's functions use, that want a derivative, and are not operands yet.

    Args:
        transformed: whether a torch.func transform or forward mode is at work, whose tensors do not
            show in the values.
        evaluation: of the objective at y, if there is one already.

    Raises:
        InputError: there is one, but it cannot be got at, or belongs to a torch.func transform.
    """
    if evaluation is None:
        evaluation = problem.evaluated(y)
    with torch.enable_grad():
        constraints = problem.constraints(y)
    dependent = evaluation.depends_on_others()
    dependent |= constraints is not None and constraints.requires_grad
    if not transformed and not dependent:
        return []
    found: dict[int, Tensor] = {}
    with torch.enable_grad():
        for i in range(problem.batch_size):
            for tensor in _of_item(problem, y, i):
                found[id(tensor)] = tensor
    name = type(problem.node).__name__
    if any(is_wrapped(tensor) for tensor in found.values()):
        raise InputError(
            f"{name} uses a tensor of an enclosing torch.func transform that is neither an input nor "
            "an attribute of the node: pass it to the layer as an input, or keep it as an attribute"
        )
    if not found and dependent:
        raise InputError(f"{name} {_UNFOLLOWED}")
    return [Captured(tensor) for tensor in found.values()]


def _of_item(problem: Problem, y: Tensor, index: int) -> list[Tensor]:
    node, xs = problem.node, problem.item(index)
    values = problem.at(index).captured
    point = y[index] if problem.structure is None else problem.structure.split(y[index])
    parts = [point] if isinstance(point, Tensor) else list(_values(point))
    known = [*(x for x in xs if isinstance(x, Tensor)), *values, *parts]
    known += [c.tensor for c in problem.originals]

    def evaluate() -> None:
        with problem.substituted(index):
            node.objective(*xs, y=point)
            if node.constrained:
                node.equality_constraints(*xs, y=point)

    return discover(evaluate, known)


_UNFOLLOWED = (
    "uses a tensor that requires a gradient but is not one of its inputs, in a way that cannot be "
    "followed (an autograd.Function of its own, say): its gradient would silently be zero. Pass it to "
    "the layer as an input, keep it as an attribute of the node, or detach it"
)


def reject_unfollowed_tensors(problem: Problem, y: Tensor) -> None:
    """What was found inside the objective must be the same tensor at each evaluation."""
    if _unused(problem, y):
        raise InputError(f"{type(problem.node).__name__} {_UNFOLLOWED}")


def reject_rebound_tensors(problem: Problem, y: Tensor) -> None:
    """A captured variable that names another tensor by now would silently be a constant."""
    if _unused(problem, y):
        raise InputError(
            f"{type(problem.node).__name__} used a tensor of an enclosing scope when it was solved that "
            "it does not use any more (the variable names another tensor by now): its gradient would "
            "silently be zero. Pass it to the layer as an input, or keep it as an attribute of the node"
        )


def reject_changed_state(node: DeclarativeNode, before: Sequence[tuple[str, Tensor, int]]) -> None:
    """An objective that changes what the node holds is another function each time it is evaluated.

    Args:
        before: `versions` of the node before one evaluation.
    """
    changed = [path for path, tensor, version in before if tensor._version != version]
    if not changed:
        return
    name, path = type(node).__name__, changed[0]
    owner = path.rpartition(".")[0]
    head, _, rest = owner.partition(".")
    holder, inner = (node, owner) if isinstance(node, nn.Module) else (vars(node).get(head), rest)
    module = holder.get_submodule(inner) if isinstance(holder, nn.Module) else None
    if getattr(module, "track_running_stats", False):
        raise InputError(
            f"{name}.objective updates the running statistics of `{owner}` ({type(module).__name__} in "
            "training mode) at each of a solver's many evaluations, and is another function each time: "
            f"use it in evaluation mode (node.{head}.eval()), or make it with track_running_stats=False"
        )
    raise InputError(
        f"{name}.objective changes `{path}` of the node in place at each evaluation, and is another "
        "function each time: an objective must leave what it uses as it is"
    )


def _unused(problem: Problem, y: Tensor) -> bool:
    if all(c.path is not None for c in problem.originals):
        return False
    bare = problem.without_scoped()

    def evaluate() -> None:
        bare.objective(y)
        bare.constraints(y)

    return bool(unused(evaluate, problem.originals, problem.captured))


def _values(point: Any) -> Any:
    return point.values() if isinstance(point, dict) else point
