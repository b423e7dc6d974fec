"""Other people's packages: whatever they hold, ddnkit's own names are its own and the rest works.

Each lies in a folder on the path, as an installed one does, and is met by a process of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

SETTINGS = "from ddnkit import Settings\n"
HEAD = """\
class Head(Settings):
    'A head of another.'
    def build(self, *, feature_dim, classes): ...
"""
NODE = """\
from ddnkit import DeclarativeNode
class Node(DeclarativeNode):
    'A node of another.'
    def objective(self, x, y): return ((x - y) ** 2).sum()
"""
THIEF = """\
[ddnkit.heads]
standard = other_module:Head
[ddnkit.nodes]
nearest_etf = other_module:Node
"""
ONE = "[ddnkit.heads]\nothers = other_module:Head\n"
PRINTS = """\
import ctypes, os, sys
print("spoken by Python")
sys.__stdout__.write("spoken past the redirection")
ctypes.CDLL(None).puts(b"spoken by C")
os.system("echo spoken by a child")
"""
META = """\
class Odd(type(Settings)):
    def __repr__(self): raise RuntimeError("no")
    def __getattribute__(self, name):
        if name in ("__doc__", "__dict__", "__name__", "__qualname__"): raise RuntimeError("no")
        return super().__getattribute__(name)
"""
RAISES = {
    "keyboard": "raise KeyboardInterrupt",
    "exit": "import sys; sys.exit(0)",
    "base": "class Own(BaseException):\n    def __str__(self): raise RuntimeError\nraise Own",
    "generator": "raise GeneratorExit",
    "long": "raise ValueError('x' * 10**6 + '\\x1b[31m')",
    "recursion": "def f(): f()\nf()",
    "syntax": "def (",
}
#: Name: the list of entry points, the module, and what is named as ignored, if anything is.
CASES: dict[str, tuple[str | bytes, str, str | None]] = {
    "thief": (THIEF, SETTINGS + HEAD + NODE, "other:standard"),
    "malformed": ("heads = other:Head\n", "", "other 1.5"),
    "duplicate": (ONE + "others = other_module:Head\n", SETTINGS + HEAD, "other 1.5"),
    "bytes": (b"[ddnkit.heads]\nx\xff = y:z\n", "", "other 1.5"),
    "no equals sign": (ONE + "no_equals_sign\n", SETTINGS + HEAD, "other 1.5"),
    "huge": (ONE + "# more\n" * 200_000, SETTINGS + HEAD, "other 1.5"),
    "long target": (f"[ddnkit.heads]\nothers = {'m' * 10**5}\n", "", "others"),
    "target of two lines": ("[ddnkit.heads]\nothers = m:A\n  b\x1b[31m = c\n", "", "others"),
    "percent": ("[ddnkit.heads]\nx = other%module:Head\n", "", "other%module"),
    "module alone": ("[ddnkit.heads]\nx = other_module\n", "", "not a subclass"),
    "odd name": ("[ddnkit.heads]\na/b\x1b[31m = other_module:Head\n", SETTINGS + HEAD, "a/b"),
    **{name: (ONE, text, "others") for name, text in RAISES.items()},
    "doc no text": (ONE, SETTINGS + HEAD + "Head.__doc__ = 5\n", None),
    "doc property": (ONE, SETTINGS + HEAD + "    __doc__ = property(lambda self: 1 / 0)\n", None),
    "metaclass": (ONE, SETTINGS + META + HEAD.replace("Settings", "Settings, metaclass=Odd"), ""),
    "instance": (ONE, SETTINGS + HEAD + "Head = Head()\n", "not a subclass"),
    "no repr": (
        ONE,
        "class Odd:\n    def __repr__(self): raise RuntimeError\nHead = Odd()\n",
        "not a subclass",
    ),
    "prints": (ONE, PRINTS + SETTINGS + HEAD, None),
}
SCRIPT = """
import contextlib, io, json, os, signal, sys, warnings
from ddnkit.cli import main
before = (os.getcwd(), signal.getsignal(signal.SIGTERM), warnings.filters[:])
found = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments, prog_name="ddnkit")
        except SystemExit as done:
            found.append([done.code, out.getvalue(), err.getvalue()])
