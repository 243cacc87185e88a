"""A system that enlarges small images is scored on pairs, and its page says where its samples come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import Command, Refused

import diffkit
from diffkit.data import LowRes, scale_images
from diffkit.data.loading import load

UNET = dict(channels=8, channel_mult=(1,), num_res_blocks=1, groups=4, num_heads=1, low_res_channels=1)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    system = diffkit.compose(schedule="cosine", backbone=("unet", UNET), data_shape=(1, 8, 8), num_steps=4)
    for parameter in system.parameters():  # the last layer starts at 0, so nothing else would matter
        torch.nn.init.normal_(parameter, std=0.2)
    folder = system.save(tmp_path / "run")
    (folder / "config.json").write_text('{"data": {"classes": null, "low_res": [4, 4]}}')
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images.npz"
    np.savez(path, np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8))
    return path


def test_it_is_scored_with_the_small_images(command: Command, run: Path, images: Path, tmp_path: Path):
    found = command("nll", run, "--data", images, "--out", tmp_path / "nll.npz")
    assert found.code == 0, found.err
    batch = LowRes(load(images), 4).batch(range(5))
    direct = diffkit.load(run).bits_per_dim(
        scale_images(batch.images, 256), seed=0, low_res=batch.conditions["low_res"]
    )
    with np.load(tmp_path / "nll.npz") as kept:
        np.testing.assert_allclose(kept["total"], direct.total.numpy(), rtol=1e-5)


def test_what_needs_the_size(refused: Refused, run: Path, images: Path):
    (run / "config.json").unlink()
    assert "of what size was not saved with it" in refused("nll", run, "--data", images).splitlines()[-1]


def test_its_samples_are_drawn_by_another_command(command: Command, refused: Refused, run: Path):
    pytest.importorskip("jinja2")
    pytest.importorskip("sklearn")
    assert "evaluate that folder" in refused("evaluate", run, "--data", "digits", "--extractor", "digits")
    assert command("report", run).code == 0
    page = (run / "report.html").read_text()
    assert "diffkit sample --low-res draws its samples" in page and "<img" not in page
