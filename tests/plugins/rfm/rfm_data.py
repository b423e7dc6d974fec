"""Samples, kernels and a measure of memory that the tests of kernel machines share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bounds import eps
from ddnkit_rfm import Gaussian, Kernel, L1Laplace, Laplace
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: What square roots of AGOPs are off by: of those of deficient rank, whose smallest eigenvalues are rounding,
#: about ε, the roots are √ε.
ROOTS = 10 * eps(torch.float64) ** 0.5
KERNELS: list[Kernel] = [Laplace(2.0), Gaussian(1.5), L1Laplace(3.0)]


def blobs(
    classes: int = 3, each: int = 20, dimension: int = 6, *, spread: float = 0.5, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Samples around one random point a class, float64, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(each)
    points = torch.randn(classes, dimension, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), dimension, generator=generator, dtype=torch.float64)
    return points[labels] + spread * noise, labels


def scalar(kernel: Kernel) -> Callable[[Tensor, Tensor], Tensor]:
    """k of two samples ``(d,)`` as plain torch; `vector_norm` and `abs` have derivative 0 at 0."""
    L = kernel.bandwidth
    return {
        Laplace: lambda x, z: (-torch.linalg.vector_norm(x - z) / L).exp(),
        Gaussian: lambda x, z: (-(x - z).square().sum() / (2 * L**2)).exp(),
        L1Laplace: lambda x, z: (-(x - z).abs().sum() / L).exp(),
    }[type(kernel)]


def left_by_descent(labels: Tensor, ridge: float) -> float:
    """What `descend` may leave of ‖k − k*‖, as it ends where a step moves no entry by more than 1e-6.

    For a step from k to k⁺ with rate r, below whose parabola the convex g lies,

        g(k⁺) − g(k*) ≤ ⟨k − k⁺, k − k*⟩/r,   and   g(k) − g(k*) ≥ c ‖k − k*‖²

    for feasible k, so that ‖k − k*‖ ≤ ‖k − k⁺‖/(r c), where ‖k − k⁺‖ ≤ N 1e-6. To second order:

    * r ≥ 1/2L, L = 2 max n/(n + μ)², as a rate is halved where g is above the parabola, which it is not
      below 1/L; at k* the slope's own slope along E is 2μ Σ_c (E y_c)ᵀ(k* + μI)⁻¹(E y_c)/(n_c + μ)².
    * c, towards YᵀGY: of the entries between classes c and d, μ/2 times
      n_c/((n_c + μ)²(n_d + μ)) + n_d/((n_d + μ)²(n_c + μ)).
    * c, where the unit vectors of a class spread by wᵢ: within the class k falls by n_c Σ‖wᵢ‖² in all,
      whose slope is μ/(n_c + μ)², while ‖k − k*‖² is up to 2 max n Σ‖wᵢ‖² between the classes.

    Twice that holds what is left out.
    """
    n = torch.bincount(labels).to(torch.float64)
    curve = 2 * float((n / (n + ridge) ** 2).max())
    pairs = (n / (n + ridge) ** 2)[:, None] / (n + ridge)
    pairs = ridge / 2 * (pairs + pairs.T)
    spread = ridge * float((n / (n + ridge) ** 2).min()) / (2 * float(n.max()))
    growth = min(float(pairs[~torch.eye(len(n), dtype=torch.bool)].min()), spread)
    return 2 * len(labels) * 1e-6 * 2 * curve / growth


def relative_error(found: Tensor, expected: Tensor) -> float:
    """‖found − expected‖/‖expected‖, in float64."""
    found, expected = found.to(torch.float64), expected.to(torch.float64)
    return float((found - expected).norm() / expected.norm())


class Linear(Kernel):
    """A stranger's kernel that is not of distances, ⟨x, z⟩/L²."""

    def values(self, X: Tensor, Z: Tensor) -> Tensor:
        return X @ Z.T / self.bandwidth**2

    def gradients(self, X: Tensor, Z: Tensor, coefficients: Tensor) -> Tensor:
        gradient = coefficients.T @ Z / self.bandwidth**2
        return gradient.expand(len(X), -1, -1)


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation makes; views are not made."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _storage(leaf) not in given:
                self.bytes = max(self.bytes, leaf.numel() * leaf.element_size())
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
