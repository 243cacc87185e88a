"""Weights of parts are trained, averaged, written into checkpoints and restored, as those of the network are."""

from __future__ import annotations

import pytest
import torch
from attrs import frozen
from forks import forked, forking
from test_training_ranks import assert_near, assert_same, state
from torch import nn
from training_support import content, points, train

import diffkit
from diffkit.errors import OptionError
from diffkit.gaussian import mean_flat, squared_error
from diffkit.parts.losses.uncertainty import Uncertainty
from diffkit.protocols import LearnedPart, Loss, NetworkLoss
from diffkit.registry import registry
from diffkit.training.estimate import dry_run

OPTIONS = dict(batch_size=8, steps=8, label_dropout=0.0, save_every=4)


@frozen
class CalledTwice(LearnedPart, NetworkLoss):
    """The learned weight, and a loss that calls the network again."""

    teacher = "ema"

    def build(self, data_shape):
        return Uncertainty(channels=4).build(data_shape)

    def __call__(self, at, network):
        found = Uncertainty()(at)
        gap = network.x_start(at.x_t, at.level) - network.teacher(at.x_t, at.level)
        return {"loss": found["loss"] + mean_flat(gap**2)}


@frozen
class Frozen(LearnedPart, Loss):
    """A squared error between features of a network that is not trained."""

    trained = False

    def build(self, data_shape):
        return nn.Linear(*data_shape, 3)

    def __call__(self, at):
        return {"loss": mean_flat(squared_error(at.learned(at.out), at.learned(at.target)))}


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(registry("loss"), "_here", {**registry("loss")._here})
    for name, part in (("called_twice", CalledTwice), ("frozen_features", Frozen)):
        registry("loss").register(name)(part)


def composed(loss: str = "uncertainty", seed: int = 0) -> diffkit.System:
    torch.manual_seed(seed)
    timed = {"schedule": "monotone", "timesteps": "uniform_time"} if loss == "continuous_vlb" else {}
    parts = dict(schedule="cosine", loss=loss) | timed
    return diffkit.compose(backbone=("mlp", {"hidden": 8, "depth": 1}), data_shape=(2,), bins=None, **parts)


def run(out, loss="uncertainty", seed=0, **options):
    return train(out, system=composed(loss, seed), data=points(), **(OPTIONS | options))


@forking
@pytest.mark.parametrize(
    "loss",
    ["uncertainty", *(pytest.param(each, marks=pytest.mark.slow) for each in ("called_twice", "continuous_vlb"))],
)
def test_processes_microbatches_and_resuming_change_no_bit(tmp_path, loss):
    run(tmp_path / "one", loss, microbatch=4)
    forked(2, lambda rank: run(tmp_path / "two", loss, seed=rank, steps=4, strategy="ddp") and None)
    run(tmp_path / "two", loss, microbatch=4)  # goes on alone
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@forking
@pytest.mark.parametrize("loss", ["uncertainty", "called_twice", "continuous_vlb"])
def test_shards_resume_to_the_bit_and_add_up_in_another_order(tmp_path, loss):
    run(tmp_path / "one", loss)
    for steps in (4, 8):
        forked(2, lambda rank, n=steps: run(tmp_path / "two", loss, seed=rank, steps=n, strategy="fsdp") and None)
    forked(2, lambda rank: run(tmp_path / "whole", loss, seed=rank, strategy="fsdp") and None)
    assert_same(tmp_path / "two", tmp_path / "whole")
    assert_near(tmp_path / "one", tmp_path / "two", weights=1e-5, losses=1e-4)


def test_they_have_a_group_of_their_own_and_are_averaged(tmp_path):
    found = run(tmp_path / "a", ema=(0.5,), param_groups=({"pattern": "learned.*", "lr": 0.0},), val=points())
    assert torch.equal(found.learned["loss"].weight, composed().learned["loss"].weight)
    run(tmp_path / "b", ema=(0.5,))
    after, name = state(tmp_path / "b"), "learned.loss.weight"
    files = {key.partition("/")[0]: value for key, value in after.items() if key.endswith(name)}
    assert {"model", "ema_0.5", "optimizer"} <= files.keys()
    assert not torch.equal(files["model"], files["ema_0.5"])
    assert torch.equal(diffkit.load(tmp_path / "b").learned["loss"].weight, files["ema_0.5"])
    assert dry_run(composed(), points(), batch_size=8, steps=8, progress=False).parameters == sum(
        p.numel() for p in found.trained.parameters()
    )


def test_a_frozen_module_is_written_once_and_has_to_be_the_same(tmp_path):
    first = run(tmp_path / "a", "frozen_features", steps=4)
    kept = first.frozen["loss"].weight
    assert torch.equal(kept, composed("frozen_features").frozen["loss"].weight)
    assert not any("learned" in name or "loss.weight" in name for name in state(tmp_path / "a"))
    (tmp_path / "a" / "loss.safetensors").unlink()
    run(tmp_path / "a", "frozen_features")
    assert torch.equal(diffkit.load(tmp_path / "a").frozen["loss"].weight, kept)
    run(tmp_path / "whole", "frozen_features")
    assert content(tmp_path / "a") == content(tmp_path / "whole")
    with pytest.raises(OptionError, match="weights of the loss '"):
        run(tmp_path / "a", "frozen_features", seed=1, steps=9)


class Own:
    """A model of one's own with the members of `Trainable` alone: its loss is that of a system."""

    def __init__(self, system):
        self.system = system
        for name in ("parts", "settings", "network", "table", "num_steps", "data_shape", "device"):
            setattr(self, name, getattr(system, name))
        self.loss_terms, self.spec = system.loss_terms, system.spec

    def with_network(self, network):
        return Own(self.system.with_network(network))

    def eval(self):
        self.network.eval()
        return self


def test_a_model_without_such_parts_needs_only_a_network(tmp_path):
    model = Own(composed("simple"))
    assert dry_run(model, points(), batch_size=8, steps=4, label_dropout=0.0).trained > 0
    run(tmp_path / "system", "simple")
    for steps in (4, 8):
        train(tmp_path / "own", system=Own(composed("simple")), data=points(), **OPTIONS | {"steps": steps})
    assert content(tmp_path / "own") == content(tmp_path / "system")
