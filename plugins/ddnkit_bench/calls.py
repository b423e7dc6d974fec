"""``ddnkit bench calls``: the time of a small call, beside a layer written by hand for that one problem.

The peer is what an expert writes for one problem: the solution, and an autograd.Function whose backward
solves the KKT system as a matrix, with derivatives worked out on paper. It makes no certificate, does not
check whether the problem changed, and has first derivatives only. ddnkit's layer is used as in its docs,
with its certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from ddnkit_etf import NearestETF
from ddnkit_manifolds import Sphere
from torch import Tensor, nn

from ddnkit import DeclarativeLayer, DeclarativeNode
from ddnkit.bench import Case, Comparison, Competitor, Request

from . import Prepare

#: Calls that are timed together: a single one is as short as starting and stopping the clock.
CALLS = 20
#: Calls before any is timed: enough to make the programs of short calls.
WARM_UP = 12


class Calls(Comparison):
    """Forward and backward of a small problem: a layer by hand, and ddnkit's with and without programs."""

    size_names = ("batch", "m")
    sizes = ((1, 5), (8, 5), (64, 5), (256, 20))
    measures_memory = False
    tolerance = 1e-3

    def cases(self, request: Request) -> list[Case]:
        """Each problem at each size, and the nearest ETF (d, C) at its own."""
        cases = [Case(size, kind) for kind in PROBLEMS for size in self.asked_sizes(request)]
        return cases if request.sizes else [*cases, Case(ETF_SIZE, ETF)]

    def inputs(self, case: Case, dtype: torch.dtype) -> Mapping[str, Any]:
        """x, and positive weights w; for the nearest ETF class means and a frame."""
        # As in a training that has freed large tensors: from then on the allocator keeps small ones.
        torch.empty(2**22).fill_(1.0)
        if case.kind == ETF:
            means, frame = NearestETF().bench_inputs(*case.size)
            return {"x": means.to(dtype), "w": frame.to(dtype)}
        return {
            "x": torch.randn(case.size, dtype=dtype),
            "w": torch.rand(case.size, dtype=dtype) + 0.1,
        }

    def competitors(self, case: Case, device: str) -> Sequence[Competitor]:
        """The layer by hand first."""
        node, by_hand = ({ETF: _ETF} | PROBLEMS)[case.kind]

        def layer(
            short: bool = True, compile: bool = False
        ) -> Callable[[int], Callable[..., Tensor]]:
            def build(m: int) -> DeclarativeLayer:
                layer = DeclarativeLayer(node(m), compile=compile)
                layer.short.on = short
                return layer

            return build

        return [
            Competitor("by hand", _repeat_calls(by_hand)),
            Competitor("ddnkit", _repeat_calls(layer())),
            Competitor("ddnkit, compiled", _repeat_calls(layer(compile=True))),
            Competitor("ddnkit, no programs", _repeat_calls(layer(short=False))),
        ]


