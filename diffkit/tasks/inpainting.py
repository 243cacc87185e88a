"""Inpainting: generate the unknown part of an image, and keep the known part."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.options import check_integer
from diffkit.system.call_options import JobOptions, shows_options
from diffkit.system.codec import to_latents
from diffkit.system.module import System
from diffkit.system.prepared import SamplingJob
from diffkit.system.sampling import Program, route_of
from diffkit.table import ProcessTable, Steps
from diffkit.tasks._images import image_and_mask

_POOLS = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)
Move = tuple[int, int]
"""A move from one level of the table in use to another: down by a step, or up by adding noise."""


@shows_options(JobOptions)
@torch.no_grad()
def inpaint(
    system: System,
    image: Tensor,
    known: Tensor,
    *,
    n: int | None = None,
    resample: int = 10,
    jump: int = 10,
    batch_size: int | None = None,
    progress: bool = True,
    **options: Unpack[JobOptions],
) -> Tensor:
    """Inpaint an image: return images that agree with its known part, (n, C, *S).

    After each step the known part is replaced by the image with fresh noise of that level. The generated part adapts to
    it only in the next step. So (RePaint) at each multiple of ``jump`` sampling goes ``jump`` levels back up by adding
    noise and comes down again, until each stretch was sampled ``resample`` times. The sampler plans each descent after
    a jump anew. The paper has 250 steps of the ancestral sampler.

    Values of ``known`` between 0 and 1 are a soft mask: where it is 1 - s, the image is replaced down to level s T, and
    the network is free below, so that s is the strength of `image_to_image` for each value.

    Of an autoencoder's latents those are replaced that stand for known values alone. In the result the known values are
    those of the image.

    Args:
        system: The system; it needs no training for this.
        image: (C, *S) for all, or (n, C, *S), in [-1, 1]; values of its unknown part have no effect, and may be NaN.
        known: The mask: 1 or True where the image is known, 0 where it is not, or how much of it stays, from 0 to 1;
            (*S), (C, *S), (n, 1, *S) or (n, C, *S).
        n: Number of examples; by default as many as there are images.
        resample: Number of times that each stretch is sampled; 1 does not go back. 10 is the paper's.
        jump: Length of a stretch, in levels of the table in use; 10 is the paper's.
        batch_size, progress: As in `System.sample`.
        options: Those of `diffkit.system.call_options.JobOptions`.
        conditions: As in `System.sample`.
    Raises:
        OptionError: A shape does not fit, or an option is wrong or has no effect.
    Source: Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1 and section 4.2; replacement alone: Song et al. 2021,
        arXiv:2011.13456, appendix I.2. Soft masks: Levin & Fried 2023, arXiv:2306.00950, algorithm 1.
    """
    resample, jump = check_integer("resample", resample, ge=1), check_integer("jump", jump, ge=1)
    image, mask = image_and_mask(system, image, known, n)
    latent_mask = _latent_mask(system, mask)
    job = system.prepare(len(image), **options)
    if route_of(job.parts.sampler, job.table) is not None:
        label = job.parts.label("sampler")
        raise OptionError(f"{label} has an order of levels of its own, which inpainting changes; use another sampler")
    moves = repaint_moves(job.table.num_steps, resample, jump)
    runs = find_descents(moves)
    program, first_step = job.restarting_program(runs), _first_steps(runs)
    batches = job.batches(batch_size)
    total = len(batches) * sum(goes_to < comes_from for comes_from, goes_to in moves)
    out = list[Tensor]()
    with job.running(f"inpainting {job.n}", total, progress) as advance:
        for rows in batches:
            part = slice(rows.start, rows.stop)
            z = to_latents(system.parts, image[part])
            painting = _InpaintingBatch(job, program, rows, z, latent_mask[part])
            out.append(job.from_latents(painting.follow(moves, first_step, advance)))
    return torch.where(mask >= 1, image, torch.cat(out))


def _latent_mask(system: System, mask: Tensor) -> Tensor:
    """Return how much of each latent is known, (n, C, *S): as much as of every value of data that it stands for."""
    codec, shape = system.parts.codec, system.parts.data_shape
    if codec is None or codec.elementwise:
        return mask
    with_dps = "call diffkit.tasks.solve with method=('dps', {'operator': diffkit.tasks.masked(known)})"
    if not codec.spatial:
        raise OptionError(f"{system.parts.label('codec')} mixes known and unknown values in latents; {with_dps}")
    unknown = _POOLS[len(shape) - 2](1 - mask.amin(1, keepdim=True), shape[1:])
    if bool((mask > 0).any()) and bool((unknown == 1).all()):
        raise OptionError(f"no latent is known, as known values are fewer than one stands for; {with_dps}")
    return (1 - unknown).expand(-1, *shape)


def repaint_moves(num_steps: int, resample: int, jump: int) -> list[Move]:
    """Return RePaint's moves for inpainting, over levels num_steps..0.

    Raises:
        OptionError: There are too few levels for a single jump.
    """
    if resample > 1 and num_steps == 1:
        raise OptionError(
            "needs levels to go back over, and there is 1 step", option="resample", value=resample, fix={"resample": 1}
        )
    if resample > 1 and jump >= num_steps:
        raise OptionError(
            f"does not fit {num_steps} steps",
            option="jump",
            value=jump,
            fix=[{"jump": num_steps // 2}, {"resample": 1}],
        )
    left = dict.fromkeys(range(0, num_steps - jump, jump), resample - 1)
    moves, level = [], num_steps
    while level:
        moves.append((level, level - 1))
        level -= 1
        if left.get(level):
            left[level] -= 1
            moves.append((level, level + jump))
            level += jump
    return moves


def find_descents(moves: list[Move]) -> dict[int, int]:
    """Return the descents among RePaint's moves: for each level where one starts, the lowest level that it reaches."""
    runs: dict[int, int] = {}
    top = moves[0][0]
    for comes_from, goes_to in moves:
        if goes_to > comes_from:
            top = goes_to
        else:
            runs[top] = min(goes_to, runs.get(top, goes_to))
    return runs


