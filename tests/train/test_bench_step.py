"""``ddnkit bench train_step``: every head takes the same step on the same batch."""

import json

import pytest
from click.testing import CliRunner
from ddnkit_train import bench_step

from ddnkit.cli import main


def test_every_head_beside_the_standard_one(monkeypatch: pytest.MonkeyPatch) -> None:
    small = bench_step.Work("resnet18", "imagenet", 32, 8, 5)
    monkeypatch.setitem(bench_step.WORK, "cpu", (small,))
    monkeypatch.setattr(bench_step, "_memory", lambda head, *_: 2**20 * len(head))
    result = CliRunner().invoke(main, ["bench", "train_step", "--repeats", "2", "--json"])
    assert result.exit_code == 0, result.output
    (table,) = json.loads(result.stdout)["tables"]
    head, *rows = table["rows"]
    assert head[3:5] == ["step ms", "over standard"]
    assert [row[0] for row in rows] == list(bench_step.HEADS)
    assert rows[0][4] == "+0.0 % [+0.0, +0.0]" and rows[0][5] == "+0"
    for row in rows:
        forward, backward, whole = map(float, row[1:4])
        assert 0 < forward < whole and 0 < backward < whole


def test_a_bench_takes_no_sizes_and_an_unknown_name_is_answered() -> None:
    result = CliRunner().invoke(main, ["bench", "train_step", "--size", "3"])
    assert result.exit_code == 2 and "'train_step' is a bench" in result.output
    result = CliRunner().invoke(main, ["bench", "train_stp"])
    assert result.exit_code == 2 and "train_step" in result.output