after = (os.getcwd(), signal.getsignal(signal.SIGTERM), warnings.filters[:])
torch = "torch" in sys.modules  # it adds filters of its own
print(json.dumps({"found": found, "kept": before[:3 - torch] == after[:3 - torch], "torch": torch}))
"""


def install(
    folder: Path, points: str | bytes, module: str = "", name: str = "other-1.5.dist-info"
) -> Path:
    """Put a distribution in ``folder``, without METADATA, which nothing needs."""
    (folder / name).mkdir(parents=True)
    content = points if isinstance(points, bytes) else points.encode()
    (folder / name / "entry_points.txt").write_bytes(content)
    (folder / "other_module.py").write_text(module)
    return folder


def environment(*folders: Path) -> dict[str, str]:
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


def ran(command: Sequence[str], *folders: Path) -> subprocess.CompletedProcess[str]:
    """A command that succeeds, run in the first of the folders whose distributions it finds."""
    done = subprocess.run(
        [sys.executable, "-m", "ddnkit", *command],
        capture_output=True,
        text=True,
        env=environment(*folders),
        cwd=folders[0],
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def in_one_process(
    folder: Path, *commands: list[str], torch: bool = False
) -> tuple[list[list[str]], str]:
    """Status, output and errors of commands that one process runs, and what else it wrote.

    ``torch``: they may import it.
    """
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(folder),
        cwd=folder,
        check=True,
    )
    result = json.loads(done.stdout)
    assert result["kept"]
    assert torch or not result["torch"] or any("nodes" in points for points in _lists(folder))
    return result["found"], done.stderr


def _lists(folder: Path) -> list[str]:
    return [f.read_text(errors="replace") for f in folder.glob("*.dist-info/entry_points.txt")]


#: Each goes the way of one that is left.
ALIKE = {"target of two lines", "generator", "recursion", "doc property", "instance"}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.long] if case in ALIKE else []) for case in CASES],
)
def test_own_names_stay_and_the_culprit_is_named(case: str, tmp_path: Path) -> None:
    points, module, named = CASES[case]
    install(tmp_path, points, module)
    found, noise = in_one_process(
        tmp_path,
        ["run", "digits", "--dry-run"],
        ["list"],
        ["describe", "heads/others"],
        ["describe", "heads/standard"],
    )
    (ran, _, told), (listed, output, _), (described, _, why), (own, text, _) = found
    assert (ran, listed, own) == (0, 0, 0), found
    assert described in (0, 2), why
    assert "unexpected" not in told + why
    assert "ddnkit_etf.settings:StandardHead" in text
    listing, _, aside = output.partition("ignored\n")
    assert "\n  standard\n" in listing
    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) < 2000
    if named is not None:
        assert named in aside
    else:
        assert "  others  (from other 1.5)" in listing
        assert not aside
    if case == "prints":
        assert "spoken" not in output
        assert noise.count("spoken") == 3  # what was written past sys.stdout; the other is in told
    if named == "other 1.5":
        assert told.count("other 1.5") == 1
    if case == "thief":
        assert told.count("'other:standard'") == 1
        assert "other:nearest_etf" in listing


@pytest.mark.long
@pytest.mark.parametrize(
    "case", ["thief", "malformed", "keyboard", "base", "doc no text", "prints"]
)
def test_runs_and_checks_go_on_beside_a_bad_plugin(case: str, tmp_path: Path) -> None:
    points, module, _ = CASES[case]
    if case in ("keyboard", "base"):
        points += "[ddnkit.backwards]\nbroken = other_module:Head\n"  # type: ignore[operator]
    install(tmp_path, points, module)
    named = {"thief": "other:", "malformed": "other 1.5", "keyboard": "broken", "base": "broken"}
    for arguments in (["check", "nearest_etf", "--examples", "2"], ["run", "digits", "--smoke"]):
        done = ran(arguments, tmp_path)
        assert "spoken" not in done.stdout
        if case in ("thief", "malformed") or (case in named and arguments[0] == "check"):
            assert named[case] in done.stderr


def test_a_plugin_of_a_taken_name_is_reached_by_that_of_its_distribution(tmp_path: Path) -> None:
    install(tmp_path / "a", THIEF, SETTINGS + HEAD + NODE)
    ((status, output, told), *_), _ = in_one_process(
        tmp_path / "a", ["run", "digits", "-s", "head=other:standard", "--dry-run"]
    )
    assert status == 0, told
    assert "{name: other:standard}" in output or "name: 'other:standard'" in output


def test_two_strangers_with_one_name_are_told_apart(tmp_path: Path) -> None:
    install(tmp_path, ONE, SETTINGS + HEAD)
    install(tmp_path, ONE, SETTINGS + HEAD, "third_one-2.0.dist-info")
    found, _ = in_one_process(
        tmp_path,
        ["run", "digits", "-s", "head=others", "--dry-run"],
        ["run", "digits", "-s", "head=third_one:others", "--dry-run"],
    )
    assert found[0][0] == 2
    assert "'other:others'" in found[0][2]
    assert "'third_one:others'" in found[0][2]
    assert found[1][0] == 0


def test_what_is_no_list_of_entry_points_is_passed_over(tmp_path: Path) -> None:
    install(tmp_path, ONE, SETTINGS + HEAD)
    (tmp_path / "file-1.dist-info").write_text("a file")
    for name in ("folder", "dangling", "loop"):
        (tmp_path / f"{name}-1.dist-info").mkdir()
    (tmp_path / "folder-1.dist-info" / "entry_points.txt").mkdir()
    (tmp_path / "dangling-1.dist-info" / "entry_points.txt").symlink_to("nowhere")
    (tmp_path / "loop-1.dist-info" / "entry_points.txt").symlink_to("entry_points.txt")
    ((status, output, _),), _ = in_one_process(tmp_path, ["list", "heads"])
    assert status == 0
    listing, _, aside = output.partition("ignored\n")
    assert "  others  (from other 1.5)" in listing
    for name in ("folder 1", "dangling 1", "loop 1"):
        assert name in aside
    assert "file 1" not in aside


def test_another_distribution_of_ddnkits_name_takes_nothing(tmp_path: Path) -> None:
    points = THIEF + "more = other_module:Head\n"
    install(tmp_path, points, SETTINGS + HEAD + NODE, "ddnkit-0.0.1.dist-info")
    (tmp_path / "archive").mkdir()
    with zipfile.ZipFile(tmp_path / "strangers.zip", "w") as archive:
        archive.writestr("zipped-2.dist-info/entry_points.txt", ONE)
        archive.writestr("broken-3.dist-info/entry_points.txt", "=")
    done = ran(["list", "heads"], tmp_path, tmp_path / "strangers.zip")
    listing, _, aside = done.stdout.partition("ignored\n")
    assert "\n  standard\n" in listing
    assert "more" not in listing
    assert f"ddnkit 0.0.1 in {tmp_path}" in aside
    assert "others  (from zipped 2)" in listing
    assert "broken 3" in aside


DISTURBS = """\
import os, signal, threading, warnings
os.chdir("/")
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
warnings.simplefilter("ignore")
import torch
torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")
torch.set_grad_enabled(False)
"""


def test_what_an_import_changes_is_set_back_and_told(tmp_path: Path) -> None:
    install(tmp_path, ONE, DISTURBS + SETTINGS + HEAD)
    script = """
