"""A job of the deep_rfm pipeline: Algorithm 1 layer by layer, on training and test samples together.

The result is that of `DeepRFM` with the job's seed, but no layer is kept: an interrupted job goes on from the
samples as its last layer left them. They are saved in one file, written and replaced as a training's
checkpoint is (`ddnkit_train.write_sealed`): at any moment it is the old or the new one, and it ends in a
checksum.
"""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ddnkit_collapse import class_statistics
from ddnkit_train import Dataset, cannot_go_on, read_sealed, write_sealed
from ddnkit_train.samplers import stratified_subset
from torch import Tensor

from ddnkit import InputError, Job

from .collapse import dnc1, dnc2
from .deep_rfm import fit_layer
from .regression import KernelRegression, SingularKernelWarning, UnsolvedKernelWarning
from .samples import Standardisation, label_targets, unit_rows

if TYPE_CHECKING:
    from .settings import DeepRFMCollapse

#: Of the file that a job goes on from.
_FORMAT = 2
#: Samples in the picture of a Gram matrix at most.
_PICTURE_SAMPLES = 500


def run_layers(settings: DeepRFMCollapse, job: Job) -> None:
    """Run one job: `DeepRFMCollapse.run`."""
    if job.rank == 0:  # one device holds the kernel matrix: further processes have nothing to do
        _DeepRFMJob(settings, job).run()


@dataclass(frozen=True)
class _Data:
    """Training samples ``(n, d)``, test samples ``(m, d)`` (m = 0 if there are none), and their labels."""

    train: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int


