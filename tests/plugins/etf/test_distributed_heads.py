"""Two processes that share each batch train as one does that has all of it."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from bounds import rounding
from ddnkit_etf import ClassifierHead, ClassMeans
from ddnkit_etf.reduction import batch_mean, class_sums, sum_over_processes
from rounding import Rounding
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from ddnkit import DdnkitWarning, registry

WORLD, STEPS, C, D = 2, 4, 6, 8
HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "standard, centred": ("standard", {"centre": True}),
    "fixed": ("fixed_etf", {}),
    "fixed, last mean": ("fixed_etf", {"evaluation_mean": "last_batch"}),
    "nearest": ("nearest_etf", {}),
    "nearest, haar": ("nearest_etf", {"initial": "haar"}),
    "nearest, not differentiated": ("nearest_etf", {"differentiate": False}),
    "nearest, as the text": ("nearest_etf", {"means": {"normalise": "before", "absent": "zero"}}),
    "nearest, as the code": ("nearest_etf", {"means": {"absent": "global_mean"}}),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
#: Collectives of a step, forward and backward.
REDUCTIONS = {"standard": 0}
# A share each, of 37 samples; class 4 is on one process alone, class 5 on none until the last step.
BATCH, BOUNDS = 37, (0, 19, 37)

Trace = list[dict[str, Tensor]]


class Network(nn.Module):
    def __init__(self, head: ClassifierHead) -> None:
        super().__init__()
        self.layer = nn.Linear(D, D, bias=False)
        self.head = head
        self.features = torch.zeros(())

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        self.features = self.layer(inputs)
        self.features.retain_grad()
        return self.head(self.features, labels)


def batch(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(4, (BATCH,), generator=generator)
    if step < STEPS - 1:
        labels[3:7] = 4
    else:
        labels[-1] = 5
    # Classes apart, so that the nearest ETF is well-conditioned; a mean that is not zero.
    centres = 2 * nn.functional.one_hot(labels, D) + torch.arange(D) / D
    return (centres + 0.3 * torch.randn(BATCH, D, generator=generator)).to(dtype), labels


def train(case: str, dtype: str, rank: int | None) -> Trace:
    """What a process sees: its share's logits and gradients, and the state that all should have."""
    torch.manual_seed(1)
    name, settings = HEADS[case]
    if name == "nearest_etf" and dtype == "float32":
        # While a class is missing, δ alone holds U in its direction: rounding grows 1/δ times.
        settings = {**settings, "delta": 1}
    head = registry.get("heads", name)(**settings).build(feature_dim=D, classes=C)
    network = Network(head).to(DTYPES[dtype])
    model: Any = network if rank is None else DistributedDataParallel(network)
    world, share = (1, slice(None)) if rank is None else (WORLD, slice(*BOUNDS[rank : rank + 2]))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    trace = []
    for step in range(STEPS):
        inputs, labels = (whole[share] for whole in batch(step, DTYPES[dtype]))
        logits = model(inputs, labels)
        # The average over processes of these is the mean over the batch.
        loss = nn.functional.cross_entropy(logits, labels, reduction="sum") * world / BATCH
        optimizer.zero_grad()
        loss.backward()
        gradients = {f"∂{key}": p.grad.clone() for key, p in network.named_parameters()}
        assert network.features.grad is not None
        shares = {"logits": logits.detach(), "∂features": network.features.grad / world}
        optimizer.step()
        head.after_step()
        trace.append({**shares, "loss": loss.detach(), **gradients, **state(head)})
    return trace


def state(head: ClassifierHead) -> dict[str, Tensor]:
    kept = {key: value for key, value in head.state_dict().items() if torch.is_tensor(value)}
    return copy.deepcopy(kept)


def work(rank: int, folder: str, seed: int | None) -> None:
    with contextlib.nullcontext() if seed is None else Rounding(seed):
        work_on(rank, folder)


def work_on(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD
    )
    calls = count()
    reduce_for_all = distributed.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        next(calls)
        return reduce_for_all(*args, **kwargs)

    distributed.all_reduce = counted
    found: dict[Any, Any] = {}
    for case in HEADS:
        for dtype in DTYPES:
            before = next(calls)
            found[case, dtype] = train(case, dtype, rank)
            found[case, dtype, "reductions"] = next(calls) - before - 1
    found["second derivative"] = second_derivative(rank)
    found["half"] = halves(rank)
    for first in FIRST:
        found[first] = first_batch(first, rank)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def second_derivative(rank: int) -> tuple[Tensor, Tensor]:
    x = torch.tensor([rank + 1.0], requires_grad=True)
    first = torch.autograd.grad((sum_over_processes(x) ** 3).sum(), x, create_graph=True)[0]
    return first.detach(), torch.autograd.grad(first.sum(), x)[0]


#: Labels of the first batch, 6 samples a process; the second has all classes.
FIRST = {
    "a class each": [0] * 6 + [1, 2, 3, 1, 2, 3],
    "one class": [2] * 12,
    "one class here, none there": [1] * 6 + [-1] * 6,
}


