"""A composed diffusion system: it trains, samples and scores.

`System` is an `nn.Module` whose only submodule is the network, so DDP, FSDP and torch.compile wrap it like
any other, and its state_dict is the network's. Tables are not buffers: ``.half()`` and ``.to()`` do not change them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from diffkit.errors import CompositionError, OptionError
from diffkit.options import check_callable, check_flag, check_integer
from diffkit.protocols import Composition, Decoder, Model, State
from diffkit.registry.contracts import problems_of
from diffkit.registry.resolve import Slot, resolve
from diffkit.runtime.eval_mode import eval_mode
from diffkit.runtime.finite import examples_hold, rows_not_finite
from diffkit.runtime.images import check_finite
from diffkit.runtime.output import log
from diffkit.spacing import Spacing, levels
from diffkit.system.bound import Bound, rows_at_a_time, variational_bound
from diffkit.system.coefficients import CoefficientTable, level_coefficients
from diffkit.system.compiling import Compile, check_compile
from diffkit.system.conditions import check_names, check_unused, conditions_for
from diffkit.system.denoiser import Denoiser, as_float
from diffkit.system.guidance import (
    GuidanceSlot,
    check_guidance,
    networks_of,
    own_conditions,
    row_conditions,
    with_guidance,
)
from diffkit.system.objective import Objective, count_first
from diffkit.system.prepared import SamplingJob, Transform
from diffkit.system.sampling import TrajectoryPoint, sampling_program
from diffkit.system.saving import save, spec_of
from diffkit.system.seeding import NoiseFn, Seed, checked_seed
from diffkit.system.settings import Settings, decoder_of
from diffkit.table import ProcessTable, respace
from diffkit.tensors import device_of, has_values, ordinary

_MOST_VALUES = 2**40
"""Largest number of values of all samples of a call: 4 TiB of float32."""


class System(nn.Module):
    """A diffusion system of seven parts; made by `diffkit.compose`.

    Attributes:
        parts: The parts, and the training table.
        settings: Everything else it was composed with.
        recipe: The backbone part that built the network, or None for a foreign network.
        backbone: The network, or None if every call has ``model=``.
        decoder: Log-likelihood of data at level 1.
    """

    def __init__(self, parts: Composition, settings: Settings, backbone: nn.Module | None, recipe: Any = None):
        super().__init__()
        self.parts = parts
        self.settings = settings
        self.recipe = recipe
        self.backbone = backbone
        self.decoder: Decoder = decoder_of(settings)
        self.objective = Objective.of(parts, self.decoder)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to replace a part in place: the columns computed from it would not change."""
        if name in ("parts", "settings") and name in vars(self):
            raise AttributeError(f"a system's {name} are fixed; diffkit.recompose(system, loss='huber') makes another")
        super().__setattr__(name, value)

    # ---- properties ------------------------------------------------------------------------------------------------

    @property
    def table(self) -> ProcessTable:
        """The training table: noise levels 0..T."""
        return self.parts.table

    @property
    def num_steps(self) -> int:
        """T of the training table."""
        return self.parts.table.num_steps

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one example, (C, *S)."""
        return self.settings.data_shape

    @property
    def device(self) -> torch.device:
        """Device of the network's first parameter or buffer; the CPU if it has neither."""
        return device_of(self.backbone) or torch.device("cpu")

    def with_network(self, network: nn.Module) -> System:
        """Return this system with another network of the same kind in place of its own."""
        return System(self.parts, self.settings, network, self.recipe)

    def table_for(self, steps: Spacing = None) -> ProcessTable:
        """Return the training table respaced to some of its levels; see `diffkit.spacing`."""
        if steps is None:
            return self.table
        return respace(self.table, levels(self.num_steps, steps, self.table))

    def spec(self) -> dict[str, Any]:
        """Return the system without its weights as plain JSON data, from which `diffkit.from_spec` rebuilds it."""
        return spec_of(self.parts, self.settings, self.recipe, self.backbone)

    def save(self, folder: str | Path) -> Path:
        """Write spec and weights into a folder for `diffkit.load`; the folder must not hold a training run."""
        return save(self.spec(), self.backbone, folder)

    def extra_repr(self) -> str:
        """Name the parts."""
        named = ", ".join(f"{kind}={name!r}" for kind, name in self.parts.names.items())
        return f"{named}, data_shape={self.data_shape}, num_steps={self.num_steps}"

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
        x_start = self.checked(x_start)
        level, weight = self.draw_levels(x_start.shape[0], generator=generator, timesteps_state=timesteps_state)
        rows = count_first(level, x_start.shape[0])
        level, weight = level.to(x_start.device), weight.to(x_start.device)
        noise = self._noise_like(x_start, generator)
        terms = self.loss_terms(model, x_start, level, noise, decoder_rows=rows, **conditions)
        return terms | {"loss": terms["loss"] * weight, "level": level, "weight": weight}

    def draw_levels(
        self, batch: int, *, generator: torch.Generator | None = None, timesteps_state: State = None
    ) -> tuple[Tensor, Tensor]:
        """Return levels (B,) and weights (B,) drawn by the timestep sampler.

        They are on the device of its state; without a state, on that of the generator.
        """
        sampler, batch = self.parts.timesteps, check_integer("batch", batch, ge=0, le=2**31)
        _check_generator(generator)
        device = generator.device if generator is not None else torch.device("cpu")
        u = torch.rand(batch, dtype=torch.float64, generator=generator, device=device)
        if timesteps_state is None:
            state = pytree.tree_map_only(Tensor, lambda held: held.to(device), sampler.init(self.table))
        else:
            state, held = timesteps_state, next(iter(pytree.tree_leaves(timesteps_state)), None)
            u = u.to(held.device) if isinstance(held, Tensor) else u
        return sampler.sample(state, u, self.num_steps)

    def loss_terms(
        self,
        model: Model | None,
        x_start: Tensor,
        level: Tensor,
        noise: Tensor,
        *,
        decoder_rows: int | None = None,
        **conditions: Any,
    ) -> dict[str, Tensor]:
        """Return per-example terms of the loss at given levels and noise: a pure function without synchronization.

        Args:
            model: The network; None takes the system's own.
            x_start: Clean data, (B, C, *S), float32 or float64; anything shorter is computed in float32.
            level: 1..T, (B,) int64 (log_snr, (B,) float64, if the timestep sampler's domain is "log_snr").
            noise: Standard normal, (B, C, *S).
            decoder_rows: Upper bound on the number of rows at level 1; the decoder's term is computed for that many
                rows only. B by default, which is always correct.
            conditions: Keywords for the network; as in `sample`.
        Raises:
            OptionError: There is not one level and one noise for each example, or a level on the host is out of range.
        Returns:
            "loss" and metrics, each (B,), not weighted by the timestep sampler.
        """
        rows = x_start.shape[0] if decoder_rows is None else decoder_rows
        check_draws(x_start, level, noise, self.num_steps)
        x_start, noise, network = as_float(x_start), as_float(noise), self._model(model)
        null = self.parts.null_conditions
        conditions = conditions_for(network, conditions, x_start.shape[0], x_start.device, frozenset(), null)
        return self.objective.terms(network, x_start, level, noise, rows, conditions)

    # ---- sampling --------------------------------------------------------------------------------------------------

    def sample(
        self,
        n: int,
        *,
        steps: Spacing = None,
        sampler: Slot = None,
        guidance: GuidanceSlot = None,
        seed: Seed = None,
        batch_size: int | None = None,
        start: Tensor | None = None,
        clip: bool | None = None,
        x_transform: Transform | None = None,
        model: Model | None = None,
        compile: Compile = False,
        progress: bool = True,
        **conditions: Any,
    ) -> Tensor:
        """Return n samples, (n, C, *S), float32; float64 if ``start`` is.

        Args:
            n: Number of samples.
            steps: Every level by default; a count, a spacing string or a list of levels (see `diffkit.spacing`).
            sampler: Name, (name, options) or instance; the composed one by default.
            guidance: Guidance, such as ``diffkit.guidance.ClassifierFree(2.0)``; of several, the first is nearest to
                the network.
            seed: Makes sample i a function of (seed, i), independent of the batch size; a list has one seed for each
                sample. Unseeded by default.
            batch_size: Number of samples made at a time; all at once by default.
            start: Data at level T to start from, (n, C, *S); noise by default.
            clip: Clip the estimate of x_start to [-1, 1]; as composed by default.
            x_transform: Applied to the estimate of x_start before clipping.
            model: Called in place of the system's own network.
            compile: True runs each step, network and guidance included, as one compiled graph, which is cached for
                later calls; "cuda_graph" replays it as a CUDA graph; a mapping holds arguments of `torch.compile`.
            progress: Show a bar with an ETA on standard error.
            conditions: Keywords for the network. A tensor, array or list of length n has one entry for each sample,
                also inside a mapping; a number, or one of length 1, is used for all samples. A list of other things
                than numbers, such as texts or tensors of several lengths, stays a list. None and y=-1 are replaced by
                the null condition where the network has null conditions.
        Raises:
            OptionError, CompositionError: An argument is wrong; raised before any computation.
            DivergedError: No sample is finite. Checked on the CPU only; if some are finite, a warning is logged.
        """
        job = self.prepare(
            n,
            steps=steps,
            sampler=sampler,
            guidance=guidance,
            seed=seed,
            clip=clip,
            x_transform=x_transform,
            model=model,
            compile=compile,
            **conditions,
        )
        start = job.checked_start(start)
        program, batches, out = job.program(), job.batches(batch_size), []
        with job.running(f"sampling {n}", len(batches) * program.num_steps, progress) as advance:
            for rows in batches:
                noise_fn = job.noise(rows)
                x = job.begin(rows, noise_fn, start)
                out.append(job.finish(program, rows, x, noise_fn, advance))
        samples = torch.cat(out)
        if samples.device.type == "cpu" and type(samples) is Tensor:  # on a GPU this would synchronize
            check_finite(samples)
        return samples

    def trajectory(
        self,
        n: int,
        *,
        steps: Spacing = None,
        sampler: Slot = None,
        guidance: GuidanceSlot = None,
        seed: Seed = None,
        start: Tensor | None = None,
        clip: bool | None = None,
        x_transform: Transform | None = None,
        model: Model | None = None,
        compile: Compile = False,
        **conditions: Any,
    ) -> Iterator[TrajectoryPoint]:
        """Yield a `TrajectoryPoint` after every step of sampling n examples; arguments as in `sample`."""
        job = self.prepare(
            n,
            steps=steps,
            sampler=sampler,
            guidance=guidance,
            seed=seed,
            clip=clip,
            x_transform=x_transform,
            model=model,
            compile=compile,
            **conditions,
        )
        return job.points(job.checked_start(start))

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
            sampler, guidance, clip, x_transform, conditions: As in `sample`.
            grad: Compute gradients for x, the conditions and the network through every step. The stored activations of
                all steps take memory; ``torch.utils.checkpoint`` around ``model`` needs less, and the network is in
                eval mode when it recomputes them, too.
        Raises:
            OptionError: The network is not defined at the table's levels.
        """
        _check_tensors(x=x)
        _check_arguments(noise_fn, table, x_transform)
        parts, network = self.parts_for(sampler, guidance), self._model(model)
        conditions = self._conditions(parts, network, conditions, x.shape[0], x.device)
        program = sampling_program(parts, parts.sampler, self.table if table is None else table)
        denoiser = self._denoiser(parts, network, clip, x_transform, conditions)
        with eval_mode(self, *networks_of(parts.guidance)):
            return program.finish(denoiser, as_float(x), noise_fn, grad=grad)

    @torch.no_grad()
    def encode(
        self,
        x_start: Tensor,
        *,
        steps: Spacing = None,
        sampler: Slot = "ddim",
        guidance: GuidanceSlot = None,
        start: str = "clean",
        clip: bool | None = None,
        x_transform: Transform | None = None,
        model: Model | None = None,
        compile: Compile = False,
        progress: bool = False,
        **conditions: Any,
    ) -> Tensor:
        """Run a deterministic sampler backwards: return the noise at level T from which it samples x_start, (B, C, *S).

        Args:
            x_start: Clean data, (B, C, *S).
            steps, sampler, guidance, clip, x_transform, model, compile, progress, conditions: As in `sample`.
            start: "clean" steps from level 0 to 1 with the noise estimated at level 1, and ends at level T. "level1"
                treats x_start as data at level 1 and ends one step past T, without signal, as improved-diffusion does.
        Raises:
            OptionError: The sampler is stochastic, or an argument is wrong.
        """
        if not isinstance(start, str) or start not in ("clean", "level1"):
            raise OptionError(f"start must be 'clean' or 'level1', got {start!r}")
        x = self._placed(self.checked(x_start), model)
        self.check_unused(model, conditions, "seed")
        job = self.prepare(
            x.shape[0],
            steps=steps,
            sampler=sampler,
            guidance=guidance,
            clip=clip,
            x_transform=x_transform,
            model=model,
            compile=compile,
            **conditions,
        )
        if job.parts.sampler.stochastic:
            raise OptionError("encode needs a deterministic sampler, such as 'ddim' with eta=0")
        program = job.encoding_program(past_end=start == "level1")
        with job.running("encoding", program.num_steps, progress) as advance:
            if start == "clean":
                x = _first_encoding_step(job, job.denoiser(), x)
            return job.finish(program, range(x.shape[0]), x, None, advance)

    def prepare(
        self,
        n: int,
        *,
        steps: Spacing = None,
        sampler: Slot = None,
        guidance: GuidanceSlot = None,
        seed: Seed = None,
        clip: bool | None = None,
        x_transform: Transform | None = None,
        model: Model | None = None,
        compile: Compile = False,
        **conditions: Any,
    ) -> SamplingJob:
        """Resolve and validate the arguments of `sample` without computing anything. For tasks."""
        n, parts = _checked_count(n, self.data_shape), self.parts_for(sampler, guidance)
        network = self._model(model)
        _check_arguments(None, None, x_transform)
        with torch.inference_mode(False):
            conditions = ordinary(self._conditions(parts, network, conditions, n, self.device))
        return SamplingJob(
            self,
            self.objective,
            self.device,
            n,
            self.table_for(steps),
            parts,
            checked_seed(seed, n),
            network,
            self._clips(clip),
            x_transform,
            conditions,
            check_compile(compile, self.device),
        )

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
        parts, network = self.parts_for(None, guidance), self._model(model)
        check_guidance(parts, conditions, self.device)
        check_names(network, conditions, own_conditions(parts.guidance))
        return self._denoiser(parts, network, clip, x_transform, conditions)

    def parts_for(self, sampler: Slot = None, guidance: GuidanceSlot = None) -> Composition:
        """Return the composition with another sampler and with guidance.

        Raises:
            CompositionError: They do not fit this system; every problem is listed.
        """
        return with_guidance(with_sampler(self.parts, sampler), guidance)

    # ---- scoring ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def bits_per_dim(
        self,
        x_start: Tensor,
        *,
        steps: Spacing = None,
        guidance: GuidanceSlot = None,
        seed: Seed = None,
        rows_per_call: int | None = None,
        clip: bool | None = None,
        x_transform: Transform | None = None,
        model: Model | None = None,
        progress: bool = False,
        **conditions: Any,
    ) -> Bound:
        """Return the variational bound on the negative log-likelihood of each example, in bits per dimension.

        Args:
            x_start: Clean data, (B, C, *S), in [-1, 1] unless the system was composed with bins=None.
            steps: As in `sample`.
            guidance: As in `sample`: the bound is then that of the guided reverse process, each of whose steps is a
                normal distribution too.
            seed: Makes the noise of example i a function of (seed, i) and the level; a list has one seed for each
                example.
            rows_per_call: Number of (example, level) pairs in one call of the network; 16 on a CPU, 256 on a GPU.
            clip, x_transform, model, progress, conditions: As in `sample`.
        Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eqs. 4 to 7.
        """
        x_start = self._placed(self.checked(x_start), model)
        self.check_unused(model, conditions, "sampler", "compile")
        job = self.prepare(
            x_start.shape[0],
            steps=steps,
            guidance=guidance,
            seed=seed,
            clip=clip,
            x_transform=x_transform,
            model=model,
            **conditions,
        )
        rows = rows_at_a_time(rows_per_call, x_start.device)
        total = x_start.shape[0] * job.table.num_steps
        with torch.inference_mode(False), torch.no_grad(), job.running("bits/dim", total, progress) as advance:
            bound = variational_bound(job, ordinary(x_start), rows, advance)
        if x_start.device.type == "cpu" and (bad := int((~bound.total.isfinite()).sum())):
            log(f"warning: the bits/dim of {bad} of {bound.total.shape[0]} examples are not finite")
        return bound

    # ---- inside ----------------------------------------------------------------------------------------------------

    def checked(self, x_start: Tensor) -> Tensor:
        """Return clean data of this system, (B, C, *S), as float32 or float64, ready for arithmetic.

        Raises:
            OptionError: It is not a tensor, has another shape, is not floating point, has NaN or an infinity, or lies
                outside of [-1, 1] for data with bins.
        """
        if not isinstance(x_start, Tensor):
            raise OptionError(
                f"x_start must be a tensor (B, {_joined(self.data_shape)}), got {type(x_start).__name__}; "
                "a data set is scored by score_data of diffkit.evaluation.scoring"
            )
        if x_start.ndim != len(self.data_shape) + 1 or x_start.shape[1:] != self.data_shape:
            raise OptionError(f"x_start must have shape (B, {_joined(self.data_shape)}), got {tuple(x_start.shape)}")
        if not x_start.is_floating_point():
            raise OptionError(
                f"x_start must be floating point in [-1, 1], got {x_start.dtype}; for 8-bit images: x / 127.5 - 1"
            )
        # On a GPU the check would synchronize at every step; data are checked where they are read.
        if has_values(x_start):
            low, high = (float(v) for v in x_start.detach().aminmax())
            if not (math.isfinite(low) and math.isfinite(high)):
                raise OptionError(f"x_start is not finite: {examples_hold(rows_not_finite(x_start.detach()))}")
            if self.decoder.bounded and not (low >= -1 - 1e-4 and high <= 1 + 1e-4):
                raise OptionError(
                    f"x_start must lie in [-1, 1], got values in [{low:g}, {high:g}]; scale it, or compose with "
                    "bins=None for unbounded data"
                )
        return as_float(x_start)

    def check_unused(self, model: Model | None, conditions: Mapping[str, Any], *names: str) -> None:
        """Raise `OptionError` if a condition has one of these names: options of `prepare` that this call ignores."""
        check_unused(self._model(model), conditions, *names)

    def _placed(self, x: Tensor, model: Model | None) -> Tensor:
        """Data on the network's device; unchanged if the network is the caller's or has no device."""
        place = device_of(self.backbone) if model is None else None
        return x if place is None else x.to(place)

    def _conditions(
        self, parts: Composition, network: Model, conditions: Mapping[str, Any], n: int, device: torch.device
    ) -> dict[str, Any]:
        """Conditions of n examples, with those that guidance adds; raises `OptionError` for any problem."""
        check_guidance(parts, conditions, self.device)
        own, classes = own_conditions(parts.guidance), parts.classes if network is self.backbone else None
        found = conditions_for(network, conditions, n, device, own, parts.null_conditions, classes)
        return found | row_conditions(parts.guidance, found, n)

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
        return Denoiser(network, parts.var, scales, conditions, transform, self._clips(clip), parts.guidance)

    def _model(self, model: Model | None) -> Model:
        if model is not None:
            check_callable("model", model, "model(x, time, **conditions)")
            return model
        if self.backbone is None:
            raise OptionError("this system was composed with backbone=None; pass model= to this call")
        return self.backbone

    def _noise_like(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        device = generator.device if generator is not None else x.device
        return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


def with_sampler(parts: Composition, slot: Slot) -> Composition:
    """Return a composition with another sampler, or unchanged for None.

    Raises:
        CompositionError: It cannot work with the other parts.
    """
    if slot is None:
        return parts
    sampler, name = resolve("sampler", slot)
    changed = attrs.evolve(parts, sampler=sampler, names={**parts.names, "sampler": name})
    problems = problems_of(changed.label("sampler"), sampler, changed)
    if problems:
        raise CompositionError("\n  ".join([f"sampler {name!r} does not fit this system:", *problems]))
    return changed


def _first_encoding_step(job: SamplingJob, denoiser: Denoiser, x: Tensor) -> Tensor:
    """Step from level 0 to 1: the network is not defined at level 0, so the noise is estimated at level 1."""
    columns = CoefficientTable({"level": level_coefficients(job.parts, job.table)})
    at = columns.level(columns.on(x.device, x.dtype)[1], x.ndim)
    eps = (x - at.alpha * denoiser(x, at).x_start) / at.sigma
    return at.alpha * x + at.sigma * eps


def check_draws(x_start: Tensor, level: Tensor, noise: Tensor, num_steps: int) -> None:
    """Refuse other than one level and one noise for each example, and levels that are not there.

    The latter where looking costs nothing: on the host, outside of tracing.
    """
    _check_tensors(x_start=x_start, level=level, noise=noise)
    if level.shape != x_start.shape[:1]:
        raise OptionError(f"level must have shape {tuple(x_start.shape[:1])}, got {tuple(level.shape)}")
    if noise.shape != x_start.shape:
        raise OptionError(f"noise must have shape {tuple(x_start.shape)}, as x_start, got {tuple(noise.shape)}")
    if level.is_floating_point() or not has_values(level):
        return
    try:
        low, high = (int(k) for k in level.aminmax())
    except RuntimeError:  # levels that vmap maps over have no value to look at
        return
    if low < 1 or high > num_steps:
        raise OptionError(f"level must lie in 1..{num_steps}, got values in {low}..{high}")


def _check_tensors(**values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, Tensor) or not value.ndim:
            what = "a single number" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise OptionError(f"{name} must be a tensor with an entry for each example, got {what}")


def _check_generator(generator: object) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise OptionError(
            f"generator must be a torch.Generator, got a {type(generator).__name__}; torch.Generator().manual_seed(0) "
            "is one"
        )


def _check_arguments(noise_fn: object, table: object, x_transform: object) -> None:
    if noise_fn is not None:
        check_callable("noise_fn", noise_fn, "noise_fn()")
    if x_transform is not None:
        check_callable("x_transform", x_transform, "x_transform(x_start)")
    if table is not None and not isinstance(table, ProcessTable):
        raise OptionError(f"table must be a ProcessTable, such as System.table_for(20), got a {type(table).__name__}")


def _checked_count(n: object, data_shape: tuple[int, ...]) -> int:
    """The number of examples; raises `OptionError` if their values would exceed any memory."""
    found = check_integer("n", n, ge=1)
    if found * math.prod(data_shape) > _MOST_VALUES:
        raise OptionError(f"n {found} is more than memory holds; make at most some millions at a time")
    return found


def _joined(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
