"""Certificate: what is known of a solution and its gradient, per item, and the policy that acts on it.

Scale. A residual means something only beside the size of what cancels in it, and that size must not
depend on units. Stationarity and feasibility are therefore given as *backward errors*: the residual
divided by how much it changes when inputs and solution are perturbed by a relative amount, per unit
of that amount. A stationarity of 1e-6 says that y solves exactly a problem whose data differ
by about one part in a million. The perturbation is a fixed low-discrepancy pattern, so a certificate
is deterministic, and costs one more gradient.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .errors import DdnkitWarning, InputError, UntrustedGradientError, nearest_choice
from .lagrangian import constraint_jacobian, lagrangian_gradient, least_squares_multipliers
from .problem import Problem, flat
from .solution import Solution, Status

POLICIES = ("raise", "warn", "nan")

#: Largest backward error that passes where a node names none. A gradient inherits about this
#: error times the condition of its problem; float32 rounding alone costs 1e-7 times that.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 3e-4}

#: From this many unknowns on, one probe gives the scale: the entries average out. Of few, a probe
#: may by chance leave the residual almost as it is.
_ONE_PROBE_SIZE = 64


@dataclass(frozen=True)
class Certificate:
    """Figures of the last call of a layer, each with the layer's batch shape.

    Attributes:
        stationarity: backward error of ∇_y L = 0 (see the module's text).
        feasibility: backward error of the constraints, 0 where there are none.
        status: `Status` codes of the solver.
        iterations: its iterations, -1 where not known.
        uniqueness: least over largest curvature where the solver knows it, else None.
        adjoint_residual: relative residual of the adjoint system; None before the backward pass and
            for forms that solve none.
        tolerance: what the figures are held against.
    """

    stationarity: Tensor
    feasibility: Tensor
    status: Tensor
    iterations: Tensor
    tolerance: float
    solver: str = ""
    uniqueness: Tensor | None = None
    adjoint_residual: Tensor | None = None

    @property
    def solved(self) -> Tensor:
        """Per item: the solution is stationary and feasible within tolerance (False for NaN)."""
        return (self.stationarity <= self.tolerance) & (self.feasibility <= self.tolerance)

    @property
    def differentiable(self) -> Tensor:
        """Per item: nothing measured so far speaks against the gradient."""
        good = self.solved
        if self.adjoint_residual is not None:
            good = good & (self.adjoint_residual <= self.tolerance)
        if self.uniqueness is not None:
            good = good & (self.uniqueness > 64 * torch.finfo(self.stationarity.dtype).eps)
        return good

    def reshaped(self, shape: Sequence[int]) -> Certificate:
        """The same with another batch shape."""

        def view(value: Any) -> Any:
            return value.reshape(tuple(shape)) if isinstance(value, Tensor) else value

        return replace(self, **{name: view(value) for name, value in vars(self).items()})

    def __str__(self) -> str:
        parts = [f"stationarity {_worst(self.stationarity)}"]
        parts.append(f"feasibility {_worst(self.feasibility)}")
        if self.uniqueness is not None:
            parts.append(f"uniqueness {float(self.uniqueness.min()):.1e}")
        if self.adjoint_residual is not None:
            parts.append(f"adjoint residual {_worst(self.adjoint_residual)}")
        bad = int((~self.differentiable).sum())
        verdict = "passed" if bad == 0 else f"{bad} of {self.stationarity.numel()} failed"
        return f"{verdict}: {', '.join(parts)} (tolerance {self.tolerance:.0e})"


def measure(problem: Problem, solution: Solution, tolerance: float | None) -> Certificate:
    """The certificate of a solved batch; ``solution`` must be batched."""
    y = solution.y
    if tolerance is None:
        tolerance = problem.node.tolerance
    if tolerance is None:
        tolerance = TOLERANCE[y.dtype]
    stationarity, feasibility = _backward_errors(problem, y)
    status = torch.as_tensor(solution.status, device=y.device)
    iterations = torch.as_tensor(solution.iterations, device=y.device)
    return Certificate(
        stationarity, feasibility, status, iterations, tolerance, solution.solver,
        solution.uniqueness,
    )  # fmt: skip


def _backward_errors(problem: Problem, y: Tensor) -> tuple[Tensor, Tensor]:
    # The relative step of the probe: small enough to stay inside the domain of a barrier, large
    # enough that the difference of two gradients keeps half of the digits.
    step = torch.finfo(y.dtype).eps ** 0.5
    manifold = problem.manifold
    feasibility = y.new_zeros(problem.batch_size) if manifold is None else manifold.infeasibility(y)
    gradient = problem.gradient(y)
    residual = flat(gradient)
    own = problem.constraints(y)
    nu = sigma = None
    if own is not None:
        jacobian = constraint_jacobian(problem, y)
        assert jacobian is not None
        nu = least_squares_multipliers(jacobian, gradient)
        residual = residual - (jacobian.mT @ nu.unsqueeze(-1)).squeeze(-1)
        # Terms of a constraint cancel where it holds; their sizes |A||y| are what they cancel from.
        own_scale = (jacobian[:, : own.shape[1]].abs() @ flat(y).abs().unsqueeze(-1)).squeeze(-1)
        scale_h = own_scale.norm(dim=-1)
    elif manifold is not None:
        sigma = manifold.multipliers(y, gradient)
        residual = flat(gradient - manifold.normal(y, sigma))

    def of_lagrangian(instance: Problem, point: Tensor) -> Tensor:
        if nu is None:
            gradient = instance.gradient(point)
            return flat(gradient if sigma is None else gradient - manifold.normal(point, sigma))
        with torch.enable_grad():
            gradient = lagrangian_gradient(instance, point.detach().requires_grad_(), nu)
        return flat(gradient.detach())

    scale = torch.zeros_like(feasibility)
    for probe in range(1 if residual.shape[-1] >= _ONE_PROBE_SIZE else 3):
        inputs = [_perturbed(x, step, k + 1, probe) for k, x in enumerate(problem.inputs)]
        moved, y_moved = problem.with_inputs(inputs), _perturbed(y, step, 0, probe)
        change = (of_lagrangian(moved, y_moved) - residual).norm(dim=-1)
        scale = torch.maximum(scale, change / step)
        if own is not None:
            h_moved = moved.constraints(y_moved)
            assert h_moved is not None
            scale_h = torch.maximum(scale_h, (h_moved - own).norm(dim=-1) / step)
    if own is not None:
        feasibility = torch.maximum(feasibility, _ratio(own.norm(dim=-1), scale_h))
    return _ratio(residual.norm(dim=-1), scale), feasibility


def _ratio(size: Tensor, scale: Tensor) -> Tensor:
    # 0/0 is an exact solution of a problem that nothing perturbs: 0.
    return torch.where(size == 0, size, size / scale)


def _perturbed(x: Any, step: float, stream: int, probe: int) -> Any:
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        return x
    # Multiples of an irrational number fill [0, 1) evenly. Each tensor, and each dimension of it, has
    # its own: were y and x to move in proportion, y might stay a solution and the scale be zero.
    irrational = (101 * probe + 5 * stream + 2.6180339887498949) ** 0.5
    sign = 1 if irrational % 1.0 < 0.5 else -1
    size_of_step = sign * step * (0.5 + irrational * 7 % 0.5)
    factor = torch.full((), size_of_step, dtype=x.dtype, device=x.device)
    for k, size in enumerate(x.shape[1:]):
        index = torch.arange(1, size + 1, device=x.device, dtype=torch.float64)
        fraction = (index * (irrational + 0.1 * k)) % 1.0
        pattern = torch.where(fraction < 0.5, fraction + 0.5, -fraction)  # of size ½ to 1
        factor = factor.unsqueeze(-1) * pattern.to(x.dtype)
    return torch.addcmul(x.detach(), x.detach(), factor)


# -- policy ---------------------------------------------------------------------------------------


def validated_policy(policy: str) -> str:
    """``policy`` if it is one of raise, warn, nan."""
    if policy not in POLICIES:
        raise InputError(f"no policy '{policy}'.{nearest_choice(policy, POLICIES)}")
    return policy


def complaint(certificate: Certificate, where: str, backward: bool) -> str | None:
    """One short line naming what failed, the worst figure and the likely causes; None if all is well."""
    good = certificate.differentiable if backward else certificate.solved
    if bool(good.all()):
        return None
    bad = ~good
    reasons = []
    tolerance = f"tolerance {certificate.tolerance:.0e}"
    checks: list[tuple[str, Tensor | None, str]] = [
        ("infeasible: the constraints are violated by", certificate.feasibility,
         "(a) the solver returns a point off the constraint set, (b) objective and solver disagree "
         "on the constraints"),
        ("not stationary: backward error", certificate.stationarity,
         "(a) the solver stopped early, (b) it solves another problem than the objective states"),
    ]  # fmt: skip
    if backward:
        checks.append(
            ("adjoint system not solved: residual", certificate.adjoint_residual,
             "(a) the solution is not unique, (b) it is no strict minimum, (c) dependent constraints")
        )  # fmt: skip
    for text, value, causes in checks:
        if value is not None and not bool((value <= certificate.tolerance).all()):
            reasons.append(f"{text} {_worst(value)} ({tolerance}); {causes}")
    if backward and not reasons and certificate.uniqueness is not None:
        reasons.append(
            f"not unique: relative curvature {float(certificate.uniqueness.min()):.1e}; "
            "the solution has no gradient; add a term that singles one out"
        )
    if not backward or not reasons:
        causes = _status_causes(certificate)
        if causes:
            reasons.append(causes)
    return f"{where}: {int(bad.sum())} of {bad.numel()} {'; '.join(reasons)}"


def act(policy: str, message: str | None) -> None:
    """Raise or warn with ``message``, if there is one."""
    if message is None or policy == "nan":
        return
    if policy == "raise":
        raise UntrustedGradientError(message)
    warnings.warn(message, DdnkitWarning, stacklevel=8)


def _status_causes(certificate: Certificate) -> str:
    codes = certificate.status[~certificate.solved].reshape(-1)
    if codes.numel() == 0:
        return ""
    status = Status(int(codes.max()))
    if status in (Status.CONVERGED, Status.UNKNOWN):
        return ""
    return f"solver {certificate.solver or '?'} ended with {status.name}: {status.causes}"


def _worst(value: Tensor) -> str:
    if value.numel() == 0:
        return "0"
    return "NaN" if bool(value.isnan().any()) else f"{float(value.max()):.1e}"
