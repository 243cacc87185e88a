"""A prepared sampling job: all arguments are resolved and validated before any work."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import attrs
import numpy as np
import torch
from attrs import frozen
from torch import Tensor, nn

from diffkit.errors import OptionError
from diffkit.options import check_integer
from diffkit.protocols import Composition, Guidance, Model
from diffkit.runtime.eval_mode import eval_mode, eval_mode_of, modules_of
from diffkit.runtime.finite import examples_hold, rows_not_finite
from diffkit.runtime.progress import progress as show_progress
from diffkit.system.cache import MOST_CACHED_STEPS, SystemCache, has_value
from diffkit.system.call_options import Transform
from diffkit.system.compiling import Compile, compiled
from diffkit.system.conditions import as_tensor, rows_of
from diffkit.system.denoiser import Denoiser, as_float, reads_unclipped
from diffkit.system.guidance import inactive_at, networks_of
from diffkit.system.objective import Objective
from diffkit.system.points import check_point, placed
from diffkit.system.randomness import NoiseFn, Seed, noise_for
from diffkit.system.sampling import (
    Program,
    StepFn,
    TrajectoryPoint,
    encoding_program,
    restarting_program,
    sampling_program,
    step_with_denoised,
    take_step,
)
from diffkit.table import Coefs, ProcessTable, with_first_level

PROGRAMS: SystemCache[Program] = SystemCache(8)
"""For a small network, making a program takes as long as some of its steps."""


@frozen(eq=False)
class SamplingJob:
    """A sampling loop that is ready to run; made by `System.prepare`, used by the system and by tasks.

    Attributes:
        system: Key of the caches of programs and graphs; in eval mode while the job runs.
        objective: The system's; holds the decoder and whether the network's input is scaled.
        device: Device of the steps.
        n: Number of examples.
        table: The table in use.
        parts: The composition, with this call's sampler and guidance.
        seed: As in `System.sample`.
        model: The network.
        clip: Clip the estimate of x_start to [-1, 1].
        transform: Applied to the estimate of x_start before clipping, or None.
        conditions: Keywords for network and guidance, tensors on the system's device.
        from_latents: Makes data of what the steps end with: `System.from_latents`.
        compile, final: As in `System.sample`.
    """

    system: nn.Module
    objective: Objective
    device: torch.device
    n: int
    table: ProcessTable
    parts: Composition
    seed: Seed
    model: Model
    clip: bool
    transform: Transform | None
    conditions: Mapping[str, Any]
    from_latents: Callable[[Tensor], Tensor]
    compile: Compile = False
    final: str = "zero"

    def program(self) -> Program:
        """Return the sampling program, from level T down to level 0, or to level 1 (``final="sigma_min"``)."""
        last = 0 if self.final == "zero" else 1
        make = partial(sampling_program, self.parts, self.parts.sampler, self._table_of_steps(), last)
        return self._cached(("down", last), make)

    def restarting_program(self, runs: Mapping[int, int]) -> Program:
        """Return the program of several runs down the levels; see `diffkit.system.sampling.restarting_program`."""
        if self.final != "zero":
            raise OptionError("is for sampling from T down", option="final", value=self.final, fix=[{"final": "zero"}])
        make = partial(restarting_program, self.parts, self.parts.sampler, self.table, runs)
        return self._cached(("restarting", *runs.items()), make)

    def encoding_program(self, *, past_end: bool = False, time_of: str = "start") -> Program:
        """Return the encoding program, from level 1 up to level T, or one step beyond."""
        how = past_end, time_of
        make = partial(encoding_program, self.parts, self.parts.sampler, self._table_of_steps(), *how)
        return self._cached(("up", self.final, *how), make)

    def _table_of_steps(self) -> ProcessTable:
        """The table in use; with level 1, if steps end there."""
        return self.table if self.final == "zero" else with_first_level(self.table, self.parts.table)

    def _cached(self, kind: Hashable, make: Callable[[], Program]) -> Program:
        """What ``make()`` returns, or returned for the same sampler and an equal table before.

        Not cached: long programs, programs with guidance, whose columns depend on more, and programs for fake tensors.
        """
        if self.parts.guidance or type(torch.empty(0)) is not Tensor or not has_value(self.parts.sampler):
            return make()
        key = (kind, self.parts.sampler, self.table)
        return PROGRAMS.get(self.system, key, make, lambda program: program.num_steps <= MOST_CACHED_STEPS)

    def batches(self, batch_size: int | None = None) -> list[range]:
        """Return the examples' indices, ``batch_size`` at a time; all at once by default."""
        size = self.n if batch_size is None else check_integer("batch_size", batch_size, ge=1)
        return [range(i, min(i + size, self.n)) for i in range(0, self.n, size)]

    def denoiser(self, rows: range | Tensor | None = None) -> Denoiser:
        """Return the network and its processing for some of the examples; all by default."""
        conditions = self.conditions if rows is None else rows_of(self.conditions, rows)
        scales = self.objective.scales_input
        parts, transform = self.parts, self.transform
        return Denoiser(
            self.model,
            parts.var,
            scales,
            conditions,
            transform,
            self.clip,
            parts.guidance,
            times=parts.times,
            keeps_unclipped=reads_unclipped(parts.sampler),
        )

    def denoisers(self, program: Program, rows: range | None = None) -> Denoiser | list[Denoiser]:
        """Return a denoiser for each step of a program, without the guidance that is inactive in that step.

        Steps in which the same guidance acts share one.
        """
        whole = self.denoiser(rows)
        if not whole.guidance:
            return whole
        acting = _acting(program, whole.guidance)
        if all(all(each) for each in acting):
            return whole
        found = {each: attrs.evolve(whole, acting=each) for each in set(acting)}
        return [found[each] for each in acting]

    def step_fn(self, program: Program, denoiser: Denoiser, x: Tensor, *, with_denoised: bool = False) -> StepFn:
        """Return the step function, compiled if the job has ``compile``.

        Args:
            program, denoiser, x: Its later arguments.
            with_denoised: Return the estimate of x_start as well.
        """
        step_fn = step_with_denoised if with_denoised else take_step
        return compiled(self.system, step_fn, self.compile, program, denoiser, x) if self.compile else step_fn

    def finish(
        self, program: Program, rows: range, x: Tensor, noise_fn: NoiseFn | None, advance: Callable[[int], None]
    ) -> Tensor:
        """Run a program from x to its end for some of the examples; see `Program.finish`."""
        step_fn = self.step_fn(program, self.denoiser(rows), x) if self.compile else None
        return program.finish(self.denoisers(program, rows), x, noise_fn, advance, step_fn)

    def noise(self, rows: range) -> NoiseFn:
        """Return the noise function of some of the examples."""
        return noise_for(self.seed, rows, self.parts.data_shape, self.device)

    def checked_start(self, start: Any) -> Tensor | None:
        """Return ``start`` as a tensor with a row for each example, or None if it is None.

        Raises:
            OptionError: It is not a tensor or array, has another shape, or is not finite.
        """
        if start is None:
            return None
        found, shape = as_tensor("start", start), (self.n, *self.parts.data_shape)
        if found.shape != shape:
            raise OptionError(f"start must have shape {shape}, got {tuple(found.shape)}")
        if found.device.type == "cpu" and (rows := rows_not_finite(found.detach())):
            raise OptionError(f"start is not finite: {examples_hold(rows)}")
        return found

    def checked_point(self, point: Any, program: Program) -> TrajectoryPoint:
        """Return a point of this job's program on its device; see `diffkit.system.points.check_point`."""
        check_point(point, program, (self.n, *self.parts.data_shape))
        return placed(point, self.device)

    def begin(self, rows: range, noise_fn: NoiseFn, start: Tensor | None = None) -> Tensor:
        """Return data at level T: noise, or the examples' share of ``start``, (n, C, *S).

        The noise is drawn even if a start is given, so that the steps' noise is the same either way.
        """
        noise = noise_fn() * float(self.table.total_std[-1])
        return noise if start is None else as_float(start[rows.start : rows.stop].to(self.device))

    def points(self, start: Tensor | None = None, after: TrajectoryPoint | None = None) -> Iterator[TrajectoryPoint]:
        """Yield a `TrajectoryPoint` after every step of one batch; networks are in eval mode within steps only.

        Args:
            start: Data at level T; noise by default.
            after: The point to go on from.
        """
        rows = range(self.n)
        noise_fn = self.noise(rows)
        x = self.begin(rows, noise_fn, start)
        program = self.program()
        step_fn = self.step_fn(program, self.denoiser(rows), x, with_denoised=True)
        after = None if after is None else self.checked_point(after, program)
        steps = program.run(self.denoisers(program, rows), x, noise_fn, step_fn, after)
        modules = modules_of(self.system, *self.networks())
        while True:
            with eval_mode_of(modules):
                point = next(steps, None)
            if point is None:
                return
            yield point

    @contextmanager
    def running(self, label: str, total: int, progress: bool) -> Iterator[Callable[[int], None]]:
        """Show progress, with networks in eval mode; yields a function that takes the number of finished steps."""
        with eval_mode(self.system, *self.networks()), show_progress(total, label, progress) as advance:
            yield advance

    def networks(self) -> tuple[nn.Module, ...]:
        """Networks of the guidance."""
        return networks_of(self.parts.guidance)


def _acting(program: Program, guidance: tuple[Guidance, ...]) -> list[tuple[bool, ...]]:
    """For each step, whether each guidance is active at one of its levels or more."""
    blocks = [block for name, block in program.columns.blocks.items() if name != "coef"]
    levels = [Coefs(block["alpha"], block["sigma"], block["log_snr"]) for block in blocks]
    inactive = [np.all([inactive_at(one, at) for at in levels], axis=0) for one in guidance]
    return [tuple(not off[i] for off in inactive) for i in range(program.num_steps)]
