"""`ddnkit bench`: small sizes, real processes; no figure is asserted, only that it is one."""

import json

import pytest
from click.testing import CliRunner

from ddnkit.bench import compare
from ddnkit.cli import main


def run(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def test_forms_at_a_small_size():
    result = run("nearest_etf", "--size", "24,6", "--repeats", 1, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert {entry["form"] for entry in data["entries"]} == {
        "closed_form", "embedded_field", "krylov", "dense"
    }  # fmt: skip
    assert all(entry["forward"] > 0 and entry["backward"] > 0 for entry in data["entries"])
    assert all(entry["memory"] >= 0 and not entry["extrapolated_from"] for entry in data["entries"])
    assert "float32" in data["header"] and "seed 0" in data["header"]


def test_a_form_that_does_not_fit_is_extrapolated(monkeypatch):
    monkeypatch.setattr(compare, "fits", lambda size, dtype: size[0] <= 12)
    result = run("--size", "24,8", "--form", "closed_form", "--form", "dense", "--repeats", 1)
    assert result.exit_code == 0, result.output
    assert "extrapolated" in result.output
    assert result.output.count("measured, for that") == 2
    monkeypatch.setattr(compare, "fits", lambda size, dtype: False)
    result = run("--size", "24,8", "--form", "dense", "--repeats", 1)
    assert "not measured" in result.output


def test_what_fits():
    assert compare.fits((10, 10), "float64")
    assert not compare.fits((2048, 1000), "float32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nearst_etf",), "Did you mean 'nearest_etf'"),
        (("--form", "dens"), "Did you mean 'dense'"),
        (("--size", "a,b"), "expected numbers such as 1024,100"),
        (("--device", "cuda"), "no CUDA device"),
    ],
)
def test_wrong_input(arguments, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_a_failing_measurement_is_a_line_not_a_crash():
    result = run("--size", "3,6", "--form", "closed_form", "--repeats", 1)
    assert result.exit_code == 0
    assert "closed_form at 3×6: " in result.output
