"""What `ddnkit check TARGET` names: a registered node or manifold, or one in a Python file or module."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import registry
from ..errors import InputError, PluginError, nearest_choice
from ..importing import describe_error, import_apart, import_object, is_subclass
from ..manifold import Manifold
from ..node import DeclarativeNode

#: How the names of modules begin that were imported by path.
TARGET = "_ddnkit_target_"
_MANIFOLD = "manifold:"
_KINDS = (DeclarativeNode, Manifold)


def load_target(target: str) -> DeclarativeNode:
    """The node that ``target`` names, made without arguments.

    Args:
        target: a name in ``ddnkit.nodes``, ``path/to/file.py:ClassName``, ``package.module:ClassName``, or
            ``path/to/file.py`` where the file has one node.

    Raises:
        InputError: there is no such node or file, or it cannot be made.
    """
    found = load(target)
    if not isinstance(found, DeclarativeNode):
        raise InputError(f"{target}: {found!r} is not a ddnkit.DeclarativeNode")
    return found


def load(target: str) -> DeclarativeNode | Manifold:
    """The node or the manifold that ``target`` names: as in `load_target`, or ``manifold:NAME``.

    A name in a file or a module may also be that of an object, made there with arguments of its own.

    Raises:
        InputError: there is nothing of that name, or it cannot be made.
    """
    path, _, name = target.partition(":")
    if target.startswith(_MANIFOLD):
        found: Any = _registered("manifolds", target.removeprefix(_MANIFOLD))
    elif path.endswith(".py"):
        found = _in_file(Path(path), name)
    elif name and target not in registry.names("nodes"):
        found = _in_module(target)
    else:
        found = _registered("nodes", target)
    return found if isinstance(found, _KINDS) else _made(target, found)


def _made(target: str, kind: type) -> Any:
    try:
        return kind()
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's constructor may raise anything
        raise InputError(
            f"{target}: {kind.__name__}() could not be made without arguments "
            f"({describe_error(error)}); give its parameters defaults, or name an object made of it"
        ) from error


def _registered(group: str, name: str) -> Any:
    names = registry.names(group)
    if name not in names:
        kind = group.removesuffix("s")
        hint = nearest_choice(name, names)
        raise InputError(f"no {kind} '{name}'.{hint} A {kind} in a file: path/to/file.py:ClassName")
    return registry.get(group, name)


def _in_module(target: str) -> Any:
    try:
        found = import_apart(lambda: import_object(target), undo=False)[0]
    except PluginError as error:
        names = registry.names("nodes")
        hint = nearest_choice(target, names)
        raise InputError(
            f"no node '{target}'.{hint} As package.module:ClassName: {error}"
        ) from error
    if not _is_target(found):
        raise InputError(f"{target}: {_WHAT}")
    return found


_WHAT = "exists but is not a ddnkit.DeclarativeNode or a ddnkit.Manifold"


def _is_target(value: Any) -> bool:
    return isinstance(value, _KINDS) or any(is_subclass(value, kind) for kind in _KINDS)


def _in_file(path: Path, name: str) -> Any:
    """The class or object of that name; without one the only node of the file, or else its only manifold."""
    if not path.is_file():
        raise InputError(f"no file {path}")
    module = _import(path)
    found = {key: value for key, value in vars(module).items() if _is_target(value)}
    if name in found and found[name] not in _KINDS:
        return found[name]
    own = {
        key: value
        for key, value in found.items()
        if isinstance(value, type) and value.__module__ == module.__name__
    }
    if name:
        what = f"'{name}' {_WHAT}" if hasattr(module, name) else f"no class '{name}'"
        raise InputError(f"{path}: {what}.{nearest_choice(name, _named(found))}")
    for kind in _KINDS:
        of_kind = [value for value in own.values() if is_subclass(value, kind)]
        if len(of_kind) == 1:
            return of_kind[0]
        if of_kind:
            break
    told = ", ".join(f"{path}:{key}" for key in own) or "none"
    raise InputError(f"{path}: name one node as {path}:ClassName; found {told}")


def _named(found: dict[str, Any]) -> list[str]:
    return [name for name, value in found.items() if value not in _KINDS]


def _import(path: Path) -> ModuleType:
    name = f"{TARGET}{path.stem}"
    file = str(path.absolute())
    loader = SourceFileLoader(name, file)
    module = module_from_spec(ModuleSpec(name, loader, origin=file))
    module.__file__ = file
    sys.modules[name] = module
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # as `python file.py` would, so that it may import its neighbours
    try:
        import_apart(lambda: loader.exec_module(module), undo=False)
    except PluginError as error:
        raise InputError(f"{path} failed to import: {error}") from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
    return module
