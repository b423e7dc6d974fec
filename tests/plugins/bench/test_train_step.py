"""``ddnkit bench train_step`` and ``ufm_step``: every head takes the same step on the same batch."""

from ddnkit_bench.train_step import HEADS, TrainStep
from ddnkit_bench.ufm_step import UFMStep

from ddnkit.bench import Request


def test_every_head_beside_the_standard_one() -> None:
    result = TrainStep().run(Request(sizes=((32, 8, 5),), repeats=1, memory=False))
    assert [table.title for table in result.tables] == [
        f"resnet18 {stem}: image = 32, batch = 8, C = 5" for stem in ("imagenet", "cifar")
    ]
    assert [line["competitor"] for line in result.measured] == [*HEADS, *HEADS]
    for line in result.measured:
        assert list(line["seconds"]) == ["forward", "backward", "update"]
        assert all(rounds[0] > 0 for rounds in line["seconds"].values()) and not line["note"]


def test_unconstrained_features_with_every_head() -> None:
    result = UFMStep().run(Request(sizes=((40, 16, 5),), repeats=1, memory=False))
    assert [table.title for table in result.tables] == ["N = 40, d = 16, C = 5"]
    assert [line["competitor"] for line in result.measured] == [*HEADS]
    for line in result.measured:
        assert list(line["seconds"]) == ["forward", "backward", "update"]
        assert all(rounds[0] > 0 for rounds in line["seconds"].values()) and not line["note"]
