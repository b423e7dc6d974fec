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

import operator
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..backward.automatic import Automatic
from ..backward.closed_form import ClosedForm, unaliased
from ..backward.dense import DENSE_SIZE, Dense
from ..backward.embedded_field import EmbeddedField
from ..backward.form import BackwardForm
from ..captured import Captured, attributes, is_tracked
from ..certificate import Certificate, LateCertificate, tolerance_of
from ..errors import DdnkitWarning, InputError
from ..implicit.own_adjoint import difference
from ..node import DeclarativeNode
from ..node_state import NodeState
from ..perturbation import perturbed
from ..problem import Problem
from ..recording import Held
from ..solution import Solution, Status
from ..solving import solve
from ..transforms import under_transform
from .equations import Limits, Shape, at_solution, measured, way_back
from .evaluation import Evaluation
from .newton import NewtonProgram
from .program import BusyError, NotAProgramError, Program, traced

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
#: Of a system as a matrix: its unknowns, and the entries of those of a batch.
MOST_UNKNOWNS, MOST_ENTRIES = 256, 2**22
#: Unknowns up to which a matrix is as good as its diagonal, and up to which that is looked for.
FEW_UNKNOWNS, MOST_DIAGONAL = 1, 4_096
#: How far apart, relative, one solution may come out twice: where the system is nearly singular.
_SAME = 1e-2
#: Entries of what a call was given up to which it keeps a copy, and looks for no change.
_MOST_COPIED = 2**14
_CONTIGUOUS = torch.contiguous_format
#: Figures that `equations.at_solution` gives before what the way back needs.
_FIGURES = 4


@dataclass
class _Programs:
    """What calls of one signature run.

    Attributes:
        evaluation: of the functions that were traced.
        figures: `equations.at_solution`.
        back: `equations.way_back`; None where nothing asks for a derivative, or the node has its own.
        own: the node's own way back: then the figures are those of `equations.measured`.
        tracked: which of inputs and outside tensors want one.
        form: the backward form that the eager way takes.
        y_shape: of the batch.
        manifold: the node's class of manifold and its settings.
        newton: what solves, for a node that leaves that to newton.
        unknown, untold: status and iterations (B,) of a `solve` of the node's own.
        all: true for each item.
        own_solve: whether the node's own `solve` takes the batch.
        tolerance: what the certificate's figures are held against.
        copies: whether a call keeps copies of what it was given: where these are small.
        compared: how many comparisons the layer had made when one was last due.
    """

    evaluation: Evaluation
    figures: Program
    back: Program | None
    own: ClosedForm | None
    tracked: tuple[int, ...]
    form: str
    y_shape: torch.Size
    manifold: Any
    newton: NewtonProgram | None
    unknown: Tensor
    untold: Tensor
    all: Tensor
    own_solve: bool
    tolerance: float
    copies: bool
    calls: int = 0
    refused: int = 0
    compared: int = 0

    @property
    def derives(self) -> bool:
        """Whether there is a way back."""
        return bool(self.tracked) and (self.back is not None or self.own is not None)


