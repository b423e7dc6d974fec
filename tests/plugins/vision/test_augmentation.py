"""Flip, rotation and crop: each sample for itself, equal to torchvision's, sample by sample."""

import math

import pytest
import torch
from bounds import rounding
from ddnkit_train import Augmentation, Dataset, Plan, Share
from ddnkit_vision import FlipCropRotate
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as one

#: A place in an image of 12 pixels is rounded in some sixteen operations in each of two directions, and
#: neighbours differ by 255 at most.
PIXELS = rounding(torch.float32, 2 * 16, size=12 * 255)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 16, height: int = 12, width: int = 9) -> Tensor:
    return torch.randint(0, 256, (count, 3, height, width), generator=generator(5)).to(torch.uint8)


def by_torchvision(augmentation: FlipCropRotate, image: Tensor, row: Tensor) -> Tensor:
    """Flip, rotate, pad, crop."""
    flip, down, right, angle = row.tolist()
    image = one.hflip(image) if flip else image
    if augmentation.rotation:
        mode = InterpolationMode(augmentation.interpolation)
        image = one.rotate(image, angle, interpolation=mode)
    padding = augmentation.crop
    top, left = padding + int(down), padding + int(right)
    height, width = image.shape[-2:]
    return one.crop(one.pad(image, [padding]), top, left, height, width)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("flip", "crop"), [(True, 0), (True, 3), (False, 4)])
def test_flip_and_crop_are_torchvisions_exactly(flip: bool, crop: int, dtype: torch.dtype) -> None:
    augmentation = FlipCropRotate(flip, crop)
    batch = images().to(dtype)
    drawn = augmentation.draw(len(batch), generator())
    changed = augmentation.apply(batch, drawn)
    assert changed.dtype == dtype
    for image, row, given in zip(changed, drawn, batch, strict=True):
        assert torch.equal(image, by_torchvision(augmentation, given, row))


@pytest.mark.parametrize("rotation", [15.0, 180.0])
@pytest.mark.parametrize("crop", [0, 3])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_rotation_is_torchvisions_to_rounding(
    interpolation: str, crop: int, rotation: float
) -> None:
    augmentation = FlipCropRotate(True, crop, rotation, interpolation)  # type: ignore[arg-type]
    batch = images().float()
    drawn = augmentation.draw(len(batch), generator())
    changed = augmentation.apply(batch, drawn)
    expected = torch.stack(
        [by_torchvision(augmentation, x, row) for x, row in zip(batch, drawn, strict=True)]
    )
    torch.testing.assert_close(changed, expected, atol=PIXELS, rtol=0)
    stored = augmentation.apply(batch.to(torch.uint8), drawn)
    assert torch.equal(stored, changed)


def test_a_quarter_turn_is_exact() -> None:
    augmentation = FlipCropRotate(rotation=180)
    square = images(4, 8, 8)
    turned = augmentation.apply(square, torch.tensor([[0.0, 0.0, 0.0, 90.0]]).expand(4, 4))
    torch.testing.assert_close(turned, torch.rot90(square, 1, (2, 3)).float(), atol=PIXELS, rtol=0)


def test_samples_of_a_batch_change_differently() -> None:
    augmentation = FlipCropRotate(True, 4, 15.0)
    drawn = augmentation.draw(64, generator())
    assert len(drawn[:, 3].unique()) == 64
    assert len(drawn[:, :3].unique(dim=0)) > 40
    same = images(1).expand(64, -1, -1, -1)
    assert len(augmentation.apply(same, drawn).unique(dim=0)) == 64


def test_draws_are_uniform() -> None:
    # A mean or a share of 40,000 draws has a deviation of 0.6 % of its range at most: four of them.
    count = 40_000
    drawn = FlipCropRotate(True, 2, 30.0).draw(count, generator())
    assert drawn.shape == (count, 4)
    assert set(drawn[:, 0].tolist()) == {0.0, 1.0}
    assert float(drawn[:, 0].mean()) == pytest.approx(0.5, abs=0.02)
    for shift in (drawn[:, 1], drawn[:, 2]):
        values, counts = shift.unique(return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        assert counts.tolist() == pytest.approx([count / 5] * 5, rel=0.05)
    angle = drawn[:, 3]
    assert float(angle.abs().max()) <= 30 and float(angle.mean()) == pytest.approx(0, abs=0.3)
    assert float(angle.std()) == pytest.approx(30 / math.sqrt(3), rel=0.02)
    assert torch.corrcoef(drawn.T).fill_diagonal_(0).abs().max() < 0.03
    still = FlipCropRotate(False, 0, 0.0).draw(10, generator())
    assert not still.any()


def test_what_is_off_changes_nothing() -> None:
    batch = images()
    for augmentation in (FlipCropRotate(False), FlipCropRotate(False, 3), FlipCropRotate()):
        drawn = torch.zeros(len(batch), 4)
        assert torch.equal(augmentation.apply(batch, drawn), batch)


@pytest.mark.parametrize("rotation", [0.0, 20.0])
def test_a_part_of_a_batch_changes_as_it_does_in_the_whole(rotation: float) -> None:
    augmentation: Augmentation = FlipCropRotate(True, 3, rotation)
    batch = images()
    drawn = augmentation.draw(len(batch), generator())
    whole = augmentation.apply(batch, drawn)
    for i, j in ((0, 5), (5, 6), (6, 16)):
        part = augmentation.apply(batch[i:j], drawn[i:j])
        torch.testing.assert_close(part, whole[i:j], atol=PIXELS if rotation else 0, rtol=0)


def test_every_share_of_a_batch_is_its_part_of_the_whole() -> None:
    data = Dataset(images(), torch.arange(16) % 4, 4, augmentation=FlipCropRotate(True, 3, 15.0))
    plans = [Plan(torch.randperm(16, generator=generator(1))[:11], seed=3), Plan(None, seed=4)]
    whole = list(data.training(plans))
    parts = [list(data.training(plans, Share(rank, 3))) for rank in range(3)]
    for step, (samples, labels) in enumerate(whole):
        found = torch.cat([part[step][0] for part in parts])
        torch.testing.assert_close(found, samples, atol=PIXELS, rtol=0)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), labels)


@pytest.mark.gpu
@pytest.mark.parametrize("rotation", [0.0, 15.0])
def test_a_gpu_gives_what_the_cpu_gives(rotation: float) -> None:
    augmentation = FlipCropRotate(True, 3, rotation)
    batch = images()
    drawn = augmentation.draw(len(batch), torch.Generator("cuda").manual_seed(0))
    assert drawn.device.type == "cuda"
    there = augmentation.apply(batch.to("cuda"), drawn).cpu()
    torch.testing.assert_close(there, augmentation.apply(batch, drawn.cpu()), atol=PIXELS, rtol=0)
