"""The concrete settings of one variant: its components found by name, then one validation.

A pipeline declares sections of unknown type with `component`. Once the names are known, a model
with the concrete types is made of it, so that all errors of a variant come from one validation.
"""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any, TypeVar, cast

import pydantic
from pydantic_core import PydanticCustomError

from .. import registry
from ..errors import DdnkitError, InputError, PluginError, nearest_choice
from ..importing import describe_error, is_subclass
from .contract import contract_of, missing_members, wrong_values
from .pipeline import Paper, Pipeline
from .problems import Problems, meant_hint, message
from .settings import Doubt, Settings
from .source import Document, Key, Mark, cut, dotted_key, quote

S = TypeVar("S", bound=Settings)

_UNRESOLVED = "ddnkit_unresolved"


def _fail(_: Any) -> Any:
    raise PydanticCustomError(_UNRESOLVED, "its component was not found")


# A section without its class has been reported already; failing it keeps the pipeline's own
# validators, which may count on it, from running.
_Unresolved = Annotated[Any, pydantic.BeforeValidator(_fail)]


@dataclass(frozen=True)
class ComponentSection:
    """A section of a pipeline that a plugin fills; ``contract``: the type that the pipeline asks for."""

    group: str
    default: str | None
    optional: bool
    contract: Any = Settings


def components(pipeline: type[Pipeline]) -> dict[str, ComponentSection]:
    """The sections of ``pipeline`` declared with `component`, by field name."""
    found = {}
    for name, info in pipeline.model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and "ddnkit_group" in extra:
            optional = type(None) in typing.get_args(info.annotation)
            default = extra["ddnkit_default"]
            found[name] = ComponentSection(
                str(extra["ddnkit_group"]),
                str(default) if default else None,
                optional,
                contract_of(info.annotation),
            )
    return found


@dataclass
class ValidVariant:
    """A validated variant: the pipeline; its settings as plain values; where they were given."""

    pipeline: Pipeline
    settings: dict[str, Any]
    marks: dict[Key, Mark]

    def doubts(self) -> list[Doubt]:
        """Those of the pipeline and of each section in it, by keys from the top."""
        return _doubts(self.pipeline, "")

    def has(self, path: Key) -> bool:
        """Whether the variant has a setting of that path: another component's key is left out."""
        try:
            value_at(self.settings, path)
        except (KeyError, IndexError, TypeError):
            return False
        return True


def _doubts(section: Settings, prefix: str) -> list[Doubt]:
    found = [replace(doubt, key=f"{prefix}{doubt.key}") for doubt in section.doubts()]
    for name, info in type(section).model_fields.items():
        inner = getattr(section, name)
        if isinstance(inner, Settings):
            found += _doubts(inner, f"{prefix}{info.alias or name}.")
    return found


