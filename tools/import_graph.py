"""Which module of ddnkit and its plugins imports which, read from the source, and in what circles.

A name that a package's facade gives (`__init__.pyi`) counts as an import of the module that defines it,
for that is what is loaded.

    python tools/import_graph.py

lists the circles that imports for types alone close (``if TYPE_CHECKING:``), which the contracts of
import-linter do not see. It fails where imports that run make one, where an import for types closes one
and `ALLOWED` does not name it, and where `ALLOWED` names one that closes none.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds ``ddnkit`` and ``plugins``."""

_CONTRACT = "each is in the other's signatures, and a user writes against both"

#: Imports for types that may close a circle: (who imports, what), and why.
ALLOWED: dict[tuple[str, str], str] = {
    ("ddnkit.node", "ddnkit.solver"): _CONTRACT,
    ("ddnkit.problem", "ddnkit.node"): _CONTRACT,
    ("ddnkit.solver", "ddnkit.problem"): _CONTRACT,
    (
        "ddnkit.problem",
        "ddnkit.active_set",
    ): "a problem keeps the constraints that are active at its solution",
    ("ddnkit.problem", "ddnkit.kinks"): "a problem keeps the kinks that are active at its solution",
    ("ddnkit.problem", "ddnkit.selection"): "a problem keeps what selects one of its solutions",
    (
        "ddnkit.implicit.solution_equation",
        "ddnkit.implicit.call",
    ): "a call has its equation, and the equation asks the call for its linear systems",
    ("ddnkit.quadratic.call", "ddnkit.quadratic.node"): "a call reads the data that its node has",
    ("ddnkit.programs.call_programs", "ddnkit.layer"): "programs are made of a layer's settings",
    ("ddnkit.programs.short_call", "ddnkit.layer"): "a short call reads the layer's settings",
    ("ddnkit.programs.short_calls", "ddnkit.layer"): "a layer hands itself to its short calls",
}


class Kind(Enum):
    """When an import is carried out."""

    LOADED = "as the module is loaded"
    TYPES = "by a type checker alone"
    CALLED = "as a function is called"


def code_folders(root: Path) -> list[Path]:
    """The packages: ``ddnkit`` and each folder of ``plugins`` that is one."""
    plugins = (path.parent for path in (root / "plugins").glob("*/__init__.py"))
    return [root / "ddnkit", *sorted(plugins)]


def module_files(root: Path) -> dict[str, Path]:
    """Every module by its dotted name."""
    files = {}
    for folder in code_folders(root):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


@dataclass
class ImportGraph:
    """The imports between the modules of one tree.

    Attributes:
        files: each module's file.
        imports: by kind and module, the modules that it imports, each with the line that does.
    """

    files: Mapping[str, Path]
    imports: dict[Kind, dict[str, dict[str, int]]] = field(init=False)

    def __post_init__(self) -> None:
        self.imports = {kind: defaultdict(dict) for kind in Kind}
        for name, path in self.files.items():
            tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
            for statement, kind in _imports(tree, Kind.LOADED):
                for other in self._targets(statement, name):
                    if other != name:
                        self.imports[kind][name].setdefault(other, statement.lineno)

    def circles(self, kinds: Collection[Kind]) -> list[frozenset[str]]:
        """Sets of modules each of which reaches each other by imports of these kinds, largest first."""
        edges = {
            name: sorted({other for kind in kinds for other in self.imports[kind].get(name, ())})
            for name in self.files
        }
        return sorted(_components(edges), key=lambda names: (-len(names), sorted(names)))

    def inside(self, names: Collection[str], kinds: Collection[Kind]) -> list[str]:
        """The imports between these modules, a line each: file, line, what is imported and when."""
        return [
            f"{name}:{line} imports {other} ({kind.value})"
            for kind in kinds
            for name in sorted(names)
            for other, line in sorted(self.imports[kind].get(name, {}).items())
            if other in names
        ]

    def _targets(self, statement: ast.Import | ast.ImportFrom, importer: str) -> Iterator[str]:
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names if alias.name in self.files)
            return
        source = self._source(statement, importer)
        for alias in statement.names:
            yield from self._defining(source, alias.name)

    def _source(self, statement: ast.ImportFrom, importer: str) -> str:
        if not statement.level:
            return statement.module or ""
        is_package = self.files[importer].name == "__init__.py"
        parts = importer.split(".")
        parts = parts[: len(parts) - statement.level + is_package]
        return ".".join([*parts, statement.module] if statement.module else parts)

    def _defining(self, source: str, name: str) -> Iterator[str]:
        if f"{source}.{name}" in self.files:
            yield f"{source}.{name}"
        elif name in self._facades.get(source, {}):
            yield self._facades[source][name]
        elif source in self.files:
            yield source

    @cached_property
    def _facades(self) -> dict[str, dict[str, str]]:
        facades: dict[str, dict[str, str]] = {}
        for package, path in self.files.items():
            stub = path.with_name("__init__.pyi")
            if path.name != "__init__.py" or not stub.exists():
                continue
            names = facades[package] = {}
            for statement in ast.parse(stub.read_text(encoding="utf-8")).body:
                if isinstance(statement, ast.ImportFrom):
                    source = self._source(statement, package)
                    for alias in statement.names:
                        inner = f"{source}.{alias.name}"
                        names[alias.name] = inner if inner in self.files else source
        return facades


def _imports(node: ast.AST, kind: Kind) -> Iterator[tuple[ast.Import | ast.ImportFrom, Kind]]:
    for child in ast.iter_child_nodes(node):
        inner = kind
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, kind
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inner = Kind.CALLED
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _imports(ast.Module(child.body, []), Kind.TYPES)
            yield from _imports(ast.Module(child.orelse, []), kind)
            continue
        yield from _imports(child, inner)


def _components(edges: Mapping[str, Collection[str]]) -> list[frozenset[str]]:
    # Of two modules or more; a search from each is quick enough for some hundreds.
    reached = {name: _reachable(name, edges) for name in edges}
    found = {
        frozenset(other for other in others if name in reached[other]) | {name}
        for name, others in reached.items()
    }
    return [names for names in found if len(names) > 1]


def _reachable(start: str, edges: Mapping[str, Collection[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        for name in edges.get(todo.pop(), ()):
            if name not in seen:
                seen.add(name)
                todo.append(name)
    return seen


def main() -> int:
    """Print every circle; 1 where one is not allowed, or one that is allowed is gone."""
    graph = ImportGraph(module_files(ROOT))
    wrong = []
    for names in graph.circles([Kind.LOADED]):
        wrong.append("Imports that run make a circle:")
        wrong += graph.inside(names, [Kind.LOADED])
    closing = set()
    for names in graph.circles([Kind.LOADED, Kind.TYPES]):
        print("Types close a circle:", ", ".join(sorted(names)))
        for name in sorted(names):
            for other, line in sorted(graph.imports[Kind.TYPES].get(name, {}).items()):
                if other not in names:
                    continue
                closing.add((name, other))
                reason = ALLOWED.get((name, other))
                print(f"  {name}:{line} imports {other}: {reason or 'NOT ALLOWED'}")
                if reason is None:
                    wrong.append(
                        f"{name}:{line} imports {other} for its types, and closes a circle"
                    )
    for name, other in ALLOWED.keys() - closing:
        wrong.append(f"{name} closes no circle by importing {other}: strike it from ALLOWED")
    for text in wrong:
        print(text, file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
