"""Kernels k(x, z), and what an average gradient outer product needs of them: gradients of their sums.

A kernel of one's own is a subclass of `Kernel` with `values` and `gradients`, or, where it is a function of
the Euclidean distance, of `RadialKernel` with `profile` and `slope`; `frequencies` besides, where random
Fourier features are to be drawn for it.
"""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor

from ddnkit import InputError

from .checks import check_pair, check_samples
from .distances import squared_distances

#: Numbers in a block of signs x_k − z_k: what stays in a processor's cache, or keeps a GPU busy.
_SIGNS = {"cpu": 1 << 18}
_SIGNS_ELSEWHERE = 1 << 24

#: Samples whose kernel among each other is taken to read its diagonal.
_DIAGONAL_BLOCK = 32


class Kernel(abc.ABC):
    """A symmetric positive semidefinite function k(x, z) of two samples.

    Args:
        bandwidth: L, the length that distances are measured by.

    Raises:
        ddnkit.InputError: the bandwidth is not a finite number above 0.
    """

    def __init__(self, bandwidth: float) -> None:
        if not (math.isfinite(bandwidth) and bandwidth > 0):
            raise InputError(f"a kernel's bandwidth is a finite number above 0, not {bandwidth}")
        self.bandwidth = bandwidth

    def __repr__(self) -> str:
        return f"{type(self).__name__}(bandwidth={self.bandwidth})"

    def __call__(self, X: Tensor, Z: Tensor | None = None) -> Tensor:
        """k(x_i, z_j) of all pairs.

        Args:
            X: samples ``(n, d)``.
            Z: samples ``(m, d)``; by default X.

        Returns:
            ``(n, m)``, in the dtype of X.

        Raises:
            ddnkit.InputError: samples are not finite, or X and Z do not match.
        """
        check_samples(X)
        if Z is None:
            return self.values(X, X)
        check_samples(Z, "Z")
        check_pair(X, Z)
        return self.values(X, Z)

    @abc.abstractmethod
    def values(self, X: Tensor, Z: Tensor) -> Tensor:
        """k(x_i, z_j) ``(n, m)`` of samples ``(n, d)`` and ``(m, d)``, in their dtype."""

    @abc.abstractmethod
    def gradients(self, X: Tensor, Z: Tensor, coefficients: Tensor) -> Tensor:
        """∇_x f_c(x_i) of f_c(x) = Σ_j α_jc k(x, z_j): ``(n, C, d)``.

        Args:
            X: samples x ``(n, d)``.
            Z: centres z ``(m, d)``.
            coefficients: α ``(m, C)``.
        """

    def gradient_numbers(self, centres: int, outputs: int, dimension: int) -> int:
        """Numbers that `gradients` holds for each sample x, its result included: of all, at most."""
        return 2 * centres * outputs * dimension

    def diagonal(self, X: Tensor) -> Tensor:
        """k(x_i, x_i) ``(n,)``."""
        return torch.cat([self.values(x, x).diagonal() for x in X.split(_DIAGONAL_BLOCK)])

    def frequencies(self, count: int, dimension: int, generator: torch.Generator) -> Tensor:
        """Draws ω ``(count, dimension)``, float64, with E cos⟨ω, x − z⟩ = k(x, z) (Bochner's theorem).

        Raises:
            ddnkit.InputError: the kernel has no such density, or none that it knows.
        """
        raise InputError(f"{self} has no spectral density to draw Fourier features from")


class RadialKernel(Kernel):
    """k(x, z) = φ(D) of the Euclidean distance D = ‖x − z‖, with ∇_x k = (φ'(D)/D)(x − z).

    Where x = z the gradient is taken as 0. That is its value if φ is smooth and even. If φ has a kink,
    φ'(0) = −s, k is not differentiable there: coming from the direction u, its gradient tends to −su. The
    mean of that over the sphere is 0; so is every central difference (k(z + tu, z) − k(z − tu, z))/2t; and
    0 is the centre of Clarke's generalised gradient, the ball of radius s. Distinct samples at less than
    4ε of their distance to the mean of Z count as coinciding: x − z is mere rounding, and φ'(D)/D may
    have grown without bound.
    """

    @abc.abstractmethod
    def profile(self, distance: Tensor) -> Tensor:
        """φ(D)."""

    @abc.abstractmethod
    def slope(self, distance: Tensor) -> Tensor:
        """φ'(D)/D, a new tensor; anything where D = 0."""

    def values(self, X: Tensor, Z: Tensor) -> Tensor:
        """See `Kernel.values`; computed in float64."""
        return self.profile(squared_distances(X, Z).sqrt_()).to(X.dtype)

    def slopes(self, X: Tensor, Z: Tensor, centre: Tensor | None = None) -> Tensor:
        """W_ij = φ'(D_ij)/D_ij ``(n, m)``, 0 where samples coincide; computed in float64.

        Args:
            X, Z: samples.
            centre: the mean that coincidence is measured by, float64; by default that of Z.
        """
        coincidence = 4 * torch.finfo(X.dtype).eps
        distance = squared_distances(X, Z, coincidence, centre).sqrt_()
        slopes = self.slope(distance).masked_fill_(distance == 0, 0.0)
        return slopes.to(X.dtype)

    def gradients(self, X: Tensor, Z: Tensor, coefficients: Tensor) -> Tensor:
        """See `Kernel.gradients`.

        With B_c,ij = W_ij α_jc the gradient of f_c at x_i is Σ_j B_c,ij (x_i − z_j), the row i of

            G_c = diag(B_c 1) X − B_c Z,

        one matrix product for all classes. It is the same for X and Z relative to any point; relative to
        the mean of Z its two terms cancel least.
        """
        W, centre = self.slopes(X, Z), Z.mean(dim=0)
        B = W[:, None, :] * coefficients.T
        G = (B.flatten(0, 1) @ (centre - Z)).view(*B.shape[:2], -1)
        return G.addcmul_((W @ coefficients)[:, :, None], (X - centre)[:, None, :])

    def gradient_numbers(self, centres: int, outputs: int, dimension: int) -> int:
        """See `Kernel.gradient_numbers`: distances and slopes, then B and G."""
        return (8 + outputs) * centres + 2 * outputs * dimension


