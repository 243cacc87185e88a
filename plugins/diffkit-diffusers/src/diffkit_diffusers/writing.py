"""A composition written as the configuration of a scheduler: the other direction of `diffkit_diffusers.reading`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np

import diffkit
from diffkit import OptionError
from diffkit.registry.resolve import resolve_several
from diffkit.spacing import levels, spacing_part
from diffkit_diffusers.betas import DiffusersBetas
from diffkit_diffusers.reading import MEANS, PACKAGES, SIGMAS, TINY, VARIANCES
from diffkit_diffusers.schedulers import SCHEDULERS, Scheduler, Solver
from diffkit_diffusers.spacing import GRIDS, TIMES, DiffusersSpacing
from diffkit_diffusers.tcd import DiffusersTCD


def to_scheduler_config(system: diffkit.System) -> dict[str, Any]:
    """Return the content of a ``scheduler_config.json`` that means the same as a system's parts and sampling defaults.

    The class is that of the spacing 'diffusers', if ``sampling`` has one, else the first with this sampler. What
    diffusers is told at each call is not in a configuration: the number of steps, and eta.

    Raises:
        OptionError: No scheduler can say it; every problem is listed.
    """
    writer = _Writer(system)
    if writer.problems:
        raise OptionError("\n  ".join(["this system cannot be written as a scheduler of diffusers:", *writer.problems]))
    return writer.config


class _Writer:
    """Collects options of a scheduler, and what it cannot say."""

    def __init__(self, system: diffkit.System):
        self.system, self.names = system, system.parts.names
        self.config: dict[str, Any] = {}
        self.problems: list[str] = []
        self.steps = _steps(system)
        record, solved = self._solver()
        self.problems[:0] = _chain_problems(system) if record is None or record.chain == "betas" else ()
        if record is None:
            self.problems.append(self._no_solver())
            return
        self.config = {"_class_name": record.name, **record.options, **solved}
        {"betas": self._write_betas, "edm": self._write_edm, "flow": self._write_flow}[record.chain](record)
        self._write_variance(record)
        self._write_clipping(record)
        self._write_steps(record)

    def _solver(self) -> tuple[Scheduler | None, dict[str, Any]]:
        """The scheduler that has this sampler, and its options that say so."""
        records = [record for record in SCHEDULERS.values() if not record.inverts]
        if isinstance(self.steps, DiffusersSpacing):
            records = [SCHEDULERS[self.steps.scheduler]]
        for record in records:
            for solver in record.solvers:
                if solver.sampler == self.names["sampler"] and (found := self._options(record, solver)) is not None:
                    return record, found
        return None, {}

    def _no_solver(self) -> str:
        name, steps = self.names["sampler"], self.steps
        whose = steps.scheduler if isinstance(steps, DiffusersSpacing) else "any scheduler"
        records = (record for record in SCHEDULERS.values() if not record.inverts)
        alike = (solver for record in records for solver in record.solvers if solver.sampler == name)
        options = next((dict(solver.options) for solver in alike if solver.options), None)
        fix = "" if options is None else f"compose with sampler=({name!r}, {options!r}), or "
        return f"{self.system.parts.label('sampler')} with these options is not that of {whose}; {fix}pass sampler="

    def _options(self, record: Scheduler, solver: Solver) -> dict[str, Any] | None:
        """The scheduler's options for those of the sampler; None if it is another one."""
        sampler: Any = self.system.parts.sampler
        options = attrs.asdict(sampler, recurse=False)
        defaults = {field.name: field.default for field in attrs.fields(type(sampler))}
        if isinstance(sampler, DiffusersTCD) and not np.array_equal(
            sampler.chain().alpha_bar, self.system.table.alpha_bar
        ):
            return None
        key, usual = record.eta or ("", None)
        eta = options.pop(key, usual)
        found = solver.config(options, defaults)
        if found is None:
            return None
        final, first = options.get("final_alpha_bar", 1.0), float(self.system.table.alpha_bar[1])
        short = final != 1.0 or (self.system.settings.sampling or {}).get("final") == "sigma_min"
        unlike = record.end == "clean" if short else record.end in ("level 1", "sigma_min")
        if unlike or final not in (1.0, first):
            return None
        if record.end in record.options:
            found[record.end] = {"final_sigmas_type": ("zero", "sigma_min")}.get(record.end, (True, False))[short]
        if eta != usual:
            self.problems.append(f"{key}={eta:g} is given to each call of diffusers; pass sampler=")
        return found

    def _write_edm(self, record: Scheduler) -> None:
        self._write_package(record, "edm", ("sigma_min", "sigma_max", "rho"), ("sigma_data",))
        self.config["sigma_schedule"] = getattr(self.steps, "sigmas", "karras")

    def _write_flow(self, record: Scheduler) -> None:
        self._write_package(record, "flow", (), ())
        if getattr(self.system.parts.schedule, "time_scale", None) != self.system.num_steps:
            self.problems.append(f"time_scale of the schedule is not num_steps={self.system.num_steps}; pass sampler=")
        steps = self.steps
        if isinstance(steps, DiffusersSpacing):
            found: dict[str, Any] = {"shift": steps.shift, "shift_terminal": steps.shift_terminal}
            found |= {"use_dynamic_shifting": steps.mu is not None, "time_shift_type": steps.time_shift_type}
            self.config |= {key: value for key, value in found.items() if key in record.options}

    def _write_package(
        self, record: Scheduler, chain: str, of_schedule: tuple[str, ...], of_mean: tuple[str, ...]
    ) -> None:
        """Options that are those of schedule and mean of a package."""
        package, schedule, mean = PACKAGES[chain]
        for kind, name in (("schedule", schedule), ("mean", mean)):
            if self.names[kind] != name:
                self.problems.append(f"{record.name} needs {kind} {name!r} of {package}; pass sampler=")
                return
        self.config["num_train_timesteps"] = self.system.num_steps
        parts = self.system.parts
        self.config |= {name: getattr(parts.schedule, name) for name in of_schedule}
        self.config |= {name: getattr(parts.mean, name) for name in of_mean}

    def _write_betas(self, record: Scheduler) -> None:
        schedule, system = self.system.parts.schedule, self.system
        self.config["num_train_timesteps"] = system.num_steps
        predictions = {mean: prediction for prediction, mean in MEANS.items()}
        self.config["prediction_type"] = predictions.get(self.names["mean"], "")
        if isinstance(schedule, DiffusersBetas) and system.settings.train_spacing is None:
            floor = TINY if schedule.rescale_zero_snr and record.divides else 0.0
            if schedule.smallest_alpha_bar == floor and (not schedule.rescale_zero_snr or _ZERO in record.options):
                betas = None if schedule.trained_betas is None else list(schedule.trained_betas)
                self.config |= {
                    "beta_start": schedule.beta_start,
                    "beta_end": schedule.beta_end,
                    "beta_schedule": schedule.beta_schedule,
                    "trained_betas": betas,
                }
                if _ZERO in record.options:
                    self.config[_ZERO] = schedule.rescale_zero_snr
                return
        self.config["trained_betas"] = system.table.beta[1:].tolist()

    def _write_variance(self, record: Scheduler) -> None:
        var, key = self.names["var"], "variance_type"
        if key in record.options and var in VARIANCES:
            self.config[key] = record.options[key] if var == "fixed_small" else var
        elif self.system.parts.var.extra_outputs:
            self.problems.append(f"{record.name} has no learned variance, but var is {var!r}; pass sampler=")
        elif record.name == "DDPMScheduler":
            self.problems.append(
                f"var {var!r} is none of {', '.join(dict.fromkeys(VARIANCES.values()))}; pass sampler="
            )

    def _write_clipping(self, record: Scheduler) -> None:
        settings = self.system.settings
        sampling = settings.sampling or {}
        clips = settings.clip_x_start if sampling.get("clip") is None else sampling["clip"]
        found: dict[str, Any] = {"clip_sample": clips, "clip_sample_range": 1.0} if clips else {"clip_sample": False}
        for part, name in resolve_several("guidance", sampling.get("guidance")):
            options = attrs.asdict(part, recurse=False)
            if name == "static_threshold" and not clips:
                found = {"clip_sample": True, "clip_sample_range": options["limit"]}
            elif name == "dynamic_threshold" and not clips and options["limit"] == 1 and options["largest"] is not None:
                ratio, largest = options["percentile"], options["largest"]
                found = {"thresholding": True, "dynamic_thresholding_ratio": ratio, "sample_max_value": largest}
            else:
                self.problems.append(f"guidance {name!r} of sampling cannot be said; pass sampler=")
        for key, value in found.items():
            if key in record.options:
                self.config[key] = value
            elif value is not False and key in ("clip_sample", "thresholding"):
                self.problems.append(f"{record.name} has no {key}, but estimates are clipped; pass sampler=")

    def _write_steps(self, record: Scheduler) -> None:
        steps, found = self.steps, {}
        if isinstance(steps, DiffusersSpacing):
            found = {
                "timestep_spacing": steps.timestep_spacing,
                "steps_offset": steps.steps_offset,
                **({"sigma_min": steps.sigma_min, "sigma_max": steps.sigma_max} if record.chain == "betas" else {}),
                "lambda_min_clipped": -float("inf") if steps.lambda_min_clipped is None else steps.lambda_min_clipped,
            }
            if GRIDS[record.name].distilled:
                found["original_inference_steps"] = steps.original_inference_steps
            if "sigma_schedule" not in record.options:
                found |= {f"use_{key}": steps.sigmas == kind for key, kind in SIGMAS.items()}
        elif (spaced := self._same_levels(record)) is not None:
            found = {"timestep_spacing": spaced}
        elif steps is not None:
            self.problems.append(f"steps={steps!r} of sampling is not a spacing of {record.name}; pass sampler=")
        for key, value in found.items():
            if key in record.options:
                self.config[key] = value
            elif value not in (None, False, 0, -float("inf"), "linspace"):
                self.problems.append(f"{record.name} has no {key}, which would be {value!r}; pass sampler=")

    def _same_levels(self, record: Scheduler) -> str | None:
        """The timestep_spacing that visits the levels of the default spacing; None if there is none."""
        table = self.system.table
        try:
            wanted = levels(table.num_steps, self.steps, table)
        except OptionError:  # noise between levels
            return None
        for name in TIMES if self.steps is not None else ():
            try:
                if DiffusersSpacing(len(wanted), record.name, name).levels(table) == wanted:
                    return name
            except OptionError:  # fewer levels there
                continue
        return None


_ZERO = "rescale_betas_zero_snr"


def _steps(system: diffkit.System) -> Any:
    """The default spacing: diffusers' part, None for every level, or another spacing as it is."""
    steps = (system.settings.sampling or {}).get("steps")
    if steps is None or steps == "all":
        return None
    part = spacing_part(steps)
    return part if isinstance(part, DiffusersSpacing) else steps


def _chain_problems(system: diffkit.System) -> Iterator[str]:
    """What no scheduler over a chain of betas can say."""
    table, names = system.table, system.parts.names
    if not np.allclose(table.total_std, 1, atol=1e-12):
        yield f"schedule {names['schedule']!r} does not preserve the variance; pass sampler="
    if not np.allclose(table.time[1:], np.arange(system.num_steps), atol=1e-9):
        yield "the network is conditioned on other times than 0, 1, ..., T - 1; pass sampler="
    if names["mean"] not in MEANS.values():
        yield f"mean {names['mean']!r} is none of {', '.join(MEANS.values())}; pass sampler="
