"""Certificate: what is known of a solution and its gradient, per item, and the policy that acts on it.

Scale. A residual means something only beside the size of what cancels in it, and that size must not
depend on units. Stationarity and feasibility are therefore given as *backward errors*: the residual
divided by how much it changes when inputs and solution are perturbed by a relative amount, per unit
of that amount. A stationarity of 1e-6 says that y solves exactly a problem whose data differ
by about one part in a million. The perturbation is a fixed low-discrepancy pattern, so a certificate
is deterministic, and costs one more gradient.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from .errors import DdnkitWarning, InputError, UntrustedGradientError, nearest_choice
from .lagrangian import constraint_jacobian, lagrangian_gradient, multipliers_and_margin
from .linalg.items import apply, distinct
from .problem import Evaluation, Problem, flat
from .solution import Solution, Status

VERDICTS = ("trusted", "doubtful", "invalid")
POLICIES = ("raise", "warn", "nan", "mask")

#: Largest backward error that passes where a node names none. A gradient inherits about this
#: error times the condition of its problem; float32 rounding alone costs 1e-7 times that.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 3e-4}

#: So many items are named where inputs are not finite.
_SHOWN = 3

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
        licq: least over largest singular value of the constraints' gradients, each of unit length; 0
            where they are dependent (harmless if they agree), 1 without constraints.
        curvature: least over largest curvature of the Lagrangian on the tangent space; at or below
            rounding level the solution is no strict minimum. Measured on request.
        condition: largest over least size of those curvatures. Measured on request.
        error_bound: estimated bound on the relative error of the gradient: of the last one computed,
            before that of the worst of three. Measured on request.
        tolerance: what the figures are held against.
        form: the backward form that "auto" took.
        finite: which items (B,), in one row, of each input hold neither NaN nor infinity, by its name.
    """

    stationarity: Tensor
    feasibility: Tensor
    status: Tensor
    iterations: Tensor
    tolerance: float
    solver: str = ""
    uniqueness: Tensor | None = None
    adjoint_residual: Tensor | None = None
    licq: Tensor | None = None
    curvature: Tensor | None = None
    condition: Tensor | None = None
    error_bound: Tensor | None = None
    form: str = ""
    finite: Mapping[str, Tensor] = field(default_factory=dict)

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
        for curvature in (self.uniqueness, self.curvature):
            if curvature is not None:
                good = good & (curvature > self._rounding)
        if self.licq is not None:
            good = good & ~self._nearly_dependent(self.licq)
        return good

    def _nearly_dependent(self, licq: Tensor) -> Tensor:
        # Rounding of the constraints' gradients moves their span by eps/licq. Dependent to working
        # precision is another thing, and harmless: one constraint said twice.
        uncertain = torch.finfo(licq.dtype).eps / self.tolerance if self.tolerance else 0.0
        return (licq > self._rounding) & (licq < uncertain)

    @property
    def _rounding(self) -> float:
        return 64 * torch.finfo(self.stationarity.dtype).eps

    def verdicts(self) -> list[str]:
        """Per item, in row-major order: "trusted", "doubtful" or "invalid".

        Trusted: every figure measured is within its tolerance. Invalid: one is beyond the square root
        of it, NaN, or says that there is no gradient. Waits for a GPU.
        """
        grade = torch.zeros_like(self.stationarity, dtype=torch.long)
        loose = self.tolerance**0.5
        for value in (self.stationarity, self.feasibility, self.adjoint_residual):
            if value is not None:
                grade = torch.maximum(grade, _grade(value, self.tolerance, loose))
        for value in (self.uniqueness, self.curvature):
            if value is not None:
                least = torch.finfo(value.dtype).eps ** 0.5
                grade = torch.maximum(grade, _grade(-value, -least, -self._rounding))
        if self.licq is not None:
            grade = torch.maximum(grade, self._nearly_dependent(self.licq).long())
        if self.error_bound is not None:
            grade = torch.maximum(grade, _grade(self.error_bound, loose, 0.3))
        return [VERDICTS[g] for g in grade.reshape(-1).tolist()]

    def causes(self) -> list[str]:
        """What speaks against the worst items, each with its figure; empty if nothing does."""
        return _reasons(self, backward=True)

    def reshaped(self, shape: Sequence[int]) -> Certificate:
        """The same with another batch shape."""

        def view(value: Any) -> Any:
            return value.reshape(tuple(shape)) if isinstance(value, Tensor) else value

        return replace(self, **{name: view(value) for name, value in vars(self).items()})

    def __str__(self) -> str:
        parts = [f"stationarity {_worst(self.stationarity)}"]
        parts.append(f"feasibility {_worst(self.feasibility)}")
        if self.uniqueness is not None:
            parts.append(f"uniqueness {_least(self.uniqueness)}")
        if self.adjoint_residual is not None:
            parts.append(f"adjoint residual {_worst(self.adjoint_residual)}")
        if self.curvature is not None:
            parts.append(f"curvature {_least(self.curvature)}")
        if self.condition is not None:
            parts.append(f"condition {_worst(self.condition)}")
        if self.error_bound is not None:
            parts.append(f"gradient error at most {_worst(self.error_bound)}")
        bad = int((~self.differentiable).sum())
        verdict = "passed" if bad == 0 else f"{bad} of {self.stationarity.numel()} failed"
        return f"{verdict}: {', '.join(parts)} (tolerance {self.tolerance:.0e})"


