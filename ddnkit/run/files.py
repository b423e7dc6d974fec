"""The files of a run: written whole or not at all; read back whole, or with one clear error.

What is read may have been changed by a disk or an editor.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import DamagedFileError
from ..recipe.source import Document, read

#: Bytes of a line, at most. A row of a run has a few hundred; a list of a table's columns no more.
_LONGEST_LINE = 1_000_000
#: Characters of a wrong cell that are shown.
_SHOWN = 40

#: What a column of a table holds: "text"; a "number"; a whole number from 0, a "count"; or a "figure", a
#: number that may be infinite, NaN or missing.
Columns = Mapping[str, str]


def replace_file(file: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: what was there stays until all of the new one is on the disk.

    Args:
        file: what to write, in a folder that exists.
        write: given the path of a file beside it, ``.part-PROCESS-NAME``, to write into.

    Raises:
        OSError: the system refused it, as a full disk does; it names ``file``, which is as it was.
    """
    part = file.with_name(f".part-{os.getpid()}-{file.name}")
    try:
        write(part)
        with part.open("rb+") as stream:
            os.fsync(stream.fileno())
        part.replace(file)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()  # a disk that is full needs the room
        if isinstance(error, OSError):  # of the file that a reader knows
            raise OSError(error.errno, error.strerror or str(error), str(file)) from error
        raise
    with contextlib.suppress(OSError):  # not every system lets a folder be opened, or needs it
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_whole(file: Path, text: str) -> None:
    """Write a text by `replace_file`."""
    replace_file(file, lambda part: part.write_text(text, encoding="utf-8", newline=""))


def read_table(
    file: Path, columns: Columns, *, others: str = "text", growing: bool = False
) -> list[dict[str, str]]:
    """The rows of a CSV file, by column, as text in which every number is one.

    Args:
        columns: the columns that it must have, each with what it holds: "text", "number", "count" (a
            whole number from 0) or "figure" (a number that may be infinite, NaN or an empty cell).
        others: what the other columns hold.
        growing: the file of a job that may still run: a last line that was cut short is left out.

    Raises:
        ddnkit.DamagedFileError: the file cannot be read, lacks a column, or holds what it should not; the
            text names file, line and column.
    """
    lines = _lines(file, cut=growing)
    _, head = next(lines, (1, ""))
    names = _cells(file, 1, head)
    missing = [name for name in columns if name not in names]
    if missing:
        there = _brief(",".join(names)) if head else "nothing: it is empty"
        raise DamagedFileError(f"{file}:1: no column {', '.join(missing)}; there is {there}")
    rows = []
    for line, whole in lines:
        cells = _cells(file, line, whole)
        if len(cells) != len(names):
            raise DamagedFileError(f"{file}:{line}: {len(cells)} cells, expected {len(names)}")
        row = dict(zip(names, cells, strict=True))
        for name, text in row.items():
            _check(text, columns.get(name, others), f"{file}:{line}: {name}")
        rows.append(row)
    return rows


def read_json(file: Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        ddnkit.DamagedFileError: the file cannot be read, or holds something else; the text names it.
    """
    try:
        content = json.loads("\n".join(whole_lines(file)))
    except json.JSONDecodeError as error:
        raise DamagedFileError(f"{file}:{error.lineno}: not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise DamagedFileError(f"{file}:1: expected a mapping, was given {_brief(str(content))}")
    return content


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file, such as ``settings.yaml``.

    Raises:
        ddnkit.InputError: the file cannot be read, or holds something else; the text names file and line.
    """
    content: Document = read(file)
    return dict(content.value)


def whole_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The number and cells of each whole line of a CSV file that grows; nothing if there is no file yet.

    Raises:
        DamagedFileError: as `read_table`.
    """
    if os.path.lexists(file):
        for line, text in _lines(file, cut=True):
            yield line, _cells(file, line, text)


def whole_lines(file: Path) -> Iterator[str]:
    """Each line of a text, even one that was cut short.

    Raises:
        DamagedFileError: as `read_table`.
    """
    for _, text in _lines(file):
        yield text


def number(text: str, place: str) -> float:
    """The number in a cell.

    Raises:
        DamagedFileError: it is none, or too large; the text begins with ``place``.
    """
    try:
        if not text.isascii() or "_" in text:  # Python reads them; a run never writes them
            raise ValueError(text)
        value = float(text)
    except ValueError:
        raise DamagedFileError(f"{place}: expected a number, was given {_brief(text)}") from None
    if math.isinf(value) and any(character.isdigit() for character in text):
        raise DamagedFileError(f"{place}: {_brief(text)} is too large for a number")
    return value


def _check(text: str, kind: str, place: str) -> None:
    if kind == "text" or (kind == "figure" and not text):
        return
    value = number(text, place)
    if kind == "number" and not math.isfinite(value):
        raise DamagedFileError(f"{place}: expected a finite number, was given {_brief(text)}")
    if kind == "count" and not (text.isascii() and text.isdecimal()):
        raise DamagedFileError(f"{place}: expected a whole number, was given {_brief(text)}")


def _lines(file: Path, *, cut: bool = False) -> Iterator[tuple[int, str]]:
    """The lines of a text in UTF-8 with their numbers, without their ends.

    ``cut``: the last may have been cut short, and is left out if it was.
    """
    try:
        if not file.is_file():
            raise DamagedFileError(
                f"{file}: is not a file" if file.exists() else f"{file}: is gone"
            )
        with file.open("rb") as stream:
            line = 0
            while content := stream.readline(_LONGEST_LINE + 1):
                line += 1
                if cut and not content.endswith(b"\n") and len(content) <= _LONGEST_LINE:
                    return
                if len(content) > _LONGEST_LINE:
                    raise DamagedFileError(f"{file}:{line}: the line is too long")
                if b"\0" in content:
                    raise DamagedFileError(f"{file}:{line}: not a text: it has a byte of zero")
                yield line, content.decode("utf-8-sig" if line == 1 else "utf-8").rstrip("\r\n")
    except OSError as error:
        raise DamagedFileError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{file}:{line}: not a text in UTF-8") from error


def _cells(file: Path, line: int, text: str) -> list[str]:
    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise DamagedFileError(f"{file}:{line}: not a row of a table: {error}") from error


def _brief(text: str) -> str:
    shown = text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
    return repr(shown) if text else "nothing"
