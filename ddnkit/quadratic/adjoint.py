"""The gradient of a call of a `QPNode`, in matrices, from the factors of its solution.

With [Q C_Sᵀ; C_S 0][z; μ] = [v; u], v and u being the incoming gradients of y and w,
    vᵀdy + uᵀdw = −zᵀ(dQ y + dq + dCᵀw) + μᵀ(dt − dC y).
Where the system is not solved, and where derivatives of the gradient are asked for, the call is made anew
the eager way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..certificate import LateCertificate, act, complaint
from ..errors import InputError
from ..joined_certificate import JoinedCertificate
from ..transforms import under_transform
from .program import QuadraticProgram, cholesky_solve, times
from .solver import Solved

if TYPE_CHECKING:
    from ..layer import DeclarativeLayer

#: How far apart, relative, one solution may come out twice.
_SAME = 1e-6
#: The largest relative residual of an adjoint's system that is solved.
_SOLVED = 1e-9


@dataclass
class State:
    """What a call keeps for its way back.

    Attributes:
        kinks: whether the policy is to act on some. whole: that of the batch of which the items are the first
            part, where they are not all of it.
    """

    layer: DeclarativeLayer
    names: Sequence[str]
    program: QuadraticProgram
    solved: Solved
    shown: LateCertificate
    tolerance: float
    kinks: bool
    whole: JoinedCertificate | None = None


class InMatrices(torch.autograd.Function):
    """y (*batch, n) and w (*batch, r) of a call, which stand in a list, as they are no inputs."""

    @staticmethod
    def forward(ctx: Any, state: State, found: list[Tensor], *inputs: Tensor) -> Any:
        """What was found, as it is."""
        ctx.set_materialize_grads(False)
        ctx.state = state
        ctx.save_for_backward(*inputs)
        return found[0], found[1]

    @staticmethod
    def backward(ctx: Any, v: Tensor | None, u: Tensor | None) -> tuple[Tensor | None, ...]:
        """By the factors of the solution, or the eager way."""
        state: State = ctx.state
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
    state: State,
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


def _by_policy(state: State, z: Tensor, mu: Tensor) -> tuple[Tensor, Tensor]:
    """z and μ, of items that are at a kink as the layer's policy has it; raises, or warns, by the policy."""
    certificate, layer = state.shown.certificate(), state.layer
    policy = "raise" if layer.node.degenerate == "raise" else layer.policy
    good = certificate.differentiable.reshape(-1, 1)
    if bool(good.all()):
        return z, mu
    if policy in ("raise", "warn"):
        whole = state.whole
        told = certificate if whole is None else whole.certificate()
        message = complaint(told, f"{type(layer.node).__name__} (dense)", backward=True)
        if policy == "raise" or whole is None or message not in whole.told:
            act(policy, message)
        if whole is not None:
            whole.told.add(message)
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
    state: State, z: Tensor, mu: Tensor, inputs: Sequence[Tensor], wanted: Sequence[bool]
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
    state: State,
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
        part = None if state.whole is None else state.whole.part(0)
        found, multipliers = layer._call(xs, y, True, part=part)
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
