"""Low-rank completion as a node: matrices of which a part of the entries is known, and learning through it.

Of a matrix C (m, n) of rank r entries A are observed, with weights w_ij ≥ 0 that are 0 where there is none:

    X = argmin ½ Σ w_ij (X_ij − A_ij)² + ½ρ‖X‖_F²  over the matrices of rank r,

on the manifold `FixedRank`, whose points are balanced factors of X.

*How many entries it takes.* A matrix of rank r has r(m + n − r) degrees of freedom; with a smaller share of
the mn entries than that over mn no method can find it. Near it the problem has minima that are not C; from a
large ridge down, each solution the start of the next, fewer end there.

*Learning.* Row i is measured by a sensor with a noise σ_i that nobody knows. The best weights of its entries
are near 1/σ_i². The node is differentiable, so that they are learned, with ρ, by gradient descent on

    Σ (X_ij(w, ρ) − A_ij)²  over observed entries that X has not seen:

m + 1 unknowns, where a grid is for one or two. What is reported is the error on the remaining entries,
against C itself. An instance without a sound gradient is left out of a step by the policy "mask", and
counted.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ddnkit_manifolds import FixedRank
from torch import Generator, Tensor

from ddnkit import DeclarativeLayer, DeclarativeNode, Job

from .low_rank_completion_report import METHODS, RECOVERY, RIDGES, SENSORS
from .settings import LowRankCompletion

_SMOKE = {"steps": 2, "descent": 20, "draws": 2, "size": 8, "sensors": 8, "matrices": 2, "rank": 1}
#: Of recovery: so small that X is C where C is determined, and large enough for a minimum elsewhere.
_RIDGE = 1e-4
#: A large ridge has a plain solution, which each smaller one begins at.
_PATH = (1.0, 1e-1, 1e-2, 1e-3, _RIDGE)
#: Of steps of gradient descent on unconstrained factors, as parts of the usual bound.
_LENGTHS = (0.25, 0.5, 1.0)
#: Of ridges, from a large one, whose solution is plain, to small ones.
_GRID = (1.0, -3.0, 13)
_QUIETEST, _LOUDEST = 0.05, 2.0


class Completion(DeclarativeNode):
    """The matrix of the given rank next to observed entries; A (m, n), w (m, n), ρ.

    Args:
        rows: m. rank: r.
    """

    input_dims = (2, 2, 0)
    manifold: FixedRank

    def __init__(self, rows: int, rank: int):
        self.manifold = FixedRank(rows, rank)

    def objective(self, A: Tensor, w: Tensor, ridge: Tensor, y: Tensor) -> Tensor:
        """½ Σ w (X − A)² + ½ρ‖X‖²."""
        X = self.manifold.matrix(y)
        return (w * (X - A).square()).sum() / 2 + ridge * X.square().sum() / 2

    def initial_point(self, A: Tensor, w: Tensor, ridge: Tensor) -> Tensor:
        """The best approximation of A, with zeros for what was not observed, over the share that was."""
        known = w > 0
        assert self.manifold.rank is not None  # it was given
        return self.manifold.of_matrix(
            torch.where(known, A, 0) * known.numel() / known.sum(), self.manifold.rank
        )

    def sample_inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy observations of three quarters of a matrix."""
        rows, rank = self.manifold.rows, self.manifold.rank or 1
        A = low_rank((rows, rows + 1), rank) + 0.1 * torch.randn(
            rows, rows + 1, dtype=torch.float64
        )
        w = 0.5 + torch.rand_like(A)
        return A, torch.where(torch.rand_like(A) < 0.75, w, 0), 0.1 + torch.rand_like(A[0, 0])


def low_rank(shape: Sequence[int], rank: int, generator: Generator | None = None) -> Tensor:
    """Random matrices (..., m, n) of that rank, with entries of variance one, in float64."""
    *batch, m, n = shape
    L = torch.randn(*batch, m, rank, generator=generator, dtype=torch.float64)
    R = torch.randn(*batch, n, rank, generator=generator, dtype=torch.float64)
    return L @ R.mT / rank**0.5


