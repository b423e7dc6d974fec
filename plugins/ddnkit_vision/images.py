"""The small image data sets, held as uint8 tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ddnkit_train import Dataset, Standardise, synthetic_images

from .augmentation import FlipCropRotate
from .readers import READERS

if TYPE_CHECKING:
    from .settings import SmallImages

#: Values in all synthetic training images together, those of 256 of 3×32×32.
_SMOKE_VALUES = 3 * 256 * 32 * 32


def small_images(settings: SmallImages, *, smoke: bool, download: bool) -> Dataset:
    """The data set of ``settings``, standardised and augmented as they say; never augmented tests.

    Raises:
        ddnkit.InputError: files are missing or damaged.
        ddnkit.DdnkitError: a download failed.
    """
    data = _synthetic(settings) if smoke else _read(settings, download)
    return replace(
        data,
        prepare=Standardise.fit(data.inputs, settings.standardise),
        augmentation=augmentation(settings),
    )


def augmentation(settings: SmallImages) -> FlipCropRotate | None:
    """What changes the training images at random; ``None`` where nothing does."""
    if not (settings.flip or settings.crop or settings.rotation):
        return None
    return FlipCropRotate(settings.flip, settings.crop, settings.rotation, settings.interpolation)


def _synthetic(settings: SmallImages) -> Dataset:
    channels, height, width = settings.sample_shape
    # At least one of each class, and few of large images.
    least = max(settings.classes, 48)
    samples = max(min(512, _SMOKE_VALUES // (3 * height * width)), least)
    return synthetic_images((channels, height, width), settings.classes, samples=samples)


def _read(settings: SmallImages, download: bool) -> Dataset:
    images = READERS[settings.source.name].load(settings.root, download=download)
    train, labels = images.train[: settings.subset], images.labels[: settings.subset]
    return Dataset(train, labels, settings.classes, images.test, images.test_labels)


__all__ = ["augmentation", "small_images"]
