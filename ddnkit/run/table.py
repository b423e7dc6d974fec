"""The comparison of variants that a run ends with: tables, and a sentence on the race."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence

from ..recipe.pipeline import PublishedFigure, Table, published_figures
from ..recipe.recipe import Recipe
from ..recipe.schema import components
from .summary import Summary, SummaryRow

#: Figures of which more is better; of others a race has no known direction.
_ACCURACIES = ("test_top1", "train_top1")
_NOT_RUN = "not run"
_NO_FIGURE = "–"
_SAME_EPOCH = 1e-6


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
    return align(columns)


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
        return (
            f"{of} {end[0].variant} leads most at the last evaluation, {end_at}, {_lead_text(end)}."
        )
    began = f"{of} {widest[0].variant} led most at {widest_at}, {_lead_text(widest)}"
    if _lead(end) == 0:
        level = " and ".join(row.variant for row in end if row.median == end[0].median)
        return (
            f"{began}; at the last evaluation, {end_at}, {level} are level at {end[0].median:.4g}."
        )
    return f"{began}; at the last evaluation, {end_at}, {end[0].variant} leads {_lead_text(end)}."


def beside_published(recipe: Recipe, summary: Summary) -> list[Table]:
    """A table for each metric of ``summary`` that a paper of ``recipe`` prints figures of."""
    settings = {
        variant.name: variant.settings
        for variant in recipe.variants
        if "paper" in components(type(variant.pipeline))  # else a field of the pipeline's own
    }
    printed = {name: published_figures(settings.get(name, {})) for name in summary.variants}
    metrics = dict.fromkeys(figure.metric for figures in printed.values() for figure in figures)
    return [
        _beside(
            metric,
            summary,
            {name: [f for f in figures if f.metric == metric] for name, figures in printed.items()},
        )
        for metric in metrics
        if metric in summary.metrics
    ]


def _beside(
    metric: str, summary: Summary, printed: Mapping[str, Sequence[PublishedFigure]]
) -> Table:
    together = [figure for figures in printed.values() for figure in figures]
    epochs = sorted({figure.epoch for figure in together}, key=lambda at: (at is None, at or 0))
    head = [metric]
    for at in epochs:
        when = "at the end" if at is None else f"epoch {at:g}"
        head += [f"{when}, ours", f"{when}, published"]
    rows = [tuple(head)]
    for variant in summary.variants:
        cells = [variant]
        for at in epochs:
            texts = [figure.text for figure in printed[variant] if figure.epoch == at]
            cells += [_ours(summary, variant, metric, at), ", ".join(texts) or _NO_FIGURE]
        rows.append(tuple(cells))
    sources = "; ".join(dict.fromkeys(figure.source for figure in together))
    notes = dict.fromkeys(figure.note for figure in together if figure.note)
    note = (
        f"Ours: median [minimum, maximum] over seeds. Published: {sources}. “{_NOT_RUN}”: there is no "
        f"evaluation at that very epoch; “{_NO_FIGURE}”: the paper has no figure of such a variant."
    )
    return Table(f"{metric}: ours and published", tuple(rows), " ".join([note, *notes]))


def _ours(summary: Summary, variant: str, metric: str, epoch: float | None) -> str:
    if epoch is None:
        return str(summary.last(variant, metric) or _NOT_RUN)
    for row in summary.rows:
        # An epoch of a record is a step divided by the steps of an epoch.
        same = row.epoch is not None and abs(row.epoch - epoch) < _SAME_EPOCH
        if same and (row.variant, row.metric) == (variant, metric):
            return str(row)
    return _NOT_RUN


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


def _lead_text(places: Sequence[SummaryRow]) -> str:
    first, second = places[:2]
    apart = first.minimum > second.maximum or first.n == second.n == 1
    return (
        f"by {_lead(places):.3g} ({first.median:.4g} to {second.median:.4g} of {second.variant}"
        f"{'' if apart else '; the seeds overlap'})"
    )


def align(columns: Sequence[Sequence[str]]) -> str:
    """Columns of text side by side, the first to the left and the others to the right."""
    lines = zip(*(_pad(column, first=i == 0) for i, column in enumerate(columns)), strict=True)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _metrics(summary: Summary) -> list[str]:
    headline = summary.headline()
    return sorted(summary.metrics, key=lambda metric: metric != headline)


def _width(column: Sequence[str]) -> int:
    return max(map(len, column)) + 2


def _pad(column: Sequence[str], *, first: bool) -> list[str]:
    width = max(map(len, column))
    return [cell.ljust(width) if first else cell.rjust(width) for cell in column]
