"""What an update may cost beside network and loss: operations, uploads, host reads, whatever the number of weights."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from counters import DEVICE, Operations, counted
from torch import nn

import diffkit
from diffkit.data.base import Batch
from diffkit.system.draws import count_first
from diffkit.training.config import TrainConfig
from diffkit.training.ema import Ema
from diffkit.training.engines import Engine
from diffkit.training.trainer import Trainer

SHAPE, BATCH = (3, 4, 4), 4
LIMITS = {("simple", "fixed_large"): 8, ("hybrid", "learned_range"): 24, ("vlb", "fixed_small"): 20}
"""(loss, variance) -> operations of the loss beside the network, forward, at a batch without level 1."""
UPLOADS = 2
"""Images; levels and their weights."""


class Weights(nn.Module):
    """A network of so many weights whose forward pass costs the same however many they are."""

    def __init__(self, count: int, channels: int = 3):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(channels)) for _ in range(count))

    def forward(self, x, time):
        scale = torch.stack(list(self.weights)).sum(0)
        return x.repeat(1, len(scale) // x.shape[1], 1, 1) * scale[:, None, None]


def system_of(loss="simple", var="fixed_large", backbone=None, **more) -> diffkit.System:
    return diffkit.compose(schedule="cosine", var=var, loss=loss, backbone=backbone, data_shape=SHAPE, **more)


def trainer_of(count: int, ema=(0.9999,), device="cpu", kind: type[Trainer] = Trainer) -> Trainer:
    system = system_of(backbone=Weights(count)).to(device)
    config = TrainConfig(steps=100, batch_size=BATCH, ema=ema)
    return kind(system, system.network, config, Engine(torch.device(device)))


class Engine(Engine):
    """One process; on the device that stands in for a GPU, which has no fused AdamW, the step itself is left out."""

    def optimizer(self, network, config):
        if self.device.type == "cpu":
            return super().optimizer(network, config)
        return torch.optim.AdamW(network.parameters(), lr=config.lr)

    def apply(self, optimizer, finite):
        if self.device.type == "cpu":
            super().apply(optimizer, finite)
        else:
            optimizer.zero_grad(set_to_none=True)


def a_batch() -> Batch:
    return Batch(torch.arange(BATCH), torch.zeros(BATCH, *SHAPE, dtype=torch.uint8), {})


def outside_the_loss(trainer: Trainer) -> Counter[str]:
    """Operations of a second update but those of network, loss and backward pass."""
    trainer.update(a_batch())
    with Operations() as counter:

        def paused(function):
            def call(*args, **kwargs):
                counter.paused = True
                try:
                    return function(*args, **kwargs)
                finally:
                    counter.paused = False

            return call

        trainer.system.loss_terms = paused(trainer.system.loss_terms)
        trainer.engine.backward = paused(trainer.engine.backward)
        trainer.update(a_batch())
    return counter.by_name


# ---- the loss --------------------------------------------------------------------------------------------------------


def loss_of(loss, var, device=DEVICE):
    system = system_of(loss, var)
    out = torch.zeros(BATCH, 3 * (1 + system.parts.var.extra_outputs), *SHAPE[1:], device=device)
    x, noise = torch.zeros(BATCH, *SHAPE, device=device), torch.zeros(BATCH, *SHAPE, device=device)
    level = torch.full((BATCH,), 7)
    rows, level = count_first(level), level.to(device)
    system.objective.columns.on(device)
    return lambda: system.loss_terms(lambda x, time: out, x, level, noise, decoder_rows=rows)


@pytest.mark.parametrize(("loss", "var"), LIMITS)
def test_a_loss_uploads_nothing_and_reads_nothing(loss, var):
    """A read of a value raises on this device."""
    counter = counted(loss_of(loss, var))
    assert counter.uploads == 0
    assert counter.count <= LIMITS[loss, var]


# ---- the update ------------------------------------------------------------------------------------------------------


def test_an_update_costs_as_many_calls_whatever_the_number_of_weights():
    few, many = outside_the_loss(trainer_of(3)), outside_the_loss(trainer_of(60))
    assert few == many


def test_every_running_mean_costs_as_much():
    one, three = (outside_the_loss(trainer_of(5, ema)).total() for ema in ((0.9,), (0.9, 0.99, 0.999)))
    none = outside_the_loss(trainer_of(5, ())).total()
    assert three - none == 3 * (one - none) and one - none <= 2


def test_an_update_makes_few_calls():
    """Most of them draw levels and noise, whose numbers depend on nothing but seed, step and place."""
    assert outside_the_loss(trainer_of(30)).total() <= 160


def test_an_update_uploads_its_batch_and_reads_nothing():
    """Images, levels and their weights; a read of a value raises on this device."""
    trainer = trainer_of(5, device=DEVICE.type)
    trainer.update(a_batch())
    assert counted(lambda: trainer.update(a_batch())).uploads <= UPLOADS


# ---- what the gates must not let through -----------------------------------------------------------------------------


class LoopingNorms(Trainer):
    """The published scripts' norm: read back parameter by parameter."""

    def _finish(self, batch, draws, terms):
        _ = sum(float((p.grad**2).sum()) for p in self.network.parameters()) ** 0.5
        super()._finish(batch, draws, terms)


class LoopingMeans(Ema):
    """The published scripts' running mean: two operations for each parameter."""

    def update(self, step):
        with torch.no_grad():
            for mean, weight in zip(self.means[0], self.weights, strict=True):
                mean.mul_(0.9).add_(weight, alpha=0.1)


class Uploading(Trainer):
    """Brings one more tensor to the device."""

    def _finish(self, batch, draws, terms):
        _ = torch.ones(1).to(self.engine.device)
        super()._finish(batch, draws, terms)


def test_a_loop_over_parameters_is_caught():
    few, many = (outside_the_loss(trainer_of(count, kind=LoopingNorms)) for count in (3, 60))
    assert many.total() - few.total() >= 3 * 57


def test_a_loop_over_means_is_caught():
    totals = []
    for count in (3, 60):
        trainer = trainer_of(count)
        trainer.ema = LoopingMeans(trainer.network, (0.9,), warmup=False)
        totals.append(outside_the_loss(trainer).total())
    assert totals[1] - totals[0] == 2 * 57


def test_a_host_read_is_caught():
    trainer = trainer_of(5, device=DEVICE.type, kind=LoopingNorms)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        trainer.update(a_batch())


def test_an_upload_is_caught():
    trainer = trainer_of(5, device=DEVICE.type, kind=Uploading)
    trainer.update(a_batch())
    assert counted(lambda: trainer.update(a_batch())).uploads > UPLOADS
