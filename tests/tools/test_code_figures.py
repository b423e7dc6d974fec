"""tools/: the figures of a tree of source, and the circles of its imports."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]

SOURCES = {
    "ddnkit/__init__.py": "",
    "ddnkit/__init__.pyi": "from .low import Low\n",
    "ddnkit/low.py": """
        from typing import TYPE_CHECKING, Any
        if TYPE_CHECKING:
            from .middle import Middle
        class Low:
            def taken(self, x: Any) -> "Middle": ...
            def _built(self) -> None: ...
            def converged(self) -> bool: ...
            def embed(self, x): assert x is not None
        """,
    "ddnkit/middle.py": """
        from ddnkit import Low
        class Middle: ...
        class Other:
            def __init__(self, x: Any): ...
            def _private(self, x: Any): ...
        """,
    "plugins/ddnkit_one/__init__.py": "",
    "plugins/ddnkit_one/builder.py": "from .settings import Settings\n",
    "plugins/ddnkit_one/settings.py": "def build():\n    from . import builder\n",
    "tests/test_it.py": "a\nb\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in SOURCES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("\n        ", "\n").lstrip("\n"))
    return tmp_path


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("code_figures")


def test_figures(tree: Path, tool: ModuleType) -> None:
    rows = tool.figures(tree).rows
    assert rows["lines, tests"] == 2
    assert rows["modules (`__init__.py` aside)"] == 4
    assert rows["modules with one definition"] == 2  # low, settings
    assert rows["`assert` for a type"] == 1
    assert rows["public signatures with `Any`"] == 2
    assert rows["functions and classes named by a bare participle"] == 2


def test_circles(tree: Path, tool: ModuleType) -> None:
    """A facade's name leads to its module; types and imports in functions close circles of their own."""
    graph, kind = tool.ImportGraph(tool.module_files(tree)), tool.Kind
    by_types = {"ddnkit.low", "ddnkit.middle"}
    by_calls = {"ddnkit_one.builder", "ddnkit_one.settings"}
    assert graph.circles([kind.LOADED]) == []
    assert graph.circles([kind.LOADED, kind.TYPES]) == [by_types]
    assert graph.circles([kind.LOADED, kind.CALLED]) == [by_calls]


def test_circles_of_this_project_are_allowed(tool: ModuleType) -> None:
    assert importlib.import_module("import_graph").main() == 0


@pytest.mark.long
def test_calls(tool: ModuleType) -> None:
    calls = tool.call_figures(ROOT)
    for name, (files, functions, changes) in calls.items():
        # Each file has a function of it, and each but the first is a change.
        assert 1 < files <= functions, name
        assert files - 1 <= changes, name
    for name in ("sphere as a constraint", "sphere as a manifold", "linear constraint"):
        assert calls[f"{name}, by programs"][1] < calls[f"{name}, first call"][1]
