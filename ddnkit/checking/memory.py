"""Does solving depend on what was solved before? Randomness, and answers kept from other inputs.

A copy of the node as it was before the check solves x₁, x₂, and x₁ again, and x₂ in the memory where x₁
was; each is held against a copy that solves nothing else. Copies that differ among themselves are
random, not forgetful.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..problem import pull_back
from . import gradients
from .companions import items
from .differences import generator, incoming
from .findings import Findings
from .gradients import differentiable
from .landscape import apart
from .report import Compared, Comparison
from .subject import Solved, Subject


def compare_memory(findings: Findings) -> None:
    """Add the comparisons; `Findings.repeatable` says whether copies agree."""
    subject = findings.subject
    first, second = items(subject, findings.inputs, 2)
    single = subject.with_batch_dims(0)
    alone = single.fresh()
    if alone is None:
        alone = single
    expected, once_more = _fresh(alone).solve(first), _fresh(alone).solve(first)
    if not bool(expected.y.isfinite().all()):
        return
    rounding = 1e3 * torch.finfo(expected.y.dtype).eps
    if not apart(once_more.y, expected.y) <= rounding:
        findings.repeatable = False
        return
    findings.repeatable = True
    other = _fresh(alone).solve(second)
    if not bool(other.y.isfinite().all()):
        return
    error = _error_in_turn(_fresh(alone), (first, second), (expected, other))
    if not findings.compare(Comparison.MEMORY, error, max(rounding, 1e-9)):
        return
    for form in subject.forms:
        if form.name not in findings.gradients or not subject.has_adjoint(form, expected):
            continue  # what is general has nothing to keep
        error = _gradient_error(alone.with_forms([form]), first, second)
        limit = 1e-7 if expected.y.dtype == torch.float64 else 1e-3
        findings.compare(Compared(Comparison.MEMORY_GRADIENT, form.name), error, limit)


def _fresh(subject: Subject) -> Subject:
    return subject.fresh() or subject


def _error_in_turn(
    subject: Subject, inputs: tuple[Any, Any], expected: tuple[Solved, Solved]
) -> float:
    """The largest deviation of the solutions of x₁, x₂, x₁, and of x₂ in the memory of x₁."""
    first, second = inputs
    buffer = [x.clone() if isinstance(x, Tensor) else x for x in first]
    before = subject.solve(first)
    after = subject.solve(second)
    again = subject.solve(first)
    subject.solve(buffer)
    for x, y in zip(buffer, second, strict=True):
        if isinstance(x, Tensor):
            x.copy_(y)
    inside = subject.solve(buffer)
    pairs = ((after, expected[1]), (again, expected[0]), (inside, expected[1]))
    errors = [apart(found.y, right.y) for found, right in pairs]
    # A store that all copies share makes them agree; an old answer to a new question still shows.
    errors += [
        float(subject.certificate(found).stationarity.max())
        for found in (after, inside)
        if torch.equal(found.y, before.y)
        and not bool(subject.certificate(found).solved.all())
        and bool(subject.certificate(before).solved.all())
    ]
    return max(errors)


def _gradient_error(subject: Subject, first: Any, second: Any) -> float:
    """How far the gradient at x₁ is off if x₂ is solved between the way there and the way back."""
    right, late = (_gradient(_fresh(subject), first, between) for between in (None, second))
    return apart(late, right)


def _gradient(subject: Subject, xs: Any, between: Any) -> Tensor:
    solved = subject.solve(xs)
    v = incoming(solved, generator())
    variables = [xs[i].detach().clone().requires_grad_() for i in differentiable(xs)]
    moved = gradients.replaced(xs, differentiable(xs), variables)
    y = gradients.called(subject, subject.layer(subject.forms[0]), moved, solved)
    if between is not None:
        subject.solve(between)
    return torch.cat([g.reshape(-1) for g in pull_back(y, variables, v)])
