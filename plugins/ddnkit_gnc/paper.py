"""*Guiding Neural Collapse* (NeurIPS 2024) for recipes that follow it.

Its experiments' figures are in ``published.yaml`` as they were printed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic
import yaml
from pydantic import Field

from ddnkit import InputError, Paper, PublishedFigure, nearest_choice

#: The paper's standard, fixed ETF and implicit ETF, by the names of our heads.
Method = Literal["standard", "fixed_etf", "nearest_etf"]
METHODS: tuple[Method, ...] = ("standard", "fixed_etf", "nearest_etf")
EPOCHS = (50, 200)

#: The settings of each method in the paper. How the nearest ETF is solved for does not matter, since
#: every solver finds the same.
_HEADS: dict[Method, dict[str, Any]] = {
    "standard": {"centre": False},
    "fixed_etf": {"direction": "canonical", "centre": True, "batch_norm": "none"},
    "nearest_etf": {
        "delta": 1e-3,
        "centre": "samples",
        "batch_norm": "none",
        "means": {"policy": "paper", "weight": "equal"},
    },
}
#: What the published code does otherwise than the text; by head.
_PUBLISHED_CODE: dict[str, dict[str, Any]] = {
    "nearest_etf": {
        "data.sampler": "stratified",
        "head.means.absent": "global_mean",
        "head.means.normalise": "after",
        "head.evaluation_mean": "last_batch",
    },
    "fixed_etf": {"head.evaluation_mean": "test_batch"},
}
_NONE = "–"

# Half of the last digit that minima and maxima were printed with.
_ROUNDING = 0.05 + 1e-9


class GuidingNeuralCollapse(Paper):
    """Guiding Neural Collapse (NeurIPS 2024): its Tables 1 to 3, and what its published code does.

    A variant has published figures where its head is one of the paper's: τ = 5, and a standard head
    that does not centre, a canonical fixed ETF, or the nearest ETF with δ = 1e-3 and the paper's
    averaging, differentiated through (on ImageNet: not). Other settings are not compared.
    """

    title: ClassVar[str] = "Guiding Neural Collapse (NeurIPS 2024)"
    former_keys: ClassVar[Mapping[str, str]] = {"published": "experiment", "fidelity": "fidelity"}

    experiment: str | None = Field(
        default=None,
        description="The experiment whose published figures the report sets beside these, such as "
        "cifar10_resnet18 or ufm100.",
    )
    fidelity: Literal["paper", "published_code"] = Field(
        default="paper",
        description="Where the text and the published code differ: 'published_code' fills in what "
        "the code does, for keys that the recipe does not give. docs/fidelity.md lists them.",
    )

    @pydantic.field_validator("experiment")
    @classmethod
    def _is_an_experiment(cls, name: str | None) -> str | None:
        try:
            return None if name is None else experiment(name).name
        except InputError as error:
            raise ValueError(str(error)) from error

    def presets(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The published code's choices, where ``fidelity`` asks for them."""
        if self.fidelity == "paper":
            return {}
        head = given.get("head")
        name = head.get("name") if isinstance(head, dict) else None
        common = {"data.sampler": "shuffled", "backbone.stem": "imagenet"}
        return {**common, **_PUBLISHED_CODE.get(str(name), {})}

    def published(self, settings: Mapping[str, Any]) -> Iterable[PublishedFigure]:
        """Tables 1 and 2, accuracies on training and test set; Table 3, the GPU memory."""
        if self.experiment is None:
            return
        printed = experiment(self.experiment)
        head = settings.get("head")
        head = head if isinstance(head, dict) else {}
        method = printed.method(head)
        note = "Settings other than the head's are not compared."
        for split, table in (("train", "Table 1"), ("test", "Table 2")) if printed.top1 else ():
            for epoch in EPOCHS:
                spread = printed.top1[split, epoch, method] if method else None
                yield PublishedFigure(
                    f"{split}_top1",
                    str(spread or _NONE),
                    f"{self.title}, {table}, {printed.name}, five seeds",
                    epoch,
                    note if spread is None or spread.consistent else spread.remark,
                )
        if printed.memory:
            text = printed.memory.of(head)
            source = f"{self.title}, Table 3: GPU memory during training"
            yield PublishedFigure("peak_memory_gb", text, source)


