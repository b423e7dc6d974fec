"""Comparisons for tensors that the node holds and that want a gradient: parameters, modules."""

from __future__ import annotations

import torch

from . import gradients
from .differences import along_captured, random_like, step_for
from .findings import Findings
from .forms import compare_form, difference_limit, refuse
from .subject import Solved


def compare_parameters(findings: Findings, solved: Solved, source: torch.Generator) -> None:
    """Each form's gradient for each of them, against central differences along one direction."""
    subject, certificate, v = findings.subject, findings.certificate, findings.v
    assert certificate is not None and v is not None
    least_size = 1e-3 * float(v.norm() * solved.y.norm())
    for k, one in enumerate(solved.problem.originals):
        u = random_like(one.tensor.detach(), source)
        differences = along_captured(subject, solved, one, u, step_for(certificate))
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
                refuse(findings, form, error)
                continue
            slope = float((found * u).sum())
            scale = max(abs(expected), abs(slope), least_size, 1e-300)
            allowed = max(difference_limit(v), min(disagreement / scale, 1e-2))
            name = f"parameter {one.path or k}"
            compare_form(findings, form.name, name, abs(slope - expected) / scale, allowed)
