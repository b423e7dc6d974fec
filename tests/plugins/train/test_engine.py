"""The ``engine`` section on the CPU: layout, compilation, logging, and what it leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import factorised, rounding

from ddnkit import InputError, Job
from ddnkit.recipe.load import load

RECIPE = """
pipeline: classification
data: {{name: digits, batch_size: 300}}
backbone: {{name: cnn, channels: [8, 16]}}
head: {{name: nearest_etf}}
optimizer: {{name: agd, gain: 2}}
train: {{iterations: 3}}
engine: {engine}
"""


def run(tmp_path: Path, engine: str, **given: Any) -> list[dict[str, Any]]:
    tmp_path.mkdir(exist_ok=True)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(engine=engine))
    rows: list[dict[str, Any]] = []
    load(recipe).variants[0].pipeline.run(
        Job(
            variant="v", seed=0, folder=tmp_path, device="cpu", smoke=False,
            record=rows.append, progress=lambda *_: None, **given,
        )
    )  # fmt: skip
    return rows


def test_layout_precision_and_logging_change_no_result(tmp_path: Path) -> None:
    plain = run(tmp_path / "plain", "{measure_steps: 2}")
    other = run(
        tmp_path / "other", "{channels_last: true, tensorboard: true, deterministic: false}"
    )
    # Sums of 72 terms in another order, through three steps that double what they are off by.
    rel = rounding(torch.float32, 72, condition=100)
    assert other[-1]["train_loss"] == pytest.approx(plain[-1]["train_loss"], rel=rel)
    half = run(tmp_path / "half", "{precision: bf16}")
    assert half[-1]["train_loss"] == pytest.approx(
        plain[-1]["train_loss"], rel=rounding(torch.bfloat16, 13)
    )
    # The classifier is solved for in float32: an ETF but for the rounding of a factorisation.
    assert half[-1]["nc2"] < factorised(torch.float32, 16)
    assert list((tmp_path / "other" / "tensorboard").glob("events.*"))
    assert (tmp_path / "plain" / "resources.json").is_file()


def test_a_job_leaves_torch_as_it_was(tmp_path: Path) -> None:
    before = torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()
    rows = run(tmp_path, "{precision: float64}")
    assert rows[-1]["nc2"] < factorised(torch.float64, 16)
    assert (torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()) == before


def test_a_job_that_is_asked_to_stop_goes_on_to_the_same_end(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "{}")
    asked = iter([False, True])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", "{}", stopping=lambda: next(asked))
    assert run(tmp_path / "parts", "{}")[-1] == whole[-1]


def test_tensorboard_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="tensorboard"):
        run(tmp_path, "{tensorboard: true}")
