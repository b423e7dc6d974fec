"""``ddnkit bench manifolds``: minima on manifolds, by ddnkit's solvers, pymanopt's and geoopt's.

Four problems, a batch of B each, from the same starts:

* ``Rayleigh quotient``: min yᵀAy on the sphere of R^n, A symmetric.
* ``Brockett``: min tr(YᵀAY N) on St(n, 3), N = diag(1, 2, 3).
* ``low-rank completion``: 10 times as many entries of an n×n matrix of rank 3 (and noise) as that has
freedom; the
  matrix of rank 3 nearest to them.
* ``Karcher mean``: of five positive definite n×n matrices, in the affine-invariant metric.

pymanopt's solvers run on pymanopt's own manifolds, with its torch backend, item by item, as its
documentation shows. geoopt's have no manifold of fixed rank, and no stop by themselves: they run by
ddnkit's wrapper, on ddnkit's manifold and with its stop. All are given the tolerance with which their
objective is right to 1e-8: who differs by more from the least that any found is not timed. Not a timing but
a count, of one more solve: how often the host waits for a number of a tensor, and how many tensors go
through numpy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest import mock

import torch
from ddnkit_manifolds import (
    SPD,
    FixedRank,
    RiemannianAdam,
    RiemannianLineSearch,
    Sphere,
    Stiefel,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddnkit import DeclarativeLayer, DeclarativeNode, Problem, Solver
from ddnkit.bench import Case, Comparison, Competitor, Request
from ddnkit.solvers import (
    RiemannianConjugateGradient,
    RiemannianLBFGS,
    RiemannianTrustRegions,
)

from . import Prepare

_RANK = 3
_MATRICES = 5
#: Of pymanopt's stop, relative to the first gradient.
_GRADIENT = 1e-6
#: (n, batch) by problem.
SIZES: dict[str, tuple[tuple[int, int], ...]] = {
    "Rayleigh quotient": (
        (10, 1), (10, 4), (10, 16), (10, 256), (100, 1), (100, 4), (100, 16), (2000, 1), (2000, 4),
    ),
    "Brockett": (
        (10, 1), (10, 4), (10, 16), (10, 256), (100, 1), (100, 4), (100, 16), (2000, 1), (2000, 4),
    ),
    "low-rank completion": ((20, 1), (20, 4), (20, 16), (100, 1), (100, 4), (2000, 1)),
    "Karcher mean": ((10, 1), (10, 4), (10, 16), (10, 256), (50, 1), (50, 4)),
}  # fmt: skip


class _Node(DeclarativeNode):
    """A problem whose start is its last input."""

    def initial_point(self, *xs: Any) -> Tensor:
        start: Tensor = xs[-1]
        return start


class _Rayleigh(_Node):
    manifold = Sphere()

    def objective(self, A: Tensor, start: Tensor, y: Tensor) -> Tensor:
        return y @ (A @ y)


class _Brockett(_Node):
    manifold = Stiefel()

    def objective(self, A: Tensor, start: Tensor, y: Tensor) -> Tensor:
        weights = torch.arange(1, y.shape[-1] + 1, dtype=y.dtype, device=y.device)
        return ((A @ y) * y * weights).sum()


class _Completion(_Node):
    manifold: FixedRank

    def __init__(self, n: int):
        self.manifold = FixedRank(rows=n)

    def objective(
        self, rows: Tensor, columns: Tensor, values: Tensor, start: Tensor, y: Tensor
    ) -> Tensor:
        L, R = self.manifold.factors(y)
        return ((L[rows] * R[columns]).sum(dim=-1) - values).square().sum()


class _Karcher(_Node):
    manifold = SPD()

    def objective(self, As: Tensor, start: Tensor, y: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(y)
        half = torch.linalg.solve_triangular(factor, As, upper=False)
        inner = torch.linalg.solve_triangular(factor, half.mT, upper=False)
        return torch.linalg.eigvalsh((inner + inner.mT) / 2).log().square().sum()


def _node(case: Case) -> _Node:
    made: dict[str, Callable[[], _Node]] = {
        "Rayleigh quotient": _Rayleigh,
        "Brockett": _Brockett,
        "low-rank completion": lambda: _Completion(case.size[0]),
        "Karcher mean": _Karcher,
    }
    return made[case.kind]()


class Manifolds(Comparison):
    """Minima on manifolds: ddnkit's solvers beside pymanopt's and geoopt's. A case's size: n, batch."""

    size_names = ("n", "batch")
    dtype = "float64"
    tolerance = 1e-8
    measures_memory = False

    def cases(self, request: Request) -> list[Case]:
        """Each problem at its sizes, or at those asked for."""
        asked = self.asked_sizes(request)
        return [Case(size, kind) for kind, sizes in SIZES.items() for size in asked or sizes]

    def small(self, case: Case) -> Case:
        """n = 10, batch 2."""
        return Case((10, 2), case.kind)

    def inputs(self, case: Case, dtype: torch.dtype) -> Mapping[str, Any]:
        """The problem's data; the start last."""
        n, batch = case.size
        if case.kind == "low-rank completion":
            freedom = 2 * n * _RANK - _RANK**2
            count = min(10 * freedom, n * n)
            L, R = torch.randn(2, batch, n, _RANK, dtype=dtype)
            where = torch.stack([torch.randperm(n * n)[:count] for _ in range(batch)])
            rows, columns = where // n, where % n
            noise = 0.01 * torch.randn(batch, count, dtype=dtype)
            item = torch.arange(batch).unsqueeze(1)
            values = (L[item, rows] * R[item, columns]).sum(dim=-1) + noise
            start = FixedRank(rows=n).project(
                torch.cat([L, R], dim=1) + 0.3 * torch.randn(batch, 2 * n, _RANK, dtype=dtype)
            )
            return {"rows": rows, "columns": columns, "values": values, "start": start}
        if case.kind == "Karcher mean":
            factors = torch.randn(batch, _MATRICES, n, n, dtype=dtype)
            eye = torch.eye(n, dtype=dtype)
            return {"As": factors @ factors.mT / n + 0.1 * eye, "start": eye.repeat(batch, 1, 1)}
        A = torch.randn(batch, n, n, dtype=dtype)
        manifold = _node(case).manifold
        assert manifold is not None
        shape = (batch, n) if case.kind == "Rayleigh quotient" else (batch, n, 3)
        return {"A": (A + A.mT) / 2, "start": manifold.random(shape, like=A)}

    def competitors(self, case: Case, device: str) -> Sequence[Competitor]:
        """ddnkit's trust regions first."""
        cpu = "" if device == "cpu" else "it runs on the CPU"
        slow = "left out: it takes minutes" if case.size[0] * case.size[1] > 1000 else ""
        ours = {
            "ddnkit trust regions": RiemannianTrustRegions(),
            "ddnkit L-BFGS": RiemannianLBFGS(),
            "ddnkit conjugate gradients": RiemannianConjugateGradient(),
        }
        by_geoopt = {
            "geoopt line search": RiemannianLineSearch(),
            "geoopt Adam": RiemannianAdam(max_iterations=20_000),
        }
        field = [Competitor(name, _competitor(case, _by(solver))) for name, solver in ours.items()]
        for name in ("TrustRegions", "ConjugateGradient"):
            solves = _competitor(case, _by_pymanopt(case, name))
            field.append(
                Competitor(f"pymanopt {name}", solves, packages=("pymanopt",), refuses=cpu)
            )
        for name, solver in by_geoopt.items():
            solves = _competitor(case, _by(solver))
            field.append(Competitor(name, solves, packages=("geoopt",), refuses=slow))
        return field

    def difference(
        self, case: Case, results: Mapping[str, Any], reference: Mapping[str, Any]
    ) -> float | None:
        """How far the objective is above the least, the largest of the batch, relative to its size."""
        least = torch.minimum(results["f"], reference["f"])
        return float(((results["f"] - least) / reference["f"].abs()).max())

    def columns(
        self, case: Case, inputs: Mapping[str, Any], results: Mapping[str, Any]
    ) -> Mapping[str, str]:
        """The stationarity that the certificate measures; waits and trips of one more solve."""
        problem = Problem(_node(case), list(inputs.values()), case.size[1])
        error = float(stationarity(problem, results["y"]).max())
        waits, trips = results["count"].tolist()
        return {"stationarity": f"{error:.0e}", "waits, trips": f"{waits}, {trips}"}


