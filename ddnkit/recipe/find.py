"""Where a recipe is: a path, or the name of one that ddnkit ships."""

from __future__ import annotations

import errno
import os
import stat
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


def shipped_recipes() -> dict[str, Path]:
    """The shipped recipes by name."""
    folder = shipped_folder()
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))} if folder else {}


def find(source: str | Path) -> Path:
    """The file of a recipe given by path or by shipped name.

    Raises:
        InputError: there is none; the text says where it was looked for and names the nearest.
    """
    file = Path(source)
    known = shipped_recipes()
    text = str(source)
    if _is_there(file, source):
        return file
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


def _is_there(file: Path, source: str | Path) -> bool:
    """Whether ``file`` is a regular file, or a link to one; False where there is nothing at all.

    Raises:
        InputError: there is something else, or nobody may see what there is.
    """
    try:
        mode = file.stat().st_mode
    except ValueError as error:  # a name with a zero byte
        raise InputError(f"{str(source)!r} cannot be the name of a file") from error
    except OSError as error:
        link = _link_target(file)
        if link is not None:
            loop = error.errno == errno.ELOOP
            what = "leads back to itself" if loop else f"points to '{link}', which does not exist"
            raise InputError(f"'{source}' is a link that {what}") from error
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        raise InputError(f"'{source}' cannot be read: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        inside = file / "recipe.yaml"
        hint = f"; its recipe is {inside}" if inside.is_file() else ""
        raise InputError(f"'{source}' is a folder, not a recipe{hint}")
    if not stat.S_ISREG(mode):
        kind = "a pipe" if stat.S_ISFIFO(mode) else "a device or a socket"
        raise InputError(f"'{source}' is {kind}, not a recipe; save the recipe as a file first")
    return True


def _link_target(file: Path) -> str | None:
    """What the symbolic link ``file`` points to; None where it is no link."""
    try:
        return os.readlink(file)
    except OSError:
        return None
