"""From figures to causes: what is wrong with a node, most fundamental first."""

from __future__ import annotations

import torch

from ..errors import DdnkitError
from ..layer import batched_inputs
from ..node import DeclarativeNode
from ..problem import Problem
from .instance import Findings


def diagnose(node: DeclarativeNode, findings: Findings) -> list[str]:
    """The causes that the findings speak for, each one sentence with its figures."""
    if findings.ok:
        return []
    if findings.error:
        return [f"the node does not run: {findings.error}"]
    certificate = findings.certificate
    assert certificate is not None and findings.y is not None
    if not bool(findings.y.isfinite().all()):
        return ["the solver returned NaN or infinity"]
    if findings.failed("feasibility"):
        return [
            "infeasible: the solver returns a point that violates the constraints (backward error "
            f"{float(certificate.feasibility.max()):.1e}); no gradient can be right there. Project "
            "the solution, or mend the solver"
        ]
    if findings.failed("stationarity"):
        return [_inexact(node, findings)]
    if findings.failed("same solution"):
        return [
            "not deterministic: solving the same inputs twice gives different points; fix the "
            "solver's seed and starting point, or the solution is not unique"
        ]
    if findings.failed("second order"):
        return [
            "not a minimum: the point is stationary, but the objective curves downwards along the "
            "constraints there; the solver returns a saddle point or a maximum"
        ]
    return _gradient_causes(findings) or ["a comparison failed without a known pattern"]


def _inexact(node: DeclarativeNode, findings: Findings) -> str:
    assert findings.certificate is not None and findings.y is not None
    backward_error = f"backward error {float(findings.certificate.stationarity.max()):.1e}"
    moved = _distance_to_minimum(node, findings)
    if moved is None:
        return (
            f"inexact solve: the solver stops early, or solves another problem than the objective "
            f"states ({backward_error})"
        )
    if moved < 0.5:
        return (
            f"inexact solve: the solver stops early ({backward_error}); Newton's method from its "
            f"point moves y by {moved:.1e} of its size to a minimum. Allow more iterations or a "
            "smaller tolerance"
        )
    return (
        f"the objective is not what is solved, or the solver stops very early ({backward_error}); "
        f"Newton's method from its point moves y by {moved:.1e} of its size to a minimum"
    )


def _distance_to_minimum(node: DeclarativeNode, findings: Findings) -> float | None:
    from .. import registry

    assert findings.y is not None
    try:
        inputs, shape = batched_inputs(node, findings.inputs, None)
        problem = Problem(node, inputs, shape.numel())
        start = findings.y.reshape(shape.numel(), *findings.y.shape[len(shape) :])
        solution = registry.get("solvers", "newton")().solve(problem, start)
    except (DdnkitError, RuntimeError):
        return None
    difference = (solution.y - start).norm() / start.norm().clamp(min=1e-30)
    return float(difference) if bool(torch.isfinite(difference)) else None


def _gradient_causes(findings: Findings) -> list[str]:
    causes = []
    wrong = {row.name.split(":")[0] for row in findings.rows if not row.ok and ":" in row.name}
    off = {row.name.split(":")[0] for row in findings.rows if not row.ok and "finite" in row.name}
    if findings.difference_error > 1e-2:
        causes.append(
            "the solution jumps or is noisy near these inputs (differences with two steps disagree "
            f"by {findings.difference_error:.1e}): another branch, a non-unique solution, or a "
            "solver that is not accurate enough"
        )
    elif "closed_form" in wrong and off <= {"closed_form"}:
        causes.append(_wrong_adjoint(findings))
    elif off:
        causes.append(
            "the forms do not match finite differences although the point is stationary: (a) the "
            "solution is not unique or the constraints are degenerate there, (b) `solve` follows "
            "another branch of solutions than the one the objective singles out"
        )
    residual = [row.name for row in findings.rows if not row.ok and "adjoint residual" in row.name]
    if residual:
        causes.append(
            "the adjoint system has no solution for a general incoming gradient: the solution is "
            "not unique (its Hessian is singular on the tangent space)"
        )
    return causes


def _wrong_adjoint(findings: Findings) -> str:
    name = "the node's own adjoint is wrong"
    assert findings.differences is not None
    own, expected = findings.slopes["closed_form"], findings.differences
    dense = next((g for key, g in findings.gradients.items() if key != "closed_form"), None)
    if dense is not None:
        own, expected = findings.gradients["closed_form"], dense
    factor = float((own * expected).sum() / expected.square().sum())
    rest = float((own - factor * expected).norm() / expected.norm())
    if rest < 1e-3 and abs(factor) > 1e-6:
        return f"{name}: it is off by a factor of {factor:.4g} (its direction is right)"
    return f"{name}: it differs from the other forms and finite differences by {rest:.1e}"
