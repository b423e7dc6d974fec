"""Image data sets: the ``data`` section of a recipe."""

from __future__ import annotations

import abc
import functools
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import pydantic
from ddnkit_train.settings import DataSettings, ImageSettings
from pydantic import Field, PositiveInt

from ddnkit import Doubt, import_object

from .. import sources
from ..sources import Source

if TYPE_CHECKING:
    from ..image_files import Splits


class SmallImages(ImageSettings):
    """Base of the image data sets held in memory, on the device that trains.

    Files are looked for in ``root``; without it in ``$DDNKIT_DATA/NAME``, then in
    ``~/.cache/ddnkit/NAME``, where ``--download`` puts them.
    """

    builder = "ddnkit_vision.readers:small_images"
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

    def doubts(self) -> Iterable[Doubt]:
        """See `Settings.doubts`."""
        yield from super().doubts()
        if not self.rotation:
            yield Doubt("interpolation", "does nothing: rotation is 0", idle=True)

    def locate(self, *, download: bool = False) -> None:
        """Check that the files exist or may be downloaded; they are not opened.

        Raises:
            ddnkit.InputError: files are missing; the text says which, where they were looked for,
                and what to do.
        """
        self.source.locate(self.root, download=download)


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


class StreamedImageSettings(DataSettings, abc.ABC):
    """Base of the data sets whose image files are decoded while the network trains.

    Training images are cropped and flipped at random, others resized and cropped at the centre, all
    standardised by ImageNet's mean and deviation.
    """

    builder = "ddnkit_vision.streaming:streamed_images"
    source: ClassVar[Source]
    #: Number of classes C; of a smoke run alone where the files decide.
    classes: ClassVar[int] = 1000

    root: Path | None = Field(
        default=None,
        description="Folder of the files. Default: the data set's name in $DDNKIT_DATA, then in "
        "~/.cache/ddnkit.",
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
    def _crop_fits(self) -> StreamedImageSettings:
        if self.resize < self.image_size:
            raise ValueError(f"resize {self.resize} is smaller than image_size {self.image_size}")
        return self

    @property
    def actual_source(self) -> Source:
        """The files and folders to look for."""
        return self.source

    @abc.abstractmethod
    def read(self, folder: Path) -> Splits:
        """The image files of both splits, found from ``folder``; without torch.

        Raises:
            ddnkit.InputError: what ``folder`` holds is not the data set.
        """

    def locate(self, *, download: bool = False) -> None:
        """Check that lists and folders exist; none is opened, and nothing can be downloaded.

        Raises:
            ddnkit.InputError: they do not; the text says which, where they were looked for, and
                what to do.
        """
        self.actual_source.locate(self.root, download=download)


class ImageFolder(StreamedImageSettings):
    """Images in one folder a class, ``root/train/CLASS/*`` and ``root/val/CLASS/*``: ImageNet.

    Folders below that of a class belong to it; links are followed.
    They are decoded while the network trains: training images cropped and flipped at random,
    others resized and cropped at the centre, all standardised by ImageNet's mean and deviation.
    """

    source: ClassVar[Source] = sources.IMAGE_FOLDER

    root: Path | None = Field(
        default=None,
        description="Folder with train and val in it. Default: image_folder in $DDNKIT_DATA, then "
        "in ~/.cache/ddnkit.",
    )

    def locate(self, *, download: bool = False) -> None:
        """See `StreamedImageSettings.locate`; files that are no images are told, once."""
        super().locate(download=download)
        _warn_of_ignored(self.actual_source.folder(self.root))

    def read(self, folder: Path) -> Splits:
        """See `StreamedImageSettings.read`; classes in the order of their folders' names."""
        splits: Splits = import_object("ddnkit_vision.image_files:read_splits")(folder)
        return splits


@functools.cache
def _warn_of_ignored(folder: Path) -> None:
    text = import_object("ddnkit_vision.image_files:describe_ignored")(folder)
    if text:
        warnings.warn(text, stacklevel=3)


class ImageNetLT(StreamedImageSettings):
    """ImageNet-LT: 115,846 training images of 1000 classes, from 1280 of one class down to 5.

    The images of ImageNet that two published lists name, 50,000 of them for testing. A line such as
    ``train/n01440764/n01440764_190.JPEG 0`` is a path from ``root`` and the class, 0…999. Decoded
    while the network trains, cropped and flipped at random, standardised by ImageNet's mean and
    deviation.
    """

    source: ClassVar[Source] = sources.IMAGENET_LT

    root: Path | None = Field(
        default=None,
        description="Folder that the paths in the lists start from. Default: imagenet_lt in "
        "$DDNKIT_DATA, then in ~/.cache/ddnkit.",
    )
    train_list: Path = Field(
        default=Path("ImageNet_LT_train.txt"),
        description="List of the training images; relative to root.",
    )
    test_list: Path = Field(
        default=Path("ImageNet_LT_test.txt"),
        description="List of the test images; relative to root.",
    )

    @property
    def actual_source(self) -> Source:
        """Both lists."""
        lists = (self.train_list.expanduser(), self.test_list.expanduser())
        return replace(self.source, files=tuple(map(str, lists)))

    def read(self, folder: Path) -> Splits:
        """See `StreamedImageSettings.read`; of the images the first of each list is looked for."""
        train, test = (folder / file for file in self.actual_source.files)
        read = import_object("ddnkit_vision.image_files:imagenet_lt")
        splits: Splits = read(folder, train, test, self.classes)
        return splits


class CUB200(StreamedImageSettings):
    """CUB-200-2011: 5,994 training and 5,794 test photographs of birds, 200 classes.

    From ``images.txt``, ``image_class_labels.txt``, ``train_test_split.txt`` and ``images/`` of
    CUB_200_2011.tgz, unpacked. Decoded while the network trains, cropped and flipped at random,
    standardised by ImageNet's mean and deviation.
    """

    source: ClassVar[Source] = sources.CUB200
    classes: ClassVar[int] = 200

    root: Path | None = Field(
        default=None,
        description="Folder of the files, or of CUB_200_2011 with them in it. Default: cub200 in "
        "$DDNKIT_DATA, then in ~/.cache/ddnkit.",
    )
    image_size: PositiveInt = Field(
        default=448,
        description="Height and width of the crops. Our choice: common for fine-grained classes.",
    )
    resize: PositiveInt = Field(
        default=512,
        description="Length of the shorter side of an evaluated image before its centre is cropped "
        "out. Our choice: common for fine-grained classes.",
    )

    def read(self, folder: Path) -> Splits:
        """See `StreamedImageSettings.read`; of the images the first is looked for."""
        read = import_object("ddnkit_vision.image_files:cub200")
        splits: Splits = read(folder, self.classes)
        return splits
