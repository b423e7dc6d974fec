"""AGOPs of layers against Jacobians, neural feature matrices, and their correlation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from bounds import factorised, rounding
from ddnkit_etf import FixedETFClassifier, StandardClassifier
from ddnkit_rfm import (
    matrix_sqrt,
    module_agop,
    module_agops,
    nfa_correlation,
    nfa_correlations,
    nfm,
)
from ddnkit_train import CNN, MLP, Model
from torch import Tensor, nn
from torch.autograd.functional import jacobian
from torch.nn.functional import conv2d, pad, unfold

from ddnkit import InputError

SAMPLES = 7


def agop_by_jacobian(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """(1/N) Σ_i J_iᵀJ_i, one sample at a time; rows of a point's own last dimension are added up."""
    total = points.new_zeros(points.shape[-1], points.shape[-1])
    for point in points:
        J = jacobian(function, point[None]).reshape(-1, points.shape[-1])
        total += J.T @ J
    return total / len(points)


def mlp(bias: bool = False) -> tuple[nn.Sequential, Tensor]:
    net = nn.Sequential(
        nn.Linear(6, 9, bias=bias),
        nn.ReLU(),
        nn.Sequential(nn.Linear(9, 4, bias=bias), nn.Tanh()),
        nn.Linear(4, 3, bias=bias),
    )
    return net.double(), torch.randn(SAMPLES, 6, dtype=torch.float64)


def close(given: Tensor, expected: Tensor) -> None:
    """As near as a well-posed calculation of a few hundred terms is (`bounds`)."""
    torch.testing.assert_close(given, expected.detach())


@pytest.mark.parametrize("bias", [False, True])
def test_every_layer_of_an_mlp_agrees_with_its_jacobian(bias: bool) -> None:
    net, X = mlp(bias)
    names = ["", "0", "1", "2", "2.0", "2.1", "3"]
    found = module_agops(net, X, names)
    assert list(found) == names
    h = net[1](net[0](X))
    close(found[""], agop_by_jacobian(net, X))
    close(found["0"], found[""])
    close(found["1"], agop_by_jacobian(net[1:], net[0](X)))
    close(found["2"], agop_by_jacobian(net[2:], h))
    close(found["2.0"], found["2"])
    close(found["2.1"], agop_by_jacobian(nn.Sequential(net[2][1], net[3]), net[2][0](h)))
    close(found["3"], nfm(net[3]))


def test_a_layer_may_be_named_given_as_a_module_or_left_out() -> None:
    net, X = mlp()
    expected = module_agop(net, X, "2.0")
    assert expected.dtype == torch.float64
    torch.testing.assert_close(module_agop(net, X, net[2][0]), expected, rtol=0, atol=0)
    torch.testing.assert_close(module_agop(net, X), module_agop(net, X, net), rtol=0, atol=0)
    assert list(module_agops(net, X)) == ["0", "2.0", "3"]


@pytest.mark.parametrize("options", [{"chunk": 1}, {"chunk": 3}, {"chunk": 100}, {"memory": 700}])
def test_chunks_change_nothing(options: dict[str, int]) -> None:
    net, X = mlp()
    whole = module_agops(net, X, [None, "2.0"])
    for name, M in module_agops(net, X, [None, "2.0"], **options).items():
        close(M, whole[name])


def test_memory_decides_how_many_samples_pass_at_a_time() -> None:
    class Counting(nn.Linear):
        batches: ClassVar[list[int]] = []

        def forward(self, inputs: Tensor) -> Tensor:
            self.batches.append(len(inputs))
            return super().forward(inputs).relu()

    net = nn.Sequential(Counting(6, 8), nn.Linear(8, 2)).double()
    X = torch.randn(20, 6, dtype=torch.float64)
    # relu keeps its 8 outputs, the sum of the loss nothing.
    module_agop(net, X, memory=5 * 8 * 8)
    assert Counting.batches == [4, 5, 5, 5, 5]
    with pytest.raises(InputError, match="64 bytes"):
        module_agop(net, X, memory=63)


def test_float32_gradients_are_added_up_in_float64() -> None:
    net, X = mlp()
    single = module_agop(net.float(), X.float(), chunk=2)
    assert single.dtype == torch.float64
    torch.testing.assert_close(
        single, module_agop(net.double(), X), rtol=0, atol=rounding(torch.float32, 30)
    )


def test_half_precision_gives_finite_float64() -> None:
    net, X = mlp()
    single = module_agop(net.bfloat16(), X.bfloat16(), "1")
    torch.testing.assert_close(
        single, module_agop(net.double(), X, "1"), rtol=0, atol=rounding(torch.bfloat16, 10)
    )


