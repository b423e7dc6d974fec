"""A layer's call of a `QPNode`, in matrices from the data to the gradient.

The eager way (`ddnkit.implicit`) evaluates, measures and differentiates a node's functions, whatever they
are. Of a quadratic program all of that is known beforehand: a call solves it, measures the solution by its
matrices, and keeps the factors for the gradient. As in other short calls (`ddnkit.programs`), only what is
clear is taken: each item solved to rounding, by rows that do not depend on each other, and the adjoint's
system solved too. Whatever is not goes the eager way, and with it every word that is to be said; so do
transforms of torch.func, forward mode and derivatives of derivatives.

With [Q C_Sᵀ; C_S 0][z; μ] = [v; u], v and u being the incoming gradients of y and w,
    vᵀdy + uᵀdw = −zᵀ(dQ y + dq + dCᵀw) + μᵀ(dt − dC y).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..active_set import sharp_edge
from ..certificate import TOLERANCE, Certificate, LateCertificate, act, complaint
from ..errors import InputError
from ..solution import SETTLED, Multipliers, Status
from ..transforms import plain_surroundings, under_transform
from .pivoting import LEAST_PIVOT
from .program import (
    ActiveRows,
    Factors,
    Figures,
    QuadraticProgram,
    RowFactors,
    cholesky_solve,
    figures_at,
    times,
)
from .solver import Solved, is_settled, solve

if TYPE_CHECKING:
    from ..layer import DeclarativeLayer
    from .node import QPNode

#: How far apart, relative, one solution may come out twice.
_SAME = 1e-6
#: The largest relative residual of an adjoint's system that is solved.
_SOLVED = 1e-9


def in_matrices(
    node: QPNode, layer: DeclarativeLayer, xs: Sequence[Any], start: Any, multipliers: bool
) -> Any:
    """y, with its multipliers if they are asked for; None where the call is to go the eager way."""
    if not (
        layer.short.on
        and layer.certify in ("fast", "off")
        and layer.form.name == "auto"
        and node.is_plain
        and plain_surroundings()
    ):
        return None
    found = _inputs(node, layer, xs)
    if found is None:
        return None
    inputs, batch_shape = found
    dtype = inputs[0].dtype
    size = batch_shape.numel()
    with torch.no_grad():
        if start is not None:
            shape = (*batch_shape, inputs[1].shape[-1])
            if not isinstance(start, Tensor) or start.shape != shape:
                return None  # the eager way says what is wrong with it
            start = start.detach().double().reshape(size, -1)
        program = node.program(inputs, size)
        if not program.q.shape[1]:
            return None
        ends = zip(node.names, xs, strict=True)
        if (
            any(x.requires_grad for name, x in ends if name in ("lower", "upper"))
            and program.pinned
        ):
            return None
        try:
            solved = solve(program, start)
        except RuntimeError:  # whatever a factorisation throws
            return None
        y = solved.y
        if dtype is not torch.float64:
            y = y.to(dtype)
            solved.y = y.double()
            solved.figures = figures_at(program, solved.y, solved.w, solved.rows)
        figures = solved.figures
        tolerance = layer.tolerance if layer.tolerance is not None else node.tolerance
        tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
        fine = solved.done
        if dtype is not torch.float64:
            fine = fine & is_settled(figures, dtype)
        if SETTLED * torch.finfo(dtype).eps > tolerance or not bool(fine.all()):
            return None
        weak = figures.clear <= sharp_edge(dtype)
        kinks = bool(weak.any())
        if kinks and not _settle(program, solved, weak, node.degenerate):
            return None
        # The caller may write on what is returned, in place too, which views of an operation do not allow.
        y = y.reshape(*batch_shape, -1).clone()
        w = solved.w.reshape(*batch_shape, -1)
        w = w.to(dtype, copy=True) if multipliers else w
    measured = layer.certify == "fast"
    shown = LateCertificate(_Shown(program, solved, tolerance, dtype, batch_shape, measured))
    layer.show(shown)
    state = _State(layer, node.names, program, solved, shown, tolerance, kinks and measured)
    if torch.is_grad_enabled() and any(x.requires_grad for x in xs):
        y, w = _InMatrices.apply(state, [y, w], *inputs)
    if not multipliers:
        return y
    nu, lam, lower, upper = program.multipliers(w.reshape(size, -1), solved.rows)
    shaped = [
        None if x is None else x.reshape(*batch_shape, x.shape[1]) for x in (nu, lam, lower, upper)
    ]
    return y, Multipliers(*shaped)  # type: ignore[arg-type]


def _inputs(
    node: QPNode, layer: DeclarativeLayer, xs: Sequence[Any]
) -> tuple[list[Tensor], torch.Size] | None:
    """The inputs with one batch dimension each, of the batch or 1, and the batch shape."""
    if len(xs) != len(node.names) or layer.batch_dims is not None:
        return None
    dtype, device = None, None
    leads = []
    for x, own in zip(xs, node.input_dims, strict=True):
        if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
            return None
        dtype, device = dtype or x.dtype, device or x.device
        if x.dtype != dtype or x.device != device or x.ndim < own or x.is_inference():
            return None
        if x.layout is not torch.strided:
            return None
        leads.append(x.shape[: x.ndim - own])
    if dtype not in (torch.float64, torch.float32):
        return None
    try:
        batch_shape = leads[0] if len(set(leads)) == 1 else torch.broadcast_shapes(*leads)
    except RuntimeError:
        return None
    size = batch_shape.numel()
    n = xs[1].shape[-1]
    inputs = []
    for x, lead, name in zip(xs, leads, node.names, strict=True):
        own = x.shape[len(lead) :]
        if not size or own[-1] != (
            n if name in ("Q", "A", "G", "q", "lower", "upper") else own[-1]
        ):
            return None
        if lead == batch_shape:
            x = x if len(lead) == 1 else x.reshape(size, *own)
        elif lead.numel() == 1:
            x = x.reshape(1, *own)
        else:
            x = x.expand(batch_shape + own).reshape(size, *own)
        inputs.append(x)
    sizes = {name: x.shape[1] for name, x in zip(node.names, inputs, strict=True)}
    for one, other in (("Q", "q"), ("A", "b"), ("G", "h")):
        if sizes.get(one) != sizes.get(other):
            return None
    return inputs, batch_shape


def _settle(program: QuadraticProgram, solved: Solved, weak: Tensor, degenerate: str) -> bool:
    """Have rows that are weakly active hold, or not, as the node says; whether they can."""
    rows, chosen = solved.rows, degenerate in ("one_sided", "least_norm")
    held = torch.where(weak, degenerate != "one_sided", rows.held)
    figures = solved.figures
    solved.figures = replace(
        figures, clear=figures.clear.masked_fill(weak, torch.inf if chosen else 0.0)
    )
    if torch.equal(held, rows.held):
        return True
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
    return bool(factors.is_clear(LEAST_PIVOT).all())


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
        # The rows may be an input itself, which its owner may write on before anybody asks.
        self.version = program.C._version

    def __call__(self, residual: Tensor | None) -> Certificate:
        figures: Figures = self.figures
        converged = torch.full_like(self.rounds, int(Status.CONVERGED))
        if not self.measured:
            nothing = torch.full_like(figures.stationarity, torch.nan, dtype=self.dtype)
            unmeasured = Certificate(
                nothing, nothing, converged, self.rounds.clone(), self.tolerance, "block_pivoting",
                licq=nothing, form="dense", measured=False,
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
        )
        return certificate.reshape(self.batch_shape)

    def _licq(self) -> Tensor | None:
        """None where the rows are not there any more."""
        if self.C._version != self.version:
            return None
        return _licq(self.C, self.rows).to(self.dtype)


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


@dataclass
class _State:
    """What a call keeps for its way back."""

    layer: DeclarativeLayer
    names: Sequence[str]
    program: QuadraticProgram
    solved: Solved
    shown: LateCertificate
    tolerance: float
    kinks: bool


class _InMatrices(torch.autograd.Function):
    """y (*batch, n) and w (*batch, r) of a call, which stand in a list, as they are no inputs."""

    @staticmethod
    def forward(ctx: Any, state: _State, found: list[Tensor], *inputs: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.state = state
        ctx.save_for_backward(*inputs)
        return found[0], found[1]

    @staticmethod
    def backward(ctx: Any, v: Tensor | None, u: Tensor | None) -> tuple[Tensor | None, ...]:
        state: _State = ctx.state
        inputs = ctx.saved_tensors
        wanted = ctx.needs_input_grad[2:]
        if v is None and u is None:
            return (None,) * (2 + len(inputs))
        if torch.is_grad_enabled() or not (_is_plain(v) and _is_plain(u)):
            return (None, None, *_eagerly(state, inputs, wanted, v, u))
        found = _gradients(state, inputs, wanted, v, u)
        if found is None:
            return (None, None, *_eagerly(state, inputs, wanted, v, u))
        return (
            None,
            None,
            *(
                found[name].to(x.dtype).reshape(x.shape) if want else None
                for name, x, want in zip(state.names, inputs, wanted, strict=True)
            ),
        )


def _is_plain(v: Tensor | None) -> bool:
    return v is None or (
        type(v) is Tensor
        and not under_transform()
        and not torch._C._functorch.is_legacy_batchedtensor(v)
    )


def _gradients(
    state: _State,
    inputs: Sequence[Tensor],
    wanted: Sequence[bool],
    v: Tensor | None,
    u: Tensor | None,
) -> dict[str, Tensor] | None:
    """The gradient of each input by its name; None where the system is not solved within tolerance."""
    program, solved = state.program, state.solved
    y, w, held, factors = solved.y, solved.w, solved.rows.held, solved.factors
    first = torch.zeros_like(y) if v is None else v.detach().double().reshape(y.shape)
    second = None if u is None else torch.where(held, u.detach().double().reshape(w.shape), 0.0)
    free = cholesky_solve(first, factors.L)
    z, mu = factors.solve_from(program.C, free, second)
    residual, left, short = _residual(program, held, z, mu, free, first, second)
    if second is not None or bool((residual > 8 * torch.finfo(z.dtype).eps).any()):
        dz, dmu = factors.solve(program.C, left, short)
        z, mu = z + dz, mu + dmu
        residual, _, _ = _residual(program, held, z, mu, free, first, second)
    if not bool((residual <= min(state.tolerance, _SOLVED)).all()):
        return None
    if program.sign and second is None:
        z = z.masked_fill(held[:, program.first_bound :], 0.0)
    state.shown.solved(residual)
    if state.kinks:
        z, mu = _by_policy(state, z, mu)
    return _by_name(state, z, mu, inputs, wanted)


def _by_policy(state: _State, z: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
    """z and μ, of items that are at a kink as the layer's policy has it; raises, or warns, by the policy."""
    certificate, layer = state.shown.certificate(), state.layer
    policy = "raise" if layer.node.degenerate == "raise" else layer.policy
    good = certificate.differentiable.reshape(-1, 1)
    if bool(good.all()):
        return z, mu
    if policy in ("raise", "warn"):
        act(policy, complaint(certificate, f"{type(layer.node).__name__} (dense)", backward=True))
        return z, mu
    fill = 0.0 if policy == "mask" else torch.nan
    return torch.where(good, z, fill), torch.where(good, mu, fill)


