"""What is wrong with a hand-written adjoint, recognised by what it returned instead.

The gradient for an input θ is Bᵀz + Cᵀμ with z = (P G P)⁺ P(−v) and B = D_θ ∇_y L. Small problems allow
B, G, P and the Jacobian J = dy/dθ as matrices, and with them the usual mistakes can be made on purpose:
    J v instead of Jᵀ v, B z instead of Bᵀ z       a transposed matrix,
    z = G⁻¹(−v)                                    the constraints left out,
    z = P(−v)                                      the Hessian left out,
each up to a factor. A match to three digits in all entries is no accident.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..backward.dense import Dense
from ..backward.tangent_operator import Projector, hessian_operator, matrix_of
from ..lagrangian import constraint_set, stationarity
from ..problem import flat
from .findings import Cause
from .gradients import backward, differentiable, end_to_end
from .report import Diagnosis
from .subject import SolvedBatch, Subject

#: Entries of B up to which it is assembled.
_MOST_ENTRIES = 65_536
_CLOSE = 1e-3

# What is wrong with the adjoint, in words that go on after its name.
_TRANSPOSED = Cause(
    Diagnosis.ADJOINT_MATRIX_TRANSPOSED,
    "a matrix in it is transposed: it multiplies with the Jacobian dy/dx, not with its transpose",
    "transpose the Hessian or the matrix that it solves with: the backward pass needs (dy/dx)ᵀ v",
)
_CROSS_TRANSPOSED = Cause(
    Diagnosis.ADJOINT_CROSS_TRANSPOSED,
    "its cross-derivative D²_xy L is transposed",
    "transpose the matrix of mixed second derivatives: the gradient is (D_x ∇_y L)ᵀ z",
)
_NO_CONSTRAINTS = Cause(
    Diagnosis.ADJOINT_WITHOUT_CONSTRAINTS,
    "it leaves out the constraints",
    "project v on the tangent space of the constraints, or solve the KKT system",
)
_NO_HESSIAN = Cause(
    Diagnosis.ADJOINT_WITHOUT_HESSIAN,
    "it leaves out the Hessian",
    "solve with the Hessian of the Lagrangian in y before the cross-derivative is applied",
)


def recognise(
    subject: Subject,
    xs: Sequence[object],
    solved: SolvedBatch,
    v: Tensor,
    own: Sequence[Tensor],
    expected: Sequence[Tensor],
) -> Cause:
    """The mistake that takes ``expected`` to ``own``, one gradient a differentiable input; v (B, m)."""
    factor, rest = _fit(end_to_end(own), end_to_end(expected))
    if rest < _CLOSE and abs(factor) > 1e-6:
        return _wrong_factor(factor)
    forgotten = _zero_gradients(own, expected)
    if forgotten:
        names = _input_names(xs, forgotten)
        return Cause(
            Diagnosis.ADJOINT_FORGETS_INPUT,
            f"forgotten input, its gradient for {names} is zero although the solution depends on it",
            f"differentiate ∇_y L with respect to {names} as well",
        )
    wrong = [k for k, (g, e) in enumerate(zip(own, expected, strict=True)) if _differs(g, e)]
    transposed = [k for k in wrong if own[k].ndim >= 2 and _is_transposed(own[k], expected[k])]
    if transposed:
        names = _input_names(xs, transposed)
        return Cause(
            Diagnosis.ADJOINT_GRADIENT_TRANSPOSED,
            f"its gradient for {names} is transposed",
            f"return the transpose for {names}: z yᵀ and y zᵀ are easily confused",
        )
    mistake = _matrix_mistake(subject, xs, solved, v, own, wrong)
    if mistake is not None:
        return mistake
    where = "" if len(wrong) == len(own) else f" for {_input_names(xs, wrong)}"
    return Cause(
        Diagnosis.ADJOINT_WRONG,
        f"it differs from the implicit function theorem by {rest:.1e}{where}",
        "compare it with backward='dense', input by input; without an adjoint 'auto' uses a general form",
    )


def _input_names(xs: Sequence[object], which: Sequence[int]) -> str:
    wrt = list(differentiable(xs))
    names = ", ".join(str(wrt[k]) for k in which)
    return f"input{'s' if len(which) > 1 else ''} {names}"


def _wrong_factor(factor: float) -> Cause:
    if abs(factor + 1) < _CLOSE:
        return Cause(
            Diagnosis.ADJOINT_SIGN,
            "its sign is wrong: it is off by a factor of -1",
            "return the negative; dy/dx = −G⁻¹B has a minus sign that is easily lost",
        )
    return Cause(
        Diagnosis.ADJOINT_FACTOR,
        f"it is off by a factor of {factor:.4g} (its direction is right)",
        f"divide it by {factor:.4g}; look for a constant that was lost or counted twice, such as the "
        "2 of a square or a mean in place of a sum",
    )


def _zero_gradients(own: Sequence[Tensor], expected: Sequence[Tensor]) -> list[int]:
    largest = max(float(e.norm()) for e in expected)
    return [
        k
        for k, (g, e) in enumerate(zip(own, expected, strict=True))
        if float(g.norm()) <= 1e-12 * largest and float(e.norm()) > 1e-6 * largest
    ]


def _is_transposed(own: Tensor, expected: Tensor) -> bool:
    return own.shape[-1] == own.shape[-2] and _matches(own.mT, expected)


def _matrix_mistake(
    subject: Subject,
    xs: Sequence[object],
    solved: SolvedBatch,
    v: Tensor,
    own: Sequence[Tensor],
    wrong: Sequence[int],
) -> Cause | None:
    """A mistake in the linear algebra, for one problem small enough to have it as matrices."""
    problem, y = solved.problem, solved.solution.y
    m = v.shape[-1]
    entries = m * max(sum(g.numel() for g in own), m)
    if problem.batch_size != 1 or entries > _MOST_ENTRIES:
        return None
    constraints = constraint_set(problem, y)
    nu = constraints.multipliers(constraints.gradient())
    G = matrix_of(hessian_operator(problem, y, nu), flat(y))[0]
    P = matrix_of(Projector(problem, y), flat(y))[0]
    z, z_without_constraints = _pinv(P @ G @ P) @ -v[0], _pinv(G) @ -v[0]
    floating = [k for k, x in enumerate(problem.operands) if x.is_floating_point()]
    B = {k: _cross_derivative(solved, nu, floating[k]) for k in wrong}
    J = _jacobians(subject, xs, solved, m)

    def is_own(value: Callable[[int], Tensor], which: Sequence[int]) -> bool:
        return bool(which) and all(_matches(own[k].reshape(-1), value(k)) for k in which)

    square = [k for k in wrong if own[k].numel() == m]
    if any(is_own(lambda k: J[k] @ v[0], [k]) for k in square):
        return _TRANSPOSED
    if any(is_own(lambda k: B[k] @ z, [k]) for k in square):
        return _CROSS_TRANSPOSED
    if is_own(lambda k: B[k].mT @ z_without_constraints, wrong):
        return _NO_CONSTRAINTS
    if is_own(lambda k: B[k].mT @ (P @ v[0]), wrong):
        return _NO_HESSIAN
    return None


def _pinv(symmetric: Tensor) -> Tensor:
    return torch.linalg.pinv(symmetric, hermitian=True, rtol=1e-12)


def _cross_derivative(solved: SolvedBatch, nu: Tensor, operand: int) -> Tensor:
    """B = D_θ ∇_y L, (m, n)."""
    problem, y = solved.problem, solved.solution.y
    operands = problem.operands

    def gradient(theta: Tensor) -> Tensor:
        moved = list(operands)
        moved[operand] = theta
        return stationarity(problem.with_operands(moved), y, nu)[0]

    B: Tensor = torch.func.jacrev(gradient)(operands[operand])
    return B.reshape(B.shape[0], -1)


def _jacobians(subject: Subject, xs: Sequence[object], solved: SolvedBatch, m: int) -> list[Tensor]:
    """J = dy/dθ, (m, n) each, by the reference form."""
    rows = [
        backward(subject, Dense(), xs, solved, e.unsqueeze(0))[0]
        for e in torch.eye(m, dtype=solved.y.dtype, device=solved.y.device)
    ]
    return [torch.stack([row.reshape(-1) for row in column]) for column in zip(*rows, strict=True)]


def _fit(own: Tensor, expected: Tensor) -> tuple[float, float]:
    """The factor that takes ``expected`` nearest to ``own``, and what is left, relative."""
    size = expected.norm()
    if not bool(size > 0):
        return 0.0, float("inf")
    factor = (own * expected).sum() / size.square()
    return float(factor), float((own - factor * expected).norm() / size)


def _matches(own: Tensor, expected: Tensor) -> bool:
    factor, rest = _fit(own, expected)
    # One number is a multiple of any other.
    return own.numel() > 1 and abs(factor) > 1e-6 and rest < _CLOSE * abs(factor)


def _differs(own: Tensor, expected: Tensor) -> bool:
    size = max(float(expected.norm()), 1e-300)
    return float((own - expected).norm()) > _CLOSE * size