@torch.no_grad()
def measure(
    problem: Problem,
    solution: Solution,
    tolerance: float | None,
    evaluation: Evaluation | None = None,
    aside: Tensor | None = None,
) -> Certificate:
    """The certificate of a solved batch; ``solution`` must be batched.

    Args:
        evaluation: of the objective at the solution, if there is one already; it is used up.
        aside: items (B,) that others stand in for, see `ddnkit.aside`: NaN for them.
    """
    y = solution.y
    if tolerance is None:
        tolerance = problem.node.tolerance
    if tolerance is None:
        tolerance = TOLERANCE[y.dtype]
    if problem.batch_size == 0 or (aside is not None and bool(aside.all())):
        stationarity = feasibility = licq = y.new_zeros(problem.batch_size)
    else:
        gradient = problem.gradient(y) if evaluation is None else evaluation.gradient()
        stationarity, feasibility, licq = _backward_errors(problem, y, gradient)
    status = torch.as_tensor(solution.status, device=y.device)
    iterations = torch.as_tensor(solution.iterations, device=y.device)
    uniqueness = solution.uniqueness
    if aside is not None:
        status = torch.where(aside, int(Status.NON_FINITE), status)
        iterations = torch.where(aside, -1, iterations)
        stationarity, feasibility, licq = (
            x.masked_fill(aside, torch.nan) for x in (stationarity, feasibility, licq)
        )
        uniqueness = None if uniqueness is None else uniqueness.masked_fill(aside, torch.nan)
    return Certificate(
        stationarity, feasibility, status, iterations, tolerance, solution.solver, uniqueness,
        licq=licq,
    )  # fmt: skip


