"""From figures to causes: what is wrong with a node, most fundamental first."""

from __future__ import annotations

from collections.abc import Iterator

from . import causes_of_gradient, causes_of_inequalities, causes_of_node
from .causes_of_manifold import wrong_manifold
from .findings import Cause, Findings
from .report import Diagnosis

_OF_CALLS = (
    causes_of_node.does_not_run,
    causes_of_node.memory,
    causes_of_node.batch_leak,
)
_OF_SOLUTION = (
    causes_of_inequalities.contradictory_bounds,
    causes_of_inequalities.start_outside,
    causes_of_node.not_finite,
    causes_of_inequalities.stalls_at_kinks,
    causes_of_inequalities.wrong_sign,
    causes_of_inequalities.other_active_set,
    causes_of_node.infeasible,
    causes_of_node.not_smooth,
    causes_of_node.not_stationary,
    causes_of_node.weakly_active,
    causes_of_node.no_solution,
    causes_of_inequalities.wrong_multipliers,
)
_OF_POINT = (
    causes_of_gradient.not_a_minimum,
    causes_of_gradient.not_unique,
    causes_of_gradient.degenerate_constraints,
    causes_of_gradient.other_branch,
    causes_of_gradient.coarse_inputs,
)
_OF_GRADIENT = (
    causes_of_gradient.form_does_not_run,
    causes_of_gradient.wrong_gradient,
    causes_of_gradient.wrong_forward,
    causes_of_gradient.wrong_parameters,
    causes_of_gradient.float32,
)


def diagnose(findings: Findings) -> list[Cause]:
    """The causes that the findings speak for; empty if every comparison held.

    What follows from a fundamental cause would only confuse: the first found is then the diagnosis.
    """
    if findings.ok:
        return []
    of_manifold, enough = wrong_manifold(findings)
    if enough:
        return of_manifold
    return of_manifold + next(causes for causes in _in_order(findings) if causes)


def _in_order(findings: Findings) -> Iterator[list[Cause]]:
    """Causes, the most fundamental first, as far as the findings go."""
    for of_calls in _OF_CALLS:
        yield _listed(of_calls(findings))
    point = findings.point
    if point is not None:
        for of_solution in _OF_SOLUTION:
            yield _listed(of_solution(findings, point))
        for of_point in _OF_POINT:
            yield list(of_point(findings, point))
        yield [cause for find in _OF_GRADIENT for cause in find(findings, point)]
    yield [
        Cause(
            Diagnosis.UNKNOWN,
            "a comparison failed without a known pattern",
            "look at the failed rows, and check the smallest failing input in smaller pieces",
        )
    ]


def _listed(cause: Cause | None) -> list[Cause]:
    return [] if cause is None else [cause]
