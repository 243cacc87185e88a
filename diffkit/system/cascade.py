"""A cascade: a base system, and upsamplers each of which enlarges the samples of the stage before.

    cascade = Cascade([base, up], noise=0.1)
    large = cascade.sample(16, seed=0, y=3)
    cascade.save("systems/cascade")

Source: Ho et al. 2021, arXiv:2106.15282.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from attrs import frozen
from torch import Tensor, nn

from diffkit._version import __version__
from diffkit.errors import CheckpointError, CompositionError, OptionError
from diffkit.options import check_integer, check_number
from diffkit.runtime.files import write_through
from diffkit.runtime.finite import check_finite
from diffkit.runtime.progress import bar
from diffkit.runtime.publishing import new_folder
from diffkit.runtime.run_layout import SPEC, is_run
from diffkit.runtime.strict_json import readable_json, reason
from diffkit.system.call_options import SampleOptions, options_in
from diffkit.system.checks import checked_count
from diffkit.system.low_res import LOW_RES, LOW_RES_LEVEL, with_noise
from diffkit.system.module import System
from diffkit.system.prepared import SamplingJob
from diffkit.system.randomness import Purpose, Seed, checked_seed, key, noise_for
from diffkit.system.saving import FORMAT

_OF_THE_CALL = ("seed", "progress", "start", "model")
"""Options of `System.sample` that a stage of a cascade does not take."""


class Cascade(nn.Module):
    """A base system and upsamplers, sampled, saved and moved as one.

    Attributes:
        stages: The systems, the base first; each reads the samples of the one before as its condition ``low_res``.
        noise: For each upsampler, the level of noise on its small images, from 0 to 1; see `with_noise`.
    """

    def __init__(self, stages: Sequence[System], *, noise: float | Sequence[float] = 0.0):
        """Check that each stage can enlarge what the one before makes.

        Raises:
            CompositionError: They do not fit each other; every problem is listed.
            OptionError: There is not one stage after the base, or not one level of noise for each of these.
        """
        super().__init__()
        _check_stages(stages)
        self.stages = nn.ModuleList(stages)
        self.noise = _levels(noise, len(stages) - 1)

    @property
    def systems(self) -> tuple[System, ...]:
        """The stages, the base first."""
        return cast("tuple[System, ...]", tuple(self.stages))

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one sample, (C, *S)."""
        return self.systems[-1].data_shape

    @property
    def device(self) -> torch.device:
        """Device of the last stage."""
        return self.systems[-1].device

    def extra_repr(self) -> str:
        """Show the sizes and the noise."""
        return f"{' -> '.join(str(system.data_shape) for system in self.systems)}, noise={self.noise}"

    def sample(self, n: int, **options: Any) -> Tensor:
        """Return n samples of the last stage, (n, C, *S); arguments as in `each_stage`."""
        for made in self.each_stage(n, **options):
            last = made
        return last

    def each_stage(
        self,
        n: int,
        *,
        seed: Seed = None,
        batch_size: int | None = None,
        stages: Sequence[Mapping[str, Any]] | None = None,
        progress: bool = True,
        **conditions: Any,
    ) -> Iterator[Tensor]:
        """Yield the n samples of every stage as soon as they are made, the smallest first.

        Everything is checked when this is called, before any work.

        Args:
            n: Number of samples.
            seed: Makes sample i of each stage a function of (seed, i), independent of the batch size; those of the base
                are its own, ``base.sample(n, seed=seed)``. A list has one for each sample.
            batch_size: Number of samples made at a time, of stages without one of their own; all at once by default.
            stages: Options of `System.sample`, and conditions, for each stage, besides seed and progress:
                ``stages=[{"steps": 100}, {"steps": 20, "batch_size": 4}]``. By default the system's own.
            progress: Show a bar with an ETA on standard error.
            conditions: As in `System.sample`; each goes to every stage, labels ``y`` only to those with classes.
        Raises:
            OptionError, CompositionError: An argument is wrong for some stage.
            DivergedError: No sample of a stage is finite, checked on the CPU only.
        """
        job = self.prepare(n, seed=seed, batch_size=batch_size, stages=stages, **conditions)
        return job.run_with_progress(progress)

    def prepare(
        self,
        n: int,
        *,
        seed: Seed = None,
        batch_size: int | None = None,
        stages: Sequence[Mapping[str, Any]] | None = None,
        **conditions: Any,
    ) -> CascadeJob:
        """Resolve and validate the arguments of `each_stage` without running a network."""
        n = checked_count(n, self.data_shape)
        calls = _calls(self.systems, batch_size, stages, conditions)
        job = CascadeJob(self, n, checked_seed(seed, n), calls)
        job.check()
        return job

    def save(self, folder: str | Path) -> Path:
        """Write every stage into one folder, for `diffkit.load`; it must not hold a training run.

        Raises:
            OptionError: The folder holds a training run.
            CheckpointError: The folder cannot be written.
        """
        folder = Path(folder)
        if is_run(folder):
            raise OptionError(f"folder {str(folder)!r} holds a training run; save into another folder")
        names = [f"stage{i}" for i in range(1, len(self.systems) + 1)]
        record = {"stages": names, "noise": list(self.noise)}
        try:
            with new_folder(folder) as work:
                for name, system in zip(names, self.systems, strict=True):
                    system.save(work / name)
                content = readable_json({"format": FORMAT, "diffkit": __version__, "cascade": record})
                write_through(work / SPEC, content.encode())
        except OSError as error:
            raise CheckpointError(f"cannot write {folder}: {reason(error)}") from error
        return folder


