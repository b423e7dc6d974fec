"""The average gradient outer product (AGOP) of a network by a layer's input, and the neural feature ansatz.

    M = (1/N) Σ_i Σ_c (∂f_c/∂h_i)(∂f_c/∂h_i)ᵀ        (eq. 1, 2; f the network's outputs, h_i a layer's input)

Equation numbers are those of *Average gradient outer product as a mechanism for deep neural collapse*
(NeurIPS 2024).

Which gradients. h_i varies at this layer alone: what else the network does with the same tensor, as in a
residual connection, does not contribute to ∂f/∂h_i. A layer that multiplies by a matrix W does so at S ≥ 1
vectors u_is of its input, z_is = W u_is + b: the patches of a convolution, the tokens of a sequence, the
uses of a layer that is called several times. Each is a variable of its own, and

    M = (1/N) Σ_i Σ_s Σ_c (∂f_c/∂u_is)(∂f_c/∂u_is)ᵀ,    ∂f_c/∂u_is = Wᵀ δ_isc,    δ_isc = ∂f_c/∂z_is

has the size of WᵀW, in·kh·kw for a convolution, entries of padding included. For one vector a sample it is
the M above. Hence M = WᵀDW with the second moment D = (1/N) Σ δδᵀ of the gradients at the layer's *output*,
out×out: cheaper than M where out < in·kh·kw, and no patch has to be cut out. It also shows what M and WᵀW
have in common whatever the network does afterwards: the row space of M is within that of WᵀW, and D = I
makes them equal, as at a last layer.

How. In evaluation mode a sample's outputs depend on that sample alone, so that the derivative of Σ_i f_c(x_i)
by the batch of h holds every sample's ∂f_c/∂h_i: C backward passes through one graph serve all layers. vmap
over jacrev makes as many passes, but holds the gradients of all outputs, C times the memory, and has no rule
for some operations. Parameters are detached, so that the graph begins at the first layer that is watched.

Neural feature ansatz (NFA). It says that the neural feature matrix WᵀW of a layer is in proportion to M. The
paper writes it with M itself and the cosine of the entries (eq. 2), and measures it with M^{1/2} and the
Pearson correlation, each matrix less the mean of its entries (appendix D). The measured one is the default
here. Without centring, the cosine of two p.s.d. matrices is never negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge, saved_tensors_hooks
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from ddnkit import InputError

from .blocks import allowed_memory, row_blocks
from .factorisations import matrix_sqrt
from .layers import (
    Inputs,
    Layer,
    arguments,
    chunks,
    evaluation_mode,
    find_layer,
    find_layers,
    has_matrix,
    layer_matrix,
    matrix_layers,
)

#: Takes what the network returns to f ``(B, …)``.
Output: TypeAlias = Callable[..., Tensor]

#: Samples of the first pass, which shows how much memory a sample takes and whether the network mixes them:
#: more than two, which batch statistics would normalise to ±1 whatever they are.
_PROBED = 4


def module_agop(
    module: nn.Module,
    inputs: Inputs,
    layer: Layer = None,
    *,
    output: Output | None = None,
    chunk: int | None = None,
    memory: int | None = None,
) -> Tensor:
    """M = (1/N) Σ_i Σ_c (∂f_c/∂h_i)(∂f_c/∂h_i)ᵀ, h_i the input of one layer (eq. 2).

    The network runs in evaluation mode; afterwards each of its modules is set back to its own mode.

    Args:
        module: the network f, a batch of samples to ``(B, …)``; all but the first dimension are outputs.
        inputs: ``(N, …)``, or a tuple of them where the network takes several arguments.
        layer: its dotted name or the module itself; None for the network's own (first) argument. It is
            called with the batch first, except for a `Linear` or `Conv2d`.
        output: from the network's result to f; by default f is the result itself.
        chunk: samples that pass through the network at a time; by default what ``memory`` allows.
        memory: bytes that autograd may keep during a pass; by default half of the device's free memory.

    Returns:
        ``(p, p)``, float64: of the flattened input of a sample; of a `Linear` ``(in, in)`` and of a
        `Conv2d` ``(in·kh·kw, in·kh·kw)``, summed over all positions and uses. Products of gradients are
        in their own precision (float32 at least), sums of products in float64.

    Raises:
        ddnkit.InputError: there is no such layer or no sample, f does not depend on the layer, f mixes the
            samples of a batch, or M is not finite.
    """
    name, _ = find_layer(module, layer)
    return module_agops(module, inputs, [layer], output=output, chunk=chunk, memory=memory)[name]


def module_agops(
    module: nn.Module,
    inputs: Inputs,
    layers: Sequence[Layer] | None = None,
    *,
    output: Output | None = None,
    chunk: int | None = None,
    memory: int | None = None,
) -> dict[str, Tensor]:
    """`module_agop` of several layers, from the same forward and backward passes.

    Args:
        layers: by default every `Linear`, and every `Conv2d` that is not in groups.
        module, inputs, output, chunk, memory: as for `module_agop`.

    Returns:
        M of each layer by its dotted name, "" for the network itself.

    Raises:
        ddnkit.InputError: as for `module_agop`.
    """
    given = arguments(inputs)
    samples = len(given[0])
    watched = find_layers(module, matrix_layers(module) if layers is None else layers)
    passes = _Passes(module, watched, output)
    with evaluation_mode(module), torch.enable_grad():
        kept = passes.probe(tuple(argument[:_PROBED] for argument in given))
        if chunk is None:
            allowed = allowed_memory(memory, given[0].device)
            blocks = row_blocks(samples, max(1, kept), allowed, "a pass through the network")
        else:
            blocks = chunks(samples, chunk)
        for block in blocks:
            passes.add(tuple(argument[block] for argument in given))
    return {name: _agop(name, layer, passes.moments, samples) for name, layer in watched.items()}


class _Passes:
    """Forward and backward passes of one network, and the sums of gradients' outer products so far."""

    def __init__(
        self, network: nn.Module, layers: dict[str, nn.Module], output: Output | None
    ) -> None:
        self.network = network
        self.layers = layers
        self.output = output
        self.parameters = {name: value.detach() for name, value in network.named_parameters()}
        self.moments: dict[str, Tensor] = {}

    def add(self, given: tuple[Tensor, ...]) -> None:
        """Add Σ_i Σ_s Σ_c δδᵀ of these samples, class by class."""
        with _gradient_edges(self.layers) as edges:
            totals = self._values(given).sum(dim=0)
        uses = [(name, edge) for name, found in edges.items() for edge in found]
        if not uses or not totals.requires_grad:
            return
        for c in range(len(totals)):
            gradients = torch.autograd.grad(
                totals[c],
                [edge for _, edge in uses],
                retain_graph=c + 1 < len(totals),
                allow_unused=True,
            )
            for (name, _), gradient in zip(uses, gradients, strict=True):
                if gradient is not None:
                    self._add_products(name, gradient, len(given[0]))

    def probe(self, few: tuple[Tensor, ...]) -> int:
        """Bytes that autograd keeps for each sample; raises for a network that mixes samples.

        Raises:
            ddnkit.InputError: the outputs of the first of these samples depend on the others.
        """
        first = few[0]
        if first.is_floating_point():
            first.requires_grad_()
        parameters = [*self.network.parameters(), *self.network.buffers()]
        own = {tensor.untyped_storage().data_ptr() for tensor in parameters}
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            # An operation that keeps its own result would hold itself alive through it.
            return tensor.detach()

        with saved_tensors_hooks(keep, lambda tensor: tensor), _gradient_edges(self.layers):
            values = self._values((first.clone(), *few[1:]))
        if first.requires_grad and values.requires_grad:
            (gradient,) = torch.autograd.grad(values[0].sum(), first, allow_unused=True)
            if gradient is not None and bool((gradient[1:].isfinite() & (gradient[1:] != 0)).any()):
                raise InputError(
                    "the network mixes the samples of a batch, so that no sample has a gradient of "
                    "its own: is there a batch norm with track_running_stats=False?"
                )
        return sum(size for place, size in kept.items() if place not in own) // len(first)

    def _values(self, given: tuple[Tensor, ...]) -> Tensor:
        """f ``(B, C)``."""
        result = functional_call(self.network, self.parameters, given)
        values = result if self.output is None else self.output(result)
        if not isinstance(values, Tensor) or values.ndim == 0 or len(values) != len(given[0]):
            what = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"the network's output is {what} for {len(given[0])} samples: it needs one row a "
                "sample; say with output= what to take of it"
            )
        return values.reshape(len(values), -1)

    def _add_products(self, name: str, gradient: Tensor, samples: int) -> None:
        layer = self.layers[name]
        if not has_matrix(layer) and (gradient.ndim == 0 or len(gradient) != samples):
            raise InputError(
                f"the input of layer '{name}' is {tuple(gradient.shape)} for {samples} samples: "
                "it needs one row a sample"
            )
        rows = _rows(layer, gradient)
        product = rows.T @ rows
        if name in self.moments:
            self.moments[name] += product
        else:
            self.moments[name] = product.to(torch.float64)


