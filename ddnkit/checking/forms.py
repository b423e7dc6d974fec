"""Comparisons of the backward forms: with finite differences, each other, and forward mode.

For the inputs, and for tensors that the node holds and that want a gradient: parameters, modules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backward.dense import Dense
from ..backward.form import BackwardForm
from ..backward.krylov import Krylov
from ..certificate import MOST_ERROR, Certificate
from ..errors import DdnkitError
from ..linalg.kkt import RANK_REVEALING_SIZE
from . import gradients
from .differences import along_captured, along_inputs, random_like, step_for
from .findings import Findings, Point, Slopes
from .report import Comparison, RowKey


def compare_backward(findings: Findings, point: Point) -> None:
    """The gradient of each form, and the residual of its linear system."""
    solved = point.solved
    for form in findings.subject.forms:
        if form.dense and solved.y.shape[-1] > RANK_REVEALING_SIZE:
            text = f"{form.name}: not compared, y has more than {RANK_REVEALING_SIZE} unknowns"
            findings.note(f"form {form.name}", text)
            continue
        try:
            found, certificate = gradients.backward(
                findings.subject, form, findings.inputs, solved, point.v
            )
        except Exception as error:  # of the node's adjoint, or of steps that are differentiated
            record_error(findings, form, error)
            continue
        residual, solvable = certificate.adjoint_residual, True
        if residual is not None:
            worst, tolerance = residual.max(), certificate.tolerance
            compared = RowKey(Comparison.RESIDUAL, form.name)
            solvable = compare_form(findings, compared, float(worst), tolerance)
            if counts(findings, form.name):
                point.certificate = _with_residual(point.certificate, residual)
        off = certificate.solution_error
        if off is not None and counts(findings, form.name):
            solvable &= findings.compare(Comparison.SOLUTION, float(off.max()), MOST_ERROR)
        if solvable:  # else the layer's gradient is NaN, which is no news
            findings.gradients[form.name] = found


def compare_differences(findings: Findings, point: Point) -> Slopes:
    """Each form against central differences, along all directions at once."""
    solved, v = point.solved, point.v
    differences = along_inputs(
        findings.subject, findings.inputs, solved, findings.directions, step_for(point.certificate)
    )
    fine = differences.slopes(v)
    slopes = {
        name: slopes_of(found, findings.directions) for name, found in findings.gradients.items()
    }
    # A gradient may be zero: then the slopes are held against a thousandth of what they would be
    # if y moved as much as the inputs do.
    sizes = [float(s.norm()) for name, s in slopes.items() if counts(findings, name)]
    least_size = 1e-3 * float(v.norm() * solved.y.norm())
    scale = max(float(fine.norm()), *sizes, least_size, 1e-300)
    found = Slopes(differences, float(differences.disagreement(v)) / scale, scale)
    findings.slopes = found
    allowed = max(difference_limit(v), min(found.error, 1e-2))
    for name, slope in slopes.items():
        error = float((slope - fine).norm()) / scale
        compare_form(findings, RowKey(Comparison.DIFFERENCES, name), error, allowed)
    return found


def compare_forms(findings: Findings, point: Point) -> None:
    """Each form's gradient against that of the reference form."""
    reference = reference_form(findings)
    if reference is None or len(findings.gradients) < 2:
        return
    expected = gradients.end_to_end(findings.gradients[reference])
    size = max(float(expected.norm()), _least_gradient(findings, point), 1e-300)
    double = expected.dtype == torch.float64
    for name in findings.gradients:
        if name == reference:
            continue
        found = gradients.end_to_end(findings.gradients[name])
        # Where it converges, an iteration has its derivative later than its value.
        limit = (1e-4 if _unrolls(findings, name) else 1e-7) if double else 1e-2
        error = float((found - expected).norm()) / size
        compare_form(findings, RowKey(Comparison.AGAINST, name, reference), error, limit)


def _least_gradient(findings: Findings, point: Point) -> float:
    """A thousandth of the gradient of a y that moves as much as the inputs do: a gradient may be zero."""
    inputs = [x for x in findings.inputs if isinstance(x, Tensor) and x.is_floating_point()]
    size = float(torch.stack([x.double().norm() for x in inputs]).norm()) if inputs else 0.0
    moves = float(point.v.norm() * point.solved.y.norm())
    return 1e-3 * moves / size if size else 0.0


