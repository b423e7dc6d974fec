"""What a node's `solve` does, seen from outside: does it iterate, leave torch, or lose precision?

A `TorchFunctionMode` sees every torch function that is called. Blocks of calls that follow each other
three times are an iteration; a floating result below the precision of the inputs is a loss of it; and
with the same means the loss can be undone, to see what it costs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..problem import Problem
from ..solution import Status
from .subject import SolvedBatch, Subject

_LOW = (torch.float32, torch.float16, torch.bfloat16)
_LOWERING = {"float", "half", "bfloat16"}
#: Calls that leave torch, or take a derivative as iterations do: whether what follows iterates is unknown.
_UNKNOWN = {"numpy", "__array__", "tolist", "item", "backward", "grad"}
_MOST_CALLS = 300
_LONGEST_BLOCK = 60
_LONGEST_TAIL = 10


class _Trace(TorchFunctionMode):
    """Names of the functions that are called, the last results, and whether one lost precision."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.results: deque[Any] = deque(maxlen=4 * _LONGEST_BLOCK)
        self.low = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        result = func(*args, **(kwargs or {}))
        self.names.append(getattr(func, "__name__", str(func)))
        self.results.append(result)
        lowered = isinstance(result, Tensor) and result.dtype in _LOW
        self.low = self.low or (
            lowered and any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in args)
        )
        return result


class InDouble(TorchFunctionMode):
    """All floating numbers are double, whatever they are cast to."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        name = getattr(func, "__name__", "")
        if name in _LOWERING:
            return _to_double(args[0])
        kwargs = {key: _to_double(value) for key, value in (kwargs or {}).items()}
        return _to_double(func(*(_to_double(value) for value in args), **kwargs))


def _to_double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.Tensor.double(value) if value.dtype in _LOW else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value in _LOW else value
    if type(value) in (list, tuple):
        return type(value)(_to_double(entry) for entry in value)
    return value


def is_formula(subject: Subject, solved: SolvedBatch) -> bool:
    """Whether the node's own `solve` computes without iterating: it cannot stop early then."""
    if not subject.has_own_solve or set(solved.solution.statuses()) != {Status.UNKNOWN}:
        return False
    names = _trace(subject, solved.problem).names
    return len(names) <= _MOST_CALLS and not _UNKNOWN.intersection(names) and not _repeats(names)


def last_step(subject: Subject, solved: SolvedBatch) -> float | None:
    """How far the iterate of `solve` moved in its last iteration, relative; None if it is not seen.

    The iterate is the last result that is the solution itself, and where it was before is the result
    of the same call a block earlier, for the block of repeating calls that makes them nearest.
    """
    if not subject.has_own_solve or solved.problem.batch_size != 1:
        return None
    trace = _trace(subject, solved.problem)
    y, results = solved.y.reshape(-1), list(trace.results)
    names = trace.names[-len(results) :]
    size = y.norm().clamp(min=torch.finfo(y.dtype).tiny)
    for end in range(len(results), max(len(results) - _LONGEST_TAIL, 0), -1):
        if not _is_iterate(results[end - 1], y, 1e-12 * size):
            continue
        steps = [
            (results[end - 1 - block].detach().reshape(-1) - y).norm() / size
            for block in range(2, min(end // 3, _LONGEST_BLOCK) + 1)
            if names[end - block : end] == names[end - 2 * block : end - block]
            and names[end - block : end] == names[end - 3 * block : end - 2 * block]
            and _is_iterate(results[end - 1 - block], y, torch.inf)
        ]
        return float(torch.stack(steps).min()) if steps else None
    return None


def _is_iterate(result: Any, y: Tensor, distance: Tensor | float) -> bool:
    alike = isinstance(result, Tensor) and result.dtype == y.dtype and result.numel() == y.numel()
    return alike and bool((result.detach().reshape(-1) - y).norm() <= distance)


def loses_precision(subject: Subject, solved: SolvedBatch) -> bool:
    """Whether `solve` or the objective computes in less than double although the inputs are double."""
    if solved.y.dtype != torch.float64:
        return False
    trace = _Trace()
    with trace, torch.no_grad():
        solved.problem.objective(solved.solution.y)
        solved.problem.constraints(solved.solution.y)
    return trace.low or (subject.has_own_solve and _trace(subject, solved.problem).low)


def _trace(subject: Subject, problem: Problem) -> _Trace:
    trace = _Trace()
    xs = problem.inputs if subject.node.batched_solve else problem.item(0)
    with trace, torch.no_grad():
        subject.node.solve(*xs)
    return trace


def _repeats(names: Sequence[str]) -> bool:
    """Whether a block of two or more different calls follows itself twice."""
    for block in range(2, min(len(names) // 3, _LONGEST_BLOCK) + 1):
        run = 0
        for end, (here, there) in enumerate(zip(names, names[block:], strict=False), 1):
            run = run + 1 if here == there else 0
            if run >= 2 * block and len(set(names[end - block : end])) > 1:
                return True
    return False
