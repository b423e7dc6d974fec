"""What lets a job go on where it was: its rows, its folder's lock, and a stop that is asked for."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ddnkit import DdnkitError, InputError, replace_file
from ddnkit.recipe.recipe import Recipe
from ddnkit.run.files import write_whole
from ddnkit.run.folder import RunFolder, new_run, newest_run
from ddnkit.run.record import MetricsWriter
from ddnkit.run.stop import Stop, interrupt_on

COLUMNS = ("epoch", "step", "loss")


def row(step: int) -> dict[str, float]:
    return {"epoch": step / 2, "step": step, "loss": 1 / step}


def test_rows_after_the_saved_state_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    with MetricsWriter(file, COLUMNS) as writer:
        for step in (1, 2, 3):
            writer.record(row(step))
        assert writer.rows() == 3
    whole = file.read_bytes()
    with file.open("ab") as stream:  # cut short by a kill
        stream.write(b"2,4,0.")
    with MetricsWriter(file, COLUMNS) as writer:
        assert writer.rows() == 3
        assert file.read_bytes() == whole
        writer.rewind(1)
        assert writer.rows() == 1
        writer.record(row(2))
        writer.record(row(3))
    assert file.read_bytes() == whole


def test_a_state_cannot_count_rows_that_are_not_there(tmp_path: Path) -> None:
    with (
        MetricsWriter(tmp_path / "metrics.csv", COLUMNS) as writer,
        pytest.raises(DdnkitError, match=r"0 rows.* 2"),
    ):
        writer.rewind(2)


def test_a_file_with_other_columns_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,step,accuracy\n1,2,3\n")
    with MetricsWriter(file, COLUMNS) as writer:
        assert writer.rows() == 0
    assert file.read_text() == "epoch,step,loss\n"


HOLDER = """
import sys
from pathlib import Path
from ddnkit.run.folder import RunFolder
with RunFolder(Path(sys.argv[1])).job("a", 0).hold():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_job_is_run_by_one_process_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ddnkit.run.folder._LOCK_TRIES", 2)
    job = RunFolder(tmp_path).job("a", 0)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(DdnkitError, match=str(job.path)), job.hold():
            pass
        process.kill()
        process.wait()
        with job.hold():  # the system has let go of it
            assert not list(job.path.iterdir())


def test_the_first_signal_asks_and_the_second_interrupts() -> None:
    stop = Stop()
    before = signal.getsignal(signal.SIGTERM)
    with stop.on_signals(signal.SIGTERM):
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_process_that_others_ask_is_asked_once() -> None:
    """A cluster may ask each process of a run, and the first of them asks the others too."""
    stop = Stop(patient=True)
    with stop.on_signals(signal.SIGTERM):
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
    assert stop()


def test_a_signal_is_taken_for_an_interrupt() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), interrupt_on(signal.SIGTERM):
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_was_there_stays_until_all_of_the_new_text_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "there" / "recipe.yaml"
    file.parent.mkdir()
    write_whole(file, "old\n")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as told:
        write_whole(file, "new\n")
    assert told.value.filename == str(file)
    assert file.read_text() == "old\n"
    assert list(file.parent.iterdir()) == [file]


def test_a_file_is_replaced_when_it_is_written_and_not_before(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    replace_file(file, lambda part: part.write_bytes(b"old"))

    def write(part: Path) -> None:
        assert part.suffix == file.suffix
        part.write_bytes(b"new")
        assert file.read_bytes() == b"old"

    def fail(part: Path) -> None:
        part.write_bytes(b"half")
        raise RuntimeError("no more")

    replace_file(file, write)
    with pytest.raises(RuntimeError, match="no more"):
        replace_file(file, fail)
    with pytest.raises(OSError, match="weights") as error:
        replace_file(tmp_path / "no folder" / file.name, write)
    assert error.value.filename == str(tmp_path / "no folder" / file.name)
    assert (list(tmp_path.glob("*.bin")), file.read_bytes()) == ([file], b"new")


def test_of_two_runs_that_begin_in_a_folder_at_once_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have found it empty."""
    monkeypatch.setattr("ddnkit.run.folder._LOCK_TRIES", 2)
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    with first.hold(new=True):
        with pytest.raises(DdnkitError, match=str(tmp_path)), second.hold(new=True):
            pass
        write_whole(first.recipe, "pipeline: toy\n")
    with pytest.raises(InputError, match=str(tmp_path)), second.hold(new=True):
        pass
    with second.hold(new=False):
        pass


def test_two_runs_that_begin_in_the_same_second_have_a_folder_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Recipe("race", "race.yaml", "", (), (), dict)
    with ThreadPoolExecutor(8) as pool:
        found = [one.result().path for one in [pool.submit(new_run, recipe) for _ in range(32)]]
    assert len(set(found)) == 32


def test_the_newest_run_is_the_one_that_was_begun_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its folder is called."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, date: str) -> Path:
        folder = RunFolder(Path("outputs/race") / name)
        folder.path.mkdir(parents=True)
        folder.recipe.touch()
        folder.environment.write_text(json.dumps({"date": date}))
        return folder.path

    run("trial", "2026-01-01T00:00:00+00:00")
    run("2026-03-01_000000", "2026-03-01T00:00:00+00:00")
    run("2026-03-01_000000-9", "2026-03-01T12:00:00+00:00")
    newest = run("2026-03-01_000000-10", "2026-03-01T13:30:00+01:00")
    assert newest_run(Path("outputs/race")) == newest
    run("no date", "yesterday")
    assert newest_run(Path("outputs/race")) == newest
    last = run("2026-03-01_000000-11", "2026-03-01T12:30:00+00:00")
    assert newest_run(Path("outputs/race")) == last, "of two of one second the later number"
    assert newest_run(Path("outputs/none")) is None
