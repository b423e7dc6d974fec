"""Gradients and forward derivatives of one backward form, by the public way: a layer and torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backward.form import BackwardForm
from ..captured import Captured
from ..certificate import Certificate
from ..layer import DeclarativeLayer
from ..problem import pull_back
from .subject import SolvedBatch, Subject, vector


def differentiable(xs: Sequence[object]) -> dict[int, Tensor]:
    """The inputs that have a gradient, by their positions."""
    return {i: x for i, x in enumerate(xs) if isinstance(x, Tensor) and x.is_floating_point()}


def replace_inputs(xs: Sequence[object], values: Sequence[Tensor]) -> list[object]:
    """The inputs with others in place of the differentiable ones."""
    replaced = list(xs)
    for i, value in zip(differentiable(xs), values, strict=True):
        replaced[i] = value
    return replaced


def move_inputs(xs: Sequence[object], direction: Sequence[Tensor], step: float) -> list[object]:
    """The inputs, moved so far along a direction of the differentiable ones."""
    pairs = zip(differentiable(xs).values(), direction, strict=True)
    return replace_inputs(xs, [x + step * u for x, u in pairs])


def backward(
    subject: Subject, form: BackwardForm, xs: Sequence[object], solved: SolvedBatch, v: Tensor
) -> tuple[list[Tensor], Certificate]:
    """v·dy/dxᵢ for each differentiable input, and the certificate; v is (B, m)."""
    variables = [x.detach().clone().requires_grad_() for x in differentiable(xs).values()]
    layer = subject.layer(form)
    y = call_layer(subject, layer, replace_inputs(xs, variables), solved)
    gradients = pull_back(y, variables, v)
    assert layer.certificate is not None
    return gradients, layer.certificate


def backward_uncertified(
    subject: Subject, form: BackwardForm, xs: Sequence[object], solved: SolvedBatch, v: Tensor
) -> list[Tensor]:
    """The gradient of `backward`, whatever the certificate says of it."""
    return backward(subject.with_tolerance(float("inf")), form, xs, solved, v)[0]


def backward_of_captured(
    subject: Subject,
    form: BackwardForm,
    xs: Sequence[object],
    solved: SolvedBatch,
    v: Tensor,
    captured: Sequence[Captured],
) -> list[Tensor]:
    """v·dy/dθ for each captured tensor θ."""
    y = call_layer(subject, subject.layer(form), list(xs), solved)
    return pull_back(y, [c.tensor for c in captured], v)


def forward(
    subject: Subject,
    form: BackwardForm,
    xs: Sequence[object],
    solved: SolvedBatch,
    direction: Sequence[Tensor],
) -> Tensor:
    """dy along a direction of the differentiable inputs, (B, m)."""
    layer = subject.layer(form)

    def of_inputs(*values: Tensor) -> Tensor:
        return call_layer(subject, layer, replace_inputs(xs, values), solved)

    primals = tuple(x.detach() for x in differentiable(xs).values())
    tangent: Tensor = torch.func.jvp(of_inputs, primals, tuple(direction))[1]
    return tangent


def call_layer(
    subject: Subject, layer: DeclarativeLayer, xs: Sequence[object], solved: SolvedBatch
) -> Tensor:
    """y (B, m); a solver that takes a start is given the solution, so that all forms are compared there."""
    settings = {}
    if not subject.has_own_solve:
        point, structure = solved.solution.y, solved.problem.structure
        whole = point.reshape((*solved.shape, *point.shape[1:]))
        settings = {"start": whole if structure is None else structure.split(whole)}
    y = vector(layer(*xs, **settings), len(solved.shape))
    return y.reshape(-1, y.shape[-1])


def end_to_end(gradients: Sequence[Tensor]) -> Tensor:
    """The gradients of several inputs as one vector."""
    return torch.cat([g.reshape(-1) for g in gradients])
