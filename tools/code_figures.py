"""How large and how tangled the code is: one table, before and after.

    python tools/code_figures.py [BEFORE [AFTER]]

BEFORE (HEAD, if left out) and AFTER are revisions of git; without AFTER the working tree is measured. The
last rows come of a layer's calls, in a process of each tree's own, by the Python that runs this.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import tokenize
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from import_graph import ROOT, ImportGraph, Kind, code_folders, module_files

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

SHORT_MODULE = 60

#: A name is a bare participle if it is one word, leading underscores aside, that ends in "ed" or is one of
#: these. Those that are also the verb (read, set, put, split) are left out, and functions that return a
#: bool: "converged" is what one asks.
IRREGULAR = re.compile(
    "begun|born|bound|bought|broken|brought|built|caught|chosen|done|drawn|driven|eaten|fallen|felt|found|"
    "forgotten|frozen|given|gone|grown|heard|held|hidden|kept|known|laid|led|left|lent|lost|made|meant|met|"
    "overridden|paid|proven|rewritten|said|seen|sent|shown|shrunk|sold|spent|spun|stood|stuck|sunk|sworn|"
    "taken|thought|thrown|told|torn|understood|undone|won|worn|wound|written"
)
#: Words in "ed" that are none.
NO_PARTICIPLE = re.compile("bed|embed|exceed|feed|need|proceed|seed|speed|succeed|unseed|weed")

#: Calls of one layer that are watched: the first; and the twelfth, when short calls go by programs
#: (from the ninth on) and none is held against the eager way.
FIRST, LATER = 1, 12


@dataclass
class Figures:
    """What is counted in one tree, by the row's name; a row is a number or a text of several."""

    rows: dict[str, int | str] = field(default_factory=dict)

    def spread(self, name: str, values: Sequence[int]) -> None:
        """Median, ninth decile and largest of these."""
        ordered = sorted(values)
        ninth = ordered[min(len(ordered) - 1, len(ordered) * 9 // 10)]
        median = round(statistics.median(ordered))
        self.rows[f"{name}: median, p90, max"] = f"{median}, {ninth}, {ordered[-1]}"


def figures(root: Path) -> Figures:
    """Those of the source in this folder; nothing of it is run."""
    found = Figures()
    rows = found.rows
    sources = [p for folder in code_folders(root) for p in _sources(folder)]
    rows["lines, ddnkit and plugins"] = sum(map(_lines, sources))
    rows["of these code: no blanks, comments, docstrings"] = sum(map(_code_lines, sources))
    rows["lines, tests"] = sum(map(_lines, _sources(root / "tests")))
    files = module_files(root)
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in files.values()}
    modules = {path: tree for path, tree in trees.items() if path.name != "__init__.py"}
    rows["modules (`__init__.py` aside)"] = len(modules)
    found.spread("lines of a module", [_lines(path) for path in modules])
    rows[f"modules under {SHORT_MODULE} lines"] = sum(_lines(p) < SHORT_MODULE for p in modules)
    rows["modules with one definition"] = sum(
        sum(isinstance(part, Definition) for part in tree.body) == 1 for tree in modules.values()
    )
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    functions = [node for node in nodes if isinstance(node, Function)]
    rows["functions and methods"] = len(functions)
    found.spread(
        "lines of a function", [1 + (f.end_lineno or f.lineno) - f.lineno for f in functions]
    )
    rows["`assert` for a type"] = sum(map(_asserts_type, nodes))
    public = [f for tree in trees.values() for f in _public_functions(tree)]
    rows["public signatures with `Any`"] = sum(map(_any_in_signature, public))
    rows["functions and classes named by a bare participle"] = sum(
        isinstance(node, Definition) and _bare_participle(node) for node in nodes
    )
    graph = ImportGraph(files)
    for name, kinds in (
        ("as modules load", [Kind.LOADED]),
        ("with `TYPE_CHECKING`", [Kind.LOADED, Kind.TYPES]),
        ("with imports in functions", [Kind.LOADED, Kind.CALLED]),
        ("with both", list(Kind)),
    ):
        circles = graph.circles(kinds)
        rows[f"import circles {name} (modules in them)"] = (
            f"{len(circles)} ({sum(map(len, circles))})"
        )
    return found


def _sources(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*.py*") if p.suffix in (".py", ".pyi"))


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def _code_lines(path: Path) -> int:
    text = path.read_text(encoding="utf-8")
    prose = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in (*prose, tokenize.ENDMARKER):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        # A text that stands alone: a docstring, of a module's constant too.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def _asserts_type(node: ast.AST) -> bool:
    if not isinstance(node, ast.Assert):
        return False
    text = ast.unparse(node.test)
    return "is not None" in text or "isinstance(" in text


def _public_functions(scope: ast.Module | ast.ClassDef) -> Iterator[Function]:
    for part in scope.body:
        name = getattr(part, "name", "_")
        if name.startswith("_") and not name.endswith("__"):
            continue
        if isinstance(part, Function):
            yield part
        elif isinstance(part, ast.ClassDef):
            yield from _public_functions(part)


def _any_in_signature(function: Function) -> bool:
    args = function.args
    every = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
    annotations = [arg.annotation for arg in every if arg is not None] + [function.returns]
    return any(
        re.search(r"\bAny\b", ast.unparse(annotation))
        for annotation in annotations
        if annotation is not None
    )


def _bare_participle(node: Definition) -> bool:
    word = node.name.strip("_").lower()
    if "_" in word or re.search("[a-z][A-Z]", node.name) or NO_PARTICIPLE.fullmatch(word):
        return False
    if isinstance(node, Function) and node.returns and ast.unparse(node.returns) == "bool":
        return False
    return word.endswith("ed") or bool(IRREGULAR.fullmatch(word))


def call_figures(root: Path) -> dict[str, list[int]]:
    """What `watch_calls` gives, in a process that imports the tree in this folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "plugins")])}
    done = subprocess.run(
        [sys.executable, __file__, "--calls", str(root)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the layers of {root} could not be called:\n{done.stderr}")
    found: dict[str, list[int]] = json.loads(done.stdout)
    return found


def watch_calls(root: Path) -> dict[str, list[int]]:
    """Files and functions of this tree that forward and backward enter, and changes of file."""
    import torch
    from ddnkit_manifolds import Sphere

    import ddnkit
    from ddnkit import testing

    if not (ddnkit.__file__ or "").startswith(str(root)):
        raise SystemExit(f"ddnkit was imported from {ddnkit.__file__}, not from {root}")

    class OnManifold(ddnkit.DeclarativeNode):
        """The same problem with the sphere as a manifold, and a solver."""

        manifold = Sphere()
        input_dims = (1,)

        def objective(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            """½‖y‖² − xᵀy."""
            return (y**2).sum() / 2 - x @ y

        def initial_point(self, x: torch.Tensor) -> torch.Tensor:
            """A fixed point of the sphere."""
            return torch.nn.functional.normalize(x + 0.5, dim=0)

    sphere = testing.QuadraticOnSphere()
    nodes: dict[str, tuple[Any, Any]] = {
        "sphere as a constraint": (sphere, sphere),
        "sphere as a manifold": (OnManifold(), sphere),
        "linear constraint": (testing.EqualityQP(), testing.EqualityQP()),
    }
    rows = {}
    for name, (node, sampler) in nodes.items():
        layer = ddnkit.DeclarativeLayer(node)
        for call in range(1, LATER + 1):
            torch.manual_seed(0)
            xs = [x.requires_grad_() for x in sampler.sample_inputs()]

            def forward_and_backward(layer: Any = layer, xs: Any = xs) -> None:
                layer(*xs).sum().backward()

            if call in (FIRST, LATER):
                which = "first call" if call == FIRST else "by programs"
                rows[f"{name}, {which}"] = _entered(root, forward_and_backward)
            else:
                forward_and_backward()
    return rows


def _entered(root: Path, action: Callable[[], None]) -> list[int]:
    files: set[str] = set()
    functions: set[tuple[str, int]] = set()
    folders = tuple(str(folder) + os.sep for folder in code_folders(root))
    importing = changes = 0
    last = None

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal importing, changes, last
        code = frame.f_code
        if code.co_name == "_find_and_load" and "importlib" in code.co_filename:
            # What modules do as they are loaded is no part of a call.
            importing += {"call": 1, "return": -1}.get(event, 0)
        if event != "call" or importing or not code.co_filename.startswith(folders):
            return
        # Class bodies run too; and comprehensions are lines of the function around them.
        if not code.co_flags & inspect.CO_OPTIMIZED or code.co_name in _COMPREHENSIONS:
            return
        changes += last not in (None, code.co_filename)
        last = code.co_filename
        files.add(last)
        functions.add((last, code.co_firstlineno))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return [len(files), len(functions), changes]


_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")


def _unpack(revision: str, folder: Path) -> Path:
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", revision], capture_output=True, check=False
    )
    if archive.returncode:
        raise SystemExit(archive.stderr.decode().strip())
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        if hasattr(tarfile, "data_filter"):
            files.extractall(folder, filter="data")
        else:  # Python 3.10 without its later fixes; the archive is git's own
            files.extractall(folder)
    return folder


def _table(columns: dict[str, Figures]) -> str:
    names = list(dict.fromkeys(name for found in columns.values() for name in found.rows))
    head = ["", *columns]
    body = [[name, *(str(c.rows.get(name, "")) for c in columns.values())] for name in names]
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    rule = ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in [head, rule, *body]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of the revisions that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("before", metavar="BEFORE", nargs="?", default="HEAD")
    parser.add_argument("after", metavar="AFTER", nargs="?", help="the working tree, if left out")
    parser.add_argument("--calls", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.calls:
        warnings.simplefilter("ignore")
        print(json.dumps(watch_calls(options.calls)))
        return
    with tempfile.TemporaryDirectory() as folder:
        columns = {}
        for place, revision in (("before", options.before), ("after", options.after)):
            tree = _unpack(revision, Path(folder, place).resolve()) if revision else ROOT
            found = columns[revision or "working tree"] = figures(tree)
            for name, counts in call_figures(tree).items():
                found.rows[f"{name}: files, functions, changes of file"] = ", ".join(
                    map(str, counts)
                )
        print(_table(columns))


if __name__ == "__main__":
    main()
