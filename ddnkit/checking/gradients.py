"""Gradients and forward derivatives of one backward form, by the public way: a layer and torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..backward.form import BackwardForm
from ..captured import Captured
from ..certificate import Certificate
from .subject import SolvedBatch, Subject, vector


def differentiable(xs: Sequence[Any]) -> list[int]:
    """Positions of the inputs that have a gradient."""
    return [i for i, x in enumerate(xs) if isinstance(x, Tensor) and x.is_floating_point()]


def replace_inputs(xs: Sequence[Any], wrt: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """The inputs with others at the positions ``wrt``."""
    replaced = list(xs)
    for i, value in zip(wrt, values, strict=True):
        replaced[i] = value
    return replaced


def backward(
    subject: Subject, form: BackwardForm, xs: Sequence[Any], solved: SolvedBatch, v: Tensor
) -> tuple[list[Tensor], Certificate]:
    """v·dy/dxᵢ for each differentiable input, and the certificate; v is (B, m)."""
    wrt = differentiable(xs)
    variables = [xs[i].detach().clone().requires_grad_() for i in wrt]
    layer = subject.layer(form)
    y = call_layer(subject, layer, replace_inputs(xs, wrt, variables), solved)
    gradients = pull_back(y, variables, v)
    assert layer.certificate is not None
    return gradients, layer.certificate


def backward_uncertified(
    subject: Subject, form: BackwardForm, xs: Sequence[Any], solved: SolvedBatch, v: Tensor
) -> list[Tensor]:
    """The same whatever the certificate says."""
    return backward(subject.with_tolerance(float("inf")), form, xs, solved, v)[0]


def backward_of_captured(
    subject: Subject,
    form: BackwardForm,
    xs: Sequence[Any],
    solved: SolvedBatch,
    v: Tensor,
    captured: Sequence[Captured],
) -> list[Tensor]:
    """The same for captured tensors."""
    y = call_layer(subject, subject.layer(form), list(xs), solved)
    return pull_back(y, [c.tensor for c in captured], v)


def forward(
    subject: Subject,
    form: BackwardForm,
    xs: Sequence[Any],
    solved: SolvedBatch,
    direction: Sequence[Tensor],
) -> Tensor:
    """dy along a direction of the differentiable inputs, (B, m)."""
    wrt = differentiable(xs)
    layer = subject.layer(form)

    def of_inputs(*values: Tensor) -> Tensor:
        return call_layer(subject, layer, replace_inputs(xs, wrt, values), solved)

    primals = tuple(xs[i].detach() for i in wrt)
    tangent: Tensor = torch.func.jvp(of_inputs, primals, tuple(direction))[1]
    return tangent


def call_layer(subject: Subject, layer: Any, xs: Sequence[Any], solved: SolvedBatch) -> Tensor:
    """y (B, m), from the solution where the node's solver takes a start: all forms at one point."""
    settings = {}
    if not subject.has_own_solve:
        point, structure = solved.solution.y, solved.problem.structure
        whole = point.reshape((*solved.shape, *point.shape[1:]))
        settings = {"start": whole if structure is None else structure.split(whole)}
    y = vector(layer(*xs, **settings), len(solved.shape))
    return y.reshape(-1, y.shape[-1])


def pull_back(y: Tensor, variables: Sequence[Tensor], v: Tensor) -> list[Tensor]:
    """v·dy for each variable, zero for one that y does not depend on."""
    if not y.requires_grad or not variables:
        return [torch.zeros_like(x) for x in variables]
    found = torch.autograd.grad(y, variables, v, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(variables, found, strict=True)]
