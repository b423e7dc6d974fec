"""``ddnkit bench nearest_etf``: one solve of the nearest simplex ETF, and its gradient.

    argmin over UᵀU = I of  ‖H − U M̃‖² + (δ/2) ‖U − P‖²,   δ = 1e-3, M̃ = (I − 11ᵀ/C)/√(C−1),

warm-started as in training: P is the solution for class means that differ by one per cent. The result is
∂ℓ/∂H for a random ∂ℓ/∂U. The reference is the closed form in float64.

Iterative competitors start from P, and stop at a Riemannian gradient of 1e-6, pymanopt's default. The table
shows how far their objective is above that of the closed form.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ddnkit_etf import NearestETF, etf_of_frame, haar_frame, nearest_etf
from torch import Tensor

from ddnkit import DdnkitWarning, DeclarativeLayer, Problem, Solution, Solver, Status
from ddnkit.bench import Case, Comparison, Competitor, Floor, Request
from ddnkit.linalg import polar, polar_adjoint, symmetric_factors

from . import Prepare

DELTA = 1e-3
#: How far, relatively, the class means have moved since P was the solution.
_STEP = 0.01
#: (dC)×(dC) matrices held at once in a dense backward: Hessian, the rows it is stacked from, its factors.
_DENSE_COPIES = 4
_GRADIENT_NORM = 1e-6


class NearestETFBench(Comparison):
    """The nearest simplex ETF and its gradient: closed form, general forms, the paper's own way, SVD.

    A case's size: d, C. The default ones are those of UFM-10, 100, 200 and 1000 and of a ResNet-50 on
    CIFAR-100 and ImageNet (*Guiding Neural Collapse*, Table 3 and appendix B).
    """

    size_names = ("d", "C")
    sizes = ((512, 10), (1024, 100), (1024, 200), (1024, 1000), (2048, 100), (2048, 1000))
    #: Of U and of the gradient. General forms solve κ ≈ 10³ systems in float32.
    tolerance = 1e-4

    def cases(self, request: Request) -> list[Case]:
        """Each size in general, and the first one at neural collapse: all singular values equal."""
        sizes = self.asked_sizes(request)
        return [*map(Case, sizes), Case(sizes[0], "at collapse, float64")]

    def small(self, case: Case) -> Case:
        """16×8."""
        return Case((16, 8), case.kind)

    def inputs(self, case: Case, dtype: torch.dtype) -> Mapping[str, Any]:
        """Class means H of unit norm, P of the step before, ∂ℓ/∂U."""
        d, C = case.size
        before = torch.randn(d, C, dtype=torch.float64)
        if case.kind:
            before = etf_of_frame(haar_frame(d, C, dtype=torch.float64))
            frame = polar(_target(before / before.norm(), before)).U
            # In float64, whatever dtype was asked for: rounding to float32 would make the values differ.
            return {"H": before / before.norm(), "P": frame, "V": torch.randn(d, C).double()}
        H = before + _STEP * torch.randn(d, C, dtype=torch.float64)
        A = _target(before / before.norm(), haar_frame(d, C, dtype=torch.float64))
        frame = polar(A).U
        inputs = {"H": H / H.norm(), "P": frame, "V": torch.randn(d, C, dtype=torch.float64)}
        return {name: value.to(dtype) for name, value in inputs.items()}

    def floor(self, case: Case) -> Floor:
        """AᵀA, A S⁻¹; UᵀV, V S⁻¹, U(…); and two products C×C×C each way."""
        d, C = case.size
        return Floor(
            10.0 * d * C**2 + 8.0 * C**3,
            4.0 * d * C * 8,
            "five products d×C×C, four C×C×C",
        )

    def reference(self, case: Case, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """The closed form in float64, by singular values."""
        H, P, V = (inputs[name].double() for name in "HPV")
        U, Q, s = polar(_target(H, P))
        gradient = 2 / (H.shape[-1] - 1) ** 0.5 * _centre(polar_adjoint(U, Q, s, V))
        return {"U": U, "gradient": gradient}

    def columns(
        self, case: Case, inputs: Mapping[str, Any], results: Mapping[str, Any]
    ) -> Mapping[str, str]:
        """The objective, less that of the reference."""
        H, P = (inputs[name].double() for name in "HP")
        node = NearestETF(DELTA)
        best = node.objective(H, P, polar(_target(H, P)).U)
        excess = node.objective(H, P, torch.as_tensor(results["U"]).to(H)) - best
        return {"objective − least": f"{float(excess):.0e}"}

    def competitors(self, case: Case, device: str) -> Sequence[Competitor]:
        """The closed form first."""
        d, C = case.size
        dense = _DENSE_COPIES * 4.0 * (d * C) ** 2
        return [
            Competitor("closed_form", _layer("closed_form")),
            Competitor("torch.linalg.svd, differentiated", _svd),
            Competitor(
                "pymanopt trust regions, closed-form backward",
                _pymanopt("closed_form"),
                packages=("pymanopt",),
                tolerance=1e-2,
            ),
            Competitor(
                "geotorch with L-BFGS, forward only",
                _geotorch,
                packages=("geotorch",),
                # Its chart is a matrix exponential of d×d.
                needs=20 * 8.0 * d * d,
                tolerance=1e-2,
            ),
            Competitor("krylov", _layer("krylov"), tolerance=1e-1),
            Competitor(
                "embedded_field", _layer("embedded_field"), needs=dense, extrapolates=True,
                tolerance=1e-1,
            ),
            Competitor(
                "dense (Proposition 1)", _layer("dense"), needs=dense, extrapolates=True,
                tolerance=1e-1,
            ),
            Competitor(
                "the paper's way: pymanopt trust regions, dense backward",
                _pymanopt("dense"),
                packages=("pymanopt",),
                needs=dense,
                extrapolates=True,
                tolerance=1e-1,
            ),
        ]  # fmt: skip


def _centre(A: Tensor) -> Tensor:
    return A - A.mean(dim=-1, keepdim=True)


def _target(H: Tensor, P: Tensor) -> Tensor:
    return 2 / (H.shape[-1] - 1) ** 0.5 * _centre(H) + DELTA * P


def _pull_back(U: Tensor, H: Tensor, V: Tensor) -> dict[str, Tensor]:
    # In float32 the dense forms do not always reach their tolerance; the table shows the difference.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DdnkitWarning)
        (gradient,) = torch.autograd.grad(U, H, V)
    return {"U": U.detach(), "gradient": gradient}


def _layer(form: str) -> Prepare:
    def prepare(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        H, P, V = inputs["H"].clone().requires_grad_(), inputs["P"], inputs["V"]
        layer = None
        if form != "closed_form":
            layer = DeclarativeLayer(NearestETF(DELTA), form, policy="warn")
        return {
            "forward": lambda _: layer(H, P) if layer else nearest_etf(H, P, DELTA),
            "backward": lambda U: _pull_back(U, H, V),
        }

    return prepare


def _svd(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Computed in float64, as the closed form is: float32 loses the null direction."""
    H = inputs["H"].clone().requires_grad_()
    P = inputs["P"].double()

    def forward(_: object) -> Tensor:
        left, _, right = torch.linalg.svd(_target(H.double(), P), full_matrices=False)
        return (left @ right).to(H.dtype)

    return {"forward": forward, "backward": lambda U: _pull_back(U, H, inputs["V"])}