import os, signal, sys, warnings
before = os.getcwd(), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
from ddnkit import registry
told = []
registry.tell_by(told.append)
filters = warnings.filters[:]
registry.get("heads", "others")
import torch
assert before == (os.getcwd(), signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
assert warnings.filters == filters
assert torch.get_default_dtype() == torch.float32
assert torch.zeros(1).device.type == "cpu"
assert torch.is_grad_enabled()
assert len(told) == 1 and "others" in told[0] and "SIGTERM" in told[0], told
"""
    subprocess.run(
        [sys.executable, "-c", script], env=environment(tmp_path), cwd=tmp_path, check=True
    )


@pytest.mark.parametrize("caught", [False, True])
def test_the_users_own_interrupt_still_interrupts(caught: bool, tmp_path: Path) -> None:
    waits = "    print('here', flush=True)\n    time.sleep(60)\n"
    after = "except BaseException:\n    pass\n" if caught else "finally:\n    pass\n"
    waits = f"import time\ntry:\n{waits}{after}"
    install(tmp_path, ONE, waits + SETTINGS + HEAD)
    with subprocess.Popen(
        [sys.executable, "-m", "ddnkit", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
        # Where the tests run in the background, a process begins deaf to it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "others" not in told or "interrupted" in told
    assert "Traceback" not in told


# -- a plugin that does not have what its pipeline uses --------------------------------------------

BUILD = {
    "datasets": "def build(self, *, seed, smoke, download): ...",
    "backbones": "def build(self, *, sample_shape, samples): ...",
    "heads": "def build(self, *, feature_dim, classes): ...",
    "losses": "def build(self, *, counts, head): ...",
    "optimizers": "def build(self, model): ...",
    "metrics": "def build(self): ...",
}
SECTION = {
    "datasets": "data",
    "backbones": "backbone",
    "heads": "head",
    "losses": "loss",
    "optimizers": "optimizer",
    "metrics": "metrics",
}
FIELDS = "    batch_size: int = 8\n    sampler: str = 'shuffled'\n"
WRONG = {
    "def build(self, *, other): ...": "build",
    "build: int = 3": "build",
    "pass": "build",
    "def build(self, *more, required, **named): ...": "build",
}


def test_every_section_is_held_against_what_the_pipeline_uses(tmp_path: Path) -> None:
    """One process: a class of each kind that fits, and those that do not; nothing is built."""
    points, module, commands, expected = "", SETTINGS + "from typing import Any\n", [], []
    for group, build in BUILD.items():
        points += f"[ddnkit.{group}]\n"
        fields = FIELDS if group == "datasets" else ""
        bodies = {build: None, **WRONG}
        if group == "datasets":
            bodies[f"batch_size: int = 8\n    {build}"] = "sampler"
        for number, (body, member) in enumerate(bodies.items()):
            name = f"s{number}_{group}"
            points += f"{name} = other_module:{name}\n"
            own = "" if member == "sampler" else fields
            module += f"class {name}(Settings):\n{own}    {body}\n"
            commands.append(["run", "digits", "-s", f"{SECTION[group]}={name}", "--dry-run"])
            expected.append((name, member))
    install(tmp_path, points, module)
    found, _ = in_one_process(tmp_path, *commands)
    for (status, _, told), (name, member) in zip(found, expected, strict=True):
        assert status == (0 if member is None else 2), (name, told)
        if member is not None:
            assert f"'{member}'" in told or f"{member}(" in told
            assert name in told
            assert "other 1.5" in told


@pytest.mark.parametrize("given", ["sampler=by_chance", "batch_size=0"])
def test_a_value_that_the_pipeline_cannot_use_is_refused(given: str, tmp_path: Path) -> None:
    body = f"class Head(Settings):\n{FIELDS}    {BUILD['datasets']}\n"
    install(tmp_path, ONE.replace("heads", "datasets"), SETTINGS + body)
    ((status, _, told),), _ = in_one_process(
        tmp_path, ["run", "digits", "-s", "data=others", "-s", f"data.{given}", "--dry-run"]
    )
    assert status == 2
    assert f"data.{given.partition('=')[0]}" in told


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.long
def test_what_is_set_aside_reaches_no_reader_of_others(tmp_path: Path) -> None:
    """torch and pydantic look for extensions by Python's own reader, and would wait or fail."""
    os.mkfifo(tmp_path / "pipe")
    make: dict[str, Callable[[Path], None]] = {
        "pipe": os.mkfifo,
        "link": lambda file: file.symlink_to(tmp_path / "pipe"),
        "device": lambda file: file.symlink_to("/dev/zero"),
    }
    stuck = {}
    for what, name in itertools.product(make, ["entry_points.txt", "METADATA"]):
        of = f"{what}_{name[0]}"
        file = stuck[of] = tmp_path / f"{of}-1.0.dist-info" / name
        file.parent.mkdir()
        make[what](file)
        if name == "METADATA":
            points = file.with_name("entry_points.txt")
            points.write_text("[torch.backends]\nx = no_such_module:load\n")
    # Read by Python, each would have torch look for a module that is not there, or would take minutes.
    extension = "[torch.backends]\nx = no_such_module:load\n"
    for of, points in {"twice": extension * 2, "huge": extension + "# more\n" * 1_500_000}.items():
        install(tmp_path, points, name=f"{of}-1.0.dist-info")
        stuck[of] = tmp_path / f"{of}-1.0.dist-info" / "entry_points.txt"
    stuck["a distribution without a name"] = tmp_path / "-1.0.dist-info"
    stuck["a distribution without a name"].mkdir()
    commands = [["list", "heads"], ["check", "quadratic_on_sphere", "--examples", "1"]]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        capture_output=True, text=True, timeout=60, env=environment(tmp_path), cwd=tmp_path, check=True,
    )  # fmt: skip
    listed, checked = json.loads(done.stdout)["found"]
    assert listed[0] == 0 and "nearest_etf" in listed[1]
    for of, file in stuck.items():
        assert f"{of} 1.0" in listed[1] and str(file) in listed[1], (of, listed[1])
    assert checked[0] == 0, checked


