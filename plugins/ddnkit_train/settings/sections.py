"""What the classification pipeline asks of the plugin in each of its sections.

A recipe is refused where a plugin lacks one of these members, before anything runs. `DataSettings`
and `BackboneSettings` bring most of them; for the others a `ddnkit.Settings` with the method will do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from pydantic import PositiveInt

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from ddnkit_collapse import Evaluation
    from torch import Tensor, nn

    from ..data import Data
    from ..model import Head


@runtime_checkable
class DataSection(Protocol):
    """Labelled samples, and how they are grouped into batches; see `DataSettings`."""

    @property
    def batch_size(self) -> PositiveInt | Literal["full"]:
        """Samples a step at most, or ``"full"`` for the whole training set."""

    @property
    def sampler(self) -> Literal["stratified", "shuffled"]:
        """How the samples of a batch are chosen."""

    def build(self, *, seed: int, smoke: bool, download: bool) -> Data:
        """The data, on the CPU; with ``smoke`` small synthetic ones of the same shapes."""


@runtime_checkable
class BackboneSection(Protocol):
    """The network below the classifier; see `BackboneSettings`."""

    def build(self, *, sample_shape: tuple[int, ...], samples: int) -> nn.Module:
        """A module with an attribute ``feature_dim``, from samples to features."""


@runtime_checkable
class HeadSection(Protocol):
    """The classifier on the features."""

    def build(self, *, feature_dim: int, classes: int) -> Head:
        """A `ddnkit_etf.ClassifierHead`, or a module that has the same members."""


@runtime_checkable
class LossSection(Protocol):
    """What is minimised."""

    def build(self, *, counts: Tensor, head: Head) -> nn.Module:
        """A module ``(logits, labels) -> scalar``, given the training samples of each class."""


@runtime_checkable
class OptimizerSection(Protocol):
    """How it is minimised."""

    def build(self, model: nn.Module, /) -> torch.optim.Optimizer:
        """The optimiser of the model's trainable weights."""


@runtime_checkable
class MetricsSection(Protocol):
    """Figures measured at every evaluation."""

    def build(self) -> Callable[[Evaluation], dict[str, float]]:
        """What gives the figures of an evaluation, by column."""
