"""Arithmetic of another processor: results moved by as much as rounding may move them.

    with Rounding(seed=1):
        ...

One processor cannot show what another computes: kernels add in another order, fuse multiplications
with additions or not, and their factorisations take other paths. What they agree on is a bound. This
mode moves every result of a product, a reduction, a factorisation or an elementary function within
such a bound; a test whose own bound holds anywhere passes under it, one that holds the figures of a
machine does not. `pytest --rounding SEED` runs each test inside of it.

With u the unit roundoff, ξ uniform in [−1, 1], and n the number of terms that are not zero:

* sums, and products of matrices:  S + ξ u √((n − 1)(S²/3 + Σt²/6)),  S = Σt. This is what adding one
  term after another comes to in the mean square, in random order: the i-th partial sum is S i/n and a
  random walk that comes back, of variance Σt² (i/n)(1 − i/n), and its rounding is uniform in ±u times
  it. No kernel is worse: vector units, blocks and trees add fewer terms in a row. (Higham and Mary,
  *A new approach to probabilistic rounding error analysis*, 2019.) Nothing moves where no order
  rounds: one term alone, or multiples of 2⁻¹⁰ that stay small.
* norms and variances: relative to themselves, by ξ u √n, of n terms each; a norm of one term that is
  not zero, and whose square is exact, not at all: neither is its root.
* factorisations: those of A + E with |E| ≤ u max|A| in rows and columns that have more than their
  diagonal entry, so that ‖E‖₂ ≲ √n u ‖A‖₂; orthogonal factors Q besides as Q(I + E), |E| ≤ u.
* elementary functions (exp, log, tanh, …): one unit in the last place, where they are not exact.

ξ depends on seed, operation and shape alone: the same call twice gives the same result, as on any one
processor, while a batch and its items may differ.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_FLOATS = (torch.float32, torch.float64)

#: Products, as functions of their operands, without what is added to them.
_PRODUCTS: dict[str, Callable[[Any], tuple[Tensor, Tensor]]] = {
    "mm": lambda args: (args[0], args[1]),
    "bmm": lambda args: (args[0], args[1]),
    "mv": lambda args: (args[0], args[1]),
    "dot": lambda args: (args[0], args[1]),
    "vdot": lambda args: (args[0], args[1]),
    "addmm": lambda args: (args[1], args[2]),
    "addmv": lambda args: (args[1], args[2]),
    "addbmm": lambda args: (args[1], args[2]),
    "baddbmm": lambda args: (args[1], args[2]),
}
_SUMS = {"sum", "mean", "nansum", "cumsum"}
_RELATIVE = {
    "linalg_vector_norm", "norm", "var", "std", "var_mean", "logsumexp", "_softmax", "_log_softmax",
    "prod", "mse_loss", "logcumsumexp",
}  # fmt: skip
_NORMS = {"linalg_vector_norm", "norm"}
_OF_ONE_DIMENSION = {"_softmax", "_log_softmax", "logcumsumexp"}
_FACTORISATIONS = {
    "_linalg_eigh", "_linalg_svd", "linalg_qr", "linalg_cholesky_ex", "linalg_lu_factor_ex",
    "_linalg_solve_ex", "linalg_inv_ex", "_linalg_det", "linalg_lstsq", "linalg_solve_triangular",
    "linalg_eig", "linalg_ldl_factor_ex",
}  # fmt: skip
#: Which of a factorisation's results are orthogonal.
_ORTHOGONAL = {"_linalg_eigh": (1,), "_linalg_svd": (0, 2), "linalg_qr": (0,)}
_ELEMENTARY = {
    "exp", "expm1", "log", "log1p", "log2", "log10", "sin", "cos", "tan", "tanh", "sinh", "cosh",
    "sigmoid", "erf", "erfc", "atan", "asin", "acos", "atan2", "pow", "rsqrt", "softplus", "lgamma",
    "digamma", "gelu", "silu",
}  # fmt: skip
#: Powers that torch takes by products, quotients and roots, which round the same everywhere.
_PLAIN_POWERS = (-2, -1, 0, 0.5, 1, 2, 3)

_OTHERS = _SUMS | _RELATIVE | _ELEMENTARY | {"convolution"}


class Rounding(TorchDispatchMode):
    """Moves results on the CPU within the bounds above; ``moved`` counts the calls."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.moved = 0
        self._drawn: dict[tuple[str, torch.Size], Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.removesuffix("_")
        if name == "pow" and not isinstance(args[1], Tensor) and args[1] in _PLAIN_POWERS:
            return func(*args, **kwargs)
        if name == "_efficientzerotensor":
            # A zero without memory, which forward mode makes: torch 2.14 dies of it below a mode.
            return torch.zeros(*args, **kwargs)
        if name in _FACTORISATIONS and _plain(args[0]):
            return self._factorised(name, func, args, kwargs)
        product = _PRODUCTS.get(name)
        scale = product(args) if product else None
        if not (product or name in _OTHERS):
            return func(*args, **kwargs)
        # Taken before the call, which may work in place on its operands.
        size = self._size(name, scale, args, kwargs, func) if _plain(args[0]) else None
        out = func(*args, **kwargs)
        for result in tree_leaves(out) if size is not None else ():
            if isinstance(result, Tensor) and _plain(result) and result.numel():
                self._move(name, result, size)
        return out

    def _size(self, name: str, operands: Any, args: Any, kwargs: Any, func: Any) -> Any:
        """What a result may move by: (n − 1, Σt²), a factor of itself, or None for not at all."""
        if operands is not None:
            a, b = operands
            if not (_plain(a) and _plain(b)):
                return None
            if _short(a) and _short(b) and a.shape[-1] * _largest(a) * _largest(b) < 2.0**12:
                return None
            squares = torch.matmul(a.double().square(), b.double().square())
            return _others(a, b), squares
        x = args[0]
        kwargs = {key: value for key, value in kwargs.items() if key != "out"}
        func = func.overloadpacket
        if name in _SUMS:
            if _short(x) and x.numel() * _largest(x) < 2.0**12:
                return None
            squares = func(x.double().square(), *args[1:], **kwargs)
            terms = func((x != 0).double(), *args[1:], **kwargs)
            if name == "mean":  # Σt²/n² and n
                count = x.numel() / max(squares.numel(), 1)
                squares, terms = squares / count, terms * count
            return (terms - 1).clamp_(min=0), squares
        if name == "convolution":
            _, weight, _, *rest = args
            squares = func(x.square(), weight.square(), None, *rest)
            return weight[0].numel() - 1, squares
        if name in _RELATIVE:
            if name in _OF_ONE_DIMENSION and x.ndim:
                return math.sqrt(x.shape[args[1]])
            moves = 1.0
            if name in _NORMS:
                scaled = x * 32.0
                exact = (scaled == scaled.round()) & (x.abs() < 2.0**7)  # squares of 24 digits
                terms = func(torch.where(exact, x != 0, 2.0).to(x), *args[1:], **kwargs)
                moves = (terms > 1).double()
            return lambda result: math.sqrt(x.numel() / result.numel()) * moves
        return 2.0  # an ulp is up to 2u of a value

    def _move(self, name: str, result: Tensor, size: Any) -> None:
        u = torch.finfo(result.dtype).eps / 2
        wide = result.double()
        if isinstance(size, tuple):
            others, squares = size
            change = (others * (wide.square() / 3 + squares.reshape(wide.shape) / 6)).sqrt_()
        else:
            factor = size(result) if callable(size) else size
            change = torch.where((wide == 0) | (wide == 1), 0.0, wide.abs() * factor)
        change = self._draw(name, result.shape) * u * change
        result.copy_(torch.where(change.isfinite(), wide + change, wide))
        self.moved += 1

    def _factorised(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        A = args[0]
        u = torch.finfo(A.dtype).eps / 2
        noise = self._draw(name, A.shape).to(A.dtype)
        if name in ("_linalg_eigh", "linalg_cholesky_ex", "linalg_ldl_factor_ex"):
            noise = (noise + noise.mT) / 2
        if A.shape[-1] and A.shape[-2]:
            off = A.clone()
            off.diagonal(dim1=-2, dim2=-1).zero_()
            rows = (off != 0).any(dim=-1, keepdim=True)
            columns = (off != 0).any(dim=-2, keepdim=True)
            mask = rows & columns
            if A.shape[-1] == A.shape[-2]:
                both = rows | columns.mT
                mask = both & both.mT
            if name == "linalg_solve_triangular":
                mask = A != 0
            largest = A.abs().nan_to_num(nan=0, posinf=0).amax(dim=(-2, -1), keepdim=True)
            A = A + mask * noise * u * largest
            self.moved += 1
        out = func(A, *args[1:], **kwargs)
        for place in _ORTHOGONAL.get(name, ()):
            Q = out[place]
            if Q.numel() and (name != "_linalg_svd" or place == 0):
                n = Q.shape[-1]
                Q.copy_(
                    Q + torch.matmul(Q * u, self._draw(name + "Q", (*Q.shape[:-2], n, n)).to(Q))
                )
            elif Q.numel():
                n = Q.shape[-2]
                Q.copy_(
                    Q + torch.matmul(self._draw(name + "Q", (*Q.shape[:-2], n, n)).to(Q) * u, Q)
                )
        return out

    def _draw(self, name: str, shape: torch.Size) -> Tensor:
        found = self._drawn.get((name, shape))
        if found is None:
            key = zlib.crc32(f"{self.seed} {name} {tuple(shape)}".encode())
            generator = torch.Generator().manual_seed(key)
            found = torch.rand(shape, generator=generator, dtype=torch.float64).mul_(2).sub_(1)
            if found.numel() <= 1 << 16:
                self._drawn[name, shape] = found
        return found


def _plain(x: Any) -> bool:
    # Of a subclass is what is traced, as by torch.export: it has no numbers.
    return type(x) in (Tensor, Parameter) and x.device.type == "cpu" and x.dtype in _FLOATS


def _short(x: Tensor) -> bool:
    """Whether all entries are multiples of 2⁻¹⁰ (or of 2⁻⁵, for the products of two)."""
    scaled = x * 32.0
    return bool((scaled == scaled.round()).all())


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _others(a: Tensor, b: Tensor) -> Any:
    """How many terms each entry of a product has that are not zero, less one."""
    if bool((a != 0).all()) and bool((b != 0).all()):
        return a.shape[-1] - 1
    return (torch.matmul((a != 0).double(), (b != 0).double()) - 1).clamp_(min=0)
