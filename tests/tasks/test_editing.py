"""Image to image, and super-resolution."""

from __future__ import annotations

import re

import pytest
import torch
from gaussian_support import system_for

import diffkit
import diffkit.tasks
from diffkit.errors import OptionError
from diffkit.tasks import image_to_image, super_resolve
from diffkit.testing.oracles import GaussianOracle, network_of


def halving(x, time, **conditions):
    return 0.5 * x


@pytest.mark.parametrize(("how", "level"), [({"strength": 0.3}, 300), ({"level": 300}, 300), ({"strength": 1e-6}, 1)])
def test_it_follows_the_flow_from_the_noised_image(how, level):
    """Data N(0.2, 0.5^2), so the flow from level k to 0 is known."""
    system, oracle = system_for((1, 3)), GaussianOracle(0.2, 0.5)
    image = torch.randn(2, 1, 3) * 0.5
    got = image_to_image(system, image, **how, sampler="ddim", seed=5, model=network_of(oracle, system), progress=False)
    alpha, sigma = float(system.table.alpha[level]), float(system.table.sigma[level])
    noise = diffkit.system.randomness.noise_for(5, range(2), (1, 3), torch.device("cpu"))()
    wanted = oracle.flow((alpha * image + sigma * noise).double(), (alpha, sigma), (1.0, 0.0))
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=3e-3)


def test_the_levels_below_are_the_spacings_and_the_top_is_met_exactly():
    system, seen = system_for((1, 3)), []

    def model(x, time):
        seen.append(float(time[0]))
        return x

    how = dict(steps="leading10", model=model, sampler="ddim", progress=False)
    image_to_image(system, torch.zeros(1, 3), level=660, **how)
    assert seen == [659.0, 600.0, 500.0, 400.0, 300.0, 200.0, 100.0, 0.0]
    seen.clear()
    image_to_image(system, torch.zeros(1, 3), level=620, **how)  # 601 is nearer than half a step
    assert seen == [619.0, 500.0, 400.0, 300.0, 200.0, 100.0, 0.0]
    seen.clear()
    how["steps"] = "trailing10"  # level 0 is a level below, too: 101, 100, 0 would take a step of one level
    image_to_image(system, torch.zeros(1, 3), level=101, **how)
    assert seen == [100.0]
    seen.clear()
    image_to_image(system, torch.zeros(1, 3), level=160, **how)
    assert seen == [159.0, 99.0]
    seen.clear()
    image_to_image(system, torch.zeros(1, 3), level=5, model=model, sampler="ddim", progress=False)  # every level
    assert seen == [4.0, 3.0, 2.0, 1.0, 0.0]


def test_noise_levels_between_those_of_the_table():
    system, seen, oracle = system_for((1, 3), schedule="linear"), [], GaussianOracle(0.2, 0.5)
    network, image = network_of(oracle, system), torch.randn(2, 1, 3) * 0.5

    def model(x, time):
        seen.append(float(time[0]))
        return network(x, time)

    how = dict(steps="karras100:exact", sampler="dpmpp_2m", seed=5, model=model, progress=False)
    got = image_to_image(system, image, level=660, **how)
    times = system.table_for("karras100:exact").time[1:]
    assert seen == pytest.approx([659.0, *(time for time in times[::-1] if time < 659)], abs=1e-3)
    alpha, sigma = float(system.table.alpha[660]), float(system.table.sigma[660])
    noise = diffkit.system.randomness.noise_for(5, range(2), (1, 3), torch.device("cpu"))()
    wanted = oracle.flow((alpha * image + sigma * noise).double(), (alpha, sigma), (1.0, 0.0))
    torch.testing.assert_close(got.double(), wanted, rtol=0, atol=3e-3)


def test_at_full_strength_nothing_is_left_but_the_samples_own_noise():
    system = system_for((1, 3), num_steps=20)
    made = image_to_image(system, torch.zeros(1, 3), n=2, strength=1, seed=3, model=halving, progress=False)
    torch.testing.assert_close(made, system.sample(2, seed=3, model=halving, progress=False), rtol=1e-4, atol=1e-4)


