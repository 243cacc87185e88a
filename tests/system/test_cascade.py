"""Cascades: sampled as their stages are one by one, saved and loaded as one, and refused where they do not chain."""

from __future__ import annotations

import json
import re

import pytest
import torch

import diffkit
from diffkit.errors import CheckpointError, CompositionError, OptionError, SpecError
from diffkit.system.low_res import with_noise

ROUNDING = dict(rtol=1e-4, atol=1e-4)
"""Of other batch sizes, through three stages of untrained networks."""
UNET = {"channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "groups": 4, "attention_resolutions": ()}


def system_of(size: int, low_res_channels: int = 0, channels: int = 1, bins=256, sampling=None, **options):
    torch.manual_seed(size)
    backbone = ("unet", {**UNET, "low_res_channels": low_res_channels, **options})
    system = diffkit.compose(
        schedule="cosine",
        num_steps=6,
        data_shape=(channels, size, size),
        backbone=backbone,
        bins=bins,
        sampler="ddim",
        sampling=sampling,
    ).eval()
    for parameter in system.network.parameters():  # a fresh network returns zeros
        torch.nn.init.normal_(parameter, std=0.3)
    return system


def cascade_of(**more):
    stages = [system_of(4, num_classes=3), system_of(8, 1, sampling={"steps": 3}), system_of(16, 1, low_res_level=True)]
    return diffkit.Cascade(stages, **{"noise": (0.0, 0.2)} | more)


def test_each_stage_enlarges_the_one_before():
    cascade, y = cascade_of(), [0, 1, 2, 0, 1]
    base, middle, large = cascade.each_stage(5, seed=3, y=y, progress=False)
    assert (base.shape, middle.shape, large.shape) == ((5, 1, 4, 4), (5, 1, 8, 8), (5, 1, 16, 16))
    assert torch.equal(base, cascade.systems[0].sample(5, seed=3, y=y, progress=False))
    calls = {8: [], 16: []}
    for system in cascade.systems[1:]:
        size = system.data_shape[1]
        system.network.register_forward_pre_hook(lambda m, a, given, s=size: calls[s].append(given), with_kwargs=True)
    again = cascade.sample(5, seed=3, y=y, progress=False)
    assert torch.equal(again, large)
    assert len(calls[8]) == 3 and len(calls[16]) == 6  # the middle stage's own steps
    assert torch.equal(calls[8][0]["low_res"], base.clamp(-1, 1)) and "low_res_level" not in calls[8][0]
    seen = calls[16][0]
    assert torch.equal(seen["low_res_level"], torch.full((5,), 0.2))
    noise = (seen["low_res"] - with_noise(middle.clamp(-1, 1), 0.2, torch.zeros(1))) / with_noise(0.0, 0.2, 1.0)
    assert noise.abs().max() < 5 and 0.8 < noise.std() < 1.2


def test_samples_do_not_depend_on_the_batch_and_options_are_by_stage():
    cascade, y = cascade_of(), [0, 1, 2, 0, 1]
    how = dict(seed=3, y=y, progress=False)
    whole = cascade.sample(5, **how)
    torch.testing.assert_close(cascade.sample(5, batch_size=2, **how), whole, **ROUNDING)
    own = [{"batch_size": 3}, {}, {"batch_size": 1}]
    torch.testing.assert_close(cascade.sample(5, stages=own, **how), whole, **ROUNDING)
    assert not torch.equal(cascade.sample(5, **how | {"seed": 4}), whole)
    other = cascade.sample(5, stages=[{}, {}, {"sampler": "ancestral", "steps": 2}], **how)
    assert not torch.equal(other, whole)
    listed = cascade.sample(2, seed=[7, 9], y=[0, 1], progress=False)
    torch.testing.assert_close(cascade.sample(1, seed=[9], y=1, progress=False), listed[1:], **ROUNDING)


def test_saved_and_loaded_as_one(tmp_path):
    cascade = cascade_of()
    folder = cascade.save(tmp_path / "cascade")
    again = diffkit.load(folder)
    assert isinstance(again, diffkit.Cascade) and again.noise == (0.0, 0.2) and not again.training
    how = dict(seed=0, y=1, progress=False)
    assert torch.equal(again.sample(2, **how), cascade.sample(2, **how))
    assert isinstance(diffkit.load(folder / "stage2"), diffkit.System)
    assert again.to("meta").device.type == "meta"
    with pytest.raises(
        SpecError, match=r"this is a cascade, which is not one system; diffkit\.load and diffkit sample"
    ):
        diffkit.from_spec(json.loads((folder / "spec.json").read_text()))
    (folder / "stage2" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"^stage 2: .*model.safetensors"):
        diffkit.load(folder)
    (folder / "spec.json").write_text(json.dumps({"format": 1, "cascade": {"stages": ["../x"], "noise": []}}))
    with pytest.raises(SpecError, match=r"stage 1 of .* is '../x', not the name of a folder in it"):
        diffkit.load(folder)


MISFITS = [
    (lambda: [system_of(4)], "a cascade needs a list of systems, a base and one upsampler or more"),
    (lambda: ["runs/a", "runs/b"], "stage 1 must be a system, got a str; diffkit.load('runs/a') reads one"),
    (lambda: [system_of(4), system_of(8)], "stage 2 reads no low_res; build its backbone with low_res_channels=1"),
    (lambda: [system_of(4), system_of(8, 3)], "stage 2 reads 3 channels of low_res, the stage before makes 1"),
    (lambda: [system_of(8), system_of(8, 1)], "stage 2 makes (8, 8) out of (8, 8), which is not larger; order the"),
    (lambda: [system_of(8), system_of(16, 1), system_of(4, 1)], "stage 3 makes (4, 4) out of (16, 16), which is not"),
    (lambda: [system_of(4, 1), system_of(8, 1)], "stage 1 reads low_res, so it enlarges images and cannot be the base"),
    (
        lambda: [system_of(4), diffkit.compose(backbone=None, data_shape=(1, 8, 8))],
        "stage 2 was composed with backbone=None; give it a network",
    ),
]


@pytest.mark.parametrize(("stages", "text"), MISFITS, ids=[text[:35] for _, text in MISFITS])
def test_stages_that_do_not_chain_are_refused(stages, text):
    with pytest.raises((CompositionError, OptionError), match=re.escape(text)):
        diffkit.Cascade(stages())


BAD = [
    ({}, "stage 1: y is missing, but the network has 3 classes"),
    ({"y": 0, "steps": 3}, "steps is an option of a stage; pass stages=[{'steps': ...}, ...]"),
    ({"y": 0, "stages": [{}]}, "stages must be a list of 3 mappings of options, one for each stage"),
    ({"y": 0, "stages": [{}, {"seed": 1}, {}]}, "stage 2 has no option 'seed' of its own"),
    ({"y": 0, "stages": [{}, {}, {"sampler": "dddim"}]}, "no sampler named 'dddim'"),
    ({"y": 0, "stages": [{}, {}, {"steps": 7}]}, "stage 3: "),
    ({"y": 0, "seed": -1}, "seed must be >= 0, got -1"),
]


@pytest.mark.parametrize(("arguments", "text"), BAD, ids=[text[:35] for _, text in BAD])
def test_wrong_calls_are_refused_before_work(arguments, text):
    cascade, calls = cascade_of(), []
    for system in cascade.systems:
        system.network.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises((OptionError, CompositionError, LookupError), match=re.escape(text)):
        cascade.each_stage(2, progress=False, **arguments)
    assert not calls
    with pytest.raises(OptionError, match="noise must be one level, or one for each of 2 upsamplers, got 3"):
        cascade_of(noise=[0.1, 0.1, 0.1])