@frozen(eq=False)
class CascadeJob:
    """A prepared sampling job of a cascade; made by `Cascade.prepare`.

    Attributes:
        cascade: The cascade.
        n: Number of samples.
        seed: As in `Cascade.each_stage`.
        calls: Options and conditions of each stage, without its small images.
    """

    cascade: Cascade
    n: int
    seed: Seed
    calls: tuple[Mapping[str, Any], ...]

    def check(self) -> None:
        """Raise `OptionError` or `CompositionError` if a stage refuses its options or conditions."""
        for number in range(len(self.calls)):
            try:
                self._job(number, self._small_zeros(number))
            except (OptionError, CompositionError) as error:
                raise type(error)(f"stage {number + 1}: {error}") from error

    @property
    def num_steps(self) -> int:
        """Steps of all stages and batches."""
        return sum(map(self._count_steps, range(len(self.calls))))

    def run(self, advance: Callable[[int], None], first: int = 0) -> Iterator[Tensor]:
        """Yield the samples of every stage.

        Args:
            advance: Called with the number of finished steps.
            first: Index of the first sample, of which its noise is a function.
        """
        samples: Tensor | None = None
        for number in range(len(self.calls)):
            given = {} if samples is None else self._small(number, samples, first)
            job, seed, out = self._job(number, given), _seed_of(self.seed, number), []
            program = job.program()
            with job.running("", 0, False):
                for rows in job.batches(self.calls[number]["batch_size"]):
                    places = range(first + rows.start, first + rows.stop)
                    noise_fn = noise_for(seed, places, job.parts.data_shape, job.device)
                    z = job.finish(program, rows, job.begin(rows, noise_fn), noise_fn, advance)
                    out.append(job.from_latents(z))
            samples = torch.cat(out)
            if samples.device.type == "cpu":
                check_finite(samples, first)
            yield samples

    def run_with_progress(self, show: bool) -> Iterator[Tensor]:
        """Yield the samples of every stage, with a bar on standard error."""
        count = len(self.calls)
        with bar(self.num_steps, f"sampling {self.n} in {count} stages", show) as shown:
            shown.note(f"stage 1 of {count}")
            for number, samples in enumerate(self.run(shown.advance), start=1):
                if number < count:
                    shown.note(f"stage {number + 1} of {count}")
                yield samples

    def base(self) -> SamplingJob:
        """Return the job of the first stage."""
        return self._job(0, {})

    def _count_steps(self, number: int) -> int:
        job = self._job(number, self._small_zeros(number))
        return len(job.batches(self.calls[number]["batch_size"])) * job.program().num_steps

    def _job(self, number: int, small: Mapping[str, Any]) -> SamplingJob:
        call = {name: value for name, value in self.calls[number].items() if name != "batch_size"}
        return self.cascade.systems[number].prepare(self.n, **call, **small)

    def _small_zeros(self, number: int) -> dict[str, Any]:
        """Conditions in the form of those of a stage, to check it with."""
        if not number:
            return {}
        before = self.cascade.systems[number - 1].data_shape
        level = self._level(number)
        return {LOW_RES: torch.zeros(1, *before).expand(self.n, *before), **level}

    def _small(self, number: int, samples: Tensor, first: int) -> dict[str, Any]:
        """The small images of a stage: samples of the one before, with noise; and its level where that is read."""
        before, level = self.cascade.systems[number - 1], self.cascade.noise[number - 1]
        small = samples.clamp(-1, 1) if before.bounded else samples
        if level > 0:
            seed, places = _seed_of(self.seed, number, 1), range(first, first + self.n)
            small = with_noise(small, level, noise_for(seed, places, before.data_shape, small.device)())
        return {LOW_RES: small, **self._level(number)}

    def _level(self, number: int) -> dict[str, Any]:
        if not self.cascade.systems[number].parts.reads_low_res_level:
            return {}
        return {LOW_RES_LEVEL: torch.full((self.n,), self.cascade.noise[number - 1])}


