"""Systems saved and runs begun by diffkit 0.1.0 before its layout changed load and go on; see README.md beside this."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import diffkit
from diffkit.evaluation.saved_guidance import described, without_defaults
from diffkit.guidance import Autoguidance, ClassifierFree
from diffkit.parts.guidance.dynamic_threshold import DynamicThreshold

HERE = Path(__file__).parent
RUN = {"batch_size": 8, "save_every": 4, "log_every": 2, "ema": 0.9, "progress": False, "lr": 1e-2, "seed": 5}


def of_run() -> diffkit.System:
    torch.manual_seed(1)
    return diffkit.compose(
        schedule="cosine",
        var="learned_range",
        loss="hybrid",
        timesteps="loss_second_moment",
        backbone=("mlp", {"hidden": 8, "depth": 1}),
        data_shape=(2,),
        num_steps=20,
        bins=None,
    )


def test_a_system_saved_before_loads_and_samples_as_it_did():
    system = diffkit.load(HERE / "system")
    found = system.sample(2, steps=5, seed=3, y=1, progress=False)
    np.testing.assert_allclose(found, np.load(HERE / "system_samples.npy"), atol=1e-5)  # another CPU rounds otherwise


@pytest.fixture
def again(tmp_path: Path) -> dict[str, torch.Tensor]:
    """Weights after 8 updates by this version, which tell whether this machine computes as the one of the files did."""
    diffkit.train(of_run(), diffkit.data.load("points"), out=tmp_path / "again", steps=8, **RUN)
    return load_file(tmp_path / "again" / "checkpoints" / "step_00000008" / "model.safetensors")


def test_a_run_begun_before_goes_on(tmp_path: Path, again: dict[str, torch.Tensor]):
    shutil.copytree(HERE / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.json"  # an engine that is no more, whose updates were the same to the bit
    config.write_text(config.read_text().replace('"engine": "torch"', '"engine": "accelerate"'))
    diffkit.train(of_run(), diffkit.data.load("points"), out=tmp_path / "run", steps=16, **RUN)
    then = load_file(HERE / "run" / "checkpoints" / "step_00000008" / "model.safetensors")
    same_arithmetic = all(torch.equal(again[name], tensor) for name, tensor in then.items())
    for file in ("model", "ema_0.9", "optimizer"):
        name = f"checkpoints/step_00000016/{file}.safetensors"
        found, wanted = load_file(tmp_path / "run" / name), load_file(HERE / "whole" / name)
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=0 if same_arithmetic else 1e-4)


@pytest.mark.parametrize(
    ("guidance", "then", "now"),
    [
        (
            ClassifierFree(3.0, rescale=0.7),
            "ClassifierFree(scale=3.0, interval=None, rescale=0.7, null=None, joint=True)",
            "ClassifierFree(scale=3.0, rescale=0.7)",
        ),
        (
            Autoguidance(torch.nn.Identity(), 2.0, interval=(0.1, 1.0)),
            "Autoguidance(model=Identity e3b0c44298fc1c14, scale=2.0, interval=(0.1, 1.0))",
            "Autoguidance(model=Identity e3b0c44298fc1c14, scale=2.0, interval=(0.1, 1.0))",
        ),
        (DynamicThreshold(), "DynamicThreshold(percentile=0.995)", "DynamicThreshold()"),
    ],
    ids=["cfg", "autoguidance", "dynamic_threshold"],
)
def test_guidance_of_samples_begun_before_is_recognized(guidance, then, now):
    """Descriptions as diffkit wrote them when they had every option, before guidance got further ones."""
    assert without_defaults(then, guidance) == described(guidance) == now
