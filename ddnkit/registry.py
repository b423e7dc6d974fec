"""Plugins by group and name, read from entry points: the only place that knows about them.

A plugin is any installed distribution with an entry point in one of the groups below; ddnkit's own
are found in the same way. Finding names costs no import. A plugin is imported and validated when it
is first asked for; one that fails is named in `failures` and set aside, and the rest works.

A name of ddnkit's own is always its own. A foreign plugin of the same name, and each of several
foreign ones that share a name, is known as ``DISTRIBUTION:NAME`` instead.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from . import installed
from .errors import PluginError, PluginWarning, nearest_choice, plain
from .importing import describe_error, import_apart, import_object, is_subclass
from .installed import Distribution

#: What each group's members must be; the base class is named, not imported, to stay free of torch.
GROUPS = MappingProxyType(
    {
        "nodes": "ddnkit.node:DeclarativeNode",
        "manifolds": "ddnkit.manifold:Manifold",
        "solvers": "ddnkit.solver:Solver",
        "backwards": "ddnkit.backward.form:BackwardForm",
        "pipelines": "ddnkit.recipe.pipeline:Pipeline",
        "datasets": "ddnkit.recipe.settings:Settings",
        "backbones": "ddnkit.recipe.settings:Settings",
        "heads": "ddnkit.recipe.settings:Settings",
        "losses": "ddnkit.recipe.settings:Settings",
        "optimizers": "ddnkit.recipe.settings:Settings",
        "metrics": "ddnkit.recipe.settings:Settings",
        "papers": "ddnkit.recipe.pipeline:Paper",
        "benches": "ddnkit.bench.contract:Bench",
    }
)
#: Attributes of the class that a group's base only declares, with their type.
_ATTRIBUTES: dict[str, dict[str, type]] = {
    "solvers": {"name": str},
    "backwards": {"name": str},
    "pipelines": {"columns": tuple},
    "papers": {"title": str, "former_keys": Mapping},
    "benches": {"name": str},
}

_OWN = "ddnkit"
#: A name is typed on a command line and in a recipe, after ``GROUP/`` and ``DISTRIBUTION:``.
_NAME = re.compile(r"\w[\w.+-]{0,99}")


@dataclass(frozen=True)
class Plugin:
    """Where a plugin comes from: its group, name, target (``module:object``) and distribution.

    ``built_in``: it is ddnkit's own.
    """

    group: str
    name: str
    target: str
    distribution: str
    built_in: bool = False

    def __str__(self) -> str:
        return f"{self.name} (ddnkit.{self.group}, {self.target}, from {self.distribution})"


def _warn(text: str) -> None:
    warnings.warn(text, PluginWarning, stacklevel=4)


@dataclass
class _State:
    found: dict[str, dict[str, tuple[Plugin, Any]]] | None = None
    loaded: dict[tuple[str, str], Any] = field(default_factory=dict)
    failed: dict[Plugin, str] = field(default_factory=dict)
    refused: dict[tuple[str, str], str] = field(default_factory=dict)
    distributions: dict[str, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    renamed: dict[tuple[str, str], list[Plugin]] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    tell: Callable[[str], None] = _warn


_state = _State()


def find() -> None:
    """Look for plugins, if that was not done yet, and see that others can look for theirs.

    torch, pydantic and more look for extensions of their own in every installed package, by Python's
    own reader of entry points, and fail to load where one cannot be read. It is passed over then.
    """
    _plugins_by_group()


def names(group: str) -> list[str]:
    """The names registered in ``group``, sorted; nothing is imported."""
    return sorted(_group(group))


def plugins(group: str) -> list[Plugin]:
    """The plugins of ``group``, sorted by name; nothing is imported."""
    return [_group(group)[name][0] for name in names(group)]


def plugin(group: str, name: str) -> Plugin:
    """Where the plugin ``name`` of ``group`` comes from; nothing is imported.

    Raises:
        PluginError: there is none of that name; the nearest is named.
    """
    members = _group(group)
    if name in members:
        return members[name][0]
    rivals = _state.renamed.get((group, name))
    if rivals:
        which = " or ".join(f"'{p.name}' (from {p.distribution})" for p in rivals)
        raise PluginError(f"several packages bring '{name}' to ddnkit.{group}; write {which}")
    near = nearest_choice(plain(name, 100), members)
    raise PluginError(f"no '{plain(name, 100)}' among ddnkit.{group}.{near}")


def get(group: str, name: str) -> Any:
    """The class registered as ``name`` in ``group``.

    Raises:
        PluginError: there is no such group or name (the nearest is named), or the plugin fails to
            import, or it is not what its group asks for.
    """
    chosen = plugin(group, name)
    for rival in _state.renamed.get((group, name), ()):
        tell(
            f"'{name}' of ddnkit.{group} is ddnkit's own; that of {rival.distribution} "
            f"({rival.target}) is '{rival.name}' here"
        )
    key = (group, name)
    if key in _state.loaded:
        return _state.loaded[key]
    if key in _state.refused:  # once is enough: an import may print, or take long
        raise PluginError(_state.refused[key])
    entry_point = _group(group)[name][1]
    try:
        value = (
            _load_own(chosen, entry_point)
            if chosen.built_in
            else _load_foreign(chosen, entry_point)
        )
    except PluginError as error:
        reason = str(error).removeprefix(f"plugin {chosen} ").removeprefix("failed to import: ")
        _state.failed[chosen], _state.refused[key] = reason, str(error)
        raise
    _state.loaded[key] = value
    return value


def make(group: str, name: str) -> Any:
    """An object of the class registered as ``name`` in ``group``, made without arguments.

    Raises:
        PluginError: as `get`, or its constructor fails.
    """
    kind = get(group, name)
    chosen = plugin(group, name)
    try:
        return kind()
    except PluginError:
        raise
    except Exception as error:
        if chosen.built_in:
            raise
        raise PluginError(
            f"plugin {chosen} could not be made without arguments: {describe_error(error)}"
        ) from error


def working(group: str) -> dict[str, Any]:
    """An object of each class of ``group``, by name, sorted; one that fails is told and left out."""
    found = {}
    for name in names(group):
        try:
            found[name] = make(group, name)
        except PluginError as error:
            tell(f"{error}; it is ignored")
    return found


def register(group: str, name: str, value: Any) -> Any:
    """Register ``value`` under ``name`` for this process, as an entry point would; returns it.

    Raises:
        PluginError: ``value`` is not what the group asks for, or the name is taken by another.
    """
    members = _group(group)
    if name in members and _state.loaded.get((group, name)) is not value:
        raise PluginError(f"ddnkit.{group} has a '{name}' already: {members[name][0]}")
    module = getattr(value, "__module__", "?")
    made = Plugin(group, name, f"{module}:{getattr(value, '__qualname__', value)}", "register()")
    _validate(made, value)
    members[name] = (made, None)
    _state.loaded[group, name] = value
    return value


def is_installed(kind: type) -> bool:
    """Whether ``kind`` or a base of it was loaded from an entry point, as in any other process."""
    return any(
        value in kind.__mro__ and _group(group)[name][1] is not None
        for (group, name), value in _state.loaded.items()
    )


def failures() -> dict[Plugin, str]:
    """The plugins set aside so far, each with the reason."""
    if _state.found is None:
        _group("nodes")
    return dict(_state.failed)


def set_aside() -> dict[str, str]:
    """The distributions whose entry points cannot be read, each with the reason."""
    _group("nodes")
    return dict(_state.distributions)


def check_foreign() -> dict[Plugin, str]:
    """Import every plugin that ddnkit does not ship; returns those that were set aside.

    The shipped ones are covered by the project's own tests, and most import torch: `ddnkit list`
    leaves them alone so that it answers at once.
    """
    for group in GROUPS:
        for found in plugins(group):
            if not found.built_in and _group(group)[found.name][1] is not None:
                with contextlib.suppress(PluginError):
                    get(group, found.name)
    return failures()


def own_text(value: Any) -> str:
    """The text that a class has itself, not that of a base; empty where it has none."""
    import inspect

    try:
        own = vars(value).get("__doc__")
        return inspect.cleandoc(own) if isinstance(own, str) else ""
    except Exception:  # a stranger's metaclass may do anything
        return ""


def tell_by(tell: Callable[[str], None]) -> Callable[[str], None]:
    """Have ``tell`` called with each word on plugins that are set aside; returns what was called so far.

    By default it is a `PluginWarning`. A distribution whose entry points cannot be read is told when
    plugins are first looked for, a plugin of a name that is taken where the name is used; each once a
    process.
    """
    previous, _state.tell = _state.tell, tell
    return previous


def tell(text: str) -> None:
    """Say once a process what is wrong with a plugin, where the rest goes on without it."""
    if text not in _state.told:
        _state.told.add(text)
        _state.tell(text)


def _plugins_by_group() -> dict[str, dict[str, tuple[Plugin, Any]]]:
    if _state.found is None:
        _state.found = _discover()
        # Python's reader fails on some of what is set aside here, and on archives without METADATA.
        if _state.distributions or any(map(os.path.isfile, sys.path)):
            installed.read_by_python(_state.unread)
    return _state.found


def _group(group: str) -> dict[str, tuple[Plugin, Any]]:
    if group not in GROUPS:
        raise PluginError(f"no plugin group '{group}'.{nearest_choice(group, GROUPS)}")
    found = _plugins_by_group()
    for distribution, reason in _state.distributions.items():
        tell(f"{distribution} is ignored, with all its plugins: {reason}")
    return found[group]


def _load_own(chosen: Plugin, entry_point: Any) -> Any:
    try:
        value = entry_point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(f"plugin {chosen} failed to import: {describe_error(error)}") from error
    _validate(chosen, value)
    return value


def _load_foreign(chosen: Plugin, entry_point: Any) -> Any:
    _base(chosen.group)  # imports of ours are not kept apart

    def load() -> Any:
        value = entry_point.load()
        try:
            _validate(chosen, value)  # it asks the stranger's class, and its metaclass
        except PluginError as error:
            return error
        return value

    try:
        value, undone = import_apart(load)
    except PluginError as error:
        raise PluginError(f"plugin {chosen} failed to import: {error}") from error
    except KeyboardInterrupt:
        tell(f"the import of plugin {chosen} was interrupted")
        raise
    if undone:
        tell(f"plugin {chosen} changed {', '.join(undone)} on import; it was set back")
    if isinstance(value, PluginError):
        raise value
    return value


# -- what is installed -----------------------------------------------------------------------------


def _discover() -> dict[str, dict[str, tuple[Plugin, Any]]]:
    read: dict[str, list[tuple[Distribution, dict[tuple[str, str], str]]]] = {}
    for distribution in installed.distributions():
        try:
            targets = distribution.targets(GROUPS)
        except Exception as error:  # whatever a stranger's file holds is the stranger's trouble
            what = describe_error(error).replace(repr(distribution.file), "the file")
            reason = f"{distribution.file}: {what}"
            _state.distributions[str(distribution)] = reason
            _state.unread.append(distribution.file)
        else:
            read.setdefault(distribution.key, []).append((distribution, targets))
    # Of two with one name the earlier on the path is what Python imports.
    chosen = [copies[0] for key, copies in read.items() if key != _OWN]
    members: dict[tuple[str, str], list[tuple[Plugin, Any]]] = {}
    for own, (distribution, targets) in [
        *((True, copy) for copy in _ours(read.get(_OWN, []))),
        *((False, other) for other in chosen),
    ]:
        for (group, name), target in targets.items():
            found = Plugin(group, plain(name, 100), plain(target, 200), str(distribution), own)
            entry_point = _entry_point(found, name, target)
            if entry_point is not None:
                members.setdefault((group, name), []).append((found, entry_point))
    result: dict[str, dict[str, tuple[Plugin, Any]]] = {group: {} for group in GROUPS}
    for (group, name), rivals in members.items():
        if rivals[0][0].built_in or len(rivals) == 1:
            result[group][name] = rivals.pop(0)
        for found, entry_point in rivals:
            _rename(result[group], found, entry_point)
    return result


def _ours(
    copies: list[tuple[Distribution, dict[tuple[str, str], str]]],
) -> list[tuple[Distribution, dict[tuple[str, str], str]]]:
    """The one of several distributions called ddnkit that is this one; the others are set aside."""
    from . import __version__

    if not copies:
        return []
    ours = max(copies, key=lambda copy: (copy[0].version == __version__, len(copy[1])))
    for distribution, targets in copies:
        if targets != ours[1]:
            _state.distributions[f"{distribution} in {os.path.dirname(distribution.file)}"] = (
                f"it is called as ddnkit itself is, which is that of {ours[0].file}"
            )
    return [ours]


def _entry_point(found: Plugin, name: str, target: str) -> Any:
    """What loads a plugin; None after noting that it has no name or target that can be used."""
    import entrypoints

    if not _NAME.fullmatch(name):
        _state.failed[found] = "its name is not of letters, digits, _, -, + and . alone"
        return None
    try:
        return entrypoints.EntryPoint.from_string(target, name)
    except entrypoints.BadEntryPoint as error:
        _state.failed[found] = plain(str(error), 200)
        return None


def _rename(members: dict[str, tuple[Plugin, Any]], found: Plugin, entry_point: Any) -> None:
    """Have a plugin whose name is another's known under that of its distribution too."""
    distribution = found.distribution.partition(" ")[0]
    other = Plugin(found.group, f"{distribution}:{found.name}", found.target, found.distribution)
    members[other.name] = (other, entry_point)
    _state.renamed.setdefault((found.group, found.name), []).append(other)
    taken = members.get(found.name)
    whose = f"the name is taken by {taken[0]}" if taken else "another package has that name too"
    _state.failed[found] = f"{whose}; it is '{other.name}' here"


def _base(group: str) -> type:
    base: type = import_object(GROUPS[group])
    return base


def _validate(plugin: Plugin, value: Any) -> None:
    base = _base(plugin.group)
    if not is_subclass(value, base):
        raise PluginError(
            f"plugin {plugin} is not a subclass of ddnkit.{base.__name__}, "
            f"which the group ddnkit.{plugin.group} asks for; it is {_text_of(value)}"
        )
    missing = sorted(getattr(value, "__abstractmethods__", ()))
    if missing:
        raise PluginError(f"plugin {plugin} does not implement: {', '.join(missing)}")
    for name, kind in _ATTRIBUTES.get(plugin.group, {}).items():
        given = getattr(value, name, None)
        if not isinstance(given, kind):
            was = "it is not there" if given is None else f"it is {_text_of(given)}"
            raise PluginError(
                f"plugin {plugin} needs an attribute '{name}' of type {kind.__name__}; {was}"
            )


def _text_of(value: Any) -> str:
    try:
        return plain(repr(value), 100)
    except Exception:
        return "an object that cannot be shown"