def filled_with_means(A: Tensor, known: Tensor) -> Tensor:
    """Observed row means plus column means less the mean, wherever nothing was observed."""
    count = known.sum(dim=(-2, -1), keepdim=True).clamp_min(1)
    A = torch.where(known, A, 0)
    mean = A.sum(dim=(-2, -1), keepdim=True) / count
    row = A.sum(dim=-1, keepdim=True) / known.sum(dim=-1, keepdim=True).clamp_min(1)
    column = A.sum(dim=-2, keepdim=True) / known.sum(dim=-2, keepdim=True).clamp_min(1)
    return torch.where(known, A, row + column - mean)


def by_descent(node: Completion, A: Tensor, known: Tensor, steps: int) -> Tensor:
    """X after gradient descent on L and R, without constraint, from the node's start; of several step
    lengths the one that leaves the smaller objective is taken, matrix by matrix."""
    ridge = torch.tensor(_RIDGE, dtype=A.dtype, device=A.device)
    w = known.to(A.dtype)
    value = torch.vmap(node.objective, in_dims=(0, 0, None, 0))
    start = torch.stack([node.initial_point(*one, ridge) for one in zip(A, w, strict=True)])
    best, lowest = start, value(A, w, ridge, start)
    # ‖L‖² bounds the curvature along R, and the other way round.
    bound = 2 * torch.linalg.matrix_norm(node.manifold.factors(start)[0], 2).square()
    for part in _LENGTHS:
        L, R = node.manifold.factors(start)
        length = (part / bound)[:, None, None]
        for _ in range(steps):
            X = L @ R.mT
            slope = w * (X - A) + ridge * X
            L, R = L - length * (slope @ R), R - length * (slope.mT @ L)
        y = torch.cat([L, R], dim=-2)
        found = value(A, w, ridge, y)
        better = found < lowest  # NaN is below nothing
        best = torch.where(better[:, None, None], y, best)
        lowest = torch.where(better, found, lowest)
    return node.manifold.matrix(best)


def complete(settings: LowRankCompletion, job: Job) -> None:
    """One job: `LowRankCompletion.run`."""
    if job.smoke:
        small = {key: min(value, getattr(settings, key)) for key, value in _SMOKE.items()}
        settings = settings.model_copy(update={**small, "shares": settings.shares[-2:]})
    # All draws on the CPU, so that the same seed draws the same on every device.
    generator = torch.Generator().manual_seed(job.seed)
    work = len(settings.shares) + settings.steps + 1
    recovery = []
    for done, share in enumerate(settings.shares):
        recovery += _recover(settings, share, generator, job.device)
        job.progress(done + 1, work, {"share": share})
    problem = _Sensors(settings, generator, job.device)
    learners = [_Learner(problem, settings, alone=alone) for alone in (False, True)]
    for step in range(settings.steps + 1):
        both, alone = (learner.step() for learner in learners)
        job.record(
            {"epoch": step, "step": step, **both, "of_ridge": alone["test"], "at": alone["ridge"]}
        )
        job.progress(len(settings.shares) + step + 1, work, both)
    if job.rank == 0:
        _write(job.folder / RECOVERY, recovery)
        _write(job.folder / RIDGES, problem.over_ridges())
        weights = learners[0].weights.tolist()
        _write(
            job.folder / SENSORS,
            [
                {"noise": noise, "weight": weight}
                for noise, weight in zip(problem.noise.tolist(), weights, strict=True)
            ],
        )


def _recover(
    settings: LowRankCompletion, share: float, generator: Generator, device: str
) -> list[dict[str, Any]]:
    """Relative errors of matrices of which that share of the entries is known, by method."""
    shape = (settings.draws, settings.size, settings.size)
    C = low_rank(shape, settings.rank, generator).to(device)
    known = (torch.rand(shape, generator=generator) < share).to(device)
    node = Completion(settings.size, settings.rank)
    layer, w = DeclarativeLayer(node, policy="mask"), known.to(C.dtype)
    y = None
    with torch.no_grad():
        for ridge in _PATH:
            y = layer(C, w, C.new_tensor(ridge), start=y)
        ways = [y, layer(C, w, C.new_tensor(_RIDGE))]
    found = [*map(node.manifold.matrix, ways), by_descent(node, C, known, settings.descent)]
    found.append(filled_with_means(C, known))
    norm = torch.linalg.matrix_norm
    errors = [(norm(X - C) / norm(C)).tolist() for X in found]
    return [
        {"share": share, "draw": draw, **dict(zip(METHODS, row, strict=True))}
        for draw, row in enumerate(zip(*errors, strict=True))
    ]


