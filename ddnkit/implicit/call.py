"""Call: one call of a layer, from forward to whatever derivatives are asked for later.

It solves, certifies, lets the policy act, and does the numerical work that the equations ask for. A
call may be folded into a larger batch by vmap; figures are then kept for that batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..active_set import active_set
from ..assessment import assess, curvature_along_gauge, error_bound, solution_error
from ..backward.closed_form import copy_aliases
from ..backward.form import BackwardForm, TangentSolve, resolve_form, system_solution
from ..batch_solve import finite_inputs, may_look, solve_apart, with_stand_ins
from ..captured import Captured, versions
from ..certificate import Certificate, act, complaint, measure, tolerance_of
from ..errors import InputError
from ..fixed_point import FixedPointNode
from ..joined_certificate import Part
from ..kinks import kinks_of
from ..late_operands import (
    captured_tensors,
    reject_changed_state,
    reject_rebound_tensors,
    reject_unfollowed_tensors,
)
from ..observation import Observation, observe, refuse_work_in_place
from ..problem import Evaluation, Problem, flat
from ..recording import Held, tell
from ..solution import Solution
from ..structure import Structure
from ..transforms import under_transform
from .own_adjoint import Comparisons, difference
from .tangent_equation import LinearSystems


class _Factorised(LinearSystems):
    """With the system at one point factorised already."""

    def __init__(self, form: BackwardForm, solve: TangentSolve, y: Tensor):
        super().__init__(form)
        self._solve, self._y = solve, y

    def solve_system(
        self, problem: Problem, y: Tensor, nu: Tensor, r: Tensor, multipliers: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """See `LinearSystems.solve_system`."""
        if y is not self._y:
            return super().solve_system(problem, y, nu, r, multipliers)
        found = system_solution(self._solve, r, multipliers)
        return found.z, found.mu


#: Outputs beside what a solver keeps: which constraints and kinks are active, and what selects a solution. No
#: solver's name has a space.
_ACTIVE, _AT_KINKS, _SELECTION = "active constraints", "active kinks", "of selection"
_OWN_OUTPUTS = (_ACTIVE, _AT_KINKS, _SELECTION)


class Call(LinearSystems):
    """What one call of a layer keeps beside its tensors.

    Attributes:
        aux_names: what the solver kept, the outputs after y. Where `tells_good` the last is ``good``:
            which items passed, with the policy "mask"; which are not among the `underived`.
        late_operands: tensors found inside the objective that must become operands.
        certificate: figures of the whole, flat batch.
        aside: items (B,) that were solved as copies of others (see `ddnkit.batch_solve`), or None.
        underived: items (B,) that have no derivative, and are no numbers that others could be computed
            beside; None where there are none, or where that is not to be waited for.

    Args:
        known: what was found of the solution before. part: of which batch its items are a part, if they are.
    """

    def __init__(
        self,
        form: BackwardForm,
        *,
        policy: str,
        tolerance: float | None,
        certify: str,
        batch_shape: Sequence[int],
        start: Tensor | None,
        show: Callable[[Certificate, Certificate | None], None],
        comparisons: Comparisons,
        first: bool = False,
        wanted: Sequence[bool] = (),
        moving: Sequence[bool] = (),
        known: Solution | None = None,
        part: Part | None = None,
    ):
        super().__init__(form)
        self.policy = policy
        self.moving = tuple(moving)
        self.certify = certify
        self.tolerance = tolerance
        self.batch_shape = tuple(batch_shape)
        self.start = start
        self._show = show
        self.first = first
        self.wanted = tuple(wanted)
        self.observation: Observation | None = None
        self._comparisons = comparisons
        self._number = comparisons.begin()
        self.aux_names: tuple[str, ...] = ()
        self.structure: Structure | None = None
        self.late_operands: list[Captured] = []
        self.transformed = under_transform()
        self.certificate: Certificate | None = None
        self.aside: Tensor | None = None
        self.underived: Tensor | None = None
        self.tells_good = False
        self._finite: Mapping[str, Tensor] = {}
        self._shown: Certificate | None = None
        self._shape = self.batch_shape
        self._solved: tuple[Problem, Solution, Certificate] | None = None
        self._y: Held | None = None
        self._prepared: tuple[list[tuple[int, int, torch.Size]], Any, TangentSolve] | None = None
        self._name, self._raises_weak = "", False
        self._known, self._part = known, part
        self._warned: set[str | None] = set() if part is None else part.whole.told

    def complete(self, problem: Problem, outputs: Sequence[Tensor] = ()) -> Problem:
        """The problem, with the parts of y, the active constraints and the active kinks of its solution.

        Args:
            outputs: those of the solution, where they may be a transform's.
        """
        problem = problem.with_structure(self.structure)
        seen = self.observation
        if seen is None:
            return problem
        masks = dict(zip(self.aux_names, outputs[1:], strict=False))
        active, kinks, selection = seen.active_set, seen.kinks, seen.selection
        if problem.selection is None and selection is not None:
            if _SELECTION in masks:
                names = [f"{_SELECTION} {k}" for k in range(1, len(selection.masks))]
                selection = selection.with_masks(iter([masks[n] for n in (_SELECTION, *names)]))
            problem = problem.with_selection(selection)
        if problem.active_set is None and active is not None:
            mask = masks.get(_ACTIVE, active.active)
            problem = problem.with_active_set(active.with_mask(mask))
        if problem.kinks is None and kinks is not None:
            problem = problem.with_kinks(kinks.with_mask(masks.get(_AT_KINKS, kinks.active)))
        return problem

    def refuse_changed(self, problem: Problem, y: Tensor) -> None:
        """Raise if an operand, or y, is not what it was when the layer was called."""
        if self.observation is not None:
            self.observation.refuse_changed(problem)
        # The caller has it, and can write on it where autograd's versions do not tell (numpy, `.data`).
        # Elsewhere it may have been copied since, and versions are all that there is.
        held = self._y
        if held is None or held.shape != y.shape or y.device.type != "cpu":
            return
        if held.differs(Held(y)):
            raise InputError(
                f"{type(problem.node).__name__}: y was changed in place after the layer was called, so its "
                "gradient cannot be computed any more: change a copy, or change it after backward()"
            )

    def as_solved(self, problem: Problem, y: Tensor, by_its_own: bool = False) -> Problem:
        """The problem as it was when it was solved, for a derivative at y.

        Args:
            by_its_own: the node's own adjoint gives it, which may use more of the node than the objective
                does, and does not evaluate that: away from the CPU what the node holds is looked at alone.
        """
        if self.observation is None or not problem.batch_size or self.nothing_derived:
            return problem
        if by_its_own and y.device.type != "cpu" and not self.observation.state.changed():
            return problem
        # What a solve of one problem at a time leaves on the node is the last item's: no state of the call's.
        whole = by_its_own and problem.node.batched_solve
        return self.observation.as_solved(problem, y, whole=whole)

    # -- forward --------------------------------------------------------------------------------

    def solve(self, problem: Problem, lead: Sequence[int]) -> tuple[Tensor, ...]:
        """y and what the solver kept. Sets `late_operands`, and then the result is to be thrown away."""
        with _graphs_of_its_own():
            return self._solve(problem, lead)

    def _solve(self, problem: Problem, lead: Sequence[int]) -> tuple[Tensor, ...]:
        self._shape = (*lead, *self.batch_shape)
        if self._solved is None:
            self._solved = self._solve_and_measure(problem, lead)
            if self.late_operands:
                # The same solution serves once they are operands: the next call takes it from here.
                return (self._solved[1].y,)
        found, solution, certificate = self._solved
        self._solved = None
        if self.late_operands:
            whole = problem if self.aside is None else with_stand_ins(problem, self.aside)[0]
            whole = whole.with_structure(found.structure)
            reject_unfollowed_tensors(whole, solution.y)
            if self.observation is not None:
                self.observation = self.observation.again(whole, solution.y)
        self.structure = found.structure
        self._name = type(found.node).__name__
        self._raises_weak = found.node.degenerate == "raise"
        self.form = resolve_form(self.form, found, solution.y.shape[1:].numel())
        certificate = dataclasses.replace(
            certificate, form=self.form.name, own_member=self.form.node_member
        )
        if self.certify == "full" and not self.nothing_sound:
            certificate = assess(found, solution, self.form, certificate, wanted=self.wanted)
        self._conclude(certificate, backward=False)
        y, good = solution.y, certificate.solved
        if self.aside is not None:
            y = _fill(~self.aside, y, torch.nan)
        self.underived = self.aside
        if self.aside is None and self.policy == "nan" and may_look(problem, self.policy):
            self.underived = None if bool(good.all()) else ~good
        aux = dict(solution.aux)
        if self.policy == "nan":
            y = _fill(good, y, torch.nan)
        if self.policy == "mask":
            y = torch.where(y.isfinite() | good.reshape(-1, *[1] * (y.ndim - 1)), y, 0.0)
        self.tells_good = self.policy == "mask" or self.underived is not None
        if found.selection is not None:
            for k, mask in enumerate(found.selection.masks):
                aux[f"{_SELECTION} {k}" if k else _SELECTION] = mask
        if found.active_set is not None and found.active_set.count:
            aux[_ACTIVE] = found.active_set.active
        if found.kinks is not None and found.kinks.count:
            aux[_AT_KINKS] = found.kinks.active
        if self.tells_good:
            aux["good"] = good if self.underived is None else good & ~self.underived
        self.aux_names = tuple(aux)
        self._y = Held(y.detach())  # y itself will have a graph, which leads back here
        return (y, *aux.values())

    def _solve_and_measure(
        self, problem: Problem, lead: Sequence[int]
    ) -> tuple[Problem, Solution, Certificate]:
        """The problem with what its solution has shown of it, the solution, and its certificate."""
        start = self.start
        if start is not None and lead:
            start = start.expand(*lead, *start.shape).flatten(0, len(lead))
        finite = finite_inputs(problem, start)
        held = [Held(x) for x in problem.operands]
        found, solution, self.aside = solve_apart(
            problem.with_known(self._known), start, finite, policy=self.policy
        )
        found = found.with_known(None)
        refuse_work_in_place(problem, held, "solve")
        evaluation = None
        if found.batch_size and not self.nothing_sound:
            evaluation = self._observe(found, solution.y, problem, held)
            if self.observation is not None:
                found = self.observation.completed(found)
        measured = self.certify != "off"
        certificate = measure(found, solution, self.tolerance, evaluation, self.aside, measured)
        certificate = dataclasses.replace(certificate, finite=finite)
        if self.observation is not None:
            certificate = dataclasses.replace(
                certificate, hidden=self.observation.hidden, hidden_by=self.observation.hidden_by
            )
        return found, solution, certificate

    def _observe(self, problem: Problem, y: Tensor, given: Problem, held: list[Held]) -> Evaluation:
        """One evaluation at y: what it shows is kept for the way back. Sets `late_operands`.

        Args:
            given: the problem with no item set aside, and what its operands held before the solve.
        """
        before = versions(problem.node)
        recorded = problem.record(y)
        refuse_work_in_place(given, held, "objective")
        self.late_operands = captured_tensors(
            problem, y, transformed=self.transformed, evaluation=recorded.evaluation
        )
        reject_changed_state(problem.node, before)
        self.observation = observe(
            problem,
            y,
            recorded,
            tolerance_of(problem, y, self.tolerance),
            operands=held,
            first=self.first,
            wanted=self._by_objective(problem, y),
            moving=self.moving,
        )
        tell(self.observation.traces)
        return recorded.evaluation

    def _by_objective(self, problem: Problem, y: Tensor) -> list[bool]:
        """For each operand, whether the objective's derivatives may be asked for its gradient.

        A node's own adjoint gives those of inputs, and is held against a known answer itself.
        """
        own = resolve_form(self.form, problem, y.shape[1:].numel()).has_adjoint
        inputs = problem.input_count
        asked = self.certify != "off"
        return [asked and want and not (own and k < inputs) for k, want in enumerate(self.wanted)]

    def set_aside(self, aside: Tensor | None, finite: Mapping[str, Tensor]) -> None:
        """Take in what a solve outside of this call has found, for `measured`."""
        self.aside, self._finite = aside, finite

    @property
    def nothing_derived(self) -> bool:
        """Whether no item has a derivative."""
        return self.underived is not None and bool(self.underived.all())

    @property
    def nothing_sound(self) -> bool:
        """Whether every item was set aside: there is no solution, and no derivative to compute."""
        return self.aside is not None and bool(self.aside.all())

    def certify_only(self, problem: Problem, y: Tensor, lead: Sequence[int]) -> Tensor:
        """y with its certificate, for a solution that came with a graph of its own."""
        self._shape = (*lead, *self.batch_shape)
        self._name = type(problem.node).__name__
        solution = Solution(y).batched(len(y))
        if len(y) and not self.nothing_sound:
            with _graphs_of_its_own():
                limit = tolerance_of(problem, y, self.tolerance)
                problem = problem.with_active_set(active_set(problem, y, limit, self.wanted))
                problem = problem.with_kinks(kinks_of(problem, y, problem.record(y), limit))
        measured = self.certify != "off"
        certificate = measure(
            problem, solution, self.tolerance, aside=self.aside, measured=measured
        )
        certificate = dataclasses.replace(certificate, finite=self._finite)
        self._conclude(dataclasses.replace(certificate, form=self.form.name), backward=False)
        good = certificate.solved
        return _fill(good, y, torch.nan) if self.policy == "nan" else y.clone()

    def _conclude(self, certificate: Certificate, backward: bool) -> None:
        before = self._shown
        self.certificate = certificate
        part = self._part
        self._shown = certificate.reshape(self._shape) if part is None else part.take(certificate)
        self._show(self._shown, before if backward else None)
        weak = backward and self._raises_weak and bool((certificate.weakly_active).any())
        if self.policy in ("raise", "warn") or weak:
            where = f"{self._name} ({certificate.form or self.form.name})"
            message = complaint(self._shown, where, backward)
            # One call may solve many systems, for many derivatives: each complaint is heard once.
            if weak or self.policy == "raise" or message not in self._warned:
                act("raise" if weak else self.policy, message)
            self._warned.add(message)

    # -- derivatives ----------------------------------------------------------------------------

    def solve_system(
        self, problem: Problem, y: Tensor, nu: Tensor, r: Tensor, multipliers: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """z (k, B, m) by the form, masked by the policy; with ``multipliers``, where the gradient is made of
        them, the form's μ (k, B, p) if it has it."""
        rough: Tensor | None = None
        # To look is to wait for a GPU, which the other policies promise not to do.
        if y.device.type == "cpu" or self.policy in ("raise", "warn"):
            sound = flat(y).isfinite().all(dim=1) & flat(nu).isfinite().all(dim=1)
            settled = self._settled_items(len(y))
            if not bool((sound if settled is None else sound & settled).all()):
                if not bool(sound.all()):
                    return self._of_sound(sound, problem, y, nu, r, multipliers)
                rough = None if settled is None else ~settled
        found = system_solution(self._tangent_solve(problem, y, nu), r, multipliers)
        if len(r) == 1:
            self._bound_error(problem, y, -r[0].reshape(y.shape))
        if rough is not None:
            self._estimate(problem, y, nu, rough, -r[0].reshape(y.shape))
        self._judge(found.residual, found.saddle, found.then)
        z = self._fill_failed(found.z.flatten(0, 1), torch.nan, len(y)).reshape(found.z.shape)
        return z, found.mu

    def _of_sound(
        self, sound: Tensor, problem: Problem, y: Tensor, nu: Tensor, r: Tensor, multipliers: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The same where some solutions are no numbers, which would stop the others."""
        if not bool(sound.any()):
            return torch.full_like(r, torch.nan), None
        copies, source = with_stand_ins(problem, ~sound)
        solve = self._tangent_solve(copies, y[source], nu[source])
        found = system_solution(solve, r[:, source], multipliers)
        settled = self._settled_items(len(y))
        if settled is not None:
            point = y[source], nu[source]
            self._estimate(copies, *point, ~settled & sound, -r[0, source].reshape(y.shape))
        self._judge(found.residual, found.saddle, found.then)
        z = torch.where(sound.unsqueeze(-1), found.z, torch.nan)
        z = self._fill_failed(z.flatten(0, 1), torch.nan, z.shape[1]).reshape(z.shape)
        return z, found.mu

    def _bound_error(self, problem: Problem, y: Tensor, v: Tensor) -> None:
        """On the way back the error bound is for the gradient that came in."""
        certificate = self.certificate
        if self.certify != "full" or certificate is None or len(y) != len(certificate.stationarity):
            return
        whole = self.complete(problem)
        bound = error_bound(whole, y, self.form, certificate, v, self.wanted)
        self.certificate = dataclasses.replace(certificate, error_bound=bound)

    def _settled_items(self, batch: int) -> Tensor | None:
        """Items whose y is solved to rounding; None where nobody asks, or the answer is there already."""
        certificate = self.certificate
        if self.certify != "fast" or certificate is None or certificate.solution_error is not None:
            return None
        return certificate.settled if batch == len(certificate.stationarity) else None

    def _estimate(self, problem: Problem, y: Tensor, nu: Tensor, rough: Tensor, v: Tensor) -> None:
        """What the error of a y that is not solved to rounding makes of the gradient, once a call."""
        certificate = self.certificate
        assert certificate is not None
        rough = rough & certificate.solved
        if not bool(rough.any()):
            return
        systems = _Factorised(self.form, self._tangent_solve(problem, y, nu), y)
        try:
            error = solution_error(
                self.complete(problem), y, nu, systems, certificate, rough, v, self.wanted
            )
        except Exception:  # whatever a node throws at a point that is not its solution
            error = torch.where(rough, torch.inf, 0.0).to(y.dtype)
        self.certificate = dataclasses.replace(certificate, solution_error=error)

    def _tangent_solve(self, problem: Problem, y: Tensor, nu: Tensor) -> TangentSolve:
        # ν is a function of the operands and y, which therefore tell whether this is the same point.
        # They are kept, so that no other tensor can take their place in memory.
        point = [*problem.operands, y]
        key = [(x.data_ptr(), x._version, x.shape) for x in point]
        if self._prepared is None or self._prepared[0] != key:
            reject_rebound_tensors(self.complete(problem), y)
            prepared = self.form.tangent_solve(self.complete(problem), y, nu)
            if not callable(prepared):
                raise InputError(
                    f"form '{self.form.name}': its method tangent_solve returned {prepared!r:.100}; expected "
                    "a function of right sides, or a ddnkit.SystemSolve"
                )
            self._prepared = key, point, prepared
            self._look_along_gauge(problem, y, nu)
        return self._prepared[2]

    def _look_along_gauge(self, problem: Problem, y: Tensor, nu: Tensor) -> None:
        """What only a derivative needs: no curvature in directions in which y means the same."""
        certificate = self.certificate
        if certificate is None or certificate.told_apart is None or self.certify == "off":
            return
        if len(y) != len(certificate.stationarity):
            return
        found = curvature_along_gauge(self.complete(problem), y, nu)
        if found is not None:
            # At a point that is no solution it says nothing, and near one by a multiple of how near.
            clear = certificate.solved & (found > certificate.tolerance**0.5)
            found = torch.where(clear, found, 0.0)
            worse = torch.maximum(certificate.told_apart, found)
            self.certificate = dataclasses.replace(certificate, told_apart=worse)

    def shortcut(self, problem: Problem, wrt: Sequence[int]) -> list[int]:
        """Those of the operands whose gradient the form knows a shorter way to: inputs alone."""
        inputs = problem.input_count
        return [i for i in wrt if i < inputs] if self.form.has_adjoint else []

    def adjoint(
        self, problem: Problem, y: Tensor, v: Tensor, aux: Sequence[Tensor], wrt: Sequence[int]
    ) -> list[Tensor]:
        """The gradients by the form's shortcut, masked by the policy."""
        kept: Mapping[str, Tensor] = {
            name: value
            for name, value in zip(self.aux_names, aux, strict=True)
            if not name.startswith(_OWN_OUTPUTS) and not (name == "good" and self.tells_good)
        }
        whole = self.complete(problem)
        reject_rebound_tensors(whole, y)
        # Before the gradient itself: an adjoint may work in the memory of v, or of what it returns.
        self._compare(whole, y, kept, wrt)
        gradients, residual = self.form.adjoint(whole, y, v, kept, wrt)
        self._bound_error(problem, y, v)
        self._judge(None if residual is None else residual.unsqueeze(0))
        fill = 0.0 if self.policy == "mask" else torch.nan
        filled = [self._fill_failed(g, fill, problem.batch_size) for g in gradients]
        return copy_aliases(filled, [*problem.operands, y, v, *aux])

    def _compare(
        self, problem: Problem, y: Tensor, aux: Mapping[str, Tensor], wrt: Sequence[int]
    ) -> None:
        """Hold the node's own adjoint against a known answer, in calls where that is due."""
        certificate, comparisons = self.certificate, self._comparisons
        assert certificate is not None
        size, wrt = len(certificate.stationarity), list(wrt)
        # The objective of a FixedPointNode is made of its map, which cannot contradict it.
        stated = type(problem.node).objective is FixedPointNode.objective
        if not comparisons.every or stated or not size or problem.batch_size % size:
            return
        if self.certify == "off":
            return
        signature = (
            self.form.name,
            y.shape,
            y.dtype,
            tuple(wrt),
            comparisons.begun != self._number,
            *(x.shape for x in problem.operands),
        )
        if not comparisons.due(signature) and self.certify != "full":
            standing = comparisons.recall(signature)
            if standing is not None:
                error = standing.to(y).expand(size)
                self.certificate = dataclasses.replace(certificate, adjoint_difference=error)
            return
        sound = certificate.differentiable
        backward_error = torch.maximum(certificate.stationarity, certificate.feasibility)
        backward_error = torch.where(sound, backward_error, 0.0).repeat(problem.batch_size // size)

        def adjoint(v: Tensor) -> tuple[list[Tensor], Tensor | None]:
            # An adjoint may work in the memory of what it is given.
            kept = {name: value.clone() for name, value in aux.items()}
            return self.form.adjoint(problem, y, v, kept, wrt)

        found = difference(problem, y, adjoint, wrt, backward_error)
        if found is None:
            return
        # Without a solution, or with many, there is no answer to know, and the item has failed already.
        error = torch.where(sound, found.reshape(-1, size).amax(dim=0), 0.0)
        self.certificate = dataclasses.replace(certificate, adjoint_difference=error)
        if y.device.type == "cpu" or self.policy in ("raise", "warn"):
            if not bool((error <= certificate.tolerance).all()):
                comparisons.again(signature)
        else:
            # What is wrong for all items stays in force up to the next comparison.
            comparisons.keep(signature, error.nan_to_num(2.0).amin())

    def _judge(self, residual: Tensor | None, saddle: Tensor | None = None, then: str = "") -> None:
        """Take the residual (k, B), what is known of a saddle point (B,), and which form solved again what
        the first one left, into the certificate, whose batch may have been repeated in B."""
        certificate = self.certificate
        assert certificate is not None
        form = f"{self.form.name}, then {then}" if then else self.form.name
        certificate = dataclasses.replace(certificate, form=form)
        size = len(certificate.stationarity)
        if residual is not None and residual.numel() and residual.shape[1] % size == 0:
            worst = residual.amax(dim=0).reshape(-1, size).amax(dim=0)  # NaN stays NaN
            certificate = dataclasses.replace(certificate, adjoint_residual=worst)
        if saddle is not None and saddle.numel() and len(saddle) % size == 0:
            worst = saddle.to(certificate.stationarity).reshape(-1, size).amax(dim=0)
            certificate = dataclasses.replace(certificate, saddle=worst)
        self._conclude(certificate, backward=True)

    def _fill_failed(self, z: Tensor, fill: float, batch: int) -> Tensor:
        """z (k·batch, ...) with ``fill`` for failed items, where the policy says so."""
        assert self.certificate is not None
        size = len(self.certificate.stationarity)
        if self.policy in ("raise", "warn") or not size or batch % size:
            return z
        return _fill(self.certificate.differentiable.repeat(len(z) // size), z, fill)


def _fill(good: Tensor, x: Tensor, fill: float) -> Tensor:
    return torch.where(good.reshape(-1, *[1] * (x.ndim - 1)), x, fill)


def _graphs_of_its_own() -> contextlib.AbstractContextManager[Any]:
    """Graphs that serve a solve alone, hidden from what watches the tensors that graphs save.

    Checkpointing counts them, and refuses a call that saves others than the one that it repeats: a first
    call looks closer than later ones.
    """
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
        return contextlib.nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
