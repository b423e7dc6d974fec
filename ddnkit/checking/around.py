"""One case with all that is around it: other inputs in turn and in a batch, another precision or solver."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from .batch import compare_batch
from .closed_form import look_for_closed_form
from .findings import Findings
from .instance import examine
from .memory import compare_memory
from .precision import compare_precision
from .subject import Subject

_AROUND = {
    "memory": compare_memory,
    "batch": compare_batch,
    "float32": compare_precision,
    "solver": look_for_closed_form,
}


def examine_around(
    subject: Subject,
    inputs: tuple[Any, ...],
    *,
    around: bool,
    thorough: bool,
    only: frozenset[str] | None = None,
) -> Findings:
    """All comparisons on one case; ``around`` it too, with other inputs and another precision."""
    findings = examine(subject, inputs, thorough=thorough, only=only)
    for kind, compare in _AROUND.items() if around and not findings.error else ():
        if findings.wants(kind) and findings.state in ("", "repeatable"):
            _compare_around(findings, kind, compare)
    return findings


def _compare_around(findings: Findings, kind: str, compare: Callable[[Findings], None]) -> None:
    """A comparison with other inputs or another precision, which the node need not take at all."""
    before = len(findings.rows)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            compare(findings)
    except Exception as error:  # a stranger's node may raise anything
        del findings.rows[before:]
        findings.note(kind, f"{kind}: not compared ({type(error).__name__}: {error})")
