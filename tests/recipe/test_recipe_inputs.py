"""What a user may give as a recipe, and what comes of it: exit status, the place and the key named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ddnkit.cli.group import main
from ddnkit.recipe.load import load

PLAIN = """\
pipeline: classification
data: {name: digits, batch_size: 64}
backbone: {name: mlp, width: 16, depth: 1}
head: standard
optimizer: {name: sgd, lr: 0.1}
train: {epochs: 10}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain.yaml").write_text(PLAIN)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["run", *arguments, "--dry-run"])


def refused(*arguments: str) -> str:
    """The one line of a refusal, with exit status 2."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.parametrize(
    ("override", "key", "taken"),
    [
        ("data.batch_size=0o17", "batch_size", "15"),
        ("data.batch_size=0x1F", "batch_size", "31"),
        ("data.batch_size=1e2", "batch_size", "100"),
        ("data.batch_size=08", "batch_size", "8"),
        ("data.batch_size=1_000", "batch_size", "1000"),
        ("optimizer.lr=.5", "lr", "0.5"),
        ("optimizer.lr=1e-2", "lr", "0.01"),
        ("optimizer.nesterov=TRUE", "nesterov", "true"),
    ],
)
def test_a_number_or_a_truth_value_as_yaml_1_2_reads_it(
    override: str, key: str, taken: str
) -> None:
    assert f"{key}: {taken}" in run("plain.yaml", "-s", override).stdout


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("data.batch_size=010", ["010", "8", "10"]),
        ("data.batch_size=-017", ["-017", "15"]),
        ("data.batch_size=0_10", ["0_10", "8"]),
        ("seeds=[1, 010]", ["010", "8"]),
        ("sweep.data.batch_size=[8, 010]", ["010", "8"]),
        ("train.epochs=1:30", ["train.epochs", "'1:30'", "90"]),
        ("optimizer.lr=1:30.5", ["optimizer.lr", "'1:30.5'", "90.5"]),
        ("train.epochs=0b11", ["train.epochs", "'0b11'", "3"]),
        ("train.epochs=2024-01-01", ["train.epochs", "'2024-01-01'"]),
        ("train.epochs==", ["train.epochs", "'='"]),
        ("train.epochs=<<", ["train.epochs", "'<<'"]),
        ("train.epochs='5'", ["train.epochs", "'5'", "5"]),
        ("train.epochs=no", ["train.epochs", "'no'"]),
        ("optimizer.nesterov=no", ["optimizer.nesterov", "'no'", "write false"]),
        ("optimizer.nesterov=On", ["optimizer.nesterov", "'On'", "write true"]),
        ("optimizer.nesterov=y", ["optimizer.nesterov", "'y'", "write true"]),
        ("optimizer.nesterov='true'", ["optimizer.nesterov", "'true'", "write true"]),
        ("engine.channels_last=off", ["engine.channels_last", "'off'", "write false"]),
    ],
)
def test_what_yaml_1_1_reads_as_something_else_is_refused(override: str, parts: list[str]) -> None:
    line = refused("plain.yaml", "-s", override)
    assert f"-s {override}: " in line
    for part in parts:
        assert part in line.removeprefix(f"error: -s {override}: ")


def test_a_file_is_named_with_line_and_key() -> None:
    Path("old.yaml").write_text(PLAIN.replace("epochs: 10", "epochs: 1:30"))
    assert "old.yaml:6: train.epochs: " in refused("old.yaml")
    Path("old.yaml").write_text(PLAIN.replace("64", "\n  010"))
    assert "old.yaml:3: data.batch_size: 010" in refused("old.yaml")


def test_what_was_text_all_along_stays_text() -> None:
    for text in ("no", "1:30", "2024-01-01", "="):
        assert load("plain.yaml", [f"description={text}"]).description == text


@pytest.mark.parametrize("seeds", ["[]", "0", "-1", "[0, 0]", "1.5", "010", "[-1]"])
@pytest.mark.parametrize("options", [["--smoke"], ["--seeds", "2"], []])
def test_wrong_seeds_are_told_whatever_takes_their_place(seeds: str, options: list[str]) -> None:
    Path("seeds.yaml").write_text(f"{PLAIN}seeds: {seeds}\n")
    assert "seeds.yaml:7: seeds: " in refused("seeds.yaml", *options)


def content(kind: str) -> bytes:
    """A recipe of the given kind, from the plain one."""
    nested = "\n".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]" for i in range(1, 12))
    text = {
        "empty": "",
        "nul": f"{PLAIN}description: a\0b\n",
        "tab": f"{PLAIN}engine:\n\tprecision: auto\n",
        "merge": f"{PLAIN}engine: {{<<: {{precision: auto}}}}\n",
        "long list": f"{PLAIN}seeds: [{'1, ' * 30_000}]\n",
        "huge list": f"{PLAIN}seeds: [{'1, ' * 1_700_000}]\n",
        "laughs": f"{PLAIN}b0: &b0 [1]\n{nested}\n",
        "deep": f"{PLAIN}description: {'[' * 300_000}\n",
        "long sweep": f"{PLAIN}sweep: {{train.epochs: {list(range(1, 12_000))}}}\n",
        "axes": f"{PLAIN}sweep: {{{', '.join(f'train.k{i}: [1]' for i in range(5000))}}}\n",
    }
    if kind in text:
        return text[kind].encode()
    if kind == "latin 1":
        return f"{PLAIN}description: é\n".encode("latin-1")
    return PLAIN.encode(kind)


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("empty", "x.yaml:1: "),
        ("utf-16", "UTF-16"),
        ("utf-32", "UTF-32"),
        ("latin 1", "x.yaml:7: "),
        ("nul", "x.yaml:7: "),
        ("tab", "x.yaml:8: "),
        ("merge", "x.yaml:7: engine: "),
        ("long list", "x.yaml:7: "),
        ("huge list", "x.yaml:1: "),
        ("laughs", "20000"),
        ("deep", "x.yaml:7: "),
        ("long sweep", "x.yaml:7: sweep.train.epochs: "),
        ("axes", "x.yaml:7: sweep: "),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_with_its_line(kind: str, part: str) -> None:
    Path("x.yaml").write_bytes(content(kind))
    line = refused("x.yaml")
    assert "x.yaml" in line and part in line
    assert len(line) < 400


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_any_end_of_a_line_will_do(end: str) -> None:
    Path("x.yaml").write_bytes(f"{PLAIN}foo: 1\n".replace("\n", end).encode())
    assert "x.yaml:7: foo: " in refused("x.yaml")


def test_what_is_no_file_is_named_and_neither_read_nor_waited_for(tmp_path: Path) -> None:
    Path("gone.yaml").symlink_to("nowhere.yaml")
    Path("loop.yaml").symlink_to("loop.yaml")
    Path("folder.yaml").mkdir()
    os.mkfifo("pipe.yaml")
    with Path("large.yaml").open("wb") as file:
        file.truncate(1 << 30)
    assert "nowhere.yaml" in refused("gone.yaml")
    for name in ("loop", "folder", "pipe", "large"):
        assert f"{name}.yaml" in refused(f"{name}.yaml")
    for name in ("/dev/zero", "/dev/null", "plain.yaml/x"):
        assert name in refused(name)
    for name in ("x" * 300, f"{'x' * 300}.yaml"):  # told with its middle left out
        assert f"'{name[:20]}" in refused(name) and f"{name[-10:]}'" in refused(name)
    result = run("a\0b")  # refused as an argument, whatever it names
    assert result.exit_code == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named() -> None:
    Path("plain.yaml").chmod(0)
    assert "plain.yaml" in refused("plain.yaml")


STEPS = "schedule: {warmup: 2, decay: steps, milestones: [6, 8]}\n"
METHODS = "sweep: {method: {a: {}, b: {optimizer.lr: 0.1}, c: {optimizer.lr: 0.2}}}\n"


@pytest.mark.parametrize(
    ("more", "overrides", "told"),
    [
        (STEPS, [], []),
        (STEPS, ["train.epochs=8"], [("x.yaml:7: schedule.milestones", "8")]),
        (STEPS, ["train.epochs=5"], [("x.yaml:7: schedule.milestones", "6 and 8")]),
        (STEPS, ["schedule.warmup=10"], [("schedule.warmup", "10"), ("schedule.milestones", "6 and 8")]),
        (STEPS, ["schedule.factor=1"], [("-s schedule.factor=1: schedule.factor", "1")]),
        (STEPS, ["sweep.train.epochs=[7, 9]"], [("x.yaml:7: schedule.milestones", "'7'")]),
        ("schedule: {factor: 0.5}\n", [], [("x.yaml:7: schedule.factor", "none")]),
        ("", ["train.evaluate_every=20"], [("train.evaluate_every", "20")]),
        ("", ["train={iterations: 9, evaluate_at: [3, 10, 12]}"], [("train.evaluate_at", "10, 12")]),
        ("", ["data.batch_size=full", "train.evaluate_at=[11]"], [("train.evaluate_at", "11")]),
        ("", ["data.batch_size=full", "data.sampler=shuffled"], [("data.sampler", "")]),
        ("", ["head.evaluation_mean=last_batch"], [("head.evaluation_mean", "")]),
        ("", ["head={name: standard, centre: true, evaluation_mean: last_batch}"], []),
        ("", ["optimizer.name=adam"], []),
        ("", ["optimizer.name=agd"], [("x.yaml:5: optimizer.lr", "agd")]),
        ("", ["data.batch_size=full", "sweep.data.sampler=[shuffled, stratified]"], [("data.sampler", "")]),
        (METHODS, [], [("x.yaml:7: sweep", "'a', 'b'")]),
        (METHODS, ["optimizer.lr=0.5"], []),
    ],
)  # fmt: skip
def test_settings_that_do_nothing_are_told_and_the_run_goes_on(
    more: str, overrides: list[str], told: list[tuple[str, str]]
) -> None:
    Path("x.yaml").write_text(PLAIN + more)
    result = run("x.yaml", *(part for text in overrides for part in ("-s", text)))
    assert result.exit_code == 0, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == len(told), lines
    for place, value in told:
        (line,) = (line for line in lines if f"{place}: " in line)
        assert line.startswith("warning: ") and value in line.partition(place)[2]


def test_a_switch_that_a_variant_makes_use_of_is_no_mistake() -> None:
    long_tailed = PLAIN.replace("classification", "long_tailed")
    Path("x.yaml").write_text(f"{long_tailed}imbalance: {{ratio: 0.1, minority: 0.2}}\n")
    (line,) = load("x.yaml").warnings
    assert "x.yaml:7: imbalance.minority: " in line
    assert not load("x.yaml", ["sweep.imbalance.profile=[step, exponential]"]).warnings
    equal = ["imbalance.ratio=1", "imbalance.profile=step", "imbalance.order=random"]
    assert len(load("x.yaml", equal).warnings) == 3
    assert not load("x.yaml", ["sweep.imbalance.ratio=[1, 0.1]", "imbalance.profile=step"]).warnings
