"""Certificate: what was measured of a solution and its gradient, per item, and the policy that acts on it.

Scale. A residual means something only beside the size of what cancels in it, and that size must not
depend on units. Stationarity and feasibility are therefore given as *backward errors*: the residual
divided by how much it changes when inputs and solution are perturbed by a relative amount, per unit
of that amount. A stationarity of 1e-6 says that y solves exactly a problem whose data differ
by about one part in a million. The perturbation is a fixed low-discrepancy pattern, so a certificate
is deterministic, and costs one more gradient.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .errors import DdnkitWarning, InputError, UntrustedGradientError, nearest_choice
from .gauge import slope_along_gauge
from .lagrangian import (
    ConstraintSet,
    OnManifold,
    constraint_set,
    first_order_change,
)
from .linalg.items import apply, distinct
from .perturbation import STEP, perturb, relative_changes
from .problem import Evaluation, Problem, flat
from .qualification import are_dependent, touching
from .renamed import OldMethod
from .solution import SETTLED, Solution, Status
from .solution_size import size_of_solution

VERDICTS = ("trusted", "doubtful", "invalid")
#: In the place of "trusted" where nothing was measured.
UNMEASURED = "not measured"
CERTIFY = ("off", "fast", "full")
POLICIES = ("raise", "warn", "nan", "mask")

#: Largest backward error that passes where a node names none. A gradient inherits about this
#: error times the condition of its problem; float32 rounding alone costs 1e-7 times that.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 3e-4}

#: So many items are named where inputs are not finite.
_SHOWN = 3

#: From this many unknowns on, one probe gives the scale: the entries average out. Of few, a probe
#: may by chance leave the residual almost as it is, and so many are taken.
ONE_PROBE_SIZE, PROBES_OF_FEW = 64, 3


#: Differences keep two thirds of the digits, less what the third derivative takes.
_HIDDEN_PASSES = {torch.float64: 1e-4, torch.float32: 2e-2}


#: Largest relative error of a gradient, by the estimate of it from y's own, that passes.
MOST_ERROR = 5e-3


#: Roundings of a single unknown's own scale, see `SETTLED`.
_SETTLED_EACH = 1e4


class _Figure(NamedTuple):
    """One figure of a certificate with its limits.

    Attributes:
        value: per item; NaN is beyond every limit.
        trusted, doubtful: the largest values of these grades.
        text: what it says of a certificate, with the likely causes.
        acts: the grade, an index of `VERDICTS`, from which on the policy acts.
        follows: it follows from the others for items where they fail, and would only confuse.
    """

    value: Tensor
    trusted: float
    doubtful: float
    text: Callable[[Certificate], str]
    acts: int = 1
    follows: bool = False

    @property
    def passes(self) -> Tensor:
        """Per item: the policy has nothing to act on."""
        return self.value <= (self.trusted if self.acts == 1 else self.doubtful)

    @property
    def grades(self) -> Tensor:
        """Per item an index of `VERDICTS`; written so that NaN ends in the worst."""
        return 2 - (self.value <= self.doubtful).long() - (self.value <= self.trusted).long()


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
            for forms that solve no system.
        licq: smallest over largest singular value of the constraints' gradients, each of unit length; 0
            where some are treated as dependent (harmless if they are consistent), unless the margin of
            the others is itself too small; 1 without constraints.
        touching: 1 for items whose constraints are dependent at y, or all but dependent, and not around it
            (`ddnkit.qualification`), so that no constraint qualification holds, else 0; None where none are.
        saddle: how negative the smallest curvature is, relative to the largest, if the solution of the
            adjoint system showed that y is a saddle point; 0 for other items; None before the backward
            pass, if it showed nothing, and if y is a minimum.
        curvature: least over largest curvature of the Lagrangian on the tangent space; at or below
            rounding level the solution is not a strict minimum. Measured on request.
        condition: largest over least size of those curvatures. Measured on request.
        error_bound: estimated bound on the relative error of the gradient: of the last one computed, or,
            before the first backward pass, of the worst of three trial gradients. Measured on request.
        settled: whether y is as good as it can be known: backward errors within 64 roundings, and each
            unknown's residual within 1e4 of its own scale, which is less certain. If not, the backward
            pass also measures `solution_error`.
        solution_error: how much y or its gradient change by a step of Newton's method, relative; None
            before the backward pass, and where y is solved to rounding.
        adjoint_difference: how far the node's own adjoint is from a known answer, relative, beyond what
            rounding and an inexact y explain; None where it was not compared.
        active_margin: how clear it is which inequality constraints are active (`ddnkit.active_set`): the
            relative change of the data that would change it; 0 where one is weakly active, so that the
            solution has a kink; None without inequality constraints.
        branch: from which of several starting points the solution was reached, counted from 0, the node's
            `initial_point`; a `start` given to the call is the last. None where there is one point.
        branch_gap: how clear it is that it is the lowest minimum (`ddnkit.several_starts`): the relative
            change of the data before another one found is lower; infinite where none was found, 0 where two
            are equal to the tolerance.
        selection_error: how far the solutions at inputs nearby are from a set of the same kind
            (`ddnkit.selection`), relative; 0 where they are one; None where no solution is selected.
        kink_margin: how far inside of its range the slope of each active kink is (`ddnkit.kinks`): 1
            where none is active, 0 or less where the solution has no derivative; None without kinks.
        told_apart: how much the node tells points apart that mean the same on its manifold (`ddnkit.gauge`):
            slope of the Lagrangian, backward error as the stationarity, or of a constraint, along the gauge,
            and from the backward pass on curvature there, relative to all of it, above the square root of
            the tolerance; None without one.
        hidden: relative difference of torch's derivatives of ∇_y L from finite differences; None where
            no operation hides anything from torch.
        at_kinks, hidden_by: texts that describe the two.
        tolerance: what the figures are compared with.
        form: the backward form that was used, by "auto" or by name; if another one solved again what it
            left unsolved, both: "krylov, then dense".
        own_member: the member of the node that computes its gradient, if the form uses one.
        measured: False with certify="off": the solver's status is all that is known, the figures are NaN.
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
    touching: Tensor | None = None
    saddle: Tensor | None = None
    curvature: Tensor | None = None
    condition: Tensor | None = None
    error_bound: Tensor | None = None
    settled: Tensor | None = None
    solution_error: Tensor | None = None
    adjoint_difference: Tensor | None = None
    active_margin: Tensor | None = None
    branch: Tensor | None = None
    branch_gap: Tensor | None = None
    selection_error: Tensor | None = None
    kink_margin: Tensor | None = None
    told_apart: Tensor | None = None
    hidden: Tensor | None = None
    at_kinks: tuple[str, ...] = ()
    hidden_by: tuple[str, ...] = ()
    form: str = ""
    own_member: str = "adjoint"
    measured: bool = True
    finite: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def solved(self) -> Tensor:
        """Per item: the solution is stationary and feasible within tolerance (False for NaN), and the
        solver does not say that there is none.
        """
        return self._within(backward=False)

    @property
    def differentiable(self) -> Tensor:
        """Per item: nothing measured so far speaks against the gradient."""
        return self._within(backward=True)

    @property
    def weakly_active(self) -> Tensor:
        """Per item: a constraint is weakly active, and the node has not chosen what to do then."""
        margin = self.active_margin
        return (
            torch.zeros_like(self.stationarity, dtype=torch.bool) if margin is None else margin <= 0
        )

    def _within(self, backward: bool) -> Tensor:
        first, *rest = [figure.passes for figure in self._figures(backward)]
        for passes in rest:
            first = first & passes
        return first

    def _figures(self, backward: bool = True) -> list[_Figure]:
        """Each figure that was measured with its limits: verdicts, causes and policy all go by it.

        Args:
            backward: what speaks against the gradient too, and not against y alone.
        """
        tolerance, loose = self.tolerance, self.tolerance**0.5
        worst_status = Status.NON_FINITE - 0.5
        of_solver = _Figure(self.status, worst_status, worst_status, _status_causes)
        if not self.measured:
            return [of_solver]
        figures = [
            _Figure(self.feasibility, tolerance, loose, _infeasible),
            _Figure(self.stationarity, tolerance, loose, _not_stationary),
            of_solver,
        ]
        if not backward:
            return figures
        if self.adjoint_residual is not None:
            figures.append(_Figure(self.adjoint_residual, tolerance, loose, _adjoint_not_solved))
        if self.adjoint_difference is not None:
            figures.append(_Figure(self.adjoint_difference, tolerance, loose, _adjoint_differs))
        saddle = self._negative_curvature
        if saddle is not None:
            figures.append(_Figure(saddle, 0.0, 0.0, _saddle_point, follows=True))
        for curvature in (self.uniqueness, self.curvature):
            if curvature is not None:
                limits = -self._clear_curvature, -self._rounding
                figures.append(_Figure(-curvature, *limits, _not_unique, acts=2, follows=True))
        if self.touching is not None:
            figures.append(_Figure(self.touching, 0, 0, _constraints_touch))
        if self.active_margin is not None:
            none = -torch.finfo(self.active_margin.dtype).tiny
            figures.append(_Figure(-self.active_margin, none, none, _weakly_active, follows=True))
        if self.branch_gap is not None:
            none = -torch.finfo(self.branch_gap.dtype).tiny
            figures.append(_Figure(-self.branch_gap, none, none, _equal_minima))
        if self.selection_error is not None:
            figures.append(_Figure(self.selection_error, 0.0, 0.0, _selection_jumps))
        if self.kink_margin is not None:
            none = -torch.finfo(self.kink_margin.dtype).tiny
            figures.append(_Figure(-self.kink_margin, none, none, _at_a_kink))
        if self.told_apart is not None:
            figures.append(_Figure(self.told_apart, tolerance, loose, _told_apart))
        if self.hidden is not None:
            limits = _HIDDEN_PASSES[self.hidden.dtype], _HIDDEN_PASSES[self.hidden.dtype]
            figures.append(_Figure(self.hidden, *limits, _hidden_input))
        if self.solution_error is not None:
            figures.append(_Figure(self.solution_error, MOST_ERROR, 0.3, _solution_inaccurate))
        if self.licq is not None:
            nearly = self._nearly_dependent(self.licq)
            figures.append(_Figure(nearly, 0, 1, _nearly_dependent_constraints))
        if self.error_bound is not None:
            figures.append(_Figure(self.error_bound, loose, 0.3, _error_bound_large, acts=2))
        return figures

    @property
    def _negative_curvature(self) -> Tensor | None:
        """How negative the least curvature is, by all that was measured, per item; 0 where it is not."""
        if self.curvature is None:
            return self.saddle
        negative = torch.where(self.curvature < -self._rounding, -self.curvature, 0.0)
        return negative if self.saddle is None else torch.maximum(negative, self.saddle)

    def _nearly_dependent(self, licq: Tensor) -> Tensor:
        # Rounding of the constraints' gradients moves their span by eps/licq. Dependent to working
        # precision is another thing, and harmless: one constraint said twice. What decides between the
        # two is the rank that gradients are computed with, which makes of it a margin of 0.
        return (licq > 0) & (licq < clear_margin(licq.dtype, self.tolerance))

    @property
    def _clear_curvature(self) -> float:
        # Below √ε a gradient may have lost half of its digits. Where the bound tells how many it has lost,
        # the curvature must only be told from its own rounding, by the one digit that the bound is good to.
        half = float(torch.finfo(self.stationarity.dtype).eps ** 0.5)
        return half if self.error_bound is None else min(half, 10 * self._rounding)

    @property
    def _rounding(self) -> float:
        return 64 * torch.finfo(self.stationarity.dtype).eps

    def verdicts(self) -> list[str]:
        """Per item, in row-major order: "trusted", "doubtful" or "invalid".

        Trusted: every figure measured is within its tolerance. Invalid: one is beyond the square root
        of it, NaN, or says that there is no solution or no gradient. "not measured" in the place of trusted
        with certify="off". Waits for a GPU.
        """
        grade = torch.zeros_like(self.stationarity, dtype=torch.long)
        for figure in self._figures():
            grade = torch.maximum(grade, figure.grades)
        told = VERDICTS if self.measured else (UNMEASURED, *VERDICTS[1:])
        return [told[g] for g in grade.reshape(-1).tolist()]

    def causes(self) -> list[str]:
        """What speaks against the worst items, each with its figure; empty if all are trusted."""
        return _reasons(self, backward=True, doubts=True)

    def reshape(self, shape: Sequence[int]) -> Certificate:
        """The same with another batch shape."""

        def view(value: Any) -> Any:
            return value.reshape(tuple(shape)) if isinstance(value, Tensor) else value

        return replace(self, **{name: view(value) for name, value in vars(self).items()})

    reshaped = OldMethod("reshape")

    def __str__(self) -> str:
        if not self.measured:
            return "not measured (certify='off')"
        parts = [f"stationarity {_worst(self.stationarity)}"]
        parts.append(f"feasibility {_worst(self.feasibility)}")
        if self.uniqueness is not None:
            parts.append(f"uniqueness {_least(self.uniqueness)}")
        if self.adjoint_residual is not None:
            parts.append(f"adjoint residual {_worst(self.adjoint_residual)}")
        if self.adjoint_difference is not None:
            parts.append(f"own adjoint off by {_worst(self.adjoint_difference)}")
        if self.active_margin is not None:
            parts.append(f"margin of the active set {_least(self.active_margin)}")
        if self.branch_gap is not None and bool((self.branch_gap < torch.inf).any()):
            parts.append(f"gap to another minimum {_least(self.branch_gap)}")
        if self.selection_error is not None and bool((self.selection_error > 0).any()):
            parts.append(f"selection off by {_worst(self.selection_error)} nearby")
        if self.kink_margin is not None and bool((self.kink_margin < 1).any()):
            parts.append(f"margin at a kink {_least(self.kink_margin)}")
        if self.told_apart is not None and bool((self.told_apart > self.tolerance).any()):
            parts.append(f"same points told apart by {_worst(self.told_apart)}")
        if self.solution_error is not None:
            parts.append(f"solution off by {_worst(self.solution_error)}")
        if self.hidden is not None:
            parts.append(f"derivatives off by {_worst(self.hidden)}")
        if self.saddle is not None and bool((self.saddle > 0).any()):
            parts.append(f"curvature -{_worst(self.saddle)}")
        if self.curvature is not None:
            parts.append(f"curvature {_least(self.curvature)}")
        if self.condition is not None:
            parts.append(f"condition {_worst(self.condition)}")
        if self.error_bound is not None:
            parts.append(f"gradient error at most {_worst(self.error_bound)}")
        bad = int((~self.differentiable).sum())
        verdict = "passed" if bad == 0 else f"{bad} of {self.stationarity.numel()} failed"
        return f"{verdict}: {', '.join(parts)} (tolerance {self.tolerance:.0e})"


def clear_margin(dtype: torch.dtype, tolerance: float) -> float:
    """From where on rounding moves the span of constraints by no more than the tolerance."""
    return torch.finfo(dtype).eps / tolerance if tolerance else 0.0


def settled_each(y: Tensor) -> float:
    """The largest residual of an unknown of y (B, *y) beside what one probe gives for its scale, of a y that
    is settled: the chance of that probe to leave one of m unknowns as it is costs a closer look."""
    return _SETTLED_EACH * max(1.0, y.shape[1:].numel() / 8) * torch.finfo(y.dtype).eps


class LateCertificate:
    """A certificate that is made when somebody asks for it: the record costs more than the figures in it.

    Args:
        make: of the adjoint residual, None before the backward pass.
    """

    __slots__ = ("_made", "_make", "_residual")

    def __init__(self, make: Callable[[Tensor | None], Certificate]):
        self._make = make
        self._residual: Tensor | None = None
        self._made: Certificate | None = None

    def __reduce__(self) -> Any:
        return _itself, (self.certificate(),)

    def certificate(self) -> Certificate:
        """The certificate with what has been measured so far."""
        if self._made is None:
            self._made = self._make(self._residual)
        return self._made

    def solved(self, residual: Tensor | None) -> None:
        """The adjoint system was solved with this residual."""
        self._residual, self._made = residual, None


def _itself(x: Certificate) -> Certificate:
    return x


def tolerance_of(problem: Problem, y: Tensor, asked: float | None) -> float:
    """The tolerance asked for, else the node's, else that of the dtype."""
    if asked is not None:
        return asked
    return TOLERANCE[y.dtype] if problem.node.tolerance is None else problem.node.tolerance


