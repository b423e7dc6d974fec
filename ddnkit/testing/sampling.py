"""Seeded inputs for a sweep, the same whatever was drawn before."""

from __future__ import annotations

from typing import Any

import torch

from ..node import DeclarativeNode


def sampled(problem: DeclarativeNode, seed: int = 0) -> tuple[Any, ...]:
    """One instance of ``problem.sample_inputs()``; the global generator is left as it was.

    Example:
        >>> x, alpha = sampled(PseudoHuberAverage(), seed=3)      # x: (5,)
    """
    with torch.random.fork_rng(devices=[]):
        # Of the CPU alone: torch.manual_seed would also seed the devices that the fork leaves out.
        torch.default_generator.manual_seed(seed)
        return problem.sample_inputs()
