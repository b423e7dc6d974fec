"""Jobs side by side, each worker a process of its own that runs one job after the other.

Small networks use two cores poorly: a job on one core each gets more done. A worker reads
jobs as lines of JSON and answers with lines of JSON: its progress, then how the job ended. It
reads the recipe from the run folder, so that nothing has to be pickled, and writes the job's folder
itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..recipe.recipe import Variant
from .folder import RunFolder
from .job import Ended, label
from .progress import Display

if TYPE_CHECKING:
    from .execute import Queue


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_each(workers: int) -> int:
    """Threads of each of so many workers, which share the cores evenly."""
    return max(1, usable_cores() // workers)


def run_in_workers(
    queue: Queue,
    folder: RunFolder,
    display: Display,
    workers: int,
    *,
    device: str,
    smoke: bool,
) -> None:
    """Run all jobs of ``queue`` in so many worker processes, which share the cores evenly."""
    pool = _Pool(queue, folder, display, device, smoke, threads_each(workers))
    threads = [threading.Thread(target=pool.serve, daemon=True) for _ in range(workers)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(timeout=0.2)  # with a timeout, so that an interrupt is seen at once
    finally:
        pool.stop()
    if pool.trouble:
        raise pool.trouble[0]


class _Pool:
    def __init__(
        self,
        queue: Queue,
        folder: RunFolder,
        display: Display,
        device: str,
        smoke: bool,
        threads: int,
    ) -> None:
        self._queue, self._folder, self._display = queue, folder, display
        self._device, self._smoke, self._threads = device, smoke, threads
        self._jobs: Iterator[tuple[Variant, int]] = iter(queue)
        self._lock = threading.Lock()
        self._processes: list[subprocess.Popen[str]] = []
        self._stopped = False
        self.trouble: list[BaseException] = []

    def serve(self) -> None:
        """What each thread does: its worker runs job after job until there are no more."""
        worker: subprocess.Popen[str] | None = None
        try:
            while not self._stopped:
                with self._lock:
                    job = next(self._jobs, None)
                if job is None:
                    break
                variant, seed = job
                if worker is None or worker.poll() is not None:
                    worker = self._worker()
                ended = self._run(worker, variant.name, seed)
                if self._stopped:
                    break
                with self._lock:
                    self._queue.end(variant.name, seed, ended)
        except BaseException as error:  # handed to the main thread, which raises it
            self.trouble.append(error)
            self.stop()
        if worker is not None and worker.stdin is not None:
            worker.stdin.close()
            worker.wait()

    def stop(self) -> None:
        """End all workers at once; a job that they were at starts anew with --resume."""
        self._stopped = True
        for process in self._processes:
            if process.poll() is None:
                process.kill()

    def _worker(self) -> subprocess.Popen[str]:
        limits = {name: str(self._threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        process = subprocess.Popen(
            [sys.executable, "-m", "ddnkit.run.worker", str(self._folder.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **limits},
        )
        self._processes.append(process)
        return process

    def _run(self, worker: subprocess.Popen[str], variant: str, seed: int) -> Ended:
        assert worker.stdin is not None and worker.stdout is not None
        request = {"variant": variant, "seed": seed, "device": self._device, "smoke": self._smoke}
        name = label(variant, seed)
        try:
            print(json.dumps(request), file=worker.stdin, flush=True)
            for line in worker.stdout:
                answer: dict[str, Any] = json.loads(line)
                if "ended" in answer:
                    return Ended(**answer["ended"])
                with self._lock:
                    self._display.update(name, *answer["progress"])
        except BrokenPipeError:
            pass  # told below: the worker is gone
        status = worker.wait()
        line = f"failed {name}: its process ended with status {status} (killed, or out of memory)"
        return Ended("failed", line, line)
