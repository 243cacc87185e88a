"""Training of an adapter: the base stays as it is, the run holds the adapter alone, and merged it is the same.

On a small network, and on that of the README in the slow lane.
"""

import ast
import copy
import json
import os
import signal

import pytest
import torch
from forks import forked, forking
from test_training_ranks import assert_same
from torch import nn
from training_support import checkpoints, images, points, train

import diffkit
from diffkit.errors import CheckpointError, OptionError
from diffkit.runtime.files import weights_digest
from diffkit.runtime.weights_files import read_weights
from diffkit.training import read_metrics
from diffkit.training.trainer import Trainer
from diffkit.weights import export_peft, merged

SMALL = {"channels": 8, "groups": 4, "num_res_blocks": 1, "channel_mult": (1, 2), "num_heads": 2, "num_classes": 3}
OF_README = {"channels": 32, "channel_mult": (1, 2), "num_classes": 10}
LORA = ("lora", {"r": 8, "targets": ["qkv", "proj_out"]})
STEPS = 10
"""Of sampling: all levels of the small system."""


@pytest.fixture(scope="module", autouse=True)
def _no_plugins_either():
    """The kernel of a plugin would compute what is shared by these tests with other rounding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFKIT_PLUGINS", "")
        yield


@pytest.fixture(scope="module", params=["small", pytest.param("of_readme", marks=pytest.mark.slow)])
def base(request, tmp_path_factory):
    torch.manual_seed(0)
    small = {"backbone": ("unet", SMALL), "num_steps": STEPS, "data_shape": (1, 4, 4)}
    of_readme = {"backbone": ("unet", OF_README), "data_shape": (1, 8, 8)}
    chosen = small if request.param == "small" else of_readme
    system = diffkit.compose(schedule="cosine", var="learned_range", loss="hybrid", bins=17, **chosen)
    with torch.no_grad():
        for parameter in system.network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return system.save(tmp_path_factory.mktemp("base") / "system")


def adapted(place, out, steps=4, **options):
    options = {"adapter": LORA, "lr": 1e-2, "ema": (0.5,), "label_dropout": 0, "save_every": 2} | options
    system = diffkit.load(place)
    return train(out, system=system, data=data_for(system), steps=steps, **{"base": place} | options)


def data_for(system):
    return images() if system.data_shape == (1, 4, 4) else diffkit.data.load("digits", split="train")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("adapted") / "run"
    return adapted(base, out), out


def drawn(system, **options):
    return system.sample(3, steps=STEPS, seed=0, y=[0, 1, 2], progress=False, **options)


def beside(system):
    """The weights beside an adapter as they are now, by their names in the network."""
    now = system.network.named_parameters()
    return {name.replace(".parametrizations.weight.original", ".weight"): p for name, p in now if "lora_" not in name}


def test_the_run_holds_the_adapter_alone_and_its_base(base, run):
    system, out = run
    weights = read_weights(out / "model.safetensors", None)
    assert all("lora_" in name for name in weights) and weights
    assert all("lora_" in name for name in read_weights(out / "checkpoints/step_00000004/model.safetensors", None))
    own = read_weights(base / "model.safetensors", None)
    digest = weights_digest(own, shapes=True)
    assert system.spec()["adapter"]["base"] == {"path": str(base), "digest": digest}
    assert weights_digest(beside(system), shapes=True) == digest
    assert any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)
    assert system.spec()["parts"]["backbone"]["name"] == "unet"
    share = sum(t.numel() for t in weights.values()) / sum(t.numel() for t in own.values())
    assert system.data_shape == (1, 4, 4) or round(share, 4) == 0.0105


def test_loaded_it_is_the_same_and_differs_from_its_base(base, run):
    system, out = run
    loaded = diffkit.load(out)
    assert drawn(loaded).equal(drawn(system))
    assert (drawn(loaded) - drawn(diffkit.load(base))).abs().max() > 1e-3
    assert loaded.save(out.parent / "again") and drawn(diffkit.load(out.parent / "again")).equal(drawn(system))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
def test_merged_it_draws_the_same(run, dtype, tolerance, tmp_path):
    system = diffkit.load(run[1]).to(dtype)
    start = torch.randn(3, *system.data_shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    plain = merged(system)
    assert not any("lora" in name for name, _ in plain.network.named_parameters())
    assert (drawn(plain, start=start) - drawn(system, start=start)).abs().max() <= tolerance
    assert "adapter" not in plain.spec() and "adapter" in system.spec()
    again = diffkit.load(merged(diffkit.load(run[1])).save(tmp_path / "merged"))
    assert (drawn(again) - drawn(diffkit.load(run[1]))).abs().max() <= 1e-5
    x = torch.zeros(2, *system.data_shape)
    options = dict(steps=STEPS, seed=0, progress=False, y=0)
    one, other = (s.float().bits_per_dim(x, **options).total for s in (plain, system))
    assert (one - other).abs().max() <= 1e-4


@forking
def test_killed_it_goes_on_to_the_bit(base, run, tmp_path):
    def killed(rank):
        update = Trainer.update

        def last(self, batch, draws=None):
            if self.step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            update(self, batch, draws)

        Trainer.update = last
        adapted(base, tmp_path / "run", async_save=False)

    with pytest.raises(AssertionError, match="was killed"):
        forked(1, killed)
    assert checkpoints(tmp_path / "run") == [2]
    adapted(base, tmp_path / "run")
    for name in ("model.safetensors", "checkpoints/step_00000004/optimizer.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (run[1] / name).read_bytes()
    for one, other in zip(read_metrics(tmp_path / "run"), read_metrics(run[1]), strict=True):
        assert one["loss"] == other["loss"]


def test_without_a_place_the_base_lies_in_the_run(base, tmp_path):
    adapted(base, tmp_path / "run", steps=2, base=None)
    (tmp_path / "run").rename(tmp_path / "moved")
    adapted(base, tmp_path / "moved", steps=3, base=None)
    assert diffkit.load(tmp_path / "moved").spec()["adapter"]["base"]["path"].endswith("base")


def test_a_changed_base_is_noticed(base, tmp_path):
    changed = diffkit.load(base)
    place = changed.save(tmp_path / "base")
    adapted(place, tmp_path / "run", steps=2)
    with torch.no_grad():
        next(iter(changed.network.parameters())).add_(1)
    changed.save(place)
    with pytest.raises(CheckpointError, match=r"base has other weights than this adapter was trained beside \(digest"):
        diffkit.load(tmp_path / "run")
    with pytest.raises(OptionError, match="weights beside the adapter"):
        adapted(place, tmp_path / "run", steps=3)
    assert diffkit.load(tmp_path / "run", base=base).spec()["adapter"]
    for file in place.iterdir():
        file.unlink()
    place.rmdir()
    with pytest.raises(CheckpointError, match=r"the weights beside which this adapter was trained are not at .*base;"):
        diffkit.load(tmp_path / "run")


def test_written_as_peft_has_it_the_files_hold_what_is_added(base, run, tmp_path):
    system = diffkit.load(run[1])
    folder = export_peft(system, tmp_path / "peft")
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = read_weights(folder / "adapter_model.safetensors", None)
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 8, 8)
    before, after = (s.network.state_dict() for s in (diffkit.load(base), merged(system)))
    changed = {name.removesuffix(".weight") for name, tensor in after.items() if not tensor.equal(before[name])}
    assert changed == set(config["target_modules"])
    for name in changed:
        first, last = (tensors[f"base_model.model.{name}.lora_{which}.weight"] for which in "AB")
        added = torch.einsum("or...,ri...->oi...", last, first) * config["lora_alpha"] / config["r"]
        assert (before[f"{name}.weight"] + added - after[f"{name}.weight"]).abs().max() <= 1e-6
    with pytest.raises(OptionError, match="the system has no adapter 'lora'"):
        export_peft(diffkit.load(base), tmp_path / "none")


def test_refused(base, run, tmp_path):
    def refuses(text, **options):
        with pytest.raises(OptionError, match=text):
            adapted(base, tmp_path / "run", **options)

    refuses("targets 'qvk' is the name of no layer; did you mean 'qkv'", adapter=("lora", {"targets": ["qvk"]}))
    refuses("targets 'norm' is a GroupNorm; choose linear layers", adapter=("lora", {"targets": ["norm"]}))
    refuses("base is where the weights beside an adapter are", adapter=None)
    refuses("base '.*nowhere' is not there", base=tmp_path / "nowhere")
    with pytest.raises(OptionError, match="strategy='fsdp'"):
        adapted(base, tmp_path / "run", strategy="fsdp")
    other = diffkit.load(base)
    with torch.no_grad():
        next(iter(other.network.parameters())).add_(1)
    with pytest.raises(OptionError, match="has other weights than the system; load the system from there"):
        train(tmp_path / "run", system=other, data=data_for(other), steps=1, adapter=LORA, base=base)
    with pytest.raises(OptionError, match="the system has an adapter; train that by the same adapter"):
        train(tmp_path / "run", system=copy.deepcopy(run[0]), data=data_for(run[0]), steps=1)
    with pytest.raises(OptionError, match="the network has an adapter, which no public layout has; merge it first"):
        diffkit.weights.export(run[0], tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="holds an adapter alone; merge it first: diffkit merge FOLDER"):
        diffkit.weights.load_matching(diffkit.load(base), run[1])
    with pytest.raises(OptionError, match="the system has no adapter, so there is nothing to merge"):
        merged(diffkit.load(base))


@pytest.mark.slow
@forking
def test_two_processes_train_what_one_does(base, tmp_path):
    def job(rank):
        with pytest.raises(
            OptionError, match="strategy='fsdp' has no shards of an adapter's layers; use strategy='ddp'"
        ):
            adapted(base, tmp_path / "two", batch_size=8, strategy="fsdp")
        system = adapted(base, tmp_path / "two", batch_size=8)
        return weights_digest(beside(system), shapes=True)

    one = adapted(base, tmp_path / "one", batch_size=8, microbatch=4)
    assert forked(2, job) == [one.spec()["adapter"]["base"]["digest"]] * 2
    assert_same(tmp_path / "one", tmp_path / "two")


class Spare(nn.Module):
    """A layer, and one of the same name that nothing calls."""

    def __init__(self):
        super().__init__()
        self.qkv, self.spare = nn.Linear(2, 2), nn.ModuleDict({"qkv": nn.Linear(2, 2)})

    def forward(self, x, time):
        return self.qkv(x)


@pytest.mark.slow
@forking
def test_adapters_of_unused_layers_are_named_and_can_be_left_out(tmp_path):
    torch.manual_seed(0)
    system = diffkit.compose(backbone=Spare(), schedule="cosine", num_steps=10, data_shape=(2,), bins=None)
    options = {"data": points(), "steps": 2, "batch_size": 8, "label_dropout": 0, "adapter": "lora"}

    def refused(rank):
        with pytest.raises(OptionError, match=r"2 parameters .* took no part in its output .first: spare") as caught:
            train(tmp_path / "refused", system=system, **options)
        return str(caught.value)

    freeze = ast.literal_eval(forked(2, refused)[0].partition("freeze=")[2])
    forked(2, lambda rank: train(tmp_path / "run", system=system, freeze=freeze, **options) and None)
    assert read_metrics(tmp_path / "run")[-1]["step"] == 2
