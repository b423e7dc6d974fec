"""Inputs to check on: drawn by hypothesis from a node's `sample_inputs`, and shrunk when they fail."""

from __future__ import annotations

import contextlib
import inspect
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hypothesis
import torch
from hypothesis import configuration
from hypothesis import strategies as st
from torch import Tensor

from ..errors import InputError
from ..importing import describe_error, place
from ..node import DeclarativeNode
from .gradients import differentiable
from .snippet import as_python


def _quiet(examples: int) -> hypothesis.settings:
    """Settings that draw the same inputs each time and store none."""
    return hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@contextlib.contextmanager
def _without_folder() -> Iterator[None]:
    """Keep hypothesis from writing a folder into the working directory.

    Its setting is put back afterwards: the tests of whoever calls may use hypothesis too.
    """
    kept = getattr(configuration, "__hypothesis_home_directory", None)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        configuration.set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            configuration.set_hypothesis_home_dir(kept)


def draw(node: DeclarativeNode, count: int, visit: Callable[[tuple[object, ...]], bool]) -> None:
    """Call ``visit`` on up to ``count`` drawn inputs, until it returns False."""

    class _StopError(Exception):
        pass

    going = True

    @hypothesis.settings(_quiet(count), phases=[hypothesis.Phase.generate])
    @hypothesis.given(st.integers(0, 2**31 - 1))
    def run(seed: int) -> None:
        nonlocal going
        # hypothesis runs what fails once more, to see that it does.
        going = going and visit(sample(node, seed))
        if not going:
            raise _StopError

    try:
        with _without_folder():
            run()
    except _StopError:
        return


def sample(node: DeclarativeNode, seed: int) -> tuple[object, ...]:
    """One instance from the node's `sample_inputs`, or guessed from its `input_dims` or signature.

    The global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        # Of the CPU alone: torch.manual_seed would also seed the devices that the fork leaves out.
        torch.default_generator.manual_seed(seed)
        if type(node).sample_inputs is not DeclarativeNode.sample_inputs:
            xs = _own_sample(node)
            if not isinstance(xs, tuple):
                raise InputError(
                    f"{type(node).__name__}.sample_inputs must return a tuple, "
                    f"not {type(xs).__name__}"
                )
        else:
            xs = _guess(node)
    return tuple(_double(x) for x in xs)


def _own_sample(node: DeclarativeNode) -> Any:
    try:
        return node.sample_inputs()
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's code may raise anything
        raise InputError(
            f"{type(node).__name__}.sample_inputs failed: {describe_error(error)}, at {place(error)}"
        ) from error


def _guess(node: DeclarativeNode) -> tuple[object, ...]:
    dims = node.input_dims
    if dims is None:
        parameters = inspect.signature(node.objective).parameters.values()
        named = [p for p in parameters if p.name != "y" and p.kind is not p.VAR_KEYWORD]
        if any(p.kind is p.VAR_POSITIONAL for p in named):
            node.sample_inputs()  # raises the error that says what to write
        dims = [1] * len(named)
    return tuple(None if own is None else torch.randn([4] * own) for own in dims)


def _double(x: Any) -> Any:
    # float64 separates a wrong gradient from rounding.
    return x.detach().double() if isinstance(x, Tensor) and x.is_floating_point() else x


def shrink(xs: Sequence[object], fails: Callable[[tuple[object, ...]], bool]) -> tuple[object, ...]:
    """The simplest inputs of the same shapes on which ``fails`` still holds.

    Entries are set to zero and rounded to few digits as long as the failure stays the same.
    """
    floating = differentiable(xs)
    total = sum(x.numel() for x in floating.values())
    kept = (
        st.lists(st.booleans(), min_size=total, max_size=total)
        if total <= 64
        else st.just([True] * total)
    )

    def simplify(digits: int, keep: list[bool]) -> tuple[object, ...]:
        simple, start = list(xs), 0
        for i, x in floating.items():
            mask = torch.tensor(keep[start : start + x.numel()], dtype=torch.bool).reshape(x.shape)
            simple[i] = torch.where(mask.to(x.device), _round(x, digits), 0.0)
            start += x.numel()
        return tuple(simple)

    best = tuple(xs)

    def noted(simple: tuple[object, ...]) -> bool:
        nonlocal best
        failed = fails(simple)
        if failed and _length(simple) < _length(best):
            best = simple
        return failed

    # ``fails`` may run out of time, or depend on chance: the best inputs so far are then the result.
    gives_up = (hypothesis.errors.NoSuchExample, hypothesis.errors.Flaky)
    with contextlib.suppress(*gives_up), _without_folder():
        hypothesis.find(st.builds(simplify, st.integers(1, 16), kept), noted, settings=_quiet(60))
    return best


def _length(xs: Sequence[object]) -> int:
    return sum(len(as_python(x)) for x in xs)


def _round(x: Tensor, digits: int) -> Tensor:
    """x to so many significant digits."""
    values = [float(f"{value:.{digits}g}") for value in x.reshape(-1).tolist()]
    return torch.tensor(values, dtype=x.dtype, device=x.device).reshape(x.shape)
