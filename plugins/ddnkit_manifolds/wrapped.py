"""geoopt's and pymanopt's manifolds as constraint sets of a node.

The set counts, and its gauge; a metric changes a solver's steps, not the solution or its derivative. One
that has a counterpart here becomes it. Of others a smooth map π onto the set, that leaves its points where
they are, says everything. At a point y of the set P = Dπ(y) is a projection on its tangent space, along the
normal one or another, so that the singular values of I − P are 0 or at least 1, and the number p of the
latter is that of the constraints. With B an orthonormal basis, p columns, of the rows of I − P,
    j(y') = Bᵀ(y' − π(y'))
is zero on the set, B held fixed, and its p rows Bᵀ(I − P) are independent at y, where they are asked for.

Multipliers belong to a basis, and B is computed anew wherever one is asked for: it must be a function of y
that rounding does not turn about, as it does singular vectors of equal singular values. The rows of
Fᵀ(I − P), orthonormalised in their order, are such a one, F a fixed matrix: of a few, that for which they are
best conditioned. A map that is only piecewise smooth gives an I − P that is no projection, and is refused.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Generator, Tensor

from ddnkit import InputError, Manifold, gaussian

from .copies import Copies
from .low_rank import FixedRank
from .matrices import lapack_dtype, skew_part, symmetric_part
from .open_sets import Birkhoff, Euclidean, Positive
from .orthonormal import Grassmann, SpecialOrthogonal, Stiefel, skew_basis
from .product import Product, packed
from .spheres import Hyperbolic, Oblique, Sphere
from .stereographic import Stereographic
from .symmetric import SPD

if TYPE_CHECKING:
    import geoopt
    import pymanopt

#: Of a projection, P² − P is zero but for rounding and the tolerance of one that iterates; of a map that is
#: none, of order one.
_SLACK = 1e-4


class Image(Manifold):
    """The image of a smooth map π with π∘π = π, differentiated through the derivative of π alone.

    Args:
        map: π, of any number of batch dimensions; what torch.func can differentiate.
        event_dims: of a point.
        gauge: the `vertical` directions of a quotient, as a function of a point.
        label: what `repr` says.

    Example, symmetric matrices: ``Image(lambda y: (y + y.mT) / 2, event_dims=2)``.

    Raises:
        InputError: at a point where it is tried, the map is no smooth projection on its image.
    """

    name = "image"

    def __init__(
        self,
        map: Callable[[Tensor], Tensor],
        event_dims: int = 1,
        *,
        gauge: Callable[[Tensor], Tensor] | None = None,
        label: str | None = None,
    ):
        self._map, self.event_dims, self._gauge = map, event_dims, gauge
        self._label = label

    def constraint(self, y: Tensor) -> Tensor:
        """Bᵀ(y − π(y)), (..., p)."""
        shape = tuple(y.shape[y.ndim - self.event_dims :])
        count = _constraints(self._map, shape, repr(self))
        flat = self._flat(y)
        if not count:
            return flat[..., :0]
        rows = _normal_basis(self._map, y.detach(), self.event_dims, count)
        far = flat - self._flat(self._map(y))
        return (rows @ far.unsqueeze(-1)).squeeze(-1)

    def vertical(self, y: Tensor) -> Tensor | None:
        """The gauge's directions."""
        return None if self._gauge is None else self._gauge(y)

    def infeasibility(self, y: Tensor) -> Tensor:
        """‖y − π(y)‖ relative to ‖y‖."""
        size = torch.linalg.vector_norm(self._flat(y), dim=-1)
        far = torch.linalg.vector_norm(self._flat(y - self._map(y)), dim=-1)
        return far / torch.where(size > 0, size, 1.0)

    def project(self, y: Tensor) -> Tensor:
        """π(y)."""
        return self._map(y)

    def point_of(self, x: Tensor) -> Tensor:
        """π(x)."""
        return self._map(x)

    def random(
        self, shape: tuple[int, ...], *, generator: Generator | None = None, like: Tensor
    ) -> Tensor:
        """π of normal numbers."""
        return self._map(gaussian(shape, generator, like))

    def __repr__(self) -> str:
        return self._label or f"Image({self._map!r}, event_dims={self.event_dims})"


