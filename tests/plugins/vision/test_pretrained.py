"""Starting from published weights: the same features, where files are looked for, what is refused."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from image_stand_ins import served
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from ddnkit import DdnkitError, InputError, registry

AFFINE = {"affine": True}
VGG = {"affine": True, "bias": True, "neck": "mlp"}
FILE = "resnet18-f37072fd.pth"


def settings(name: str, weights: Any, **given: Any) -> Any:
    return registry.get("backbones", name)(weights=weights, **{**AFFINE, **given})


def build(made: Any, channels: int = 3) -> Any:
    return made.build(sample_shape=(channels, 64, 64), samples=10)


def started(made: Any, download: bool = False) -> Any:
    made.locate(download=download)
    network = build(made)
    made.start(network, download=download)
    return network.eval()


def theirs(name: str, **given: Any) -> Any:
    """torchvision's network, every number its own."""
    network = getattr(models, name)(**given)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return network.eval()


def same_features(ours: nn.Module, published: nn.Module) -> None:
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), published(images))


@pytest.fixture(scope="module")
def resnet18() -> Any:
    network = theirs("resnet18")
    network.whole = network.state_dict()
    network.fc = nn.Identity()
    return network


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Where torchvision's weights are looked for."""
    monkeypatch.setenv("DDNKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return {
        "data": tmp_path / "data" / "weights",
        "cache": tmp_path / "cache" / "ddnkit" / "weights",
        "hub": tmp_path / "torch" / "hub" / "checkpoints",
    }


@pytest.mark.parametrize("ending", ["pth", "pt", "safetensors"])
def test_a_file_of_torchvisions_names_gives_its_features(
    resnet18: Any, tmp_path: Path, ending: str
) -> None:
    file = tmp_path / f"mine.{ending}"
    save_file(resnet18.whole, file) if ending == "safetensors" else torch.save(resnet18.whole, file)
    same_features(started(settings("resnet18", file)), resnet18)
    same_features(started(settings("resnet18", str(file))), resnet18)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.long) for n in ("resnet34", "resnet101")] + ["resnet50"],
)
def test_every_resnet_starts_from_its_weights(name: str, tmp_path: Path) -> None:
    network, file = theirs(name), tmp_path / "mine.pth"
    torch.save(network.state_dict(), file)
    network.fc = nn.Identity()
    same_features(started(settings(name, file)), network)


def test_a_vgg_starts_from_its_weights(tmp_path: Path) -> None:
    network, file = theirs("vgg11_bn", init_weights=False), tmp_path / "mine.pth"
    weights = network.state_dict()
    for layer in (0, 3):
        # One row for all of them is all that is written to the file.
        row = weights[f"classifier.{layer}.weight"][:1].clone()
        weights[f"classifier.{layer}.weight"] = row.expand(4096, -1)
        weights[f"classifier.{layer}.bias"] = torch.randn(4096)
    network.load_state_dict(weights)
    # As the published file, which is older than these counters.
    torch.save({k: v for k, v in weights.items() if "num_batches" not in k}, file)
    network.classifier[6] = nn.Identity()
    same_features(started(settings("vgg11", file, **VGG)), network)


@pytest.mark.parametrize("where", ["data", "cache", "hub"])
def test_torchvisions_file_is_found(resnet18: Any, folders: dict[str, Path], where: str) -> None:
    folders[where].mkdir(parents=True)
    torch.save(resnet18.whole, folders[where] / FILE)
    same_features(started(settings("resnet18", "imagenet")), resnet18)


def test_a_missing_file_is_named_with_the_folders_and_the_way_out(folders: dict[str, Path]) -> None:
    made = settings("resnet18", "imagenet")
    network = build(made)
    for attempt in (made.locate, lambda: made.start(network)):
        with pytest.raises(InputError) as caught:
            attempt()
        text = str(caught.value)
        assert text.startswith("resnet18")
        for folder in folders.values():
            assert f"  {folder}: " in text and FILE in text
        assert "--download (45 MB from download.pytorch.org" in text
        assert "-s backbone.weights=FILE" in text
    made.locate(download=True)
    assert not any(folder.exists() for folder in folders.values())
    with pytest.raises(InputError, match=r"resnet101-63fe2227\.pth"):
        settings("resnet101", "imagenet").locate()
    with pytest.raises(InputError, match=r"vgg13_bn-abd245e5\.pth"):
        settings("vgg13", "imagenet", **VGG).locate()


