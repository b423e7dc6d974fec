"""What a solver can be given: the same rules for each, looked at where the solver is made."""

from __future__ import annotations

import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from ddnkit_manifolds import NelderMead, ParticleSwarm, Procrustes, RiemannianAdam, TrustRegions

import ddnkit
from ddnkit import InputError, Problem, Solution, Solver, Status, registry
from ddnkit.solvers import (
    LBFGS,
    Deadline,
    IterativeSolver,
    Newton,
    Picard,
    Root,
    TrustConstr,
    choice,
    number,
    whole_number,
)

NAMES = registry.names("solvers")
ITERATIVE = [name for name in NAMES if name not in ("procrustes", "riemannian")]


@pytest.mark.parametrize("name", NAMES)
def test_a_solver_is_a_frozen_dataclass_that_is_chosen_by_name(name: str) -> None:
    solver = registry.make("solvers", name)
    settings = {f.name: getattr(solver, f.name) for f in dataclasses.fields(solver)}
    assert type(solver)(**settings) == solver
    assert pickle.loads(pickle.dumps(solver)) == solver
    for setting in settings:
        assert f"{setting}=" in repr(solver)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(solver, setting, None)


@pytest.mark.parametrize("name", ITERATIVE)
def test_limits_are_held_against_the_same_rules(name: str) -> None:
    kind = registry.get("solvers", name)
    for limits in (
        {"max_iterations": 0, "max_time": 0},
        {"max_iterations": np.int64(7), "max_time": np.float32(0.5)},
        {"max_time": math.inf},
    ):
        assert vars(kind(**limits)).items() >= limits.items()
    tolerance = "tolerance" if "tolerance" in vars(kind()) else "gradient_tolerance"
    wrong = {
        "max_iterations": [-1, 2.5, None, math.nan, True, "5", [5], torch.tensor(5)],
        "max_time": [-1e-9, math.nan, "1 s", True, 10**400],
        tolerance: [-1e-9, math.nan, "small", np.array([1e-3, 1e-3])],
    }
    for setting, values in wrong.items():
        for value in values:
            with pytest.raises(InputError, match=rf"{kind.__name__}: {setting} "):
                kind(**{setting: value})


WRONG = [
    (LBFGS, "history", 0),
    (Picard, "memory", -1),
    (Root, "method", "newton"),
    (Root, "method", ["hybr"]),
    (TrustConstr, "initial_radius", 0.0),
    (Procrustes, "method", None),
    (TrustRegions, "rho_prime", 0.25),
    (TrustRegions, "kappa", 0),
    (NelderMead, "size", math.nan),
    (ParticleSwarm, "population", 0),
    (ParticleSwarm, "seed", -1),
    (RiemannianAdam, "betas", (0.9, 1.0)),
    (RiemannianAdam, "betas", (0.9,)),
    (RiemannianAdam, "betas", 0.9),
    (RiemannianAdam, "check_every", 0),
]


@pytest.mark.parametrize(("kind", "setting", "value"), WRONG)
def test_a_value_that_a_setting_cannot_have_is_refused(
    kind: type[Solver], setting: str, value: object
) -> None:
    with pytest.raises(InputError, match=rf"{kind.__name__}: {setting} "):
        kind(**{setting: value})


def test_a_solver_of_ones_own_has_its_settings_checked() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(IterativeSolver):
        name = "own"
        max_iterations: int = 5
        rate: float = number(0.5, above=0, below=1)
        rule: str = choice("short", "long")
        memory: int | None = whole_number(None, least=2)

        def solve(self, problem: Problem, start: torch.Tensor | None = None) -> Solution:
            return Solution(problem.start(), Status.MAX_ITERATIONS, solver=self.name)

    assert Own() == Own(max_iterations=5, rate=0.5, rule="short", memory=None)
    # Another default leaves the check of the base class where it was.
    for setting, value in [
        ("max_iterations", -5),
        ("rate", 1.0),
        ("rule", "any"),
        ("memory", 1),
        ("max_time", -1),
    ]:
        with pytest.raises(InputError, match=f"Own: {setting} "):
            Own(**{setting: value})


def test_a_solver_with_a_constructor_of_its_own_needs_no_dataclass() -> None:
    class Plain(Solver):
        name = "plain"

        def __init__(self, steps: int = 3) -> None:
            self.steps = steps

        def solve(self, problem: Problem, start: torch.Tensor | None = None) -> Solution:
            self.steps += 1
            return Newton().solve(problem, start)

    class Nearest(ddnkit.DeclarativeNode):
        input_dims = (1,)
        solver = Plain(steps=4)

        def objective(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return (y - x).square().sum()

        def initial_point(self, x: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(x)

    x = torch.tensor([[1.0, 2.0]])
    assert torch.allclose(ddnkit.DeclarativeLayer(Nearest())(x), x)
    assert Nearest.solver.steps == 5


def test_a_deadline_passes() -> None:
    assert Deadline(0.0).passed
    assert not Deadline(1e9).passed
    assert not Deadline(None).passed
