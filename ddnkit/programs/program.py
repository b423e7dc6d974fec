"""Program: a function of tensors as the list of operations that it takes, found once and run again.

Python, autograd and vmap cost some ten times what the operations on a small batch cost. A program has
them behind it: `trace` follows the function once, with its derivatives (`make_fx`), simplifies what it
finds, and writes a Python function that calls the operations one after the other. It holds for inputs of the
same shapes, types and device alone, and as long as the function is the same: whoever keeps one must see to
that (`ddnkit.programs.evaluation`).

Simplified is what the transforms leave behind and no compiler of Python removes: constants that are
computed anew, products with ones, powers of 0 and 1, sums of one entry, views of views, expansions before an
operation that broadcasts, what is computed twice, and what is computed for each item though it is the same
for all. Every rule is exact: the numbers are those of the function, bit for bit but for the sign of a zero
and, of a matrix that all items share, the order in which a library adds up.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .operations import InPlaceError, NotAProgramError
from .simplification import Code, SimplifiedSteps

#: One trace at a time: torch's tracer is not made for more.
_TRACING = threading.Lock()


if hasattr(os, "register_at_fork"):
    # What another thread was tracing when a process was forked, no thread of the new one will finish.
    os.register_at_fork(after_in_child=lambda: globals().update(_TRACING=threading.Lock()))


class BusyError(NotAProgramError):
    """Another thread is tracing: there may well be a program, later."""


class Program:
    """The operations of a function; a call gives what the function gave, as plain tensors.

    Attributes:
        source: the Python text that runs.
        steps: how many operations it calls.
        constant: for each output, its value if it depends on no input.
        made_of: for each output, the inputs that it depends on.
    """

    def __init__(self, code: Code, for_compiler: Code):
        self.steps = len(code.lines)
        self.source = code.source
        self.constant = code.constant_outputs
        self.made_of = code.inputs_of_outputs
        self._run = code.function()
        self._for_compiler = for_compiler

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """The outputs for inputs that lie in memory as the examples did, without a graph."""
        return self._run(*inputs)

    def compile(self, examples: Sequence[Tensor]) -> None:
        """Have the operations run as one, by torch's compiler, for inputs like the examples.

        It takes seconds, less where torch finds in its cache on disk what it has compiled before.

        Raises:
            NotAProgramError: there is no compiler, or it fails; the program runs as before.
        """
        from torch._inductor.compile_fx import compile_fx
        from torch.fx.experimental.proxy_tensor import make_fx

        own = [x.detach().clone() for x in examples]
        with _TRACING:
            try:
                with torch.no_grad():
                    compiled: Any = compile_fx(make_fx(self._for_compiler.function())(*own), own)
                    compiled(*own)
            except Exception as error:  # whatever it is: a compiler is many programs
                text = str(error).strip().splitlines() or [type(error).__name__]
                raise NotAProgramError(f"torch cannot compile it: {text[0]}") from error
        self._run = compiled


def trace(
    function: Callable[..., Sequence[Tensor]],
    examples: Sequence[Tensor],
    shown: int | None = None,
) -> Program:
    """The program of ``function`` for inputs like the examples.

    Args:
        function: of tensors, returns tensors. It may take derivatives by torch.func.
        shown: how many of the outputs come into other hands, all if None: each in memory of its own,
            at each call, as those hands may write on it. The rest may share it, with constants too, and is
            of shape (1, ...) where it is the same for all items.

    Raises:
        NotAProgramError: there is none.
        BusyError: not now.
    """
    # Each of its own: a tensor that is given twice would be one input, and one that the function
    # knows by another way a constant.
    own = [x.detach().clone() for x in examples]
    if not _TRACING.acquire(blocking=False):
        raise BusyError("another thread is tracing")
    try:
        try:
            return _program(_graph_of(function, own), own, shown)
        except InPlaceError:
            # A part of an intermediate result that is written over: torch's own way to undo that.
            function = torch.func.functionalize(function, remove="mutations")
            return _program(_graph_of(function, own), own, shown)
    finally:
        _TRACING.release()


def _program(graph: torch.fx.GraphModule, inputs: Sequence[Tensor], shown: int | None) -> Program:
    simplified = SimplifiedSteps(graph, inputs)
    return Program(simplified.code(shown), simplified.code(shown, for_compiler=True))


def _graph_of(
    function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]
) -> torch.fx.GraphModule:
    # Loads torch's compiler, which takes a second: for those who come this far.
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        # The transforms that are at work would be followed too, and the first input with them.
        with temporarily_clear_interpreter_stack(), torch.enable_grad():
            return make_fx(function, decomposition_table=_decompositions())(*inputs)
    except NotAProgramError:
        raise
    except Exception as error:
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise NotAProgramError(f"it cannot be traced: {text[0]}") from error


def _decompositions() -> Any:
    """Of the norms whose third derivative torch gets wrong."""
    from torch._decomp import get_decompositions

    aten = torch.ops.aten
    return get_decompositions(
        [
            aten.native_layer_norm,
            aten.native_layer_norm_backward,
            aten.native_batch_norm,
            aten.native_batch_norm_backward,
        ]
    )
