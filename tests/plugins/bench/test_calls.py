"""``ddnkit bench calls``: layers by hand and ddnkit's give the same, and each is measured."""

import torch
from ddnkit_bench.calls import ETF, PROBLEMS, Calls

from ddnkit.bench import Request


def test_a_layer_by_hand_and_ours() -> None:
    names = ("by hand", "ddnkit")
    result = Calls().run(Request(sizes=((3, 4),), repeats=1, memory=False, only=names))
    assert [table.title for table in result.tables] == [
        f"{kind}: batch = 3, m = 4" for kind in PROBLEMS
    ]
    assert [line["competitor"] for line in result.measured] == [*names] * len(PROBLEMS)
    for line in result.measured:
        assert all(rounds[0] > 0 for rounds in line["seconds"].values()) and not line["note"]


def test_the_nearest_etf_too() -> None:
    case = next(case for case in Calls().cases(Request()) if case.kind == ETF)
    inputs = Calls().inputs(case, torch.float32)
    found = {}
    for competitor in Calls().competitors(case, "cpu")[:2]:
        (calls,) = competitor.prepare(inputs).values()
        found[competitor.name] = calls(None, 1)
    for name, value in found["by hand"].items():
        value = value.detach()
        # δ = 1e-3 stands in for what class means leave open: half of float32's digits are left.
        size = float(value.norm())
        assert float((found["ddnkit"][name].detach() - value).norm()) <= Calls.tolerance * size, (
            name
        )
