"""A pipeline that records known rows without training, and the command line to run it by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner, Result

from ddnkit import InputError, Job, Pipeline, Settings, component, registry
from ddnkit.cli import main

RECIPE = """
pipeline: toy_run
description: Two racing heads.
head: {name: toy_slow, gain: 0.1}
seeds: [0, 1, 2]
sweep: {head.name: [toy_slow, toy_fast]}
"""

#: The jobs that ran, as (variant, seed), since the test began.
RAN: list[tuple[str, int]] = []
#: What a job does at its second evaluation, by (variant, seed).
TROUBLE: dict[tuple[str, int], Callable[[Job], None]] = {}


class Slow(Settings):
    gain: float = 0.1


class Fast(Settings):
    gain: float = 0.1
    boost: float = 2.0


class ToyRun(Pipeline):
    """Accuracy rises with the step, by the head's gain and boost and a little with the seed."""

    columns: ClassVar[tuple[str, ...]] = ("epoch", "step", "train_loss", "test_top1", "nc1")
    head: Settings = component("heads")
    data_is_there: bool = True
    draw: str = "panel"

    def run(self, job: Job) -> None:
        if not self.data_is_there:
            raise InputError("the data are missing: looked in 'data'")
        RAN.append((job.variant, job.seed))
        gain = self.head.gain * getattr(self.head, "boost", 1.0)  # type: ignore[attr-defined]
        for step in (5, 10) if job.smoke else (5, 10, 20):
            if step == 10 and (job.variant, job.seed) in TROUBLE:
                TROUBLE[job.variant, job.seed](job)
            job.progress(step, 20, {"loss": 1 / step})
            row = {"epoch": step / 10, "step": step, "train_loss": 1 / step}
            job.record({**row, "test_top1": gain * step + job.seed})

    def figures(self, folder: Path) -> list[Path]:
        if self.draw != "panel":
            raise RuntimeError("no ink")
        assert (folder / "summary.csv").is_file()
        file = folder / "figures" / "the panel.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"png")
        return [file]


@pytest.fixture(scope="session", autouse=True)
def _plugins() -> None:
    registry.register("pipelines", "toy_run", ToyRun)
    registry.register("heads", "toy_slow", Slow)
    registry.register("heads", "toy_fast", Fast)


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("race.yaml").write_text(RECIPE, encoding="utf-8")
    RAN.clear()
    TROUBLE.clear()
    yield
    TROUBLE.clear()


@pytest.fixture
def ran() -> list[tuple[str, int]]:
    return RAN


@pytest.fixture
def trouble() -> dict[tuple[str, int], Callable[[Job], None]]:
    return TROUBLE


@pytest.fixture
def ddnkit() -> Callable[..., Result]:
    """``ddnkit("run", "race.yaml")`` runs the command line in the test's folder."""

    def call(*arguments: Any) -> Result:
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return call
