"""Small systems, small data and short runs, for tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

import diffkit
from diffkit.data import ArrayData, from_array
from diffkit.training import TrainConfig, read_metrics
from diffkit.training.checkpoint import newest_first

SPEED = ("images_per_s",)
"""Metrics that depend on the machine."""


def system(seed: int = 0, **more: Any) -> diffkit.System:
    """A perceptron on 1x4x4 with three classes and "no class", dropout-free."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = dict(
        schedule="cosine",
        var="learned_range",
        loss="hybrid",
        backbone=("mlp", {"hidden": 16, "depth": 1, "num_classes": 3, "null_class": True}),
        data_shape=(1, 4, 4),
        num_steps=20,
        bins=17,
    )
    return diffkit.compose(**(settings | more))


def images(count: int = 23, classes: int = 3) -> ArrayData:
    rng = np.random.default_rng(0)
    return from_array(
        rng.integers(0, 17, (count, 1, 4, 4)).astype(np.uint8),
        labels=rng.integers(0, classes, count),
        bins=17,
        classes=[str(i) for i in range(classes)],
    )


def points(count: int = 40) -> ArrayData:
    return from_array(np.random.default_rng(0).standard_normal((count, 2)))


def point_system(seed: int = 0, **more: Any) -> diffkit.System:
    torch.manual_seed(seed)
    settings: dict[str, Any] = dict(
        backbone=("mlp", {"hidden": 8, "depth": 1}), data_shape=(2,), bins=None, num_steps=10, schedule="cosine"
    )
    return diffkit.compose(**(settings | more))


DEFAULTS: dict[str, Any] = dict(
    steps=12, batch_size=5, lr=1e-2, label_dropout=0.2, log_every=1, save_every=4, ema=(0.9, 0.99), progress=False
)


def train(out: Path, seed: int = 0, data: Any = None, **options: Any) -> diffkit.System:
    """A short run of the small system."""
    composed = options.pop("system", None) or system(seed)
    return diffkit.train(composed, images() if data is None else data, out=out, **(DEFAULTS | options))


def lines(run: Path) -> list[dict[str, Any]]:
    """Metrics without what depends on the machine."""
    return [{k: v for k, v in line.items() if k not in SPEED} for line in read_metrics(run)]


def checkpoints(run: Path) -> list[int]:
    return [int(path.name[5:]) for path in newest_first(run / "checkpoints")]


def content(run: Path) -> dict[str, bytes]:
    """Every file of the newest checkpoint but the manifest, which knows versions."""
    newest = next(newest_first(run / "checkpoints"))
    return {path.name: path.read_bytes() for path in sorted(newest.glob("*.safetensors"))}


def config(**options: Any) -> TrainConfig:
    return TrainConfig(**({k: v for k, v in DEFAULTS.items() if k != "progress"} | options))