FORMS = """\
import torch
import ddnkit
class Nearest(ddnkit.DeclarativeNode):
    input_dims = (1,)
    bench_sizes = ((6,),)
    def objective(self, x, y): return ((y - x) ** 2).sum()
    def solve(self, x): return x.clone()
    def sample_inputs(self): return (torch.randn(3),)
    def bench_inputs(self, m): return (torch.randn(m),)
class Other(Nearest): pass
class Forgetful(Nearest):
    def objective(self, x, y): return ((y - x**2) ** 2).sum()
    def solve(self, x):
        self.kept = x.detach().clone()
        return x**2
    def adjoint(self, x, y, v): return (2 * self.kept * v,)
class Twin(ddnkit.registry.get("backwards", "closed_form")):
    name = "twin"
class Exact(ddnkit.BackwardForm):
    name = "exact"
    dense = True
    def tangent_solve(self, problem, y, nu):
        return ddnkit.registry.make("backwards", "dense").tangent_solve(problem, y, nu)
class Alike(Exact):
    name = "dense"
    dense = False
class Steps(Alike):
    name = "steps"
    unrolls = True
    def tangent_solve(self, problem, y, nu):
        solve = super().tangent_solve(problem, y, nu)
        return lambda r: (2 * solve(r)[0], solve(r)[1])
class Shorter(Alike):
    name = "shorter"
    has_adjoint = True
    def unsupported(self, problem):
        return None if type(problem.node) is Other else "it is for another node"
    def adjoint(self, problem, y, v, aux, wrt):
        return [2 * v for _ in wrt], None
"""
FORM_POINTS = """\
[ddnkit.nodes]
nearest_x = other_module:Nearest
[ddnkit.backwards]
exact = other_module:Exact
alike = other_module:Alike
steps = other_module:Steps
shorter = other_module:Shorter
twin = other_module:Twin
"""