@dataclass
class _Signature:
    """Calls with inputs of the same shapes and types.

    Attributes:
        own: dimensions of each input of one problem.
        lead: the batch dimensions.
        reason: why there are no programs, and will be none.
    """

    own: tuple[int, ...]
    lead: torch.Size
    reason: str | None = None
    calls: int = 0
    traces: int = 0
    programs: _Programs | None = None


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
        self._signatures: OrderedDict[Any, _Signature] = OrderedDict()

    def __reduce__(self) -> Any:
        return type(self), (self.compiled, self.on, self.first_calls)

    def reasons(self) -> list[str]:
        """Why calls of the signatures seen so far are not short, a text each."""
        return [s.reason for s in self._signatures.values() if s.reason is not None]

    def call(self, layer: DeclarativeLayer, xs: Sequence[Any]) -> Tensor | None:
        """y, or None where the call is to go the eager way."""
        if not self.on or not _plain_surroundings():
            return None
        signature = self._signature(layer, xs)
        if signature is None or signature.reason is not None:
            return None
        programs = signature.programs
        if programs is None:
            signature.calls += 1
            if signature.calls <= self.first_calls:
                return None
            programs = self._made(layer, xs, signature)
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
        y = _by_programs(programs, signature, layer, xs)
        if y is not None:
            programs.refused = 0
            self.taken += 1
            return y
        programs.refused += 1
        if programs.refused >= _MOST_REFUSED:
            signature.programs = None
        return None

    def _signature(self, layer: DeclarativeLayer, xs: Sequence[Any]) -> _Signature | None:
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

    def _made(
        self, layer: DeclarativeLayer, xs: Sequence[Any], signature: _Signature
    ) -> _Programs | None:
        if signature.traces >= MOST_TRACES:
            signature.reason = (
                "what the functions do, or what comes of them, changes from call to call"
            )
            return None
        try:
            # A `solve` that draws random numbers would draw others after it was called for this.
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
                # torch's own, where it first loads its tracer
                warnings.simplefilter("ignore", FutureWarning)
                programs = _programs(layer, xs, signature)
                if self.compiled:
                    self._compile(programs, layer, xs, signature)
                _refuse_difference(programs, signature, layer, xs)
        except BusyError:
            return None
        except _UnclearError as reason:
            signature.traces, signature.calls = signature.traces + 1, 0
            if signature.traces >= MOST_TRACES:
                signature.reason = str(reason)
            return None
        except NotAProgramError as reason:
            signature.reason = str(reason)
            return None
        except Exception as error:  # whatever it is: the eager way raises it, or has another way
            text = str(error).strip().splitlines() or [""]
            signature.reason = f"it cannot be followed: {type(error).__name__}: {text[0]}"
            return None
        signature.traces += 1
        signature.programs = programs
        return programs

    def _compile(
        self,
        programs: _Programs,
        layer: DeclarativeLayer,
        xs: Sequence[Tensor],
        signature: _Signature,
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
        signature: _Signature,
        programs: _Programs,
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


class _ChangedError(NotAProgramError):
    """The functions are not what they were when they were traced."""


class _UnclearError(NotAProgramError):
    """Of these inputs, something is not plain; it may be of others."""


class _DifferenceError(NotAProgramError):
    """The program gives another gradient than the eager way."""


def _due(calls: int) -> bool:
    return calls in _COMPARED or (calls > 0 and calls % COMPARED_EVERY == 0)


def _own_is_due(layer: DeclarativeLayer, programs: _Programs) -> bool:
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


def _plain_surroundings() -> bool:
    """Whether nothing is at work that the eager way heeds and a program does not."""
    return (
        not under_transform()
        and torch._C._len_torch_function_stack() == 0
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._get_tracing_state() is None
        and not torch.is_inference_mode_enabled()
        and not torch.is_autocast_enabled("cpu")
        and torch.get_float32_matmul_precision() == "highest"
        # Checkpointing counts the tensors that a call keeps.
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    )


def _signature_of(layer: DeclarativeLayer, xs: Sequence[Tensor]) -> _Signature:
    """A new signature, with the reason why its calls cannot be short, if there is one."""
    dims = layer.node.input_dims
    if layer.batch_dims is not None:
        own = [x.ndim - layer.batch_dims for x in xs]
    else:
        own = [x.ndim for x in xs] if dims is None else [-1 if d is None else d for d in dims]
    signature = _Signature(tuple(own), torch.Size())
    if len(own) != len(xs) or any(not 0 <= d <= x.ndim for d, x in zip(own, xs, strict=False)):
        signature.reason = "other inputs than the node's"
        return signature
    leads = {x.shape[: x.ndim - d] for d, x in zip(own, xs, strict=True)}
    signature.lead = next(iter(leads), torch.Size())
    signature.reason = _unsuited(layer, xs, leads)
    return signature


def _unsuited(layer: DeclarativeLayer, xs: Sequence[Tensor], leads: set[torch.Size]) -> str | None:
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
    return None


def _suited(form: BackwardForm) -> bool:
    """Whether the form is for the plain case: the system as a matrix, whose solution is what it is."""
    if isinstance(form, Dense):
        return form.singular == "minimum_norm" and not form.schur
    return isinstance(form, EmbeddedField)


# -- programs ------------------------------------------------------------------------------------------


def _programs(layer: DeclarativeLayer, xs: Sequence[Tensor], signature: _Signature) -> _Programs:
    """The programs for calls like this one.

    Raises:
        NotAProgramError: there are none.
    """
    node = layer.node
    with torch.no_grad():
        inputs = _inputs(xs, signature)
        generator = torch.get_rng_state()
        problem, solution = solve(Problem(node, inputs, len(inputs[0])))
    if not torch.equal(generator, torch.get_rng_state()):
        # What goes the eager way after all would be solved with other numbers than without a try.
        raise NotAProgramError("its `solve` draws random numbers")
    y = solution.y.contiguous()
    if problem.structure is not None:
        raise NotAProgramError("y has several parts")
    unknowns = y.shape[1:].numel()
    form = layer.form.taken(problem, unknowns)
    own = form if type(form) is ClosedForm else None
    if own is None and isinstance(layer.form, Automatic) and unknowns > DENSE_SIZE:
        form = Dense()  # without Python around it, it is the quicker one for longer
    if own is None and (not _suited(form) or unknowns > MOST_DIAGONAL):
        raise NotAProgramError(f"the backward form is {form.name}, with {unknowns} unknowns")
    manifold = _manifold(node)
    if manifold is not None and not _immutable(tuple(manifold[1].values())):
        raise NotAProgramError("its manifold holds more than numbers")
    _refuse_what_shows(problem, y)
    with torch.no_grad():
        given = _one_problem(inputs, y)
        evaluation = Evaluation(partial(_evaluate, node), given)
        outside, evaluation.outside = evaluation.outside, []  # not to be kept alive
        if evaluation.changes_outside:
            raise NotAProgramError("it changes what the node holds")
        again = evaluation.repeated(partial(_evaluate, node), lambda: given)
        if again is None or any(a is not b for a, b in zip(outside, again, strict=True)):
            # A tensor of numpy, or of a scripted function: in the trace it would be a constant.
            raise NotAProgramError("it makes tensors in a way that torch does not show")
    if any(x.device.type != "cpu" or x.layout != torch.strided for x in outside):
        raise NotAProgramError("it uses a tensor that is not on the CPU")
    if any(is_tracked(x) and all(x is not z for z in outside) for _, x in attributes(node)):
        # Its gradient is zero, and not None: optimisers tell the two apart.
        raise NotAProgramError("it holds a tensor that wants a gradient, and does not use it")
    problem = problem.with_captured([Captured(x) for x in outside], outside)
    tolerance = tolerance_of(problem, y, layer.tolerance)
    limits = Limits.of(y.dtype, tolerance)
    operands = problem.operands
    everything = [*xs, *outside]
    tracked = [k for k, x in enumerate(everything) if x.requires_grad]
    plain = Solution(y).batched(len(y))
    programs = partial(
        _Programs,
        evaluation=evaluation,
        form=form.name,
        y_shape=y.shape,
        manifold=manifold,
        unknown=torch.as_tensor(plain.status),
        untold=torch.as_tensor(plain.iterations),
        all=torch.ones(len(y), dtype=torch.bool),
        own_solve=node.batched_solve and type(node).solve is not DeclarativeNode.solve,
        tolerance=tolerance,
        copies=sum(x.numel() for x in operands) <= _MOST_COPIED,
    )
    if own is not None:
        if any(x.requires_grad for x in outside):
            raise NotAProgramError("its own adjoint has no gradient for a tensor that it holds")
        figures = traced(measured(problem, y, limits, tolerance), [y, *operands], _FIGURES + 1)
        if not bool(figures(y, *(x.detach().contiguous() for x in operands))[0]):
            raise _UnclearError("its figures are not clear")
        asked = tuple(tracked) if torch.is_grad_enabled() else ()
        return programs(figures=figures, back=None, own=own, tracked=asked, newton=None)
    for shape in _shapes(len(y), unknowns):
        figures = traced(at_solution(problem, limits, shape), [y, *operands], _FIGURES)
        found = figures(y, *(x.detach().contiguous() for x in operands))
        if bool(found[0]):
            break
    else:
        raise _UnclearError("its figures are not clear")
    newton = NewtonProgram.of(problem, y, limits, shape)
    back = None
    rest = found[_FIGURES:]

    def traced_back() -> Program:
        pull = way_back(problem, limits, shape, tracked)

        def flat_way_back(v: Tensor, y: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
            return pull(v, y, others[: len(rest)], *others[len(rest) :])

        return traced(flat_way_back, [torch.ones_like(y), y, *rest, *operands])

    if tracked and torch.is_grad_enabled():
        back = traced_back()
        # A tensor that is used without its graph has no gradient: None, and not zero.
        idle = [k for k, g in zip(tracked, back.constant[2:], strict=True)
                if k >= len(xs) and g is not None and not bool(g.any())]  # fmt: skip
        if idle:
            tracked = [k for k in tracked if k not in idle]
            back = traced_back() if tracked else None
    return programs(figures=figures, back=back, own=None, tracked=tuple(tracked), newton=newton)


def _shapes(batch: int, unknowns: int) -> list[Shape]:
    """What G may be taken for, in turn: a matrix where it fits."""
    small = unknowns <= MOST_UNKNOWNS and batch * unknowns**2 <= MOST_ENTRIES
    matrices = [Shape.DEFINITE, Shape.TANGENT] if small else []
    return [*([Shape.DIAGONAL] if unknowns > FEW_UNKNOWNS else []), *matrices]


def _examples(
    programs: _Programs, layer: DeclarativeLayer, xs: Sequence[Tensor], signature: _Signature
) -> Iterator[tuple[Program, list[Tensor]]]:
    """Each program, with inputs like those that it will be given by the ones before."""
    with torch.no_grad():
        inputs = _inputs(xs, signature)
        y = _solution(programs, layer.node, inputs)[0].y.contiguous()
        outside = _outside(programs, layer.node, inputs, y)
        operands = inputs + [_kept(x, copies=False) for x in outside]
    yield programs.figures, [y, *operands]
    if programs.back is not None:
        rest = programs.figures(y, *operands)[_FIGURES:]
        yield programs.back, [torch.ones_like(y), y, *rest, *operands]
    if programs.newton is not None:
        penalty = y.new_zeros(len(y))
        yield programs.newton.step, [y, penalty, penalty == 0, *operands]


def _refuse_what_shows(problem: Problem, y: Tensor) -> None:
    """Raise if the eager way has more to do than to differentiate."""
    for trace in problem.recorded(y).traces:
        if trace.random:
            raise NotAProgramError("it draws random numbers")
        if trace.hidden:
            raise NotAProgramError("it hides from torch what its values depend on")
        if trace.kinks:
            raise NotAProgramError("it has kinks")
    ahead: list[Any] = []
    with torch.enable_grad():
        given = [x.requires_grad_() for x in _one_problem([x.detach() for x in problem.inputs], y)]
        ahead = [x.grad_fn for x in _evaluate(problem.node, given)]
    seen: set[Any] = set()
    while ahead:
        function = ahead.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if isinstance(function, torch.autograd.function.BackwardCFunction):
            raise NotAProgramError("it uses an autograd.Function")
        ahead.extend(f for f, _ in function.next_functions)


def _evaluate(node: DeclarativeNode, given: Sequence[Tensor]) -> list[Tensor]:
    *xs, y = given
    found: list[Tensor | None] = [node.objective(*xs, y=y)]
    if node.constrained:
        found.append(node.equality_constraints(*xs, y=y))
    return [x for x in found if isinstance(x, Tensor)]


def _manifold(node: DeclarativeNode) -> tuple[type, dict[str, Any]] | None:
    """What its constraints are made of. They are no functions of the node's, and none of their
    operations is looked at."""
    manifold = node.manifold
    return None if manifold is None else (type(manifold), dict(getattr(manifold, "__dict__", {})))


def _immutable(x: Any) -> bool:
    if isinstance(x, tuple):
        return all(map(_immutable, x))
    return x is None or isinstance(x, (int, float, str, torch.dtype))


def _outside(
    programs: _Programs, node: DeclarativeNode, inputs: Sequence[Tensor], y: Tensor
) -> list[Tensor]:
    """The tensors that the functions use without being given them, as they are now.

    Raises:
        _ChangedError: the functions are not those that were traced.
    """
    found = programs.evaluation.repeated(partial(_evaluate, node), lambda: _one_problem(inputs, y))
    if found is None:
        raise _ChangedError
    return found


def _one_problem(inputs: Sequence[Tensor], y: Tensor) -> list[Tensor]:
    return [*(x[0] for x in inputs), y[0]]


def _inputs(xs: Sequence[Tensor], signature: _Signature, copies: bool = False) -> list[Tensor]:
    """The inputs without a graph, with one batch dimension in front, contiguous."""
    lead = signature.lead
    if len(lead) == 1:
        return [_kept(x, copies) for x in xs]
    size, count = lead.numel(), len(lead)
    return [_kept(x.reshape(size, *x.shape[count:]), copies) for x in xs]


def _wanted_outside(
    programs: _Programs,
    signature: _Signature,
    layer: DeclarativeLayer,
    xs: Sequence[Tensor],
    y: Tensor,
) -> list[Tensor]:
    with torch.no_grad():
        inputs = _inputs(xs, signature)
        outside = _outside(programs, layer.node, inputs, y.reshape(programs.y_shape))
    return [x for x in outside if x.requires_grad]


def _refuse_difference(
    programs: _Programs, signature: _Signature, layer: DeclarativeLayer, xs: Sequence[Tensor]
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
            for call in (partial(_by_programs, programs, signature, layer), layer.eager):
                y = call(own)
                if y is None:
                    raise _UnclearError("its figures are not clear")
                solution = y.detach()
                v = perturbed(y.new_ones(1, *y.shape), 1.0, 0, 0)[0]
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
                    raise _UnclearError("its figures are not clear")
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


# -- a call ---------------------------------------------------------------------------------------------


def _by_programs(
    programs: _Programs, signature: _Signature, layer: DeclarativeLayer, xs: Sequence[Tensor]
) -> Tensor | None:
    """y with its certificate and its way back; None if something is not plain."""
    lead, node = signature.lead, layer.node
    number = layer.comparisons.begin()
    with torch.no_grad():
        # Whatever is raised: the eager way knows which items to set aside, or raises it.
        try:
            inputs = _inputs(xs, signature, programs.copies)
            # What a `solve` that works in place would write on.
            given = inputs if programs.copies else xs
            versions = [x._version for x in given]
            if programs.manifold != _manifold(node):
                return None
            solution, outside = _solution(programs, node, inputs)
            y = solution.y.contiguous()
            if y.shape != programs.y_shape or y.dtype != inputs[0].dtype:
                return None
            if outside is None:
                outside = _outside(programs, node, inputs, y)
            if [x._version for x in given] != versions or (outside and _swapped(layer, outside)):
                return None
            operands = inputs + [_kept(x, programs.copies) for x in outside]
            clear, stationarity, feasibility, licq, *rest = programs.figures(y, *operands)
            if not clear.item() or not _ended_well(programs, solution):
                return None
            settled, aux = programs.all, {}
            if programs.own is not None:
                (settled,), aux = rest, {k: x.detach() for k, x in solution.aux.items()}
                rest = list(aux.values())
        except Exception:
            return None
        held = y.untyped_storage().data_ptr()
        others = outside if programs.copies else operands
        if any(held == x.untyped_storage().data_ptr() for x in others):
            y = y.clone()
    figures = stationarity, feasibility, licq, settled
    shown = LateCertificate(partial(_certificate, programs, lead, figures, solution))
    layer.show(shown)
    if len(lead) != 1:
        # Not as a view, on which a function of its own lets nobody write; nor in memory that the node may
        # write on in its next call, where no version would tell.
        y = y.reshape(lead + y.shape[1:]).clone()
    if not programs.derives:
        return y
    everything = [*xs, *outside]
    tracked = [everything[k] for k in programs.tracked]
    kept = None if programs.own is None else NodeState(node)
    held_then = [] if programs.copies else [Held(x) for x in operands]
    state = _State(programs, layer, xs, operands, held_then, shown, tuple(aux), kept, number)
    found: Tensor = _Short.apply(state, [y], rest, *tracked)
    return found


def _certificate(
    programs: _Programs,
    lead: torch.Size,
    figures: tuple[Tensor, Tensor, Tensor, Tensor],
    solution: Solution,
    residual: Tensor | None,
) -> Certificate:
    """That of a short call, each figure in memory of its own."""
    stationarity, feasibility, licq, settled = figures
    certificate = Certificate(
        stationarity,
        feasibility,
        torch.as_tensor(solution.status).clone(),
        torch.as_tensor(solution.iterations).clone(),
        programs.tolerance,
        solution.solver,
        solution.uniqueness,
        adjoint_residual=residual,
        licq=licq,
        settled=settled.clone(),
        form=programs.form,
    )
    return certificate if len(lead) == 1 else certificate.reshaped(lead)


def _solution(
    programs: _Programs, node: DeclarativeNode, inputs: list[Tensor]
) -> tuple[Solution, list[Tensor] | None]:
    """y, and the tensors from outside where they had to be looked for."""
    newton = programs.newton
    if newton is None and programs.own_solve:
        returned = node.solve(*inputs)
        if type(returned) is Tensor and len(returned) == len(inputs[0]):
            return Solution(returned.detach(), programs.unknown, programs.untold), None
        # Not to be asked twice
        if type(returned) is Solution and type(returned.y) is Tensor:
            return replace(returned, y=returned.y.detach()).batched(len(inputs[0])), None
        raise NotAProgramError("its `solve` returns something else")
    problem = Problem(node, inputs, len(inputs[0]))
    start = None if newton is None else newton.start(problem)
    if newton is not None and start is not None:
        outside = _outside(programs, node, inputs, start)
        solution = newton.solve(start, inputs + [_kept(x, programs.copies) for x in outside])
        if solution is not None:
            # Nothing of the node's own was called since.
            return solution, outside
    problem, solution = solve(problem)
    if problem.structure is not None:
        raise NotAProgramError("y has several parts")
    return solution, None


def _kept(x: Tensor, copies: bool) -> Tensor:
    """A tensor as programs take it, without a graph."""
    return x.clone(memory_format=_CONTIGUOUS) if copies else x.detach().contiguous()


def _swapped(layer: DeclarativeLayer, outside: Sequence[Tensor]) -> bool:
    """Whether a tensor stands in for a parameter, as in torch.func.functional_call: it will be gone from the
    node when a second derivative is asked for, for which the eager way is prepared."""
    others = [x for x in outside if x.requires_grad and type(x) is not torch.nn.Parameter]
    return bool(others) and any(x is p for p in layer.parameters() for x in others)


def _ended_well(programs: _Programs, solution: Solution) -> bool:
    unique = solution.uniqueness
    if unique is not None and not _all(unique, torch.finfo(unique.dtype).eps ** 0.5, operator.ge):
        return False
    if solution.status is programs.unknown:
        return True
    return _all(torch.as_tensor(solution.status), Status.NON_FINITE, operator.lt)


def _all(values: Tensor, limit: float, compared: Callable[[Any, Any], Any]) -> bool:
    """Whether all of them stand so to the limit."""
    if values.numel() == 1:  # a call in C, in place of three operations
        return bool(compared(values.item(), limit))
    return bool(compared(values, limit).all())


@dataclass
class _State:
    """What a short call keeps for its way back.

    Attributes:
        operands: as the program takes them.
        held: what they held then, where they are no copies.
        aux: names of what the solver has left, for the node's own adjoint; and the node as it was.
        number: of the call, see `Comparisons.begin`.
    """

    programs: _Programs
    layer: DeclarativeLayer
    xs: Sequence[Tensor]
    operands: list[Tensor]
    held: list[Held]
    shown: LateCertificate
    aux: tuple[str, ...]
    node: NodeState | None
    number: int

    @property
    def certificate(self) -> Certificate:
        """That of the call."""
        return self.shown.certificate()


class _Short(torch.autograd.Function):
    """y of a short call: it in a list, as it is no input; what the figures have left for the way back; and
    what wants a gradient."""

    @staticmethod
    def forward(
        ctx: Any, state: _State, y: list[Tensor], rest: Sequence[Tensor], *tracked: Tensor
    ) -> Tensor:
        ctx.state = state
        ctx.save_for_backward(*tracked, y[0], *rest)
        return y[0]

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        state: _State = ctx.state
        programs, count = state.programs, len(state.programs.tracked)
        saved = ctx.saved_tensors
        tracked, y, rest = saved[:count], saved[count].detach(), saved[count + 1 :]
        for held, x in zip(state.held, state.operands, strict=False):
            if held.differs(Held(x)):
                raise InputError(
                    f"{type(state.layer.node).__name__}: what it was solved with was changed in place after "
                    "the layer was called, so that there is no way back through it: change a copy, or "
                    "change it after backward()"
                )
        if torch.is_grad_enabled() or type(v) is not Tensor or not _plain_on_the_way_back(v):
            return (None, None, None, *_eagerly(state, y, tracked, v))
        flat = y.ndim == len(programs.y_shape)
        point = y if flat else y.reshape(programs.y_shape)
        right = (v if flat else v.reshape(programs.y_shape)).contiguous()
        try:
            if programs.own is not None:
                aux = dict(zip(state.aux, rest, strict=True))
                sound, residual, gradients = _own_way_back(state, point, right, aux)
            else:
                assert programs.back is not None
                clear, residual, *gradients = programs.back(right, point, *rest, *state.operands)
                sound = bool(clear.item())
        except Exception:  # whatever a system with no solution throws: the eager way knows it
            sound = False
        if not sound:
            return (None, None, None, *_eagerly(state, y, tracked, v))
        lead = y.shape[: y.ndim - len(programs.y_shape) + 1]
        state.shown.solved(residual if residual is None or flat else residual.reshape(lead))
        if flat:
            return (None, None, None, *gradients)
        return (
            None,
            None,
            None,
            *(g.reshape(x.shape) for g, x in zip(gradients, tracked, strict=True)),
        )


def _own_way_back(
    state: _State, y: Tensor, v: Tensor, aux: Mapping[str, Tensor]
) -> tuple[bool, Tensor | None, list[Tensor]]:
    """The node's own adjoint, of the node as it was: whether it passes, its residual, and the gradients."""
    assert state.node is not None and state.programs.own is not None
    node = state.node.node() if state.node.changed() else state.layer.node
    count = len(state.xs)
    problem = Problem(node, state.operands[:count], len(y))
    with torch.no_grad():
        outside = _outside(state.programs, node, problem.inputs, y)
    if not all(map(_same_values, outside, state.operands[count:])):
        raise _ChangedError
    if _own_differs(state, problem, y, aux):
        return False, None, []
    # An adjoint may work in the memory of v, or give back what it was given.
    gradients, residual = state.programs.own.adjoint(
        problem, y, v.clone(), aux, state.programs.tracked
    )
    passes = residual is None or bool((residual <= state.certificate.tolerance).all())
    gradients = unaliased(gradients, [*state.operands, y, *aux.values()])
    # What autograd accumulates is written on by others: a tensor that repeats itself cannot be.
    return passes, residual, [g.contiguous() for g in gradients]


def _own_differs(state: _State, problem: Problem, y: Tensor, aux: Mapping[str, Tensor]) -> bool:
    """Whether the node's own adjoint, after another call of the layer, is not that of this one any more.

    In calls where that is due. Made anew, the eager way, the call is the last one again.
    """
    comparisons, programs = state.layer.comparisons, state.programs
    if comparisons.begun == state.number:
        return False
    shapes = [x.shape for x in problem.operands]
    signature = (programs.form, y.shape, y.dtype, programs.tracked, True, *shapes)
    if not comparisons.due(signature):
        return False

    def adjoint(v: Tensor) -> tuple[list[Tensor], Tensor | None]:
        assert programs.own is not None
        kept = {name: value.clone() for name, value in aux.items()}
        return programs.own.adjoint(problem, y, v, kept, programs.tracked)

    certificate = state.certificate
    backward_error = torch.maximum(certificate.stationarity, certificate.feasibility).reshape(-1)
    found = difference(problem, y, adjoint, programs.tracked, backward_error)
    if found is None or bool((found <= certificate.tolerance).all()):
        return False
    comparisons.again(signature)
    return True


def _same_values(x: Tensor, operand: Tensor) -> bool:
    return torch.equal(x.detach().reshape(operand.shape), operand)


def _plain_on_the_way_back(v: Tensor) -> bool:
    return not under_transform() and not torch._C._functorch.is_legacy_batchedtensor(v)


def _eagerly(state: _State, y: Tensor, tracked: Sequence[Tensor], v: Tensor) -> list[Tensor | None]:
    """The gradients of the same call made anew, the eager way."""
    layer, programs = state.layer, state.programs
    at = dict(zip(programs.tracked, tracked, strict=True))
    xs = [at.get(k, x) for k, x in enumerate(state.xs)]
    inputs, point = state.operands[: len(xs)], y.detach().reshape(programs.y_shape)
    same = programs.manifold == _manifold(layer.node)
    try:
        with torch.no_grad():
            outside = _outside(programs, layer.node, inputs, point)
    except _ChangedError:
        same = False
    # What does not lie in memory as a program has it was copied: a change of it does not show there.
    if not same or not all(map(_same_values, [*xs, *outside], state.operands)):
        raise InputError(
            f"{type(layer.node).__name__}: its functions, or what they use, are not what they were when the "
            "layer was called. They were changed before backward(), so that the gradient would be another "
            "problem's: call backward() first, or pass what changes to the layer as an input"
        )
    shown, graph = layer.shown, torch.is_grad_enabled()
    # A solver that starts there ends at the same solution where there are several.
    start = y.detach() if type(layer.node).solve is DeclarativeNode.solve else None
    with torch.enable_grad():
        found_y = layer.eager(xs, start)
        size = torch.linalg.vector_norm
        if not bool(size(found_y.detach() - y.detach()) <= _SAME * size(y.detach())):
            raise InputError(
                f"{type(layer.node).__name__}: solved again, for a derivative of a derivative or for want of "
                "accuracy, it has another solution. A `solve` is to give the same y for the same inputs"
            )
        found = torch.autograd.grad(found_y, tracked, v, create_graph=graph, allow_unused=True)
    if shown is not state.shown:
        layer.show(shown)
    return list(found)
