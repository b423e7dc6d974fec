"""A linear map that an iteration applies many times: recorded once, then replayed.

A product with a Hessian is a backward pass through a graph. Most of its time, where tensors are small,
goes into walking that graph, into views, and into parts that do not depend on the vector. `Replayed`
notes which operations depend on the vector and where in memory they read and write; from then on it
calls those alone, into the same memory, on another vector.

    G = Replayed(hessian_vector_product)      # G(v) as before, cheaper from the fifth call on

What cannot be replayed is not: an operation that depends on the vector's values otherwise than through
tensors (a Python number, a data-dependent shape, random numbers, a change of something that was there
before), tensors too large to gain, a transform of torch.func. A recording is used only after it has
given what the map itself gave for another vector.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..transforms import under_transform

LinearMap = Callable[[Tensor], Tensor]

#: Calls before the recording: a few iterations do not repay it.
FIRST_CALLS = 3
#: Bytes that the intermediate results may take, which a recording keeps.
MOST_BYTES = 32 * 2**20


class Replayed:
    """The same linear map, replayed where that is possible.

    Args:
        apply: maps a tensor to one of the same shape, the same way at each call.
    """

    def __init__(self, apply: LinearMap):
        self._apply = apply
        self._calls = 0
        self._recording: _Recording | None = None
        self._verified = False

    def __call__(self, v: Tensor) -> Tensor:
        """The image of v, in memory of its own."""
        recording = self._recording
        if recording is not None and self._verified and recording.takes(v):
            return recording(v)
        self._calls += 1
        if self._calls == FIRST_CALLS + 1 and type(v) is Tensor and not under_transform():
            image, self._recording = _record(self._apply, v)
            return image
        image = self._apply(v)
        if recording is not None and recording.takes(v) and not self._verified:
            self._verified = _alike(recording(v), image)
            if not self._verified:
                self._recording = None
        return image


def _alike(replayed: Tensor, image: Tensor) -> bool:
    # The same operations on the same numbers: only the order of a parallel sum may differ.
    difference = (replayed - image).abs().amax()
    tolerance = 64 * torch.finfo(image.dtype).eps * image.abs().amax()
    return bool(difference <= tolerance)


class _Step(NamedTuple):
    """An operation: called with its results as `out`, or by itself and copied there."""

    call: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: tuple[Tensor, ...]


class _Recording:
    def __init__(
        self,
        given: Tensor,
        image: Tensor,
        initial: list[tuple[Tensor, Tensor]],
        steps: list[_Step],
        kept: list[Any],
    ):
        self._given = given
        self._image = image
        self._initial = initial
        self._steps = steps
        self._kept = kept  # no other tensor may take the place of one that is read

    def takes(self, v: Tensor) -> bool:
        given = self._given
        alike = v.shape == given.shape and v.dtype == given.dtype and type(v) is Tensor
        return alike and not under_transform()

    def __call__(self, v: Tensor) -> Tensor:
        with torch.no_grad():
            self._given.copy_(v)
            for tensor, value in self._initial:
                tensor.copy_(value)
            for call, arguments, keywords, results in self._steps:
                made = call(*arguments, **keywords)
                if results:
                    for own, result in zip(results, _tensors((made,)), strict=True):
                        own.copy_(result)
            return self._image.clone()


def _record(apply: LinearMap, v: Tensor) -> tuple[Tensor, _Recording | None]:
    given = v.clone()
    with _Recorder(given) as recorder:
        image = apply(given)
    image = image.detach()
    if not recorder.possible:
        return image.clone(), None
    recording = _Recording(given, image, recorder.initial, recorder.steps, recorder.kept)
    return image.clone(), recording


class _Recorder(TorchDispatchMode):
    """Notes the operations that depend on a tensor, by the memory that they read and write."""

    def __init__(self, given: Tensor):
        super().__init__()
        self.possible = True
        self.bytes = 0
        self.steps: list[_Step] = []
        #: memory that is written to, with what stood there before
        self.initial: list[tuple[Tensor, Tensor]] = []
        self.kept: list[Any] = [given]
        self._dependent = {_memory(given)}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.possible:
            return func(*args, **kwargs)
        facts = _facts(func)
        given = [*_tensors(args), *_tensors(kwargs.values())]
        known = {_memory(x) for x in given}
        depends = not known.isdisjoint(self._dependent)
        changed = facts.changed(args, kwargs) if facts.written else []
        if depends and facts.unpredictable and not self._at_fixed_places(func, args):
            self.possible = False
        for x in changed:
            if _memory(x) in self._dependent:
                continue
            if _memory(x) not in self._made:
                self.possible = False  # a change of what was there before
            elif depends:
                self._dependent.add(_memory(x))
                self.initial.append((x, x.clone()))
            # Else it is still being made, of what does not depend on v.
        out = func(*args, **kwargs)
        new = [x for x in _tensors((out,)) if _memory(x) not in known]
        self._made.update(_memory(x) for x in new)
        self.kept.append((args, kwargs, out))
        self.bytes += sum(x.untyped_storage().nbytes() for x in new)
        if self.bytes > MOST_BYTES:
            self._give_up()
            return out
        if depends and self.possible:
            self._dependent.update(_memory(x) for x in new)
            if changed:
                self.steps.append(_Step(func, tuple(args), kwargs, ()))
            elif new:
                self._note(func, tuple(args), kwargs, out)
            # What has neither is a view, which stays where it is.
        return out

    def _give_up(self) -> None:
        # What was kept so far is let go at once: it is what made the call take more than its own.
        self.possible = False
        for kept in (self.kept, self.steps, self.initial):
            kept.clear()

    def _at_fixed_places(self, func: Any, args: tuple[Any, ...]) -> bool:
        """Whether this takes elements at indices that do not depend on v, as many each time."""
        at_indices = func is torch.ops.aten.index.Tensor
        return at_indices and not any(_memory(x) in self._dependent for x in _tensors(args[1]))

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if func is torch.ops.aten.bmm.default and args[0].shape[-1] == 1:
            # An outer product, which a product of elements does several times faster.
            func = torch.ops.aten.mul.Tensor
        into = _facts(func).into
        if into is None or not isinstance(out, Tensor) or (0 in out.stride() and out.numel() > 1):
            self.steps.append(_Step(func, args, kwargs, tuple(_tensors((out,)))))
            return
        call, name = into
        self.steps.append(_Step(call, args, {**kwargs, name: out}, ()))


def _memory(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


class _Facts:
    """What is known of an operation before it is called.

    Attributes:
        written: the arguments that it writes to, by position and name.
        unpredictable: whether another vector may make of it something else than other numbers in the
            same places.
        into: the same operation with a result that is given, and the name of that argument.
    """

    def __init__(self, func: Any):
        arguments = func._schema.arguments
        self.written = [(k, a.name) for k, a in enumerate(arguments) if _is_written(a)]
        self.unpredictable = func in _VALUES or not _UNPREDICTABLE.isdisjoint(func.tags)
        self.into = _find_into(func)

    def changed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The tensors that a call writes to."""
        return _tensors(args[k] if k < len(args) else kwargs.get(n) for k, n in self.written)


_VALUES = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default}
_UNPREDICTABLE = {
    torch.Tag.nondeterministic_seeded,
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
}


@functools.cache
def _facts(func: Any) -> _Facts:
    return _Facts(func)


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _find_into(func: Any) -> tuple[Any, str] | None:
    wanted = [(a.name, str(a.type)) for a in func._schema.arguments]
    packet = func.overloadpacket
    for overload in packet.overloads():
        other = getattr(packet, overload)
        arguments = other._schema.arguments
        written = [a for a in arguments if _is_written(a)]
        rest = [(a.name, str(a.type)) for a in arguments if not _is_written(a)]
        if len(written) == 1 and written[0].is_out and rest == wanted:
            return other, written[0].name
    return None
