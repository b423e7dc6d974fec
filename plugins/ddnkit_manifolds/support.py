"""What the manifolds and solvers of this package share: dtypes, reasons to decline, scales."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Generator, Tensor

from ddnkit import Problem

#: Solvers iterate to this part of their tolerance. A solution is then one still when it is started
#: from, where the scale that gradients are relative to may be smaller than at the first start.
GOAL = 0.25


def lapack_dtype(dtype: torch.dtype) -> torch.dtype:
    """``dtype`` itself, or float32 where factorisations do not exist in it (half precision)."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def gaussian(shape: tuple[int, ...], generator: Generator | None, like: Tensor) -> Tensor:
    """Standard normal numbers in dtype and on device of ``like``, drawn where the generator is."""
    device = like.device if generator is None else generator.device
    drawn = torch.randn(shape, generator=generator, dtype=lapack_dtype(like.dtype), device=device)
    return drawn.to(device=like.device, dtype=like.dtype)


def in_dtype(problem: Problem, dtype: torch.dtype) -> Problem:
    """The same problem with its floating-point inputs in ``dtype``, cut off from any graph."""

    def convert(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        return x.detach().to(dtype) if x.is_floating_point() else x

    return problem.with_inputs([convert(x) for x in problem.inputs])


def manifold_reason(problem: Problem, known: Iterable[type]) -> str | None:
    """Why a Riemannian solver that knows the manifolds ``known`` cannot take the problem."""
    kinds, name, manifold = tuple(known), type(problem.node).__name__, problem.manifold
    if not isinstance(manifold, kinds):
        names = ", ".join(kind.__name__ for kind in kinds)
        if manifold is None:
            return f"{name} has no manifold; this solver needs one of: {names}"
        return f"its manifold is {manifold!r}; this solver knows: {names}"
    constrained = problem.batch_size and problem.node.constrained
    if constrained and problem.constraints(problem.start()) is not None:
        return (
            f"{name} has equality_constraints beside its manifold; this solver keeps to the "
            "manifold alone"
        )
    return None


def per_item(values: Tensor, like: Tensor) -> Tensor:
    """(B,) reshaped to multiply a tensor of shape (B, ...)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def item_norm(y: Tensor) -> Tensor:
    """Euclidean norm of each item of (B, ...), shape (B,)."""
    return torch.linalg.vector_norm(y.flatten(1), dim=1)


def gradient_scale(problem: Problem, y: Tensor) -> Tensor:
    """‖∇f(y)‖ + ‖∇²f(y) y‖, shape (B,): what a tangent gradient is small against.

    The first term alone would vanish at the unconstrained minimum of f. The second is how much the
    gradient changes over a distance of the size of y.
    """
    return item_norm(problem.gradient(y)) + item_norm(problem.hessian_vector(y, y))
