"""The processes that run one job together: one, or one a device, in torchrun's environment.

A process reads jobs as lines of JSON and answers with lines of JSON: its progress, then how the job
ended. It reads the recipe from the run folder, so that nothing has to be pickled, and rank 0
writes the job's folder itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .job import JobResult, label
from .options import JobOptions

#: Seconds that the other ranks are given to say how they ended, once one has failed.
_PATIENCE = 10.0
#: As the ddnkit command itself: a file of the user's folder is no module to import.
_SAFE = {"PYTHONSAFEPATH": "1"}


class Team:
    """``size`` processes of `ddnkit.run.worker` on this machine, each of so many threads."""

    def __init__(self, folder: Path, size: int, threads: int) -> None:
        self.size = size
        port = _free_port() if size > 1 else 0
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "ddnkit.run.worker", str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **_SAFE, **_threads(threads), **_rank(rank, size, port)},
            )
            for rank in range(size)
        ]
        self._answers: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        for rank in range(size):
            threading.Thread(target=self._listen, args=(rank,), daemon=True).start()

    def alive(self) -> bool:
        """Whether all its processes run."""
        return all(process.poll() is None for process in self._processes)

    def run(
        self,
        variant: str,
        seed: int,
        options: JobOptions,
        update: Callable[[int, int, dict[str, float]], None],
    ) -> JobResult:
        """Run a job; if a process fails, all of them are ended."""
        for rank, process in enumerate(self._processes):
            own = asdict(replace(options, rank=rank, world=self.size))
            # A process that is gone is told below.
            with contextlib.suppress(BrokenPipeError):
                print(
                    json.dumps({"variant": variant, "seed": seed, "options": own}),
                    file=process.stdin,
                    flush=True,
                )
        results: dict[int, JobResult] = {}
        while len(results) < self.size:
            failing = any(one.kind != "done" for one in results.values())
            try:
                rank, answer = self._answers.get(timeout=_PATIENCE if failing else None)
            except queue.Empty:
                break
            if answer is None:
                results[rank] = self._crash(rank, label(variant, seed))
            elif "result" in answer:
                results[rank] = JobResult(**answer["result"])
            else:
                update(*answer["progress"])
        return self._verdict(results)

    def ask_to_stop(self) -> None:
        """Ask the job to save its state and end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End all processes at once."""
        self._signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)

    def dismiss(self) -> None:
        """No more jobs: wait until the processes have ended."""
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        for process in self._processes:
            process.wait()

    def _verdict(self, results: Mapping[int, JobResult]) -> JobResult:
        wrong = [one for _, one in sorted(results.items()) if one.kind != "done"]
        if not wrong:
            return results[0]
        if len(results) < self.size or not self.alive():
            self.kill()
        # What was given is wrong: the same for all ranks. Else the first that has a reason.
        return next((one for one in wrong if one.kind in ("wrong_input", "damaged")), wrong[0])

    def _listen(self, rank: int) -> None:
        stream = self._processes[rank].stdout
        assert stream is not None
        with stream:
            for line in stream:
                self._answers.put((rank, json.loads(line)))
        self._answers.put((rank, None))

    def _crash(self, rank: int, name: str) -> JobResult:
        status = self._processes[rank].wait()
        which = f"process {rank}" if self.size > 1 else "its process"
        line = f"failed {name}: {which} ended with status {status} (killed, or out of memory)"
        return JobResult("failed", line, line)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)


def _threads(threads: int) -> dict[str, str]:
    return {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}


def _rank(rank: int, size: int, port: int) -> dict[str, str]:
    """torchrun's environment of a process on a single machine; empty where it is the only one."""
    if size == 1:
        return {}
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
