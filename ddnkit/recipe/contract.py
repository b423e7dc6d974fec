"""What a pipeline asks of the plugin in one of its sections, checked before anything runs.

The type that a pipeline gives a section made with `component` is the contract: a protocol with the
settings (as properties) and the methods that the pipeline uses, or a settings class to build on. A
plugin need not be a subclass: what counts is that it has the same members.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from typing import Annotated, Any

import pydantic

from ..errors import PluginError
from ..importing import check_path
from .problems import message
from .settings import Component, Settings


def contract_of(annotation: Any) -> Any:
    """The contract in the annotation of a section, which may be optional."""
    if typing.get_origin(annotation) is Annotated:
        return contract_of(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
        return contract_of(members[0]) if len(members) == 1 else Settings
    return annotation if isinstance(annotation, type) else Settings


@functools.cache
def missing_members(kind: type[Settings], contract: Any) -> tuple[str, ...]:
    """What ``kind`` lacks to fill a section that asks for ``contract``; empty if it fits."""
    missing, misfits = [], []
    for name, asked in _members(contract).items():
        if name in kind.model_fields:
            if asked is not None:
                misfits.append(f"its '{name}' is a setting; expected a method {_call(name, asked)}")
        elif inspect.getattr_static(kind, name, None) is None:
            missing.append(f"setting '{name}'" if asked is None else f"method {_call(name, asked)}")
        elif asked is not None:
            misfits += _misfit(kind, name, asked)
    lacks = [f"its class {kind.__name__} has no {' and no '.join(missing)}"] if missing else []
    if lacks or misfits:
        misfits.append(f"see {contract.__module__}.{contract.__qualname__}")
    return (*lacks, *misfits)


def wrong_values(section: Any, contract: Any) -> list[tuple[str, str]]:
    """The settings of a validated ``section`` whose values the pipeline cannot use, and why."""
    wrong = []
    for name, hint in _hints(contract).items():
        value = getattr(section, name)
        try:
            pydantic.TypeAdapter(hint).validate_python(value, strict=True)
        except pydantic.ValidationError as error:
            wrong.append((name, message(error.errors(include_url=False), value)))
    return wrong


@functools.cache
def _members(contract: Any) -> dict[str, inspect.Signature | None]:
    """The members that a contract adds to `Settings`: a method's signature, None for a setting."""
    found: dict[str, inspect.Signature | None] = {}
    if issubclass(contract, pydantic.BaseModel):
        found |= dict.fromkeys(contract.model_fields)
    for kind in reversed(contract.__mro__):
        if kind in Settings.__mro__ or kind.__module__ in ("typing", "typing_extensions", "abc"):
            continue
        for name, value in vars(kind).items():
            if name.startswith("_") or hasattr(Settings, name):
                continue
            if isinstance(value, property):
                found[name] = None
            elif inspect.isfunction(value):
                found[name] = inspect.signature(value)
    return found


@functools.cache
def _hints(contract: Any) -> dict[str, Any]:
    """The types of a protocol's settings; those of a settings class are validated already."""
    found: dict[str, Any] = {}
    for kind in contract.__mro__:
        for name, value in vars(kind).items():
            if name in _members(contract) and isinstance(value, property):
                hints = typing.get_type_hints(value.fget, include_extras=True)
                found.setdefault(name, hints.get("return", Any))
    return found


def _misfit(kind: type, name: str, asked: inspect.Signature) -> list[str]:
    """Why a method cannot be called as the contract says, if it cannot."""
    value = getattr(kind, name)
    call = _call(name, asked)
    if name == "build" and {"build", "builder"} <= vars(kind).keys():
        return [
            f"its class {kind.__name__} has a builder and a method build: leave one of them out"
        ]
    if name == "build" and issubclass(kind, Component) and _is_by_builder(kind):
        if not isinstance(getattr(kind, "builder", None), str):
            return [f"its class {kind.__name__} has neither a builder nor a method {call}"]
        try:
            check_path(kind.builder)
        except PluginError as error:
            return [f"the builder of its class {kind.__name__} is not there: {error}"]
    if not callable(value):
        return [f"its '{name}' is no method; expected {call}"]
    positional, named = _arguments(asked)
    bound = isinstance(inspect.getattr_static(kind, name), classmethod | staticmethod)
    first = [] if bound else [None]
    try:
        inspect.signature(value).bind(*first, *positional, **dict.fromkeys(named))
    except ValueError:  # it has no signature that Python could tell
        return []
    except TypeError as error:
        return [f"its method '{name}' cannot be called as {call}: {error}"]
    return []


def _is_by_builder(kind: type[Component]) -> bool:
    """Whether ``build`` is that of a base which leaves it to a subclass to name a builder."""
    owner = next(base for base in kind.__mro__ if "build" in vars(base))
    return "builder" in vars(owner).get("__annotations__", {})


def _arguments(asked: inspect.Signature) -> tuple[list[str], list[str]]:
    parameters = list(asked.parameters.values())[1:]
    return (
        [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)],
        [p.name for p in parameters if p.kind is p.KEYWORD_ONLY],
    )


def _call(name: str, asked: inspect.Signature) -> str:
    positional, named = _arguments(asked)
    return f"{name}({', '.join([*positional, *(f'{key}=...' for key in named)])})"
