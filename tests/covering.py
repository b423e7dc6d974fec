"""Which cases of a test with many parameters the short suite has."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations

import pytest

#: Parameters, each with a value.
Values = frozenset[tuple[Hashable, Hashable]]


def covering(cases: Sequence[Mapping[Hashable, Hashable]], together: int = 1) -> set[int]:
    """Indices of cases, few of them, that have whatever ``together`` values meet in any case.

    Greedily the case with the most that is new, then that whose values have met the least: the
    smallest set is as hard to find as a set cover, and the greedy one of two parameters has the
    length of the longer.
    """

    def of(case: Mapping[Hashable, Hashable], count: int) -> set[Values]:
        return {frozenset(group) for group in combinations(case.items(), min(count, len(case)))}

    wanted = [of(case, together) for case in cases]
    met = [of(case, together + 1) for case in cases]
    missing: set[Values] = set().union(*wanted)
    times: Counter[Values] = Counter()
    chosen: set[int] = set()
    while missing:
        gains = [
            (len(ours & missing), -sum(times[group] for group in ours | larger))
            for ours, larger in zip(wanted, met, strict=True)
        ]
        best = max(range(len(cases)), key=gains.__getitem__)
        chosen.add(best)
        missing -= wanted[best]
        times.update(met[best] | wanted[best])
    return chosen


def mark_others(items: Sequence[pytest.Item]) -> None:
    """Mark ``long`` what tests marked ``covering`` have beside a covering part of their cases.

    Cases that are ``long`` already are left alone, and what they alone have.
    """
    tests: defaultdict[str, list[pytest.Function]] = defaultdict(list)
    for item in items:
        if item.get_closest_marker("covering") and not item.get_closest_marker("long"):
            assert isinstance(item, pytest.Function)
            tests[item.nodeid.partition("[")[0]].append(item)
    for cases in tests.values():
        marker = cases[0].get_closest_marker("covering")
        assert marker is not None
        kept = covering([_values(case) for case in cases], *marker.args)
        for index, case in enumerate(cases):
            if index not in kept:
                case.add_marker(pytest.mark.long)


def _values(case: pytest.Function) -> dict[Hashable, Hashable]:
    """By the names that one ``parametrize`` gives together; values are told apart as objects."""
    given = case.callspec.params
    names = [
        tuple(name.strip() for name in names.split(",")) if isinstance(names, str) else tuple(names)
        for names in (mark.args[0] for mark in case.iter_markers("parametrize"))
    ]
    return {together: tuple(id(given[name]) for name in together) for together in names}
