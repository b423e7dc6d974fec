"""Input that is degenerate or wrong, one kind after the other: a defined result, or an error that says why.

Classes without a sample, one sample, samples that coincide, features that never vary, NaN and a bandwidth of
0; for `KernelRegression`, `agop`, `DeepRFM` and the deep_rfm pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
from bounds import factorised, rounding
from ddnkit_rfm import (
    DeepRFM,
    Gaussian,
    Kernel,
    KernelRegression,
    L1Laplace,
    Laplace,
    ReLUFeatures,
    SingularKernelWarning,
    UnsolvedKernelWarning,
    agop,
    label_targets,
)
from ddnkit_rfm.regression import TOLERANCE
from ddnkit_rfm.settings import DeepRFMCollapse
from ddnkit_train import Dataset, Standardise
from ddnkit_train.settings import DataSettings
from rfm_data import KERNELS, blobs, relative_error
from torch import Tensor

from ddnkit import InputError, Job

MAP = ReLUFeatures(16)
SOLVERS: list[Any] = ["cholesky", "eigh", "iterative"]


class Given(DataSettings):
    """Samples that a test made; the test set is the training set, unless there is another."""

    inputs: Any
    labels: Any
    classes: int = 3
    test_inputs: Any = None

    def build(self, *, seed: int, smoke: bool, download: bool = False) -> Dataset:
        test = self.inputs if self.test_inputs is None else self.test_inputs
        return Dataset(
            self.inputs, self.labels, self.classes, test, self.labels[: len(test)],
            Standardise.fit(torch.zeros(1, self.inputs.shape[1]), "none"),
        )  # fmt: skip


def deviation(X: Tensor) -> Tensor:
    """Root mean square of what varies."""
    return (X - X.mean(dim=0)).square().mean().sqrt()


def rows(folder: Path, inputs: Tensor, labels: Tensor, **more: Any) -> list[dict[str, Any]]:
    """The rows of a job of two layers."""
    given = {name: more.pop(name) for name in ("classes", "test_inputs") if name in more}
    settings = DeepRFMCollapse(
        data=Given(inputs=inputs, labels=labels, **given),
        **{"layers": 2, "gram_layers": (), "features": {"name": "relu", "width": 16}, **more},
    )
    found: list[dict[str, Any]] = []
    settings.run(Job("v", 0, folder, "cpu", False, found.append, progress=lambda *_: None))
    return found


# -- classes without a sample --------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_regression_predicts_the_value_of_a_missing_class(solver: Any) -> None:
    X, y = blobs()
    with_missing, without = label_targets(y, classes=4), label_targets(y)
    fitted = KernelRegression(Laplace(2.0), solver=solver).fit(X, with_missing)
    expected = KernelRegression(Laplace(2.0), solver=solver).fit(X, without)
    found = fitted.predict(X)
    # Of two solutions, each with a residual of at most TOLERANCE ‖Y‖.
    atol = 2 * TOLERANCE * float(with_missing.norm())
    torch.testing.assert_close(found[:, :3], expected.predict(X), rtol=0, atol=atol)
    torch.testing.assert_close(found[:, 3], -torch.ones(60).to(X), rtol=0, atol=atol)


def test_agop_of_a_missing_class_coded_by_zeros_is_none() -> None:
    X, y = blobs()
    machines = [
        KernelRegression(Laplace(2.0)).fit(X, label_targets(y, "one_hot", classes=C))
        for C in (3, 5)
    ]
    assert (machines[1].coefficients[:, 3:] == 0).all()
    own, more = (agop(Laplace(2.0), X, machine.coefficients) for machine in machines)
    torch.testing.assert_close(more, own)


def test_machine_with_a_missing_class_never_predicts_it() -> None:
    X, y = blobs()
    machine = DeepRFM(Laplace(2.0), 1, MAP).fit(X, y, classes=5)
    assert machine.decision_function(X).shape == (60, 5)
    assert machine.predict(X).max() == 2


def test_pipeline_names_the_classes_that_are_there(tmp_path: Path) -> None:
    X, y = blobs()
    with pytest.raises(InputError, match=r"\b3\b.*\b4 classes"):
        rows(tmp_path, X, y, classes=4)


# -- one sample ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_one_sample_everywhere(kernel: Kernel) -> None:
    X, Y = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, -1.0]])
    fitted = KernelRegression(kernel).fit(X, Y)
    torch.testing.assert_close(fitted.predict(X), Y)
    assert torch.equal(agop(kernel, X, fitted.coefficients), torch.zeros(2, 2))
    machine = DeepRFM(kernel, 2, MAP).fit(X, torch.tensor([0]))
    assert machine.predict(torch.randn(4, 2)).tolist() == [0] * 4


def test_one_sample_in_the_pipeline(tmp_path: Path) -> None:
    X = torch.randn(5, 3)
    found = rows(tmp_path, X, torch.zeros(5, dtype=torch.int64), classes=1, samples=1)
    for row in found:
        assert row["samples"] == 1 and row["train_top1"] == 100 and row["solved"] == 1
        assert all(math.isnan(row[name]) for name in row if name.startswith("dnc"))
    with pytest.raises(InputError, match=r"\b1\b.*\b3 classes"):
        rows(tmp_path, X, torch.arange(5) % 3, samples=1)


# -- samples that coincide, and features that never vary ------------------------------------------


def test_samples_that_all_coincide_get_the_mean_of_their_targets() -> None:
    X, (_, y) = torch.full((60, 4), 3.0, dtype=torch.float64), blobs()
    with pytest.warns(SingularKernelWarning, match="59 of 60"), pytest.warns(UnsolvedKernelWarning):
        fitted = KernelRegression(Laplace(2.0)).fit(X, label_targets(y))
    torch.testing.assert_close(fitted.predict(X), torch.full((60, 3), -1 / 3).to(X))
    assert torch.equal(agop(Laplace(2.0), X, fitted.coefficients), torch.zeros(4, 4).to(X))
    with pytest.warns(SingularKernelWarning), pytest.warns(UnsolvedKernelWarning):
        machine = DeepRFM(Laplace(2.0), 2, MAP).fit(X, y)
    assert machine.decision_function(X).isfinite().all()


def test_duplicates_in_the_pipeline_are_recorded(tmp_path: Path) -> None:
    X, y = blobs()
    doubled = torch.cat([X, X[:5]]), torch.cat([y, y[:5]])
    for row in rows(tmp_path, *doubled):
        assert (row["rank"], row["solved"], row["train_top1"]) == (60, 1, 100)


def test_pipeline_of_images_that_are_all_alike(tmp_path: Path) -> None:
    for row in rows(tmp_path, torch.full((30, 4), 7.0), torch.arange(30) % 3):
        assert (row["rank"], row["solved"]) == (1, 0)
        assert 0 <= row["train_top1"] <= 100  # the classes are level, but for rounding
        assert math.isnan(row["dnc1_input"])


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("outputs", [2, 200])
def test_a_constant_feature_changes_no_predictor_and_has_no_part_in_the_agop(
    kernel: Kernel, outputs: int
) -> None:
    X, _ = blobs()
    Y = torch.randn(60, outputs, dtype=X.dtype)
    constant = torch.cat([X, torch.full((60, 1), 1e3, dtype=X.dtype)], dim=1)
    without, fitted = (KernelRegression(kernel).fit(A, Y) for A in (X, constant))
    torch.testing.assert_close(fitted.predict(constant), without.predict(X))
    M = agop(kernel, constant, fitted.coefficients)
    # Sums of differences of samples, whose entries are rounded beside the constant.
    sums = rounding(X, 60 * outputs, condition=float(constant.abs().max() / deviation(X)))
    assert M[-1].abs().max() < sums * M.abs().max()
    solved = factorised(X, 60, condition=float(torch.linalg.cond(kernel(X))))
    expected = agop(kernel, X, without.coefficients)
    assert relative_error(M[:-1, :-1], expected) < sums + 2 * solved


def test_pipeline_without_a_constant_feature_is_the_same(tmp_path: Path) -> None:
    X, y = blobs()
    constant = torch.cat([X, torch.full((60, 1), 1e3, dtype=X.dtype)], dim=1)
    identity = {"features": {"name": "identity"}}
    plain, more = (
        rows(tmp_path / name, A, y, **identity) for name, A in (("a", X), ("b", constant))
    )
    # A system of 60 equations, with distances of samples that are rounded beside the constant.
    kernel = DeepRFMCollapse(data=Given(inputs=X, labels=y)).kernel.build()
    condition = float(torch.linalg.cond(kernel(X))) * float(constant.abs().max() / deviation(X))
    rel = factorised(X, 60, condition=condition)
    for row, other in zip(plain, more, strict=True):
        assert other["dnc1_agop"] == pytest.approx(row["dnc1_agop"], rel=rel)
        assert other["test_top1"] == row["test_top1"]


# -- NaN and bandwidths ----------------------------------------------------------------------------


def test_nan_is_refused_with_its_row() -> None:
    X, y = blobs()
    Y, bad = label_targets(y), X.clone()
    bad[7, 2] = math.nan
    fitted = KernelRegression(Laplace(2.0)).fit(X, Y)
    machine = DeepRFM(Laplace(2.0), 1, MAP).fit(X, y)
    calls: list[Callable[[], object]] = [
        lambda: KernelRegression(Laplace(2.0)).fit(bad, Y),
        lambda: fitted.predict(bad),
        lambda: agop(Laplace(2.0), bad, fitted.coefficients),
        lambda: agop(Laplace(2.0), X, fitted.coefficients, centres=bad),
        lambda: DeepRFM(Laplace(2.0), 1, MAP).fit(bad, y),
        lambda: machine.predict(bad),
    ]
    for call in calls:
        with pytest.raises(InputError, match="row 7"):
            call()


@pytest.mark.parametrize("standardise", [True, False])
def test_nan_in_the_pipeline_is_refused(standardise: bool, tmp_path: Path) -> None:
    X, y = blobs()
    bad = X.clone()
    bad[7, 2] = math.nan
    with pytest.raises(InputError, match="row 7"):
        rows(tmp_path, bad, y, standardise=standardise)
    with pytest.raises(InputError, match="row 7"):
        rows(tmp_path, X, y, standardise=standardise, test_inputs=bad)


@pytest.mark.parametrize("kind", [Laplace, Gaussian, L1Laplace])
def test_a_bandwidth_of_zero_reaches_no_machine(kind: type[Kernel]) -> None:
    with pytest.raises(InputError, match=r"bandwidth .*\b0\.0$"):
        KernelRegression(kind(0.0))
    with pytest.raises(InputError, match=r"bandwidth .*\b0\.0$"):
        DeepRFM(kind(0.0), 1)


@pytest.mark.parametrize("section", ["kernel", "features"])
def test_a_bandwidth_of_zero_in_a_recipe_is_refused(section: str) -> None:
    kernel = {"name": "laplace", "bandwidth": 0}
    given = {
        "kernel": {"kernel": kernel},
        "features": {"features": {"name": "cosine", "kernel": kernel}},
    }
    X, y = blobs()
    with pytest.raises(pydantic.ValidationError, match="bandwidth"):
        DeepRFMCollapse(data=Given(inputs=X, labels=y), **given[section])
