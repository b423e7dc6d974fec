"""DeclarativeLayer: solves a node for a batch and differentiates the solution.

This holds the only autograd.Function of the project. What happens in a call:
inputs are brought to one floating dtype and one batch dimension; the node is solved without a graph;
the certificate is measured and the policy acts; on the way back the backward form turns the incoming
gradient into gradients for the inputs, and the certificate gains the adjoint's residual.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .backward.form import BackwardForm, as_form
from .certificate import Certificate, act, complaint, measure, validated_policy
from .errors import InputError
from .node import DeclarativeNode
from .problem import Problem
from .solution import Solution


class DeclarativeLayer(nn.Module):
    """y = argmin f(x₁, …, xₙ, y) subject to h = 0 as a differentiable layer.

    Args:
        node: the problem.
        backward: a backward form or its name: "dense", "embedded_field", "closed_form", or "auto".
        batch_dims: how many leading dimensions of the tensor inputs are batch, the same for all;
            None takes the node's `input_dims` if it has them (leading dimensions beyond them are
            batch and broadcast against each other), else 0.
        policy: what to do with items whose certificate fails: "raise", "warn", or "nan" (they and
            their gradients become NaN, the rest of the batch is untouched); None: the node's. On a
            GPU the certificate waits for the device at each call under "raise" and "warn", and
            never under "nan".
        tolerance: largest relative stationarity, infeasibility and adjoint residual that pass.

    Inputs that are no tensors are passed through to the node; so are integer tensors, batched.
    float16 and bfloat16 inputs are solved in float32, inside autocast too, and y is float32 then.

    Example:
        >>> layer = ddnkit.DeclarativeLayer(node)
        >>> y = layer(x)                  # x: (8, 3)  ->  y: (8, 3) for input_dims = (1,)
        >>> layer.certificate             # figures of this call, per item

    Source: Gould, Hartley and Campbell, *Deep Declarative Networks*, Proposition 4.5.
    """

    def __init__(
        self,
        node: DeclarativeNode,
        backward: str | BackwardForm = "auto",
        *,
        batch_dims: int | None = None,
        policy: str | None = None,
        tolerance: float | None = None,
    ):
        super().__init__()
        if not isinstance(node, DeclarativeNode):
            raise InputError(f"a layer takes a ddnkit.DeclarativeNode, not {node!r}")
        self.node = node
        self.form = as_form(backward, Problem(node, (), 0))
        self.batch_dims = batch_dims
        self.policy = validated_policy(node.policy if policy is None else policy)
        self.tolerance = tolerance
        self.certificate: Certificate | None = None

    def forward(self, *xs: Any) -> Tensor:
        """Solve for every item; returns y with the batch dimensions of the inputs in front."""
        inputs, batch_shape = batched_inputs(self.node, xs, self.batch_dims)
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        call = _Call(self, inputs, batch_shape)
        y: Tensor = _Solve.apply(call, *tensors)
        return y.reshape(batch_shape + y.shape[1:])

    def extra_repr(self) -> str:
        """Shows what the layer was made of."""
        return f"{type(self.node).__name__}, backward={self.form.name}, policy={self.policy}"


@dataclasses.dataclass
class _Call:
    """What one call keeps from forward to backward beside its tensors."""

    layer: DeclarativeLayer
    inputs: Sequence[Any]
    batch_shape: torch.Size
    solution: Solution | None = None
    certificate: Certificate | None = None
    shown: Certificate | None = None

    def problem(self, tensors: Sequence[Tensor]) -> Problem:
        rest = iter(tensors)
        inputs = [next(rest) if isinstance(x, Tensor) else x for x in self.inputs]
        return Problem(self.layer.node, inputs, self.batch_shape.numel())

    def conclude(self, certificate: Certificate, backward: bool) -> None:
        # A layer used twice shows its last call; the way back of an earlier one must not replace it.
        last = not backward or self.layer.certificate is self.shown
        self.certificate = certificate
        self.shown = certificate.reshaped(self.batch_shape)
        if last:
            self.layer.certificate = self.shown
        if self.layer.policy != "nan":
            where = f"{type(self.layer.node).__name__} ({self.layer.form.name})"
            act(self.layer.policy, complaint(certificate, where, backward))


class _Solve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> Tensor:
        device = tensors[0].device.type if tensors else "cpu"
        with torch.autocast(device, enabled=False):
            problem = call.problem([x.detach() for x in tensors])
            solution = solve(problem)
            reject_captured_tensors(problem, solution.y)
            certificate = measure(problem, solution, call.layer.tolerance)
        call.conclude(certificate, backward=False)
        y = solution.y
        if call.layer.policy == "nan":
            y = _mask(y, certificate.solved)
        # y and the inputs go through autograd's own store, which notices changes in place.
        call.solution = dataclasses.replace(solution, y=y.new_empty(0))
        call.inputs = [x[:0] if isinstance(x, Tensor) else x for x in call.inputs]
        ctx.call = call
        ctx.save_for_backward(*tensors, y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        *tensors, y = ctx.saved_tensors
        assert call.solution is not None and call.certificate is not None
        problem = call.problem(tensors)
        solution = dataclasses.replace(call.solution, y=y)
        positions = [i for i, x in enumerate(problem.inputs) if isinstance(x, Tensor)]
        wrt = [i for i, needed in zip(positions, ctx.needs_input_grad[1:], strict=True) if needed]
        with torch.autocast(v.device.type, enabled=False):
            adjoint = call.layer.form.vjp(problem, solution, v, wrt)
        certificate = dataclasses.replace(call.certificate, adjoint_residual=adjoint.residual)
        call.conclude(certificate, backward=True)
        gradients = [adjoint.gradients[i] for i in positions]
        if call.layer.policy == "nan":
            good = certificate.differentiable
            gradients = [None if g is None else _mask(g, good) for g in gradients]
        return (None, *gradients)


def solve(problem: Problem) -> Solution:
    """Solve a batch of a node in the way that the node asks for; always returns a batched Solution.

    Raises:
        InputError: the node's `solve` returned something else than it should.
    """
    node, size = problem.node, problem.batch_size
    if type(node).solve is DeclarativeNode.solve:
        solution = node.solve_problem(problem)
    elif node.batched_solve:
        solution = _as_solution(node, node.solve(*problem.inputs))
        if solution.y.shape[:1] != (size,):
            raise InputError(
                f"{type(node).__name__}.solve has batched_solve = True and must return a batch of "
                f"{size}; it returned shape {tuple(solution.y.shape)}"
            )
    else:
        solution = _stacked(
            [_as_solution(node, node.solve(*problem.item(i))) for i in range(size)], node
        )
    y = solution.y.detach()
    if not y.is_floating_point():
        raise InputError(
            f"{type(node).__name__}.solve returned dtype {y.dtype}; y must be floating"
        )
    floating = [x.dtype for x in problem.inputs if isinstance(x, Tensor) and x.is_floating_point()]
    return dataclasses.replace(solution, y=y.to(floating[0]) if floating else y).batched(size)


def _as_solution(node: DeclarativeNode, returned: Any) -> Solution:
    if isinstance(returned, Tensor):
        returned = Solution(returned)
    if not isinstance(returned, Solution):
        raise InputError(
            f"{type(node).__name__}.solve must return a Tensor or a ddnkit.Solution, "
            f"not {type(returned).__name__}"
        )
    return returned


def _stacked(items: Sequence[Solution], node: DeclarativeNode) -> Solution:
    if not items:
        raise InputError(
            f"{type(node).__name__} was given an empty batch; the shape of y is only known from "
            "solving a problem"
        )
    first = items[0]
    return Solution(
        torch.stack([item.y for item in items]),
        torch.stack([torch.as_tensor(item.status) for item in items]),
        torch.stack([torch.as_tensor(item.iterations) for item in items]),
        first.solver,
        {key: torch.stack([item.aux[key] for item in items]) for key in first.aux},
        None
        if first.uniqueness is None
        else torch.stack([item.uniqueness for item in items if item.uniqueness is not None]),
    )


def _mask(x: Tensor, good: Tensor) -> Tensor:
    return torch.where(good.reshape(-1, *[1] * (x.ndim - 1)), x, torch.nan)


def reject_captured_tensors(problem: Problem, y: Tensor) -> None:
    """A tensor inside the objective that is no input but wants a gradient would silently get none."""
    with torch.enable_grad():
        value = problem.objective(y)
        constraints = problem.constraints(y)
    if value.requires_grad or (constraints is not None and constraints.requires_grad):
        raise InputError(
            f"{type(problem.node).__name__} uses a tensor that requires a gradient but is not one "
            "of its inputs (a module's parameter, say): its gradient would silently be zero. Pass "
            "it to the layer as an input, or detach it"
        )


def batched_inputs(
    node: DeclarativeNode, xs: Sequence[Any], batch_dims: int | None
) -> tuple[list[Any], torch.Size]:
    """The inputs with exactly one batch dimension in front and one floating dtype, and the batch shape."""
    tensors = [x for x in xs if isinstance(x, Tensor)]
    if not tensors:
        raise InputError(f"{type(node).__name__} was given no tensor")
    for x in tensors:
        if x.is_complex():
            raise InputError(f"{type(node).__name__}: complex inputs are not supported")
        if x.device != tensors[0].device:
            raise InputError(
                f"{type(node).__name__}: inputs on {tensors[0].device} and {x.device}; "
                "bring them to one device"
            )
    floating = [x.dtype for x in tensors if x.is_floating_point()]
    dtype = torch.float64 if torch.float64 in floating else torch.float32
    lead = [_leading(node, i, x, len(xs), batch_dims) for i, x in enumerate(xs)]
    try:
        batch_shape = torch.broadcast_shapes(*(s for s in lead if s is not None))
    except RuntimeError:
        shapes = ", ".join(str(tuple(s)) for s in lead if s is not None)
        raise InputError(
            f"{type(node).__name__}: the batch dimensions of the inputs differ: {shapes}"
        ) from None
    inputs: list[Any] = []
    for x, shape in zip(xs, lead, strict=True):
        if shape is None:
            inputs.append(x)
            continue
        own = x.shape[len(shape) :]
        x = x.to(dtype) if x.is_floating_point() else x
        inputs.append(x.expand(batch_shape + own).reshape(batch_shape.numel(), *own))
    return inputs, batch_shape


def _leading(
    node: DeclarativeNode, index: int, x: Any, count: int, batch_dims: int | None
) -> torch.Size | None:
    if not isinstance(x, Tensor):
        return None
    name = type(node).__name__
    if batch_dims is not None or node.input_dims is None:
        lead = batch_dims or 0
        if x.ndim < lead:
            raise InputError(
                f"{name}: input {index} has shape {tuple(x.shape)}, fewer dimensions than "
                f"batch_dims = {lead}"
            )
        return x.shape[:lead]
    if len(node.input_dims) != count:
        raise InputError(
            f"{name}.input_dims names {len(node.input_dims)} inputs, but {count} were given"
        )
    own = node.input_dims[index]
    if own is None or x.ndim < own:
        raise InputError(
            f"{name}: input {index} has shape {tuple(x.shape)}, but input_dims = "
            f"{tuple(node.input_dims)} asks for "
            + ("no tensor there" if own is None else f"at least {own} dimensions")
        )
    return x.shape[: x.ndim - own]
