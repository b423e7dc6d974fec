"""The residuals ∇L and h by first derivatives alone: products with Dh, and how small is small.

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

Products with A = Dh and Aᵀ (`ConstraintProducts`) are what a method of O(m) memory may know of the
constraints. One backward pass gives Aᵀv. It is linear in v, so that differentiating vᵀ(A w) = (Aᵀv)ᵀw
once more, with respect to v, gives A w. Both graphs are built once and used for every product at a point.

Least-squares multipliers, min over ν of ‖∇f − Aᵀν‖², follow by conjugate gradients on A Aᵀν = A∇f in
the form CGLS, which starts from 0 and so gives the ν of least norm where A has dependent rows.

Source: Björck, *Numerical Methods for Least Squares Problems*, algorithm 7.4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..lagrangian import constraint_jacobian, lagrangian_gradient
from ..problem import Problem, flat

_PROBES = 2
_NORM_PROBES = 3
_PART_OF_START = 1e-3
_MEASURE_EVERY = 25
_LEAST_SQUARES_STEPS = 100


@dataclass(frozen=True)
class LocalModel:
    """f, h and their derivatives at one point of each problem; y flattened to m, p constraints.

    Attributes:
        value: (B,). gradient: (B, m).
        constraints: (B, p). jacobian: (B, p, m).
    """

    value: Tensor
    gradient: Tensor
    constraints: Tensor
    jacobian: Tensor

    @property
    def finite(self) -> Tensor:
        """Whether all of it is, (B,)."""
        finite = self.value.isfinite() & self.gradient.isfinite().all(dim=-1)
        finite = finite & self.constraints.isfinite().all(dim=-1)
        return finite & self.jacobian.isfinite().flatten(1).all(dim=-1)


def local_model(problem: Problem, y: Tensor) -> LocalModel:
    """Evaluate f, ∇f, h and Dh at y of shape (B, *y)."""
    value, gradient = problem.value_and_gradient(y)
    return LocalModel(value, flat(gradient), *linear_constraints(problem, y))


def linear_constraints(problem: Problem, y: Tensor) -> tuple[Tensor, Tensor]:
    """h (B, p) and Dh (B, p, m) at y (B, *y); p = 0 without constraints."""
    jacobian = constraint_jacobian(problem, y)
    if jacobian is None:
        jacobian = y.new_zeros(len(y), 0, y.shape[1:].numel())
    with torch.no_grad():
        return constraint_values(problem, y), jacobian


def constraint_values(problem: Problem, y: Tensor) -> Tensor:
    """h (B, p) at y (B, *y); p = 0 without constraints. With a graph in grad mode."""
    h = problem.all_constraints(y)
    return flat(y)[:, :0] if h is None else h


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

    def within(self, residual: Tensor, h: Tensor, slack: float = 1.0) -> Tensor:
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

    def confirm(self, y: Tensor, nu: Tensor, residual: Tensor, h: Tensor, of: Tensor) -> Tensor:
        """Those of the items ``of`` that pass, by scales measured here if there are any."""
        passed = self.within(residual, h) & of
        if bool(passed.any()):
            self.measure(y, nu, residual, h)
            passed = self.within(residual, h) & of
        return passed


def constraint_norm(products: ConstraintProducts) -> Tensor:
    """‖A‖_F of each item, estimated, (B,); 0 without constraints."""
    squares = torch.zeros_like(products.h[:, :1]).sum(dim=-1)
    for probe in range(_NORM_PROBES):
        v = _pattern(products.h.shape[1:], products.h, stream=0, probe=probe)
        mean = v.square().mean() if v.numel() else 1.0
        pulled = products.transpose_times(v.expand_as(products.h))
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
        inputs = [_perturb(x, step, k + 1, probe) for k, x in enumerate(problem.inputs)]
        moved, point = problem.with_inputs(inputs), _perturb(y, step, 0, probe)
        with torch.enable_grad():
            gradient = lagrangian_gradient(moved, point.detach().requires_grad_(), nu).detach()
        with torch.no_grad():
            h_moved = constraint_values(moved, point)
        stationarity = torch.maximum(stationarity, _change(flat(gradient), residual, step))
        feasibility = torch.maximum(feasibility, _change(h_moved, h, step))
    return stationarity, feasibility


def _change(moved: Tensor, here: Tensor, step: float) -> Tensor:
    # A probe that leaves the domain says nothing.
    return (norm(moved - here) / step).nan_to_num(nan=0, posinf=0)


def _perturb(x: Any, step: float, stream: int, probe: int) -> Any:
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        return x
    x = x.detach()
    return torch.addcmul(x, x, _pattern(x.shape[1:], x, stream, probe), value=step)


def _pattern(shape: torch.Size, like: Tensor, stream: int, probe: int) -> Tensor:
    irrational = (101 * probe + 5 * stream + 2.6180339887498949) ** 0.5
    index = torch.arange(1, shape.numel() + 1, device=like.device, dtype=torch.float64)
    fraction = index * irrational % 1.0
    return torch.where(fraction < 0.5, fraction + 0.5, -fraction).to(like.dtype).reshape(shape)


class ConstraintProducts:
    """A of each item at y (B, *y), as a pair of products.

    Attributes:
        h: (B, p), the constraints there.
    """

    def __init__(self, problem: Problem, y: Tensor) -> None:
        with torch.enable_grad():
            self._y = y.detach().requires_grad_()
            self._h = constraint_values(problem, self._y)
            self._v = torch.zeros_like(self._h, requires_grad=True)
            self._pullback = self._pull(self._v, create_graph=True)
        self.h = self._h.detach()

    def transpose_times(self, v: Tensor) -> Tensor:
        """Aᵀv, (B, m), for v (B, p)."""
        return flat(self._pull(v))

    def times(self, w: Tensor) -> Tensor:
        """A w, (B, p), for w (B, m)."""
        if not self._pullback.requires_grad:
            return torch.zeros_like(self.h)
        (product,) = torch.autograd.grad(
            self._pullback, self._v, w.reshape(self._y.shape), retain_graph=True, allow_unused=True
        )
        return torch.zeros_like(self.h) if product is None else product

    def least_squares(self, gradient: Tensor) -> Tensor:
        """The ν (B, p) of least norm that minimises ‖∇f − Aᵀν‖ for the gradient (B, m)."""
        residual = gradient
        nu = torch.zeros_like(self.h)
        s = direction = self.times(residual)
        square = s.square().sum(dim=-1)
        target = square * torch.finfo(s.dtype).eps ** 2
        for _ in range(min(_LEAST_SQUARES_STEPS, 2 * s.shape[1])):
            going = square > target
            if not bool(going.any()):
                break
            q = self.transpose_times(direction)
            length = torch.where(going, square / q.square().sum(dim=-1), 0.0).unsqueeze(-1)
            nu, residual = nu + length * direction, residual - length * q
            s, before = self.times(residual), square
            square = s.square().sum(dim=-1)
            direction = s + torch.where(going, square / before, 0.0).unsqueeze(-1) * direction
        return nu.nan_to_num(nan=0, posinf=0, neginf=0)

    def _pull(self, v: Tensor, create_graph: bool = False) -> Tensor:
        if not self._h.requires_grad or self._h.numel() == 0:
            return torch.zeros_like(self._y)
        (product,) = torch.autograd.grad(
            self._h, self._y, v, create_graph=create_graph, retain_graph=True, allow_unused=True
        )
        return torch.zeros_like(self._y) if product is None else product
