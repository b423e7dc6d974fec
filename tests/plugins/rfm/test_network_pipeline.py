"""The fully connected layers of a network over its training: what is measured, where, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from ddnkit_etf import StandardClassifier
from ddnkit_rfm import LayerwiseCollapse, dnc1, matrix_sqrt, module_agop, nfa_correlation, nfm
from ddnkit_train import CNN, MLP, Dataset, Model
from torch import nn

from ddnkit import InputError, Job
from ddnkit.cli import main
from ddnkit.recipe.load import load
from ddnkit.recipe.recipe import Recipe

RECIPES = Path(__file__).parents[3] / "recipes"
PAPER = {"mnist": 0.2, "cifar10": 0.3, "svhn": 0.3}
DIGITS = """
pipeline: layerwise_collapse
data: {name: digits, batch_size: 50, sampler: shuffled}
backbone: {name: mlp, width: 40, depth: 3, rectify: true, init_scale: 0.5}
head: {name: standard_unnormalised}
loss: {name: mean_squared_error, off_target: -1}
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
train: {epochs: 12, evaluate_every: 4, evaluate_at: [1]}
layers: {samples: 300, nfa_samples: 100}
engine: {measure_steps: 0}
"""


def settings(tmp_path: Path, *overrides: str) -> LayerwiseCollapse:
    file = tmp_path / "recipe.yaml"
    file.write_text(DIGITS)
    pipeline = load(file, overrides).variants[0].pipeline
    assert isinstance(pipeline, LayerwiseCollapse)
    return pipeline


def ran(tmp_path: Path, *options: str) -> tuple[Result, Path]:
    file, out = tmp_path / "recipe.yaml", tmp_path / "out"
    file.write_text(DIGITS)
    return CliRunner().invoke(main, ["run", str(file), "--out", str(out), *options]), out


def network(depth: int = 3, width: int = 12) -> Model:
    return Model(
        MLP((1, 4, 4), width, depth, rectify=True),
        StandardClassifier(width, 5, temperature=1, normalise=False),
    )


def samples(each: int = 20) -> Dataset:
    labels = torch.arange(5).repeat(each)
    return Dataset(torch.randn(5, 1, 4, 4)[labels] + torch.randn(5 * each, 1, 4, 4), labels, 5)


def test_a_small_start_learns_and_its_figures_are_found_again(tmp_path: Path) -> None:
    result, out = ran(tmp_path)
    assert result.exit_code == 0, result.output
    with (out / "runs" / "default" / "seed-0" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "116", "232", "348"]
    first, last = rows[0], rows[-1]
    assert float(last["test_top1"]) > 90
    assert float(first["objective"]) == pytest.approx(1, abs=0.1)
    assert float(last["objective"]) < 0.1
    for row in rows:
        # What a layer gives is what the next is given.
        for k in (1, 2):
            assert float(row[f"dnc1_output_{k}"]) == pytest.approx(
                float(row[f"dnc1_input_{k + 1}"]), rel=1e-5
            )
        assert all(-1 <= float(row[f"nfa_{k}"]) <= 1 for k in (1, 2, 3))
        assert not any(row[f"{figure}_{k}"] for k in (4, 5) for figure in ("nfa", "dnc1_right"))
    # The data do not change, and the features collapse.
    assert float(last["dnc1_input_1"]) == float(first["dnc1_input_1"])
    assert float(last["dnc1_output_3"]) < 0.3 * float(first["dnc1_output_3"])
    for figure in ("decomposition.png", "nfa.png", "nc1.png"):
        assert (out / "figures" / figure).is_file()
    report = (out / "report.md").read_text()
    for words in ("## NFA correlation at the end", "## Where DNC1 falls", "right singular vectors"):
        assert words in report
    again = CliRunner().invoke(main, ["evaluate", str(out)])
    assert again.exit_code == 0, again.output


def test_the_figures_are_those_of_each_layer_on_all_samples(tmp_path: Path) -> None:
    model, data = network(), samples()
    found = settings(tmp_path, "layers.nfa_samples=1000").measure(model, data)
    layers = [module for module in model.backbone.modules() if isinstance(module, nn.Linear)]
    whole = nn.Sequential(model.backbone, model.head).eval()
    X, labels = data.inputs.flatten(1), data.labels
    target = 2 * nn.functional.one_hot(labels, 5) - 1.0
    with torch.no_grad():
        loss = nn.functional.mse_loss(whole(data.inputs), target)
    assert found.pop("objective") == pytest.approx(float(loss), rel=1e-5)
    for k, layer in enumerate(layers, 1):
        W = layer.weight.detach()
        _, S, Vh = torch.linalg.svd(W, full_matrices=False)
        expected = {"input": X, "right": X @ Vh.T * S, "output": (X @ W.T).relu()}
        for stage, features in expected.items():
            value = float(dnc1(features, labels))
            assert found.pop(f"dnc1_{stage}_{k}") == pytest.approx(value, rel=1e-4)
        root = matrix_sqrt(module_agop(whole, data.inputs, layer)).root
        correlation = float(nfa_correlation(nfm(layer), root))
        assert found.pop(f"nfa_{k}") == pytest.approx(correlation, rel=1e-4)
        X = expected["output"]
    assert not found


def test_only_the_last_five_layers_have_columns(tmp_path: Path) -> None:
    model, data = network(depth=7), samples()
    found = settings(tmp_path, "layers.nfa=false").measure(model, data)
    assert not any(name.startswith("nfa") for name in found)
    ends = [name for name in found if name.startswith("dnc1_output")]
    assert ends == [f"dnc1_output_{k}" for k in range(1, 6)]
    with torch.no_grad():
        last = model.backbone(data.inputs)
    assert found["dnc1_output_5"] == pytest.approx(float(dnc1(last, data.labels)), rel=1e-5)


def test_fewer_samples_have_every_class_and_decide_alone(tmp_path: Path) -> None:
    model, data = network(), samples(each=40)
    pipeline = settings(tmp_path, "layers.samples=50", "layers.nfa_samples=20")
    found = pipeline.measure(model, data)
    rough = settings(tmp_path).measure(model, data)
    assert found["dnc1_input_1"] != rough["dnc1_input_1"]
    assert found["dnc1_input_1"] == pytest.approx(rough["dnc1_input_1"], rel=0.3)
    assert found == pipeline.measure(model, data)


def test_measuring_changes_neither_the_model_nor_what_is_drawn_next(tmp_path: Path) -> None:
    model, data = network(), samples()
    model.train()
    model.head.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    settings(tmp_path).measure(model, data)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.backbone.training and not model.head.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_compiled_and_float64_networks_are_measured_alike(tmp_path: Path) -> None:
    model, data = network(), samples()
    plain = settings(tmp_path).measure(model, data)
    model.backbone.compile(backend="eager")
    model.backbone(data.inputs)  # compiled before any layer is watched
    assert settings(tmp_path).measure(model, data) == plain
    wide = settings(tmp_path).measure(network_like(model), data)
    assert wide == pytest.approx(plain, rel=1e-4)


def network_like(model: Model) -> Model:
    wide = network().double()
    wide.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    return wide


def test_dead_layers_have_no_figures(tmp_path: Path) -> None:
    model = network()
    nn.init.zeros_(model.backbone.layers[3].weight)  # type: ignore[index,union-attr,arg-type]
    found = settings(tmp_path).measure(model, samples())
    assert {"dnc1_input_1", "dnc1_input_2", "objective"} <= found.keys()
    assert not {"dnc1_right_2", "dnc1_output_2", "dnc1_input_3", "nfa_2"} & found.keys()


def test_what_is_refused(tmp_path: Path) -> None:
    head = StandardClassifier(4, 5, temperature=1, normalise=False)
    with pytest.raises(InputError, match=r"CNN.*mlp_depth"):
        settings(tmp_path).measure(Model(CNN(1, (4,)), head), samples())
    job = Job("v", 0, tmp_path, "cpu", False, lambda row: None, lambda *_: None, world=2)
    with pytest.raises(InputError, match=r"fsdp.* ddp"):
        settings(tmp_path, "engine.strategy=fsdp").run(job)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["backbone.init_scale=0"], "backbone.init_scale"),
        (["layers.sample=3"], "'samples'"),
        (["layers.samples=0"], "layers.samples"),
        (["optimizer={name: agd}"], "backbone.init_scale and optimizer agd"),
        (
            ["optimizer={name: agd}", "backbone={name: resnet18, mlp_scale: 0.2}"],
            "backbone.mlp_scale and optimizer agd",
        ),
    ],
)
def test_mistakes_are_named(tmp_path: Path, options: list[str], text: str) -> None:
    result, _ = ran(tmp_path, *(part for option in options for part in ("-s", option)))
    assert result.exit_code == 2
    assert text in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_agd_goes_with_its_own_start(tmp_path: Path) -> None:
    assert settings(tmp_path, "optimizer={name: agd}", "backbone.init_scale=null")


def shipped(name: str, *overrides: str) -> Recipe:
    return load(RECIPES / f"{name}.yaml", overrides)


@pytest.mark.parametrize("name", PAPER)
def test_the_recipes_have_the_paper_s_settings(name: str) -> None:
    recipe = shipped(f"{name}_layers")
    assert recipe.seeds == (0, 1, 2)
    found: dict[str, dict[str, Any]] = {v.name: v.settings for v in recipe.variants}
    assert [*found] == ["mlp", "resnet18", "vgg11"]
    for one in found.values():
        assert one["data"]["name"] == name
        assert (one["data"]["batch_size"], one["data"]["subset"]) == (128, 50_000)
        assert not (one["data"]["flip"] or one["data"]["crop"] or one["data"]["rotation"])
        assert one["loss"] == {"name": "mean_squared_error", "off_target": -1}
        assert one["optimizer"]["name"] == "sgd" and one["optimizer"]["weight_decay"] == 0
        assert one["train"]["evaluate_every"] == 10
        assert (one["head"]["name"], one["head"]["temperature"]) == ("standard_unnormalised", 1)
    trained = {
        network: (s["optimizer"]["lr"], s["optimizer"]["momentum"], s["train"]["epochs"])
        for network, s in found.items()
    }
    assert trained == {"mlp": (0.05, 0, 500), "resnet18": (0.05, 0, 300), "vgg11": (0.01, 0.9, 600)}
    mlp, resnet, vgg = (s["backbone"] for s in found.values())
    assert (mlp["depth"], mlp["width"], mlp["rectify"], mlp["bias"]) == (5, 512, True, False)
    assert mlp["init_scale"] == vgg["mlp_scale"] == PAPER[name]
    assert resnet["mlp_scale"] == 0.2
    assert {(b["mlp_depth"], b["mlp_width"]) for b in (resnet, vgg)} == {(5, 512)}


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("fashion_mnist_layers", "default"),
        pytest.param("svhn_layers", "resnet18", marks=pytest.mark.long),
        pytest.param("mnist_layers", "vgg11", marks=pytest.mark.long),
    ],
)
def test_shipped_recipes_take_their_first_steps(name: str, variant: str, tmp_path: Path) -> None:
    small = "backbone.width=64" if variant == "default" else "layers.samples=200"
    chosen = next(v for v in shipped(name, small).variants if v.name == variant)
    rows: list[dict[str, Any]] = []
    chosen.pipeline.run(Job(chosen.name, 0, tmp_path, "cpu", True, rows.append, lambda *_: None))
    assert rows[-1]["step"] == 3
    assert rows[-1]["objective"] == pytest.approx(1, abs=0.2)
    assert all(rows[-1][f"nfa_{k}"] > 0 for k in range(1, 6))
