"""Cause: what is wrong with a node, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """What is wrong, in one sentence with its figures, and what to do next."""

    text: str
    next: str
