"""How a manifold is asked, and what its answers say of which method.

A method that calls another gives what that makes of it. Each call is watched for the methods that it goes on
to call; one that is off is blamed only if none of those is. What was not judged, as it needs another that is
wrong, is told so.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import DdnkitError
from ..importing import describe_error
from ..manifold import Manifold
from .manifold_report import Fault, ManifoldReport, MethodRow

#: In the order in which each can be judged by those before it.
METHODS = (
    "constraint",
    "project",
    "random",
    "constraint_jacobian",
    "infeasibility",
    "vertical",
    "normal",
    "multipliers",
    "normal_by_rows",
    "less_normal",
    "constraint_curvature",
    "tangent",
    "retract",
    "transport",
    "inner",
    "gradient",
    "hessian",
    "exponential",
)
_NOTHING = "not checked"
#: Fits of what a method gave to what was expected that are no accident.
_CLOSE = 1e-6


class BrokenMethodError(Exception):
    """A method gave nothing that a comparison could go on with; that is recorded."""


class Watched:
    """A copy of a manifold that keeps which methods each of its methods calls."""

    def __init__(self, manifold: Manifold):
        self.manifold = copy.copy(manifold)
        self.calls: dict[str, set[str]] = {name: set() for name in METHODS}
        #: the method that raised the last error, the innermost one
        self.raised = ""
        self._open: list[str] = []
        for name in METHODS:
            method = getattr(self.manifold, name, None)
            if callable(method):
                vars(self.manifold)[name] = functools.partial(self._call, name, method)

    def _call(self, name: str, method: Callable[..., Any], *given: Any, **named: Any) -> Any:
        for caller in self._open:
            self.calls[caller].add(name)
        self._open.append(name)
        try:
            return method(*given, **named)
        except BaseException:
            self.raised = self.raised or name
            raise
        finally:
            self._open.pop()


class Session:
    """The comparisons of one check.

    Attributes:
        wrong: the methods that were found to give something else than they should, blamed or not.
    """

    def __init__(self, manifold: Manifold):
        self.given = manifold
        self._watched = Watched(manifold)
        self.manifold = self._watched.manifold
        self.wrong: set[str] = set()
        self._rows: dict[tuple[str, str], MethodRow] = {}
        self._faults: dict[tuple[str, ...], Fault] = {}
        self._waiting: dict[str, str] = {}

    # -- what the manifold says of itself ----------------------------------------------------------

    def has_own(self, method: str) -> bool:
        """Whether the manifold wrote it, and does not have it by default."""
        own = getattr(type(self.given), method, None)
        return own is not None and own is not getattr(Manifold, method, None)

    def calls(self, method: str, *others: str) -> bool:
        """Whether it has been seen to call one of the others."""
        return not self._watched.calls[method].isdisjoint(others)

    # -- asking ------------------------------------------------------------------------------------

    def ask(self, method: str, *given: Any, shape: Sequence[int], **named: Any) -> Tensor:
        """What a method returns: a finite tensor of that shape, in the dtype of ``like`` or of the first.

        Raises:
            BrokenMethodError: it does not; that is recorded.
        """
        like = named.get("like", given[0])
        found = self.call(method, *given, **named)
        expected = f"a tensor of shape {tuple(shape)}"
        if not isinstance(found, Tensor) or tuple(found.shape) != tuple(shape):
            self.broken(method, "shape", f"it gives {_kind(found)}", expected)
        if found.dtype != like.dtype:
            self.broken(
                method, "dtype", f"it gives {found.dtype} for {like.dtype}", "the dtype kept"
            )
        if not bool(found.isfinite().all()):
            self.broken(method, "finite", "it gives NaN or infinity", "numbers")
        return found

    def call(self, method: str, *given: Any, **named: Any) -> Any:
        """What a method returns; an error in it, or an argument that it changes, is recorded.

        Raises:
            BrokenMethodError: it raised.
        """
        tensors = [x for x in (*given, *named.values()) if isinstance(x, Tensor)]
        before = [(x, x.clone()) for x in tensors]
        self._watched.raised = ""
        try:
            found = getattr(self.manifold, method)(*given, **named)
        except (Exception, SystemExit) as error:
            text = str(error) if isinstance(error, DdnkitError) else describe_error(error)
            shapes = ", ".join(str(tuple(x.shape)) for x in tensors)
            guilty = self._watched.raised or method
            # What the derivative of another cannot do is raised in none of the manifold's own.
            self.broken(
                guilty, "runs", f"it fails for arguments of shape {shapes}: {text}", "no error"
            )
        for x, value in before:
            if not torch.equal(x.nan_to_num(), value.nan_to_num()):
                x.copy_(value)
                self.broken(
                    method,
                    "leaves its arguments",
                    "it changes an argument in place",
                    "a new tensor",
                )
        return found

    def broken(self, method: str, compared: str, gave: str, expected: str, hint: str = "") -> None:
        """Record what leaves nothing to compare.

        Raises:
            BrokenMethodError: always.
        """
        self._judge((method,), compared, float("nan"), 0.0, gave, expected, hint)
        raise BrokenMethodError(method)

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """What is in it ends where a method gives nothing to go on with."""
        try:
            yield
        except BrokenMethodError:
            return

    # -- judging -----------------------------------------------------------------------------------

    def waits(self, method: str, *needed: str) -> bool:
        """Whether a method cannot be judged, as one that is needed for it is wrong."""
        because = next((name for name in needed if name in self.wrong), None)
        if because is not None and method not in self.wrong:
            self._waiting.setdefault(method, because)
        return because is not None or method in self.wrong

    def same(
        self,
        method: str | tuple[str, ...],
        compared: str,
        found: Tensor,
        right: Tensor,
        tolerance: float,
        expected: str,
        hint: str = "",
        *,
        least: float = 0.0,
        prefix: str = "it gives",
    ) -> bool:
        """Hold vectors (N, m) against the right ones, relative to the longest, or to ``least``."""
        size = max(_longest(right), least)
        error = _longest(found - right) / size if size > 0 else _longest(found - right)
        gave = f"{prefix} {pattern(found, right)}, off by {error:.1e}"
        return self.judge(method, compared, error, tolerance, gave, expected, hint)

    def judge(
        self,
        method: str | tuple[str, ...],
        compared: str,
        error: float | Tensor,
        tolerance: float,
        gave: str,
        expected: str,
        hint: str = "",
    ) -> bool:
        """Record a comparison of a method, or of several that contradict each other; whether it held."""
        methods = (method,) if isinstance(method, str) else method
        return self._judge(methods, compared, float(error), tolerance, gave, expected, hint)

    def _judge(
        self,
        methods: tuple[str, ...],
        compared: str,
        error: float,
        tolerance: float,
        gave: str,
        expected: str,
        hint: str,
    ) -> bool:
        held = error <= tolerance
        row = MethodRow(methods[0], compared, error, tolerance, held)
        seen = self._rows.get((methods[0], compared))
        if seen is None or (seen.ok and (not held or _share(row) > _share(seen))):
            self._rows[methods[0], compared] = row
        if not held:
            self.wrong.update(methods)
            names = " or ".join(f"`{name}`" for name in methods)
            text = f"{names} is wrong ({compared}): expected {expected}; {gave}"
            self._faults.setdefault(methods, Fault(methods, text, hint or self._hint(methods[0])))
        return held

    def _hint(self, method: str) -> str:
        default = getattr(Manifold, method, None)
        if (
            default is None
            or getattr(default, "__isabstractmethod__", False)
            or method == "vertical"
        ):
            return f"write `{method}` again, and print what it gives at one point"
        if not self.has_own(method):
            return "it is the default: what it rests on cannot be differentiated twice, or is not smooth"
        return (
            f"leave `{method}` out, and it follows by automatic differentiation; or derive it again"
        )

    def report(self, target: str, shape: tuple[int, ...], points: int) -> ManifoldReport:
        """Rows and faults, those that rest on another's fault left open."""
        roots = {name: self._root(name) for name in self.wrong}
        faults = sorted(
            (f for f in self._faults.values() if len(f.methods) > 1 or roots[f.methods[0]] is None),
            key=lambda fault: METHODS.index(fault.methods[0]),
        )
        rows = [
            row
            if row.ok or roots.get(row.method) is None
            else MethodRow(
                row.method, row.compared, row.error, row.tolerance, None, _as(roots[row.method])
            )
            for row in self._rows.values()
        ]
        for name, because in self._waiting.items():
            if name not in self.wrong:
                cause = roots.get(because) or because
                rows.append(MethodRow(name, _NOTHING, float("nan"), 0.0, None, _as(cause)))
        rows.sort(key=lambda row: METHODS.index(row.method))
        return ManifoldReport(target, shape, tuple(rows), tuple(faults), points)

    def _root(self, method: str) -> str | None:
        """The wrong method that a wrong one calls, and that calls no other wrong one; None for none."""
        earlier = METHODS.index(method)
        if "constraint" in self.wrong and earlier >= METHODS.index("constraint_jacobian"):
            return "constraint"  # of which all that follows is made
        for name in METHODS:
            if name != method and name in self.wrong and self.calls(method, name):
                # Of two that call each other the first is blamed.
                if self.calls(name, method) and METHODS.index(name) > earlier:
                    continue
                return self._root(name) or name
        return None


def pattern(found: Tensor, right: Tensor) -> str:
    """What was found in the words of what is right, where it is a multiple of it."""
    if not bool(found.isfinite().all()):
        return "NaN or infinity"
    size, length = float((right * right).sum()), float(torch.linalg.vector_norm(found))
    if length <= _CLOSE * size**0.5:
        return "zero"
    if size <= 0:
        return "something that is not zero"
    factor = float((found * right).sum()) / size
    if float(torch.linalg.vector_norm(found - factor * right)) > _CLOSE * length:
        return "something else"
    return "minus that" if abs(factor + 1) < _CLOSE else f"{factor:.4g} times that"


def _longest(vectors: Tensor) -> float:
    if not vectors.numel():
        return 0.0
    return float(torch.linalg.vector_norm(vectors.reshape(len(vectors), -1), dim=1).max())


def _share(row: MethodRow) -> float:
    return row.error / row.tolerance if row.tolerance else row.error


def _as(because: str | None) -> str:
    return f"not checked, as `{because}` is wrong"


def _kind(found: object) -> str:
    return f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