@functools.lru_cache(maxsize=256)
def _constraints(map: Callable[[Tensor], Tensor], shape: tuple[int, ...], label: str) -> int:
    """p of points of a shape, at some point.

    Raises:
        InputError: π is no projection there.
    """
    y = map(_frames(1, math.prod(shape))[0].reshape(shape))
    size = 1 + float(y.abs().max()) if y.numel() else 1.0
    same = float((map(y) - y).abs().max()) if y.numel() else 0.0
    P = torch.func.jacrev(map)(y).reshape(y.numel(), y.numel())
    apart = float((P @ P - P).abs().max()) if y.numel() else 0.0
    if not (same <= _SLACK * size and apart <= _SLACK * (1 + float(P.abs().max()))):
        raise InputError(
            f"{label}: its projection is not a smooth one at a point of shape {shape} (it moves a "
            f"point of the set by {same:.1e}; its derivative P has P² − P = {apart:.1e}), so that it says "
            "nothing of the constraints; write a ddnkit.Manifold with `constraint`, `project` and `random`"
        )
    normal = torch.eye(y.numel(), dtype=P.dtype) - P
    return int((torch.linalg.svdvals(normal) > 0.5).sum()) if y.numel() else 0


def _normal_basis(
    map: Callable[[Tensor], Tensor], y: Tensor, event_dims: int, count: int
) -> Tensor:
    """Bᵀ, (..., p, m)."""
    event = y.shape[y.ndim - event_dims :]
    m = math.prod(event)
    ones = y.reshape(-1, *event).to(lapack_dtype(y.dtype))
    P = torch.func.vmap(torch.func.jacrev(map))(ones).reshape(-1, m, m)
    normal = torch.eye(m, dtype=P.dtype, device=y.device) - P
    rows = _frames(count, m).to(P) @ normal.unsqueeze(-3)
    best = torch.linalg.svdvals(rows)[..., -1].argmax(dim=-1)
    chosen = rows.take_along_dim(best[:, None, None, None], dim=-3).squeeze(-3)
    q, r = torch.linalg.qr(chosen.mT)
    q = q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q).unsqueeze(-2)
    return q.mT.to(y.dtype).reshape(*y.shape[: y.ndim - event_dims], count, m)


@functools.lru_cache(maxsize=256)
def _frames(count: int, m: int) -> Tensor:
    """Four matrices Fᵀ without a pattern, (4, p, m); no random numbers, which vmap would not let be drawn."""
    return (torch.arange(1.0, 1 + 4 * count * m).double().square() / 3).sin().reshape(4, count, m)


# -- maps --------------------------------------------------------------------------------------------


def _same(y: Tensor) -> Tensor:
    return y


def _unit_rows(y: Tensor) -> Tensor:
    return y / torch.linalg.vector_norm(y, dim=-1, keepdim=True)


def _unit_tensors(y: Tensor, dims: int) -> Tensor:
    return y / torch.linalg.vector_norm(y, dim=tuple(range(-dims, 0)), keepdim=True)


def _unit_within(y: Tensor, projector: Tensor) -> Tensor:
    # The sphere's own projection, of what is left in the subspace.
    within = (projector.to(y) @ y.unsqueeze(-1)).squeeze(-1)
    return within / torch.linalg.vector_norm(within, dim=-1, keepdim=True)


def _turns(y: Tensor) -> Tensor:
    """Y Ω, the gauge of Y Yᵀ."""
    return y.unsqueeze(-3) @ skew_basis(y)


def _in_subspace(projector: Tensor, label: str) -> Manifold:
    return Image(functools.partial(_unit_within, projector=projector), 1, label=label)


