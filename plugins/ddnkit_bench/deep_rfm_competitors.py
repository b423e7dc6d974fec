"""The competitors of ``ddnkit bench deep_rfm``: ddnkit, torch's autograd, scikit-learn and xrfm.

xrfm is *xRFM* on the package index (Recursive Feature Machines). It is called by its own functions and with
its own settings where it has some, but with one leaf in its tree, no ridge, every sample in the AGOP and no
choice of an iteration by validation. It solves in the precision that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from ddnkit_rfm import (
    DeepRFM,
    Gaussian,
    KernelRegression,
    Laplace,
    ReLUFeatures,
    agop,
    matrix_sqrt,
)
from ddnkit_rfm.factorisations import cholesky
from ddnkit_rfm.kernel_agop import gradient_sum
from ddnkit_rfm.kernel_system import KernelSystem, residuals
from torch import Tensor
from torch.func import jacrev, vmap

from ddnkit import InputError
from ddnkit.bench import Case, Competitor

from . import Prepare

#: Of the Laplace kernel of layers and machines, and the width of their ReLU features.
BANDWIDTH, WIDTH = 2.0, 1024
#: AGOPs of a machine; it has one regression more.
DEPTH = 2

#: Of the Gaussian kernel ridge regression, whose kernel matrix without ridge is singular to working
#: precision.
_GAUSSIAN, _RIDGE = 1.0, 1e-3
#: Samples up to which autograd's Jacobians take less than minutes, and how many are computed at once.
_LARGEST_AUTOGRAD, _JACOBIANS = 4000, 100
#: Allowed difference of a layer in float32.
_SINGLE = 1e-2
#: More bytes than any machine has: no limit.
_MEMORY = 1 << 62
#: Samples whose gradients xrfm computes at once.
_BATCH = 10_000


def _layer_competitors(case: Case, device: str) -> list[Competitor]:
    slow = case.size[0] > _LARGEST_AUTOGRAD
    return [
        Competitor("ddnkit", _layer()),
        Competitor("ddnkit, AGOP by gradients", _layer(by_gradients=True)),
        Competitor("ddnkit, iterative", _iterative_layer, tolerance=1e-4),
        Competitor("ddnkit, float32", _layer(single=True), tolerance=_SINGLE),
        Competitor(
            "torch.func Jacobians",
            _autograd_layer,
            refuses=f"left out: minutes above n = {_LARGEST_AUTOGRAD:,}" if slow else "",
        ),
        *_xrfm(case, _xrfm_layer, _SINGLE),
    ]


def _layer(*, by_gradients: bool = False, single: bool = False) -> Prepare:
    """`KernelRegression.fit` and `fit_layer` of ddnkit_rfm, each step as a phase."""

    def prepare(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        kernel = Laplace(BANDWIDTH)
        X, Y, W = (
            inputs[name].to(torch.float32 if single else inputs[name].dtype) for name in "XYW"
        )

        def matrix(_: object) -> Tensor:
            return KernelSystem(kernel, X.to(torch.float64), 0.0, _MEMORY).matrix()

        def solve(K: Tensor) -> Tensor:
            factor, wide = cholesky(K), Y.to(torch.float64)
            if factor is None:
                raise InputError("the kernel matrix is singular: samples coincide")
            solution = factor.solve(wide)
            alpha = solution.to(Y.dtype).contiguous()
            residuals(factor.apply, wide, [solution, alpha.to(torch.float64)])
            return alpha

        def outer(alpha: Tensor) -> Tensor:
            if by_gradients:
                return gradient_sum(kernel, X, X, alpha, _MEMORY) / len(X)
            return agop(kernel, X, alpha)

        return {
            "kernel": matrix,
            "solve": solve,
            "AGOP": outer,
            "root and map": lambda M: _layer_results(X, M, matrix_sqrt(M).root, W),
        }

    return prepare


def _iterative_layer(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """K is computed anew in each iteration, and never held."""
    kernel = Laplace(BANDWIDTH)
    X, Y, W = (inputs[name] for name in "XYW")
    return {
        "solve": lambda _: KernelRegression(kernel, solver="iterative").fit(X, Y).coefficients,
        "AGOP": lambda alpha: agop(kernel, X, alpha),
        "root and map": lambda M: _layer_results(X, M, matrix_sqrt(M).root, W),
    }


def _autograd_layer(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """By torch alone: Jacobians of the predictor, vectorised over a batch of samples."""
    X, Y, W = (inputs[name] for name in "XYW")
    squares = X.square().sum(dim=1)

    def solve(K: Tensor) -> Tensor:
        return torch.cholesky_solve(Y, torch.linalg.cholesky(K))

    def outer(alpha: Tensor) -> Tensor:
        def predictor(x: Tensor) -> Tensor:
            distances = (x.dot(x) - 2 * X @ x + squares).clamp(min=1e-12).sqrt()
            return (distances / -BANDWIDTH).exp() @ alpha

        total = X.new_zeros(X.shape[1], X.shape[1])
        for block in X.split(_JACOBIANS):
            J = vmap(jacrev(predictor))(block).flatten(0, 1)
            total.addmm_(J.T, J)
        return total / len(X)

    def end(M: Tensor) -> Mapping[str, Tensor]:
        eigenvalues, V = torch.linalg.eigh(M)
        return _layer_results(X, M, (V * eigenvalues.clamp(min=0).sqrt()) @ V.T, W)

    return {
        "kernel": lambda _: (torch.cdist(X, X) / -BANDWIDTH).exp_(),
        "solve": solve,
        "AGOP": outer,
        "root and map": end,
    }


def _regression_competitors(case: Case, device: str) -> list[Competitor]:
    return [
        Competitor("ddnkit", _regression),
        Competitor(
            "scikit-learn KernelRidge",
            _kernel_ridge,
            packages=("sklearn",),
            refuses="left out: it has no GPU form" if device == "cuda" else "",
        ),
    ]


def _regression(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    regression = KernelRegression(Gaussian(_GAUSSIAN), _RIDGE)
    return {
        "fit": lambda _: regression.fit(inputs["X"], inputs["Y"]),
        "predict": lambda fitted: {"scores": fitted.predict(inputs["Z"])},
    }


def _kernel_ridge(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    from sklearn.kernel_ridge import KernelRidge

    X, Y, Z = (inputs[name].numpy() for name in "XYZ")
    regression = KernelRidge(alpha=_RIDGE, kernel="rbf", gamma=1 / (2 * _GAUSSIAN**2))
    return {
        "fit": lambda _: regression.fit(X, Y),
        "predict": lambda fitted: {"scores": torch.from_numpy(fitted.predict(Z))},
    }


def _machine_competitors(case: Case, device: str) -> list[Competitor]:
    return [
        Competitor("ddnkit", _machine),
        *_xrfm(case, _xrfm_machine, _SINGLE),
        Competitor("ddnkit DeepRFM, another model", _deep_rfm, tolerance=float("inf")),
    ]


def _machine(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """xrfm's recursion: k(x, z) of x M^½ and z M^½, M the AGOP in x over its largest entry."""
    X, Y, Z = (inputs[name] for name in "XYZ")
    kernel = Laplace(BANDWIDTH)

    def fit(_: object) -> tuple[KernelRegression, Tensor]:
        root = torch.eye(X.shape[1]).to(X)
        for _iteration in range(DEPTH):
            projected = X @ root
            alpha = KernelRegression(kernel).fit(projected, Y).coefficients
            M = root @ agop(kernel, projected, alpha) @ root
            root = matrix_sqrt((M + M.T) / (2 * M.max())).root
        return KernelRegression(kernel).fit(X @ root, Y), root

    def predict(fitted: tuple[KernelRegression, Tensor]) -> Mapping[str, Tensor]:
        regression, root = fitted
        return {"scores": regression.predict(Z @ root)}

    return {"fit": fit, "predict": predict}