def _seed_of(seed: Seed, *place: int) -> Seed:
    """The seed of a stage, (number,), or of the noise on its small images, (number, 1); the base has the call's own."""
    if seed is None or place == (0,):
        return seed
    if isinstance(seed, int):
        return key(seed, Purpose.STAGE, *place) >> 1
    return tuple(key(one, Purpose.STAGE, *place) >> 1 for one in seed)


# ---- checks ----------------------------------------------------------------------------------------------------------


def _check_stages(stages: Any) -> None:
    if isinstance(stages, System) or not isinstance(stages, Sequence) or len(stages) < 2:
        raise OptionError("a cascade needs a list of systems, a base and one upsampler or more: Cascade([base, up])")
    problems = []
    for number, system in enumerate(stages, start=1):
        if not isinstance(system, System):
            shown = f"; diffkit.load({str(system)!r}) reads one" if isinstance(system, str | Path) else ""
            raise OptionError(f"stage {number} must be a system, got a {type(system).__name__}{shown}")
        if system.network is None:
            problems.append(f"stage {number} was composed with backbone=None; give it a network")
    if stages[0].parts.condition_channels:
        problems.append(
            "stage 1 reads low_res, so it enlarges images and cannot be the base; put the system that makes the "
            "smallest ones first"
        )
    for number, (before, after) in enumerate(pairwise(stages), start=2):
        problems += _misfits(number, before, after)
    if problems:
        raise CompositionError("\n  ".join(["these stages make no cascade:", *problems]))


def _misfits(number: int, before: System, after: System) -> Iterator[str]:
    """Yield why a stage cannot enlarge what the one before makes."""
    small, large, channels = before.data_shape, after.data_shape, after.parts.condition_channels
    if len(small) != len(large):
        yield f"stage {number} makes data of shape {large}, the one before of {small}; the axes must be the same"
    elif small[1:] == large[1:] or any(s > t for s, t in zip(small[1:], large[1:], strict=True)):
        yield f"stage {number} makes {large[1:]} out of {small[1:]}, which is not larger; order the stages by size"
    if after.parts.backbone is None:  # the channels of a network of the caller's own are unknown
        return
    if not channels:
        yield (
            f"stage {number} reads no low_res; build its backbone with low_res_channels={small[0]} and train it on "
            "diffkit.data.LowRes"
        )
    elif channels != small[0]:
        yield f"stage {number} reads {channels} channels of low_res, the stage before makes {small[0]}"


def _levels(noise: object, count: int) -> tuple[float, ...]:
    """A level of noise for each upsampler."""
    given = list(noise) if isinstance(noise, Sequence) and not isinstance(noise, str) else [noise] * count
    if len(given) != count:
        raise OptionError(f"noise must be one level, or one for each of {count} upsamplers, got {len(given)}")
    return tuple(check_number("noise", level, ge=0, le=1) for level in given)


def _calls(
    systems: Sequence[System],
    batch_size: int | None,
    stages: Sequence[Mapping[str, Any]] | None,
    conditions: Mapping[str, Any],
) -> tuple[Mapping[str, Any], ...]:
    """Options and conditions of each stage."""
    own = [{} for _ in systems] if stages is None else list(stages)
    if len(own) != len(systems) or not all(isinstance(each, Mapping) for each in own):
        raise OptionError(f"stages must be a list of {len(systems)} mappings of options, one for each stage")
    if misplaced := options_in(conditions, SampleOptions):
        name = next(iter(misplaced))
        raise OptionError(f"{name} is an option of a stage; pass stages=[{{{name!r}: ...}}, ...]")
    if "y" in conditions and not any(_takes_labels(system) for system in systems):
        raise OptionError("y was given, but no stage has classes; leave it out")
    calls = []
    for number, (system, options) in enumerate(zip(systems, own, strict=True), start=1):
        if wrong := [name for name in _OF_THE_CALL if name in options]:
            raise OptionError(f"stage {number} has no option {wrong[0]!r} of its own")
        size = options.get("batch_size", batch_size)
        call = dict(options) | {"batch_size": None if size is None else check_integer("batch_size", size, ge=1)}
        shared = {name: value for name, value in conditions.items() if name != "y" or _takes_labels(system)}
        calls.append(shared | call)
    return tuple(calls)


def _takes_labels(system: System) -> bool:
    """Whether labels are for a stage; of a network of the caller's own that is unknown."""
    return system.parts.classes is None or system.parts.classes > 0
