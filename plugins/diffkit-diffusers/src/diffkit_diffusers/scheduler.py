"""Any diffkit sampler as a scheduler of diffusers, so that existing pipelines use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import attrs
import numpy as np
import torch
from attrs import define, frozen
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

import diffkit
from diffkit import OptionError
from diffkit.protocols import Level, Prediction, State
from diffkit.registry.resolve import Slot
from diffkit.system.call_parts import parts_for
from diffkit.system.sampling import Program, sampling_program

SPACINGS = ("even", "leading", "trailing", "linspace")


class DiffkitSchedulerOutput(NamedTuple):
    """What `DiffkitScheduler.step` returns.

    Attributes:
        prev_sample: What the network is to be asked about next; after the last evaluation, the sample.
        pred_original_sample: The estimate of clean data of this evaluation.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


class _Asked(Exception):  # noqa: N818  it is no error
    """A step wants the network's answer at a point."""

    def __init__(self, x: Tensor):
        self.x = x


@frozen
class _Evaluation:
    """One call of the network in the course of sampling.

    Attributes:
        step: Which step it belongs to.
        first: True for the first of its step.
        at_x: True if it is asked where the step starts, False if at a point that the step computes.
        time: What the network is conditioned on.
        c_in: What its input is multiplied with.
    """

    step: int
    first: bool
    at_x: bool
    time: float
    c_in: float


@define(eq=False)
class _Progress:
    """Where a chain is: everything that changes from call to call.

    Attributes:
        step: Index of the step that is under way.
        x: Data where that step starts, float32.
        state: The sampler's.
        noise: This step's.
        answers: What the network has said so far in this step.
    """

    step: int
    x: Tensor
    state: State
    noise: Tensor | None
    answers: list[Tensor]


