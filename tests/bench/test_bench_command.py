"""`ddnkit bench`: small sizes, real processes; no figure is asserted, only that it is one."""

import json

import pytest
import torch
from bounds import factorised
from click.testing import CliRunner

from ddnkit import registry
from ddnkit.cli import main

FORMS = {"closed_form", "krylov", "embedded_field", "dense"}


def run(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


@pytest.mark.parametrize("more", [["--no-memory"], pytest.param([], marks=pytest.mark.long)])
def test_the_forms_of_a_node(tmp_path, more):
    out = tmp_path / "figures.json"
    asked = ["--sizes", "24x6", "--repeats", 2, "--dtype", "float64", "--json", out, *more]
    result = run("quadratic_on_sphere", *asked)
    assert result.exit_code == 0, result.output
    (data,) = json.loads(out.read_text())
    assert "seed 0" in data["header"] and "float64" in data["header"]
    timed = {line["competitor"]: line for line in data["measured"]}
    assert {"krylov", "dense"} <= timed.keys() <= FORMS
    for line in timed.values():
        assert list(line["seconds"]) == ["forward", "backward"]
        assert all(t > 0 for rounds in line["seconds"].values() for t in rounds)
        assert more or line["memory_bytes"] >= 0  # each in a process of its own
    # Systems of that order, in float64.
    assert timed["dense"]["difference"] < factorised(torch.float64, 24 * 6, condition=1e3)
    assert "quadratic_on_sphere, y of 24×6" in result.output and "dense" in result.output


def test_memory_is_measured_in_a_process_of_its_own():
    asked = ["--sizes", "24x6", "--repeats", 1, "--only", "krylov", "--json", "-"]
    result = run("quadratic_on_sphere", *asked)
    assert result.exit_code == 0, result.output
    ((line,),) = (data["measured"] for data in json.loads(result.stdout))
    assert line["memory_bytes"] >= 0


def test_json_on_the_output_is_nothing_but_json():
    result = run(
        "quadratic_on_sphere", "--sizes", "8x2", "--only", "krylov", "--no-memory", "--json", "-"
    )
    assert result.exit_code == 0, result.output
    ((line,),) = (data["measured"] for data in json.loads(result.stdout))
    assert line["competitor"] == "krylov" and line["memory_bytes"] is None


def test_several_sizes():
    result = run("quadratic_on_sphere", "--sizes", "8x2,9x2", "--sizes", "7×1", "--only", "krylov",
                 "--no-memory", "--repeats", 1)  # fmt: skip
    assert [f"y of {size}" in result.output for size in ("8×2", "9×2", "7×1")] == [True] * 3


def test_without_a_name_the_benches_are_listed():
    result = run()
    assert result.exit_code == 0
    assert "nearest_etf" in result.output and "backward_forms" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nearst_etf",), "Did you mean 'nearest_etf'"),
        (("quadratic_on_sphere", "--only", "dens"), "Did you mean 'dense'"),
        (("nearest_etf", "--sizes", "a,b"), "expected sizes such as 64x10,1024x100"),
        (("nearest_etf", "--sizes", "64"), "a size is 2 positive numbers here, dxC, not 64"),
        (("nearest_etf", "--device", "cuda"), "no CUDA device"),
        (("startup", "--figure", "x.png"), "the bench startup has no figure"),
        (("startup", "--json", "no/such/folder/x.json"), "there is no such folder"),
        (("startup", "--repeats", "0"), "0 is not in the range"),
    ],
)
def test_wrong_input(arguments, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_a_size_that_the_problem_does_not_have():
    result = run("nearest_etf", "--sizes", "3x6", "--no-memory")
    assert result.exit_code == 2 and "a simplex ETF of 6 classes" in result.output


@pytest.mark.parametrize("sizes", [None, (8, 4), ((8,), (4, 2)), (("8",),), ()])
def test_a_node_whose_sizes_are_missing_or_none_is_told(sizes):
    kind = registry.get("nodes", "quadratic_on_sphere")
    name = f"sized_{sizes!r}".translate(str.maketrans("(), '", "abcde"))
    members = {"bench_sizes": sizes}
    registry.register("nodes", name, type("Sized", (kind,), members))
    result = run(name)
    assert result.exit_code == 2 and name in result.output and "bench_sizes" in result.output
