"""Optimisers: the ``optimizer`` section of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import pydantic
from pydantic import Field

from ddnkit import Settings

if TYPE_CHECKING:
    import torch

_LearningRate = Annotated[float, Field(gt=0, description="Learning rate.")]
_WeightDecay = Annotated[float, Field(ge=0, description="Coefficient of the L2 penalty.")]
_Beta = Annotated[float, Field(ge=0, lt=1)]


def _trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class AGD(Settings):
    """Automatic gradient descent (arXiv:2304.05187): no learning rate; needs a bias-free model."""

    gain: float = Field(
        default=1.0, gt=0, description="Factor of the automatic step; the GNC paper uses 10."
    )

    def build(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The optimiser of the model's trainable matrices, which it also initialises."""
        from ..agd import AGD

        return AGD(model.named_parameters(), gain=self.gain)


class SGD(Settings):
    """Stochastic gradient descent with momentum."""

    lr: _LearningRate = 0.1
    momentum: _Beta = Field(default=0.9, description="Momentum factor.")
    nesterov: bool = Field(default=False, description="Nesterov's momentum.")
    weight_decay: _WeightDecay = 0.0

    @pydantic.model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SGD:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    def build(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """torch's own SGD."""
        import torch

        return torch.optim.SGD(
            _trainable(model),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )


class Adam(Settings):
    """Adam."""

    lr: _LearningRate = 1e-3
    betas: tuple[_Beta, _Beta] = Field(
        default=(0.9, 0.999), description="Decay of the running gradient and of its square."
    )
    weight_decay: _WeightDecay = 0.0

    def build(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """torch's own Adam."""
        import torch

        return torch.optim.Adam(
            _trainable(model), lr=self.lr, betas=self.betas, weight_decay=self.weight_decay
        )


class AdamW(Settings):
    """Adam with decoupled weight decay."""

    lr: _LearningRate = 1e-3
    betas: tuple[_Beta, _Beta] = Field(
        default=(0.9, 0.999), description="Decay of the running gradient and of its square."
    )
    weight_decay: Annotated[float, Field(ge=0, description="Decoupled weight decay.")] = 0.01

    def build(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """torch's own AdamW."""
        import torch

        return torch.optim.AdamW(
            _trainable(model), lr=self.lr, betas=self.betas, weight_decay=self.weight_decay
        )