# -- geoopt ------------------------------------------------------------------------------------------


def from_geoopt(manifold: geoopt.Manifold) -> Manifold:
    """The set of one of geoopt's manifolds, for a node's ``manifold`` or `ddnkit.parametrize`.

    Args:
        manifold: of geoopt, or of a class of yours: its ``projx`` must be smooth, and torch.func able to
            differentiate it.

    Example: ``manifold = from_geoopt(geoopt.Stiefel())``, which is ``Stiefel()``.

    Raises:
        InputError: a complex one, or one with parameters that are learned.
    """
    import geoopt

    if not isinstance(manifold, geoopt.Manifold):
        raise InputError(f"from_geoopt takes a geoopt.Manifold, not {manifold!r}")
    made = _geoopt_table().get(type(manifold).__name__) if _is_own(manifold, "geoopt") else None
    if made is not None:
        return made(manifold)
    return Image(manifold.projx, manifold.ndim, label=f"from_geoopt({manifold})")


@functools.cache
def _geoopt_table() -> Mapping[str, Callable[[Any], Manifold]]:
    def stiefel(_: Any) -> Manifold:
        return Stiefel()

    def sphere(m: Any) -> Manifold:
        if m.projector is None:
            return Sphere()
        return _in_subspace(m.projector, f"from_geoopt({m})")

    def stereographic(m: Any) -> Manifold:
        return Stereographic(_fixed(m, "k"))

    def lorentz(m: Any) -> Manifold:
        if _fixed(m, "k") == 1:
            return Hyperbolic()
        return Image(m.projx, 1, label=f"from_geoopt({m})")

    def spd(m: Any) -> Manifold:
        return SPD("log_euclidean" if m.default_metric.value == "LEM" else "affine_invariant")

    def product(m: Any) -> Manifold:
        return packed([from_geoopt(part) for part in m.manifolds], m.shapes)

    def complex_matrices(m: Any) -> NoReturn:
        _refuse_complex(f"geoopt.{type(m).__name__}")

    return {
        "Euclidean": lambda m: Euclidean(m.ndim),
        **dict.fromkeys(
            ("Stiefel", "CanonicalStiefel", "EuclideanStiefel", "EuclideanStiefelExact"), stiefel
        ),
        **dict.fromkeys(("Sphere", "SphereExact"), sphere),
        **dict.fromkeys(
            (
                "Stereographic",
                "StereographicExact",
                "PoincareBall",
                "PoincareBallExact",
                "SphereProjection",
                "SphereProjectionExact",
            ),
            stereographic,
        ),
        "Lorentz": lorentz,
        "SymmetricPositiveDefinite": spd,
        "BirkhoffPolytope": lambda m: Birkhoff(),
        "Scaled": lambda m: from_geoopt(m.base),
        **dict.fromkeys(("ProductManifold", "StereographicProductManifold"), product),
        **dict.fromkeys(("UpperHalf", "BoundedDomain"), complex_matrices),
    }


def _fixed(manifold: Any, name: str) -> float:
    """A number that the set depends on."""
    value = getattr(manifold, name)
    if isinstance(value, Tensor) and value.requires_grad:
        raise InputError(
            f"{manifold}: its {name} is learned, and a node's set must not depend on what is: have {name} = "
            f"±1 here, and scale y by it in the objective, of which it is an input"
        )
    return float(value)


# -- pymanopt ----------------------------------------------------------------------------------------


