"""A node's own adjoint, held against an answer that is known without a solve.

With G = D²_yy L, B = D²_θy L, A = D_y h, C = D_θ h the gradient for an incoming v is (see
`solution_equation`)
    Jᵀv = Bᵀz + Cᵀμ,      where  G z + Aᵀμ = −v,  A z = 0.
Take any tangent w (A w = 0) and any κ, and let v = G w + Aᵀκ. Then z = −w and μ = −κ solve the system,
whatever its size and condition, so that
    Jᵀ(G w + Aᵀκ) = −Bᵀw − Cᵀκ.
The left side is one call of the node's `adjoint`, the right side one pass back through ∇_y L: never a
matrix. κ is there because an adjoint may treat the constraints' part of v wrongly and the rest rightly.
A manifold's constraints do not depend on θ: its normal part of v must come to nothing.

What may differ without a fault. Rounding moves v by eps ‖v‖, and Jᵀ makes of a generic vector of that
size ‖Jᵀv′‖ =: s, which is measured with v′ = v under random signs: s/‖Jᵀv‖ is about the condition. An
adjoint that iterates leaves s times its residual ρ. At a point whose backward error is β the
derivatives differ from those at the solution, where a formula in x alone takes them, by about the
condition times β, and Jᵀ makes (s/‖Jᵀv‖) β s of it. The passes themselves round by eps times the sizes
of their terms, measured with w and κ under random signs. Beyond the sum of these the difference counts,
relative to the larger of the two sides, for each input.

Two probes: one with all entries of w alike, and one with w in proportion to y, whose entries may have
different units; the entries of a gradient are taken times their input for the same reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..backward.tangent_operator import Projector
from ..lagrangian import constraint_set, lagrangian_gradient
from ..linalg.items import apply
from ..problem import Problem, flat, pull_back
from .solution_equation import with_operands_at

#: Gradients (one an operand) and the residual of an iteration (B,) or None, for v (B, *y).
Adjoint = Callable[[Tensor], tuple[Sequence[Tensor], Tensor | None]]

#: Of the calls with one signature, one in so many is compared; the first always.
EVERY = 100
#: Signatures that are remembered.
_MOST = 64


class Comparisons:
    """When a layer's own adjoint is to be compared: at the first call of each signature, at each
    hundredth after, and at each one after a difference.

    Ways back that come after another call of the layer are another signature: what a `solve` keeps on the
    node for its `adjoint` may then be another problem's.

    Attributes:
        every: 0 to compare never.
        made: how many calls have been compared.
        begun: how many calls of the layer there have been.
    """

    def __init__(self, every: int = EVERY):
        self.every = every
        self.made = self.begun = 0
        self._differed: set[object] = set()
        self._calls: dict[object, int] = {}
        self._last: dict[object, Tensor] = {}

    def due(self, signature: object) -> bool:
        """Whether this call is one to compare; counts it."""
        if not self.every:
            return False
        if signature not in self._calls and len(self._calls) >= _MOST:
            oldest = next(iter(self._calls))
            self._calls.pop(oldest)
            self._last.pop(oldest, None)
            self._differed.discard(oldest)
        count = self._calls.get(signature, 0)
        self._calls[signature] = (count + 1) % self.every
        if count == 0:
            self.made += 1
            self._differed.discard(signature)
        return count == 0

    @property
    def differed(self) -> bool:
        """Whether the last comparison of some signature has shown a difference."""
        return bool(self._differed)

    def begin(self) -> int:
        """The number of a new call."""
        self.begun += 1
        return self.begun

    def again(self, signature: object) -> None:
        """The next call is compared too."""
        self._calls[signature] = 0
        self._differed.add(signature)

    def soon(self) -> None:
        """The next call of each signature is compared."""
        self._calls = dict.fromkeys(self._calls, 0)

    def keep(self, signature: object, worst: Tensor) -> None:
        """What stands for the calls up to the next comparison, where nobody may look at it."""
        self._last[signature] = worst

    def recall(self, signature: object) -> Tensor | None:
        """See `keep`."""
        return self._last.get(signature)


def difference(
    problem: Problem,
    y: Tensor,
    adjoint: Adjoint,
    wrt: Sequence[int],
    backward_error: Tensor,
) -> Tensor | None:
    """How far the adjoint is from the known answer, (B,): 0 up to what may differ, at most 2.

    None where the known answer is not to be had: an objective without second derivatives in torch.

    Args:
        wrt: the operands whose gradients ``adjoint`` returns.
        backward_error: of y, (B,).
    """
    try:
        at_point = _KnownAnswers(problem, y, wrt)
        if not at_point.slope.requires_grad:
            return None
        size = flat(y).abs()
        largest = size.amax(dim=-1, keepdim=True) if size.shape[-1] else size
        scales = [torch.ones_like(size), size / torch.where(largest > 0, largest, 1.0)]
        weights = [[_weight(problem.operands[i], own) for i in wrt] for own in (False, True)]
        errors = [
            _error(at_point, adjoint, backward_error, scale, weight, k)
            for k, (scale, weight) in enumerate(zip(scales, weights, strict=True))
        ]
    except (RuntimeError, NotImplementedError):
        # torch has no second derivative of something in there, or the adjoint takes no such v.
        return None
    return torch.maximum(*errors)


def _error(
    at_point: _KnownAnswers,
    adjoint: Adjoint,
    backward_error: Tensor,
    scale: Tensor,
    weights: Sequence[Tensor],
    k: int,
) -> Tensor:
    y = at_point.y
    tall, signs = scale * flat(_pattern(y, k)), flat(_pattern(y, k + 2)).sign()
    w = at_point.project(tall)
    v, expected, terms = at_point.answer(w, signs, k)
    generic, _ = adjoint((v * signs).reshape(y.shape))
    found, residual = adjoint(v.reshape(y.shape))  # the last use of v: an adjoint may work in it

    def sizes(gradients: Sequence[Tensor]) -> Tensor:  # (n, B)
        # In double, where no square overflows.
        pairs = zip(gradients, weights, strict=True)
        return torch.stack([(flat(g).double() * weight).norm(dim=-1) for g, weight in pairs])

    eps = torch.finfo(y.dtype).eps * 8 * max(y.shape[1:].numel(), 1) ** 0.5
    size = torch.maximum(sizes(expected), sizes(found))
    swing = sizes(generic)
    condition = torch.where(size > 0, swing / size, 1.0).clamp(min=1.0)
    rounding = eps * (swing + sizes(terms) + swing.sum(dim=0) + size.sum(dim=0))
    unsolved = 0.0 if residual is None else 2 * residual
    allowed = rounding + 8 * (condition * backward_error + unsolved) * swing
    apart = sizes([g - e for g, e in zip(found, expected, strict=True)])
    # Written so that NaN stays NaN.
    error = torch.where(apart <= allowed, 0.0, (apart - allowed) / size)
    # Where the known answer itself is none, as when its derivatives overflow, nothing is known.
    known = sizes(expected).isfinite() & v.isfinite().all(dim=-1)
    return torch.where(known, error, 0.0).amax(dim=0).to(y.dtype)


def _weight(x: Tensor, own: bool) -> Tensor:
    """What an entry of a gradient is multiplied with: its input's entry, or a typical one, (B, n)."""
    x = flat(x.detach()).double()
    if own:
        return x.abs()
    typical = x.square().mean(dim=-1, keepdim=True).sqrt() if x.shape[-1] else x
    return torch.where(typical > 0, typical, 1.0).expand_as(x)


