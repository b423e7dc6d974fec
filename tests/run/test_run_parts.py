"""The parts of a run by themselves: record, summary, table, progress, environment."""

from __future__ import annotations

import io
import json
import math
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddnkit import read_table
from ddnkit.errors import DamagedFileError, DdnkitError
from ddnkit.recipe.load import load
from ddnkit.run.environment import cpu_model, git_commit
from ddnkit.run.execute import execute
from ddnkit.run.folder import RunFolder
from ddnkit.run.options import JobOptions, RunOptions
from ddnkit.run.progress import LiveDisplay, PlainDisplay, display
from ddnkit.run.record import MetricsWriter, cell, read_metrics
from ddnkit.run.summary import Summary, SummaryRow, summarise
from ddnkit.run.table import comparison

COLUMNS = ("epoch", "step", "loss")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (3, "3"),
        (True, "1"),
        (1 / 3, "0.333333333"),
        (1e-12, "1e-12"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_cells(value: float | None, text: str) -> None:
    assert cell(value) == text


def test_rows_are_on_disk_when_recorded(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    with MetricsWriter(file, COLUMNS) as writer:
        writer.record({"step": 1, "loss": 0.5})
        assert file.read_text() == "epoch,step,loss\n,1,0.5\n"
    assert read_metrics(file) == (list(COLUMNS), [{"epoch": None, "step": 1.0, "loss": 0.5}])


@pytest.mark.parametrize("columns", [("step", "epoch"), ("epoch",), ("epoch", "step", "a", "a")])
def test_columns_begin_with_epoch_and_step(tmp_path: Path, columns: tuple[str, ...]) -> None:
    with pytest.raises(DdnkitError, match="epoch, step"):
        MetricsWriter(tmp_path / "metrics.csv", columns)


@pytest.mark.parametrize(
    "value", [math.inf, -math.inf, math.nan, None, True, np.float32(2), 10**300]
)
def test_what_is_recorded_is_read_again(tmp_path: Path, value: Any) -> None:
    file = tmp_path / "metrics.csv"
    with MetricsWriter(file, ("epoch", "step", "nc1")) as writer:
        writer.record({"step": 1, "nc1": value})
    found = read_metrics(file)[1][0]["nc1"]
    assert str(found) == str(None if value is None else float(value))


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,step,loss\n1,1,0.5\n3,3,0.2")
    assert [row["step"] for row in read_metrics(file)[1]] == [1.0]
    assert read_metrics(tmp_path / "absent.csv") == ([], [])


HEAD = b"epoch,step,loss\n1,1,0.5\n"
#: What is in a ``metrics.csv``, and the line and column that are named.
DAMAGED: dict[str, tuple[bytes, str]] = {
    "a word": (HEAD + b"2,2,abc\n", ":3: loss: "),
    "a huge number": (HEAD + b"2,2," + b"9" * 5000 + b"\n", ":3: loss: "),
    "a number as Python alone writes it": (HEAD + b"2,2,1_0\n", ":3: loss: "),
    "digits of another script": (HEAD + "2,2,٣\n".encode(), ":3: loss: "),
    "a large exponent": (HEAD + b"2,2,1e999\n", ":3: loss: "),
    "a huge cell": (HEAD + b"2,2," + b"x" * 200_000 + b"\n", ":3: "),
    "a line without end": (HEAD + b"1," * 1_000_000, ":3: "),
    "bytes of zero": (HEAD + b"2,2,\0\n", ":3: "),
    "binary": (bytes(range(256)) * 8, ":1: "),
    "Latin-1": (HEAD + b"2,2,\xe9\n", ":3: "),
    "a cell too few": (HEAD + b"2,2\n3,3,0.1\n", ":3: "),
    "a cell too many": (HEAD + b"2,2,1,1\n", ":3: "),
    "an empty line": (HEAD + b"\n", ":3: "),
    "no step": (HEAD + b"2,,0.1\n", ":3: step: "),
    "a step that is no number": (HEAD + b"2,nan,0.1\n", ":3: step: "),
    "an epoch without end": (HEAD + b"inf,2,0.1\n", ":3: epoch: "),
    "an open quote": (HEAD + b'2,2,"0.1\n', ":3: "),
    "other columns": (b"a,b\n1,2\n", ":1: "),
    "a column twice": (b"epoch,step,loss,loss\n1,2,3,4\n", ":1: "),
    "no head": (b"1,1,0.5\n", ":1: "),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_wrong_in_a_file_of_figures_is_named(what: str, tmp_path: Path) -> None:
    content, place = DAMAGED[what]
    file = tmp_path / "metrics.csv"
    file.write_bytes(content)
    with pytest.raises(DamagedFileError) as told:
        read_metrics(file)
    assert str(told.value).startswith(f"{file}{place}")
    assert len(str(told.value)) < len(str(file)) + 200 and str(told.value).isprintable()


def test_what_is_no_file_of_figures_is_named(tmp_path: Path) -> None:
    for name in ("folder", "link"):
        file = tmp_path / name
        if name == "folder":
            file.mkdir()
        else:
            file.symlink_to(tmp_path / "nowhere")
        with pytest.raises(DamagedFileError, match=name):
            read_metrics(file)
    (tmp_path / "empty").touch()
    assert read_metrics(tmp_path / "empty") == ([], [])
    written_elsewhere = b"\xef\xbb\xbf" + HEAD.replace(b"\n", b"\r\n")
    (tmp_path / "windows").write_bytes(written_elsewhere)
    assert read_metrics(tmp_path / "windows")[1] == [{"epoch": 1, "step": 1, "loss": 0.5}]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"", ":1: "),
        (b"name,share\n", ":1: "),
        (b"name,count,share\nx,1.5,2\n", ":2: count: "),
        (b"name,count,share\nx,-1,2\n", ":2: count: "),
        (b"name,count,share\nx,1,\n", ":2: share: "),
        (b"name,count,share\nx,1,inf\n", ":2: share: "),
        (b"name,count,share\nx,1,2\ny,1\n", ":3: "),
    ],
)
def test_a_table_holds_what_its_columns_say(tmp_path: Path, content: bytes, place: str) -> None:
    file, columns = tmp_path / "table.csv", {"name": "text", "count": "count", "share": "number"}
    file.write_bytes(b"name,count,share,more\nx,1,2e3,any\n")
    assert read_table(file, columns) == [{"name": "x", "count": "1", "share": "2e3", "more": "any"}]
    file.write_bytes(content)
    with pytest.raises(DamagedFileError) as told:
        read_table(file, columns)
    assert str(told.value).startswith(f"{file}{place}")


