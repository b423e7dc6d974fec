"""Training on a CUDA device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ddnkit_train import classification

from ddnkit import Job
from ddnkit.recipe.load import load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

RECIPE = """
pipeline: classification
data: {{name: digit_pairs, batch_size: 200, train_per_class: 10, test_per_class: 2}}
backbone: {{name: cnn, channels: [32, 128]}}
head: {{name: {head}}}
optimizer: {{name: agd, gain: 2}}
train: {{iterations: 8, evaluate_every: 4}}
engine: {{checkpoint_every: 3}}
"""


def run(tmp_path: Path, head: str, **given: Any) -> list[dict[str, Any]]:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(head=head))
    rows: list[dict[str, Any]] = []
    folder = tmp_path / "job"
    folder.mkdir(exist_ok=True)
    load(recipe).variants[0].pipeline.run(
        Job(
            variant="v", seed=0, folder=folder, device="cuda", smoke=False,
            record=rows.append, progress=lambda *_: None, **given,
        )
    )  # fmt: skip
    return rows


@pytest.mark.parametrize("head", ["standard", "fixed_etf"])
def test_a_step_waits_for_nothing(
    head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = classification._Training._step

    def watched(self: Any, number: int, *args: Any) -> None:
        if number > 2:  # the first ones load and allocate
            torch.cuda.set_sync_debug_mode("error")
        try:
            step(self, number, *args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(classification._Training, "_step", watched)
    assert run(tmp_path, head)[-1]["step"] == 8


@pytest.mark.parametrize("head", ["standard", "nearest_etf"])
def test_a_stopped_job_goes_on_bit_for_bit(head: str, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = run(tmp_path / "whole", head)
    asked = iter([False] * 4 + [True])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, head, stopping=lambda: next(asked))
    assert run(tmp_path, head)[-1] == whole[-1]
