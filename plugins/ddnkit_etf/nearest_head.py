"""The nearest-ETF head: at each step the classifier is the simplex ETF nearest to the class means."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from ddnkit_manifolds import Procrustes
from torch import Tensor

from ddnkit import (
    BackwardForm,
    Certificate,
    DdnkitWarning,
    DeclarativeLayer,
    InputError,
    Solver,
    settings_from,
)

from .class_means import ClassMeans
from .heads import ClassifierHead
from .node import NearestETF, nearest_etf
from .reduction import ClassSums, class_sums, is_shared
from .settings import NearestETFHead
from .simplex import complete_frame, etf_of_frame, expand, named_frame, reduce

#: Keywords of earlier versions, and the fields of ``means`` that they are now.
_OF_MEANS = {
    "alpha": "alpha",
    "normalise_means": "normalise",
    "absent": "absent",
    "weight": "weight",
}

_UNDETERMINED = (
    "head nearest_etf: the batches so far do not tell classes apart (they are of one class or one "
    "sample, or their features are the same for all): the classifier stays at its start frame until "
    "one does"
)


class NearestETFClassifier(ClassifierHead):
    """logits = τ W (h/‖h‖ − h_G), W the simplex ETF nearest to the class means ("implicit ETF").

    While training, each batch updates the class means; U* solves the proximal problem with the last
    step's U as P, and gradients reach the features through the logits and, with ``differentiate``,
    through U* as well (*GNC*, sections 3.3–3.6 and Fig. 1). The first step solves without the
    proximal term and takes that U as P. In evaluation W is the last one.

    Where the class means have no direction (`ClassMeans.determined`: so far one class, one sample, or
    the same features for all), W stays as it was and has no gradient; the logits still have theirs
    through the features. A first batch of that kind is told by one `ddnkit.DdnkitWarning`, and the
    first solve is put off to the first batch that shows classes apart. Features that are not finite
    give logits of NaN, and change nothing that is kept. An empty batch has no logits and changes nothing.

    Args:
        solver: a manifold solver in place of the one that the settings name.
        backward: a backward form in place of theirs.
        policy: of the declarative layer. With "nan" the certificate never makes a step wait for the
            device; one that fails shows as a NaN loss, and `certificate` says why.
        feature_dim, classes, settings, fields: see `ClassifierHead`.

    Attributes:
        differentiate: False drops the gradient through U* (Fig. 15; the paper's ImageNet runs).
    """

    settings: NearestETFHead
    prox: Tensor
    weight: Tensor

    def __init__(
        self,
        feature_dim: int,
        classes: int,
        settings: NearestETFHead | None = None,
        *,
        solver: str | Solver | None = None,
        backward: str | BackwardForm | None = None,
        policy: str = "nan",
        **fields: object,
    ):
        # Names are checked as a recipe's are; objects need not have one.
        named = {"solver": solver, "backward": backward}
        fields |= {key: value for key, value in named.items() if isinstance(value, str)}
        own = settings_from(NearestETFHead, _with_means(fields), settings)
        super().__init__(feature_dim, classes, own)
        if feature_dim < classes - 1:
            raise InputError(
                f"head nearest_etf: a simplex ETF of {classes} classes needs features of dimension "
                f"{classes - 1} or more; the backbone gives {feature_dim}"
            )
        self.tracker = ClassMeans(feature_dim, classes, own.means)
        # The reduced form where d = C − 1 has no frame U of C columns, or where no proximal term says
        # what U is in the null direction.
        self.reduced = feature_dim == classes - 1 or own.delta == 0
        node = NearestETF(own.delta, reduced=self.reduced, solver=solver or own.solver)
        self.layer = DeclarativeLayer(node, backward or own.backward, policy=policy)
        self.differentiate = own.differentiate
        start = named_frame(own.initial, feature_dim, classes)
        self.register_buffer("prox", start)
        self.register_buffer("weight", etf_of_frame(start).T.contiguous())
        self.started = False
        self._warned = False

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
            mean = None if self.settings.centre == "none" else self._evaluation_mean(embedded)
            return self._logits(embedded, self.weight, mean)
        if labels is None:
            raise InputError("head nearest_etf needs labels while training: the class means")
        self._check(features, labels)
        if not len(features) and not is_shared():
            return self._logits(embedded, self.weight, None)
        with torch.autocast(embedded.device.type, enabled=False):
            batch = class_sums(embedded, labels, self.classes)
            mean = (
                self._mean_of_classes(batch) if self.settings.centre == "classes" else batch.mean()
            )
            W = self._solve(self.tracker.update(batch, mean))
        if self.settings.centre == "none":
            return self._logits(embedded, W, None)
        self._remember(mean)
        return self._logits(embedded, W, mean)

    def _check(self, features: Tensor, labels: Tensor) -> None:
        shape, N, C = tuple(labels.shape), len(features), self.classes
        whole = not (
            labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
        )
        if not (shape == (N, C) or (shape == (N,) and whole)):
            raise InputError(
                f"head nearest_etf: {N} features need labels of shape ({N},), whole numbers, or shares "
                f"({N}, {C}); these are {str(labels.dtype).removeprefix('torch.')} of shape {shape}"
            )
        # Where looking costs nothing. On another device the loss finds it, as late as that allows.
        if labels.ndim == 1 and N and labels.device.type == "cpu" and type(labels) is Tensor:
            numbers = labels.numpy()
            if numbers.max() >= C:
                at = int(numbers.argmax())
                raise InputError(
                    f"head nearest_etf: label {numbers[at]} of sample {at} in the batch is out of range; "
                    f"the classes are 0 to {C - 1}"
                )

    def _mean_of_classes(self, batch: ClassSums) -> Tensor:
        """The mean (d,) of the class means, over the classes that have been seen."""
        present = batch.counts > 0
        # What is tracked is centred on the means of its batches.
        before = (self.tracker.means + self.global_mean.unsqueeze(-1)).detach()
        means = torch.where(present, batch.class_means(), before)
        seen = present | (self.tracker.counts > 0)
        return (means * seen).sum(dim=-1) / seen.sum().clamp(min=1)

    def _solve(self, H: Tensor) -> Tensor:
        determined = self.tracker.determined
        if not self.started and self._may_start(H, determined):
            self._start(H)
        # An ETF is nearest to itself: U = P, without a gradient, whatever δ.
        H = torch.where(determined, H, self.weight.T / self.classes**0.5)
        U = self.layer(H if self.differentiate else H.detach(), self.prox.clone())
        if self.reduced:
            U = expand(U)
        W = etf_of_frame(U).mT
        with torch.no_grad():
            solved = U.norm() < torch.inf
            self.prox.copy_(torch.where(solved, U, self.prox))
            self.weight.copy_(torch.where(solved, W, self.weight))
        return W

    def _may_start(self, H: Tensor, determined: Tensor) -> bool:
        # Before the first solve alone, which waits for the device in any case.
        if not bool(determined):
            if not self._warned:
                warnings.warn(self._no_direction(), DdnkitWarning, stacklevel=2)
            self._warned = True
            return False
        return bool(H.isfinite().all())

    def _no_direction(self) -> str:
        variance = None if self.norm is None else self.norm.running_var
        if variance is not None and not bool(variance.isfinite().all()):
            return f"{_UNDETERMINED}. The variance of the features is too large for the batch norm's dtype"
        return _UNDETERMINED

    @torch.no_grad()
    def _start(self, H: Tensor) -> None:
        """Make P the solution without the proximal term; where that is not unique, the one nearest to P."""
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
        """Whether the first solve has been done; part of the state dict."""
        return {"started": self.started}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores `get_extra_state`."""
        self.started = bool(state["started"])


def _with_means(fields: dict[str, object]) -> dict[str, object]:
    """The keywords with those of earlier versions as the ``means`` that they are a part of now."""
    old = {name: fields.pop(name) for name in _OF_MEANS if name in fields}
    if not old:
        return fields
    given = ", ".join(f"{_OF_MEANS[name]!r}: {value!r}" for name, value in old.items())
    warnings.warn(
        f"NearestETFClassifier: {', '.join(old)} is now means={{{given}}}; the old keywords go with the "
        "next release",
        DeprecationWarning,
        stacklevel=3,
    )
    means: Any = fields.get("means") or {}
    return {**fields, "means": {**dict(means), **{_OF_MEANS[n]: v for n, v in old.items()}}}
