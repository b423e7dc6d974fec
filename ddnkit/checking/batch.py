"""Do the items of a batch influence one another? Each is held against itself alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backward.form import BackwardForm
from . import gradients
from .companions import items
from .differences import generator, incoming
from .findings import Findings
from .landscape import apart
from .report import Compared, Comparison
from .subject import Solved, Subject, frozen

_ITEMS = 3


def compare_batch(findings: Findings) -> None:
    """Add the comparisons; `Findings.blamed` names the part of the node that mixes items."""
    single = findings.subject.with_batch_dims(0)
    together = findings.subject.with_batch_dims(1)
    problems = items(findings.subject, findings.inputs, _ITEMS)
    stacked = [
        torch.stack(column) if isinstance(column[0], Tensor) else column[0]
        for column in zip(*problems, strict=True)
    ]
    alone = [single.solve(xs) for xs in problems]
    if not all(bool(s.y.isfinite().all()) for s in alone):
        return
    batch = together.solve(stacked)
    noise = float(single.certificate(alone[0]).stationarity.max())
    rounding = torch.finfo(batch.y.dtype).eps
    # An iterative solver ends somewhere within its tolerance.
    limit = min(max(1e6 * rounding, 1e3 * noise), 1e-2)
    error = max(apart(batch.y[k : k + 1], s.y) for k, s in enumerate(alone))
    if not findings.compare(Comparison.BATCH, error, limit):
        findings.blamed = _solving_part(findings.subject)
        return
    for form in _forms(findings, batch):
        error = _gradient_error((single, together), form, (problems, stacked), (alone, batch))
        compared = Compared(Comparison.BATCH_GRADIENT, form.name)
        if not findings.compare(compared, error, min(100 * limit, 5e-2)):
            findings.blamed = f"{form.name}'s way back"


def _solving_part(subject: Subject) -> str:
    if subject.has_own_solve:
        return "`solve`" + (" (batched_solve = True)" if subject.node.batched_solve else "")
    return f"the solver '{getattr(subject.node.solver, 'name', subject.node.solver)}'"


def _forms(findings: Findings, batch: Solved) -> Sequence[BackwardForm]:
    """Those that bring code of the node's own, which sees the whole batch, and that run."""
    subject = findings.subject
    return [
        form
        for form in subject.forms
        if form.name in findings.gradients and subject.has_adjoint(form, batch)
    ]


def _gradient_error(
    subjects: tuple[Subject, Subject],
    form: BackwardForm,
    inputs: tuple[Sequence[Any], Sequence[Any]],
    solved: tuple[Sequence[Solved], Solved],
) -> float:
    single, together = subjects
    problems, stacked = inputs
    alone, batch = solved
    if not gradients.differentiable(stacked):
        return 0.0
    v = incoming(batch, generator())
    with frozen(batch.problem.originals):
        found, _ = gradients.backward(together, form, stacked, batch, v)
        worst = 0.0
        for k, xs in enumerate(problems):
            expected, _ = gradients.backward(single, form, xs, alone[k], v[k : k + 1])
            right = torch.cat([g.reshape(-1) for g in expected])
            own = torch.cat([g[k].reshape(-1) for g in found])
            worst = max(worst, apart(own, right))
    return worst
