"""A script that makes a node and its inputs again and checks them: what one sends to a colleague."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..node import DeclarativeNode
from .subject import Subject
from .target import TARGET

#: Entries up to which a tensor is written out.
_MOST_ENTRIES = 512


def script(
    subject: Subject, inputs: Sequence[object], *, target: str | None, layer: bool, local: bool
) -> str:
    """The script, as text.

    Args:
        target: the name or file that the node was loaded from, if it was.
        layer: it is a layer that was checked.
    """
    imports, construction = _construction(subject.node, target)
    lines = ["import torch", "import ddnkit", *imports, "", *construction]
    checked = "node"
    arguments = [f"x{i}" for i in range(len(inputs))]
    if layer:
        lines.append(f"layer = ddnkit.DeclarativeLayer({', '.join(_settings(subject))})")
        checked = "layer"
    elif subject.asked:
        arguments.append(f"backward={subject.forms[0].name!r}")
    if local:
        arguments.append("local=True")
    lines += [f"x{i} = {as_python(x)}" for i, x in enumerate(inputs)]
    lines.append(f"print(ddnkit.check({', '.join([checked, *arguments])}))")
    return "\n".join(lines)


def as_text(xs: Sequence[object]) -> str:
    """Python text that makes the inputs again; long tensors abbreviated to their shape."""
    lines = []
    for i, x in enumerate(xs):
        if isinstance(x, Tensor) and x.numel() > 64:
            lines.append(f"# x{i}: {tuple(x.shape)}, {x.dtype}")
        else:
            lines.append(f"x{i} = {as_python(x)}")
    return "\n".join(f"    {line}" for line in lines)


def as_python(x: object) -> str:
    """Python text that makes an input again; of a large tensor, a comment that says what it is."""
    if not isinstance(x, Tensor):
        return repr(x)
    if x.numel() > _MOST_ENTRIES:
        return f"...  # {tuple(x.shape)}, {x.dtype}: as it was given"
    settings = f"dtype={x.dtype}"
    if x.device.type != "cpu":
        settings += f", device={str(x.device)!r}"
    if x.numel() == 0:
        return f"torch.zeros({tuple(x.shape)}, {settings})"
    return f"torch.tensor({number_text(x.tolist())}, {settings})"


def number_text(value: object) -> str:
    """Nested lists of numbers, as short as they are exact."""
    if isinstance(value, list):
        return f"[{', '.join(number_text(v) for v in value)}]"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    return repr(value)


def _settings(subject: Subject) -> list[str]:
    settings = ["node", repr(subject.forms[0].name)]
    if subject.batch_dims is not None:
        settings.append(f"batch_dims={subject.batch_dims}")
    if subject.tolerance is not None:
        settings.append(f"tolerance={subject.tolerance!r}")
    return settings


def _construction(node: DeclarativeNode, target: str | None) -> tuple[list[str], list[str]]:
    if target is not None and ".py" in target:
        return [], [f"node = ddnkit.load_target({target!r})"]
    if target is not None:
        return [], [f'node = ddnkit.registry.get("nodes", {target!r})()']
    kind = type(node)
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    by_path = kind.__module__ == "__main__" or kind.__module__.startswith(TARGET)
    if by_path and "<locals>" not in kind.__qualname__ and file:
        return _construction(node, f"{file}:{kind.__qualname__}")
    module = _module_of(kind)
    if module is None:
        return [], [f"# node = {kind.__name__}(...)  the instance that was checked"]
    arguments = _arguments(node)
    top = kind.__qualname__.split(".")[0]
    return [f"from {module} import {top}"], [f"node = {kind.__qualname__}({arguments})"]


def _module_of(kind: type) -> str | None:
    """The module to import a class from: the outermost package that offers it; None if none does."""
    if kind.__module__ == "__main__" or "<locals>" in kind.__qualname__:
        return None
    parts = kind.__module__.split(".")
    for end in range(1, len(parts) + 1):
        module = ".".join(parts[:end])
        try:
            found: Any = importlib.import_module(module)
            for name in kind.__qualname__.split("."):
                found = getattr(found, name)
        except Exception:  # a package's own __getattr__ may raise anything
            continue
        if found is kind:
            return module
    return None


def _arguments(node: DeclarativeNode) -> str:
    """Constructor arguments, read off attributes of the same names where these are plain values."""
    if type(node).__init__ is object.__init__:
        return ""
    arguments = []
    for name, parameter in inspect.signature(type(node)).parameters.items():
        value = vars(node).get(name, inspect.Parameter.empty)
        plain = isinstance(value, (bool, int, float, str, type(None)))
        if plain and value != parameter.default:
            arguments.append(f"{name}={number_text(value)}")
        elif not plain and parameter.default is inspect.Parameter.empty:
            arguments.append("...")
    return ", ".join(arguments)
