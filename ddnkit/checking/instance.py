"""The comparisons on one set of inputs: solution, forms, finite differences.

Finite differences go through a re-solve: for a random direction u of the inputs and a random v,
    v·(y(x + εu) − y(x − εu)) / 2ε    against    g·u,   g the form's gradient for v.
The step balances truncation (ε²) against the noise of the solver, which is as large as the backward
error it leaves. Two steps, ε and 2ε, tell how far the difference itself is to be trusted.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import registry
from ..backward.form import as_form
from ..certificate import Certificate, measure
from ..errors import DdnkitError
from ..lagrangian import (
    constraint_jacobian,
    lagrangian_hessian,
    least_squares_multipliers,
)
from ..layer import batched_inputs, reject_captured_tensors, solve
from ..linalg.kkt import RANK_REVEALING_SIZE
from ..node import DeclarativeNode
from ..problem import Problem
from .report import Row

DIRECTIONS = 4
#: Of the incoming gradient and the directions; not one that anyone draws inputs with, which would
#: make them the same numbers.
SEED = 0x5EED_0DD


@dataclass
class Findings:
    """What one set of inputs showed; the figures that the diagnosis goes by."""

    inputs: tuple[Any, ...]
    rows: list[Row] = field(default_factory=list)
    certificate: Certificate | None = None
    y: Tensor | None = None
    gradients: dict[str, Tensor] = field(default_factory=dict)
    slopes: dict[str, Tensor] = field(default_factory=dict)
    differences: Tensor | None = None
    difference_error: float = 0.0
    scale: float = 1.0
    error: str = ""

    @property
    def ok(self) -> bool:
        """Every comparison held."""
        return not self.error and all(row.ok for row in self.rows)

    def failed(self, prefix: str) -> bool:
        """A comparison of this kind did not hold."""
        return any(row.name.startswith(prefix) and not row.ok for row in self.rows)


def applicable_forms(node: DeclarativeNode) -> list[str]:
    """Registered backward forms that can take the node, the reference form last."""
    problem = Problem(node, (), 0)
    names = [
        name
        for name in registry.names("backwards")
        if registry.get("backwards", name)().unsupported(problem) is None
    ]
    return sorted(names, key=lambda name: (name == "dense", name))


def examine(node: DeclarativeNode, inputs: Sequence[Any], forms: Sequence[str]) -> Findings:
    """All comparisons on one set of inputs. Never raises for a fault of the node: it is a finding."""
    findings = Findings(tuple(inputs))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _examine(node, findings, forms)
    except DdnkitError as error:
        findings.error = str(error)
    except Exception as error:  # a user's node may raise anything; that is what a check is for
        findings.error = f"{type(error).__name__}: {error}"
    if findings.error:
        findings.rows.append(Row("runs", float("nan"), 0.0, False, note=findings.error))
    return findings


def _examine(node: DeclarativeNode, findings: Findings, forms: Sequence[str]) -> None:
    xs = findings.inputs
    inputs, shape = batched_inputs(node, xs, None)
    problem = Problem(node, inputs, shape.numel())
    solution = solve(problem)
    reject_captured_tensors(problem, solution.y)
    certificate = measure(problem, solution, None)
    y = solution.y.reshape(shape + solution.y.shape[1:])
    again = _solve(node, xs)
    findings.y, findings.certificate = y, certificate
    double = y.dtype == torch.float64
    tolerance = certificate.tolerance
    rows = findings.rows
    rows.append(_row("feasibility", certificate.feasibility.max(), tolerance))
    rows.append(_row("stationarity", certificate.stationarity.max(), tolerance))
    scale_y = y.norm().clamp(min=torch.finfo(y.dtype).tiny)
    repeated = (again - y).norm() / scale_y
    rows.append(_row("same solution when solved again", repeated, 1e3 * torch.finfo(y.dtype).eps))
    if not bool(y.isfinite().all()):
        return
    if y.numel() <= RANK_REVEALING_SIZE:
        # The constraints leave eigenvalues of zero, which rounding makes slightly negative.
        rows.append(_row("second order: a minimum", _negative_curvature(problem, solution.y), 1e-6))
    generator = torch.Generator().manual_seed(SEED)
    v = torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device)
    wrt = [i for i, x in enumerate(xs) if isinstance(x, Tensor) and x.is_floating_point()]
    if not wrt:
        return
    directions = [[_random_like(xs[i], generator) for i in wrt] for _ in range(DIRECTIONS)]
    for name in forms:
        if name != "closed_form" and y.numel() > RANK_REVEALING_SIZE:
            continue
        adjoint = as_form(name, problem).vjp(problem, solution, v.reshape(solution.y.shape), wrt)
        gradients = [g for i in wrt if (g := adjoint.gradients[i]) is not None]
        findings.gradients[name] = torch.cat([g.reshape(-1) for g in gradients])
        findings.slopes[name] = torch.stack(
            [
                torch.stack(
                    [(g * u).sum() for g, u in zip(gradients, direction, strict=True)]
                ).sum()
                for direction in directions
            ]
        )
        if adjoint.residual is not None:
            rows.append(_row(f"{name}: adjoint residual", adjoint.residual.max(), tolerance))
    noise = max(float(certificate.stationarity.max()), torch.finfo(y.dtype).eps)
    step = min(max(noise ** (1 / 3), 1e-6), 1e-2)
    fine = _differences(node, xs, wrt, v, directions, step)
    coarse = _differences(node, xs, wrt, v, directions, 2 * step)
    findings.differences = fine
    # A gradient may be zero: then the slopes are held against a thousandth of what they would be
    # if y moved as much as the inputs do.
    largest = max((float(slope.norm()) for slope in findings.slopes.values()), default=0.0)
    scale = max(float(fine.norm()), largest, 1e-3 * float(v.norm() * scale_y))
    findings.scale = scale
    findings.difference_error = float((fine - coarse).norm()) / scale
    against = 1e-5 if double else 2e-2
    allowed = max(against, min(findings.difference_error, 1e-2))
    for name, slope in findings.slopes.items():
        error = (slope - fine).norm() / scale
        rows.append(_row(f"{name}: finite differences", error, allowed))
    reference = forms[-1]
    if reference in findings.gradients:
        expected = findings.gradients[reference]
        size = max(float(expected.norm()), 1e-300)
        for name in forms[:-1]:
            if name in findings.gradients:
                error = (findings.gradients[name] - expected).norm() / size
                limit = 1e-7 if double else 1e-2
                rows.append(_row(f"{name}: against {reference}", error, limit))


def _solve(node: DeclarativeNode, xs: Sequence[Any]) -> Tensor:
    inputs, shape = batched_inputs(node, xs, None)
    y = solve(Problem(node, inputs, shape.numel())).y
    return y.reshape(shape + y.shape[1:])


def _negative_curvature(problem: Problem, y: Tensor) -> Tensor:
    """max(0, −λ_min/max|λ|) of the Hessian of the Lagrangian on the tangent space."""
    A = constraint_jacobian(problem, y)
    G = lagrangian_hessian(
        problem, y, None if A is None else least_squares_multipliers(A, problem.gradient(y))
    )
    if A is not None:
        tangent = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device) - torch.linalg.pinv(A) @ A
        G = tangent @ G @ tangent
    values = torch.linalg.eigvalsh((G + G.mT) / 2)
    largest = values.abs().amax(dim=-1).clamp(min=torch.finfo(G.dtype).tiny)
    return (-values.amin(dim=-1) / largest).clamp(min=0).max()


def _differences(
    node: DeclarativeNode,
    xs: Sequence[Any],
    wrt: Sequence[int],
    v: Tensor,
    directions: Sequence[Sequence[Tensor]],
    step: float,
) -> Tensor:
    slopes = []
    with torch.no_grad():
        for direction in directions:
            ends = []
            for sign in (step, -step):
                moved = list(xs)
                for i, u in zip(wrt, direction, strict=True):
                    moved[i] = xs[i] + sign * u
                ends.append(_solve(node, moved))
            slopes.append((v * (ends[0] - ends[1])).sum() / (2 * step))
    return torch.stack(slopes)


def _random_like(x: Tensor, generator: torch.Generator) -> Tensor:
    # Directions in proportion to the size of the input, so that a relative step means the same.
    u = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)
    size = x.square().mean().sqrt()
    return u * torch.where(size > 0, size, 1.0)


def _row(name: str, error: Tensor, tolerance: float) -> Row:
    value = float(error)
    return Row(name, value, tolerance, value <= tolerance)
