"""A job of the deep_rfm pipeline: Algorithm 1 a layer at a time, training and test samples side by side.

The same as `DeepRFM` with the job's seed, but that no layer is kept: what a layer hands to the next is all
that an interrupted job needs to go on.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from ddnkit_train import Dataset
from torch import Tensor

from ddnkit import InputError, Job

from .collapse import dnc1, dnc2
from .deep_rfm import fitted_layer
from .deep_rfm_state import LayerState, Saved
from .gram_pictures import write_gram
from .preparation import Standardisation, label_targets, unit_rows
from .regression import KernelRegression, SingularKernelWarning, UnsolvedKernelWarning

if TYPE_CHECKING:
    from .settings import DeepRFMCollapse


def run_layers(settings: DeepRFMCollapse, job: Job) -> None:
    """Run one job: `DeepRFMCollapse.run`."""
    if job.rank == 0:  # one device holds the kernel matrix: further processes have nothing to do
        _Layers(settings, job).run()


@dataclass(frozen=True)
class _Labelled:
    """Training and test samples ``(n, d)`` and ``(m, d)``, m = 0 without a test set, and their labels."""

    train: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int


def _load(settings: DeepRFMCollapse, job: Job) -> _Labelled:
    """The samples of a job, standardised, on its device."""
    data: Any = settings.data.build(seed=job.seed, smoke=job.smoke, download=job.download)
    name = type(settings.data).__name__
    if not isinstance(data, Dataset):
        raise InputError(
            f"data: {name} reads its samples while a network trains; a kernel matrix needs them in "
            "memory, as those of mnist or cifar10 are"
        )
    if data.inputs.ndim < 2:
        raise InputError(f"data: {name} has indices for samples; a kernel needs features")
    n = settings.taken(data.samples, smoke=job.smoke)
    present = len(data.labels[:n].unique())
    if present < data.classes:
        raise InputError(
            f"samples: the first {n} samples are of {present} of the {data.classes} classes; every "
            "class needs one (a data set may be ordered by class)"
        )
    dtype = getattr(torch, settings.dtype(n))
    train = data.inputs[:n].to(job.device).flatten(1).to(dtype)
    test, test_labels = train[:0], data.labels[:0]
    if data.test_inputs is not None and data.test_labels is not None:
        test = data.test_inputs[: settings.test_samples].to(job.device).flatten(1).to(dtype)
        test_labels = data.test_labels[: settings.test_samples]
    if settings.standardise:
        standardisation = Standardisation.fit(train)
        train, test = standardisation(train), standardisation(test)
    labels, test_labels = data.labels[:n].to(job.device), test_labels.to(job.device)
    return _Labelled(train, labels, test, test_labels, data.classes)


class _Layers:
    """One job, from its saved state or its data to its last layer."""

    def __init__(self, settings: DeepRFMCollapse, job: Job) -> None:
        self.settings, self.job = settings, job
        self.total = settings.depth(smoke=job.smoke)
        self.maps = settings.features.build(smoke=job.smoke)
        self.regression = KernelRegression(
            settings.kernel.build(), settings.ridge, settings.solver, settings.memory
        )
        self.data = _load(settings, job)
        targets = label_targets(self.data.labels, settings.labels, classes=self.data.classes)
        self.targets = targets.to(self.data.train)
        # What the next layer is given, before it divides each row by its norm.
        self.train, self.test = self.data.train, self.data.test
        self.generator = torch.Generator().manual_seed(job.seed)
        self.state = LayerState(job.folder, job.variant, job.seed)

    def run(self) -> None:
        """Run every layer that is left."""
        done = self._restore()
        self.job.progress(done, self.total, {})
        for number in range(done + 1, self.total + 1):
            began = time.perf_counter()
            row = self._layer(number)
            self.job.record({**row, "seconds": time.perf_counter() - began})
            shown = ("dnc1_input", "test_top1")
            figures = {name: row[name] for name in shown if row[name] is not None}
            self.job.progress(number, self.total, figures)
            if number < self.total:
                self._keep(number)

    def _layer(self, number: int) -> dict[str, Any]:
        """Take the samples through layer l; its row."""
        X, Z, labels = unit_rows(self.train), unit_rows(self.test), self.data.labels
        if number == 1:
            self._picture(1, X)
        predictor = self._fitted(X)
        layer = fitted_layer(predictor, self.maps, self.generator, memory=self.settings.memory)
        projected = X @ layer.root
        self._picture(number + 1, projected)
        self.train, self.test = layer.features(projected), layer.features(Z @ layer.root)
        stages = {"input": X, "agop": projected, "features": self.train}
        report = predictor.report
        return {
            "epoch": number,
            "step": number,
            **{f"dnc1_{stage}": float(dnc1(x, labels)) for stage, x in stages.items()},
            **{f"dnc2_{stage}": float(dnc2(x, labels)) for stage, x in stages.items()},
            "train_top1": _top1(predictor, X, labels),
            "test_top1": _top1(predictor, Z, self.data.test_labels),
            "residual": report.residual,
            "solved": int(report.solved),
            "rank": report.rank,
            "iterations": report.iterations,
            "samples": len(X),
            "test_samples": len(Z),
        }

    def _fitted(self, X: Tensor) -> KernelRegression:
        """The predictor of a layer; how well its equations were solved is in its row, not in warnings."""
        with warnings.catch_warnings():
            for kind in (SingularKernelWarning, UnsolvedKernelWarning):
                warnings.simplefilter("ignore", kind)
            return self.regression.fit(X, self.targets)

    def _picture(self, number: int, X: Tensor) -> None:
        if number in self.settings.gram_layers and number <= self.total:
            write_gram(self.job.folder, number, X, self.data.labels)

    def _restore(self) -> int:
        """Go on from the saved state; the layers that are done."""
        samples = self.train, self.test
        saved = self.state.load(self.job.device, layers=self.total, like=samples)
        if saved is None:
            self.job.rewind(0)
            return 0
        self.train, self.test = saved.train, saved.test
        self.generator.set_state(saved.random)
        self.job.rewind(saved.layer, saved.rows)
        return saved.layer

    def _keep(self, number: int) -> None:
        random = self.generator.get_state()
        self.state.save(Saved(number, self.train, self.test, random, self.job.checksum()))
        if self.job.stopping():
            raise KeyboardInterrupt


def _top1(predictor: KernelRegression, X: Tensor, labels: Tensor) -> float | None:
    """Per cent of the samples that are predicted right; None without samples."""
    if not len(X):
        return None
    right = predictor.predict(X).argmax(dim=1) == labels
    return 100 * float(right.to(torch.float64).mean())
