"""Tensors that an objective uses without being given them: found, and replaced while it is evaluated.

An objective may use a module's parameters or a tensor of an enclosing scope. To be differentiated
with respect to, such a tensor must be an operand of the implicit function like any input. A
`TorchFunctionMode` sees every tensor that enters a torch function. It tells which of them want a
derivative (`discover`), and puts other tensors in their place (`substituted`), so that the objective
becomes a function of them. Nothing is written onto the node.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True, eq=False)
class Captured:
    """A tensor that a node's functions use without being given it.

    Attributes:
        tensor: as they saw it when the node was solved.
        path: where it hangs on the node ("net.0.weight"), or None for one of an enclosing scope.
            torch.func.functional_call puts other tensors there, and takes them away before the
            derivative is computed: what hangs there at the time of an evaluation is meant.
    """

    tensor: Tensor
    path: str | None = None


class _Substitution(TorchFunctionMode):
    """Replaces tensors by identity in the arguments of every torch function.

    Args:
        replacements: by the identity of what they replace.
        replaced: what is kept alive meanwhile, so that no identity is given out twice: an objective may
            set an attribute anew.
    """

    def __init__(self, replacements: Mapping[int, Tensor], replaced: Sequence[Tensor] = ()):
        super().__init__()
        self.replacements = replacements
        self.replaced = replaced
        self.used: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        def replace(tensor: Tensor) -> Tensor:
            found = self.replacements.get(id(tensor))
            if found is None:
                return tensor
            self.used.add(id(found))
            return found

        kwargs = {name: _map(replace, value) for name, value in (kwargs or {}).items()}
        return func(*(_map(replace, value) for value in args), **kwargs)


class InFloat64(TorchFunctionMode):
    """Has a function of float64 tensors take its own float32 ones in float64 too.

    torch adds the two, but refuses to multiply matrices of them, and of a number and a vector it takes the
    vector's type. What works in place, or takes derivatives, is left with what it is given.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        kwargs = kwargs or {}
        found: set[torch.dtype] = set()

        def look(tensor: Tensor) -> Tensor:
            found.add(tensor.dtype)
            return tensor

        _map(look, args)
        if kwargs:
            _map(look, kwargs)
        if not {torch.float32, torch.float64} <= found or _needs_its_own(func, kwargs):
            return func(*args, **kwargs)

        def widen(tensor: Tensor) -> Tensor:
            return tensor.double() if tensor.dtype == torch.float32 else tensor

        return func(*_map(widen, tuple(args)), **_map(widen, kwargs))


