"""A manifold that is not what it says: whatever else fails may follow from that."""

from __future__ import annotations

from typing import Any

import torch

from ..batched_inputs import batched_inputs
from ..problem import Problem
from .findings import Cause, Findings
from .manifold_report import ManifoldReport
from .manifolds import check_manifold
from .report import Diagnosis

#: Unknowns up to which a manifold is checked at the shape of the node's y.
_MOST_UNKNOWNS = 256
#: What gradients and certificates rest on; the others are a solver's.
_OF_GRADIENTS = frozenset(
    [
        "constraint",
        "constraint_jacobian",
        "infeasibility",
        "vertical",
        "normal",
        "multipliers",
        "normal_by_rows",
        "less_normal",
        "constraint_curvature",
        "tangent",
    ]
)


def wrong_manifold(findings: Findings) -> tuple[list[Cause], bool]:
    """The methods of the node's manifold that are wrong, and whether all that failed may follow from them."""
    report = _report(findings)
    if report is None:
        return [], False
    causes = [
        Cause(
            Diagnosis.WRONG_MANIFOLD,
            f"the node's manifold {report.target}: {fault.text}",
            fault.next,
        )
        for fault in report.faults
        # No node and no solver takes a geodesic.
        if fault.methods != ("exponential",)
    ]
    return causes, not _OF_GRADIENTS.isdisjoint(report.wrong)


def _report(findings: Findings) -> ManifoldReport | None:
    """Of the manifold of the node, at the shape of its y; None without one, or if it cannot be checked."""
    subject = findings.subject
    if subject.node.manifold is None:
        return None
    known = subject.manifold_reports
    try:
        manifold, shape = _manifold_and_shape(findings)
        if shape not in known:
            small = torch.Size(shape).numel() <= _MOST_UNKNOWNS
            known[shape] = check_manifold(manifold, shape if small else None, examples=1)
    except (
        Exception
    ):  # a stranger's manifold may raise anything, and the rest is diagnosed without it
        return None
    return known[shape]


def _manifold_and_shape(findings: Findings) -> tuple[Any, tuple[int, ...]]:
    subject, point = findings.subject, findings.point
    if point is not None:
        return point.solved.problem.manifold, tuple(point.solved.solution.y.shape[1:])
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        inputs, shape = batched_inputs(subject.node, findings.inputs, subject.batch_dims)
        problem = Problem(subject.node, inputs, shape.numel())
        y = problem.start()
    return problem.manifold, tuple(y.shape[1:])