@torch.no_grad()
def measure(
    problem: Problem,
    solution: Solution,
    tolerance: float | None,
    evaluation: Evaluation | None = None,
    aside: Tensor | None = None,
    measured: bool = True,
) -> Certificate:
    """The certificate of a solved batch; ``solution`` must be batched.

    Args:
        evaluation: of the objective at the solution, if there is one already; it is used up.
        aside: items (B,) that others stand in for, see `ddnkit.batch_solve`: NaN for them.
        measured: False to take the solver's word alone.
    """
    if problem.selection is not None:
        return _measure_selected(problem, solution, tolerance, evaluation, aside, measured)
    return _measure(problem, solution, tolerance, evaluation, aside, measured)


def _measure_selected(
    problem: Problem,
    solution: Solution,
    tolerance: float | None,
    evaluation: Evaluation | None,
    aside: Tensor | None,
    measured: bool,
) -> Certificate:
    """The worse of what y is as a solution of the node's problem, and as the selected one."""
    selection = problem.selection
    assert selection is not None
    solution = replace(solution, uniqueness=None)
    stated = _measure(problem.stated, solution, tolerance, evaluation, aside, measured)
    chosen = _measure(problem, solution, tolerance, None, aside, measured)
    margins = [x for x in (stated.active_margin, chosen.active_margin) if x is not None]
    figures: dict[str, Any] = {
        "uniqueness": selection.least,
        "selection_error": selection.error,
    }
    if selection.saddle is not None and bool((selection.saddle > 0).any()):
        figures["saddle"] = selection.saddle
    if aside is not None:
        figures = {
            k: None if v is None else v.masked_fill(aside, torch.nan) for k, v in figures.items()
        }
    assert stated.settled is not None and chosen.settled is not None
    return replace(
        stated,
        stationarity=torch.maximum(stated.stationarity, chosen.stationarity),
        feasibility=torch.maximum(stated.feasibility, chosen.feasibility),
        licq=chosen.licq,
        settled=stated.settled & chosen.settled,
        active_margin=functools.reduce(torch.minimum, margins) if margins else None,
        **figures,
    )


