"""What is drawn from a long-tailed run."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ddnkit_collapse.run_figures import read_run
from ddnkit_longtail import LongTailed, figures
from ddnkit_longtail.figures import caption, draw_long_tail
from ddnkit_longtail.variants import read_variants
from longtail_runs import (
    ACCURACIES,
    ALIGNMENT,
    COSINES,
    MINORITY,
    settings,
    write_summary,
    write_variant,
)

TRAINING = (*COSINES, *ALIGNMENT, *MINORITY)
TEST = tuple(f"test_{metric}" for metric in (*COSINES, *ALIGNMENT))
PIPELINE = LongTailed.model_construct()


def write_run(folder: Path, metrics: tuple[str, ...] = (*TRAINING, *TEST, *ACCURACIES)) -> Path:
    """Two heads, whose figures are 0.5 and 0.25 at the end."""
    for name in ("standard", "etf"):
        write_variant(folder, name, settings(head=name), [500, 50, 5])
    values = {"standard": 0.5, "etf": 0.25}
    return write_summary(folder, {n: dict.fromkeys(metrics, v) for n, v in values.items()})


def drawn(name: str, folder: Path) -> Any:
    """The matplotlib figure itself."""
    run = read_run(folder)
    variants = read_variants(folder, run.variants)
    given = {"_alignment": (run,), "_class_accuracy": (variants,)}.get(name, (run, variants))
    return getattr(figures, name)(*given)


def curves(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    """The points of each line in the legend."""
    lines = {line.get_label(): line.get_data() for line in axes.lines}
    return {label: (list(x), list(y)) for label, (x, y) in lines.items()}


def test_the_figures_follow_those_of_a_classification(tmp_path: Path) -> None:
    folder = write_run(tmp_path, (*TRAINING, *TEST, "test_top1"))
    files = PIPELINE.figures(folder)
    assert [file.name for file in files] == [
        "panels.png", "test_top1.png",
        "cosines.png", "alignment.png", "class_accuracy.png", "minority.png",
    ]  # fmt: skip
    assert all(file.parent == folder / "figures" for file in files)
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    assert "matplotlib.pyplot" not in sys.modules


def test_a_run_draws_the_same_bytes_again(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    first = [file.read_bytes() for file in draw_long_tail(folder)]
    assert [file.read_bytes() for file in draw_long_tail(folder)] == first


def test_a_figure_without_data_is_left_out(tmp_path: Path) -> None:
    for name in ("cosines", "jobs"):
        (tmp_path / name).mkdir()
    write_variant(tmp_path / "cosines", "a", settings())
    write_summary(tmp_path / "cosines", {"a": dict.fromkeys(COSINES, 0.5)})
    assert [file.stem for file in draw_long_tail(tmp_path / "cosines")] == ["cosines"]
    write_variant(tmp_path / "jobs", "a", settings(), [5, 5])
    write_summary(tmp_path / "jobs", {"a": {"train_top1": 90.0}})
    assert [file.stem for file in draw_long_tail(tmp_path / "jobs")] == ["class_accuracy"]


def test_cosines_of_both_sets_stand_over_the_simplex_etfs(tmp_path: Path) -> None:
    panels = drawn("_cosines", write_run(tmp_path)).axes
    titles = [axes.get_title() for axes in panels]
    assert [title.split(" of")[0] for title in titles] == [
        "Training: mean", "Training: deviation", "Training: mean", "Training: deviation",
        "Test: mean", "Test: deviation", "Test: mean", "Test: deviation",
    ]  # fmt: skip
    for place, axes in enumerate(panels):
        lines = curves(axes)
        assert list(lines) == ["standard", "etf", "simplex ETF"]
        assert lines["standard"] == ([1, 2, 3], [1, 1, 0.5])
        assert lines["simplex ETF"][1] == [0 if place % 2 else -1 / 2] * 2
        low, high = axes.collections[0].get_paths()[0].get_extents().intervaly
        assert (low, high) == pytest.approx((0.45, 1.1))
    (tmp_path / "training").mkdir()
    assert len(drawn("_cosines", write_run(tmp_path / "training", TRAINING)).axes) == 4


def test_the_value_of_a_simplex_etf_needs_one_number_of_classes(tmp_path: Path) -> None:
    write_variant(tmp_path, "three", settings(), [5, 5, 5])
    write_variant(tmp_path, "four", settings(), [5, 5, 5, 5])
    write_summary(tmp_path, {"three": {"rare_angle": 90.0}, "four": {"rare_angle": 80.0}})
    (axes,) = drawn("_minority", tmp_path).axes
    assert list(curves(axes)) == ["three", "four"]


def test_a_distance_of_zero_can_be_drawn(tmp_path: Path) -> None:
    write_variant(tmp_path, "a", settings())
    write_summary(tmp_path, {"a": {"hw_own_cos": 1.0, "wh_distance": 0.0}})
    with (tmp_path / "summary.csv").open("a") as file:
        file.write("a,wh_distance,4,400,1e-3,0,1e-2,3\n")
    cosine, distance = drawn("_alignment", tmp_path).axes
    assert curves(cosine)["simplex ETF"][1] == [1, 1]
    assert distance.get_yscale() == "log"
    assert curves(distance) == {"a": ([1, 2, 3, 4], [1e-14, 1e-14, 1e-14, 1e-3])}


@pytest.mark.parametrize("tested", [True, False])
def test_classes_are_sorted_by_their_samples(tmp_path: Path, tested: bool) -> None:
    write_variant(tmp_path, "a", settings(), [30, 7, 200, 30], tested=tested)
    write_variant(tmp_path, "b", settings(), [30, 7, 200, 30], tested=tested)
    write_summary(tmp_path, {"a": {"train_top1": 1.0}, "b": {"train_top1": 1.0}})
    axes, behind = drawn("_class_accuracy", tmp_path).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "0", "3", "1"]
    median = [21, 1, 31, 11] if tested else [10.5, 0.5, 15.5, 5.5]
    assert curves(axes) == {name: ([1, 2, 3, 4], median) for name in ("a", "b")}
    assert axes.get_ylabel() == ("test top-1 (%)" if tested else "training top-1 (%)")
    assert axes.get_title() == "Imbalance ratio 0.01: 267 training samples"
    assert list(behind.patches[0].get_data().values) == [200, 30, 30, 7]
    assert behind.get_yscale() == "log"
    assert axes.get_zorder() > behind.get_zorder()


def test_each_long_tail_has_its_panel(tmp_path: Path) -> None:
    tails = {"a": [9, 9, 9], "b": [9, 3, 1], "c": [9, 9, 9], "d": [9, 1, 1], "e": [8, 1, 1]}
    for name, counts in tails.items():
        write_variant(tmp_path, name, settings(ratio=None), counts)
    write_variant(tmp_path, "unfinished", settings())
    write_summary(tmp_path, {name: {"train_top1": 1.0} for name in (*tails, "unfinished")})
    panels = [axes for axes in drawn("_class_accuracy", tmp_path).axes if axes.lines]
    assert [list(curves(axes)) for axes in panels] == [["a", "c"], ["b"], ["d"], ["e"]]
    assert [axes.get_title().split(":")[0] for axes in panels] == [
        "Imbalance ratio 1", "Imbalance ratio 0.111", "Imbalance ratio 0.111",
        "Imbalance ratio 0.125",
    ]  # fmt: skip


def test_of_many_classes_means_are_drawn(tmp_path: Path) -> None:
    write_variant(tmp_path, "a", settings(), [5] * 205, seeds=1)
    write_summary(tmp_path, {"a": {"train_top1": 1.0}})
    x, y = curves(drawn("_class_accuracy", tmp_path).axes[0])["a"]
    # Three by three, with 10c modulo 100 per cent each, and one left over.
    assert (x[:3], y[:3]) == ([2, 5, 8], [10, 40, 70])
    assert (len(x), x[-1], y[-1]) == (69, 205, 40)


def ratios(folder: Path, heads: tuple[str, ...], pattern: str) -> None:
    """A run for each head and ratio, with an angle of a hundred times the ratio."""
    angles = {}
    for head in heads:
        for ratio in (0.01, 1, 0.1):
            name = pattern.format(head=head, ratio=ratio)
            write_variant(folder, name, settings(ratio, head), [5, 5, 5])
            angles[name] = {"rare_angle": 100 * ratio, "worst_cos": ratio}
    write_summary(folder, angles)


def test_the_rare_classes_are_drawn_over_the_imbalance_ratio(tmp_path: Path) -> None:
    ratios(tmp_path, ("standard", "etf"), "name={head},ratio={ratio}")
    angle, cosine, angle_at_end, cosine_at_end = drawn("_minority", tmp_path).axes
    assert len(curves(angle)) == 7
    assert curves(angle)["simplex ETF"][1] == pytest.approx([120, 120])
    assert curves(cosine)["simplex ETF"][1] == [1, 1]
    at_end = curves(angle_at_end)
    assert list(at_end) == ["name=standard", "name=etf", "simplex ETF"]
    assert at_end["name=etf"] == ([1, 0.1, 0.01], [100, 10, 1])
    assert curves(cosine_at_end)["name=standard"] == ([1, 0.1, 0.01], [1, 0.1, 0.01])
    assert angle_at_end.get_xscale() == "log"
    assert angle_at_end.xaxis_inverted()
    labels = [label.get_text() for label in angle_at_end.get_xticklabels()]
    assert labels == ["0.01", "0.1", "1"]


def test_variants_named_by_the_ratio_alone_take_the_name_of_head_and_loss(tmp_path: Path) -> None:
    ratios(tmp_path, ("standard",), "{ratio}")
    at_end = drawn("_minority", tmp_path).axes[2]
    assert list(curves(at_end)) == ["standard, cross_entropy", "simplex ETF"]


def test_groups_of_the_same_label_are_told_apart(tmp_path: Path) -> None:
    angles = {}
    for alpha in (0, 1):
        for ratio in (1, 0.1):
            content = settings(ratio, mixup={"alpha": alpha})
            write_variant(tmp_path, f"{alpha}at{ratio}", content, [5, 5, 5])
            angles[f"{alpha}at{ratio}"] = {"rare_angle": 10.0}
    write_summary(tmp_path, angles)
    at_end = drawn("_minority", tmp_path).axes[1]
    assert list(curves(at_end)) == [
        "standard, cross_entropy", "standard, cross_entropy (1at1)", "simplex ETF",
    ]  # fmt: skip


def test_without_a_sweep_of_the_ratio_there_is_nothing_over_it(tmp_path: Path) -> None:
    panels = drawn("_minority", write_run(tmp_path)).axes
    assert [axes.get_xlabel() for axes in panels] == ["epoch", "epoch"]


def test_many_variants_leave_the_panels_their_size(tmp_path: Path) -> None:
    few, many = tmp_path / "few", tmp_path / "many"
    for folder, number in ((few, 2), (many, 15)):
        folder.mkdir()
        names = [f"method=number_{i},ratio=0.01" for i in range(number)]
        for name in names:
            write_variant(folder, name, settings(), [5, 5, 5])
        write_summary(folder, {name: dict.fromkeys(TRAINING, 0.5) for name in names})
    heights = []
    for folder in (few, many):
        figure = drawn("_cosines", folder)
        figure.canvas.draw()
        heights.append(figure.axes[0].get_window_extent().height)
        assert figure.legends[0].get_window_extent().x0 >= 0
    assert math.isclose(*heights, rel_tol=0.1)


def test_every_figure_has_its_caption(tmp_path: Path) -> None:
    for file in draw_long_tail(write_run(tmp_path)):
        text = PIPELINE.caption(file)
        assert text == caption(file.stem)
        assert text.endswith("Lines: median over the seeds; bands: their range.")
    assert PIPELINE.caption(Path("nc1.png")).startswith("NC1: variability")


def test_drawing_and_tables_cost_no_torch(tmp_path: Path) -> None:
    write_run(tmp_path)
    code = (
        "import sys; from pathlib import Path; from ddnkit_longtail.settings import LongTailed\n"
        "pipeline, folder = LongTailed.model_construct(), Path(sys.argv[1])\n"
        "assert pipeline.tables(folder) and map(pipeline.caption, pipeline.figures(folder))\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