def serve(url: str, file: Path, checksum: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file.rename(file.with_name(f"resnet18-{checksum}.pth"))
    published = SimpleNamespace(url=f"{url}/resnet18-{checksum}.pth", meta={"_file_size": 45})
    kind = SimpleNamespace(IMAGENET1K_V1=published)
    monkeypatch.setattr(models, "get_model_weights", lambda name: kind)


def test_a_file_is_fetched_once_and_verified(
    resnet18: Any, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "origin" / "weights"
    file.parent.mkdir()
    torch.save(resnet18.whole, file)
    made = settings("resnet18", "imagenet")
    with served(file.parent) as url:
        checksum = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
        serve(url, file, checksum, monkeypatch)
        same_features(started(made, download=True), resnet18)
    assert (folders["data"] / f"resnet18-{checksum}.pth").is_file()
    same_features(started(made, download=True), resnet18)
    same_features(started(made), resnet18)


def test_a_file_with_another_checksum_is_refused(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "origin" / "weights"
    file.parent.mkdir()
    file.write_bytes(b"others")
    made = settings("resnet18", "imagenet")
    with served(file.parent) as url:
        serve(url, file, "01234567", monkeypatch)
        with pytest.raises(DdnkitError, match=r"resnet18-01234567\.pth") as caught:
            started(made, download=True)
    assert not isinstance(caught.value, InputError)
    assert "-s backbone.weights=FILE" in str(caught.value)
    assert not (folders["data"] / "resnet18-01234567.pth").exists()


def write(tensors: dict[str, Any], tmp_path: Path) -> Path:
    torch.save(tensors, tmp_path / "mine.pth")
    return tmp_path / "mine.pth"


def test_weights_of_another_network_are_refused(resnet18: Any, tmp_path: Path) -> None:
    file = write(resnet18.whole, tmp_path)
    with pytest.raises(InputError) as caught:
        started(settings("resnet34", file))
    for part in (f"{file}: ", "resnet34", "layer1.2.conv1.weight", "(64, 64, 3, 3)"):
        assert part in str(caught.value)
    shapes = r"\(64, 64, 3, 3\).*\(64, 64, 1, 1\)"
    with pytest.raises(InputError, match=rf"layer1\.0\.conv1\.weight .*{shapes}"):
        started(settings("resnet50", file))
    file = write({**resnet18.whole, "layer5.weight": torch.zeros(1)}, tmp_path)
    with pytest.raises(InputError, match=r"layer5\.weight"):
        started(settings("resnet18", file))


def test_files_that_are_no_weights_are_refused(resnet18: Any, tmp_path: Path) -> None:
    made = settings("resnet18", write({"state_dict": resnet18.whole}, tmp_path))
    with pytest.raises(InputError, match=r"mine\.pth"):
        started(made)
    made.weights.write_bytes(made.weights.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"mine\.pth"):
        started(made)
    (tmp_path / "mine.safetensors").write_bytes(b"text")
    with pytest.raises(InputError, match=r"mine\.safetensors"):
        started(settings("resnet18", tmp_path / "mine.safetensors"))
    made = settings("resnet18", tmp_path / "imagnet")
    with pytest.raises(InputError, match=r"weights: .*imagnet.*'random', 'imagenet'"):
        made.locate(download=True)
    with pytest.raises(InputError):
        made.start(build(made))


@pytest.mark.parametrize(
    ("name", "given", "needed"),
    [
        ("resnet18", {"affine": False}, "affine: true"),
        ("resnet50", {"affine": False, "stem": "cifar"}, "affine: true, stem: imagenet"),
        ("vgg13", {}, "bias: true, neck: mlp"),
        ("vgg16", {"bias": True, "neck": "mlp", "affine": False}, "affine: true"),
    ],
)
@pytest.mark.parametrize("weights", ["imagenet", "mine.pth"])
def test_weights_need_the_published_network(
    name: str, given: dict[str, Any], needed: str, weights: str
) -> None:
    with pytest.raises(ValueError, match=f"{weights} .*{needed}"):
        settings(name, weights, **given)


def test_weights_are_for_images_of_three_channels() -> None:
    with pytest.raises(InputError, match="3 channels"):
        build(settings("resnet18", "imagenet"), channels=1)
    assert build(settings("resnet18", "random"), channels=1).conv1.in_channels == 1


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "resnet32"])
def test_by_default_the_start_is_random_and_needs_no_files(
    name: str, folders: dict[str, Path]
) -> None:
    made = registry.get("backbones", name)()
    made.locate()
    network = build(made)
    before: dict[str, Tensor] = {key: value.clone() for key, value in network.state_dict().items()}
    made.start(network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
