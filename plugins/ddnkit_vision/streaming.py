"""Images decoded while the network trains, for data sets that no memory holds."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import torch
from ddnkit_train import Data, Dataset, Plan, Share, Standardise, synthetic_images
from ddnkit_train.data import Split
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ddnkit import DdnkitError, InputError

from .augmentation import FlipCropRotate
from .image_files import ImageFiles
from .settings import StreamedImageSettings

#: Of the images of ImageNet, channel by channel, from 0 to 1.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_WHOLE = Share()
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
#: Synthetic images at most, and pixels of all of them.
_SMOKE_SAMPLES, _SMOKE_PIXELS = 32, 32 * 224**2
#: A sample and the seed of its crop and flip; no seed, nothing random.
_Request = tuple[int, "int | None"]


@dataclass(frozen=True)
class View:
    """The part of an image that the network sees.

    Attributes:
        size: height and width.
        resize: length of the shorter side before the centre is cropped out, in evaluation.
        smallest: share of the area that a random crop covers at least, in training.
        flip: mirror every other training image, at random.
    """

    size: int = 224
    resize: int = 256
    smallest: float = 0.08
    flip: bool = True

    def random(self, image: Image.Image, seed: int) -> Image.Image:
        """A random part of the image, resized; the same one for the same seed."""
        draws = Random(seed)
        left, top, width, height = self._box(image.width, image.height, draws)
        image = image.crop((left, top, left + width, top + height))
        image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        mirrored = self.flip and draws.random() < 0.5
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image

    def centre(self, image: Image.Image) -> Image.Image:
        """The image's shorter side resized, and its centre."""
        short, long = sorted(image.size)
        other = int(self.resize * long / short)
        wide = image.width > image.height
        width, height = (other, self.resize) if wide else (self.resize, other)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))

    def _box(self, width: int, height: int, draws: Random) -> tuple[int, int, int, int]:
        """Left, top, width, height, as torchvision's ``RandomResizedCrop`` draws them."""
        for _ in range(10):
            area = width * height * draws.uniform(self.smallest, 1.0)
            ratio = math.exp(draws.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return draws.randint(0, width - w), draws.randint(0, height - h), w, h
        # No luck with a very long image: its centre, of the nearest allowed ratio.
        w = min(width, round(height * 4 / 3))
        h = min(height, round(width * 4 / 3))
        return (width - w) // 2, (height - h) // 2, w, h


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, as torchvision's loader converts it; grey values of more than 8 bits are scaled.

    Colours come from Pillow's ``convert("RGB")``: transparency is dropped, the colour below it stays,
    and an orientation in the EXIF data is not applied. That clips grey values above 255, of which
    16-bit images are full: v of w at most becomes 255 v / w, rounded. Of colours with 16 bits each
    Pillow itself keeps the upper 8.

    Raises:
        ValueError: what is white cannot be known: whole numbers of 32 bits, floating-point numbers.
    """
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        return image.convert("RGBA").convert("RGB")  # Pillow warns of the direct way; the same
    if image.mode != "F" and not image.mode.startswith("I"):
        return image.convert("RGB")
    tags = getattr(image, "tag_v2", {})  # a TIFF file's
    if image.mode.startswith("I;16"):
        bits = tags.get(_TIFF_BITS, 16)
        white = 2 ** int(bits[0] if isinstance(bits, tuple) else bits) - 1
    elif image.mode == "I" and image.format in ("PNG", "PPM"):
        white = 2**16 - 1  # neither has more; Pillow scales a PGM's largest value to that
    else:
        kind = (
            "floating-point numbers" if image.mode == "F" else "whole numbers, of 32 bits or signed"
        )
        raise ValueError(
            f"its pixels are {kind}, of which none is white; save it with 8 or 16 bits"
        )
    grey = np.asarray(image).astype(np.int64)
    if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = white - grey
    return Image.fromarray(((255 * grey + white // 2) // white).astype(np.uint8)).convert("RGB")


class _Decoder(torch.utils.data.Dataset[object]):
    """Reads one image at a time, in a worker."""

    def __init__(self, files: ImageFiles, view: View) -> None:
        self._files, self._view = files, view

    def __getitem__(self, request: _Request) -> np.ndarray | str:
        """Pixels ``(size, size, 3)``, or what is wrong with the file."""
        index, seed = request
        path = self._files.path(index)
        try:
            if not os.path.isfile(path):  # opening a pipe would wait for its other end
                raise FileNotFoundError("there is no such file")
            with Image.open(path) as opened:
                image = as_rgb(opened)
        # Pillow's decoders raise OSError, SyntaxError, ValueError, … A worker's exception would
        # arrive as its traceback: its text travels as a value instead.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            return f"{path}: cannot be read as an image: {reason}"
        view = self._view
        return np.asarray(view.centre(image) if seed is None else view.random(image, seed))


@dataclass(frozen=True)
class _Collate:
    """Puts a batch of images together: uint8 ``(B, 3, size, size)``, or the first failure."""

    size: int

    def __call__(self, images: list[np.ndarray | str]) -> Tensor | str:
        batch = np.empty((len(images), 3, self.size, self.size), dtype=np.uint8)
        for place, image in zip(batch, images, strict=True):
            if isinstance(image, str):
                return image
            place[...] = image.transpose(2, 0, 1)
        return torch.from_numpy(batch)


class StreamedImages(Data):
    """Image files read and decoded by worker processes as the batches are asked for.

    Args:
        train: the training files.
        test: the test files.
        classes: number of classes C.
        view: what of each image the network sees.
        prepare: uint8 images → what the network sees.
        workers: processes that decode; 0 for this one.
        device: where the batches go.
    """

    def __init__(
        self,
        train: ImageFiles,
        test: ImageFiles,
        classes: int,
        view: View,
        prepare: nn.Module,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self._files = {"train": train, "test": test}
        self.classes = classes
        # On the CPU whatever the device: the files are looked up there.
        self.labels = torch.from_numpy(train.labels)
        self._test_labels = torch.from_numpy(test.labels)
        self.view = view
        self._device = torch.device(device)
        self.prepare = prepare.to(self._device)
        self.workers = workers

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample as the network sees it."""
        return (3, self.view.size, self.view.size)

    @property
    def test_samples(self) -> int:
        """Number of test samples."""
        return len(self._test_labels)

    def to(self, device: torch.device | str) -> StreamedImages:
        """The same data, giving its batches on ``device``; the labels stay on the CPU."""
        return self._with(self._files["train"], device)

    def subset(self, index: Tensor) -> StreamedImages:
        """See `Data.subset`."""
        return self._with(self._files["train"].select(index.cpu().numpy()), self._device)

    def _with(self, train: ImageFiles, device: torch.device | str) -> StreamedImages:
        test = self._files["test"]
        return StreamedImages(
            train, test, self.classes, self.view, self.prepare, self.workers, device
        )

    def training(
        self, plans: Iterable[Plan], share: Share = _WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Data.training`; plans are taken ahead of the batches, for the workers.

        A sample's crop depends on its plan's seed and its place in the whole batch alone: not on
        the worker, the share, or the batches before.
        """
        return self._batches("train", (self._requests(plan, share) for plan in plans))

    def evaluation(
        self, split: Split, batch: int, share: Share = _WHOLE, index: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Data.evaluation`."""
        count = self.samples if split == "train" else self.test_samples
        index = torch.arange(count) if index is None else index.cpu()
        chunks = share.of(index).split(batch)
        return self._batches(split, (([(int(i), None) for i in chunk]) for chunk in chunks))

    def _requests(self, plan: Plan, share: Share) -> list[_Request]:
        index = torch.arange(self.samples) if plan.index is None else plan.index.cpu()
        seeds = _seeds(plan.seed, len(index))
        places = share.of(torch.arange(len(index))).tolist()
        return [
            (i, seeds[place]) for i, place in zip(share.of(index).tolist(), places, strict=True)
        ]

    def _batches(
        self, split: Split, requests: Iterable[list[_Request]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of ``requests``, on the device, each copied while the one before is used."""
        labels = self.labels if split == "train" else self._test_labels
        asked: list[Tensor] = []
        loader = self._loader(split, _remember(requests, asked))
        ahead: tuple[Tensor, Tensor] | None = None
        for images in loader:
            if isinstance(images, str):
                raise DdnkitError(images)
            # Batches come in the order in which they were asked for.
            batch = self._send(images), self._send(labels[asked.pop(0)])
            if self._device.type == "cpu":
                yield self.prepare(batch[0]), batch[1]
                continue
            if ahead is not None:
                yield self.prepare(ahead[0]), ahead[1]
            ahead = batch
        if ahead is not None:
            yield self.prepare(ahead[0]), ahead[1]

    def _send(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cuda":
            # From pinned memory the copy does not hold up this process.
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)

    def _loader(self, split: Split, requests: Iterable[list[_Request]]) -> Iterable[Tensor | str]:
        return DataLoader(
            _Decoder(self._files[split], self.view),
            batch_sampler=requests,  # pairs in place of indices
            collate_fn=_Collate(self.view.size),
            num_workers=self.workers,
            pin_memory=self._device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_parent,
            prefetch_factor=4 if self.workers else None,
            # Its own: a loader draws its workers' seeds from torch's global generator otherwise.
            generator=torch.Generator(),
        )


def _leave_signals_to_the_parent(worker: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole group of processes: the parent, which saves
    # its state at the end of a step, needs its workers until then and ends them itself.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _remember(requests: Iterable[list[_Request]], asked: list[Tensor]) -> Iterator[list[_Request]]:
    for request in requests:
        asked.append(torch.tensor([index for index, _ in request], dtype=torch.int64))
        yield request


def _seeds(seed: int, count: int) -> list[int]:
    """A seed for each place of a batch (splitmix64: neighbours share nothing)."""
    with np.errstate(over="ignore"):
        steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = np.uint64(seed % 2**64) + steps
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))).tolist()


