"""Causes of a wrong gradient at a point that is stationary and feasible.

Each function yields the causes that the findings speak for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..backward.dense import Dense
from ..backward.form import BackwardForm
from ..backward.krylov import Krylov
from ..linalg.kkt import RANK_REVEALING_SIZE
from ..solution import Status
from . import gradients
from .adjoint_pattern import recognise
from .causes_of_node import degenerate
from .differences import along_inputs
from .findings import Cause, Findings, Point, Slopes
from .forms import general_form, slopes_of
from .gradients import differentiable, move_inputs
from .landscape import continue_solution
from .point import UNRELIABLE
from .report import Comparison, Diagnosis
from .subject import freeze


def not_a_minimum(findings: Findings, point: Point) -> Iterator[Cause]:
    """A saddle point or a maximum."""
    for row in findings.failures(Comparison.MINIMUM):
        yield Cause(
            Diagnosis.NOT_A_MINIMUM,
            "not a minimum: the point is stationary, but the objective curves downwards along the "
            f"constraints there (relative curvature {-row.error:.1e}); the solver returns a saddle "
            "point or a maximum",
            "return the stationary point with the lowest objective; of several roots or eigenvectors, "
            "compare their objectives",
        )


def not_unique(findings: Findings, point: Point) -> Iterator[Cause]:
    """A solution that is one of several, or a system too badly conditioned to solve."""
    flat = findings.failures(Comparison.STRICT_MINIMUM)
    residual = findings.failures(Comparison.RESIDUAL)
    if flat or residual:
        curvature = point.certificate.curvature
        least = "" if curvature is None else f", relative curvature {float(curvature.min()):.1e}"
        worst = "" if not residual else f"; adjoint residual {max(r.error for r in residual):.1e}"
        if flat or curvature is None:
            yield Cause(
                Diagnosis.NOT_UNIQUE,
                "the solution is not unique: the objective is flat along the constraints there"
                f"{least}{worst}, so that no gradient exists",
                "add a term that singles one solution out, such as δ‖y − y₀‖², or a constraint that "
                "fixes the free part (a scale, a sign, a rotation)",
            )
        else:
            yield Cause(
                Diagnosis.BADLY_CONDITIONED,
                f"the adjoint system is not solved{worst.replace('; adjoint', ':')}{least}; the problem is "
                "badly conditioned for its dtype",
                "use float64, backward='dense', rescale y, or regularise the objective",
            )


def degenerate_constraints(findings: Findings, point: Point) -> Iterator[Cause]:
    """Constraints that their linearisation does not describe."""
    cause = degenerate(point)
    if cause is not None:
        yield cause


def other_branch(findings: Findings, point: Point) -> Iterator[Cause]:
    """A solution that is not the one meant, or not the one that was followed."""
    lower, slopes = point.lower, findings.slopes
    if lower is not None and findings.failures(Comparison.LOWEST):
        yield Cause(
            Diagnosis.LOWER_MINIMUM,
            f"another branch: `solve` computes a formula for a local minimum with objective "
            f"{lower.here:.6g}, but there is a lower one, {lower.there:.6g} ({lower.distance:.1e} away, "
            "relative)",
            "choose the root with the least objective; if the local one is meant, check with "
            "local=True (--local)",
        )
    for row in findings.failures(Comparison.NEARBY):
        if point.beside is not None:
            worst = max(
                float(point.beside.stationarity.max()), float(point.beside.feasibility.max())
            )
            yield Cause(
                Diagnosis.INEXACT_SOLVE,
                "inexact solve: at inputs next to these the solver ends without a solution "
                f"(backward error {worst:.1e}, status {Status(int(point.beside.status.max())).name})",
                "choose another solver (`ddnkit list solvers`): newton and lbfgs need an objective "
                "that is smooth along their path, not only at the solution",
            )
            continue
        who = "`solve`" if findings.subject.has_own_solve else "the solver from its own start"
        yield Cause(
            Diagnosis.OTHER_BRANCH,
            f"another branch: at inputs next to these {who} jumps to another solution than the one "
            f"that continues smoothly ({row.error:.1e} away, relative)",
            "choose among solutions by a rule that is continuous in the inputs, or warm-start from the "
            "last solution (layer(x, start=y))",
        )
    jumps = findings.failures(Comparison.NEARBY, Comparison.LOWEST)
    if slopes is not None and slopes.error > UNRELIABLE and not jumps:
        yield Cause(
            Diagnosis.NOISY_SOLUTION,
            "the solution jumps or is noisy near these inputs: differences with two steps disagree by "
            f"{slopes.error:.1e}, (a) another branch, (b) a solution that is not unique, "
            "(c) a solver that is not accurate enough",
            "tighten the solver's tolerance first; then look for choices that depend on rounding",
        )


def form_does_not_run(findings: Findings, point: Point) -> Iterator[Cause]:
    """A form that raises."""
    reasons = {row.key.form: row.note for row in findings.failures(Comparison.FORM_RUNS)}
    for form, error in reasons.items():
        yield Cause(
            Diagnosis.FORM_DOES_NOT_RUN,
            f"the form '{form}' does not run: {error}",
            "fix what the error names; backward='dense' uses only the node's objective and constraints",
        )


def wrong_gradient(findings: Findings, point: Point) -> Iterator[Cause]:
    """A form that does not match the differences: a wrong adjoint, or a dependence that is hidden."""
    slopes = findings.slopes
    if slopes is None or slopes.error > UNRELIABLE or findings.failures(Comparison.NEARBY):
        return
    wrong = {row.key.form for row in findings.failures(Comparison.DIFFERENCES, Comparison.AGAINST)}
    if not wrong:
        return
    expected = _general_gradient(findings, point)
    if _is_off(findings, point, slopes, expected):
        followed = _newton_follows(findings, point, slopes)
        yield _hidden_input(findings, point, slopes, expected) if followed else _other_motion(wrong)
        return
    subject = findings.subject
    taken = {form.name: subject.resolve_form(form, point.solved) for form in subject.forms}
    own = {name for name, form in taken.items() if form.has_adjoint}
    for name in sorted(wrong & own):
        yield _wrong_adjoint(findings, point, name, taken[name], expected)
    if wrong - own:
        yield Cause(
            Diagnosis.SYSTEM_NOT_SOLVED,
            f"{', '.join(sorted(wrong - own))}: the linear system is solved differently from the other forms",
            "use backward='dense'; check the problem's condition number, and whether y needs rescaling",
        )


def wrong_forward(findings: Findings, point: Point) -> Iterator[Cause]:
    """Forward mode that is not the transpose of the backward pass."""
    off = {row.key.form for row in findings.failures(Comparison.DIFFERENCES)}
    for row in findings.failures(Comparison.FORWARD):
        form = row.key.form
        if form not in off:
            yield Cause(
                Diagnosis.FORWARD,
                f"{form}: forward mode and the backward pass disagree by {row.error:.1e}, although the "
                "backward pass matches finite differences",
                "make objective and constraints twice differentiable by torch, without in-place writes "
                "and custom autograd functions",
            )


def wrong_parameters(findings: Findings, point: Point) -> Iterator[Cause]:
    """A parameter whose gradient does not match the differences, where the inputs' do."""
    if findings.failures(Comparison.DIFFERENCES):
        return
    rows = findings.failures(Comparison.PARAMETER)
    for name in dict.fromkeys(row.key.parameter for row in rows):
        worst = max(row.error for row in rows if row.key.parameter == name)
        yield Cause(
            Diagnosis.PARAMETER,
            f"parameter {name}: its gradient does not match finite differences ({worst:.1e}): `solve` "
            "depends on it in another way than the objective does",
            "use the same parameter in `solve` and `objective`: itself, not a copy",
        )


