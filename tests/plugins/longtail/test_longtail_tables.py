"""The tables of a long-tailed run."""

from __future__ import annotations

from pathlib import Path

from ddnkit_longtail import LongTailed
from longtail_runs import settings, write_summary, write_variant

from ddnkit import Table

TAIL = [500, 101, 100, 20, 19]


def tables(folder: Path) -> list[Table]:
    made = LongTailed.model_construct().tables(folder)
    for table in made:
        assert len({len(row) for row in table.rows}) == 1
    return made


def accuracies(
    top1: float, many: float, medium: float, few: float, mean: float
) -> dict[str, float]:
    return {
        "test_top1": top1, "test_many": many, "test_medium": medium, "test_few": few,
        "test_balanced": mean, "rare_angle": 90.0,
    }  # fmt: skip


def test_accuracy_by_class_size(tmp_path: Path) -> None:
    write_variant(tmp_path, "standard", settings(), TAIL)
    write_variant(tmp_path, "etf", settings(head="etf"), TAIL)
    nan = float("nan")
    write_summary(
        tmp_path,
        {"standard": accuracies(60, 80, 50, nan, 60), "etf": accuracies(70, 75, 70, nan, 70)},
    )
    (table,) = tables(tmp_path)
    assert table.rows == (
        ("", "test top-1", "many", "medium", "few", "seeds", "training samples"),
        ("standard", "60.00 [54.00, 66.00]", "80.00 [72.00, 88.00]", "50.00 [45.00, 55.00]", "–",
         "3", "740"),
        ("etf", "70.00 [63.00, 77.00]", "75.00 [67.50, 82.50]", "70.00 [63.00, 77.00]", "–",
         "3", "740"),
    )  # fmt: skip
    assert table.note == (
        "Median [minimum, maximum] over seeds at the end of the training, in per cent. Many: classes "
        "of more than 100 training samples; few: of fewer than 20; medium: those between. Classes: 2 "
        "many, 2 medium, 1 few in 740 samples. “–”: there is no class in the group. The average over "
        "the classes is the same as the top-1."
    )


def test_the_sizes_of_the_paper_s_subsets_stand_beside_ours(tmp_path: Path) -> None:
    """Where a variant names the paper, and trains on such a subset."""
    paper = {"paper": {"name": "inducing_neural_collapse"}, "data": {"name": "cifar10"}}
    write_variant(tmp_path, "lt", settings(0.01, **paper), TAIL)
    write_variant(tmp_path, "other", settings(0.3, **paper), TAIL)
    write_variant(tmp_path, "alone", settings(0.01, data={"name": "cifar10"}), TAIL)
    write_summary(
        tmp_path, {name: accuracies(60, 80, 50, 40, 60) for name in ("lt", "other", "alone")}
    )
    (table,) = tables(tmp_path)
    assert [row[-2:] for row in table.rows[1:]] == [("740", "12,406"), ("740", "–"), ("740", "–")]


def test_the_class_average_is_told_where_it_is_another_figure(tmp_path: Path) -> None:
    write_variant(tmp_path, "a", settings(), TAIL, seeds=1)
    write_summary(tmp_path, {"a": accuracies(60, 80, 50, 40, 55.5)}, seeds=1)
    (table,) = tables(tmp_path)
    assert table.rows[0][5] == "class average"
    assert table.rows[1] == ("a", "60.00", "80.00", "50.00", "40.00", "55.50", "1", "740")
    assert "is the same as the top-1" not in table.note


def test_groups_of_several_long_tails_are_told_apart(tmp_path: Path) -> None:
    thresholds = {"name": "long_tail", "many_above": 50, "few_below": 10}
    write_variant(tmp_path, "a", settings(0.1), TAIL)
    write_variant(tmp_path, "b", settings(1), [1000, 1000])
    write_variant(tmp_path, "c", settings(1, head="etf"), [1000, 1000])
    write_variant(tmp_path, "d", settings(1, metrics=thresholds), TAIL)
    write_variant(tmp_path, "unfinished", settings())
    names = ("a", "b", "c", "d", "unfinished")
    write_summary(tmp_path, {name: accuracies(60, 80, 50, 40, 60) for name in names})
    (table,) = tables(tmp_path)
    assert [row[-1] for row in table.rows[1:]] == ["740", "2,000", "2,000", "740", "–"]
    assert (
        "those between. Classes: 2 many, 2 medium, 1 few in 740 samples; 2 many, 0 medium, 0 few in "
        "2,000 samples. Many: classes of more than 50 training samples; few: of fewer than 10; medium: "
        "those between. Classes: 3 many, 2 medium, 0 few in 740 samples."
    ) in table.note


def test_layer_peeled_models_have_a_table_of_their_own(tmp_path: Path) -> None:
    free = {"backbone": {"name": "free_features"}}
    write_variant(tmp_path, "1", settings(1, **free), [500] * 10, tested=False)
    write_variant(tmp_path, "0.005", settings(0.005, **free), [500] * 9 + [2], tested=False)
    write_summary(
        tmp_path,
        {
            "1": {"train_top1": 100.0, "worst_cos": 0.99994, "rare_angle": 96.379},
            "0.005": {"train_top1": 99.5, "rare_angle": 0.64459},
        },
        seeds=1,
    )
    (table,) = tables(tmp_path)
    assert table.rows == (
        ("", "imbalance ratio", "training samples", "smallest angle between rare classifiers (°)",
         "smallest cos(h, w)", "training top-1 (%)", "seeds"),
        ("1", "1", "5,000", "96.38", "0.9999", "100.00", "1"),
        ("0.005", "0.005", "4,502", "0.6446", "–", "99.50", "1"),
    )  # fmt: skip
    assert table.note.endswith("At a simplex ETF the angle is 96.38° and the cosine 1.")


def test_ranges_of_a_layer_peeled_model(tmp_path: Path) -> None:
    write_variant(tmp_path, "a", settings(None, backbone={"name": "free_features"}))
    write_summary(tmp_path, {"a": {"rare_angle": 50.0, "worst_cos": -0.5}})
    (table,) = tables(tmp_path)
    assert table.rows[1] == ("a", "–", "–", "50 [45, 55]", "-0.5 [-0.55, -0.45]", "–", "–")
    assert "At a simplex ETF" not in table.note


def test_other_runs_have_neither(tmp_path: Path) -> None:
    write_variant(tmp_path, "a", settings(), TAIL)
    write_summary(tmp_path, {"a": {"train_top1": 100.0, "rare_angle": 50.0}})
    assert tables(tmp_path) == []