@pytest.mark.long
def test_what_a_form_from_a_package_says_of_itself_counts(tmp_path: Path) -> None:
    install(tmp_path, FORM_POINTS, FORMS)
    script = """if True:
        import json, torch, ddnkit, other_module
        from ddnkit.bench import Case, Forms
        x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
        def checked(node, **settings):
            report = ddnkit.check(node(), x, **settings)
            failed = [row.name for row in report.rows if not row.ok]
            return report.kinds, report.diagnosis[0], failed
        layer = ddnkit.DeclarativeLayer(other_module.Nearest(), "alike")
        layer(x)
        plain = ddnkit.check(other_module.Nearest(), x)
        print(json.dumps([
            checked(other_module.Nearest, backward="steps"),
            checked(other_module.Other),
            checked(other_module.Forgetful),
            [plain.ok, plain.notes],
            {c.name: c.needs for c in Forms("nearest_x").competitors(Case((10**5,)), "cpu")},
            layer.certificate.form,
        ]))
    """
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(tmp_path),
        check=True,
    )
    asked, own, stale, (passed, notes), needs, alike = json.loads(done.stdout)
    # What unrolls counts where it is asked for by name.
    assert asked[0] == ["system_not_solved"] and "steps" in asked[1]
    # Else it is a note, and it is not timed.
    assert passed and any("steps" in note for note in notes) and "steps" not in needs
    # Code of the form's own is not taken for the node's.
    assert own[0] == ["adjoint_factor"] and "'shorter'" in own[1]
    # Two forms may run the same wrong code of a node.
    assert stale[0] == ["stale_gradient"]
    assert [name.split(", ")[-1] for name in stale[2]] == ["closed_form", "twin"]
    assert needs["exact"] == needs["dense"] >= 8 * 10**10
    assert needs["alike"] == needs["krylov"] == 0
    # Its class calls it "dense", as ours is called.
    assert alike == "alike"


