"""A ``scheduler_config.json`` of diffusers read as a composition.

reading = from_scheduler_config("stable-model/scheduler")
system = reading.compose(backbone=network, data_shape=(3, 64, 64))
images = system.sample(4, steps=reading.levels(50))
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from attrs import field, frozen

import diffkit
from diffkit import OptionError
from diffkit.guidance import StaticThreshold
from diffkit.protocols import Guidance
from diffkit.table import F64, ProcessTable
from diffkit_diffusers.betas import SHAPES, DiffusersBetas

Config = Mapping[str, Any]

MEANS = {"epsilon": "eps", "sample": "x_start", "v_prediction": "v"}
"""diffusers' prediction types and the mean parameterizations they are."""

VARIANCES = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned_range": "learned_range",
}
"""diffusers' variance types; its "fixed_large_log" takes the root of a logarithm, and what it stands for is read."""

SOLVERS = {
    ("dpmsolver++", 1): "ddim",
    ("dpmsolver++", 2): "dpmpp_2m",
    ("dpmsolver++", 3): "dpmpp_3m",
    ("sde-dpmsolver++", 2): "sde_dpmpp_2m",
}
"""algorithm_type and solver_order of a DPMSolverMultistepScheduler, and the samplers they are."""

_SPACINGS = ("linspace", "leading", "trailing")
_TINY = 2.0**-24
"""diffusers' stand-in for no signal where its solver divides by it."""

_CLASSES: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {"timestep_spacing": "leading", "clip_sample": True, "variance_type": "fixed_small"},
    "DDIMScheduler": {"timestep_spacing": "leading", "clip_sample": True},
    "DPMSolverMultistepScheduler": {"timestep_spacing": "linspace"},
    "EulerDiscreteScheduler": {"timestep_spacing": "linspace"},
}
"""The schedulers that are read, and those of their defaults in which they differ."""

_ONLY: dict[str, Any] = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
    "timestep_type": "discrete",
    "interpolation_type": "linear",
    "final_sigmas_type": "zero",
    "solver_type": "midpoint",
}
"""Keys of which one value alone can be read: the others put steps between the levels of the chain, or end elsewhere."""


@frozen
class SchedulerReading:
    """What a scheduler's configuration says, in diffkit's terms.

    Attributes:
        scheduler: Name of the scheduler's class.
        slots: Keyword arguments of `diffkit.compose`.
        guidance: To be given to ``system.sample``; empty unless estimates are clipped to another range than [-1, 1].
        spacing: "linspace", "leading" or "trailing".
        offset: Added to the timesteps of "leading".
        clipped_log_snr: Levels below it are left out ("lambda_min_clipped", DPM-Solver only).
    """

    scheduler: str
    slots: Mapping[str, Any] = field(hash=False)
    guidance: tuple[Guidance, ...]
    spacing: str
    offset: int
    clipped_log_snr: float

    @property
    def num_steps(self) -> int:
        """T of the training chain."""
        return int(self.slots["num_steps"])

    @property
    def table(self) -> ProcessTable:
        """Noise levels of the training chain."""
        schedule: DiffusersBetas = self.slots["schedule"]
        return schedule.table(self.num_steps)

    def compose(self, **slots: Any) -> diffkit.System:
        """Return a system; any slot, such as backbone and data_shape, may be given or overridden."""
        return diffkit.compose(**{**self.slots, **slots})

    def levels(self, n: int) -> list[int]:
        """Return the levels that the scheduler visits in n steps, ascending; for ``system.sample(steps=...)``.

        Level k is diffusers' timestep k - 1. Where diffusers would go between two levels, the nearer one is taken.
        Every step ends where the next begins; one of diffusers' DDIMScheduler ends T // n timesteps lower, which is
        elsewhere for "linspace", and for "trailing" where n does not divide T.
        """
        if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= self.num_steps:
            raise OptionError(f"steps must be an integer in 1..{self.num_steps}, got {n!r}")
        top, extra = self.num_steps, 0
        if self.scheduler == "DPMSolverMultistepScheduler":
            lowest = 2 * self.clipped_log_snr  # its lambda is half of log_snr
            top, extra = int(np.count_nonzero(self.table.log_snr[1:] >= lowest)), 1
        timesteps: F64
        if self.spacing == "linspace":
            timesteps = np.linspace(0, top - 1, n + extra).round()[extra:]
        elif self.spacing == "leading":
            timesteps = np.arange(float(n + extra))[extra:] * (top // (n + extra)) + self.offset
        else:
            timesteps = np.arange(top, 0, -self.num_steps / n).round()[::-1] - 1
        levels = [int(t) + 1 for t in timesteps]
        if len(set(levels)) < len(levels) or levels[0] < 1 or levels[-1] > self.num_steps:
            raise OptionError(
                f"{self.scheduler} with timestep_spacing={self.spacing!r} and steps_offset={self.offset} has no {n} "
                f"different timesteps below {self.num_steps}; use fewer steps"
            )
        return levels


def from_scheduler_config(source: str | Path | Config, *, eta: float = 0.0) -> SchedulerReading:
    """Read the configuration of a DDPM, DDIM, DPM-Solver (multistep) or Euler scheduler.

    Args:
        source: The file, a folder that holds ``scheduler_config.json``, or its content.
        eta: Stochasticity of a DDIMScheduler, which diffusers is told at sampling time.
    Raises:
        OptionError: The file cannot be read, or asks for what diffkit cannot do; every such thing is listed.
    """
    given = source if isinstance(source, Mapping) else _content(Path(source))
    name = given.get("_class_name")
    if name not in _CLASSES:
        what = f"a scheduler of class {name!r}" if name else "a scheduler's configuration without '_class_name'"
        raise OptionError(f"{what} cannot be read; these can: {', '.join(_CLASSES)}")
    config = {**_COMMON, **_CLASSES[name], **{k: v for k, v in given.items() if v is not None or k not in _COMMON}}
    if problems := list(_problems(name, config)):
        raise OptionError("\n  ".join([f"this {name} cannot be read:", *problems]))
    schedule = _schedule(name, config)
    return SchedulerReading(
        scheduler=name,
        slots=_slots(name, config, schedule, eta),
        guidance=_guidance(config),
        spacing=config["timestep_spacing"],
        offset=int(config["steps_offset"]),
        clipped_log_snr=float(config.get("lambda_min_clipped", -np.inf)),
    )


_COMMON: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "variance_type": None,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "thresholding": False,
    "sample_max_value": 1.0,
    "steps_offset": 0,
    "set_alpha_to_one": True,
    "rescale_betas_zero_snr": False,
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
}


