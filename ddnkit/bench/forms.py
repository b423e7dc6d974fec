"""The backward forms of one node against each other; and the bench of a name, which may be a node's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import registry
from ..backward.form import forms_of
from ..errors import InputError, nearest_choice
from ..layer import DeclarativeLayer
from .case import Case, Competitor, Phase
from .comparison import Comparison
from .contract import Bench

#: m×m matrices alive at once in a dense form's backward: Hessian, rows being stacked, its factors.
_DENSE_COPIES = 4


class Forms(Comparison):
    """Forward and backward of a registered node on its `bench_inputs`, in each form that does not unroll.

    The node has ``bench_inputs(self, *size)`` and ``bench_sizes``.
    """

    tolerance = 1e-3

    def __init__(self, node: str):
        self.name = node
        kind = registry.get("nodes", node)()
        if not hasattr(kind, "bench_inputs"):
            raise InputError(
                f"node '{node}' has no `bench_inputs(self, *size)` to draw inputs from"
            )
        self._node = kind
        self.sizes = _sizes_of(node, kind)
        self.size_names = tuple(f"n{i + 1}" for i in range(len(self.sizes[0])))

    def title(self, case: Case) -> str:
        """The node and the size of its y."""
        return f"{self.name}, y of {case}"

    def small(self, case: Case) -> Case:
        """Sizes of 16, 8, … at most: some nodes want them descending."""
        return Case(tuple(min(n, 16 >> i) for i, n in enumerate(case.size)), case.kind)

    def inputs(self, case: Case, dtype: torch.dtype) -> Mapping[str, Any]:
        """`bench_inputs`, and a gradient to pull back."""
        xs = self._node.bench_inputs(*case.size)
        made = {
            f"x{i}": x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x
            for i, x in enumerate(xs)
        }
        return {**made, "inputs": len(xs)}

    def competitors(self, case: Case, device: str) -> Sequence[Competitor]:
        """Every form that applies."""
        m = math.prod(case.size)
        return [
            Competitor(
                name,
                _prepare_form(self._node, name),
                needs=_DENSE_COPIES * 8.0 * m * m if form.dense else 0.0,
                extrapolates=True,
            )
            for name, form in forms_of(self._node).items()
            if not form.unrolls
        ]


def _sizes_of(name: str, node: Any) -> tuple[tuple[int, ...], ...]:
    """The node's ``bench_sizes``: the arguments of `bench_inputs` for each size, equally many."""
    given = getattr(node, "bench_sizes", None)
    rows = given if isinstance(given, tuple | list) else ()
    if all(isinstance(row, tuple | list) and row for row in rows):
        sizes = tuple(tuple(row) for row in rows)
        numbers = all(type(n) is int and n > 0 for row in sizes for n in row)
        if len({len(row) for row in sizes}) == 1 and numbers:
            return sizes
    raise InputError(
        f"node '{name}' has `bench_inputs`, but "
        + ("no `bench_sizes`" if given is None else f"its `bench_sizes` is {given!r:.200}")
        + "; expected the sizes that a bench takes by default, such as `bench_sizes = ((100,), "
        "(1000,))`, each a tuple of the arguments of `bench_inputs`"
    )


def _prepare_form(node: Any, form: str) -> Callable[[Mapping[str, Any]], Mapping[str, Phase]]:
    def prepare(inputs: Mapping[str, Any]) -> Mapping[str, Phase]:
        layer = DeclarativeLayer(node, form)
        xs = [inputs[f"x{i}"] for i in range(inputs["inputs"])]
        leaves = [x.detach().clone().requires_grad_() for x in xs if _is_real(x)]
        replaced = iter(leaves)
        arguments = [next(replaced) if _is_real(x) else x for x in xs]

        def forward(_: object) -> Tensor:
            y: Tensor = layer(*arguments)
            return y

        def backward(y: Tensor) -> dict[str, Tensor]:
            gradients = torch.autograd.grad(y, leaves, torch.ones_like(y), allow_unused=True)
            found = {f"gradient {i}": g for i, g in enumerate(gradients) if g is not None}
            return {"y": y, **found}

        return {"forward": forward, "backward": backward}

    return prepare


def _is_real(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def resolve(name: str) -> Bench:
    """The bench called ``name``; for a node with `bench_inputs`, its backward forms side by side.

    Raises:
        InputError: where there is none.
    """
    benches, nodes = registry.names("benches"), registry.names("nodes")
    if name in benches:
        bench: Bench = registry.make("benches", name)
        bench.name = name
        return bench
    if name not in nodes:
        choices = list(dict.fromkeys([*benches, *nodes]))
        raise InputError(f"no bench or node '{name}'.{nearest_choice(name, choices)}")
    return Forms(name)
