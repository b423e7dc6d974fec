"""Causes that lie before any gradient: the node does not run, or its point is no solution.

Each function returns its cause if the findings speak for it.
"""

from __future__ import annotations

import math

from torch import Tensor

from ..captured import attributes
from ..solution import Status
from .findings import Cause, Findings, Point
from .landscape import distance_to_minimum
from .precision import certified_in_double, in_double
from .report import Comparison, Diagnosis
from .tracing import is_formula, last_step

#: A last step so much shorter than the way to the minimum says that the iteration is over.
_AT_REST = 1e-6
#: From here on, relative to y, a minimum is another point and not the one that was nearly reached.
_FAR = 0.5


def does_not_run(findings: Findings) -> Cause | None:
    """An exception."""
    if not findings.error:
        return None
    held = {tensor.dtype for _, tensor in attributes(findings.subject.node)}
    given = {x.dtype for x in findings.inputs if isinstance(x, Tensor) and x.is_floating_point()}
    if "dtype" in findings.error and held - given and given:
        node, inputs = sorted(map(str, held - given)), sorted(map(str, given))
        return Cause(
            Diagnosis.DOES_NOT_RUN,
            f"the node does not run: it holds {', '.join(node)} where the inputs are "
            f"{', '.join(inputs)} ({findings.error})",
            "convert the node's modules and tensors to the inputs' dtype (module.double()), or give the "
            "check inputs of the node's dtype; drawn ones are float64",
        )
    return Cause(
        Diagnosis.DOES_NOT_RUN,
        f"the node does not run: {findings.error}",
        "call ddnkit.DeclarativeLayer(node) on the inputs below: its traceback says where",
    )


def memory(findings: Findings) -> Cause | None:
    """Solving depends on chance, or on what was solved before."""
    changed = [row.error for row in findings.failures(Comparison.MEMORY)]
    if changed:
        return Cause(
            Diagnosis.STALE_ANSWER,
            f"stale cache: solving other inputs in between changes the answer by {max(changed):.1e}; the "
            "node keeps an answer, a starting point or a factorisation of other inputs",
            "keep no state on the node: return what the backward pass needs as Solution(y, aux={...}); a "
            "cache must be keyed by the content of the inputs, not by shape, id or memory",
        )
    changed = [row.error for row in findings.failures(Comparison.MEMORY_GRADIENT)]
    if changed:
        return Cause(
            Diagnosis.STALE_GRADIENT,
            "stale cache: the gradient changes by "
            f"{max(changed):.1e} if other inputs are solved between the forward and the backward pass; "
            "`adjoint` uses what the last `solve` left on the node",
            "pass it on with the solution: return Solution(y, aux={...}) and take `aux` in `adjoint`",
        )
    again = max((row.error for row in findings.failures(Comparison.SAME_SOLUTION)), default=0.0)
    if not again and findings.repeatable is not False:
        return None
    apart = f" ({again:.1e} apart, relative)" if again else ""
    if findings.repeatable:
        return Cause(
            Diagnosis.EARLIER_CALLS,
            f"the answer depends on earlier calls: solved twice, the same inputs give different points"
            f"{apart}, while copies of the node agree; it may keep a starting point",
            "keep no state on the node; to warm start, leave it to a `solver` and call layer(x, start=y)",
        )
    return Cause(
        Diagnosis.NOT_DETERMINISTIC,
        f"not deterministic: solving the same inputs twice gives different points{apart}",
        "fix the solver's seed and starting point inside `solve`; if the points differ much, the "
        "solution is not unique: add a term that singles one out",
    )


def batch_leak(findings: Findings) -> Cause | None:
    """Items of a batch that influence one another."""
    rows = findings.failures(Comparison.BATCH, Comparison.BATCH_GRADIENT)
    if not rows:
        return None
    what = "y" if rows[0].key.comparison is Comparison.BATCH else "gradients"
    return Cause(
        Diagnosis.BATCH_LEAK,
        f"items of a batch influence one another: {findings.blamed} gives another {what} for an item in "
        f"a batch than alone ({rows[0].error:.1e} apart, relative)",
        "reduce over the dimensions of one problem only (a mean, norm or maximum over dim 0 mixes "
        "items), stop each item by its own criterion; or set batched_solve = False",
    )