def _needs_its_own(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a torch function needs the very tensors that it is given, which it writes on or looks for."""
    name = getattr(func, "__name__", "")
    if works_in_place(name) or "out" in kwargs or kwargs.get("inplace") is True:
        return True
    return name == "backward" or getattr(func, "__module__", "") == torch.autograd.__name__


def works_in_place(name: str) -> bool:
    """Whether a torch function of this name writes on its first argument."""
    if name.endswith("__"):
        return name in _WRITING
    return name.endswith("_")


#: Operators that work in place.
_WRITING = {
    "__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__ipow__",
    "__ifloordiv__", "__imod__", "__iand__", "__ior__", "__ixor__", "__set__",
}  # fmt: skip


class _Discovery(TorchFunctionMode):
    """Collects the tensors that enter torch functions, want a derivative, and were made outside."""

    def __init__(self, known: Sequence[Tensor]):
        super().__init__()
        self.made = {id(tensor): tensor for tensor in known}
        self.found: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        def look(tensor: Tensor) -> Tensor:
            if id(tensor) not in self.made and is_tracked(tensor):
                self.found[id(tensor)] = tensor
            return tensor

        for value in (*args, *(kwargs or {}).values()):
            _map(look, value)
        result = func(*args, **(kwargs or {}))
        # Kept alive as well, so that no identity is given out twice.
        _map(lambda tensor: self.made.setdefault(id(tensor), tensor), result)
        return result


def _map(function: Callable[[Tensor], Any], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (list, tuple):
        return type(value)(_map(function, entry) for entry in value)
    if type(value) is dict:
        return {key: _map(function, entry) for key, entry in value.items()}
    return value


def substitute(
    node: object, captured: Sequence[Captured], values: Sequence[Tensor]
) -> contextlib.AbstractContextManager[Any]:
    """While this context lasts, torch functions see ``values`` in place of the captured tensors."""
    if not captured:
        return contextlib.nullcontext()
    table = {id(c.tensor): value for c, value in zip(captured, values, strict=True)}
    now: dict[str, Tensor] = {}
    if any(c.path is not None for c in captured):
        now = dict(attributes(node))
        for c, value in zip(captured, values, strict=True):
            if c.path in now:
                table[id(now[c.path])] = value
    return _Substitution(table, list(now.values()))


def find_unused(
    evaluate: Callable[[], Any], captured: Sequence[Captured], values: Sequence[Tensor]
) -> list[Captured]:
    """Tensors of enclosing scopes among the captured that ``evaluate()`` does not use any more."""
    scoped = [(c, v) for c, v in zip(captured, values, strict=True) if c.path is None]
    with _Substitution({id(c.tensor): v for c, v in scoped}) as mode:
        evaluate()
    return [c for c, v in scoped if id(v) not in mode.used]


def discover(evaluate: Callable[[], Any], known: Sequence[Tensor]) -> list[Tensor]:
    """Tensors that want a derivative and enter ``evaluate()`` from outside, beside the ``known``."""
    mode = _Discovery(known)
    with mode:
        evaluate()
    return list(mode.found.values())


def is_tracked(tensor: Tensor) -> bool:
    """Whether some transform may ask for a derivative with respect to ``tensor``."""
    return tensor.is_floating_point() and (
        tensor.requires_grad or is_wrapped(tensor) or _has_tangent(tensor)
    )


def has_escaped(tensor: Tensor) -> bool:
    """Whether ``tensor`` belongs to a torch.func transform that is over: an objective has kept it."""
    if not is_wrapped(tensor):
        return False
    top = torch._C._functorch.peek_interpreter_stack()
    return bool(torch._C._functorch.maybe_get_level(tensor) > (0 if top is None else top.level()))


def is_wrapped(tensor: Tensor) -> bool:
    """Whether ``tensor`` belongs to a torch.func transform."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _has_tangent(tensor: Tensor) -> bool:
    if torch.autograd.forward_ad._current_level < 0:
        return False
    with torch.autograd.forward_ad._set_fwd_grad_enabled(True):
        return torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None


def versions(owner: object) -> list[tuple[str, Tensor, int]]:
    """Tensors of an object and buffers of its modules, each with torch's count of its changes in place.

    Running statistics are changed without being counted, but beside them the number of updates is.
    Parameters are left out: torch itself refuses to change them in place while it records.
    """
    held = [pair for name, value in vars(owner).items() for pair in _changeable(name, value)]
    if isinstance(owner, nn.Module):
        held += owner.named_buffers()
    return [(path, x, x._version) for path, x in held if not x.is_inference()]


def _changeable(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, nn.Module):
        yield from ((f"{name}.{inner}", buffer) for inner, buffer in value.named_buffers())
    elif isinstance(value, Tensor):
        yield name, value
    elif not name.startswith("_"):
        yield from _tensors(name, value)


def running_statistics(owner: object) -> list[tuple[Tensor, Tensor]]:
    """The buffers of modules that update them when they are called in training mode, with copies."""
    return [
        (buffer, buffer.detach().clone())
        for _, root in _modules(owner)
        for module in root.modules()
        if module.training and getattr(module, "track_running_stats", False)
        for buffer in module.buffers(recurse=False)
    ]


def _modules(owner: object) -> list[tuple[str, nn.Module]]:
    if isinstance(owner, nn.Module):
        return [("", owner)]
    return [(name, value) for name, value in vars(owner).items() if isinstance(value, nn.Module)]


def attributes(owner: object) -> Iterator[tuple[str, Tensor]]:
    """Floating-point tensors in an object's attributes, lists, dictionaries and modules included."""
    values = dict(vars(owner))
    if isinstance(owner, nn.Module):
        values.update(_of_module(owner))
    for name, value in values.items():
        if not name.startswith("_") or isinstance(value, Tensor):
            yield from (pair for pair in _tensors(name, value) if not has_escaped(pair[1]))


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield name, value
    elif isinstance(value, nn.Module):
        for inner, tensor in _of_module(value).items():
            yield f"{name}.{inner}", tensor
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            yield from _tensors(f"{name}.{index}", entry)
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _tensors(f"{name}.{key}", entry)


def _of_module(module: nn.Module) -> dict[str, Tensor]:
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor for name, tensor in named.items() if tensor.is_floating_point()}