def streamed_images(
    settings: StreamedImageSettings, *, seed: int, smoke: bool, download: bool = False
) -> Data:
    """The images of ``settings``, as they are needed; with ``smoke`` a few synthetic ones.

    Raises:
        ddnkit.InputError: files are missing, or are not the data set's.
    """
    if smoke:
        return _synthetic(settings)
    classes, train, test = settings.read(settings.actual_source.folder(settings.root))
    if settings.subset is not None:
        train = train.first(settings.subset)
    view = View(settings.image_size, settings.resize, settings.smallest_crop, settings.flip)
    workers = default_workers() if settings.workers is None else settings.workers
    return StreamedImages(train, test, classes, view, _standardise(), workers)


def default_workers() -> int:
    """One a core that this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(8, cores or 1)


def _standardise() -> Standardise:
    mean, std = torch.tensor(_MEAN), torch.tensor(_STD)
    return Standardise(255 * mean[:, None, None], 255 * std[:, None, None])


def _synthetic(settings: StreamedImageSettings) -> Dataset:
    size = settings.image_size
    samples = max(4, min(_SMOKE_SAMPLES, _SMOKE_PIXELS // size**2))
    data = synthetic_images((3, size, size), settings.classes, samples=samples)
    if data.test_inputs is None or data.test_labels is None:
        raise InputError("synthetic images have a test set")
    return replace(
        data,
        # Every other one: the labels are spread over all classes, in order.
        test_inputs=data.test_inputs[::2],
        test_labels=data.test_labels[::2],
        prepare=_standardise(),
        augmentation=FlipCropRotate(settings.flip, crop=size // 8),
    )