def from_pymanopt(manifold: pymanopt.manifolds.manifold.Manifold) -> Manifold:
    """The set of one of pymanopt's manifolds, for a node's ``manifold`` or `ddnkit.parametrize`.

    One of k copies has points (k, ...) here too, and a product has a y of several parts. Of
    ``FixedRankEmbedded`` the points differ: factors [L; R], as `FixedRank` says.

    Args:
        manifold: of pymanopt.

    Example: ``manifold = from_pymanopt(pymanopt.manifolds.Grassmann(5, 2))``, which is ``Grassmann()``.

    Raises:
        InputError: a complex one, or a class of yours, which works in numpy.
    """
    from pymanopt.manifolds.manifold import Manifold as Theirs

    if not isinstance(manifold, Theirs):
        raise InputError(f"from_pymanopt takes one of pymanopt.manifolds, not {manifold!r}")
    made = _pymanopt_table().get(type(manifold).__name__) if _is_own(manifold, "pymanopt") else None
    if made is None:
        raise InputError(
            f"{manifold}: {type(manifold).__name__} works in numpy, where torch cannot differentiate; write "
            "a ddnkit.Manifold with `constraint`, `project` and `random`, or ddnkit_manifolds.Image of a map "
            "onto the set"
        )
    found = made(manifold)
    # Those whose points have a number of copies in front, by the name that pymanopt keeps it under.
    copies = getattr(manifold, "_k", 1)
    if type(manifold).__name__ in _OF_COPIES and copies > 1:
        return Copies(found)
    if type(manifold).__name__ in ("Symmetric", "SkewSymmetric") and len(manifold._shape) == 3:
        return Copies(found)
    return found


_OF_COPIES = (
    "Stiefel",
    "Grassmann",
    "PoincareBall",
    "SpecialOrthogonalGroup",
    "SymmetricPositiveDefinite",
    "Positive",
)


@functools.cache
def _pymanopt_table() -> Mapping[str, Callable[[Any], Manifold]]:
    def image(map: Callable[[Tensor], Tensor], **settings: Any) -> Callable[[Any], Manifold]:
        return lambda m: Image(map, 2, label=f"from_pymanopt({m})", **settings)

    def sphere(m: Any) -> Manifold:
        dims = len(m._shape)
        if dims == 1:
            return Sphere()
        return Image(functools.partial(_unit_tensors, dims=dims), dims, label=f"from_pymanopt({m})")

    def within(m: Any) -> Manifold:
        return _in_subspace(torch.from_numpy(m._subspace_projector), f"from_pymanopt({m})")

    def complex_points(m: Any) -> NoReturn:
        _refuse_complex(f"pymanopt.manifolds.{type(m).__name__}")

    return {
        "Euclidean": lambda m: Euclidean(len(m._shape)),
        "Sphere": sphere,
        **dict.fromkeys(
            ("SphereSubspaceIntersection", "SphereSubspaceComplementIntersection"), within
        ),
        "Oblique": lambda m: Oblique(),
        "Stiefel": lambda m: Stiefel(),
        "Grassmann": lambda m: Grassmann(),
        "SpecialOrthogonalGroup": lambda m: SpecialOrthogonal(),
        "SymmetricPositiveDefinite": lambda m: SPD(),
        "FixedRankEmbedded": lambda m: FixedRank(m._m, m._k),
        "Positive": lambda m: Positive(2),
        "PoincareBall": lambda m: Stereographic(-1.0),
        "Symmetric": image(symmetric_part),
        "SkewSymmetric": image(skew_part),
        "Elliptope": image(_unit_rows, gauge=_turns),
        "PSDFixedRank": image(_same, gauge=_turns),
        "Product": lambda m: Product(*map(from_pymanopt, m.manifolds)),
        **dict.fromkeys(
            (
                "ComplexCircle",
                "ComplexEuclidean",
                "ComplexGrassmann",
                "HermitianPositiveDefinite",
                "PSDFixedRankComplex",
                "SpecialHermitianPositiveDefinite",
                "UnitaryGroup",
            ),
            complex_points,
        ),
    }


def _is_own(manifold: object, package: str) -> bool:
    """Whether its class is the package's, not one derived from it."""
    return type(manifold).__module__.partition(".")[0] == package


def _refuse_complex(name: str) -> NoReturn:
    raise InputError(
        f"{name} has complex points, and the y of a node is real: have its real and its imaginary part as "
        "two parts of y, with `equality_constraints` for the set"
    )