def stationarity(problem: Problem, y: Tensor) -> Tensor:
    """The backward error of a solution as a certificate measures it, (B,)."""
    given = [*problem.inputs, y]
    layer = DeclarativeLayer(_Given(problem.node, tuple(x.ndim - 1 for x in given)))
    with torch.no_grad():
        layer(*given)
    assert layer.certificate is not None
    return layer.certificate.stationarity


class _Given(DeclarativeNode):
    """A node with another's objective, whose solution is its last input."""

    batched_solve = True
    policy = "nan"

    def __init__(self, node: DeclarativeNode, dims: tuple[int, ...]):
        self.node, self.manifold, self.input_dims = node, node.manifold, dims

    def objective(self, *xs: Any, y: Tensor) -> Tensor:
        return self.node.objective(*xs[:-1], y=y)

    def solve(self, *xs: Any) -> Tensor:
        found: Tensor = xs[-1]
        return found


Solve = Callable[[], Tensor]


def _competitor(case: Case, build: Callable[[Problem], Solve]) -> Prepare:
    def prepare(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        problem = Problem(_node(case), list(inputs.values()), case.size[1])
        solve = build(problem)
        with _Counting() as count:
            solve()

        def phase(_: object) -> Mapping[str, Any]:
            y = solve()
            return {"y": y, "f": problem.objective(y).detach(), "count": count.numbers()}

        return {"solve": phase}

    return prepare


def _by(solver: Solver) -> Callable[[Problem], Solve]:
    return lambda problem: lambda: solver.solve(problem).y


def _by_pymanopt(case: Case, name: str) -> Callable[[Problem], Solve]:
    def build(problem: Problem) -> Solve:
        import pymanopt
        from pymanopt import manifolds, optimizers

        n = case.size[0]
        fixed = FixedRank(rows=n)
        start = problem.start()
        if case.kind == "Rayleigh quotient":
            manifold = manifolds.Sphere(n)
        elif case.kind == "Brockett":
            manifold = manifolds.Stiefel(n, _RANK)
        elif case.kind == "Karcher mean":
            manifold = manifolds.SymmetricPositiveDefinite(n)
        else:
            manifold = manifolds.FixedRankEmbedded(n, n, _RANK)

        def one(item: int) -> Tensor:
            single = problem.at(item)
            if case.kind == "low-rank completion":

                @pymanopt.function.pytorch(manifold)
                def cost(u: Tensor, s: Tensor, vt: Tensor) -> Tensor:
                    # Objective of its factors; any two whose product is the matrix will do.
                    return single.objective(torch.cat([u * s, vt.mT]).unsqueeze(0))[0]

                u, s, vt = torch.linalg.svd(fixed.matrix(start[item]), full_matrices=False)
                first: Any = manifolds.fixed_rank._FixedRankPoint(
                    u[:, :_RANK].numpy(), s[:_RANK].numpy(), vt[:_RANK].numpy()
                )
            else:

                @pymanopt.function.pytorch(manifold)
                def cost(y: Tensor) -> Tensor:
                    return single.objective(y.unsqueeze(0))[0]

                first = start[item].numpy()
            made = pymanopt.Problem(manifold, cost)
            slope = manifold.norm(first, made.riemannian_gradient(first))
            settings = {
                "min_gradient_norm": _GRADIENT * slope,
                "max_iterations": 5000,
                "max_time": 600,
            }
            solver = getattr(optimizers, name)(verbosity=0, min_step_size=0, **settings)
            point = solver.run(made, initial_point=first).point
            if case.kind != "low-rank completion":
                return torch.from_numpy(point)
            u, s, vt = (torch.from_numpy(part) for part in point)
            return fixed.project(torch.cat([u * s, vt.mT]))

        return lambda: torch.stack([one(item) for item in range(case.size[1])])

    return build


class _Counting(TorchDispatchMode):
    """Counts how often the host waits for a number of a tensor, and tensors that go through numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = self.trips = 0
        self._undo = contextlib.ExitStack()

    def numbers(self) -> Tensor:
        """Both."""
        return torch.tensor([self.waits, self.trips])

    def __enter__(self) -> _Counting:
        entered: _Counting = super().__enter__()
        to_numpy, from_numpy = Tensor.numpy, torch.from_numpy

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **named: Any) -> Any:
                self.trips += 1
                return function(*args, **named)

            return call

        self._undo.enter_context(mock.patch.object(Tensor, "numpy", counted(to_numpy)))
        self._undo.enter_context(mock.patch.object(torch, "from_numpy", counted(from_numpy)))
        return entered

    def __exit__(self, *error: Any) -> None:
        self._undo.close()
        super().__exit__(*error)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            self.waits += 1
        return function(*args, **(kwargs or {}))
