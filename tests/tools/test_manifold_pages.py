"""tools/manifold_pages.py: the pages of docs/manifolds are what the classes say today."""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_pages_are_those_of_today(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    pages = importlib.import_module("manifold_pages")
    pages.write(tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in (ROOT / "docs" / "manifolds").iterdir()}
    assert written == kept, "run `make manifolds`"
    assert len(written) == len(pages.kinds()) + 1
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert all(f"manifolds/{name}" in navigation for name in written)
    sys.modules.pop("manifold_pages")
