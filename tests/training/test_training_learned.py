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
from diffkit.protocols import LearnedPart, Loss, NetworkLoss
from diffkit.registry import registry
from diffkit.training.estimate import dry_run

OPTIONS = dict(batch_size=8, steps=8, label_dropout=0.0, save_every=4)


class Balance(nn.Module):
    """The log-variance of the error at a log-SNR."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, log_snr: torch.Tensor) -> torch.Tensor:
        return self.line(log_snr[:, None])[:, 0]


@frozen
class Balanced(LearnedPart, Loss):
    def build(self, data_shape):
        return Balance()

    def __call__(self, at):
        u = at.learned(at.level.log_snr.flatten() / 10)
        return {"loss": mean_flat(squared_error(at.out, at.target)) / u.exp() + u, "u": u}


@frozen
class BalancedTwice(LearnedPart, NetworkLoss):
    teacher = "ema"

    def build(self, data_shape):
        return Balance()

    def __call__(self, at, network):
        found = Balanced()(at)
        gap = network.x_start(at.x_t, at.level) - network.teacher(at.x_t, at.level)
        return {"loss": found["loss"] + mean_flat(gap**2)}


@frozen
class Frozen(Balanced):
    trained = False


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(registry("loss"), "_here", {**registry("loss")._here})
    for name, part in (("balanced", Balanced), ("balanced_twice", BalancedTwice), ("frozen_balanced", Frozen)):
        registry("loss").register(name)(part)


def composed(loss: str = "balanced", seed: int = 0) -> diffkit.System:
    torch.manual_seed(seed)
    return diffkit.compose(
        backbone=("mlp", {"hidden": 8, "depth": 1}), data_shape=(2,), bins=None, schedule="cosine", loss=loss
    )


def run(out, loss="balanced", seed=0, **options):
    return train(out, system=composed(loss, seed), data=points(), **(OPTIONS | options))


@forking
@pytest.mark.parametrize("loss", ["balanced", pytest.param("balanced_twice", marks=pytest.mark.slow)])
def test_processes_microbatches_and_resuming_change_no_bit(tmp_path, loss):
    run(tmp_path / "one", loss, microbatch=4)
    forked(2, lambda rank: run(tmp_path / "two", loss, seed=rank, steps=4, strategy="ddp") and None)
    run(tmp_path / "two", loss, microbatch=4)  # goes on alone
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
@forking
@pytest.mark.parametrize("loss", ["balanced", "balanced_twice"])
def test_shards_resume_to_the_bit_and_add_up_in_another_order(tmp_path, loss):
    run(tmp_path / "one", loss)
    for steps in (4, 8):
        forked(2, lambda rank, n=steps: run(tmp_path / "two", loss, seed=rank, steps=n, strategy="fsdp") and None)
    forked(2, lambda rank: run(tmp_path / "whole", loss, seed=rank, strategy="fsdp") and None)
    assert_same(tmp_path / "two", tmp_path / "whole")
    assert_near(tmp_path / "one", tmp_path / "two", weights=1e-5, losses=1e-4)


def test_they_have_a_group_of_their_own_and_are_averaged(tmp_path):
    found = run(tmp_path / "a", ema=(0.5,), param_groups=({"pattern": "learned.*", "lr": 0.0},), val=points())
    assert torch.equal(found.learned["loss"].line.weight, composed().learned["loss"].line.weight)
    run(tmp_path / "b", ema=(0.5,))
    after, name = state(tmp_path / "b"), "learned.loss.line.weight"
    files = {key.partition("/")[0]: value for key, value in after.items() if key.endswith(name)}
    assert {"model", "ema_0.5", "optimizer"} <= files.keys()
    assert not torch.equal(files["model"], files["ema_0.5"])
    assert torch.equal(diffkit.load(tmp_path / "b").learned["loss"].line.weight, files["ema_0.5"])
    assert dry_run(composed(), points(), batch_size=8, steps=8, progress=False).parameters == sum(
        p.numel() for p in found.trained.parameters()
    )


def test_a_frozen_module_is_written_once_and_has_to_be_the_same(tmp_path):
    first = run(tmp_path / "a", "frozen_balanced", steps=4)
    kept = first.frozen["loss"].line.weight
    assert torch.equal(kept, composed("frozen_balanced").frozen["loss"].line.weight)
    assert not any("line" in name for name in state(tmp_path / "a"))
    (tmp_path / "a" / "loss.safetensors").unlink()
    run(tmp_path / "a", "frozen_balanced")
    assert torch.equal(diffkit.load(tmp_path / "a").frozen["loss"].line.weight, kept)
    run(tmp_path / "whole", "frozen_balanced")
    assert content(tmp_path / "a") == content(tmp_path / "whole")
    with pytest.raises(OptionError, match="weights of the loss '"):
        run(tmp_path / "a", "frozen_balanced", seed=1, steps=9)
