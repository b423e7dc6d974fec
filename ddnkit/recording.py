"""Recording: what one evaluation of a node's functions shows.

The derivative of a solution is computed from the objective as it is evaluated on the way back, and is
right only if that is the function that was solved, and if torch sees all of it. Neither shows in values: for
f = λ(y − a)² + (y − b)² at a = b both f and ∇f are 0 for every λ, but dy/da is λ/(1 + λ). What does show
is the evaluation itself. A `TorchFunctionMode` sees each operation with its numbers, and each tensor
that comes from outside, with its values:

- two evaluations at the same point are the same function if the operations that operands and y go
  into, their numbers, and the values of what else goes into them are the same (`difference`);
- operations that draw random numbers, hide an input from autograd or have a kink are known
  by name (`Trace.random`, `hidden`, `kinks`).

A number that Python computes from a tensor (`item`) is a number of the trace like any other.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import captured
from .kink_table import KINKS, KinkPoint, kink_points

#: Of an outside tensor with more entries than this, so many are compared, spread over it.
_SAMPLED = 65_536

#: Where frames are not a user's: between what was called and what recorded it.
_BETWEEN = (__file__, captured.__file__, str(Path(torch.__file__).parent))

#: Operations after which autograd does not know what a value depends on.
_CUTS = {
    torch.Tensor.detach: "detach()",
    torch.detach: "detach()",
    torch.Tensor.detach_: "detach_()",
    torch.detach_: "detach_()",
    torch.Tensor.requires_grad_: "requires_grad_()",
    torch.tensor: "torch.tensor",
    torch.asarray: "torch.asarray",
    torch.Tensor.new_tensor: "new_tensor",
    torch.Tensor.__complex__: "complex()",
    torch.Tensor.__index__: "an index",
    torch.Tensor.data.__get__: ".data",  # type: ignore[attr-defined]
    torch.Tensor.item: "item()",
    torch.Tensor.tolist: "tolist()",
    torch.Tensor.numpy: "numpy()",
    torch.Tensor.__array__: "numpy",
    torch.Tensor.__float__: "float()",
    torch.Tensor.__int__: "int()",
    torch.Tensor.__dlpack__: "dlpack",
}

#: Names of operations that draw random numbers, beside those that are given a generator.
_RANDOM = {
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal",
    "normal_", "uniform_", "random_", "bernoulli", "bernoulli_", "exponential_", "geometric_",
    "cauchy_", "log_normal_", "multinomial", "poisson", "binomial", "rrelu", "gumbel_softmax",
}  # fmt: skip

#: Those that do so where they are told to train.
_DROPOUTS = {
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout",
    "dropout_", "feature_dropout",
}  # fmt: skip


#: Names of operations that take a shape and a type from a tensor, and no values.
_LIKE = {
    "zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full",
    "new_empty", "new_empty_strided",
}  # fmt: skip


#: Those that do not fill what they make.
_BLANK = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"}


@dataclass(frozen=True)
class Place:
    """Where in a user's file an operation was called."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{Path(self.file).name}, line {self.line}"


@dataclass
class Step:
    """One operation that operands or y go into: its name, its numbers, its tensors, who called it.

    Attributes:
        sources: of each tensor argument: the name of an operand, "y", "#3" for the third operation's
            result, "@1" for the second tensor that depends on none of them.
        writes: whether it works in place, so that its result may be used under another name.
    """

    name: str
    constants: tuple[Any, ...]
    sources: tuple[str, ...]
    place: Place | None
    writes: bool = False


@dataclass
class Hidden:
    """A value that depends on operands or y, and that autograd loses there."""

    how: str
    of: frozenset[str]
    place: Place | None


