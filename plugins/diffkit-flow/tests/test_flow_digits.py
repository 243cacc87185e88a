"""Flow matching trained end to end on handwritten digits, through diffkit's own training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import diffkit


def distance(samples: torch.Tensor, data: torch.Tensor) -> float:
    """Energy distance of two sets of images, (N, D) and (M, D): 0 if they are drawn alike."""
    between = torch.cdist(samples, data).mean()
    within = torch.cdist(samples, samples).mean() + torch.cdist(data, data).mean()
    return float(2 * between - within)


@pytest.mark.slow
def test_digits_are_learned(tmp_path: Path):
    pytest.importorskip("sklearn")
    from diffkit.data import scale_images
    from diffkit.data.loading import load

    data = load("digits", labels=False)
    images = scale_images(data.batch(np.arange(len(data))).images, data.bins).flatten(1)
    system = diffkit.compose(
        schedule="flow_linear",
        mean="flow",
        timesteps="flow_logit_normal",
        sampler="flow_euler",
        backbone=("mlp", {"hidden": 256, "depth": 4}),
        data_shape=(1, 8, 8),
        num_steps=40,
        bins=17,
    )
    before = distance(system.sample(500, seed=1, progress=False).flatten(1), images)
    options = dict(steps=1500, batch_size=128, lr=1e-3, ema=(0.998,))
    trained = diffkit.train(system, data, out=tmp_path / "run", progress=False, **options)
    after = distance(trained.sample(500, seed=1, progress=False).flatten(1), images)
    noise = distance(images[torch.randperm(len(images))[:500]], images)
    print(f"energy distance to the data: {before:.3f} untrained, {after:.3f} trained, {noise:.3f} another draw of it")
    assert after < before / 20
    again = diffkit.load(tmp_path / "run")
    assert torch.equal(again.sample(4, seed=1, progress=False), trained.sample(4, seed=1, progress=False))
