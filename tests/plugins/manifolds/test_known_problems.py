"""The problems with known answers on every manifold: each is there, in its table, and in float32 too.

Their derivatives are in the sweep of all problems (`tests/testing/test_sweep.py`).
"""

import inspect
from pathlib import Path

import ddnkit_manifolds
import pytest
import torch
from bounds import factorised
from ddnkit_manifolds.testing import bank

import ddnkit
from ddnkit import testing

BANK = bank()
#: Of the sweep's instances: systems of order 16 at most with curvatures that differ by a hundred at most.
ROUNDING = factorised(torch.float32, 16, condition=100)


def manifolds_of(problem):
    return {type(m) for m in (problem.manifold, *getattr(problem.manifold, "manifolds", ()))}


def test_every_manifold_has_a_problem():
    found = set().union(*map(manifolds_of, BANK))
    public = [getattr(ddnkit_manifolds, name) for name in ddnkit_manifolds.__all__]
    for part in public:
        # The image of a map is whatever the map is: test_wrapped.py has some.
        if part is ddnkit_manifolds.Image:
            continue
        if inspect.isclass(part) and issubclass(part, ddnkit.Manifold):
            assert part in found, part


def test_the_committed_table_has_every_problem():
    text = (Path(__file__).parents[3] / "docs" / "manifold_sweep.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    named = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    assert {problem.label for problem in BANK} <= set(named)
    for problem in BANK:
        *_, gradgradcheck, _ = named[problem.label]
        assert gradgradcheck == "passes"


@pytest.mark.parametrize("problem", BANK, ids=lambda problem: problem.label)
def test_solvers_and_formulas_agree(problem):
    xs = testing.sample(problem)
    with torch.no_grad():
        y = problem.solve(*xs)
    layer = ddnkit.DeclarativeLayer(problem, policy="raise")
    layer(*xs)
    rounding = factorised(torch.float64, 16, condition=10)
    assert layer.certificate.stationarity < rounding and layer.certificate.feasibility < rounding
    shapes = [J.shape for J in problem.jacobians(*xs, y=y)]
    size = testing.join_parts(problem.observed(y)).shape
    assert shapes == [(*size, *x.shape) for x in xs]


@pytest.mark.parametrize("problem", BANK, ids=lambda problem: problem.label)
def test_float32_costs_its_rounding(problem):
    gradients = []
    for dtype in (torch.float32, torch.float64):
        xs = [x.float().to(dtype).requires_grad_() for x in testing.sample(problem)]
        y = ddnkit.DeclarativeLayer(problem, policy="raise")(*xs)
        y = testing.join_parts(problem.observed(y)).reshape(-1)
        assert y.dtype == dtype
        weights = torch.arange(1, len(y) + 1, dtype=torch.float64).cos().to(dtype)
        gradients.append(
            torch.cat([g.double().reshape(-1) for g in torch.autograd.grad(weights @ y, xs)])
        )
    narrow, wide = gradients
    assert (narrow - wide).norm() <= ROUNDING * wide.norm()
