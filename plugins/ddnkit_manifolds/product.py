"""Products of manifolds: a y of several parts, each on a manifold of its own."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Generator, Tensor

from ddnkit import InputError, Manifold


class Product(Manifold):
    """A y of several parts, a tuple or dictionary, the first on the first manifold and so on.

    Args:
        manifolds: one for each part; `Euclidean` for a part that is free.

    Example, a rotation and a translation: ``manifold = Product(SpecialOrthogonal(), Euclidean())``, with an
    `initial_point` that returns ``(R, t)``.

    Raises:
        InputError: where y has another number of parts.
    """

    name = "product"
    event_dims = 1

    def __init__(self, *manifolds: Manifold):
        self.manifolds = manifolds

    @property
    def sample_shapes(self) -> Iterator[tuple[Any, ...]]:
        """Those of the parts, in all combinations."""
        if not self.manifolds:
            raise InputError(
                f"{self!r} has no parts; one with parts is checked as FILE.py:NAME, NAME = Product(...)"
            )
        return itertools.product(*(m.sample_shapes for m in self.manifolds))

    def of_parts(self, shapes: Sequence[Sequence[int]]) -> Manifold:
        """The product on the vector of the parts."""
        if len(shapes) != len(self.manifolds):
            raise InputError(
                f"{self!r} takes a y of {len(self.manifolds)} parts; it has {len(shapes)}"
            )
        return packed(self.manifolds, shapes)

    def constraint(self, y: Tensor) -> Tensor:
        """Of a y of several parts alone."""
        self._refuse_one()

    def project(self, y: Tensor) -> Tensor:
        """Of a y of several parts alone."""
        self._refuse_one()

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """Of a y of several parts alone."""
        self._refuse_one()

    def _refuse_one(self) -> NoReturn:
        raise InputError(f"{self!r} takes a y of {len(self.manifolds)} parts; it is one tensor")

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self.manifolds))})"


class Parts(Manifold):
    """A product on the vector (..., m) in which the parts are laid end to end; multipliers likewise."""

    name = "product"
    event_dims = 1

    def __init__(self, manifolds: Sequence[Manifold], shapes: tuple[tuple[int, ...], ...]):
        self.manifolds, self.shapes = tuple(manifolds), shapes
        self._sizes = [math.prod(shape) for shape in shapes]
        self._multiplier_shapes: list[tuple[int, ...]] = []

    def constraint(self, y: Tensor) -> Tensor:
        """Of each part, end to end."""
        return torch.cat([m.constraint(part) for m, part in self._each(y)], dim=-1)

    def constraint_jacobian(self, y: Tensor) -> Tensor:
        """Of each part, in blocks."""
        return self._blocks([m.constraint_jacobian(part) for m, part in self._each(y)])

    def vertical(self, y: Tensor) -> Tensor | None:
        """Of each part, in blocks."""
        found = [m.vertical(part) for m, part in self._each(y)]
        if all(w is None for w in found):
            return None
        return self._blocks(
            [
                y.new_zeros(*y.shape[:-1], 0, size) if w is None else w.flatten(y.ndim)
                for w, size in zip(found, self._sizes, strict=True)
            ]
        )

    def infeasibility(self, y: Tensor) -> Tensor:
        """The largest."""
        return torch.stack([m.infeasibility(part) for m, part in self._each(y)]).amax(dim=0)

    def project(self, y: Tensor) -> Tensor:
        """Of each part."""
        return self._parts("project", y)

    def multipliers(self, y: Tensor, gradient: Tensor) -> Tensor:
        """Of each part, end to end."""
        lead = y.ndim - 1
        found = [m.multipliers(a, b) for m, a, b in self._each(y, gradient)]
        if not self._multiplier_shapes:
            self._multiplier_shapes = [tuple(sigma.shape[lead:]) for sigma in found]
        return torch.cat([sigma.flatten(lead) for sigma in found], dim=-1)

    def normal(self, y: Tensor, multipliers: Tensor) -> Tensor:
        """Of each part."""
        return self._with_multipliers("normal", y, multipliers)

    def constraint_curvature(self, y: Tensor, multipliers: Tensor, direction: Tensor) -> Tensor:
        """Of each part."""
        return self._with_multipliers("constraint_curvature", y, multipliers, direction)

    def tangent(self, y: Tensor, vector: Tensor) -> Tensor:
        """Of each part."""
        return self._parts("tangent", y, vector)

    def retract(self, y: Tensor, tangent: Tensor) -> Tensor:
        """Of each part."""
        return self._parts("retract", y, tangent)

    def transport(self, y: Tensor, to: Tensor, vector: Tensor) -> Tensor:
        """Of each part."""
        return self._parts("transport", y, to, vector)

    def inner(self, y: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """The sum."""
        return torch.stack([m.inner(*parts) for m, *parts in self._each(y, u, v)]).sum(dim=0)

    def gradient(self, y: Tensor, gradient: Tensor) -> Tensor:
        """Of each part."""
        return self._parts("gradient", y, gradient)

    def hessian(self, y: Tensor, gradient: Tensor, product: Tensor, direction: Tensor) -> Tensor:
        """Of each part."""
        return self._parts("hessian", y, gradient, product, direction)

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """Of each part."""
        parts = [
            m.random((*shape[:-1], *part), generator=generator, like=like)
            for m, part in zip(self.manifolds, self.shapes, strict=True)
        ]
        return self._join(parts, len(shape) - 1)

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self.manifolds))})"

    def _each(self, *vectors: Tensor) -> list[tuple[Any, ...]]:
        """Each manifold with its part of every vector."""
        split = [
            [
                part.reshape(*v.shape[:-1], *shape)
                for part, shape in zip(v.split(self._sizes, -1), self.shapes, strict=True)
            ]
            for v in vectors
        ]
        return list(zip(self.manifolds, *split, strict=True))

    def _parts(self, method: str, *vectors: Tensor) -> Tensor:
        found = [getattr(m, method)(*parts) for m, *parts in self._each(*vectors)]
        return self._join(found, vectors[0].ndim - 1)

    def _with_multipliers(
        self, method: str, y: Tensor, multipliers: Tensor, *vectors: Tensor
    ) -> Tensor:
        if not self._multiplier_shapes:
            self.multipliers(y, y)
        sizes = [math.prod(shape) for shape in self._multiplier_shapes]
        parts = [
            sigma.reshape(*multipliers.shape[:-1], *shape)
            for sigma, shape in zip(
                multipliers.split(sizes, -1), self._multiplier_shapes, strict=True
            )
        ]
        found = [
            getattr(m, method)(part, sigma, *rest)
            for (m, part, *rest), sigma in zip(self._each(y, *vectors), parts, strict=True)
        ]
        return self._join(found, y.ndim - 1)

    def _join(self, parts: Sequence[Tensor], lead: int) -> Tensor:
        return torch.cat([part.reshape(*part.shape[:lead], -1) for part in parts], dim=-1)

    def _blocks(self, rows: Sequence[Tensor]) -> Tensor:
        """Rows (..., pₖ, mₖ) of each part as rows of all, (..., Σ pₖ, m)."""
        total, at, blocks = sum(self._sizes), 0, []
        for block, size in zip(rows, self._sizes, strict=True):
            blocks.append(torch.nn.functional.pad(block, (at, total - at - size)))
            at += size
        return torch.cat(blocks, dim=-2)


def packed(manifolds: Sequence[Manifold], shapes: Sequence[Sequence[int]]) -> Manifold:
    """The product whose points are vectors, with parts of these shapes laid end to end."""
    return _packed(tuple(manifolds), tuple(tuple(shape) for shape in shapes))


@functools.lru_cache(maxsize=64)
def _packed(manifolds: tuple[Manifold, ...], shapes: tuple[tuple[int, ...], ...]) -> Manifold:
    # A problem asks for it again and again, and it finds out the shapes of multipliers but once.
    return Parts(manifolds, shapes)
