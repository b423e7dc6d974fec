"""``ddnkit bench backward_forms``: general problems, ddnkit's general forms against other libraries.

Three problems with m unknowns in a batch of B, each with its vector-Jacobian product in x:

* ``equality QP``: min ½yᵀQy − xᵀy, Ay = b, with Q dense and m/10 constraints shared by the batch. Peers:
  qpth, proxsuite's QPLayer, cvxpylayers (a cone program behind a parametrised one).
* ``nonlinear least squares``: min ½‖Dy + ¼ sin(Dy) − x‖² + ½λ‖y‖². Peers: torchopt's implicit
  differentiation of a root, with the same Newton iteration as ddnkit's node, and theseus' nonlinear
  least-squares layer, which has its own solver. Its implicit mode approximates the Hessian by JᵀJ, which is
  exact only if residuals vanish; here they do not.
* ``quadratic on the sphere``: min ½‖y‖² − xᵀy, ‖y‖ = 1, up to sizes at which an m×m matrix does not
  fit in memory; it is `ddnkit.testing.QuadraticOnSphere`.

The reference: the linear system of the implicit function theorem, solved by LU in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ddnkit import DeclarativeLayer, DeclarativeNode, InputError
from ddnkit.bench import Case, Comparison, Competitor, Request
from ddnkit.testing import QuadraticOnSphere

from . import Prepare

_RIDGE = 0.5
_COPIES = 4
#: Calls before any is timed: enough for ddnkit to make the programs of short calls, and for the tenth short
#: call, which is compared with a full one, as in any training.
_WARM_UP = 24
#: Relative residual at which krylov stops, and iterative peers too.
TOLERANCE = 1e-12

#: (m, batch) by problem.
SIZES: dict[str, tuple[tuple[int, int], ...]] = {
    "equality QP": ((10, 1), (50, 16), (200, 16), (200, 128), (1000, 4)),
    "nonlinear least squares": ((10, 1), (50, 16), (200, 16), (1000, 1)),
    "quadratic on the sphere": (
        (10, 1), (10, 1024), (200, 8), (800, 8), (1000, 1024), (10_000, 16), (100_000, 1),
    ),
}  # fmt: skip


class BackwardForms(Comparison):
    """Solving and differentiating general problems: krylov and the dense forms against peers.

    A case's size: m, batch. In float64, the only precision of some peers.
    """

    size_names = ("m", "batch")
    dtype = "float64"
    tolerance = 1e-6

    def cases(self, request: Request) -> list[Case]:
        """Each problem at its sizes, or at those asked for."""
        asked = self.asked_sizes(request)
        return [Case(size, kind) for kind, sizes in SIZES.items() for size in asked or sizes]

    def small(self, case: Case) -> Case:
        """m = 10, batch 2."""
        return Case((10, 2), case.kind)

    def inputs(self, case: Case, dtype: torch.dtype) -> Mapping[str, Any]:
        """x, the problem's matrices, and a gradient to pull back."""
        m, batch = case.size
        x, V = torch.randn(batch, m, dtype=dtype), torch.randn(batch, m, dtype=dtype)
        inputs: dict[str, Any] = {"x": x, "V": V}
        if case.kind == "equality QP":
            factor = torch.randn(m, m, dtype=dtype) / m**0.5
            rows = max(m // 10, 1)
            inputs["Q"] = factor @ factor.T + torch.eye(m, dtype=dtype)
            inputs["A"] = torch.randn(rows, m, dtype=dtype) / m**0.5
            inputs["b"] = torch.randn(rows, dtype=dtype)
        elif case.kind == "nonlinear least squares":
            inputs["D"] = torch.randn(m, m, dtype=dtype) / m**0.5
        return inputs

    def reference(self, case: Case, inputs: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """By LU; for the sphere, in closed form."""
        inputs = {name: value.double() for name, value in inputs.items()}
        x, V = inputs["x"], inputs["V"]
        if case.kind == "equality QP":
            y, gradient = _qp_by_lu(inputs["Q"], inputs["A"], inputs["b"], x, V)
            return {"y": y, "gradient": gradient}
        if case.kind == "quadratic on the sphere":
            size = x.norm(dim=-1, keepdim=True)
            y = x / size
            return {"y": y, "gradient": (V - y * (y * V).sum(dim=-1, keepdim=True)) / size}
        y = _newton(inputs["D"], x)
        return {"y": y, "gradient": _least_squares_gradient(inputs["D"], x, y, V)}

    def competitors(self, case: Case, device: str) -> Sequence[Competitor]:
        """The default form of a layer first."""
        m, batch = case.size
        matrices = _COPIES * 8.0 * batch * m * m
        node = _NODES[case.kind]
        ours = [
            Competitor("auto", _layer(node, "auto")),
            Competitor("krylov", _layer(node, "krylov")),
            Competitor("dense", _layer(node, "dense"), needs=matrices),
            Competitor("embedded_field", _layer(node, "embedded_field"), needs=matrices),
        ]
        if case.kind == "equality QP":
            lent = Competitor("krylov, the solver's factors lent", _layer(FactorisedQP, "krylov"))
            ours.append(lent)
        return [*ours, *_PEERS[case.kind](m, batch)]


# -- ours ------------------------------------------------------------------------------------------


class EqualityQP(DeclarativeNode):
    """min ½yᵀQy − xᵀy, Ay = b, by Cholesky's factors of Q and of the Schur complement AQ⁻¹Aᵀ.

    With u = Q⁻¹x and W = Q⁻¹Aᵀ: y = u − W ν, where A W ν = A u − b.
    """

    input_dims = (1,)
    batched_solve = True

    def __init__(self, inputs: Mapping[str, Any]):
        self.Q, self.A, self.b = (inputs[name] for name in "QAb")

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """½yᵀQy − xᵀy."""
        return y @ (self.Q @ y) / 2 - x @ y

    def equality_constraints(self, x: Tensor, y: Tensor) -> Tensor:
        """Ay − b."""
        return self.A @ y - self.b

    def solve(self, x: Tensor) -> Tensor:
        """One factorisation for the whole batch."""
        self._factor = torch.linalg.cholesky(self.Q)
        self._W = torch.cholesky_solve(self.A.T, self._factor)
        self._schur = torch.linalg.cholesky(self.A @ self._W)
        return self._solve_kkt(x.T, self.b.unsqueeze(1)).T

    def _solve_kkt(self, x: Tensor, b: Tensor) -> Tensor:
        u = torch.cholesky_solve(x, self._factor)
        return u - self._W @ torch.cholesky_solve(self.A @ u - b, self._schur)


class FactorisedQP(EqualityQP):
    """The same, whose factors precondition the backward pass: they give the inverse on the tangent space."""

    def precondition(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """The solution for the right sides v and 0."""
        return self._solve_kkt(v.unsqueeze(1), torch.zeros_like(self.b).unsqueeze(1)).squeeze(1)


class NonlinearLeastSquares(DeclarativeNode):
    """min ½‖Dy + ¼ sin(Dy) − x‖² + ½λ‖y‖², by Gauss and Newton's iteration."""

    input_dims = (1,)
    batched_solve = True

    def __init__(self, inputs: Mapping[str, Any]):
        self.D = inputs["D"]

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of squares."""
        residual = _bend(self.D @ y) - x
        return (residual @ residual + _RIDGE * (y @ y)) / 2

    def solve(self, x: Tensor) -> Tensor:
        """See `_newton`."""
        return _newton(self.D, x)


_NODES: dict[str, Callable[[Mapping[str, Any]], DeclarativeNode]] = {
    "equality QP": EqualityQP,
    "nonlinear least squares": NonlinearLeastSquares,
    "quadratic on the sphere": lambda inputs: QuadraticOnSphere(),
}


def _layer(node: Callable[[Mapping[str, Any]], DeclarativeNode], form: str) -> Prepare:
    def prepare(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        layer = DeclarativeLayer(node(inputs), form)
        x = inputs["x"].clone().requires_grad_()
        for _ in range(_WARM_UP):
            _pull_back(layer(x), x, inputs["V"])
        return {"forward": lambda _: layer(x), "backward": lambda y: _pull_back(y, x, inputs["V"])}

    return prepare


def _pull_back(y: Tensor, x: Tensor, V: Tensor) -> dict[str, Tensor]:
    (gradient,) = torch.autograd.grad(y, x, V)
    return {"y": y.detach(), "gradient": gradient}


# -- references -----------------------------------------------------------------------------------


def _kkt_solve(Q: Tensor, A: Tensor, top: Tensor, bottom: Tensor) -> tuple[Tensor, Tensor]:
    """Q y + Aᵀν = top, A y = bottom."""
    rows = len(A)
    matrix = torch.cat([torch.cat([Q, A.T], dim=1), torch.cat([A, A.new_zeros(rows, rows)], dim=1)])
    found = torch.linalg.solve(matrix, torch.cat([top, bottom], dim=1).T).T
    return found[:, : len(Q)], found[:, len(Q) :]


def _qp_by_lu(Q: Tensor, A: Tensor, b: Tensor, x: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    y, _ = _kkt_solve(Q, A, x, b.expand(len(x), -1))
    gradient, _ = _kkt_solve(Q, A, V, torch.zeros_like(b).expand(len(x), -1))
    return y, gradient


def _bend(u: Tensor) -> Tensor:
    return u + u.sin() / 4


def _newton(D: Tensor, x: Tensor) -> Tensor:
    """Newton's method on the whole batch, started with Gauss and Newton's steps; no graph."""
    y = torch.zeros_like(x)
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    goal = 1e-12 if x.dtype == torch.float64 else 1e-5
    for step in range(50):
        u = y @ D.T
        slope, residual = 1 + u.cos() / 4, _bend(u) - x
        gradient = (slope * residual) @ D + _RIDGE * y
        if float(gradient.norm()) <= goal * float(x.norm()):
            return y
        weights = slope**2 - (residual * u.sin() / 4 if step >= 5 else 0)
        hessian = torch.einsum("bn,nk,nl->bkl", weights, D, D) + _RIDGE * eye
        y = y - torch.linalg.solve(hessian, gradient)
    raise InputError("the nonlinear least squares did not converge")


def _least_squares_gradient(D: Tensor, x: Tensor, y: Tensor, V: Tensor) -> Tensor:
    """Vᵀ∂y/∂x = diag(slope) D H⁻¹ V."""
    u = y @ D.T
    slope = 1 + u.cos() / 4
    weights = slope**2 - (_bend(u) - x) * u.sin() / 4
    eye = torch.eye(len(D), dtype=D.dtype, device=D.device)
    gradients = []
    for w, s, v in zip(weights, slope, V, strict=True):
        gradients.append(s * (D @ torch.linalg.solve(D.T @ (w.unsqueeze(1) * D) + _RIDGE * eye, v)))
    return torch.stack(gradients)


# -- peers -----------------------------------------------------------------------------------------


def _differentiate_in_x(
    solve: Callable[[Mapping[str, Any]], Callable[[Tensor], Tensor]],
) -> Prepare:
    """Phases of a peer that, once built, is a function of x alone."""

    def prepare(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        solution = solve(inputs)
        x = inputs["x"].clone().requires_grad_()
        return {
            "forward": lambda _: solution(x),
            "backward": lambda y: _pull_back(y, x, inputs["V"]),
        }

    return prepare


def _qpth(inputs: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    from qpth.qp import QPFunction

    Q, A, b = (inputs[name] for name in "QAb")
    # It requires an inequality: 0 ≤ 1.
    G, h = Q.new_zeros(1, len(Q)), Q.new_ones(1)
    solve = QPFunction(verbose=-1, check_Q_spd=False)
    return lambda x: solve(Q, -x, G, h, A, b)


def _proxsuite(inputs: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    from proxsuite.torch.qplayer import QPFunction

    batch, m = inputs["x"].shape
    Q, A, b = (inputs[name].expand(batch, *inputs[name].shape).contiguous() for name in "QAb")
    G, none = Q.new_zeros(batch, 0, m), Q.new_zeros(batch, 0)
    # With its defaults the backward pass is regularised, and its gradient wrong by 1e-4 or more.
    solve = QPFunction(eps_backward=1e-12, rho_backward=1e-10, mu_backward=1e-10)
    return lambda x: solve(Q, -x, A, b, G, none, none)[0]


def _cvxpylayers(inputs: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    import cvxpy
    from cvxpylayers.torch import CvxpyLayer

    Q, A, b = (inputs[name] for name in "QAb")
    y, x = cvxpy.Variable(len(Q)), cvxpy.Parameter(len(Q))
    root = torch.linalg.cholesky(Q).T.contiguous().numpy()
    goal = cvxpy.Minimize(cvxpy.sum_squares(root @ y) / 2 - x @ y)
    layer = CvxpyLayer(cvxpy.Problem(goal, [A.numpy() @ y == b.numpy()]), [x], [y])
    return lambda x: layer(x, solver_args={"eps": 1e-8})[0]


def _torchopt_root(
    residual: Callable[[Tensor, Tensor], Tensor], solve: Callable[[Tensor], Tensor], *, normal: bool
) -> Callable[[Tensor], Tensor]:
    """The root z(x) that ``solve`` finds, differentiated by conjugate gradients."""
    import torchopt

    solvers = torchopt.linear_solve
    chosen = solvers.solve_normal_cg if normal else solvers.solve_cg
    differentiated = torchopt.diff.implicit.custom_root(
        residual, argnums=1, solve=chosen(rtol=TOLERANCE, maxiter=1000)
    )(lambda start, x: solve(x.detach()))
    return lambda x: differentiated(torch.zeros_like(x), x)


def _torchopt_qp(inputs: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    Q, A, b = (inputs[name] for name in "QAb")
    m = len(Q)

    def residual(z: Tensor, x: Tensor) -> Tensor:
        y, nu = z[:, :m], z[:, m:]
        return torch.cat([y @ Q - x + nu @ A, y @ A.T - b], dim=1)

    def solve(x: Tensor) -> Tensor:
        return torch.cat(_kkt_solve(Q, A, x, b.expand(len(x), -1)), dim=1)

    root = _torchopt_root(residual, solve, normal=True)
    return lambda x: root(x)[:, :m]


def _torchopt_least_squares(inputs: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    D = inputs["D"]

    def gradient(y: Tensor, x: Tensor) -> Tensor:
        u = y @ D.T
        return ((1 + u.cos() / 4) * (_bend(u) - x)) @ D + _RIDGE * y

    return _torchopt_root(gradient, lambda x: _newton(D, x), normal=False)


def _torchopt_sphere(inputs: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    def residual(z: Tensor, x: Tensor) -> Tensor:
        y, nu = z[:, :-1], z[:, -1:]
        return torch.cat([y - x - nu * y, ((y * y).sum(dim=1, keepdim=True) - 1) / 2], dim=1)

    def solve(x: Tensor) -> Tensor:
        size = x.norm(dim=1, keepdim=True)
        return torch.cat([x / size, 1 - size], dim=1)

    root = _torchopt_root(residual, solve, normal=True)
    return lambda x: root(x)[:, :-1]


def _theseus(mode: str) -> Callable[[Mapping[str, Any]], Callable[[Tensor], Tensor]]:
    def build(inputs: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
        import theseus

        D, m = inputs["D"], len(inputs["D"])

        def residuals(optim_vars: Any, aux_vars: Any) -> Tensor:
            y, x = optim_vars[0].tensor, aux_vars[0].tensor
            return torch.cat([_bend(y @ D.T) - x, _RIDGE**0.5 * y], dim=1)

        y = theseus.Vector(m, name="y", dtype=D.dtype)
        given = theseus.Variable(D.new_zeros(1, m), name="x")
        objective = theseus.Objective(dtype=D.dtype)
        weight = theseus.ScaleCostWeight(D.new_ones(1, 1))
        objective.add(
            theseus.AutoDiffCostFunction(
                [y], residuals, 2 * m, aux_vars=[given], cost_weight=weight, autograd_mode="vmap"
            )
        )
        layer = theseus.TheseusLayer(
            theseus.GaussNewton(
                objective, linear_solver_cls=theseus.CholeskyDenseSolver, max_iterations=30
            )
        )

        def solve(x: Tensor) -> Tensor:
            start = {"y": torch.zeros_like(x), "x": x}
            found: Tensor = layer.forward(
                start, optimizer_kwargs={"backward_mode": mode, "verbose": False}
            )[0]["y"]
            return found

        return solve

    return build


def _peer(
    name: str, solve: Callable[[Mapping[str, Any]], Callable[[Tensor], Tensor]], *packages: str,
    **more: Any,
) -> Competitor:  # fmt: skip
    return Competitor(name, _differentiate_in_x(solve), packages=packages, **more)


def _qp_peers(m: int, batch: int) -> list[Competitor]:
    matrices = _COPIES * 8.0 * batch * m * m
    return [
        _peer("qpth", _qpth, "qpth", install="--no-deps qpth", needs=matrices),
        _peer("proxsuite QPLayer", _proxsuite, "proxsuite", needs=matrices),
        _peer(
            "cvxpylayers, SCS at 1e-8", _cvxpylayers, "cvxpylayers", "cvxpy",
            needs=matrices, tolerance=1e-5,
        ),
        _peer("torchopt custom_root, normal CG", _torchopt_qp, "torchopt"),
    ]  # fmt: skip


def _least_squares_peers(m: int, batch: int) -> list[Competitor]:
    unrolled = 30 * _COPIES * 8.0 * batch * m * m
    return [
        _peer("torchopt custom_root, CG", _torchopt_least_squares, "torchopt"),
        _peer("theseus, implicit", _theseus("implicit"), "theseus", install="theseus-ai"),
        _peer(
            "theseus, unrolled", _theseus("unroll"), "theseus", install="theseus-ai", needs=unrolled
        ),
    ]


_PEERS: dict[str, Callable[[int, int], list[Competitor]]] = {
    "equality QP": _qp_peers,
    "nonlinear least squares": _least_squares_peers,
    "quadratic on the sphere": lambda m, batch: [
        _peer("torchopt custom_root, normal CG", _torchopt_sphere, "torchopt")
    ],
}