def test_an_example_is_a_function_of_its_seed_alone():
    system, image = system_for((1, 3), num_steps=20), torch.randn(5, 1, 3)
    how = dict(strength=0.5, model=halving, progress=False)
    whole = image_to_image(system, image, seed=3, **how)
    torch.testing.assert_close(image_to_image(system, image, seed=3, batch_size=2, **how), whole)
    alone = image_to_image(system, image[3], seed=[9], **how)
    torch.testing.assert_close(image_to_image(system, image[[0, 3]], seed=[1, 9], **how)[1], alone[0])


BAD = [
    ({}, "give either strength, a share of T, or level, 1..T"),
    ({"strength": 0.5, "level": 3}, "give either strength, a share of T, or level, 1..T"),
    ({"strength": 0}, "strength must be > 0 and <= 1, got 0"),
    ({"level": 21}, "level must be >= 1 and <= 20, got 21"),
    ({"strength": 0.5, "image": torch.zeros(4)}, "image must have shape (1, 3) or (n, 1, 3), got (4,)"),
]


@pytest.mark.parametrize(("arguments", "text"), BAD, ids=[text[:30] for _, text in BAD])
def test_wrong_use(arguments, text):
    calls = []
    given = {"image": torch.zeros(1, 3), "model": lambda *a: calls.append(a), "progress": False} | arguments
    with pytest.raises(OptionError, match=re.escape(text)):
        image_to_image(system_for((1, 3), num_steps=20), **given)
    assert not calls


# ---- super-resolution ------------------------------------------------------------------------------------------------


def upsampler(low_res_channels=1):
    options = {"channels": 8, "groups": 8, "num_res_blocks": 1, "channel_mult": [1], "attention_resolutions": [8]}
    return diffkit.compose(
        schedule="cosine",
        num_steps=20,
        backbone=("unet", {**options, "low_res_channels": low_res_channels}),
        data_shape=(1, 8, 8),
    )


def test_large_images_for_small_ones():
    system, seen = upsampler(), []
    system.network.register_forward_pre_hook(lambda m, a, given: seen.append(given["low_res"]), with_kwargs=True)
    low_res = torch.rand(2, 1, 4, 4)
    got = super_resolve(system, low_res, each=2, steps=2, seed=0, progress=False)
    assert got.shape == (4, 1, 8, 8)
    assert all(torch.equal(given, low_res[[0, 0, 1, 1]]) for given in seen) and len(seen) == 2
    one = super_resolve(system, low_res[0], steps=2, seed=0, batch_size=1, progress=False)
    torch.testing.assert_close(one, got[:1])


def test_a_network_of_ones_own_is_not_checked():
    system, seen = system_for((1, 8), num_steps=5), []

    def model(x, time, low_res):
        seen.append(low_res.shape)
        return x

    super_resolve(system, torch.zeros(3, 2, 4), model=model, progress=False)
    assert seen == [(3, 2, 4)] * 5


BAD_SMALL = [
    (0, torch.zeros(2, 1, 4, 4), "backbone 'unet' reads no low_res; build it with low_res_channels=1 and train it so"),
    (3, torch.zeros(2, 1, 4, 4), "backbone 'unet' reads 3 channels of low_res, got 1"),
    (1, torch.zeros(4, 4), "low_res must be floating point of shape (B, c, *s), got torch.float32 of shape (4, 4)"),
    (1, torch.zeros(2, 1, 4, 4).int(), "low_res must be floating point of shape (B, c, *s), got torch.int32"),
]


@pytest.mark.parametrize(("channels", "low_res", "text"), BAD_SMALL, ids=[text[:40] for *_, text in BAD_SMALL])
def test_wrong_low_res(channels, low_res, text):
    with pytest.raises(OptionError, match=re.escape(text)):
        super_resolve(upsampler(channels), low_res)


def test_progress_is_shown(capsys):
    system = system_for((1, 3), num_steps=4)
    image_to_image(system, torch.zeros(1, 3), strength=1, model=halving)
    diffkit.tasks.inpaint(system, torch.zeros(1, 3), torch.ones(3), resample=1, model=halving)
    shown = capsys.readouterr().err
    assert "image to image 1" in shown and "inpainting 1" in shown and "ETA" in shown
