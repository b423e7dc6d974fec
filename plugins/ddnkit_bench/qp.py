"""``ddnkit bench qp``: quadratic programs as a layer, and the gradient of every input.

    min ½ yᵀQy + qᵀy  subject to  G y ≤ h,      n unknowns, n inequalities, about half of them active.

Each library is used as its documentation shows, with its tolerances set so that solution and gradient are
good to 1e-7: who differs by more is not timed. ddnkit's layer makes its certificate in the same time.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddnkit import DeclarativeLayer, QPNode
from ddnkit.bench import Case, Comparison, Competitor
from ddnkit.quadratic import figures_at, solve

from . import Prepare

#: To which the other libraries solve.
_TIGHT = 1e-10
#: Calls from whose median the shares of a call are told; of large ones it is one.
_CALLS, _LARGE = 5, 1e6

Solve = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class QuadraticPrograms(Comparison):
    """Forward and backward of a layer of quadratic programs, beside the libraries that have one."""

    size_names = ("n", "batch")
    sizes = tuple((n, batch) for n in (10, 50, 100, 500) for batch in (1, 16, 256))
    dtype = "float64"
    tolerance = 1e-7
    measures_memory = False

    def inputs(self, case: Case, dtype: torch.dtype) -> Mapping[str, Any]:
        """Q = LLᵀ/n + I/10, q, G normal, and h such that a random point is feasible; ∂ℓ/∂y."""
        n, batch = case.size
        factor = torch.randn(batch, n, n, dtype=torch.float64)
        Q = factor @ factor.mT / n + 0.1 * torch.eye(n, dtype=torch.float64)
        q, G = torch.randn(batch, n).double(), torch.randn(batch, n, n).double()
        point = torch.randn(batch, n, 1, dtype=torch.float64)
        h = (G @ point).squeeze(-1) + torch.rand(batch, n, dtype=torch.float64)
        v = torch.linspace(-1, 2, n, dtype=torch.float64)
        return {name: x.to(dtype) for name, x in zip("QqGhv", (Q, q, G, h, v), strict=True)}

    def competitors(self, case: Case, device: str) -> Sequence[Competitor]:
        """ddnkit first."""
        n, batch = case.size
        cpu = "" if device == "cpu" else "it runs on the CPU"
        # It solves item by item, in Python: some seconds each of n = 500.
        by_item = cpu or ("left out: it takes minutes a call" if n**2 * batch > 1e7 else "")
        return [
            Competitor("ddnkit", _forward_backward(_ddnkit)),
            Competitor(
                "qpth",
                _forward_backward(_qpth),
                packages=("qpth",),
                install="--no-deps qpth",
                # Of its gradient: multipliers and slacks below 1e-8 count as that.
                tolerance=1e-5,
            ),
            Competitor(
                "cvxpylayers",
                _forward_backward(_cvxpylayers),
                packages=("cvxpylayers",),
                refuses=by_item,
            ),
            Competitor(
                "proxsuite QPLayer",
                _forward_backward(_proxsuite),
                packages=("proxsuite",),
                refuses=cpu,
            ),
            Competitor(
                "clarabel by cvxpy, forward only",
                _clarabel,
                packages=("cvxpy", "clarabel"),
                refuses=by_item,
            ),
        ]

    def columns(
        self, case: Case, inputs: Mapping[str, Any], results: Mapping[str, Any]
    ) -> Mapping[str, str]:
        """Of ddnkit's time, the shares of the solve, the certificate, the gradient, and the rest."""
        if "own" not in results:
            return {}
        shares = _shares([inputs[name] for name in "QqGh"], inputs["v"])
        return {"solve, certificate, adjoint, rest": ", ".join(f"{x:.0%}" for x in shares)}


