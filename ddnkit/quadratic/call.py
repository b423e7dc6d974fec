"""A layer's call of a `QPNode`, in matrices from the data to the gradient.

The eager way (`ddnkit.implicit`) evaluates, measures and differentiates a node's functions, whatever they
are. Of a quadratic program all of that is known beforehand: a call solves it, measures the solution by its
matrices, and keeps the factors for the gradient (`adjoint`). As in other short calls (`ddnkit.programs`),
only what is clear is taken: items solved to rounding, by rows that do not depend on each other, or do so
without harm. What is not
goes the eager way from the solution that was found, and with it every word that is to be said; so do
transforms of torch.func, forward mode and derivatives of derivatives.

Of a batch the clear items are one part and the others another: two calls whose outputs and certificates
(`ddnkit.joined_certificate`) are put together by item.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..active_set import sharp_edge
from ..batch_solve import finite_inputs
from ..batched_inputs import batched_inputs
from ..certificate import TOLERANCE, Certificate, LateCertificate
from ..joined_certificate import JoinedCertificate
from ..problem import Problem
from ..solution import SETTLED, Multipliers, Status
from ..transforms import plain_surroundings
from .adjoint import InMatrices, State
from .pivoting import LEAST_PIVOT
from .program import ActiveRows, Factors, Figures, QuadraticProgram, RowFactors, figures_at, times
from .solver import Solved, is_settled, solve

if TYPE_CHECKING:
    from ..layer import DeclarativeLayer
    from .node import QPNode


def in_matrices(
    node: QPNode, layer: DeclarativeLayer, xs: Sequence[Any], start: Any, multipliers: bool
) -> Any:
    """y, with its multipliers if they are asked for; or the solution that the eager way is to go on from, or
    None where nothing is known of it."""
    if not (
        layer.short.on
        and layer.certify in ("fast", "off")
        and layer.form.name == "auto"
        and node.is_plain
        and plain_surroundings()
        and _are_plain(node, layer, xs)
    ):
        return None
    inputs, batch_shape = batched_inputs(node, xs, None, repeat=False)
    dtype, size = inputs[0].dtype, batch_shape.numel()
    if not size:
        return None
    with torch.no_grad():
        if start is not None:
            shape = (*batch_shape, inputs[1].shape[-1])
            if not isinstance(start, Tensor) or start.shape != shape:
                return None  # the eager way says what is wrong with it
            start = start.detach().reshape(size, -1)
        program = node.program(inputs, size)
        try:
            solved = solve(program, None if start is None else start.double())
        except RuntimeError:  # whatever a factorisation throws
            return None
        if dtype is not torch.float64:
            solved.y = solved.y.to(dtype).double()
            solved.figures = figures_at(program, solved.y, solved.w, solved.rows)
        tolerance = layer.tolerance if layer.tolerance is not None else node.tolerance
        tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
        if SETTLED * torch.finfo(dtype).eps > tolerance:
            return solved.solution(program, dtype)
        clear = solved.done
        if dtype is not torch.float64:
            clear = clear & is_settled(solved.figures, dtype)
        if program.low is not None and _any_moves(node, xs, ("lower", "upper")):
            clear = clear & ~program.pinned
        weak = solved.figures.clear <= sharp_edge(dtype)
        settled, kinks, follows = solved, bool(weak.any()), None
        if kinks:
            weak = weak & clear.unsqueeze(1)
            if not multipliers and not _any_moves(node, xs, node.names[2:]):
                settled, weak, follows = _without_followers(program, solved, weak)
            settled, can = _settle(program, settled, weak, node.degenerate)
            clear = clear & can
    measured = layer.certify == "fast"
    if bool(clear.all()):
        make = _Shown(program, settled, tolerance, dtype, batch_shape, measured)
        make.dependent = follows
        shown = LateCertificate(make)
        layer.show(shown)
        state = State(layer, node.names, program, settled, shown, tolerance, kinks and measured)
        y, found = _outputs(state, inputs, batch_shape, multipliers)
        return (y, found) if multipliers else y
    known = solved.solution(program, dtype)
    if not bool(clear.any()):
        return known

    items, others = clear.nonzero()[:, 0], (~clear).nonzero()[:, 0]
    first, second = _of(inputs, items), _of(inputs, others)
    program, settled = program.of(items), settled.of(items)
    make = _Shown(program, settled, tolerance, dtype, items.shape, measured)
    make.finite = _finite(node, first, len(items))
    make.dependent = None if follows is None else follows[items]
    shown = LateCertificate(make)
    whole = JoinedCertificate([shown, None], [items, others], batch_shape)
    kinks = kinks and measured and bool(weak[items].any())
    state = State(layer, node.names, program, settled, shown, tolerance, kinks, whole)
    # Before the eager call: on the way back it is the last then, and says at once what there is to say.
    direct = _outputs(state, first, items.shape, multipliers)
    # What all share has no batch dimension.
    xs = [x if len(x) == len(others) else x[0] for x in second]
    start = None if start is None else start[others]
    eager = layer._call(xs, start, multipliers, known.of_items(others), whole.part(1))
    layer.show(whole)
    order = torch.cat([items, others]).argsort()

    def join(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        if a is None or b is None:
            return None
        return torch.cat([a, b]).index_select(0, order).reshape(*batch_shape, a.shape[1])

    if not multipliers:
        return join(direct[0], eager)
    assert direct[1] is not None
    joined = [join(a, b) for a, b in zip(direct[1], eager[1], strict=True)]
    return join(direct[0], eager[0]), Multipliers(*joined)  # type: ignore[arg-type]


def _are_plain(node: QPNode, layer: DeclarativeLayer, xs: Sequence[Any]) -> bool:
    """Whether the inputs are tensors as they mostly are: of one type, on one device."""
    if len(xs) != len(node.names) or layer.batch_dims is not None:
        return False
    dtype, device = None, None
    for x, own in zip(xs, node.input_dims, strict=True):
        if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
            return False
        dtype, device = dtype or x.dtype, device or x.device
        if x.dtype != dtype or x.device != device or x.ndim < own or x.is_inference():
            return False
        if x.layout is not torch.strided:
            return False
    return dtype in (torch.float64, torch.float32)


def _any_moves(node: QPNode, xs: Sequence[Tensor], names: Sequence[str]) -> bool:
    """Whether a derivative of one of these inputs may be asked for."""
    return any(x.requires_grad for name, x in zip(node.names, xs, strict=True) if name in names)


def _of(inputs: Sequence[Tensor], items: Tensor) -> list[Tensor]:
    """The inputs of some items of a batch of several."""
    return [x if len(x) == 1 else x.index_select(0, items) for x in inputs]


def _finite(node: QPNode, inputs: Sequence[Tensor], size: int) -> Mapping[str, Tensor]:
    repeated = [x.expand(size, *x.shape[1:]) for x in inputs]
    return finite_inputs(Problem(node, repeated, size))


def _outputs(
    state: State, inputs: Sequence[Tensor], batch_shape: torch.Size, multipliers: bool
) -> tuple[Tensor, Multipliers | None]:
    """y, and its multipliers if they are asked for, differentiable in the inputs."""
    program, solved, dtype = state.program, state.solved, inputs[0].dtype
    # The caller may write on what is returned, in place too, which views of an operation do not allow.
    y = solved.y.reshape(*batch_shape, -1).to(dtype, copy=True)
    w = solved.w.reshape(*batch_shape, -1)
    w = w.to(dtype, copy=True) if multipliers else w
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        y, w = InMatrices.apply(state, [y, w], *inputs)
    if not multipliers:
        return y, None
    nu, lam, lower, upper = program.multipliers(w.reshape(len(solved.w), -1), solved.rows)
    shaped = [
        None if x is None else x.reshape(*batch_shape, x.shape[1]) for x in (nu, lam, lower, upper)
    ]
    return y, Multipliers(*shaped)  # type: ignore[arg-type]


def _settle(
    program: QuadraticProgram, solved: Solved, weak: Tensor, degenerate: str
) -> tuple[Solved, Tensor]:
    """With rows that are weakly active holding, or not, as the node says; and of which items they can."""
    rows, chosen = solved.rows, degenerate in ("one_sided", "least_norm")
    held = torch.where(weak, degenerate != "one_sided", rows.held)
    figures = solved.figures
    figures = replace(figures, clear=figures.clear.masked_fill(weak, torch.inf if chosen else 0.0))
    solved = replace(solved, figures=figures)
    if torch.equal(held, rows.held):
        return solved, torch.ones_like(solved.done)
    down = rows.down
    if down is not None:
        assert program.low is not None
        value = times(program.C, solved.y)
        nearer = value - program.low < program.high - value
        down = torch.where(weak & ~rows.held, nearer, down) & held
    factors = RowFactors(program.C @ solved.factors.W, held)
    solved.rows = ActiveRows(held, down)
    solved.w = torch.where(held, solved.w, 0.0)
    solved.factors = Factors(solved.factors.L, solved.factors.W, factors)
    return solved, factors.is_clear(LEAST_PIVOT)


def _without_followers(
    program: QuadraticProgram, solved: Solved, weak: Tensor
) -> tuple[Solved, Tensor, Tensor]:
    """Without rows that are weakly active only as they follow from those that hold, where no derivative of
    rows is asked for: these count as clear. What is weak then, and which items had some.

    Let rows S hold, all of them with clear multipliers, and let a further row be a combination of them. Then
    ∇f·d = 0 with C_S d ≤ 0 holds for d in the kernel of C_S alone, on which the row does not change: S gives
    the derivative for Q and q, whichever multipliers the rows share.
    """
    held = solved.rows.held
    items = (weak.any(dim=1) & ~(weak & held).any(dim=1)).nonzero()[:, 0]
    none = torch.zeros_like(solved.done)
    if not len(items):
        return solved, weak, none
    C = program.of(items).C.expand(len(items), -1, -1)
    length = torch.linalg.vector_norm(C, dim=2, keepdim=True)
    unit = C / torch.where(length > 0, length, 1.0)
    rows = torch.where(held[items].unsqueeze(2), unit, 0.0)
    K, info = torch.linalg.cholesky_ex(
        rows @ rows.mT + torch.diag_embed((~held[items]).to(C.dtype))
    )
    left = unit
    for _ in range(3):  # each takes off what rounding has left
        left = left - torch.cholesky_solve(rows @ left.mT, K).mT @ rows
    off = torch.linalg.vector_norm(left, dim=2)
    within = (off <= SETTLED * torch.finfo(C.dtype).eps) & (info == 0).unsqueeze(1)
    follows = torch.zeros_like(weak).index_copy(0, items, weak[items] & within)
    figures = solved.figures
    clear = figures.clear.masked_fill(follows, torch.inf)
    solved = replace(solved, figures=replace(figures, clear=clear))
    return solved, weak & ~follows, follows.any(dim=1)


class _Shown:
    """Makes the certificate of a call, when it is asked for."""

    def __init__(
        self,
        program: QuadraticProgram,
        solved: Solved,
        tolerance: float,
        dtype: torch.dtype,
        batch_shape: torch.Size,
        measured: bool,
    ) -> None:
        self.measured = measured
        self.C, self.rows, self.figures, self.rounds = (
            program.C, solved.rows, solved.figures, solved.rounds,
        )  # fmt: skip
        self.tolerance, self.dtype, self.batch_shape = tolerance, dtype, batch_shape
        self.inequalities = program.C.shape[1] > program.equations
        self.finite: Mapping[str, Tensor] = {}
        self.dependent: Tensor | None = None
        # The rows may be an input itself, which its owner may write on before anybody asks.
        self.version = program.C._version

    def __call__(self, residual: Tensor | None) -> Certificate:
        figures: Figures = self.figures
        converged = torch.full_like(self.rounds, int(Status.CONVERGED))
        if not self.measured:
            nothing = torch.full_like(figures.stationarity, torch.nan, dtype=self.dtype)
            unmeasured = Certificate(
                nothing, nothing, converged, self.rounds.clone(), self.tolerance, "block_pivoting",
                licq=nothing, form="dense", measured=False, finite=self.finite,
            )  # fmt: skip
            return unmeasured.reshape(self.batch_shape)
        certificate = Certificate(
            figures.stationarity.to(self.dtype),
            figures.feasibility.to(self.dtype),
            converged,
            self.rounds.clone(),
            self.tolerance,
            "block_pivoting",
            adjoint_residual=None if residual is None else residual.to(self.dtype),
            licq=self._licq(),
            active_margin=figures.margin.to(self.dtype) if self.inequalities else None,
            settled=torch.ones_like(self.rounds, dtype=torch.bool),
            form="dense",
            finite=self.finite,
        )
        return certificate.reshape(self.batch_shape)

    def _licq(self) -> Tensor | None:
        """None where the rows are not there any more."""
        if self.C._version != self.version:
            return None
        found = _licq(self.C, self.rows).to(self.dtype)
        return found if self.dependent is None else found.masked_fill(self.dependent, 0.0)


def _licq(C: Tensor, rows: ActiveRows) -> Tensor:
    """Least over largest singular value of the rows that hold, each of unit length, (B,)."""
    if not C.shape[1]:
        return torch.ones(len(rows.held), dtype=C.dtype, device=C.device)
    held = torch.where(rows.held.unsqueeze(2), C, 0.0)
    length = torch.linalg.vector_norm(held, dim=2, keepdim=True)
    held = held / torch.where(length > 0, length, 1.0)
    # What stands in for the other rows lies between the least value and the largest.
    gram = held @ held.mT + torch.diag_embed((~rows.held).to(C.dtype))
    values = torch.linalg.eigvalsh(gram)
    return (values[:, 0].clamp_min(0.0) / values[:, -1]).sqrt()
