"""The comparisons on one set of inputs: the solution, the forms, finite differences, and around it.

Around it: other inputs in turn and in a batch, another precision, another solver.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch

from ..errors import DdnkitError
from ..importing import describe_error, place
from .differences import directions, generator, incoming
from .findings import Findings, Point
from .forms import (
    compare_backward,
    compare_differences,
    compare_forms,
    compare_forward,
    compare_parameters,
)
from .gradients import differentiable
from .interference import compare_batch, compare_memory
from .point import (
    compare_branch,
    compare_minima,
    compare_second_order,
    compare_solution,
    look_for_closed_form,
)
from .precision import compare_precision
from .report import Comparison
from .subject import Subject, freeze

#: What is compared around a set of inputs: the word for it, its comparisons, and who makes them.
_AROUND: tuple[tuple[str, tuple[Comparison, ...], Callable[[Findings], None]], ...] = (
    ("memory", (Comparison.MEMORY, Comparison.MEMORY_GRADIENT), compare_memory),
    ("batch", (Comparison.BATCH, Comparison.BATCH_GRADIENT), compare_batch),
    (
        "float32",
        (Comparison.FLOAT32_FINITE, Comparison.FLOAT32_Y, Comparison.FLOAT32_GRADIENT),
        compare_precision,
    ),
    ("solver", (), look_for_closed_form),
)


def examine_around(
    subject: Subject,
    inputs: tuple[object, ...],
    *,
    around: bool,
    thorough: bool,
    only: frozenset[Comparison] | None = None,
) -> Findings:
    """All comparisons on one case; ``around`` it too, with other inputs and another precision."""
    findings = examine(subject, inputs, thorough=thorough, only=only)
    for word, comparisons, compare in _AROUND if around and not findings.error else ():
        if findings.wants(*comparisons) and not _keeps_state(findings):
            _compare_around(findings, word, compare)
    return findings


def _keeps_state(findings: Findings) -> bool:
    """Whether solving is random, or depends on earlier calls: no other comparison means anything then."""
    changed = findings.failures(Comparison.MEMORY, Comparison.MEMORY_GRADIENT)
    return findings.repeatable is False or bool(changed)


def _compare_around(findings: Findings, word: str, compare: Callable[[Findings], None]) -> None:
    """Make a comparison with other inputs or in another precision; a node may refuse these."""
    before = len(findings.rows)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            compare(findings)
    except Exception as error:  # a stranger's node may raise anything
        del findings.rows[before:]
        findings.note(word, f"{word}: not compared ({type(error).__name__}: {error})")


def examine(
    subject: Subject,
    inputs: Sequence[object],
    *,
    thorough: bool = True,
    only: frozenset[Comparison] | None = None,
) -> Findings:
    """All comparisons on one set of inputs. Never raises for a fault of the node: it is a finding.

    Args:
        thorough: forward mode, parameters, and other minima as well.
        only: comparisons to make, beside the first ones; None for all.
    """
    findings = Findings(subject, tuple(inputs), only=only)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _examine(findings, thorough)
    except (Exception, SystemExit) as error:  # of the node, which may raise anything
        findings.error = error_text(error)
        findings.compare(Comparison.RUNS, float("nan"), 0.0, findings.error)
    return findings


def error_text(error: BaseException) -> str:
    """An error in one line, with its type unless it is one of ddnkit's own."""
    if isinstance(error, SystemExit):
        return f"its code ended the program, {describe_error(error)} at {place(error)}"
    return str(error) if isinstance(error, DdnkitError) else f"{type(error).__name__}: {error}"


def _examine(findings: Findings, thorough: bool) -> None:
    subject, xs = findings.subject, findings.inputs
    solved, source = subject.solve(xs), generator()
    point = Point(solved, subject.certificate(solved), incoming(solved, source))
    findings.point = point
    compare_solution(findings, point)
    if not bool(solved.y.isfinite().all()) or findings.wrong:
        # At a point that is no solution the certificate lets no gradient pass.
        return
    if findings.wants(Comparison.MINIMUM, Comparison.STRICT_MINIMUM):
        compare_second_order(findings, point)
    if differentiable(xs):
        findings.directions = directions(subject, xs, source)
        with freeze(solved.problem.originals):
            _compare_gradients(findings, point, thorough)
    if thorough and findings.wants(Comparison.PARAMETER):
        compare_parameters(findings, point, source)
    if thorough and findings.wants(Comparison.LOWEST) and not findings.wrong:
        compare_minima(findings, point)


def _compare_gradients(findings: Findings, point: Point, thorough: bool) -> None:
    compare_backward(findings, point)
    slopes = None
    if findings.wants(Comparison.DIFFERENCES, Comparison.NEARBY, Comparison.FORWARD):
        slopes = compare_differences(findings, point)
    if findings.wants(Comparison.AGAINST):
        compare_forms(findings, point)
    if slopes is None:
        return
    if thorough and findings.wants(Comparison.FORWARD):
        compare_forward(findings, point, slopes)
    if findings.wants(Comparison.NEARBY):
        compare_branch(findings, point, slopes)