def first_batch(case: str, rank: int | None) -> dict[str, Tensor]:
    """W and the gradient for the features after a first batch and an ordinary one."""
    generator = torch.Generator().manual_seed(5)
    head = registry.get("heads", "nearest_etf")().build(feature_dim=D, classes=4).double()
    rows, world = (slice(None), 1) if rank is None else (slice(6 * rank, 6 * rank + 6), WORLD)
    found = {}
    for step, labels in enumerate((torch.tensor(FIRST[case]), torch.arange(12) % 4)):
        features = torch.randn(12, D, generator=generator, dtype=torch.float64)[rows]
        labels = labels[rows]
        features = features[labels >= 0].requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DdnkitWarning)
            logits = head(features, labels[labels >= 0])
        (logits.square().sum() * world / 12).backward()
        assert features.grad is not None
        found[f"∂{step}"] = features.grad / world
        found[f"W{step}"] = head.classifier().clone()
    return found


def halves(rank: int) -> dict[str, Tensor]:
    """A share in half precision, one process without a sample, evaluation."""
    labels = torch.arange(4) if rank else torch.arange(0)
    features = torch.full((len(labels), D), 0.1, dtype=torch.bfloat16) + 1000 * rank
    found = {"mean": batch_mean(features.float()), "sums": class_sums(features, labels, C).sums}
    head = registry.get("heads", "fixed_etf")(evaluation_mean="test_batch")
    if rank:  # a process may evaluate by itself: nothing waits for the other
        found["logits"] = head.build(feature_dim=D, classes=C).eval()(features.float())
    return found


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> list[dict[Any, Any]]:
    """What each of two processes saw, for all heads; starting them takes most of the time."""
    folder = tmp_path_factory.mktemp("processes")
    # On the same processor as the one that they are compared with.
    multiprocessing.spawn(work, (str(folder), pytestconfig.getoption("--rounding")), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("case", FIRST)
def test_any_first_batch_of_two_processes_is_that_of_one(
    found: list[dict[Any, Any]], case: str
) -> None:
    alone = first_batch(case, None)
    # Sums of 12 terms in another order, through a solve of condition 1/δ = 1000 at most; δ alone holds
    # what a class that is missing leaves open.
    tolerance = 12 * 2000 * torch.finfo(torch.float64).eps
    for step in range(2):
        gradient = torch.cat([mine[case][f"∂{step}"] for mine in found])
        torch.testing.assert_close(gradient, alone[f"∂{step}"], atol=tolerance, rtol=tolerance)
        for mine in found:
            expected = alone[f"W{step}"]
            torch.testing.assert_close(mine[case][f"W{step}"], expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", HEADS)
def test_two_processes_train_as_one(found: list[dict[Any, Any]], case: str, dtype: str) -> None:
    alone = train(case, dtype, rank=None)
    # In float64 δ is 1e-3, which is what holds a direction of U while a class is missing.
    condition = {"float32": 1, "float64": 1e3}[dtype]
    for step, wanted in enumerate(alone):
        # Each step so far has added sums over the batch, of products of D terms.
        tolerance = rounding(DTYPES[dtype], (step + 1) * (BATCH + D), condition=condition)
        shares = [one[case, dtype][step] for one in found]
        for key, value in wanted.items():
            parts = [share[key] for share in shares]
            if key in ("logits", "∂features"):
                parts = [torch.cat(parts)]
            elif key == "loss":
                parts = [torch.stack(parts).mean()]
            else:  # all processes have the same, to the last bit
                assert all(torch.equal(*pair) for pair in pairwise(parts)), (step, key)
            scale = value.abs().max().clamp(min=1)
            for part in parts:
                torch.testing.assert_close(
                    part, value, atol=tolerance * scale, rtol=0, msg=f"{step} {key}: {{}}".format
                )


@pytest.mark.parametrize("case", HEADS)
def test_one_reduction_a_step_each_way(found: list[dict[Any, Any]], case: str) -> None:
    each = REDUCTIONS.get(case, 2)
    for one in found:
        assert one[case, "float32", "reductions"] == each * STEPS


def test_the_reduction_is_differentiated_twice(found: list[dict[Any, Any]]) -> None:
    # Σ_q ∂(S³)/∂S = 2·3S² on each of two processes with S = 3, and then 2·2·6S.
    for one in found:
        first, second = one["second derivative"]
        assert (first.item(), second.item()) == (pytest.approx(54), pytest.approx(72))


def test_shares_of_unlike_size_and_precision(found: list[dict[Any, Any]]) -> None:
    for one in found:
        assert one["half"]["sums"].dtype == torch.float32
        torch.testing.assert_close(one["half"]["mean"], torch.full((D,), 1000.0))
        torch.testing.assert_close(one["half"]["sums"][:, :4], torch.full((D, 4), 1000.0))
    assert found[1]["half"]["logits"].isfinite().all()


def lonely(tmp_path: Path, initialise: bool, use: Callable[[], None]) -> None:
    if initialise:
        distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
        )
    try:
        use()
    finally:
        if initialise:
            distributed.destroy_process_group()


@pytest.mark.parametrize("initialise", [False, True])
def test_a_process_alone_asks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, initialise: bool
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a collective")

    def use() -> None:
        monkeypatch.setattr(distributed, "all_reduce", refuse)
        for case in HEADS:
            assert len(train(case, "float32", rank=None)) == STEPS
        ClassMeans(D, C)(torch.randn(6, D), torch.arange(6))

    lonely(tmp_path, initialise, use)
