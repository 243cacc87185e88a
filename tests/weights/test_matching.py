"""Part of a file into a network that is not quite the same."""

from __future__ import annotations

import pytest
import torch
from weights_support import golden, written

import diffkit
from diffkit import weights
from diffkit.errors import CheckpointError, OptionError

OPTIONS = {"channels": 32, "num_res_blocks": 1, "channel_mult": (1, 1), "num_heads": 2}


def network(**changes):
    stored = golden("unet_cond_sigma")
    options = OPTIONS | {"attention_resolutions": (8, 4), "num_classes": 10} | changes
    return diffkit.compose(
        backbone=("unet", options), data_shape=stored.unseen["data_shape"], var="learned_range", loss="hybrid"
    )


def test_everything_is_taken_if_everything_matches(tmp_path):
    system = network()
    report = weights.load_matching(system, written(tmp_path, "unet_cond_sigma"))
    state = golden("unet_cond_sigma").state
    assert report.taken == tuple(state)
    assert not report.left
    assert not report.unused
    assert not report.reshaped
    assert all(torch.equal(system.network.state_dict()[name], value) for name, value in state.items())


def test_other_classes_keep_their_fresh_embedding(tmp_path):
    system = network(num_classes=3)
    before = {name: value.clone() for name, value in system.network.state_dict().items()}
    report = weights.load_matching(system, written(tmp_path, "unet_cond_sigma"))
    assert report.reshaped == {"label_emb.weight": ((10, 128), (3, 128))}
    after, state = system.network.state_dict(), golden("unet_cond_sigma").state
    assert torch.equal(after["label_emb.weight"], before["label_emb.weight"])
    assert all(torch.equal(after[name], state[name]) for name in report.taken)
    assert set(report.taken) == set(state) - {"label_emb.weight"}
    assert str(report) == (
        f"{len(report.taken)} tensors taken, 1 left as they were\n"
        "  left: label_emb.weight is (10, 128) in the file, (3, 128) here"
    )


def test_what_only_one_of_both_has_is_named(tmp_path):
    system = network(num_classes=None, attention_resolutions=(8,))
    report = weights.load_matching(system, written(tmp_path, "unet_cond_sigma"))
    assert "label_emb.weight" in report.unused
    assert all(name == "label_emb.weight" or ".1." in name for name in report.unused)
    more = network(channel_mult=(1, 1, 1), attention_resolutions=(8, 4))
    report = weights.load_matching(more.network, written(tmp_path, "unet_cond_sigma"))
    assert any(name.startswith("output_blocks.5") for name in report.left)
    assert "left: output_blocks.5.0.in_layers.0.weight is not in the file" in str(report)


def test_taken_names_freeze_what_was_loaded(tmp_path):
    system = network(num_classes=3)
    report = weights.load_matching(system, written(tmp_path, "unet_cond_sigma"))
    for name, parameter in system.network.named_parameters():
        parameter.requires_grad_(name not in report.taken)
    assert [name for name, p in system.network.named_parameters() if p.requires_grad] == ["label_emb.weight"]


def test_nothing_in_common_is_an_error(tmp_path):
    path = written(tmp_path, "dit_small")
    with pytest.raises(CheckpointError, match=r"nothing in .* has the name and shape of a tensor of this UNetNetwork"):
        weights.load_matching(network(), path)
    with pytest.raises(OptionError, match="composed with backbone=None"):
        weights.load_matching(diffkit.compose(backbone=None), path)


def test_an_entry_can_be_chosen(tmp_path):
    path = written(tmp_path, "unet_cond_sigma", wrapped=lambda state: {"model": state, "ema": {"x": torch.zeros(1)}})
    assert weights.load_matching(network(), path, entry="model").taken
