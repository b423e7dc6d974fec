"""How far two right results may be apart on any processor: the bounds that the tests hold.

A bound of a test is one of three.

* Of rounding: a multiple of the unit roundoff u times a size that the mathematics gives. It is made by
  a function of this module, or stands as `torch.testing.assert_close` takes it without a tolerance:
  1e-7 in float64, 10⁸ roundings more than any well-posed calculation of a few hundred terms makes; in
  float32 1e-5 + 1.3e-6 |x|, the rounding of a sum of 80 terms of size one.
* Of a reference: the same figure, computed another way in the same run.
* Of a promise: a tolerance that the docs or a docstring give to users. A solver's tolerance is a
  backward error of what it solves, `TOLERANCE` of `ddnkit.certificate` that of a layer; the solution
  inherits it times the condition of the problem, an objective at its minimum the square of that.

A figure that one machine gave is none of them. `pytest --rounding SEED` shows which is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.functional import hessian, jacobian

from ddnkit import DeclarativeNode, Problem


def rounding(
    like: Tensor | torch.dtype, terms: float = 1, *, size: float = 1, condition: float = 1
) -> float:
    """What two sums of so many ``terms``, each in any order, may differ by.

    A sum of n terms is off by at most (n − 1) u Σ|t| to first order, in any order (Higham, *Accuracy
    and Stability of Numerical Algorithms*, section 4.2), and so is an inner product by n u Σ|aᵢbᵢ|; a
    difference of two by twice that, which is eps = 2u times n. In the mean square √n takes the place
    of n, so that n leaves much to spare for what else is computed in a few operations each.

    Args:
        like: in whose precision.
        size: Σ|t|, or what bounds it.
        condition: what an error of the data grows by on its way into the result.
    """
    return eps(like) * terms * size * condition


def factorised(
    like: Tensor | torch.dtype, n: int, *, size: float = 1, condition: float = 1
) -> float:
    """What a factorisation of order ``n``, or a solve by one, may be off by.

    LAPACK's own tests let ‖A − QR‖/‖A‖ and ‖QᵀQ − I‖, and those of its other factorisations, be 30
    times n eps: it is backward stable with that constant, on whatever processor it passed them.

    Args:
        size: of what is measured; 1 for an orthogonal factor.
        condition: of what is solved for: an inverse, a singular vector, a polar factor.
    """
    return 30 * n * eps(like) * size * condition


def infeasibility(like: Tensor | torch.dtype, d: int, columns: int) -> float:
    """What ‖UᵀU − I‖_F/√C may be of a d × C matrix that is orthonormal but for its rounding.

    For an exact frame plus an error E, ‖UᵀE + EᵀU‖_F ≤ 2‖E‖_F, and ‖U‖_F = √C. In units of u:

    * 6, as U is rounded: |E| ≤ u|U| gives 2, and so does each factor, where it is a product P Vᵀ;
    * √(2C), as that product has C terms. Its rounding is in the mean square u² C (S²/3 + Σt²/6) for
      an entry S = Σt (`rounding.py` in this folder), and over all entries ΣS² = C and ΣΣt² = C:
      ‖E‖_F = u C/√2;
    * √(d/2), as UᵀU is computed, in sums of d terms: u² d (S²/3 + Σt²/6) for an entry, where ΣS² = C
      and ΣΣt² is the sum of the rows' fourth powers, at most C as well.
    """
    return eps(like) / 2 * (6 + (2 * columns) ** 0.5 + (d / 2) ** 0.5)


class Solved(NamedTuple):
    """What a solver may leave, for each item (B,)."""

    y: Tensor
    stationarity: Tensor
    feasibility: Tensor


def solved(problem: Problem, y: Tensor, tolerance: float) -> Solved:
    """What a solver of that backward error may leave of ‖δy‖, ‖∇L‖ and ‖h‖ at the solutions ``y``.

    It promises ‖∇L‖ ≤ ε s and ‖h‖ ≤ ε t, with s and t what ∇L and h change by in a relative change of
    data and solution of size 1, entry by entry (docs/solvers.md); t is no less than ‖D_y h‖ times the
    size of y, or a thousandth of that of the start. To first order

        [G  Aᵀ] [  δy ]   [∇L]
        [A  0 ] [−δν  ] = [h ],   G = D²_yy L, A = D_y h,

    whatever multipliers the solver has, so that ‖(δy, δν)‖ ≤ ‖K⁺‖ ε ‖(s, t)‖: K⁺ leaves out what
    dependent constraints leave open, of multipliers alone. Twice that holds the second order too.
    """
    found = [_solved(problem.item(i), problem.node, y[i], tolerance) for i in range(len(y))]
    return Solved(*(torch.tensor(bounds) for bounds in zip(*found, strict=True)))


def _solved(
    inputs: tuple[object, ...], node: DeclarativeNode, y: Tensor, tolerance: float
) -> tuple[float, float, float]:
    xs = [x.detach().double() if _is_real(x) else x for x in inputs]
    real = [k for k, x in enumerate(xs) if _is_real(x)]
    base = Problem.single(node, xs)
    start = float(base.start().norm())

    def at(given: tuple[Tensor, ...]) -> Problem:
        now = list(base.inputs)
        for k, x in zip(real, given, strict=True):
            now[k] = x[None]
        return base.with_inputs(now)

    def f(y: Tensor, *given: Tensor) -> Tensor:
        return at(given).objective(y[None])[0]

    def h(y: Tensor, *given: Tensor) -> Tensor:
        values = at(given).all_constraints(y[None])
        return y.sum()[None] * 0 if values is None else values[0]  # one that holds everywhere

    data = (y.detach().double(), *(xs[k] for k in real))
    slopes = [D.detach().reshape(len(D), -1) for D in jacobian(h, data)]
    A, gradient = slopes[0], torch.func.grad(f)(*data).detach().reshape(-1)
    nu = torch.linalg.pinv(A.T) @ gradient
    curves = [
        block.detach().reshape(y.numel(), -1)
        for block in hessian(lambda *data: f(*data) - nu @ h(*data), data)[0]
    ]
    sizes = [float(part.norm()) for part in data]
    s = sum(float(D.norm()) * size for D, size in zip(curves, sizes, strict=True))
    t = sum(float(D.norm()) * size for D, size in zip(slopes, sizes, strict=True))
    t = max(t, float(A.norm()) * len(A) ** 0.5 * max(sizes[0], 1e-3 * start))
    inverse = 1 / _sizes(curves[0], A)[1]
    return 2 * tolerance * inverse * math.hypot(s, t), 2 * tolerance * s, 2 * tolerance * t


def system_condition(node: DeclarativeNode, inputs: Sequence[Tensor], y: Tensor) -> float:
    """‖K‖‖K⁺‖ of the matrix of `solved` at the solution ``y`` of one problem.

    The relative error of a right side, or of the matrix, grows by no more than that on its way into a
    solution, and so into a derivative, which is one. That of a derivative of order n is the right side
    of the n + 1st: it grows by one factor more with each order.
    """
    problem = Problem.single(node, [x.detach().double() if _is_real(x) else x for x in inputs])
    y = y.detach().double()

    def f(y: Tensor) -> Tensor:
        return problem.objective(y[None])[0]

    def h(y: Tensor) -> Tensor:
        values = problem.all_constraints(y[None])
        return y.sum()[None] * 0 if values is None else values[0]

    A = jacobian(h, y).reshape(-1, y.numel())
    nu = torch.linalg.pinv(A.T) @ torch.func.grad(f)(y).reshape(-1)
    largest, least = _sizes(hessian(lambda y: f(y) - nu @ h(y), y).reshape(y.numel(), -1), A)
    return largest / least


def _sizes(G: Tensor, A: Tensor) -> tuple[float, float]:
    """Largest and least singular value of the KKT matrix, without what dependent rows make 0."""
    zero = A.new_zeros(len(A), len(A))
    K = torch.cat([torch.cat([G, A.T], dim=1), torch.cat([A, zero], dim=1)])
    values = torch.linalg.svdvals(K)
    return float(values[0]), float(values[values > 1e-10 * values[0]][-1])


def _is_real(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def condition(A: Tensor) -> float:
    """Largest singular value over the least, the worst of a batch's."""
    s = torch.linalg.svdvals(A.detach().double())
    return float((s[..., 0] / s[..., -1]).max())


def eps(like: Tensor | torch.dtype) -> float:
    """Twice the unit roundoff: 2.2e-16 in float64, 1.2e-7 in float32."""
    return torch.finfo(like if isinstance(like, torch.dtype) else like.dtype).eps