@dataclass
class Trace:
    """One evaluation of one function, for one problem or, by vmap, for a batch at once."""

    function: str
    steps: list[Step] = field(default_factory=list)
    outside: list[Held] = field(default_factory=list)
    random: list[Step] = field(default_factory=list)
    hidden: list[Hidden] = field(default_factory=list)
    kinks: list[tuple[Step, KinkPoint]] = field(default_factory=list)
    output: str | None = None

    def live(self) -> tuple[list[tuple[Step, tuple[str, ...]]], list[Held]]:
        """The steps that the output comes from, and what goes into them from outside, by new numbers.

        What is computed for a log, a check or a cache is none of them, and may differ. An output of code that
        is not recorded (a compiled function, say) may come from anything.
        """
        needed = set(range(len(self.steps)))
        if self.output is not None and self.output.startswith("#"):
            needed = {k for k, step in enumerate(self.steps) if step.writes}
            ahead = [self.output, *(s for k in needed for s in self.steps[k].sources)]
            while ahead:
                k = _number(ahead.pop())
                if k is not None and k not in needed:
                    needed.add(k)
                    ahead.extend(self.steps[k].sources)
        names: dict[str, str] = {}
        outside: list[Held] = []
        live: list[tuple[Step, tuple[str, ...]]] = []
        for k in sorted(needed):
            sources = []
            for source in self.steps[k].sources:
                if source.startswith("@") and source not in names:
                    names[source] = f"@{len(outside)}"
                    outside.append(self.outside[int(source[1:])])
                head, dot, part = source.partition(".")
                sources.append(names.get(head, head) + dot + part)
            names[f"#{k + 1}"] = f"#{len(live) + 1}"
            live.append((self.steps[k], tuple(sources)))
        return live, outside


def _number(source: str) -> int | None:
    """Of which step it is a result."""
    return int(source[1:].partition(".")[0]) - 1 if source.startswith("#") else None


class Held:
    """A tensor that an evaluation was not told of, with enough of its values to notice a change."""

    def __init__(
        self, tensor: Tensor, place: Place | None = None, keep: bool = True, blank: bool = False
    ):
        # One that the evaluation made itself is not kept alive.
        self.tensor, self.place = tensor if keep else None, place
        self.shape, self.version = tensor.shape, version(tensor)
        self.drawn: bytes | None = None
        # A blank one holds what was in that memory before.
        self._sample = None if blank else _sample(tensor)

    def differs(self, other: Held) -> bool:
        """Whether the other holds other values, as far as can be told without waiting for a GPU."""
        if self.drawn != other.drawn:
            return True
        a, b = self._sample, other._sample
        if a is None or b is None:
            a_tensor, b_tensor = self.tensor, other.tensor
            if (
                a_tensor is None
                or b_tensor is None
                or _is_wrapped(a_tensor)
                or _is_wrapped(b_tensor)
            ):
                return False
            # Not by identity: what autograd has kept comes back as another object.
            same_memory = a_tensor.data_ptr() == b_tensor.data_ptr()
            return not same_memory or self.version != other.version
        if a.shape != b.shape or a.dtype != b.dtype:
            return True
        if a.tobytes() == b.tobytes():
            return False
        if (self.tensor is not None and other.tensor is not None) or a.dtype.kind != "f":
            return True
        # A constant that is computed anew may come out otherwise in its last digits.
        close = np.finfo(a.dtype).eps ** 0.5
        limit = (
            close * np.abs(a)
            + close**1.5 * np.abs(a, where=np.isfinite(a), out=np.zeros_like(a)).max()
        )
        return not bool(((a == b) | (np.abs(a - b) <= limit) | ((a != a) & (b != b))).all())


