"""``ddnkit bench qp`` at small sizes: ddnkit's own line, and each library that is installed beside it."""

from __future__ import annotations

import pytest
import torch
from ddnkit_bench.qp import QuadraticPrograms

from ddnkit.bench import Case, Request


def test_each_size_is_measured_with_the_shares_of_a_call() -> None:
    request = Request(sizes=((3, 2), (4, 1)), repeats=1, only=("ddnkit",))
    result = QuadraticPrograms().run(request)
    assert [table.title for table in result.tables] == ["n = 3, batch = 2", "n = 4, batch = 1"]
    for line in result.measured:
        assert list(line["seconds"]) == ["forward", "backward"] and not line["note"]
        (shares,) = line["columns"].values()
        parts = [float(part.rstrip("%")) for part in shares.split(", ")]
        assert len(parts) == 4 and all(part >= 0 for part in parts)


def test_twelve_sizes_are_the_default() -> None:
    cases = QuadraticPrograms().cases(Request())
    assert len(cases) == 12 and Case((500, 256)) in cases


@pytest.mark.filterwarnings("ignore")  # those of the libraries
@pytest.mark.parametrize("name", ["qpth", "cvxpylayers", "proxsuite QPLayer", "clarabel by cvxpy"])
def test_libraries_that_are_installed_agree(name: str) -> None:
    bench, case = QuadraticPrograms(), Case((3, 2))
    found = {c.name: c for c in bench.competitors(case, "cpu")}
    peer = next(c for key, c in found.items() if key.startswith(name))
    if peer.absence():
        pytest.skip(peer.absence())
    torch.manual_seed(0)
    inputs = bench.inputs(case, torch.float64)
    results = []
    for competitor in (found["ddnkit"], peer):
        state = None
        for phase in competitor.prepare(inputs).values():
            state = phase(state)
        results.append(state)
    gap = bench.difference(case, results[1], results[0])
    assert gap is not None and gap <= (peer.tolerance or bench.tolerance)