class _KnownAnswers:
    """v and Jᵀv at one point, for tangents w."""

    def __init__(self, problem: Problem, y: Tensor, wrt: Sequence[int]):
        self.problem, self.y = problem, y
        self.project = Projector(problem, y)
        self.constraints = constraint_set(problem, y, in_numbers=True)
        self.nu = self.constraints.multipliers(self.constraints.gradient())
        with torch.enable_grad():
            self.chosen = [problem.operands[i].detach().requires_grad_() for i in wrt]
            self.variable = y.detach().requires_grad_()
            moved = with_operands_at(problem, wrt, self.chosen)
            in_lagrangian = self.constraints.in_lagrangian(self.nu)
            self.slope = flat(lagrangian_gradient(moved, self.variable, in_lagrangian))
            self.h = constraint_set(moved, y.detach()).values()

    def answer(self, w: Tensor, signs: Tensor, k: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """v (B, m), the gradients it must have, and the sizes of the terms they are sums of."""
        y, A = self.y, self.constraints.A
        curvature, *of_slope = pull_back(self.slope, [self.variable, *self.chosen], w)
        v = self.constraints.less_curvature(flat(curvature), w, self.nu)
        _, *terms = pull_back(self.slope, [self.variable, *self.chosen], w * signs)
        expected = [-g for g in of_slope]
        if A is None:
            other = flat(_pattern(y, k + 4))
            across = other - self.constraints.project(other)
            v = v + across * _like(v, across)
        else:
            length = A.norm(dim=-1)
            kappa = _pattern(length, k + 4) / torch.where(length > 0, length, 1.0)
            across = apply(A.mT, kappa)
            factor = _like(v, across)
            v, kappa = v + across * factor, kappa * factor
            of_constraints = pull_back(self.h, self.chosen, kappa)
            expected = [e - c for e, c in zip(expected, of_constraints, strict=True)]
            turned = pull_back(self.h, self.chosen, kappa * _pattern(kappa, k + 6).sign())
            terms = [
                t.abs() + c.abs() + c1.abs()
                for t, c, c1 in zip(terms, of_constraints, turned, strict=True)
            ]
        return v, expected, terms


def _like(v: Tensor, other: Tensor) -> Tensor:
    """The factor that makes ``other`` as long as v, (B, 1); 1 where v is zero."""
    size, own = v.norm(dim=-1, keepdim=True), other.norm(dim=-1, keepdim=True)
    return torch.where((size > 0) & (own > 0), size / own, 1.0)


def _pattern(like: Tensor, k: int) -> Tensor:
    """The k-th of a fixed series of vectors with entries in [−1, 1), the same for all items."""
    # Made where the others are, of no generator: the fractional parts of i² times an irrational number
    # are as good as random here.
    index = torch.arange(1, like.shape[1:].numel() + 1, device=like.device, dtype=torch.float64)
    fraction = (index.square() * (7 * k + 2.6180339887498949) ** 0.5) % 1.0
    return (2 * fraction - 1).to(like.dtype).reshape(like.shape[1:]).expand(like.shape)