def _rows(layer: nn.Module, gradient: Tensor) -> Tensor:
    """The gradients as rows: one for each vector that W is applied to, or one a sample."""
    if gradient.dtype in (torch.float16, torch.bfloat16):
        gradient = gradient.float()
    if not has_matrix(layer):
        return gradient.reshape(len(gradient), -1)
    if isinstance(layer, nn.Conv2d):
        gradient = gradient.movedim(-3, -1)
    return gradient.reshape(-1, gradient.shape[-1])


def _agop(name: str, layer: nn.Module, moments: dict[str, Tensor], samples: int) -> Tensor:
    """M of one layer from its sum of products."""
    if name not in moments:
        raise InputError(
            f"layer '{name}' takes no part in the output. Likely causes: (a) it is not called, or not "
            "as a module; (b) it is called under torch.no_grad(), or its result is detached; (c) its "
            "input is not a tensor of real numbers"
        )
    M = moments[name] / samples
    if has_matrix(layer):
        W = layer_matrix(layer)
        M = W.T @ M @ W
    if not bool(M.isfinite().all()):
        raise InputError(
            f"the AGOP of layer '{name}' is not finite. Likely causes: (a) a sample that is not finite; "
            "(b) a weight that is not; (c) an output without a derivative at some sample"
        )
    return M


