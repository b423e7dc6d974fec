"""DeclarativeLayer: solves a node for a batch and differentiates the solution.

What happens in a call: inputs are brought to one floating dtype and one batch dimension; the node is
solved without a graph; the certificate is measured and the policy acts. The result is an implicit
function of the inputs and of the tensors that the objective captures (`ddnkit.implicit`), which any
transform of torch may differentiate; the certificate then gains the adjoint's residual.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .backward.form import BackwardForm, as_form
from .backward.unrolled import Unrolled
from .batch_solve import finite_inputs, solve, solve_apart, with_stand_ins
from .batched_inputs import batched_inputs
from .captured import Captured, attributes, is_tracked, is_wrapped, running_statistics
from .certificate import Certificate, LateCertificate, validated_certify, validated_policy
from .errors import InputError
from .implicit.call import Call
from .implicit.function import solution_of
from .implicit.own_adjoint import Comparisons
from .implicit.solution_equation import MeasuredEquation, MultiplierEquation, SolutionEquation
from .joined_certificate import Part
from .members import read, refuse_unnamed_batch, sample_dims, validated_tolerance
from .node import DeclarativeNode
from .problem import Problem, flat
from .programs.short_calls import ShortCalls
from .recording import as_one_step
from .solution import Multipliers, Solution
from .sparse import as_dense
from .structure import Structure
from .transforms import under_transform


class DeclarativeLayer(nn.Module):
    """y = argmin f(x₁, …, xₙ, y) subject to h = 0 as a differentiable layer.

    Args:
        node: the problem. Its parameters and modules are the layer's.
        backward: a backward form or its name: "dense", "embedded_field", "krylov", "closed_form",
            "fixed_point", "unrolled", or "auto", which picks by structure and size.
        batch_dims: how many leading dimensions of the tensor inputs are batch, the same for all;
            None takes the node's `input_dims` if it has them (leading dimensions beyond them are
            batch and broadcast against each other), else 0.
        policy: what to do with items whose certificate fails: "raise", "warn", "nan" (they and
            their gradients become NaN) or "mask" (their gradients become zero, and y where it is not
            finite); the rest of the batch is untouched. None: the node's. On a GPU the certificate
            waits for the device at each call under "raise" and "warn" alone.
        tolerance: largest relative stationarity, infeasibility and adjoint residual that pass.
        certify: "fast", or "full" to measure curvature, condition and a bound on the gradient's error
            in every call as well; it costs about three gradients. "off" measures nothing; a wrong
            solution or gradient is then reported only if the solver's status says so.
        compile: compile the programs of short calls (docs/nodes.md) with torch's compiler, at the second
            call of a signature, which takes seconds. Without a compiler a warning says so.

    Inputs that are not tensors are passed on to the node; so are integer tensors, batched. Sparse tensors are
    passed on as dense ones, and their gradients are sparse, in the same pattern.
    float16 and bfloat16 inputs are solved in float32, inside autocast too, and y is float32 then.
    Differentiable in every direction and to every order: backward, forward mode, torch.func, vmap.
    Under torch.compile the layer runs uncompiled, outside the compiled graph.

    Example:
        >>> layer = ddnkit.DeclarativeLayer(node)
        >>> y = layer(x)                  # x: (8, 3)  ->  y: (8, 3) for input_dims = (1,)
        >>> y = layer(x, start=y)         # warm start, for nodes with an iterative solver
        >>> layer.certificate             # figures of this call, per item

    Source: Gould, Hartley and Campbell, *Deep Declarative Networks*, Proposition 4.5.
    """

    def __init__(
        self,
        node: DeclarativeNode,
        backward: str | BackwardForm = "auto",
        *,
        batch_dims: int | None = None,
        policy: str | None = None,
        tolerance: float | None = None,
        certify: str = "fast",
        compile: bool = False,
    ):
        super().__init__()
        if not isinstance(node, DeclarativeNode):
            raise InputError(f"a layer takes a ddnkit.DeclarativeNode, not {node!r}")
        self._takes = read(node)
        self.node = node
        self.form = as_form(backward, Problem(node, (), 0))
        self.batch_dims = _validated_batch_dims(batch_dims)
        self.policy = validated_policy(node.policy if policy is None else policy)
        self.tolerance = validated_tolerance(tolerance)
        self.certify = validated_certify(certify)
        self.show(None)
        #: Whether derivatives are held against differences where an operation hides what it is given.
        self.looks_for_hidden = True
        self._sample_dims: tuple[int | None, ...] | None = None
        #: When the node's own adjoint is held against a known answer.
        self.comparisons = Comparisons()
        #: Calls that are made by programs.
        self.short = ShortCalls(compiled=compile)
        if not isinstance(node, nn.Module):
            for name, value in vars(node).items():
                if isinstance(value, nn.Parameter):
                    self.register_parameter(f"node_{name}", value)
                elif isinstance(value, nn.Module):
                    self.add_module(f"node_{name}", value)

    def forward(self, *xs: Any, start: Any = None, return_multipliers: bool = False) -> Any:
        """Solve for every item; returns y with the batch dimensions of the inputs in front.

        Args:
            start: where an iterative solver starts, shaped like y; the node's own point if None.
            return_multipliers: return y and its `ddnkit.Multipliers`, differentiable like y.
        """
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break(
                msg="a DeclarativeLayer solves, measures and differentiates by itself and runs outside "
                "the compiled graph: use torch.compile without fullgraph=True, or call the layer "
                "outside the compiled function"
            )
            return _outside_graph()(self, xs, start, return_multipliers)
        if any(isinstance(x, Tensor) and x.layout is not torch.strided for x in xs):
            xs = tuple(as_dense(x) if isinstance(x, Tensor) else x for x in xs)
        known = None
        if self.node._direct_call is not None:
            found = self.node._direct_call(self, xs, start, return_multipliers)
            if isinstance(found, Solution):
                known = found
            elif found is not None:
                return found
        if start is None and not return_multipliers:
            y = self.short.call(self, xs)
            if y is not None:
                return y
        return self._call(xs, start, return_multipliers, known)

    def eager(self, xs: Sequence[Any], start: Any = None) -> Any:
        """What a call gives, by the node's functions as they stand, whatever programs there are."""
        return self._call(xs, start)

    def _call(
        self,
        xs: Sequence[Any],
        start: Any,
        multipliers: bool = False,
        known: Solution | None = None,
        part: Part | None = None,
    ) -> Any:
        kept = running_statistics(self.node)
        try:
            return as_one_step(
                "a layer",
                (xs, start),
                lambda: self._solve_batch(xs, start, multipliers, known, part),
            )
        except InputError:
            # A call that is refused has not happened.
            for buffer, value in kept:
                buffer.copy_(value)
            raise

    def _solve_batch(
        self,
        xs: Sequence[Any],
        start: Any,
        multipliers: bool = False,
        known: Solution | None = None,
        part: Part | None = None,
    ) -> Any:
        _refuse_tracing(xs)
        if torch.is_inference_mode_enabled():
            # Certificates and solvers differentiate, which inference mode would make zero silently.
            with torch.inference_mode(False), torch.no_grad():
                return self._solve_batch(xs, start, multipliers, known, part)
        self._takes.refuse(self.node, len(xs))
        if self.batch_dims is None and self.node.input_dims is None:
            if self._sample_dims is None:
                self._sample_dims = sample_dims(self.node)
                if self._sample_dims is None and not under_transform():
                    # None there is, or none that works. Inside a vmap nothing could be drawn.
                    self._sample_dims = (None,) * len(xs)
            refuse_unnamed_batch(self.node, xs, self._sample_dims)
        inputs, batch_shape = batched_inputs(self.node, xs, self.batch_dims)
        problem = Problem(self.node, inputs, batch_shape.numel())
        seen, values = self._captured_tensors(problem)
        if start is not None:
            start, structure = self._start(start, batch_shape)
            problem = problem.with_structure(structure)
        call = Call(
            self.form,
            policy=self.policy,
            tolerance=self.tolerance,
            certify=self.certify,
            batch_shape=batch_shape,
            start=start,
            show=self._show,
            comparisons=self.comparisons,
            first=self.shown is None,
            wanted=[self.looks_for_hidden and is_tracked(x) for x in problem.operands],
            moving=[is_tracked(x) for x in problem.operands],
            known=known,
            part=part,
        )
        if isinstance(self.form, Unrolled):
            if self.node.selection is not None:
                raise InputError(
                    f"the steps of a `solve` select no solution, as selection = {self.node.selection!r} of "
                    f"{type(self.node).__name__} says: use backward='auto'"
                )
            if multipliers:
                raise InputError("the steps of a `solve` give no multipliers: use backward='auto'")
            outputs: tuple[Tensor, ...] = (self._unroll(call, problem, seen, values),)
        else:
            problem = problem.with_captured(seen, values)
            outputs = self._solved(call, problem)
        if call.late_operands:
            extra = call.late_operands
            problem = problem.with_captured([*seen, *extra], [*values, *(c.tensor for c in extra)])
            outputs = self._solved(call, problem)
        of_constraints = self._multipliers(call, problem, outputs) if multipliers else None
        y = outputs[0]
        y = y.reshape(batch_shape + y.shape[1:])
        y = y if call.structure is None else call.structure.split(y)
        return (y, of_constraints) if multipliers else y

    def _multipliers(self, call: Call, problem: Problem, outputs: Sequence[Tensor]) -> Multipliers:
        y, good = outputs[0], outputs[-1] if call.tells_good else None
        if not problem.batch_size:  # nothing tells how many constraints one problem has
            none, of_y = (
                y.new_zeros(*call.batch_shape, 0),
                y.reshape(*call.batch_shape, *y.shape[1:]),
            )
            ends = None if self.node.bounds is None else of_y
            return Multipliers(none, none, ends, ends)
        if good is None and self.policy == "nan":
            good = flat(y).isfinite().all(dim=1)
        problem, point = call.complete(problem, outputs), y
        if good is not None:
            # What a failed item computes could be NaN, which no zero takes back from a tensor that all share.
            problem, source = with_stand_ins(problem, ~good)
            point = y[source]
        (found,) = solution_of(MultiplierEquation(call, problem), *problem.operands, point)
        if self.policy == "mask" and problem.active_set is not None:
            # They depend on the inputs by themselves too, and not through y alone.
            clear = (problem.active_set.margin > 0).unsqueeze(-1)
            found = torch.where(clear, found, found.detach())
        if good is not None:
            fill = 0.0 if self.policy == "mask" else torch.nan
            found = found.detach() if call.nothing_derived else found
            found = torch.where(good.unsqueeze(-1), found, fill)
        found = found.reshape(*call.batch_shape, found.shape[-1])
        sizes = problem.inequality_sizes(y.detach())
        equality, inequality, *rest = found.split([found.shape[-1] - sum(sizes), *sizes], dim=-1)
        shape = (*call.batch_shape, *y.shape[1:])
        sides = problem.bound_sides(y.detach())
        of_bounds = [
            x.reshape(shape) if there else None for x, there in zip(rest, sides, strict=True)
        ]
        return Multipliers(equality, inequality, *of_bounds)

    @staticmethod
    def _solved(call: Call, problem: Problem) -> tuple[Tensor, ...]:
        operands = problem.operands
        return solution_of(SolutionEquation(call, problem), *operands)

    def _unroll(
        self, call: Call, problem: Problem, seen: Sequence[Captured], values: Sequence[Tensor]
    ) -> Tensor:
        whole, aside = problem, None
        if any(is_wrapped(x) for x in (*problem.operands, *values)):
            problem, solution = solve(problem, keep_graph=True)
        else:
            finite = finite_inputs(problem)
            problem, solution, aside = solve_apart(
                problem, None, finite, policy=self.policy, keep_graph=True
            )
            call.set_aside(aside, finite)
        y = solution.y
        graph = aside is None or not call.nothing_sound
        if graph and not is_tracked(y) and any(is_tracked(x) for x in (*problem.operands, *values)):
            raise InputError(
                f"{type(self.node).__name__}.solve keeps no graph (it leaves torch, detaches, or "
                "works in place), so that its steps cannot be differentiated; use backward='auto'"
            )
        call.structure = problem.structure
        problem = problem.with_captured(seen, values)
        (measured,) = solution_of(MeasuredEquation(call, problem), *problem.operands, y)
        if aside is None:
            return measured
        if self.policy == "mask":
            return torch.where(aside.reshape(-1, *[1] * (y.ndim - 1)), 0.0, measured)
        return _poison(measured, aside, whole, values)

    def _captured_tensors(self, problem: Problem) -> tuple[list[Captured], list[Tensor]]:
        """Tensors of the node that want a derivative, or that others stand for: as its functions see them,
        and their values."""
        inputs = {id(x) for x in problem.inputs if isinstance(x, Tensor)}
        seen: dict[int, Captured] = {}
        values: dict[int, Tensor] = {}
        for path, tensor in attributes(self.node):
            # torch.func.functional_call swaps the layer's parameters, not the node's attributes.
            current = self._parameters.get(f"node_{path}")
            value = tensor if current is None else current
            swapped = value is not tensor
            if not swapped and not is_tracked(value):
                continue
            if id(tensor) not in inputs and id(tensor) not in seen:
                seen[id(tensor)], values[id(tensor)] = Captured(tensor, path), value
        return list(seen.values()), list(values.values())

    def _start(self, start: Any, batch_shape: torch.Size) -> tuple[Tensor, Structure | None]:
        if type(self.node).solve is not DeclarativeNode.solve:
            raise InputError(
                f"{type(self.node).__name__} has a `solve` of its own, which takes no start; `start` is "
                "for nodes with a `solver`"
            )
        structure = Structure.of(start, "start")
        dims = len(batch_shape)
        point = start if structure is None else structure.join(start, dims)
        assert isinstance(point, Tensor)
        if point.shape[:dims] != batch_shape:
            raise InputError(
                f"{type(self.node).__name__}: start has shape {tuple(point.shape)}, but the batch of "
                f"the inputs is {tuple(batch_shape)}"
            )
        point = point.detach().reshape(batch_shape.numel(), *point.shape[dims:])
        return point, None if structure is None else structure.without_batch(dims)

    def _show(self, certificate: Certificate, instead_of: Certificate | None) -> None:
        # A layer used twice shows its last call; the way back of an earlier one must not replace it.
        if instead_of is None or self.certificate is instead_of:
            self.certificate = certificate

    @property
    def certificate(self) -> Certificate | None:
        """What the last call has shown; None before the first."""
        shown = self.shown
        return shown.certificate() if isinstance(shown, LateCertificate) else shown

    @certificate.setter
    def certificate(self, certificate: Certificate | None) -> None:
        self.show(certificate)

    @property
    def shown(self) -> Certificate | LateCertificate | None:
        """The certificate, or what it will be made of."""
        found: Certificate | LateCertificate | None = self.__dict__.get("_shown")
        return found

    def show(self, shown: Certificate | LateCertificate | None) -> None:
        """Have `certificate` be that of a call."""
        # Past what a module looks for in whatever is set on it.
        self.__dict__["_shown"] = shown

    def extra_repr(self) -> str:
        """Shows what the layer was made of."""
        form = self.form.name
        if self.certificate is not None and self.certificate.form not in ("", form):
            form = f"{form} ({self.certificate.form})"
        return f"{type(self.node).__name__}, backward={form}, policy={self.policy}"


