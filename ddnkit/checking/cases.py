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
from .snippet import as_python


def _quiet(examples: int) -> hypothesis.settings:
    """The same draws each time, kept nowhere; shrinking is done by `shrink`."""
    return hypothesis.settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@contextlib.contextmanager
def _nothing_left() -> Iterator[None]:
    """Have hypothesis keep what it finds in the modules at hand elsewhere than in a folder here.

    Afterwards it is as it was: the tests of whoever calls may use it too.
    """
    kept = getattr(configuration, "__hypothesis_home_directory", None)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        configuration.set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            configuration.set_hypothesis_home_dir(kept)


def draw(node: DeclarativeNode, count: int, visit: Callable[[tuple[Any, ...]], bool]) -> None:
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
        with _nothing_left():
            run()
    except _StopError:
        return


def sample(node: DeclarativeNode, seed: int) -> tuple[Any, ...]:
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


def _guess(node: DeclarativeNode) -> tuple[Any, ...]:
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


def shrink(xs: Sequence[Any], fails: Callable[[tuple[Any, ...]], bool]) -> tuple[Any, ...]:
    """The simplest inputs of the same shapes on which ``fails`` still holds.

    Entries are set to zero and rounded to few digits as long as the failure stays the same.
    """
    floating = [i for i, x in enumerate(xs) if isinstance(x, Tensor) and x.is_floating_point()]
    total = sum(xs[i].numel() for i in floating)
    kept = (
        st.lists(st.booleans(), min_size=total, max_size=total)
        if total <= 64
        else st.just([True] * total)
    )

    def simplify(digits: int, keep: list[bool]) -> tuple[Any, ...]:
        simple, start = list(xs), 0
        for i in floating:
            count = xs[i].numel()
            mask = torch.tensor(keep[start : start + count], dtype=torch.bool).reshape(xs[i].shape)
            simple[i] = torch.where(mask.to(xs[i].device), _round(xs[i], digits), 0.0)
            start += count
        return tuple(simple)

    best = tuple(xs)

    def noted(simple: tuple[Any, ...]) -> bool:
        nonlocal best
        failed = fails(simple)
        if failed and _length(simple) < _length(best):
            best = simple
        return failed

    # Where ``fails`` gives up, or depends on chance, what was found before counts.
    gives_up = (hypothesis.errors.NoSuchExample, hypothesis.errors.Flaky)
    with contextlib.suppress(*gives_up), _nothing_left():
        hypothesis.find(st.builds(simplify, st.integers(1, 16), kept), noted, settings=_quiet(60))
    return best


def _length(xs: Sequence[Any]) -> int:
    return sum(len(as_python(x)) for x in xs)


def _round(x: Tensor, digits: int) -> Tensor:
    """x to so many significant digits."""
    values = [float(f"{value:.{digits}g}") for value in x.reshape(-1).tolist()]
    return torch.tensor(values, dtype=x.dtype, device=x.device).reshape(x.shape)