def _deep_rfm(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """`DeepRFM`, with random features after each AGOP, and rows of unit length in each layer."""
    machine = DeepRFM(
        Laplace(BANDWIDTH),
        DEPTH,
        ReLUFeatures(WIDTH),
        standardise=False,
        keep_predictors=False,
    )
    return {
        "fit": lambda _: machine.fit(inputs["X"], inputs["Y"]),
        "predict": lambda fitted: {"scores": fitted.decision_function(inputs["Z"])},
    }


def _layer_results(X: Tensor, M: Tensor, root: Tensor, W: Tensor) -> dict[str, Tensor]:
    """The last step of a layer, and the results that are compared."""
    return {"AGOP": M, "features": torch.relu_(X @ root @ W.T)}


def _xrfm(
    case: Case,
    prepare: Callable[[torch.dtype | None], Prepare],
    single: float,
) -> list[Competitor]:
    """xrfm in the precision of the inputs, and in float32 with the allowed difference ``single``."""
    n, _, C = case.size
    # The gradients' einsum holds its n×n×C coefficients more than twice.
    needs = 2.7 * 8 * C * n * min(n, _BATCH)
    return [
        Competitor("xrfm", prepare(None), ("xrfm",), needs),
        Competitor("xrfm, float32", prepare(torch.float32), ("xrfm",), needs / 2, tolerance=single),
    ]


def _xrfm_layer(dtype: torch.dtype | None) -> Prepare:
    """The steps of ``RFM.fit``, each as a phase."""

    def prepare(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        from xrfm.rfm_src.kernels import LaplaceKernel
        from xrfm.rfm_src.utils import matrix_power

        X, Y, W = (inputs[name].to(dtype or inputs[name].dtype) for name in "XYW")
        kernel = LaplaceKernel(bandwidth=BANDWIDTH, exponent=1.0)

        def outer(alpha: Tensor) -> Tensor:
            M = torch.zeros(X.shape[1], X.shape[1]).to(X)
            for block in X.split(_BATCH):
                M += kernel.get_agop(X, block, alpha.T)
            return M / len(X)

        def end(M: Tensor) -> Mapping[str, Tensor]:
            largest = M.max()
            root = largest.sqrt() * matrix_power(M / largest, 0.5, verbose=False)
            return _layer_results(X, M, root, W)

        return {
            "kernel": lambda _: kernel.get_kernel_matrix(X, X),
            "solve": lambda K: torch.linalg.solve(K, Y),
            "AGOP": outer,
            "root and map": end,
        }

    return prepare


def _xrfm_machine(dtype: torch.dtype | None) -> Prepare:
    """``RFM.fit`` and ``predict``, with the faster form of the kernel, by M instead of M^½.

    It must be given validation samples; one training sample serves, and decides nothing.
    """

    def prepare(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        from xrfm.rfm_src import RFM

        X, Y, Z = (inputs[name].to(dtype or inputs[name].dtype) for name in "XYZ")

        def fit(_: object) -> Any:
            model = RFM(
                "l2_high_dim",
                iters=DEPTH,
                bandwidth=BANDWIDTH,
                device=str(X.device),
                tuning_metric="mse",
                verbose=False,
            )
            model.fit(
                (X, Y),
                (X[:1], Y[:1]),
                reg=0.0,
                verbose=False,
                return_best_params=False,
                early_stop_rfm=False,
                total_points_to_sample=len(X),
            )
            return model

        return {"fit": fit, "predict": lambda model: {"scores": model.predict(Z)}}

    return prepare


#: By kind of case, from the case and the device.
COMPETITORS: Mapping[str, Callable[[Case, str], list[Competitor]]] = {
    "layer": _layer_competitors,
    "regression": _regression_competitors,
    "machine": _machine_competitors,
}