PAPER = """\
from typing import ClassVar
import ddnkit
class Race(ddnkit.Pipeline):
    columns: ClassVar[tuple[str, ...]] = ("epoch", "step", "score")
    gain: float = 1.0
    def run(self, job):
        for step in (1, 2):
            job.record({"epoch": step, "step": step, "score": self.gain * step + job.seed})
class Sized(Race):
    paper: str | dict = "A4"
class Theirs(ddnkit.Paper):
    title: ClassVar[str] = "A paper of theirs (2031)"
    experiment: str = "small"
    def presets(self, given):
        return {"gain": 40.0, "loss.label_smoothing": 0.25, "head.temperature": 7.0, "head.delta": 0.5}
    def published(self, settings):
        source = f"their Table 9, {self.experiment}"
        yield ddnkit.PublishedFigure("score", "61.5", source, epoch=1, note="So they say.")
        yield ddnkit.PublishedFigure("score", "79", source)
        yield ddnkit.PublishedFigure("score", "99", source, epoch=50)
        yield ddnkit.PublishedFigure("of_their_own", "1", "their Table 11")
    def tables(self, folder):
        jobs = len(list(folder.glob("runs/*/seed-*")))
        return [ddnkit.Table("Theirs alone", (("", "found"), ("jobs", str(jobs))), self.experiment)]
class Broken(Theirs):
    def published(self, settings): raise RuntimeError("no figures today")
    def tables(self, folder): return 5
class Untitled(ddnkit.Paper): pass
class Misled(Theirs):
    def presets(self, given): return {"head.temprature": 7.0}
"""
PAPER_POINTS = """\
[ddnkit.pipelines]
race = other_module:Race
sized = other_module:Sized
[ddnkit.papers]
theirs = other_module:Theirs
broken = other_module:Broken
untitled = other_module:Untitled
misled = other_module:Misled
"""


