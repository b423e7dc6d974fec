"""The nearest-ETF head: at each step the classifier is the simplex ETF nearest to the class means."""

from __future__ import annotations

from typing import Any

import torch
from ddnkit_manifolds import Procrustes
from torch import Tensor

from ddnkit import Certificate, DeclarativeLayer, InputError

from ..class_means import ClassMeans
from ..functional import nearest_etf
from ..node import NearestETF
from ..reduction import ClassSums, class_sums
from ..simplex import complete_frame, etf_of_frame, expand, named_frame, reduce
from .base import ClassifierHead

_CENTRES = ("samples", "classes", "none")


class NearestETFClassifier(ClassifierHead):
    """logits = τ W (h/‖h‖ − h_G), W the simplex ETF nearest to the class means ("implicit ETF").

    While training, each batch updates the class means; U* solves the proximal problem with the last
    step's U as P, and gradients reach the features through the logits and, with ``differentiate``,
    through U* as well (*GNC*, sections 3.3–3.6 and Fig. 1). The first step solves without the
    proximal term and takes that U as P. In evaluation W is the last one.

    Args:
        temperature: τ.
        delta: proximal coefficient δ.
        solver: a manifold solver's name; "procrustes" is the closed form.
        backward: backward form of the declarative layer.
        differentiate: False drops the gradient through U* (Fig. 15; the paper's ImageNet runs).
        centre: h_G: the mean of the batch's "samples"; the mean of its "classes"' means, so that each
            class counts the same whatever its size, a class that the batch lacks by its average over
            the batches before; or "none", zero.
        alpha: constant smoothing factor of the class means; None: the paper's decay.
        normalise_means, absent, weight: how class means are averaged, see `ClassMeans`.
        batch_norm, evaluation_mean: see `ClassifierHead`.
        initial: "canonical" or "haar" (random, from torch's generator): W before the first step,
            and the frame that the first solve stays near to in what it leaves open: the null
            direction, and the classes not seen yet. The rest of its solution is unique.
        policy: of the declarative layer. With "nan" the certificate never makes a step wait for the
            device; one that fails shows as a NaN loss, and `certificate` says why.
    """

    prox: Tensor
    weight: Tensor

    def __init__(
        self,
        feature_dim: int,
        classes: int,
        *,
        temperature: float = 5.0,
        delta: float = 1e-3,
        solver: str = "procrustes",
        backward: str = "auto",
        differentiate: bool = True,
        centre: str = "samples",
        alpha: float | None = None,
        normalise_means: str = "after",
        absent: str = "keep",
        weight: str = "equal",
        batch_norm: str = "none",
        evaluation_mean: str = "running",
        initial: str = "canonical",
        policy: str = "nan",
    ):
        super().__init__(
            feature_dim,
            classes,
            temperature=temperature,
            batch_norm=batch_norm,
            evaluation_mean=evaluation_mean,
        )
        if feature_dim < classes - 1:
            raise InputError(
                f"head nearest_etf: a simplex ETF of {classes} classes needs features of dimension "
                f"{classes - 1} or more; the backbone gives {feature_dim}"
            )
        if centre not in _CENTRES:
            raise InputError(f"centre is one of {', '.join(_CENTRES)}, not {centre!r}")
        self.centre = centre
        self.tracker = ClassMeans(
            feature_dim, classes, alpha, normalise=normalise_means, absent=absent, weight=weight
        )
        # d = C − 1 has no frame U of C columns: there, and only there, the reduced form is used.
        self.reduced = feature_dim == classes - 1
        self.layer = DeclarativeLayer(
            NearestETF(delta, reduced=self.reduced, solver=solver), backward, policy=policy
        )
        self.differentiate = differentiate
        start = named_frame(initial, feature_dim, classes)
        self.register_buffer("prox", start)
        self.register_buffer("weight", etf_of_frame(start).T.contiguous())
        self.started = False

    @property
    def class_means(self) -> Tensor:
        """(d, C): the running centred class means, before normalising."""
        return self.tracker.means

    @property
    def certificate(self) -> Certificate | None:
        """Of the last solve."""
        return self.layer.certificate

    def classifier(self) -> Tensor:
        """W in use, (C, d)."""
        return self.weight

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """See `ClassifierHead.forward`."""
        embedded = self.embed(features)
        if not self.training:
            mean = None if self.centre == "none" else self._evaluation_mean(embedded)
            return self._logits(embedded, self.weight, mean)
        if labels is None:
            raise InputError("head nearest_etf needs labels while training: the class means")
        with torch.autocast(embedded.device.type, enabled=False):
            batch = class_sums(embedded, labels, self.classes)
            mean = self._mean_of_classes(batch) if self.centre == "classes" else batch.mean()
            W = self._solve(self.tracker.update(batch, mean))
        if self.centre == "none":
            return self._logits(embedded, W, None)
        self._remember(mean)
        return self._logits(embedded, W, mean)

    def _mean_of_classes(self, batch: ClassSums) -> Tensor:
        """The mean (d,) of the class means, over the classes that have been seen."""
        present = batch.counts > 0
        # What is tracked is centred on the means of its batches.
        before = (self.tracker.means + self.global_mean.unsqueeze(-1)).detach()
        means = torch.where(present, batch.class_means(), before)
        seen = present | (self.tracker.counts > 0)
        return (means * seen).sum(dim=-1) / seen.sum()

    def _solve(self, H: Tensor) -> Tensor:
        if not self.started:
            self._start(H)
        U = self.layer(H if self.differentiate else H.detach(), self.prox.clone())
        if self.reduced:
            U = expand(U)
        W = etf_of_frame(U).mT
        with torch.no_grad():
            self.prox.copy_(U)
            self.weight.copy_(W)
        return W

    @torch.no_grad()
    def _start(self, H: Tensor) -> None:
        """The solution without the proximal term, as P; where it is free, that nearest to the start."""
        # δ = 0. Classes not seen yet leave it undetermined, which is no fault.
        # Once in a training run: by factors, which complete any rank exactly.
        U = nearest_etf(
            H, self.prox, delta=0, reduced=True, solver=Procrustes("factors"), policy="nan"
        )
        if not self.reduced:
            null_direction = self.prox.sum(dim=-1, keepdim=True) / self.classes**0.5
            U = complete_frame(reduce(U), null_direction)
        self.prox.copy_(U)
        self.started = True

    def get_extra_state(self) -> dict[str, Any]:
        """Whether the first solve is behind: part of the state dict."""
        return {"started": self.started}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores `get_extra_state`."""
        self.started = bool(state["started"])
