"""``metrics.csv``: one row an evaluation, on disk as soon as it is recorded."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import DamagedFileError, DdnkitError, nearest_choice
from .reading import number, whole_rows

KEYS = ("epoch", "step")


class MetricsWriter:
    """Writes the rows of one job after those already there; a context manager.

    A last line that was cut short is dropped. A file with other columns is replaced, but not before
    there is something to put in its place: a state that counts its rows may be left, and be refused.

    Raises:
        DdnkitError: the columns do not begin with epoch and step, or a row has a column that the
            pipeline did not declare, or lacks its step.
        DamagedFileError: the file cannot be opened.
    """

    def __init__(self, file: Path, columns: Sequence[str]) -> None:
        if tuple(columns[:2]) != KEYS or len(set(columns)) != len(columns):
            raise DdnkitError(f"a pipeline's columns begin with epoch, step; not {list(columns)}")
        self._columns = list(columns)
        self._file = file
        head = _line(self._columns)
        try:
            content = file.read_bytes() if file.exists() else b""
            self._stream = file.open("r+b" if file.exists() else "w+b")
        except OSError as error:
            raise DamagedFileError(f"{file}: cannot be written: {error.strerror}") from error
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines(keepends=True) if whole.startswith(head) else []
        #: where each line ends, the head first
        self._ends = [len(head)]
        for line in lines[1:]:
            self._ends.append(self._ends[-1] + len(line))
        self._head = head
        self._begun = False
        if lines or not content:
            self.rewind(self.rows())

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None and not self._begun:
                self.rewind(0)
        finally:
            self._stream.close()

    def rows(self) -> int:
        """How many rows there are."""
        return len(self._ends) - 1

    def rewind(self, rows: int) -> None:
        """Drop all rows but the first ``rows``.

        Raises:
            DamagedFileError: there are fewer.
        """
        if rows > self.rows():
            raise DamagedFileError(
                f"{self._file} has {self.rows()} rows; the saved state counts {rows}. Put the file "
                "back, or remove the folder 'state' beside it to begin this job anew"
            )
        del self._ends[rows + 1 :]
        if not self._begun:
            self._stream.seek(0)
            self._stream.write(self._head)
            self._begun = True
        self._stream.seek(self._ends[-1])
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
        if not self._begun:
            self.rewind(0)
        line = _line([cell(row.get(column)) for column in self._columns])
        self._stream.write(line)
        self._stream.flush()
        # On disk before a state that counts it is.
        os.fsync(self._stream.fileno())
        self._ends.append(self._ends[-1] + len(line))


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
    rows = []
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
        rows.append(row)
    return columns, rows