def _first_steps(runs: Mapping[int, int]) -> dict[int, int]:
    """Return the index of the first step of each descent among the steps of all descents."""
    lengths = [top - bottom for top, bottom in runs.items()]
    return dict(zip(runs, itertools.accumulate(lengths, initial=0), strict=False))


class _InpaintingBatch:
    """One batch of inpainting while it is sampled; a value is replaced at levels where ``least`` of it is known."""

    def __init__(self, job: SamplingJob, program: Program, rows: range, image: Tensor, mask: Tensor):
        self.table, self.program = job.table, program
        self.least = (1 - job.table.index / job.parts.table.num_steps).tolist()
        self.denoisers = job.denoisers(program, rows)
        self.noise_fn, self.image, self.mask = job.noise(rows), image, mask
        self.x = job.begin(rows, self.noise_fn)
        self.step_fn = job.step_fn(program, job.denoiser(rows), self.x)

    def follow(self, moves: list[Move], first_step: Mapping[int, int], advance: Callable[[int], None]) -> Tensor:
        """Make RePaint's moves down to level 0; ``first_step`` has the program index of each descent's first step."""
        program = self.program
        x: Tensor = self.x
        steps = program.rows(x, self.noise_fn)
        i, state = 0, program.sampler.init(x)
        for comes_from, goes_to in moves:
            if goes_to > comes_from:
                x = add_noise(self.table, x, comes_from, goes_to, self.noise_fn())
                i, state = first_step[goes_to], program.sampler.init(x)
                continue
            noise = program.noise(self.noise_fn)
            denoiser = self.denoisers[i] if isinstance(self.denoisers, list) else self.denoisers
            x, state, _ = self.step_fn(program, denoiser, x, state, steps[i], noise, program.is_last(i))
            x = torch.where(self.mask >= self.least[goes_to], self._noisy_known_part(goes_to), x)
            i += 1
            advance(1)
        return x

    def _noisy_known_part(self, level: int) -> Tensor:
        """Return the known image with noise of a level."""
        if not level:
            return self.image
        alpha, sigma = float(self.table.alpha[level]), float(self.table.sigma[level])
        return self.image.mul(alpha).add(self.noise_fn(), alpha=sigma)


def add_noise(table: ProcessTable, x: Tensor, low: int, high: int, noise: Tensor) -> Tensor:
    """Return a draw from ``q(x_high | x_low)``, (B, C, *S).

    Args:
        table: The table in use.
        x: Data at level ``low``.
        low, high: Two levels, low < high.
        noise: Standard normal, like x.
    """
    grow, std = Steps(table.at(slice(high, high + 1)), table.at(slice(low, low + 1))).noising()
    return x.mul(float(grow[0])).add(noise, alpha=float(std[0]))
