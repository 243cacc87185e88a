"""Image to image: noise an image up to some level, and sample from there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from diffkit.errors import Message, OptionError, Setting
from diffkit.options import check_integer, check_number
from diffkit.registry.resolve import Slot
from diffkit.spacing import Grid, levels, visited
from diffkit.system.call_options import JobOptions, shows_options
from diffkit.system.codec import to_latents
from diffkit.system.module import System
from diffkit.table import ProcessTable
from diffkit.tasks._images import images_for


@shows_options(JobOptions)
def image_to_image(
    system: System,
    image: Tensor,
    *,
    strength: float | None = None,
    level: int | None = None,
    n: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    **options: Unpack[JobOptions],
) -> Tensor:
    """Return variations of an image, (n, C, *S), by sampling from level k, from ``x_k = alpha x + sigma noise``.

    Level k is visited, and those of ``steps`` below it, or noise levels between those of the table. A level that is
    nearer to k than half of the step below it is left out, as the step between them would change almost nothing.

    Args:
        system: The system.
        image: (C, *S) for all, or (n, C, *S), in [-1, 1].
        strength: k as a share of T, from above 0 (the image unchanged) to 1 (pure noise); give this or ``level``.
        level: k itself, 1..T of the training table.
        n: Number of examples; by default as many as there are images.
        batch_size, progress: As in `System.sample`.
        options: Those of `diffkit.system.call_options.JobOptions`.
        conditions: As in `System.sample`.
    Source: Meng et al. 2022, arXiv:2108.01073, algorithm 1.
    """
    if (strength is None) == (level is None):
        raise OptionError(
            Message("give either ", Setting("strength"), ", a share of T, or ", Setting("level"), ", 1..T")
        )
    if level is None:
        share = check_number("strength", strength, gt=0, le=1)
        level = max(round(share * system.num_steps), 1)
    top = check_integer("level", level, ge=1, le=system.num_steps)
    steps = (system.settings.sampling or {}).get("steps") if "steps" not in options else options["steps"]
    found = visited(system.num_steps, steps, system.table)
    image = images_for(system, "image", image, n)
    if isinstance(found, Grid) and np.isfinite(system.table.log_snr[top]):
        options["steps"] = _noise_below(top, found, system.table)
    else:
        options["steps"] = _levels_to(top, levels(system.num_steps, steps, system.table))
    job = system.prepare(len(image), **options)
    program, batches, out = job.program(), job.batches(batch_size), []
    alpha, sigma = float(job.table.alpha[-1]), float(job.table.sigma[-1])
    with job.running(f"image to image {job.n}", len(batches) * program.num_steps, progress) as advance:
        for rows in batches:
            noise_fn = job.noise(rows)
            x = alpha * to_latents(system.parts, image[rows.start : rows.stop]) + sigma * noise_fn()
            out.append(system.from_latents(job.finish(program, rows, x, noise_fn, advance)))
    return torch.cat(out)


def _levels_to(top: int, found: Sequence[int]) -> list[int]:
    """Return the levels up to ``top``, ascending, without the one below it if that is too near."""
    lower_levels = [0, *(k for k in found if k < top)]
    if len(lower_levels) > 1 and 2 * (top - lower_levels[-1]) < lower_levels[-1] - lower_levels[-2]:
        lower_levels.pop()
    return [*lower_levels[1:], top]


def _noise_below(top: int, grid: Grid, table: ProcessTable) -> Slot:
    """Return the same of noise levels between those of the table; near is meant in log-SNR."""
    end, known = float(table.log_snr[top]), grid.log_snr
    below = [i for i in range(len(known)) if known[i] > end]
    if len(below) > 1 and 2 * (known[below[-1]] - end) < known[below[-2]] - known[below[-1]]:
        below.pop()
    options = {"values": np.exp(-0.5 * np.array([*known[below], end])).tolist()}
    if grid.time is not None:
        options["times"] = [*grid.time[below].tolist(), float(table.time[top])]
    return "sigmas", options
