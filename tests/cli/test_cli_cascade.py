"""Cascades from the command line: made of folders, sampled, resumed, and refused where they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import Command, Refused

import diffkit
from diffkit.runtime.images import pixels

UNET = {"channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "groups": 4, "attention_resolutions": ()}


@pytest.fixture
def stages(make_system: Callable[..., Path]) -> list[Path]:
    torch.manual_seed(0)
    base = make_system("base", backbone=("unet", {**UNET, "num_classes": 2}))
    options = {**UNET, "low_res_channels": 1, "low_res_level": True}
    up = make_system("up", data_shape=(1, 8, 8), backbone=("unet", options))
    (up / "config.json").write_text('{"data": {"classes": null, "low_res": [4, 4]}}')
    return [base, up]


def test_a_cascade_is_made_and_sampled(command: Command, refused: Refused, stages: list[Path], tmp_path: Path):
    folder, out = tmp_path / "cascade", tmp_path / "out"
    assert (found := command("cascade", *stages, "--noise", "0.1", "--steps", "3,2", "--out", folder)).code == 0, found
    assert found.out == f"cascade: {folder}/ (1x4x4 -> 1x8x8)\n"
    cascade = diffkit.load(folder)
    assert [system.settings.sampling for system in cascade.systems] == [{"steps": 3}, {"steps": 2}]
    words = ("sample", folder, "-n", "5", "--classes", "1", "--batch-size", "2", "--format", "npz,grid", "--out", out)
    assert (found := command(*words)).code == 0, found.err
    with np.load(next(out.glob("samples_*.npz"))) as arrays:
        made, labels = arrays["arr_0"], arrays["arr_1"]
    wanted = pixels(cascade.sample(5, seed=0, y=1, batch_size=2, progress=False), 256).transpose(0, 2, 3, 1)
    assert np.array_equal(made, wanted) and labels.tolist() == [1] * 5
    assert command(*words).code == 0  # nothing is left to do
    assert "this is a cascade, which is not one system" in refused("nll", folder, "--data", "digits")
    text = refused("sample", folder, "--adaptive", 0.1, "--out", tmp_path / "b")
    assert "is for one system, not for a cascade" in text


def test_stages_that_do_not_fit_are_refused(refused: Refused, stages: list[Path], tmp_path: Path):
    out = tmp_path / "cascade"
    assert refused("cascade", stages[0], "--out", out).startswith("a cascade needs a list of systems")
    assert refused("cascade", *stages[::-1], "--out", out).startswith("these stages make no cascade:")
    assert (
        refused("cascade", *stages, "--steps", "3", "--out", out)
        == "steps must be one number for each of 2 stages, got 1"
    )
    text = refused("cascade", stages[0], tmp_path / "nothing", "--out", out)
    assert text.startswith(f"stage 2: {tmp_path / 'nothing' / 'spec.json'} is not there")
    (stages[1] / "config.json").write_text('{"data": {"classes": null, "low_res": [2, 2]}}')
    text = refused("cascade", *stages, "--out", out)
    assert text == "stage 2 was trained to enlarge 2x2, the stage before makes 4x4; train one with --low-res 4"
    assert not out.exists()
