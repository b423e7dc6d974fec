"""The price of a budget: λ of the node against its closed form, and tastes that are learned from it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from bounds import rounding
from click.testing import CliRunner
from ddnkit_examples import (
    BudgetPrice,
    LogarithmicHousehold,
    QuadraticHousehold,
    price_in_closed_form,
)
from torch import Tensor

import ddnkit
from ddnkit import DeclarativeLayer
from ddnkit.cli import main

NODES = {"logarithmic": LogarithmicHousehold, "quadratic": QuadraticHousehold}


def households(count: int = 8, goods: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    a, p = 0.5 + torch.rand(2, count, goods, dtype=torch.float64)
    return a, p, 0.1 + 3 * torch.rand(count, dtype=torch.float64)


@pytest.mark.parametrize("utility", NODES)
def test_the_price_is_that_of_the_closed_form_and_so_is_its_gradient(utility: str) -> None:
    inputs = [x.requires_grad_() for x in households()]
    layer = DeclarativeLayer(NODES[utility](), policy="raise")
    y, multipliers = layer(*inputs, return_multipliers=True)
    price = multipliers.inequality.squeeze(-1)
    exact = price_in_closed_form(*inputs, utility=utility)
    bound = rounding(torch.float64, 256)  # of sums of three terms of about one, solved for
    assert (price - exact).abs().max() < bound
    spent = (inputs[1] * y).sum(dim=1)
    assert (spent <= inputs[2] * (1 + bound)).all() and (y >= 0).all()
    found = torch.autograd.grad(price.sum(), inputs)
    expected = torch.autograd.grad(exact.sum(), inputs)
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() < bound * (1 + other.abs().max())


@pytest.mark.parametrize("utility", NODES)
def test_the_price_is_what_one_more_unit_of_money_is_worth(utility: str) -> None:
    a, p, b = households()
    b.requires_grad_()
    node = NODES[utility]()
    y, multipliers = DeclarativeLayer(node, policy="raise")(a, p, b, return_multipliers=True)
    worth = -torch.stack([node.objective(*one) for one in zip(a, p, b, y, strict=True)])
    (gain,) = torch.autograd.grad(worth.sum(), b)
    assert (gain - multipliers.inequality.squeeze(-1)).abs().max() < rounding(gain, 256)


@pytest.mark.parametrize("node", NODES.values())
def test_the_nodes_pass_a_check(node: type[ddnkit.DeclarativeNode]) -> None:
    assert ddnkit.check(node(), examples=2).ok


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_shipped_recipe_learns_the_tastes_in_a_short_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    short = ["-s", "households=12", "-s", "goods=2", "-s", "steps=20", "-s", "rate=0.3"]
    call = ["run", "budget_price", *short, "--jobs", "1", "--device", "cpu", "--out", str(out)]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 0, result.output
    for name in ("quadratic", "logarithmic"):
        job = out / f"runs/{name}/seed-0"
        losses = [float(row["loss"]) for row in rows(job / "metrics.csv")]
        errors = [float(row["taste_error"]) for row in rows(job / "metrics.csv")]
        assert losses[-1] < 0.1 * losses[0] and errors[-1] < 0.5 * errors[0]
        assert all(
            float(row["price_error"]) < rounding(torch.float64, 256)
            for row in rows(job / "metrics.csv")
        )
        prices = rows(job / "prices.csv")
        for row in prices:
            apart = abs(float(row["price"]) - float(row["closed_form"]))
            assert apart < rounding(torch.float64, 256) * float(prices[0]["closed_form"])
        falling = [float(row["price"]) for row in prices]
        assert falling == sorted(falling, reverse=True)
    # With a quadratic utility there is enough some day, with a logarithm never.
    last = {
        name: float(rows(out / f"runs/{name}/seed-0/prices.csv")[-1]["price"])
        for name in ("quadratic", "logarithmic")
    }
    assert last["quadratic"] == 0 < last["logarithmic"]
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "## The price of a budget" in report and "Warning" not in report
    assert "(figures/budget_price.png)" in report
    assert (out / "figures/budget_price.png").stat().st_size > 10_000


def test_it_is_listed_and_described(tmp_path: Path) -> None:
    listed = CliRunner().invoke(main, ["list"]).output
    assert listed.count("  budget_price\n") == 2  # pipeline and recipe
    described = CliRunner().invoke(main, ["describe", "pipelines/budget_price"]).output
    assert "quadratic | logarithmic" in described and "households" in described


def test_a_run_without_a_finished_job_has_no_figures(tmp_path: Path) -> None:
    (tmp_path / "summary.csv").write_text(
        "variant,metric,epoch,step,median,min,max,n\nquadratic,loss,1,1,1,1,1,1\n", encoding="utf-8"
    )
    assert BudgetPrice().figures(tmp_path) == []
    assert BudgetPrice().tables(tmp_path) == []
