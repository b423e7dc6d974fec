"""``ddnkit describe``: what a plugin or recipe is and what it can be told."""

from __future__ import annotations

import inspect
import textwrap
import types
import typing
from typing import Any

import click

from .. import registry
from ..errors import InputError, PluginError, nearest_choice
from ..importing import describe_error, is_subclass
from ..recipe.find import shipped_recipes
from ..recipe.load import load
from ..recipe.pipeline import Pipeline
from ..recipe.schema import components
from ..recipe.settings import Settings
from ..recipe.source import quote

_WIDTH = 110


@click.command()
@click.argument("name")
def describe(name: str) -> None:
    """Describe NAME, a plugin or a shipped recipe, with its settings.

    If several groups have a plugin of that name, write GROUP/NAME, for example heads/nearest_etf.
    """
    group, _, plain = name.rpartition("/")
    known = {*registry.GROUPS, "recipes"}
    if group and group not in known:
        raise InputError(f"no group '{group}'.{nearest_choice(group, known)}")
    found = [
        plugin
        for kind in registry.GROUPS
        if group in ("", kind)
        for plugin in registry.plugins(kind)
        if plugin.name == plain
    ]
    texts = [_describe(plugin) for plugin in found]
    if group in ("", "recipes") and plain in shipped_recipes():
        texts.append(_recipe(plain))
    if not texts:
        names = {
            other
            for kind in registry.GROUPS
            if group in ("", kind)
            for other in registry.names(kind)
        }
        names |= set(shipped_recipes()) if group in ("", "recipes") else set()
        where = f" in {group}" if group else ""
        raise InputError(f"nothing is called '{plain}'{where}.{nearest_choice(plain, names)}")
    click.echo("\n\n".join(texts))


def _describe(plugin: registry.Plugin) -> str:
    try:
        return _plugin(plugin)
    except Exception as error:  # what a stranger's class says of itself may be anything
        if plugin.built_in or isinstance(error, InputError):
            raise
        what = f"plugin {plugin} cannot be described: {describe_error(error)}"
        raise PluginError(what) from error


def _plugin(plugin: registry.Plugin) -> str:
    value = registry.get(plugin.group, plugin.name)
    # Its own text alone: `inspect.getdoc` would fall back on that of the base class.
    doc = registry.own_text(value) or "(no text)"
    lines = [
        f"{plugin.group}/{plugin.name}",
        f"  target: {plugin.target}",
        f"  from: {plugin.distribution}",
        "",
        *(f"  {line}".rstrip() for line in doc.split("\n")),
    ]
    if issubclass(value, Settings):
        rows = _settings(value)
        title = "keys" if rows else "no keys"
    else:
        rows = _parameters(value)
        title = "arguments" if rows else "no arguments"
    lines += ["", f"  {title}:" if rows else f"  {title}", *_table(rows)]
    if plugin.group == "nodes":
        lines += ["", f"  backward forms: {', '.join(sorted(registry.names('backwards')))}"]
        lines += [f"  to check it: ddnkit check {plugin.name}"]
    return "\n".join(lines)


def _recipe(name: str) -> str:
    recipe = load(name)
    lines = [f"recipes/{name}", f"  file: {recipe.path}", ""]
    lines += [f"  {line}".rstrip() for line in recipe.description.split("\n") if line]
    lines += ["", f"  seeds: {', '.join(map(str, recipe.seeds))}", "  variants:"]
    lines += [f"    {variant.name}" for variant in recipe.variants]
    lines += ["", f"  to run it: ddnkit run {name}"]
    return "\n".join(lines)


Row = tuple[str, str, str, str]


def _settings(model: type[Settings]) -> list[Row]:
    filled = components(model) if issubclass(model, Pipeline) else {}
    rows: list[Row] = []
    for field, info in model.model_fields.items():
        part = filled.get(field)
        default = "required" if info.is_required() else _default(info.get_default())
        if part:
            kind, default = f"one of ddnkit.{part.group}", part.default or default
        else:
            kind = _type(info.annotation)
        rows.append((info.alias or field, kind, default, str(info.description or "")))
        if not part:
            rows += [(f"{field}.{row[0]}", *row[1:]) for row in _settings_below(info.annotation)]
    return rows


def _settings_below(annotation: Any) -> list[Row]:
    return _settings(annotation) if is_subclass(annotation, Settings) else []


def _parameters(value: Any) -> list[Row]:
    rows = []
    for parameter in inspect.signature(value).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        kind = "" if parameter.annotation is parameter.empty else _type(parameter.annotation)
        required = parameter.default is parameter.empty
        rows.append(
            (parameter.name, kind, "required" if required else _default(parameter.default), "")
        )
    return rows


def _table(rows: list[Row]) -> list[str]:
    if not rows:
        return []
    table = [("key", "type", "default", ""), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    indent = " " * (4 + sum(widths) + 6)
    lines = []
    for *cells, text in table:
        head = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        # Descriptions are wrapped in their column, however narrow the other columns leave it.
        wrapped = textwrap.wrap(text, max(_WIDTH - len(indent), 40)) or [""]
        lines.append(f"    {head}  {wrapped[0]}".rstrip())
        lines += [indent + more for more in wrapped[1:]]
    return lines


def _type(annotation: Any) -> str:
    if isinstance(annotation, str):
        return annotation
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_type, arguments))
    if annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not arguments:
        return annotation.__name__
    if annotation is ...:
        return "..."
    if isinstance(origin, type):
        return f"{origin.__name__}[{', '.join(map(_type, arguments))}]"
    return str(annotation)


def _default(value: Any) -> str:
    if isinstance(value, Settings):
        return "see below"
    return quote(value) if isinstance(value, str | int | float | list | dict | None) else str(value)
