"""Evaluation: the operations that a node's functions take on one problem, to hold later ones against.

A program is right as long as the functions are what they were. Whether they are does not show in their
code: a number on the node, in a list or in a module, a tensor of an enclosing scope, a branch. It shows in
what they do. One evaluation under a `TorchFunctionMode` shows each operation with its numbers and where its
tensors come from; if all of it is as it was, so is the function, whatever else may have changed. Tensors that
come from outside are handed on: they are inputs of the program, and may hold other values each time.

What the operations give is not needed for that. Where no value can come into other hands (none is read as a
number, none is kept by the node, none is written to its tensors), a later evaluation is run on the tensors of
the first one, and each operation gives back what it gave then, without being called.

This is the small sister of `ddnkit.recording`, which says what is what and where; here a yes or no is needed,
at a microsecond or two an operation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_autocasts = torch.is_autocast_enabled
#: Entries of all results beyond which they are not kept: of larger ones, an operation is dear anyway.
_MOST_KEPT = 2**16


class _Step(NamedTuple):
    """One operation.

    Attributes:
        args, kwargs: with a name in the place of each tensor.
        names: of the tensors that it gave.
        result: what it gave, by the names; the tensors themselves where they stand in for later ones.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] | None
    names: list[Any]
    result: Any = None


class Evaluation:
    """The operations of one evaluation.

    Args:
        evaluate: of the tensors that are given.

    Attributes:
        outside: the tensors that it used without being given them; whoever has taken them may clear it.
        changes_outside: whether it wrote on one of them.
        autocasts: whether it takes operations in another precision than its tensors', which no later
            evaluation may.
    """

    def __init__(self, evaluate: Callable[[Sequence[Tensor]], Any], given: Sequence[Tensor]):
        given = list(given)
        before = _counts(given)
        with _Reading(given) as mode:
            result = evaluate(given)
        # Two values may be computed and one of them returned: which, no operation shows.
        self._result = _map(result, mode.name)
        self._steps: list[_Step] = mode.steps
        self._given_names: list[Any] = mode.given_names
        self._outside = [_kind(x) for x in mode.outside]
        self.outside = list(mode.outside)
        self.changes_outside = any(
            x._version != version for x, version in zip(mode.outside, mode.versions, strict=True)
        )
        self.autocasts = mode.autocasts
        self._given: list[Tensor] | None = None
        self._standing_in: list[Tensor] = []
        self._held_then: list[int] = []
        # One entry for each thread that evaluates: a list's own operations need no lock.
        self._running: list[None] = []
        results = mode.alive[len(given) :]
        mode.alive.clear()
        del result, evaluate
        if (
            mode.values_are_unseen
            and not self.changes_outside
            and sum(x.numel() for x in (*given, *results)) <= _MOST_KEPT
            # Nobody has kept one of them, to look at it later.
            and _counts(given) == before
            and _counts(results) == _counts([object()]) * len(results)
        ):
            self._stand_in(given, results, mode)

    def _stand_in(self, given: list[Tensor], results: list[Tensor], mode: _Reading) -> None:
        """Take the tensors of this evaluation for those of later ones."""
        # Not the caller's own memory, which need not be kept.
        own = [x.detach().clone() for x in given]
        places = {id(x): x for x in results}
        tensors: dict[Any, Tensor] = dict(zip(self._given_names, own, strict=True))
        tensors.update((name, places[at]) for at, name in mode.named.items() if at in places)

        def stand_in(x: Any) -> Any:
            if isinstance(x, _Name):
                return tensors.get(x, x)
            if isinstance(x, tuple):
                return tuple(map(stand_in, x))
            if isinstance(x, dict):
                return {key: stand_in(entry) for key, entry in x.items()}
            return x

        self._steps = [
            s._replace(
                args=stand_in(s.args),
                kwargs=stand_in(s.kwargs),
                result=stand_in(s.result) if s.names else s.result,
            )
            for s in self._steps
        ]
        self._result = stand_in(self._result)
        self._given = own
        self._standing_in = [*own, *results]
        tensors.clear()  # which the function above would hold until garbage is collected

    @property
    def values_count(self) -> bool:
        """Whether the values that a later evaluation computes may come into other hands."""
        return self._given is None

    def repeat(
        self,
        evaluate: Callable[[Sequence[Tensor]], Any],
        given: Callable[[], Sequence[Tensor]],
    ) -> list[Tensor] | None:
        """What comes from outside in another evaluation of the same operations; None if they are others.

        It ends before the first operation that is another: what that would change is not changed.

        Args:
            given: called where the values count.
        """
        if self._given is None:
            tensors = given()
            outside = self._compare(
                evaluate, tensors, _Executing(self._steps, tensors, self._given_names)
            )
        else:
            if not self._held_then:  # by now nobody is at work on them
                self._held_then = _counts(self._standing_in)
            self._running.append(None)
            try:
                outside = self._compare(evaluate, self._given, _Comparing(self._steps))
                # Somebody has kept one after all, who is to have that of this call.
                if len(self._running) == 1 and _counts(self._standing_in) != self._held_then:
                    return None
            finally:
                self._running.pop()
        if outside is None:
            return None
        if outside and [_kind(x) for x in outside] != self._outside:
            return None
        return outside if len(outside) == len(self._outside) else None

    def _compare(
        self,
        evaluate: Callable[[Sequence[Tensor]], Any],
        tensors: Sequence[Tensor],
        mode: _Comparing,
    ) -> list[Tensor] | None:
        with mode:
            try:
                result = evaluate(tensors)
            except _OtherOperation:
                return None
        if not mode.same or mode.at != len(self._steps) or not mode.alike(result, self._result):
            return None
        return mode.outside


