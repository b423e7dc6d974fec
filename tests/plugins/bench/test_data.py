"""``ddnkit bench data``: both ways of augmenting run, and the table says images a second."""

from ddnkit_bench.data import DataPipeline

from ddnkit.bench import Request


def test_both_ways_are_measured() -> None:
    result = DataPipeline().run(Request(sizes=((64, 32),), repeats=1))
    assert [table.title for table in result.tables] == [
        f"{kind}: images = 64, batch = 32" for kind in ("flip, crop", "flip, crop, rotation")
    ]
    for table in result.tables:
        head, *rows = table.rows
        assert "images/s" in head
        names = [row[0] for row in rows]
        assert names == ["ddnkit", "torchvision, 0 workers", "torchvision, 2 workers"]
        assert all(float(row[head.index("images/s")].replace(",", "")) > 0 for row in rows)
