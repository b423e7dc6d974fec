"""Classifiers at the end of a network: the contract `ClassifierHead`, a learned one and a fixed ETF."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ddnkit import InputError, settings_from

from .directions import unit_rows
from .reduction import batch_mean, is_shared
from .settings import FixedETFHead, HeadSettings, StandardHead, StandardUnnormalisedHead
from .simplex import simplex_etf

if TYPE_CHECKING:
    from typing_extensions import Self

#: Below it `torch.nn.functional.normalize` does not normalise.
_SHORTEST = 1e-12


class ClassifierHead(nn.Module, abc.ABC):
    """logits = τ W (h/‖h‖ − h_G), with W (C×d) chosen by the head.

    With a batch norm, h is the batch-normed feature.

    h_G is the batch's mean while training, over all processes that share the batch, and the running
    training mean in evaluation; heads that do not centre have h_G = 0, and heads that do not normalise
    use h as it is.

    Args:
        feature_dim: d.
        classes: C.
        settings: of this head; by default its defaults.
        normalise: bring features to the unit sphere.
        fields: of the settings, by keyword, in place of theirs: ``temperature=3.0``.

    Attributes:
        settings: those in use.
        temperature: τ.
        evaluation_mean: h_G in evaluation: "running", the training batches' means averaged;
            "last_batch", that of the last one; "test_batch", the mean of the batch that is being
            evaluated, so that a prediction depends on the others in its batch.
    """

    settings: HeadSettings
    global_mean: Tensor
    mean_steps: Tensor

    def __init__(
        self,
        feature_dim: int,
        classes: int,
        settings: HeadSettings | None = None,
        *,
        normalise: bool = True,
        **fields: object,
    ):
        super().__init__()
        self.settings = settings_from(HeadSettings, fields, settings)
        self.feature_dim, self.classes = feature_dim, classes
        self.normalise = normalise
        self.temperature = self.settings.temperature
        self.evaluation_mean = self.settings.evaluation_mean
        affine = self.settings.batch_norm == "affine"
        with_norm = self.settings.batch_norm != "none"
        self.norm = nn.BatchNorm1d(feature_dim, affine=affine) if with_norm else None
        self.register_buffer("global_mean", torch.zeros(feature_dim))
        self.register_buffer("mean_steps", torch.zeros(()))

    @classmethod
    def from_settings(cls, settings: HeadSettings, *, feature_dim: int, classes: int) -> Self:
        """The head of a recipe's section."""
        return cls(feature_dim, classes, settings)

    @abc.abstractmethod
    def classifier(self) -> Tensor:
        """W in use, (C, d), detached."""

    @abc.abstractmethod
    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (N, C) for features (N, d); labels (N,) are needed while training.

        Labels may be shares (N, C), where samples are mixtures of classes.
        """

    def feature_map(self) -> tuple[Tensor, Tensor] | None:
        """(a, b), (d,) each: a∘h + b is the batch norm in evaluation; None where there is none."""
        norm = self.norm
        if norm is None or norm.running_mean is None or norm.running_var is None:
            return None
        scale = (norm.running_var + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.detach()
        shift = -norm.running_mean * scale
        if norm.bias is not None:
            shift = shift + norm.bias.detach()
        return scale, shift

    @property
    def class_means(self) -> Tensor | None:
        """(d, C) running class means; None for heads that keep none."""
        return None

    def embed(self, features: Tensor) -> Tensor:
        """The features as the classifier sees them, not centred; in float32 or wider.

        In training mode a batch norm normalises them by the batch at hand.

        Raises:
            InputError: features that are not (N, d), or a single one for a batch norm in training.
        """
        if features.ndim != 2 or features.shape[1] != self.feature_dim:
            raise InputError(
                f"{type(self).__name__} takes features (N, {self.feature_dim}), not of shape "
                f"{tuple(features.shape)}"
            )
        if features.dtype in (torch.float16, torch.bfloat16):
            features = features.float()
        if self.norm is not None and len(features):
            if self.training and len(features) == 1 and isinstance(self.norm, nn.BatchNorm1d):
                raise InputError(
                    f"{type(self).__name__}: a batch of one sample has no variance for the batch norm "
                    "of the features; train with batches of two samples or more, or with batch_norm: "
                    "none"
                )
            with torch.autocast(features.device.type, enabled=False):
                features = self.norm(features)
        if not self.normalise:
            return features
        unit = unit_rows(features)
        # Zero has no direction: without this its gradient would be 1e12 times that of the others.
        shortest = torch.linalg.vector_norm(features.detach(), dim=-1, keepdim=True) < _SHORTEST
        return torch.where(shortest, unit.detach(), unit)

    def after_step(self) -> None:
        """To call after each optimiser step, and once before the first."""
        return None

    def _mean(self, embedded: Tensor) -> Tensor:
        """h_G for these features: differentiable and remembered while training."""
        if not self.training:
            return self._evaluation_mean(embedded)
        mean = batch_mean(embedded)
        if len(embedded) or is_shared():
            self._remember(mean)
        return mean

    def _evaluation_mean(self, embedded: Tensor) -> Tensor:
        return embedded.mean(dim=0) if self.evaluation_mean == "test_batch" else self.global_mean

    @torch.no_grad()
    def _remember(self, mean: Tensor) -> None:
        """Average the batch's mean into `global_mean`; one that is not finite is left out, or it would stay.

        The weight of the newest batch decays as that of the class means does (*GNC*, section 4).
        """
        newest = (2 / (self.mean_steps + 2)).clamp(min=1e-4)
        if self.evaluation_mean == "last_batch":
            newest = torch.ones_like(newest)
        finite = mean.isfinite().all()
        mean = torch.where(finite, mean, self.global_mean)
        self.global_mean.lerp_(mean.to(self.global_mean.dtype), newest)
        self.mean_steps += finite

    def _logits(self, embedded: Tensor, W: Tensor, mean: Tensor | None) -> Tensor:
        # In the features' own precision, whatever autocast would choose: τ amplifies rounding.
        with torch.autocast(embedded.device.type, enabled=False):
            centred = embedded if mean is None else embedded - mean
            return self.temperature * centred @ W.T


class StandardClassifier(ClassifierHead):
    """logits = τ W h with W learned, without bias (*GNC*, section 4, "standard").

    Args:
        normalise: features on the unit sphere, and rows of W brought to unit length after each step;
            False is the paper's "no-norm" ablation (Fig. 17).
    """

    settings: StandardHead

    def __init__(
        self,
        feature_dim: int,
        classes: int,
        settings: StandardHead | None = None,
        *,
        normalise: bool = True,
        **fields: object,
    ):
        own = settings_from(StandardHead, fields, settings)
        super().__init__(feature_dim, classes, own, normalise=normalise)
        self.weight = nn.Parameter(torch.empty(classes, feature_dim))
        nn.init.orthogonal_(self.weight)
        self.after_step()

    @classmethod
    def without_norm(
        cls, settings: StandardUnnormalisedHead, *, feature_dim: int, classes: int
    ) -> Self:
        """The head of a recipe's section."""
        return cls(feature_dim, classes, normalise=False, temperature=settings.temperature)

    def classifier(self) -> Tensor:
        """W, (C, d)."""
        return self.weight.detach()

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """See `ClassifierHead.forward`."""
        embedded = self.embed(features)
        mean = self._mean(embedded) if self.settings.centre else None
        return self._logits(embedded, self.weight, mean)

    @torch.no_grad()
    def after_step(self) -> None:
        """Brings the rows of W to unit length, where the head normalises."""
        if self.normalise:
            self.weight.copy_(unit_rows(self.weight))


class FixedETFClassifier(ClassifierHead):
    """logits = τ W (h/‖h‖ − h_G), W a fixed simplex ETF (*GNC*, section 4, "fixed ETF").

    A random one (``direction="haar"``, Fig. 18) is drawn from torch's generator.
    """

    settings: FixedETFHead
    weight: Tensor

    def __init__(
        self,
        feature_dim: int,
        classes: int,
        settings: FixedETFHead | None = None,
        **fields: object,
    ):
        own = settings_from(FixedETFHead, fields, settings)
        super().__init__(feature_dim, classes, own)
        etf = simplex_etf(classes, feature_dim, direction=own.direction)
        self.register_buffer("weight", etf.T.contiguous())

    def classifier(self) -> Tensor:
        """W, (C, d)."""
        return self.weight

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """See `ClassifierHead.forward`."""
        embedded = self.embed(features)
        mean = self._mean(embedded) if self.settings.centre else None
        return self._logits(embedded, self.weight, mean)
