"""Drawn nodes with at most one thing wrong: 200 here, 2,000 in `make fuzz`. None is wrong without a word."""

import collections
import os
import time

import pytest
from fuzz_nodes import FAULTY, KINDS, SOUND, WRONG, drawn

#: In all, from which seed on.
NODES = int(os.environ.get("DDNKIT_FUZZ_NODES", "200"))
FIRST = int(os.environ.get("DDNKIT_FUZZ_FIRST", "0"))

OUTCOMES = collections.defaultdict(list)


@pytest.fixture(scope="module", autouse=True)
def table():
    begun = time.monotonic()
    yield
    print(f"\n{sum(map(len, OUTCOMES.values()))} nodes, {time.monotonic() - begun:.0f} s")
    print(f"{'':18}{'nodes':>7}{'silent, wrong':>15}{'refused':>9}{'warned':>8}{'doubted':>9}"
          f"{'right, trusted':>16}{'false alarms':>14}")  # fmt: skip
    for kind, found in OUTCOMES.items():
        told = collections.Counter(outcome.told for outcome in found)
        right = sum(not o.told and o.error <= WRONG for o in found)
        print(f"{kind:18}{len(found):7}{sum(o.silent_and_wrong for o in found):15}"
              f"{told['refused']:9}{told['warned']:8}{told['doubted']:9}{right:16}"
              f"{sum(o.false_alarm for o in found):14}")  # fmt: skip


def outcomes(kind):
    """What became of the nodes of a kind; computed once."""
    if kind not in OUTCOMES:
        seeds = range(FIRST, FIRST + NODES)
        mine = [seed for seed in seeds if KINDS[seed % len(KINDS)] == kind]
        OUTCOMES[kind] = [drawn(seed).outcome() for seed in mine]
    return OUTCOMES[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_wrong_without_a_word(kind):
    found = outcomes(kind)
    assert len(found) >= NODES // len(KINDS)
    wrong = [outcome for outcome in found if outcome.silent_and_wrong]
    assert not wrong, _listed(f"{len(wrong)} of {len(found)} silent and wrong", wrong)


@pytest.mark.parametrize("kind", SOUND)
def test_what_is_sound_raises_no_alarm(kind):
    found = outcomes(kind)
    false = [outcome for outcome in found if outcome.false_alarm]
    assert len(false) <= 0.01 * len(found), _listed(
        f"{len(false)} of {len(found)} told of without a cause", false
    )


def test_bounds_hold():
    found = [outcome for kind in (*SOUND, *FAULTY) for outcome in outcomes(kind)]
    beyond = [outcome for outcome in found if outcome.beyond]
    assert not beyond, _listed(f"{len(beyond)} errors beyond their bound", beyond)


def _listed(text, outcomes):
    """What failed, and how to see each alone."""
    lines = "\n".join(f"  {outcome}" for outcome in outcomes[:20])
    seeds = " ".join(str(outcome.seed) for outcome in outcomes[:20])
    return f"{text}:\n{lines}\nEach alone: python tests/fuzz/fuzz_nodes.py {seeds}"