class DiffkitScheduler(SchedulerMixin, ConfigMixin):
    """A diffkit sampler and what it needs to know of the model, driven by a pipeline of diffusers.

        pipeline.scheduler = DiffkitScheduler.from_system(system, sampler="dpmpp_2m", timestep_spacing="trailing")

    A pipeline asks the network once per timestep and hands the answer to `step`; a sampler calls the network itself,
    any number of times. The two meet by repetition: `step` runs the sampler's step with the answers so far until it
    asks for one more, and returns the point it asks about. Steps are pure, so this is exact, and nothing is computed
    twice but the arithmetic of one step. A sampler with two evaluations a step has two timesteps for each.

    Nothing is read back from the device. The state of a chain begins anew with `set_timesteps`.

    Args:
        spec: What ``system.spec()`` returns, without the backbone.
        timestep_spacing: Which levels n steps visit: "leading", "trailing" or "linspace" as in diffusers, or "even",
            improved-diffusion's way.
    """

    order = 1

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, spec: dict[str, Any] | None = None, timestep_spacing: str = "even"):
        if spec is None:
            raise OptionError("a DiffkitScheduler is made with DiffkitScheduler.from_system")
        if timestep_spacing not in SPACINGS:
            raise OptionError(f"timestep_spacing must be one of {SPACINGS}, got {timestep_spacing!r}")
        self.system = diffkit.from_spec(spec)
        table = self.system.table
        self.num_inference_steps: int | None = None
        self.init_noise_sigma = float(table.total_std[-1])
        self.timesteps = _as_timesteps(table.time[:0:-1].tolist(), None)
        self._program: Program | None = None
        self._evaluations: tuple[_Evaluation, ...] = ()
        self._begin = 0
        self._position = 0
        self._progress: _Progress | None = None

    @classmethod
    def from_system(
        cls, system: diffkit.System, *, sampler: Slot = None, timestep_spacing: str = "even"
    ) -> DiffkitScheduler:
        """Return the scheduler of a system.

        Args:
            system: Its schedule, mean, variance and clipping are what the model was trained with.
            sampler: Name, (name, options) or instance; the composed one by default.
            timestep_spacing: See the class.
        """
        parts = parts_for(system.parts, sampler)
        slots = {kind: getattr(parts, kind) for kind in ("schedule", "mean", "var", "loss", "timesteps", "sampler")}
        settings = attrs.asdict(system.settings, recurse=False) | {"time_argument": None}
        alone = diffkit.compose(**slots, **settings, backbone=None)
        scheduler: DiffkitScheduler = cls(alone.spec(), timestep_spacing)
        return scheduler

    # ---- what pipelines call ----------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Begin a new chain.

        Args:
            num_inference_steps: How many steps.
            device: Where `timesteps` is put.
            timesteps: The times to step from, descending, in place of num_inference_steps; the nearest levels are
                taken.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise OptionError("exactly one of num_inference_steps and timesteps must be given")
        if timesteps is not None:
            levels = self._levels_at(torch.as_tensor(timesteps)).flip(0).tolist()
            table = self.system.table_for(levels)
        else:
            spacing = self.config.timestep_spacing
            table = self.system.table_for(
                num_inference_steps if spacing == "even" else f"{spacing}{num_inference_steps}"
            )
        parts = self.system.parts
        self._program = sampling_program(parts, parts.sampler, table)
        self._evaluations = self._rehearse(self._program)
        self.num_inference_steps = self._program.num_steps
        self.timesteps = _as_timesteps([e.time for e in self._evaluations], device)
        self._begin = self._position = 0
        self._progress = None

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at a later timestep, as image-to-image pipelines do; it must be the first of a step."""
        if not 0 <= begin_index < len(self._evaluations) or not self._evaluations[begin_index].first:
            raise OptionError(f"begin_index {begin_index} is not where a step starts")
        self._begin = self._position = begin_index

    @property
    def begin_index(self) -> int:
        """Index of the timestep that the chain starts at."""
        return self._begin

    @property
    def step_index(self) -> int:
        """Index of the timestep that the next call of `step` answers."""
        return self._position

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return what the network is to be given for a sample: c_in times it, of the sample's dtype."""
        if not self.system.objective.scales_input:
            return sample
        return sample * self._evaluation().c_in

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DiffkitSchedulerOutput | tuple[Tensor, ...]:
        """Take in the network's answer, and return the point it is to be asked about next.

        Args:
            model_output: What the network said, (B, C * (1 + extra_outputs), *S).
            timestep: Not read: timesteps are visited in their order, from the one given to `set_begin_index`.
            sample: What it was asked about, (B, C, *S), before `scale_model_input`.
            generator: Source of the noise of stochastic samplers.
            return_dict: False returns a tuple of the new sample.
        """
        evaluation, program = self._evaluation(), self._require_program()
        x = sample.float()
        if self._progress is None:
            if not evaluation.at_x:
                raise OptionError(
                    f"sampler {self.system.parts.names['sampler']!r} changes its sample before it first asks the "
                    "network, which a pipeline cannot do"
                )
            state = program.sampler.init(x)
            self._progress = _Progress(evaluation.step, x, state, self._noise(x, generator), [])
        progress = self._progress
        if evaluation.first and evaluation.at_x:
            progress.x = x  # a pipeline may have changed it, for inpainting say
        progress.answers.append(model_output.float())
        asked, estimate = self._advance(program, progress)
        if asked is None and progress.step < program.num_steps:
            progress.noise = self._noise(x, generator)
            asked, _ = self._advance(program, progress)
        self._position += 1
        result = (progress.x if asked is None else asked).to(sample.dtype)
        return DiffkitSchedulerOutput(result, estimate.to(sample.dtype)) if return_dict else (result,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return ``alpha original_samples + sigma noise`` at the levels nearest to timesteps, (B,)."""
        table, levels = self.system.table, self._levels_at(timesteps)
        alpha, sigma = (
            torch.as_tensor(c.copy(), dtype=original_samples.dtype)
            .to(original_samples.device)[levels.to(original_samples.device)]
            .view(-1, *(1,) * (original_samples.ndim - 1))
            for c in (table.alpha, table.sigma)
        )
        return alpha * original_samples + sigma * noise

    def __len__(self) -> int:
        """Return the number of levels the model was trained with."""
        return self.system.num_steps

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _advance(self, program: Program, progress: _Progress) -> tuple[Tensor | None, Tensor]:
        """Run the step under way with the answers so far; return the point it asks about, or None if it is done."""
        found: list[Prediction] = []

        def denoise(x: Tensor, level: Level, to: Level | None = None) -> Prediction:
            if len(found) == len(progress.answers):
                raise _Asked(x)
            answer = progress.answers[len(found)]
            found.append(self.system.denoiser(lambda x, time: answer)(x, level))
            return found[-1]

        row = program.columns.on(progress.x.device, progress.x.dtype)[progress.step]
        last = program.is_last(progress.step)
        with torch.no_grad():
            try:
                x, state = program.step(denoise, progress.x, progress.state, row, progress.noise, last)
            except _Asked as asked:
                return asked.x, found[-1].x_start if found else asked.x
        progress.x, progress.state, progress.answers = x, state, []
        progress.step += 1
        return None, found[-1].x_start

    def _rehearse(self, program: Program) -> tuple[_Evaluation, ...]:
        """Run all steps on a few numbers on the CPU, to see at which levels the network will be asked."""
        found: list[_Evaluation] = []
        parts = self.system.parts
        channels = self.system.parts.data_shape[0]
        generator = torch.Generator().manual_seed(0)
        shape = (1, channels, *(1,) * (len(self.system.parts.data_shape) - 1))
        x = torch.randn(shape, dtype=torch.float64, generator=generator)
        answer = x.new_zeros(1, channels * (1 + parts.var.extra_outputs), *shape[2:])
        denoiser = self.system.denoiser(lambda x, time: answer)
        with torch.no_grad():
            state = program.sampler.init(x)
            for i, row in enumerate(program.columns.on(x.device, x.dtype)):
                start, count = x, len(found)

                def denoise(
                    x: Tensor, level: Level, to: Level | None = None, i: int = i, start: Tensor = start, n: int = count
                ) -> Prediction:
                    first = len(found) == n
                    found.append(_Evaluation(i, first, torch.equal(x, start), float(level.time), float(level.c_in)))
                    return denoiser(x, level)

                noise = torch.randn(shape, dtype=x.dtype, generator=generator) if program.sampler.stochastic else None
                x, state = program.step(denoise, x, state, row, noise, program.is_last(i))
                if len(found) == count:
                    raise OptionError(f"sampler {parts.names['sampler']!r} has a step that does not ask the network")
        return tuple(found)

    def _evaluation(self) -> _Evaluation:
        self._require_program()
        if self._position >= len(self._evaluations):
            raise OptionError("every timestep has been answered; call set_timesteps to begin a new chain")
        return self._evaluations[self._position]

    def _require_program(self) -> Program:
        if self._program is None:
            raise OptionError("call set_timesteps before step")
        return self._program

    def _noise(self, x: Tensor, generator: Any) -> Tensor | None:
        if not self.system.parts.sampler.stochastic:
            return None
        noise: Tensor = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return noise

    def _levels_at(self, timesteps: Tensor) -> Tensor:
        """Levels whose times are nearest to the given ones, int64 of their shape."""
        times = self.system.table.time[1:]
        between = torch.from_numpy((times[1:] + times[:-1]) / 2).to(timesteps.device)
        return torch.bucketize(timesteps.double(), between) + 1


def _as_timesteps(times: list[float], device: Any) -> Tensor:
    """Times as diffusers has them: integers if they all are, else float32."""
    whole = bool(np.all(np.equal(np.round(times), times)))
    return torch.tensor(times, dtype=torch.int64 if whole else torch.float32, device=device)
