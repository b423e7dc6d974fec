"""Image data sets: the ``data`` section of a recipe."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import pydantic
from ddnkit_train.settings import DataSettings, ImageSettings
from pydantic import Field, PositiveInt

from .. import sources
from ..files import Source

if TYPE_CHECKING:
    from ddnkit_train import Data, Dataset


class SmallImages(ImageSettings, abc.ABC):
    """Base of the image data sets held in memory, on the device that trains.

    Files are looked for in ``root``; without it in ``$DDNKIT_DATA/NAME``, then in
    ``~/.cache/ddnkit/NAME``, where ``--download`` puts them.
    """

    source: ClassVar[Source]
    sample_shape: ClassVar[tuple[int, int, int]]
    classes: ClassVar[int] = 10

    root: Path | None = Field(
        default=None,
        description="Folder of the files. Default: the data set's name in $DDNKIT_DATA, then in "
        "~/.cache/ddnkit.",
    )
    subset: PositiveInt | None = Field(
        default=None, description="Take the first so many training images only."
    )
    flip: bool = Field(
        default=False, description="Mirror every other training image left to right, at random."
    )
    crop: int = Field(
        default=0,
        ge=0,
        description="Pixels of black padding on each side, out of which a window of the image's "
        "size is cut at random; 0 for none.",
    )
    rotation: float = Field(
        default=0.0,
        ge=0,
        le=180,
        description="Rotate by a random angle of up to so many degrees either way; 0 for none.",
    )
    interpolation: Literal["nearest", "bilinear"] = Field(
        default="bilinear", description="Interpolation of the rotation."
    )

    def locate(self, *, download: bool = False) -> None:
        """Check that the files exist or may be downloaded; they are not opened.

        Raises:
            ddnkit.InputError: files are missing; the text says which, where they were looked for,
                and what to do.
        """
        self.source.locate(self.root, download=download)

    def build(self, *, seed: int, smoke: bool, download: bool = False) -> Dataset:
        """Images as uint8 ``(N, channels, height, width)``.

        Raises:
            ddnkit.InputError: files are missing or damaged; the text says which, where they were
                looked for, and what to do.
            ddnkit.DdnkitError: a download failed.
        """
        from ..images import small_images

        return small_images(self, smoke=smoke, download=download)


class CIFAR10(SmallImages):
    """CIFAR-10: 50,000 training and 10,000 test images of 32×32, 10 classes; needs torchvision."""

    source: ClassVar[Source] = sources.CIFAR10
    sample_shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)

    flip: bool = Field(
        default=True, description="Mirror every other training image left to right, at random."
    )
    crop: int = Field(
        default=4,
        ge=0,
        description="Pixels of black padding on each side, out of which a window of the image's "
        "size is cut at random; 0 for none. Our choice: the GNC paper says only 'crops'.",
    )
    rotation: float = Field(
        default=15.0,
        ge=0,
        le=180,
        description="Rotate by a random angle of up to so many degrees either way; 0 for none. "
        "Our choice: the GNC paper says only 'rotations'.",
    )


class CIFAR100(CIFAR10):
    """CIFAR-100: 50,000 training and 10,000 test images of 32×32, 100 classes; needs torchvision."""

    source: ClassVar[Source] = sources.CIFAR100
    classes: ClassVar[int] = 100


class STL10(CIFAR10):
    """STL-10: 5,000 training and 8,000 test images of 96×96, 10 classes; needs torchvision.

    The 100,000 unlabelled images of the download are not read and may be deleted.
    """

    source: ClassVar[Source] = sources.STL10
    sample_shape: ClassVar[tuple[int, int, int]] = (3, 96, 96)

    crop: int = Field(
        default=12,
        ge=0,
        description="Pixels of black padding on each side, out of which a window of the image's "
        "size is cut at random; 0 for none. Our choice: the GNC paper says only 'crops'.",
    )


class SVHN(SmallImages):
    """SVHN, house numbers: 73,257 training and 26,032 test digits of 32×32; needs torchvision."""

    source: ClassVar[Source] = sources.SVHN
    sample_shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)


class MNIST(SmallImages):
    """MNIST: 60,000 training and 10,000 test images of 28×28, 10 classes, from IDX files.

    Files: ``{train,t10k}-images-idx3-ubyte`` and ``{train,t10k}-labels-idx1-ubyte``, plain or
    ``.gz``.
    """

    source: ClassVar[Source] = sources.MNIST
    sample_shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)


class FashionMNIST(MNIST):
    """Fashion-MNIST: 60,000 training and 10,000 test images of 28×28, 10 classes, from IDX files.

    Files: ``{train,t10k}-images-idx3-ubyte`` and ``{train,t10k}-labels-idx1-ubyte``, plain or
    ``.gz``; also looked for where Debian's package dataset-fashion-mnist puts them.
    """

    source: ClassVar[Source] = sources.FASHION_MNIST


class ImageFolder(DataSettings):
    """Images in one folder a class, ``root/train/CLASS/*`` and ``root/val/CLASS/*``: ImageNet.

    They are decoded while the network trains: training images cropped and flipped at random,
    others resized and cropped at the centre, all standardised by ImageNet's mean and deviation.
    """

    root: Path | None = Field(
        default=None,
        description="Folder with train and val in it. Default: image_folder in $DDNKIT_DATA, then "
        "in ~/.cache/ddnkit.",
    )
    subset: PositiveInt | None = Field(
        default=None,
        description="Take so many training images only, evenly the first ones of each class.",
    )
    image_size: PositiveInt = Field(default=224, description="Height and width of the crops.")
    resize: PositiveInt = Field(
        default=256,
        description="Length of the shorter side of an evaluated image before its centre is cropped "
        "out.",
    )
    smallest_crop: float = Field(
        default=0.08,
        gt=0,
        le=1,
        description="Share of a training image's area that a random crop covers at least.",
    )
    flip: bool = Field(
        default=True, description="Mirror every other training image left to right, at random."
    )
    workers: int | None = Field(
        default=None,
        ge=0,
        description="Processes that decode images. Default: one a CPU core, at most 8; 0: none.",
    )

    @pydantic.model_validator(mode="after")
    def _crop_fits(self) -> ImageFolder:
        if self.resize < self.image_size:
            raise ValueError(f"resize {self.resize} is smaller than image_size {self.image_size}")
        return self

    def locate(self, *, download: bool = False) -> None:
        """Check that the folders of both splits exist.

        Raises:
            ddnkit.InputError: they do not.
        """
        from ..folders import locate

        locate(self.root, download=download)

    def build(self, *, seed: int, smoke: bool, download: bool = False) -> Data:
        """Images ``(3, image_size, image_size)``, read as they are needed.

        Raises:
            ddnkit.InputError: folders are missing, or hold no images.
        """
        from ..streaming import image_folder

        return image_folder(self, smoke=smoke, download=download)
