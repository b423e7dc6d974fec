"""`Comparison`: who is timed, who is not and why. No time is asserted, only what was done to get it."""

import importlib
import json
import os
import sys
import time

import pytest
import torch

import ddnkit
from ddnkit import InputError
from ddnkit.bench import Case, Comparison, Competitor, Floor, Request, comparison, duration


class Squares(Comparison):
    """Squares of n numbers."""

    size_names = ("n",)
    sizes = ((4,),)
    tolerance = 1e-6

    def __init__(self, *others):
        self.calls = []
        self.others = others

    def inputs(self, case, dtype):
        return {"x": torch.randn(case.size[0], dtype=dtype)}

    def competitors(self, case, device):
        return [Competitor("product", self.way("product", lambda x: x * x)), *self.others]

    def way(self, name, function):
        def prepare(inputs):
            def square(_):
                self.calls.append(name)
                return {"y": function(inputs["x"])}

            return {"square": square}

        return prepare

    def floor(self, case):
        return Floor(1e6 * case.size[0], 1e6, "a product each")

    def work(self, case):
        return case.size[0], "numbers"

    def columns(self, case, inputs, results):
        return {"largest": f"{results['y'].max():.3f}"}


def plainly(bench, **asked):
    return bench.run(Request(**{"memory": False, "repeats": 3, **asked}))


def test_competitors_take_turns_on_the_same_inputs():
    bench = Squares()
    bench.others = (Competitor("power", bench.way("power", lambda x: x**2)),)
    (table,) = plainly(bench).tables
    # The first calls, one more round to warm up, then the rounds.
    assert bench.calls == ["product", "power"] * 5
    head, first, second = table.rows
    assert table.title == "n = 4"
    assert head == ("", "n", "square", "[min, max]", "numbers/s", "ratio", "difference", "largest")
    assert (first[1], second[1]) == ("3", "3")
    assert first[-1] == second[-1] and float(first[-1]) > 0
    assert second[6] == "0e+00"
    assert "0.004 GFLOP (a product each)" in table.note and "times as long" in table.note


@pytest.mark.parametrize(
    ("function", "note"),
    [
        (lambda x: x * x + 1, "disagrees with the reference by"),
        (lambda x: x * torch.nan, "disagrees with the reference by nan"),
        (lambda x: x @ torch.ones(7), "failed: RuntimeError"),
    ],
)
def test_whoever_disagrees_or_fails_is_not_timed(function, note):
    bench = Squares()
    bench.others = (Competitor("wrong", bench.way("wrong", function)),)
    result = plainly(bench)
    (table,) = result.tables
    assert [row[0] for row in table.rows] == ["", "product"]
    assert f"wrong: {note}" in table.note
    assert bench.calls.count("wrong") == 1 and bench.calls.count("product") == 5
    assert result.measured[1]["seconds"] == {} and note in result.measured[1]["note"]


def test_a_tolerance_of_its_own_and_a_reference_of_the_bench():
    bench = Squares()
    near = bench.way("near", lambda x: x * x * (1 + 1e-3))
    bench.others = (
        Competitor("strict", near),
        Competitor("lenient", near, tolerance=1e-2),
    )
    bench.reference = lambda case, inputs: {"y": inputs["x"].double() ** 2}
    measured = plainly(bench).measured
    assert [bool(line["seconds"]) for line in measured] == [True, False, True]
    assert measured[2]["difference"] == pytest.approx(1e-3, rel=1e-3)
    assert measured[0]["difference"] < Squares.tolerance


def test_absent_packages_and_refusals_are_named():
    bench = Squares(
        Competitor("elsewhere", lambda inputs: {}, packages=("no_such_package",)),
        Competitor("unwilling", lambda inputs: {}, refuses="takes even n alone"),
    )
    (table,) = plainly(bench).tables
    assert "elsewhere: left out: no_such_package not installed" in table.note
    assert "unwilling: " in table.note


def test_nobody_timed_is_a_table_of_reasons():
    bench = Squares(Competitor("elsewhere", lambda inputs: {}, packages=("no_such_package",)))
    (table,) = plainly(bench, only=("elsewhere",)).tables
    assert table.rows[1][0] == "elsewhere" and "not installed" in table.rows[1][1]


def test_a_slow_competitor_gets_fewer_rounds():
    bench = Squares()

    def slow(x):
        time.sleep(0.02)
        return x * x

    bench.others = (Competitor("slow", bench.way("slow", slow)),)
    plainly(bench, budget=0.05, repeats=4)
    assert bench.calls.count("slow") in (2, 3)  # the first call, and what 0.05 s leave time for
    bench.calls.clear()
    result = plainly(bench, budget=0.001, repeats=4)
    assert bench.calls.count("slow") == 1
    assert len(result.measured[1]["seconds"]["square"]) == 1


