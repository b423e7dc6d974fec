"""The files of the data sets: where they are looked for, and how they are fetched; without torch.

Of those that can be downloaded torchvision has the checksums.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ddnkit import DdnkitError, InputError


@dataclass(frozen=True)
class Source:
    """The files of a data set and where they come from.

    Attributes:
        name: of the data set in a recipe, and of its folder.
        title: its name in prose.
        files: what a folder must hold, relative to it; a folder's name ends with ``/``.
        megabytes: size of the download.
        url: where from; empty where there is nothing to download.
        origin: sentences on where the user gets what cannot be downloaded.
        inner: a folder of the published archive, in which the files may still lie.
        needs_torchvision: not only to download the files, but to read them.
        gzipped: each file may also have the ending ``.gz``.
        system: a folder that a package of the operating system fills.
        package: that package.
        instead: what to give in place of a download, and how.
    """

    name: str
    title: str
    files: tuple[str, ...]
    megabytes: int = 0
    url: str = ""
    origin: str = ""
    inner: str = ""
    needs_torchvision: bool = True
    gzipped: bool = False
    system: Path | None = None
    package: str = ""
    instead: str = "their folder with -s data.root=DIR"

    def folders(self, root: Path | None) -> list[Path]:
        """The folders to look in: ``root`` alone, or the usual ones; downloads go to the first."""
        folders = self._usual() if root is None else [root.expanduser()]
        return [inner for f in folders for inner in (f / self.inner, f)] if self.inner else folders

    def _usual(self) -> list[Path]:
        usual = [data_folder() / self.name]
        given = os.environ.get("DDNKIT_DATA")
        if given:
            usual.insert(0, Path(given).expanduser() / self.name)
        return usual + ([self.system] if self.system else [])

    def path(self, folder: Path, file: str) -> Path | None:
        """``file`` in ``folder``, plain or gzipped; ``None`` where it is missing."""
        plain = folder / file
        if plain.is_dir() if file.endswith("/") else plain.is_file():
            return plain
        gzipped = plain.with_name(plain.name + ".gz")
        return gzipped if self.gzipped and gzipped.is_file() else None

    def missing(self, folder: Path) -> list[str]:
        """The files that ``folder`` lacks."""
        return [file for file in self.files if self.path(folder, file) is None]

    def find(self, root: Path | None) -> Path | None:
        """The first folder that has all files."""
        return next((f for f in self.folders(root) if not self.missing(f)), None)

    def locate(self, root: Path | None, *, download: bool) -> None:
        """Check that all files exist, or can and may be downloaded.

        Raises:
            ddnkit.InputError: files are missing, and the text lists every folder and what it lacks;
                or torchvision is, where it is needed.
        """
        found = self.find(root)
        if found is None and not (download and self.url):
            raise self.not_found(root)
        if self.needs_torchvision or found is None:
            require_torchvision(self.title)

    def not_found(self, root: Path | None) -> InputError:
        """An error that says which files are missing, where they were looked for, and what to do."""
        ending = "[.gz]" if self.gzipped else ""
        lines = []
        for folder in self.folders(root):
            absent = "" if folder.is_dir() else "no such folder; "
            missing = ", ".join(f"{file}{ending}" for file in self.missing(folder))
            lines.append(f"  {folder}: {absent}missing {missing}\n")
        return InputError(
            f"{self.title}: files are missing. Looked in:\n{''.join(lines)}{self._ways_out()}"
        )

    def _ways_out(self) -> str:
        if not self.url:
            return f"--download cannot fetch it: {self.origin} Give {self.instead}."
        package = f", or install Debian's package {self.package}" if self.package else ""
        return (
            f"Add --download ({self.megabytes} MB from {self.host}, checksum verified), or give "
            f"{self.instead}{package}."
        )

    @property
    def host(self) -> str:
        """Where a download comes from."""
        return self.url.split("/")[2]

    def folder(self, root: Path | None) -> Path:
        """The first folder that has all files.

        Raises:
            ddnkit.InputError: there is none.
        """
        found = self.find(root)
        if found is None:
            raise self.not_found(root)
        return found

    def obtain(self, root: Path | None, *, download: bool, fetch: Callable[[Path], None]) -> Path:
        """The folder that has all files, fetched first where that is allowed and needed.

        Args:
            root: the folder to use; ``None`` for the usual ones.
            download: whether ``fetch`` may be called.
            fetch: downloads the files into a folder; raises what torchvision raises.

        Raises:
            ddnkit.InputError: files are missing, or the folder cannot be written to.
            ddnkit.DdnkitError: the download failed.
        """
        if not download:
            return self.folder(root)
        found, target = self.find(root), self.folders(root)[0]
        # The files found may be of a download under way: wait for its end.
        if found is not None and not (found == target and os.access(target, os.W_OK)):
            return found
        with exclusive(target):
            if self.missing(target):
                self._fetch(target, fetch)
        return target

    def fetch_again(self, folder: Path, fetch: Callable[[Path], None]) -> None:
        """Replace the damaged files of ``folder``."""
        with exclusive(folder):
            self._fetch(folder, fetch)

    def _fetch(self, folder: Path, fetch: Callable[[Path], None]) -> None:
        try:
            with _timeout(60):
                fetch(folder)
        except InputError:
            raise
        # Networks, archives and disks fail in many ways (HTTPException, TarError, …).
        except Exception as error:
            reason = str(error).strip().replace("\n", " ") or type(error).__name__
            if "corrupted" in reason or "invalid hash" in reason:
                reason = f"what came is damaged or not what was expected ({reason})"
            raise DdnkitError(
                f"{self.title}: the download of {self.url} to {folder} failed: {reason} "
                f"Try again later, or fetch the files by other means and give {self.instead}."
            ) from error
        missing = self.missing(folder)
        if missing:
            raise DdnkitError(
                f"{self.title}: the download of {self.url} did not hold {', '.join(missing)}"
            )


def require_torchvision(title: str) -> None:
    """Check that torchvision is installed, without importing it.

    Raises:
        ddnkit.InputError: it is not.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise InputError(f"{title} needs torchvision: pip install 'ddnkit[vision]'")


