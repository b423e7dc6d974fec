"""The collapsed kernel minimises the ridge-regression objective: Theorem 5.4, proved and tested.

    inf over A, k of tr((Y − Ak)(Y − Ak)ᵀ) + μ tr(kAᵀA)    (problem 7)

over kernel matrices k ``(N, N)`` that are p.s.d. and entrywise non-negative with ones on the diagonal.
Y ``(K, N)`` holds one-hot labels, y_c its rows, n_c the samples of a class, μ > 0. Problem and theorem are
those of *Average gradient outer product as a mechanism for deep neural collapse* (NeurIPS 2024).

Over A. The objective is convex in A, with derivative 2((Ak − Y)k + μAk). That is zero at A = Y(k + μI)⁻¹,
also for a singular k. There Y − Ak = μY(k + μI)⁻¹, and the two terms add up to

    g(k) = μ² tr Y(k + μI)⁻²Yᵀ + μ tr Y(k + μI)⁻¹k(k + μI)⁻¹Yᵀ = μ tr Y(k + μI)⁻¹Yᵀ = μ Σ_c y_cᵀ(k + μI)⁻¹y_c.

Over k, a proof of the theorem. By Cauchy–Schwarz n_c² = (y_cᵀy_c)² ≤ y_cᵀ(k + μI)⁻¹y_c · y_cᵀ(k + μI)y_c. A
p.s.d. k with ones on the diagonal has |k_ij| ≤ 1, whence y_cᵀky_c ≤ n_c² and

    g(k) ≥ μ Σ_c n_c² / (n_c² + μn_c) = μ Σ_c n_c / (n_c + μ).

k* = YᵀY attains it, since k*y_c = n_c y_c. Any k that does has k_ij = 1 within the classes, so that it is the
Gram matrix of unit vectors which are one and the same within a class, k = YᵀGY, G ``(K, K)``; and
(k + μI)y_c in proportion to y_c, so that G is diagonal. k* is therefore the only optimum, whatever the n_c.
Non-negative entries were not needed.

The paper's own proof, for classes of one size, goes by the eigenvalues of k. It takes from Perron–Frobenius
that the largest is simple, and from that that the optimum is unique; of a k in blocks, such as k* itself, the
largest may be multiple. The proof above does not need it.

`optimality_check` adds numbers, not a proof: that g as computed is least at k*, among kernels drawn at random
and along the lines to them, and that descents which do not use k* end there. Since g and the feasible set are
convex, there is no other minimum for them to end in. Along k* + t(k − k*) the slope at t = 0 is

    μ Σ_c (n_c² − y_cᵀky_c) / (n_c + μ)² ≥ 0,

zero only for k = YᵀGY, towards which g grows in second order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from ddnkit import InputError

from .samples import check_labels


def parametrised_krr_objective(kernel: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """inf_A tr((Y − Ak)(Y − Ak)ᵀ) + μ tr(kAᵀA) = μ tr Y(k + μI)⁻¹Yᵀ (problem 7 at a given k).

    Differentiable in k and Y.

    Args:
        kernel: k ``(…, N, N)``, p.s.d.
        targets: Y ``(K, N)``, any real numbers.
        ridge: μ > 0.

    Returns:
        ``(…)``.

    Raises:
        ddnkit.InputError: μ is not above 0, or k + μI not positive definite.
    """
    if not ridge > 0:
        raise InputError(f"ridge is {ridge}: problem 7 needs μ > 0")
    shifted = kernel + ridge * torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
    factor, info = torch.linalg.cholesky_ex(shifted)
    if bool((info > 0).any()):
        raise InputError("k + μI is not positive definite: k must be p.s.d. and finite")
    half = torch.linalg.solve_triangular(factor, targets.mT, upper=False)
    return ridge * half.square().sum(dim=(-2, -1))


def collapsed_kernel(labels: Tensor) -> Tensor:
    """k* = YᵀY ``(N, N)``, float64: 1 for two samples of one class, else 0.

    Args:
        labels: classes ``(N,)``, int64.
    """
    Y = _targets(labels)
    return Y.T @ Y


def krr_lower_bound(labels: Tensor, ridge: float) -> Tensor:
    """μ Σ_c n_c/(n_c + μ) ``()``: the least value of problem 7, which k* = YᵀY alone attains.

    Args:
        labels: classes ``(N,)``, int64.
        ridge: μ > 0.
    """
    counts = torch.bincount(labels).to(torch.float64)
    return ridge * (counts / (counts + ridge)).sum()


def random_feasible_kernels(
    draws: int, samples: int, *, generator: torch.Generator | None = None
) -> Tensor:
    """Random kernels with p.s.d. matrix, entries in 0…1 and unit diagonal.

    Gram matrices of unit vectors in proportion to |z_i|^q, z_i standard normal in R^r, r uniform in 1…N and
    q in 1…8 for each draw: from all ones (r = 1) to nearly orthogonal vectors (large q and r).

    Args:
        draws: number of kernels.
        samples: N.
        generator: of the draws.

    Returns:
        ``(draws, N, N)``, float64.
    """
    kernels = []
    for _ in range(draws):
        rank = int(torch.randint(1, samples + 1, (), generator=generator))
        power = 1 + 7 * torch.rand((), generator=generator, dtype=torch.float64)
        z = torch.randn(samples, rank, generator=generator, dtype=torch.float64).abs()
        vectors = normalize((z / z.amax(dim=1, keepdim=True)) ** power, dim=1)
        kernels.append(vectors @ vectors.T)
    return torch.stack(kernels)


def nearest_feasible(matrix: Tensor, *, sweeps: int = 10_000, tolerance: float = 1e-12) -> Tensor:
    """The nearest matrix, in the Frobenius norm, that is p.s.d., non-negative and has unit diagonal.

    Dykstra's alternating projections onto the p.s.d. cone and onto the matrices of the other two.

    Args:
        matrix: symmetric ``(N, N)``, float64.
        sweeps: projections onto both sets, at most.
        tolerance: of an entry; the sweeps end when none moves by more.

    Returns:
        ``(N, N)``, non-negative with unit diagonal; its eigenvalues are ≥ 0 up to about N·tolerance.
    """
    k = matrix
    of_cone, of_entries = torch.zeros_like(k), torch.zeros_like(k)
    for _ in range(sweeps):
        before, given = k, k + of_cone
        eigenvalues, V = torch.linalg.eigh(given)
        psd = (V * eigenvalues.clamp(min=0)) @ V.T
        of_cone = given - psd
        k = (psd + of_entries).clamp(min=0).fill_diagonal_(1)
        of_entries = psd + of_entries - k
        if float((k - before).abs().max()) <= tolerance:
            break
    return k


def descend(kernel: Tensor, labels: Tensor, ridge: float, *, steps: int = 500) -> Tensor:
    """The end of a projected gradient descent on g from a feasible kernel; the smaller μ, the slower it is.

    Args:
        kernel: start ``(N, N)``, float64, feasible.
        labels: classes ``(N,)``, int64.
        ridge: μ > 0.
        steps: at most; the descent ends earlier if a step moves no entry by more than 1e-6, which changes
            g only within its rounding, since g is of second order there.

    Returns:
        ``(N, N)``.
    """
    Y, k, rate = _targets(labels), kernel, 1.0
    for _ in range(steps):
        new, rate = _step(k, Y, ridge, rate)
        moved = float((new - k).abs().max())
        k, rate = new, 1.5 * rate
        if moved <= 1e-6:
            break
    return k


def _step(k: Tensor, Y: Tensor, ridge: float, rate: float) -> tuple[Tensor, float]:
    """One step, its rate halved until g lies below the parabola that the step is the minimum of."""
    point = k.detach().requires_grad_()
    value = parametrised_krr_objective(point, Y, ridge)
    (gradient,) = torch.autograd.grad(value, point)
    rounding = 1e-13 * float(value.detach())
    while True:
        new = nearest_feasible(k - rate * gradient)
        change = new - k
        parabola = value + (gradient * change).sum() + change.square().sum() / (2 * rate)
        if parametrised_krr_objective(new, Y, ridge) <= parabola + rounding:
            return new, rate
        rate /= 2


@dataclass(frozen=True)
class OptimalityCheck:
    """Values of g(k) = μ tr Y(k + μI)⁻¹Yᵀ around k* = YᵀY.

    Attributes:
        bound: μ Σ_c n_c/(n_c + μ), the proved minimum.
        value: g(k*).
        least: smallest g among the random kernels.
        increase: smallest (g(k* + t(k − k*)) − g(k*))/t² on the lines to them, t of 0.01, 0.1 and 1.
        distance: largest ‖k − k*‖_F at the ends of the descents.
    """

    bound: float
    value: float
    least: float
    increase: float
    distance: float


def optimality_check(
    labels: Tensor,
    ridge: float,
    *,
    draws: int = 1000,
    descents: int = 3,
    generator: torch.Generator | None = None,
) -> OptimalityCheck:
    """Test Theorem 5.4, the minimum of problem 7, with `random_feasible_kernels`.

    Args:
        labels: classes ``(N,)``, int64; N of at most about 50.
        ridge: μ > 0.
        draws: kernels whose g is compared with that of k*, on the lines between as well.
        descents: how many of them a descent starts from.
        generator: of the draws.
    """
    Y, best = _targets(labels), collapsed_kernel(labels)
    kernels = random_feasible_kernels(draws, len(labels), generator=generator)
    value = parametrised_krr_objective(best, Y, ridge)
    t = torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64)
    lines = best + t[:, None, None, None] * (kernels - best)
    increases = (parametrised_krr_objective(lines, Y, ridge) - value) / t[:, None].square()
    ends = [descend(kernel, labels, ridge) for kernel in kernels[:descents]]
    return OptimalityCheck(
        bound=float(krr_lower_bound(labels, ridge)),
        value=float(value),
        least=float(parametrised_krr_objective(kernels, Y, ridge).min()),
        increase=float(increases.min()),
        distance=max(float((end - best).norm()) for end in ends),
    )


def _targets(labels: Tensor) -> Tensor:
    check_labels(labels, max(1, labels.numel()))
    return one_hot(labels).T.to(torch.float64)
