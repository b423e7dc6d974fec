"""`ddnkit.check_manifold`: each method of a manifold against what it must be, and which of them is wrong.

What a method must give follows from `constraint` and `vertical` by automatic differentiation
(`manifold_truth.py`). They are judged in an order in which each needs only those before it; where two
contradict each other, a third decides:

* `constraint`, `project` and `random` say the same thing three times over, and `infeasibility` a fourth time.
* `multipliers` and `normal` together are the projection on the row space of J, whatever multiples of the
  constraints they take: (2σ)·(½∇j) is as good. `constraint_curvature` decides, if it is written by itself.
  For tangent z the tangent part of Σᵢ σᵢ∇²jᵢ z does not depend on which functions describe the set: with
  j' = Mj,
      Σ σ'ᵢ∇²j'ᵢ z = Σ σᵢ∇²jᵢ z + normal vectors,
  as ∇jᵢ·z = 0. Likewise `less_normal`.
* `inner` and `gradient` together give the derivative of a function; `hessian` decides, as at a critical point
  ⟨hess z, w⟩ is the second derivative of the Lagrangian in every metric.

A Hessian elsewhere is held against the metric: for every vector field V and X carried along by its flow,
    d/dt ⟨X, X⟩ = 2⟨∇_X V, X⟩   at V = grad f,
as the flow of a gradient has a self-adjoint derivative. To first order the flow is y ↦ R_y(tV) with any
retraction R, for which Newton's method serves.

A function of a quotient must not tell the points of a class apart: ⟨∇f(y), w(y)⟩ = 0 for vertical w at all y,
so that ⟨∇²f z, w⟩ = −⟨∇f, Dw[z]⟩. Gradients and products here are drawn so.

Source: Absil, Mahony and Sepulchre, *Optimization Algorithms on Matrix Manifolds*, chapters 3 to 5.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from ..errors import InputError
from ..importing import describe_error
from ..manifold import Manifold
from .manifold_metric import Metric
from .manifold_normals import Normals
from .manifold_report import ManifoldReport
from .manifold_session import METHODS, BrokenMethodError, Session
from .manifold_set import SameSet
from .manifold_tangents import Tangents

#: Leading dimensions of the points that are drawn.
_BATCHES = ((), (2,), (2, 3))


def check_manifold(
    manifold: Manifold,
    shape: Sequence[Any] | None = None,
    *,
    examples: int = 2,
    seed: int = 0,
    name: str | None = None,
) -> ManifoldReport:
    """Is each method of a manifold what it must be? If not, which is wrong?

    Holds every method, written or by default, against what follows from `constraint` and `vertical` by
    automatic differentiation, at random points without and with batch dimensions, in float64; and looks
    whether float32 is kept.
    See docs/check.md for all comparisons.

    Args:
        shape: of one point; of a product the shapes of its parts. By default the first of the manifold's
            `sample_shapes` that its `random` takes.
        examples: how often points are drawn, nine each time.
        name: what the report calls it.

    Returns:
        a `ManifoldReport`; ``report.ok`` is True if every comparison held, ``report.wrong`` has the names of
        the methods that are wrong.

    Raises:
        InputError: it is no manifold, or no shape is given and `random` takes none of the usual ones.

    Example:
        >>> report = ddnkit.check_manifold(Oblique(), (5, 3))
        >>> print(report)
    """
    if not isinstance(manifold, Manifold):
        raise InputError(f"check_manifold takes a ddnkit.Manifold, not {manifold!r}")
    if examples < 1:
        raise InputError(f"examples must be a whole number from 1 on, not {examples!r}")
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(seed)
        of_shape, point = _of_shape(manifold, shape)
        session = Session(of_shape)
        generator = Generator().manual_seed(seed)
        for _ in range(examples):
            for batch in _BATCHES:
                _Comparisons(session, batch, point, generator).make()
        _keeps_float32(session, point)
    points = examples * sum(map(math.prod, _BATCHES))
    return session.report(name or repr(manifold), point, points)


def _of_shape(manifold: Manifold, shape: Sequence[Any] | None) -> tuple[Manifold, tuple[int, ...]]:
    """The manifold, of its parts if there are several, and the shape of a point."""
    if shape is not None:
        found, point = _in_parts(manifold, shape)
        try:
            found.random(point, like=torch.zeros((), dtype=torch.float64))
        except (Exception, SystemExit) as error:
            raise InputError(
                f"{manifold!r} has no point of shape {tuple(shape)}: `random` fails: {describe_error(error)}"
            ) from error
        return found, point
    tried: list[str] = []
    for candidate in manifold.sample_shapes:
        try:
            found, point = _in_parts(manifold, candidate)
            y = found.random(point, like=torch.zeros((), dtype=torch.float64))
            if tuple(y.shape) == point and bool(y.isfinite().all()):
                return found, point
            tried.append(f"{candidate}: gives {tuple(y.shape)}")
        except (Exception, SystemExit) as error:  # a stranger's code may raise anything
            tried.append(f"{candidate}: {describe_error(error)}")
    told = "; ".join(tried[:4]) or "it has no sample_shapes"
    raise InputError(
        f"{manifold!r}: which shape has a point? `random` takes none of the usual ones ({told}). Give it: "
        "--shape 5,3, or shape=(5, 3); or set sample_shapes = ((5, 3),) in the class"
    )


def _in_parts(manifold: Manifold, shape: Sequence[Any]) -> tuple[Manifold, tuple[int, ...]]:
    if shape and not isinstance(shape[0], int):
        return manifold.of_parts(shape), (sum(math.prod(part) for part in shape),)
    point = tuple(shape)
    if len(point) != manifold.event_dims:
        raise InputError(
            f"a point of {manifold!r} has {manifold.event_dims} dimensions (event_dims); shape {point} "
            f"has {len(point)}"
        )
    return manifold, point


class _Comparisons(SameSet, Normals, Tangents, Metric):
    """Those at points of one batch shape."""

    def make(self) -> None:
        """All of them."""
        session = self.session
        if session.wrong & {"constraint"}:
            return  # told by the first batch; nothing else can be judged
        known = False
        with session.going_on():
            self._same_set()
            known = "constraint" not in session.wrong
        if not known:
            because = next(x for x in METHODS if x in session.wrong)
            for method in METHODS:
                if callable(getattr(session.manifold, method, None)):
                    session.waits(method, because)
            return
        for compare in (
            self._jacobian,
            self._infeasibility,
            self._vertical,
            self._normal,
            self._curvature,
            self._tangent,
            self._retract,
            self._transport,
            self._metric,
            self._hessian,
            self._exponential,
        ):
            with session.going_on():
                compare()


def _keeps_float32(session: Session, point: tuple[int, ...]) -> None:
    """Each method gives float32 for float32."""
    shape = (2, *point)
    like = torch.zeros((), dtype=torch.float32)

    def kept(method: str, *given: Any, **named: Any) -> Any:
        if method in session.wrong or not callable(getattr(session.manifold, method, None)):
            raise BrokenMethodError(method)
        found = session.call(method, *given, **named)
        if isinstance(found, Tensor):
            session.judge(
                method,
                "float32 kept",
                float(found.dtype != torch.float32),
                0.0,
                f"it gives {found.dtype} for float32",
                "float32",
                "make new tensors by torch.zeros_like, or with dtype=y.dtype",
            )
        return found.float() if isinstance(found, Tensor) else found

    def tell(method: str, *given: Any) -> None:
        with session.going_on():
            kept(method, *given)

    with session.going_on():
        y = kept("random", shape, like=like)
        v = y.flip(0).contiguous()
        for method in ("constraint", "project", "constraint_jacobian", "infeasibility", "vertical"):
            tell(method, y)
        sigma = kept("multipliers", y, v)
        tell("normal", y, sigma)
        tell("less_normal", v, y, sigma)
        z = kept("tangent", y, v)
        tell("constraint_curvature", y, sigma, z)
        tell("transport", y, y, z)
        tell("inner", y, z, z)
        tell("gradient", y, v)
        tell("hessian", y, v, v, z)
        for method in ("retract", "exponential"):
            tell(method, y, z / 100)
