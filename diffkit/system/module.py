"""A composed diffusion system: it trains, samples and scores.

`System` is an `nn.Module` with the network, and the modules of parts that have weights, as submodules, so torch.compile
and `.to()` treat it like any other. Tables are not buffers: ``.half()`` and ``.to()`` do not change them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import attrs
import torch
from torch import Tensor, nn

from diffkit.errors import OptionError
from diffkit.options import check_callable, check_flag
from diffkit.protocols import Composition, Decoder, LearnedSchedule, Model, State, TimeSampler, UnclippedPrediction
from diffkit.registry.resolve import Slot
from diffkit.runtime.eval_mode import eval_mode
from diffkit.runtime.files import unwrap_module
from diffkit.runtime.finite import check_finite
from diffkit.runtime.output import log
from diffkit.spacing import Grid, Spacing, visited
from diffkit.system import codec
from diffkit.system.bound import Bound, BoundTerms, rows_at_a_time, variational_bound
from diffkit.system.cache import MOST_CACHED_STEPS, SystemCache
from diffkit.system.call_options import (
    SCORED,
    EncodeOptions,
    EstimateOptions,
    JobOptions,
    SampleOptions,
    Transform,
    conditions_in,
    shows_options,
)
from diffkit.system.call_parts import parts_for
from diffkit.system.chains import chain_of
from diffkit.system.checks import check_arguments, check_draws, check_tensors, checked_count, checked_data
from diffkit.system.coefficients import CoefficientTable, level_coefficients
from diffkit.system.compiling import check_compile
from diffkit.system.conditions import check_names, check_unused, conditions_for, mapped
from diffkit.system.coupling import for_network, on_cpu, pair_noise
from diffkit.system.denoiser import Denoiser, as_float, reads_unclipped
from diffkit.system.drawn_times import DrawnTimes
from diffkit.system.draws import random_draws, random_pairs, training_loss
from diffkit.system.guidance import (
    GuidanceSlot,
    check_guidance,
    networks_of,
    own_conditions,
    row_conditions,
    with_guidance,
)
from diffkit.system.interruption import sample_resumably
from diffkit.system.learned import FrozenModules, Trained, check_no_clash
from diffkit.system.loss_network import NetworkCall
from diffkit.system.objective import Objective
from diffkit.system.prepared import SamplingJob
from diffkit.system.randomness import NoiseFn, Seed, checked_seed
from diffkit.system.sampling import TrajectoryPoint, sampling_program
from diffkit.system.sampling_defaults import checked_final
from diffkit.system.saving import save, spec_of
from diffkit.system.sequences import with_prompts_alike
from diffkit.system.settings import Settings, bins_of, decoder_of
from diffkit.system.training_table import state_of, training_table
from diffkit.table import ProcessTable
from diffkit.tensors import device_of, ordinary

_TABLES: SystemCache[ProcessTable] = SystemCache(8)


class System(nn.Module):
    """A diffusion system of seven parts; made by `diffkit.compose`.

    Attributes:
        parts: The parts, and the training table; ``parts.backbone`` is the recipe that built the network.
        settings: Everything else it was composed with.
        network: The network, or None if every call has ``model=``; ``backbone`` is another name of it.
        learned: Modules of parts that have weights, by kind, trained with the network.
        frozen: Modules of parts that are not trained, by kind.
        decoder: Log-likelihood of data at level 1, of its latents if there is a codec.
    """

    def __init__(
        self,
        parts: Composition,
        settings: Settings,
        network: nn.Module | None,
        learned: Mapping[str, nn.Module] | None = None,
        frozen: Mapping[str, nn.Module] | None = None,
    ):
        super().__init__()
        check_no_clash(network, learned)
        self.parts = attrs.evolve(parts, codec_module=frozen["codec"]) if frozen and "codec" in frozen else parts
        self.settings = settings
        self.network = network
        self.learned = nn.ModuleDict(learned)
        self.frozen = FrozenModules(frozen)
        read_backbone(self)
        self.decoder: Decoder = decoder_of(settings)
        self.objective = Objective.of(parts, self.decoder, {**self.learned, **self.frozen})
        self._schedule_state = state_of(self.learned["schedule"]) if "schedule" in self.learned else None

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to replace a part in place: the columns computed from it would not change."""
        if name in ("parts", "settings") and name in vars(self):
            raise AttributeError(f"a system's {name} are fixed; diffkit.recompose(system, loss='huber') makes another")
        super().__setattr__("network" if name == "backbone" else name, value)

    # ---- properties ------------------------------------------------------------------------------------------------

    @property
    def table(self) -> ProcessTable:
        """The training table: noise levels 0..T; of a schedule with weights, by its present ones."""
        self.refresh()
        return self.parts.table

    def refresh(self) -> None:
        """Compute the table, and what depends on it, if weights of the schedule have changed since.

        Every call of the system does so first; without such a schedule there is nothing to do.
        """
        if self._schedule_state is None or (state := state_of(self.learned["schedule"])) == self._schedule_state:
            return
        table = training_table(self.parts.schedule, self.settings, self.learned["schedule"])
        vars(self)["parts"] = attrs.evolve(self.parts, table=table)
        self.objective = Objective.of(self.parts, self.decoder, self.objective.learned)
        self._schedule_state = state
        _TABLES.drop(self)

    @property
    def num_steps(self) -> int:
        """T of the training table."""
        return self.parts.table.num_steps

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one example, (C, *S); that of its latents is ``parts.data_shape``."""
        return self.settings.data_shape

    @property
    def bins(self) -> int | None:
        """Number of values that data takes; None if it is continuous."""
        return bins_of(self.settings)

    @property
    def bounded(self) -> bool:
        """Whether data lies in [-1, 1]."""
        return self.decoder.bounded if self.parts.codec is None else self.bins is not None

    @property
    def backbone(self) -> nn.Module | None:
        """Another name of `network`."""
        return self.network

    @property
    def device(self) -> torch.device:
        """Device of the network's first parameter or buffer; the CPU if it has neither."""
        return device_of(self.network) or torch.device("cpu")

    @property
    def trained(self) -> nn.Module | None:
        """All that training changes: the network; or a `Trained`, if there are modules of parts."""
        if not self.learned:
            return self.network
        return Trained(None if self.network is None else unwrap_module(self.network), dict(self.learned))

    def with_network(self, network: nn.Module) -> System:
        """Return this system with another network of the same kind, or other trained modules, in place of its own."""
        own, learned = (network.network, network.learned) if isinstance(network, Trained) else (network, self.learned)
        return System(self.parts, self.settings, own, dict(learned), dict(self.frozen))

    def table_for(self, steps: Spacing = None) -> ProcessTable:
        """Return the table of a chain of some levels of training, or of levels between; see `diffkit.spacing`."""
        if steps is None:
            return self.table
        found = visited(self.num_steps, steps, self.table)
        key = found.key if isinstance(found, Grid) else found
        return _TABLES.get(self, key, lambda: chain_of(self.parts, found), lambda t: t.num_steps <= MOST_CACHED_STEPS)

    def spec(self) -> dict[str, Any]:
        """Return the system without its weights as plain JSON data, from which `diffkit.from_spec` rebuilds it."""
        return spec_of(self.parts, self.settings, self.network, {**self.learned, **self.frozen})

    def save(self, folder: str | Path) -> Path:
        """Write spec and weights into a folder for `diffkit.load`; the folder must not hold a training run."""
        return save(self.spec(), self.trained, folder, self.frozen)

    def extra_repr(self) -> str:
        """Name the parts."""
        named = ", ".join(f"{kind}={name!r}" for kind, name in self.parts.names.items())
        return f"{named}, data_shape={self.data_shape}, num_steps={self.num_steps}"

    # ---- data and latents ------------------------------------------------------------------------------------------

    def checked(self, x_start: Tensor) -> Tensor:
        """Return data, (B, C, *S), as float32 or float64, or raise `OptionError` if it is not data of this system."""
        return checked_data(x_start, self.data_shape, self.bounded)

    def to_latents(self, x_start: Tensor) -> Tensor:
        """Return data as the network sees it: its latents by the codec, or the data itself without one.

        Raises:
            OptionError: x_start has the wrong shape, dtype or range.
        """
        return codec.to_latents(self.parts, self.checked(x_start))

    def from_latents(self, z: Tensor) -> Tensor:
        """Return the data of latents, (B, C, *S): in the user's units, as `sample` returns it."""
        return codec.from_latents(self.parts, z, self.data_shape)

    def to_drawn(self, x: Tensor) -> Tensor:
        """Return data as it is drawn, in [-1, 1]: data in units of its own from the lowest value of all to the highest.

        Data has such units if there is a codec and it has no bins. The rest is unchanged.
        """
        if self.parts.codec is None or self.bins is not None:
            return x
        low, high = x.amin(), x.amax()
        return (x - low) * (2 / (high - low).clamp_min(1e-30)) - 1

    # ---- training --------------------------------------------------------------------------------------------------

    def forward(
        self,
        x_start: Tensor,
        *,
        generator: torch.Generator | None = None,
        timesteps_state: State = None,
        model: Model | None = None,
        **conditions: Any,
    ) -> dict[str, Tensor]:
        """Draw levels and noise, and return per-example terms of the loss.

        ``system(x)["loss"].mean()`` is what training minimizes.

        Args:
            x_start: Clean data, (B, C, *S), float, in [-1, 1] unless the system was composed with bins=None.
            generator: Source of all randomness; levels and noise are drawn on its device. The global one by default.
            timesteps_state: State of the timestep sampler; its initial state by default.
            model: Called in place of the system's own network.
            conditions: Keywords for the network, such as y=labels; as in `sample`.
        Returns:
            "loss" (weighted by the timestep sampler), the loss part's metrics, "level" and "weight", each (B,).
        Raises:
            OptionError: x_start has the wrong shape, dtype or range.
        """
        x_start = codec.random_latents(self.parts, self.checked(x_start), generator)
        draws = random_draws(self.parts, x_start, generator, timesteps_state).to(x_start.device)
        if (coupling := self.settings.coupling) is not None:
            found = pair_noise(coupling, x_start, draws.noise, conditions, on_cpu(generator))
            draws, conditions = draws.coupled(found), dict(for_network(coupling, conditions))
        loss, terms = training_loss(partial(self.loss_terms, encoded=True), model, x_start, draws, conditions)
        return terms | {"loss": loss, "level": draws.level, "weight": draws.weight}

    def draw_levels(
        self, batch: int, *, generator: torch.Generator | None = None, timesteps_state: State = None
    ) -> tuple[Tensor, Tensor]:
        """Return levels (B,) and weights (B,) drawn by the timestep sampler.

        They are on the device of its state; without a state, on that of the generator.
        """
        level, _, weight = random_pairs(self.parts, batch, generator, timesteps_state)
        return level, weight

    def loss_terms(
        self,
        model: Model | None,
        x_start: Tensor,
        level: Tensor,
        noise: Tensor,
        *,
        decoder_rows: int | None = None,
        level_to: Tensor | None = None,
        teacher: System | NetworkCall | None = None,
        estimates: Tensor | None = None,
        encoded: bool = False,
        **conditions: Any,
    ) -> dict[str, Tensor]:
        """Return per-example terms of the loss at given levels and noise: a pure function without synchronization.

        Args:
            model: The network; None takes the system's own.
            x_start: Clean data, (B, C, *S), float32 or float64; anything shorter is computed in float32.
            level: 1..T, (B,) int64; log_snr, (B,) float64, with a `ContinuousTimestepSampler`; times with a
                `TimeSampler`.
            noise: Standard normal, of the shape of the latents, (B, C, *S).
            decoder_rows: Upper bound on the number of rows at level 1; the decoder's term is computed for that many
                rows only. B by default, which is always correct.
            level_to: Second levels, with a `PairSampler`: 0..level, (B,) int64, or log_snr.
            teacher: The teacher of a `NetworkLoss`, in eval mode; by default the network itself, in eval mode.
            estimates: Which examples get the network's previous estimate, (B,) bool, if it reads one; none by default.
            encoded: x_start is latents already, where the system has a codec.
            conditions: Keywords for the network; as in `sample`.
        Raises:
            OptionError: There is not one level and one noise for each example, or a level on the host is out of range.
        Returns:
            "loss" and metrics, each (B,), not weighted by the timestep sampler.
        """
        rows = x_start.shape[0] if decoder_rows is None else decoder_rows
        x_start = x_start if encoded else codec.to_latents(self.parts, x_start)
        check_draws(x_start, level, noise, self.parts, level_to)
        x_start, noise, network = as_float(x_start), as_float(noise), self._model(model)
        times = None
        if isinstance(self.parts.timesteps, TimeSampler):
            assert isinstance(self.parts.schedule, LearnedSchedule), "composition refuses times of another schedule"
            times = DrawnTimes(self.parts.schedule, self.learned["schedule"], level)
            level = times.log_snr
        null = self.parts.null_conditions
        conditions = conditions_for(network, conditions, x_start.shape[0], x_start.device, frozenset(), null)
        if isinstance(teacher, System):
            teacher = NetworkCall(teacher._model(None), teacher.parts, teacher.objective.scales_input, {})
        rate = None if times is None else times.rate
        terms = self.objective.terms(
            network, x_start, level, noise, rows, conditions, level_to, teacher, estimates, rate
        )
        if times is not None:
            times.trained_by(terms["loss"])
        return terms

    # ---- sampling --------------------------------------------------------------------------------------------------

    @shows_options(SampleOptions)
    def sample(self, n: int, **options: Unpack[SampleOptions]) -> Tensor:
        """Return n samples, (n, C, *S), float32; float64 if ``start`` is.

        Args:
            n: Number of samples.
            options: Those of `diffkit.system.call_options.SampleOptions`.
            conditions: Keywords for the network. A tensor, array or list of length n has one entry for each sample,
                also inside a mapping; a number, or one of length 1, is used for all samples. A list of other things
                than numbers, such as texts, stays a list; sequences of vectors of several lengths are padded, with a
                mask, where the network takes one (``context_mask``). None and y=-1 are replaced by the null condition
                where the network has null conditions.
        Raises:
            OptionError, CompositionError: An argument is wrong; raised before any computation.
            DivergedError: No sample is finite. Checked on the CPU only; if some are finite, a warning is logged.
        """
        job = self._prepared(n, options, conditions_in(options, SampleOptions))
        start, resume = job.checked_start(options.get("start")), options.get("resume")
        program, batches, out = job.program(), job.batches(options.get("batch_size")), []
        total, show = len(batches) * program.num_steps, options.get("progress", True)
        with job.running(f"sampling {n}", total, show) as advance:
            if resume is not None:
                found = sample_resumably(job, program, batches, start, resume, advance)
                out = [self.from_latents(z) for z in found]
            for rows in batches if resume is None else ():
                noise_fn = job.noise(rows)
                x = job.begin(rows, noise_fn, start)
                out.append(self.from_latents(job.finish(program, rows, x, noise_fn, advance)))
        samples = torch.cat(out)
        if samples.device.type == "cpu" and type(samples) is Tensor:  # on a GPU this would synchronize
            check_finite(samples)
        return samples

    @shows_options(JobOptions)
    def trajectory(
        self,
        n: int,
        *,
        start: Tensor | None = None,
        after: TrajectoryPoint | None = None,
        **options: Unpack[JobOptions],
    ) -> Iterator[TrajectoryPoint]:
        """Yield a `TrajectoryPoint` after every step of sampling n examples.

        Args:
            n: Number of examples.
            start: As in `sample`.
            after: A point of an earlier call with the same arguments, to go on from; to the bit if seeded.
            options: Those of `diffkit.system.call_options.JobOptions`.
            conditions: As in `sample`.
        """
        job = self.prepare(n, **options)
        return job.points(job.checked_start(start), after)

    def sample_from(
        self,
        model: Model | None,
        x: Tensor,
        noise_fn: NoiseFn | None,
        table: ProcessTable | None = None,
        *,
        sampler: Slot = None,
        guidance: GuidanceSlot = None,
        clip: bool | None = None,
        x_transform: Transform | None = None,
        grad: bool = False,
        **conditions: Any,
    ) -> Tensor:
        """Run the sampling loop from x at level T to level 0 with all randomness given.

        Args:
            model: The network; None takes the system's own.
            x: Data at level T, (B, C, *S), float32 or float64; anything shorter is computed in float32.
            noise_fn: Called once a step for standard normal noise of x's shape; None only for a deterministic sampler.
            table: The training table by default; one that `table_for` made of some of its levels; or, on a continuous
                schedule, any table of that schedule, ``parts.schedule.table(40)``, finer ones included.
            sampler, guidance, clip, x_transform, conditions: As in `sample`, without the system's defaults.
            grad: Compute gradients for x, the conditions and the network through every step. The stored activations of
                all steps take memory; ``torch.utils.checkpoint`` around ``model`` needs less, and the network is in
                eval mode when it recomputes them, too.
        Raises:
            OptionError: The network is not defined at the table's levels.
        """
        check_tensors(x=x)
        check_arguments(noise_fn, table, x_transform)
        self.refresh()
        parts, network = parts_for(self.parts, sampler, guidance), self._model(model)
        parts, given = with_prompts_alike(parts, network, conditions)
        conditions = self.checked_conditions(parts, network, given, x.shape[0], x.device)
        program = sampling_program(parts, parts.sampler, self.table if table is None else table)
        denoiser = self._denoiser(parts, network, clip, x_transform, conditions)
        with eval_mode(self, *networks_of(parts.guidance)):
            return self.from_latents(program.finish(denoiser, as_float(x), noise_fn, grad=grad))

    @shows_options(EncodeOptions, sampler="ddim")
    @torch.no_grad()
    def encode(
        self,
        x_start: Tensor,
        *,
        start: str = "clean",
        time_of: str = "start",
        progress: bool = False,
        **options: Unpack[EncodeOptions],
    ) -> Tensor:
        """Run a deterministic sampler backwards: return the noise at level T from which it samples x_start, (B, C, *S).

        Args:
            x_start: Clean data, (B, C, *S).
            start: "clean" steps from level 0 to 1 with the noise estimated at level 1, and ends at level T; with
                final="sigma_min" it begins at level 1. "level1" treats x_start as data at level 1 and ends one step
                past T, without signal, as improved-diffusion does.
            time_of: Which level's time the network gets: that where a step starts ("start"), as the sampler's order
                needs, or that which it goes to ("end"), as DDIM inversion is done in diffusers and in prompt-to-prompt.
            progress: Show a bar with an ETA on standard error.
            options: Those of `diffkit.system.call_options.EncodeOptions`.
            conditions: As in `sample`.
        Raises:
            OptionError: The sampler is stochastic, or an argument is wrong.
        """
        if not isinstance(start, str) or start not in ("clean", "level1"):
            raise OptionError("must be 'clean' or 'level1'", option="start", value=start)
        if not isinstance(time_of, str) or time_of not in ("start", "end"):
            raise OptionError("must be 'start' or 'end'", option="time_of", value=time_of)
        x = codec.to_latents(self.parts, self._placed(self.checked(x_start), options.get("model")))
        check_unused(self._model(options.get("model")), options, "seed")
        options.setdefault("sampler", "ddim")
        job = self.prepare(x.shape[0], **options)
        if job.parts.sampler.stochastic:
            raise OptionError("encode needs a deterministic sampler", fix=({"sampler": "heun"}, {"sampler": "ddim"}))
        program = job.encoding_program(past_end=start == "level1", time_of=time_of)
        with job.running("encoding", program.num_steps, progress) as advance:
            if start == "clean" and job.final == "zero":
                x = _first_encoding_step(job, job.denoiser(), x)
            return job.finish(program, range(x.shape[0]), x, None, advance)

    @shows_options(JobOptions)
    def prepare(self, n: int, **options: Unpack[JobOptions]) -> SamplingJob:
        """Resolve and validate the arguments of `sample` without running the network; tasks use it too.

        Args:
            n: Number of examples.
            options: Those of `diffkit.system.call_options.JobOptions`.
            conditions: As in `sample`.
        """
        return self._prepared(n, options, conditions_in(options, JobOptions))

    def denoiser(
        self,
        model: Model | None = None,
        *,
        guidance: GuidanceSlot = None,
        clip: bool | None = None,
        x_transform: Transform | None = None,
        **conditions: Any,
    ) -> Denoiser:
        """Return ``denoise(x, level) -> Prediction``: the network and its processing, for samplers and the bound.

        The network's mode is not changed; ``system.eval()`` switches dropout off.

        Args:
            model, guidance, clip, x_transform: As in `sample`.
            conditions: Passed unchanged to the network, so a tensor or list has an entry for each row of x.
        """
        parts, network = with_guidance(self.parts, guidance), self._model(model)
        check_guidance(parts, conditions, self.device)
        check_names(network, conditions, own_conditions(parts.guidance))
        return self._denoiser(parts, network, clip, x_transform, conditions)

    # ---- scoring ---------------------------------------------------------------------------------------------------

    @shows_options(EstimateOptions, **SCORED)
    @torch.no_grad()
    def bits_per_dim(
        self,
        x_start: Tensor,
        *,
        seed: Seed = None,
        rows_per_call: int | None = None,
        progress: bool = False,
        **options: Unpack[EstimateOptions],
    ) -> Bound:
        """Return the variational bound on the negative log-likelihood of each example, in bits per dimension of data.

        With guidance it is that of the guided reverse process, each of whose steps is a normal distribution too. The
        system's defaults of sampling are not used: it is of every level, without guidance, unless the call says so.

        Args:
            x_start: Clean data, (B, C, *S), in [-1, 1] unless the system was composed with bins=None.
            seed: Makes the noise of example i a function of (seed, i) and the level; a list has one seed for each
                example.
            rows_per_call: Number of (example, level) pairs in one call of the network; 16 on a CPU, 256 on a GPU.
            progress: Show a bar with an ETA on standard error.
            options: Those of `diffkit.system.call_options.EstimateOptions`.
            conditions: As in `sample`.
        Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eqs. 4 to 7.
        """
        codec.check_likelihood(self.parts)
        x_start = self._placed(self.checked(x_start), options.get("model"))
        check_unused(self._model(options.get("model")), options, "sampler", "compile", "final")
        job = self.prepare(x_start.shape[0], seed=seed, **(SCORED | options))
        if self.parts.self_conditioned:
            log("note: the bound is that of sampling without previous estimates, which are zeros here")
        rows = rows_at_a_time(rows_per_call, x_start.device)
        total = x_start.shape[0] * job.table.num_steps
        with torch.inference_mode(False), torch.no_grad(), job.running("bits/dim", total, progress) as advance:
            terms, x_start = BoundTerms.of(job.parts, job.table, self.decoder), ordinary(x_start)
            z, volume = codec.to_latents(self.parts, x_start), codec.volume_bits(self.parts, x_start)
            bound = variational_bound(terms, job.table, job.denoiser, z, job.seed, rows, advance, volume)
        if x_start.device.type == "cpu" and (bad := int((~bound.total.isfinite()).sum())):
            log(f"warning: the bits/dim of {bad} of {bound.total.shape[0]} examples are not finite")
        return bound

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _prepared(self, n: int, options: Mapping[str, Any], conditions: Mapping[str, Any]) -> SamplingJob:
        """The job of a call: its options, some of `JobOptions`, before the system's defaults, and its conditions."""
        self.refresh()
        options = {**(self.settings.sampling or {}), **options}
        n = checked_count(n, self.data_shape)
        parts = parts_for(self.parts, options.get("sampler"), options.get("guidance"))
        network, x_transform = self._model(options.get("model")), options.get("x_transform")
        check_arguments(None, None, x_transform)
        parts, conditions = with_prompts_alike(parts, network, conditions)
        with torch.inference_mode(False):
            conditions = ordinary(self.checked_conditions(parts, network, conditions, n, self.device))
        return SamplingJob(
            self,
            self.objective,
            self.device,
            n,
            self.table_for(options.get("steps")),
            parts,
            checked_seed(options.get("seed"), n),
            network,
            self._clips(options.get("clip")),
            x_transform,
            conditions,
            self.from_latents,
            check_compile(options.get("compile", False), self.device),
            checked_final(options.get("final", "zero")),
        )

    def _placed(self, x: Tensor, model: Model | None) -> Tensor:
        """Data on the network's device; unchanged if the network is the caller's or has no device."""
        place = device_of(self.network) if model is None else None
        return x if place is None else x.to(place)

    def checked_conditions(
        self, parts: Composition, network: Model, conditions: Mapping[str, Any], n: int, device: torch.device
    ) -> dict[str, Any]:
        """Conditions of n examples, with those that guidance adds; raises `OptionError` for any problem."""
        check_guidance(parts, conditions, self.device)
        own, classes = own_conditions(parts.guidance), parts.classes if network is self.network else None
        found = conditions_for(network, conditions, n, device, own, parts.null_conditions, classes)
        added = row_conditions(parts.guidance, found, n)
        return found | {name: mapped(lambda tensor: tensor.to(device), value) for name, value in added.items()}

    def _clips(self, clip: bool | None) -> bool:
        return self.settings.clip_x_start if clip is None else check_flag("clip", clip)

    def _denoiser(
        self,
        parts: Composition,
        network: Model,
        clip: bool | None,
        transform: Transform | None,
        conditions: Mapping[str, Any],
    ) -> Denoiser:
        scales = self.objective.scales_input
        with torch.inference_mode(False):
            conditions = ordinary(conditions)
        clips, times, keeps = self._clips(clip), parts.times, reads_unclipped(parts.sampler)
        guidance = parts.guidance
        return Denoiser(
            network, parts.var, scales, conditions, transform, clips, guidance, times=times, keeps_unclipped=keeps
        )

    def _model(self, model: Model | None) -> Model:
        if model is not None:
            check_callable("model", model, "model(x, time, **conditions)")
            return model
        if self.network is None:
            raise OptionError("this system was composed with backbone=None; pass model= to this call")
        return self.network


def read_backbone(module: nn.Module) -> None:
    """Let a module's ``network`` be loaded from state dicts in which it has its earlier name, "backbone"."""
    module.register_load_state_dict_pre_hook(_rename_backbone)  # type: ignore[no-untyped-call]


def _rename_backbone(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    old = f"{prefix}backbone."
    for name in [name for name in state if name.startswith(old)]:
        state[f"{prefix}network.{name.removeprefix(old)}"] = state.pop(name)


def _first_encoding_step(job: SamplingJob, denoiser: Denoiser, x: Tensor) -> Tensor:
    """Step from level 0 to 1: the network is not defined at level 0, so the noise is estimated at level 1."""
    columns = CoefficientTable({"level": level_coefficients(job.parts, job.table)})
    at = columns.level(columns.on(x.device, x.dtype)[1], x.ndim)
    found = denoiser(x, at)
    own = found.unclipped if isinstance(found, UnclippedPrediction) else found.x_start
    eps = (x - at.alpha * own) / at.sigma
    return at.alpha * x + at.sigma * eps
