"""``metrics.csv``: one row an evaluation, on disk as soon as it is recorded."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import DdnkitError, nearest_choice

KEYS = ("epoch", "step")


class MetricsWriter:
    """Writes the rows of one job; a context manager.

    Raises:
        DdnkitError: the columns do not begin with epoch and step, or a row has a column that the
            pipeline did not declare, or lacks its step.
    """

    def __init__(self, file: Path, columns: Sequence[str]) -> None:
        if tuple(columns[:2]) != KEYS or len(set(columns)) != len(columns):
            raise DdnkitError(f"a pipeline's columns begin with epoch, step; not {list(columns)}")
        self._columns = list(columns)
        self._stream = file.open("w", newline="", encoding="utf-8")
        self._writer = csv.writer(self._stream, lineterminator="\n")
        self._write(self._columns)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()

    def record(self, row: dict[str, Any]) -> None:
        """Append ``row``; a value that is missing or None leaves its cell empty."""
        for column in row:
            if column not in self._columns:
                hint = nearest_choice(column, self._columns)
                raise DdnkitError(f"no column '{column}' among the pipeline's.{hint}")
        if row.get("step") is None:
            raise DdnkitError("a recorded row needs its 'step'")
        self._write([cell(row.get(column)) for column in self._columns])

    def _write(self, cells: list[str]) -> None:
        self._writer.writerow(cells)
        self._stream.flush()


def cell(value: Any) -> str:
    """A number as text, to nine significant digits; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, int):
        return str(int(value))
    return f"{float(value):.9g}"


def read_metrics(file: Path) -> tuple[list[str], list[dict[str, float | None]]]:
    """The columns and rows of a ``metrics.csv``, without a last line that was cut short."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    whole = text[: text.rfind("\n") + 1]
    lines = list(csv.reader(whole.splitlines()))
    columns = lines[0] if lines else []
    rows = [
        {column: float(text) if text else None for column, text in zip(columns, line, strict=True)}
        for line in lines[1:]
        if len(line) == len(columns)
    ]
    return columns, rows
