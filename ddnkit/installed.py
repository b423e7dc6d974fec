"""The distributions on the path that bring entry points, each read by itself: what one holds, or that it
cannot be read, is no other's trouble.

Python's own reader (`importlib.metadata`) reads all of them at once, fails where one is malformed, and
waits for ever where one is a pipe.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .errors import plain

#: No key stands for others, and none for a section of its own.
_INI: dict[str, Any] = {"delimiters": ("=",), "interpolation": None, "default_section": ""}
#: No list of entry points is longer; what is may be anything.
_MAXIMUM_BYTES = 1 << 20
#: The files of a distribution that are read for its name or its entry points.
_READ = ("entry_points.txt", "METADATA", "PKG-INFO")


@dataclass(frozen=True)
class Distribution:
    """An installed distribution that has entry points: where they are, and how to read them."""

    name: str
    version: str
    file: str
    read: Callable[[], bytes]

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()

    @property
    def key(self) -> str:
        """The name as any spelling of it is compared."""
        return re.sub(r"[-_.]+", "-", self.name).lower()

    def targets(self, groups: Iterable[str]) -> dict[tuple[str, str], str]:
        """Its entry points in ``groups`` of ddnkit: the target of each (group, name).

        Raises:
            Exception: the file cannot be read or is not as it should be.
        """
        import entrypoints

        parser = entrypoints.CaseSensitiveConfigParser(**_INI)
        parser.read_string(self.read().decode("utf-8-sig"), self.file)
        return {
            (group, name): target
            for group in groups
            if parser.has_section(f"ddnkit.{group}")
            for name, target in parser.items(f"ddnkit.{group}")
        }


def distributions() -> Iterator[Distribution]:
    """Those on the path that have entry points, each to be read by itself."""
    for place in _places():
        if os.path.isfile(place):
            yield from _in_archive(place)
        else:
            for folder in _folders(place):
                yield from _in_folder(folder)


def _places() -> list[str]:
    return [folder or os.curdir for folder in dict.fromkeys(map(str, sys.path))]


def _folders(place: str) -> list[str]:
    """The folders at a place of the path that each describe a distribution."""
    if place.endswith(".egg"):
        return [os.path.join(place, "EGG-INFO")]
    try:
        inside = sorted(os.listdir(place))
    except (OSError, ValueError):
        return []
    ends = (".dist-info", ".egg-info")
    return [os.path.join(place, name) for name in inside if name.endswith(ends)]


def _endless(folder: str) -> str | None:
    """The file of a distribution, if any, that whoever reads it waits for: a pipe, a device, a huge list."""
    for name in _READ:
        file = os.path.join(folder, name)
        try:
            found = os.stat(file)
        except (OSError, ValueError):
            continue
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            return file
        if name == "entry_points.txt" and found.st_size > _MAXIMUM_BYTES:
            return file
    return None


def _in_folder(folder: str) -> Iterator[Distribution]:
    inside = os.path.basename(folder)
    egg = os.path.basename(os.path.dirname(folder))[:-4]
    label = egg if inside == "EGG-INFO" else inside.rpartition(".")[0]
    nameless = not label.partition("-")[0]
    file = _endless(folder) or os.path.join(folder, "entry_points.txt")
    # Python's own reader fails on a folder without a name, whether it has entry points or not.
    if not (nameless or os.path.lexists(file)):
        return

    def read() -> bytes:
        if nameless:
            raise OSError("the name of its folder begins with no distribution's name")
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise OSError("it is not a file")
        with open(file, "rb") as opened:
            return _within_limit(opened.read(_MAXIMUM_BYTES + 1))

    yield _distribution(label, file, read)


def _in_archive(archive: str) -> Iterator[Distribution]:
    import zipfile

    try:
        with zipfile.ZipFile(archive) as opened:
            inside = opened.namelist()
    except Exception:  # no archive; or one that nothing can be imported from
        return

    def reader(name: str) -> Callable[[], bytes]:
        def read() -> bytes:
            with zipfile.ZipFile(archive) as opened, opened.open(name) as file:
                return _within_limit(file.read(_MAXIMUM_BYTES + 1))

        return read

    for name in inside:
        folder, _, file = name.rpartition("/")
        if file != "entry_points.txt" or "/" in folder:
            continue
        label = (
            os.path.basename(archive)[:-4] if folder == "EGG-INFO" else folder.rpartition(".")[0]
        )
        if folder == "EGG-INFO" or folder.endswith((".dist-info", ".egg-info")):
            yield _distribution(label, f"{archive}/{name}", reader(name))


def _distribution(label: str, file: str, read: Callable[[], bytes]) -> Distribution:
    """``NAME-VERSION`` or ``NAME``, as the folder is called: METADATA may be missing or wrong."""
    name, _, version = plain(label, 100).partition("-")
    # An egg's name goes on with the Python it is for.
    return Distribution(name or "a distribution without a name", version.split("-")[0], file, read)


def _within_limit(content: bytes) -> bytes:
    if len(content) > _MAXIMUM_BYTES:
        raise OSError(f"it has more than {_MAXIMUM_BYTES} bytes")
    return content


def read_by_python(set_aside: Iterable[str]) -> None:
    """See that `importlib.metadata` can look for entry points: what cannot be read is passed over.

    torch, pydantic and more ask it for extensions of their own, and fail to load, or wait for ever,
    where one distribution cannot be read.

    Args:
        set_aside: files of entry points whose distributions are passed over, though Python may read them.
    """
    import importlib.metadata as metadata

    everything: Any = metadata.distributions
    aside = {os.path.dirname(file) for file in set_aside}

    def readable(**context: Any) -> Iterator[metadata.Distribution]:
        for distribution in everything(**context):
            folder = str(getattr(distribution, "_path", "")).rstrip("/")
            with contextlib.suppress(Exception):
                if (
                    folder not in aside
                    and _endless(folder) is None
                    and distribution.entry_points is not None
                    and isinstance(distribution.name, str)
                ):
                    yield distribution

    fails = any(_endless(folder) for place in _places() for folder in _folders(place))
    if not fails:
        try:
            metadata.entry_points()
        except Exception:
            fails = True
    if fails:  # for processes begun here
        os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    if fails or aside:
        metadata.distributions = readable
