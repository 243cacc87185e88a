"""Training on a folder: what a run keeps of its data, and that the way of reading changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diffkit
from diffkit.errors import OptionError
from diffkit.training import read_metrics


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(11):
        pixels = rng.integers(0, 256, (6, 7), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{'cat' if i % 3 else 'dog'}_{i}.png")
    return root


def run(photos: Path, out: Path, steps: int, workers: int = 0, **options) -> list[float]:
    """Losses of a short run with flips and classes."""
    data = diffkit.data.loading.load(photos, **({"size": 4, "channels": 1, "labels": "prefix"} | options))
    torch.manual_seed(0)
    system = diffkit.compose(
        schedule="cosine",
        backbone=("mlp", {"hidden": 8, "depth": 1, "num_classes": 2}),
        data_shape=data.shape,
        bins=data.bins,
        num_steps=8,
    )
    diffkit.train(
        system, data, out=out, steps=steps, workers=workers, batch_size=4, log_every=1, flip=0.5, progress=False
    )
    return [line["loss"] for line in read_metrics(out)]


def test_a_run_resumes_to_the_bit_however_the_images_are_read(photos, tmp_path):
    cache = tmp_path / "c.npy"
    whole = run(photos, tmp_path / "whole", 8)
    assert run(photos, tmp_path / "parts", 3, check=False) == whole[:3]
    assert run(photos, tmp_path / "parts", 6, cache=cache) == whole[:6]
    assert run(photos, tmp_path / "parts", 8, cache=cache, workers=2) == whole


def test_the_run_keeps_the_names_and_counts_of_its_classes(photos, tmp_path):
    run(photos, tmp_path / "run", 1)
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    assert kept["classes"] == ["cat", "dog"] and kept["class_counts"] == [7, 4]
    assert kept["examples"] == 11 and kept["skipped"] == 0 and kept["source"] == str(photos)


def test_other_images_are_another_run(photos, tmp_path):
    run(photos, tmp_path / "run", 1)
    (photos / "cat_1.png").rename(photos / "cat_99.png")
    with pytest.raises(OptionError, match="data fingerprint="):
        run(photos, tmp_path / "run", 2)
