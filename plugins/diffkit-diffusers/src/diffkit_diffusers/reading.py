"""A ``scheduler_config.json`` of diffusers read as a composition.

reading = from_scheduler_config("stable-model/scheduler")
system = reading.compose(backbone=network, data_shape=(3, 64, 64))
images = system.sample(4, steps=reading.steps(20))
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen

import diffkit
from diffkit import OptionError
from diffkit.errors import did_you_mean
from diffkit.protocols import Guidance
from diffkit.registry import registry
from diffkit.registry.resolve import resolve, resolve_several
from diffkit.table import ProcessTable
from diffkit_diffusers.betas import SHAPES, DiffusersBetas
from diffkit_diffusers.schedulers import SCHEDULERS, Config, Scheduler
from diffkit_diffusers.spacing import TIMES, DiffusersSpacing

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

TINY = 2.0**-24
"""diffusers' stand-in for no signal where its solver divides by it."""
STEPS = 50
"""The number of steps of most of diffusers' pipelines, where a call does not give one."""


@frozen
class SchedulerReading:
    """What a scheduler's configuration says, in diffkit's terms.

    Attributes:
        scheduler: Name of the scheduler's class.
        slots: Keyword arguments of `diffkit.compose`; ``sampling`` has the spacing and the guidance that clips.
        spacing: Where the scheduler's steps are, for the number that ``sampling`` has.
    """

    scheduler: str
    slots: Mapping[str, Any] = field(hash=False)
    spacing: DiffusersSpacing

    @property
    def num_steps(self) -> int:
        """T of the training chain."""
        return int(self.slots["num_steps"])

    @property
    def table(self) -> ProcessTable:
        """Noise levels of the training chain."""
        table: ProcessTable = resolve("schedule", self.slots["schedule"])[0].table(self.num_steps)
        return table

    @property
    def guidance(self) -> tuple[Guidance, ...]:
        """What clips estimates in another way than to [-1, 1]; a call with guidance of its own adds these to it."""
        return tuple(part for part, _ in resolve_several("guidance", self.slots["sampling"].get("guidance")))

    @property
    def stochastic(self) -> bool:
        """True if any noise is added while sampling."""
        return bool(resolve("sampler", self.slots["sampler"])[0].stochastic)

    @property
    def encoding(self) -> Mapping[str, Any]:
        """Options of `System.encode` and `diffkit.tasks.invert` that go from data to noise as a scheduler does.

        A DDIMInverseScheduler gives the network the time of the level gone to; a multistep one takes data for that of
        level 1.
        """
        return {"sampler": self.slots["sampler"], "time_of": "start", **SCHEDULERS[self.scheduler].inverts}

    def compose(self, **slots: Any) -> diffkit.System:
        """Return a system; any slot, such as backbone and data_shape, may be given or overridden."""
        return diffkit.compose(**{**self.slots, **slots})

    def steps(self, n: int) -> DiffusersSpacing:
        """Return where the scheduler's n steps are; for ``system.sample(steps=...)``."""
        if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= self.num_steps:
            raise OptionError(f"steps must be an integer in 1..{self.num_steps}, got {n!r}")
        return attrs.evolve(self.spacing, count=n)

    def levels(self, n: int) -> list[int]:
        """Return the levels that the scheduler visits in n steps, ascending; level k is diffusers' timestep k - 1.

        Every step ends where the next begins; one of diffusers' DDIMScheduler ends T // n timesteps lower, which is
        elsewhere for "linspace", and for "trailing" where n does not divide T.

        Raises:
            OptionError: There are fewer, or the scheduler goes between levels.
        """
        return list(self.steps(n).levels(self.table))


def from_scheduler_config(
    source: str | Path | Config, *, eta: float | None = None, steps: int = STEPS, mu: float | None = None
) -> SchedulerReading:
    """Read the configuration of a scheduler; README.md lists the classes.

    Args:
        source: The file, a folder that holds ``scheduler_config.json``, or its content.
        eta: Stochasticity of a DDIMScheduler or TCDScheduler, which diffusers is told at sampling time; its default
            there is 0 or 0.3.
        mu: Shift of noise levels by the size of images, which diffusers is told at sampling time if
            use_dynamic_shifting is True.
        steps: How many steps the composed system takes by default, which diffusers is told at sampling time, too; on a
            chain that has fewer, as many as it has.
    Raises:
        OptionError: The file cannot be read, or has options that diffkit cannot do; every one is listed.
    """
    given = source if isinstance(source, Mapping) else _content(Path(source))
    record = SCHEDULERS.get(str(given.get("_class_name")))
    if record is None:
        name = given.get("_class_name")
        what = f"a scheduler of class {name!r}" if name else "a scheduler's configuration without '_class_name'"
        raise OptionError(f"{what} cannot be read; these can: {', '.join(SCHEDULERS)}")
    # None is written where a default is not known
    config = {**record.options, **{k: v for k, v in given.items() if k in record.options and v is not None}}
    if problems := [*_unknown(given), *_problems(record, config, mu)]:
        raise OptionError("\n  ".join([f"this {record.name} cannot be read:", *problems]))
    chain = _CHAINS[record.chain](record, config)
    table = resolve("schedule", chain["schedule"])[0].table(chain["num_steps"])
    spacing = _spacing(record, config, table, steps, mu)
    return SchedulerReading(record.name, _slots(record, config, chain, spacing, table, eta), spacing)


