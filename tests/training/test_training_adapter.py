"""Training of an adapter: the base stays as it is, the run holds the adapter alone, and merged it is the same."""

import copy
import json

import pytest
import torch
from training_support import images, train

import diffkit
from diffkit.errors import CheckpointError, OptionError
from diffkit.runtime.files import weights_digest
from diffkit.runtime.weights_files import read_weights
from diffkit.training import read_metrics
from diffkit.weights import export_peft, merged

NETWORK = {"channels": 8, "groups": 4, "num_res_blocks": 1, "channel_mult": (1, 2), "num_heads": 2, "num_classes": 3}
LORA = ("lora", {"r": 2, "targets": ["qkv", "proj_out"]})


@pytest.fixture(scope="module", autouse=True)
def _no_plugins_either():
    """The kernel of a plugin would compute what is shared by these tests with other rounding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFKIT_PLUGINS", "")
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    system = diffkit.compose(
        backbone=("unet", NETWORK),
        schedule="cosine",
        var="learned_range",
        loss="hybrid",
        num_steps=10,
        data_shape=(1, 4, 4),
        bins=17,
    )
    with torch.no_grad():
        for parameter in system.network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return system.save(tmp_path_factory.mktemp("base") / "system")


def adapted(place, out, steps=4, **options):
    options = {"adapter": LORA, "lr": 1e-2, "ema": (0.5,), "label_dropout": 0, "save_every": 2} | options
    return train(out, system=diffkit.load(place), data=images(), steps=steps, **{"base": place} | options)


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    out = tmp_path_factory.mktemp("adapted") / "run"
    return adapted(base, out), out


def drawn(system, **options):
    return system.sample(3, seed=0, y=[0, 1, 2], progress=False, **options)


def test_the_run_holds_the_adapter_alone_and_its_base(base, run):
    system, out = run
    weights = read_weights(out / "model.safetensors", None)
    assert all("lora_" in name for name in weights) and weights
    assert all("lora_" in name for name in read_weights(out / "checkpoints/step_00000004/model.safetensors", None))
    own = read_weights(base / "model.safetensors", None)
    assert system.spec()["adapter"]["base"] == {"path": str(base), "digest": weights_digest(own, shapes=True)}
    now = {
        name.replace(".parametrizations.weight.original", ".weight"): p for name, p in system.network.named_parameters()
    }
    assert all(now[name].equal(tensor) for name, tensor in own.items())
    assert any(tensor.any() for name, tensor in weights.items() if "lora_B" in name)
    assert system.spec()["parts"]["backbone"]["name"] == "unet"


def test_loaded_it_is_the_same_and_differs_from_its_base(base, run):
    system, out = run
    loaded = diffkit.load(out)
    assert drawn(loaded).equal(drawn(system))
    assert (drawn(loaded) - drawn(diffkit.load(base))).abs().max() > 1e-3
    assert loaded.save(out.parent / "again") and drawn(diffkit.load(out.parent / "again")).equal(drawn(system))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
def test_merged_it_draws_the_same(run, dtype, tolerance, tmp_path):
    system = diffkit.load(run[1]).to(dtype)
    start = torch.randn(3, 1, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))
    plain = merged(system)
    assert not any("lora" in name for name, _ in plain.network.named_parameters())
    assert (drawn(plain, start=start) - drawn(system, start=start)).abs().max() <= tolerance
    assert "adapter" not in plain.spec() and "adapter" in system.spec()
    again = diffkit.load(merged(diffkit.load(run[1])).save(tmp_path / "merged"))
    assert (drawn(again) - drawn(diffkit.load(run[1]))).abs().max() <= 1e-5
    x = torch.zeros(2, 1, 4, 4)
    one, other = (s.float().bits_per_dim(x, seed=0, progress=False, y=0).total for s in (plain, system))
    assert (one - other).abs().max() <= 1e-4


def test_it_resumes_to_the_bit(base, run, tmp_path):
    adapted(base, tmp_path / "run", steps=2)
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
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 2)
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
        train(tmp_path / "run", system=other, data=images(), steps=1, adapter=LORA, base=base)
    with pytest.raises(OptionError, match="the system has an adapter; train that by the same adapter"):
        train(tmp_path / "run", system=copy.deepcopy(run[0]), data=images(), steps=1)
    with pytest.raises(OptionError, match="the network has an adapter, which no public layout has; merge it first"):
        diffkit.weights.export(run[0], tmp_path / "weights.pt")
    with pytest.raises(OptionError, match="the system has no adapter, so there is nothing to merge"):
        merged(diffkit.load(base))
