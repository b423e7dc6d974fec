"""Images a second: augmented in batches on the device, or one by one in torchvision's loaders.

``ddnkit bench data [--device cuda]`` prints a table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from ddnkit_train import Dataset, Plan, Standardise
from torch import Tensor

from ddnkit import Bench, Table

from .augmentation import FlipCropRotate
from .files import require_torchvision

_CROP, _ROTATION, _SIZE = 4, 15.0, 32


class Rates(NamedTuple):
    """Images a second of both ways, the best of the rounds, and how they compare.

    Attributes:
        rotation: degrees of the rotation, 0 for none.
        batched: augmented a batch at once, in memory.
        loader: torchvision's transforms, in the better of 0 and 2 workers.
        workers: their number.
        ratio: ``batched / loader``.
    """

    rotation: float
    batched: float
    loader: float
    workers: int
    ratio: float


def measure(
    images: int = 5000, batch: int = 256, device: str = "cpu", rounds: int = 10
) -> list[Rates]:
    """Compare both ways on made images of CIFAR's shape, with and without rotation.

    Flip, crop (4 pixels of padding) and rotation (15°, bilinear), then standardisation; batches end
    on ``device``. Each round is a pass of each way over all images, the ways in turn, so that a busy
    machine slows all of them; the best pass of each way counts.

    Args:
        images: number of images.
        batch: images a batch.
        device: where the batches go.
        rounds: passes of each way that are measured, after one to warm up.
    """
    require_torchvision("the comparison")
    data = _data(images).to(device)
    return [_compare(data, batch, rotation, rounds) for rotation in (0.0, _ROTATION)]


def _data(images: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, _SIZE, _SIZE), generator=generator)
    stored = pixels.to(torch.uint8)
    prepare = Standardise.fit(stored, "channel")
    return Dataset(stored, torch.arange(images) % 10, 10, prepare=prepare)


def _compare(data: Dataset, batch: int, rotation: float, rounds: int) -> Rates:
    ways: dict[str, Callable[[], Iterator[tuple[Tensor, Tensor]]]] = {
        "batched": _batched(data, batch, rotation),
        "0": _loader(data, batch, rotation, 0),
        "2": _loader(data, batch, rotation, 2),
    }
    best = dict.fromkeys(ways, 0.0)
    for way in ways.values():
        _rate(way, data)  # warm up
    for _ in range(rounds):
        for name, way in ways.items():
            best[name] = max(best[name], _rate(way, data))
    workers = max("02", key=best.__getitem__)
    loader = best[workers]
    return Rates(rotation, best["batched"], loader, int(workers), best["batched"] / loader)


def _rate(way: Callable[[], Iterator[tuple[Tensor, Tensor]]], data: Dataset) -> float:
    start = time.perf_counter()
    for samples, _ in way():
        last = samples
    if last.is_cuda:
        torch.cuda.synchronize()
    return data.samples / (time.perf_counter() - start)


def _batched(
    data: Dataset, batch: int, rotation: float
) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    augmentation = FlipCropRotate(True, _CROP, rotation)
    augmented = Dataset(
        data.inputs, data.labels, data.classes, prepare=data.prepare, augmentation=augmentation
    )

    def run() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(data.samples, device=data.labels.device)
        return augmented.training(Plan(index, i) for i, index in enumerate(order.split(batch)))

    return run


class _Images(torch.utils.data.Dataset[Any]):
    """What a training script on torchvision has: PIL images and a transform."""

    def __init__(self, data: Dataset, rotation: float) -> None:
        from PIL import Image
        from torchvision import transforms

        pixels = data.inputs.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        self._images, self._labels = (
            [Image.fromarray(image) for image in pixels],
            data.labels.tolist(),
        )
        bilinear = transforms.InterpolationMode.BILINEAR
        mean, std = (data.prepare.get_buffer(name).flatten().cpu() for name in ("mean", "std"))
        turn = [transforms.RandomRotation(rotation, interpolation=bilinear)] if rotation else []
        self._transform = transforms.Compose(
            [
                transforms.RandomHorizontalFlip(),
                *turn,
                transforms.RandomCrop(_SIZE, padding=_CROP),
                transforms.ToTensor(),
                transforms.Normalize((mean / 255).tolist(), (std / 255).tolist()),
            ]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self._images[index]), self._labels[index]


def _loader(
    data: Dataset, batch: int, rotation: float, workers: int
) -> Callable[[], Iterator[tuple[Tensor, Tensor]]]:
    device = data.inputs.device
    loader = torch.utils.data.DataLoader(
        _Images(data, rotation),
        batch_size=batch,
        shuffle=True,
        num_workers=workers,
        # The start of the workers is no part of what is measured.
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )

    def run() -> Iterator[tuple[Tensor, Tensor]]:
        for samples, labels in loader:
            yield samples.to(device, non_blocking=True), labels.to(device, non_blocking=True)

    return run


class DataPipeline(Bench):
    """Images a second: augmented in batches in memory, or one by one in torchvision's loaders."""

    def run(
        self, *, device: str, repeats: int, seed: int, progress: Callable[[str], None]
    ) -> list[Table]:
        """Both ways on made images of CIFAR's shape, the best of ``repeats`` passes each."""
        progress("flip, crop and rotation of 5,000 images of 3×32×32")
        head = ("augmentation", "ddnkit images/s", "torchvision images/s", "its workers", "ratio")
        rows = [
            (
                f"flip, crop {_CROP}" + (f", rotation {r.rotation:g}°" if r.rotation else ""),
                f"{r.batched:,.0f}",
                f"{r.loader:,.0f}",
                str(r.workers),
                f"{r.ratio:.1f}",
            )
            for r in measure(device=device, rounds=repeats)
        ]
        note = f"The best of {repeats} passes of each, in turn; batches of 256, standardised."
        return [Table("CIFAR-shaped images", (head, *rows), note)]
