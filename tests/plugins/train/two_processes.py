"""The steps of each of some jobs as one process of several, recorded: for `test_two_processes`.

``python two_processes.py RANK WORLD [go|stop|moved RECIPE FOLDER]...``; a job that is to stop does so
at its first chance, one that is to be moved begins with weights that are off by what a step rounds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from ddnkit_train import classification, export

from ddnkit import InputError, Job
from ddnkit.recipe.load import load

BATCH = 97  # terms of the largest sums, over a batch or over rows of a layer
STEP = classification._Training._step


def main(recipe: str, folder: str, rank: int, world: int, how: str) -> None:
    stop = how == "stop"
    rows: list[dict[str, Any]] = []
    steps: list[dict[str, torch.Tensor]] = []

    def recorded(self: Any, *args: Any) -> None:
        if how == "moved" and not steps:
            with torch.no_grad():
                for p in self.plain.parameters():
                    p.mul_(1 + BATCH * torch.finfo(p.dtype).eps * (2 * torch.rand_like(p) - 1))
        STEP(self, *args)
        head = self.plain.head
        steps.append(
            {
                **{f"state.{k}": v.clone() for k, v in head.state_dict().items() if _floats(v)},
                **{f"grad.{k}": whole(p.grad) for k, p in self.plain.named_parameters()},
                "loss": torch.tensor(self.losses.losses[-1]),
            }
        )

    classification._Training._step = recorded  # type: ignore[method-assign]
    out = Path(folder) / ("moved" if how == "moved" else f"{rank}-of-{world}")
    state = (out if how == "moved" else Path(folder) / f"0-of-{world}") / "state"
    state.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    if rank and not (out / "state").exists():
        (out / "state").symlink_to(state)  # processes of a run have one folder
    pipeline = load(recipe).variants[0].pipeline
    job = Job(
        variant="v", seed=0, folder=out, device="cpu", smoke=False, rank=rank, world=world,
        record=rows.append, progress=lambda *_: None, stopping=lambda: stop,
    )  # fmt: skip
    refused = ""
    try:
        pipeline.run(job)
    except KeyboardInterrupt:
        assert stop
    except InputError as error:
        refused = str(error)
    else:
        assert not stop
    torch.save({"rows": rows, "steps": steps, "refused": refused}, out / "recorded.pt")


def no_program(*_: Any) -> None:
    """What one process trained is compared by its weights; a program takes longer than the training."""
    raise export._UnfitError


def whole(tensor: Any) -> torch.Tensor:
    """A copy with all of its parts."""
    gathered: torch.Tensor = (
        tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()
    )
    return gathered


def _floats(value: Any) -> bool:
    return torch.is_tensor(value) and value.is_floating_point()


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, world, *jobs = sys.argv[1:]
    if world == "1":
        export._program = no_program
    for how, recipe, folder in zip(jobs[::3], jobs[1::3], jobs[2::3], strict=True):
        main(recipe, folder, int(rank), int(world), how)
    # As a run of its own ends: a group's threads that outlive the interpreter abort the process.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