def data_folder() -> Path:
    """The user's folder of data sets, ``~/.cache/ddnkit`` where ``XDG_CACHE_HOME`` is not set."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "ddnkit"


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Create ``folder`` and lock it; other processes wait."""
    # POSIX; imported here so that everything but a download works without.
    import fcntl

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".download.lock").open("w")
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to: {error}") from error
    with lock:  # closing the file releases the lock
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """Stop waiting for a server that does not answer; torchvision's own downloads would wait forever."""
    import socket

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


_IDX = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

CIFAR10 = Source(
    "cifar10",
    "CIFAR-10",
    tuple(
        f"cifar-10-batches-py/{file}"
        for file in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta")
    ),
    170,
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
CIFAR100 = Source(
    "cifar100",
    "CIFAR-100",
    tuple(f"cifar-100-python/{file}" for file in ("train", "test", "meta")),
    169,
    "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
)
STL10 = Source(
    "stl10",
    "STL-10",
    tuple(f"stl10_binary/{split}_{part}.bin" for split in ("train", "test") for part in "Xy"),
    2640,
    "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
)
SVHN = Source(
    "svhn",
    "SVHN",
    ("train_32x32.mat", "test_32x32.mat"),
    246,
    "http://ufldl.stanford.edu/housenumbers/",
)
MNIST = Source(
    "mnist",
    "MNIST",
    _IDX,
    12,
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    needs_torchvision=False,
    gzipped=True,
)
FASHION_MNIST = Source(
    "fashion_mnist",
    "Fashion-MNIST",
    _IDX,
    31,
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    needs_torchvision=False,
    gzipped=True,
    system=Path("/usr/share/datasets/fashion-mnist"),
    package="dataset-fashion-mnist",
)
IMAGE_FOLDER = Source(
    "image_folder",
    "image folder",
    ("train/", "val/"),
    origin="ImageNet is given only to those who ask for it at image-net.org; each class is a "
    "folder, train/CLASS/*.JPEG and val/CLASS/*.JPEG.",
    needs_torchvision=False,
)
IMAGENET_LT = Source(
    "imagenet_lt",
    "ImageNet-LT",
    ("ImageNet_LT_train.txt", "ImageNet_LT_test.txt"),
    origin="the lists are in data/ImageNet_LT of github.com/facebookresearch/classifier-balancing, "
    "the images, train/CLASS/*.JPEG and val/*.JPEG, are given to those who ask at image-net.org.",
    needs_torchvision=False,
)
CUB200 = Source(
    "cub200",
    "CUB-200-2011",
    ("images.txt", "image_class_labels.txt", "train_test_split.txt", "images/"),
    origin="CUB_200_2011.tgz (1.1 GB) is at www.vision.caltech.edu/datasets/cub_200_2011; unpack "
    "it.",
    inner="CUB_200_2011",
    needs_torchvision=False,
)
