"""AGD against a direct transcription of its formulas."""

import math

import pytest
import torch
from bounds import factorised, rounding
from ddnkit_train import AGD, CNN, MLP
from torch import Tensor, nn

from ddnkit import InputError


def transcribed_step(weights: list[Tensor], gradients: list[Tensor], gain: float) -> list[Tensor]:
    """arXiv:2304.05187 as it is written, position by position, in Python numbers."""
    L = len(weights)
    scales, summary = [], 0.0
    for W, g in zip(weights, gradients, strict=True):
        d_out, d_in, *kernel = W.shape
        scales.append(math.sqrt(d_out / d_in) / math.sqrt(math.prod(kernel)))
        positions = g.reshape(d_out, d_in, -1)
        for k in range(positions.shape[2]):
            summary += scales[-1] * math.sqrt(float((positions[:, :, k] ** 2).sum())) / L
    eta = math.log(0.5 * (1 + math.sqrt(1 + 4 * summary)))
    updated = []
    for W, g, sigma in zip(weights, gradients, scales, strict=True):
        result = W.clone().reshape(*W.shape[:2], -1)
        positions = g.reshape(*W.shape[:2], -1)
        for k in range(result.shape[2]):
            norm = math.sqrt(float((positions[:, :, k] ** 2).sum()))
            if norm > 0:
                result[:, :, k] -= gain * eta / L * sigma * positions[:, :, k] / norm
        updated.append(result.reshape(W.shape))
    return updated


@pytest.mark.parametrize("gain", [1.0, 10.0])
def test_step_is_the_formula(gain: float) -> None:
    torch.manual_seed(0)
    shapes = [(5, 3), (3, 5), (4, 2, 3, 3), (2, 4, 1, 2)]
    weights = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    optimizer = AGD(weights, gain=gain)
    for _ in range(3):
        gradients = [torch.randn_like(weight) for weight in weights]
        gradients[2][:, :, 1, 1] = 0  # a position without a gradient stays where it is
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        expected = transcribed_step([w.detach().clone() for w in weights], gradients, gain)
        optimizer.step()
        for weight, result in zip(weights, expected, strict=True):
            assert torch.allclose(
                weight, result, rtol=0, atol=rounding(weight, 3 * 72)
            )  # three steps, norms of 72


def test_a_matrix_without_gradient_counts_but_does_not_move() -> None:
    torch.manual_seed(0)
    moved = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    still = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    optimizer = AGD([moved, still])
    before = [moved.detach().clone(), still.detach().clone()]
    optimizer.step()
    assert torch.equal(moved, before[0])
    moved.grad = torch.randn_like(moved)
    expected = transcribed_step(before, [moved.grad, torch.zeros_like(still)], 1.0)
    optimizer.step()
    assert torch.allclose(moved, expected[0])
    assert torch.equal(still, before[1])


def test_frozen_weights_are_not_counted() -> None:
    torch.manual_seed(0)
    frozen = nn.Parameter(torch.randn(4, 4), requires_grad=False)
    free = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    start = frozen.clone()
    optimizer = AGD([frozen, free])
    assert torch.equal(frozen, start)
    free.grad = torch.randn_like(free)
    expected = transcribed_step([free.detach().clone()], [free.grad], 1.0)
    optimizer.step()
    assert torch.allclose(free, expected[0])


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (6, 4, 3, 3), (3, 8, 1, 2)])
def test_weights_start_orthogonal_at_each_position(shape: tuple[int, ...]) -> None:
    weight = nn.Parameter(torch.zeros(shape))
    AGD([weight])
    d_out, d_in, *kernel = shape
    expected = math.sqrt(d_out / d_in) / math.sqrt(math.prod(kernel))
    for position in weight.detach().reshape(d_out, d_in, -1).unbind(-1):
        values = torch.linalg.svdvals(position)
        assert torch.allclose(values, torch.full_like(values, expected), rtol=factorised(values, 8))


def test_the_start_can_be_left_as_it_is() -> None:
    weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    AGD([weight], initialise=False)
    assert torch.equal(weight.detach(), torch.arange(6.0).reshape(2, 3))


def test_half_precision_weights_take_a_finite_step() -> None:
    weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.float16))
    optimizer = AGD([weight], initialise=False)
    weight.grad = torch.full_like(weight, 300.0)  # its square overflows float16
    optimizer.step()
    assert weight.dtype == torch.float16
    assert weight.isfinite().all()
    assert (weight < 0).all()


def test_a_closure_gives_the_loss_and_the_gradient() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 3))
    optimizer = AGD([weight])

    def closure() -> float:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return float(loss.detach())

    first = optimizer.step(closure)
    for _ in range(5):
        last = optimizer.step(closure)
    assert last < first


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (MLP((6,), 4, 1, bias=True), r"layers\.1\.bias"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2)), r"1\.weight"),
    ],
)
def test_a_vector_is_refused_with_its_name_and_what_to_do(model: nn.Module, named: str) -> None:
    with pytest.raises(InputError, match=rf"{named}.*bias: false"):
        AGD(model.named_parameters())


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(InputError):
        AGD([nn.Parameter(torch.ones(2, 2), requires_grad=False)])
    with pytest.raises(InputError, match="groups"):
        AGD([{"params": [nn.Parameter(torch.ones(2, 2))]}])  # type: ignore[list-item]
    with pytest.raises(InputError, match="gain"):
        AGD([nn.Parameter(torch.ones(2, 2))], gain=0)


def test_the_shipped_backbones_can_be_trained_by_it() -> None:
    torch.manual_seed(0)
    for model, inputs in (
        (MLP((1, 8, 8), 16, 3), torch.randn(5, 1, 8, 8)),
        (CNN(1, (4, 8), blocks=2), torch.randn(5, 1, 8, 8)),
    ):
        optimizer = AGD(model.named_parameters())
        features = model(inputs)
        assert features.shape == (5, model.feature_dim)
        features.square().mean().backward()
        before = features.square().mean().detach()
        optimizer.step()
        assert model(inputs).square().mean() != before