def not_finite(findings: Findings, point: Point) -> Cause | None:
    """NaN or infinity in y."""
    if bool(point.solved.y.isfinite().all()):
        return None
    return _too_coarse(findings, "the solver returns NaN or infinity") or Cause(
        Diagnosis.NOT_FINITE,
        "the solver returns NaN or infinity: (a) it leaves the domain of the objective, (b) it "
        "divides by zero or diverges, (c) the objective has no minimum",
        "run `solve` on the smallest failing input under torch.autograd.set_detect_anomaly, or print "
        "its iterates",
    )


def _too_coarse(findings: Findings, otherwise: str) -> Cause | None:
    """The node computes in less than double, and without that all would be well."""
    solved = in_double(findings.subject, findings.inputs)
    if solved is None or not bool(solved.y.isfinite().all()):
        return None
    if not certified_in_double(findings.subject, solved):
        return None
    return Cause(
        Diagnosis.TOO_COARSE,
        f"float32 is too coarse: {otherwise}, while the same computation in float64 has a solution "
        "that passes; the node computes in float32 or less",
        "compute in float64 inside `solve` and the objective (x.double()), or in a form that does not "
        "overflow or cancel (logsumexp, log1p, a difference of squares as a product)",
    )


def infeasible(findings: Findings, point: Point) -> Cause | None:
    """Constraints that are violated."""
    if not findings.failures(Comparison.FEASIBILITY):
        return None
    violation = f"backward error {float(point.certificate.feasibility.max()):.1e}"
    return _too_coarse(findings, f"the constraints are violated ({violation})") or Cause(
        Diagnosis.INFEASIBLE,
        f"infeasible: the solver returns a point that violates the constraints ({violation})"
        f"{_status_text(findings, point)}; no gradient can be right there",
        "project the solution onto the constraints at the end of `solve`, or fix the solver; and check "
        "that `equality_constraints` states what it enforces",
    )


def not_smooth(findings: Findings, point: Point) -> Cause | None:
    """A kink of the objective or a constraint at the solution that leaves it without a gradient."""
    if not findings.failures(Comparison.SMOOTH):
        return None
    return Cause(
        Diagnosis.NOT_SMOOTH,
        f"not smooth at the solution: {'; '.join(point.certificate.at_kinks)}",
        "check that `solve` returns a minimum; if it does, the solution has no gradient there: smooth the "
        "operation (softplus for relu, sqrt(z² + δ²) for |z|), or use policy='mask' in the layer",
    )


def weakly_active(findings: Findings, point: Point) -> Cause | None:
    """A constraint that holds as an equation, with a multiplier of zero."""
    if not findings.failures(Comparison.ACTIVE_SET):
        return None
    return degenerate(point) or Cause(
        Diagnosis.WEAKLY_ACTIVE,
        "a constraint is weakly active at the solution: it holds as an equation, and its multiplier is "
        "zero, or it meets other active ones that it does not meet for other inputs. The solution has a "
        "kink there: a small change of the inputs on one side makes the constraint active, on the other "
        "not, and no gradient is right on both",
        "check other inputs: most are not at a kink. To choose a gradient there, set the node's "
        '`degenerate` to "least_norm" (as if the constraint stays active) or "one_sided" (as if it does '
        "not); or use policy='mask' in the layer",
    )


def not_stationary(findings: Findings, point: Point) -> Cause | None:
    """∇_y L is not zero: by which of several causes."""
    if not findings.failures(Comparison.STATIONARITY, Comparison.SOLUTION):
        return None
    error = f"backward error {float(point.certificate.stationarity.max()):.1e}"
    off = max((row.error for row in findings.failures(Comparison.SOLUTION)), default=0.0)
    if off:
        far = (
            f"moves y or its gradient by {off:.1e}"
            if math.isfinite(off)
            else "does not reduce the residual"
        )
        error += f", and a step of Newton's method {far}"
    coarse = _too_coarse(findings, f"the point is not stationary ({error})")
    return coarse or degenerate(point) or _inexact(findings, point, error)


