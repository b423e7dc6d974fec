"""The panels drawn from a run folder."""

import csv
import math
import sys
from pathlib import Path

import pytest
from ddnkit_collapse import draw_panels

import ddnkit

STEPS = [1, 2, 5, 10, 100, 200]


def write_run(
    folder: Path, variants: list[str], metrics: list[str], steps: list[int], margins: bool = True
) -> Path:
    with (folder / "summary.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "metric", "epoch", "step", "median", "min", "max", "n"])
        for place, variant in enumerate(variants):
            for metric in metrics:
                for step in steps:
                    value = (place + 1) * math.exp(-step / 50)
                    writer.writerow(
                        [variant, metric, step / 100, step, value, 0.8 * value, 1.1 * value, 3]
                    )
            # As a figure that is never measured leaves it.
            writer.writerow([variant, "nc4", 1, 1, "", "", "", 0])
    for place, variant in enumerate(variants if margins else []):
        for seed in range(2):
            seed_folder = folder / "runs" / variant / f"seed-{seed}"
            seed_folder.mkdir(parents=True)
            with (seed_folder / "margins.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["example", "cosine_margin", "bound"])
                writer.writerows([i + 1, (i + seed - place) / 50, 10 / 9] for i in range(40))
    return folder


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_every_panel_is_drawn_alone_and_all_together(tmp_path: Path) -> None:
    metrics = [
        "train_loss", "ce_gap", "cosine_margin", "nc1", "nc2", "nc3", "equinorm",
        "train_top1", "test_top1",
    ]  # fmt: skip
    folder = write_run(tmp_path, ["standard", "fixed_etf", "nearest_etf"], metrics, STEPS)
    files = draw_panels(folder)
    assert [file.name for file in files] == [
        "panels.png", "ce_loss.png", "ce_gap.png", "cosine_margin.png", "p_cm.png", "nc1.png",
        "nc2.png", "nc3.png", "equinorm.png", "train_top1.png", "test_top1.png",
    ]  # fmt: skip
    assert all(file.parent == folder / "figures" for file in files)
    width, height = png_size(files[0])
    single = [png_size(file) for file in files[1:]]
    assert width > 2000
    assert all(w < width and h < height for w, h in single)
    assert all(file.stat().st_size > 8000 for file in files)
    assert "matplotlib.pyplot" not in sys.modules


def test_a_run_draws_the_same_bytes_again(tmp_path: Path) -> None:
    folder = write_run(tmp_path, ["a"], ["train_loss"], STEPS, margins=False)
    first = [file.read_bytes() for file in draw_panels(folder)]
    assert [file.read_bytes() for file in draw_panels(folder)] == first


def test_panels_without_figures_are_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path, ["a", "b"], ["train_top1"], [100, 200, 300], margins=False)
    assert [file.name for file in draw_panels(folder)] == ["panels.png", "train_top1.png"]


def test_many_variants_and_values_at_zero_can_be_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path, [f"v{i}" for i in range(9)], ["nc1"], [10, 20, 30])
    text = (folder / "summary.csv").read_text().splitlines()
    text += ["v0,ce_gap,1,10,-1e-9,-2e-9,0,3", "v0,ce_gap,2,20,1e-5,0,1e-4,3"]
    (folder / "summary.csv").write_text("\n".join(text) + "\n")
    names = [file.name for file in draw_panels(folder)]
    assert names == ["panels.png", "ce_gap.png", "p_cm.png", "nc1.png"]


def test_a_figure_that_is_infinite_throughout_leaves_the_others(tmp_path: Path) -> None:
    folder = write_run(tmp_path, ["a"], ["train_top1"], [100, 200], margins=False)
    with (folder / "summary.csv").open("a") as file:
        file.writelines(f"a,nc1,{step / 100},{step},inf,inf,inf,1\n" for step in (100, 200))
    assert "train_top1.png" in [file.name for file in draw_panels(folder)]


@pytest.mark.parametrize("content", [None, "", "variant,metric\na,b\n"])
def test_a_folder_without_a_summary_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "summary.csv").write_text(content)
    with pytest.raises(ddnkit.InputError, match=r"summary\.csv"):
        draw_panels(tmp_path)
