"""A process of a `Team`: ``python -m ddnkit.run.worker RUN_FOLDER``."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from .. import registry
from ..errors import warnings_in_a_line
from ..recipe.load import load
from .distributed import leave
from .folder import RunFolder
from .job import JobResult, label, record_failure, run_job
from .options import JobOptions
from .stop import Stop

#: Progress is sent at most so often, in seconds.
_EVERY = 0.1


def main(path: str) -> None:
    """Run the jobs that come in as lines of JSON, until there are no more."""
    # The parent decides what an interrupt means; it asks with SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    # Standard output is the line to the parent; what a plugin prints goes to standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    registry.tell_by(lambda text: None)  # the parent has told it
    folder = RunFolder(Path(path))
    recipe = load(folder.recipe)
    variants = {variant.name: variant for variant in recipe.variants}
    stop = Stop(patient=True)  # a cluster may ask every process, and the parent does too
    last = 0.0

    def update(done: int, total: int, figures: dict[str, float]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _EVERY or done >= total:
            last = now
            # A pipeline's figures may be of torch or numpy.
            text = json.dumps({"progress": [done, total, figures]}, default=float)
            print(text, file=answers, flush=True)

    for line in sys.stdin:
        request = json.loads(line)
        variant = variants[request["variant"]]
        # A job that cannot save its state is ended by the signal where it is.
        signals = (signal.SIGTERM,) if variant.pipeline.resumable else ()
        try:
            with stop.on_signals(*signals):
                result = run_job(
                    folder,
                    variant,
                    request["seed"],
                    options=JobOptions(**request["options"]),
                    update=update,
                    stopping=stop,
                )
        except KeyboardInterrupt as error:
            if stop():
                name = label(variant.name, request["seed"])
                result = JobResult("interrupted", f"interrupted {name}")
            else:  # nobody asked: raised by the code of a plugin
                result = record_failure(folder.job(variant.name, request["seed"]), error)
        print(json.dumps({"result": asdict(result)}), file=answers, flush=True)
    leave()


def _end_with_parent() -> None:
    """Where the system can, have this process killed when its parent is, however that ends."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1:  # it was gone already
        sys.exit(1)


if __name__ == "__main__":
    with warnings_in_a_line():
        main(sys.argv[1])
