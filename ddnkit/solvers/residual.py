"""How small is small: the sizes that ∇L = 0 and h = 0 are judged against, with first derivatives only.

With r(x, y) = ∇_y L(x, y, ν), a residual ‖r‖ is divided by how much r changes when data and solution
are perturbed by a relative amount ε, per unit of it,
    scale = ‖r(x + ε s∘x, y + ε t∘y) − r(x, y)‖ / ε,      ½ ≤ |sᵢ|, |tᵢ| ≤ 1,
so that ‖r‖/scale is a backward error: y solves exactly a problem whose data differ by about that much.
It does not depend on units, and costs one gradient a probe. The signs and sizes s, t are fixed, from
the multiples of an irrational number, so that a solve is deterministic; of several probes the largest
change counts, as a single one may by chance leave r almost as it is.

Constraints are judged alike, or against ‖A‖_F ‖y‖ if that is more, with ‖y‖ no less than a thousandth
of that at the start: h(y) = y = 0 has no scale of its own at its solution. ‖A‖_F² = E‖Aᵀv‖² for
independent vᵢ of unit variance, one backward pass a probe.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..lagrangian import lagrangian_gradient
from ..problem import Problem, flat
from .constraint_products import ConstraintProducts

_PROBES = 2
_NORM_PROBES = 3
_PART_OF_START = 1e-3
_MEASURE_EVERY = 25


class Scales:
    """Scales of both residuals of each problem of a batch, measured anew when they matter.

    A scale taken at the start may be far off at the solution. So a point that passes by the last
    measured scales is measured again before it counts.

    Attributes:
        stationarity, feasibility: (B,), what ‖∇L‖ and ‖h‖ are divided by.
        norm_of_A: (B,), ‖Dh‖_F, estimated.
    """

    def __init__(self, problem: Problem, tolerance: float) -> None:
        self.problem = problem
        self.tolerance = tolerance
        self.stationarity = self.feasibility = self.norm_of_A = torch.zeros(())
        self._start_size: Tensor | None = None

    def measure(self, y: Tensor, nu: Tensor, residual: Tensor, h: Tensor) -> None:
        """Take the scales at y (B, *y), for residual = ∇L (B, m) and h (B, p) there."""
        stationarity, feasibility = _changes(self.problem, y, nu, residual, h)
        if self._start_size is None:
            self._start_size = norm(flat(y))
        self.stationarity = stationarity
        self.norm_of_A = constraint_norm(ConstraintProducts(self.problem, y))
        size = torch.maximum(_PART_OF_START * self._start_size, norm(flat(y)))
        self.feasibility = torch.maximum(feasibility, self.norm_of_A * size)

    def refresh(self, step: int, y: Tensor, nu: Tensor, residual: Tensor, h: Tensor) -> None:
        """`measure` if it is time again: after 0, 1, 2, 4, 8, … steps and every 25."""
        if step & (step - 1) == 0 or step % _MEASURE_EVERY == 0:
            self.measure(y, nu, residual, h)

    def pass_(self, residual: Tensor, h: Tensor, slack: float = 1.0) -> Tensor:
        """Whether both residuals are within ``slack`` tolerances, by the last measured scales, (B,)."""
        return self.stationary(residual, slack) & self.feasible(h, slack)

    def stationary(self, residual: Tensor, slack: float = 1.0) -> Tensor:
        """Whether ‖∇L‖ is, (B,)."""
        return norm(residual) <= slack * self.tolerance * self.stationarity

    def feasible(self, h: Tensor, slack: float = 1.0) -> Tensor:
        """Whether ‖h‖ is, (B,)."""
        return norm(h) <= slack * self.tolerance * self.feasibility

    def excess(self, residual: Tensor, h: Tensor) -> Tensor:
        """The larger backward error over the tolerance, (B,); infinite for a residual without a scale."""
        stationarity = norm(residual) / (self.tolerance * self.stationarity)
        feasibility = norm(h) / (self.tolerance * self.feasibility)
        # 0/0 is an exact solution of a problem that nothing perturbs.
        return torch.maximum(
            torch.where(norm(residual) == 0, 0.0, stationarity),
            torch.where(norm(h) == 0, 0.0, feasibility),
        )

    def confirmed(self, y: Tensor, nu: Tensor, residual: Tensor, h: Tensor, of: Tensor) -> Tensor:
        """Those of the items ``of`` that pass, by scales measured here if there are any."""
        passed = self.pass_(residual, h) & of
        if bool(passed.any()):
            self.measure(y, nu, residual, h)
            passed = self.pass_(residual, h) & of
        return passed


def constraint_norm(products: ConstraintProducts) -> Tensor:
    """‖A‖_F of each item, estimated, (B,); 0 without constraints."""
    squares = torch.zeros_like(products.h[:, :1]).sum(dim=-1)
    for probe in range(_NORM_PROBES):
        v = _pattern(products.h.shape[1:], products.h, stream=0, probe=probe)
        mean = v.square().mean() if v.numel() else 1.0
        pulled = products.transposed(v.expand_as(products.h))
        squares = squares + pulled.square().sum(dim=-1) / mean
    return (squares / _NORM_PROBES).sqrt().nan_to_num(nan=0, posinf=0)


def norm(vector: Tensor) -> Tensor:
    """Euclidean norm along the last dimension."""
    return torch.linalg.vector_norm(vector, dim=-1)


def _changes(
    problem: Problem, y: Tensor, nu: Tensor, residual: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    step = torch.finfo(y.dtype).eps ** 0.5
    stationarity, feasibility = y.new_zeros(len(y)), y.new_zeros(len(y))
    for probe in range(_PROBES):
        inputs = [_perturbed(x, step, k + 1, probe) for k, x in enumerate(problem.inputs)]
        moved, point = problem.with_inputs(inputs), _perturbed(y, step, 0, probe)
        with torch.enable_grad():
            gradient = lagrangian_gradient(moved, point.detach().requires_grad_(), nu).detach()
        with torch.no_grad():
            h_moved = moved.all_constraints(point)
        stationarity = torch.maximum(stationarity, _change(flat(gradient), residual, step))
        feasibility = torch.maximum(
            feasibility, _change(h if h_moved is None else h_moved, h, step)
        )
    return stationarity, feasibility


def _change(moved: Tensor, here: Tensor, step: float) -> Tensor:
    # A probe that leaves the domain says nothing.
    return (norm(moved - here) / step).nan_to_num(nan=0, posinf=0)


def _perturbed(x: Any, step: float, stream: int, probe: int) -> Any:
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        return x
    x = x.detach()
    return torch.addcmul(x, x, _pattern(x.shape[1:], x, stream, probe), value=step)


def _pattern(shape: torch.Size, like: Tensor, stream: int, probe: int) -> Tensor:
    irrational = (101 * probe + 5 * stream + 2.6180339887498949) ** 0.5
    index = torch.arange(1, shape.numel() + 1, device=like.device, dtype=torch.float64)
    fraction = index * irrational % 1.0
    return torch.where(fraction < 0.5, fraction + 0.5, -fraction).to(like.dtype).reshape(shape)
