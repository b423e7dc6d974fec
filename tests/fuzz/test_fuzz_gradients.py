"""Drawn gradients of all known problems: two of each, three more if long, ten thousand in `make fuzz`."""

import collections
import os
import time

import pytest
from fuzz_gradients import PROBLEMS, Fuzzed, cases
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ASKED = os.environ.get("DDNKIT_FUZZ_CASES")
#: In all; `make fuzz` asks for more, and for other ones each time.
CASES = int(ASKED or "200")
#: (drawn, error) of each case that passed.
PASSED = []


@pytest.fixture(scope="module", autouse=True)
def summary():
    begun = time.monotonic()
    yield
    if not PASSED:
        return
    drawn, worst = max(PASSED, key=lambda pair: pair[1])
    distinct = len({d for d, _ in PASSED})
    print(
        f"\n{len(PASSED)} gradients passed, {distinct} distinct, {time.monotonic() - begun:.0f} s"
    )
    for what in ("problem", "form", "way"):
        counts = collections.Counter(getattr(d, what) for d, _ in PASSED)
        print(f"  by {what}: {', '.join(f'{name} {n}' for name, n in sorted(counts.items()))}")
    print(f"  worst relative error {worst:.1e}: {drawn}")


def so_many(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=ASKED is None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )


@pytest.mark.parametrize("problem", PROBLEMS)
@so_many(2)
@given(data=st.data())
def test_drawn_gradients_are_exact(problem, data):
    drawn = data.draw(cases(problem))
    PASSED.append((drawn, Fuzzed(drawn).check()))


@pytest.mark.long
@pytest.mark.parametrize("problem", PROBLEMS)
@so_many(-(-CASES // len(PROBLEMS)))
@given(data=st.data())
def test_more_drawn_gradients_are_exact(problem, data):
    drawn = data.draw(cases(problem))
    PASSED.append((drawn, Fuzzed(drawn).check()))