def compare_forward(findings: Findings, point: Point, slopes: Slopes) -> None:
    """v·(J u), by torch.func.jvp, against (Jᵀv)·u."""
    v = point.v
    for form in findings.subject.forms:
        if form.name not in findings.gradients:
            continue
        pulled = slopes_of(findings.gradients[form.name], findings.directions)[0]
        try:
            pushed = gradients.forward(
                findings.subject, form, findings.inputs, point.solved, findings.directions[0]
            )
        except Exception as error:
            record_error(findings, form, error)
            continue
        apart = float(((pushed * v).sum() - pulled).abs()) / slopes.scale
        limit = 1e-7 if v.dtype == torch.float64 else 1e-2
        compare_form(findings, RowKey(Comparison.FORWARD, form.name), apart, limit)


def compare_parameters(findings: Findings, point: Point, source: torch.Generator) -> None:
    """Each form's gradient for each tensor of the node's, against differences along one direction."""
    subject, solved, v = findings.subject, point.solved, point.v
    least_size = 1e-3 * float(v.norm() * solved.y.norm())
    for k, one in enumerate(solved.problem.originals):
        u = random_like(one.tensor.detach(), source)
        differences = along_captured(subject, solved, one, u, step_for(point.certificate))
        expected = float(differences.slopes(v)[0])
        disagreement = float(differences.disagreement(v))
        for form in subject.forms:
            if findings.gradients and form.name not in findings.gradients:
                continue
            try:
                (found,) = gradients.backward_of_captured(
                    subject, form, findings.inputs, solved, v, [one]
                )
            except Exception as error:
                record_error(findings, form, error)
                continue
            slope = float((found * u).sum())
            scale = max(abs(expected), abs(slope), least_size, 1e-300)
            allowed = max(difference_limit(v), min(disagreement / scale, 1e-2))
            compared = RowKey(Comparison.PARAMETER, form.name, parameter=str(one.path or k))
            compare_form(findings, compared, abs(slope - expected) / scale, allowed)


def compare_form(findings: Findings, compared: RowKey, error: float, tolerance: float) -> bool:
    """Add a comparison of one form, or a note where its errors are no failures; returns whether it held."""
    if counts(findings, compared.form) or error <= tolerance:
        return findings.compare(compared, error, tolerance)
    findings.note(
        f"form {compared.form}",
        f"{compared}, it is off by {error:.1e}; the steps of `solve` do not carry the "
        "derivative there, and no other form uses them",
    )
    return False


def counts(findings: Findings, form: str) -> bool:
    """Whether an error of this form is a failure."""
    return findings.subject.asked or not _unrolls(findings, form)


def reference_form(findings: Findings) -> str | None:
    """The form that the others are compared with, or None where there is none.

    It is "dense" or "krylov", which need nothing of the node but its objective and constraints; where
    neither ran, the last form that does not unroll.
    """
    forms = [form for form in findings.subject.forms if form.name in findings.gradients]
    others = [form.name for form in reversed(forms) if not form.unrolls]
    return general_form(findings) or next(iter(others), None)


def general_form(findings: Findings) -> str | None:
    """The form that needs nothing of the node but its objective and constraints, if one ran."""
    forms = [form for form in findings.subject.forms if form.name in findings.gradients]
    return next((f.name for kind in (Dense, Krylov) for f in forms if type(f) is kind), None)


def _unrolls(findings: Findings, name: str) -> bool:
    return any(form.unrolls for form in findings.subject.forms if form.name == name)


def difference_limit(like: Tensor) -> float:
    """What central differences agree to."""
    return 1e-5 if like.dtype == torch.float64 else 2e-2


def record_error(findings: Findings, form: BackwardForm, error: Exception) -> None:
    """Add that a form raised an error: as a failure, or as a note where its errors are none."""
    said = str(error) if isinstance(error, DdnkitError) else f"{type(error).__name__}: {error}"
    if counts(findings, form.name):
        findings.compare(RowKey(Comparison.FORM_RUNS, form.name), float("nan"), 0.0, said)
    else:
        text = f"{form.name}: not compared, torch cannot differentiate the steps of `solve`"
        findings.note(f"form {form.name}", text)


def slopes_of(found: Sequence[Tensor], directions: Sequence[Sequence[Tensor]]) -> Tensor:
    """g·u for each direction."""
    return torch.stack(
        [
            torch.stack([(g * u).sum() for g, u in zip(found, direction, strict=True)]).sum()
            for direction in directions
        ]
    )


def _with_residual(certificate: Certificate, residual: Tensor) -> Certificate:
    residual = residual.detach().reshape(certificate.stationarity.shape)
    if certificate.adjoint_residual is not None:
        residual = torch.maximum(residual, certificate.adjoint_residual)
    return dataclasses.replace(certificate, adjoint_residual=residual)