def _content(path: Path) -> Config:
    file = path / "scheduler_config.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"{file} cannot be read as a scheduler's configuration: {error}") from error
    if not isinstance(content, dict):
        raise OptionError(f"{file} cannot be read as a scheduler's configuration: it holds no JSON object")
    return content


# ---- what cannot be read ---------------------------------------------------------------------------------------------


def _unknown(given: Config) -> Iterator[str]:
    """Options that no scheduler here has. One of another class changes nothing in diffusers either."""
    known = {name for record in SCHEDULERS.values() for name in record.options}
    for name, value in given.items():
        if not name.startswith("_") and name not in known and value is not None and value is not False:
            yield f"{name}={value!r} is not known{did_you_mean(name, sorted(known))}"


def _problems(record: Scheduler, config: Config, mu: float | None) -> Iterator[str]:
    """One sentence for each thing that diffkit cannot do as diffusers does."""
    for name in record.fixed(config):
        yield f"{name}={config[name]!r} is not supported; only {record.options[name]!r} is"
    choices = {key: (among, "") for key, among in _choices(record, config).items()}
    for key, (among, why) in {**choices, **record.limits}.items():
        if key in config and config[key] not in among:
            verb, because = "is" if len(among) == 1 else "are", why and f": {why}"
            yield f"{key}={config[key]!r} is not supported{because}; {', '.join(map(repr, among))} {verb}"
    variance = config.get("variance_type")
    if variance is not None and variance not in VARIANCES:
        yield (
            f"variance_type={variance!r} is not supported: diffusers takes the network's output for a "
            f"variance there, not for its logarithm; {', '.join(map(repr, VARIANCES))} are"
        )
    if record.solver(config) is None:
        known = [solver.when for solver in record.solvers if solver.sampler == record.solvers[0].sampler]
        keys = [key for key in known[0] if key in config]
        these = "; ".join(_options(when, keys) for when in known)
        yield f"{_options(config, keys)} is not supported; these are: {these}"
    limit = config.get("sample_max_value", 1.0)
    if config.get("thresholding") and limit < 1:
        yield (
            f"thresholding with sample_max_value={limit!r} is not supported: diffusers multiplies every estimate by "
            f"{1 / limit:g} there; 1.0 and more are"
        )
    package, schedule, _ = PACKAGES.get(record.chain, (None, None, None))
    if package is not None and schedule not in registry("schedule").names():
        yield f"it needs the package {package}; pip install {package}"
    if config.get("use_dynamic_shifting") and record.chain == "flow" and mu is None:
        yield "use_dynamic_shifting=True needs mu, which diffusers is told at each call; pass mu="
    if sum(bool(config.get(f"use_{kind}")) for kind in SIGMAS) > 1:
        yield f"only one of {', '.join(f'use_{kind}' for kind in SIGMAS)} can be True"


def _choices(record: Scheduler, config: Config) -> dict[str, Any]:
    """The values of an option that can be read."""
    found: dict[str, Any] = {
        "prediction_type": ("epsilon",) if record.chain == "edm" else MEANS,
        "timestep_spacing": TIMES,
        "final_sigmas_type": ("zero", "sigma_min"),
        "sigma_schedule": ("karras", "exponential"),
        "time_shift_type": ("exponential", "linear"),
    }
    if record.end == "sigma_min" and config["timestep_spacing"] == "leading":  # else data is not that of level 1
        found["steps_offset"] = (0,)
    return found | ({} if config.get("trained_betas") is not None else {"beta_schedule": SHAPES})


def _options(config: Config, keys: list[str]) -> str:
    def text(value: Any) -> str:
        return " or ".join(map(repr, value)) if isinstance(value, tuple) else repr(value)

    return ", ".join(f"{key}={text(config[key])}" for key in keys)


# ---- what is read ----------------------------------------------------------------------------------------------------

SIGMAS = {
    "karras_sigmas": "karras",
    "exponential_sigmas": "exponential",
    "beta_sigmas": "beta",
    "lu_lambdas": "lu",
}
"""Names of the switches, after "use_", and what `DiffusersSpacing.sigmas` says for them."""


PACKAGES = {"edm": ("diffkit-edm", "edm_karras", "edm"), "flow": ("diffkit-flow", "flow_linear", "flow")}
"""Package, schedule and mean of the chains that are not made of betas."""


