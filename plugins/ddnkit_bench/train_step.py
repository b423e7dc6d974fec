"""``ddnkit bench train_step``: the cost of each head beside the standard one, on the same network.

The paper's three methods, its nearest ETF without and with the DDN gradient (*Guiding Neural
Collapse*, Table 3 and Fig. 5). There is no dropout or the like, so that a step is the same work for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from ddnkit_train import AGD, Model
from torch import Tensor, nn

from ddnkit import InputError, registry
from ddnkit.bench import Case, Comparison, Competitor, Request

from . import Prepare

#: Head settings by competitor.
HEADS: dict[str, dict[str, Any]] = {
    "standard": {},
    "fixed_etf": {},
    "nearest_etf, no DDN gradient": {"differentiate": False},
    "nearest_etf": {"differentiate": True},
}


class TrainStep(Comparison):
    """A training step with each head: the same network, the same batch, AGD.

    A case's kind is ``BACKBONE STEM``; its size: image size, batch, classes. On a GPU in bfloat16.
    """

    size_names = ("image", "batch", "C")
    sizes = ((32, 256, 100),)
    cuda_sizes = ((224, 256, 1000),)
    kinds = ("resnet18 imagenet", "resnet18 cifar")
    cuda_kinds = ("resnet50 imagenet",)

    def cases(self, request: Request) -> list[Case]:
        """Each backbone at each size."""
        if "resnet18" not in registry.names("backbones"):
            raise InputError("train_step needs the backbones of ddnkit_vision")
        kinds = self.cuda_kinds if request.device == "cuda" else self.kinds
        return [Case(size, kind) for kind in kinds for size in self.asked_sizes(request)]

    def small(self, case: Case) -> Case:
        """The same images, a few of them."""
        image, _, _ = case.size
        return Case((image, 4, 4), case.kind)

    def inputs(self, case: Case, dtype: torch.dtype) -> Mapping[str, Any]:
        """A batch in which all classes are equally frequent."""
        image, batch, classes = case.size
        images = torch.randn(batch, 3, image, image, dtype=dtype)
        return {"images": images, "labels": torch.arange(batch) % classes}

    def competitors(self, case: Case, device: str) -> Sequence[Competitor]:
        """The standard head first."""
        return [Competitor(head, _step(head, case)) for head in HEADS]


def _step(head: str, case: Case) -> Prepare:
    def prepare(inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        image, batch, _ = case.size
        name, stem = case.kind.split()
        torch.manual_seed(0)
        backbone: Any = registry.get("backbones", name)(stem=stem)
        network = backbone.build(sample_shape=(3, image, image), samples=batch)
        return step_phases(head, network, inputs["images"], inputs["labels"], case.size[-1])

    return prepare


def step_phases(
    head: str, network: nn.Module, samples: Tensor, labels: Tensor, classes: int
) -> Mapping[str, Any]:
    """Forward, backward and update of a step with a head of `HEADS` on a network, by AGD."""
    settings = registry.get("heads", head.split(",")[0])(**HEADS[head])
    classifier = settings.build(feature_dim=network.feature_dim, classes=classes)
    model = Model(network, classifier).to(samples.device)
    optimizer = AGD(model.parameters(), gain=10, initialise=False)
    if samples.is_cuda and samples.dim() == 4:
        model.backbone.to(memory_format=torch.channels_last)
        samples = samples.contiguous(memory_format=torch.channels_last)

    def forward(_: object) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16) if samples.is_cuda else nullcontext():
            return nn.functional.cross_entropy(model(samples, labels), labels)

    def backward(loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()

    def update(_: object) -> Mapping[str, Tensor]:
        optimizer.step()
        classifier.after_step()
        return {}

    return {"forward": forward, "backward": backward, "update": update}
