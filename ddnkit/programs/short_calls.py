"""Short calls: a layer's plain calls, by programs, at the price of a layer written by hand.

The eager way (`ddnkit.implicit`) is the definition. It looks at everything, at each call, through Python,
vmap and autograd; on a small problem that is all that its time goes into. A layer that is called again and
again with inputs of one signature has had all of that looked at many times over. From then on its equations
(`equations`) are programs, and a call does what cannot be left out:

- the node's own `solve`, or its solver;
- one evaluation of the functions on one problem, held against the one that was traced (`evaluation`);
- the program of the figures at y, and on the way back that of the gradient, or the node's own `adjoint`.

Programs are made only where the eager way trusts the call, where the functions are plain (no random
numbers, nothing hidden, no kinks, no autograd.Function of the user's own), and where the same gradient
comes of them. Whatever is not plain in a later call, in the inputs or in the figures, goes the eager way, and
with it every word that is to be said. So do transforms of torch.func, forward mode and derivatives of
derivatives. Every so often a call is held against the eager way again.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import DdnkitWarning
from ..node import DeclarativeNode
from ..perturbation import perturb
from ..several_starts import starts_at_several_points
from ..transforms import plain_surroundings
from .call_programs import (
    CallPrograms,
    Signature,
    UnclearError,
    call_programs,
    outside_tensors,
    plain,
    plain_inputs,
)
from .operations import NotAProgramError
from .program import BusyError, Program
from .short_call import by_programs, solution_of

if TYPE_CHECKING:
    from ..layer import DeclarativeLayer

#: Calls of one signature before its programs are made: a few calls do not repay half a second.
FIRST_CALLS = 8
#: Signatures that are kept: of batch sizes, mostly.
MOST_SIGNATURES = 16
#: How often programs are made for one signature: of a node whose functions change from time to time.
MOST_TRACES = 3
#: Calls by program that are held against the eager way, beside every so many.
_COMPARED = (10, 100)
COMPARED_EVERY = 1_000
#: So many calls in a row go the eager way, at most, for one whose own adjoint is compared.
_DUE_FOR = 8
#: So many calls in a row go the eager way for what they show, and the programs are given up.
_MOST_REFUSED = 8


class ShortCalls:
    """Those of one layer. Not copied or saved with it.

    Attributes:
        compiled: whether programs are compiled.
        on: whether calls may be short.
        first_calls: of a signature, that go the eager way.
        taken: how many calls have been short.
    """

    def __init__(self, compiled: bool = False, on: bool = True, first_calls: int | None = None):
        self.compiled = compiled
        self.on = on
        self.first_calls = (1 if compiled else FIRST_CALLS) if first_calls is None else first_calls
        self.taken = 0
        # Programs that had to go for those of other signatures. Of sizes that come and go, many are
        # traced again and again: after a while those stay that are there.
        self._given_up = 0
        self._signatures: OrderedDict[Any, Signature] = OrderedDict()

    def __reduce__(self) -> Any:
        return type(self), (self.compiled, self.on, self.first_calls)

    def reasons(self) -> list[str]:
        """Why calls of the signatures seen so far are not short, a text each."""
        return [s.reason for s in self._signatures.values() if s.reason is not None]

    def call(self, layer: DeclarativeLayer, xs: Sequence[Any]) -> Tensor | None:
        """y, or None where the call is to go the eager way."""
        if not self.on or not plain_surroundings():
            return None
        signature = self._signature(layer, xs)
        if signature is None or signature.reason is not None:
            return None
        programs = signature.programs
        if programs is None:
            signature.calls += 1
            if signature.calls <= self.first_calls:
                return None
            programs = self._make_programs(layer, xs, signature)
        elif programs.own is not None and _own_is_due(layer, programs):
            # The eager way holds the node's own adjoint against a known answer, every so often.
            programs.calls += 1
            return None
        elif _due(programs.calls):
            self._compare(layer, xs, signature, programs)
            programs = signature.programs
        if programs is None:
            return None
        programs.calls += 1
        y = by_programs(programs, signature, layer, xs)
        if y is not None:
            programs.refused = 0
            self.taken += 1
            return y
        programs.refused += 1
        if programs.refused >= _MOST_REFUSED:
            signature.programs = None
        return None

    def _signature(self, layer: DeclarativeLayer, xs: Sequence[Any]) -> Signature | None:
        node = layer.node
        dims = node.input_dims
        key: list[Any] = [
            dims if dims is None else tuple(dims),
            layer.batch_dims,
            layer.certify,
            layer.tolerance,
            layer.form,
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            node.tolerance,
            node.adjoint is None,
            node.preferred_backward,
            _unlike_others(node),
        ]
        for x in xs:
            if type(x) is not Tensor and type(x) is not torch.nn.Parameter:
                return None
            if x.is_inference():  # without a version, nor to be kept for the way back
                return None
            key += (x.shape, x.dtype, x.requires_grad, x.device, x.layout)
        # torch.func.functional_call swaps the layer's parameters, and not what hangs on the node.
        for name, value in layer._parameters.items():
            if name.startswith("node_") and vars(node).get(name[5:]) is not value:
                return None
        try:
            found = self._signatures.get(tuple(key))
        except TypeError:  # a form of the user's own that has no hash
            return None
        if found is None:
            if self._given_up >= MOST_SIGNATURES and len(self._signatures) >= MOST_SIGNATURES:
                return None
            found = self._signatures[tuple(key)] = _signature_of(layer, xs)
            if len(self._signatures) > MOST_SIGNATURES:
                _, oldest = self._signatures.popitem(last=False)
                self._given_up += oldest.programs is not None
        return found

    def _make_programs(
        self, layer: DeclarativeLayer, xs: Sequence[Any], signature: Signature
    ) -> CallPrograms | None:
        if signature.traces >= MOST_TRACES:
            signature.reason = "what the functions do, or return, changes from call to call"
            return None
        try:
            # A `solve` that draws random numbers would draw others after it was called for this.
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
                # torch's own, where it first loads its tracer
                warnings.simplefilter("ignore", FutureWarning)
                programs = call_programs(layer, xs, signature)
                if self.compiled:
                    self._compile(programs, layer, xs, signature)
                _refuse_difference(programs, signature, layer, xs)
        except BusyError:
            return None
        except UnclearError as reason:
            signature.traces, signature.calls = signature.traces + 1, 0
            if signature.traces >= MOST_TRACES:
                signature.reason = str(reason)
            return None
        except NotAProgramError as reason:
            signature.reason = str(reason)
            return None
        except Exception as error:  # whatever it is: the eager way raises it, or has another way
            text = str(error).strip().splitlines() or [""]
            signature.reason = f"it cannot be traced: {type(error).__name__}: {text[0]}"
            return None
        signature.traces += 1
        signature.programs = programs
        return programs

    def _compile(
        self,
        programs: CallPrograms,
        layer: DeclarativeLayer,
        xs: Sequence[Tensor],
        signature: Signature,
    ) -> None:
        """Compile what was traced; where that fails it runs as it is, and a warning says so once."""
        try:
            for program, examples in _examples(programs, layer, xs, signature):
                program.compile(examples)
        except NotAProgramError as reason:
            self.compiled = False
            warnings.warn(
                f"{type(layer.node).__name__}: {reason}. Its programs run uncompiled",
                DdnkitWarning,
                stacklevel=6,
            )

    def _compare(
        self,
        layer: DeclarativeLayer,
        xs: Sequence[Any],
        signature: Signature,
        programs: CallPrograms,
    ) -> None:
        try:
            with torch.random.fork_rng(devices=[]):
                _refuse_difference(programs, signature, layer, xs)
        except _DifferenceError as reason:
            signature.programs, signature.reason = None, str(reason)
            warnings.warn(
                f"{type(layer.node).__name__}: {reason}. Its calls are not short from here on; gradients "
                "since the last comparison may be wrong. Please report it",
                DdnkitWarning,
                stacklevel=5,
            )
        except Exception:
            # Nothing to compare: the call goes its own way, and says what is to be said.
            programs.calls += 1


class _DifferenceError(NotAProgramError):
    """The program gives another gradient than the eager way."""


def _due(calls: int) -> bool:
    return calls in _COMPARED or (calls > 0 and calls % COMPARED_EVERY == 0)


def _own_is_due(layer: DeclarativeLayer, programs: CallPrograms) -> bool:
    comparisons = layer.comparisons
    if comparisons.differed:
        return True
    if not comparisons.every or programs.calls < comparisons.every:
        return False
    since = programs.calls % comparisons.every
    if since == 0:
        comparisons.soon()
        programs.compared = comparisons.made
    # On its way back alone is a call compared, and there may be none.
    return since < _DUE_FOR and comparisons.made == programs.compared


def _signature_of(layer: DeclarativeLayer, xs: Sequence[Tensor]) -> Signature:
    """A new signature, with the reason why its calls cannot be short, if there is one."""
    dims = layer.node.input_dims
    if layer.batch_dims is not None:
        own = [x.ndim - layer.batch_dims for x in xs]
    else:
        own = [x.ndim for x in xs] if dims is None else [-1 if d is None else d for d in dims]
    signature = Signature(tuple(own), torch.Size())
    if len(own) != len(xs) or any(not 0 <= d <= x.ndim for d, x in zip(own, xs, strict=False)):
        signature.reason = "other inputs than the node's"
        return signature
    leads = {x.shape[: x.ndim - d] for d, x in zip(own, xs, strict=True)}
    signature.lead = next(iter(leads), torch.Size())
    signature.reason = _why_not_short(layer, xs, leads)
    return signature


def _why_not_short(
    layer: DeclarativeLayer, xs: Sequence[Tensor], leads: set[torch.Size]
) -> str | None:
    node = layer.node
    if len(leads) != 1 or next(iter(leads)).numel() == 0:
        return "its inputs are not one batch"
    if len({x.dtype for x in xs}) != 1 or xs[0].dtype not in (torch.float32, torch.float64):
        return "its inputs are not of one floating type"
    if any(x.device.type != "cpu" for x in xs):
        return "its inputs are not on the CPU"
    if layer.certify != "fast":
        return f"certify is {layer.certify!r}"
    return _unlike_others(node)


def _unlike_others(node: DeclarativeNode) -> str | None:
    if node.adjoint is not None and not node.batched_solve:
        return "the node's own adjoint takes one problem at a time"
    if node.fixed_point is not None:
        return "the node is a fixed point"
    if node.selection is not None:
        return "the node selects one of its solutions"
    if starts_at_several_points(node):
        return "the node starts at several points"
    return None


def _examples(
    programs: CallPrograms, layer: DeclarativeLayer, xs: Sequence[Tensor], signature: Signature
) -> Iterator[tuple[Program, list[Tensor]]]:
    """Each program, with inputs like those that it will be given by the ones before."""
    with torch.no_grad():
        inputs = plain_inputs(xs, signature)
        y = solution_of(programs, layer.node, inputs)[0].y.contiguous()
        outside = outside_tensors(programs, layer.node, inputs, y)
        operands = inputs + [plain(x, copies=False) for x in outside]
    yield programs.figures, [y, *operands]
    if programs.back is not None:
        rest = programs.figures(y, *operands)[programs.shown :]
        yield programs.back, [torch.ones_like(y), y, *rest, *operands]
    if programs.solver is not None:
        yield programs.solver.step, programs.solver.examples(y, operands)


def _wanted_outside(
    programs: CallPrograms,
    signature: Signature,
    layer: DeclarativeLayer,
    xs: Sequence[Tensor],
    y: Tensor,
) -> list[Tensor]:
    with torch.no_grad():
        inputs = plain_inputs(xs, signature)
        outside = outside_tensors(programs, layer.node, inputs, y.reshape(programs.y_shape))
    return [x for x in outside if x.requires_grad]


def _refuse_difference(
    programs: CallPrograms, signature: Signature, layer: DeclarativeLayer, xs: Sequence[Tensor]
) -> None:
    """Hold the gradient by programs against that of the eager way, at these inputs.

    Raises:
        _DifferenceError: they differ.
        NotAProgramError: there is nothing to compare here.
    """
    shown = layer.shown
    wanted: list[Tensor] = []
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DdnkitWarning)
        own = [x.detach().requires_grad_(x.requires_grad) for x in xs]
        found: list[list[Tensor]] = []
        try:
            # Each way back before the other call: a `solve` may keep something on the node for it.
            for call in (partial(by_programs, programs, signature, layer), layer.eager):
                y = call(own)
                if y is None:
                    raise UnclearError("its figures are not clear")
                solution = y.detach()
                v = perturb(y.new_ones(1, *y.shape), 1.0, 0, 0)[0]
                if not found and programs.derives:
                    wanted = [x for x in own if x.requires_grad]
                    wanted += _wanted_outside(programs, signature, layer, own, solution)
                gradients = torch.autograd.grad(y, wanted, v, allow_unused=True) if wanted else ()
                found.append(
                    [
                        torch.zeros_like(x) if g is None else g
                        for x, g in zip(wanted, gradients, strict=True)
                    ]
                )
                certificate = layer.certificate
                if certificate is None or set(certificate.verdicts()) != {"trusted"}:
                    raise UnclearError("its figures are not clear")
        finally:
            layer.show(shown)
    for x, a, b in zip(wanted, *found, strict=True):
        # Of a system that is clearly regular, both keep nearly half of their digits: relative to the
        # gradient, or, of one that is zero, to one of which y moves by itself when x does.
        norm = torch.linalg.vector_norm
        by_itself = norm(v) * norm(solution) / norm(x.detach())
        size = norm(b) + by_itself.nan_to_num(0.0, 0.0, 0.0)
        if not bool(norm(a - b) <= torch.finfo(a.dtype).eps ** 0.4 * size):
            raise _DifferenceError("the program of its functions gives another gradient")
