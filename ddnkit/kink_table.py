"""Operations that have a kink or a jump, by name: where it is, and the slopes on its two sides.

Each is described by an *argument* a that is zero at the kink, and by the slopes of the operation's
output in a on the left (a < 0) and on the right (a > 0). An operation that is a function of several kinks
(a clamp from below and above) has several points. Where the slopes are not constants (a tie in a sort, a
jump) the kink is known, and nothing else.

Not in the table, and so not noticed at a kink: adaptive and fractional pooling by maximum, and operations of
other libraries. Not needed: multi_margin_loss and multilabel_margin_loss, which torch differentiates once
only. Branches in Python (`if y > 0`) are seen by the comparison.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class KinkPoint:
    """One kink of one operation, entry by entry.

    Attributes:
        argument: zero at the kink.
        output: whose derivative is the weight of the kink; None where the slopes are not known.
        left, right: the slopes on the two sides.
        tie: what torch takes for the slope at the kink; None for what it does with a clamp.
        share: by which the output's derivative is to be multiplied (a mean divides it).
        tied: the arguments are the differences of x to its largest or least entry along these
            dimensions; () for all of them.
        slope: then, torch's derivative of that entry in x.
    """

    argument: Tensor
    output: Tensor | None = None
    left: float = 0.0
    right: float = 0.0
    tie: float | None = 0.0
    share: float = 1.0
    tied: tuple[int, ...] | None = None
    slope: Tensor | None = None


Described = Iterator[KinkPoint]


def _abs(args: Any, kwargs: Any, out: Any) -> Described:
    x = _first(args, kwargs)
    yield KinkPoint(x, out, -1, 1)


def _relu(args: Any, kwargs: Any, out: Any) -> Described:
    x = _first(args, kwargs)
    yield KinkPoint(x, out, 0, 1)


def _leaky_relu(args: Any, kwargs: Any, out: Any) -> Described:
    x = _first(args, kwargs)
    below = float(_argument(args, kwargs, 1, "negative_slope", 0.01))
    yield KinkPoint(x, out, below, 1, tie=below)


def _clamp(args: Any, kwargs: Any, out: Any) -> Described:
    x = _first(args, kwargs)
    yield from _between(
        x,
        out,
        _argument(args, kwargs, 1, "min", None),
        _argument(args, kwargs, 2, "max", None),
        None,
    )


def _clamp_min(args: Any, kwargs: Any, out: Any) -> Described:
    yield from _between(
        _first(args, kwargs), out, _argument(args, kwargs, 1, "min", None), None, None
    )


def _clamp_max(args: Any, kwargs: Any, out: Any) -> Described:
    yield from _between(
        _first(args, kwargs), out, None, _argument(args, kwargs, 1, "max", None), None
    )


def _hardtanh(args: Any, kwargs: Any, out: Any) -> Described:
    low = _argument(args, kwargs, 1, "min_val", -1.0)
    high = _argument(args, kwargs, 2, "max_val", 1.0)
    yield from _between(_first(args, kwargs), out, low, high, 0.0)


def _relu6(args: Any, kwargs: Any, out: Any) -> Described:
    yield from _between(_first(args, kwargs), out, 0.0, 6.0, 0.0)


def _between(x: Tensor, out: Tensor, low: Any, high: Any, tie: float | None) -> Described:
    if low is not None:
        yield KinkPoint(x - low, out, 0, 1, tie)
    if high is not None:
        yield KinkPoint(x - high, out, 1, 0, tie)


def _softshrink(args: Any, kwargs: Any, out: Any) -> Described:
    x, size = _first(args, kwargs), _argument(args, kwargs, 1, "lambd", 0.5)
    yield KinkPoint(x - size, out, 0, 1)
    yield KinkPoint(x + size, out, 1, 0)


def _maximum(args: Any, kwargs: Any, out: Any) -> Described:
    a = _first(args, kwargs) - _argument(args, kwargs, 1, "other", None)
    yield KinkPoint(a, out, 0, 1, tie=0.5)


def _minimum(args: Any, kwargs: Any, out: Any) -> Described:
    a = _first(args, kwargs) - _argument(args, kwargs, 1, "other", None)
    yield KinkPoint(a, out, 1, 0, tie=0.5)


def _largest(args: Any, kwargs: Any, out: Any) -> Described:
    other = _argument(args, kwargs, 1, "other", None)
    if isinstance(other, Tensor):
        yield from _maximum(args, kwargs, out)
    else:
        yield _tie(args, kwargs, out, smallest=False)


def _smallest(args: Any, kwargs: Any, out: Any) -> Described:
    other = _argument(args, kwargs, 1, "other", None)
    if isinstance(other, Tensor):
        yield from _minimum(args, kwargs, out)
    else:
        yield _tie(args, kwargs, out, smallest=True)


def _tie(args: Any, kwargs: Any, out: Any, smallest: bool) -> KinkPoint:
    x = _first(args, kwargs)
    dim = _argument(args, kwargs, 1, "dim", None)
    indices = None if isinstance(out, Tensor) else out[1]
    values = out if isinstance(out, Tensor) else out[0]
    keep = bool(_argument(args, kwargs, 2, "keepdim", False))
    if dim is None or dim == ():
        dims: tuple[int, ...] = ()
        best = values.reshape((1,) * x.ndim)
    else:
        listed = tuple(dim) if isinstance(dim, (tuple, list)) else (dim,)
        dims = tuple(sorted(d % x.ndim for d in listed))
        best = values
        if not keep:
            for d in dims:
                best = best.unsqueeze(d)
    if indices is None:
        tied = (x == best).to(x.dtype)
        slope = tied / (tied.sum(dims, keepdim=True) if dims else tied.sum())
    else:
        where = indices if keep else indices.unsqueeze(dims[0])
        places = torch.arange(x.shape[dims[0]], device=x.device)
        shape = [1] * x.ndim
        shape[dims[0]] = -1
        slope = (places.reshape(shape) == where).to(x.dtype)
    left, right = (1, 0) if smallest else (0, 1)
    return KinkPoint(x - best, values, left, right, tied=dims, slope=slope)


def _l1_loss(args: Any, kwargs: Any, out: Any) -> Described:
    a = _first(args, kwargs) - _argument(args, kwargs, 1, "target", None)
    reduction = _argument(args, kwargs, 4, "reduction", "mean")
    share = 1 / max(a.numel(), 1) if reduction == "mean" else 1.0
    yield KinkPoint(a, out, -1, 1, share=share)


def _hinge(out: Tensor, a: Tensor, reduction: str, tie: float | None) -> KinkPoint:
    """A loss of max(0, a), one of each of its entries or reduced."""
    share = 1 / max(a.numel(), 1) if reduction == "mean" else 1.0
    return KinkPoint(a, out, 0, 1, tie=tie, share=share)


def _reduction(args: Any, kwargs: Any, place: int) -> str:
    """What two older arguments, which come before it, may say instead."""
    old = [_argument(args, kwargs, place - 2, "size_average", None),
           _argument(args, kwargs, place - 1, "reduce", None)]  # fmt: skip
    if old == [None, None]:
        return str(_argument(args, kwargs, place, "reduction", "mean"))
    if old[1] is False:
        return "none"
    return "sum" if old[0] is False else "mean"


def _hinge_embedding(args: Any, kwargs: Any, out: Any) -> Described:
    a = _argument(args, kwargs, 2, "margin", 1.0) - _first(args, kwargs)
    a = torch.where(_argument(args, kwargs, 1, "target", None) == -1, a, 1.0)
    yield _hinge(out, a, _reduction(args, kwargs, 5), None)


def _margin_ranking(args: Any, kwargs: Any, out: Any) -> Described:
    first = args[0] if args else kwargs.get("input1")
    ahead = first - _argument(args, kwargs, 1, "input2", None)
    a = _argument(args, kwargs, 3, "margin", 0) - _argument(args, kwargs, 2, "target", None) * ahead
    yield _hinge(out, a, _reduction(args, kwargs, 6), None)


def _cosine_embedding(args: Any, kwargs: Any, out: Any) -> Described:
    first = args[0] if args else kwargs.get("input1")
    cosine = F.cosine_similarity(first, _argument(args, kwargs, 1, "input2", None), dim=-1)
    a = cosine - _argument(args, kwargs, 3, "margin", 0)
    a = torch.where(_argument(args, kwargs, 2, "target", None) == -1, a, 1.0)
    yield _hinge(out, a, _reduction(args, kwargs, 6), None)


def _triplet_margin(args: Any, kwargs: Any, out: Any) -> Described:
    anchor = args[0] if args else kwargs.get("anchor")
    positive, negative = (
        _argument(args, kwargs, 1, "positive", None), _argument(args, kwargs, 2, "negative", None)
    )  # fmt: skip
    p, eps = _argument(args, kwargs, 4, "p", 2), _argument(args, kwargs, 5, "eps", 1e-6)
    near = F.pairwise_distance(anchor, positive, p, eps)
    far = F.pairwise_distance(anchor, negative, p, eps)
    if _argument(args, kwargs, 6, "swap", False):
        other = F.pairwise_distance(positive, negative, p, eps)
        yield KinkPoint(far - other)
        far = torch.minimum(far, other)
    a = _argument(args, kwargs, 3, "margin", 1.0) + near - far
    yield _hinge(out, a, _reduction(args, kwargs, 9), None)


def _max_pool(args: Any, kwargs: Any, out: Any, dims: int) -> Described:
    x, values = _first(args, kwargs), out if isinstance(out, Tensor) else out[0]
    size = _of_each(_argument(args, kwargs, 1, "kernel_size", 1), dims)
    stride = _of_each(_argument(args, kwargs, 2, "stride", None) or size, dims)
    padding = _of_each(_argument(args, kwargs, 3, "padding", 0), dims)
    dilation = _of_each(_argument(args, kwargs, 4, "dilation", 1), dims)
    windows, first = x, x.ndim - dims
    for k in range(dims):
        dim, count = first + k, values.shape[first + k]
        starts = torch.arange(count, device=x.device) * stride[k]
        inside = torch.arange(size[k], device=x.device) * dilation[k]
        places = starts.unsqueeze(-1) + inside
        behind = max(
            (count - 1) * stride[k] + dilation[k] * (size[k] - 1) + 1 - x.shape[dim] - padding[k], 0
        )
        padded = F.pad(
            windows.movedim(dim, -1), [padding[k], behind], value=torch.finfo(x.dtype).min / 4
        )
        # Not `unfold`, whose derivative vmap does not know.
        windows = padded[..., places].movedim(-2, dim)
    windows = windows.flatten(windows.ndim - dims)
    at_best = windows == values.unsqueeze(-1)
    slope = (at_best & (at_best.cumsum(dim=-1) == 1)).to(x.dtype)  # torch's is the first
    a = windows - values.unsqueeze(-1)
    yield KinkPoint(a, values, 0, 1, tied=(a.ndim - 1,), slope=slope)


def _of_each(value: Any, dims: int) -> tuple[int, ...]:
    given = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return tuple(int(v) for v in (given * dims if len(given) == 1 else given))


def _curved(args: Any, kwargs: Any, out: Any) -> Described:
    # Its derivative has a kink where the quadratic part ends; the derivative itself is continuous.
    a = (_first(args, kwargs) - _argument(args, kwargs, 1, "target", None)).abs()
    end = kwargs.get("delta", kwargs.get("beta", 1.0))
    yield KinkPoint(a - end)


def _norm(args: Any, kwargs: Any, out: Any) -> Described:
    order = _argument(args, kwargs, 1, "p", kwargs.get("ord"))
    x = _first(args, kwargs)
    if order in (1, 1.0) and (x.ndim == 1 or kwargs.get("dim") is None):
        yield KinkPoint(x, out, -1, 1)
    else:
        yield KinkPoint(out)


def _at_zero(args: Any, kwargs: Any, out: Any) -> Described:
    yield KinkPoint(_first(args, kwargs))


def _at_integers(args: Any, kwargs: Any, out: Any) -> Described:
    x = _first(args, kwargs)
    yield KinkPoint(x - x.round())


def _between_integers(args: Any, kwargs: Any, out: Any) -> Described:
    x = _first(args, kwargs)
    yield KinkPoint(x - x.floor() - 0.5)


def _compared(args: Any, kwargs: Any, out: Any) -> Described:
    yield KinkPoint(_first(args, kwargs) - _argument(args, kwargs, 1, "other", 0))


def _sorted(args: Any, kwargs: Any, out: Any) -> Described:
    values = out if isinstance(out, Tensor) else out[0]
    dim = kwargs.get("dim", -1 if values.ndim else 0)
    if values.ndim and values.shape[dim] > 1:
        yield KinkPoint(values.diff(dim=dim))


def _of_rank(args: Any, kwargs: Any, out: Any) -> Described:
    ordered = _by_order(_first(args, kwargs), _argument(args, kwargs, 1, "dim", None))
    middle = (ordered.shape[-1] - 1) // 2
    yield from _ties(ordered[..., max(middle - 1, 0) : middle + 2])


def _quantile(args: Any, kwargs: Any, out: Any) -> Described:
    ordered = _by_order(_first(args, kwargs), _argument(args, kwargs, 2, "dim", None))
    ranks = torch.as_tensor(_argument(args, kwargs, 1, "q", 0.5)).detach().reshape(-1)
    for q in ranks.tolist():
        at = int(q * (ordered.shape[-1] - 1))
        yield from _ties(ordered[..., max(at - 1, 0) : at + 3])


def _by_order(x: Tensor, dim: int | None) -> Tensor:
    return (x.reshape(-1) if dim is None else x.movedim(dim, -1)).sort(dim=-1).values


def _ties(neighbours: Tensor) -> Described:
    if neighbours.shape[-1] > 1:
        yield KinkPoint(neighbours.diff(dim=-1))


def _topk(args: Any, kwargs: Any, out: Any) -> Described:
    x, k = _first(args, kwargs), int(_argument(args, kwargs, 1, "k", 1))
    dim = int(_argument(args, kwargs, 2, "dim", -1))
    if k and k < x.shape[dim]:
        largest = bool(_argument(args, kwargs, 3, "largest", True))
        ordered = x.movedim(dim, -1).sort(dim=-1, descending=largest).values
        yield KinkPoint(ordered[..., k - 1] - ordered[..., k])


def _first(args: Any, kwargs: Any) -> Any:
    return args[0] if args else kwargs.get("input", kwargs.get("self"))


def _argument(args: Any, kwargs: Any, place: int, name: str, default: Any) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


@functools.cache
def slope_of_a_clamp_at_its_end() -> float:
    """What this torch takes for it: 1 in some versions, 0 in others."""
    with torch.enable_grad():
        x = torch.zeros(1, requires_grad=True)
        (slope,) = torch.autograd.grad(x.clamp(min=0).sum(), x)
    return float(slope)


KINKS: dict[str, Callable[[Any, Any, Any], Described]] = {
    **dict.fromkeys(["abs", "absolute", "__abs__", "abs_"], _abs),
    **dict.fromkeys(["relu", "relu_"], _relu),
    **dict.fromkeys(["leaky_relu", "leaky_relu_"], _leaky_relu),
    **dict.fromkeys(["clamp", "clip", "clamp_", "clip_"], _clamp),
    **dict.fromkeys(["clamp_min", "clamp_min_"], _clamp_min),
    **dict.fromkeys(["clamp_max", "clamp_max_"], _clamp_max),
    **dict.fromkeys(["hardtanh", "hardtanh_"], _hardtanh),
    "relu6": _relu6,
    "softshrink": _softshrink,
    **dict.fromkeys(["maximum", "fmax"], _maximum),
    **dict.fromkeys(["minimum", "fmin"], _minimum),
    **dict.fromkeys(["max", "amax"], _largest),
    **dict.fromkeys(["min", "amin"], _smallest),
    "l1_loss": _l1_loss,
    **dict.fromkeys(["smooth_l1_loss", "huber_loss"], _curved),
    **dict.fromkeys(["norm", "vector_norm", "linalg_norm", "linalg_vector_norm"], _norm),
    **dict.fromkeys(
        ["sign", "sgn", "heaviside", "elu", "celu", "selu", "prelu", "hardshrink", "threshold"],
        _at_zero,
    ),
    **dict.fromkeys(["floor", "ceil", "trunc", "fix", "frac"], _at_integers),
    "round": _between_integers,
    **dict.fromkeys(
        ["gt", "lt", "ge", "le", "greater", "less", "greater_equal", "less_equal", "__gt__"],
        _compared,
    ),
    **dict.fromkeys(["sort", "msort", "argsort"], _sorted),
    **dict.fromkeys(["median", "nanmedian"], _of_rank),
    **dict.fromkeys(["quantile", "nanquantile"], _quantile),
    "topk": _topk,
    "hinge_embedding_loss": _hinge_embedding,
    "margin_ranking_loss": _margin_ranking,
    "cosine_embedding_loss": _cosine_embedding,
    "triplet_margin_loss": _triplet_margin,
    "max_pool1d": functools.partial(_max_pool, dims=1),
    "max_pool2d": functools.partial(_max_pool, dims=2),
    "max_pool3d": functools.partial(_max_pool, dims=3),
    "max_pool1d_with_indices": functools.partial(_max_pool, dims=1),
    "max_pool2d_with_indices": functools.partial(_max_pool, dims=2),
    "max_pool3d_with_indices": functools.partial(_max_pool, dims=3),
}


def kink_points(name: str, args: Any, kwargs: Any, out: Any) -> list[KinkPoint]:
    """The kinks of one call of an operation of the table; those of real numbers alone.

    A whole number or a truth value jumps where what it was computed from does, which is noticed there. The
    size of a complex number has its kink where it is zero.
    """
    x = _first(args, kwargs)
    if x is None:
        x = next((v for v in kwargs.values() if isinstance(v, Tensor)), None)
    if isinstance(x, Tensor) and x.is_complex():
        real = isinstance(out, Tensor) and out.is_floating_point()
        return [KinkPoint(out)] if real else []
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return []
    return list(KINKS[name](args, kwargs, out))
