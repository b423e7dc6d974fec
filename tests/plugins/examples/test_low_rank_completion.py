"""Low-rank completion: matrices that are recovered, and weights that are learned through the node."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bounds import rounding
from click.testing import CliRunner
from ddnkit_examples import Completion, LowRankCompletion
from ddnkit_examples.low_rank_completion import by_descent, filled_with_means, low_rank
from ddnkit_examples.low_rank_completion_report import METHODS, RECOVERY, RIDGES, SENSORS

import ddnkit
from ddnkit import DeclarativeLayer, read_table
from ddnkit.cli import main


def known_part(share: float, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < share


def test_the_node_recovers_matrices_of_which_three_quarters_are_known() -> None:
    C = low_rank((3, 9, 7), 1, torch.Generator().manual_seed(0))
    known = known_part(0.75, 3, 9, 7)
    node = Completion(9, 1)
    y = DeclarativeLayer(node, policy="raise")(C, known.double(), C.new_tensor(1e-12))
    found = node.manifold.matrix(y)
    assert (found - C).abs().max() < 1e-8  # of the ridge, 1e-12, and the condition
    by_factors = by_descent(node, C, known, 500)
    assert ((by_factors - C)[known].abs() < 0.1).all()


def test_entries_that_are_not_observed_do_not_matter() -> None:
    C = low_rank((2, 6, 5), 1, torch.Generator().manual_seed(0))
    w = known_part(0.75, 2, 6, 5).double()
    layer = DeclarativeLayer(Completion(6, 1), policy="raise")
    ridge = C.new_tensor(0.1)
    y, other = layer(C, w, ridge), layer(torch.where(w > 0, C, 7.0), w, ridge)
    assert torch.equal(y, other)


def test_the_gradient_in_weights_and_ridge_is_that_of_differences() -> None:
    C = low_rank((6, 5), 1, torch.Generator().manual_seed(0))
    A = C + 0.3 * torch.randn(6, 5, generator=torch.Generator().manual_seed(2)).double()
    w = known_part(0.75, 6, 5).double()
    node = Completion(6, 1)
    layer = DeclarativeLayer(node, policy="raise")

    def loss(logarithms: torch.Tensor) -> torch.Tensor:
        e = logarithms.exp()
        X = node.manifold.matrix(layer(A, w * e[:-1, None], e[-1]))
        return ((X - C).square() * (1 - w)).sum()

    at = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(loss(at), at)
    # Along a direction, by central differences: h² of the third derivative, and rounding over h.
    h = torch.finfo(torch.float64).eps ** (1 / 3)
    along = torch.randn(7, generator=torch.Generator().manual_seed(3)).double()
    with torch.no_grad():
        expected = (loss(at + h * along) - loss(at - h * along)) / (2 * h)
    assert (found @ along - expected).abs() < 1e3 * h**2 * (1 + expected.abs())


def test_the_node_passes_a_check() -> None:
    assert ddnkit.check(Completion(5, 1), examples=2).ok


def test_means_fill_what_is_made_of_rows_and_columns() -> None:
    rows, columns = torch.rand(4, 1).double(), torch.rand(1, 3).double()
    A = rows + columns
    known = torch.ones(4, 3, dtype=torch.bool)
    assert torch.equal(filled_with_means(A, known), A)
    known[1, 2] = False
    low, high = A.min(), A.max()
    filled = filled_with_means(A, known)
    assert torch.equal(filled[known], A[known]) and low - 1 < filled[1, 2] < high + 1
    nothing = filled_with_means(A, torch.zeros_like(known))
    assert nothing.abs().max() < rounding(A, 1)


def test_the_shipped_recipe_recovers_and_learns_in_a_short_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    short = [
        "rank=1",
        "size=10",
        "shares=[0.1, 0.8]",
        "draws=2",
        "descent=500",
        "sensors=10",
        "matrices=8",
    ]
    short += ["observed=0.5", "held_out=0.25", "steps=6", "rate=0.4", "seeds=[0]"]
    call = ["run", "low_rank_completion", *(x for one in short for x in ("-s", one))]
    result = CliRunner().invoke(main, [*call, "--jobs", "1", "--device", "cpu", "--out", str(out)])
    assert result.exit_code == 0, result.output
    (job,) = (out / "runs").glob("*/seed-0")

    def rows(name: str, *columns: str) -> list[dict[str, float]]:
        lines = read_table(job / name, dict.fromkeys(columns, "number"))
        return [{column: float(line[column]) for column in columns} for line in lines]

    recovery = rows(RECOVERY, "share", *METHODS)
    for row in recovery:
        found = [row[way] < 0.01 for way in ("path", "node", "descent", "means")]
        assert found == ([True] * 3 + [False] if row["share"] == 0.8 else [False] * 4)
    learned = rows("metrics.csv", "held_out", "test", "of_ridge", "at")
    assert learned[-1]["held_out"] < 0.9 * learned[0]["held_out"]
    assert learned[-1]["test"] < 0.9 * learned[-1]["of_ridge"]
    assert len(rows(RIDGES, "ridge", "equal_test", "exact_test")) > 5
    sensors = rows(SENSORS, "noise", "weight")
    quiet, loud = sensors[:5], sensors[5:]
    assert sum(row["weight"] for row in quiet) > 2 * sum(row["weight"] for row in loud)
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "## Matrices recovered" in report and "## Error on unseen entries" in report
    assert "Warning" not in report and "(figures/low_rank_completion.png)" in report
    assert (out / "figures/low_rank_completion.png").stat().st_size > 10_000


def test_entries_must_be_left_to_measure_the_error_on() -> None:
    with pytest.raises(ValueError, match=r"observed 0\.7 and held_out 0\.3 leave no entries"):
        LowRankCompletion(observed=0.7, held_out=0.3)


def test_it_is_listed_and_a_run_without_a_finished_job_has_no_figures(tmp_path: Path) -> None:
    assert CliRunner().invoke(main, ["list"]).output.count("  low_rank_completion\n") == 2
    (tmp_path / "summary.csv").write_text(
        "variant,metric,epoch,step,median,min,max,n\ndefault,test,1,1,1,1,1,1\n", encoding="utf-8"
    )
    assert LowRankCompletion().figures(tmp_path) == []
    assert LowRankCompletion().tables(tmp_path) == []
