"""The network, the systems that share it, and how samples and bounds are scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from sklearn.svm import SVC
from torch import Tensor

import diffkit
from diffkit.demo import COMPOSITION
from diffkit.evaluation import extractor_for
from diffkit.evaluation.metrics import FeatureStatistics, frechet_distance
from diffkit.registry import registry
from diffkit.spacing.optimal import optimal_levels

STEPS = (5, 10, 20, 50)
VARIANCE_STEPS = (*STEPS, 100)
BOUND_STEPS = (5, 10, 25, 50, 100)
DRAWN = 500
SAME = ("dpm2", "dpm_solver_1", "euler")
"""Samplers that are another by another name: 'dpm_solver_2' and, twice, 'ddim'."""
SAMPLERS: dict[str, Any] = {name: name for name in registry("sampler").built_in_names() if name not in SAME} | {
    "euler_ancestral (learned)": ("euler_ancestral", {"variance": "learned"}),
    "dpm2_ancestral (learned)": ("dpm2_ancestral", {"variance": "learned"}),
    "sde_dpmpp_2m (learned)": ("sde_dpmpp_2m", {"variance": "learned"}),
}
"""'ancestral' draws with the variance the network has learned, the others with their own unless it says so."""
PRICED_AS = {"learned_range": "best", "analytic": "best", "fixed_small": "posterior", "fixed_large": "upper"}
"""Variance -> what `optimal_levels` takes its steps to cost."""


@frozen(eq=False)
class Digits:
    """A split in [-1, 1], (N, 1, 8, 8) float32, with labels (N,)."""

    images: Tensor
    labels: Tensor

    @classmethod
    def of(cls, split: str) -> Digits:
        data = diffkit.data.loading.load("digits", split=split)
        batch = data.batch(range(len(data)))
        return cls(diffkit.data.scale_images(batch.images, data.bins).float(), batch.conditions["y"])


def systems_of(trained: diffkit.System, train: Digits) -> dict[str, tuple[diffkit.System, Any]]:
    """Variance -> a system with it, and the network to call: the trained one, its mean alone if the variance is fixed.

    The errors that 'analytic' needs are measured on data the network was trained on, so nothing is fitted to what is
    scored.
    """
    found: dict[str, tuple[diffkit.System, Any]] = {"learned_range": (trained, None)}
    mean_of = lambda x, time, y: trained.network(x, time, y=y)[:, :1]  # noqa: E731
    errors = tuple(errors_of(trained, train).tolist())
    for name, slot in {
        "fixed_small": None,
        "fixed_large": None,
        "analytic": ("analytic", {"x_start_mse": errors}),
    }.items():
        system = diffkit.compose(**COMPOSITION | {"var": slot or name, "loss": "simple", "backbone": None})
        found[name] = (system, mean_of)
    return found


def errors_of(trained: diffkit.System, train: Digits) -> Tensor:
    """Mean squared error of x_start at every level, (T,) float64."""
    some = slice(0, 300)
    bound = trained.bits_per_dim(train.images[some], y=train.labels[some], seed=1, rows_per_call=256, progress=False)
    return bound.x_start_mse.double().mean(0)


def optimal(trained: diffkit.System, errors: Tensor, count: int, var: str) -> list[int]:
    """The levels with the best bound, for a variance."""
    return list(optimal_levels(trained.table, errors, count, variance=PRICED_AS[var]))


def quality_of(train: Digits) -> Callable[[Tensor, Tensor], dict[str, float]]:
    """Samples (N, 1, 8, 8) and the classes asked for in, figures out.

    Recognised: the share that a classifier trained on real digits reads as the class asked for. Distance: Frechet's,
    from the digits trained on, between features of a second classifier.
    """
    machine = SVC(gamma=1e-3, C=10).fit(grey(train.images).flatten(1).numpy(), train.labels.numpy())
    network = extractor_for("digits")
    real = FeatureStatistics.of(features(network, train.images))

    def score(images: Tensor, labels: Tensor) -> dict[str, float]:
        read = float(machine.score(grey(images).flatten(1).numpy(), labels.numpy()))
        rounded = grey(images) / 8 - 1
        drawn = FeatureStatistics.of(features(network, rounded))
        return {"recognised": read, "distance": frechet_distance(real, drawn)}

    return score


def features(network: Any, images: Tensor) -> Tensor:
    return network(images).pool


def grey(images: Tensor) -> Tensor:
    """The 17 grey levels of the data."""
    return ((images.clamp(-1, 1) + 1) * 8).round()


def labels_for(count: int) -> Tensor:
    """All classes alike."""
    return torch.arange(10).repeat_interleave(count // 10)


def run_folder(given: Path | None, made: Path) -> Path:
    """The demo's training run: one that is there, or a new one, which takes minutes."""
    if given is not None:
        return given
    from diffkit.demo import run

    run(made)
    return made / "run"
