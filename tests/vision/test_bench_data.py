"""The comparison of the data pipelines: it runs, and measures the same augmentation."""

import pytest
from ddnkit_vision import bench_data

from ddnkit import registry


def test_both_pipelines_are_measured() -> None:
    rates = bench_data.measure(images=64, batch=32, rounds=1)
    assert [rate.rotation for rate in rates] == [0, 15]
    for rate in rates:
        assert rate.workers in (0, 2)
        assert rate.ratio == pytest.approx(rate.batched / rate.loader) and rate.ratio > 0


def test_it_is_a_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = [bench_data.Rates(15.0, 200.0, 100.0, 2, 2.0)]
    monkeypatch.setattr(bench_data, "measure", lambda **given: rates)
    bench = registry.get("benches", "data")()
    (table,) = bench.run(device="cpu", repeats=1, seed=0, progress=lambda text: None)
    assert table.rows[1] == ("flip, crop 4, rotation 15°", "200", "100", "2", "2.0")