def _is_wrapped(x: Tensor) -> bool:
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def _sample(x: Tensor) -> np.ndarray[Any, Any] | None:
    """A copy of x or, of a large one, of entries spread over it; None where looking is not allowed."""
    if _is_wrapped(x) or x.device.type != "cpu" or x.layout != torch.strided:
        # A GPU would have to be waited for. There, and inside of transforms, versions tell.
        return None
    # Through numpy: no operation of torch, which others may be watching, and a tenth of its time.
    x = x.detach() if x.requires_grad else x
    if x.dtype is torch.bfloat16:
        x = x.view(torch.int16)
    try:
        values = x.numpy(force=x.is_conj() or x.is_neg())
    except (RuntimeError, TypeError):
        # A type that numpy does not have, or a tensor of a transform, which has no memory of its own
        # and does not say so.
        return None
    if x.numel() <= _SAMPLED:
        return values.copy()
    # `flat` copies no more than it is asked for, of expanded and transposed tensors too.
    return np.asarray(values.flat[:: x.numel() // _SAMPLED + 1])


def version(x: Tensor) -> int:
    """How often x was written on, as torch counts it; -1 where it does not."""
    return -1 if x.is_inference() else x._version


class Recorder(TorchFunctionMode):
    """Records one evaluation. Enter it before whatever replaces tensors.

    Args:
        function: its name.
        known: the operands and y, by the names that the trace gives them.
    """

    def __init__(self, function: str, known: Sequence[tuple[str, Tensor]]):
        super().__init__()
        self.trace = Trace(function)
        # By identity, with a reference that tells whether it is still that tensor: results are not
        # kept alive, so that recording takes no memory.
        self._made: dict[int, tuple[weakref.ref[Tensor], str, frozenset[str]]] = {}
        for name, x in known:
            self._keep(x, name, frozenset([name]))
        self._drawn: dict[int, tuple[weakref.ref[Tensor], bytes]] = {}
        self._constants: dict[int, tuple[weakref.ref[Tensor], Held, str]] = {}
        self._graph = torch.is_grad_enabled()
        self.paused = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        sources: list[str] = []
        depends: set[str] = set()

        def look(value: Any) -> Any:
            if isinstance(value, Tensor):
                name, on = self._source(value)
                sources.append(name)
                depends.update(on)
                return None
            if type(value) in (list, tuple):
                return tuple(map(look, value))
            if type(value) is dict:
                return tuple((key, look(entry)) for key, entry in value.items())
            return value.copy() if isinstance(value, np.ndarray) else value

        constants = (look(args), look(kwargs) if kwargs else ())
        name = _name(func)
        if name in _LIKE and not depends.difference(self._source(args[0])[1] if args else ()):
            depends.clear()  # its shape and type alone; what it holds is compared by value
        in_place = captured.works_in_place(name)
        writes = in_place or "out" in kwargs or kwargs.get("inplace") is True
        given = args
        if writes and "y" in depends and name in KINKS and args:
            given = (args[0].clone(), *args[1:])  # what it was, to tell where it is from the kink
        draws = name in _RANDOM or (name in _DROPOUTS and _trains(args, kwargs))
        draws = draws or kwargs.get("generator") is not None
        if draws:
            # Zeros are zeros whatever is dropped of them: where the numbers come from tells.
            constants = (constants, _generator_state(kwargs.get("generator"), args))
        result = func(*args, **kwargs)
        trace = self.trace
        self._keep_drawn(result, constants[1] if draws else self._drawn_from(args))
        if draws:
            trace.random.append(Step(name, constants, tuple(sources), _place()))
        if depends:
            writes = writes or result is None
            step = Step(name, constants, tuple(sources), _place(), writes)
            if writes or _has_tensor(result):
                # What says a type, a shape or a number goes on as a number of another step.
                trace.steps.append(step)
            self._note_loss(func, step, kwargs, result, depends)
            if "y" in depends and name in KINKS:
                trace.kinks += [(step, point) for point in kink_points(name, given, kwargs, result)]
        made, on = f"#{len(trace.steps)}", frozenset(depends)
        if name in _BLANK and isinstance(result, Tensor):
            made = f"blank {version(result)}"
        self._keep(result, made, on)
        if depends and in_place and args and isinstance(args[0], Tensor):
            self._wrote(args[0], made, on)
            if args[0]._base is not None:
                self._wrote(args[0]._base, made, on)
        return result

    def _keep_drawn(self, result: Any, state: Any) -> None:
        # Few random numbers come out alike by luck: the generator's state does not.
        if isinstance(result, Tensor) and isinstance(state, bytes):
            self._drawn[id(result)] = weakref.ref(result), state

    def _drawn_from(self, args: Any) -> bytes | None:
        for value in args if self._drawn else ():
            found = self._drawn.get(id(value))
            if found is not None and found[0]() is value:
                return found[1]
        return None

    def _wrote(self, x: Tensor, name: str, on: frozenset[str]) -> None:
        made = self._made.get(id(x))
        if made is not None and made[0]() is x:
            on = on | made[2]
        self._made[id(x)] = weakref.ref(x), name, on

    def returns(self, output: Any) -> None:
        """Say what the function returned."""
        if isinstance(output, Tensor):
            self.trace.output = self._source(output)[0]

    def took(self, name: str, inputs: Any, inner: Sequence[Trace], result: Any) -> None:
        """Record as one operation what was computed while this was paused."""
        sources = [self._source(x)[0] for x in _tensors(inputs)]
        on = frozenset().union(*(of for _, _, of in self._made.values()))
        self.trace.steps.append(Step(name, (Inner(tuple(inner)),), tuple(sources), _place()))
        self._keep(result, f"#{len(self.trace.steps)}", on)

    def _note_loss(
        self, func: Any, step: Step, kwargs: Any, result: Any, depends: set[str]
    ) -> None:
        how = _CUTS.get(func)
        if how is None and func is torch.autograd.grad and not kwargs.get("create_graph"):
            how = "autograd.grad without create_graph"
        if how is None and self._graph and not torch.is_grad_enabled() and _is_number(result):
            how = "no_grad()"
        if how is not None:
            self.trace.hidden.append(Hidden(how, frozenset(depends), step.place))

    def _source(self, x: Tensor) -> tuple[str, frozenset[str]]:
        made = self._made.get(id(x))
        known = made is not None and made[0]() is x
        if made is not None and known and made[2]:
            return made[1], made[2]
        # A constant, from outside or made here: its values count, not where they come from.
        key = self._constants.get(id(x))
        if key is None or key[0]() is not x or key[1].version != version(x):
            blank = known and made is not None and made[1] == f"blank {version(x)}"
            held = Held(x, _place(), keep=not known, blank=blank)
            held.drawn = self._drawn_from([x])
            key = self._constants[id(x)] = weakref.ref(x), held, f"@{len(self.trace.outside)}"
            self.trace.outside.append(held)
        return key[2], frozenset()

    def _keep(self, result: Any, name: str, depends: frozenset[str]) -> None:
        if isinstance(result, Tensor):
            if id(result) not in self._made or self._made[id(result)][0]() is not result:
                self._made[id(result)] = weakref.ref(result), name, depends
            elif not depends <= self._made[id(result)][2]:  # worked on in place
                ref, before, on = self._made[id(result)]
                self._made[id(result)] = ref, before, on | depends
        elif isinstance(result, (list, tuple)):
            for k, entry in enumerate(result):
                self._keep(entry, f"{name}.{k}", depends)
        elif isinstance(result, dict):
            for key, entry in result.items():
                self._keep(entry, f"{name}.{key}", depends)


@dataclass(frozen=True)
class Inner:
    """What a layer that an objective calls has shown, as a constant of the step that it is."""

    traces: tuple[Trace, ...]


_PAUSED = threading.local()


def as_one_step(name: str, inputs: Any, compute: Callable[[], Any]) -> Any:
    """compute(), which a recording around it takes for one operation: a layer inside an objective.

    It has solvers, certificates and comparisons inside, which are no part of the function.
    """
    if not torch._C._len_torch_function_stack():
        return compute()
    stack = torch.overrides._get_current_function_mode_stack()
    recorders = [mode for mode in stack if isinstance(mode, Recorder) and not mode.paused]
    if not recorders:
        return compute()
    outer, _PAUSED.inner = getattr(_PAUSED, "inner", None), []
    for recorder in recorders:
        recorder.paused = True
    try:
        result = compute()
    finally:
        inner, _PAUSED.inner = _PAUSED.inner, outer
        for recorder in recorders:
            recorder.paused = False
    for recorder in recorders:
        recorder.took(name, inputs, inner, result)
    return result


def tell(traces: Sequence[Trace]) -> None:
    """Hand what a layer has shown to a recording around it."""
    inner = getattr(_PAUSED, "inner", None)
    if inner is not None:
        inner.extend(traces)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _tensors(entry)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _has_tensor(result: Any) -> bool:
    return isinstance(result, Tensor) or next(_tensors(result), None) is not None


def _name(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    if name == "__get__":  # an attribute: x.data, x.T
        return getattr(getattr(func, "__self__", None), "__name__", name)
    return name


def _trains(args: Any, kwargs: Any) -> bool:
    # dropout(input, p=0.5, training=True, inplace=False)
    chance = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
    return bool(args[2] if len(args) > 2 else kwargs.get("training", True)) and chance != 0


def _generator_state(generator: torch.Generator | None, args: Any) -> bytes:
    if generator is not None:
        return generator.get_state().numpy().tobytes()
    x = next(_tensors(args), None)
    if x is not None and x.device.type == "cuda":
        return torch.cuda.get_rng_state(x.device).numpy().tobytes()
    return torch.get_rng_state().numpy().tobytes()


def _is_number(result: Any) -> bool:
    return isinstance(result, Tensor) and result.is_floating_point()


def _place() -> Place | None:
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_filename.startswith(_BETWEEN):
        frame = frame.f_back  # type: ignore[assignment]
    return None if frame is None else Place(frame.f_code.co_filename, frame.f_lineno)


def difference(before: Sequence[Trace], after: Sequence[Trace]) -> str | None:
    """How the second evaluation differs from the first, in a few words with the place; None if not."""
    for first, second in zip(before, after, strict=False):
        found = _differing_entry(first, second)
        if found is not None:
            return found
    return None


def _differing_entry(first: Trace, second: Trace) -> str | None:
    (before, held), (after, now) = first.live(), second.live()
    for (a, of_a), (b, of_b) in zip(before, after, strict=False):
        if a.name != b.name or of_a != of_b:
            return f"`{b.name}`{_at(b.place)} where it was `{a.name}`{_at(a.place)}"
        changed = _changed_step(a.constants, b.constants)
        if changed is not None:
            return f"`{b.name}`{_at(b.place)}: {changed}"
    if len(before) != len(after):
        return f"{len(after)} operations where there were {len(before)}"
    for x, z in zip(held, now, strict=False):
        if x.differs(z):
            return f"a tensor from outside{_at(z.place)} has other values"
    return None


def _at(place: Place | None) -> str:
    return "" if place is None else f" ({place})"


def _changed_step(a: Any, b: Any) -> str | None:
    if isinstance(a, tuple) and isinstance(b, tuple):
        if len(a) != len(b):
            return "other arguments"
        for x, z in zip(a, b, strict=True):
            found = _changed_step(x, z)
            if found is not None:
                return found
        return None
    if a is b:
        return None
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        same = a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
        return None if same else "an array has other values"
    if isinstance(a, bytes) and isinstance(b, bytes):
        return None if a == b else "other random numbers"
    if isinstance(a, Inner) and isinstance(b, Inner):
        return difference(a.traces, b.traces)
    if type(a) is not type(b):
        return f"{a!r:.40} is now {b!r:.40}"
    if isinstance(a, (int, float, complex, str, bool, torch.dtype, torch.device, slice)):
        return None if a == b or (a != a and b != b) else f"{a!r:.40} is now {b!r:.40}"
    # Generators, functions and the like are what they are.
    return None
