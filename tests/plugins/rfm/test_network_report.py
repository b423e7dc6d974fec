"""Tables and figures of the fully connected layers, from a run folder as jobs leave it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from ddnkit_rfm.network_report import draw_layers, tables

from ddnkit import Table

MLP = {"name": "mlp", "depth": 5, "width": 512}
RESNET = {"name": "resnet18", "mlp_depth": 5, "mlp_width": 512}
SETTINGS = {
    "paper": {"name": "agop_neural_collapse"},
    "data": {"name": "mnist"},
    "backbone": MLP,
    "loss": {"name": "mean_squared_error"},
    "optimizer": {"name": "sgd"},
}
#: Input, after SVᵀ, after U and the non-linearity, and the NFA correlation: of two layers.
SEED_0 = ((8, 2, 1, 0.5), (1, 4, 2, 0.9))
SEED_1 = ((8, 4, 1, 0.7), (1, 8, 4, 0.7))


def row(step: int, layers: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"epoch": step, "step": step, "objective": 0.1}
    for k, (given, right, output, nfa) in enumerate(layers, 1):
        found |= {f"dnc1_input_{k}": given, f"dnc1_right_{k}": right}
        found |= {f"dnc1_output_{k}": output, f"nfa_{k}": nfa}
    return found


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def run_folder(folder: Path, variants: dict[str, dict[str, Any]], *seeds: Any) -> Path:
    """A first row that no table shows, then the end."""
    summary = []
    for name, changed in variants.items():
        place = folder / "runs" / name
        for seed, layers in enumerate(seeds):
            write(place / f"seed-{seed}" / "metrics.csv", [row(1, SEED_0), row(2, layers)])
        (place / "settings.yaml").write_text(yaml.safe_dump({**SETTINGS, **changed}))
        for step in (1, 2):
            for metric in row(step, seeds[0]).keys() - {"epoch", "step"}:
                values = [row(step, layers)[metric] for layers in seeds]
                low, high = min(values), max(values)
                summary.append({"variant": name, "metric": metric, "epoch": step, "step": step,
                                "median": low, "min": low, "max": high, "n": len(seeds)})  # fmt: skip
    write(folder / "summary.csv", summary)
    return folder


def cells(table: Table, line: int) -> dict[str, str]:
    return dict(zip(table.rows[0], table.rows[line], strict=True))


def test_correlations_are_over_layers_and_seeds(tmp_path: Path) -> None:
    table, _ = tables(run_folder(tmp_path, {"default": {}}, SEED_0, SEED_1))
    found = cells(table, 1)
    assert found["published"] == "0.74 ± 0.13"
    assert found["layer 1"] == "0.60 ± 0.10"
    assert found["layer 2"] == "0.80 ± 0.10"
    assert found["layer 3"] == "–"
    assert found["all layers and seeds"] == "0.70 ± 0.14"
    assert found["seeds"] == "2"


@pytest.mark.parametrize(
    ("changed", "published"),
    [
        ({}, "0.74 ± 0.13"),
        ({"data": {"name": "cifar10"}, "backbone": RESNET}, "0.74 ± 0.17"),
        ({"backbone": RESNET}, "–"),
        ({"data": {"name": "cifar10"}}, "–"),
        ({"backbone": {**MLP, "depth": 4}}, "–"),
        ({"loss": {"name": "cross_entropy"}}, "–"),
        ({"optimizer": {"name": "adam"}}, "–"),
        ({"paper": None}, "–"),
    ],
)
def test_the_paper_s_correlation_is_beside_its_networks_alone(
    tmp_path: Path, changed: dict[str, Any], published: str
) -> None:
    table, _ = tables(run_folder(tmp_path, {"default": {}, "other": changed}, SEED_0))
    assert cells(table, 2)["published"] == published


def test_where_dnc1_falls(tmp_path: Path) -> None:
    """Layer 1: by 4 and 2, by 2 and 4; layer 2 rises, and so its fall has no shares."""
    _, table = tables(run_folder(tmp_path, {"a": {}, "b": {}}, SEED_0, SEED_1))
    first, second, both, other = (cells(table, line) for line in (1, 2, 3, 4))
    assert [first[""], first["layer"], other[""]] == ["a", "1", "b"]
    assert first["DNC1 of Φ(X)"] == "8"
    assert first["of SVᵀΦ(X)"] == "3"
    assert (first["share of SVᵀ"], first["share of U and ReLU"]) == ("50 %", "50 %")
    assert (second["share of SVᵀ"], second["share of U and ReLU"]) == ("–", "–")
    # log₂: by SVᵀ 2 + 1 − 2 − 3, by U and the non-linearity 1 + 2 + 1 + 1
    assert both["layer"] == "all"
    assert (both["share of SVᵀ"], both["share of U and ReLU"]) == ("-67 %", "167 %")


def test_figures_of_several_variants_are_drawn_and_again_the_same(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, {"mlp": {}, "resnet18": {}}, SEED_0, SEED_1)
    drawn = draw_layers(folder)
    assert [path.name for path in drawn] == ["decomposition.png", "nfa.png"]
    before = [path.read_bytes() for path in drawn]
    assert [path.read_bytes() for path in draw_layers(folder)] == before


def test_a_run_without_such_layers_has_neither(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, {"default": {}}, ())
    assert tables(folder) == []
    assert draw_layers(folder) == []


def test_without_the_nfa_there_is_no_table_of_it_and_figures_are_drawn(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, {"default": {}}, ((8, 2, 1, ""),))
    assert [table.title for table in tables(folder)] == ["Where DNC1 falls"]
    assert all(path.is_file() for path in draw_layers(folder))
