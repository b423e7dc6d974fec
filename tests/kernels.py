"""Runs the numeric tests on every code path of the numeric libraries that this processor can take.

    python tests/kernels.py [--only NAME ...] [--tests PATH ...] [--rounding SEED ...]

Each setting prints the path that was really taken, as the libraries themselves say and as a digest of
what they compute shows: a library may ignore what it is told (MKL does so for instruction sets on
processors that are not Intel's). One processor cannot take another's path: `--rounding` runs the same
tests with results moved by what rounding may move them (`rounding.py`), once for each seed.
Ends with a table of passed and failed, and with status 1 where a test failed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).parent
#: What computes, and starts no process of its own.
NUMERIC = [
    "core", "implicit", "backward", "linalg", "programs", "testing", "solvers", "fuzz", "checking",
    "plugins/etf", "plugins/manifolds", "plugins/collapse", "plugins/rfm",
    "plugins/longtail/test_longtail_losses.py", "plugins/longtail/test_longtail_metrics.py",
    "plugins/longtail/test_longtail_head.py", "plugins/longtail/test_mixup.py",
    "plugins/train/test_agd.py", "plugins/train/test_losses.py", "plugins/train/test_schedule.py",
]  # fmt: skip

#: Tests of whole nodes by promised tolerances, whose parts other tests show.
SLOW = ["testing/test_sweep.py", "testing/test_problem_bank.py"]


@dataclass(frozen=True)
class Setting:
    """One run of the tests: environment variables of the libraries, threads, a seed of `rounding`."""

    name: str
    variables: dict[str, str] = field(default_factory=dict)
    threads: int = 1
    rounding: int | None = None

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | self.variables | {"DDNKIT_TEST_THREADS": str(self.threads)}


# MKL_ENABLE_INSTRUCTIONS is for Intel's processors; elsewhere MKL_CBWR=COMPATIBLE alone changes path.
# OpenBLAS: "Prescott" is the least of its x86 kernels (it then names itself Katmai, its generic one).
SETTINGS = [
    Setting("as it is"),
    Setting("two threads", threads=2),
    Setting(
        "no vector units",
        {
            "ATEN_CPU_CAPABILITY": "default",
            "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
            "MKL_CBWR": "COMPATIBLE",
            "OPENBLAS_CORETYPE": "Prescott",
        },
    ),
    Setting(
        "avx2",
        {
            "ATEN_CPU_CAPABILITY": "avx2",
            "MKL_ENABLE_INSTRUCTIONS": "AVX2",
            "OPENBLAS_CORETYPE": "Haswell",
        },
    ),
    Setting(
        "sse4.2, two threads",
        {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
        threads=2,
    ),
]


def main() -> int:
    """Run what was asked for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=[s.name for s in SETTINGS])
    parser.add_argument("--tests", nargs="+", default=[f"tests/{name}" for name in NUMERIC])
    parser.add_argument("--rounding", nargs="+", type=int, metavar="SEED")
    parser.add_argument("--workers", default="auto")
    parser.add_argument("--path", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.path:
        print(_path())
        return 0
    settings = [s for s in SETTINGS if not asked.only or s.name in asked.only]
    if asked.rounding:
        # Thousands of tiny operations: the sweep alone would take half an hour a seed.
        asked.tests += [f"--ignore=tests/{name}" for name in SLOW]
        settings = [Setting(f"rounding {seed}", rounding=seed) for seed in asked.rounding]
    rows = [_run(setting, asked.tests, asked.workers) for setting in settings]
    print("\n" + "\n".join(f"{name:22} {outcome}" for name, outcome, _ in rows))
    return int(any(status for _, _, status in rows))


def _run(setting: Setting, tests: list[str], workers: str) -> tuple[str, str, int]:
    taken = subprocess.run(
        [sys.executable, __file__, "--path"],
        env=setting.environment | {"MKL_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    print(f"\n== {setting.name} {setting.variables or ''}")
    print("\n".join(line for line in taken.splitlines() if _says_something(line)), flush=True)
    more = [] if setting.rounding is None else ["--rounding", str(setting.rounding)]
    counts, status = outcome(sys.executable, [*tests, *more], workers, setting.environment)
    return setting.name, counts, status


def outcome(
    python: str, arguments: list[str], workers: str, environment: dict[str, str] | None = None
) -> tuple[str, int]:
    """What came of the tests that are not long, in words, and pytest's status; prints what failed."""
    command = [python, "-m", "pytest", "-q", "-m", "not long", "-n", workers, "--dist", "worksteal"]
    command += ["-p", "no:cacheprovider", *arguments]
    start = time.monotonic()
    done = subprocess.run(
        command, cwd=TESTS.parent, env=environment, stdout=subprocess.PIPE, text=True
    )
    lines = done.stdout.splitlines()
    print("\n".join(line for line in lines if line.startswith(("FAILED", "ERROR"))), flush=True)
    counts = next((x for x in reversed(lines) if re.search(r"\d (passed|failed|error)", x)), "")
    counts = re.sub(r" in [\d.]+s.*", "", counts.strip("= "))
    if not counts:
        print(done.stdout[-3000:])
        counts = f"ended with {done.returncode}"
    return f"{counts}, {time.monotonic() - start:.0f} s", done.returncode


def _says_something(line: str) -> bool:
    return not line.startswith("MKL_VERBOSE") or "oneMKL" in line


def _path() -> str:
    """What the libraries say of themselves, and a digest of what each computes."""
    import numpy
    import torch
    from threadpoolctl import threadpool_info

    torch.set_num_threads(int(os.environ.get("DDNKIT_TEST_THREADS", "1")))
    torch.manual_seed(0)
    A = torch.randn(96, 96)
    results = {
        "torch products": A @ A,
        "torch eigenvectors": torch.linalg.eigh(A @ A.mT).eigenvectors,
        "torch sums and functions": A.exp().sum(dim=1),
        "numpy products": torch.from_numpy(numpy.matmul(A.numpy(), A.numpy())),
    }
    blas = {
        f"{info['internal_api']} {info['version']} {info.get('architecture', '')}".strip()
        for info in threadpool_info()
        if info["user_api"] == "blas"
    }
    lines = [
        f"torch {torch.__version__}: {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads; {', '.join(sorted(blas))}"
    ]
    for name, result in results.items():
        digest = hashlib.sha256(result.contiguous().numpy().tobytes()).hexdigest()[:8]
        lines.append(f"   {name:26} {digest}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
