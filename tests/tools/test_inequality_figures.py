"""tools/inequality_figures.py: the figure of docs/inequalities.md, drawn from what layers return."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PNG = b"\x89PNG\r\n\x1a\n"


def test_the_figure_of_the_page_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    importlib.import_module("inequality_figures").draw(tmp_path / "figure.png")
    drawn, committed = tmp_path / "figure.png", ROOT / "docs" / "active_set.png"
    assert drawn.read_bytes().startswith(PNG)
    assert committed.read_bytes().startswith(PNG)
    assert f"({committed.name})" in (ROOT / "docs" / "inequalities.md").read_text()
