"""Deep recursive feature machines: projections on the AGOP of a kernel machine, and random features, in turn.

Algorithm 1 of *Average gradient outer product as a mechanism for deep neural collapse* (NeurIPS 2024), with
samples as rows. For l = 1 … L:

    X_l ← X_l, each row divided by its norm
    α_l = (k_l(X_l, X_l) + γI)⁻¹ Y,    f_l(x) = Σ_j α_l,j k_l(x, x_j)
    M_l = AGOP(f_l, X_l)
    X_{l+1} = Φ_l(X_l M_l^{1/2})

and once more the first two lines, with l = L + 1. f_1 is plain kernel regression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from ddnkit import InputError, nearest_choice

from .factorisations import matrix_sqrt
from .feature_maps import FeatureMap, ReLUFeatures
from .kernel_agop import agop
from .kernels import Kernel, Laplace
from .regression import KernelRegression
from .samples import (
    Standardisation,
    check_columns,
    check_labels,
    check_pair,
    check_samples,
    label_targets,
    unit_rows,
)
from .settings import Coding, Solver

Stage = Literal["input", "agop", "features"]
Each = TypeVar("Each", Kernel, FeatureMap)


@dataclass(frozen=True)
class DeepRFMLayer:
    """The maps of a layer l ≤ L, which it applies to its normalised input.

    Attributes:
        root: M_l^{1/2} ``(d, d)``.
        features: Φ_l.
        clipped: of M_l, see `MatrixRoot`.
    """

    root: Tensor
    features: Callable[[Tensor], Tensor]
    clipped: float

    @property
    def agop(self) -> Tensor:
        """M_l ``(d, d)``."""
        return self.root @ self.root


@dataclass(frozen=True)
class LayerStages:
    """The training samples in one layer, while `DeepRFM.fit` is at that layer.

    Attributes:
        number: l, from 1.
        layer: the layer, or None in L + 1.
        predictor: f_l.
        inputs: X_l, rows normalised ``(n, d)``.
        projected: X_l M_l^{1/2} ``(n, d)``, or None in L + 1.
        features: Φ_l(X_l M_l^{1/2}) ``(n, width)``, or None in L + 1.
    """

    number: int
    layer: DeepRFMLayer | None
    predictor: KernelRegression
    inputs: Tensor
    projected: Tensor | None = None
    features: Tensor | None = None


class DeepRFM:
    """A classifier by Algorithm 1, with L + 1 predictors, of which the last is the model's.

    The defaults are the paper's settings for ReLU features (appendix D): Laplace kernel of bandwidth 2, no
    ridge, labels ±1, features standardised. Every layer reports how its equations were solved in
    `predictors[l − 1].report`; for a kernel matrix that is singular there is a warning (see
    `KernelRegression`).

    Args:
        kernel: k_l, either one for all layers or L + 1 of them.
        depth: L; 0 is kernel regression alone.
        feature_map: Φ_l, either one kind, drawn anew for each layer, or L of them. Cosine features depend on
            the scale of M_l, which is that of equation 1, divided by the number of samples.
        ridge: γ.
        labels: coding of Y: "plus_minus" (±1) or "one_hot".
        standardise: shift and scale each feature of the samples by the training samples' statistics.
        solver: see `KernelRegression`.
        dtype: of all computations, float32 or float64; by default that of the training samples.
        device: by default that of the training samples.
        memory: bytes that a step may use; by default half of the device's free memory.
        seed: of the random features.
        keep_predictors: False drops f_1 … f_L after use; each holds a copy of the training samples.

    Attributes:
        layers: the maps of layers 1 … L, after `fit`.
        predictors: f_1 … f_{L+1} after `fit`; None for those dropped.
        standardisation: of the training samples, or None.

    Raises:
        ddnkit.InputError: an argument is out of its range.
    """

    layers: list[DeepRFMLayer]
    predictors: list[KernelRegression | None]
    standardisation: Standardisation | None

    def __init__(
        self,
        kernel: Kernel | Sequence[Kernel] | None = None,
        depth: int = 18,
        feature_map: FeatureMap | Sequence[FeatureMap] | None = None,
        *,
        ridge: float = 0.0,
        labels: Coding = "plus_minus",
        standardise: bool = True,
        solver: Solver = "auto",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        memory: int | None = None,
        seed: int = 0,
        keep_predictors: bool = True,
    ) -> None:
        if depth < 0:
            raise InputError(f"a Deep RFM's depth is 0 or above, not {depth}")
        if labels not in get_args(Coding):
            hint = nearest_choice(labels, get_args(Coding))
            raise InputError(f"labels have no coding '{labels}'.{hint}")
        self.depth, self.labels, self.standardise = depth, labels, standardise
        self.dtype, self.device = dtype, device
        self.memory, self.seed, self.keep_predictors = memory, seed, keep_predictors
        self._kernels = _one_for_each(
            Laplace(2.0) if kernel is None else kernel, depth + 1, "kernels"
        )
        maps = ReLUFeatures() if feature_map is None else feature_map
        self._maps = _one_for_each(maps, depth, "feature maps")
        self._ridge, self._solver = ridge, solver
        self._regression(1)  # so that a wrong ridge or solver raises here and not in `fit`

    def fit(
        self,
        X: Tensor,
        y: Tensor,
        *,
        classes: int | None = None,
        on_layer: Callable[[LayerStages], None] | None = None,
    ) -> DeepRFM:
        """Run Algorithm 1; returns self.

        Args:
            X: training samples ``(n, d)``.
            y: labels ``(n,)``, int64, or targets Y ``(n, C)``.
            classes: C; by default one more than the largest label. A class without a sample has −1 (or 0)
                for a target throughout.
            on_layer: called in each layer 1 … L + 1, to measure what is not kept afterwards.

        Raises:
            ddnkit.InputError: samples are not finite, or labels do not match.
        """
        X, Y, standardisation = self._prepare(X, y, classes)
        like = X.new_empty(0, X.shape[1])
        generator = torch.Generator().manual_seed(self.seed)
        layers: list[DeepRFMLayer] = []
        predictors: list[KernelRegression | None] = []
        for number in range(1, self.depth + 2):
            X = unit_rows(X)
            predictor = self._regression(number).fit(X, Y)
            last = number > self.depth
            predictors.append(predictor if self.keep_predictors or last else None)
            if last:
                stages = LayerStages(number, None, predictor, X)
            else:
                layers.append(
                    fit_layer(predictor, self._maps[number - 1], generator, memory=self.memory)
                )
                projected = X @ layers[-1].root
                features = layers[-1].features(projected)
                stages = LayerStages(number, layers[-1], predictor, X, projected, features)
                X = features
            if on_layer is not None:
                on_layer(stages)
        self.layers, self.predictors, self.standardisation = layers, predictors, standardisation
        self._like = like
        return self

    def decision_function(self, X: Tensor, *, layer: int | None = None) -> Tensor:
        """f_l(x_i) ``(m, C)`` of samples ``(m, d)``.

        Args:
            X: samples, as `fit` takes them.
            layer: l in 1 … L + 1; by default the last.

        Raises:
            ddnkit.InputError: samples do not match those of `fit`, there is no such layer, or its predictor
                was not kept.
        """
        inputs, number = self._inputs(X, layer)
        predictor = self.predictors[number - 1]
        if predictor is None:
            raise InputError(
                f"the predictor of layer {number} was not kept: fit with keep_predictors=True"
            )
        return predictor.predict(inputs)

    def predict(self, X: Tensor, *, layer: int | None = None) -> Tensor:
        """argmax_c f_l,c(x_i), the labels ``(m,)``; see `decision_function`."""
        return self.decision_function(X, layer=layer).argmax(dim=1)

    def transform(self, X: Tensor, *, layer: int | None = None, stage: Stage = "input") -> Tensor:
        """Samples ``(m, d)`` as they are in layer l.

        Args:
            X: samples, as `fit` takes them.
            layer: l in 1 … L + 1; by default the last one that has the stage.
            stage: "input" X_l, "agop" X_l M_l^{1/2}, or "features" Φ_l(X_l M_l^{1/2}); the latter two of
                layers 1 … L.

        Raises:
            ddnkit.InputError: samples do not match those of `fit`, or there is no such layer or stage.
        """
        if stage not in get_args(Stage):
            hint = nearest_choice(stage, get_args(Stage))
            raise InputError(f"a layer has no stage '{stage}'.{hint}")
        if layer is None and stage != "input":
            layer = self.depth
        inputs, number = self._inputs(X, layer)
        if stage == "input":
            return inputs
        if number > self.depth:
            raise InputError(
                f"layer {number} has no stage '{stage}': the last layer is a predictor alone"
            )
        maps = self.layers[number - 1]
        projected = inputs @ maps.root
        return projected if stage == "agop" else maps.features(projected)

    def _regression(self, number: int) -> KernelRegression:
        return KernelRegression(self._kernels[number - 1], self._ridge, self._solver, self.memory)

    def _prepare(
        self, X: Tensor, y: Tensor, classes: int | None
    ) -> tuple[Tensor, Tensor, Standardisation | None]:
        """X_1 before its rows are normalised, Y, and the standardisation."""
        X = X.to(self.device, self.dtype)
        check_samples(X)
        if y.is_floating_point():
            Y = y.to(X)
            check_columns(Y, X, "y")
        else:
            check_labels(y, len(X))
            Y = label_targets(y, self.labels, classes=classes).to(X)
        if not self.standardise:
            return X, Y, None
        standardisation = Standardisation.fit(X)
        return standardisation(X), Y, standardisation

    def _inputs(self, X: Tensor, layer: int | None) -> tuple[Tensor, int]:
        """X_l of samples, and l."""
        if not hasattr(self, "layers"):
            raise InputError("this Deep RFM has no layers yet: call fit first")
        number = self.depth + 1 if layer is None else layer
        if not 1 <= number <= self.depth + 1:
            raise InputError(f"there is no layer {number}: layers are 1 … {self.depth + 1}")
        X = X.to(self._like)
        check_samples(X)
        check_pair(X, self._like, ("X", "the training samples"))
        if self.standardisation is not None:
            X = self.standardisation(X)
        for maps in self.layers[: number - 1]:
            X = maps.features(unit_rows(X) @ maps.root)
        return unit_rows(X), number


def fit_layer(
    predictor: KernelRegression,
    feature_map: FeatureMap,
    generator: torch.Generator,
    *,
    memory: int | None = None,
) -> DeepRFMLayer:
    """A layer from its predictor: M^{1/2} at the predictor's points, and a draw of the feature map."""
    X = predictor.points
    M = agop(predictor.kernel, X, predictor.coefficients, memory=memory)
    features = feature_map.draw(X.shape[1], generator)
    root, clipped = matrix_sqrt(M)
    return DeepRFMLayer(root, features, clipped)


def _one_for_each(given: Each | Sequence[Each], count: int, what: str) -> list[Each]:
    """`count` of them: those given, or the one given for all."""
    if not isinstance(given, Sequence):
        return [given] * count
    if len(given) != count:
        raise InputError(f"{len(given)} {what} were given; expected one, or {count}")
    return list(given)
