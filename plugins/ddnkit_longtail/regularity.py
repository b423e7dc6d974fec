"""How much nearer to its optimum h* one gradient step takes a feature: the η-regularity number.

    η = ‖Proj(h − γ ∂L/∂h) − h*‖² / ‖h − h*‖²,    h* = √(E_H/E_W) w_c,    ‖h‖² = E_H,

of cross-entropy (CE) and dot regression (DR) where the rows w_k of W are a simplex ETF of length √E_W:
*Inducing Neural Collapse in Imbalanced Learning* (INC), Definition 2. With θ = ∠(h, w_c) its Theorem 2 says

    η(CE) ≥ (1 + cos θ)/2 = η(DR)    for h near h* whose p_k(h), k ≠ c, are all equal.

The condition. p_k = p_j means h ⊥ w_k − w_j. Those differences span, within the span of W, all that is
orthogonal to w_c, so it holds for just the h of span(w_c) ⊕ span(W)^⊥, and d ≥ C is needed for one other
than ±h*. Those are h = √E_H (cos θ ŵ_c + sin θ u) with a unit vector u ⊥ all w_k.

Without projection. Write e = h* − h = √E_H ((1 − cos θ) ŵ_c − sin θ u), ‖e‖ = 2√E_H sin(θ/2).
* DR's gradient is −(1 − cos θ) w_c. The line h + t ŵ_c comes as near to h* as √E_H sin θ, whence
  η(DR) = sin²θ / (4 sin²(θ/2)) = cos²(θ/2) = (1 + cos θ)/2. One rate, γ = √(E_H/E_W), gets every h there.
* CE's is, under the condition and by Σ_k w_k = 0, −(1 − p_c) C/(C−1) w_c: the same line, so with the best
  rate for each h the two are equal. That rate depends on h; any one rate leaves more, and as θ → 0 more
  than 1, since the step does not shorten. This is how “for any fixed learning rate” is read here.

With projection onto the ball ‖h‖² ≤ E_H, which holds h* and so takes no point away from it, every number is
at most the one without. No rate is the best: h + t ŵ_c tends to the direction of h* and η to 0. Under the
condition the longer step along ŵ_c wins, and near h* that is CE's: its length tends to a number above 0, DR's
to 0. The inequality then goes the other way.

Without the condition. With q_k = p_k/(1 − p_c), −∂CE/∂h is in proportion to ŵ_c − v, where
v = (C−1)/C Σ_{k≠c} (q_k − 1/(C−1)) ŵ_k ⊥ w_c and ⟨v, u⟩ ≥ 0, since q_k grows with ŵ_k·u. The best rate gives

    (1 − η(CE)) / (1 − η(DR)) = (1 + cot(θ/2) ⟨v, u⟩)² / (1 + ‖v‖²) → (1 + 2√(E_W E_H) ‖Pu‖²/(C−1))²

as θ → 0, P the projection onto span(W). That is above 1 unless Pu = 0: near enough to h* cross-entropy with
its best rate comes nearer than dot regression from every h that the theorem's condition leaves out.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from ddnkit_etf import simplex_etf
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from ddnkit import Job

from .objective import dot_regression
from .regularity_report import DOT_REGRESSION, RATES
from .settings.regularity import PARTS, Regularity

_SMOKE_DRAWS = 500


def measure_regularity(settings: Regularity, job: Job) -> None:
    """η of every draw of a job: `Regularity.run`."""
    # All draws on the CPU, so that the same seed draws the same on every device.
    torch.manual_seed(job.seed)
    draws = min(settings.draws, _SMOKE_DRAWS) if job.smoke else settings.draws
    etf = simplex_etf(settings.classes, settings.dimension, direction="haar", dtype=torch.float64)
    weight = settings.e_w**0.5 * etf.T
    labels = torch.randint(settings.classes, (draws,))
    features = draw_features(
        weight, labels, settings.delta, e_h=settings.e_h, condition=settings.condition
    )
    h, W, y = (given.to(job.device) for given in (features, weight, labels))
    lines = []
    parts = zip(h.tensor_split(PARTS), y.tensor_split(PARTS), strict=True)
    for step, (near_by, own) in enumerate(parts, 1):
        found = compare(near_by, W, own, e_w=settings.e_w, e_h=settings.e_h, rates=settings.rates)
        job.record({"epoch": step, "step": step, **_row(found)})
        lines += [{"step": step, **_line(found, one)} for one in (found.dr, *found.ce)]
        job.progress(step, PARTS, {})
    if job.rank == 0:
        with (job.folder / RATES).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)


def regularity_number(
    features: Tensor,
    gradient: Tensor,
    target: Tensor,
    rate: float | None = None,
    *,
    radius: float | None = None,
) -> Tensor:
    """η = ‖Proj(h − γ ∂L/∂h) − h*‖² / ‖h − h*‖² of each feature (*INC*, Definition 2).

    Args:
        features: h ``(..., d)``.
        gradient: ∂L/∂h ``(..., d)``.
        target: h* ``(..., d)``; η is NaN where h is h*.
        rate: γ; by default for each h the γ ≥ 0 with the smallest η without projection.
        radius: of the ball around 0 projected onto; by default nothing is projected.

    Returns:
        ``(...)``.
    """
    error = target - features
    step = _best_step(gradient, error) if rate is None else -rate * gradient
    # h − γ∂L/∂h − h*, with h* − h taken first: its rounding then leaves η alone to first order.
    residual = step - error
    if radius is not None:
        point = features + step
        kept = (radius / point.norm(dim=-1, keepdim=True)).clamp(max=1)
        residual = residual - (1 - kept) * point
    return residual.square().sum(dim=-1) / error.square().sum(dim=-1)


def _best_step(gradient: Tensor, error: Tensor) -> Tensor:
    """γg, g = −∂L/∂h, with the γ ≥ 0 that minimises ‖e − γg‖.

    γ = max(⟨g, e⟩, 0)/‖g‖², which leaves η = 1 − cos²∠(g, e), or 1 where the angle is not acute.
    """
    # Where CE is all but solved, ‖g‖² would underflow; the largest entry of this g is ±1, or 0.
    size = gradient.abs().amax(dim=-1, keepdim=True)
    g = -gradient / torch.where(size > 0, size, 1)
    along = (g * error).sum(dim=-1, keepdim=True).clamp(min=0)
    return along / g.square().sum(dim=-1, keepdim=True).clamp(min=1) * g


def optimum(weight: Tensor, labels: Tensor, *, e_h: float = 1.0) -> Tensor:
    """h* = √E_H w_c/‖w_c‖, where both losses are least under ‖h‖² ≤ E_H (*INC*, eq. 7): ``(N, d)``.

    Args:
        weight: W ``(C, d)``.
        labels: classes c ``(N,)``.
        e_h: E_H.
    """
    return e_h**0.5 * normalize(weight, dim=1)[labels]


def draw_features(
    weight: Tensor,
    labels: Tensor,
    delta: float,
    *,
    e_h: float = 1.0,
    condition: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Features with ‖h‖² = E_H and ‖h − h*‖ ≤ δ√E_H at random, from the nearest to the farthest.

    h = √E_H (cos θ ŵ_c + sin θ u), the i-th of N at a distance 2√E_H sin(θ/2) between i and i+1 N-ths
    of δ√E_H, so that equal parts of the draws are equal parts of the distances.

    Args:
        weight: W ``(C, d)``, a simplex ETF.
        labels: classes c ``(N,)``.
        delta: δ in 0…2.
        e_h: E_H.
        condition: u is uniform on the unit sphere orthogonal to all w_k, which makes all p_k, k ≠ c,
            equal and needs d ≥ C; otherwise on that orthogonal to w_c.
        generator: of the draws, on the weight's device.

    Returns:
        ``(N, d)``.
    """
    (N,), (C, d) = labels.shape, weight.shape
    W = normalize(weight, dim=1)
    u = weight.new_empty(N, d).normal_(generator=generator)
    for _ in range(2):  # again, for what rounding left of a u nearly within the span
        # W is a tight frame: (C−1)/C WᵀW projects onto its span.
        within = (C - 1) / C * (u @ W.T) @ W if condition else _along(u, W[labels])
        u = normalize(u - within, dim=1)
    shares = weight.new_empty(N).uniform_(generator=generator)
    places = torch.arange(1, N + 1, device=weight.device) - shares
    distance = (delta * places / N).unsqueeze(1)
    cos, sin = 1 - distance.square() / 2, distance * (1 - distance.square() / 4).sqrt()
    return e_h**0.5 * (cos * W[labels] + sin * u)


