"""What a training leaves besides its rows: progress, times and memory, curves, and figures by sample."""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from ddnkit_collapse import Evaluation, etf_cosine_margin
from torch import Tensor

from ddnkit import (
    InputError,
    Job,
    peak_resident_memory,
    replace_file,
    reset_peak_resident_memory,
)

#: Steps before the first that is measured: libraries load, choose algorithms and allocate.
_WARM_UP = 10
#: Of a large training set so many of the sorted margins are written.
_MARGIN_POINTS = 2000


class Stopwatch:
    """Forward, backward and whole-step times of some steps, and the peak memory.

    On a GPU the times are between events on its stream, read once at the end: nothing waits.

    Args:
        device: that trains.
        steps: how many to measure.
        total: steps of this session; a short one is measured from the second on.
    """

    def __init__(self, device: torch.device, steps: int, total: int) -> None:
        self._device = device
        first = _WARM_UP if total > _WARM_UP + steps else 1
        self._wanted = range(first, first + steps)
        self._seen = 0
        reset_peak_memory(device)
        self._marks: list[list[Any]] = []

    def begin(self) -> None:
        """A step begins; then `mark` after the forward, the backward and the update."""
        if self._seen in self._wanted:
            self._marks.append([self._now()])

    def mark(self, *, last: bool = False) -> None:
        """A part of the step has been done; ``last``: so has the step."""
        if self._seen in self._wanted:
            self._marks[-1].append(self._now())
        self._seen += last

    def write(self, file: Path, precision: str, devices: int) -> None:
        """Write what was measured; a file of an earlier session is kept where nothing was."""
        marks = [marks for marks in self._marks if len(marks) == 4]
        if not marks:
            return
        parts = [self._differences(step) for step in marks]
        forward, backward, _ = (statistics.median(part) for part in zip(*parts, strict=True))
        cuda = self._device.type == "cuda"
        content = {
            "forward_ms": round(forward, 4),
            "backward_ms": round(backward, 4),
            "step_ms": round(statistics.median(map(sum, parts)), 4),
            "peak_memory_mb": round(peak_memory(self._device) / 2**20, 1),
            "memory_of": "device" if cuda else "process",
            "steps": len(marks),
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "devices": devices,
            "precision": precision,
        }
        text = json.dumps(content, indent=2) + "\n"
        replace_file(file, lambda part: part.write_text(text, encoding="utf-8"))

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _differences(self, marks: list[Any]) -> list[float]:
        """Milliseconds between the marks."""
        if self._device.type != "cuda":
            return [1e3 * (b - a) for a, b in pairwise(marks)]
        marks[-1].synchronize()
        return [a.elapsed_time(b) for a, b in pairwise(marks)]


def peak_memory(device: torch.device) -> int:
    """Bytes: the allocator's peak on a GPU, elsewhere the largest resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_memory()


def reset_peak_memory(device: torch.device) -> None:
    """Count the peak from now on, where that can be: else it is that since the process began."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        reset_peak_resident_memory()


class Curves:
    """Writes each evaluation's figures as scalars by step into ``folder/tensorboard``.

    Args:
        folder: the job's folder.
        start: the step gone on from; what was logged after it is hidden.

    Raises:
        ddnkit.InputError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path, start: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "engine.tensorboard needs the package tensorboard: "
                "pip install 'ddnkit[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)

    def add(self, row: Mapping[str, float | None]) -> None:
        """The figures of one evaluation."""
        for name, value in row.items():
            if value is not None and name != "step":
                self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        """No more evaluations."""
        self._writer.close()


class Progress:
    """Reports about a hundred times a job, and never reads a tensor."""

    def __init__(self, job: Job, start: int, total: int) -> None:
        self._report, self._first, self._total = job.progress, start, total
        self._every = max(total // 100, 1)
        self._figures: dict[str, float] = {}
        self._start = time.perf_counter()

    def evaluation(self, row: Mapping[str, float | None]) -> None:
        """Show the figures of an evaluation from now on."""
        shown = ("train_loss", "train_top1", "test_top1")
        figures = {name: row[name] for name in shown}
        self._figures = {name: value for name, value in figures.items() if value is not None}

    def step(self, done: int) -> None:
        """So many steps are done."""
        if done % self._every == 0 or done == self._total:
            rate = (done - self._first) / (time.perf_counter() - self._start)
            self._report(done, self._total, {**self._figures, "steps/s": rate})


def write_margins(folder: Path, margins: Tensor, classes: int) -> None:
    """``margins.csv``: the sorted cosine margins P_CM of the training samples.

    Columns: ``example`` (rank from 1), ``cosine_margin``, and the ``bound`` C/(C−1) of an exact
    ETF. Of a large training set evenly spaced ranks are written, the first and last among them.
    """
    ordered = margins.sort().values.cpu()
    count = min(len(ordered), _MARGIN_POINTS)
    ranks = torch.linspace(0, len(ordered) - 1, count, dtype=torch.float64).round().long()
    with (folder / "margins.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["example", "cosine_margin", "bound"])
        for rank, margin in zip(ranks.tolist(), ordered[ranks].tolist(), strict=True):
            writer.writerow([rank + 1, f"{margin:.8g}", f"{etf_cosine_margin(classes):.8g}"])


def write_classes(folder: Path, evaluation: Evaluation) -> None:
    """``classes.csv``: how many samples each class has, and the accuracy on it at the end.

    Columns: ``class``, ``train_samples``, ``train_top1``, ``test_samples``, ``test_top1``; accuracies
    in per cent, empty where a class has no sample that was evaluated.
    """
    held_out, C = evaluation.held_out, evaluation.classes
    train = _by_class(evaluation.labels, evaluation.predictions, C)
    test = _by_class(held_out.labels, held_out.predictions, C) if held_out else [(0, "")] * C
    counts = [0] * C if evaluation.counts is None else evaluation.counts.tolist()
    with (folder / "classes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "train_samples", "train_top1", "test_samples", "test_top1"])
        for c, (samples, (_, trained), (tested, top1)) in enumerate(
            zip(counts, train, test, strict=True)
        ):
            writer.writerow([c, samples, trained, tested, top1])


def _by_class(labels: Tensor, predictions: Tensor | None, classes: int) -> list[tuple[int, str]]:
    """How many samples of each class, and what share of them was decided right, in per cent."""
    samples = torch.bincount(labels, minlength=classes)
    right = torch.bincount(labels[labels == predictions], minlength=classes)
    return [
        (n, f"{100 * r / n:.8g}" if n else "")
        for n, r in zip(samples.tolist(), right.tolist(), strict=True)
    ]