def test_a_function_of_the_output_need_not_be_linear() -> None:
    net, X = mlp()
    found = module_agop(net, X, "2.0", output=lambda logits: logits.softmax(dim=1).square())
    h = net[1](net[0](X))
    close(found, agop_by_jacobian(lambda h: net[2:](h).softmax(dim=1).square(), h))
    # One number a sample is one output.
    norms = module_agop(net, X, output=lambda logits: logits.norm(dim=1))
    close(norms, agop_by_jacobian(lambda x: net(x).norm(dim=1), X))


def test_a_network_may_return_more_than_f() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, _ = mlp()

        def forward(self, inputs: Tensor) -> dict[str, Tensor]:
            return {"logits": self.inner(inputs), "loss": inputs.sum()}

    net, X = Two(), mlp()[1]
    close(
        module_agop(net, X, "inner.0", output=lambda result: result["logits"]),
        agop_by_jacobian(net.inner, X),
    )
    with pytest.raises(InputError, match="dict"):
        module_agop(net, X)
    with pytest.raises(InputError, match="output="):
        module_agop(net, X, output=lambda result: result["loss"])


def test_images_are_flattened_at_a_linear_layer_and_at_the_input() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    X = torch.randn(SAMPLES, 3, 2, 2, dtype=torch.float64)
    found = module_agops(net, X, [None, "1"])
    close(found[""], agop_by_jacobian(net, X.flatten(1)))
    close(found["1"], found[""])


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Conv2d(2, 3, (2, 3), stride=2, bias=False),
        nn.Conv2d(2, 3, 2, dilation=2, padding=(1, 0)),
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
    ],
)
def test_a_convolution_has_the_agop_of_its_patches(convolution: nn.Conv2d) -> None:
    after = nn.Sequential(nn.Tanh(), nn.Flatten(), nn.LazyLinear(4).double())
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), convolution, after).double()
    images = torch.randn(SAMPLES, 1, 7, 7, dtype=torch.float64)
    shape = net[:3](images).shape[1:]
    net(images)
    h = net[:2](images)
    if convolution.padding_mode == "circular":
        padded, padding = pad(h, [1, 1, 1, 1], mode="circular"), 0
    else:
        padded, padding = h, convolution.padding
    patches = unfold(
        padded,
        convolution.kernel_size,
        dilation=convolution.dilation,
        padding=padding,
        stride=convolution.stride,
    ).mT  # (N, positions, in·kh·kw), each patch now a variable of its own

    def of_patches(patches: Tensor) -> Tensor:
        z = patches @ convolution.weight.flatten(1).T
        z = z if convolution.bias is None else z + convolution.bias
        return after(z.mT.reshape(-1, *shape))

    close(of_patches(patches), net(images))
    expected = torch.zeros(patches.shape[-1], patches.shape[-1], dtype=torch.float64)
    for sample in patches:
        J = jacobian(of_patches, sample[None]).reshape(-1, patches.shape[-1])
        expected += J.T @ J / SAMPLES
    found = module_agop(net, images, "2")
    close(found, expected)
    assert found.shape == nfm(convolution).shape


def test_a_grouped_convolution_has_the_agop_of_its_flattened_input() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.Flatten(), nn.Linear(16, 3)).double()
    images = torch.randn(SAMPLES, 2, 3, 3, dtype=torch.float64)
    expected = agop_by_jacobian(lambda x: net(x.reshape(-1, 2, 3, 3)), images.flatten(1))
    close(module_agop(net, images, "0"), expected)
    assert list(module_agops(net, images)) == ["2"]
    with pytest.raises(InputError):
        nfm(net[0])


def test_the_tokens_of_a_sequence_are_added_up() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Flatten(), nn.Linear(20, 2)).double()
    X = torch.randn(SAMPLES, 5, 3, dtype=torch.float64)
    J = jacobian(net, X[:1]).reshape(-1, 3)
    close(module_agop(net, X[:1], "0"), J.T @ J)
    assert module_agop(net, X).shape == (15, 15)


