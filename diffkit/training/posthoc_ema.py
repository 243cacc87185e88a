"""Load a run's system with another running mean of its weights than the one it samples with, chosen after training."""

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
from diffkit.system.loading import load_system
from diffkit.system.module import System
from diffkit.training import checkpoint
from diffkit.training.ema import ema_label, power_label
from diffkit.training.power_ema import Profile, nearest_mixture
from diffkit.training.sharded_files import whole_name

LARGEST_PROFILE_ERROR = 0.06
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
    """Return a run's system with another running mean of its weights, chosen after training, ready to sample.

    Args:
        folder: The run.
        rate: One of the decay rates that it was trained with (``ema``).
        width: Instead of a rate, a relative width in (0, 0.28]. The run must have been trained with ``ema_power``; the
            more checkpoints it has stored (``keep_every``), the smaller the error of the mean.
        step: Step of the checkpoint whose mean to return; the newest by default.
        backbone, device: As in `diffkit.load`.
        progress: Show a progress bar while means are read.
    Raises:
        OptionError: Both or neither of rate and width are given; or the run has no such mean, and the text lists those
            it has.
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
        raise OptionError(f"there is no checkpoint of step {step}; there are those of {_numbers_text(paths)}")
    system = load_system(folder, backbone=backbone, device=device)
    assert system.trained is not None
    names = {name for name, _ in unwrap_module(system.trained).named_parameters(remove_duplicate=False)}
    weights = (
        _mean_by_rate(paths, rate, step)
        if rate is not None
        else _mean_by_width(paths, width or 0.0, step, names, progress)
    )
    load_weights(system.trained, weights)
    return system


def _mean_by_rate(paths: Mapping[int, Path], rate: float, step: int) -> Mapping[str, Tensor]:
    label = ema_label(rate)
    files = checkpoint.read(paths[step], {label}).files
    if label not in files:
        raise OptionError(f"the run stores no mean of rate {rate}; it stores {_labels_text(paths[step], 'ema_')}")
    return files[label]


def _mean_by_width(
    paths: Mapping[int, Path], width: float, step: int, names: Set[str], progress: bool
) -> dict[str, Tensor]:
    """Return the nearest mixture of the stored power-function means, in float64, with the buffers of the last one."""
    stored = [
        (Profile(own, at), path) for at, path in sorted(paths.items()) for own in _stored_widths(path) if at <= step
    ]
    if not stored:
        raise OptionError(
            f"no checkpoint up to step {step} was trained with a power-function mean",
            fix={"ema_power": (0.05, 0.1)},
        )
    factors, error = nearest_mixture([profile for profile, _ in stored], Profile(width, step))
    if error > LARGEST_PROFILE_ERROR:
        steps, widths = ({profile[i] for profile, _ in stored} for i in (1, 0))
        raise OptionError(
            f"the checkpoints of steps {_numbers_text(steps)} give a mean of width {width} with an error of "
            f"{error:.0%}; keep more of them (keep_every), or take a width nearer to {_numbers_text(widths)}"
        )
    total: dict[str, Tensor] = {}
    with show_progress(len(stored), "reading means", progress) as advance:
        for factor, (profile, path) in zip(factors.tolist(), stored, strict=True):
            label = power_label(profile.width)
            mean = checkpoint.read(path, {label}).files[label]
            for name in names & mean.keys():
                total[name] = factor * mean[name].double() + total.get(name, 0.0)
            advance(1)
    last = checkpoint.read(stored[-1][1], {"model"}).files["model"]
    return {name: total[name].to(value.dtype) if name in total else value for name, value in last.items()}


def _stored_widths(path: Path) -> list[float]:
    return [float(name.removeprefix("power_")) for name in _stored_labels(path) if name.startswith("power_")]


def _labels_text(path: Path, prefix: str) -> str:
    found = [name.removeprefix(prefix) for name in _stored_labels(path) if name.startswith(prefix)]
    return ", ".join(found) or "none"


def _stored_labels(path: Path) -> list[str]:
    """Return the names of a checkpoint's files, from its manifest."""
    names: Mapping[str, Any] = checkpoint.read_manifest(path)["files"]
    return sorted({whole_name(name.removesuffix(".safetensors")) for name in names})


def _numbers_text(values: Any) -> str:
    return ", ".join(map(str, sorted(values)))
