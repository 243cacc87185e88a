"""Trajectories of improved-diffusion's and guided-diffusion's own training loops are followed, where they are right.

Stored with given batches, levels, noise and weights; see tests/golden/README.md. A float64 re-derivation lands within
1e-4 of them, as Adam amplifies the rounding of tiny gradients: hence 3e-4 on weights.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import diffkit
from diffkit.data import Batch
from diffkit.system.draws import Draws
from diffkit.training import TrainConfig
from diffkit.training.ema import Ema
from diffkit.training.engines import Engine
from diffkit.training.trainer import Trainer

GOLDEN = Path(__file__).parents[1] / "golden"
LOSSES = {
    "MSE": "simple",
    "RESCALED_MSE": ("hybrid", {"vb_weight": 0.001}),
    "RESCALED_KL": ("vlb", {"scale_by_steps": True}),
}
VARS = {"FIXED_LARGE": "fixed_large", "LEARNED_RANGE": "learned_range"}


class Reference(nn.Module):
    """The stored runs' network: one convolution, shifted by the time."""

    def __init__(self, stored):
        super().__init__()
        self.u = nn.Parameter(torch.tensor(stored["init__u"]))
        weight = stored["init__conv.weight"]
        self.conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        self.conv.weight.data = torch.tensor(weight)
        self.conv.bias.data = torch.tensor(stored["init__conv.bias"])

    def forward(self, x, time):
        return self.conv(x) + self.u[:, None, None] * (time / 1000).view(-1, 1, 1, 1)


def load(name):
    with np.load(GOLDEN / "train" / f"{name}.npz") as found:
        stored = dict(found)
    with (GOLDEN / "train" / f"{name}_progress.csv").open() as file:
        log = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return stored, json.loads((GOLDEN / "train" / f"{name}.json").read_text()), log


def trainer_of(stored, facts, *, lr_scale=1.0) -> Trainer:
    diffusion = facts["diffusion"]
    system = diffkit.compose(
        schedule=diffusion["schedule"],
        num_steps=diffusion["T"],
        var=VARS[diffusion["var"]],
        loss=LOSSES[diffusion["loss"]],
        backbone=Reference(stored),
        data_shape=(3, 6, 6),
    )
    anneal = facts["lr_anneal_steps"]
    config = TrainConfig(
        steps=anneal or facts["steps"],
        batch_size=facts["batch_size"],
        microbatch=None if facts["microbatch"] < 0 else facts["microbatch"],
        lr=facts["lr"] * lr_scale,
        weight_decay=facts["weight_decay"],
        anneal=bool(anneal),
        ema=tuple(float(rate) for rate in facts["ema_rate"].split(",")),
        ema_warmup=False,
    )
    return Trainer(system, system.network, config, Engine(torch.device("cpu")))


def step(trainer: Trainer, stored, i: int) -> None:
    images = torch.tensor(stored["batches"][i])
    draws = Draws(
        torch.tensor(stored["t"][i]) + 1, torch.tensor(stored["weights"][i]), torch.tensor(stored["noise"][i])
    )
    trainer.update(Batch(torch.arange(len(images)), images, {}), draws)


def assert_follows(trainer: Trainer, stored, i: int) -> None:
    for name, parameter in trainer.network.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), stored[f"param__{name}"][i], rtol=0, atol=3e-4)
        for rate in trainer.config.ema:
            mean = trainer.ema.state(f"ema_{rate}", trainer.network)[name]
            np.testing.assert_allclose(mean.numpy(), stored[f"ema_{rate:g}__{name}"][i], rtol=0, atol=3e-4)


def test_a_plain_hybrid_run():
    stored, facts, log = load("plain_hybrid")
    trainer = trainer_of(stored, facts)
    for i, row in enumerate(log):
        step(trainer, stored, i)
        assert_follows(trainer, stored, i)
        found = trainer.metrics()
        trainer.window.rows.clear()
        for key in row.keys() - {"step", "samples"}:
            unit = facts["diffusion"]["T"] / 1000 if key.startswith("vb") else 1  # theirs carries the loss's factor
            assert found[key] * unit == pytest.approx(row[key], rel=2e-3, abs=1e-5), key
        assert found.keys() >= row.keys()
        assert found["samples"] == row["samples"]
        assert trainer.config.lr_at(i) == pytest.approx(stored["lr_after_step"][i])


def test_a_run_whose_microbatches_were_summed():
    """Averaged gradients are half of theirs, which AdamW without weight decay cannot see but for its eps of 1e-8."""
    stored, facts, log = load("microbatch_mse")
    trainer = trainer_of(stored, facts)
    for i, row in enumerate(log):
        step(trainer, stored, i)
        assert_follows(trainer, stored, i)
        found = trainer.metrics()
        trainer.window.rows.clear()
        assert found["grad_norm"] == pytest.approx(row["grad_norm"] / 2, rel=2e-3)
        assert found["loss"] == pytest.approx(row["loss"], rel=2e-3)


def test_a_weighted_run_of_guided_diffusion():
    """It lowers the learning rate after a step; ours is lowered before, so it is given theirs."""
    stored, facts, log = load("weighted_vlb_guided")
    trainer = trainer_of(stored, facts | {"lr_anneal_steps": 0})
    rates = [facts["lr"], *stored["lr_after_step"][:-1]]
    for i, row in enumerate(log):
        trainer.base_lrs = [float(rates[i])]
        step(trainer, stored, i)
        assert_follows(trainer, stored, i)
        found = trainer.metrics()
        trainer.window.rows.clear()
        assert found["loss"] == pytest.approx(row["loss"], rel=2e-3)
        assert found["grad_norm"] == pytest.approx(row["grad_norm"], rel=2e-3)
        if i + 1 < len(log):  # theirs is that before the step
            assert found["param_norm"] == pytest.approx(log[i + 1]["param_norm"], rel=2e-3)


@pytest.mark.parametrize("rate", [0.5, 0.99, 0.9999])
def test_means_of_weights(rate):
    with np.load(GOLDEN / "ema.npz") as found:
        stored = dict(found)
    network = nn.ParameterList([nn.Parameter(torch.tensor(stored[f"target{i}"])) for i in range(2)])
    ema = Ema(network, (rate,), warmup=False)
    with torch.no_grad():
        for i in range(2):
            network[i].copy_(torch.tensor(stored[f"source{i}"]))
    for n in range(3):
        ema.update(n)
    for i in range(2):
        np.testing.assert_allclose(ema.means[0][i].numpy(), stored[f"after3_rate{rate:g}_{i}"], rtol=1e-5)