def float32(findings: Findings, point: Point) -> Iterator[Cause]:
    """A result that float32 spoils."""
    comparisons = (Comparison.FLOAT32_FINITE, Comparison.FLOAT32_Y, Comparison.FLOAT32_GRADIENT)
    for row in findings.failures(*comparisons):
        overflows = row.key.comparison is Comparison.FLOAT32_FINITE
        text = (
            "overflows: the result is NaN or infinite with float32 inputs and finite with float64"
            if overflows
            else f"is too coarse: with float32 inputs it is off by {row.error:.1e} from float64"
        )
        yield Cause(
            Diagnosis.FLOAT32_OVERFLOWS if overflows else Diagnosis.FLOAT32_COARSE,
            f"float32 {text}",
            "compute in float64 inside `solve` and the objective (x.double()), or in a form that does "
            "not overflow or cancel (logsumexp, log1p, a difference of squares as a product)",
        )


def coarse_inputs(findings: Findings, point: Point) -> Iterator[Cause]:
    """Given float32 inputs at which y itself is far off, whatever else follows from it."""
    if findings.failures(Comparison.FLOAT32_Y):
        yield from float32(findings, point)


def _wrong_adjoint(
    findings: Findings, point: Point, name: str, form: BackwardForm, expected: Sequence[Tensor]
) -> Cause:
    solved, v = point.solved, point.v
    with freeze(solved.problem.originals):
        cause = recognise(
            findings.subject, findings.inputs, solved, v, findings.gradients[name], expected
        )
    what = "the node's own adjoint" if form.node_member == "adjoint" else f"the form '{form.name}'"
    return replace(cause, text=f"{what} is wrong: {cause.text}")


