"""Tensors that a node's functions use without being given them: found at the solution, or refused.

Closures, globals and what the node reaches in ways that its attributes do not show are operands too: each
has a gradient. They are only known once the functions have been evaluated. A tensor that cannot be
followed, that is another one by now, or that each evaluation changes, is an error, where it would
otherwise silently be a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .captured import Captured, discover, find_unused, is_wrapped
from .errors import InputError
from .node import DeclarativeNode
from .problem import Evaluation, Problem


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
        evaluation = problem.evaluate(y)
    with torch.enable_grad():
        constraints = [problem.constraints(y), problem.inequalities(y)]
    dependent = evaluation.depends_on_others()
    dependent |= any(values is not None and values.requires_grad for values in constraints)
    if not transformed and not dependent:
        return []
    found: dict[int, Tensor] = {}
    with torch.enable_grad():
        for i in range(problem.batch_size):
            for tensor in _tensors_of_item(problem, y, i):
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


def _tensors_of_item(problem: Problem, y: Tensor, index: int) -> list[Tensor]:
    node, xs = problem.node, problem.item(index)
    values = problem.at(index).captured
    point = y[index] if problem.structure is None else problem.structure.split(y[index])
    parts = [point] if isinstance(point, Tensor) else list(_parts_of(point))
    known = [*(x for x in xs if isinstance(x, Tensor)), *values, *parts]
    known += [c.tensor for c in problem.originals]

    def evaluate() -> None:
        with problem.substitute(index):
            node.objective(*xs, y=point)
            if node.constrained:
                node.equality_constraints(*xs, y=point)
            if node.has_inequalities:
                node.inequality_constraints(*xs, y=point)
                if callable(node.bounds):
                    node.bounds(*xs)

    return discover(evaluate, known)


_UNFOLLOWED = (
    "uses a tensor that requires a gradient but is not one of its inputs, in a way that cannot be "
    "tracked (for example in its own autograd.Function): its gradient would silently be zero. Pass it to "
    "the layer as an input, keep it as an attribute of the node, or detach it"
)


def reject_unfollowed_tensors(problem: Problem, y: Tensor) -> None:
    """What was found inside the objective must be the same tensor at each evaluation."""
    if _some_unused(problem, y):
        raise InputError(f"{type(problem.node).__name__} {_UNFOLLOWED}")


def reject_rebound_tensors(problem: Problem, y: Tensor) -> None:
    """A captured variable that names another tensor by now would silently be a constant."""
    if _some_unused(problem, y):
        raise InputError(
            f"{type(problem.node).__name__} used a tensor of an enclosing scope when it was solved that "
            "it no longer uses (the variable now refers to another tensor): its gradient would "
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
            "training mode) at each of a solver's many evaluations, so it is a different function each time: "
            f"use it in evaluation mode (node.{head}.eval()), or make it with track_running_stats=False"
        )
    raise InputError(
        f"{name}.objective changes `{path}` of the node in place at each evaluation, so it is a "
        "different function each time: an objective must not change what it uses"
    )


def _some_unused(problem: Problem, y: Tensor) -> bool:
    if all(c.path is not None for c in problem.originals):
        return False
    bare = problem.stated.without_scoped()

    def evaluate() -> None:
        bare.objective(y)
        bare.constraints(y)
        bare.inequalities(y)

    return bool(find_unused(evaluate, problem.originals, problem.captured))


def _parts_of(point: Any) -> Any:
    return point.values() if isinstance(point, dict) else point
