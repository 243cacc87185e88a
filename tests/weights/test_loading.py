"""Files in, systems and classifiers out, with the numbers of the reference implementations; and back to files."""

from __future__ import annotations

import argparse
from itertools import product

import pytest
import torch
from lanes import some_by_default
from safetensors.torch import load_file
from weights_support import CLASSIFIERS, FIXED, TRAINED, UNETS, equal, golden, written

import diffkit
from diffkit import weights
from diffkit.errors import CheckpointError, OptionError
from diffkit.parts.backbones.dit import DiT

LEARNED = ("unet_cond_sigma", "unet_superres", "adm_updown_newattn")
DIT = TRAINED | {"heads": golden("dit_small").kwargs["num_heads"], "bins": None, "rescale_time": False}


def trained(name):
    return TRAINED if name in LEARNED else FIXED


@pytest.mark.parametrize(("name", "ending"), some_by_default(product(UNETS, (".pt", ".safetensors")), 2))
def test_unets_give_the_references_numbers(name, ending, tmp_path):
    stored, path = golden(name), written(tmp_path, name, ending)
    system = diffkit.load_checkpoint(path, **stored.unseen, **trained(name))
    stored.check(system.network)
    assert not system.training
    assert system.data_shape == stored.unseen["data_shape"] or name == "unet_superres"
    assert all(not value.is_meta for value in system.state_dict().values())


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_transformers_give_the_references_numbers(ending, tmp_path):
    system = diffkit.load_checkpoint(written(tmp_path, "dit_small", ending), **DIT)
    golden("dit_small").check(system.network)
    assert system.parts.backbone == DiT(depth=2, hidden=64, heads=DIT["heads"], num_classes=10, null_class=True)
    assert system.parts.names["var"] == "learned_range"


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_give_the_references_numbers(name, tmp_path):
    stored, path = golden(name), written(tmp_path, name)
    network = weights.load_classifier(path, **stored.unseen)
    stored.check(network)
    folder = weights.import_classifier(path, tmp_path / "classifier", **stored.unseen)
    again = weights.load_classifier(folder)
    stored.check(again)
    assert equal(network.state_dict(), again.state_dict())
    assert not again.training


@pytest.mark.parametrize(
    ("name", "ending"), some_by_default(product((*UNETS, "dit_small"), (".pt", ".pth", ".safetensors")), 3)
)
def test_export_gives_the_same_bits_back(name, ending, tmp_path):
    options = DIT if name == "dit_small" else golden(name).unseen | trained(name)
    system = diffkit.load_checkpoint(written(tmp_path, name), **options)
    path = weights.export(system, tmp_path / f"again{ending}")
    again = load_file(path) if ending == ".safetensors" else torch.load(path, weights_only=True)
    if ending == ".safetensors":
        again = {key: again[key] for key in golden(name).state}  # the format sorts names
    assert equal(again, golden(name).state)
    assert equal(diffkit.load_checkpoint(path, **options).state_dict(), system.state_dict())


def test_classifiers_are_exported_too(tmp_path):
    stored = golden("classifier_attention_pool")
    network = weights.load_classifier(written(tmp_path, "classifier_attention_pool"), **stored.unseen)
    path = weights.export(network, tmp_path / "again.pt")
    assert equal(torch.load(path, weights_only=True), stored.state)


def test_a_system_that_came_from_a_file_is_saved_like_any_other(tmp_path):
    stored = golden("adm_updown_newattn")
    path = written(tmp_path, "adm_updown_newattn")
    system = diffkit.load_checkpoint(path, **stored.unseen, **trained("adm_updown_newattn"))
    again = diffkit.load(system.save(tmp_path / "folder"))
    stored.check(again.network)
    assert again.spec() == system.spec()
    assert again.parts.backbone.attention_order == "new"


def test_training_files_of_dit_are_read(tmp_path):
    """{"model", "ema", "opt", "args"}, as its training script writes them; args is an argparse Namespace."""
    ema = golden("dit_small").state
    model = {name: value + (name != "pos_embed") for name, value in ema.items()}
    opt = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}
    args = argparse.Namespace(model="DiT-S/2", image_size=256)
    torch.save({"model": model, "ema": ema, "opt": opt, "args": args}, tmp_path / "0050000.pt")
    system = diffkit.load_checkpoint(tmp_path / "0050000.pt", **DIT)
    golden("dit_small").check(system.network)
    raw = diffkit.load_checkpoint(tmp_path / "0050000.pt", entry="model", **DIT)
    assert torch.equal(raw.network.final_layer.linear.bias, system.network.final_layer.linear.bias + 1)
    with pytest.raises(CheckpointError, match="has no entry 'opt' \\(entries: 'model', 'ema'\\)"):
        diffkit.load_checkpoint(tmp_path / "0050000.pt", entry="opt", **DIT)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_names_that_ddp_and_compile_put_in_front_are_taken_off(prefix, tmp_path):
    def wrapped(state):
        return {"state_dict": {prefix + name: value for name, value in state.items()}, "epoch": 3}

    path = written(tmp_path, "unet_uncond", wrapped=wrapped)
    stored = golden("unet_uncond")
    stored.check(diffkit.load_checkpoint(path, **stored.unseen, **trained("unet_uncond")).network)