def test_what_does_not_fit_is_extrapolated(monkeypatch):
    monkeypatch.setattr(comparison, "_fits", lambda needed: needed <= 10)
    bench = Squares()
    monkeypatch.setattr(
        comparison,
        "_once",
        lambda phases, device: ([float(len(bench.seen["x"]) ** 3)], phases["square"](None)),
    )
    drawn = bench.drawn

    def remembered(case, request):
        bench.seen = drawn(case, request)
        return bench.seen

    bench.drawn = remembered
    field = bench.competitors

    def competitors(case, device):
        large = Competitor("large", bench.way("large", torch.square), needs=case.size[0],
                           extrapolates=True)  # fmt: skip
        return [*field(case, device), large]

    bench.competitors = competitors
    lines = bench.measure(Case((16,)), Request(memory=False, budget=1e9))
    assert lines[1].extrapolated_from == ((4,), (8,))
    assert lines[1].median() == 16**3  # from 4³ and 8³
    assert "extrapolated from 4 in 64 s, 8 in 512 s" in lines[1].note
    # Half the size would take too long: a quarter and an eighth.
    lines = bench.measure(Case((16,)), Request(memory=False, budget=100.0))
    assert lines[1].extrapolated_from == ((2,), (4,)) and lines[1].median() == 16**3
    lines = bench.measure(Case((160,)), Request(memory=False))
    assert not lines[1].seconds and "memory" in lines[1].note


def test_not_measured_where_nothing_can_be():
    bench = Squares(Competitor("huge", lambda inputs: {}, needs=1e30))
    (table,) = plainly(bench).tables
    assert "huge: not measured: it needs" in table.note


CRASHING = """
import os, signal
import torch
from ddnkit.bench import Case, Comparison, Competitor

class Crashing(Comparison):
    name = "crashing"
    size_names = ("n",)
    sizes = ((4,),)

    def inputs(self, case, dtype):
        return {"x": torch.ones(case.size, dtype=dtype)}

    def competitors(self, case, device):
        return [self.way("raises"), self.way("killed")]

    def way(self, name):
        def square(x):
            if str(os.getpid()) != os.environ["TIMING"]:
                if name == "raises":
                    raise RuntimeError("no room for x")
                os.kill(os.getpid(), signal.SIGKILL)
            return {"y": x * x}
        return Competitor(name, lambda inputs: {"square": lambda _: square(inputs["x"])})
"""


def test_a_process_that_crashes_while_memory_is_measured_is_told(tmp_path, monkeypatch):
    (tmp_path / "crashing_bench.py").write_text(CRASHING)
    info = tmp_path / "crashing-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: crashing\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[ddnkit.benches]\ncrashing = crashing_bench:Crashing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("TIMING", str(os.getpid()))
    bench = importlib.import_module("crashing_bench").Crashing()
    result = bench.run(Request(repeats=1))
    raises, killed = result.measured
    assert raises["seconds"] and killed["seconds"], "their times stand"
    assert raises["memory_bytes"] is killed["memory_bytes"] is None
    assert "status 1" in raises["note"] and "no room for x" in raises["note"]
    assert "SIGKILL" in killed["note"]
    assert raises["note"] in result.tables[0].note and killed["note"] in result.tables[0].note


def test_wrong_requests():
    with pytest.raises(InputError, match="3x4"):
        plainly(Squares(), sizes=((3, 4),))
    with pytest.raises(InputError, match=r"'prodct'.*product"):
        plainly(Squares(), only=("prodct",))


def test_figures_for_programs_are_plain():
    (line,) = json.loads(json.dumps(plainly(Squares(), sizes=((6,),)).measured))
    assert line["size"] == [6] and line["dtype"] == "float32" and line["competitor"] == "product"
    assert len(line["seconds"]["square"]) == 3 and line["memory_bytes"] is None


def test_the_seed_decides_the_inputs():
    bench = Squares()
    one, two, other = (bench.drawn(Case((5,)), Request(seed=seed))["x"] for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(12.345, "12.3 s"), (1234.0, "1,234 s"), (0.01234, "12.3 ms"), (1.2e-5, "12 µs")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_old_name_of_a_measurement_answers_and_warns():
    with pytest.warns(DeprecationWarning, match=r"ddnkit\.bench\.Measurement"):
        assert ddnkit.bench.Measured is ddnkit.bench.Measurement
