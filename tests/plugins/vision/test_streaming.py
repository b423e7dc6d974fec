"""Image folders: decoding in workers, the same batches whatever the workers, shares and resumption."""

import itertools
import math
import multiprocessing
import os
import signal
import struct
import warnings
import zlib
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from ddnkit_train import Data, Plan, Share
from ddnkit_vision import StreamedImages
from ddnkit_vision.image_files import read_splits
from ddnkit_vision.settings import ImageFolder
from ddnkit_vision.streaming import View, _seeds
from image_stand_ins import write_images
from PIL import Image
from torchvision import datasets, transforms

from ddnkit import DdnkitError, InputError

SMALL = {"image_size": 16, "resize": 20}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def build(folder: Path, workers: int = 0, **settings: object) -> Data:
    made = ImageFolder(root=folder, workers=workers, **{**SMALL, **settings})  # type: ignore[arg-type]
    made.locate()
    return made.build(seed=0, smoke=False)


def plans() -> list[Plan]:
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    return [Plan(order[:6], 7), Plan(order[6:11], 8), Plan(order[11:], 9), Plan(None, 10)]


def test_labels_shapes_and_standardisation(folder: Path) -> None:
    data = build(folder)
    assert isinstance(data, StreamedImages)
    assert data.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert (data.samples, data.test_samples, data.classes) == (15, 9, 3)
    assert data.sample_shape == (3, 16, 16)
    for (samples, labels), plan in zip(data.training(plans()), plans(), strict=True):
        assert samples.shape[1:] == data.sample_shape and samples.dtype == torch.float32
        assert torch.equal(labels, data.labels if plan.index is None else data.labels[plan.index])
    grey = torch.full((1, 3, 1, 1), 128, dtype=torch.uint8)
    expected = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    assert torch.allclose(data.prepare(grey).flatten(), expected)


def test_batches_do_not_depend_on_the_workers(folder: Path) -> None:
    state = torch.get_rng_state()
    alone = list(build(folder).training(plans()))
    together = list(build(folder, workers=2).training(plans()))
    for (samples, labels), (others, other_labels) in zip(alone, together, strict=True):
        assert torch.equal(samples, others) and torch.equal(labels, other_labels)
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_outlive_the_signals_that_ask_a_run_to_stop(folder: Path) -> None:
    batches = build(folder, workers=1).training([Plan(None, i) for i in range(30)])
    next(batches)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid or 0, number)
    assert sum(1 for _ in batches) == 29
    worker.join(30)
    assert not worker.is_alive()


def test_workers_end_with_an_abandoned_epoch(folder: Path) -> None:
    batches = build(folder, workers=1).training([Plan(None, i) for i in range(30)])
    next(batches)
    (worker,) = multiprocessing.active_children()
    del batches
    worker.join(30)
    assert not worker.is_alive()


def test_a_resumed_run_gets_the_same_batches(folder: Path) -> None:
    data = build(folder)
    whole, rest = list(data.training(plans())), list(data.training(plans()[2:]))
    for (samples, _), (others, _) in zip(whole[2:], rest, strict=True):
        assert torch.equal(samples, others)


@pytest.mark.parametrize("world", [2, 7])
def test_shares_partition_each_batch(folder: Path, world: int) -> None:
    data = build(folder)
    whole = list(data.training(plans()))
    parts = [list(data.training(plans(), Share(rank, world))) for rank in range(world)]
    for step, (samples, labels) in enumerate(whole):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), samples)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), labels)


def test_crops_differ_with_the_place_and_the_batch(folder: Path) -> None:
    data = build(folder)
    same = torch.zeros(8, dtype=torch.int64)
    (first, _), (second, _) = data.training([Plan(same, 0), Plan(same, 1)])
    assert len(torch.cat([first, second]).unique(dim=0)) == 16
    assert len(set(_seeds(3, 10_000))) == 10_000
    assert _seeds(-1, 3) == _seeds(2**64 - 1, 3)


