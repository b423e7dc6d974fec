"""Optimisers: automatic gradient descent (AGD), and torch's own as a recipe asks for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ddnkit import InputError

from . import settings
from .processes import is_split, local


def agd(given: settings.AGD, model: nn.Module) -> AGD:
    """AGD on the model's trainable matrices, which it also initialises."""
    return AGD(model.named_parameters(), **dict(given))


def sgd(given: settings.SGD, model: nn.Module) -> Optimizer:
    """torch's own SGD."""
    return torch.optim.SGD(_trainable(model), **dict(given))


def adam(given: settings.Adam, model: nn.Module) -> Optimizer:
    """torch's own Adam."""
    return torch.optim.Adam(_trainable(model), **dict(given))


def adamw(given: settings.AdamW, model: nn.Module) -> Optimizer:
    """torch's own AdamW."""
    return torch.optim.AdamW(_trainable(model), **dict(given))


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class AGD(Optimizer):
    """W_l ← W_l − gain · (η/L) · σ_l · ∂W_l / ‖∂W_l‖_F, with η = log(½(1 + √(1 + 4G))).

    The gradient summary is G = (1/L) Σ_l σ_l Σ_positions ‖∂W_l‖_F over the L matrices, the scale
    of a layer σ = √(d_out/d_in) / √(k_h k_w). A convolution's kernel is k_h·k_w matrices
    d_out×d_in, one a position: norms and steps are taken for each of them. Weights start
    orthogonal at each position, times σ.

    L counts the matrices given that require a gradient. A model whose classifier is frozen has
    one matrix fewer than one that learns it, and so takes a slightly longer step in the others.
    A matrix without a gradient at a step counts as one with gradient zero. ``step`` never waits
    for the device.

    Weights that `torch.distributed.fsdp.fully_shard` splits over processes take the steps, and have
    the start, of whole ones: scales and norms are of the whole matrices. The norms of all of them
    are one message a step.

    Source: Bernstein, Mingard, Huang, Azizan, Yue, "Automatic Gradient Descent: Deep Learning
    without Hyperparameters", arXiv:2304.05187.

    Args:
        params: weights, or ``(name, weight)`` pairs as of ``model.named_parameters()``: matrices
            ``(d_out, d_in)`` or kernels ``(d_out, d_in, k_h, k_w)``. Frozen ones are left alone.
        gain: factor of the step.
        initialise: give the weights AGD's own start; ``False`` leaves them as they are.

    Raises:
        ddnkit.InputError: a parameter is neither matrix nor kernel, or there is none to train.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
        gain: float = 1.0,
        *,
        initialise: bool = True,
    ) -> None:
        if gain <= 0:
            raise InputError(f"AGD: gain must be above 0; it is {gain}")
        super().__init__(_trainable_matrices(params), {"gain": float(gain)})
        if initialise:
            for weight in self._weights():
                orthogonal_(weight)

    def _weights(self) -> list[Tensor]:
        return [weight for group in self.param_groups for weight in group["params"]]

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every weight once; returns the closure's loss where one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        layers = len(self._weights())
        moved = [
            (group["gain"], weight)
            for group in self.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        if not moved:
            return loss
        all_norms = _all_norms([weight.grad for _, weight in moved])
        active = [
            (gain, weight, local(weight.grad), norms)
            for (gain, weight), norms in zip(moved, all_norms, strict=True)
        ]
        # Tensors throughout: the step size stays on the device and nothing waits for it.
        device = active[0][1].device
        summary = torch.stack(
            [scale(weight) * norms.sum().to(device) for _, weight, _, norms in active]
        )
        step_size = torch.log(0.5 * (1 + torch.sqrt(1 + 4 * summary.sum() / layers)))
        for gain, weight, gradient, norms in active:
            # A position without a gradient does not move: 0/tiny = 0 where 0/0 would be NaN.
            tiny = torch.finfo(norms.dtype).tiny
            length = (gain / layers * scale(weight)) * step_size.to(weight.device)
            step = gradient * (length / norms.clamp_min(tiny))
            local(weight).sub_(step.to(weight.dtype))
        return loss


def scale(weight: Tensor) -> float:
    """σ = √(d_out/d_in) / √(k_h k_w) of a matrix or kernel."""
    return math.sqrt(weight.shape[0] / weight.shape[1] / math.prod(weight.shape[2:]))


@torch.no_grad()
def orthogonal_(weight: Tensor) -> Tensor:
    """Make ``weight`` orthogonal at each kernel position, times its `scale`, in place."""
    if is_split(weight):
        return _orthogonal_parts_(weight)
    positions = weight.reshape(*weight.shape[:2], -1).unbind(-1)
    start = torch.stack([torch.nn.init.orthogonal_(torch.empty_like(p)) for p in positions], -1)
    return weight.copy_(scale(weight) * start.reshape(weight.shape))


def _orthogonal_parts_(weight: Any) -> Tensor:
    """The whole start, as for a weight that is not split, drawn and handed out by process 0.

    It draws, and needs the memory of, one whole matrix at a time. Every process draws, so that
    their generators stay together, but what they have drawn does not matter.
    """
    from torch.distributed.tensor import distribute_tensor

    start = orthogonal_(torch.empty(weight.shape, dtype=weight.dtype, device=weight.device))
    split: Tensor = weight.copy_(distribute_tensor(start, weight.device_mesh, weight.placements))
    return split


def _all_norms(gradients: list[Any]) -> list[Tensor]:
    """`_norms` of each gradient; of those that are split over processes, of the whole."""
    norms = [_norms(local(gradient)) for gradient in gradients]
    parts = [number for number, gradient in enumerate(gradients) if is_split(gradient)]
    if parts:
        squares = torch.cat([norms[number].square().flatten() for number in parts])
        torch.distributed.all_reduce(squares, group=_group([gradients[n] for n in parts]))
        whole = squares.sqrt().split([norms[number].numel() for number in parts])
        for number, norm in zip(parts, whole, strict=True):
            norms[number] = norm.view(norms[number].shape)
    return norms


def _group(gradients: list[Any]) -> Any:
    """The processes over which all of the gradients are split."""
    mesh = gradients[0].device_mesh
    for gradient in gradients:
        if gradient.device_mesh != mesh or mesh.ndim > 1 or not gradient.placements[0].is_shard(0):
            raise InputError(
                "AGD: takes weights split over one group of processes, by fully_shard on a mesh of "
                f"one dimension; this one is {gradient.placements} on {gradient.device_mesh}"
            )
    return mesh.get_group()


def _norms(gradient: Tensor) -> Tensor:
    """Frobenius norm at each position, ``()`` for matrices and ``(k_h, k_w)`` for kernels."""
    # Half-precision squares overflow; the norm is taken in float32 at least.
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    return torch.linalg.vector_norm(gradient, dim=(0, 1), dtype=dtype)


def _trainable_matrices(params: Iterable[Any]) -> list[Any]:
    """The trainable entries of ``params``, all of them matrices or kernels."""
    trainable = []
    for entry in params:
        name, weight = entry if isinstance(entry, tuple) else (None, entry)
        if not isinstance(weight, Tensor):
            raise InputError(f"AGD: takes weights, not parameter groups; it was given {entry!r}")
        if not weight.requires_grad:
            continue
        if weight.ndim not in (2, 4) or weight.numel() == 0:
            raise InputError(
                f"AGD: {f'parameter {name}' if name else 'a parameter'} has shape "
                f"{tuple(weight.shape)}; AGD trains matrices (d_out, d_in) and kernels (d_out, "
                "d_in, k_h, k_w) alone. Leave out biases (bias: false) and the affine parameters "
                "of normalisation layers, or use another optimizer, such as adam."
            )
        trainable.append(entry)
    if not trainable:
        raise InputError("AGD: there is no weight to train")
    return trainable
