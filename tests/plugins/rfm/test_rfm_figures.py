"""Figures and tables of deep_rfm and rfm_theory runs, from run folders made here."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ddnkit_rfm.deep_rfm_report import CAPTIONS, draw_deep_rfm, tables
from ddnkit_rfm.settings import DeepRFMCollapse, RFMTheory
from ddnkit_rfm.theory_report import figures as theory_figures
from ddnkit_rfm.theory_report import tables as theory_tables

from ddnkit import Table

#: A figure's median, or median, minimum, maximum and number of seeds.
Value = float | tuple[float, float, float, int]


def write_run(
    folder: Path, variants: dict[str, list[dict[str, Value]]], settings: dict[str, dict[str, Any]]
) -> Path:
    """A run folder whose variants have these figures in layers 1, 2, … (or from ``step`` on)."""
    lines = []
    for variant, layers in variants.items():
        (folder / "runs" / variant).mkdir(parents=True)
        text = yaml.safe_dump(settings[variant])
        (folder / "runs" / variant / "settings.yaml").write_text(text, encoding="utf-8")
        for number, figures in enumerate(layers, 1):
            for metric, value in figures.items():
                cells = value if isinstance(value, tuple) else (value, value, value, 1)
                lines.append([variant, metric, number, number, *cells])
    with (folder / "summary.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "metric", "epoch", "step", "median", "min", "max", "n"])
        writer.writerows(lines)
    return folder


def layer(number: int, **more: Value) -> dict[str, Value]:
    """What is measured in a layer that collapses at a steady rate."""
    X = 2.0 * 0.5 ** (number - 1)
    return {
        "dnc1_input": X,
        "dnc1_agop": X / 4,
        "dnc1_features": X / 2,
        **{f"dnc2_{stage}": 3 / number for stage in ("input", "agop", "features")},
        "test_top1": (80 + number, 79.5 + number, 81 + number, 3),
        "solved": 1,
        "samples": 2000,
        "test_samples": 500,
        **more,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    relu = [layer(1), layer(2, rank=1990), layer(3, solved=(1, 0, 1, 3), iterations=70)]
    folder = write_run(
        tmp_path,
        {"relu": relu, "cosine": [layer(1), layer(2)]},
        {"relu": {"samples": 50_000}, "cosine": {"samples": 2000}},
    )
    for variant, seed in (("relu", 10), ("relu", 2), ("cosine", 0)):
        job = folder / "runs" / variant / f"seed-{seed}"
        job.mkdir()
        for number in (1, 3) if variant == "relu" else (1,):
            gram = np.full((20, 20), seed / 20, dtype=np.float16)
            np.savez(job / f"gram-{number}.npz", gram=gram, labels=np.arange(20) // 2)
    return folder


def cells(table: Table) -> list[str]:
    return ["|".join(row) for row in table.rows]


def test_the_tables_say_what_agop_and_feature_map_do(run: Path) -> None:
    collapse, accuracy = tables(run)
    assert cells(collapse)[1:] == [
        "relu|1|2|0.25|0.5|2|1|3",
        "relu|2|1|0.25|0.25|2|0.5|1.5",
        "relu|3|0.5|0.25|0.125|2|0.25|1",
        "cosine|1|2|0.25|0.5|2|1|3",
        "cosine|2|1|0.25|0.25|2|0.5|1.5",
    ]
    assert cells(accuracy) == [
        "layer|relu|cosine",
        "1: plain kernel regression|81.00 [80.50, 82.00]|81.00 [80.50, 82.00]",
        "2|82.00 [81.50, 83.00]|82.00 [81.50, 83.00]",
        "3|83.00 [82.50, 84.00]|–",
    ]
    for told in (
        "Trained on 2,000 samples (all there are; 50,000 were asked for)",
        "Trained on 2,000 samples, tested on 500.",
        "relu: layers 2 (rank 1990) were solved by eigenvalues, K being singular.",
        "relu: layers 3 were solved by conjugate gradients.",
        "relu: layers 3 were NOT solved to the solver's tolerance.",
    ):
        assert told in accuracy.note
    assert "cosine: layers" not in accuracy.note


def test_figures_are_drawn_the_same_twice(run: Path) -> None:
    drawn = draw_deep_rfm(run)
    assert [path.name for path in drawn] == ["collapse.png", "gram.png", "accuracy.png"]
    first = [path.read_bytes() for path in drawn]
    assert all(len(content) > 10_000 for content in first)
    assert [path.read_bytes() for path in draw_deep_rfm(run)] == first
    for path in drawn:
        assert DeepRFMCollapse.caption(None, path) == CAPTIONS[path.stem]  # type: ignore[arg-type]


def test_the_pictures_are_those_of_the_first_seed(run: Path) -> None:
    first = [path.read_bytes() for path in draw_deep_rfm(run)]
    for path in (run / "runs/relu/seed-10").iterdir():
        path.unlink()
    assert [path.read_bytes() for path in draw_deep_rfm(run)] == first
    for path in (run / "runs/relu/seed-2").iterdir():
        path.unlink()
    assert draw_deep_rfm(run)[1].read_bytes() != first[1]


def test_a_run_without_test_set_or_pictures_has_fewer_figures(tmp_path: Path) -> None:
    figures = {key: value for key, value in layer(1).items() if key != "test_top1"}
    run = write_run(tmp_path, {"default": [{**figures, "test_samples": 0}]}, {"default": {}})
    assert [path.name for path in draw_deep_rfm(run)] == ["collapse.png"]
    _, accuracy = tables(run)
    assert cells(accuracy)[1:] == ["1: plain kernel regression|–"]
    assert "2,000" in accuracy.note


def test_a_collapse_that_cannot_be_measured_leaves_a_dash(tmp_path: Path) -> None:
    """Where all class means coincide DNC1 is NaN, and the summary has it so."""
    nan = float("nan")
    run = write_run(tmp_path, {"default": [layer(1), layer(2, dnc1_features=nan)]}, {"default": {}})
    collapse, _ = tables(run)
    assert cells(collapse)[2] == "default|2|1|0.25|0.25|–|–|1.5"
    assert draw_deep_rfm(run)[0].stat().st_size > 10_000


def simulated(ratio: float, rate: float, layers: int = 3) -> list[dict[str, Value]]:
    found: list[dict[str, Value]] = []
    for k in range(layers):
        row: dict[str, Value] = {"distance": rate**k, "rate": rate}
        if k:
            row["factor"] = rate
        if ratio < 1:
            row["published_distance"] = 5.0
        found.append(row)
    return found


@pytest.fixture
def theory(tmp_path: Path) -> Path:
    sizes = {"classes": 5, "samples": 20, "feature_map": 0.1, "draws": 1000, "descents": 3}
    tried: dict[str, Value] = {
        "bound": 2.4,
        "value": 2.4,
        "least": (4.5, 4.25, 4.75, 3),
        "increase": 1.5,
        "descent_distance": 1e-6,
    }
    return write_run(
        tmp_path,
        {"slow": simulated(1, 0.5), "fast": simulated(0.1, 0.09), "optimum": [tried]},
        {
            "slow": {**sizes, "ratio": 1.0, "ridge": None},
            "fast": {**sizes, "ratio": 0.1, "ridge": None},
            "optimum": {**sizes, "ratio": None, "ridge": 1.0, "classes": 3, "samples": 4},
        },
    )


def test_the_theory_s_tables(theory: Path) -> None:
    rates, optimum = theory_tables(theory)
    assert cells(rates)[1:] == [
        "1|0.5000|0.5000|3|0.25|–|–",
        # The limit is that of the paper's κ = 0.78, simulated in test_deep_rfm_pipeline.py: 5.62.
        "0.1|0.0900|0.0900|3|0.0081|5|5.62",
    ]
    assert cells(optimum)[1:] == [
        "1|3 × 4|2.40000000|2.40000000|4.5 [4.25, 4.75]|1.5|1.0e-06",
    ]
    assert "1,000" in optimum.note


def test_the_theory_s_figure_is_drawn_the_same_twice(theory: Path) -> None:
    (path,) = theory_figures(theory)
    first = path.read_bytes()
    assert path.name == "collapse_rate.png" and len(first) > 10_000
    assert theory_figures(theory)[0].read_bytes() == first
    assert "derived rate" in RFMTheory(ratio=1).caption(path)


def test_a_theory_without_a_simulation_has_no_figure(tmp_path: Path) -> None:
    settings = {"ratio": None, "ridge": 1.0, "classes": 3, "samples": 4, "draws": 9, "descents": 1}
    tried: dict[str, Value] = dict.fromkeys(
        ("bound", "value", "least", "increase", "descent_distance"), 1.0
    )
    run = write_run(tmp_path, {"default": [tried]}, {"default": settings})
    assert theory_figures(run) == []
    assert [table.title for table in theory_tables(run)] == [
        "Theorem 5.4: the optimum of the kernel"
    ]


def test_settings_and_reports_do_not_import_torch() -> None:
    code = (
        "import sys, ddnkit_rfm.settings, ddnkit_rfm.deep_rfm_report, ddnkit_rfm.network_report; "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
