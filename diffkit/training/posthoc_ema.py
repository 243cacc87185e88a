"""Load a run's system with another mean of its weights than the one saved for sampling."""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffkit.errors import OptionError
from diffkit.runtime.files import load_weights, unwrap_module
from diffkit.runtime.progress import progress as show_progress
from diffkit.runtime.run_layout import CHECKPOINTS, step_of
from diffkit.system.loading import load
from diffkit.system.module import System
from diffkit.training import checkpoint
from diffkit.training.ema import ema_label, power_label
from diffkit.training.power_ema import Profile, mixture
from diffkit.training.sharded_files import whole_name

FARTHEST = 0.06
"""Largest relative error of the profile of a mixture of stored means."""


def averaged(
    folder: str | Path,
    *,
    rate: float | None = None,
    width: float | None = None,
    step: int | None = None,
    backbone: nn.Module | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> System:
    """Return a run's system with a mean of its weights, ready to sample.

    Args:
        folder: The run.
        rate: One of the decay rates that it was trained with (``ema``).
        width: Instead, a relative width in (0, 0.28]; the run must have been trained with ``ema_power``, and the more
            checkpoints it has stored (``keep_every``), the nearer the result is.
        step: Step of the checkpoint whose mean to return; the newest by default.
        backbone, device: As in `diffkit.load`.
        progress: Show a progress bar while means are read.
    Raises:
        OptionError: Neither or both are given; or the run does not hold the mean, and the text lists those it holds.
        CheckpointError: Files are damaged.
    Source: Karras et al. 2024, arXiv:2312.02696, section 3.
    """
    if (rate is None) == (width is None):
        raise OptionError("give either rate, one of those that the run was trained with, or width")
    paths = {step_of(path): path for path in checkpoint.newest_first(Path(folder) / CHECKPOINTS)}
    if not paths:
        raise OptionError(f"{str(folder)!r} holds no checkpoints; it must be the folder of a training run")
    step = max(paths) if step is None else step
    if step not in paths:
        raise OptionError(f"there is no checkpoint of step {step}; there are those of {_listed(paths)}")
    system = load(folder, backbone=backbone, device=device)
    assert system.network is not None
    names = {name for name, _ in unwrap_module(system.network).named_parameters(remove_duplicate=False)}
    weights = _by_rate(paths, rate, step) if rate is not None else _by_width(paths, width or 0.0, step, names, progress)
    load_weights(system.network, weights)
    return system


def _by_rate(paths: Mapping[int, Path], rate: float, step: int) -> Mapping[str, Tensor]:
    label = ema_label(rate)
    files = checkpoint.read(paths[step], {label}).files
    if label not in files:
        raise OptionError(f"the run stores no mean of rate {rate}; it stores {_labels_in(paths[step], 'ema_')}")
    return files[label]


def _by_width(paths: Mapping[int, Path], width: float, step: int, names: Set[str], progress: bool) -> dict[str, Tensor]:
    """The nearest mixture of all power-function means in the checkpoints, summed in float64; buffers as they are."""
    stored = [(Profile(own, at), path) for at, path in sorted(paths.items()) for own in _widths(path) if at <= step]
    if not stored:
        raise OptionError(
            f"no checkpoint up to step {step} was trained with a power-function mean",
            fix={"ema_power": (0.05, 0.1)},
        )
    factors, off = mixture([profile for profile, _ in stored], Profile(width, step))
    if off > FARTHEST:
        steps, widths = ({profile[i] for profile, _ in stored} for i in (1, 0))
        raise OptionError(
            f"what the checkpoints of steps {_listed(steps)} hold comes only to within {off:.0%} of a mean of width "
            f"{width}; keep more of them (keep_every), or take a width nearer to {_listed(widths)}"
        )
    total: dict[str, Tensor] = {}
    with show_progress(len(stored), "reading means", progress) as advance:
        for factor, (profile, path) in zip(factors.tolist(), stored, strict=True):
            label = power_label(profile.width)
            held = checkpoint.read(path, {label}).files[label]
            for name in names & held.keys():
                total[name] = factor * held[name].double() + total.get(name, 0.0)
            advance(1)
    last = checkpoint.read(stored[-1][1], {"model"}).files["model"]
    return {name: total[name].to(value.dtype) if name in total else value for name, value in last.items()}


def _widths(path: Path) -> list[float]:
    return [float(name.removeprefix("power_")) for name in _labels(path) if name.startswith("power_")]


def _labels_in(path: Path, prefix: str) -> str:
    found = [name.removeprefix(prefix) for name in _labels(path) if name.startswith(prefix)]
    return ", ".join(found) or "none"


def _labels(path: Path) -> list[str]:
    """Names of a checkpoint's files, as its manifest has them."""
    names: Mapping[str, Any] = checkpoint.manifest_of(path)["files"]
    return sorted({whole_name(name.removesuffix(".safetensors")) for name in names})


def _listed(values: Any) -> str:
    return ", ".join(map(str, sorted(values)))
