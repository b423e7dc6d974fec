"""Subject: what is checked. A node, the backward forms it is checked with, and how it is called."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backward.form import BackwardForm, resolve_form
from ..batch_solve import solve
from ..batched_inputs import batched_inputs
from ..captured import Captured, attributes, versions
from ..certificate import Certificate, measure, tolerance_of
from ..errors import DdnkitError, InputError
from ..implicit.own_adjoint import Comparisons
from ..late_operands import captured_tensors, reject_changed_state
from ..layer import DeclarativeLayer
from ..manifold import check_shapes
from ..members import read
from ..node import DeclarativeNode
from ..observation import observe, refuse_work_in_place
from ..problem import Problem, flat
from ..recording import Held
from ..solution import Solution, Status
from ..structure import Structure
from .manifold_report import ManifoldReport


@dataclass
class SolvedBatch:
    """A batch of problems with its solution: captured tensors stand in it as plain numbers.

    Attributes:
        shape: the batch dimensions that the inputs came with.
    """

    problem: Problem
    solution: Solution
    shape: torch.Size

    @property
    def y(self) -> Tensor:
        """(B, m)."""
        return flat(self.solution.y)


@dataclass(eq=False)
class Subject:
    """A node under check.

    Attributes:
        forms: the backward forms to compare.
        batch_dims, tolerance: as for a layer.
        asked: the caller named the forms: an error of any of them is a failure.
        local: a local minimum is what `solve` is meant to return.
        takes: what the node's class says of its inputs.
        manifold_reports: of checks of its manifold, by the shape of y.
    """

    node: DeclarativeNode
    forms: Sequence[BackwardForm]
    batch_dims: int | None = None
    tolerance: float | None = None
    asked: bool = False
    local: bool = False

    def __post_init__(self) -> None:
        self.takes = read(self.node)
        self.manifold_reports: dict[tuple[int, ...], ManifoldReport] = {}
        self._pristine = _copy(self.node)

    @property
    def name(self) -> str:
        """The node's class."""
        return type(self.node).__name__

    @property
    def names_no_batch(self) -> bool:
        """Whether nothing says which dimensions of the inputs are batch."""
        return self.batch_dims is None and self.node.input_dims is None

    @property
    def has_own_solve(self) -> bool:
        """Whether `solve` is the node's own, which takes no start, and not a registered solver's."""
        return type(self.node).solve is not DeclarativeNode.solve

    def with_forms(self, forms: Sequence[BackwardForm]) -> Subject:
        """The same node with other forms."""
        return self._with(forms=tuple(forms))

    def with_batch_dims(self, batch_dims: int | None) -> Subject:
        """The same node, called with so many batch dimensions."""
        return self._with(batch_dims=batch_dims)

    def with_tolerance(self, tolerance: float) -> Subject:
        """The same node with another tolerance."""
        return self._with(tolerance=tolerance)

    def pristine(self) -> Subject | None:
        """The same with a copy of the node as it was before the check; None if it cannot be copied."""
        node = _copy(self._pristine)
        return None if node is None else self._with(node=node)

    def _with(self, **attributes: Any) -> Subject:
        changed = copy.copy(self)
        for name, value in attributes.items():
            setattr(changed, name, value)
        return changed

    # -- calls ----------------------------------------------------------------------------------

    def layer(self, form: BackwardForm) -> DeclarativeLayer:
        """The public way to a gradient by ``form``; a failed certificate shows as NaN."""
        layer = DeclarativeLayer(
            self.node,
            form,
            batch_dims=self.batch_dims,
            tolerance=self.tolerance,
            policy="nan",
        )
        # The differences show whether a node's own adjoint is wrong, and how;
        layer.comparisons = Comparisons(every=0)
        # and whether an input is hidden from torch.
        layer.looks_for_hidden = False
        return layer

    def check_manifold(self, xs: Sequence[object]) -> None:
        """Refuse a manifold whose members give something of another shape than they should.

        Solvers and forms would fail far from the member that is wrong; those that do not use it would not
        notice. The shape of y is that of the initial point: a node with its own `solve` is not asked.
        """
        manifold = self.node.manifold
        if manifold is None or self.has_own_solve:
            return
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                inputs, shape = batched_inputs(self.node, xs, self.batch_dims)
                y = Problem(self.node, inputs, shape.numel()).start()
            except Exception:  # told where the case is solved
                return
            check_shapes(manifold, y)

    def resolve_form(self, form: BackwardForm, solved: SolvedBatch) -> BackwardForm:
        """``form``, or the one that "auto" takes."""
        return resolve_form(form, solved.problem, solved.y.shape[-1])

    def solve(self, xs: Sequence[object]) -> SolvedBatch:
        """The solution from the node's own starting point, as a layer would find it."""
        inputs, shape = batched_inputs(self.node, xs, self.batch_dims)
        asked = Problem(self.node, inputs, shape.numel())
        held = [Held(x) for x in asked.operands]
        kept = [(x, x.clone()) for x in xs if isinstance(x, Tensor)]
        with torch.no_grad():
            problem, solution = solve(asked)
            try:
                refuse_work_in_place(asked, held, "solve")
            except InputError:
                # The report shows the inputs as they were given.
                for x, value in kept:
                    x.detach().copy_(value)
                raise
        before = versions(self.node)
        captured = self.captured_tensors(problem, solution.y)
        reject_changed_state(self.node, before)
        values = [c.tensor.detach() for c in captured]
        problem = problem.with_captured(captured, values)
        if problem.batch_size and bool(solution.y.isfinite().all()):
            problem = self._with_kinks_and_active_set(problem, solution.y)
        return SolvedBatch(problem, solution, shape)

    def _with_kinks_and_active_set(self, problem: Problem, y: Tensor) -> Problem:
        """The problem with its active constraints and kinks at y."""
        shown = observe(
            problem,
            y,
            problem.record(y),
            tolerance_of(problem, y, self.tolerance),
            operands=[],
            first=True,
            wanted=(),
        )
        return shown.completed(problem)

    def solve_again(self, problems: Sequence[Problem], start: Tensor | None) -> list[Tensor]:
        """y (B, m) of each problem, from ``start`` (B, *y) where the node's solver takes one."""
        if self.node.batched_solve and self.has_own_solve:
            # Its items might influence one another, which `compare_batch` looks for.
            return [self._solve_near(problem, start) for problem in problems]
        first, count = problems[0], len(problems)
        if first.captured or count == 1:
            return [self._solve_near(problem, start) for problem in problems]
        inputs = [
            torch.cat([p.inputs[i] for p in problems]) if isinstance(x, Tensor) else x
            for i, x in enumerate(first.inputs)
        ]
        merged = Problem(self.node, inputs, count * first.batch_size)
        merged = merged.with_structure(first.structure)
        if start is not None:
            start = start.repeat(count, *[1] * (start.ndim - 1))
        return list(self._solve_near(merged, start).chunk(count))

    def _solve_near(self, problem: Problem, start: Tensor | None) -> Tensor:
        with torch.no_grad():
            if self.has_own_solve or start is None:
                return flat(solve(problem)[1].y)
            solution = solve(problem, start)[1]
            y = flat(solution.y)
            # A solver that cannot leave a kink where it starts has found nothing there.
            stays = torch.as_tensor(solution.status) > Status.UNKNOWN
            stays = stays.to(y.device) & (y == flat(start)).all(dim=1)
            if bool(stays.any()):
                y = torch.where(stays.unsqueeze(1), flat(solve(problem)[1].y), y)
            return y

    def certificate(self, solved: SolvedBatch) -> Certificate:
        """The certificate of a solved batch, by the tolerance of the subject."""
        found = measure(solved.problem, solved.solution, self.tolerance)
        values = {k: v.detach() for k, v in vars(found).items() if isinstance(v, Tensor)}
        return dataclasses.replace(found, **values)  # type: ignore[arg-type]

    def captured_tensors(self, problem: Problem, y: Tensor) -> list[Captured]:
        """Tensors beside the inputs that the solution depends on and that want a gradient."""
        given = {id(x) for x in problem.inputs if isinstance(x, Tensor)}
        found = {
            id(tensor): Captured(tensor, path)
            for path, tensor in attributes(self.node)
            if tensor.requires_grad and id(tensor) not in given
        }
        known = problem.with_captured(
            list(found.values()), [c.tensor.detach() for c in found.values()]
        )
        try:
            return [*found.values(), *captured_tensors(known, y, transformed=False)]
        except DdnkitError:
            return list(found.values())  # the layer's call will raise the same, and be reported


def vector(y: Any, batch_dims: int) -> Tensor:
    """What a layer returned, a tensor or parts, as (*batch, m)."""
    structure = Structure.of(y, "y")
    if structure is None:
        tensor: Tensor = y
        return tensor.reshape(*tensor.shape[:batch_dims], tensor.shape[batch_dims:].numel())
    return structure.join(y, batch_dims)


@contextmanager
def freeze(captured: Sequence[Captured]) -> Iterator[None]:
    """Captured leaves want no gradient meanwhile.

    A layer whose node has parameters takes the general way for all its gradients; a node's own
    adjoint is used, and can be checked, without them.
    """
    leaves = [c.tensor for c in captured if c.tensor.is_leaf and c.tensor.requires_grad]
    try:
        for leaf in leaves:
            leaf.requires_grad_(False)
        yield
    finally:
        for leaf in leaves:
            leaf.requires_grad_(True)


def _copy(node: Any) -> Any:
    try:
        return copy.deepcopy(node)
    except Exception:  # a stranger's attributes may refuse in any way
        return None
