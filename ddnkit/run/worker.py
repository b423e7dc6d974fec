"""The worker process of `parallel`: ``python -m ddnkit.run.worker RUN_FOLDER``."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from ..recipe.load import load
from .folder import RunFolder
from .job import run_job

#: Progress is sent at most so often, in seconds.
_EVERY = 0.1


def main(path: str) -> None:
    """Run the jobs that come in as lines of JSON, until there are no more."""
    # The parent decides what an interrupt means, and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Standard output is the line to the parent; what a plugin prints goes to standard error.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    folder = RunFolder(Path(path))
    recipe = load(str(folder.recipe))
    variants = {variant.name: variant for variant in recipe.variants}
    last = 0.0

    def update(done: int, total: int, figures: dict[str, float]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _EVERY or done >= total:
            last = now
            print(json.dumps({"progress": [done, total, figures]}), file=answers, flush=True)

    for line in sys.stdin:
        request = json.loads(line)
        ended = run_job(
            folder,
            variants[request["variant"]],
            request["seed"],
            device=request["device"],
            smoke=request["smoke"],
            update=update,
        )
        print(json.dumps({"ended": asdict(ended)}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
