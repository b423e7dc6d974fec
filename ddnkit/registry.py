"""Plugins by group and name, read from entry points: the only place that knows about them.

A plugin is any installed distribution with an entry point in one of the groups below; ddnkit's own
are found in the same way. Finding names costs no import. A plugin is imported and validated when it
is first asked for; one that fails is named in `failures` and set aside, and the rest works.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .errors import PluginError, nearest_choice

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
        "benches": "ddnkit.bench.contract:Bench",
    }
)


@dataclass(frozen=True)
class Plugin:
    """Where a plugin comes from: its group, name, target (``module:object``) and distribution."""

    group: str
    name: str
    target: str
    distribution: str

    def __str__(self) -> str:
        return f"{self.name} (ddnkit.{self.group}, {self.target}, from {self.distribution})"


@dataclass
class _State:
    found: dict[str, dict[str, tuple[Plugin, Any]]] | None = None
    loaded: dict[tuple[str, str], Any] = field(default_factory=dict)
    failed: dict[Plugin, str] = field(default_factory=dict)


_state = _State()


def names(group: str) -> list[str]:
    """The names registered in ``group``, sorted; nothing is imported."""
    return sorted(_group(group))


def plugins(group: str) -> list[Plugin]:
    """The plugins of ``group``, sorted by name; nothing is imported."""
    return [_group(group)[name][0] for name in names(group)]


def get(group: str, name: str) -> Any:
    """The class registered as ``name`` in ``group``.

    Raises:
        PluginError: there is no such group or name (the nearest is named), or the plugin fails to
            import, or it is not what its group asks for.
    """
    members = _group(group)
    if (group, name) in _state.loaded:
        return _state.loaded[group, name]
    if name not in members:
        raise PluginError(f"no '{name}' among ddnkit.{group}.{nearest_choice(name, members)}")
    plugin, entry_point = members[name]
    try:
        value = entry_point.load()
        _validate(plugin, value)
    except PluginError as error:
        _state.failed[plugin] = str(error)
        raise
    except (Exception, SystemExit) as error:  # a stranger's import may raise anything
        reason = f"{type(error).__name__}: {error}"
        _state.failed[plugin] = reason
        raise PluginError(f"plugin {plugin} failed to import: {reason}") from error
    _state.loaded[group, name] = value
    return value


def register(group: str, name: str, value: Any) -> Any:
    """Register ``value`` under ``name`` for this process, as an entry point would; returns it.

    Raises:
        PluginError: ``value`` is not what the group asks for, or the name is taken by another.
    """
    members = _group(group)
    if name in members and _state.loaded.get((group, name)) is not value:
        raise PluginError(f"ddnkit.{group} has a '{name}' already: {members[name][0]}")
    module = getattr(value, "__module__", "?")
    plugin = Plugin(group, name, f"{module}:{getattr(value, '__qualname__', value)}", "register()")
    _validate(plugin, value)
    members[name] = (plugin, None)
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


def check_foreign() -> dict[Plugin, str]:
    """Import every plugin that ddnkit does not ship; returns those that were set aside.

    The shipped ones are covered by the project's own tests, and most import torch: `ddnkit list`
    leaves them alone so that it answers at once.
    """
    for group in GROUPS:
        for plugin in plugins(group):
            if plugin.distribution.split(" ")[0] not in ("ddnkit", "register()"):
                try:
                    get(group, plugin.name)
                except PluginError:
                    continue
    return failures()


def _group(group: str) -> dict[str, tuple[Plugin, Any]]:
    if group not in GROUPS:
        raise PluginError(f"no plugin group '{group}'.{nearest_choice(group, GROUPS)}")
    if _state.found is None:
        _state.found = _discover()
    return _state.found[group]


def _discover() -> dict[str, dict[str, tuple[Plugin, Any]]]:
    import entrypoints  # here: only the commands that ask for plugins pay for the scan

    found: dict[str, dict[str, tuple[Plugin, Any]]] = {group: {} for group in GROUPS}
    for config, distro in entrypoints.iter_files_distros():
        distribution = f"{distro.name} {distro.version}" if distro else "an unnamed distribution"
        for group, members in found.items():
            section = f"ddnkit.{group}"
            for name, target in config[section].items() if section in config else ():
                plugin = Plugin(group, name, target, distribution)
                if name in members:
                    _state.failed[plugin] = f"the name is taken by {members[name][0]}"
                    continue
                try:
                    entry_point = entrypoints.EntryPoint.from_string(target, name, distro)
                except entrypoints.BadEntryPoint as error:
                    _state.failed[plugin] = str(error)
                    continue
                members[name] = (plugin, entry_point)
    return found


def _validate(plugin: Plugin, value: Any) -> None:
    import importlib

    module, _, attribute = GROUPS[plugin.group].partition(":")
    base = getattr(importlib.import_module(module), attribute)
    if not (isinstance(value, type) and issubclass(value, base)):
        raise PluginError(
            f"plugin {plugin} is not a subclass of ddnkit.{attribute}, "
            f"which the group ddnkit.{plugin.group} asks for; it is {value!r}"
        )
    missing = sorted(getattr(value, "__abstractmethods__", ()))
    if missing:
        raise PluginError(f"plugin {plugin} leaves abstract: {', '.join(missing)}")
