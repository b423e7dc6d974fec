"""Where a recipe is: a path, or the name of one that ddnkit ships."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError, closest, nearest_choice

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped_folder() -> Path | None:
    """The folder of the shipped recipes: in the installed package, or beside it in a checkout."""
    if (_PACKAGE / "recipes").is_dir():
        return _PACKAGE / "recipes"
    root = _PACKAGE.parent
    # A stray `recipes` folder beside an installed package is not ours: only a checkout counts.
    if (root / "pyproject.toml").is_file() and (root / "recipes").is_dir():
        return root / "recipes"
    return None


def shipped() -> dict[str, Path]:
    """The shipped recipes by name."""
    folder = shipped_folder()
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))} if folder else {}


def find(source: str | Path) -> Path:
    """The file of a recipe given by path or by shipped name.

    Raises:
        InputError: there is none; the text says where it was looked for and names the nearest.
    """
    file = Path(source)
    if file.is_file():
        return file
    if file.is_dir():
        inside = file / "recipe.yaml"
        hint = f"; its recipe is {inside}" if inside.is_file() else ""
        raise InputError(f"'{source}' is a folder, not a recipe{hint}")
    known = shipped()
    text = str(source)
    if text in known:
        return known[text]
    if file.suffix or os.sep in text or "/" in text:
        beside = file.parent.glob("*.y*ml") if file.parent.is_dir() else ()
        neighbour = closest(text, map(str, beside))
        # With nothing like it there, the shipped recipes are of more use than whatever else is.
        hint = f" Did you mean '{neighbour}'?" if neighbour else nearest_choice(file.stem, known)
        raise InputError(f"no recipe file '{source}' (looked in {file.parent.absolute()}).{hint}")
    looked = f"{file.absolute()} and among the shipped recipes"
    raise InputError(f"no recipe '{source}' (looked for {looked}).{nearest_choice(text, known)}")