def test_evaluation_is_torchvisions_resize_and_centre_crop(folder: Path) -> None:
    data = build(folder, resize=23)
    by_torchvision = transforms.Compose([transforms.Resize(23), transforms.CenterCrop(16)])
    files = sorted((folder / "val").glob("*/*"))
    expected = np.stack([by_torchvision(Image.open(f).convert("RGB")) for f in files])
    batches = list(data.evaluation("test", 4))
    assert [len(labels) for _, labels in batches] == [4, 4, 1]
    samples = torch.cat([samples for samples, _ in batches])
    assert torch.equal(samples, data.prepare(torch.tensor(expected).permute(0, 3, 1, 2)))
    assert torch.cat([labels for _, labels in batches]).tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_evaluation_of_some_samples_and_of_a_share(folder: Path) -> None:
    data = build(folder)
    ((all_samples, all_labels),) = data.evaluation("train", 20)
    index = torch.tensor([14, 0, 7, 3])
    (samples, labels), (others, _) = data.evaluation("train", 2, index=index)
    assert torch.equal(torch.cat([samples, others]), all_samples[index])
    assert torch.equal(labels, all_labels[index[:2]])
    ((share, _),) = data.evaluation("train", 20, Share(1, 2), index)
    assert torch.equal(share, all_samples[index[2:]])


def test_random_crops_are_of_the_promised_size_and_ratio() -> None:
    view = View(smallest=0.25)
    areas, ratios = [], []
    for seed in range(3000):
        left, top, width, height = view._box(300, 200, Random(seed))
        assert 0 <= left <= 300 - width and 0 <= top <= 200 - height
        areas.append(width * height / 60000)
        ratios.append(width / height)
    assert min(areas) > 0.24 and max(areas) <= 1 and max(areas) > 0.85
    assert 0.74 < min(ratios) < 0.77 and 1.3 < max(ratios) < 1.36
    left, top, width, height = view._box(1000, 10, Random(0))
    assert (top, height) == (0, 10) and width == 13 and left == 493


def test_a_random_view_is_a_resized_crop_and_its_mirror() -> None:
    pixels = np.arange(40 * 60, dtype=np.uint32).reshape(40, 60) * 255 // 2400
    image = Image.fromarray(np.repeat(pixels[..., None], 3, 2).astype(np.uint8))
    plain, mirrored = View(16, flip=False), View(16, flip=True)
    flipped = 0
    for seed in range(200):
        a, b = np.asarray(plain.random(image, seed)), np.asarray(mirrored.random(image, seed))
        same, mirror = np.array_equal(a, b), np.array_equal(a[:, ::-1], b)
        assert same or mirror
        flipped += not same
    assert 70 < flipped < 130


def test_a_subset_takes_the_first_of_each_class_evenly(folder: Path) -> None:
    data = build(folder, subset=7)
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert data.test_samples == 9
    whole = build(folder)
    ((some, _),) = data.evaluation("train", 10)
    ((all_samples, _),) = whole.evaluation("train", 20)
    assert torch.equal(some, all_samples[[0, 1, 2, 5, 6, 10, 11]])