def _along(u: Tensor, w: Tensor) -> Tensor:
    return (u * w).sum(dim=1, keepdim=True) * w


@dataclass(frozen=True)
class Curve:
    """η of one loss at one rate.

    Attributes:
        loss: "DR" or "CE".
        rate: γ; None: the best for each feature.
        eta: without projection ``(N,)``.
        projected: with projection onto ‖h‖² ≤ E_H ``(N,)``; the rate is the same.
    """

    loss: str
    rate: float | None
    eta: Tensor
    projected: Tensor


@dataclass(frozen=True)
class Comparison:
    """Both losses on the same features.

    Attributes:
        angle: θ ``(N,)``, in degrees.
        bound: (1 + cos θ)/2 ``(N,)``.
        tolerance: how far from the bound rounding may take an η that equals it ``(N,)``.
        dr: at its rate √(E_H/E_W).
        ce: at the best rate, then at each of those asked for.
    """

    angle: Tensor
    bound: Tensor
    tolerance: Tensor
    dr: Curve
    ce: tuple[Curve, ...]

    def violations(self, curve: Curve) -> Tensor:
        """Where η is below the bound, by more than rounding: ``(N,)``, bool."""
        return curve.eta < self.bound - self.tolerance

    def nearer_projected(self, curve: Curve) -> Tensor:
        """Where the step and the projection take h nearer to h* than DR's do: ``(N,)``, bool.

        By more than `tolerance`: the rounding of a projection is along h, next to orthogonal to what is
        left of e, and so weighs no more than the others.
        """
        return curve.projected < self.dr.projected - self.tolerance


