"""A linear head that obeys the ClassifierHead protocol, a job that keeps its rows, a run as a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from ddnkit_train.settings import Classification
from torch import Tensor, nn
from torch.nn import functional

import ddnkit

#: Rounding depends on the number of threads, so that all processes that are compared have one.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class LinearHead(nn.Module):
    """Unit features centred by their running mean against unit rows."""

    class_means = None

    def __init__(self, feature_dim: int, classes: int, temperature: float, learned: bool) -> None:
        super().__init__()
        self.temperature = temperature
        eye = torch.eye(classes, feature_dim) - torch.eye(classes, feature_dim)[:classes].mean(0)
        self.weight = nn.Parameter(functional.normalize(eye), requires_grad=learned)
        self.global_mean: Tensor
        self.register_buffer("global_mean", torch.zeros(feature_dim))
        self.steps_seen = 0

    def embed(self, features: Tensor) -> Tensor:
        return functional.normalize(features)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        embedded = self.embed(features)
        mean = self.global_mean
        if self.training:
            mean = embedded.mean(dim=0)
            self.global_mean = mean.detach()
        return self.temperature * (embedded - mean) @ self.weight.T

    def classifier(self) -> Tensor:
        return self.weight.detach()

    @torch.no_grad()
    def after_step(self) -> None:
        self.steps_seen += 1
        self.weight.copy_(functional.normalize(self.weight))


class LinearHeadSettings(ddnkit.Settings):
    """The settings of the stand-in."""

    temperature: float = 5.0
    learned: bool = True

    def build(self, *, feature_dim: int, classes: int) -> LinearHead:
        return LinearHead(feature_dim, classes, self.temperature, self.learned)


class Rows(list[dict[str, Any]]):
    """The rows of one job, with the progress that it reported."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[tuple[int, int, dict[str, float]]] = []


def pipeline(train: dict[str, Any], head: ddnkit.Settings | None = None, **sections: Any) -> Any:
    """A classification pipeline with the library's defaults filled in, as the loader does."""
    from ddnkit_collapse import NeuralCollapse
    from ddnkit_train.settings import AGD, CrossEntropy

    return Classification(
        **{
            "loss": CrossEntropy(),
            "metrics": NeuralCollapse(),
            "optimizer": AGD(gain=2.0),
            **sections,
        },
        head=head or LinearHeadSettings(),
        train=train,
    )


def run_job(
    settings: Any,
    folder: Path,
    seed: int = 0,
    smoke: bool = False,
    device: Literal["cpu", "cuda"] = "cpu",
) -> Rows:
    """Run one job into ``folder``."""
    rows = Rows()
    settings.run(
        ddnkit.Job(
            variant="default",
            seed=seed,
            folder=folder,
            device=device,
            smoke=smoke,
            record=rows.append,
            progress=lambda done, total, figures: rows.reports.append((done, total, figures)),
        )
    )
    return rows


def start(recipe: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """``ddnkit run`` in a process of its own, to be killed or interrupted."""
    command = [sys.executable, "-m", "ddnkit", "run", str(recipe), "--out", str(out), *more]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **ONE_THREAD},
        # A shell may have had its children ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
