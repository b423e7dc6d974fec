"""``ddnkit bench calls``: layers by hand and ddnkit's give the same, and each is measured."""

from ddnkit_bench.calls import PROBLEMS, Calls

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
