"""``ddnkit run`` and ``ddnkit report`` with a pipeline of known figures."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shlex
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pydantic
import pytest
import torch
from click.testing import Result

from ddnkit import DdnkitWarning, Job, Settings, registry
from ddnkit.recipe.load import load
from ddnkit.run.summary import Summary, SummaryRow
from ddnkit.run.table import race

Command = Callable[..., Result]
Ran = list[tuple[str, int]]
Trouble = dict[tuple[str, int], Callable[[Job], None]]

RACE = [(v, s) for s in (0, 1, 2) for v in ("toy_slow", "toy_fast")]


def rows(file: str) -> list[dict[str, str]]:
    with Path(file).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def unfinished(out: str) -> tuple[str, list[str]]:
    """How many jobs of how many the report has as finished, and its list of the others."""
    found = re.search(r"^(\d+ of \d+) jobs .*\n\n((?:- .* seed .*\n)*)", report(out), re.MULTILINE)
    assert found is not None
    return found[1], [line.removeprefix("- ") for line in found[2].splitlines()]


def report(out: str) -> str:
    return Path(out, "report.md").read_text(encoding="utf-8")


def boom(job: Job) -> NoReturn:
    raise ValueError("boom\nwith details")


def interrupt(job: Job) -> NoReturn:
    raise KeyboardInterrupt


def test_a_run_leaves_everything_in_its_folder(ddnkit: Command, ran: Ran) -> None:
    result = ddnkit("run", "race.yaml", "--out", "o", "-s", "head.boost=4", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert ran == RACE
    found = {str(file.relative_to("o")) for file in Path("o").rglob("*") if file.is_file()}
    assert found == {
        "recipe.yaml",
        "environment.json",
        "summary.csv",
        "report.md",
        "report.html",
        "figures/the panel.png",
        *(f"runs/{v}/settings.yaml" for v in ("toy_slow", "toy_fast")),
        *(f"runs/{v}/seed-{s}/{f}" for v, s in RACE for f in ("metrics.csv", "done.json")),
    }
    assert Path("o/runs/toy_fast/seed-1/metrics.csv").read_text() == (
        "epoch,step,train_loss,test_top1,nc1\n0.5,5,0.2,3,\n1,10,0.1,5,\n2,20,0.05,9,\n"
    )
    first = rows("o/summary.csv")
    assert list(first[0]) == ["variant", "metric", "epoch", "step", "median", "min", "max", "n"]
    last = [row for row in first if (row["variant"], row["metric"]) == ("toy_fast", "test_top1")]
    assert list(last[-1].values()) == ["toy_fast", "test_top1", "2", "20", "9", "8", "10", "3"]
    assert not [row for row in first if row["metric"] == "nc1"]
    environment = json.loads(Path("o/environment.json").read_text())
    assert environment["recipe"] == "race"
    assert environment["device"] == "cpu"
    assert environment["command"] == ("ddnkit run race.yaml -s head.boost=4 --out o --device cpu")
    assert {"torch", "numpy", "python", "cpu", "threads", "date", "git_commit"} <= set(environment)


def test_the_recorded_command_gives_the_same_run(ddnkit: Command) -> None:
    typed = ["-s", "head.gain=0.2", "-s", "description=two words", "--only", "toy_slow", "--smoke"]
    Path("-x y.yaml").write_text(Path("race.yaml").read_text())
    ddnkit("run", *typed, "--seeds", "0,2", "--jobs", "1", "--out", "o", "--", "-x y.yaml")
    program, *again = shlex.split(json.loads(Path("o/environment.json").read_text())["command"])
    assert program == "ddnkit"
    again[again.index("o")] = "again"
    ddnkit(*again)
    for file in ("recipe.yaml", "summary.csv", "runs/toy_slow/seed-2/metrics.csv"):
        assert Path("again", file).read_text() == Path("o", file).read_text()


def test_a_run_validates_what_is_given_and_what_it_writes_once_each(ddnkit: Command) -> None:
    validated = []

    class Counted(Settings):
        @pydantic.model_validator(mode="after")
        def _count(self) -> Counted:
            validated.append(self)
            return self

    registry.register("heads", "toy_counted", Counted)
    Path("counted.yaml").write_text("pipeline: toy_run\nhead: toy_counted\n")
    for options, times in (("--dry-run",), 1), (("--out", "o", "-s", "data_is_there=false"), 2):
        validated.clear()
        ddnkit("run", "counted.yaml", "--seeds", "2", *options)
        assert len(validated) == times


def test_the_recipe_in_the_folder_gives_the_same_variants(ddnkit: Command) -> None:
    ddnkit("run", "race.yaml", "--out", "o", "-s", "head.boost=4", "--seeds", "1")
    written, again = load("race.yaml", ["head.boost=4"], seeds="1"), load("o/recipe.yaml")
    assert [v.settings for v in again.variants] == [v.settings for v in written.variants]
    assert again.seeds == (0,)
    fast = load("o/runs/toy_fast/settings.yaml")
    assert fast.variants[0].settings == written.variants[1].settings


def test_the_output_ends_with_a_comparison_and_the_folder(ddnkit: Command) -> None:
    output = ddnkit("run", "race.yaml").output.splitlines()
    assert re.fullmatch(r"\[1/6\] done toy_slow seed 0  \d+\.\d s", output[0])
    head, slow, fast = output[-6:-3]
    assert head.split() == ["variant", "test_top1", "train_loss", "nc1"]
    assert slow.split()[:4] == ["toy_slow", "3", "[2,", "4]"]
    assert fast.split()[:4] == ["toy_fast", "5", "[4,", "6]"]
    assert re.fullmatch(r"report: outputs/race/\d{4}-\d\d-\d\d_\d{6}/report\.html", output[-1])
    assert Path(output[-1].removeprefix("report: ")).is_file()


#: Of two variants, at epochs 1, 2 and 3: the first's median with its range, the second's.
COURSES: dict[str, tuple[list[tuple[float, float, float]], list[float], list[str]]] = {
    "ahead, then overtaken": (
        [(40, 38, 41), (70, 69, 71), (88, 87, 89)],
        [35, 50, 90],
        ["first", "epoch 2", "20", "70", "50", "epoch 3", "second", "2", "90", "88"],
    ),
    "ahead at the end": ([(1, 1, 1)] * 3, [1, 1.5, 4], ["second", "epoch 3", "3", "4", "1"]),
    "level at the end": (
        [(9, 9, 9), (9, 9, 9), (9, 9, 9)],
        [1, 2, 9],
        ["first", "epoch 1", "8", "9", "1", "epoch 3", "first", "second", "9"],
    ),
    "never ahead": ([(5, 4, 6)] * 3, [5, 5, 5], []),
    "one that diverged": ([(math.nan,) * 3] * 3, [1, 2, 3], []),
}


def course(first: list[tuple[float, float, float]], second: list[float]) -> Summary:
    rows = [("first", *row) for row in first] + [("second", *[value] * 3) for value in second]
    return Summary(
        ("first", "second"),
        ("test_top1",),
        tuple(
            SummaryRow(name, "test_top1", i % 3 + 1.0, 10.0 * (i % 3 + 1), *row, n=3)
            for i, (name, *row) in enumerate(rows)
        ),
    )


@pytest.mark.parametrize("name", COURSES)
def test_the_sentence_on_the_race_follows_from_the_figures(name: str) -> None:
    first, second, words = COURSES[name]
    sentence = race(course(first, second))
    rest = sentence
    for word in words:
        assert re.search(rf"(?<![\d.]){word}\b", rest), (word, sentence)
        rest = re.split(rf"(?<![\d.]){word}\b", rest, maxsplit=1)[1]
    assert bool(sentence) == (name != "one that diverged")
    assert sentence.count(".") <= 1


def test_no_race_is_told_where_there_was_none(ddnkit: Command) -> None:
    told = ddnkit("run", "race.yaml", "--out", "a").output.splitlines()[-2]
    assert told.startswith("In test_top1")
    assert told in Path("a/report.md").read_text(encoding="utf-8")
    for out, how in (("b", ["--only", "toy_fast"]), ("c", ["--smoke"])):
        output = ddnkit("run", "race.yaml", "--out", out, *how).output.splitlines()
        assert output[-2] == ""
        assert "In test_top1" not in Path(out, "report.md").read_text(encoding="utf-8")


def test_the_report_says_what_where_and_how_it_went(ddnkit: Command) -> None:
    ddnkit("run", "race.yaml", "--out", "o")
    text = Path("o/report.md").read_text(encoding="utf-8")
    for part in (
        "# race\n\nTwo racing heads.\n\nddnkit 0.1.0, ",
        "    ddnkit run race.yaml --out o\n",
        "6 of 6 jobs finished.",
        "- sweep over head.name: toy_slow, toy_fast\n",
        "| test_top1 | 3 [2, 4] | 5 [4, 6] |",
        "| seeds | 3 | 3 |",
        "## test_top1 at each evaluation",
        "| 0.5 | 5 | 1.5 [0.5, 2.5] | 2 [1, 3] |",
        "|  | seed 0 | seed 1 | seed 2 |",
        "![the panel](figures/the%20panel.png)",
    ):
        assert part in text


def test_the_report_says_what_named_options_set(ddnkit: Command) -> None:
    options = "{slow: {head.name: toy_slow}, fast: {head: {name: toy_fast, boost: 2}}}"
    ddnkit("run", "race.yaml", "--out", "o", "--seeds", "1", "-s", f"sweep.pace={options}")
    text = Path("o/report.md").read_text(encoding="utf-8")
    assert (
        "- sweep over pace:\n  - slow: head.name toy_slow\n  - fast: head toy_fast, boost 2\n"
        in text
    )


def test_two_runs_in_one_second_have_two_folders(ddnkit: Command) -> None:
    for _ in range(3):
        assert ddnkit("run", "race.yaml", "--seeds", "1").exit_code == 0
    assert len(list(Path("outputs/race").iterdir())) == 3


def test_only_runs_the_variants_that_are_named(ddnkit: Command, ran: Ran) -> None:
    assert ddnkit("run", "race.yaml", "--only", "toy_fast", "--seeds", "0,2").exit_code == 0
    assert ran == [("toy_fast", 0), ("toy_fast", 2)]
    result = ddnkit("run", "race.yaml", "--only", "toy_fats")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: --only toy_fats: ") and "'toy_fast'" in line


def test_smoke_reaches_the_job_and_the_report(ddnkit: Command) -> None:
    assert ddnkit("run", "race.yaml", "--out", "o", "--smoke", "--seeds", "1").exit_code == 0
    assert len(rows("o/runs/toy_slow/seed-0/metrics.csv")) == 2
    assert "smoke" in Path("o/report.md").read_text()
    result = ddnkit("run", "race.yaml", "--out", "o", "--resume", "--seeds", "1")
    assert result.exit_code == 2
    assert "--smoke" in result.stderr


def test_a_dry_run_runs_nothing(ddnkit: Command, ran: Ran) -> None:
    result = ddnkit("run", "race.yaml", "--dry-run", "--only", "toy_fast")
    assert result.exit_code == 0
    assert "seeds: 0, 1, 2\njobs: 3\n" in result.output
    assert "head: {name: toy_fast, gain: 0.1, boost: 2.0}" in result.output
    assert "toy_slow" not in result.output
    assert not ran
    assert not Path("outputs").exists()


def test_a_failed_job_does_not_stop_the_others(ddnkit: Command, ran: Ran, trouble: Trouble) -> None:
    trouble["toy_slow", 1] = boom
    result = ddnkit("run", "race.yaml", "--out", "o")
    assert result.exit_code == 1
    assert ran == RACE
    (line,) = (told for told in result.stderr.splitlines() if told.startswith("error: "))
    assert line.removeprefix("error: ") in result.stdout
    for part in ("toy_slow seed 1", "ValueError: boom", "o/runs/toy_slow/seed-1/error.txt"):
        assert part in line
    assert "in boom" in Path("o/runs/toy_slow/seed-1/error.txt").read_text()
    assert unfinished("o") == ("5 of 6", ["toy_slow seed 1: failed"])

    trouble.clear()
    ran.clear()
    again = ddnkit("run", "race.yaml", "--out", "o", "--resume")
    assert again.exit_code == 0
    assert ran == [("toy_slow", 1)]
    assert not Path("o/runs/toy_slow/seed-1/error.txt").exists()
    assert unfinished("o") == ("6 of 6", [])


def test_an_interrupted_run_says_how_to_go_on(ddnkit: Command, ran: Ran, trouble: Trouble) -> None:
    trouble["toy_fast", 0] = interrupt
    result = ddnkit("run", "race.yaml", "--out", "my run", "-s", "head.boost=4")
    assert result.exit_code == 130
    (line,) = result.stderr.splitlines()
    assert line.startswith("interrupted")
    assert line.endswith(" ddnkit run race.yaml -s head.boost=4 --out 'my run' --resume")
    report = ddnkit("report", "my run")
    assert report.exit_code == 0
    done, left = unfinished("my run")
    assert done == "1 of 6" and "toy_fast seed 0: not finished" in left

    trouble.clear()
    ran.clear()
    arguments = ("run", "race.yaml", "-s", "head.boost=4", "--out", "my run", "--resume")
    assert ddnkit(*arguments).exit_code == 0
    assert ran == RACE[1:]
    assert [row["step"] for row in rows("my run/runs/toy_fast/seed-0/metrics.csv")] == [
        "5",
        "10",
        "20",
    ]
    earlier = json.loads(Path("my run/environment.json").read_text())["earlier_sessions"]
    assert len(earlier) == 1


def test_resume_takes_the_newest_folder_and_may_add_seeds(ddnkit: Command, ran: Ran) -> None:
    ddnkit("run", "race.yaml", "--seeds", "1")
    ran.clear()
    result = ddnkit("run", "race.yaml", "--resume", "--seeds", "2")
    assert result.exit_code == 0
    assert ran == [("toy_slow", 1), ("toy_fast", 1)]
    (folder,) = Path("outputs/race").iterdir()
    assert load(folder / "recipe.yaml").seeds == (0, 1)
    assert "(earlier)" in result.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "'o'.* --resume .*--out"),
        (["-s", "head.gain=7"], "'o'(?!.*--resume).*--out"),
        (["-s", "head.gain=7", "--resume"], r"'o'.*head\.gain .*0\.1.* 7\.0"),
        (["-s", "head.name=toy_slow", "--resume"], "'o'.* toy_slow, toy_fast.* default"),
    ],
)
def test_a_folder_keeps_to_one_run(
    ddnkit: Command, ran: Ran, arguments: list[str], told: str
) -> None:
    ddnkit("run", "race.yaml", "--out", "o", "--seeds", "1")
    ran.clear()
    result = ddnkit("run", "race.yaml", "--out", "o", *arguments)
    assert result.exit_code == 2
    assert re.search(told, result.stderr)
    assert not ran


def edit(name: str, old: str, new: str) -> None:
    file = Path("o", name)
    content = file.read_text()
    assert old in content
    file.write_text(content.replace(old, new))


def test_a_recipe_that_was_changed_after_the_run_is_told(ddnkit: Command) -> None:
    ddnkit("run", "race.yaml", "--out", "o", "--seeds", "1")
    assert not ddnkit("report", "o").stderr
    edit("recipe.yaml", "pipeline:", "# a comment is no change\npipeline:")
    assert not ddnkit("report", "o").stderr
    edit("recipe.yaml", "Two racing heads", "Three racing heads")
    result = ddnkit("report", "o")
    assert result.exit_code == 0
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("warning: ") and "o/recipe.yaml" in warning
    assert warning.removeprefix("warning: ") in Path("o/report.md").read_text()
    edit("runs/toy_slow/settings.yaml", "gain: 0.1", "gain: 0.2")
    assert "o/runs/toy_slow/settings.yaml" in ddnkit("report", "o").stderr


def test_a_changed_recipe_does_not_change_what_is_gone_on_with(ddnkit: Command, ran: Ran) -> None:
    ddnkit("run", "race.yaml", "--out", "o", "--seeds", "1")
    recipe = Path("o/recipe.yaml").read_text()
    ran.clear()
    edit("recipe.yaml", "gain: 0.1", "gain: 0.5")
    # With the edited file the jobs to come would be another run's.
    result = ddnkit("run", "o/recipe.yaml", "--out", "o", "--resume", "--seeds", "2")
    assert result.exit_code == 2 and "o/recipe.yaml" in result.stderr
    assert "head.gain" in result.stderr and not ran
    # With what was run it goes on, and the file is put right.
    edit("runs/toy_slow/settings.yaml", "gain", "# by hand\n  gain")
    result = ddnkit("run", "race.yaml", "--out", "o", "--resume", "--seeds", "1")
    assert result.exit_code == 0 and "o/recipe.yaml" in result.stderr
    assert Path("o/recipe.yaml").read_text() == recipe
    assert not ddnkit("report", "o").stderr


def test_settings_that_were_changed_are_written_again(ddnkit: Command) -> None:
    ddnkit("run", "race.yaml", "--out", "o", "--seeds", "1")
    edit("runs/toy_slow/settings.yaml", "gain: 0.1", "gain: 0.5")
    result = ddnkit("run", "race.yaml", "--out", "o", "--resume", "--seeds", "1")
    assert result.exit_code == 0 and "toy_slow/settings.yaml" in result.stderr
    assert "gain: 0.1" in Path("o/runs/toy_slow/settings.yaml").read_text()
    # Where both were changed the checksums tell.
    edit("runs/toy_slow/settings.yaml", "gain: 0.1", "gain: 0.5")
    edit("recipe.yaml", "gain: 0.1", "gain: 0.5")
    result = ddnkit("run", "o/recipe.yaml", "--out", "o", "--resume", "--seeds", "1")
    assert result.exit_code == 2 and "o/recipe.yaml" in result.stderr
    result = ddnkit("run", "race.yaml", "--out", "o", "--resume", "--seeds", "1")
    assert result.exit_code == 2 and "head.gain" in result.stderr
    edit("recipe.yaml", "gain: 0.5", "gain: 0.1")
    assert ddnkit("run", "race.yaml", "--out", "o", "--resume", "--seeds", "1").exit_code == 0


def test_a_run_without_checksums_is_resumed_as_before(ddnkit: Command) -> None:
    ddnkit("run", "race.yaml", "--out", "o", "--seeds", "1")
    file = Path("o/environment.json")
    content = json.loads(file.read_text())
    assert set(content.pop("checksums")) == {
        "recipe.yaml", "runs/toy_slow/settings.yaml", "runs/toy_fast/settings.yaml",
    }  # fmt: skip
    file.write_text(json.dumps(content))
    edit("recipe.yaml", "Two racing", "Three racing")
    assert not ddnkit("report", "o").stderr
    result = ddnkit("run", "race.yaml", "--out", "o", "--resume", "--seeds", "1")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("runs/toy_slow/seed-0/metrics.csv", "epoch,step,train_loss,test_top1,nc1\n1,1,x,1,1\n"),
        ("runs/toy_slow/seed-0/metrics.csv", "\0\0\0\n"),
        ("environment.json", "[1]"),
        ("environment.json", "[" * 100_000),
    ],
)
def test_a_report_names_what_is_damaged_and_has_the_rest(
    ddnkit: Command, name: str, content: str
) -> None:
    ddnkit("run", "race.yaml", "--out", "o", "--seeds", "2")
    Path("o", name).write_text(content)
    result = ddnkit("report", "o")
    assert result.exit_code == 2, result.output
    (error,) = result.stderr.splitlines()
    assert error.startswith(f"error: o/{name}:") and len(error) < 200
    assert f"o/{name}" in Path("o/report.md").read_text()
    left_out = "metrics" in name
    for row in csv.DictReader(Path("o/summary.csv").read_text().splitlines()):
        assert row["n"] == ("1" if left_out and row["variant"] == "toy_slow" else "2")
    again = ddnkit("run", "race.yaml", "--out", "o", "--resume", "--seeds", "2")
    assert again.exit_code == 2 and name in again.stderr.splitlines()[-1]
    assert "'o'" not in again.stderr  # which is told of a folder with another run


def test_a_folder_that_cannot_be_written_is_named(ddnkit: Command) -> None:
    ddnkit("run", "race.yaml", "--out", "o", "--seeds", "1")
    Path("o/report.md").unlink()
    Path("o/report.md").mkdir()
    result = ddnkit("report", "o")
    assert result.exit_code == 2 and "o/report.md" in result.stderr


def test_a_run_whose_recipe_is_broken_is_not_resumed(ddnkit: Command) -> None:
    ddnkit("run", "race.yaml", "--out", "o", "--seeds", "1")
    Path("o/recipe.yaml").write_text("pipeline: gone\n")
    result = ddnkit("run", "race.yaml", "--out", "o", "--resume")
    assert result.exit_code == 2
    assert "o/recipe.yaml" in result.stderr and "'gone'" in result.stderr
    told = ddnkit("report", "o")
    assert told.exit_code == 0
    assert re.search("^warning: .*o/recipe.yaml:1: pipeline: .*'gone'", told.stderr, re.MULTILINE)
    assert "toy_fast" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["run", "race.yaml", "--resume"], ["'race'", "outputs"]),
        (["run", "race.yaml", "--resume", "--out", "nowhere"], ["'nowhere'"]),
        (["run", "race.yaml", "--out", "."], ["'.'"]),
        (["report", "."], ["'.'", "recipe.yaml"]),
    ],
)
def test_folders_that_are_none(ddnkit: Command, arguments: list[str], parts: list[str]) -> None:
    before = set(Path().iterdir())
    result = ddnkit(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert not [part for part in parts if part not in line], line
    assert set(Path().iterdir()) == before


def test_wrong_input_found_by_the_job_is_told_once_and_leaves_nothing(ddnkit: Command) -> None:
    result = ddnkit("run", "race.yaml", "--out", "o", "-s", "data_is_there=false")
    assert result.exit_code == 2
    assert (
        result.stderr == "error: the data are missing: looked in 'data'\n"
    )  # the pipeline's words
    assert not Path("o").exists()
    assert ddnkit("run", "race.yaml", "-s", "data_is_there=false").exit_code == 2
    assert not Path("outputs").exists()


def test_wrong_input_of_one_variant_leaves_the_others(ddnkit: Command) -> None:
    result = ddnkit("run", "race.yaml", "--out", "o", "-s", "sweep={data_is_there: [true, false]}")
    assert result.exit_code == 2
    assert result.output.count("failed false: the data are missing") == 1
    assert Path("o/runs/true/seed-2/done.json").is_file()


def test_a_resumed_run_is_kept_when_its_data_are_gone(ddnkit: Command) -> None:
    Path("o").mkdir()
    Path("o/recipe.yaml").write_text(load("race.yaml", ["data_is_there=false"]).to_yaml())
    result = ddnkit("run", "race.yaml", "--out", "o", "-s", "data_is_there=false", "--resume")
    assert result.exit_code == 2
    assert Path("o/recipe.yaml").is_file()


def test_figures_that_fail_are_a_warning(ddnkit: Command) -> None:
    result = ddnkit("run", "race.yaml", "--out", "o", "-s", "draw=nothing")
    assert result.exit_code == 0
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("warning: ") and warning.endswith(" RuntimeError: no ink")
    assert "RuntimeError: no ink" in Path("o/report.md").read_text()


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"step": 1, "test_topl": 1.0}, "'test_topl'.*'test_top1'"),
        ({"epoch": 1}, "'step'"),
        ({"step": math.nan}, "'step'"),
        ({"step": 1, "epoch": math.inf}, "'epoch'"),
        ({"step": 1, "nc1": "many"}, "'nc1'"),
        ({"step": 1, "nc1": torch.ones(2)}, "'nc1'"),
        ({"step": 1, "nc1": 10**400}, "'nc1'"),
        ({"step": 1, "nc1": 10**5000}, "'nc1'"),
        ({"step": 1, "nc1": 1j}, "'nc1'"),
    ],
)
def test_a_wrong_row_fails_the_job(
    ddnkit: Command, trouble: Trouble, row: dict[str, Any], told: str
) -> None:
    trouble["toy_slow", 0] = lambda job: job.record(row)
    result = ddnkit("run", "race.yaml", "--seeds", "1")
    assert result.exit_code == 1
    assert re.search(f"toy_slow seed 0.*{told}", result.stderr)


def test_cuda_that_is_not_there_is_wrong_input(
    ddnkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = ddnkit("run", "race.yaml", "--device", "cuda")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --device cuda: ")
    assert not Path("outputs").exists()


def test_auto_takes_cuda_where_it_is(ddnkit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a device")
    assert ddnkit("run", "race.yaml", "--out", "o", "--seeds", "1").exit_code == 0
    environment = json.loads(Path("o/environment.json").read_text())
    assert (environment["device"], environment["cuda_device"]) == ("cuda", "a device")


def test_reports_of_several_runs_stand_side_by_side(ddnkit: Command) -> None:
    for out in ("a", "b"):
        ddnkit("run", "race.yaml", "--out", out, "--seeds", "1")
        Path(out, "summary.csv").unlink()
    result = ddnkit("report", "a", "b")
    assert result.exit_code == 0
    names = [line.split()[0] for line in result.output.splitlines()[1:5]]
    assert names == ["a/toy_slow", "a/toy_fast", "b/toy_slow", "b/toy_fast"]
    assert result.output.endswith("report: a/report.html\nreport: b/report.html\n")
    assert Path("a/summary.csv").is_file()


def test_a_report_of_a_run_without_figures_yet(ddnkit: Command) -> None:
    Path("o/runs/toy_slow/seed-x").mkdir(parents=True)
    Path("o/recipe.yaml").write_text(load("race.yaml").to_yaml())
    result = ddnkit("report", "o")
    assert result.exit_code == 0
    assert "toy_slow" not in result.stdout  # there is no row to show
    assert unfinished("o")[0] == "0 of 6"


#: What ``done.json`` says of the seconds, and the like.
MARKERS = ["-1", "NaN", "Infinity", "1e999", '"1"', "null", "true", "[]", "9" * 400, "9" * 5000]


@pytest.mark.parametrize("seconds", MARKERS, ids=lambda text: text[:10])
def test_a_marker_that_is_damaged_is_named(ddnkit: Command, ran: Ran, seconds: str) -> None:
    ddnkit("run", "race.yaml", "--out", "o", "--seeds", "1")
    marker = Path("o/runs/toy_slow/seed-0/done.json")
    marker.write_text(f'{{"status": "done", "seconds": {seconds}}}')
    result = ddnkit("report", "o")
    assert result.exit_code == 2, result.output
    (error,) = result.stderr.splitlines()
    assert error.startswith(f"error: {marker}:") and len(error) < 250
    report = Path("o/report.md").read_text()
    assert str(marker) in report and "1 of 2 jobs finished." in report
    variants = csv.DictReader(Path("o/summary.csv").read_text().splitlines())
    assert {row["variant"] for row in variants} == {"toy_slow", "toy_fast"}, "the figures are sound"
    result = ddnkit("evaluate", "o")
    assert result.exit_code == 2 and str(marker) in result.stderr
    ran.clear()
    result = ddnkit("run", "race.yaml", "--out", "o", "--resume", "--seeds", "1")
    assert result.exit_code == 0 and str(marker) in result.stderr
    assert ran == [("toy_slow", 0)]
    assert ddnkit("report", "o").stderr == ""


@pytest.mark.parametrize("again", ["the last row twice", "an earlier one", "a row moved"])
def test_rows_that_do_not_go_on_are_named(ddnkit: Command, again: str) -> None:
    ddnkit("run", "race.yaml", "--out", "o", "--seeds", "2")
    file = Path("o/runs/toy_slow/seed-0/metrics.csv")
    head, *rows = file.read_text().splitlines(keepends=True)
    order = {
        "the last row twice": (0, 1, 2, 2),
        "an earlier one": (0, 1, 2, 0),
        "a row moved": (1, 0, 2),
    }
    file.write_text(head + "".join(rows[i] for i in order[again]))
    line = 3 if again == "a row moved" else 5
    result = ddnkit("report", "o")
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"error: {file}:{line}: step: ")
    for row in csv.DictReader(Path("o/summary.csv").read_text().splitlines()):
        assert row["n"] == ("1" if row["variant"] == "toy_slow" else "2")


def test_a_job_records_later_steps_alone(ddnkit: Command, trouble: Trouble) -> None:
    trouble["toy_slow", 0] = lambda job: job.record({"epoch": 1, "step": 5})
    result = ddnkit("run", "race.yaml", "--out", "o", "--seeds", "1")
    assert result.exit_code == 1 and "step 5" in result.stderr
    assert Path("o/runs/toy_fast/seed-0/done.json").is_file()


@pytest.mark.parametrize("state", ["gone", "empty"])
def test_figures_of_a_finished_job_are_missed(ddnkit: Command, state: str) -> None:
    ddnkit("run", "race.yaml", "--out", "o", "--seeds", "1")
    file = Path("o/runs/toy_slow/seed-0/metrics.csv")
    file.unlink()
    if state == "empty":
        file.touch()
    result = ddnkit("report", "o")
    assert result.exit_code == 2 and str(file) in result.stderr


def test_folders_that_are_missing_are_told(ddnkit: Command) -> None:
    ddnkit("run", "race.yaml", "--out", "o", "--seeds", "2")
    shutil.rmtree("o/runs/toy_slow")
    shutil.rmtree("o/runs/toy_fast/seed-1")
    result = ddnkit("report", "o")
    assert result.exit_code == 0
    assert "changed" not in result.output
    lost, unmade = result.stderr.splitlines()
    assert lost.startswith("warning: o/runs/toy_slow ")
    assert "o/runs/toy_fast" in unmade and "seed-1" in unmade
    assert lost.removeprefix("warning: ") in Path("o/report.md").read_text()
    # The settings alone.
    Path("o/runs/toy_fast/settings.yaml").unlink()
    told = ddnkit("report", "o").stderr
    assert "o/runs/toy_fast/settings.yaml is missing" in told and "changed" not in told
    # What a run made not is no loss while it tells how it ended.
    again = ddnkit("run", "race.yaml", "--out", "o", "--resume", "--only", "toy_fast")
    assert again.exit_code == 0 and "settings.yaml is missing" in again.stderr
    assert "seed-0" not in again.stderr


@pytest.mark.parametrize("name", ["metrics.csv", "done.json"])
def test_a_pipe_among_the_files_of_a_job_is_not_waited_for(ddnkit: Command, name: str) -> None:
    ddnkit("run", "race.yaml", "--out", "o", "--seeds", "1")
    folder = Path("o/runs/toy_slow/seed-0")
    (folder / "done.json").unlink()
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    result = ddnkit("report", "o")
    assert result.exit_code == 2 and str(folder / name) in result.stderr
    again = ddnkit("run", "race.yaml", "--out", "o", "--resume", "--seeds", "1")
    assert str(folder / name) in again.stderr
    assert again.exit_code == (2 if name == "metrics.csv" else 0)


class Own(BaseException):
    """Of a stranger's own, which cannot even be shown."""

    def __str__(self) -> str:
        raise RuntimeError