class _FixedSolution(Solver):
    """Returns a solution that was found elsewhere."""

    name = "given"
    point: Tensor

    def solve(self, problem: Problem, start: Tensor | None = None) -> Solution:
        """``point``, for a batch of one."""
        return Solution(self.point.unsqueeze(0), Status.CONVERGED, solver=self.name)


def _pymanopt(form: str) -> Prepare:
    """pymanopt itself, with every derivative in closed form; it always computes in float64."""

    def prepare(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        import pymanopt

        H, P, V = (inputs[name] for name in "HPV")
        start = P.double().cpu().numpy()
        manifold = pymanopt.manifolds.Stiefel(*start.shape)
        optimizer = pymanopt.optimizers.TrustRegions(
            min_gradient_norm=_GRADIENT_NORM, verbosity=0, max_time=1e9
        )
        on = pymanopt.function.numpy(manifold)

        def forward(_: object) -> Tensor:
            A = _target(H.double(), P.double()).cpu().numpy()
            problem = pymanopt.Problem(
                manifold,
                on(lambda U: -(A * U).sum()),
                euclidean_gradient=on(lambda U: -A),
                euclidean_hessian=on(lambda U, Z: 0 * Z),
            )
            return torch.from_numpy(optimizer.run(problem, initial_point=start).point).to(H)

        def closed_form(U: Tensor) -> dict[str, Tensor]:
            Q, s = symmetric_factors(U.double(), _target(H, P).double())
            A_gradient = polar_adjoint(U.double(), Q, s, V.double())
            gradient = 2 / (H.shape[-1] - 1) ** 0.5 * _centre(A_gradient)
            return {"U": U, "gradient": gradient.to(H.dtype)}

        def dense(U: Tensor) -> dict[str, Tensor]:
            solver, leaf = _FixedSolution(), H.clone().requires_grad_()
            solver.point = U
            layer = DeclarativeLayer(NearestETF(DELTA, solver=solver), "dense", policy="warn")
            return _pull_back(layer(leaf, P), leaf, V)

        return {"forward": forward, "backward": closed_form if form == "closed_form" else dense}

    return prepare


def _geotorch(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """L-BFGS in geotorch's chart of the manifold with base point P. It has no gradient in H."""

    def forward(_: object) -> dict[str, Tensor]:
        import geotorch

        H, P = inputs["H"].double(), inputs["P"].double()
        manifold = geotorch.Stiefel(P.shape).to(P)
        X = manifold.right_inverse(P).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [X],
            max_iter=100,
            history_size=20,
            line_search_fn="strong_wolfe",
            tolerance_grad=_GRADIENT_NORM,
            tolerance_change=0.0,
        )
        A = _target(H, P)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = -(A * manifold(X)).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return {"U": manifold(X).detach().to(inputs["H"])}

    return {"forward": forward}
