"""The neural feature matrix WᵀW of a layer, and its correlation with the layer's AGOP M: the neural
feature ansatz (NFA).

The paper writes the ansatz with M itself and the cosine of the entries (eq. 2), and measures it with
M^{1/2} and the Pearson correlation, each matrix less the mean of its entries (appendix D). The measured one
is the default here. Without centring two p.s.d. matrices are never at less than 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddnkit import InputError

from .agop_of_modules import Output, module_agops
from .layers import Inputs, Layer, layer_matrix, matrix_layers, named_layers
from .matrix_root import matrix_sqrt


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
        module: the network, as for `module_agop`.
        inputs: as for `module_agop`.
        layers: `Linear` and `Conv2d` ones; by default every one, convolutions in groups left out.
        centred: False for the cosine of equation 2.
        root: False correlates with M instead of M^{1/2}, as equation 2 does.
        output: as for `module_agop`.
        chunk: as for `module_agop`.
        memory: as for `module_agop`.

    Returns:
        ρ ``()`` of each layer by its dotted name.

    Raises:
        ddnkit.InputError: as for `module_agop` and `nfm`.
    """
    watched = named_layers(module, matrix_layers(module) if layers is None else layers)
    features = {name: nfm(layer) for name, layer in watched.items()}
    agops = module_agops(module, inputs, list(watched), output=output, chunk=chunk, memory=memory)
    return {
        name: nfa_correlation(features[name], matrix_sqrt(M).root if root else M, centred=centred)
        for name, M in agops.items()
    }