def test_chosen_training_samples_keep_their_order_and_all_test_samples(folder: Path) -> None:
    whole, index = build(folder), torch.tensor([14, 0, 7, 3, 7])
    data = whole.subset(index)
    assert data.labels.tolist() == [2, 0, 1, 0, 1]
    assert (data.samples, data.test_samples, data.classes) == (5, 9, 3)
    assert data.prepare is whole.prepare
    ((all_samples, _),) = whole.evaluation("train", 20)
    ((samples, labels),) = data.evaluation("train", 20)
    assert torch.equal(samples, all_samples[index]) and torch.equal(labels, data.labels)
    ((tests, _),), ((all_tests, _),) = data.evaluation("test", 20), whole.evaluation("test", 20)
    assert torch.equal(tests, all_tests)
    ((drawn, _),) = data.training([Plan(torch.arange(5), 3)])
    ((as_before, _),) = whole.training([Plan(index, 3)])
    assert torch.equal(drawn, as_before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named(folder: Path, workers: int) -> None:
    broken = folder / "train" / "bee" / "2.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(DdnkitError) as caught:
        list(build(folder, workers).training(plans()))
    assert str(caught.value).startswith(f"{broken}: ")
    assert "Traceback" not in str(caught.value)
    broken.write_bytes(b"text")
    with pytest.raises(DdnkitError, match=r"2\.png"):
        list(build(folder, workers).evaluation("train", 5))


def one_class(tmp_path: Path) -> Path:
    """A folder of a class of one image to train on and none yet to evaluate."""
    root = tmp_path / "one"
    for split in ("train", "val"):
        (root / split / "a").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(root / "train" / "a" / "0.png")
    return root


def evaluated(root: Path) -> torch.Tensor:
    """The images of val as bytes (N, 3, 16, 16): of 16 × 16 pixels, they are neither cut nor scaled."""
    data = build(root, image_size=16, resize=16)
    samples = torch.cat([samples for samples, _ in data.evaluation("test", 50)])
    # Standardising is affine: what 0 and 255 come to tells what has come.
    low, high = (
        data.prepare(torch.full((1, 3, 1, 1), v, dtype=torch.uint8)).double() for v in (0, 255)
    )
    return (255 * (samples.double() - low) / (high - low)).round().to(torch.uint8)


def transparent(image: Image.Image) -> Image.Image:
    image.info["transparency"] = bytes(range(256))
    return image


def test_images_of_up_to_eight_bits_are_those_of_torchvisions_loader(tmp_path: Path) -> None:
    root = one_class(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    colours = Image.fromarray(pixels[..., :3])
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {
        **{f"{mode}.png": colours.convert(mode) for mode in ("1", "L", "LA", "P", "RGB")},
        **{
            f"{mode}.tiff": colours.convert(mode)
            for mode in ("1", "L", "LA", "P", "PA", "CMYK", "LAB", "RGBX")
        },
        **{f"{mode}.jpg": colours.convert(mode) for mode in ("L", "CMYK", "YCbCr")},
        "alpha.png": Image.fromarray(pixels),
        "alpha.webp": Image.fromarray(pixels),
        "clear.png": transparent(colours.convert("P")),
        "turned.jpg": colours,
        "palette.bmp": colours.convert("P"),
        "grey.pgm": colours.convert("L"),
        "UPPER.PPM": colours,
    }
    for name, image in files.items():
        exif = {"exif": turned} if name == "turned.jpg" else {}
        image.save(root / "val" / "a" / name, **exif)
    expected = []
    for name in sorted(files):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own, of palettes with transparency
            with Image.open(root / "val" / "a" / name) as opened:
                expected.append(np.asarray(opened.convert("RGB")))
    assert torch.equal(evaluated(root), torch.tensor(np.stack(expected)).permute(0, 3, 1, 2))


def tiff(values: np.ndarray, bits: int, white_is_zero: bool) -> bytes:
    """A TIFF file of one strip, written by hand: Pillow writes neither 12 bits nor white as 0."""
    numbers = "".join(f"{v:0{bits}b}" for v in values.ravel())
    packed = int(numbers, 2).to_bytes(len(numbers) // 8, "big")
    strip = values.astype("<u2").tobytes() if bits == 16 else packed
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, int(not white_is_zero)),
            (273, 8), (277, 1), (278, height), (279, len(strip))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(strip)) + strip + directory


def png_of_16_bit_colours(values: np.ndarray) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">2I5B", width, height, 16, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_grey_of_sixteen_bits_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    root = one_class(tmp_path)
    folder = root / "val" / "a"
    values = np.linspace(0, 65535, 256).reshape(16, 16).round().astype(np.uint16)
    values[0, :4] = 128, 129, 257 * 7 + 128, 257 * 7 + 129  # on both sides of a half
    Image.fromarray(values).save(folder / "a.png")
    Image.fromarray(values).save(folder / "b.tiff")
    Image.fromarray(values).save(folder / "c.pgm")
    (folder / "d.tiff").write_bytes(tiff(values, 16, white_is_zero=False))
    (folder / "e.tiff").write_bytes(tiff(values, 16, white_is_zero=True))
    (folder / "f.tiff").write_bytes(tiff(values >> 4, 12, white_is_zero=False))
    (folder / "g.png").write_bytes(png_of_16_bit_colours(np.stack([values] * 3, 2)))
    by_257 = np.floor(values / 257 + 0.5).astype(np.uint8)
    of_4095 = np.floor((values >> 4) / 4095 * 255 + 0.5).astype(np.uint8)
    upper = (values >> 8).astype(np.uint8)
    expected = [by_257, by_257, by_257, by_257, 255 - by_257, of_4095, upper]
    for image, grey in zip(evaluated(root), expected, strict=True):
        assert torch.equal(image, torch.tensor(grey).expand(3, 16, 16))


@pytest.mark.parametrize("name", ["float.tiff", "float.pfm.ppm", "whole.tiff", "signed.tiff"])
def test_images_without_a_white_are_refused(tmp_path: Path, name: str) -> None:
    root = one_class(tmp_path)
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    image = Image.fromarray(values if "float" in name else (values * 1e6).astype(np.int32))
    image.save(root / "val" / "a" / name, format="PPM" if "pfm" in name else None)
    with pytest.raises(DdnkitError) as caught:
        evaluated(root)
    assert str(root / "val" / "a" / name) in str(caught.value) and caught.value.exit_status == 1


def test_folders_below_that_of_a_class_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    root, apart = one_class(tmp_path), tmp_path / "apart"
    image = Image.new("RGB", (16, 16))
    for split, name in itertools.product(
        ("train", "val"), ("b/z.png", "b/B.PNG", "b/x/y/deep.jpeg", "b/x.y/1.Jpg", "b/x/1.tif", "a/1.pgm")
    ):  # fmt: skip
        path = root / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    apart.mkdir()
    image.save(apart / "linked.png")
    (root / "train" / "c").symlink_to(apart)
    (root / "train" / "b" / "w").symlink_to(apart)
    (root / "train" / "b" / "l.png").symlink_to(apart / "linked.png")
    published = datasets.ImageFolder(str(root / "train"))
    read = read_splits(root)
    assert read.classes == 3
    files = [read.train.path(i) for i in range(len(read.train.labels))]
    assert list(zip(files, read.train.labels.tolist(), strict=True)) == published.samples
    assert len(build(root).labels) == 10

    # What leads back or twice to the same folder counts once.
    (root / "train" / "b" / "x" / "up").symlink_to("..")
    (root / "train" / "b" / "y").symlink_to("x")
    assert len(read_splits(root).train.labels) == 10


def test_files_that_are_no_images_are_told_once_with_their_number(folder: Path) -> None:
    bee = folder / "train" / "bee"
    for name in ("a.txt", "b.txt", "c.CR2", "noend", ".hidden.png", ".DS_Store"):
        (bee / name).touch()
    (bee / "gone.png").symlink_to("nowhere.png")
    (bee / "loop.png").symlink_to("loop.png")
    os.mkfifo(bee / "pipe.png")
    (folder / "val" / "stray.png").touch()
    (bee / ".cache").mkdir()
    (bee / ".cache" / "x.png").touch()
    with pytest.warns(UserWarning, match=r"images") as caught:
        assert build(folder).samples == 15
    (told,) = (str(warning.message) for warning in caught)
    assert str(folder) in told
    for part in ("2 .txt", "1 .CR2", "1 hidden", "3 no file", "1 without a suffix"):
        assert part in told
    build(folder)  # and no second time


def test_every_class_without_an_image_is_named(folder: Path) -> None:
    for name in ("dog", "eel"):
        (folder / "train" / name / "below").mkdir(parents=True)
    with pytest.raises(InputError) as caught:
        build(folder)
    for name in ("dog", "eel"):
        assert str(folder / "train" / name) in str(caught.value)


def test_an_image_that_is_no_file_any_more_is_not_waited_for(folder: Path) -> None:
    data = build(folder)
    broken = folder / "val" / "bee" / "1.png"
    broken.unlink()
    os.mkfifo(broken)
    with pytest.raises(DdnkitError, match=str(broken)):
        list(data.evaluation("test", 5))


def test_missing_and_empty_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    for settings in (ImageFolder(root=tmp_path / "no"), ImageFolder(root=folder / "train")):
        with pytest.raises(InputError) as caught:
            settings.locate(download=True)
        text = str(caught.value)
        assert f"{settings.root}: " in text and "train/, val/" in text
        assert "--download" in text and "-s data.root=DIR" in text
        with pytest.raises(InputError, match=f"{settings.root}: .*train/, val/"):
            settings.build(seed=0, smoke=False)
    (folder / "val" / "dog").mkdir()
    with pytest.raises(InputError, match=r"val.*'dog'"):
        build(folder)
    (folder / "train" / "dog").mkdir()
    with pytest.raises(InputError, match="train/dog"):
        build(folder)
    flat = tmp_path / "flat"
    (flat / "train" / "ant").mkdir(parents=True)
    (flat / "val").mkdir()
    with pytest.raises(InputError, match=str(flat)):
        build(flat)
    (flat / "train" / "ant").rmdir()
    with pytest.raises(InputError, match="train"):
        build(flat)
    with pytest.raises(ValueError, match="image_size"):
        ImageFolder(resize=100)


def test_workers_default_to_the_cores(folder: Path) -> None:
    data = ImageFolder(root=folder).build(seed=0, smoke=False)
    assert isinstance(data, StreamedImages) and 1 <= data.workers <= 8
    assert math.prod(data.to("cpu").sample_shape) == 3 * 224 * 224


@pytest.mark.gpu
def test_batches_come_on_the_gpu(folder: Path) -> None:
    data = build(folder, workers=1)
    there = list(data.to("cuda").training(plans()))
    for (samples, labels), (others, other_labels) in zip(
        data.training(plans()), there, strict=True
    ):
        assert others.device.type == other_labels.device.type == "cuda"
        assert torch.allclose(samples, others.cpu(), atol=1e-5)
        assert torch.equal(labels, other_labels.cpu())
