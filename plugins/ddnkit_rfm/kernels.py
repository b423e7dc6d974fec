"""Kernels k(x, z), the gradients of their sums, and the distances that they are functions of.

A kernel of your own is a subclass of `Kernel` with `values` and `gradients`, or, where it is a function of
the Euclidean distance, of `RadialKernel` with `profile` and `slope`; it also needs `frequencies` if
random Fourier features are to approximate it.
"""

from __future__ import annotations

import abc
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ddnkit import InputError

from .samples import check_pair, check_samples

if TYPE_CHECKING:
    from .settings import KernelSettings

#: Numbers in a block of signs of x_k − z_k: as many as stay in a processor's cache, or keep a GPU busy.
_SIGNS = {"cpu": 1 << 18}
_SIGNS_ELSEWHERE = 1 << 24

#: Samples in a block when k(x, x) is read off the diagonal of their kernel matrix.
_DIAGONAL_BLOCK = 32

#: Distances below about 1/300 of the distance to the mean are computed from differences. In a collapsing
#: layer all pairs of a class are that near when DNC1 < 5e-6; it then takes a hundred times as long.
NEAR = 1e-5

#: Numbers in a block of differences x − z: as many as stay in a processor's cache.
_DIFFERENCES = 1 << 18


class Kernel(abc.ABC):
    """A symmetric positive semidefinite function k(x, z) of two samples.

    Args:
        bandwidth: L, the unit of length for distances.

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
        """An upper bound of the numbers that `gradients` holds for each sample x, its result included."""
        return 2 * centres * outputs * dimension

    def diagonal(self, X: Tensor) -> Tensor:
        """k(x_i, x_i) ``(n,)``."""
        return torch.cat([self.values(x, x).diagonal() for x in X.split(_DIAGONAL_BLOCK)])

    def frequencies(self, count: int, dimension: int, generator: torch.Generator) -> Tensor:
        """Random ω ``(count, dimension)``, float64, with E cos⟨ω, x − z⟩ = k(x, z) (Bochner's theorem).

        Raises:
            ddnkit.InputError: the spectral density does not exist or is not implemented.
        """
        raise InputError(f"{self} has no spectral density to draw Fourier features from")


class RadialKernel(Kernel):
    """k(x, z) = φ(D) of the Euclidean distance D = ‖x − z‖, with ∇_x k = (φ'(D)/D)(x − z).

    Where x = z the gradient is set to 0. That is its value if φ is smooth and even. If φ has a kink,
    φ'(0) = −s, k is not differentiable there: coming from the direction u, its gradient tends to −su. The
    mean of that over the sphere is 0; so is every central difference (k(z + tu, z) − k(z − tu, z))/2t; and
    0 is the centre of Clarke's generalised gradient, the ball of radius s. Distinct samples at less than
    4ε of their distance to the mean of Z count as coinciding, since x − z is then nothing but rounding and
    φ'(D)/D may be arbitrarily large.
    """

    @abc.abstractmethod
    def profile(self, distance: Tensor) -> Tensor:
        """φ(D)."""

    @abc.abstractmethod
    def slope(self, distance: Tensor) -> Tensor:
        """φ'(D)/D in a new tensor; any value where D = 0."""

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

    At x_k = z_k the sign is 0, which is the mean of the one-sided derivatives.
    """

    def values(self, X: Tensor, Z: Tensor) -> Tensor:
        """See `Kernel.values`; no digits cancel in sums of |x_k − z_k|."""
        return torch.cdist(X, Z, p=1.0).div_(-self.bandwidth).exp_()

    def gradients(self, X: Tensor, Z: Tensor, coefficients: Tensor) -> Tensor:
        """See `Kernel.gradients`: for each x, a matrix ``(C, m)`` times the signs ``(m, d)``."""
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
        """See `Kernel.gradient_numbers`: W, what it is computed from, the signs, G, weighted rows of W."""
        return 3 * centres + outputs * (centres + 2 * dimension)

    def frequencies(self, count: int, dimension: int, generator: torch.Generator) -> Tensor:
        """See `Kernel.frequencies`: the entries of ω are independent, Cauchy of scale 1/L."""
        uniform = torch.rand(count, dimension, generator=generator, dtype=torch.float64)
        return (math.pi * (uniform - 0.5)).tan() / self.bandwidth


#: By the name that a recipe gives.
_KINDS: dict[str, type[Kernel]] = {
    "laplace": Laplace,
    "gaussian": Gaussian,
    "l1_laplace": L1Laplace,
}


def build_kernel(settings: KernelSettings) -> Kernel:
    """The kernel that a recipe describes."""
    return _KINDS[settings.name](settings.bandwidth)


def squared_distances(
    X: Tensor, Z: Tensor, coincidence: float = 0.0, centre: Tensor | None = None
) -> Tensor:
    """‖x_i − z_j‖² ``(n, m)``, float64, with all their digits where points nearly coincide.

    ‖x − z‖² = ‖x‖² + ‖z‖² − 2⟨x, z⟩ costs one matrix product, but its digits cancel: the relative error is
    about ε(‖x‖² + ‖z‖²)/‖x − z‖². In float32, points of unit length at a distance of 3e-4 would have no
    correct digit left, and the diagonal, whose distance is 0, would come out as 3e-4. The samples of a class
    come that near as they collapse. Hence

    * the product is computed in float64, whatever the samples' precision;
    * the points are taken relative to their mean, which changes no difference: a common offset costs nothing;
    * pairs with ‖x − z‖² ≤ `NEAR` ‖x‖² are computed again, from the differences x − z.

    The relative error that remains is at most (2/`NEAR`) d ε = 4e-11 d just above that limit, and in
    practice, where roundings are of both signs, below 1e-10: distances of float32 samples are correct to the
    last digit. Points that coincide have distance 0 exactly.

    Args:
        X, Z: samples of one dtype.
        coincidence: pairs with ‖x − z‖ at most this share of ‖x‖, relative to the centre, get 0.
        centre: a point ``(d,)`` amid the samples, float64; by default the mean of Z.
    """
    if centre is None:
        centre = Z.mean(dim=0, dtype=torch.float64)
    x, z = X - centre, Z - centre
    norms = x.square().sum(dim=1)
    squared = torch.addmm(z.square().sum(dim=1), x, z.T, alpha=-2).add_(norms[:, None])
    # Where ‖z‖ is the larger one, the distance is at least nearly as large: ‖x‖ alone decides.
    rows, columns = (squared <= NEAR * norms[:, None]).nonzero(as_tuple=True)
    size = max(_DIFFERENCES // X.shape[1], 1)
    for i, j in zip(rows.split(size), columns.split(size), strict=True):
        exact = (X[i].to(torch.float64) - Z[j]).square_().sum(dim=1)
        squared[i, j] = torch.where(exact <= coincidence**2 * norms[i], 0.0, exact)
    return squared
