"""The comparison of variants that a run ends with, as plain text."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from .summary import Summary


def comparison(summaries: Sequence[tuple[str, Summary]], width: int | None = None) -> str:
    """A row a variant: the last evaluation's figures, as many as fit ``width``, the headline first.

    ``summaries`` are (label, summary) pairs; with several, the label is put before the variant.
    """
    width = width or max(shutil.get_terminal_size((120, 24)).columns, 80)
    metrics = list(dict.fromkeys(m for _, summary in summaries for m in _metrics(summary)))
    rows = [
        (summary, variant, f"{label}/{variant}" if len(summaries) > 1 else variant)
        for label, summary in summaries
        for variant in summary.variants
    ]
    columns = [["variant", *(name for _, _, name in rows)]]
    for metric in metrics:
        column = [metric, *(str(summary.last(name, metric) or "") for summary, name, _ in rows)]
        if len(columns) > 1 and sum(map(_width, [*columns, column])) > width:
            break
        columns.append(column)
    return aligned(columns)


def aligned(columns: Sequence[Sequence[str]]) -> str:
    """Columns of text side by side, the first to the left and the others to the right."""
    lines = zip(*(_padded(column, first=i == 0) for i, column in enumerate(columns)), strict=True)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _metrics(summary: Summary) -> list[str]:
    headline = summary.headline()
    return sorted(summary.metrics, key=lambda metric: metric != headline)


def _width(column: Sequence[str]) -> int:
    return max(map(len, column)) + 2


def _padded(column: Sequence[str], *, first: bool) -> list[str]:
    width = max(map(len, column))
    return [cell.ljust(width) if first else cell.rjust(width) for cell in column]