class Twice(nn.Module):
    """A layer used twice, with a residual connection around its second use."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.same = self.shared
        self.readout = nn.Linear(4, 3)
        self.double()

    def second(self, h: Tensor, through: Tensor) -> Tensor:
        return self.readout(h + self.shared(through).tanh())

    def forward(self, inputs: Tensor) -> Tensor:
        h = self.shared(inputs).relu()
        return self.second(h, h)


def test_the_uses_of_a_layer_are_added_up_and_what_goes_around_it_left_out() -> None:
    net, X = Twice(), torch.randn(SAMPLES, 4, dtype=torch.float64)
    h = net.shared(X).relu().detach()
    second = torch.zeros(4, 4, dtype=torch.float64)
    for one in h:
        J = jacobian(lambda through, one=one: net.second(one[None], through), one[None])
        second += J.reshape(-1, 4).T @ J.reshape(-1, 4) / SAMPLES
    found = module_agops(net, X, ["shared", "same", "readout"])
    close(found["shared"], agop_by_jacobian(net, X) + second)
    close(found["same"], found["shared"])
    close(found["readout"], nfm(net.readout))


def test_operations_in_place_do_not_change_whose_gradient_it_is() -> None:
    torch.manual_seed(3)
    net, X = mlp()
    expected = module_agops(net, X, ["0", "1", "2.0"])
    net[1] = nn.ReLU(inplace=True)
    for name, M in module_agops(net, X, ["0", "1", "2.0"]).items():
        close(M, expected[name])
    first = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 2)).double()
    close(module_agop(first, X.clone()), agop_by_jacobian(lambda x: first(x.clone()), X))


def small_cnn() -> tuple[nn.Module, Tensor]:
    net = nn.Sequential(CNN(1, (3, 4)), nn.Linear(4, 3)).double()
    images = torch.randn(SAMPLES, 1, 5, 5, dtype=torch.float64)
    net(images)  # moves the running moments
    return net, images


def test_batch_norm_is_evaluated_with_running_moments_and_every_mode_set_back() -> None:
    net, images = small_cnn()
    net[0].layers[1].eval()
    modes = [module.training for module in net.modules()]
    moments = {name: value.clone() for name, value in net.named_buffers()}
    found = module_agop(net, images, chunk=2)
    assert [module.training for module in net.modules()] == modes
    assert all((value == moments[name]).all() for name, value in net.named_buffers())
    net.eval()
    expected = agop_by_jacobian(lambda x: net(x.reshape(-1, 1, 5, 5)), images.flatten(1))
    close(found, expected)


def test_modes_are_set_back_after_an_error_too() -> None:
    net, images = small_cnn()
    with pytest.raises(RuntimeError):
        module_agop(net, images[:, :, 0])
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_network_that_mixes_samples_is_refused() -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(InputError, match="track_running_stats=False"):
        module_agop(net, torch.randn(SAMPLES, 6))


def test_no_grad_outside_frozen_weights_and_gradients_at_hand_change_nothing() -> None:
    net, X = mlp()
    expected = module_agop(net, X, "2.0")
    net(X).sum().backward()
    before = [value.grad.clone() for value in net.parameters()]
    with torch.no_grad():
        close(module_agop(net, X.requires_grad_(), "2.0"), expected)
    assert X.grad is None
    assert all((a == value.grad).all() for a, value in zip(before, net.parameters(), strict=True))
    net.requires_grad_(False)
    close(module_agop(net, X, "2.0"), expected)
    assert not module_agop(net, X, "2.0").requires_grad


@pytest.mark.parametrize("head", [StandardClassifier, FixedETFClassifier])
def test_a_trained_model_takes_its_labels_as_a_second_argument(head: Any) -> None:
    model = Model(MLP((6,), 8, 2), head(8, 3)).double()
    X = torch.randn(SAMPLES, 6, dtype=torch.float64)
    labels = torch.arange(SAMPLES) % 3
    model.eval()
    expected = agop_by_jacobian(lambda x: model(x, labels[:1]), X)
    model.train()
    found = module_agops(model, (X, labels), [None, "backbone.layers.1"])
    close(found[""], expected)
    close(found["backbone.layers.1"], expected)


def test_integers_may_be_the_input() -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2)).double()
    close(module_agop(net, torch.arange(5), "1"), nfm(net[1]))
    with pytest.raises(InputError):
        module_agop(net, torch.arange(5), "0")


class Partly(nn.Module):
    """Layers that the output does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)
        self.detached, self.silent = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            silent = self.silent(inputs)
        return self.used(inputs) + self.detached(inputs).detach() + silent


@pytest.mark.parametrize("layer", ["unused", "detached", "silent"])
@pytest.mark.parametrize("others", [[], ["used"]])
def test_a_layer_without_part_in_the_output_is_refused(layer: str, others: list[str]) -> None:
    with pytest.raises(InputError, match=f"'{layer}'"):
        module_agops(Partly(), torch.randn(4, 3), [*others, layer])


def test_a_layer_that_loses_the_samples_is_refused() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tanh = nn.Tanh()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.tanh(inputs.reshape(-1)).reshape(len(inputs), -1)

    with pytest.raises(InputError, match="'tanh'"):
        module_agop(Folded(), torch.randn(4, 3), "tanh")