def _forward_backward(build: Callable[[int], Solve]) -> Prepare:
    def prepare(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        xs = [inputs[name].clone().requires_grad_() for name in "QqGh"]
        solve = build(xs[1].shape[1])
        # proxsuite and qpth take what they allocate in torch's default type.
        own = {"own": torch.ones(1)} if build is _ddnkit else {}

        def forward(_: object) -> Tensor:
            with _double():
                return solve(*xs)

        def backward(y: Tensor) -> Mapping[str, Tensor]:
            for x in xs:
                x.grad = None
            with _double():
                y.backward(inputs["v"].expand_as(y))
            found = {f"d{name}": x.grad for name, x in zip("QqGh", xs, strict=True)}
            return {"y": y.detach(), **found, **own}

        return {"forward": forward, "backward": backward}

    return prepare


@contextlib.contextmanager
def _double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _ddnkit(n: int) -> Solve:
    return DeclarativeLayer(QPNode("G", "h"))


def _qpth(n: int) -> Solve:
    from qpth.qp import QPFunction

    none = torch.zeros(0, dtype=torch.float64)
    solve = QPFunction(verbose=-1, eps=1e-12, maxIter=50, notImprovedLim=5, check_Q_spd=False)

    def call(Q: Tensor, q: Tensor, G: Tensor, h: Tensor) -> Tensor:
        y: Tensor = solve(Q, q, G, h, none, none)
        return y

    return call


def _proxsuite(n: int) -> Solve:
    from proxsuite.torch.qplayer import QPFunction

    def call(Q: Tensor, q: Tensor, G: Tensor, h: Tensor) -> Tensor:
        batch = len(q)
        A, b = q.new_zeros(batch, 0, n), q.new_zeros(batch, 0)
        tight = dict.fromkeys(("eps_backward", "rho_backward", "mu_backward"), 1e-12)
        solve = QPFunction(eps=_TIGHT, **tight)
        y: Tensor = solve(Q, q, A, b, G, torch.full_like(h, -1e20), h)[0]
        return y

    return call


def _program(n: int) -> tuple[Any, list[Any], Any]:
    import cvxpy as cp

    R, q, G, h = cp.Parameter((n, n)), cp.Parameter(n), cp.Parameter((n, n)), cp.Parameter(n)
    y = cp.Variable(n)
    objective = cp.Minimize(0.5 * cp.sum_squares(R @ y) + q @ y)
    return cp.Problem(objective, [G @ y <= h]), [R, q, G, h], y


def _cvxpylayers(n: int) -> Solve:
    from cvxpylayers.torch import CvxpyLayer

    problem, parameters, y = _program(n)
    layer = CvxpyLayer(problem, parameters, [y])
    settings = {"eps_abs": _TIGHT, "eps_rel": _TIGHT, "mode": "dense"}

    def call(Q: Tensor, q: Tensor, G: Tensor, h: Tensor) -> Tensor:
        # It takes programs whose data come in linearly: a factor of Q.
        found: Tensor = layer(torch.linalg.cholesky(Q).mT, q, G, h, solver_args=settings)[0]
        return found

    return call


def _clarabel(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    import cvxpy as cp

    n = inputs["q"].shape[1]
    problem, parameters, y = _program(n)
    tight = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}

    def forward(_: object) -> Mapping[str, Tensor]:
        factors = torch.linalg.cholesky(inputs["Q"]).mT
        found = []
        for values in zip(factors, *(inputs[name] for name in "qGh"), strict=True):
            for parameter, value in zip(parameters, values, strict=True):
                parameter.value = value.numpy()
            problem.solve(solver=cp.CLARABEL, **tight)
            found.append(torch.from_numpy(y.value))
        return {"y": torch.stack(found)}

    return {"forward": forward}


def _shares(xs: Sequence[Tensor], v: Tensor) -> list[float]:
    """Of a call's time: those of the solve, the certificate, the adjoint, and what is left."""
    inputs = [x.clone().requires_grad_() for x in xs]
    layer = DeclarativeLayer(QPNode("G", "h"))
    node = layer.node
    assert isinstance(node, QPNode)
    taken: dict[str, list[float]] = {"solve": [], "certificate": [], "adjoint": [], "all": []}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = work()
        taken[name].append(time.perf_counter() - begun)
        return result

    def whole() -> None:
        y = layer(*inputs)
        timed("adjoint", lambda: y.backward(v.expand_as(y)))

    def parts() -> None:
        program = node.program(xs, len(xs[1]))
        found = timed("solve", lambda: solve(program))
        timed("certificate", lambda: figures_at(program, found.y, found.w, found.rows))

    for _ in range(_CALLS if xs[0].numel() < _LARGE else 1):
        with torch.no_grad():
            parts()
        timed("all", whole)
    middle = {name: statistics.median(times) for name, times in taken.items()}
    total = middle["all"]
    # The solve measures its own solution: that is the certificate.
    shares = [
        (middle["solve"] - middle["certificate"]) / total,
        middle["certificate"] / total,
        middle["adjoint"] / total,
    ]
    return [*shares, max(0.0, 1 - sum(shares))]
