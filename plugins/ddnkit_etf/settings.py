"""Recipe settings of the classifier heads; importing them costs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, model_validator

from ddnkit import Component, Doubt, Settings, nearest_choice, registry

__all__ = [
    "FixedETFHead",
    "HeadSettings",
    "MeansSettings",
    "NearestETFHead",
    "StandardHead",
    "StandardUnnormalisedHead",
]


def _doubts_of_mean(centred: bool) -> Iterable[Doubt]:
    if not centred:
        text = "does nothing: centre is off, and no mean is subtracted"
        yield Doubt("evaluation_mean", text, idle=True)


class HeadSettings(Component):
    """What the settings of every head hold."""

    temperature: float = Field(5.0, gt=0, description="τ, the factor of the logits")
    batch_norm: Literal["none", "plain", "affine"] = Field(
        "none",
        description="batch norm of the features before all else; 'affine': with a learned scale and "
        "shift, which AGD could not train",
    )
    evaluation_mean: Literal["running", "last_batch", "test_batch"] = Field(
        "running",
        description="h_G in evaluation: the running training mean; the last training batch's (the "
        "published code's implicit ETF); or that of the batch being evaluated (its fixed ETF), "
        "where a prediction depends on the other samples of its batch",
    )


class StandardHead(HeadSettings):
    """A learned classifier on unit features, rows brought to unit length after each step."""

    builder = "ddnkit_etf:StandardClassifier.from_settings"

    centre: bool = Field(False, description="subtract the mean feature, as the ETF heads do")

    def doubts(self) -> Iterable[Doubt]:
        """See `Settings.doubts`."""
        return _doubts_of_mean(self.centre)


class StandardUnnormalisedHead(Component):
    """A learned linear classifier without any normalisation (Fig. 17)."""

    builder = "ddnkit_etf:StandardClassifier.without_norm"

    temperature: float = Field(1.0, gt=0, description="factor of the logits")


class FixedETFHead(HeadSettings):
    """A simplex ETF chosen once and never trained."""

    builder = "ddnkit_etf:FixedETFClassifier.from_settings"

    direction: Literal["canonical", "haar"] = Field(
        "canonical", description="the first C axes, or a random frame (Fig. 18)"
    )
    centre: bool = Field(True, description="subtract the mean feature h_G")

    def doubts(self) -> Iterable[Doubt]:
        """See `Settings.doubts`."""
        return _doubts_of_mean(self.centre)


class MeansSettings(Settings):
    """How class means are averaged over batches."""

    policy: Literal["paper", "constant"] = Field(
        "paper",
        description="paper: α_t = max(2/(t+2), 1e-4); constant: α as given, which is meant too where "
        "alpha alone is given",
    )
    alpha: float | None = Field(
        None, gt=0, le=1, description="smoothing factor of the constant policy (1: last batch only)"
    )
    normalise: Literal["after", "before"] = Field(
        "after",
        description="bring the average to unit norm (as published code), or average means of unit "
        "norm (eq. 9 as printed)",
    )
    absent: Literal["keep", "zero", "global_mean"] = Field(
        "keep",
        description="a class that the batch lacks: keeps its average, each class with a clock of "
        "its own; counts as a centred mean of zero (the text); or as one equal to the batch's mean "
        "(the published code)",
    )
    weight: Literal["equal", "samples"] = Field(
        "equal",
        description="of a class in what the ETF is nearest to: the same for all, or its share of "
        "the samples seen so far",
    )

    @model_validator(mode="before")
    @classmethod
    def _alpha_alone_is_constant(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("alpha") is not None:
            return {"policy": "constant", **given}
        return given

    @model_validator(mode="after")
    def _alpha_goes_with_constant(self) -> MeansSettings:
        if self.policy == "constant" and self.alpha is None:
            raise ValueError("policy 'constant' needs alpha")
        if self.policy == "paper" and self.alpha is not None:
            raise ValueError("alpha goes with policy 'constant'")
        return self


class NearestETFHead(HeadSettings):
    """The simplex ETF nearest to the class means, solved for at every step."""

    builder = "ddnkit_etf:NearestETFClassifier.from_settings"

    delta: float = Field(1e-3, ge=0, description="δ, proximal coefficient")
    solver: str = Field("procrustes", description="manifold solver; procrustes is the closed form")
    backward: str = Field("auto", description="backward form of the declarative layer")
    differentiate: bool = Field(
        True, description="send gradients through the solution too (the DDN gradient)"
    )
    centre: Literal["samples", "classes", "none"] = Field(
        "samples",
        description="h_G: the mean of the batch's samples; the mean of its class means, where each "
        "class counts the same whatever its size; or none",
    )
    means: MeansSettings = Field(
        MeansSettings.model_validate({}), description="how class means are averaged"
    )
    initial: Literal["canonical", "haar"] = Field(
        "canonical",
        description="frame before the first step, which its problem, without the proximal term, "
        "stays near to in what it leaves open: the first C axes, or a random one",
    )

    def doubts(self) -> Iterable[Doubt]:
        """See `Settings.doubts`."""
        yield from _doubts_of_mean(self.centre != "none")
        if not self.differentiate:
            yield Doubt("backward", "does nothing: differentiate is false", idle=True)

    @model_validator(mode="after")
    def _names_exist(self) -> NearestETFHead:
        for key, group in (("solver", "solvers"), ("backward", "backwards")):
            name, choices = getattr(self, key), registry.names(group)
            if name not in choices and not (key == "backward" and name == "auto"):
                raise ValueError(f"no {key} '{name}'.{nearest_choice(name, choices)}")
        return self
