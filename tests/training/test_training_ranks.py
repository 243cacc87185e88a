"""Several processes train what one process trains, are killed and go on, and refuse what they cannot do."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import frozen
from forks import Job, forked, forking
from lanes import some_by_default
from safetensors.torch import load_file
from training_support import checkpoints, content, images, lines, point_system, points, system, train

import diffkit
from diffkit.errors import DataError, DivergedError, HookError, OptionError
from diffkit.registry import registry
from diffkit.training import Hook, HookResult, checkpoint
from diffkit.training.checkpoint import newest_first, read
from diffkit.training.engines.sharded import sharding_blocks
from diffkit.training.trainer import Trainer

pytestmark = forking
STRATEGIES = ["ddp", "fsdp"]


def on_ranks(size: int, out: Path, **options: Any) -> None:
    forked(size, lambda rank: train(out, seed=rank, **options) and None)


def state(run: Path) -> dict[str, torch.Tensor]:
    """Everything that the newest checkpoint holds, whole."""
    found = read(next(newest_first(run / "checkpoints")))
    return {f"{file}/{name}": value for file, tensors in found.files.items() for name, value in tensors.items()}


def assert_same(a: Path, b: Path) -> None:
    """To the bit, but for norms, which shares add up in another order."""
    first, second = state(a), state(b)
    assert first.keys() == second.keys()
    for name in first:
        if name != "trainer/window":
            assert torch.equal(first[name], second[name]), name
    strip = {"grad_norm", "param_norm"}
    assert [{k: v for k, v in line.items() if k not in strip} for line in lines(a)] == [
        {k: v for k, v in line.items() if k not in strip} for line in lines(b)
    ]


def assert_near(a: Path, b: Path, *, weights: float, losses: float) -> None:
    for one, other in zip(lines(a), lines(b), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=losses)
    first, second = state(a), state(b)
    for name in first:
        if name.startswith("model/"):
            assert (first[name] - second[name]).abs().max() <= weights, name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_with_equal_microbatches_all_engines_are_bit_identical(tmp_path, strategy):
    options = dict(batch_size=8, steps=20)
    train(tmp_path / "one", microbatch=4, **options)
    on_ranks(2, tmp_path / "two", strategy=strategy, **options)
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_unet_with_dropout(tmp_path):
    """Sharding puts nodes into the graph of gradients, so what a tensor used three times collects adds up in another
    order; replicas are identical."""

    def composed(seed):
        torch.manual_seed(seed)
        unet = dict(channels=16, num_res_blocks=1, channel_mult=(1,), attention_resolutions=(4,), groups=4, dropout=0.5)
        backbone = ("unet", unet | {"num_heads": 1, "num_classes": 3, "null_class": True})
        return diffkit.compose(schedule="cosine", backbone=backbone, data_shape=(1, 4, 4), num_steps=20, bins=17)

    options = dict(batch_size=8, steps=5, lr=1e-3)
    train(tmp_path / "one", system=composed(0), microbatch=2, **options)
    for strategy in STRATEGIES:
        more = options | {"microbatch": 2, "strategy": strategy}
        forked(2, lambda rank, s=strategy, o=more: train(tmp_path / s, system=composed(rank), **o) and None)
        assert_near(tmp_path / "one", tmp_path / strategy, weights=2e-6, losses=5e-7)
    train(tmp_path / "halves", system=composed(0), microbatch=4, **options)
    forked(2, lambda rank: train(tmp_path / "replicas", system=composed(rank), **options) and None)
    assert_same(tmp_path / "halves", tmp_path / "replicas")


@pytest.mark.slow
def test_a_transformer_is_shared_block_by_block(tmp_path):
    def composed(seed):
        torch.manual_seed(seed)
        dit = dict(patch=2, depth=2, hidden=16, heads=2, num_classes=3, null_class=True)
        return diffkit.compose(schedule="cosine", backbone=("dit", dit), data_shape=(1, 4, 4), num_steps=20, bins=17)

    def job(rank):
        network = composed(rank).network
        assert [type(block).__name__ for block in sharding_blocks(network)] == ["AdaLNZeroBlock"] * 2
        train(tmp_path / "shares", system=composed(rank), strategy="fsdp", batch_size=8, steps=4, lr=1e-3)

    train(tmp_path / "one", system=composed(0), batch_size=8, steps=4, lr=1e-3)
    forked(2, job)
    assert_near(tmp_path / "one", tmp_path / "shares", weights=2e-5, losses=5e-7)


def test_scaled_and_clipped_gradients_are_the_same_in_shares(tmp_path):
    options = dict(batch_size=8, steps=5, lr=1e-3, precision="fp16", grad_clip=0.1)
    for strategy in STRATEGIES:
        on_ranks(2, tmp_path / strategy, strategy=strategy, **options)
    assert_near(tmp_path / "ddp", tmp_path / "fsdp", weights=2e-5, losses=2e-5)
    for one, other in zip(lines(tmp_path / "ddp"), lines(tmp_path / "fsdp"), strict=True):
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
        assert one["grad_norm"] > 0.1  # there was something to clip


@pytest.mark.parametrize(
    ("size", "strategy", "batch"), some_by_default([(2, "ddp", 11), (3, "ddp", 11), (2, "fsdp", 14)], 3)
)
def test_any_cut_of_a_batch_gives_the_same_to_rounding(tmp_path, size, strategy, batch):
    options = dict(batch_size=batch, steps=20, lr=1e-3)
    train(tmp_path / "one", **options)
    on_ranks(size, tmp_path / "many", strategy=strategy, microbatch=3, **options)
    assert_near(tmp_path / "one", tmp_path / "many", weights=2e-5, losses=2e-6)


def test_the_sampler_that_learns_sees_the_rows_of_all(tmp_path):
    def run(rank, out):
        composed = system(rank, timesteps=("loss_second_moment", {"history": 2}), num_steps=5)
        train(out, system=composed, steps=14, batch_size=7, microbatch=4)

    run(0, tmp_path / "one")
    forked(2, lambda rank: run(rank, tmp_path / "two"))
    one, two = state(tmp_path / "one"), state(tmp_path / "two")
    assert one["trainer/timesteps.1"].sum() == 14 * 7
    for name in ("trainer/timesteps.0", "trainer/timesteps.1"):
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", some_by_default(STRATEGIES, 2))
def test_two_then_one_then_two_again(tmp_path, strategy):
    options = dict(batch_size=8, lr=1e-3)
    train(tmp_path / "one", steps=30, **options)
    on_ranks(2, tmp_path / "parts", strategy=strategy, steps=10, **options)
    train(tmp_path / "parts", steps=20, **options)
    on_ranks(2, tmp_path / "parts", strategy=strategy, steps=30, **options)
    assert_near(tmp_path / "one", tmp_path / "parts", weights=2e-5, losses=2e-6)


@pytest.mark.parametrize("strategy", some_by_default(STRATEGIES, 2))
def test_muon_with_groups_and_frozen_parameters(tmp_path, strategy):
    """The same to the bit as in one process, also when resumed; whole matrices are gathered from shards."""
    groups = [{"pattern": "*.bias", "weight_decay": 0, "lr": 1e-3}]
    options = dict(
        batch_size=8, save_every=4, weight_decay=0.1, optimizer="muon", param_groups=groups, freeze="time_embed.*"
    )
    train(tmp_path / "one", microbatch=4, steps=8, **options)
    on_ranks(2, tmp_path / "two", strategy=strategy, steps=4, **options)
    assert "optimizer/momentum_buffer/layers.0.first.weight" in state(tmp_path / "two")
    shutil.copytree(tmp_path / "two", tmp_path / "changed")
    on_ranks(2, tmp_path / "two", strategy=strategy, steps=8, **options)
    assert_same(tmp_path / "one", tmp_path / "two")
    train(tmp_path / "changed", steps=8, **options)  # another number of processes
    assert_near(tmp_path / "one", tmp_path / "changed", weights=2e-3, losses=1e-3)  # iterations are in bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("optimizer", [n for n in registry("optimizer").built_in_names() if n not in ("adamw", "muon")])
def test_every_other_optimizer_in_several_processes(tmp_path, strategy, optimizer):
    options = dict(batch_size=8, save_every=3, lr=1e-3, optimizer=optimizer, freeze="time_embed.*")
    if (strategy, optimizer) == ("fsdp", "adafactor"):
        with pytest.raises(AssertionError, match="needs them whole"):
            on_ranks(2, tmp_path / "two", strategy=strategy, steps=3, **options)
        return
    train(tmp_path / "one", microbatch=4, steps=6, **options)
    on_ranks(2, tmp_path / "two", strategy=strategy, steps=3, **options)
    on_ranks(2, tmp_path / "two", strategy=strategy, steps=6, **options)
    assert_same(tmp_path / "one", tmp_path / "two")


def test_shares_are_ordinary_files_that_any_tool_reads(tmp_path):
    on_ranks(2, tmp_path, strategy="fsdp", batch_size=4, steps=2)
    folder = next(newest_first(tmp_path / "checkpoints"))
    names = {path.name for path in folder.iterdir()}
    assert {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"} < names
    assert "trainer.safetensors" in names
    parts = [load_file(folder / f"model-{i:05d}-of-00002.safetensors") for i in (1, 2)]
    for name, value in read(folder).files["model"].items():
        assert torch.equal(torch.cat([part[name] for part in parts if name in part]), value)
    assert diffkit.load(tmp_path).sample(2, steps=2, y=0, progress=False).shape == (2, 1, 4, 4)


@pytest.mark.parametrize("strategy", some_by_default(STRATEGIES, 2))
def test_a_save_that_fails_in_one_process_fails_in_all_and_harms_nothing(tmp_path, strategy, monkeypatch):
    def job(rank):
        def full(file, state):
            raise OSError(28, "No space left on device", file.name)

        if rank == (1 if strategy == "fsdp" else 0):
            monkeypatch.setattr(checkpoint, "write_weights", full)
        with pytest.raises(diffkit.CheckpointError, match="No space left on device"):
            train(tmp_path, seed=rank, strategy=strategy, batch_size=4, steps=8)

    on_ranks(2, tmp_path, strategy=strategy, batch_size=4, steps=4)
    forked(2, job)
    assert checkpoints(tmp_path) == [4]
    train(tmp_path, batch_size=4, steps=8)
    assert not list((tmp_path / "checkpoints").glob(".*"))


def killed(out: Path, options: dict[str, Any], rng: random.Random) -> None:
    job = Job(2, lambda rank: train(out, seed=rank, **options))
    time.sleep(rng.uniform(0.3, 1.5))
    job.kill(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "kills"), [("ddp", 2), ("fsdp", 2), ("ddp", 8), ("fsdp", 8)])
def test_kills_lose_nothing_but_time(tmp_path, strategy, kills):
    options = dict(strategy=strategy, batch_size=8, steps=40, save_every=3)
    on_ranks(2, tmp_path / "whole", **options)
    rng, run = random.Random(kills), tmp_path / "killed"
    for _ in range(kills):
        if checkpoints(run)[:1] == [40]:
            shutil.rmtree(run)
        killed(run, options, rng)
        if (run / "model.safetensors").exists():
            diffkit.load(run)
    on_ranks(2, run, **options)
    assert lines(run) == lines(tmp_path / "whole")
    assert content(run) == content(tmp_path / "whole")


@pytest.mark.slow
def test_a_signal_to_one_process_saves_and_ends_all(tmp_path):
    def job(rank):
        update = Trainer.update

        def signalled(self, batch, draws=None):
            if self.step == 5 and rank == 1:
                signal.raise_signal(signal.SIGTERM)
            update(self, batch, draws)

        Trainer.update = signalled
        with pytest.raises(SystemExit) as caught:
            train(tmp_path / "parts", seed=rank, batch_size=8, steps=12)
        return caught.value.code

    assert forked(2, job) == [143, 143]
    assert checkpoints(tmp_path / "parts")[0] == 6
    on_ranks(2, tmp_path / "parts", batch_size=8, steps=12)
    on_ranks(2, tmp_path / "whole", batch_size=8, steps=12)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


def test_a_loss_that_is_not_finite_in_one_process_is_skipped_by_all(tmp_path):
    class Bad(torch.nn.Module):
        """Infinite for the example whose pixels are all 16."""

        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(16, 32)

        def forward(self, x, time, y):
            out = self.linear(x.flatten(1)).view(-1, 2, 4, 4)
            return out / (y != 2).float()[:, None, None, None]

    def job(rank):
        torch.manual_seed(0)
        options = dict(steps=30, batch_size=8, save_every=100, label_dropout=0.0, max_skips=3)
        with pytest.raises(DivergedError, match=r"4 updates in a row .* not finite: loss.* of examples \[") as caught:
            train(tmp_path, system=system(backbone=Bad()), data=images(classes=3), **options)
        return str(caught.value)

    one, other = forked(2, job)
    assert one == other


@pytest.mark.slow
def test_previews_are_the_same_whatever_trains(tmp_path):
    options = dict(batch_size=8, steps=4, preview_every=2, preview=4, preview_steps=3)
    train(tmp_path / "one", microbatch=4, **options)
    for strategy in STRATEGIES:
        on_ranks(2, tmp_path / strategy, strategy=strategy, **options)
        for name in ("step_00000002.png", "step_00000004.png"):
            one = (tmp_path / "one" / "previews" / name).read_bytes()
            assert (tmp_path / strategy / "previews" / name).read_bytes() == one


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            dict(batch_size=9, strategy="fsdp"),
            "batch_size must be a multiple of 2, the number of processes",
        ),
        (dict(batch_size=1), "batch_size=1 leaves some of the 2 processes nothing to do"),
        (dict(steps=(3, 4)), "process 1 was called with another system or other options"),
    ],
)
def test_wrong_jobs_are_refused_by_all(tmp_path, options, text):
    def job(rank):
        chosen = {name: v[rank] if isinstance(v, tuple) else v for name, v in options.items()}
        with pytest.raises(OptionError, match=text):
            train(tmp_path / "run", seed=rank, **({"batch_size": 8} | chosen))

    forked(2, job)
    assert not (tmp_path / "run").exists()


def test_sharding_needs_several_processes(tmp_path):
    with pytest.raises(OptionError, match="strategy='fsdp' shares the network among processes, but there is one"):
        train(tmp_path / "run", strategy="fsdp")


def test_a_second_job_is_refused_by_all_of_its_processes(tmp_path):
    job = Job(2, lambda rank: train(tmp_path, seed=rank, batch_size=8, steps=4000, save_every=1000))
    try:
        while not (tmp_path / "config.json").exists():
            time.sleep(0.02)

        def second(rank):
            with pytest.raises(OptionError, match="is being written by another training"):
                train(tmp_path, seed=rank, batch_size=8, steps=4000)

        forked(2, second)
    finally:
        job.kill(signal.SIGKILL)


def test_processes_that_read_other_data_are_refused(tmp_path):
    def job(rank):
        with pytest.raises(DataError, match="process 1 reads other data than process 0"):
            train(tmp_path / "run", seed=rank, data=images(23 - rank), batch_size=8)

    forked(2, job)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_not_shared_is_refused(tmp_path):
    def job(rank):
        with pytest.raises(OptionError, match="is not the same folder in all processes"):
            os.chdir(tmp_path / str(rank))  # as on two machines
            train(Path("run"), seed=rank, batch_size=8)

    for rank in "01":
        (tmp_path / rank).mkdir()
    forked(2, job)
    assert not (tmp_path / "0" / "run" / "checkpoints").exists()


class Odd(torch.nn.Module):
    """With a parameter that nothing uses, or with one weight in two places."""

    def __init__(self, tied: bool):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(2, 2, bias=False) for _ in range(2))
        if tied:
            self.blocks[1].weight = self.blocks[0].weight
        else:
            self.unused = torch.nn.Parameter(torch.ones(2))

    def forward(self, x, time):
        return self.blocks[1](self.blocks[0](x))


@pytest.mark.parametrize(
    ("tied", "strategy", "text"),
    some_by_default(
        [
            (False, "ddp", r"1 parameters of the network took no part in its output .first: unused."),
            (True, "fsdp", r"blocks.0.weight and blocks.1.weight are tied and cannot be sharded; use strategy='ddp'"),
        ],
        2,
    ),
)
def test_what_an_engine_cannot_train_is_named(tmp_path, tied, strategy, text):
    def job(rank):
        composed = point_system(backbone=Odd(tied))
        with pytest.raises(OptionError, match=text):
            train(tmp_path, system=composed, data=points(), label_dropout=0.0, batch_size=8, strategy=strategy)

    forked(2, job)


@pytest.mark.parametrize(("tied", "strategy"), some_by_default([(False, "fsdp"), (True, "ddp")], 2))
def test_what_it_can_it_does(tmp_path, tied, strategy):
    options = dict(data=points(), label_dropout=0.0, batch_size=8)
    train(tmp_path / "one", system=point_system(backbone=Odd(tied)), **options)

    def job(rank):
        train(tmp_path / "two", system=point_system(backbone=Odd(tied)), strategy=strategy, **options)

    forked(2, job)
    assert_near(tmp_path / "one", tmp_path / "two", weights=2e-5, losses=2e-6)


@frozen
class OnRank(Hook):
    """Stops, or fails, in one of the processes only."""

    rank: int
    stops_at: int = 10**9
    fails_at: int = 10**9

    def after_update(self, facts, state):
        if facts.rank == self.rank and facts.step == self.fails_at:
            raise RuntimeError("out of ink")
        return HookResult(stop="enough" if (facts.rank, facts.step) == (self.rank, self.stops_at) else "")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_hooks_stop_all_processes_after_the_same_update(tmp_path, strategy):
    often = dict(batch_size=8, steps=6, log_every=2, val=images(8), val_every=2, lr=1e-3)
    hooks = ["gradient_norms", ("early_stopping", {"patience": 2, "min_delta": 10.0})]
    more = often | {"strategy": strategy}
    forked(2, lambda rank: train(tmp_path / "two", seed=rank, hooks=[*hooks, OnRank(1, stops_at=3)], **more) and None)
    assert checkpoints(tmp_path / "two")[0] == 3
    forked(2, lambda rank: train(tmp_path / "two", seed=rank, hooks=hooks, **more) and None)
    train(tmp_path / "one", hooks=hooks, microbatch=4, **often)
    assert checkpoints(tmp_path / "two")[0] == checkpoints(tmp_path / "one")[0] == 6
    for one, two in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
def test_a_hook_that_fails_in_one_process_ends_all_and_the_run_goes_on(tmp_path):
    often = dict(batch_size=8, steps=4, lr=1e-3)

    def job(rank):
        with pytest.raises(HookError, match="hook 'OnRank' failed at step 3: RuntimeError: out of ink"):
            train(tmp_path / "two", seed=rank, hooks=OnRank(1, fails_at=3), **often)

    forked(2, job)
    assert checkpoints(tmp_path / "two")[0] == 3
    on_ranks(2, tmp_path / "two", **often)
    train(tmp_path / "one", microbatch=4, **often)
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("coupling", some_by_default(["minibatch_ot", "immiscible"], 2))
def test_a_coupling_sees_the_whole_batch_however_it_is_cut(tmp_path, coupling):
    def run(out, **options):
        composed = point_system(coupling=coupling, sampler="ddim")
        train(out, system=composed, data=points(), batch_size=8, steps=8, label_dropout=0, **options)

    run(tmp_path / "whole")
    run(tmp_path / "pieces", microbatch=2)
    forked(2, lambda rank: run(tmp_path / "ranks", strategy="ddp") and None)
    train(tmp_path / "plain", system=point_system(), data=points(), batch_size=8, steps=8, label_dropout=0)
    losses = {name: [line["loss"] for line in lines(tmp_path / name)] for name in ("whole", "pieces", "ranks", "plain")}
    for name in ("pieces", "ranks"):
        assert losses[name] == pytest.approx(losses["whole"], rel=1e-6)
    assert losses["plain"] != pytest.approx(losses["whole"], rel=1e-3)
