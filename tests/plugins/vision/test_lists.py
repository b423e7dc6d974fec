"""ImageNet-LT and CUB-200-2011: lists of images on disk, and what may be wrong with them."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ddnkit_train import Data, Plan
from ddnkit_vision import StreamedImages
from ddnkit_vision.settings import CUB200, ImageNetLT, StreamedImageSettings
from image_stand_ins import write_cub200, write_imagenet_lt
from PIL import Image
from torch import Tensor

from ddnkit import InputError, registry

SMALL = {"image_size": 16, "resize": 20, "workers": 0}


def build(kind: type[StreamedImageSettings], root: Path | None, **settings: object) -> Data:
    made = kind(root=root, **{**SMALL, **settings})  # type: ignore[arg-type]
    made.locate()
    return made.build(seed=0, smoke=False)


def seen(data: StreamedImages, file: Path) -> Tensor:
    """What the network sees of a file that it is evaluated on."""
    with Image.open(file) as image:
        pixels = np.asarray(data.view.centre(image.convert("RGB")))
    prepared: Tensor = data.prepare(torch.tensor(pixels).permute(2, 0, 1)[None])[0]
    return prepared


@pytest.fixture
def imagenet_lt(tmp_path: Path) -> Path:
    return write_imagenet_lt(tmp_path / "imagenet")


@pytest.fixture
def cub200(tmp_path: Path) -> Path:
    return write_cub200(tmp_path / "birds" / "CUB_200_2011")


def test_imagenet_lt_is_what_its_lists_say(imagenet_lt: Path) -> None:
    data = build(registry.get("datasets", "imagenet_lt"), imagenet_lt)
    assert isinstance(data, StreamedImages)
    assert (data.samples, data.test_samples, data.classes) == (1002, 3, 1000)
    assert data.labels.tolist() == [0, *range(999, -1, -1), 0]
    assert torch.bincount(data.labels).tolist() == [3] + [1] * 999
    ((tests, labels),) = data.evaluation("test", 10)
    assert labels.tolist() == [5, 999, 5]
    for i, image in enumerate(tests):
        assert torch.equal(image, seen(data, imagenet_lt / "val" / f"{i}.JPEG"))
    index = torch.tensor([1001, 12])
    ((images, labels),) = data.evaluation("train", 10, index=index)
    assert labels.tolist() == [0, 988]
    for image, i in zip(images, index.tolist(), strict=True):
        assert torch.equal(image, seen(data, imagenet_lt / f"train/n01440764/{i % 7}.JPEG"))
    ((drawn, _),) = data.training([Plan(index, 0)])
    assert drawn.shape == (2, 3, 16, 16)


def test_lists_may_lie_elsewhere(imagenet_lt: Path, tmp_path: Path) -> None:
    file = (imagenet_lt / "ImageNet_LT_train.txt").rename(tmp_path / "mine.txt")
    assert build(ImageNetLT, imagenet_lt, train_list=file).samples == 1002
    with pytest.raises(InputError) as caught:
        build(ImageNetLT, imagenet_lt)
    assert f"{imagenet_lt}: missing ImageNet_LT_train.txt\n" in str(caught.value)


@pytest.mark.parametrize("download", [False, True])
def test_missing_lists_are_named_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: bool
) -> None:
    monkeypatch.setenv("DDNKIT_DATA", str(tmp_path / "given"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(InputError) as caught:
        ImageNetLT().locate(download=download)
    text = str(caught.value)
    for folder in (tmp_path / "given" / "imagenet_lt", tmp_path / "cache/ddnkit/imagenet_lt"):
        missing = r"ImageNet_LT_train\.txt, ImageNet_LT_test\.txt"
        assert re.search(f"{folder}: .*{missing}\n", text)
    assert "--download" in text and "classifier-balancing" in text
    with pytest.raises(InputError) as caught:
        CUB200(root=tmp_path).locate(download=download)
    text = str(caught.value)
    for folder in (tmp_path / "CUB_200_2011", tmp_path):
        assert f"  {folder}: " in text
    assert " images.txt, image_class_labels.txt, train_test_split.txt, images/\n" in text
    assert "caltech.edu" in text and "-s data.root=DIR" in text


def test_the_usual_folders_are_looked_in(
    tmp_path: Path, cub200: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DDNKIT_DATA", str(tmp_path))
    write_imagenet_lt(tmp_path / "imagenet_lt")
    cub200.parent.rename(tmp_path / "cub200")
    assert build(ImageNetLT, None).samples == 1002
    assert build(CUB200, None).samples == 400


@pytest.mark.parametrize("above", [False, True])
def test_cub200_is_what_its_lists_say(cub200: Path, above: bool) -> None:
    kind = registry.get("datasets", "cub200")
    data = build(kind, cub200.parent if above else cub200)
    assert isinstance(data, StreamedImages)
    assert (data.samples, data.test_samples, data.classes) == (400, 200, 200)
    assert data.labels.tolist() == [label for label in range(200) for _ in range(2)]
    ((tests, labels),) = data.evaluation("test", 300)
    assert labels.tolist() == list(range(200))
    for number in (0, 1, 199):
        file = cub200 / f"images/001.Black_footed_Albatross/{3 * number % 7}.JPEG"
        assert torch.equal(tests[number], seen(data, file))
    assert (kind().image_size, kind().resize) == (448, 512)


@pytest.mark.parametrize("kind", [ImageNetLT, CUB200])
def test_chosen_training_samples(
    kind: type[StreamedImageSettings], imagenet_lt: Path, cub200: Path
) -> None:
    whole = build(kind, imagenet_lt if kind is ImageNetLT else cub200)
    index = torch.tensor([333, 7, 42])
    data = whole.subset(index)
    assert torch.equal(data.labels, whole.labels[index])
    assert (data.test_samples, data.classes) == (whole.test_samples, whole.classes)
    ((images, _),) = data.evaluation("train", 3)
    ((expected, _),) = whole.evaluation("train", 3, index=index)
    assert torch.equal(images, expected)


def test_a_subset_takes_the_first_of_each_class_in_any_order(imagenet_lt: Path) -> None:
    data = build(ImageNetLT, imagenet_lt, subset=1001)
    assert data.labels.tolist() == [0, *range(999, -1, -1)]
    assert build(ImageNetLT, imagenet_lt, subset=1).labels.tolist() == [0]


def replaced(number: int, line: str) -> Callable[[list[str]], None]:
    return lambda lines: lines.__setitem__(number - 1, line)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (replaced(3, "train/0.JPEG"), r"line 3: .*'train/0\.JPEG'$"),
        (replaced(4, ""), "line 4: .*''$"),
        (replaced(5, "a b.JPEG 1"), r"line 5: .*'a b\.JPEG 1'$"),
        (replaced(6, "a.JPEG 1000"), "line 6: '1000' .*0…999"),
        (replaced(7, "a.JPEG -1"), "line 7: '-1' .*0…999"),
        (replaced(8, "a.JPEG one"), "line 8: 'one' "),
        (replaced(8, f"a.JPEG {'1' * 5000}"), "line 8: '11111"),
        (replaced(9, f"{'a' * 20_000} 1"), "line 9: "),
        (replaced(2, "a.JPEG 998"), r"class 999$"),
        (lambda lines: lines.__delitem__(slice(9, 12)), r"class 989 .*\b2\b"),
        (replaced(1, "train/no.JPEG 0"), r"line 1: .*imagenet/train/no\.JPEG$"),
        (list.clear, r"ImageNet_LT_train\.txt: (?!.*line)"),
    ],
)
def test_a_wrong_list_is_told_with_its_line(
    imagenet_lt: Path, change: Callable[[list[str]], None], text: str
) -> None:
    file = imagenet_lt / "ImageNet_LT_train.txt"
    lines = file.read_text().splitlines()
    change(lines)
    file.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(InputError, match=text) as caught:
        build(ImageNetLT, imagenet_lt)
    assert str(caught.value).startswith(str(file))


def test_a_wrong_list_of_test_images_is_told_with_its_line(imagenet_lt: Path) -> None:
    file = imagenet_lt / "ImageNet_LT_test.txt"
    file.write_text("val/0.JPEG 7\nval/1.JPEG 1000\n")
    with pytest.raises(InputError, match=r"ImageNet_LT_test\.txt, line 2: '1000'"):
        build(ImageNetLT, imagenet_lt)
    file.unlink()
    file.mkdir()
    with pytest.raises(InputError, match=r"ImageNet_LT_test\.txt"):
        build(ImageNetLT, imagenet_lt)


@pytest.mark.parametrize(
    ("file", "number", "line", "text"),
    [
        ("images.txt", 2, "2", r"images\.txt, line 2: .*'2'"),
        ("images.txt", 1, "1 no.jpg", r"images\.txt, line 1: .*images/no\.jpg"),
        ("images.txt", 5, "6 a.jpg", r"line 5 of images\.txt"),
        ("images.txt", 600, None, r"line 600 of images\.txt"),
        ("image_class_labels.txt", 4, "4 201", r"labels\.txt, line 4: '201' .*1…200"),
        ("image_class_labels.txt", 4, "4 0", r"labels\.txt, line 4: '0' .*1…200"),
        ("train_test_split.txt", 9, "9 2", r"split\.txt, line 9: '2' .*0…1"),
    ],
)
def test_wrong_lists_of_cub200(
    cub200: Path, file: str, number: int, line: str | None, text: str
) -> None:
    lines = (cub200 / file).read_text().splitlines()
    lines[number - 1 : number] = [] if line is None else [line]
    (cub200 / file).write_text("\n".join(lines))
    with pytest.raises(InputError, match=text):
        build(CUB200, cub200)


def test_cub200_has_a_training_image_of_every_class(cub200: Path) -> None:
    file = cub200 / "train_test_split.txt"
    lines = file.read_text().splitlines()
    lines[-3:] = [f"{number} 0" for number in (598, 599, 600)]
    file.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"class_labels\.txt.*200"):
        build(CUB200, cub200)
