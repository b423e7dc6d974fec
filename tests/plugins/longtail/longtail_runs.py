"""Run folders as a long-tailed recipe leaves them, without its training."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

COSINES = ("hh_cos_mean", "hh_cos_std", "hw_cos_mean", "hw_cos_std")
ALIGNMENT = ("hw_own_cos", "wh_distance")
MINORITY = ("worst_cos", "rare_angle")
ACCURACIES = ("test_top1", "test_many", "test_medium", "test_few", "test_balanced")
STEPS = (100, 200, 300)
SEEDS = 3


def settings(ratio: float | None = 0.01, head: str = "standard", **sections: Any) -> dict[str, Any]:
    """What ``settings.yaml`` says, in short."""
    return {
        "backbone": {"name": "cnn"},
        "head": {"name": head},
        "loss": {"name": "cross_entropy"},
        "metrics": {"name": "long_tail", "many_above": 100, "few_below": 20},
        "imbalance": {"ratio": ratio, "profile": "exponential"},
        **sections,
    }


def write_summary(
    folder: Path, figures: Mapping[str, Mapping[str, float]], seeds: int = SEEDS
) -> Path:
    """``summary.csv`` with these medians at the end, by variant and metric; ±10 % over the seeds.

    Earlier evaluations have twice the figures.
    """
    with (folder / "summary.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "metric", "epoch", "step", "median", "min", "max", "n"])
        for variant, by_metric in figures.items():
            for metric, end in by_metric.items():
                for step in STEPS:
                    median = end if step == STEPS[-1] else 2 * end
                    spread = (0.9 * median, 1.1 * median) if seeds > 1 else (median, median)
                    writer.writerow(
                        [variant, metric, step / 100, step, median, *sorted(spread), seeds]
                    )
    return folder


def write_variant(
    folder: Path,
    name: str,
    content: Mapping[str, Any],
    counts: Sequence[int] = (),
    *,
    tested: bool = True,
    seeds: int = SEEDS,
) -> None:
    """Settings and each seed's ``classes.csv``: class c has 10c + seed per cent, half of it in training.

    Args:
        folder: of the run.
        name: of the variant.
        content: its settings.
        counts: training samples of each class; without, no job is finished.
        tested: whether there is a test set.
        seeds: how many.
    """
    path = folder / "runs" / name
    path.mkdir(parents=True)
    (path / "settings.yaml").write_text(yaml.safe_dump(dict(content)))
    for seed in range(seeds if counts else 0):
        job = path / f"seed-{seed}"
        job.mkdir()
        with (job / "classes.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["class", "train_samples", "train_top1", "test_samples", "test_top1"])
            for c, count in enumerate(counts):
                top1 = 10 * c % 100 + seed
                writer.writerow([c, count, top1 / 2, *((50, top1) if tested else (0, ""))])