def _kind(x: Tensor) -> tuple[Any, ...]:
    return type(x), x.shape, x.dtype, x.device, x.requires_grad, x.is_contiguous()


def _counts(held: Sequence[Any]) -> list[int]:
    """How often each is held, this way of asking included."""
    return [*map(sys.getrefcount, held)]


class _Name:
    """Where a tensor of an evaluation comes from; one object for each."""

    __slots__ = ()


class _Outside(_Name):
    __slots__ = ("place",)

    def __init__(self, place: int):
        self.place = place


class _Reading(TorchFunctionMode):
    """Names every tensor: those that are given, then as they come."""

    def __init__(self, given: Sequence[Tensor]):
        super().__init__()
        # Kept alive, so that no identity is given out twice.
        self.alive: list[Tensor] = list(given)
        self.given_names: list[Any] = [_Name() for _ in given]
        self.named: dict[int, _Name] = {
            id(x): name for x, name in zip(given, self.given_names, strict=True)
        }
        self.outside: list[Tensor] = []
        self.versions: list[int] = []
        self.steps: list[_Step] = []
        self.values_are_unseen = True
        self.autocasts = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        self.autocasts |= _autocasts("cpu")
        found = _map(args, self.name)
        found_kwargs = _map(kwargs, self.name) if kwargs else None
        result = func(*args, **(kwargs or {}))
        names = []
        for x in _tensors_of(result):
            names.append(_Name())
            if id(x) in self.named:  # it was there before, and is written on
                self.values_are_unseen = False
            self.named[id(x)] = names[-1]
            self.alive.append(x)
        of_shape = not names and func in _OF_SHAPE
        if not of_shape and not _is_of_tensors(result):
            self.values_are_unseen = False
        shown = result if of_shape else _map(result, self.name)
        self.steps.append(_Step(func, found, found_kwargs, names, shown))
        return result

    def name(self, x: Tensor) -> _Name:
        name = self.named.get(id(x))
        if name is None:
            name = self.named[id(x)] = _Outside(len(self.outside))
            self.outside.append(x)
            self.versions.append(x._version)
        return name


class _OtherOperation(BaseException):
    """Not for a node's functions to catch."""


