"""ResNets and VGGs: their shapes at every image size, what there is to train, and torchvision's own."""

import sys

import pytest
import torch
from ddnkit_train import AGD

from ddnkit import InputError, registry

DIMENSIONS = {"resnet18": 512, "resnet34": 512, "resnet50": 2048,
              "vgg11": 512, "vgg13": 512, "vgg16": 512}  # fmt: skip
RESNETS = [name for name in DIMENSIONS if name.startswith("resnet")]
VGGS = [name for name in DIMENSIONS if name.startswith("vgg")]


def build(name, shape=(3, 32, 32), **settings):
    return registry.get("backbones", name)(**settings).build(sample_shape=shape, samples=10)


@pytest.mark.parametrize("name", DIMENSIONS)
def test_agd_trains_it_as_it_is(name):
    network = build(name)
    assert network.feature_dim == DIMENSIONS[name]
    assert {parameter.ndim for parameter in network.parameters()} == {4}
    optimizer = AGD(network.named_parameters(), gain=10)
    before = [parameter.clone() for parameter in network.parameters()]
    features = network(torch.randn(4, 3, 32, 32))
    assert features.shape == (4, network.feature_dim)
    features.square().sum().backward()
    optimizer.step()
    moved = [(p - b).norm() for p, b in zip(network.parameters(), before, strict=True)]
    assert min(moved) > 0
    assert all(parameter.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [28, 32, 96, 224])
@pytest.mark.parametrize(
    ("name", "settings"),
    [("resnet18", {}), ("resnet18", {"stem": "cifar"}), ("vgg11", {}), ("vgg13", {})],
)
def test_image_sizes(name, settings, side, channels):
    if side == 224 and settings:
        side = 64  # a whole 224×224 image without a stem takes seconds
    network = build(name, (channels, side, side), **settings)
    with torch.no_grad():
        features = network(torch.randn(2, channels, side, side))
    assert features.shape == (2, 512)
    assert features.isfinite().all()
    assert features.std() > 0


def resolution(network, side, layer):
    shapes = []
    handle = getattr(network, layer).register_forward_hook(lambda *a: shapes.append(a[2].shape))
    with torch.no_grad():
        network(torch.randn(2, 3, side, side))
    handle.remove()
    return tuple(shapes[0][2:])


def test_the_stem_sets_the_resolution():
    assert resolution(build("resnet18"), 32, "maxpool") == (8, 8)
    assert resolution(build("resnet18", stem="cifar"), 32, "maxpool") == (32, 32)
    assert build("resnet50", stem="cifar").conv1.weight.shape == (64, 3, 3, 3)
    assert build("resnet18", (1, 28, 28)).conv1.weight.shape == (64, 1, 7, 7)


@pytest.mark.parametrize(("side", "left"), [(8, 1), (28, 1), (32, 1), (40, 1), (96, 3)])
def test_a_vgg_keeps_something_of_every_image(side, left):
    network = build("vgg13", (3, side, side))
    assert resolution(network, side, "features") == (left, left)


@pytest.mark.parametrize("name", VGGS)
def test_vgg_is_torchvision_s(name):
    from torchvision import models

    theirs = models.vgg.make_layers(models.vgg.cfgs[{"vgg11": "A", "vgg13": "B", "vgg16": "D"}[name]],
                                    batch_norm=True)  # fmt: skip
    ours = build(name, bias=True, affine=True).features
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("name", RESNETS)
def test_resnet_is_torchvision_s(name):
    from torchvision import models

    theirs = getattr(models, name)(weights=None)
    theirs.fc = torch.nn.Identity()
    ours = build(name)
    # An affine batch norm starts as one without: scale 1, shift 0.
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing.missing_keys
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images))
    affine = build(name, affine=True)
    assert affine.state_dict().keys() == theirs.state_dict().keys()


def test_the_mlp_neck_of_vgg():
    network = build("vgg11", neck="mlp")
    assert network.feature_dim == 4096
    hidden = [m for m in network.neck if isinstance(m, torch.nn.Linear)]
    assert [layer.weight.shape for layer in hidden] == [(4096, 25088), (4096, 4096)]
    assert not any(layer.bias is not None for layer in hidden)
    with torch.no_grad():
        assert network(torch.randn(2, 3, 32, 32)).shape == (2, 4096)


@pytest.mark.parametrize("settings", [{"affine": True}, {"bias": True}])
def test_agd_says_what_it_cannot_train(settings):
    network = build("vgg11", **settings)
    with pytest.raises(InputError, match=r"matrices .* alone"):
        AGD(network.named_parameters())


def test_what_backbones_refuse(monkeypatch):
    with pytest.raises(InputError, match=r"vgg13 needs images .* have shape \(5,\)"):
        build("vgg13", (5,))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match=r"resnet18 needs torchvision: pip install 'ddnkit\[visi"):
        build("resnet18")
    build("vgg11")  # a layout is all that it takes