def compare(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    e_w: float = 1.0,
    e_h: float = 1.0,
    rates: Sequence[float] = (),
) -> Comparison:
    """η(CE), η(DR) and (1 + cos ∠(h, w_c))/2 of each feature (*INC*, Theorem 2).

    The gradients are autograd's, of the losses that a training minimises.

    Args:
        features: h ``(N, d)`` of length √E_H, float64.
        weight: W ``(C, d)``, a simplex ETF with rows of length √E_W.
        labels: classes c ``(N,)``.
        e_w, e_h: E_W and E_H.
        rates: γ of CE besides the best.
    """
    h, target = features.detach().requires_grad_(), optimum(weight, labels, e_h=e_h)
    losses = {
        "CE": cross_entropy(h @ weight.T, labels, reduction="sum"),
        "DR": dot_regression(h, weight, labels, e_w=e_w, e_h=e_h).sum(),
    }
    gradients = {name: torch.autograd.grad(loss, h)[0] for name, loss in losses.items()}

    def curve(loss: str, rate: float | None) -> Curve:
        free, projected = (
            regularity_number(features, gradients[loss], target, rate, radius=radius)
            for radius in (None, e_h**0.5)
        )
        return Curve(loss, rate, free, projected)

    # 2 arcsin(‖e‖/2) keeps the digits of a small angle, as arccos does not.
    distance = (target - features).norm(dim=1) / e_h**0.5
    return Comparison(
        angle=torch.rad2deg(2 * (distance / 2).clamp(max=1).asin()),
        bound=(1 + torch.cosine_similarity(features, target)) / 2,
        tolerance=_tolerance(distance, features.shape[1], (e_w * e_h) ** 0.5),
        dr=curve("DR", (e_h / e_w) ** 0.5),
        ce=tuple(curve("CE", rate) for rate in (None, *rates)),
    )


def _tolerance(distance: Tensor, d: int, tau: float) -> Tensor:
    """k + (k/r)², k = 4dε(1 + τ): how far rounding takes η from the bound, r = ‖e‖/√E_H, τ = √(E_W E_H).

    A product of two vectors of R^d is off by dε of their lengths at most. So are the bound and the
    cosine in DR's gradient; the logits by dετ, the p_k that should be equal by 2dετ of themselves, and
    CE's gradient leans from ŵ_c by as much. The length of h being off by ε turns e by ε/r. Together
    cos∠(g, e), which is sin(θ/2) = r/2, is off by k/r at most, and its square by 2 (r/2)(k/r) + (k/r)².
    """
    k = 4 * d * torch.finfo(distance.dtype).eps * (1 + tau)
    return k + (k / distance).square()


def _row(found: Comparison) -> dict[str, Any]:
    """The figures of one part of the draws."""
    best, *fixed = found.ce
    return {
        "violations": sum(int(found.violations(one).sum()) for one in found.ce),
        "angle": float(found.angle.mean()),
        "draws": len(found.angle),
        "bound": float(found.bound.median()),
        "eta_dr": float(found.dr.eta.median()),
        "eta_dr_error": float((found.dr.eta - found.bound).abs().max()),
        "eta_ce_best": float(best.eta.median()),
        "ce_fixed_least_excess": min(float((one.eta - found.bound).min()) for one in fixed),
        "eta_dr_projected": float(found.dr.projected.median()),
        "ce_nearer_projected": sum(int(found.nearer_projected(one).sum()) for one in fixed),
    }


def _line(found: Comparison, one: Curve) -> dict[str, Any]:
    """One loss at one rate on one part of the draws: a line of ``rates.csv``."""
    excess = one.eta - found.bound
    rate = "best γ" if one.rate is None else f"γ = {one.rate:g}"
    return {
        "curve": DOT_REGRESSION if one is found.dr else f"CE, {rate}",
        "angle": float(found.angle.mean()),
        "draws": len(excess),
        "bound": float(found.bound.median()),
        "eta": float(one.eta.median()),
        "projected": float(one.projected.median()),
        "least_excess": float(excess.min()),
        "greatest_excess": float(excess.max()),
        "violations": int(found.violations(one).sum()),
        "nearer_projected": int(found.nearer_projected(one).sum()),
    }