@dataclass
class VariantSchema:
    """Validates one variant's document against ``pipeline``.

    Attributes:
        name: the pipeline's name.
        current: for each section, the component names of all variants; a key that one of them knows
            is left out, silently, for a variant that does not.
        written: the same for the file without its overrides; it excuses the file's keys alone.
        foreign: keys of a component that an option replaced by one that the file does not name, and
            that has no such key; with its name.
    """

    pipeline: type[Pipeline]
    name: str
    document: Document
    current: dict[str, set[str]]
    written: dict[str, set[str]]
    problems: Problems
    names: dict[str, str] = field(default_factory=dict)
    preset: dict[Key, str] = field(default_factory=dict)  # whose preset a key's value is
    foreign: dict[Key, str] = field(default_factory=dict)

    def validate(self, reserved: set[str]) -> ValidVariant | None:
        """The variant, or None after noting what is wrong with it."""
        data = {key: value for key, value in self.document.value.items() if key not in reserved}
        types: dict[str, Any] = {}
        for section, component in components(self.pipeline).items():
            value = data.get(section, {} if component.default else None)
            absent = section not in data and component.default is None
            if absent or (value is None and component.optional):
                types[section] = Settings | None if component.optional else Settings
                continue
            found = self.component(section, component, value)
            types[section], data[section] = found if found else (_Unresolved, None)
        model = self.concrete(types)
        data = self.with_presets(data, model)
        try:
            instance = model.model_validate(data)
        except pydantic.ValidationError as error:
            self.report(error, data, model, reserved)
            return None
        dumped = instance.model_dump(by_alias=True)
        if self.note_lax_readings(data, dumped, ()) or self.wrong_members(instance):
            return None
        return ValidVariant(instance, self.settings(instance), self.document.marks)

    def component(
        self, section: str, component: ComponentSection, value: Any
    ) -> tuple[type[Settings], dict[str, Any]] | None:
        """The class that the section's ``name`` chooses and the keys it takes."""
        given = {"name": value} if isinstance(value, str) else value
        if not isinstance(given, dict):
            choices = ", ".join(registry.names(component.group))
            text = f"expected a name ({choices}) or a mapping with one, was given {quote(value)}"
            self.problems.add(self.document.mark((section,)), (section,), text)
            return None
        path: Key = (section, "name")
        mark = self.document.mark(path)
        name = given.get("name", component.default)
        if not isinstance(name, str):
            choices = ", ".join(registry.names(component.group))
            was = f", was given {quote(name)}" if "name" in given else ""
            self.problems.add(mark, path, f"expected one of: {choices}{was}")
            return None
        try:
            chosen = registry.get(component.group, name)
        except PluginError as error:
            self.problems.add(mark, path, str(error))
            return None
        lacks = missing_members(chosen, component.contract)
        if lacks:
            whose = registry.plugin(component.group, name)
            text = f"plugin {whose} does not fit the pipeline {self.name}: {'; '.join(lacks)}"
            self.problems.add(mark, path, text)
            return None
        self.names[section] = name
        kept = {
            key: content
            for key, content in given.items()
            if key != "name" and not self.left_out(section, component, chosen, key)
        }
        return chosen, kept

    def left_out(
        self, section: str, component: ComponentSection, chosen: type[Settings], key: str
    ) -> bool:
        """Whether ``key`` is another variant's: unknown to ``chosen``, known to a candidate."""
        if key in keys(chosen) or chosen.model_config.get("extra") == "allow":
            return False
        others = self.current.get(section, set())
        replaced = self.names[section] not in self.written.get(section, set())
        # An option is meant for what runs, not for a component that another option replaced.
        if self.document.mark((section, key)).order == 0:
            others = others | self.written.get(section, set())
        for name in others:
            try:
                if key in keys(registry.get(component.group, name)):
                    if replaced and name not in self.current.get(section, set()):
                        self.foreign[section, key] = self.names[section]
                    return True
            except PluginError:
                return True  # reported where it is chosen; the key may be its own
        return False

    def with_presets(self, data: dict[str, Any], model: type[pydantic.BaseModel]) -> dict[str, Any]:
        """``data`` and the presets, where ``model`` knows them and nothing is given.

        Those of the paper go before those of the pipeline.
        """
        named = {section: {"name": name, **data[section]} for section, name in self.names.items()}
        given = {**data, **named}
        presets = {
            f"the paper {self.names.get('paper')}": partial(self.paper_presets, given, model),
            f"the pipeline {self.name}": partial(self.pipeline.presets, given),
        }
        for whose, ask in presets.items():
            try:
                values = ask()
            except DdnkitError:
                raise
            except Exception as error:
                raise PluginError(f"presets of {whose}: {describe_error(error)}") from error
            if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
                text = "expected a dict of dotted keys such as {'head.delta': 1e-3}, was given "
                raise PluginError(f"presets of {whose}: {text}{cut(repr(values))}")
            for dotted, value in values.items():
                path = tuple(dotted.split("."))
                if path[-1] not in _keys_at(model, path[:-1]):
                    self.refuse_unknown_preset(path, whose)
                    continue
                filled = _fill(data, path, value)
                if filled is not data:
                    self.preset[path] = whose
                    data = filled
        return data

    def refuse_unknown_preset(self, path: Key, whose: str) -> None:
        """Refuse a preset that no plugin of its section takes; where some do, it is for them alone."""
        section = components(self.pipeline).get(str(path[0]))
        if section is None or len(path) < 2 or path[-1] == "name":
            return
        group = section.group
        choices: set[str] = set()
        for name in registry.names(group):
            with contextlib.suppress(PluginError):  # told where it is chosen
                choices |= set(_keys_at(registry.get(group, name), path[1:-1]))
        if path[-1] not in choices:
            near = nearest_choice(str(path[-1]), choices)
            raise PluginError(
                f"presets of {whose}: {dotted_key(path)}: nothing in ddnkit.{group} has such a key.{near}"
            )

    def paper_presets(
        self, given: dict[str, Any], model: type[pydantic.BaseModel]
    ) -> dict[str, Any]:
        """The presets of the paper that is named, if its section is valid."""
        kind = model.model_fields["paper"].annotation
        if not is_subclass(kind, Paper):
            return {}
        section = {key: value for key, value in given["paper"].items() if key != "name"}
        try:
            return cast("type[Paper]", kind).model_validate(section).presets(given)
        except pydantic.ValidationError:  # it is told where the whole variant is validated
            return {}

    def concrete(self, types: dict[str, Any]) -> type[Pipeline]:
        """The pipeline with ``types`` for its sections."""
        fields: dict[str, Any] = {}
        for section, concrete in types.items():
            info = self.pipeline.model_fields[section]
            fields[section] = (
                concrete,
                pydantic.Field(
                    default=info.default if concrete == Settings | None else ...,
                    description=info.description,
                    json_schema_extra=info.json_schema_extra,
                ),
            )
        model = pydantic.create_model(
            self.pipeline.__name__,
            __base__=self.pipeline,
            __module__=self.pipeline.__module__,
            __doc__=self.pipeline.__doc__,
            **fields,
        )
        return cast("type[Pipeline]", model)

    def settings(self, instance: Pipeline) -> dict[str, Any]:
        """All settings as plain values, each component's ``name`` first."""
        plain = instance.model_dump(mode="json", by_alias=True)
        for section, name in self.names.items():
            plain[section] = {"name": name, **plain[section]}
        return {"pipeline": self.name, **plain}

    def report(
        self,
        error: pydantic.ValidationError,
        data: dict[str, Any],
        model: type[pydantic.BaseModel],
        reserved: set[str],
    ) -> None:
        """Note pydantic's errors, those of one value together."""
        by_path: dict[Key, list[Any]] = {}
        for item in error.errors(include_url=False):
            if item["type"] != _UNRESOLVED:
                by_path.setdefault(_error_path(item, data), []).append(item)
        for path, items in by_path.items():
            mark = self.document.mark(path)
            kind = items[0]["type"]
            if kind == "extra_forbidden":
                choices = _keys_at(model, path[:-1])
                if len(path) == 1:
                    choices |= reserved
                elif path[0] in self.names:
                    choices |= {"name"} if len(path) == 2 else set()
                self.problems.add_unknown_key(mark, path, choices)
            elif kind == "missing":
                section = components(self.pipeline).get(str(path[0])) if len(path) == 1 else None
                names = ", ".join(registry.names(section.group)) if section else ""
                expected = f"; expected one of: {names}" if section else ""
                self.problems.add(mark, path, f"missing{expected}")
            else:
                text = message(items, value_at(data, path))
                if path in self.preset:
                    text += f" (a preset of {self.preset[path]}, as the key is not given)"
                self.problems.add(mark, path, text)

    def wrong_members(self, instance: Pipeline) -> bool:
        """Note each setting of a component that the pipeline cannot use; whether there was any."""
        wrong = False
        for section, component in components(self.pipeline).items():
            if section in self.names:
                for name, text in wrong_values(getattr(instance, section), component.contract):
                    path: Key = (section, name)
                    self.problems.add(self.document.mark(path), path, text)
                    wrong = True
        return wrong

    def note_lax_readings(self, given: Any, taken: Any, path: Key) -> bool:
        """Note each ``true`` taken for 1 and each text for a number or for true; whether any was."""
        expected = "true or false" if isinstance(taken, bool) else "a number"
        if isinstance(given, bool) and isinstance(taken, int | float) and taken is not given:
            text = f"expected {expected}, was given {quote(given)}"
            self.problems.add(self.document.mark(path), path, text)
            return True
        if isinstance(given, str) and isinstance(taken, int | float) and _is_lax(given):
            boolean = isinstance(taken, bool)
            hint = meant_hint(given, boolean=boolean, number=not boolean)
            hint = hint or f"; write {quote(taken)} if that is meant"
            text = f"expected {expected}, was given the text {quote(given)}{hint}"
            self.problems.add(self.document.mark(path), path, text)
            return True
        pairs: list[tuple[Any, Any, Any]] = []
        if isinstance(given, dict) and isinstance(taken, dict):
            pairs = [(key, given[key], taken[key]) for key in given if key in taken]
        elif isinstance(given, list) and isinstance(taken, list | tuple):
            pairs = [(i, *pair) for i, pair in enumerate(zip(given, taken, strict=False))]
        wrong = [self.note_lax_readings(a, b, (*path, key)) for key, a, b in pairs]
        return any(wrong)