def metrics(folder: RunFolder, variant: str, seed: int, text: str) -> None:
    job = folder.job(variant, seed)
    job.path.mkdir(parents=True)
    job.metrics.write_text("epoch,step,loss,acc\n" + text)


def test_a_summary_counts_the_seeds_that_got_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    metrics(folder, "a", 0, "1,10,3,\n2,20,1,5\n")
    metrics(folder, "a", 1, "1,10,4,\n")
    metrics(folder, "a", 10, "1,10,8,\n")
    metrics(folder, "b", 0, ",10,nan,\n")
    metrics(folder, "b", 1, ",10,2,\n")
    summary = summarise(folder, ["b", "gone"])
    assert summary.variants == ("b", "a")
    assert summary.headline() == "loss"
    loss = [row for row in summary.rows if (row.variant, row.metric) == ("a", "loss")]
    assert loss[0] == SummaryRow("a", "loss", 1.0, 10.0, 4.0, 3.0, 8.0, 3)
    assert (loss[1].n, str(loss[1])) == (1, "1")
    diverged = summary.last("b", "loss")
    assert diverged is not None
    assert math.isnan(diverged.median)
    assert diverged.n == 2
    assert summary.last("b", "acc") is None


def summary_of(count: int, variants: tuple[str, ...] = ("v",)) -> Summary:
    names = tuple(f"metric{i}" for i in range(count))
    return Summary(
        variants,
        names,
        tuple(SummaryRow(v, name, 1, 1, 0.5, 0.4, 0.6, 3) for v in variants for name in names),
    )


def test_a_table_shows_the_figures_that_fit() -> None:
    text = comparison([("x", summary_of(9))], width=50)
    assert text.splitlines()[0].split() == ["variant", "metric0", "metric1"]
    assert max(map(len, text.splitlines())) <= 50
    assert "metric0" in comparison([("x", summary_of(2))], width=5)


