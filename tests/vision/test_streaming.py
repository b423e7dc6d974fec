"""Image folders: decoding in workers, the same batches whatever the workers, shares and resumption."""

import math
import multiprocessing
import os
import signal
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from ddnkit_train import Data, Plan, Share
from ddnkit_vision import StreamedImages
from ddnkit_vision.settings import ImageFolder
from ddnkit_vision.streaming import View, _seeds
from image_stand_ins import write_images
from PIL import Image
from torchvision import transforms

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


def test_missing_and_empty_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    for settings in (ImageFolder(root=tmp_path / "no"), ImageFolder(root=folder / "train")):
        with pytest.raises(InputError) as caught:
            settings.locate(download=True)
        text = str(caught.value)
        assert f"{settings.root}: " in text and "missing train/, val/" in text
        assert "--download" in text and "-s data.root=DIR" in text
        with pytest.raises(InputError, match="missing"):
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
    with pytest.raises(InputError):
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