def _content(path: Path) -> Config:
    file = path / "scheduler_config.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{file} cannot be read as a scheduler's configuration: {error}") from error
    if not isinstance(content, dict):
        raise OptionError(f"{file} cannot be read as a scheduler's configuration: it holds no JSON object")
    return content


def _problems(name: str, config: Config) -> Iterator[str]:
    """One sentence for each thing that diffkit cannot do as diffusers does."""
    for key, readable in _ONLY.items():
        if (config.get(key) or readable) != readable:
            yield f"{key}={config[key]!r} is not supported; only {readable!r} is"
    choices = {"prediction_type": MEANS, "timestep_spacing": _SPACINGS}
    choices |= {} if config["trained_betas"] is not None else {"beta_schedule": SHAPES}
    for key, among in choices.items():
        if config[key] not in among:
            yield f"{key}={config[key]!r} is not supported; {', '.join(map(repr, among))} are"
    if config["variance_type"] is not None and config["variance_type"] not in VARIANCES:
        yield (
            f"variance_type={config['variance_type']!r} is not supported: diffusers takes the network's output for a "
            f"variance there, not for its logarithm; {', '.join(map(repr, VARIANCES))} are"
        )
    solver = (config["algorithm_type"], config["solver_order"])
    if name == "DPMSolverMultistepScheduler" and solver not in SOLVERS:
        known = ", ".join(f"{a} of order {order}" for a, order in SOLVERS)
        yield f"algorithm_type={solver[0]!r} of solver_order={solver[1]!r} is not supported; these are: {known}"
    if config["thresholding"] and config["sample_max_value"] != 1:
        yield (
            f"thresholding with sample_max_value={config['sample_max_value']!r} is not supported; only 1.0 is, which "
            "is clipping. Turn it off and give guidance=diffkit.guidance.DynamicThreshold() to system.sample"
        )


def _schedule(name: str, config: Config) -> DiffusersBetas:
    betas = config["trained_betas"]
    zero_snr = bool(config["rescale_betas_zero_snr"])
    divides = name in ("DPMSolverMultistepScheduler", "EulerDiscreteScheduler")
    return DiffusersBetas(
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        beta_schedule=config["beta_schedule"] if betas is None else "linear",
        trained_betas=None if betas is None else tuple(float(beta) for beta in betas),
        rescale_zero_snr=zero_snr,
        smallest_alpha_bar=_TINY if zero_snr and divides else 0.0,
    )


def _slots(name: str, config: Config, schedule: DiffusersBetas, eta: float) -> dict[str, Any]:
    num_steps = int(config["num_train_timesteps"])
    var = VARIANCES[config["variance_type"] or "fixed_small"]
    clips = config["thresholding"] or (config["clip_sample"] and config["clip_sample_range"] == 1)
    return {
        "schedule": schedule,
        "mean": MEANS[config["prediction_type"]],
        "var": var,
        "loss": "hybrid" if var == "learned_range" else "simple",
        "sampler": _sampler(name, config, schedule, num_steps, eta),
        "num_steps": num_steps,
        "rescale_time": False,
        "clip_x_start": bool(clips),
    }


def _sampler(name: str, config: Config, schedule: DiffusersBetas, num_steps: int, eta: float) -> Any:
    if name == "DDPMScheduler":
        return "ancestral"
    if name == "DDIMScheduler":
        final = 1.0 if config["set_alpha_to_one"] else float(schedule.table(num_steps).alpha_bar[1])
        return ("diffusers_ddim", {"eta": eta, "final_alpha_bar": final})
    if name == "EulerDiscreteScheduler":
        return "euler"
    return SOLVERS[config["algorithm_type"], config["solver_order"]]


def _guidance(config: Config) -> tuple[Guidance, ...]:
    limit = config["clip_sample_range"]
    if config["clip_sample"] and not config["thresholding"] and limit != 1:
        return (StaticThreshold(float(limit)),)
    return ()
