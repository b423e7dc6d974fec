"""``metrics.csv``: one row an evaluation, on disk as soon as it is recorded."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import DamagedFileError, DdnkitError, nearest_choice
from .files import number, whole_lines, whole_rows

KEYS = ("epoch", "step")


class MetricsWriter:
    """Writes the rows of one job after those already there; a context manager.

    A last line that was cut short is dropped. A file with other columns is replaced, but not before
    there is something to put in its place: a state that counts its rows may be left, and be refused.

    Raises:
        DdnkitError: the columns do not begin with epoch and step, or a row has a column that the
            pipeline did not declare, or lacks its step, or is not after the row before.
        DamagedFileError: the file cannot be opened.
    """

    def __init__(self, file: Path, columns: Sequence[str]) -> None:
        if tuple(columns[:2]) != KEYS or len(set(columns)) != len(columns):
            raise DdnkitError(f"a pipeline's columns begin with epoch, step; not {list(columns)}")
        self._columns = list(columns)
        self._file = file
        head = _line(self._columns)
        if file.exists() and not file.is_file():  # a pipe would be waited at for ever
            raise DamagedFileError(f"{file}: is not a file")
        try:
            content = file.read_bytes() if file.exists() else b""
            self._stream = file.open("r+b" if file.exists() else "w+b")
        except OSError as error:
            raise DamagedFileError(f"{file}: cannot be written: {error.strerror}") from error
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines(keepends=True) if whole.startswith(head) else []
        #: every line, the head first
        self._lines = [head, *lines[1:]]
        self._begun = False
        if lines or not content:
            self.rewind(self.rows())

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            if kind is None and not self._begun:
                self.rewind(0)
        finally:
            self._stream.close()

    def rows(self) -> int:
        """How many rows there are."""
        return len(self._lines) - 1

    def checksum(self) -> str:
        """Of the text of all rows, the columns before them."""
        return self._checksum(self.rows())

    def rewind(self, rows: int, checksum: str | None = None) -> None:
        """Drop all rows but the first ``rows``.

        Args:
            checksum: what `checksum` was when there were so many; None where nobody knows.

        Raises:
            DamagedFileError: there are fewer, or they are not those of the checksum.
        """
        if rows > self.rows():
            raise DamagedFileError(
                f"{self._file} has {self.rows()} rows; the saved state counts {rows}. Put the file "
                "back, or remove the folder 'state' beside it to begin this job anew"
            )
        if checksum is not None and checksum != self._checksum(rows):
            raise DamagedFileError(
                f"{self._file} was changed: its first {rows} row(s) are not those that the saved state "
                "goes with. Put the file back, or remove the folder 'state' beside it to begin this "
                "job anew"
            )
        del self._lines[rows + 1 :]
        if not self._begun:
            self._stream.seek(0)
            self._stream.write(self._lines[0])
            self._begun = True
        self._stream.seek(sum(map(len, self._lines)))
        self._stream.truncate()
        self._stream.flush()

    def record(self, row: dict[str, Any]) -> None:
        """Append ``row``; a value that is missing or None leaves its cell empty."""
        for column in row:
            if column not in self._columns:
                hint = nearest_choice(column, self._columns)
                raise DdnkitError(f"no column '{column}' among the pipeline's.{hint}")
        if row.get("step") is None:
            raise DdnkitError("a recorded row needs its 'step'")
        cells = {column: self._cell(column, row.get(column)) for column in self._columns}
        step, before = cells["step"], _step(self._lines[-1])
        if before is not None and not float(step) > before:
            raise DdnkitError(f"a row of step {step} was recorded after one of step {before:.9g}")
        if not self._begun:
            self.rewind(0)
        line = _line(list(cells.values()))
        self._stream.write(line)
        self._stream.flush()
        # On disk before a state that counts it is.
        os.fsync(self._stream.fileno())
        self._lines.append(line)

    def _cell(self, column: str, value: Any) -> str:
        """The text of a value, of which `read_metrics` makes that number again."""
        try:
            text = cell(value)
            size = float(text or 0)
            if math.isinf(size) and text.strip("-") != "inf":
                raise OverflowError("it is too large")
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            kind = type(value).__name__
            raise DdnkitError(
                f"a {kind} was recorded as '{column}'; expected a number: {error}"
            ) from error
        if column in KEYS and not math.isfinite(size):
            raise DdnkitError(f"{text} was recorded as '{column}'; expected a finite number")
        return text

    def _checksum(self, rows: int) -> str:
        return hashlib.sha256(b"".join(self._lines[: rows + 1])).hexdigest()


def checksum_of_rows(file: Path) -> str:
    """What `MetricsWriter.checksum` was, if these are all its rows; however their lines end.

    Raises:
        DamagedFileError: as `read_metrics`.
    """
    found = hashlib.sha256()
    for line in whole_lines(file):
        found.update(line.encode() + b"\n")
    return found.hexdigest()


def _step(line: bytes) -> float | None:
    """The step in a line of a file; None in a head, or in a line that someone wrote by hand."""
    try:
        return float(line.split(b",")[KEYS.index("step")])
    except (ValueError, IndexError):
        return None


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def cell(value: Any) -> str:
    """A number as text, to nine significant digits; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, int):
        return str(int(value))
    return f"{float(value):.9g}"


def read_metrics(file: Path) -> tuple[list[str], list[dict[str, float | None]]]:
    """The columns and rows of a ``metrics.csv``, without a last line that was cut short.

    Raises:
        DamagedFileError: the file holds what a `MetricsWriter` does not write; the text names file, line
            and column.
    """
    columns: list[str] = []
    rows: list[dict[str, float | None]] = []
    for line, cells in whole_rows(file):
        if not columns:
            columns = cells
            if tuple(columns[:2]) != KEYS or len(set(columns)) != len(columns):
                raise DamagedFileError(f"{file}:1: expected columns that begin with epoch, step")
            continue
        if len(cells) != len(columns):
            raise DamagedFileError(f"{file}:{line}: {len(cells)} cells, expected {len(columns)}")
        row = {
            column: number(text, f"{file}:{line}: {column}") if text else None
            for column, text in zip(columns, cells, strict=True)
        }
        for column, least in (("step", None), ("epoch", 0.0)):
            value = least if row[column] is None else row[column]
            if value is None or not math.isfinite(value):
                raise DamagedFileError(
                    f"{file}:{line}: {column}: expected a finite number, was given "
                    f"{'nothing' if value is None else value}"
                )
        step, before = row["step"], rows[-1]["step"] if rows else None
        if step is not None and before is not None and not step > before:
            raise DamagedFileError(
                f"{file}:{line}: step: expected a later one than {before:.9g}, that of the row before; "
                f"was given {step:.9g}"
            )
        rows.append(row)
    return columns, rows
