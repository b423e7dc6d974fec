"""Weights split over several processes: FSDP2, `torch.distributed.fsdp.fully_shard`.

Each process keeps its rows of every weight of the backbone, and of its gradient and optimiser state,
as a `DTensor`; a block's weights are whole while it computes. A head is small and stays whole on each
process: its ``after_step`` and ``classifier`` see plain tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ddnkit import InputError

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_split(tensor: Any) -> bool:
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


def split(model: Any, device: torch.device) -> None:
    """Split the weights of ``model.backbone`` over all processes, in place; all take part.

    Everything is rank 0's before. The gradient of what stays whole is averaged over the processes, as
    that of the split weights is: both are the gradient of the mean of the processes' losses.

    Raises:
        ddnkit.InputError: a weight cannot be split.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    backbone: nn.Module = model.backbone
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
    assert parameter.grad is not None
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
