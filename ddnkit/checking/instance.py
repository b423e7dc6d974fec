"""The comparisons on one set of inputs: the solution, the forms, finite differences."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from ..errors import DdnkitError
from ..importing import described, place
from .differences import directions, generator, incoming
from .findings import Findings
from .forms import compare_backward, compare_differences, compare_forms, compare_forward
from .gradients import differentiable
from .parameters import compare_parameters
from .point import compare_branch, compare_minima, compare_second_order, compare_solution
from .subject import Solved, Subject, frozen


def examine(
    subject: Subject,
    inputs: Sequence[Any],
    *,
    thorough: bool = True,
    only: frozenset[str] | None = None,
) -> Findings:
    """All comparisons on one set of inputs. Never raises for a fault of the node: it is a finding.

    Args:
        thorough: forward mode, parameters, and other minima as well.
        only: kinds of comparisons to make, beside the first ones; None for all.
    """
    findings = Findings(subject, tuple(inputs), only=only)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _examine(findings, thorough)
    except (Exception, SystemExit) as error:  # of the node, which may raise anything
        findings.error = spoken(error)
        findings.compare("runs", float("nan"), 0.0, findings.error)
    return findings


def spoken(error: BaseException) -> str:
    """An error in one line: the project's own speak for themselves."""
    if isinstance(error, SystemExit):
        return f"its code ended the program, {described(error)} at {place(error)}"
    return str(error) if isinstance(error, DdnkitError) else f"{type(error).__name__}: {error}"


def _examine(findings: Findings, thorough: bool) -> None:
    subject, xs = findings.subject, findings.inputs
    solved = findings.solved = subject.solve(xs)
    compare_solution(findings, solved)
    if not bool(solved.y.isfinite().all()) or findings.kinds:
        # At a point that is no solution the certificate lets no gradient pass.
        return
    source = generator()
    findings.v = incoming(solved, source)
    if findings.wants("second order"):
        compare_second_order(findings, solved)
    if differentiable(xs):
        findings.directions = directions(subject, xs, source)
        with frozen(solved.problem.originals):
            _compare_gradients(findings, solved, thorough)
    if thorough and findings.wants("parameter"):
        compare_parameters(findings, solved, source)
    if thorough and findings.wants("lowest") and not findings.kinds:
        compare_minima(findings, solved)


def _compare_gradients(findings: Findings, solved: Solved, thorough: bool) -> None:
    compare_backward(findings, solved)
    if findings.wants("differences") or findings.wants("branch: nearby"):
        compare_differences(findings, solved)
    if findings.wants("against"):
        compare_forms(findings)
    if thorough and findings.wants("forward"):
        compare_forward(findings, solved)
    if findings.wants("branch: nearby"):
        compare_branch(findings, solved)
