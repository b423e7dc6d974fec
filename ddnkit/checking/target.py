"""What `ddnkit check TARGET` names: a registered node, or a class in a Python file."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType

from .. import registry
from ..errors import InputError, PluginError, nearest_choice
from ..importing import describe_error, import_apart, is_subclass
from ..node import DeclarativeNode

#: How the names of modules begin that were imported by path.
TARGET = "_ddnkit_target_"


def load_target(target: str) -> DeclarativeNode:
    """The node that ``target`` names, made without arguments.

    Args:
        target: a name in ``ddnkit.nodes``, ``path/to/file.py:ClassName``, or ``path/to/file.py``
            where the file has one node.

    Raises:
        InputError: there is no such node or file, or it cannot be made.
    """
    path, _, class_name = target.partition(":")
    kind = (
        _class_in_file(Path(path), class_name)
        if path.endswith(".py")
        else _registered_class(target)
    )
    try:
        return kind()
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's constructor may raise anything
        raise InputError(
            f"{target}: {kind.__name__}() could not be made without arguments "
            f"({describe_error(error)}); give its parameters defaults"
        ) from error


def _registered_class(name: str) -> type[DeclarativeNode]:
    names = registry.names("nodes")
    if name not in names:
        hint = nearest_choice(name, names)
        raise InputError(f"no node '{name}'.{hint} A node in a file: path/to/file.py:ClassName")
    kind: type[DeclarativeNode] = registry.get("nodes", name)
    return kind


def _class_in_file(path: Path, class_name: str) -> type[DeclarativeNode]:
    if not path.is_file():
        raise InputError(f"no file {path}")
    module = _import(path)
    nodes = {
        name: value
        for name, value in vars(module).items()
        if is_subclass(value, DeclarativeNode)
        and value is not DeclarativeNode
        and value.__module__ == module.__name__
    }
    if class_name in nodes:
        return nodes[class_name]
    if class_name:
        what = (
            f"'{class_name}' exists but is not a ddnkit.DeclarativeNode"
            if hasattr(module, class_name)
            else f"no class '{class_name}'"
        )
        raise InputError(f"{path}: {what}.{nearest_choice(class_name, nodes)}")
    if len(nodes) == 1:
        return next(iter(nodes.values()))
    found = ", ".join(f"{path}:{name}" for name in nodes) or "none"
    raise InputError(f"{path}: name one node as {path}:ClassName; found {found}")


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
