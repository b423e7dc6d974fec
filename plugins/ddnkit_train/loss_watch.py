"""Detects a loss that is not finite, without waiting for the device, and explains it."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from ddnkit import DdnkitError

from .model import Model
from .processes import is_split, local

#: So many losses are kept, to tell a slow divergence from a sudden fault.
_HISTORY = 32
_SHOWN = 8


class LossWatch:
    """Checks the loss of every step. On a GPU its value arrives some steps later, so that nothing waits.

    Args:
        device: where the losses are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pending: deque[tuple[int, Tensor, Any]] = deque()
        self.losses: deque[float] = deque(maxlen=_HISTORY)

    def see(self, step: int, loss: Tensor) -> int | None:
        """Take in the loss of a step; the first step known by now to have a non-finite one."""
        if self._device.type != "cuda":
            return self._record(step, float(loss.detach()))
        value = torch.empty((), dtype=loss.dtype, pin_memory=True)
        value.copy_(loss.detach(), non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._pending.append((step, value, event))
        return self._collect(wait=False)

    def settle(self) -> int | None:
        """Wait for all losses seen so far; the first step that has a non-finite one."""
        return self._collect(wait=True)

    def _collect(self, *, wait: bool) -> int | None:
        while self._pending and (wait or self._pending[0][2].query()):
            step, value, event = self._pending.popleft()
            event.synchronize()
            if (bad := self._record(step, float(value))) is not None:
                return bad
        return None

    def _record(self, step: int, loss: float) -> int | None:
        if math.isfinite(loss):
            self.losses.append(loss)
            return None
        return step


def is_finite(model: nn.Module) -> bool:
    """Whether this process's part of every parameter and buffer is finite; waits for the device once."""
    tensors = [local(t) for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    return bool(torch.stack([t.detach().isfinite().all() for t in tensors]).all())


@torch.no_grad()
def non_finite_loss(
    model: Model, inputs: Tensor, index: Tensor | None, losses: list[float], where: str, kept: str
) -> DdnkitError:
    """The error for a loss that is not finite, with its batch and the likely cause.

    Args:
        model: as it is now.
        inputs: of the batch, as the network sees them.
        index: the batch's samples; None for all.
        losses: finite ones before.
        where: step, epoch and batch.
        kept: what is left to go on from.
    """
    batch = "the whole training set" if index is None else _samples(index)
    cause = _cause(model, inputs, index, losses)
    return DdnkitError(
        f"the training loss is not finite at {where} ({batch}). Likely cause: {cause}. {kept}"
    )


def _cause(model: Model, inputs: Tensor, index: Tensor | None, losses: list[float]) -> str:
    if inputs.is_floating_point():
        bad = ~inputs.flatten(1).isfinite().all(dim=1)
        if bad.any():
            return f"non-finite input in {_samples_where(bad, index)}"
    grown = _growth(losses)
    weights = dict(model.named_parameters())
    broken = [name for name, p in weights.items() if not local(p).isfinite().all()]
    if broken:
        return (
            f"the weights {', '.join(broken[:3])}{' and others' if len(broken) > 3 else ''} "
            f"are no longer finite: the step is too large{grown}; lower the optimizer's gain or lr"
        )
    # A process that explains its loss alone cannot run a network whose weights are split.
    split = any(map(is_split, weights.values()))
    features = None if split else _features(model, inputs)
    if features is not None and not features.isfinite().all():
        of = _samples_where(~features.isfinite().all(dim=1), index)
        return (
            f"the backbone's features of {of} are NaN or infinite{grown}; lower the optimizer's gain "
            "or lr"
        )
    certificate = getattr(model.head, "certificate", None)
    if certificate is not None and not bool(certificate.solved.all()):
        why = "; ".join([str(certificate), *certificate.causes()])
        return f"the head's declarative layer failed its certificate: {why}"
    if features is None:
        return (
            f"features that overflow or are of length zero{grown}; lower the optimizer's gain or lr"
        )
    if not (features.norm(dim=1) > 0).all():
        of = _samples_where(~(features.norm(dim=1) > 0), index)
        return f"features of length zero of {of}, which cannot be normalised: are the data standardised?"
    return f"the step is too large{grown}; lower the optimizer's gain or lr"


def _features(model: Model, inputs: Tensor) -> Tensor:
    training = model.training
    features: Tensor = model.eval().backbone(inputs)
    model.train(training)
    return features


def _samples_where(bad: Tensor, index: Tensor | None) -> str:
    """The samples of the batch that are ``bad``, (N,)."""
    return _samples(bad.nonzero()[:, 0] if index is None else index[bad.to(index.device)])


def _growth(losses: list[float]) -> str:
    if len(losses) < 2 or losses[-1] <= 2 * min(losses):
        return ""
    return f" (the loss had grown from {min(losses):.3g} to {losses[-1]:.3g})"


def _samples(index: Tensor) -> str:
    numbers = ", ".join(map(str, index[:_SHOWN].tolist()))
    more = f" and {len(index) - _SHOWN} more" if len(index) > _SHOWN else ""
    return f"training samples {numbers}{more}"
