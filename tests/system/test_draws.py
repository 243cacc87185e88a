"""`system(x)` and an update of training are the same loss, at the same draws."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import diffkit
from diffkit.data import Batch
from diffkit.system.draws import Draws, random_draws
from diffkit.training import TrainConfig
from diffkit.training.engines import Engine
from diffkit.training.trainer import Trainer

CPU = torch.device("cpu")


def make() -> diffkit.System:
    torch.manual_seed(0)
    parts = dict(
        schedule="cosine", var="learned_range", loss="hybrid", timesteps=("loss_second_moment", {"history": 1})
    )
    return diffkit.compose(**parts, num_steps=3, backbone=("mlp", {"hidden": 8}), data_shape=(2,), bins=None)


@pytest.fixture
def uneven() -> object:
    """A state of the timestep sampler after losses of 1, 2 and 3, so that weights differ."""
    sampler, table = make().parts.timesteps, make().table
    return sampler.update(sampler.init(table), torch.tensor([1, 2, 3]), torch.tensor([1.0, 2.0, 3.0]))


def test_a_call_and_an_update_have_the_same_gradients(uneven):
    """To the bit, by their norm."""
    x, system = torch.linspace(-1, 1, 10).view(5, 2), make()
    terms = system(x, generator=torch.Generator().manual_seed(1), timesteps_state=uneven)
    (terms["loss"].sum() / len(x)).backward()
    norm = nn.utils.get_total_norm([p.grad for p in system.parameters()])
    drawn = random_draws(system.parts, x, torch.Generator().manual_seed(1), uneven)
    assert drawn.weight.unique().numel() > 1
    again = make()
    trainer = Trainer(again, again.network, TrainConfig(steps=1, batch_size=5), Engine(CPU))
    trainer.update(Batch(torch.arange(5), x, {}), drawn)
    assert trainer.metrics()["grad_norm"] == float(norm)


def test_rows_at_level_1_are_counted_where_they_were_drawn():
    """Without waiting for the device that they were moved to."""
    level, weight, noise = torch.tensor([1, 5, 1, 1, 2]), torch.rand(5), torch.randn(5, 2)
    moved = Draws(level, weight, noise).to(torch.device("meta"))
    assert moved.level.is_meta and moved.level.dtype == torch.int64 and moved.weight.dtype == torch.float32
    assert moved.decoder_rows == 4 and moved.some(slice(1, 3)).decoder_rows == 1
    assert Draws(level[1:2], weight, noise).decoder_rows == 0
    assert Draws(level.double(), weight, noise).decoder_rows == 5
    assert moved._replace(drawn_level=None).decoder_rows == 5
    assert torch.equal(Draws(level, weight, noise).to(CPU).level, level)
