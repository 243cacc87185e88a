"""Training for super-resolution: the small images, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import diffkit
from diffkit import DataError, OptionError
from diffkit.data import LowRes, from_array, scale_images
from diffkit.training.augmentation import with_noisy_low_res

UNET = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "groups": 4, "attention_resolutions": (4,)}


def images(*shape: int, labels: bool = False) -> diffkit.data.ArrayData:
    rng = np.random.default_rng(0)
    found = rng.integers(0, 256, shape, dtype=np.uint8)
    return from_array(found, labels=np.arange(len(found)) % 2 if labels else None, layout="channels_first")


def averaged(x: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Area averaging by its definition, in float64: cell i of n covers floor(i S / n) to ceil((i + 1) S / n)."""
    for axis, n in enumerate(size, start=2):
        total = x.shape[axis]
        cells = [
            x.take(range(i * total // n, -(-(i + 1) * total // n)), axis).mean(axis, keepdims=True) for i in range(n)
        ]
        x = np.concatenate(cells, axis)
    return x


@pytest.mark.parametrize(
    ("shape", "size", "each"),
    [
        ((3, 8, 8), 2, (2, 2)),
        ((1, 8, 6), (4, 3), (4, 3)),
        ((2, 7, 5), (3, 2), (3, 2)),
        ((4, 9), 3, (3,)),
        ((1, 4, 6, 8), (2, 3, 4), (2, 3, 4)),
        ((3, 6, 6), 6, (6, 6)),
    ],
)
def test_small_images_are_averages_over_areas(shape, size, each):
    plain = images(5, *shape)
    batch = LowRes(plain, size).batch([3, 0])
    wide = scale_images(plain.batch([3, 0]).images, 256).double().numpy()
    assert batch.conditions["low_res"].dtype == torch.float32
    assert batch.conditions["low_res"].shape == (2, shape[0], *each)
    np.testing.assert_allclose(batch.conditions["low_res"].numpy(), averaged(wide, each), atol=1e-6)
    assert torch.equal(batch.images, plain.batch([3, 0]).images)


def test_everything_else_is_the_data_s():
    plain = images(4, 3, 8, 8, labels=True)
    small = LowRes(plain, 4)
    assert (len(small), small.shape, small.bins, small.classes) == (4, (3, 8, 8), 256, ("0", "1"))
    image, conditions = small[1]
    assert torch.equal(image, plain[1][0]) and int(conditions["y"]) == 1
    assert torch.equal(conditions["low_res"], small.batch([1]).conditions["low_res"][0])
    assert small.describe() == {**plain.describe(), "low_res": [4, 4]}
    assert len(LowRes(np.zeros((2, 1, 4, 4), np.uint8), 2)) == 2


@pytest.mark.parametrize(
    ("shape", "size", "error", "text"),
    [
        ((3, 8, 8), 0, OptionError, "low_res must be one size >= 1, or 2, for data of shape (3, 8, 8), got 0"),
        ((3, 8, 8), (4, 4, 4), OptionError, "low_res must be one size >= 1, or 2"),
        ((3, 8, 8), (), OptionError, "low_res must be one size >= 1, or 2"),
        ((3, 8, 6), 8, OptionError, "low_res must not be larger than the data, (8, 6), got (8, 8)"),
        ((3,), 2, DataError, "data of shape (3,) cannot be shrunk"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(shape, size, error, text):
    with pytest.raises(error) as caught:
        LowRes(images(2, *shape), size)
    assert text in str(caught.value)


def test_shrinking_twice_is_refused():
    with pytest.raises(DataError, match="gives a condition low_res already"):
        LowRes(LowRes(images(2, 3, 8, 8), 4), 2)


def system(mean: str = "eps", **options: object) -> diffkit.System:
    torch.manual_seed(0)
    backbone = ("unet", {**UNET, "low_res_channels": 1, **options})
    return diffkit.compose(schedule="cosine", mean=mean, num_steps=8, data_shape=(1, 8, 8), backbone=backbone)


def test_a_network_learns_to_use_what_it_is_given(tmp_path: Path):
    """Images are one grey each, so the small one gives the large one away."""
    greys = np.random.default_rng(0).integers(0, 256, (64, 1, 1, 1), dtype=np.uint8) * np.ones((1, 1, 8, 8), np.uint8)
    data = LowRes(greys, 2)
    trained = diffkit.train(
        system("x_start"), data, out=tmp_path, steps=50, batch_size=16, lr=5e-3, ema=(0.9,), progress=False
    )
    batch = data.batch(range(16))
    large = diffkit.tasks.super_resolve(trained, batch.conditions["low_res"], seed=0, progress=False)
    error = (large - scale_images(batch.images, 256)).mean((1, 2, 3)).abs()
    assert error.mean() < 0.15  # greys are uniform on [-1, 1]: two drawn independently are 0.67 apart on average


def test_network_and_data_must_agree(tmp_path: Path):
    plain = images(8, 1, 8, 8)
    with pytest.raises(
        DataError, match=r"the network reads low_res of 1 channels, but the data gives none; wrap it in"
    ):
        diffkit.train(system(), plain, out=tmp_path, steps=1, batch_size=2)
    with pytest.raises(DataError, match=r"gives low_res of 1 channels, but the network reads none; load the data"):
        diffkit.train(system(low_res_channels=0), LowRes(plain, 4), out=tmp_path, steps=1, batch_size=2)
    with pytest.raises(DataError, match="the network reads low_res of 2 channels, the data gives 1"):
        diffkit.train(system(low_res_channels=2), LowRes(plain, 4), out=tmp_path, steps=1, batch_size=2)
    with pytest.raises(DataError, match=r"low_res_noise=0.3 is noise on small images, but the data gives none; leave"):
        diffkit.train(system(low_res_channels=0), plain, out=tmp_path, steps=1, batch_size=2, low_res_noise=0.3)
    assert not list(tmp_path.iterdir())


def test_noise_on_small_images_is_random_by_example_up_to_its_level():
    given = {"low_res": torch.ones(4000, 1, 2, 2), "y": torch.arange(4000)}
    found = with_noisy_low_res(given, 0.4, 0, 3, 4000, level=True)
    level = found["low_res_level"]
    assert 0 <= level.min() < 0.01 and 0.39 < level.max() < 0.4 and torch.equal(found["y"], given["y"])
    angle = (level * np.pi / 2).view(-1, 1, 1, 1)
    noise = (found["low_res"] - angle.cos()) / angle.sin()
    assert abs(noise.mean()) < 0.04 and abs(noise.std() - 1) < 0.03  # five standard errors
    assert torch.equal(with_noisy_low_res(given, 0.4, 0, 3, 4000, level=False)["low_res"], found["low_res"])
    part = {name: value[7:9] for name, value in given.items()}
    assert torch.equal(with_noisy_low_res(part, 0.4, 0, 3, 2, 7, level=True)["low_res"], found["low_res"][7:9])
    assert not torch.equal(with_noisy_low_res(given, 0.4, 0, 4, 4000, level=True)["low_res"], found["low_res"])


def test_a_network_is_told_the_level_of_the_noise():
    plain, told = system(), system(low_res_level=True)
    told.network.load_state_dict(plain.network.state_dict())  # as it has been trained without
    for parameter in [*plain.network.out.parameters(), *told.network.out.parameters()]:
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    x, level = torch.randn(2, 1, 8, 8), torch.tensor([0.1, 0.4])
    at = (torch.tensor([3.0, 3.0]), None, torch.randn(2, 1, 4, 4))
    assert torch.equal(told.network(x, *at, low_res_level=level), plain.network(x, *at))
    for parameter in told.network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.testing.assert_close(told.network(x, *at), told.network(x, *at, low_res_level=torch.zeros(2)))
    assert not torch.equal(told.network(x, *at, low_res_level=level), told.network(x, *at))
    with pytest.raises(OptionError, match="the network reads none; build with low_res_level=True"):
        plain.network(x, *at, low_res_level=level)
    with pytest.raises(OptionError, match="low_res_level=True has no effect without low_res_channels; use"):
        system(low_res_level=True, low_res_channels=0)


def test_a_run_resumes_with_the_same_size_only(tmp_path: Path):
    """And noise on small images is the same after that."""
    plain = images(8, 1, 8, 8)
    options = dict(out=tmp_path, batch_size=2, progress=False, low_res_noise=0.3)
    diffkit.train(system(low_res_level=True), LowRes(plain, 4), steps=1, **options)
    parts = diffkit.train(system(low_res_level=True), LowRes(plain, 4), steps=2, **options)
    whole = diffkit.train(
        system(low_res_level=True), LowRes(plain, 4), steps=2, **options | {"out": tmp_path / "whole"}
    )
    for one, other in zip(parts.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(OptionError, match=r"data low_res=\[4, 4\], now \[2, 2\]"):
        diffkit.train(system(low_res_level=True), LowRes(plain, 2), steps=2, **options)
