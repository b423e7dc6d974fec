"""Do problems influence one another: as items of a batch, or solved in turn on one node?

Other inputs of the same shapes are put beside those that are checked. In a batch each item is held against
itself alone. In turn, a copy of the node as it was before the check solves x₁, x₂, and x₁ again, and x₂ in
the memory where x₁ was; each is held against a copy that solves nothing else. Copies that differ among
themselves are random, and keep nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backward.form import BackwardForm
from ..batched_inputs import batched_inputs
from ..problem import pull_back
from . import gradients
from .cases import sample
from .differences import generator, incoming, random_like
from .findings import Findings
from .gradients import differentiable
from .landscape import relative_distance
from .report import Comparison, RowKey
from .subject import SolvedBatch, Subject, freeze

_SEEDS = range(2**31 - 9, 2**31 - 1)
#: Relative size of the step to a made-up companion: it should stay in the domain of the problem.
_ASIDE = 1e-2
#: Problems of the batch that is compared with its items.
_ITEMS = 3


def items(subject: Subject, xs: Sequence[object], count: int) -> list[tuple[object, ...]]:
    """Inputs of ``count`` single problems, the first that of ``xs``, without batch dimensions."""
    inputs, shape = batched_inputs(subject.node, xs, subject.batch_dims)
    given = [
        tuple(x[k] if isinstance(x, Tensor) else x for x in inputs)
        for k in range(min(shape.numel(), count))
    ]
    return given + others(subject, given[0], count - len(given))


def others(subject: Subject, item: tuple[object, ...], count: int) -> list[tuple[object, ...]]:
    """More problems like one: drawn by the node where it can, else made from it by small steps."""
    found: list[tuple[object, ...]] = []
    for seed in _SEEDS:
        if len(found) == count:
            return found
        drawn = _draw_like(subject, item, seed)
        if drawn is not None:
            found.append(drawn)
    source = generator()
    while len(found) < count:
        found.append(tuple(_step_aside(x, source) for x in item))
    return found


def _draw_like(subject: Subject, item: tuple[object, ...], seed: int) -> tuple[object, ...] | None:
    try:
        drawn = sample(subject.node, seed)
    except Exception:  # there need be nothing to draw from where inputs are given
        return None
    if len(drawn) != len(item):
        return None
    alike = []
    for x, like in zip(drawn, item, strict=True):
        if not isinstance(like, Tensor):
            alike.append(like)
            continue
        if not isinstance(x, Tensor) or x.shape != like.shape:
            return None
        alike.append(x.to(like))
    return tuple(alike)


def _step_aside(x: Any, source: torch.Generator) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return x + _ASIDE * random_like(x, source)


def compare_batch(findings: Findings) -> None:
    """Compare each item of a batch with itself alone; `Findings.blamed` is the part that mixes items."""
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
    error = max(relative_distance(batch.y[k : k + 1], s.y) for k, s in enumerate(alone))
    if not findings.compare(Comparison.BATCH, error, limit):
        findings.blamed = _solving_part(findings.subject)
        return
    for form in _forms_with_adjoint(findings, batch):
        error = _batch_gradient_error((single, together), form, (problems, stacked), (alone, batch))
        compared = RowKey(Comparison.BATCH_GRADIENT, form.name)
        if not findings.compare(compared, error, min(100 * limit, 5e-2)):
            findings.blamed = f"the backward pass of {form.name}"


def _solving_part(subject: Subject) -> str:
    if subject.has_own_solve:
        return "`solve`" + (" (batched_solve = True)" if subject.node.batched_solve else "")
    return f"the solver '{getattr(subject.node.solver, 'name', subject.node.solver)}'"


def _forms_with_adjoint(findings: Findings, solved: SolvedBatch) -> Sequence[BackwardForm]:
    """The forms that run, and that bring code of the node's own: no other mixes items or keeps anything."""
    subject = findings.subject
    return [
        form
        for form in subject.forms
        if form.name in findings.gradients and subject.resolve_form(form, solved).has_adjoint
    ]


def _batch_gradient_error(
    subjects: tuple[Subject, Subject],
    form: BackwardForm,
    inputs: tuple[Sequence[Sequence[object]], Sequence[object]],
    solved: tuple[Sequence[SolvedBatch], SolvedBatch],
) -> float:
    single, together = subjects
    problems, stacked = inputs
    alone, batch = solved
    if not gradients.differentiable(stacked):
        return 0.0
    v = incoming(batch, generator())
    with freeze(batch.problem.originals):
        found, _ = gradients.backward(together, form, stacked, batch, v)
        worst = 0.0
        for k, xs in enumerate(problems):
            expected, _ = gradients.backward(single, form, xs, alone[k], v[k : k + 1])
            right = gradients.end_to_end(expected)
            own = gradients.end_to_end([g[k] for g in found])
            worst = max(worst, relative_distance(own, right))
    return worst


def compare_memory(findings: Findings) -> None:
    """Compare solutions in turn with solutions alone; `Findings.repeatable` is whether copies agree."""
    subject = findings.subject
    first, second = items(subject, findings.inputs, 2)
    alone = subject.with_batch_dims(0)
    expected, once_more = _pristine(alone).solve(first), _pristine(alone).solve(first)
    if not bool(expected.y.isfinite().all()):
        return
    rounding = 1e3 * torch.finfo(expected.y.dtype).eps
    if not relative_distance(once_more.y, expected.y) <= rounding:
        findings.repeatable = False
        return
    findings.repeatable = True
    other = _pristine(alone).solve(second)
    if not bool(other.y.isfinite().all()):
        return
    error = _error_in_turn(_pristine(alone), (first, second), (expected, other))
    if not findings.compare(Comparison.MEMORY, error, max(rounding, 1e-9)):
        return
    for form in _forms_with_adjoint(findings, expected):
        error = _gradient_error(alone.with_forms([form]), first, second)
        limit = 1e-7 if expected.y.dtype == torch.float64 else 1e-3
        findings.compare(RowKey(Comparison.MEMORY_GRADIENT, form.name), error, limit)


def _pristine(subject: Subject) -> Subject:
    return subject.pristine() or subject


def _error_in_turn(
    subject: Subject, inputs: tuple[Any, Any], expected: tuple[SolvedBatch, SolvedBatch]
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
    errors = [relative_distance(found.y, right.y) for found, right in pairs]
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
    """How far the gradient at x₁ is off if x₂ is solved between the forward and the backward pass."""
    right, late = (_gradient(_pristine(subject), first, between) for between in (None, second))
    return relative_distance(late, right)


def _gradient(subject: Subject, xs: Any, between: Any) -> Tensor:
    solved = subject.solve(xs)
    v = incoming(solved, generator())
    variables = [x.detach().clone().requires_grad_() for x in differentiable(xs).values()]
    moved = gradients.replace_inputs(xs, variables)
    y = gradients.call_layer(subject, subject.layer(subject.forms[0]), moved, solved)
    if between is not None:
        subject.solve(between)
    return gradients.end_to_end(pull_back(y, variables, v))