def _of_betas(record: Scheduler, config: Config) -> dict[str, Any]:
    betas = config["trained_betas"]
    zero_snr = bool(config.get("rescale_betas_zero_snr"))
    schedule = DiffusersBetas(
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        beta_schedule=config["beta_schedule"] if betas is None else "linear",
        trained_betas=None if betas is None else tuple(float(beta) for beta in betas),
        rescale_zero_snr=zero_snr,
        smallest_alpha_bar=TINY if zero_snr and record.divides else 0.0,
    )
    return {"schedule": schedule, "mean": MEANS[config["prediction_type"]], **_times(config)}


def _of_edm(record: Scheduler, config: Config) -> dict[str, Any]:
    _, schedule, mean = PACKAGES["edm"]
    options = {name: float(config[name]) for name in ("sigma_min", "sigma_max", "rho")}
    precondition = {"sigma_data": float(config["sigma_data"])}
    return {"schedule": (schedule, options), "mean": (mean, precondition), **_times(config)}


def _of_flow(record: Scheduler, config: Config) -> dict[str, Any]:
    _, schedule, mean = PACKAGES["flow"]
    scale = float(config["num_train_timesteps"])
    return {"schedule": (schedule, {"time_scale": scale}), "mean": mean, **_times(config)}


def _times(config: Config) -> dict[str, Any]:
    return {"num_steps": int(config["num_train_timesteps"]), "rescale_time": False}


_CHAINS = {"betas": _of_betas, "edm": _of_edm, "flow": _of_flow}


def _spacing(record: Scheduler, config: Config, table: ProcessTable, steps: int, mu: float | None) -> DiffusersSpacing:
    """The spacing of that many steps, or of the most there are."""
    lowest = config.get("lambda_min_clipped", -float("inf"))
    spacing = DiffusersSpacing(
        count=1,
        scheduler=record.name,
        timestep_spacing=config.get("timestep_spacing", "linspace"),
        steps_offset=int(config.get("steps_offset", 0)),
        sigmas=config.get("sigma_schedule")
        or next((kind for key, kind in SIGMAS.items() if config.get(f"use_{key}")), "timesteps"),
        sigma_min=config.get("sigma_min") if record.chain == "betas" else None,
        sigma_max=config.get("sigma_max") if record.chain == "betas" else None,
        rho=float(config.get("rho", 7.0)),
        shift=float(config.get("shift", 1.0)),
        mu=mu if config.get("use_dynamic_shifting") else None,
        time_shift_type=config.get("time_shift_type", "exponential") if record.chain == "flow" else "exponential",
        shift_terminal=config.get("shift_terminal") if record.chain == "flow" else None,
        whole_times=record.name != "DPMSolverMultistepScheduler" or config["beta_schedule"] != "squaredcos_cap_v2",
        half_steps=config.get("skip_prk_steps") is False,
        original_inference_steps=int(config.get("original_inference_steps", 50)),
        lambda_min_clipped=None if lowest == -float("inf") else float(lowest),
    )
    for count in range(min(steps, table.num_steps), 1, -1):
        try:
            attrs.evolve(spacing, count=count).levels(table)
        except OptionError:
            continue
        return attrs.evolve(spacing, count=count)
    return spacing


def _slots(
    record: Scheduler, config: Config, chain: Config, spacing: DiffusersSpacing, table: ProcessTable, eta: float | None
) -> dict[str, Any]:
    var = VARIANCES[config.get("variance_type") or "fixed_small"]
    guidance, final = _guidance(config), {"final": "sigma_min"} if record.end == "sigma_min" else {}
    return {
        **chain,
        "var": var,
        "loss": "hybrid" if var == "learned_range" else "simple",
        "sampler": _sampler(record, config, table, eta),
        "clip_x_start": bool(config.get("clip_sample")) and not guidance,
        "sampling": {"steps": spacing} | ({"guidance": guidance} if guidance else {}) | final,
    }


def _sampler(record: Scheduler, config: Config, table: ProcessTable, eta: float | None) -> tuple[str, dict[str, Any]]:
    solver = record.solver(config)
    assert solver is not None, "a configuration without a solver has been refused"
    end = float(table.alpha_bar[1]) if record.ends_at_level_1(config) else 1.0
    name, options = solver.slot(config, end)
    if record.eta is not None:
        key, default = record.eta
        options[key] = default if eta is None else eta
    return name, options


def _guidance(config: Config) -> list[dict[str, Any]]:
    """What clips estimates, other than to [-1, 1]."""
    if config.get("thresholding"):
        return [
            {
                "name": "dynamic_threshold",
                "percentile": float(config["dynamic_thresholding_ratio"]),
                "largest": float(config["sample_max_value"]),
            }
        ]
    limit = float(config.get("clip_sample_range", 1.0))
    return [{"name": "static_threshold", "limit": limit}] if config.get("clip_sample") and limit != 1 else []
