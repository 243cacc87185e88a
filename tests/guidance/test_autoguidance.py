"""Autoguidance: its definition, its variance, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from guidance_support import Labelled, level_at, system_of

import diffkit
from diffkit.errors import CompositionError, OptionError
from diffkit.guidance import Autoguidance

Y = torch.tensor([0, 1, 2])


class Weak(Labelled):
    """Another network of the same shape."""

    def __init__(self, channels: int, heads: int):
        super().__init__(channels, heads)
        torch.nn.init.constant_(self.convolution.weight, 0.1)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_it_moves_away_from_the_worse_network(channels):
    system, weak = system_of(channels), Weak(channels, 2).eval()
    x, level = torch.randn(3, channels, 4, 4), level_at(system, torch.tensor([3, 11, 20]))
    good, bad = (system.denoiser(m, y=Y, clip=False)(x, level) for m in (None, weak))
    got = system.denoiser(guidance=Autoguidance(weak, 2.0), y=Y, clip=False)(x, level)
    torch.testing.assert_close(got.x_start, bad.x_start + 2 * (good.x_start - bad.x_start), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.log_variance, good.log_variance)
    inside = system.denoiser(guidance=Autoguidance(weak, 2.0, interval=(0.5, 1e9)), y=Y, clip=False)(x, level)
    assert torch.equal(inside.x_start[0], good.x_start[0])
    torch.testing.assert_close(inside.x_start[1:], got.x_start[1:])


def test_its_dropout_is_off_while_sampling_and_back_on_after():
    system, weak = system_of(), Weak(3, 2).train()
    one, two = (
        system.sample(3, steps=3, guidance=Autoguidance(weak, 2.0), seed=0, y=Y, progress=False) for _ in range(2)
    )
    assert torch.equal(one, two) and weak.training and weak.dropout.training


def test_a_system_stands_for_its_network():
    system, worse = system_of(), system_of()
    by_system, by_network = (
        system.sample(3, steps=3, guidance=Autoguidance(m, 2.0), seed=0, y=Y, progress=False)
        for m in (worse, worse.network)
    )
    assert torch.equal(by_system, by_network)


MISFITS = [
    (lambda: system_of(mean="v"), "the worse system predicts by mean 'v', this one by mean 'eps'"),
    (lambda: system_of(var="fixed_small"), "the worse system has var 'fixed_small', this one var 'learned_range'"),
    (lambda: system_of(1), r"the worse system makes data of shape \(1, 4, 4\), this one of \(3, 4, 4\)"),
    (lambda: system_of(rescale_time=False), "the worse system was trained on other levels"),
    (
        lambda: diffkit.compose(schedule="cosine", backbone=None, data_shape=(3, 4, 4), num_steps=20),
        "the worse system was composed with backbone=None; pass its network instead",
    ),
]


@pytest.mark.parametrize(("make", "text"), MISFITS, ids=[t[:30] for _, t in MISFITS])
def test_a_system_of_another_kind_is_refused(make, text):
    with pytest.raises(CompositionError, match=text):
        system_of().sample(3, guidance=Autoguidance(make(), 2.0), y=Y)


def test_a_network_on_another_device_is_refused_before_work():
    system = system_of()
    text = "guidance 'autoguidance' has a network on meta, the system is on cpu; move one of them"
    with pytest.raises(OptionError, match=text):
        system.sample(3, guidance=Autoguidance(Weak(3, 2).to("meta"), 2.0), y=Y)
    assert not system.network.calls


def test_only_networks_are_taken():
    with pytest.raises(OptionError, match="model must be a network or a system, got 'weak'"):
        Autoguidance("weak", 2.0)