def test_errors_say_what_would_be_right() -> None:
    net, X = mlp()
    with pytest.raises(InputError, match=r"'33'.* '3'"):
        module_agop(net, X, "33")
    with pytest.raises(InputError):
        module_agop(net, X, nn.Linear(2, 2))
    with pytest.raises(InputError, match=r"\['0'\]"):
        module_agops(net, X, "0")
    with pytest.raises(InputError, match="chunk"):
        module_agop(net, X, chunk=0)
    with pytest.raises(InputError, match=r"\(0, 6\)"):
        module_agop(net, X[:0])
    with pytest.raises(InputError, match=r"\(7, 6\), \(6, 6\)"):
        module_agop(net, (X, X[1:]))
    X[3, 2] = torch.nan
    with pytest.raises(InputError, match="layer '0'"):
        module_agop(net, X, "0")


def test_the_feature_matrix_and_the_agop_have_the_row_space_of_the_weight() -> None:
    net, X = mlp()
    M, W = module_agop(net, X, "2.0"), net[2][0].weight.detach()
    outside = torch.eye(9, dtype=torch.float64) - torch.linalg.pinv(W) @ W
    bound = factorised(W, 9, condition=float(torch.linalg.cond(W)))
    assert (M @ outside).abs().max() < bound
    assert (nfm(net[2][0]) @ outside).abs().max() < bound


def test_a_correlation_sees_proportion_alone() -> None:
    A = torch.randn(6, 6, dtype=torch.float64)
    B = torch.randn(6, 6, dtype=torch.float64)
    for centred in (True, False):
        assert float(nfa_correlation(A, 1e-9 * A, centred=centred)) == pytest.approx(1)
        assert float(nfa_correlation(A, -7 * A, centred=centred)) == pytest.approx(-1)
        torch.testing.assert_close(
            nfa_correlation(A, B, centred=centred), nfa_correlation(3 * B, A, centred=centred)
        )
    torch.testing.assert_close(nfa_correlation(A + 5, B - 2), nfa_correlation(A, B))
    pearson = torch.corrcoef(torch.stack([A.flatten(), B.flatten()]))[0, 1]
    torch.testing.assert_close(nfa_correlation(A, B), pearson)
    cosine = torch.cosine_similarity(A.flatten(), B.flatten(), dim=0)
    torch.testing.assert_close(nfa_correlation(A, B, centred=False), cosine)


def test_independent_matrices_are_not_correlated() -> None:
    A, B = torch.randn(2, 300, 300)
    assert nfa_correlation(A, B).abs() < 6 / 300  # six deviations of a mean over 300² entries
    # P.s.d. matrices of the same trace are at an acute angle whatever they are: hence the centring.
    assert nfa_correlation(A @ A.T, B @ B.T, centred=False) > 0.4


def test_a_correlation_that_is_not_defined_is_nan() -> None:
    A = torch.randn(5, 5, dtype=torch.float64)
    assert nfa_correlation(A, torch.zeros(5, 5)).isnan()
    assert nfa_correlation(torch.full((5, 5), 0.1, dtype=torch.float64), A).isnan()
    assert not nfa_correlation(torch.full((5, 5), 0.1), A, centred=False).isnan()
    with pytest.raises(InputError, match="finite"):
        nfa_correlation(A, torch.full((5, 5), torch.nan))
    with pytest.raises(InputError, match=r"\(5, 5\) and \(4, 4\)"):
        nfa_correlation(A, A[:4, :4])


def test_the_ansatz_of_a_network_is_that_of_its_parts() -> None:
    net, X = mlp()
    found = nfa_correlations(net, X)
    assert list(found) == ["0", "2.0", "3"]
    agops = module_agops(net, X)
    for name, rho in found.items():
        layer = net.get_submodule(name)
        close(rho, nfa_correlation(nfm(layer), matrix_sqrt(agops[name]).root))
    plain = nfa_correlations(net, X, ["2.0"], root=False, centred=False)
    close(plain["2.0"], nfa_correlation(nfm(net[2][0]), agops["2.0"], centred=False))
    # The AGOP of the last layer's input is WᵀW itself.
    assert float(nfa_correlations(net, X, ["3"], root=False)["3"]) == pytest.approx(1)
    with pytest.raises(InputError):
        nfa_correlations(net, X, ["1"])


def test_a_kernel_sees_what_its_reshaped_matrix_sees() -> None:
    layer = nn.Conv2d(2, 5, 3, bias=False)
    W = layer.weight.flatten(1)
    torch.testing.assert_close(nfm(layer), (W.T @ W).double().detach())
    x = torch.randn(1, 2, 3, 3)
    product = (W @ x.flatten()).square().sum()
    torch.testing.assert_close(conv2d(x, layer.weight).square().sum(), product)
