"""Fixed-point iteration with Anderson's mixing: where it ends, and with what status."""

import pytest
import torch

from ddnkit import DeclarativeLayer, DeclarativeNode, FixedPointNode, InputError, Problem, Status
from ddnkit.solvers import Picard


class Linear(FixedPointNode):
    """y = A y + x."""

    input_dims = (2, 1)

    def fixed_point(self, A, x, y):
        return A @ y + x

    def initial_point(self, A, x):
        return torch.zeros_like(x)


def matrix(radius, m=6, dtype=torch.float64):
    A = torch.randn(m, m, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (radius * A / torch.linalg.eigvals(A).abs().max()).to(dtype)


def problem(*matrices):
    A = torch.stack(matrices)
    return Problem(Linear(), [A, torch.ones(A.shape[:2], dtype=A.dtype)], len(A))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reaches_the_fixed_point(dtype):
    batch = problem(matrix(0.3, dtype=dtype), matrix(0.95, dtype=dtype))
    solution = Picard().solve(batch)
    A, x = batch.inputs
    expected = torch.linalg.solve(torch.eye(6, dtype=dtype) - A, x)
    assert solution.statuses() == [Status.CONVERGED] * 2
    error = (solution.y - expected).norm() / expected.norm()
    # Its tolerance on ‖T(y) − y‖, twice as y and T(y) are counted, times ‖(I − A)⁻¹‖.
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    inverse = torch.linalg.inv(torch.eye(6, dtype=dtype) - A)
    assert error < 2 * tolerance * torch.linalg.matrix_norm(inverse, 2).max()


def test_mixing_saves_iterations():
    plain = Picard(memory=0).solve(problem(matrix(0.95)))
    mixed = Picard().solve(problem(matrix(0.95)))
    assert plain.statuses() == mixed.statuses() == [Status.CONVERGED]
    # Plain, 0.95ᵏ is 1e-12 after 540; mixed, of six unknowns, a few times six.
    assert mixed.iterations < plain.iterations / 4


def test_a_warm_start_is_used():
    batch = problem(matrix(0.9))
    solution = Picard().solve(batch)
    assert Picard().solve(batch, solution.y).iterations <= 1


def test_statuses_of_what_does_not_converge():
    assert Picard(max_iterations=3).solve(problem(matrix(0.9))).statuses() == [
        Status.MAX_ITERATIONS
    ]
    assert Picard(max_time=0.0).solve(problem(matrix(0.9))).statuses() == [Status.TIME_LIMIT]
    diverging = Picard(memory=0).solve(problem(matrix(3.0), matrix(0.5)))
    assert diverging.statuses() == [Status.UNBOUNDED, Status.CONVERGED]
    broken = Picard().solve(problem(matrix(0.5) * torch.nan, matrix(0.5)))
    assert broken.statuses() == [Status.NON_FINITE, Status.CONVERGED]

    class Flips(Linear):
        def fixed_point(self, A, x, y):
            return 1 - y.sign() + 0 * x

    stalled = Picard(memory=0).solve(Problem(Flips(), problem(matrix(0.5)).inputs, 1))
    assert stalled.statuses() == [Status.STALLED]


def test_a_node_without_a_map_is_declined():
    class Plain(DeclarativeNode):
        solver = "picard"

        def objective(self, x, y):
            return ((y - x) ** 2).sum()

        def initial_point(self, x):
            return x.clone()

    with pytest.raises(InputError, match="`fixed_point`"):
        DeclarativeLayer(Plain())(torch.ones(3))
