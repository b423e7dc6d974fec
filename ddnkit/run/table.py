"""The comparison of variants that a run ends with: a table, and a sentence on the race."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence

from .summary import Summary, SummaryRow

#: Figures of which more is better; of others a race has no known direction.
_ACCURACIES = ("test_top1", "train_top1")


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


def race(summary: Summary) -> str:
    """In one sentence who was furthest ahead, when and by how much, and who is ahead at the end.

    By the medians of the headline, at the evaluations that all variants have. Empty where the
    headline is no accuracy, or fewer than two variants can be compared.
    """
    metric = summary.headline()
    rows = [row for row in summary.rows if row.metric == metric]
    evaluations = _evaluations(rows)
    if metric not in _ACCURACIES or not evaluations:
        return ""
    widest_at, widest = max(evaluations, key=lambda evaluation: _lead(evaluation[1]))
    end_at, end = evaluations[-1]
    seeds = sorted({row.n for row in rows})
    median = f" (medians of {'–'.join(map(str, seeds[:1] + seeds[1:][-1:]))} seeds)"
    of = f"In {metric}{median if seeds != [1] else ''}"
    if _lead(widest) == 0:
        return f"{of} the best were level at every evaluation."
    if widest is end:
        return f"{of} {end[0].variant} leads most at the last evaluation, {end_at}, {_by(end)}."
    began = f"{of} {widest[0].variant} led most at {widest_at}, {_by(widest)}"
    if _lead(end) == 0:
        level = " and ".join(row.variant for row in end if row.median == end[0].median)
        return (
            f"{began}; at the last evaluation, {end_at}, {level} are level at {end[0].median:.4g}."
        )
    return f"{began}; at the last evaluation, {end_at}, {end[0].variant} leads {_by(end)}."


def _evaluations(rows: Sequence[SummaryRow]) -> list[tuple[str, list[SummaryRow]]]:
    """When, and the variants' figures then, best first; where at least two have a number."""
    # By epoch, as steps differ with the size of a batch.
    by_epoch = all(row.epoch is not None for row in rows)
    at: dict[float, dict[str, SummaryRow]] = {}
    for row in rows:
        at.setdefault((row.epoch or 0.0) if by_epoch else row.step, {})[row.variant] = row
    variants = len({row.variant for row in rows})
    found = []
    for when, places in sorted(at.items()):
        order = sorted(
            (row for row in places.values() if math.isfinite(row.median)),
            key=lambda row: -row.median,
        )
        if len(places) == variants and len(order) > 1:
            found.append((f"{'epoch' if by_epoch else 'step'} {when:g}", order))
    return found


def _lead(places: Sequence[SummaryRow]) -> float:
    return places[0].median - places[1].median


def _by(places: Sequence[SummaryRow]) -> str:
    first, second = places[:2]
    apart = first.minimum > second.maximum or first.n == second.n == 1
    return (
        f"by {_lead(places):.3g} ({first.median:.4g} to {second.median:.4g} of {second.variant}"
        f"{'' if apart else '; the seeds overlap'})"
    )


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