def no_solution(findings: Findings, point: Point) -> Cause | None:
    """A solver that says itself that there is no solution, where the residuals would pass."""
    if not findings.failures(Comparison.STATUS):
        return None
    status = max(point.solved.solution.statuses())
    return Cause(
        Diagnosis.NO_SOLUTION,
        f"no solution: the solver ended with status {status.name}: {status.causes}",
        "fix the problem; or, if `solve` returns the status itself, let it return one that fits its point",
    )


def degenerate(point: Point) -> Cause | None:
    """Constraints whose rank is lower at the solution than around it."""
    if not point.rank_gained:
        return None
    stationarity = float(point.certificate.stationarity.max())
    return Cause(
        Diagnosis.DEGENERATE_CONSTRAINTS,
        "degenerate constraints: the constraints touch, and no constraint qualification holds. At the "
        "solution their gradients vanish or become dependent, and just "
        f"beside it they are not (singular value {point.rank_gained:.1e} of their Jacobian, 0 at "
        f"the solution); there are no multipliers (stationarity {stationarity:.1e}) or no tangent "
        "space to differentiate on",
        "state the constraint so that its gradient does not vanish where it holds: g(y) = 0 and not "
        "g(y)² = 0 or |g(y)| = 0; drop constraints that only touch the others",
    )


def _inexact(findings: Findings, point: Point, error: str) -> Cause:
    solved, subject = point.solved, findings.subject
    moved = distance_to_minimum(solved)
    distance = (
        ""
        if moved is None
        else f"; Newton's method from its point moves y by {moved:.1e} of its size to a minimum"
    )
    if is_formula(subject, solved):
        return Cause(
            Diagnosis.OTHER_OBJECTIVE,
            f"the objective is not what is solved: `solve` computes a formula, and its result is not a "
            f"stationary point of the objective ({error}){distance}",
            "derive the formula again from the objective, factors and signs included, or leave "
            "`solve` out and let a solver find the minimum",
        )
    step = last_step(subject, solved)
    if step is not None and moved is not None and step < _AT_REST * moved:
        return Cause(
            Diagnosis.OTHER_OBJECTIVE,
            f"the objective is not what is solved: `solve` iterates until it converges (its last step "
            f"is {step:.1e} of y), at a point that is not stationary ({error}){distance}",
            "check that `solve` iterates on the gradient of the objective: signs, factors, "
            "regularisation, constraints",
        )
    if not subject.has_own_solve or _status_text(findings, point):
        return Cause(
            Diagnosis.INEXACT_SOLVE,
            f"inexact solve: the solver stops early ({error}){_status_text(findings, point)}{distance}; "
            f"{max(solved.solution.statuses()).causes}",
            "allow more iterations, start nearer, or set the node's `tolerance` to what you accept",
        )
    if moved is not None and moved >= _FAR:
        return Cause(
            Diagnosis.OTHER_OBJECTIVE,
            f"the objective is not what is solved, or the solver stops very early ({error}){distance}",
            "check that `solve` and `objective` state the same problem: signs, factors, regularisation, "
            "constraints; then check the number of iterations",
        )
    other = "" if moved is not None else ", or solves another problem than the objective states"
    return Cause(
        Diagnosis.INEXACT_SOLVE,
        f"inexact solve: the solver stops early{other} ({error}){distance}",
        "allow more iterations or a smaller tolerance, or end `solve` with a Newton step; to accept "
        "such errors set the node's `tolerance`",
    )


def _status_text(findings: Findings, point: Point) -> str:
    """The status that the solver ended with, in words, where it is no success."""
    status = max(point.solved.solution.statuses())
    if status == Status.UNKNOWN or (status == Status.CONVERGED and findings.subject.has_own_solve):
        return ""
    return f", with status {status.name}"