class _Comparing(TorchFunctionMode):
    """Each operation gives what it gave then."""

    def __init__(self, steps: list[_Step]):
        self._steps = steps
        self.at = 0
        self.same = True
        self.outside: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        # As `_next`, written out for what nearly every operation is.
        at = self.at
        if at < len(self._steps) and not _autocasts("cpu"):
            step = self._steps[at]
            if func is step.function and not kwargs and not step.kwargs:
                for now, then in zip(args, step.args, strict=False):
                    if now is not then:
                        break
                else:
                    if len(args) == len(step.args):
                        self.at = at + 1
                        return step.result
        return self._next(func, args, kwargs).result

    def _next(self, func: Any, args: Any, kwargs: Any) -> _Step:
        """The step that this operation is.

        Raises:
            _OtherOperation: it is another one.
        """
        if self.at < len(self._steps) and not _autocasts("cpu"):
            step = self._steps[self.at]
            if (
                (func is step.function or func == step.function)
                and self._all_alike(args, step.args)
                and (self.alike(kwargs, step.kwargs) if kwargs else not step.kwargs)
            ):
                self.at += 1
                return step
        self.same = False
        raise _OtherOperation

    def _all_alike(self, now: Sequence[Any], then: Any) -> bool:
        if type(then) is not tuple or len(now) != len(then):
            return False
        return not any(a is not b and not self.alike(a, b) for a, b in zip(now, then, strict=True))

    def alike(self, now: Any, then: Any) -> bool:
        if isinstance(now, Tensor):
            return self._is_named(now, then)
        if now is then:
            return True
        if isinstance(now, (tuple, list)):
            return self._all_alike(now, then)
        if type(now) is not type(then):
            return False
        if isinstance(now, (int, float, complex, str, bool)):
            return bool(now == then) or (now != now and then != then)
        if isinstance(now, dict):
            return now.keys() == then.keys() and all(self.alike(now[k], then[k]) for k in now)
        if isinstance(now, np.ndarray):
            same = now.shape == then.shape and now.dtype == then.dtype
            return same and now.tobytes() == then.tobytes()
        if isinstance(now, slice):
            return self.alike(
                (now.start, now.stop, now.step), _map((then.start, then.stop, then.step), _itself)
            )
        return isinstance(now, (torch.dtype, torch.device, torch.layout, torch.memory_format)) and (
            now == then
        )

    def _is_named(self, now: Tensor, then: Any) -> bool:
        """Whether a tensor is the one of that name, which is itself, or one from outside."""
        return now is then or self._is_outside(now, then)

    def _is_outside(self, now: Tensor, then: Any) -> bool:
        if type(then) is not _Outside:
            return False
        outside = self.outside
        if then.place < len(outside):
            return outside[then.place] is now
        if then.place > len(outside) or any(x is now for x in outside):
            return False
        outside.append(now)
        return True


class _Executing(_Comparing):
    """Each operation is called."""

    def __init__(self, steps: list[_Step], given: Sequence[Tensor], names: Sequence[_Name]):
        super().__init__(steps)
        # Kept alive, so that no identity is given out twice.
        self._alive: list[Tensor] = list(given)
        self._named: dict[int, Any] = {id(x): name for x, name in zip(given, names, strict=True)}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        step = self._next(func, args, kwargs)
        result = func(*args, **kwargs) if kwargs else func(*args)
        tensors = [result] if isinstance(result, Tensor) else _tensors_of(result)
        if len(tensors) != len(step.names):
            self.same = False
            raise _OtherOperation
        for x, name in zip(tensors, step.names, strict=True):
            self._named[id(x)] = name
            self._alive.append(x)
        return result

    def _is_named(self, now: Tensor, then: Any) -> bool:
        name = self._named.get(id(now))
        return self._is_outside(now, then) if name is None else name is then


#: What is asked of a tensor that its values have no part in.
_OF_SHAPE = {
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf")
    ),
    *(
        getattr(Tensor, name)
        for name in ("size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous")
    ),
    *(getattr(Tensor, name) for name in ("is_floating_point", "is_complex", "__len__")),
    *(torch.is_floating_point, torch.is_complex, torch.numel, torch.result_type),
}


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


def _is_of_tensors(result: Any) -> bool:
    if type(result) is tuple:
        return all(map(_is_of_tensors, result))
    return isinstance(result, Tensor)
