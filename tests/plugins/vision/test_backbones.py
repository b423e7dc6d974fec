"""ResNets, VGGs, DenseNets: shapes at every image size, what there is to train, the published."""

import sys

import pytest
import torch
from ddnkit_train import AGD
from torch.nn import functional as F

from ddnkit import InputError, registry

RESNETS = ["resnet18", "resnet34", "resnet50", "resnet101"]
DIMENSIONS = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048,
              "vgg11": 512, "vgg13": 512, "vgg16": 512, "resnet32": 64, "densenet_bc": 342}  # fmt: skip
VGGS = [name for name in DIMENSIONS if name.startswith("vgg")]
#: Those that another of the same blocks stands for.
LARGER = {"resnet34", "resnet101", "vgg13", "vgg16"}


def names(of):
    return [pytest.param(n, marks=[pytest.mark.long] if n in LARGER else []) for n in of]


def build(name, shape=(3, 32, 32), **settings):
    return registry.get("backbones", name)(**settings).build(sample_shape=shape, samples=10)


@pytest.mark.parametrize("name", names(DIMENSIONS))
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
@pytest.mark.covering
def test_image_sizes(name, settings, side, channels):
    if side == 224 and settings:
        side = 64  # a whole 224×224 image without a stem takes seconds
    network = build(name, (channels, side, side), **settings)
    with torch.no_grad():
        features = network(torch.randn(2, channels, side, side))
    assert features.shape == (2, 512)
    assert features.isfinite().all()
    assert features.std() > 0


@pytest.mark.parametrize("side", [4, 7, 28, 33])
@pytest.mark.parametrize("name", ["resnet32", "densenet_bc"])
def test_small_images_of_any_size(name, side):
    network = build(name, (1, side, side + 1), affine=True)
    features = network(torch.randn(2, 1, side, side + 1))
    assert features.shape == (2, network.feature_dim)
    features.square().sum().backward()
    untouched = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not untouched


@pytest.mark.parametrize(("name", "published"), [("resnet32", 464_154), ("densenet_bc", 769_162)])
def test_published_numbers_of_parameters(name, published):
    """0.46 M and 0.8 M in the papers, with the classifier of CIFAR-10."""
    network = build(name, affine=True)
    classifier = torch.nn.Linear(network.feature_dim, 10)
    counted = [*network.parameters(), *classifier.parameters()]
    assert sum(parameter.numel() for parameter in counted) == published


def test_a_wide_resnet32_has_the_features_of_a_simplex_of_100_classes():
    network = build("resnet32", width=2)
    assert network.feature_dim == 128
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 128)


def test_shortcuts_of_resnet32_are_every_other_pixel_and_zeros():
    network = build("resnet32").eval()
    for parameter in network.blocks.parameters():
        torch.nn.init.zeros_(parameter)
    images = torch.randn(2, 3, 30, 32)
    with torch.no_grad():
        stem, features = network.stem(images).relu(), network(images)
    expected = F.pad(stem[:, :, ::4, ::4].mean(dim=(2, 3)), (0, 48))
    torch.testing.assert_close(features, expected)


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


def test_the_stem_of_a_densenet():
    small, large = build("densenet_bc"), build("densenet_bc", (1, 96, 96), stem="imagenet")
    assert resolution(small.features, 32, "conv0") == (32, 32)
    assert resolution(small.features, 32, "transition1") == (16, 16)
    assert small.features.conv0.weight.shape == (24, 3, 3, 3)
    assert large.features.conv0.weight.shape == (24, 1, 7, 7)
    with torch.no_grad():
        assert large.features.pool0(large.features.conv0(torch.randn(1, 1, 96, 96))).shape[2] == 24
    deep = build("densenet_bc", depth=40, growth=8)
    assert deep.feature_dim == 88
    assert len(deep.features.denseblock3) == 6


def test_densenet_is_torchvision_s():
    from torchvision import models

    theirs = models.DenseNet(12, (16, 16, 16), 24)
    theirs.classifier = torch.nn.Identity()
    ours = build("densenet_bc", stem="imagenet", affine=True)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize(("stem", "least"), [("cifar", 4), ("imagenet", 13)])
