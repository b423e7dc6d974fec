"""What lets a job go on where it was: its rows, its folder's lock, and a stop that is asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ddnkit import DdnkitError
from ddnkit.run.folder import RunFolder
from ddnkit.run.record import MetricsWriter
from ddnkit.run.stopping import Stop

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
with RunFolder(Path(sys.argv[1])).job("a", 0).started():
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
        with pytest.raises(DdnkitError, match=str(job.path)), job.started():
            pass
        process.kill()
        process.wait()
        with job.started():  # the system has let go of it
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