def test_plain_progress_is_short() -> None:
    stream, now = io.StringIO(), [0.0]
    with PlainDisplay(2, stream, every=5.0, clock=lambda: now[0]) as shown:
        for job in ("a", "b"):
            shown.begin(job)
            for step in range(1, 51):
                now[0] += 0.25
                shown.update(job, step, 50, {"loss": 1 / step})
            shown.end(job, f"done {job}")
    lines = stream.getvalue().splitlines()
    assert lines[:3] == ["[1/2] a  20/50  loss 0.05", "[1/2] a  40/50  loss 0.025", "[1/2] done a"]
    assert len(lines) == 6
    assert lines[-1] == "[2/2] done b"


def test_live_progress_shows_the_job_and_keeps_a_line_of_each() -> None:
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    with LiveDisplay(2, console) as shown:
        shown.begin("head[a] seed 0")
        shown.update("head[a] seed 0", 1, 10, {"loss": 0.25})
        shown.update("head[a] seed 0", 2, 10, {"loss": 0.5})
        shown.update("head[a] seed 0", 10, 10, {"loss": 0.125})
        time.sleep(0.3)  # it draws ten times a second
        shown.end("head[a] seed 0", "done head[a] seed 0  1.0 s")
    assert "head[a] seed 0" in stream.getvalue()
    assert "loss 0.125" in stream.getvalue()
    assert "done head[a] seed 0  1.0 s\n" in stream.getvalue()


def test_the_display_suits_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", terminal)
    assert isinstance(display(1), LiveDisplay)
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert isinstance(display(1), PlainDisplay)


def test_a_reader_that_is_gone_ends_the_run(tmp_path: Path) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    recipe = load("race.yaml")
    stream = PlainDisplay(1, Gone(), every=0.0)
    with pytest.raises(BrokenPipeError):
        execute(
            RunFolder(tmp_path),
            list(recipe.variants),
            [0],
            options=RunOptions(JobOptions("cpu")),
            display=stream,
        )
    assert not (tmp_path / "runs/toy_slow/seed-0/error.txt").exists()


def test_a_broken_marker_is_no_marker(tmp_path: Path) -> None:
    job = RunFolder(tmp_path).job("a", 0)
    job.path.mkdir(parents=True)
    job.finish(1.25)
    assert job.seconds() == 1.25
    (job.path / "done.json").write_text("{")
    assert job.seconds() is None


def test_a_missing_environment_is_none_and_a_broken_one_is_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_environment() == {}
    for text in ("[1]", "{", '{"smoke": 1}', '{"earlier_sessions": 3}', "[" * 100_000):
        folder.environment.write_text(text)
        with pytest.raises(DamagedFileError, match=r"environment\.json"):
            folder.read_environment()


@pytest.mark.parametrize(
    "checksums",
    [
        {"recipe.yaml": 5},
        {"recipe.yaml\0": "x"},
        {"": None},
        {"../recipe.yaml": "x"},
        {"runs/../settings.yaml": "x"},
        {"runs/a/b/settings.yaml": "x"},
        {"runs/a/metrics.csv": "x"},
    ],
    ids=str,
)
def test_no_file_but_recipe_and_settings_has_a_checksum(
    checksums: dict[str, object], tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path)
    folder.environment.write_text(json.dumps({"checksums": checksums}))
    with pytest.raises(DamagedFileError, match=r"environment\.json: checksums"):
        folder.changed_files()


def test_only_folders_that_a_run_makes_are_jobs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for name in ("seed-0", "seed-10", "seed-00", "seed-٣", "seed-x", "seed-"):
        (tmp_path / "runs" / "a" / name).mkdir(parents=True)
    assert [job.seed for job in folder.jobs()] == [0, 10]
    assert all(job.path == folder.job("a", job.seed).path for job in folder.jobs())


def test_the_processor_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nmodel name\t: Some CPU @ 2 GHz\n")
    assert cpu_model(file) == "Some CPU @ 2 GHz"
    assert cpu_model(tmp_path / "absent") != ""


def test_the_commit_of_a_folder(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    (tmp_path / ".git").mkdir()
    assert git_commit(tmp_path) is None

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, timeout=20)

    (tmp_path / ".git").rmdir()
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    clean = git_commit(tmp_path)
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == clean + "+"
