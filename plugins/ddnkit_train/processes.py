"""A model on several processes: batch norms of whole batches, and weights that are split.

Weights are split by FSDP2, `torch.distributed.fsdp.fully_shard`. Each process keeps its rows of every
weight of the backbone, and of its gradient and optimiser state, as a `DTensor`; a block's weights are
whole while it computes. A head is small and stays whole on each process: its ``after_step`` and
``classifier`` see plain tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from ddnkit_etf.reduction import sum_over_processes
from torch import Tensor, nn

from ddnkit import InputError

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_split(tensor: object) -> bool:
    """Whether a tensor is a `DTensor`; told by its mesh, since the class takes long to import."""
    return isinstance(tensor, Tensor) and hasattr(tensor, "device_mesh")


def local(tensor: Any) -> Tensor:
    """This process's part of a tensor that is split, sharing its memory; any other as it is."""
    part: Tensor = tensor.to_local() if is_split(tensor) else tensor
    return part


def strategy() -> Any:
    """Fabric's strategy: processes as for DDP, but a model set up by it is split, not wrapped.

    Fabric's own for FSDP2, ModelParallelStrategy, refuses float64 and leaves extra states, such as
    the nearest-ETF head's, out of what it loads.
    """
    from lightning_fabric.strategies import DDPStrategy

    class Sharded(DDPStrategy):
        def setup_module(self, module: nn.Module) -> Any:
            split(module, self.root_device)
            return module

    return Sharded()


def split(model: nn.Module, device: torch.device) -> None:
    """Split the weights of ``model.backbone`` over all processes, in place; all take part.

    Everything is rank 0's before. The gradient of what stays whole is averaged over the processes, as
    that of the split weights is: both are the gradient of the mean of the processes' losses.

    Raises:
        ddnkit.InputError: a weight cannot be split.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    backbone = model.get_submodule("backbone")
    for name, parameter in backbone.named_parameters():
        if parameter.ndim == 0:
            raise InputError(
                f"engine.strategy: fsdp cannot split the backbone's {name}, a single number; make "
                "it a vector of one, or use ddp"
            )
        parameter.data = parameter.data.contiguous()  # FSDP asks for it
    copy_from_first(model)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    # Always split again after a forward pass: between passes no weight is ever plain, and none stale.
    for block in (*_blocks(backbone), backbone):
        fully = fully_shard(block, mesh=mesh, reshard_after_forward=True)
        if device.type == "cpu":
            fully.set_force_sum_reduction_for_comms(True)  # gloo has no average
    for parameter in model.parameters():
        if parameter.requires_grad and not is_split(parameter):
            parameter.register_post_accumulate_grad_hook(_average_gradient)


@torch.no_grad()
def copy_from_first(model: nn.Module) -> None:
    """Give every process rank 0's parameters and buffers, of those that are not split."""
    for tensor in (*model.parameters(), *model.buffers()):
        if is_split(tensor):
            continue
        sent = tensor.detach().contiguous()
        torch.distributed.broadcast(sent, 0)
        tensor.copy_(sent)


def _blocks(backbone: nn.Module) -> list[nn.Module]:
    """What is gathered at a time: the backbone's children, of lists of modules each entry."""
    names = list(backbone.named_parameters(remove_duplicate=False))
    if len(names) > len(list(backbone.parameters())):
        return []  # a weight used in two places has to be gathered for both at once
    return list(dict.fromkeys(_children(backbone)))


def _children(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, _LISTS):
            yield from _children(child)
        elif next(child.parameters(), None) is not None:
            yield child


@torch.no_grad()
def _average_gradient(parameter: Tensor) -> None:
    if parameter.grad is not None:
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= torch.distributed.get_world_size()


def whole_state(state: dict[str, Any], *, keep: bool = True) -> dict[str, Any]:
    """A state dict with whole tensors, on the CPU, in place of split ones; all processes take part.

    It is the state dict that an unsplit model, or its optimiser, would have. Without ``keep`` this
    process only takes part, and has ``None`` in their place.
    """
    for name, value in state.items():  # in place: a module's state dict has attributes
        state[name] = _whole(value, keep)
    return state


def _whole(value: Any, keep: bool) -> Any:
    if is_split(value):
        gathered = value.full_tensor()
        return gathered.detach().cpu() if keep else None
    if isinstance(value, dict):
        return {name: _whole(entry, keep) for name, entry in value.items()}
    return value


def load_whole_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    model_state: dict[str, Any],
    optimizer_state: dict[str, Any],
) -> None:
    """Restore a split model and its optimiser from the states of `whole_state`.

    Every process has the whole states, and takes its part without a message to another.
    """
    for name, own in model.state_dict().items():
        if name in model_state:
            model_state[name] = _part_like(own, model_state[name])
    model.load_state_dict(model_state)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # An optimiser's state is split as its weight is, where it has a number for each of the weight's.
    states = {
        number: {name: _part_like(parameters[number], value) for name, value in state.items()}
        for number, state in optimizer_state["state"].items()
    }
    optimizer.load_state_dict({**optimizer_state, "state": states})


def _part_like(own: Any, value: Any) -> Any:
    if not (is_split(own) and isinstance(value, Tensor) and value.shape == own.shape):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        value.to(own.device), own.device_mesh, own.placements, src_data_rank=None
    )


class WholeBatchNorm(nn.Module):
    """Batch norm by the statistics of all processes' batches, on any device.

    torch's own `SyncBatchNorm` is for GPUs alone. Here one all-reduced sum of (Σx, Σx², n), in
    float64, gives mean and variance; its gradient is the sum of the processes' gradients, which makes
    the backward pass that of the whole batch. In evaluation it is the batch norm it was made of.

    Args:
        norm: whose parameters and buffers it takes over, under the same names.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__()
        self.eps, self.momentum = norm.eps, norm.momentum
        # The same tensors, not copies: an optimiser may hold them already.
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(norm, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.train(norm.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalised ``(B, channels, ...)``, in training by the statistics of all processes."""
        if not self.training and self.running_mean is not None:
            return nn.functional.batch_norm(
                inputs, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        shape = [1, -1] + [1] * (inputs.ndim - 2)
        wide = inputs.to(torch.float64)
        mean, variance = self._statistics(wide)
        normalised = (wide - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        normalised = normalised.to(inputs.dtype)
        if self.weight is not None and self.bias is not None:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised

    def _statistics(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        channels = inputs.shape[1]
        dims = (0, *range(2, inputs.ndim))
        here = inputs.new_full((1,), inputs.numel() / channels)
        sums = sum_over_processes(torch.cat([inputs.sum(dims), inputs.square().sum(dims), here]))
        count = sums[-1].detach()
        mean = sums[:channels] / count
        variance = (sums[channels:-1] / count - mean.square()).clamp(min=0)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked += 1
        unbiased = variance.detach() * count / (count - 1).clamp(min=1)
        with torch.no_grad():
            self._track(self.running_mean, mean)
            self._track(self.running_var, unbiased)
        return mean, variance

    def _track(self, running: Tensor | None, value: Tensor) -> None:
        """The exponential average that evaluation uses; of all batches where momentum is None."""
        if running is None or self.num_batches_tracked is None:
            return
        newest = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        running.copy_(running + newest * (value.to(running.dtype) - running))


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with every batch norm using the statistics of all processes.

    By torch's own `SyncBatchNorm` on a GPU, by `WholeBatchNorm` elsewhere; the names in state
    dictionaries stay as they are.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, WholeBatchNorm(child))
    return model