def _load(settings: DeepRFMCollapse, job: Job) -> _Data:
    """The samples of a job, standardised, on its device."""
    torch.manual_seed(job.seed)
    data = settings.data.build(seed=job.seed, smoke=job.smoke, download=job.download)
    name = type(settings.data).__name__
    if not isinstance(data, Dataset):
        raise InputError(
            f"data: {name} reads its samples while a network trains, but a kernel matrix needs all "
            "of them in memory; choose a data set such as mnist or cifar10"
        )
    if data.inputs.ndim < 2:
        raise InputError(f"data: the samples of {name} are indices; a kernel needs features")
    n = settings.sample_count(data.samples, smoke=job.smoke)
    present = len(data.labels[:n].unique())
    if present < data.classes:
        raise InputError(
            f"samples: the first {n} samples are of only {present} of the {data.classes} classes, and every "
            "class needs a sample: use more (the data set may be ordered by class)"
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
    return _Data(train, labels, test, test_labels, data.classes)


class _DeepRFMJob:
    """One job, from its data or its saved state to its last layer."""

    def __init__(self, settings: DeepRFMCollapse, job: Job) -> None:
        self.settings, self.job = settings, job
        self.total = settings.layer_count(smoke=job.smoke)
        self.maps = settings.features.build(smoke=job.smoke)
        self.regression = KernelRegression(
            settings.kernel.build(), settings.ridge, settings.solver, settings.memory
        )
        self.data = _load(settings, job)
        targets = label_targets(self.data.labels, settings.labels, classes=self.data.classes)
        self.targets = targets.to(self.data.train)
        # The input of the next layer, before it divides each row by its norm.
        self.train, self.test = self.data.train, self.data.test
        self.generator = torch.Generator().manual_seed(job.seed)
        self.state = LayerState(job.folder, job.variant, job.seed)

    def run(self) -> None:
        """Run all layers that are not done yet."""
        done = self._restore()
        self.job.progress(done, self.total, {})
        for number in range(done + 1, self.total + 1):
            began = time.perf_counter()
            row = self._run_layer(number)
            self.job.record({**row, "seconds": time.perf_counter() - began})
            shown = ("dnc1_input", "test_top1")
            figures = {name: row[name] for name in shown if row[name] is not None}
            self.job.progress(number, self.total, figures)
            if number < self.total:
                self._save(number)

    def _run_layer(self, number: int) -> dict[str, Any]:
        """Map the samples through layer l, and return its row."""
        X, Z, labels = unit_rows(self.train), unit_rows(self.test), self.data.labels
        if number == 1:
            self._write_picture(1, X)
        predictor = self._fit(X)
        layer = fit_layer(predictor, self.maps, self.generator, memory=self.settings.memory)
        projected = X @ layer.root
        self._write_picture(number + 1, projected)
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

    def _fit(self, X: Tensor) -> KernelRegression:
        """The predictor of a layer; its row, not a warning, says how well its equations were solved."""
        with warnings.catch_warnings():
            for kind in (SingularKernelWarning, UnsolvedKernelWarning):
                warnings.simplefilter("ignore", kind)
            return self.regression.fit(X, self.targets)

    def _write_picture(self, number: int, X: Tensor) -> None:
        if number in self.settings.gram_layers and number <= self.total:
            write_gram(self.job.folder, number, X, self.data.labels)

    def _restore(self) -> int:
        """Go on from the saved state, if there is one; returns how many layers are done."""
        samples = self.train, self.test
        saved = self.state.load(self.job.device, layers=self.total, like=samples)
        if saved is None:
            self.job.rewind(0)
            return 0
        self.train, self.test = saved.train, saved.test
        self.generator.set_state(saved.random)
        self.job.rewind(saved.layer, saved.rows)
        return saved.layer

    def _save(self, number: int) -> None:
        random = self.generator.get_state()
        self.state.save(SavedLayer(number, self.train, self.test, random, self.job.checksum()))
        if self.job.stopping():
            raise KeyboardInterrupt


def _top1(predictor: KernelRegression, X: Tensor, labels: Tensor) -> float | None:
    """Accuracy in per cent; None if there are no samples."""
    if not len(X):
        return None
    right = predictor.predict(X).argmax(dim=1) == labels
    return 100 * float(right.to(torch.float64).mean())


@dataclass(frozen=True)
class SavedLayer:
    """The state of a job after a layer.

    Attributes:
        layer: its number, which is also the number of rows recorded by then.
        train, test: training and test samples as the next layer receives them.
        random: state of the generator of the feature maps.
        rows: the checksum of the rows; None in files of older versions.
    """

    layer: int
    train: Tensor
    test: Tensor
    random: Tensor
    rows: str | None = None


class LayerState:
    """The file ``folder/state/layer.pt``, from which an interrupted job goes on.

    Args:
        folder: the job's folder.
        variant, seed: of the job; the state of another job is refused.
    """

    def __init__(self, folder: Path, variant: str, seed: int) -> None:
        self.file = folder / "state" / "layer.pt"
        self._job = [variant, seed]

    def save(self, saved: SavedLayer) -> None:
        """Replace the saved state."""
        state = {"format": _FORMAT, "job": self._job, **vars(saved)}
        write_sealed(self.file, lambda part: torch.save(state, part))

    def load(self, device: str, *, layers: int, like: tuple[Tensor, Tensor]) -> SavedLayer | None:
        """The saved state, its samples on ``device``; None if nothing was saved.

        Args:
            layers: of the whole job.
            like: training and test samples as the first layer receives them.

        Raises:
            ddnkit.DamagedFileError: the file is damaged, of another version, or of other samples.
        """
        state = read_sealed(self.file)
        if state is None:
            return None
        try:
            if state.pop("format", None) != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT}")
            if (job := state.pop("job", None)) != self._job:
                raise ValueError(f"it is of another job: {job}, here {self._job}")
            saved = SavedLayer(**state)
            if type(saved.layer) is not int or not 0 < saved.layer < layers:
                raise ValueError(
                    f"it is of layer {saved.layer}; of the {layers} layers of this job, one goes on "
                    f"from 1 to {layers - 1}"
                )
            for given, kept in zip(like, (saved.train, saved.test), strict=True):
                if (len(kept), kept.dtype) != (len(given), given.dtype):
                    raise ValueError(
                        f"it has {len(kept)} samples in {kept.dtype}, the data {len(given)} in "
                        f"{given.dtype}"
                    )
            return replace(saved, train=saved.train.to(device), test=saved.test.to(device))
        except Exception as error:  # the file may hold anything
            raise cannot_go_on(self.file, error) from error


def write_gram(folder: Path, layer: int, X: Tensor, labels: Tensor) -> None:
    """Write X̄X̄ᵀ of at most 500 samples ordered by class, x̄ = (x − μ_G)/‖x − μ_G‖.

    μ_G is the mean of the class means, as in `dnc2`: at collapse entries are 1 within a class and
    −1/(K−1) between two, whatever the sizes of the classes. Classes appear in proportion to their size.

    Args:
        folder: of the job; its file ``gram-<layer>.npz`` holds "gram" ``(s, s)``, float16, and
            "labels" ``(s,)``.
        layer: number of the layer.
        X: samples ``(n, d)``.
        labels: classes ``(n,)``, int64.
    """
    chosen = stratified_subset(labels, _PICTURE_SAMPLES)
    if chosen is None:
        chosen = torch.arange(len(labels), device=labels.device)
    chosen = chosen[labels[chosen].argsort(stable=True)]
    statistics = class_statistics(X, labels, int(labels.max()) + 1)
    centre = statistics.means[statistics.present].mean(dim=0)
    x = unit_rows(X[chosen].to(torch.float64) - centre)
    gram = (x @ x.T).to(torch.float16)
    file = folder / f"gram-{layer}.npz"
    np.savez(file, gram=gram.cpu().numpy(), labels=labels[chosen].cpu().numpy())
