"""The other benches at small sizes: every competitor that is installed agrees and is timed."""

import math

import pytest
from ddnkit_bench.backward_forms import SIZES, BackwardForms
from ddnkit_bench.class_means import ClassMeansBench
from ddnkit_bench.collapse_metrics import CollapseMetrics
from ddnkit_bench.cost_growth import CostGrowth, Sweep, exponent
from ddnkit_bench.nearest_etf import NearestETFBench
from ddnkit_bench.startup import Startup

from ddnkit import InputError
from ddnkit.bench import Case, Request


def request(*sizes, **asked):
    return Request(sizes=sizes, repeats=1, memory=False, **asked)


def test_nearest_etf() -> None:
    table, collapsed = NearestETFBench().run(request((24, 6))).tables
    names = [row[0] for row in table.rows[1:]]
    assert names[0] == "closed_form"
    assert {"torch.linalg.svd, differentiated", "krylov", "embedded_field", "dense (Proposition 1)",
            "pymanopt trust regions, closed-form backward",
            "the paper's way: pymanopt trust regions, dense backward"} <= set(names)  # fmt: skip
    # At a least value it is of second order in the difference that is allowed.
    excess = table.rows[0].index("objective − least")
    assert all(
        abs(float(row[excess])) < 100 * NearestETFBench.tolerance**2 for row in table.rows[1:]
    )
    assert "Floor: " in table.note
    # All singular values equal: the derivative of an SVD is 0/0, and so is never timed.
    assert collapsed.title == "at collapse, float64: d = 24, C = 6"
    svd = "torch.linalg.svd, differentiated"
    assert svd not in [row[0] for row in collapsed.rows]
    assert f"{svd}: disagrees with the reference" in collapsed.note


def test_the_dense_way_that_does_not_fit_is_said_so() -> None:
    asked = request(only=("dense (Proposition 1)",), budget=0.01)
    (line,) = NearestETFBench().measure(Case((2048, 1000)), asked)
    assert not line.seconds and line.note.startswith("not measured")


@pytest.mark.parametrize("size", [(40, 12, 3), (10, 6, 30)])
def test_class_means(size) -> None:
    lines = ClassMeansBench().run(request(size)).measured
    assert [line["note"] for line in lines] == [""] * 3
    assert all(line["difference"] < 1e-6 for line in lines[1:])


def test_collapse_metrics() -> None:
    lines = CollapseMetrics().run(request((200, 30, 5))).measured
    assert [line["note"] for line in lines] == [""] * 4
    assert all(line["difference"] < 1e-9 for line in lines[1:])


@pytest.mark.parametrize(
    "only",
    [
        ("ddnkit --help", "ddnkit list", "ddnkit run, a misspelt recipe", "python -c pass"),
        pytest.param((), marks=pytest.mark.long),  # with `import torch`, three times
    ],
)
def test_startup_runs_every_command(only) -> None:
    lines = Startup().run(Request(repeats=1, only=only)).measured
    assert len(lines) == (len(only) or 6) and not any(line["note"] for line in lines)


def test_cost_growth_and_its_figure(tmp_path) -> None:
    bench = CostGrowth()
    bench.sweeps = (
        Sweep("ETF", "d", "nearest_etf", "closed_form", ((8, 4), (16, 4)), 0, "1"),
        Sweep("sphere", "m", "quadratic_on_sphere", "krylov", ((8, 1), (16, 1)), 0, "1"),
    )
    result = bench.run(Request(repeats=1, memory=False))
    assert [row[0] for row in result.tables[0].rows[1:]] == ["ETF", "sphere"]
    assert len(result.measured) == 4
    assert result.figure is not None
    result.figure(tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    with pytest.raises(InputError, match="cost_growth"):
        bench.run(Request(sizes=((3,),)))


def test_exponents() -> None:
    sizes = [10.0, 100.0, 1e3, 1e4]
    assert exponent(sizes, [5 + n**2 for n in sizes]) == pytest.approx(2, abs=1e-4)
    assert exponent(sizes, [3.0 * n**0.5 for n in sizes]) == pytest.approx(0.5)
    assert math.isnan(exponent(sizes, [0.0, 0.0, 0.0, 0.0]))


@pytest.mark.parametrize("kind", SIZES)
def test_backward_forms(kind, monkeypatch) -> None:
    monkeypatch.setattr("ddnkit_bench.backward_forms._WARM_UP", 0)
    bench = BackwardForms()
    lines = bench.measure(Case((12, 3), kind), Request(repeats=1, memory=False))
    assert [line.competitor for line in lines[:4]] == ["auto", "krylov", "dense", "embedded_field"]
    for line in lines:
        # Peers may be absent; one that is there and disagrees is not timed.
        absent = "not installed" in line.note
        assert absent or line.seconds or "disagrees" in line.note
    assert all(line.difference < 1e-9 for line in lines[:4])  # a thousandth of what peers may