def _repeat_calls(
    make: Callable[[int], Callable[..., Tensor]],
) -> Prepare:
    def prepare(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        x, w = (inputs[name].clone().requires_grad_() for name in ("x", "w"))
        call, v = make(x.shape[1]), torch.linspace(-1, 2, x.shape[1], dtype=x.dtype)

        def calls(_: object, count: int = CALLS) -> Mapping[str, Tensor]:
            for _ in range(count):
                y = call(x, w)
                x.grad = w.grad = None
                (v * y).sum().backward()
            return {"y": y, "dx": x.grad, "dw": w.grad}

        calls(None, WARM_UP)
        return {f"{CALLS} calls": calls}

    return prepare


# -- the problems --------------------------------------------------------------------------------------


class Projection(DeclarativeNode):
    """Nearest y whose entries sum to 1, in a weighted norm."""

    input_dims = (1, 1)
    batched_solve = True

    def __init__(self, m: int):
        pass

    def objective(self, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        """Σ wⱼ(yⱼ − xⱼ)²."""
        return (w * (y - x) ** 2).sum()

    def equality_constraints(self, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        """Σ yⱼ − 1."""
        return y.sum() - 1

    def solve(self, x: Tensor, w: Tensor) -> Tensor:
        """In closed form."""
        return _project(x, w)


class LearnedWeights(Projection):
    """Projection with a parameter of the node in its weights."""

    def __init__(self, m: int):
        self.q = nn.Parameter(torch.linspace(0.5, 1.5, m))

    def objective(self, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        """Σ qⱼwⱼ(yⱼ − xⱼ)²."""
        return (self.q * w * (y - x) ** 2).sum()

    def solve(self, x: Tensor, w: Tensor) -> Tensor:
        """In closed form."""
        return _project(x, self.q.detach() * w)


class NearestOnSphere(DeclarativeNode):
    """Nearest y of length 1."""

    input_dims = (1, 1)
    batched_solve = True
    manifold = Sphere()

    def __init__(self, m: int):
        pass

    def objective(self, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        """Σ (yⱼ − wⱼxⱼ)²."""
        return ((y - w * x) ** 2).sum()

    def solve(self, x: Tensor, w: Tensor) -> Tensor:
        """In closed form."""
        return torch.nn.functional.normalize(w * x, dim=-1)


class Quartic(DeclarativeNode):
    """As Projection, with a fourth power; the newton solver solves it."""

    input_dims = (1, 1)

    def __init__(self, m: int):
        pass

    def objective(self, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        """Σ wⱼ(yⱼ − xⱼ)² + yⱼ⁴."""
        return (w * (y - x) ** 2 + y**4).sum()

    def equality_constraints(self, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        """Σ yⱼ − 1."""
        return y.sum() - 1

    def initial_point(self, x: Tensor, w: Tensor) -> Tensor:
        """The mean of the plane."""
        return torch.full_like(x, 1 / x.shape[-1])


class CoupledQuadratic(Projection):
    """As Projection, with a Hessian that is not diagonal."""

    def objective(self, x: Tensor, w: Tensor, y: Tensor) -> Tensor:
        """½‖y − w‖² + ½(xᵀy)²."""
        return ((y - w).square().sum() + (x @ y).square()) / 2

    def solve(self, x: Tensor, w: Tensor) -> Tensor:
        """By its KKT matrix."""
        return _solve_coupled(x, w)


def _project(x: Tensor, w: Tensor) -> Tensor:
    return x + (1 - x.sum(-1, keepdim=True)) / (w * (1 / w).sum(-1, keepdim=True))


# -- by hand -------------------------------------------------------------------------------------------


def _kkt_solution(curvature: Tensor, normal: Tensor, v: Tensor) -> Tensor:
    """z with diag(curvature) z + normal μ = v, normal·z = 0: the KKT matrix and one LU."""
    B, m = v.shape
    K = v.new_zeros(B, m + 1, m + 1)
    K[:, :m, :m] = torch.diag_embed(curvature)
    K[:, :m, m] = K[:, m, :m] = normal
    right = torch.cat([v, v.new_zeros(B, 1)], dim=-1).unsqueeze(-1)
    return torch.linalg.solve(K, right)[:, :m, 0]


def _kkt_matrix(x: Tensor) -> Tensor:
    """[[I + xxᵀ, 1], [1ᵀ, 0]]."""
    B, m = x.shape
    K = x.new_zeros(B, m + 1, m + 1)
    K[:, :m, :m] = torch.eye(m, dtype=x.dtype, device=x.device) + x.unsqueeze(2) * x.unsqueeze(1)
    K[:, :m, m] = K[:, m, :m] = 1
    return K


def _solve_coupled(x: Tensor, w: Tensor) -> Tensor:
    right = torch.cat([w, torch.ones_like(w[:, :1])], dim=-1).unsqueeze(-1)
    return torch.linalg.solve(_kkt_matrix(x), right)[:, :-1, 0]


class _CoupledByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        y = _solve_coupled(x, w)
        ctx.save_for_backward(x, w, y)
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor]:
        x, _, y = ctx.saved_tensors
        right = torch.cat([v, torch.zeros_like(v[:, :1])], dim=-1).unsqueeze(-1)
        z = torch.linalg.solve(_kkt_matrix(x), right)[:, :-1, 0]
        xy, xz = (x * y).sum(-1, keepdim=True), (x * z).sum(-1, keepdim=True)
        return -(xy * z + xz * y), z


class _ProjectionByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        y = _project(x, w)
        ctx.save_for_backward(x, w, y)
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor]:
        x, w, y = ctx.saved_tensors
        z = _kkt_solution(2 * w, torch.ones_like(w), v)
        return 2 * w * z, -2 * (y - x) * z


class _LearnedWeightsByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, q: Tensor) -> Tensor:
        y = _project(x, q * w)
        ctx.save_for_backward(x, w, q, y)
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, w, q, y = ctx.saved_tensors
        z = _kkt_solution(2 * q * w, torch.ones_like(w), v)
        pull = -2 * (y - x) * z
        return 2 * q * w * z, q * pull, (w * pull).sum(dim=0)


class _SphereByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        c = w * x
        y = torch.nn.functional.normalize(c, dim=-1)
        ctx.save_for_backward(x, w, y)
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor]:
        x, w, y = ctx.saved_tensors
        # y − wx = νy: the Lagrangian's Hessian is 2(1 − ν) = 2‖wx‖ times the identity.
        curvature = (2 * torch.linalg.vector_norm(w * x, dim=-1, keepdim=True)).expand_as(v)
        z = _kkt_solution(curvature, y, v)
        return 2 * w * z, 2 * x * z


class _QuarticByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        y = torch.full_like(x, 1 / x.shape[1])
        normal = torch.ones_like(x)
        for _ in range(50):
            step = _kkt_solution(
                2 * w + 12 * y.square(), normal, -2 * w * (y - x) - 4 * y**3
            )  # of the multiplier no more than its place in the system is needed
            y = y + step
            if float(step.abs().amax()) <= 1e-5:
                break
        ctx.save_for_backward(x, w, y)
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor]:
        x, w, y = ctx.saved_tensors
        z = _kkt_solution(2 * w + 12 * y.square(), torch.ones_like(w), v)
        return 2 * w * z, -2 * (y - x) * z


def _learned_weights_by_hand(m: int) -> Callable[..., Tensor]:
    q = nn.Parameter(torch.linspace(0.5, 1.5, m))
    return lambda x, w: _LearnedWeightsByHand.apply(x, w, q)


def _etf_by_hand(H: Tensor, P: Tensor) -> Tensor:
    """U Vᵀ of A = 2 H M̃ + δP, by one SVD and torch's derivative of it."""
    scale = 2 / (H.shape[1] - 1) ** 0.5
    A = scale * (H - H.mean(dim=1, keepdim=True)) + 1e-3 * P
    left, _, right = torch.linalg.svd(A, full_matrices=False)
    return left @ right


#: The one problem here that is a matrix, and whose node has an adjoint of its own.
ETF, ETF_SIZE = "nearest ETF, d x C", (512, 10)
_ETF = (lambda C: NearestETF(1e-3), lambda C: _etf_by_hand)
#: By kind: the node for m unknowns, and the call by hand.
PROBLEMS: dict[
    str, tuple[Callable[[int], DeclarativeNode], Callable[[int], Callable[..., Tensor]]]
] = {
    "projection": (Projection, lambda m: _ProjectionByHand.apply),
    "captured parameter": (LearnedWeights, _learned_weights_by_hand),
    "coupled": (CoupledQuadratic, lambda m: _CoupledByHand.apply),
    "sphere": (NearestOnSphere, lambda m: _SphereByHand.apply),
    "newton": (Quartic, lambda m: _QuarticByHand.apply),
}