@dataclass(frozen=True)
class Spread:
    """Median and range over the paper's five seeds, in per cent."""

    median: float
    minimum: float
    maximum: float

    @property
    def consistent(self) -> bool:
        """Whether the median lies in the range, but for rounding; one that was printed does not."""
        return self.minimum - _ROUNDING <= self.median <= self.maximum + _ROUNDING

    @property
    def remark(self) -> str:
        """What to say of a median that does not."""
        low, high = f"{self.minimum:.1f}", f"{self.maximum:.1f}"
        return f"{self.median:.2f} outside of its range [{low}, {high}] is as printed."

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.minimum:.1f}, {self.maximum:.1f}]"


@dataclass(frozen=True)
class Memory:
    """Table 3: gigabytes of GPU memory; None where the experiment did not fit.

    Attributes:
        undifferentiated: the implicit ETF without the gradient of its solution.
        nearest_etf: with it.
    """

    standard: float
    fixed_etf: float
    undifferentiated: float
    nearest_etf: float | None

    def of(self, head: Mapping[str, Any]) -> str:
        """That of a head with these settings, as text."""
        name = head.get("name")
        if name not in METHODS:
            return _NONE
        if name == "nearest_etf" and not head.get("differentiate"):
            name = "undifferentiated"
        gigabytes: float | None = getattr(self, name)
        return "did not fit" if gigabytes is None else f"{gigabytes:g}"


@dataclass(frozen=True)
class Experiment:
    """What the paper prints about one experiment.

    Attributes:
        name: of the experiment, as it was asked for.
        top1: by split (``"train"``: Table 1; ``"test"``: Table 2), epoch and method; empty where
            the paper gives no accuracies.
        memory: Table 3, or None.
    """

    name: str
    top1: dict[tuple[str, int, Method], Spread]
    memory: Memory | None

    @property
    def differentiates(self) -> bool:
        """Whether the implicit ETF of Tables 1 and 2 sends gradients through its solution.

        For ImageNet it did not: the dense backward form did not fit in memory.
        """
        return "imagenet" not in self.name

    def method(self, head: Mapping[str, Any]) -> Method | None:
        """The method of Tables 1 and 2 that a head with these settings is; None for one of our own."""
        method = next((method for method in METHODS if method == head.get("name")), None)
        if method is None:
            return None
        wanted = {"temperature": 5.0, **_HEADS[method]}
        if method == "nearest_etf":
            wanted["differentiate"] = self.differentiates
        return method if _agrees(head, wanted) else None


def experiment_names() -> tuple[str, ...]:
    """The experiments that there are figures of."""
    return tuple(dict.fromkeys(name for section in _read().values() for name in section))


def experiment(name: str) -> Experiment:
    """The figures of one experiment.

    Tables 1 and 2 name it by data and network (``cifar10_resnet18``), Table 3 the other way round
    (``resnet18_cifar10``); either finds both.

    Raises:
        ddnkit.InputError: there is no such experiment; the text has the nearest name.
    """
    names = experiment_names()
    if name not in names:
        raise InputError(f"no published figures of '{name}'.{nearest_choice(name, names)}")
    tables = _read()
    top1 = {
        (split, epoch, method): Spread(*map(float, numbers))
        for split in ("train", "test")
        for epoch in EPOCHS
        for method, numbers in zip(
            METHODS, _find(tables[f"{split}_top1"], name, {}).get(f"epoch{epoch}", ()), strict=False
        )
    }
    memory = _find(tables["gpu_memory_gb"], name, None)
    return Experiment(name, top1, Memory(*memory) if memory else None)


def _agrees(given: Any, wanted: Any) -> bool:
    """Whether ``given`` has what is wanted, whatever else it has."""
    if not isinstance(wanted, dict):
        return bool(given == wanted)
    return isinstance(given, Mapping) and all(_agrees(given.get(k), v) for k, v in wanted.items())


def _find(section: dict[str, Any], name: str, default: Any) -> Any:
    words = sorted(name.split("_"))
    found = (value for other, value in section.items() if sorted(other.split("_")) == words)
    return next(found, default)


@functools.cache
def _read() -> dict[str, dict[str, Any]]:
    text = Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")
    tables: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return tables
