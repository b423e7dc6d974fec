"""The variants of a long-tailed run: the settings of each, and the sizes of its classes.

Nothing here imports torch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddnkit_collapse.run_figures import Series, over_seeds, read_settings

from ddnkit import read_table

#: More classes than this are drawn as means of several that are next to each other in size.
_POINTS = 100


@dataclass(frozen=True)
class Variant:
    """One variant of a run folder.

    Attributes:
        name: of its folder.
        settings: what ``settings.yaml`` says.
        jobs: the rows of each finished job's ``classes.csv``.
        counts: training samples of each class, the same in all jobs; empty if none is finished.
    """

    name: str
    settings: dict[str, Any]
    jobs: tuple[list[dict[str, str]], ...]
    counts: tuple[int, ...]

    def section(self, name: str) -> dict[str, Any]:
        """A section of the settings; empty where it is not there."""
        section = self.settings.get(name)
        return section if isinstance(section, dict) else {}

    @property
    def ratio(self) -> float | None:
        """Smallest class over the largest: as the recipe asks for it, else as it came out.

        None where a class is empty, or no job is finished.
        """
        asked = self.section("imbalance").get("ratio")
        if asked is not None:
            return float(asked)
        smallest = min(self.counts, default=0)
        return smallest / max(self.counts) if smallest else None

    @property
    def ranked(self) -> list[int]:
        """The classes, the largest first."""
        return sorted(range(len(self.counts)), key=lambda c: -self.counts[c])

    def accuracies(self, split: str) -> Series:
        """The accuracy on each class over the place of its size, from 1; in per cent.

        Args:
            split: "train" or "test"; classes without a sample there have no point.
        """
        size = -(-len(self.counts) // _POINTS)
        ranked, jobs = self.ranked, []
        for rows in self.jobs:
            points = {}
            for start in range(0, len(rows), size):
                texts = [rows[c][f"{split}_top1"] for c in ranked[start : start + size]]
                if any(texts):
                    middle = start + (len(texts) + 1) / 2
                    points[middle] = statistics.mean(float(text) for text in texts if text)
            jobs.append(points)
        return over_seeds(jobs) if jobs else Series()


def read_variants(folder: Path, names: Iterable[str]) -> list[Variant]:
    """Read ``settings.yaml`` and the jobs' ``classes.csv`` of these variants of a run folder."""
    return [_variant(folder, name) for name in names]


def _variant(folder: Path, name: str) -> Variant:
    jobs = tuple(_rows(path) for path in sorted(folder.glob(f"runs/{name}/seed-*/classes.csv")))
    counts = tuple(int(row["train_samples"]) for row in jobs[0]) if jobs else ()
    return Variant(name, read_settings(folder, name), jobs, counts)


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a ``classes.csv``."""
    samples = dict.fromkeys(("class", "train_samples", "test_samples"), "count")
    return read_table(path, {**samples, "train_top1": "figure", "test_top1": "figure"})


def class_number(variants: Iterable[Variant]) -> int | None:
    """C, where all variants have the same."""
    numbers = {len(variant.counts) for variant in variants if variant.counts}
    return numbers.pop() if len(numbers) == 1 else None


def etf_cosine(classes: int | None) -> float | None:
    """−1/(C−1): the cosine between two classes of a simplex ETF."""
    return None if classes is None or classes < 2 else -1 / (classes - 1)


def etf_angle(classes: int | None) -> float | None:
    """The angle between two classes of a simplex ETF, in degrees."""
    cosine = etf_cosine(classes)
    return None if cosine is None else math.degrees(math.acos(cosine))
