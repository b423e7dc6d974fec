"""Theorem 2 of INC, measured: bound, violations, what projection changes, and that the check can fail."""

from __future__ import annotations

import csv
import dataclasses
from itertools import pairwise
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
from bounds import rounding
from click.testing import CliRunner
from ddnkit_etf import simplex_etf
from ddnkit_longtail.regularity import (
    Comparison,
    compare,
    draw_features,
    optimum,
    regularity_number,
)
from ddnkit_longtail.settings import Regularity
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from ddnkit.cli import main

RATES = (0.01, 0.1, 1.0, 10.0)
DRAWS = 10_000


def draw(
    classes: int = 10,
    dimension: int = 32,
    *,
    draws: int = DRAWS,
    delta: float = 0.5,
    e_w: float = 1.0,
    e_h: float = 1.0,
    condition: bool = True,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, weight and labels."""
    torch.manual_seed(seed)
    weight = e_w**0.5 * simplex_etf(classes, dimension, direction="haar", dtype=torch.float64).T
    labels = torch.randint(classes, (draws,))
    return draw_features(weight, labels, delta, e_h=e_h, condition=condition), weight, labels


def violations(found: Comparison) -> list[int]:
    return [int(found.violations(curve).sum()) for curve in found.ce]


@pytest.mark.parametrize("condition", [True, False])
def test_features_are_drawn_as_near_as_asked_for(condition: bool) -> None:
    h, W, labels = draw(delta=0.3, e_w=2, e_h=5, condition=condition)
    torch.testing.assert_close(h.norm(dim=1), torch.full((DRAWS,), 5**0.5).to(h))
    distance = (h - optimum(W, labels, e_h=5)).norm(dim=1) / 5**0.5
    assert (distance.diff() > 0).all()
    asked = 0.3 * torch.arange(1, DRAWS + 1) / DRAWS
    assert (distance <= asked + rounding(h, 32)).all()
    p = (h @ W.T).softmax(dim=1)[~one_hot(labels, 10).bool()].view(DRAWS, 9)
    spread = (p.amax(dim=1) / p.amin(dim=1) - 1).max()
    # Ratios of exponentials of logits of 32 terms and of size √(E_W E_H), 3 here.
    assert (spread < rounding(h, 4 * 32, size=4)) == condition


@pytest.mark.parametrize("condition", [True, False])
def test_one_rate_takes_dot_regression_to_the_bound_everywhere(condition: bool) -> None:
    found = compare(*draw(delta=2, e_w=3, e_h=0.5, condition=condition), e_w=3, e_h=0.5)
    assert ((found.dr.eta - found.bound).abs() <= found.tolerance).all()
    cos = torch.deg2rad(found.angle).cos()
    torch.testing.assert_close(found.bound, (1 + cos) / 2, rtol=0, atol=rounding(cos, 32))
    assert found.angle[-1] > 170


def test_no_violation_in_ten_thousand_draws_under_the_condition() -> None:
    found = compare(*draw(), rates=RATES)
    assert violations(found) == [0] * 5
    # With the best rate it is an equality, with any other an inequality.
    assert ((found.ce[0].eta - found.bound).abs() <= found.tolerance).all()
    assert all((curve.eta > found.bound).all() for curve in found.ce[1:])


def test_near_the_optimum_a_fixed_rate_of_cross_entropy_overshoots() -> None:
    found = compare(*draw(), rates=[0.01])
    assert found.ce[1].eta[0] > 1e3
    assert found.ce[1].eta[-1] < 1


@settings(deadline=None, max_examples=60)
@given(
    classes=st.integers(2, 12),
    extra=st.integers(0, 20),
    delta=st.floats(1e-6, 2),
    e_w=st.floats(1e-3, 100),
    e_h=st.floats(1e-3, 100),
    rates=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=3),
    seed=st.integers(0, 10_000),
)
def test_the_theorem_holds_for_all_sizes_under_the_condition(
    classes: int, extra: int, delta: float, e_w: float, e_h: float, rates: list[float], seed: int
) -> None:
    given = draw(classes, classes + extra, draws=200, delta=delta, e_w=e_w, e_h=e_h, seed=seed)
    found = compare(*given, e_w=e_w, e_h=e_h, rates=rates)
    assert violations(found) == [0] * (1 + len(rates))
    for curve in (found.dr, found.ce[0]):
        assert ((curve.eta - found.bound).abs() <= found.tolerance).all()


def test_a_gradient_that_leans_to_the_optimum_is_found_out() -> None:
    h, W, labels = draw()
    found, target = compare(h, W, labels), optimum(W, labels)
    eta = regularity_number(h, -W[labels] - 1e-3 * (target - h), target)
    wrong = dataclasses.replace(found.ce[0], eta=eta)
    assert found.violations(wrong).sum() > 0.999 * DRAWS


def test_a_wrong_scale_of_dot_regression_is_found_out() -> None:
    found = compare(*draw(), e_w=1.1, rates=RATES)
    assert (found.dr.eta - found.bound).abs().max() > 1e-3


def test_without_the_condition_cross_entropy_with_its_best_rate_is_below_the_bound() -> None:
    found = compare(*draw(condition=False), rates=RATES)
    best, *fixed = violations(found)
    assert best == DRAWS
    assert [count > 0 for count in fixed] == [True, True, False, False]


def test_without_the_condition_a_large_angle_may_hold_the_bound_again() -> None:
    found = compare(*draw(3, 10, delta=2, e_w=5, e_h=5, condition=False), e_w=5, e_h=5)
    assert 0.7 < violations(found)[0] / DRAWS < 0.8


def test_of_two_classes_the_condition_always_holds() -> None:
    found = compare(*draw(2, 5, condition=False), rates=RATES)
    assert violations(found) == [0] * 5


@pytest.mark.parametrize(("classes", "e_w", "e_h"), [(10, 1.0, 1.0), (3, 5.0, 5.0), (5, 0.2, 3.0)])
@pytest.mark.parametrize("delta", [2.0, 0.5, 1e-3])
def test_the_gain_of_cross_entropy_is_the_one_derived(
    classes: int, e_w: float, e_h: float, delta: float
) -> None:
    """(1 − η(CE))/(1 − η(DR)), whatever the angle, and its limit near h*."""
    h, W, labels = draw(classes, e_w=e_w, e_h=e_h, delta=delta, condition=False)
    far = slice(DRAWS // 2, None)  # both 1 − η are differences of numbers near 1
    found = compare(h, W, labels, e_w=e_w, e_h=e_h)
    gain = ((1 - found.ce[0].eta) / (1 - found.dr.eta))[far]
    W = normalize(W, dim=1)
    own, w = one_hot(labels, classes).bool(), W[labels]
    p = (h @ (e_w**0.5 * W).T).softmax(dim=1)
    q = (p / p.masked_fill(own, 0).sum(dim=1, keepdim=True)).masked_fill(own, 1 / (classes - 1))
    v = (classes - 1) / classes * (q - 1 / (classes - 1)) @ W
    u = normalize(h - (h * w).sum(dim=1, keepdim=True) * w, dim=1)
    along = (v * u).sum(dim=1)
    assert (along > 0).all()
    cot = 1 / torch.deg2rad(found.angle / 2).tan()
    derived = (1 + cot * along).square() / (1 + v.square().sum(dim=1))
    # Each 1 − η is off by what `compare` allows η, relative to itself.
    rtol = 2 * float((found.tolerance / (1 - found.dr.eta))[far].max())
    torch.testing.assert_close(gain, derived[far], rtol=rtol, atol=0)
    if delta == 1e-3:
        share = (classes - 1) / classes * (u @ W.T).square().sum(dim=1)
        limit = (1 + 2 * (e_w * e_h) ** 0.5 * share / (classes - 1)).square()
        torch.testing.assert_close(gain, limit[far], rtol=0.2 * delta, atol=0)


@pytest.mark.parametrize("condition", [True, False])
def test_projection_only_lowers(condition: bool) -> None:
    found = compare(*draw(delta=1.4, condition=condition), rates=RATES)
    for curve in (found.dr, *found.ce):
        assert (curve.projected <= curve.eta).all()
    assert (found.dr.projected < found.bound).all()


def test_with_projection_the_longer_step_wins_and_near_the_optimum_it_is_cross_entropy_s() -> None:
    found = compare(*draw(), rates=[0.1, 1.0])
    best, shorter, longer = (found.nearer_projected(curve) for curve in found.ce)
    assert not best.any()
    assert longer.all()
    assert shorter[: DRAWS // 2].all() and not shorter[-100:].any()


def test_with_projection_no_rate_is_the_best() -> None:
    h, W, labels = draw(draws=100)
    target = optimum(W, labels)
    gradient = -W[labels]
    etas = [regularity_number(h, gradient, target, rate, radius=1.0) for rate in (1, 10, 100, 1e4)]
    assert all((after < before).all() for before, after in pairwise(etas))
    assert etas[-1].max() < 1e-7  # of the order of the rate's square


def test_the_best_rate_is_the_best() -> None:
    h, gradient, target = torch.randn(3, 50, 4, dtype=torch.float64)
    best = regularity_number(h, gradient, target)
    for rate in torch.logspace(-6, 3, 200).tolist():
        assert (best <= regularity_number(h, gradient, target, rate) + rounding(h, 4)).all()
    g, e = -gradient, target - h
    cos = torch.cosine_similarity(g, e).clamp(min=0)
    torch.testing.assert_close(best, 1 - cos.square())
    assert 0 < (best == 1).sum() < 50


@pytest.mark.parametrize("size", [0.0, 1e-250, 1.0, 1e200])
def test_the_best_rate_fits_a_gradient_of_any_size(size: float) -> None:
    h, target = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    gradient = size * torch.tensor([-1.0, 0.0], dtype=torch.float64)
    assert float(regularity_number(h, gradient, target)) == (0.5 if size else 1.0)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"classes": 10, "dimension": 9}, r"dimension 9\b.*classes 10\b"),
        ({"classes": 1}, "(?m)^classes$"),
        ({"rates": [0.1, 0]}, r"(?m)^rates\.1$"),
        ({"rates": []}, "(?m)^rates$"),
        ({"delta": 2.1}, "(?m)^delta$"),
        ({"e_w": 1000, "e_h": 100}, r"e_w 1000\b.*e_h 100\b.*\b300\b"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=told):
        Regularity(**given)


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_shipped_recipe_runs_in_smoke_mode(tmp_path: Path) -> None:
    out = tmp_path / "run"
    call = ["run", "dr_regularity", "--smoke", "--jobs", "1", "--device", "cpu"]
    result = CliRunner().invoke(main, [*call, "--out", str(out)])
    assert result.exit_code == 0, result.output
    found = {name: read(out / f"runs/{name}/seed-0/metrics.csv") for name in ("true", "false")}
    for rows in found.values():
        assert [row["step"] for row in rows] == [str(step) for step in range(1, 11)]
        assert {row["draws"] for row in rows} == {"50"}
        assert max(float(row["eta_dr_error"]) for row in rows) < rounding(
            torch.float64, 8 * 32
        )  # as `compare` allows
    assert sum(int(row["violations"]) for row in found["true"]) == 0
    assert sum(int(row["violations"]) for row in found["false"]) >= 500
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "| true: all p_k equal, k ≠ c; CE, best γ | 500 | 0 |" in report
    assert "| false: h in any direction; CE, best γ | 500 | 500 |" in report
    assert "Warning" not in report
    for name in ("regularity", "regularity_violations"):
        assert (out / f"figures/{name}.png").stat().st_size > 10_000
        assert f"(figures/{name}.png)" in report


def test_the_same_seed_measures_the_same(tmp_path: Path) -> None:
    rates = []
    for name in ("a", "b"):
        out = tmp_path / name
        call = ["run", "dr_regularity", "--smoke", "--jobs", "1", "--only", "true"]
        assert CliRunner().invoke(main, [*call, "--out", str(out)]).exit_code == 0
        rates.append((out / "runs/true/seed-0/rates.csv").read_bytes())
    assert rates[0] == rates[1]


def test_a_run_without_a_finished_job_has_no_figures(tmp_path: Path) -> None:
    (tmp_path / "summary.csv").write_text(
        "variant,metric,epoch,step,median,min,max,n\ntrue,angle,1,1,1,1,1,1\n", encoding="utf-8"
    )
    assert Regularity().figures(tmp_path) == []
    assert Regularity().tables(tmp_path) == []
