"""The columns of ``metrics.csv`` for the fully connected layers of a network; nothing here imports torch.

Layers are numbered from 1, in the order of the network.
"""

from __future__ import annotations

#: At most so many layers have columns: the paper's networks have five.
LAYERS = 5
#: Where DNC1 of a layer is measured: at its input, of SVᵀ times that, and after U and the non-linearity.
STAGES = ("input", "right", "output")


def dnc1_column(stage: str, layer: int) -> str:
    """The column of DNC1 of a layer at one of the `STAGES`."""
    return f"dnc1_{stage}_{layer}"


def nfa_column(layer: int) -> str:
    """The column of a layer's correlation of WᵀW with the root of its AGOP."""
    return f"nfa_{layer}"


#: All of them, layer by layer.
COLUMNS = (
    *(dnc1_column(stage, layer) for layer in range(1, LAYERS + 1) for stage in STAGES),
    *(nfa_column(layer) for layer in range(1, LAYERS + 1)),
)