def surrogate(job: Job) -> NoReturn:
    raise ValueError("\udcff")


def pipe(job: Job) -> NoReturn:
    raise BrokenPipeError("a stranger's pipe")


def own(job: Job) -> NoReturn:
    raise Own


def leave(job: Job) -> NoReturn:
    raise SystemExit(0)


@pytest.mark.parametrize("end", [surrogate, pipe, own, leave])
def test_however_a_job_ends_the_others_go_on(
    ddnkit: Command, trouble: Trouble, end: Callable[[Job], None]
) -> None:
    trouble["toy_slow", 0] = end
    result = ddnkit("run", "race.yaml", "--out", "o", "--seeds", "1", "--device", "cpu")
    assert result.exit_code == 1, result.output
    error = Path("o/runs/toy_slow/seed-0/error.txt")
    assert str(error) in result.stderr
    assert "Traceback" in error.read_text(encoding="utf-8")
    assert "unexpected" not in result.stderr
    assert Path("o/runs/toy_fast/seed-0/done.json").is_file()


def wander(job: Job) -> None:
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)


def test_what_a_job_changes_besides_ends_with_it(
    ddnkit: Command, ran: Ran, trouble: Trouble
) -> None:
    found = []

    def look(job: Job) -> None:
        found.append((Path.cwd(), torch.is_grad_enabled(), torch.get_default_dtype()))

    here = Path.cwd()
    trouble.update({("toy_slow", 0): wander, ("toy_fast", 0): look})
    result = ddnkit("run", "race.yaml", "--out", "o", "--seeds", "1", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert found == [(here, True, torch.float32)]
    assert len(rows("o/runs/toy_slow/seed-0/metrics.csv")) == 3
    assert not list(Path("elsewhere").iterdir())


@pytest.mark.parametrize(
    ("name", "status"), [("", 2), ("error.txt", 1), ("metrics.csv", 2), ("done.json", 1)]
)
def test_what_lies_in_the_way_of_a_job_leaves_the_others_alone(
    ddnkit: Command, name: str, status: int
) -> None:
    ddnkit("run", "race.yaml", "--out", "o", "--seeds", "1", "--device", "cpu")
    folder = Path("o/runs/toy_slow/seed-0")
    shutil.rmtree(folder)
    if name:
        (folder / name).mkdir(parents=True)
    else:
        folder.write_text("in the way")
    shutil.rmtree("o/runs/toy_fast/seed-0")
    result = ddnkit("run", "race.yaml", "--out", "o", "--seeds", "1", "--resume", "--device", "cpu")
    assert result.exit_code == status, result.output
    assert str(folder / name) in result.stderr
    assert "unexpected" not in result.stderr
    assert Path("o/runs/toy_fast/seed-0/done.json").is_file()


@pytest.mark.parametrize("how", ["a figure", "a row less", "cut short", "a row more"])
def test_a_finished_job_has_the_figures_that_it_ended_with(ddnkit: Command, how: str) -> None:
    ddnkit("run", "race.yaml", "--out", "o", "--seeds", "2", "--device", "cpu")
    file = Path("o/runs/toy_slow/seed-0/metrics.csv")
    content = file.read_bytes()
    head, first, *rest = content.splitlines(keepends=True)
    changed = {
        "a figure": [head, first.replace(b"0.5", b"0.6"), *rest],
        "a row less": [head, first],
        "cut short": [head, first, *rest[:-1], rest[-1][:-4]],
        "a row more": [head, first, *rest, rest[-1].replace(b"20", b"30")],
    }[how]
    file.write_bytes(b"".join(changed))
    result = ddnkit("report", "o")
    assert result.exit_code == 2, result.output
    (error,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert str(file) in error
    assert {row["n"] for row in rows("o/summary.csv") if row["variant"] == "toy_slow"} == {"1"}
    file.write_bytes(content.replace(b"\n", b"\r\n"))
    assert ddnkit("report", "o").exit_code == 0, "the end of a line is no figure"
    marker = Path("o/runs/toy_slow/seed-0/done.json")
    marker.write_text('{"status": "done", "seconds": 1.5}')  # of a version that kept no checksum
    assert ddnkit("report", "o").exit_code == 0
    marker.write_text('{"status": "done", "seconds": 1.5, "metrics": 7}')
    result = ddnkit("report", "o")
    assert result.exit_code == 2
    assert str(marker) in result.stderr


def test_a_run_without_its_environment_is_told(ddnkit: Command, ran: Ran) -> None:
    """It may have been a smoke run, whose figures mean nothing."""
    ddnkit("run", "race.yaml", "--out", "o", "--smoke", "--device", "cpu")
    file = Path("o/environment.json")
    file.unlink()
    told = ddnkit("report", "o")
    assert told.exit_code == 0
    assert str(file) in told.stderr and str(file) in report("o")
    ran.clear()
    result = ddnkit("run", "race.yaml", "--out", "o", "--resume", "--device", "cpu")
    assert result.exit_code == 2, result.output
    assert str(file) in result.stderr
    assert not ran
    for job in Path("o/runs").glob("*/seed-*"):  # killed before it began any
        shutil.rmtree(job)
    result = ddnkit("run", "race.yaml", "--out", "o", "--resume", "--device", "cpu")
    assert result.exit_code == 0, result.output


def test_what_a_job_warns_of_is_a_line(ddnkit: Command, trouble: Trouble) -> None:
    """A place in ddnkit's code says nothing to a user; where a stranger's warning comes from does."""
    shown: list[str] = []

    def warn(job: Job) -> None:
        for kind in (DdnkitWarning, UserWarning):
            shown.append(warnings.formatwarning("of no use", kind, "file.py", 7, "code"))

    trouble["toy_slow", 0] = warn
    usual = warnings.formatwarning
    ddnkit("run", "race.yaml", "--out", "o", "--seeds", "1", "--device", "cpu")
    assert shown[0] == "warning: of no use\n"
    assert shown[1].startswith("file.py:7: ")
    assert warnings.formatwarning is usual


def test_a_job_that_may_not_be_looked_at_is_named_and_the_rest_reported(ddnkit: Command) -> None:
    ddnkit("run", "race.yaml", "--out", "o", "--seeds", "2", "--device", "cpu")
    folder = Path("o/runs/toy_slow/seed-0")
    folder.chmod(0)
    try:
        if os.access(folder / "done.json", os.R_OK):
            pytest.skip("this user may look at everything")
        result = ddnkit("report", "o")
        evaluated = ddnkit("evaluate", "o")
    finally:
        folder.chmod(0o755)
    for told in (result, evaluated):
        assert told.exit_code == 2, told.output
        assert f"{folder}/done.json" in told.stderr
    assert {row["n"] for row in rows("o/summary.csv") if row["variant"] == "toy_fast"} == {"2"}
