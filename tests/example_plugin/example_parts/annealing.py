"""A pipeline: the settings of its recipes, and what runs a job of one."""

from __future__ import annotations

import math
import random
from typing import ClassVar

from pydantic import Field

from ddnkit import Job, Pipeline, Table


class Annealing(Pipeline):
    """Minimise a rugged function of one number by simulated annealing."""

    columns: ClassVar[tuple[str, ...]] = ("epoch", "step", "lowest")

    steps: int = Field(1000, gt=0, description="moves tried")
    temperature: float = Field(1.0, gt=0, description="at the start; it falls linearly to zero")

    def run(self, job: Job) -> None:
        """Record the lowest value seen after each tenth of the moves."""
        draw, y, steps = random.Random(job.seed), 2.0, 20 if job.smoke else self.steps
        lowest = value = _rugged(y)
        for step in range(1, steps + 1):
            moved = y + draw.gauss(0, 0.5)
            gain = value - _rugged(moved)
            heat = self.temperature * (1 - step / (steps + 1))
            if gain > 0 or draw.random() < math.exp(gain / heat):
                y, value = moved, value - gain
            lowest = min(lowest, value)
            if step % max(steps // 10, 1) == 0:
                job.record({"epoch": 0, "step": step, "lowest": lowest})
            job.progress(step, steps, {"lowest": lowest})

    def tables(self, folder: object) -> list[Table]:
        """What was minimised."""
        return [Table("Function", (("f(y)",), ("y² + 2 |y − round(y)|",)))]


def _rugged(y: float) -> float:
    return y * y + 2 * abs(y - round(y))