def test_a_paper_from_a_package_brings_presets_figures_and_tables(tmp_path: Path) -> None:
    install(tmp_path, PAPER_POINTS, PAPER)
    shown, again, misspelt, untitled, misled, listed = in_one_process(
        tmp_path,
        ["run", "digits", "-s", "paper=theirs", "--only", "standard", "--dry-run"],
        ["run", "digits", "-s", "paper=theirs", "-s", "loss.label_smoothing=0.5", "--dry-run"],
        ["run", "digits", "-s", "paper={name: theirs, exprement: a}", "--dry-run"],
        ["run", "digits", "-s", "paper=untitled", "--dry-run"],
        ["run", "digits", "-s", "paper=misled", "--dry-run"],
        ["list", "papers"],
    )[0]
    assert shown[0] == 0, shown
    assert "paper: {name: theirs, experiment: small}" in shown[1]
    assert "label_smoothing: 0.25" in shown[1] and "label_smoothing: 0.5" in again[1]
    assert "temperature: 5" in shown[1]  # what the recipe says itself goes first
    assert "delta" not in shown[1]  # a key of other heads
    assert misspelt[0] == untitled[0] == misled[0] == 2
    assert "the paper misled" in misled[2] and "head.temprature" in misled[2]
    assert "paper.exprement" in misspelt[2] and "'experiment'" in misspelt[2]
    assert "'title'" in untitled[2]
    assert "theirs  (from other 1.5)" in listed[1] and "guiding_neural_collapse" in listed[1]

    (tmp_path / "race.yaml").write_text("pipeline: race\npaper: theirs\nseeds: [0, 2]\n")
    run = ["run", "race.yaml", "--jobs", "1", "--device", "cpu"]
    (tmp_path / "sized.yaml").write_text("pipeline: sized\n")
    (tmp_path / "former.yaml").write_text("pipeline: sized\nfidelity: paper\n")
    whole, broken, swept, sized, named, former = in_one_process(
        tmp_path,
        [*run, "-s", "paper.experiment=large", "--out", "a"],
        [*run, "-s", "paper=broken", "--out", "b"],
        [*run, "-s", "sweep.paper.experiment=[tiny, huge]", "--out", "c"],
        [*run[:1], "sized.yaml", *run[2:], "--out", "d"],
        [*run[:1], "sized.yaml", *run[2:], "--out", "e", "-s", "paper={name: A5}"],
        ["run", "former.yaml", "--dry-run"],
        torch=True,
    )[0]
    assert whole[0] == 0, whole
    report = (tmp_path / "a" / "report.md").read_text(encoding="utf-8")
    table = report.partition("## score: ours and published\n\n")[2].split("\n\n")
    assert table[0].splitlines()[2] == (
        "| default | 41 [40, 42] | 61.5 | not run | 99 | 81 [80, 82] | 79 |"
    )
    assert "their Table 9, large" in table[1] and "So they say." in table[1]
    assert "of_their_own" not in report
    assert "## Theirs alone\n\n|  | found |\n| --- | ---: |\n| jobs | 2 |" in report

    assert broken[0] == 0, broken
    assert "no figures today" in broken[2] and "A paper of theirs" in broken[2]
    report = (tmp_path / "b" / "report.md").read_text(encoding="utf-8")
    assert "## Last evaluation" in report and "ours and published" not in report

    assert swept[0] == 0, swept
    report = (tmp_path / "c" / "report.md").read_text(encoding="utf-8")
    assert report.count("## Theirs alone") == 1
    assert "| jobs | 4 |\n\ntiny\n" in report

    # A pipeline may have a key of its own of that name.
    for own in (sized, named):
        assert own[0] == 0 and "warning" not in own[2], own
    assert former[0] == 2 and "former.yaml:2: fidelity: unknown key" in former[2]
