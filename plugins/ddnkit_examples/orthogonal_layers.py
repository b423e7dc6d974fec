"""Orthogonal layers in a deep linear network: what the constraint gives, and what it costs.

A deep linear network is P x with P = W_L ⋯ W_1. On whitened inputs its mean squared error against a linear
teacher T in R^{C×n} is

    f(W_1, …, W_L) = ‖P − T‖_F² / 2C,

which gradient descent must lower through a product of L factors: ∂f/∂W_l is the error between the products
of the layers above and below. Where their singular values spread, which those of Gaussian layers do
exponentially in L, it is far too long in some directions and vanishes in the others. Layers with singular
values of one keep all of them at one: *dynamical isometry*.

*Floor.* With all layers orthogonal P has orthonormal rows, and with T = Σ s_i u_i v_iᵀ the nearest such
matrix is Σ u_i v_iᵀ: f cannot fall below Σ (s_i − 1)² / 2C. One layer that is left free removes it.

All networks of a job, one for each learning rate, are trained side by side, as a batch of their weights.

Source: Saxe, McClelland and Ganguli, *Exact solutions to the nonlinear dynamics of learning in deep linear
neural networks* (2014).
"""

from __future__ import annotations

import csv

import torch
from ddnkit_manifolds import Stiefel
from torch import Generator, Tensor

from ddnkit import Job, gaussian, parametrize

from .orthogonal_layers_report import VALUES
from .settings import Layers, OrthogonalLayers

_SMOKE_STEPS, _SMOKE_DEPTH = 3, 4
_ROWS = 50
#: Losses above are of networks that have diverged; they are not trained any further.
_DIVERGED = 1e3


class DeepLinear(torch.nn.Module):
    """P = W_L ⋯ W_1 of a batch of networks that start alike.

    Args:
        layers: how they start, and which of them stay orthogonal.
        networks: R. depth: L. width: n. outputs: C.

    Example: ``DeepLinear("stiefel", networks=4, depth=40, width=32, outputs=16)()`` is (4, 16, 32).
    """

    def __init__(
        self,
        layers: Layers,
        *,
        networks: int,
        depth: int,
        width: int,
        outputs: int,
        generator: Generator | None = None,
    ):
        super().__init__()
        # Drawn on the CPU, so that the same seed draws the same on every device.
        like = torch.empty(0)
        hidden = gaussian((depth - 1, width, width), generator, like) / width**0.5
        last = gaussian((outputs, width), generator, like) / width**0.5
        if layers != "gaussian":
            hidden, last = Stiefel().project(hidden), Stiefel().project(last.mT).mT
        self.hidden = torch.nn.Parameter(hidden.repeat(networks, 1, 1, 1))
        self.last = torch.nn.Parameter(last.repeat(networks, 1, 1))
        if layers in ("stiefel", "stiefel_but_last"):
            parametrize(self, "hidden", Stiefel())
        if layers == "stiefel":
            parametrize(self, "last", Stiefel())

    def forward(self) -> Tensor:
        """P, (R, C, n)."""
        product: Tensor = self.last
        for W in self.hidden.unbind(1)[::-1]:
            product = product @ W
        return product


def teacher(singular_values: Tensor, width: int, generator: Generator | None = None) -> Tensor:
    """A random T (C, n) with these singular values (C,)."""
    shape = (width, len(singular_values))
    rows = Stiefel().random(shape, generator=generator, like=torch.empty(0)).mT
    columns = Stiefel().random((shape[1], shape[1]), generator=generator, like=torch.empty(0))
    return (columns * singular_values) @ rows


def train_layers(settings: OrthogonalLayers, job: Job) -> None:
    """One job: `OrthogonalLayers.run`."""
    steps = min(settings.steps, _SMOKE_STEPS) if job.smoke else settings.steps
    depth = min(settings.depth, _SMOKE_DEPTH) if job.smoke else settings.depth
    generator = torch.Generator().manual_seed(job.seed)
    s = torch.tensor(settings.singular_values)
    T = teacher(s, settings.width, generator).to(job.device)
    network = DeepLinear(
        settings.layers,
        networks=len(settings.rates),
        depth=depth,
        width=settings.width,
        outputs=settings.outputs,
        generator=generator,
    ).to(job.device)
    rates = torch.tensor(settings.rates, device=job.device)
    free = list(network.parameters())

    losses, kept = [], []
    every = max(steps // _ROWS, 1)
    for step in range(steps + 1):
        P = network()
        loss = (P - T).square().sum(dim=(-2, -1)) / (2 * settings.outputs)
        losses.append(loss.detach())
        if step % every == 0 or step == steps:
            # Of a network that has diverged nothing is shown.
            kept.append((step, torch.linalg.svdvals(P.detach().double().nan_to_num(0, 0, 0))))
            job.progress(step, steps, {"loss": float(loss.detach().nan_to_num(torch.inf).min())})
        gradients = torch.autograd.grad(loss.sum(), free)
        lengths = torch.where(loss.detach() < _DIVERGED, rates, 0.0)
        with torch.no_grad():
            for x, g in zip(free, gradients, strict=True):
                length = lengths.reshape(-1, *[1] * (x.ndim - 1))
                x.sub_(torch.where(length > 0, length * g, 0.0))

    curves = torch.stack(losses)
    best = lowest_curve(curves)
    for step, values in kept:
        of_best = values[best]
        job.record(
            {
                "epoch": step,
                "step": step,
                "loss": float(curves[step, best]),
                "least": float(of_best[-1]),
                "largest": float(of_best[0]),
                "rate": settings.rates[best],
            }
        )
    if job.rank == 0:
        with (job.folder / VALUES).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("step", "place", "value"))
            for step, values in kept:
                writer.writerows((step, i, value) for i, value in enumerate(values[best].tolist()))


def lowest_curve(curves: Tensor) -> int:
    """Which of the loss curves (steps, R) is the lowest on a logarithmic axis, on the average over the steps;
    never one that diverges, if another does not."""
    tiny = torch.finfo(curves.dtype).tiny
    heights = curves.double().clamp_min(tiny).log().mean(dim=0)
    sound = heights.isfinite() & (curves < _DIVERGED).all(dim=0)
    return int(torch.where(sound, heights, torch.inf).argmin())
