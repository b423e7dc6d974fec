"""The whole bank swept: its rows printed, its tables written as a page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from ..catalogue import bank
from . import sweep
from .table import page


def main(arguments: Sequence[str] | None = None) -> None:
    """Sweep the bank, print the rows, and write the page."""
    parser = argparse.ArgumentParser(description="Every known problem through every backward form.")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N − 1 (3)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the matrices are tiny
    seeds = range(chosen.seeds)
    rows = []
    for problem in bank():
        found = sweep([problem], seeds=seeds)
        print(*found, sep="\n", flush=True)
        rows += found
    if chosen.markdown is not None:
        chosen.markdown.write_text(page(rows, seeds), encoding="utf-8")


if __name__ == "__main__":
    main()
