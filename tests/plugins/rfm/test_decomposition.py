"""DNC1 through the singular value decomposition of a layer, alone and within a network."""

from __future__ import annotations

import pytest
import torch
from bounds import factorised, rounding
from ddnkit_etf import StandardClassifier
from ddnkit_rfm import LayerCollapse, decompose, layer_collapse
from ddnkit_rfm.collapse import dnc1
from ddnkit_train import MLP, Model
from torch import Tensor, nn

from ddnkit import InputError

#: The same sums of 24 deviations, a fourth of the samples' size.
SINGLE = rounding(torch.float32, 24, condition=4)


def traces(X: Tensor, labels: Tensor) -> float:
    """tr Σ_W / tr Σ_B for classes of one size, as the paper has it."""
    groups = torch.stack([X[labels == c] for c in labels.unique()])
    means = groups.mean(dim=1)
    within = (groups - means[:, None]).square().sum(dim=2).mean()
    return float(within / (means - means.mean(dim=0)).square().sum(dim=1).mean())


def bound(layer: nn.Linear, h: Tensor, labels: Tensor, values: Tensor) -> float:
    """What DNC1 of ``values``, made of W h + b, may be off by, relative to itself.

    tr Σ_W and tr Σ_B are squares of norms. What W h + b is off by, through its singular vectors or not,
    moves either norm by as much at most, and its square by twice that beside its own size.
    """
    W = layer.weight.detach()
    off = factorised(values, max(W.shape), size=float(W.norm(2) * h.norm()))
    if layer.bias is not None:
        off += factorised(values, 1, size=float(layer.bias.detach().norm()) * len(h) ** 0.5)
    groups = torch.stack([values[labels == c] for c in labels.unique()])
    means = groups.mean(dim=1, keepdim=True)
    within, between = (groups - means).norm(), (means - means.mean(dim=0)).norm()
    # Each class mean stands for the samples of its class.
    return 2 * off * float(1 / within + 1 / (between * groups.shape[1] ** 0.5))


def draw(dimension: int = 6, classes: int = 3, each: int = 8) -> tuple[Tensor, Tensor]:
    labels = torch.arange(classes).repeat(each)
    means = torch.randn(classes, dimension, dtype=torch.float64)
    return means[labels] + 0.5 * torch.randn(len(labels), dimension, dtype=torch.float64), labels


@pytest.mark.parametrize("out", [4, 6, 11])
@pytest.mark.parametrize("bias", [False, True])
def test_neither_the_left_vectors_nor_a_bias_change_dnc1(out: int, bias: bool) -> None:
    layer, (X, labels) = nn.Linear(6, out, bias=bias).double(), draw()
    found = decompose(layer, X, labels, activation=lambda z: z)
    assert found.inputs == pytest.approx(traces(X, labels))
    _, S, Vh = torch.linalg.svd(layer.weight)
    right = (X @ Vh[: len(S)].T * S).detach()
    rel = bound(layer, X, labels, right)
    assert found.right == pytest.approx(traces(right, labels), rel=rel)
    assert found.outputs == pytest.approx(found.right, rel=rel)


def test_what_follows_the_left_vectors_is_the_layer_with_its_bias() -> None:
    layer, (X, labels) = nn.Linear(6, 5).double(), draw()
    outputs = layer(X).detach()
    assert decompose(layer, X, labels).outputs == pytest.approx(traces(outputs.relu(), labels))
    tanh = decompose(layer, X, labels, torch.tanh)
    assert tanh.outputs == pytest.approx(traces(outputs.tanh(), labels))
    # The non-linearity, unlike U, sees the bias.
    layer.bias.data += 1
    moved = decompose(layer, X, labels, torch.tanh)
    assert moved.right == pytest.approx(tanh.right)
    assert abs(moved.outputs - tanh.outputs) > 1e-3


def test_a_projection_onto_the_class_means_collapses_in_the_right_vectors() -> None:
    X, labels = draw(each=4)
    means = torch.stack([X[labels == c].mean(dim=0) for c in range(3)])
    # least squares on one-hot labels, of samples that it interpolates
    X = torch.cat([means[labels], torch.randn(12, 30, dtype=torch.float64)], dim=1)
    layer = nn.Linear(36, 3, bias=False).double()
    layer.weight.data = (torch.linalg.pinv(X) @ nn.functional.one_hot(labels).double()).T
    found = decompose(layer, X, labels)
    assert found.inputs > 1
    # W X = Yᵀ but for what the pseudo-inverse is off by; one-hot means are √⅔ from their mean.
    W, condition = layer.weight.detach(), float(torch.linalg.cond(X))
    off = factorised(X, 36, size=float(W.norm(2) * X.norm()), condition=condition)
    assert found.right < off**2 / (2 / 3)


