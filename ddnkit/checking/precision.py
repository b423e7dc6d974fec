"""Is the precision enough? The same in float32 and in float64, inside the node and outside."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backward.automatic import Automatic
from . import gradients
from .differences import generator, incoming
from .findings import Findings
from .landscape import relative_error
from .report import Comparison
from .subject import SolvedBatch, Subject, freeze
from .tracing import InDouble, loses_precision

#: Relative difference of float32 to float64 that passes, of y and of its gradient.
_COARSE_Y, _COARSE_GRADIENT = 1e-2, 5e-2


def compare_precision(findings: Findings) -> None:
    """Float32 inputs against the same in float64, or the other way about.

    Of given float32 inputs both results must be near. Inputs drawn in float64 are tried in float32,
    where a result that is coarse is noted and one that is not finite has overflowed.
    """
    subject, xs = findings.subject, findings.inputs
    if findings.point is not None and loses_precision(subject, findings.point.solved):
        findings.note(
            "precision",
            "float32 inside: `solve` or the objective computes below float64 although the inputs are "
            "float64; its results are good to seven digits at best",
        )
    tensors = [x for x in xs if isinstance(x, Tensor) and x.is_floating_point()]
    given_double = any(x.dtype == torch.float64 for x in tensors)
    single, double = _cast(xs, torch.float32), _cast(xs, torch.float64)
    try:
        low, high = _evaluate(subject, single), _evaluate(subject, double)
    except Exception:  # a node that holds tensors of its own takes one precision alone
        return
    if not all(bool(part.isfinite().all()) for part in high):
        return
    if not all(bool(part.isfinite().all()) for part in low):
        findings.compare(Comparison.FLOAT32_FINITE, float("inf"), 0.0)
        return
    errors = [relative_error(a.double(), b) for a, b in zip(low, high, strict=True)]
    limits = (_COARSE_Y, _COARSE_GRADIENT)
    if not given_double:
        comparisons = (Comparison.FLOAT32_Y, Comparison.FLOAT32_GRADIENT)
        for comparison, error, limit in zip(comparisons, errors, limits, strict=False):
            findings.compare(comparison, error, limit)
        return
    findings.compare(Comparison.FLOAT32_FINITE, 0.0, 0.0)
    for name, error, limit in zip(("y", "its gradient"), errors, limits, strict=False):
        if error > limit:
            findings.note(
                "float32",
                f"float32: with float32 inputs {name} is off by {error:.0e}; cast to float64 inside "
                "`solve`, or feed the layer float64",
            )


def in_double(subject: Subject, xs: Sequence[object]) -> SolvedBatch | None:
    """The solution with every cast below double undone; None if there are no such casts, or it fails."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solved = subject.solve(xs)
            if solved.y.dtype == torch.float64 and not loses_precision(subject, solved):
                return None
            with InDouble():
                return subject.solve(_cast(xs, torch.float64))
    except Exception:  # the node does not run so
        return None


def certified_in_double(subject: Subject, solved: SolvedBatch) -> bool:
    """Whether a solution passes its certificate, computed with all casts below double undone."""
    with InDouble():
        certificate = subject.certificate(solved)
    return bool(certificate.solved.all())


def _evaluate(subject: Subject, xs: Sequence[object]) -> list[Tensor]:
    """y and, where there is one, its gradient by one form."""
    solved = subject.solve(xs)
    parts = [solved.y]
    # What a layer takes by itself, unless another is asked for.
    forms = [form for form in subject.forms if not form.unrolls] if subject.asked else [Automatic()]
    if gradients.differentiable(xs) and forms:
        v = incoming(solved, generator())
        with freeze(solved.problem.originals):
            # The gradient itself is compared, whether or not a layer would trust it.
            found = gradients.backward_uncertified(subject, forms[0], xs, solved, v)
        parts.append(gradients.end_to_end(found))
    return parts


def _cast(xs: Sequence[object], dtype: torch.dtype) -> list[object]:
    return [x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in xs]
