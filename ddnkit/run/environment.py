"""``environment.json``: the machine, versions and command of a run."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import InputError
from .options import RunOptions


def resolve_device(asked: str, devices: int = 1) -> str:
    """``"cpu"`` or ``"cuda"`` for auto, cpu or cuda.

    Raises:
        InputError: cuda was asked for and torch sees no such device, or fewer than ``devices``.
    """
    if asked == "cpu":
        return asked
    import torch

    if torch.cuda.is_available():
        if devices > max(torch.cuda.device_count(), 1):
            raise InputError(
                f"--devices {devices}: torch sees {torch.cuda.device_count()} CUDA device(s); "
                "with --device cpu each is a process on the CPU"
            )
        return "cuda"
    if asked == "cuda":
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without it"
        raise InputError(
            f"--device cuda: torch {torch.__version__} ({built}) sees no CUDA device; "
            "expected one, or --device cpu"
        )
    return "cpu"


def describe_environment(recipe: str, options: RunOptions) -> dict[str, Any]:
    """The facts about this process that its figures depend on."""
    import numpy
    import torch

    return {
        "recipe": recipe,
        "command": options.command,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "smoke": options.job.smoke,
        "ddnkit": __version__,
        "git_commit": git_commit(Path(__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "cpu": cpu_model(Path("/proc/cpuinfo")),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": options.job.device,
        "cuda_device": torch.cuda.get_device_name() if options.job.device == "cuda" else None,
    }


def cpu_model(cpuinfo: Path) -> str:
    """The processor's name, from the kernel if it gives one, else from Python."""
    try:
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git_commit(root: Path) -> str | None:
    """The commit of a checkout, with ``+`` if files were changed since; None outside a checkout."""
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=5
    )
    return result.stdout.strip()