class Network(nn.Module):
    """Linear layers with batch norm and dropout, an activation in place, and a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 8, bias=False),
            nn.BatchNorm1d(8),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(8, 5),
        )
        self.readout = nn.Linear(5, 3)
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.readout(self.body(inputs).relu_())


@pytest.mark.parametrize("chunk", [1, 5, 1024])
def test_the_layers_of_a_network_in_evaluation_mode(chunk: int) -> None:
    net, (X, labels) = Network(), draw()
    net(X)
    found = layer_collapse(net, X, labels, chunk=chunk)
    assert net.training and all(module.training for module in net.modules())
    assert list(found) == ["body.0", "body.4", "readout"]
    net.eval()
    inputs = {"body.0": X, "body.4": net.body[:4](X), "readout": net.body(X).relu()}
    for name, h in inputs.items():
        layer, h = net.get_submodule(name), h.detach()
        assert isinstance(layer, nn.Linear)
        expected = decompose(layer, h, labels)
        _, S, Vh = torch.linalg.svd(layer.weight.detach())
        values = {
            "inputs": h, "right": h @ Vh[: len(S)].T * S, "outputs": layer(h).detach().relu()
        }  # fmt: skip
        assert vars(found[name]).keys() == values.keys()
        for part, right in vars(expected).items():
            rel = bound(layer, h, labels, values[part])
            assert getattr(found[name], part) == pytest.approx(right, rel=rel), part
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_layers_may_be_named_or_given() -> None:
    net, (X, labels) = Network().eval(), draw()
    found = layer_collapse(net, X, labels, ["readout", net.body[0]], activation=torch.tanh)
    assert list(found) == ["readout", "body.0"]
    assert found["body.0"] == decompose(net.body[0], X, labels, torch.tanh)


def test_a_model_of_the_training_loop_and_float32() -> None:
    model = Model(MLP((6,), 8, 3), StandardClassifier(8, 3))
    X, labels = draw()
    found = layer_collapse(model, (X.float(), labels), labels)
    assert list(found) == ["backbone.layers.1", "backbone.layers.3", "backbone.layers.5"]
    first = found["backbone.layers.1"]
    assert isinstance(first, LayerCollapse)
    assert first.inputs == pytest.approx(float(dnc1(X, labels)), rel=SINGLE)
    assert found["backbone.layers.3"].inputs == pytest.approx(first.outputs, rel=SINGLE)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.twice(self.twice(inputs.float()))


def test_a_layer_is_called_once_and_on_vectors() -> None:
    X, labels = draw()
    with pytest.raises(InputError, match="'twice'"):
        layer_collapse(Shared(), X, labels, ["twice"])
    with pytest.raises(InputError, match="'never'"):
        layer_collapse(Shared(), X, labels, ["never"], chunk=8)
    with pytest.raises(InputError, match=r"\(24, 3, 2\)"):
        layer_collapse(nn.Linear(2, 2).double(), X.reshape(24, 3, 2), labels)


def test_errors_say_what_would_be_right() -> None:
    net, (X, labels) = Network(), draw()
    with pytest.raises(InputError, match=r"'body\.00'.* 'body\.0'"):
        layer_collapse(net, X, labels, ["body.00"])
    with pytest.raises(InputError, match="ReLU"):
        layer_collapse(net, X, labels, ["body.2"])
    with pytest.raises(InputError, match=r"\(24,\)"):
        layer_collapse(net, X, labels[:0])
    with pytest.raises(InputError, match="labels"):
        decompose(net.readout, X[:, :5], labels[1:])
    with pytest.raises(InputError, match="Linear"):
        decompose(net.readout, X, labels)
    broken = X.clone()
    broken[2, 1] = torch.nan
    with pytest.raises(InputError, match="row 2"):
        layer_collapse(net, broken, labels)
    net.readout.weight.data[0, 0] = torch.inf
    with pytest.raises(InputError, match="weight of Linear"):
        layer_collapse(net, X, labels, ["readout"])