def test_several_sets_of_weights_without_ema_must_be_chosen(tmp_path):
    path = written(tmp_path, "unet_uncond", wrapped=lambda state: {"old": state, "new": state})
    with pytest.raises(OptionError, match="several sets of weights; use entry='old' or entry='new'"):
        weights.identify(path)
    assert weights.identify(path, entry="new").entry == "new"
    with pytest.raises(CheckpointError, match="one set of weights, so there is no entry 'ema'; leave entry out"):
        weights.identify(written(tmp_path, "unet_uncond"), entry="ema")


def test_files_of_torch_before_1_6_are_read(tmp_path):
    stored = golden("unet_uncond")
    torch.save(stored.state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    stored.check(diffkit.load_checkpoint(tmp_path / "old.pt", **stored.unseen, **trained("unet_uncond")).network)


def test_half_precision_files_become_float32(tmp_path):
    path = written(tmp_path, "unet_uncond", wrapped=lambda state: {k: v.half() for k, v in state.items()})
    stored = golden("unet_uncond")  # its weights are exact in float16
    system = diffkit.load_checkpoint(path, **stored.unseen, **trained("unet_uncond"))
    stored.check(system.network)
    assert {value.dtype for value in system.state_dict().values()} == {torch.float32}


def test_the_wrong_attention_order_is_silent_in_the_shapes_only(tmp_path):
    """The reason why it is required: weights load either way, and the output differs."""
    stored, path = golden("adm_updown_newattn"), written(tmp_path, "adm_updown_newattn")
    wrong = stored.unseen | {"attention_order": "legacy"}
    system = diffkit.load_checkpoint(path, **wrong, **trained("adm_updown_newattn"))
    with pytest.raises(AssertionError):
        stored.check(system.network)


def test_weights_can_be_changed_and_the_file_stays(tmp_path):
    path = written(tmp_path, "unet_uncond")
    before = path.read_bytes()
    stored = golden("unet_uncond")
    system = diffkit.load_checkpoint(path, **stored.unseen, **trained("unet_uncond"))
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.zero_()
    assert path.read_bytes() == before


def test_a_preset_answers_everything_and_options_win(tmp_path):
    preset = diffkit.preset("dit/s8-256")
    network = preset.build()
    torch.save(network.state_dict(), tmp_path / "dit.pt")
    system = diffkit.load_checkpoint(tmp_path / "dit.pt", preset="dit/s8-256", checkpoint=True, sampler="ddim")
    assert equal(system.network.state_dict(), network.state_dict())
    assert system.parts.backbone.size == "S"
    assert system.parts.backbone.checkpoint
    assert system.settings == preset.compose(device="meta").settings
    assert system.parts.names["sampler"] == "ddim"


def test_exporting_what_has_no_public_layout(tmp_path):
    system = diffkit.compose(backbone="mlp", data_shape=(2,), bins=None)
    with pytest.raises(OptionError, match="a MLPNetwork has no public layout of weights"):
        weights.export(system, tmp_path / "x.pt")
    with pytest.raises(OptionError, match="composed with backbone=None"):
        weights.export(diffkit.compose(backbone=None), tmp_path / "x.pt")


def test_weights_of_parts_are_said_to_be_left_out(tmp_path, capsys):
    backbone = ("dit", {"patch": 2, "depth": 1, "hidden": 8, "heads": 2})
    for loss, remark in (
        ("simple", ""),
        (
            "uncertainty",
            "note: a.pt holds the network; weights of loss 'uncertainty' are left out, system.save keeps them\n",
        ),
    ):
        system = diffkit.compose(loss=loss, backbone=backbone, data_shape=(3, 4, 4))
        path = weights.export(system, tmp_path / "a.pt")
        assert capsys.readouterr().err == remark
        assert diffkit.load_checkpoint(path).spec() == system.spec()


def test_exporting_to_where_nothing_can_be_written(tmp_path):
    network = (
        golden("unet_uncond"),
        diffkit.compose(
            backbone=("unet", {"channels": 4, "groups": 4, "channel_mult": (1,), "num_res_blocks": 1}),
            data_shape=(1, 4, 4),
        ),
    )
    with pytest.raises(OptionError, match=r"must end in .pt, .pth, .safetensors, got 'x.bin'"):
        weights.export(network[1], tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match="cannot write"):
        weights.export(network[1], tmp_path / "missing" / "x.pt")
    assert list(tmp_path.iterdir()) == []


def test_the_wrong_function_for_the_file_names_the_right_one(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a classifier.* diffkit.weights.load_classifier reads it"):
        diffkit.load_checkpoint(written(tmp_path, "classifier_adaptive_pool"))
    with pytest.raises(CheckpointError, match=r"is a U-Net, not a classifier; diffkit.load_checkpoint reads it"):
        weights.load_classifier(written(tmp_path, "unet_uncond"))
    with pytest.raises(CheckpointError, match=r"is a folder, .* diffkit.load opens a saved system"):
        diffkit.load_checkpoint(tmp_path)
    with pytest.raises(OptionError, match="describes its classifier itself; leave preset, entry and options out"):
        weights.load_classifier(tmp_path, preset="adm/classifier64")