def _measure(
    problem: Problem,
    solution: Solution,
    tolerance: float | None,
    evaluation: Evaluation | None,
    aside: Tensor | None,
    measured: bool,
) -> Certificate:
    y = solution.y
    tolerance = tolerance_of(problem, y, tolerance)
    uneven = touches = apart = None
    if problem.batch_size == 0 or (aside is not None and bool(aside.all())):
        error = feasibility = licq = y.new_zeros(problem.batch_size)
    elif not measured:
        error = feasibility = licq = y.new_full((problem.batch_size,), torch.nan)
    else:
        gradient = problem.gradient(y) if evaluation is None else evaluation.gradient()
        error, feasibility, licq, touches, uneven, apart = _backward_errors(
            problem, y, gradient, tolerance
        )
        if problem.kinks is not None:
            error = torch.maximum(error, problem.kinks.excess)
        if problem.active_set is not None:
            feasibility = torch.maximum(feasibility, problem.active_set.violation)
            nearly = problem.active_set.touching
            if nearly is not None and bool(nearly.any()):
                nearly = nearly.to(y.dtype)
                touches = nearly if touches is None else torch.maximum(touches, nearly)
    settled = torch.maximum(error, feasibility) <= SETTLED * torch.finfo(error.dtype).eps
    if uneven is not None:
        settled = settled.logical_and_(uneven.logical_not_())
    status = torch.as_tensor(solution.status, device=y.device)
    iterations = torch.as_tensor(solution.iterations, device=y.device)
    uniqueness, branch, gap = solution.uniqueness, solution.branch, solution.branch_gap
    if aside is not None:
        status = torch.where(aside, int(Status.NON_FINITE), status)
        iterations = torch.where(aside, -1, iterations)
        error, feasibility, licq = (
            x.masked_fill(aside, torch.nan) for x in (error, feasibility, licq)
        )
        uniqueness = None if uniqueness is None else uniqueness.masked_fill(aside, torch.nan)
        apart = None if apart is None else apart.masked_fill(aside, torch.nan)
        branch = None if branch is None else branch.masked_fill(aside, -1)
        gap = None if gap is None else gap.masked_fill(aside, torch.inf)
    return Certificate(
        error, feasibility, status, iterations, tolerance, solution.solver, uniqueness,
        licq=licq,
        touching=touches,
        settled=settled,
        active_margin=None if problem.active_set is None else problem.active_set.margin,
        branch=branch,
        branch_gap=gap,
        kink_margin=None if problem.kinks is None else problem.kinks.margin_of(error <= tolerance),
        told_apart=apart,
        at_kinks=() if problem.kinks is None else problem.kinks.told,
        measured=measured,
    )  # fmt: skip


