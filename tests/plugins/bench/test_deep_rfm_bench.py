"""``ddnkit bench deep_rfm`` at a small size: who takes part, who agrees, and which phases are timed."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
import torch
from bounds import eps
from click.testing import CliRunner
from ddnkit_bench import deep_rfm
from ddnkit_bench.deep_rfm import DeepRFMBench
from ddnkit_bench.deep_rfm_competitors import COMPETITORS
from ddnkit_rfm import DeepRFM, KernelRegression, Laplace, agop

from ddnkit import InputError
from ddnkit.bench import Case, Request
from ddnkit.cli import main

PHASES = {
    "layer": ["kernel", "solve", "AGOP", "root and map"],
    "regression": ["fit", "predict"],
    "machine": ["fit", "predict"],
}


def bench(*more: str, size: str = "60x5x3") -> list[dict[str, Any]]:
    given = ["--sizes", size, "--repeats", "1", "--no-memory", "--json", "-"]
    result = CliRunner().invoke(main, ["bench", "deep_rfm", *given, *more])
    assert result.exit_code == 0, result.output
    (found,) = json.loads(result.stdout)
    tables: list[dict[str, Any]] = found["tables"]
    titles = [table["title"] for table in tables]
    assert all(title.endswith("n = 60, d = 5, C = 3, made images") for title in titles)
    lines: list[dict[str, Any]] = found["measured"]
    return lines


@pytest.fixture(scope="module")
def measured() -> list[dict[str, Any]]:
    """Everything once."""
    return bench()


def test_who_is_there_agrees_and_a_peer_that_is_missing_is_named(
    measured: list[dict[str, Any]],
) -> None:
    lines = measured
    kinds = [line["kind"] for line in lines]
    assert list(dict.fromkeys(kinds)) == list(PHASES)
    for kind, phases in PHASES.items():
        first, *others = [line for line in lines if line["kind"] == kind]
        assert first["competitor"] == "ddnkit" and first["difference"] is None
        assert list(first["seconds"]) == phases
        for line in others:
            peer = line["competitor"].startswith("xrfm")
            if peer and importlib.util.find_spec("xrfm") is None:
                assert line["seconds"] == {}
                assert line["note"].startswith("left out: xrfm not installed")
                continue
            assert line["note"] == "", line
            # K is not computed by itself, where it is not held.
            whole = phases if line["competitor"] != "ddnkit, iterative" else phases[1:]
            assert list(line["seconds"]) == whole
            if "another model" not in line["competitor"]:
                single = line["competitor"].endswith("float32")
                # Roots of AGOPs keep half of the digits.
                dtype = torch.float32 if single else torch.float64
                assert line["difference"] < 100 * eps(dtype) ** 0.5


def test_accuracies_stand_in_the_table(measured: list[dict[str, Any]]) -> None:
    accuracies = {(line["kind"], line["competitor"]): line["columns"] for line in measured}
    assert accuracies["layer", "ddnkit"] == {}
    for kind in ("regression", "machine"):
        (cell,) = accuracies[kind, "ddnkit"].items()
        assert cell[0] == "accuracy of 60" and 40 < float(cell[1].removesuffix(" %")) <= 100


def test_competitors_asked_for_are_measured_where_they_take_part() -> None:
    (line,) = bench("--only", "scikit-learn KernelRidge")
    assert line["kind"] == "regression"
    given = ["bench", "deep_rfm", "--sizes", "60x5x3", "--only", "scikit-learn"]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 2 and "no competitor 'scikit-learn'" in result.output


@pytest.mark.parametrize("size", [(2, 5, 3), (60, 5, 1)])
def test_sizes_without_a_sample_of_each_class_are_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match=r"expected 2 ≤ C ≤ n"):
        DeepRFMBench().run(Request(sizes=(size,)))


def results(kind: str, competitor: str) -> tuple[Any, Any]:
    """Inputs, and what a competitor returns for them."""
    case = Case((60, 5, 3), kind)
    torch.manual_seed(0)
    inputs = DeepRFMBench().inputs(case, torch.float64)
    (found,) = [c for c in COMPETITORS[kind](case, "cpu") if c.name == competitor]
    state = None
    for phase in found.prepare(inputs).values():
        state = phase(state)
    return inputs, state


def test_the_layer_is_that_of_deep_rfm() -> None:
    """What is timed step by step is what `KernelRegression` and `DeepRFM` do."""
    inputs, found = results("layer", "ddnkit")
    X, Y = inputs["X"], inputs["Y"]
    alpha = KernelRegression(Laplace(2.0)).fit(X, Y).coefficients
    torch.testing.assert_close(found["AGOP"], agop(Laplace(2.0), X, alpha))
    layer = DeepRFM(Laplace(2.0), 1, standardise=False).fit(X, Y).layers[0]
    torch.testing.assert_close(found["AGOP"], layer.agop)
    torch.testing.assert_close(found["features"], torch.relu(X @ layer.root @ inputs["W"].T))


def test_the_floor_counts_every_phase_and_names_the_form_of_the_agop() -> None:
    own = DeepRFMBench()
    for kind, phases in PHASES.items():
        floor = own.floor(Case((2000, 784, 10), kind))
        assert list(floor.phases) == phases
        assert floor.operations == sum(floor.phases.values())
    many, few = (own.floor(Case((2000, 784, C), "layer")) for C in (10, 2))
    assert "n³ + n²d + 2nd² by Gram matrix" in many.what
    assert few.phases["AGOP"] <= many.phases["AGOP"]
    assert "2nCd(n + d) by gradients" in own.floor(Case((50_000, 784, 10), "layer")).what


def test_images_of_a_data_set_where_its_files_are(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case((40, 784, 10), "layer")

    class Files:
        def locate(self, *, download: bool) -> None:
            assert not download

        def build(self, *, seed: int, smoke: bool, download: bool) -> Any:
            images = torch.randint(256, (50, 1, 28, 28), dtype=torch.uint8)
            labels = torch.arange(50) % 10
            from ddnkit_train import Dataset, Standardise

            prepare = Standardise.fit(images, "none")
            return Dataset(images, labels, 10, images, labels, prepare=prepare)

    monkeypatch.setattr(deep_rfm, "_settings", lambda name: Files())
    own = DeepRFMBench()
    assert own.title(case) == "layer: n = 40, d = 784, C = 10, fashion_mnist"
    inputs = own.inputs(case, torch.float32)
    assert inputs["X"].shape == inputs["Z"].shape == (40, 784)
    assert inputs["z"].tolist() == [i % 10 for i in range(40)]
    assert own.title(Case((40, 784, 3), "layer")).endswith("made images")
    with pytest.raises(InputError, match=r"50 .*60"):
        own.inputs(Case((60, 784, 10), "layer"), torch.float32)