def _is_lax(text: str) -> bool:
    """Whether pydantic takes ``text`` for a number or a boolean by itself, without the plugin."""
    if text.strip().lower() in ("yes", "no", "on", "off", "y", "n", "t", "f", "true", "false"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True


def _fill(data: dict[str, Any], path: Key, value: Any) -> dict[str, Any]:
    """``data`` with ``value`` at ``path``; itself where something stands there, or in the way."""
    key, *below = map(str, path)
    if not below:
        return data if key in data else {**data, key: value}
    inner = data.get(key, {})
    filled = _fill(inner, tuple(below), value) if isinstance(inner, dict) else inner
    return data if filled is inner else {**data, key: filled}


def keys(model: type[pydantic.BaseModel]) -> set[str]:
    """The keys that a section of type ``model`` takes."""
    return {info.alias or name for name, info in model.model_fields.items()}


def _error_path(error: Any, data: Any) -> Key:
    """The keys of a pydantic location; the names of union members in it are no keys."""
    path: list[str | int] = []
    location = error["loc"]
    for number, part in enumerate(location):
        items = range(len(data)) if isinstance(data, list) else data
        if isinstance(items, dict | range) and part in items:
            data = data[part]
        elif not (error["type"] == "missing" and number == len(location) - 1):
            continue
        path.append(part)
    return tuple(path)


def value_at(data: Any, path: Key) -> Any:
    """The value at ``path``."""
    for part in path:
        data = data[part]
    return data


def _keys_at(model: type[pydantic.BaseModel], path: Key) -> set[str]:
    """The keys of the section at ``path``; those of all models of a union."""
    models: list[Any] = [model]
    for part in path:
        models = [
            member
            for model in models
            for name, info in model.model_fields.items()
            if part in (info.alias, name)
            for member in _models(info.annotation)
        ]
    return set().union(*(keys(model) for model in models))


def _models(annotation: Any) -> list[type[pydantic.BaseModel]]:
    if is_subclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [model for member in typing.get_args(annotation) for model in _models(member)]


def settings_from(kind: type[S], keywords: Mapping[str, object], base: S | None = None) -> S:
    """Settings of ``kind`` with ``keywords`` as their fields: a class in Python that takes settings whole
    can so be made by keywords as well, which are checked as a recipe's keys are.

    Args:
        base: has the other fields; by default they have their defaults.

    Raises:
        InputError: there is no such field, or it cannot have that value.
    """
    if base is not None and not isinstance(base, kind):
        raise InputError(
            f"expected settings of the class {kind.__module__}.{kind.__name__}, or of one that extends "
            f"it; was given {base!r:.100}"
        )
    if base is not None and not keywords:
        return base
    # Not the defaults of base: a validator may give another where a keyword is given.
    kept = {} if base is None else {name: getattr(base, name) for name in base.model_fields_set}
    data = {**kept, **keywords}
    try:
        return (kind if base is None else type(base)).model_validate(data)
    except pydantic.ValidationError as error:
        raise InputError(f"{kind.__name__}: {_wrong_fields(kind, error, data)}") from error


def _wrong_fields(kind: type[Settings], error: pydantic.ValidationError, data: Any) -> str:
    """All that is wrong with keywords, on one line."""
    wrong: dict[Key, list[Any]] = {}
    for each in error.errors(include_url=False):
        wrong.setdefault(_error_path(each, data), []).append(each)
    texts = []
    for path, errors in wrong.items():
        if errors[0]["type"] == "extra_forbidden":
            choices = _keys_at(kind, path[:-1])
            text = f"there is no such field.{nearest_choice(str(path[-1]), choices)}"
        elif errors[0]["type"] == "missing":
            text = "missing"
        else:
            text = message(errors, value_at(data, path))
        texts.append(f"{dotted_key(path)}: {text}" if path else text)
    return "; ".join(texts)
