"""``ddnkit bench data``: images augmented a batch at once on the device, or one by one by torchvision.

Flip, crop with padding and rotation, then standardisation; the batches end up on the device. The random
draws differ, so there are no results to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from ddnkit_train import Dataset, Plan, Standardise
from ddnkit_vision import FlipCropRotate
from torch import Tensor

from ddnkit.bench import Case, Comparison, Competitor, Request

from . import Prepare

_CROP, _SIZE = 4, 32
#: Degrees of rotation, bilinear.
_ROTATION = {"flip, crop": 0.0, "flip, crop, rotation": 15.0}


class DataPipeline(Comparison):
    """Images a second through augmentation: batched on the device, against torchvision's loaders.

    A case's size: images, batch.
    """

    size_names = ("images", "batch")
    sizes = ((5000, 256),)
    cuda_sizes = ((50_000, 256),)
    measures_memory = False

    def cases(self, request: Request) -> list[Case]:
        """Without and with rotation."""
        return [Case(size, kind) for kind in _ROTATION for size in self.asked_sizes(request)]

    def work(self, case: Case) -> tuple[float, str]:
        """The images of a pass."""
        return case.size[0], "images"

    def inputs(self, case: Case, dtype: torch.dtype) -> Mapping[str, Any]:
        """Random images of CIFAR's shape, as bytes."""
        return {"images": torch.randint(0, 256, (case.size[0], 3, _SIZE, _SIZE)).to(torch.uint8)}

    def competitors(self, case: Case, device: str) -> Sequence[Competitor]:
        """ddnkit, and a DataLoader without workers and with two."""
        batch, rotation = case.size[1], _ROTATION[case.kind]
        loaders = [
            Competitor(
                f"torchvision, {workers} workers",
                _loader(batch, rotation, workers, device),
                packages=("torchvision",),
            )
            for workers in (0, 2)
        ]
        return [Competitor("ddnkit", _ddnkit(batch, rotation)), *loaders]


def _one_pass(batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> Mapping[str, Any]:
    def one(_: object) -> Mapping[str, Tensor]:
        for _samples, _labels in batches():
            pass
        return {}

    return {"pass": one}


def _ddnkit(batch: int, rotation: float) -> Prepare:
    def prepare(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        images = inputs["images"]
        labels = torch.arange(len(images), device=images.device) % 10
        data = Dataset(
            images,
            labels,
            10,
            prepare=Standardise.fit(images, "channel"),
            augmentation=FlipCropRotate(True, _CROP, rotation),
        )

        def batches() -> Iterable[tuple[Tensor, Tensor]]:
            order = torch.randperm(data.samples, device=labels.device)
            return data.training(Plan(index, i) for i, index in enumerate(order.split(batch)))

        return _one_pass(batches)

    return prepare


class _Images(torch.utils.data.Dataset[Any]):
    """The data set of a typical training script on torchvision: PIL images and a transform."""

    def __init__(self, images: Tensor, rotation: float) -> None:
        from PIL import Image
        from torchvision import transforms

        standardise = Standardise.fit(images, "channel")
        pixels = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        self._images = [Image.fromarray(image) for image in pixels]
        bilinear = transforms.InterpolationMode.BILINEAR
        mean, std = (standardise.get_buffer(name).flatten().cpu() for name in ("mean", "std"))
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
        return self._transform(self._images[index]), index % 10


def _loader(batch: int, rotation: float, workers: int, device: str) -> Prepare:
    def prepare(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        loader = torch.utils.data.DataLoader(
            _Images(inputs["images"], rotation),
            batch_size=batch,
            shuffle=True,
            num_workers=workers,
            # The workers are started before anything is measured.
            persistent_workers=workers > 0,
            pin_memory=device == "cuda",
        )

        def batches() -> Iterable[tuple[Tensor, Tensor]]:
            for samples, labels in loader:
                yield samples.to(device, non_blocking=True), labels.to(device, non_blocking=True)

        return _one_pass(batches)

    return prepare
