"""The parts of a run by themselves: record, summary, table, progress, environment."""

from __future__ import annotations

import io
import math
import subprocess
import time
from pathlib import Path

import pytest

from ddnkit.errors import DdnkitError
from ddnkit.recipe.load import load
from ddnkit.run.environment import cpu_model, git_commit
from ddnkit.run.execute import execute
from ddnkit.run.folder import RunFolder
from ddnkit.run.job import How
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


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,step,loss\n1,1,0.5\n2,2\n3,3,0.2")
    assert [row["step"] for row in read_metrics(file)[1]] == [1.0]
    assert read_metrics(tmp_path / "absent.csv") == ([], [])


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
            how=How("cpu"),
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


def test_a_broken_environment_is_none(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_environment() == {}
    folder.environment.write_text("[1]")
    assert folder.read_environment() == {}


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
