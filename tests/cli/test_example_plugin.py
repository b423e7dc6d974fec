"""The package in tests/example_plugin: what ddnkit's own parts can do, those of anyone can."""

from __future__ import annotations

import ast
import csv
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from bounds import factorised, rounding
from test_strangers import in_one_process, ran

import ddnkit
from ddnkit import Problem, Status, registry

EXAMPLE = Path(__file__).parent.parent / "example_plugin"
FILES = sorted((EXAMPLE / "example_parts").glob("*.py"))
PACKAGES = {"ddnkit", "ddnkit_etf", "ddnkit_train"}
#: Modules that list what they offer.
PUBLIC = {*PACKAGES, "ddnkit.solvers", "ddnkit.linalg", "ddnkit.bench"} | {
    f"{package}.settings" for package in PACKAGES
}
#: What each promises of the gradient by default (docs/solvers.md), in float64; in float32 what pymanopt's and
#: geoopt's do.
PROMISED = {
    "trust_regions": (1e-9, 1e-6),
    "conjugate_gradient": (1e-7, 1e-6),
    "steepest_descent": (1e-7, 1e-6),
    "nelder_mead": (1e-4, 1e-4),
    "particle_swarm": (1e-3, 1e-3),
    "riemannian_sgd": (1e-7, 1e-5),
    "riemannian_adam": (1e-7, 1e-5),
    "riemannian_line_search": (1e-7, 1e-5),
}
#: Columns of length one in so many dimensions: those that compare values are for few.
SHAPES = {"nelder_mead": (2, 2), "particle_swarm": (2, 2)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_uses_public_names_alone(file: Path) -> None:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules = {alias.name: [] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules = {node.module or "": [alias.name for alias in node.names]}
        else:
            continue
        for module, names in modules.items():
            top = module.partition(".")[0]
            # Without a name for the package: a file of the example beside it.
            assert (
                top in {*PACKAGES, "", "pydantic", "torch", *sys.stdlib_module_names} or node.level
            )
            if top in PACKAGES:
                assert module in PUBLIC
                assert set(names) <= set(importlib.import_module(module).__all__)


@pytest.fixture
def oblique(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of the manifold, in this process."""
    registry.find()  # before its entry points are on the path: other tests are not to meet them
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield importlib.import_module("example_parts.oblique")
    for name in [name for name in sys.modules if name.partition(".")[0] == "example_parts"]:
        del sys.modules[name]


def columns(shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    """Two items of columns at sharp angles, which the repulsion opens."""
    W = (
        torch.eye(*shape, dtype=torch.float64)
        + 0.5
        + 0.1 * torch.randn(2, *shape, dtype=torch.float64)
    )
    return W.to(dtype)


@pytest.mark.parametrize("name", PROMISED)
@pytest.mark.parametrize(
    "dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.long)]
)
def test_its_manifold_runs_on_each_riemannian_solver(
    name: str, dtype: torch.dtype, oblique: ModuleType
) -> None:
    node, manifold = oblique.RepelledColumns(), oblique.Oblique()
    W = columns(SHAPES.get(name, (4, 3)), dtype)
    problem = Problem(node, [W], 2)
    solver = registry.make("solvers", name)
    assert solver.unsupported(problem) is None
    solution = solver.solve(problem)
    assert solution.statuses() == [Status.CONVERGED] * 2
    assert solution.y.dtype == dtype
    assert (solution.iterations > 0).all()
    assert manifold.infeasibility(solution.y).max() < factorised(dtype, 4)
    # Judged in float64 at the point that was handed over, with what rounding to dtype may add.
    exact, y = Problem(node, [W.double()], 2), solution.y.double()
    start = exact.start()
    tangent = manifold.tangent(y, exact.gradient(y)).flatten(1).norm(dim=1)
    scale = exact.gradient(start).flatten(1).norm(dim=1)
    scale += exact.hessian_vector(start, start).flatten(1).norm(dim=1)
    promised = PROMISED[name][dtype == torch.float32]
    assert (tangent <= (promised + rounding(dtype, W[0].numel())) * scale).all()
    assert (exact.objective(y) < exact.objective(start)).all()


@pytest.mark.parametrize("name", ["conjugate_gradient", "riemannian_sgd"])
def test_a_manifolds_own_transport_is_used(name: str, oblique: ModuleType) -> None:
    calls = []

    class Counted(oblique.Oblique):
        def transport(self, y: torch.Tensor, to: torch.Tensor, vector: torch.Tensor):
            calls.append(y.shape)
            return super().transport(y, to, vector)

    class Node(oblique.RepelledColumns):
        manifold = Counted()

    problem = Problem(Node(), [columns((4, 3), torch.float64)], 2)
    assert registry.make("solvers", name).solve(problem).statuses() == [Status.CONVERGED] * 2
    assert calls


@pytest.mark.parametrize("name", PROMISED)
def test_a_start_that_solves_it_needs_no_step(name: str, oblique: ModuleType) -> None:
    W = oblique.Oblique().project(torch.eye(2, dtype=torch.float64)).expand(2, 2, 2)
    solution = registry.make("solvers", name).solve(Problem(oblique.RepelledColumns(), [W], 2))
    assert solution.statuses() == [Status.CONVERGED] * 2
    assert solution.iterations.tolist() == [0, 0]


#: A folder, and status, output and errors of commands by name.
Used = tuple[Path, dict[str, list[Any]]]


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Used:
    """What commands gave that use its parts, by name, and where: one process imports torch for all."""
    folder = tmp_path_factory.mktemp("used")
    (folder / "rugged.yaml").write_text(
        "pipeline: annealing\nsteps: 100\nseeds: 2\nsweep: {temperature: [0.1, 1.0]}\n"
    )
    chosen = ["-s", "head=prototypes", "-s", "data={name: rings, classes: 4}", "-s", "sweep={}"]
    chosen += ["--smoke", "--jobs", "1", "--device", "cpu", "--out", str(folder / "rings")]
    commands = {
        "check": ["check", "repelled_columns", "--examples", "2", "--json"],
        "bench": ["bench", "repelled_columns", "--repeats", "1", "--no-memory", "--json", "-"],
        "list": ["list", "solvers"],
        "train": ["run", "digits", *chosen],
        "anneal": [
            "run", str(folder / "rugged.yaml"), "--jobs", "1", "--out", str(folder / "annealed"),
        ],
        "describe": ["describe", "annealing"],
    }  # fmt: skip
    found, _ = in_one_process(EXAMPLE, *commands.values())
    return folder, dict(zip(commands, found, strict=True))


def test_form_manifold_and_solver_take_part_in_check_and_bench(used: Used) -> None:
    check, bench, listed = (used[1][name] for name in ("check", "bench", "list"))
    # The node is on its manifold, and its solver is chosen by name.
    assert check[0] == 0, check
    data = json.loads(check[1])
    assert {"least_squares", "dense"} <= set(data["forms"])
    rows = {row["name"] for row in data["rows"]}
    assert {"least_squares: finite differences", "least_squares: against dense"} <= rows
    assert bench[0] == 0, bench
    (figures,) = json.loads(bench[1])
    assert {"least_squares", "krylov"} <= {line["competitor"] for line in figures["measured"]}
    assert "barzilai_borwein  (from example_parts 1.0)" in listed[1]


def test_its_solver_and_form_serve_a_layer(oblique: ModuleType) -> None:
    solver = importlib.import_module("example_parts.barzilai_borwein").BarzilaiBorwein
    form = importlib.import_module("example_parts.least_squares").LeastSquares

    class Node(oblique.RepelledColumns):
        def __init__(self, solver: ddnkit.Solver | str) -> None:
            self.solver = solver

    W = columns((4, 3), torch.float64)
    v = torch.randn(2, 4, 3, dtype=torch.float64)
    found = []
    for chosen, backward in ((solver(), form()), ("newton", "dense")):
        x = W.clone().requires_grad_()
        layer = ddnkit.DeclarativeLayer(Node(chosen), backward, policy="raise")
        y = layer(x)
        y.backward(v)
        found.append((y.detach(), x.grad))
    # Both to 1e-11 of backward error at least, over curvatures of order one.
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
    with pytest.raises(ddnkit.InputError, match="BarzilaiBorwein: max_iterations "):
        solver(max_iterations=-1)
    stopped = solver(max_iterations=1).solve(Problem(Node("newton"), [W], 2))
    assert stopped.statuses() == [Status.MAX_ITERATIONS] * 2
    late = solver(max_time=0.0).solve(Problem(Node("newton"), [W], 2))
    assert late.statuses() == [Status.TIME_LIMIT] * 2


@pytest.mark.long
def test_its_metric_has_a_column_in_files_tables_and_figures(tmp_path: Path) -> None:
    chosen = ["-s", "metrics=mean_margin", "--only", "standard", "--smoke", "--jobs", "1"]
    command = ["run", "digits", *chosen, "--device", "cpu", "--out", str(tmp_path / "run")]
    ran(command, tmp_path, EXAMPLE)
    (metrics,) = (tmp_path / "run").rglob("metrics.csv")
    with metrics.open() as file:
        margins = [float(row["mean_margin"]) for row in csv.DictReader(file)]
    assert margins and all(-1 <= margin <= 1 for margin in margins)
    assert "mean_margin" in (tmp_path / "run" / "summary.csv").read_text()
    report = (tmp_path / "run" / "report.md").read_text()
    assert any("mean_margin" in line for line in report.splitlines() if line.startswith("|"))
    assert "mean_margin" in (tmp_path / "run" / "report.html").read_text()
    assert (tmp_path / "run" / "figures" / "mean_margin.png").stat().st_size > 0
    assert "figures/mean_margin.png" in report


def test_its_head_trains_in_a_recipe_on_its_data(used: Used) -> None:
    folder, found = used
    assert found["train"][0] == 0, found["train"]
    (metrics,) = (folder / "rings").rglob("metrics.csv")
    with metrics.open() as file:
        losses = [float(row["train_loss"]) for row in csv.DictReader(file)]
    assert losses and min(losses) > 0


def test_its_pipeline_runs_a_recipe(used: Used) -> None:
    folder, found = used
    assert found["anneal"][0] == 0, found["anneal"]
    files = sorted((folder / "annealed").rglob("metrics.csv"))
    assert len(files) == 4
    for metrics in files:
        with metrics.open() as file:
            lowest = [float(row["lowest"]) for row in csv.DictReader(file)]
        assert len(lowest) == 10 and lowest == sorted(lowest, reverse=True)
    assert "round(y)" in (folder / "annealed" / "report.md").read_text()
    assert "temperature" in found["describe"][1]


@pytest.mark.long
def test_its_bench_compares() -> None:
    command = ["bench", "column_lengths", "--repeats", "1", "--no-memory", "--json", "-"]
    (ended,), _ = in_one_process(EXAMPLE, command, torch=True)
    assert ended[0] == 0, ended
    (figures,) = json.loads(ended[1])
    who = [(tuple(line["size"]), line["competitor"]) for line in figures["measured"]]
    sizes, names = [(64, 16), (256, 64)], ["torch's normalize", "column by column"]
    assert who == [(size, name) for size in sizes for name in names]
