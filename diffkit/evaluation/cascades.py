"""A cascade of saved systems or training runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch

from diffkit.errors import CheckpointError, OptionError, SpecError
from diffkit.evaluation.sampling import sized
from diffkit.evaluation.saved import Saved, load
from diffkit.system.cascade import Cascade
from diffkit.system.compose import recompose
from diffkit.system.module import System


def cascade_of(
    folders: Sequence[Path],
    *,
    noise: float | Sequence[float] = 0.0,
    steps: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Cascade:
    """Return the cascade of some folders, the base first.

    Args:
        folders: Saved systems or training runs.
        noise: As in `Cascade`.
        steps: Number of steps by which each stage samples by default; by default as it was saved.
        device: Of all stages.
    Raises:
        CheckpointError, SpecError: A folder holds no system.
        OptionError, CompositionError: The stages do not fit each other, or an upsampler was trained to enlarge images
            of another size than the stage before makes.
    """
    stages = [_stage(number, folder, torch.device(device)) for number, folder in enumerate(folders, start=1)]
    if steps is not None and len(steps) != len(stages):
        raise OptionError(f"steps must be one number for each of {len(stages)} stages, got {len(steps)}")
    cascade = Cascade([stage.system for stage in stages], noise=noise)
    for number, (before, after) in enumerate(pairwise(stages), start=2):
        made = before.system.data_shape[1:]
        if after.low_res is not None and after.low_res != made:
            raise OptionError(
                f"stage {number} was trained to enlarge {sized(after.low_res)}, the stage before makes {sized(made)}; "
                f"train one with --low-res {','.join(map(str, dict.fromkeys(made)))}"
            )
    if steps is None:
        return cascade
    systems = [_with_steps(system, count) for system, count in zip(cascade.systems, steps, strict=True)]
    return Cascade(systems, noise=cascade.noise)


def _stage(number: int, folder: Path, device: torch.device) -> Saved:
    try:
        return load(folder, device)
    except (CheckpointError, SpecError) as error:
        raise type(error)(f"stage {number}: {error}") from error


def _with_steps(system: System, steps: int) -> System:
    """A system that samples by so many steps by default."""
    return recompose(system, sampling={**(system.settings.sampling or {}), "steps": steps})