def _residual(
    program: QuadraticProgram,
    held: Tensor,
    z: Tensor,
    mu: Tensor,
    free: Tensor,
    first: Tensor,
    second: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the adjoint's system, relative to its terms, (B,), and what is left of the right sides.

    Args:
        free: Q⁻¹ first, what z is made of: at a vertex nothing is left of it but rounding.
    """
    bent, pull = times(program.Q, z), times(program.C.mT, mu)
    left = first - bent - pull
    short = torch.where(held, -times(program.C, z), 0.0)
    short = short if second is None else short + second
    norm = torch.linalg.vector_norm
    size = norm(first, dim=1) + norm(bent, dim=1) + norm(pull, dim=1)
    of_rows = norm(program.C.flatten(1), dim=1) * (norm(z, dim=1) + norm(free, dim=1))
    off = norm(left, dim=1) / torch.where(size > 0, size, 1.0)
    off_rows = norm(short, dim=1) / torch.where(of_rows > 0, of_rows, 1.0)
    return torch.maximum(off, off_rows), left, short


def _by_name(
    state: _State, z: Tensor, mu: Tensor, inputs: Sequence[Tensor], wanted: Sequence[bool]
) -> dict[str, Tensor]:
    program, solved = state.program, state.solved
    y, w = solved.y, solved.w
    needs = dict(zip(state.names, wanted, strict=True))
    p, first = program.equations, program.first_bound
    shared = {name: len(x) < len(y) for name, x in zip(state.names, inputs, strict=True)}
    found: dict[str, Tensor] = {}

    def outer(a: Tensor, b: Tensor, name: str) -> Tensor:
        return a.mT @ b if shared[name] else a.unsqueeze(2) * b.unsqueeze(1)

    def total(a: Tensor, name: str) -> Tensor:
        return a.sum(dim=0) if shared[name] else a

    if needs["Q"]:
        half = outer(z, y, "Q")
        found["Q"] = (half + half.mT) * -0.5
    if needs["q"]:
        found["q"] = -total(z, "q")
    for matrix, side, rows in (("A", "b", slice(0, p)), ("G", "h", slice(p, first))):
        if needs.get(matrix):
            of_w, of_mu = outer(w[:, rows], z, matrix), outer(mu[:, rows], y, matrix)
            found[matrix] = -(of_w + of_mu)
        if needs.get(side):
            found[side] = total(mu[:, rows], side)
    if program.sign:
        of_bounds = mu[:, first:]
        parts = {"lower": -of_bounds, "upper": of_bounds}
        down = solved.rows.down
        if down is not None:
            at_low = down[:, first:]
            none = 0 * of_bounds  # NaN of a failed item, for both
            parts = {
                "lower": torch.where(at_low, of_bounds, none),
                "upper": torch.where(at_low, none, of_bounds),
            }
        for name, part in parts.items():
            if needs.get(name):
                found[name] = total(part, name)
    return found


def _eagerly(
    state: _State,
    inputs: Sequence[Tensor],
    wanted: Sequence[bool],
    v: Tensor | None,
    u: Tensor | None,
) -> list[Tensor | None]:
    """The gradients of the same call made anew, the eager way."""
    layer, solved = state.layer, state.solved
    shown, graph = layer.shown, torch.is_grad_enabled()
    with torch.enable_grad():
        xs = [x if len(x) == len(solved.y) else x[0] for x in inputs]
        y = solved.y.to(inputs[0].dtype)
        found, multipliers = layer._call(xs, y, True)
        # By the policy "nan" an item may be no number now.
        gap = (found.detach().reshape(y.shape).double() - solved.y).nan_to_num(0.0).norm()
        if not bool(gap <= _SAME * torch.linalg.vector_norm(solved.y)):
            raise InputError(
                f"{type(layer.node).__name__}: its inputs have changed since the layer was called. The "
                "gradient would be that of another problem. Call backward() before you change them"
            )
        outputs, cotangents = [], []
        if v is not None:
            outputs.append(found)
            cotangents.append(v.reshape(found.shape))
        if u is not None:
            w = state.program.rows_of(*multipliers)
            outputs.append(w)
            cotangents.append(u.reshape(w.shape))
        chosen = [x for x, want in zip(inputs, wanted, strict=True) if want]
        gradients = iter(
            torch.autograd.grad(outputs, chosen, cotangents, create_graph=graph, allow_unused=True)
        )
    if shown is not state.shown:
        layer.show(shown)
    return [next(gradients) if want else None for want in wanted]
