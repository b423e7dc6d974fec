"""A stranger's module is imported so that only the import happens: whatever else it does is undone.

An import runs code that is not ours: it may raise anything, print, change the working folder or
torch's defaults. What cannot be undone from inside the process is not tried: ``os._exit``, a loop
without end (Ctrl-C ends it, and tells whose it was), threads, the environment, what is patched in
other modules.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import signal
import sys
import sysconfig
import threading
import traceback
import typing
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from .errors import InputError, PluginError, nearest_choice, plain

T = TypeVar("T")


def import_object(path: str) -> Any:
    """The object that ``"package.module:name"`` names; its module is imported on first use.

    Raises:
        PluginError: the text is not of that form, there is no such module, or nothing of that name
            in it. What the module itself raises passes through.
    """
    module, name = _parts(path)
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A package that the module itself looks for is another matter.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise PluginError(f"'{path}': there is no module {error.name}") from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            near = nearest_choice(part, dir(found))
            raise PluginError(f"'{path}': nothing of that name is there.{near}") from error
    return found


def check_path(path: str) -> None:
    """Refuse a path that `import_object` can find nothing by, as far as that shows without an import.

    Raises:
        PluginError: the text is not of that form, or the package has no such module.
    """
    module, _ = _parts(path)
    package = module.rpartition(".")[0]
    if package and package not in sys.modules:
        return  # to look into it would import it
    with contextlib.suppress(ValueError):  # a module that was made by hand
        try:
            known = module in sys.modules or importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # the "package" is a module
            known = False
        if not known:
            raise PluginError(f"'{path}': there is no module {module}")


def _parts(path: str) -> tuple[str, str]:
    """Module and name of ``"package.module:name"``."""
    module, _, name = path.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise PluginError(f"'{path}' does not name an object; expected 'package.module:name'")
    return module, name


def import_apart(work: Callable[[], T], *, undo: bool = True) -> tuple[T, list[str]]:
    """What ``work``, an import of foreign code, returns; and in words what of its doings was undone.

    What it prints goes to standard error: standard output belongs to the command's own answer.
    Without ``undo`` what it changes stays, as for a file of the user's own.

    Raises:
        PluginError: it raised; the text says what. Any exception counts, those that would end the
            process among them, since it is the plugin's and not the user's.
        KeyboardInterrupt: the user interrupted, whatever the foreign code made of it.
    """
    undone: list[str] = []
    kept = _keep(undone) if undo else contextlib.nullcontext()
    with _signals(undone) as user, kept, _output_to_stderr():
        try:
            value = work()
        except BaseException as error:
            # A KeyboardInterrupt without a signal is raised by the code itself.
            if user.interrupted:
                raise KeyboardInterrupt from None
            raise PluginError(describe_error(error)) from error
        if user.interrupted:  # and the code caught it
            raise KeyboardInterrupt
    return value, undone


def is_subclass(value: Any, base: type) -> bool:
    """Whether ``value``, which may be anything, is ``base`` or a class below it.

    In Python 3.10 ``list[int]`` is an instance of type as well, and issubclass raises of it.
    """
    return isinstance(value, type) and typing.get_origin(value) is None and issubclass(value, base)


def call_apart(work: Callable[[], T], what: str) -> T:
    """What ``work`` returns, which calls foreign code: an attempt of that to end the program is told.

    Args:
        what: whose code it is, for the error.

    Raises:
        InputError: the code raised what is no `Exception`, such as SystemExit; the text says where.
        KeyboardInterrupt: the user interrupted.
    """
    with _signals([]) as user:
        try:
            return work()
        except Exception:
            raise
        except BaseException as error:
            # A KeyboardInterrupt without a signal is raised by the code itself.
            if user.interrupted:
                raise KeyboardInterrupt from None
            raise InputError(
                f"{plain(what, 200)}: its code ended the program, {describe_error(error)} at {place(error)}"
            ) from error


def place(error: BaseException) -> str:
    """File and line of foreign code that an exception comes from: the last outside of libraries."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if not _below(frame.filename, Path(__file__).parent)]
    libraries = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    own = [f for f in outside if not any(_below(f.filename, folder) for folder in libraries)]
    found = (own or outside or frames)[-1:]
    return plain("".join(f"{frame.filename}:{frame.lineno}" for frame in found), 200)