def _backward_errors(
    problem: Problem, y: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    # The relative step of the probe: small enough to stay inside the domain of a barrier, large
    # enough that the difference of two gradients keeps half of the digits.
    step = torch.finfo(y.dtype).eps ** 0.5
    manifold = problem.manifold
    feasibility = y.new_zeros(problem.batch_size) if manifold is None else manifold.infeasibility(y)
    residual = flat(gradient)
    own = problem.constraints(y)
    nu = sigma = None
    licq = torch.ones_like(feasibility)
    if own is not None:
        jacobian = constraint_jacobian(problem, y)
        assert jacobian is not None
        nu, licq = multipliers_and_margin(jacobian, gradient)
        residual = residual - apply(jacobian.mT, nu)
        # Terms of a constraint cancel where it holds; their sizes |A||y| are what they cancel from.
        sizes = distinct(jacobian)[:, : own.shape[1]].abs().expand(len(y), -1, -1)
        own_scale = apply(sizes, flat(y).abs())
        scale_h = own_scale.norm(dim=-1)
    elif manifold is not None:
        sigma = manifold.multipliers(y, gradient)
        residual = flat(manifold.less_normal(gradient, y, sigma))

    def of_lagrangian(instance: Problem, point: Tensor) -> Tensor:
        if nu is None:
            gradient = instance.gradient(point)
            return flat(gradient if sigma is None else manifold.less_normal(gradient, point, sigma))
        with torch.enable_grad():
            gradient = lagrangian_gradient(instance, point.detach().requires_grad_(), nu)
        return flat(gradient.detach())

    # Where rows of y are scaled and nothing else, the normal part is scaled with them: no second
    # product of y with the multipliers.
    by_rows = sigma is not None and manifold.normal_by_rows and y.shape[-2] >= _ONE_PROBE_SIZE
    scale = torch.zeros_like(feasibility)
    for probe in range(1 if residual.shape[-1] >= _ONE_PROBE_SIZE else 3):
        flags = problem.operands_batched
        operands = [
            _perturbed(x, step, k + 1, probe) if own else x
            for k, (x, own) in enumerate(zip(problem.operands, flags, strict=True))
        ]
        moved = problem.with_operands(operands)
        if by_rows:
            factor = _factor(y, y.shape[1:-1], step, 0, probe).unsqueeze(-1)
            y_moved = torch.addcmul(y, y, factor)
            # (G' − N') − (G − N) for the normal part N = G − R and N' = (1 + factor) N.
            change = moved.gradient(y_moved) - gradient
            change.addcmul_(gradient, factor, value=-1)
            change = flat(change.addcmul_(residual.reshape(y.shape), factor))
        else:
            y_moved = _perturbed(y, step, 0, probe)
            change = of_lagrangian(moved, y_moved)
            # A gradient may be a tensor that the objective keeps; what `less_normal` made is new.
            change = change - residual if sigma is None else change.sub_(residual)
        scale = torch.maximum(scale, change.norm(dim=-1) / step)
        if own is not None:
            h_moved = moved.constraints(y_moved)
            assert h_moved is not None
            scale_h = torch.maximum(scale_h, (h_moved - own).norm(dim=-1) / step)
    if own is not None:
        feasibility = torch.maximum(feasibility, _ratio(own.norm(dim=-1), scale_h))
    return _ratio(residual.norm(dim=-1), scale), feasibility, licq


def _ratio(size: Tensor, scale: Tensor) -> Tensor:
    # 0/0 is an exact solution of a problem that nothing perturbs: 0.
    return torch.where(size == 0, size, size / scale)


def _perturbed(x: Any, step: float, stream: int, probe: int) -> Any:
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        return x
    x = x.detach()
    factor = _factor(x, x.shape[1:], step, stream, probe)
    if len(x) == 1:  # in the memory of the pattern
        return factor.unsqueeze(0).mul_(x).add_(x)
    return torch.addcmul(x, x, factor)


def _factor(like: Tensor, shape: Sequence[int], step: float, stream: int, probe: int) -> Tensor:
    """Relative changes, of size ¼ to 1 step and either sign, that differ from entry to entry."""
    # Multiples of an irrational number fill [0, 1) evenly. Each tensor, and each dimension of it, has
    # its own: were y and x to move in proportion, y might stay a solution and the scale be zero.
    irrational = (101 * probe + 5 * stream + 2.6180339887498949) ** 0.5
    sign = 1 if irrational % 1.0 < 0.5 else -1
    size_of_step = sign * step * (0.5 + irrational * 7 % 0.5)
    factor = torch.full((), size_of_step, dtype=like.dtype, device=like.device)
    for k, size in enumerate(shape):
        index = torch.arange(1, size + 1, device=like.device, dtype=torch.float64)
        fraction = (index * (irrational + 0.1 * k)) % 1.0
        pattern = torch.where(fraction < 0.5, fraction + 0.5, -fraction)  # of size ½ to 1
        factor = factor.unsqueeze(-1) * pattern.to(like.dtype)
    return factor


# -- policy ---------------------------------------------------------------------------------------


def validated_policy(policy: str) -> str:
    """``policy`` if it is one of raise, warn, nan, mask."""
    if policy not in POLICIES:
        raise InputError(f"no policy '{policy}'.{nearest_choice(policy, POLICIES)}")
    return policy


def validated_certify(certify: str) -> str:
    """``certify`` if it is "fast" or "full"."""
    if certify not in ("fast", "full"):
        raise InputError(f"no choice '{certify}' of certify; 'fast' or 'full'")
    return certify


def complaint(certificate: Certificate, where: str, backward: bool) -> str | None:
    """One short line naming what failed, the worst figure and the likely causes; None if all is well."""
    good = certificate.differentiable if backward else certificate.solved
    if bool(good.all()):
        return None
    reasons = _reasons(certificate, backward)
    return f"{where}: {int((~good).sum())} of {good.numel()} {'; '.join(reasons)}"


def _reasons(certificate: Certificate, backward: bool) -> list[str]:
    of_inputs, rest = _of_inputs(certificate)
    return [*of_inputs, *([] if rest is None else _reasons_of_figures(rest, backward))]


def _of_inputs(certificate: Certificate) -> tuple[list[str], Certificate | None]:
    """What inputs that are not finite explain, and the figures of the items that are left, if any."""
    solved = certificate.solved
    failed = ~solved.reshape(-1)
    finite = {
        name: mask | ~failed
        for name, mask in certificate.finite.items()
        if mask.shape == failed.shape
    }
    if not finite:
        return [], certificate
    others = torch.stack(list(finite.values())).all(dim=0)
    texts = _told(finite, others, solved.shape)
    if not texts:
        return [], certificate
    texts = [f"not finite: {', '.join(texts)}"]
    if not bool(others.any()):
        return texts, None
    kept: dict[str, Any] = {
        name: value.reshape(-1)[others]
        for name, value in vars(certificate).items()
        if isinstance(value, Tensor)
    }
    return texts, replace(certificate, **kept, finite={})


def _told(finite: Mapping[str, Tensor], sound: Tensor, shape: Sequence[int]) -> list[str]:
    """Which inputs are not finite, one short text an item; of a few of the items."""
    bad = (~sound).nonzero()[:, 0].tolist()
    texts = []
    for item in bad[:_SHOWN]:
        names = [name for name, mask in finite.items() if not bool(mask[item])]
        which = "" if not shape else f"item {_index(item, shape)}: "
        verb = "holds" if len(names) == 1 else "hold"
        texts.append(f"{which}{' and '.join(names)} {verb} NaN or infinity")
    if len(bad) > _SHOWN:
        texts.append(f"and {len(bad) - _SHOWN} more items")
    return texts


def _index(item: int, shape: Sequence[int]) -> str:
    if len(shape) == 1:
        return str(item)
    index = []
    for size in reversed(shape):
        item, place = divmod(item, size)
        index.append(place)
    return str(tuple(reversed(index)))


def _reasons_of_figures(certificate: Certificate, backward: bool) -> list[str]:
    reasons = []
    tolerance = f"tolerance {certificate.tolerance:.0e}"
    checks: list[tuple[str, Tensor | None, str]] = [
        ("infeasible: the constraints are violated by", certificate.feasibility,
         "(a) the solver returns a point off the constraint set, (b) objective and solver disagree "
         "on the constraints"),
        ("not stationary: backward error", certificate.stationarity,
         "(a) the solver stopped early, (b) it solves another problem than the objective states"),
    ]  # fmt: skip
    if certificate.licq is not None and not bool((certificate.licq > certificate._rounding).all()):
        checks[1] = (*checks[1][:2], checks[1][2] + ", (c) the constraints are degenerate there")
    if backward:
        checks.append(
            ("adjoint system not solved: residual", certificate.adjoint_residual,
             "(a) the solution is not unique, (b) it is no strict minimum, (c) dependent constraints")
        )  # fmt: skip
    for text, value, causes in checks:
        if value is not None and not bool((value <= certificate.tolerance).all()):
            reasons.append(f"{text} {_worst(value)} ({tolerance}); {causes}")
    for curvature in (certificate.uniqueness, certificate.curvature) if backward else ():
        if not reasons and curvature is not None and not bool(
            (curvature > certificate._rounding).all()
        ):  # fmt: skip
            reasons.append(
                f"not unique: relative curvature {_least(curvature)}; the solution has no gradient; "
                "add a term that singles one out"
            )
    if (
        backward
        and certificate.licq is not None
        and bool(certificate._nearly_dependent(certificate.licq).any())
    ):
        reasons.append(
            f"constraints nearly dependent: margin {_least(certificate.licq)}, neither independent nor "
            "the same to working precision; drop one, or give it in float64"
        )
    if not backward or not reasons:
        causes = _status_causes(certificate)
        if causes:
            reasons.append(causes)
    return reasons


def act(policy: str, message: str | None) -> None:
    """Raise or warn with ``message``, if there is one."""
    if message is None or policy in ("nan", "mask"):
        return
    if policy == "raise":
        raise UntrustedGradientError(message)
    frame = _callers_frame()
    if frame is None:
        warnings.warn(message, DdnkitWarning, stacklevel=2)
        return
    # What Python keeps there to show a repeated warning once.
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    filename, line = frame.f_code.co_filename, frame.f_lineno
    warnings.warn_explicit(message, DdnkitWarning, filename, line, registry=registry)


def _callers_frame() -> FrameType | None:
    """Where, outside of ddnkit and torch, the call came from."""
    inside = tuple(str(Path(module).parent) for module in (__file__, str(torch.__file__)))
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_filename.startswith(inside):
        frame = frame.f_back
    return frame


def _status_causes(certificate: Certificate) -> str:
    codes = certificate.status[~certificate.solved].reshape(-1)
    if codes.numel() == 0:
        return ""
    status = Status(int(codes.max()))
    if status in (Status.CONVERGED, Status.UNKNOWN):
        return ""
    return f"solver {certificate.solver or '?'} ended with {status.name}: {status.causes}"


def _grade(value: Tensor, trusted: float, doubtful: float) -> Tensor:
    # Written so that NaN ends in the worst grade.
    return 2 - (value <= doubtful).long() - (value <= trusted).long()


def _least(value: Tensor) -> str:
    return "none" if value.numel() == 0 else f"{float(value.min()):.1e}"


def _worst(value: Tensor) -> str:
    if value.numel() == 0:
        return "0"
    return "NaN" if bool(value.isnan().any()) else f"{float(value.max()):.1e}"
