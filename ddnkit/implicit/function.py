"""Implicit: the autograd.Function behind every derivative (short calls have one for plain gradients).

A quantity w(θ) that is defined by an equation, found by numbers and differentiated by formulas, is an
`Equation`: how to `solve` it, and its derivative in both directions written as functions of operands
and outputs that torch can differentiate again. Because the outputs come back to `vjp` and `jvp` with
their own history, derivatives of every order are exact, whatever the nesting of transforms.

Two equations depend on each other here: the solution of a node (`SolutionEquation`), whose derivative
needs the solution of a linear system on the tangent space (`TangentEquation`), whose derivative is
such a system again.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..errors import InputError

Unfold = Callable[[Tensor], Tensor]


class Equation(abc.ABC):
    """w(θ): how it is found and how it is differentiated."""

    #: how many of the last outputs have no derivative
    auxiliary = 0

    @abc.abstractmethod
    def solve(self, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The outputs, by numbers: plain tensors, no graph."""

    @abc.abstractmethod
    def vjp(
        self,
        operands: Sequence[Tensor],
        outputs: Sequence[Tensor],
        cotangents: Sequence[Tensor],
        wrt: Sequence[int],
    ) -> list[Tensor | None]:
        """The gradient for each operand of ``wrt``, None for the others; differentiable."""

    @abc.abstractmethod
    def jvp(
        self,
        operands: Sequence[Tensor],
        outputs: Sequence[Tensor],
        tangents: Sequence[Tensor | None],
    ) -> tuple[Tensor, ...]:
        """The derivative of each differentiable output along the tangents; differentiable."""

    @abc.abstractmethod
    def fold(
        self, size: int, in_dims: Sequence[int | None], operands: Sequence[Tensor]
    ) -> tuple[Equation, list[Tensor], Unfold]:
        """vmap: the equation and operands with the new dimension inside the batch, and the way back."""


def solution_of(equation: Equation, *operands: Tensor) -> tuple[Tensor, ...]:
    """The outputs of an equation, differentiable in its operands."""
    outputs: tuple[Tensor, ...] = _Implicit.apply(equation, *operands)
    return outputs


class _Implicit(torch.autograd.Function):
    @staticmethod
    def forward(equation: Equation, *operands: Tensor) -> tuple[Tensor, ...]:
        if any(torch._C._functorch.is_legacy_batchedtensor(x) for x in operands):
            raise InputError(
                "a DeclarativeLayer cannot go through autograd's own vectorisation "
                "(is_grads_batched=True, or torch.autograd.functional with vectorize=True); use "
                "torch.func.vmap, jacrev, jacfwd or hessian, which it supports"
            )
        with _full_precision(operands):
            outputs = equation.solve([x.detach() for x in operands])
        # Forward mode wants outputs that own their memory, laid out as their tangents will be.
        return tuple(w.clone(memory_format=torch.contiguous_format) if w._is_view()
                     or not w.is_contiguous() else w for w in outputs)  # fmt: skip

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        equation, *operands = inputs
        ctx.equation, ctx.count = equation, len(operands)
        # y and the operands go through autograd's own store, which notices changes in place.
        ctx.save_for_backward(*operands, *output)
        ctx.save_for_forward(*operands, *output)
        if equation.auxiliary:
            ctx.mark_non_differentiable(*output[len(output) - equation.auxiliary :])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        saved = [_alive(x) for x in ctx.saved_tensors]
        operands, outputs = saved[: ctx.count], saved[ctx.count :]
        wrt = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        with _full_precision(operands):
            gradients = _outside_compiler(ctx.equation.vjp)(operands, outputs, cotangents, wrt)
        return (None, *gradients)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = [forward_ad.unpack_dual(x).primal for x in ctx.saved_tensors]
        operands, outputs = saved[: ctx.count], saved[ctx.count :]
        # torch turns forward mode off in here, and with it the derivatives of an enclosing jvp. The
        # tangents of this level are stripped above, so that only the enclosing ones remain.
        with forward_ad._set_fwd_grad_enabled(True), _full_precision(operands):
            found = _outside_compiler(ctx.equation.jvp)(operands, outputs, tangents)
        return (*found, *[None] * ctx.equation.auxiliary)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], equation: Equation, *operands: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        folded, inside, unfold = equation.fold(info.batch_size, in_dims[1:], operands)
        outputs = solution_of(folded, *inside)
        return tuple(unfold(w) for w in outputs), (0,) * len(outputs)


_UNCOMPILED: dict[str, Any] = {}


def _outside_compiler(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same outside of torch.compile, which would compile a derivative of `torch.func` frame by frame."""
    if "torch._dynamo" not in sys.modules:  # to load it takes a second
        return function
    if "call" not in _UNCOMPILED:
        _UNCOMPILED["call"] = torch.compiler.disable(lambda function, *given: function(*given))
    return functools.partial(_UNCOMPILED["call"], function)


def _alive(x: Tensor) -> Tensor:
    """x without the wrappers of transforms that have ended.

    A pull-back may be called after its transform; torch takes off one such wrapper by itself, but not
    one inside another.
    """
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(x) and functorch.maybe_get_level(x) < 0:
        x = functorch.get_unwrapped(x)
    return x


@contextlib.contextmanager
def _full_precision(operands: Sequence[Tensor]) -> Iterator[None]:
    """Neither autocast nor TensorFloat-32, whose three digits no certificate would pass."""
    device = operands[0].device.type if operands else "cpu"
    before = torch.get_float32_matmul_precision()
    with torch.autocast(device, enabled=False):
        if before == "highest":
            yield
            return
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def fold_operand(
    x: Tensor, dim: int | None, size: int, *, batched: bool, batch_size: int
) -> Tensor:
    """An operand with the dimension of a vmap put in front of, and merged with, its batch."""
    x = x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    if not batched:
        x = x.unsqueeze(1).expand(size, batch_size, *x.shape[1:])
    return x.reshape(size * batch_size, *x.shape[2:])