def _validated_batch_dims(batch_dims: int | None) -> int | None:
    whole = isinstance(batch_dims, int) and not isinstance(batch_dims, bool)
    if batch_dims is None or (whole and batch_dims >= 0):
        return batch_dims
    raise InputError(f"batch_dims is a whole number from 0 on, or None, not {batch_dims!r}")


def _poison(y: Tensor, aside: Tensor, problem: Problem, shared: Sequence[Tensor]) -> Tensor:
    """y with NaN for the items set aside, and for what they depend on on the way back."""
    rows = aside.nonzero()[:, 0]
    total = y.new_zeros(len(rows))
    for x in problem.operands:
        if x.is_floating_point():
            total = total + x[rows].reshape(len(rows), -1).sum(dim=1)
    for x in shared:
        total = total + x.sum()
    nothing = (total * torch.nan).reshape(-1, *[1] * (y.ndim - 1)).expand(-1, *y.shape[1:])
    return y.index_put((rows,), nothing.to(y.dtype))


_OUTSIDE: dict[str, Any] = {}


def _outside_graph() -> Any:
    # Made on first use: it loads torch's compiler, which takes a second. No functools.cache: the
    # compiler, which traces this, warns of one.
    if "call" not in _OUTSIDE:
        _OUTSIDE["call"] = torch.compiler.disable(DeclarativeLayer._call)
    return _OUTSIDE["call"]


def _refuse_tracing(xs: Sequence[Any]) -> None:
    fake = any(type(x).__name__ in ("FakeTensor", "FunctionalTensor") for x in xs)
    # Not imported: where nothing has loaded it, nothing traces.
    tracer = sys.modules.get("torch.fx.experimental.proxy_tensor")
    if (
        fake
        or torch.jit.is_tracing()
        or (tracer is not None and tracer.get_proxy_mode() is not None)
    ):
        raise InputError(
            "a DeclarativeLayer cannot be traced or exported (torch.jit.trace, torch.export, make_fx, "
            "torch.func.linearize): what it computes depends on the values of its inputs. Export the "
            "rest of the network, use torch.func.jvp in place of linearize, and torch.compile for speed"
        )
