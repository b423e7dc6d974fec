"""Deep linear networks: layers that stay orthogonal, their loss, its floor, and the singular values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bounds import rounding
from click.testing import CliRunner
from ddnkit_examples import DeepLinear, OrthogonalLayers
from ddnkit_examples.orthogonal_layers import lowest_curve, teacher

from ddnkit import read_table
from ddnkit.cli import main


def network(layers: str, **sizes: int) -> DeepLinear:
    sizes = {"networks": 2, "depth": 5, "width": 6, "outputs": 3} | sizes
    return DeepLinear(layers, generator=torch.Generator().manual_seed(0), **sizes)


@pytest.mark.parametrize("layers", ["stiefel", "stiefel_but_last"])
def test_orthogonal_layers_stay_so_in_training(layers: str) -> None:
    trained = network(layers)
    before = trained.hidden.detach().clone()
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        trained().sum().backward()
        optimizer.step()
    W, last = trained.hidden, trained.last
    bound = rounding(W, 64)
    assert (W.mT @ W - torch.eye(6)).abs().max() < bound
    assert (W - before).abs().max() > 0.01
    departure = (last @ last.mT - torch.eye(3)).abs().max()
    assert departure < bound if layers == "stiefel" else departure > 0.1


def test_all_networks_of_a_kind_start_alike_and_at_an_isometry() -> None:
    start = network("orthogonal_start")()
    bound = rounding(start, 64)
    for layers in ("stiefel", "stiefel_but_last"):
        assert (network(layers)() - start).abs().max() < bound
    assert (torch.linalg.svdvals(start) - 1).abs().max() < bound
    assert torch.equal(start[0], start[1])
    # The spread of Gaussian ones grows with the depth.
    deep = torch.linalg.svdvals(network("gaussian", depth=40).double()()[0])
    assert deep[0] > 1e3 * deep[-1]


def test_the_teacher_has_the_singular_values_that_were_asked_for_and_the_floor_is_reached() -> None:
    settings = OrthogonalLayers(target="spread", outputs=3, width=6)
    s = torch.tensor(settings.singular_values)
    T = teacher(s, 6, torch.Generator().manual_seed(0))
    found = torch.linalg.svdvals(T)
    assert (found - s.flip(0)).abs().max() < rounding(found, 64) * s.max()
    left, _, right = torch.linalg.svd(T, full_matrices=False)
    nearest = (left @ right - T).square().sum() / (2 * 3)
    assert float(nearest) == pytest.approx(settings.floor, rel=1e-5)
    assert OrthogonalLayers(target="isometry").floor == 0


def test_the_lowest_curve_is_never_one_that_diverges() -> None:
    falls, stays = torch.tensor([1.0, 1e-3, 1e-6]), torch.ones(3)
    diverges = torch.tensor([1.0, 1e-30, torch.nan])
    high = torch.tensor([1e-30, 1e-30, 1e9])
    assert lowest_curve(torch.stack([stays, diverges, high, falls], dim=1)) == 3


def test_the_shipped_recipe_shows_what_orthogonality_gives_in_a_short_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    short = ["depth=20", "width=8", "outputs=4", "steps=30", "seeds=[0]"]
    call = ["run", "orthogonal_layers", *(x for one in short for x in ("-s", one)), "--jobs", "1"]
    result = CliRunner().invoke(main, [*call, "--device", "cpu", "--out", str(out)])
    assert result.exit_code == 0, result.output

    def last(kind: str, target: str) -> dict[str, float]:
        file = out / f"runs/kind={kind},target={target}/seed-0/metrics.csv"
        row = read_table(file, dict.fromkeys(OrthogonalLayers.columns, "number"))[-1]
        return {key: float(value) for key, value in row.items()}

    stiefel = last("stiefel", "isometry")
    assert stiefel["loss"] < 1e-6 < 1e-2 < last("gaussian", "isometry")["loss"]
    assert stiefel["least"] == pytest.approx(1, abs=1e-4) == stiefel["largest"]
    floor = OrthogonalLayers(target="spread", outputs=4).floor
    assert last("stiefel", "spread")["loss"] > floor * (1 - 1e-4)
    assert last("orthogonal_start", "spread")["loss"] < floor
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "## Orthogonal layers" in report and "Warning" not in report
    assert "(figures/orthogonal_layers.png)" in report
    assert (out / "figures/orthogonal_layers.png").stat().st_size > 10_000


def test_a_rate_that_diverges_is_left_where_it_was_and_the_others_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    short = ["depth=20", "width=8", "outputs=4", "steps=20", "seeds=[0]", "target=spread"]
    short += ["sweep.kind={free: {layers: orthogonal_start, rates: [1000.0, 0.03]}}"]
    call = ["run", "orthogonal_layers", *(x for one in short for x in ("-s", one)), "--jobs", "1"]
    result = CliRunner().invoke(main, [*call, "--device", "cpu", "--out", str(out)])
    assert result.exit_code == 0, result.output
    file = out / "runs/free/seed-0/metrics.csv"
    row = read_table(file, dict.fromkeys(OrthogonalLayers.columns, "number"))[-1]
    assert float(row["rate"]) == 0.03 and float(row["loss"]) < 0.5


def test_there_are_no_more_outputs_than_units() -> None:
    with pytest.raises(ValueError, match="outputs 9 are more than the width 8"):
        OrthogonalLayers(outputs=9, width=8)


def test_it_is_listed_and_a_run_without_a_finished_job_has_no_figures(tmp_path: Path) -> None:
    assert CliRunner().invoke(main, ["list"]).output.count("  orthogonal_layers\n") == 2
    (tmp_path / "summary.csv").write_text(
        "variant,metric,epoch,step,median,min,max,n\nstiefel,loss,1,1,1,1,1,1\n", encoding="utf-8"
    )
    assert OrthogonalLayers().figures(tmp_path) == []
    assert OrthogonalLayers().tables(tmp_path) == []
