"""`ddnkit.check`: draws inputs, compares, shrinks what fails, and says what it means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..errors import InputError
from ..node import DeclarativeNode
from .cases import as_text, draw, shrink
from .diagnosis import diagnose
from .instance import Findings, applicable_forms, examine
from .report import CheckReport, Row, merge


def check(
    node: DeclarativeNode,
    *xs: Any,
    examples: int = 20,
    backward: str | None = None,
    name: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> CheckReport:
    """Is y = argmin f what `node` returns, and is its gradient right?

    Measures feasibility and stationarity of the solution, then compares each backward form that
    applies with central finite differences through a re-solve, and the forms with each other.

    Args:
        node: the node.
        *xs: inputs to check on, batched or not. Without them, inputs are drawn by hypothesis from
            the node's `sample_inputs`, and shrunk when they fail.
        examples: how many inputs are drawn.
        backward: check this form only.
        name: what the report calls the node.
        progress: called with the number of cases done.

    Returns:
        a `CheckReport`; ``report.ok`` is True if everything held.

    Raises:
        InputError: there is nothing to draw inputs from, or no such form.

    Example:
        >>> report = ddnkit.check(NearestETF())
        >>> print(report)
    """
    if not isinstance(node, DeclarativeNode):
        raise InputError(f"check takes a ddnkit.DeclarativeNode, not {node!r}")
    forms = applicable_forms(node)
    if backward is not None:
        if backward not in forms:
            raise InputError(
                f"form '{backward}' does not apply to {type(node).__name__}; "
                f"those that do: {', '.join(forms)}"
            )
        forms = [backward]
    rows: list[Row] = []
    worst: Findings | None = None
    cases = 0

    def visit(inputs: tuple[Any, ...]) -> bool:
        nonlocal worst, cases
        findings = examine(node, inputs, forms)
        cases += 1
        rows.extend(findings.rows)
        if progress is not None:
            progress(cases)
        if not findings.ok:
            worst = findings
        return findings.ok

    if xs:
        visit(tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in xs))
    else:
        draw(node, examples, visit)
    diagnosis: list[str] = []
    inputs = ""
    if worst is not None:
        failing = worst
        diagnosis = diagnose(node, failing)
        kinds = _kinds(failing)
        if not xs:
            smallest = shrink(
                failing.inputs, lambda simple: _kinds(examine(node, simple, forms)) == kinds
            )
            failing = examine(node, smallest, forms)
        inputs = as_text(failing.inputs)
    return CheckReport(
        name or type(node).__name__,
        merge(rows),
        tuple(diagnosis),
        inputs,
        cases,
        tuple(forms),
    )


def _kinds(findings: Findings) -> frozenset[str]:
    """Which comparisons failed: what shrinking must keep."""
    return frozenset(row.name for row in findings.rows if not row.ok)