def _below(file: str, folder: Path) -> bool:
    return os.path.abspath(file).startswith(f"{folder}{os.sep}")


def describe_error(error: BaseException) -> str:
    """Type and text of an exception on one line, whatever its own methods do."""
    try:
        kind = str(type(error).__name__)
    except Exception:
        kind = "an exception"
    try:
        text = plain(str(error), 400)
    except Exception:
        text = "(it cannot be shown)"
    return f"{kind}: {text}" if text else kind


class _User:
    """Whether the user asked to stop: a signal, as opposed to an exception of that name."""

    interrupted = False


@contextlib.contextmanager
def _signals(undone: list[str]) -> Iterator[_User]:
    user = _User()
    if threading.current_thread() is not threading.main_thread():
        yield user  # signals are the main thread's
        return
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    previous: Any = before[signal.SIGINT]

    def interrupt(number: int, frame: FrameType | None) -> None:
        try:
            previous(number, frame)
        except KeyboardInterrupt:
            user.interrupted = True
            raise

    expected = dict(before)
    if callable(previous):
        signal.signal(signal.SIGINT, interrupt)
        expected[signal.SIGINT] = interrupt
    try:
        yield user
    finally:
        changed = [n for n in before if signal.getsignal(n) != expected[n]]
        for number in {*changed, signal.SIGINT}:
            # One that C code has set reads as None, and can neither be kept nor set again.
            if before[number] is not None:
                with contextlib.suppress(OSError, ValueError, TypeError):
                    signal.signal(number, before[number])
        if changed:
            names = sorted(signal.Signals(number).name for number in changed)
            undone.append(f"handlers of {', '.join(names)}")


@contextlib.contextmanager
def _keep(undone: list[str]) -> Iterator[None]:
    """Keep the warning filters too."""
    with keep_defaults(undone), warnings.catch_warnings():
        yield


@contextlib.contextmanager
def keep_defaults(undone: list[str]) -> Iterator[None]:
    """Keep the working folder and torch's defaults; in words, what was set back.

    Whatever else foreign code does, what comes after it is as it would be without it.
    """
    folder, before = _folder(), _torch_defaults()
    try:
        yield
    finally:
        _set_back(folder, before, undone)


def _set_back(folder: str | None, before: tuple[Any, ...] | None, undone: list[str]) -> None:
    if folder is not None and _folder() != folder:
        with contextlib.suppress(OSError):
            os.chdir(folder)
            undone.append("the working folder")
    now = _torch_defaults()
    if now is not None and now != before:
        undone += _reset_torch(now, before)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None


def _torch_defaults() -> tuple[Any, ...] | None:
    """The dtype, the device, and whether gradients are recorded; None before torch is loaded."""
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "get_default_device"):
        return None
    return torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()


def _reset_torch(now: tuple[Any, ...], before: tuple[Any, ...] | None) -> list[str]:
    torch: Any = sys.modules["torch"]
    dtype, device, recording = before or (torch.float32, torch.device("cpu"), True)
    undone = []
    if now[0] != dtype:
        torch.set_default_dtype(dtype)
        undone.append("torch's default dtype")
    if now[1] != device:
        torch.set_default_device(None if device.type == "cpu" else device)
        undone.append("torch's default device")
    if now[2] != recording:
        torch.set_grad_enabled(recording)
        undone.append("torch's recording of gradients")
    return undone


@contextlib.contextmanager
def _output_to_stderr() -> Iterator[None]:
    """What is written to standard output goes to standard error, that of C code too."""
    out, error = sys.stdout, sys.stderr
    _flush(out)
    saved = None
    with contextlib.suppress(OSError):  # one of the two is closed: nothing to redirect
        saved = os.dup(1)
        os.dup2(2, 1)
    sys.stdout = error
    try:
        yield
    finally:
        _flush(sys.__stdout__)
        with contextlib.suppress(Exception):
            import ctypes

            ctypes.CDLL(None).fflush(None)  # what printf has kept back
        sys.stdout, sys.stderr = out, error
        if saved is not None:
            os.dup2(saved, 1)
            os.close(saved)


def _flush(stream: Any) -> None:
    with contextlib.suppress(Exception):
        stream.flush()