def _backward_errors(
    problem: Problem, y: Tensor, gradient: Tensor, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    step = STEP[y.dtype]
    constraints = constraint_set(problem, y, in_numbers=True)
    feasibility = constraints.off_manifold()
    own = problem.constraints(y)
    nu = constraints.multipliers(flat(gradient))
    residual = constraints.less_normal(flat(gradient), nu)
    # Without kinks: one that is not active in an item is a row of zeros.
    bare = constraints
    if problem.kinks is not None:
        bare = constraint_set(problem.with_kinks(None), y, in_numbers=True)
    licq = bare.margin(clear_margin(y.dtype, tolerance))
    if own is not None and constraints.A is not None:
        # Terms of a constraint cancel where it holds; their sizes |A||y| are what they cancel from.
        sizes = distinct(constraints.A)[:, : own.shape[1]].abs().expand(len(y), -1, -1)
        scale_h = apply(sizes, flat(y).abs())
        # As their distances were told: an entry of 0 moves by no part of itself.
        end = own.shape[1]
        for held in (problem.kinks, problem.active_set):
            if held is not None and held.count:
                part = slice(end - held.count, end)
                scale_h[:, part] += sizes[:, part].sum(dim=-1) * held.size.unsqueeze(-1)
                end -= held.count

    # Where rows of y are scaled and nothing else, the normal part is scaled with them: no second
    # product of y with the multipliers.
    by_rows = constraints.normal_by_rows and y.shape[-2] >= ONE_PROBE_SIZE
    scale = torch.zeros_like(feasibility)
    of_each: Tensor | None = None
    for probe in range(1 if residual.shape[-1] >= ONE_PROBE_SIZE else PROBES_OF_FEW):
        flags = problem.operands_batched
        operands = [
            perturb(x, step, k + 1, probe) if own else x
            for k, (x, own) in enumerate(zip(problem.operands, flags, strict=True))
        ]
        moved = problem.with_operands(operands)
        if problem.kinks is not None:
            # A difference across a kink is the jump over the step: the derivative is of the smooth part.
            y_moved = perturb(y, step, 0, probe)
            change, change_of_h = first_order_change(problem, y, nu, moved.operands, y_moved)
            scale = torch.maximum(scale, change.norm(dim=-1) / step)
            of_each = change if of_each is None else of_each
            if own is not None:
                scale_h = torch.maximum(scale_h, change_of_h.abs() / step)
            continue
        if by_rows:
            change_of_rows = relative_changes(y, y.shape[1:-1], step, 0, probe).unsqueeze(-1)
            y_moved = torch.addcmul(y, y, change_of_rows)
            # (G' − N') − (G − N) for the normal part N = G − R and N' = (1 + c) N.
            change = moved.gradient(y_moved) - gradient
            change.addcmul_(gradient, change_of_rows, value=-1)
            change = flat(change.addcmul_(residual.reshape(y.shape), change_of_rows))
        else:
            y_moved = perturb(y, step, 0, probe)
            change = constraint_set(moved, y_moved, in_numbers=True).slope(nu)
            # A gradient may be a tensor that the objective keeps; what `less_normal` made is new.
            owned = isinstance(constraints, OnManifold)
            change = change.sub_(residual) if owned else change - residual
        scale = torch.maximum(scale, change.norm(dim=-1) / step)
        of_each = change if of_each is None else of_each
        if own is not None:
            h_moved = moved.constraints(y_moved)
            assert h_moved is not None
            scale_h = torch.maximum(scale_h, (h_moved - own).abs() / step)
    if own is not None:
        feasibility = torch.maximum(feasibility, _violation(problem, own, scale_h))
    uneven = None
    if constraints.any_units and of_each is not None:
        uneven = (residual.abs() > settled_each(y) / step * of_each.abs()).any(dim=-1)
    touches = _touching(problem, y, gradient, constraints, licq, tolerance)
    error, apart = _ratio(residual.norm(dim=-1), scale), None
    along = slope_along_gauge(problem, flat(gradient), constraints, nu, scale)
    if along is not None:
        # Multipliers of the slice, which are zero, would hide it from the residual.
        error, apart = torch.maximum(error, along[0]), torch.maximum(*along)
    return error, feasibility, licq, touches, uneven, apart


def _touching(
    problem: Problem,
    y: Tensor,
    gradient: Tensor,
    constraints: ConstraintSet,
    licq: Tensor,
    tolerance: float,
) -> Tensor | None:
    """See `Certificate.touching`: looked at where the margin is 0, and not for a row of zeros alone, in the
    place of a constraint that is active in other items."""
    A = constraints.A
    if A is None or not bool((licq == 0).any()):
        return None
    there = torch.ones_like(A[:, :, 0], dtype=torch.bool)
    end = A.shape[1]
    if problem.manifold is not None:
        h = problem.constraints(y)
        end = 0 if h is None else h.shape[1]
    for held in (problem.kinks, problem.active_set):
        if held is not None and held.count:
            there[:, end - held.count : end] = held.active
            end -= held.count
    dependent = are_dependent(A, there) & (licq == 0)
    if not bool(dependent.any()):
        return None
    size = size_of_solution(problem, y, flat(gradient), tolerance)
    return torch.where(dependent, touching(problem, y, size), 0.0)


def _violation(problem: Problem, h: Tensor, scales: Tensor) -> Tensor:
    """Of the constraints, and of the arguments of active kinks, which are others: no sum of both. Of the
    active inequality constraints each by itself, whose units may be any."""
    kinks = 0 if problem.kinks is None else problem.kinks.count
    active = 0 if problem.active_set is None else problem.active_set.count
    own = h.shape[-1] - kinks - active
    parts = [slice(0, own), *(slice(k, k + 1) for k in range(own, own + active))]
    parts.append(slice(own + active, None))
    ratios = [_ratio(h[:, p].norm(dim=-1), scales[:, p].norm(dim=-1)) for p in parts]
    return functools.reduce(torch.maximum, ratios)


def _ratio(size: Tensor, scale: Tensor) -> Tensor:
    # 0/0 is an exact solution of a problem that nothing perturbs: 0.
    return torch.where(size == 0, size, size / scale)


# -- policy ---------------------------------------------------------------------------------------


def validated_policy(policy: str) -> str:
    """``policy`` if it is one of raise, warn, nan, mask."""
    if policy not in POLICIES:
        raise InputError(f"no policy '{policy}'.{nearest_choice(policy, POLICIES)}")
    return policy


def validated_certify(certify: str) -> str:
    """``certify`` if it is one of off, fast, full."""
    if certify not in CERTIFY:
        raise InputError(f"no choice '{certify}' of certify; 'off', 'fast' or 'full'")
    return certify


def complaint(certificate: Certificate, where: str, backward: bool) -> str | None:
    """One short line naming what failed, the worst figure and the likely causes; None if all is well."""
    good = certificate.differentiable if backward else certificate.solved
    if bool(good.all()):
        return None
    reasons = _reasons(certificate, backward, doubts=False)
    return f"{where}: {int((~good).sum())} of {good.numel()} {'; '.join(reasons)}"


def _reasons(certificate: Certificate, backward: bool, doubts: bool) -> list[str]:
    of_inputs, rest = _of_inputs(certificate)
    return [*of_inputs, *([] if rest is None else _reasons_of_figures(rest, backward, doubts))]


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
    texts = _describe_inputs(finite, others, solved.shape)
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


def _describe_inputs(
    finite: Mapping[str, Tensor], sound: Tensor, shape: Sequence[int]
) -> list[str]:
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


def _reasons_of_figures(certificate: Certificate, backward: bool, doubts: bool) -> list[str]:
    """The texts of the figures that the policy acts on; with ``doubts`` of all that are not trusted."""
    reasons: list[str] = []
    explained = torch.zeros_like(certificate.stationarity, dtype=torch.bool)
    for figure in certificate._figures(backward):
        bad = ~(figure.value <= figure.trusted if doubts else figure.passes)
        if bool((bad & ~explained if figure.follows else bad).any()):
            text = figure.text(certificate)
            reasons += [] if text in reasons else [text]
        explained = explained | bad
    told = _status_causes(certificate)
    if told and told not in reasons and (not backward or not reasons):
        reasons.append(told)
    return reasons


def _infeasible(certificate: Certificate) -> str:
    return (
        f"infeasible: the constraints are violated by {_worst(certificate.feasibility)} "
        f"{_limit(certificate)}; (a) the solver returns a point off the constraint set, (b) objective "
        "and solver disagree on the constraints"
    )


def _not_stationary(certificate: Certificate) -> str:
    licq = certificate.licq
    degenerate = licq is not None and not bool(
        (licq >= clear_margin(licq.dtype, certificate.tolerance)).all()
    )
    if bool(certificate.stationarity.isnan().any()):
        return (
            "not stationary: the objective's gradient at y is not finite; (a) y is on the boundary of the "
            "objective's domain, for example because an entry of a logarithm or a barrier has underflowed "
            "to 0: use float64, (b) the solver diverged"
        )
    apart = certificate.told_apart
    if apart is not None and bool((apart > certificate.tolerance).any()):
        return _told_apart(certificate)
    return (
        f"not stationary: backward error {_worst(certificate.stationarity)} {_limit(certificate)}; "
        "(a) the solver stopped early, (b) it solves another problem than the objective states"
        + (", (c) the constraints are degenerate there" if degenerate else "")
    )


def _adjoint_not_solved(certificate: Certificate) -> str:
    assert certificate.adjoint_residual is not None
    return (
        f"adjoint system not solved: residual {_worst(certificate.adjoint_residual)} "
        f"{_limit(certificate)}; (a) the solution is not unique, (b) it is not a strict minimum, "
        "(c) dependent constraints"
    )


def _adjoint_differs(certificate: Certificate) -> str:
    assert certificate.adjoint_difference is not None
    own = certificate.own_member
    whose = (
        f"the node's own `{own}`" if own else f"the backward pass of the form '{certificate.form}'"
    )
    return (
        f"{whose} differs from the implicit gradient by "
        f"{_worst(certificate.adjoint_difference)}, relative {_limit(certificate)}; `ddnkit check` says "
        "in what way, and backward='dense' does not use it"
    )


def _at_a_kink(certificate: Certificate) -> str:
    return f"not smooth at the solution: {'; '.join(certificate.at_kinks)}"


def _told_apart(certificate: Certificate) -> str:
    assert certificate.told_apart is not None
    return (
        f"points that mean the same on the manifold are told apart, by {_worst(certificate.told_apart)} "
        f"{_limit(certificate)}; (a) objective or constraints are not invariant under the manifold's gauge, "
        "(b) y is meant as it is, and on the manifold without one"
    )


def _hidden_input(certificate: Certificate) -> str:
    assert certificate.hidden is not None
    return (
        f"{'; '.join(certificate.hidden_by)}: torch's derivatives differ from finite "
        f"differences by {_worst(certificate.hidden)}, relative"
    )


def _not_unique(certificate: Certificate) -> str:
    figures = [c for c in (certificate.uniqueness, certificate.curvature) if c is not None]
    negative = certificate._negative_curvature
    if negative is not None:  # a saddle point is told as such
        figures = [torch.where(negative > 0, torch.inf, c) for c in figures]
    least = min(figures, key=lambda c: float(c.nan_to_num(-torch.inf).min()))
    if bool((least >= certificate._rounding).all()):
        return (
            f"nearly not unique: relative curvature {_least(least)}, so that half of the digits of the "
            "gradient or more are lost; add a term that singles one solution out, or use float64"
        )
    if bool((least < -certificate._rounding).any()):
        return (
            f"not convex: relative curvature {_least(least)}, so that there may be a lower minimum "
            "elsewhere; add to the curvature"
        )
    return (
        f"not unique: relative curvature {_least(least)}; the solution has no gradient; "
        "add a term that singles one out"
    )


def _saddle_point(certificate: Certificate) -> str:
    worst = certificate._negative_curvature
    assert worst is not None
    return (
        f"a saddle point, not a minimum: relative curvature -{_worst(worst)}, so that the objective falls "
        "along some direction; (a) the solver stopped there: start it elsewhere, (b) the objective has the "
        "wrong sign, (c) a constraint is missing"
    )


def _nearly_dependent_constraints(certificate: Certificate) -> str:
    assert certificate.licq is not None
    return (
        f"constraints nearly dependent: margin {_least(certificate.licq)}, neither clearly "
        "independent nor equal to working precision; drop one, or use float64"
    )


def _constraints_touch(certificate: Certificate) -> str:
    return (
        "the constraints touch: no constraint qualification holds, as their gradients are dependent at y, or "
        "all but dependent, and not around it, so that what follows from them is no derivative; (a) two of "
        "them only touch there, (b) one vanishes together with its gradient, as a square does; state the set "
        "otherwise"
    )


def _solution_inaccurate(certificate: Certificate) -> str:
    assert certificate.solution_error is not None
    worst = certificate.solution_error
    step = (
        f"changes it or the gradient by {_worst(worst)}, relative"
        if bool(worst.isfinite().all())
        else "does not reduce the residual"
    )
    return (
        f"y too far from the solution: a step of Newton's method from it {step}; (a) the solver stopped "
        "early, in a flat valley or where units or an offset of the data hide the residual, (b) it solves "
        "another problem than the objective states"
    )


def _error_bound_large(certificate: Certificate) -> str:
    assert certificate.error_bound is not None
    return (
        f"gradient inaccurate: its relative error may be as large as {_worst(certificate.error_bound)}; "
        "(a) y is too far from the solution, (b) the problem is badly conditioned; solve more "
        "accurately, rescale, or use float64"
    )


def _weakly_active(certificate: Certificate) -> str:
    return (
        "a constraint is weakly active: it holds as an equation, and its multiplier is zero, so that the "
        "solution has a kink there; (a) the data are just at it, (b) the objective is at its minimum "
        "without the constraint, (c) active constraints meet here that do not for other inputs, (d) the "
        "solver stopped short of it; a node's `degenerate` chooses a gradient"
    )


def _selection_jumps(certificate: Certificate) -> str:
    assert certificate.selection_error is not None
    return (
        "the solution of least norm jumps: at inputs nearby the solutions are no set of the same kind "
        f"(off by {_worst(certificate.selection_error)}, relative); (a) a matrix whose rank the inputs "
        "change, (b) a face of a linear program that they turn, (c) a valley that is flat to a higher order, "
        "as y⁴ at 0"
    )


def _equal_minima(certificate: Certificate) -> str:
    return (
        "two minima are equally low, so that the solution jumps from one to the other there and has no "
        "gradient; (a) the problem is symmetric: add a term or a constraint that singles one out, or start "
        "once, (b) the data are just where the minima change places"
    )


def _limit(certificate: Certificate) -> str:
    return f"(tolerance {certificate.tolerance:.0e})"


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


def _least(value: Tensor) -> str:
    return "none" if value.numel() == 0 else f"{float(value.min()):.1e}"


def _worst(value: Tensor) -> str:
    if value.numel() == 0:
        return "0"
    return "NaN" if bool(value.isnan().any()) else f"{float(value.max()):.1e}"
