"""Drawn programs with inequalities: none wrong and trusted, and few alarms; ten thousand in `make fuzz`."""

import collections
import os

import pytest
import torch
from fuzz_nonlinear import check as check_nonlinear
from fuzz_nonlinear import drawn as nonlinear
from fuzz_programs import ALLOWED, check, drawn

ASKED = os.environ.get("DDNKIT_FUZZ_CASES")
#: Quadratic programs in all; of nonlinear ones a fifth.
CASES = int(ASKED or "160")
SIZE = 20


def numbered(cases: int) -> range:
    """Seeds of as many batches as that many cases are."""
    return range(max(1, cases // SIZE))


@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("dtype", ALLOWED)
def test_no_quadratic_program_is_wrong_and_trusted(dtype: torch.dtype, part: int) -> None:
    outcome: collections.Counter[str] = collections.Counter()
    for seed in numbered(CASES)[part::2]:
        outcome.update(check(drawn(seed, SIZE), dtype))
    assert not [name for name in outcome if name.startswith("wrong")], outcome
    regular = {word: outcome[f"{word} regular"] for word in ("right", "alarm")}
    assert regular["alarm"] <= 0.01 * sum(regular.values()), outcome
    # Every kink is told, but for those that float32 has moved from the data.
    assert outcome["beside weak"] <= 0.02 * outcome["alarm weak"], outcome


def test_no_nonlinear_program_is_wrong_and_trusted() -> None:
    outcome: collections.Counter[str] = collections.Counter()
    for seed in numbered(CASES // 5):
        outcome.update(check_nonlinear(*nonlinear(seed, SIZE)))
    assert not outcome["wrong"], outcome
    assert outcome["alarm"] <= 0.02 * outcome.total(), outcome
    assert outcome["right"] >= 0.9 * outcome.total(), outcome
