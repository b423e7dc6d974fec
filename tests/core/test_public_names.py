"""What packages offer by name."""

import ast
from pathlib import Path

import pytest

import ddnkit.testing

ROOT = Path(__file__).parent.parent.parent
STUBS = [s for top in ("ddnkit", "plugins") for s in sorted((ROOT / top).rglob("__init__.pyi"))]


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: stub.parent.name)
def test_no_name_is_that_of_a_file_beside_it(stub: Path) -> None:
    # Importing the file, wherever that is done first, would put the module in the name's place.
    nodes = ast.walk(ast.parse(stub.read_text()))
    imports = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module]
    names = {alias.asname or alias.name for node in imports for alias in node.names}
    files = {path.stem for path in stub.parent.glob("*.py")} | {
        path.name for path in stub.parent.iterdir() if path.is_dir()
    }
    assert names and not names & files


@pytest.mark.parametrize(("old", "new"), [("sampled", "sample"), ("joined", "join_parts")])
def test_an_old_name_answers_and_names_the_new_one(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=f"ddnkit.testing.{new}"):
        value = getattr(ddnkit.testing, old)
    assert value is getattr(ddnkit.testing, new)
