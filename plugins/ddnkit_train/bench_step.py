"""``ddnkit bench train_step``: what a head costs beside the standard one, on the same network."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ddnkit import Bench, InputError, Table, registry

from .agd import AGD
from .model import Model
from .stopwatch import peak_memory

#: The paper's three methods; its nearest ETF without and with the DDN gradient (Table 3).
HEADS: dict[str, dict[str, Any]] = {
    "standard": {},
    "fixed_etf": {},
    "nearest_etf, no DDN gradient": {"differentiate": False},
    "nearest_etf": {"differentiate": True},
}
_WARM_UP = 2


@dataclass(frozen=True)
class Work:
    """The network and batch of a comparison."""

    backbone: str
    stem: str
    size: int
    batch: int
    classes: int

    def __str__(self) -> str:
        return (
            f"{self.backbone} ({self.stem} stem), 3×{self.size}×{self.size}, batch {self.batch}, "
            f"C = {self.classes}"
        )


WORK = {
    "cpu": (Work("resnet18", "imagenet", 32, 256, 100), Work("resnet18", "cifar", 32, 256, 100)),
    "cuda": (Work("resnet50", "imagenet", 224, 256, 1000),),
}


class TrainStep(Bench):
    """Time of a training step of each head, on the same batch in turn, and its extra memory."""

    def run(
        self, *, device: str, repeats: int, seed: int, progress: Callable[[str], None]
    ) -> list[Table]:
        """A table for each network: ResNet-18 on the CPU; ResNet-50 in bfloat16 on a GPU."""
        if "resnet18" not in registry.names("backbones"):
            raise InputError("train_step needs the backbones of ddnkit_vision")
        return [self._table(work, device, repeats, seed, progress) for work in WORK[device]]

    def _table(
        self, work: Work, device: str, repeats: int, seed: int, progress: Callable[[str], None]
    ) -> Table:
        steps = {head: Step(head, work, device, seed) for head in HEADS}
        times: dict[str, list[tuple[float, float, float]]] = {head: [] for head in HEADS}
        for number in range(_WARM_UP + repeats):
            for head, step in steps.items():
                progress(f"{work}: {head}, round {number + 1} of {_WARM_UP + repeats}")
                taken = step.take()
                if number >= _WARM_UP:
                    times[head].append(taken)
        del steps
        memory = {head: _memory(head, work, device, seed) for head in HEADS}
        rows = [
            ("head", "forward ms", "backward ms", "step ms", "over standard", "extra memory MB")
        ]
        reference = _median(times["standard"])[2]
        for head, measured in times.items():
            forward, backward, whole = _median(measured)
            # Round by round: what slows the machine slows the neighbours of a round alike.
            ratios = [
                own[2] / other[2] for own, other in zip(measured, times["standard"], strict=True)
            ]
            low, middle, high = (
                f"{100 * (ratio - 1):+.1f}"
                for ratio in (min(ratios), whole / reference, max(ratios))
            )
            extra = (memory[head] - memory["standard"]) / 2**20
            cells = (f"{1e3 * forward:.1f}", f"{1e3 * backward:.1f}", f"{1e3 * whole:.1f}")
            rows.append((head, *cells, f"{middle} % [{low}, {high}]", f"{extra:+.0f}"))
        kind = "the device's allocations" if device == "cuda" else "a process of its own"
        note = f"Medians, with the range of the ratio within a round; memory: peak of {kind}."
        return Table(str(work), tuple(rows), note)


class Step:
    """A network with a head, and its training step on one batch."""

    def __init__(self, head: str, work: Work, device: str, seed: int) -> None:
        self._device = torch.device(device)
        torch.manual_seed(seed)
        backbone: Any = registry.get("backbones", work.backbone)(stem=work.stem)
        network = backbone.build(sample_shape=(3, work.size, work.size), samples=work.batch)
        settings = registry.get("heads", head.split(",")[0])(**HEADS[head])
        classifier = settings.build(feature_dim=network.feature_dim, classes=work.classes)
        self._model = Model(network, classifier).to(self._device)
        self._optimizer = AGD(self._model.parameters(), gain=10, initialise=False)
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(work.batch, 3, work.size, work.size, generator=generator)
        self._labels = (torch.arange(work.batch) % work.classes).to(self._device)
        self._images = images.to(self._device)
        if device == "cuda":
            self._model.backbone.to(memory_format=torch.channels_last)
            self._images = self._images.contiguous(memory_format=torch.channels_last)

    def take(self) -> tuple[float, float, float]:
        """Seconds of the forward pass, the backward pass and the whole step."""
        cuda = self._device.type == "cuda"
        start = self._now()
        with torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext():
            loss = nn.functional.cross_entropy(
                self._model(self._images, self._labels), self._labels
            )
        forward = self._now()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        backward = self._now()
        self._optimizer.step()
        self._model.head.after_step()  # type: ignore[operator]
        return forward - start, backward - forward, self._now() - start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _median(measured: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    forward, backward, whole = (statistics.median(part) for part in zip(*measured, strict=True))
    return forward, backward, whole


def _memory(head: str, work: Work, device: str, seed: int) -> int:
    """Peak bytes of three steps in a fresh process."""
    request = json.dumps([head, vars(work), device, seed])
    done = subprocess.run(
        [sys.executable, "-m", "ddnkit_train.bench_step", request],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout.splitlines()[-1])


def _measure_memory(request: str) -> None:
    head, work, device, seed = json.loads(request)
    step = Step(head, Work(**work), device, seed)
    for _ in range(3):
        step.take()
    print(peak_memory(torch.device(device)))


if __name__ == "__main__":
    _measure_memory(sys.argv[1])