class Laplace(RadialKernel):
    """k(x, z) = exp(−‖x − z‖/L), the kernel of the paper's experiments, L = 2 (appendix D)."""

    def profile(self, distance: Tensor) -> Tensor:
        """exp(−D/L)."""
        return (distance / -self.bandwidth).exp_()

    def slope(self, distance: Tensor) -> Tensor:
        """−exp(−D/L)/(LD)."""
        return self.profile(distance).div_(distance).div_(-self.bandwidth)

    def frequencies(self, count: int, dimension: int, generator: torch.Generator) -> Tensor:
        """See `Kernel.frequencies`.

        The characteristic function of the multivariate Cauchy distribution, Student's with one degree of
        freedom, is exp(−‖x‖): ω = g/(L|h|) with independent standard normal g and h.
        """
        g = torch.randn(count, dimension, generator=generator, dtype=torch.float64)
        h = torch.randn(count, 1, generator=generator, dtype=torch.float64)
        return g / (self.bandwidth * h.abs())


class Gaussian(RadialKernel):
    """k(x, z) = exp(−‖x − z‖²/(2L²)); the paper's for MNIST with ReLU features (appendix D)."""

    def profile(self, distance: Tensor) -> Tensor:
        """exp(−D²/(2L²))."""
        return (distance / self.bandwidth).square_().div_(-2).exp_()

    def slope(self, distance: Tensor) -> Tensor:
        """−exp(−D²/(2L²))/L²."""
        return self.profile(distance).div_(-(self.bandwidth**2))

    def frequencies(self, count: int, dimension: int, generator: torch.Generator) -> Tensor:
        """See `Kernel.frequencies`: ω is normal with covariance I/L²."""
        g = torch.randn(count, dimension, generator=generator, dtype=torch.float64)
        return g / self.bandwidth


class L1Laplace(Kernel):
    """k(x, z) = exp(−‖x − z‖₁/L), with ∇_x k = −k(x, z) sign(x − z)/L entry by entry.

    At x_k = z_k the sign is 0: the mean of the derivatives from the two sides.
    """

    def values(self, X: Tensor, Z: Tensor) -> Tensor:
        """See `Kernel.values`; sums of |x_k − z_k|, in which nothing cancels."""
        return torch.cdist(X, Z, p=1.0).div_(-self.bandwidth).exp_()

    def gradients(self, X: Tensor, Z: Tensor, coefficients: Tensor) -> Tensor:
        """See `Kernel.gradients`: for each x a product of ``(C, m)`` and the signs ``(m, d)``."""
        W = self.values(X, Z).div_(-self.bandwidth)
        G = X.new_zeros(len(X), coefficients.shape[1], X.shape[1])
        limit = min(_SIGNS.get(X.device.type, _SIGNS_ELSEWHERE), W.numel()) // X.shape[1]
        rows = max(math.isqrt(limit) // 2, 1)
        columns = max(limit // rows, 1)
        for x, w, g in zip(X.split(rows), W.split(rows), G.split(rows), strict=True):
            parts = (Z.split(columns), w.split(columns, dim=1), coefficients.split(columns))
            for z, weights, alpha in zip(*parts, strict=True):
                g.baddbmm_(weights[:, None, :] * alpha.T, (x[:, None, :] - z).sign_())
        return G

    def gradient_numbers(self, centres: int, outputs: int, dimension: int) -> int:
        """See `Kernel.gradient_numbers`: W, its making, as many signs; G and weighted rows of W."""
        return 3 * centres + outputs * (centres + 2 * dimension)

    def frequencies(self, count: int, dimension: int, generator: torch.Generator) -> Tensor:
        """See `Kernel.frequencies`: the entries of ω are independent, Cauchy of scale 1/L."""
        uniform = torch.rand(count, dimension, generator=generator, dtype=torch.float64)
        return (math.pi * (uniform - 0.5)).tan() / self.bandwidth