@contextmanager
def _gradient_edges(layers: dict[str, nn.Module]) -> Iterator[dict[str, list[GradientEdge]]]:
    """The graph's edges at which the gradients of each layer are read, one for each use of it."""
    edges: dict[str, list[GradientEdge]] = {name: [] for name in layers}
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(_watch(layer, edges[name]))
        yield edges


def _watch(layer: nn.Module, edges: list[GradientEdge]) -> RemovableHandle:
    def watch(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return tensor
        leaf = tensor if tensor.requires_grad else tensor.detach().requires_grad_()
        # A copy is read by this use alone, and its edge is that of the value before an operation in
        # place, such as ReLU(inplace=True), changes it.
        copy = leaf.clone()
        if copy.requires_grad:
            edges.append(get_gradient_edge(copy))
        return copy

    if has_matrix(layer):
        return layer.register_forward_hook(lambda _, given, result: watch(result), prepend=True)
    return layer.register_forward_pre_hook(
        lambda _, given: (watch(given[0]), *given[1:]) if given else None
    )


def nfm(layer: nn.Module) -> Tensor:
    """WᵀW, the neural feature matrix.

    Args:
        layer: a `Linear`, W ``(out, in)``, or a `Conv2d` in one group, W ``(out, in·kh·kw)``.

    Returns:
        ``(in, in)`` or ``(in·kh·kw, in·kh·kw)``, float64.

    Raises:
        ddnkit.InputError: the layer has no single matrix.
    """
    W = layer_matrix(layer)
    return W.T @ W


def nfa_correlation(first: Tensor, second: Tensor, *, centred: bool = True) -> Tensor:
    """⟨A, B⟩/(‖A‖‖B‖) over the entries of two matrices, each less the mean of its entries.

    Args:
        first: A, such as `nfm` of a layer.
        second: B of the same shape, such as M^{1/2} of the layer's input.
        centred: False leaves the means in, for the cosine of equation 2.

    Returns:
        ``()`` in −1…1, float64; NaN where A or B is zero, or, centred, has equal entries.

    Raises:
        ddnkit.InputError: the shapes differ, or an entry is not finite.
    """
    if first.shape != second.shape:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise InputError(f"a correlation is of two matrices of one shape, not {shapes}")
    a, b = (_direction(matrix, centred) for matrix in (first, second))
    return (a * b).sum()


def _direction(matrix: Tensor, centred: bool) -> Tensor:
    """The entries as a unit vector, less their mean; NaN where nothing but rounding would be left."""
    entries = matrix.to(torch.float64)
    if not bool(entries.isfinite().all()):
        raise InputError("a correlation needs finite entries: one of the matrices has others")
    size = entries.norm()
    if centred:
        entries = entries - entries.mean()
    norm = entries.norm()
    rounding = entries.numel() ** 0.5 * torch.finfo(torch.float64).eps * size
    return torch.where(norm > rounding, entries / norm, torch.nan)


def nfa_correlations(
    module: nn.Module,
    inputs: Inputs,
    layers: Sequence[Layer] | None = None,
    *,
    centred: bool = True,
    root: bool = True,
    output: Output | None = None,
    chunk: int | None = None,
    memory: int | None = None,
) -> dict[str, Tensor]:
    """ρ(WᵀW, M^{1/2}) of each layer of a network, M the AGOP of its input (Ansatz 3.1, appendix D).

    Args:
        layers: `Linear` and `Conv2d` ones; by default every one, convolutions in groups left out.
        centred: False for the cosine of equation 2.
        root: False correlates with M instead of M^{1/2}, as equation 2 does.
        module, inputs, output, chunk, memory: as for `module_agop`.

    Returns:
        ρ ``()`` of each layer by its dotted name.

    Raises:
        ddnkit.InputError: as for `module_agop` and `nfm`.
    """
    watched = find_layers(module, matrix_layers(module) if layers is None else layers)
    features = {name: nfm(layer) for name, layer in watched.items()}
    agops = module_agops(module, inputs, list(watched), output=output, chunk=chunk, memory=memory)
    return {
        name: nfa_correlation(features[name], matrix_sqrt(M).root if root else M, centred=centred)
        for name, M in agops.items()
    }