def _general_gradient(findings: Findings, point: Point) -> list[Tensor]:
    """The gradient that needs nothing of the node but its objective and constraints."""
    solved, v = point.solved, point.v
    name = general_form(findings)
    if name is not None:
        return findings.gradients[name]
    form = Dense() if solved.y.shape[-1] <= RANK_REVEALING_SIZE else Krylov()
    with freeze(solved.problem.originals):
        return gradients.backward_uncertified(findings.subject, form, findings.inputs, solved, v)


def _is_off(findings: Findings, point: Point, slopes: Slopes, expected: Sequence[Tensor]) -> bool:
    """Whether the general gradient is off from the differences."""
    off = slopes_of(expected, findings.directions) - slopes.differences.slopes(point.v)
    return float(off.norm()) > 1e-3 * slopes.scale


def _newton_follows(findings: Findings, point: Point, slopes: Slopes) -> bool:
    """Whether Newton's method on the objective moves with the inputs as the node's solution does."""
    differences, v, solved = slopes.differences, point.v, point.solved
    step = differences.step
    ends = [
        continue_solution(
            findings.subject, move_inputs(findings.inputs, findings.directions[0], t), solved
        )
        for t in (step, -step)
    ]
    if ends[0] is None or ends[1] is None:
        return True
    slope = ((ends[0] - ends[1]) * v).sum() / (2 * step)
    return float((slope - differences.slopes(v)[0]).abs()) <= 1e-2 * slopes.scale


def _hidden_input(
    findings: Findings, point: Point, slopes: Slopes, expected: Sequence[Tensor]
) -> Cause:
    missing, size = _find_hidden_inputs(findings, point, slopes, expected)
    names = ", ".join(str(i) for i in missing) or "?"
    zero = all(
        not bool(expected[k].any())
        for k, i in enumerate(differentiable(findings.inputs))
        if i in missing
    )
    return Cause(
        Diagnosis.HIDDEN_INPUT,
        f"forgotten input: the solution changes with input {names} (by {size:.1e}, finite differences), but "
        f"{'no' if zero else 'only part of the'} gradient reaches it: objective or constraints hide it "
        "from torch",
        "use the input in the objective as a tensor: no detach(), .item(), .data, numpy, no_grad, and "
        "no branch or rounding on its value",
    )


def _find_hidden_inputs(
    findings: Findings, point: Point, slopes: Slopes, expected: Sequence[Tensor]
) -> tuple[list[int], float]:
    """Inputs along which the differences move otherwise than the general gradient, and how much."""
    subject, solved, v = findings.subject, point.solved, point.v
    missing, size = [], 0.0
    for k, i in enumerate(differentiable(findings.inputs)):
        along = [
            [u if j == k else torch.zeros_like(u) for j, u in enumerate(direction)]
            for direction in findings.directions
        ]
        found = along_inputs(subject, findings.inputs, solved, along, slopes.differences.step)
        off = (found.slopes(v) - slopes_of(expected, along)).norm()
        if float(off) > 1e-3 * slopes.scale:
            missing.append(i)
            size = max(size, float(found.slopes(v).norm()))
    return missing, size


def _other_motion(wrong: set[str]) -> Cause:
    return Cause(
        Diagnosis.OTHER_MOTION,
        f"{', '.join(sorted(wrong))}: `solve` changes with the inputs in another way than the objective "
        "says, although its point is stationary: (a) the solution is not unique or barely so, (b) it follows "
        "another branch, (c) `solve` is exact only to the node's tolerance",
        "lower the node's `tolerance` and see whether the point still passes; check at other inputs",
    )