class _Sensors:
    """Matrices whose rows are measured with unlike noise, by the same sensors.

    Attributes:
        noise: σ, (m,). node, layer: which complete them.
    """

    def __init__(self, settings: LowRankCompletion, generator: Generator, device: str):
        m = settings.sensors
        shape = (settings.matrices, m, m)
        place = torch.linspace(0, 1, m, dtype=torch.float64, device=device)
        self.noise = _QUIETEST * (_LOUDEST / _QUIETEST) ** place
        self.truth = low_rank(shape, settings.rank, generator).to(device)
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64).to(device)
        self.observed = self.truth + self.noise.unsqueeze(-1) * drawn
        part = torch.rand(shape, generator=generator).to(device)
        observed, held_out = settings.observed, settings.observed + settings.held_out
        self.known = part < observed
        self.held_out = (part >= observed) & (part < held_out)
        self.unseen = part >= held_out
        self.node = Completion(m, settings.rank)
        self.layer = DeclarativeLayer(self.node, policy="mask")

    def factors(self, weights: Tensor, ridge: Tensor, start: Tensor | None) -> Tensor:
        """Those of X (B, 2m, r) for weights (m,) of the sensors, from those of other weights."""
        w = torch.where(self.known, weights.unsqueeze(-1), 0.0)
        A = torch.where(self.known, self.observed, 0.0)
        found: Tensor = self.layer(A, w, ridge, start=start)
        return found

    def held_out_error(self, y: Tensor) -> Tensor:
        """Mean squared difference of X from what was held out."""
        X = self.node.manifold.matrix(y)
        return (X - self.observed)[self.held_out].square().mean()

    def test_error(self, y: Tensor) -> float:
        """‖X − C‖/‖C‖ over the entries that nobody has seen."""
        X = self.node.manifold.matrix(y.detach())
        off, of = (X - self.truth)[self.unseen], self.truth[self.unseen]
        return float(off.norm() / of.norm())

    def over_ridges(self) -> list[dict[str, float]]:
        """Errors over a grid of ridges, with equal weights and with those of the known noise."""
        exact = self.noise**-2 / self.noise.log().mean().exp() ** -2
        ridges = torch.logspace(*_GRID, dtype=torch.float64, device=self.noise.device)
        rows = [{"ridge": ridge} for ridge in ridges.tolist()]
        for name, weights in (("equal", torch.ones_like(exact)), ("exact", exact)):
            y = None
            for row, ridge in zip(rows, ridges, strict=True):
                with torch.no_grad():
                    y = self.factors(weights, ridge, y)
                row[f"{name}_held_out"] = float(self.held_out_error(y))
                row[f"{name}_test"] = self.test_error(y)
        return rows


class _Learner:
    """Gradient descent on the held-out error in log ρ, and in the logarithms of the weights."""

    def __init__(self, problem: _Sensors, settings: LowRankCompletion, *, alone: bool):
        self.problem = problem
        self._logarithms = torch.zeros_like(problem.noise, requires_grad=not alone)
        self._ridge = torch.zeros_like(problem.noise[0], requires_grad=True)
        learned = [self._ridge] if alone else [self._ridge, self._logarithms]
        self._optimizer = torch.optim.Adam(learned, settings.rate)
        # Each solve begins at the solution of the last one: it takes few steps, and stays at its minimum.
        self._last: Tensor | None = None

    @property
    def weights(self) -> Tensor:
        """With a geometric mean of one."""
        logarithms = self._logarithms.detach()
        return (logarithms - logarithms.mean()).exp()

    def step(self) -> dict[str, float]:
        """Figures of where it is, and one step from there."""
        y = self.problem.factors(self._logarithms.exp(), self._ridge.exp(), self._last)
        self._last = y.detach()
        loss = self.problem.held_out_error(y)
        self._optimizer.zero_grad()
        loss.backward()
        certificate = self.problem.layer.certificate
        assert certificate is not None  # after a call
        figures = {
            "held_out": float(loss.detach()),
            "test": self.problem.test_error(y),
            "ridge": float(self._ridge.detach().exp()),
            "masked": len(y) - certificate.verdicts().count("trusted"),
        }
        self._optimizer.step()
        return figures


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
