"""``ddnkit bench deep_rfm``: kernel machines, their AGOP, and layers of both, on real images.

* ``layer``: one layer of Deep RFM (*Average gradient outer product as a mechanism for deep neural
  collapse*, Algorithm 1): the kernel matrix K, Kα = Y, the AGOP M, M^½ and ReLU features of X M^½. Peers:
  xrfm's Laplace kernel, and Jacobians by torch.func.
* ``regression``: kernel ridge regression fitted and evaluated, with a Gaussian kernel, which scikit-learn
  has too.
* ``machine``: fit and predict of two AGOPs and three regressions in turn, as xrfm has them: without the
  random features in between. `DeepRFM` of the same depth, another model, is measured on the same samples.

The images are Fashion-MNIST (d = 784) or CIFAR-10 (d = 3072), C = 10, if their files are found as those of a
recipe are, and otherwise synthetic; the title says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ddnkit_rfm import Standardisation, label_targets, unit_rows
from ddnkit_rfm.kernel_agop import gradient_operations, gram_operations
from torch import Tensor

from ddnkit import InputError, registry
from ddnkit.bench import Case, Comparison, Competitor, Floor, Request

from .deep_rfm_competitors import COMPETITORS, DEPTH, WIDTH

#: By dimension, with ten classes.
_IMAGES = {784: "fashion_mnist", 3072: "cifar10"}
_TEST_SAMPLES = 10_000


class DeepRFMBench(Comparison):
    """A layer of Deep RFM, a kernel regression and a whole machine: ours, xrfm, scikit-learn, autograd.

    A case's size: n, d, C. In float64, as the pipeline of Deep RFM is up to 10,000 samples; kernel equations
    are solved in float64 by ours in any case.
    """

    size_names = ("n", "d", "C")
    sizes = ((2000, 784, 10), (10_000, 784, 10))
    cuda_sizes = ((50_000, 784, 10), (50_000, 3072, 10))
    dtype = "float64"
    #: Of AGOP, features and predictions. xrfm's distances on the diagonal are 1e-8 and not 0.
    tolerance = 1e-5

    def cases(self, request: Request) -> list[Case]:
        """Each kind at each size, or of these the cases that have the competitors asked for."""
        sizes = self.asked_sizes(request)
        for n, _, C in sizes:
            if not 2 <= C <= n:
                raise InputError(f"--sizes: {C} classes of {n} samples; expected 2 ≤ C ≤ n")
        cases = [Case(size, kind) for size in sizes for kind in COMPETITORS]
        having = [
            case
            for case in cases
            if {*request.only} <= {c.name for c in self.competitors(case, request.device)}
        ]
        return having or cases

    def title(self, case: Case) -> str:
        """Kind, size, and where the samples are from."""
        return f"{super().title(case)}, {_source(case) or 'made images'}"

    def inputs(self, case: Case, dtype: torch.dtype) -> Mapping[str, Any]:
        """Samples standardised, rows of unit length; targets ±1; test samples; a draw of the features."""
        _, d, C = case.size
        X, y, Z, z = _images(case)
        standardisation = Standardisation.fit(X.double())
        return {
            "X": unit_rows(standardisation(X.double())).to(dtype),
            "Y": label_targets(y, classes=C).to(dtype),
            "Z": unit_rows(standardisation(Z.double())).to(dtype),
            "z": z,
            "W": torch.randn(WIDTH, d, dtype=dtype) * (2 / WIDTH) ** 0.5,
        }

    def floor(self, case: Case) -> Floor:
        """Products (half of them where symmetric), factorisations and roots; exponentials are not counted."""
        n, d, C = case.size
        m = min(_TEST_SAMPLES, n)
        solve = n**3 / 3
        if case.kind == "layer":
            forms = _agop_forms(n, d, C)
            best = min(forms, key=lambda form: forms[form])
            other = max(forms.values()) / 1e9
            phases = {
                "kernel": n * n * d,
                "solve": solve,
                "AGOP": forms[best],
                "root and map": 9 * d**3 + 2 * n * d * (d + WIDTH),
            }
            what = (
                f"n²d distances; n³/3 Cholesky; {forms[best] / 1e9:,.3g} AGOP: {best}, and "
                f"{other:,.3g} in its other form; 9d³ root; 2nd(d + w) features"
            )
        elif case.kind == "regression":
            phases = {"fit": n * n * d + solve, "predict": 2 * m * n * d}
            what = "n²d distances; n³/3 Cholesky; 2mnd distances of test samples"
        else:
            fit = (DEPTH + 1) * (n * n * d + solve)
            fit += DEPTH * (min(_agop_forms(n, d, C).values()) + 9 * d**3 + 2 * n * d * d)
            phases = {"fit": fit, "predict": 2 * m * d * (d + n)}
            what = f"distances and Cholesky {DEPTH + 1} times, AGOP and root {DEPTH} times"
        return Floor(sum(phases.values()), what=what, phases=phases)

    def competitors(self, case: Case, device: str) -> Sequence[Competitor]:
        """ddnkit first."""
        return COMPETITORS[case.kind](case, device)

    def columns(
        self, case: Case, inputs: Mapping[str, Any], results: Mapping[str, Any]
    ) -> Mapping[str, str]:
        """Test accuracy of regressions and machines."""
        if "scores" not in results:
            return {}
        right = torch.as_tensor(results["scores"]).argmax(dim=1).to(inputs["z"]) == inputs["z"]
        return {f"accuracy of {len(right):,}": f"{100 * float(right.double().mean()):.2f} %"}


def _agop_forms(n: int, d: int, C: int) -> dict[str, float]:
    """Operations of the AGOP in its two forms."""
    return {
        "n³ + n²d + 2nd² by Gram matrix": gram_operations(n, n, d, own=True),
        "2nCd(n + d) by gradients": gradient_operations(n, n, d, C),
    }


def _source(case: Case) -> str:
    """The name of the data set that a case's samples are from; empty if they are synthetic."""
    _, d, C = case.size
    name = _IMAGES.get(d, "")
    if C != 10 or name not in registry.names("datasets"):
        return ""
    try:
        _settings(name).locate(download=False)
    except InputError:
        return ""
    return name


def _settings(name: str) -> Any:
    kind: Any = registry.get("datasets", name)
    return kind()


def _images(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test samples as rows, each with its classes."""
    n, d, C = case.size
    m = min(_TEST_SAMPLES, n)
    name = _source(case)
    if not name:
        templates = 255 * torch.rand(C, d)
        labels = torch.arange(n + m) % C
        images = (templates[labels] + 128 * torch.randn(n + m, d)).clamp(0, 255)
        return images[:n], labels[:n], images[n:], labels[n:]
    data = _settings(name).build(seed=0, smoke=False, download=False)
    if data.samples < n:
        raise InputError(f"{name} has {data.samples:,} training samples, not {n:,}")
    train, test = data.inputs[:n].flatten(1), data.test_inputs[:m].flatten(1)
    return train, data.labels[:n], test, data.test_labels[:m]