def test_a_densenet_says_what_images_are_too_small(stem, least):
    network = build("densenet_bc", (3, least, least), stem=stem)
    assert network(torch.randn(2, 3, least, least)).shape == (2, 342)
    with pytest.raises(InputError, match=rf"{stem} .*{least}×{least}"):
        build("densenet_bc", (3, 64, least - 1), stem=stem)


def test_a_densenet_of_unequal_blocks_is_refused():
    with pytest.raises(ValueError, match="100 or 106, not 102"):
        build("densenet_bc", depth=102)


@pytest.mark.parametrize(("side", "left"), [(8, 1), (28, 1), (32, 1), (40, 1), (96, 3)])
def test_a_vgg_keeps_something_of_every_image(side, left):
    network = build("vgg13", (3, side, side))
    assert resolution(network, side, "features") == (left, left)


@pytest.mark.parametrize("name", names(VGGS))
def test_vgg_is_torchvision_s(name):
    from torchvision import models

    theirs = models.vgg.make_layers(models.vgg.cfgs[{"vgg11": "A", "vgg13": "B", "vgg16": "D"}[name]],
                                    batch_norm=True)  # fmt: skip
    ours = build(name, bias=True, affine=True).features
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("name", names(RESNETS))
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
    with pytest.raises(InputError, match="matrices"):
        AGD(network.named_parameters())


def test_what_backbones_refuse(monkeypatch):
    with pytest.raises(InputError, match=r"vgg13 .*\(5,\)"):
        build("vgg13", (5,))
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(InputError, match=r"resnet18 .*ddnkit\[vision"):
        build("resnet18")
    with pytest.raises(InputError, match="densenet_bc"):
        build("densenet_bc")
    for name in ("vgg11", "resnet32"):
        assert build(name).feature_dim == DIMENSIONS[name]


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "resnet32", "densenet_bc"])
def test_hidden_layers_on_the_features_of_a_network(name):
    network = build(name, mlp_depth=3, mlp_width=20, mlp_scale=0.2)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        plain, features = network.network(images), network(images)
    assert plain.shape == (2, DIMENSIONS[name])
    assert features.shape == (2, network.feature_dim) == (2, 20)
    assert (features >= 0).all() and features.any()
    layers = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    assert [layer.in_features for layer in layers] == [DIMENSIONS[name], 20, 20]
    assert not any(layer.bias is not None for layer in layers)
    hidden = plain
    for layer in layers:
        hidden = (hidden @ layer.weight.T).relu()
        # Xavier's uniform start with gain 0.2
        limit = 0.2 * (6 / sum(layer.weight.shape)) ** 0.5
        assert 0.9 * limit < layer.weight.abs().max() <= limit
    torch.testing.assert_close(features, hidden)


def test_without_hidden_layers_names_of_weights_are_the_network_s():
    torch.manual_seed(0)
    before = build("resnet18").state_dict()
    torch.manual_seed(0)
    after = build("resnet18", mlp_depth=2).network.state_dict()
    assert before.keys() == after.keys() == build("resnet18", mlp_depth=0).state_dict().keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_default_start_of_hidden_layers_is_torch_s():
    layer = build("vgg11", mlp_depth=1, mlp_width=512).mlp.layers[1]
    limit = layer.in_features**-0.5
    assert 0.99 * limit < layer.weight.abs().max() <= limit


def test_a_network_with_hidden_layers_starts_from_published_weights(tmp_path):
    from torchvision import models

    theirs = models.resnet18(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "mine.pth")
    settings = registry.get("backbones", "resnet18")(
        weights=tmp_path / "mine.pth", affine=True, mlp_depth=2
    )
    ours = settings.build(sample_shape=(3, 64, 64), samples=10)
    settings.start(ours)
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval().network(images), theirs(images))
        assert ours(images).shape == (2, 512)


def test_agd_trains_hidden_layers_too():
    network = build("resnet32", mlp_depth=2, mlp_width=16)
    optimizer = AGD(network.named_parameters())
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    before = [parameter.clone() for parameter in network.mlp.parameters()]
    optimizer.step()
    assert all(not torch.equal(p, b) for p, b in zip(network.mlp.parameters(), before, strict=True))
