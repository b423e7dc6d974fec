"""The cases that `make test` has of a test marked ``covering``."""

import itertools

import pytest
from covering import covering


@pytest.mark.parametrize("together", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(7, 2, 2), (3, 4), (5,), (1, 1, 1)])
def test_what_meets_in_any_case_meets_in_one_that_is_kept(sizes, together):
    cases = [dict(enumerate(values)) for values in itertools.product(*map(range, sizes))]
    kept = [cases[index] for index in covering(cases, together)]

    def met(cases):
        count = min(together, len(sizes))
        return {group for case in cases for group in itertools.combinations(case.items(), count)}

    assert met(kept) == met(cases)
    assert len(kept) >= max(sizes)


def test_of_single_values_there_are_as_many_as_the_longest_parameter_has():
    cases = [{"a": a, "b": b, "c": c} for a in range(7) for b in range(3) for c in range(2)]
    kept = covering(cases)
    assert len(kept) == 7
    # Spread over what meets, and not the first of each.
    assert len({(cases[index]["b"], cases[index]["c"]) for index in kept}) == 6


def test_cases_that_are_left_out_are_not_missed():
    cases = [{"a": 0, "b": 0}, {"a": 1, "b": 1}]
    assert covering(cases) == {0, 1}
    assert covering([]) == set()
