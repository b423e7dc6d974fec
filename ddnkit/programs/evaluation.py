"""Evaluation: the operations that a node's functions take on one problem, to hold later ones against.

A program is right as long as the functions are what they were. Whether they are does not show in their
code: a number on the node, in a list or in a module, a tensor of an enclosing scope, a branch. It shows in
what they do. One evaluation under a `TorchFunctionMode` shows each operation with its numbers and where its
tensors come from; if all of it is as it was, so is the function, whatever else may have changed. Tensors that
come from outside are handed on: they are inputs of the program, and may hold other values each time.

This is the small sister of `ddnkit.recording`, which says what is what and where; here a yes or no is needed,
at a few microseconds an operation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Evaluation:
    """The operations of one evaluation.

    Attributes:
        outside: the tensors that it used without being given them; whoever has taken them may clear it.
        changes_outside: whether it wrote on one of them.
    """

    def __init__(self, evaluate: Callable[[], Any], given: Sequence[Tensor]):
        with _Reading(given) as mode:
            result = evaluate()
        # Two values may be computed and one of them returned: which, no operation shows.
        self._result = _map(result, mode.name)
        self._steps = mode.steps
        self._outside = [_kind(x) for x in mode.outside]
        self.outside = list(mode.outside)
        self.changes_outside = any(
            x._version != version for x, version in zip(mode.outside, mode.versions, strict=True)
        )

    def repeated(self, evaluate: Callable[[], Any], given: Sequence[Tensor]) -> list[Tensor] | None:
        """What comes from outside in another evaluation of the same operations; None if they are others.

        It ends before the first operation that is another: what that would change is not changed.
        """
        with _Comparing(given, self._steps) as mode:
            try:
                result = evaluate()
            except _OtherOperation:
                return None
        if not mode.same or mode.at != len(self._steps) or not mode.alike(result, self._result):
            return None
        if [_kind(x) for x in mode.outside] != self._outside:
            return None
        return mode.outside


def _kind(x: Tensor) -> tuple[Any, ...]:
    return type(x), x.shape, x.dtype, x.device, x.requires_grad, x.is_contiguous()


class _Name:
    """Where a tensor of an evaluation comes from; one object for each."""

    __slots__ = ()


class _Watching(TorchFunctionMode):
    """Names every tensor: those that are given, then as they come."""

    def __init__(self, given: Sequence[Tensor], names: Sequence[_Name]):
        super().__init__()
        # Kept alive, so that no identity is given out twice.
        self.alive: list[Any] = list(given)
        self.named: dict[int, _Name] = {id(x): name for x, name in zip(given, names, strict=True)}
        self.outside: list[Tensor] = []


class _Reading(_Watching):
    def __init__(self, given: Sequence[Tensor]):
        names = [_Name() for _ in given]
        super().__init__(given, names)
        self.steps: list[Any] = [names]
        self.versions: list[int] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        found = _map(args, self.name)
        found_kwargs = _map(kwargs, self.name) if kwargs else None
        result = func(*args, **(kwargs or {}))
        self.alive.append(result)
        names = []
        for x in _tensors_of(result):
            names.append(_Name())
            self.named[id(x)] = names[-1]
        self.steps.append((func, found, found_kwargs, names))
        return result

    def name(self, x: Tensor) -> _Name:
        name = self.named.get(id(x))
        if name is None:
            name = self.named[id(x)] = _Outside(len(self.outside))
            self.outside.append(x)
            self.versions.append(x._version)
            self.alive.append(x)
        return name


class _Outside(_Name):
    __slots__ = ("place",)

    def __init__(self, place: int):
        self.place = place


class _OtherOperation(BaseException):
    """Not for a node's functions to catch."""


class _Comparing(_Watching):
    def __init__(self, given: Sequence[Tensor], steps: list[Any]):
        super().__init__(given, steps[0])
        self._steps = steps
        self.at = 1
        self.same = True

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        if not self._is_next(func, args, kwargs):
            self.same = False
            raise _OtherOperation
        result = func(*args, **kwargs) if kwargs else func(*args)
        names = self._steps[self.at][3]
        self.at += 1
        self.alive.append(result)
        tensors = [result] if isinstance(result, Tensor) else _tensors_of(result)
        if len(tensors) != len(names):
            self.same = False
            raise _OtherOperation
        for x, name in zip(tensors, names, strict=True):
            self.named[id(x)] = name
        return result

    def _is_next(self, func: Any, args: Any, kwargs: Any) -> bool:
        if self.at == len(self._steps):
            return False
        then, then_args, then_kwargs, _ = self._steps[self.at]
        if func is not then and func != then:
            return False
        if not self.alike(args, then_args) or (then_kwargs is not None) != bool(kwargs):
            return False
        return not kwargs or self.alike(kwargs, then_kwargs)

    def alike(self, now: Any, then: Any) -> bool:
        if now is then:
            return True
        if isinstance(now, Tensor):
            name = self.named.get(id(now))
            if name is None:
                if type(then) is not _Outside or then.place != len(self.outside):
                    return False
                self.named[id(now)] = then
                self.outside.append(now)
                self.alive.append(now)
                return True
            return name is then
        if isinstance(now, (tuple, list)):
            if not isinstance(then, tuple) or len(now) != len(then):
                return False
            return all(map(self.alike, now, then))
        if type(now) is not type(then):
            return False
        if isinstance(now, dict):
            return now.keys() == then.keys() and all(self.alike(now[k], then[k]) for k in now)
        if isinstance(now, np.ndarray):
            same = now.shape == then.shape and now.dtype == then.dtype
            return same and now.tobytes() == then.tobytes()
        if isinstance(now, (int, float, complex, str, bool)):
            return bool(now == then) or (now != now and then != then)
        if isinstance(now, slice):
            return self.alike(
                (now.start, now.stop, now.step), _map((then.start, then.stop, then.step), _itself)
            )
        return isinstance(now, (torch.dtype, torch.device, torch.layout, torch.memory_format)) and (
            now == then
        )


def _itself(x: Any) -> Any:
    return x


def _map(x: Any, name: Callable[[Tensor], Any]) -> Any:
    """Tensors by their names, lists as tuples, arrays copied."""
    if isinstance(x, Tensor):
        return name(x)
    if isinstance(x, (tuple, list)):
        return tuple([_map(entry, name) for entry in x])
    if isinstance(x, dict):
        return {key: _map(entry, name) for key, entry in x.items()}
    return x.copy() if isinstance(x, np.ndarray) else x


def _tensors_of(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, (tuple, list)):
        return [x for entry in result for x in _tensors_of(entry)]
    return []
