"""The published figures of *Guiding Neural Collapse* (NeurIPS 2024), to stand beside ours.

The numbers are in ``published.yaml`` as they were printed. Nothing here imports torch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ddnkit import InputError, nearest_choice

#: The paper's standard, fixed ETF and implicit ETF, by the names of our heads.
Method = Literal["standard", "fixed_etf", "nearest_etf"]
METHODS: tuple[Method, ...] = ("standard", "fixed_etf", "nearest_etf")
EPOCHS = (50, 200)
SOURCE = "Guiding Neural Collapse (NeurIPS 2024)"

# Half of the last digit that minima and maxima were printed with.
_ROUNDING = 0.05 + 1e-9


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


@dataclass(frozen=True)
class PublishedFigures:
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


def published_names() -> tuple[str, ...]:
    """The experiments that there are figures of."""
    return tuple(dict.fromkeys(name for section in _read().values() for name in section))


def published_figures(name: str) -> PublishedFigures:
    """The figures of one experiment.

    Tables 1 and 2 name it by data and network (``cifar10_resnet18``), Table 3 the other way round
    (``resnet18_cifar10``); either finds both.

    Raises:
        ddnkit.InputError: there is no such experiment; the text has the nearest name.
    """
    names = published_names()
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
    return PublishedFigures(name, top1, Memory(*memory) if memory else None)


def _find(section: dict[str, Any], name: str, default: Any) -> Any:
    words = sorted(name.split("_"))
    found = (value for other, value in section.items() if sorted(other.split("_")) == words)
    return next(found, default)


@functools.cache
def _read() -> dict[str, dict[str, Any]]:
    text = Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")
    tables: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return tables
