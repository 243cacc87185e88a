"""The schedulers of diffusers that are read and written: one record each.

A record lists the options of a class under diffusers' names with their defaults, and says which of its solvers are
which samplers. An option that neither the record's solvers nor the common groups below read must be at its default.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import field, frozen

Config = Mapping[str, Any]

CHAIN: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
"""Noise levels, and what the network predicts."""
EDM: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "rho": 7.0,
}
"""Noise levels of EDM, and its preconditioning."""
STRAIGHT: dict[str, Any] = {"num_train_timesteps": 1000, "shift": 1.0}
SHIFTED: dict[str, Any] = {
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "time_shift_type": "exponential",
    "shift_terminal": None,
}
"""Shifts of noise levels by the size of images; pipelines compute mu of the four numbers."""
SPACED: dict[str, Any] = {"timestep_spacing": "linspace", "steps_offset": 0}
CLIPPED: dict[str, Any] = {"clip_sample": True, "clip_sample_range": 1.0}
THRESHOLDED: dict[str, Any] = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
SIGMAS: dict[str, Any] = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
FLOW: dict[str, Any] = {
    "use_flow_sigmas": False,
    "flow_shift": 1.0,
    "use_dynamic_shifting": False,
    "time_shift_type": "exponential",
}
"""Sampling a network that was trained to predict velocities on straight paths."""
_LEADING: dict[str, Any] = {**SPACED, "timestep_spacing": "leading"}
_RANGE: dict[str, Any] = {"sigma_min": None, "sigma_max": None}
LEARNED: dict[str, Any] = {"variance_type": None}
ZERO_SNR: dict[str, Any] = {"rescale_betas_zero_snr": False}
ENDS: dict[str, Any] = {"final_sigmas_type": "zero"}

INERT: dict[str, str] = {
    "clip_sample_range": "clip_sample",
    "dynamic_thresholding_ratio": "thresholding",
    "sample_max_value": "thresholding",
    "flow_shift": "use_flow_sigmas",
    "time_shift_type": "use_dynamic_shifting",
}
"""Options that change nothing while another one, their switch, is False."""


@frozen
class Solver:
    """One sampler, and the options of a scheduler at which it is that one.

    Attributes:
        sampler: Registered name.
        when: Options of the scheduler; a tuple is a choice, which one of `copied` says.
        options: Options of the sampler.
        copied: Options of the sampler whose values are options of the scheduler, by the names of both.
        ends: The sampler has the option final_alpha_bar, so that a chain may end at level 1.
    """

    sampler: str
    when: Config = field(factory=dict)
    options: Config = field(factory=dict)
    copied: Mapping[str, str] = field(factory=dict)
    ends: bool = False

    def fits(self, config: Config, short: bool) -> bool:
        """Return whether it is the solver of a configuration; ``short`` if that ends at level 1."""
        return (self.ends or not short) and all(
            config[key] in value if isinstance(value, tuple) else config[key] == value
            for key, value in self.when.items()
        )

    def slot(self, config: Config, final_alpha_bar: float) -> tuple[str, dict[str, Any]]:
        """Return name and options of the sampler."""
        copied = {name: config[key] for name, key in self.copied.items()}
        end = {"final_alpha_bar": final_alpha_bar} if self.ends else {}
        return self.sampler, {**self.options, **copied, **end}

    def config(self, options: Config, defaults: Config) -> dict[str, Any] | None:
        """Return the scheduler's options for options of the sampler; None if it has others.

        Args:
            options: The sampler's.
            defaults: Those that an option must have which this record does not name.
        """
        named = {"final_alpha_bar"} | set(self.copied)
        wanted = {**defaults, **self.options}
        if any(options[name] != wanted[name] for name in options if name not in named):
            return None
        return {**self.when, **{key: options[name] for name, key in self.copied.items()}}


@frozen
class Scheduler:
    """One class of schedulers.

    Attributes:
        name: Its name.
        options: Its options and their defaults.
        solvers: Samplers that it is.
        end: The option that decides whether a chain ends at clean data or at level 1, or that value itself: "clean";
            "level 1" by the sampler's last step; "sigma_min" without that step.
        chain: Where its noise levels come from: "betas", "edm" (sigma) or "flow" (straight paths).
        eta: The sampler's option that diffusers is told at each call as eta, and its default there.
        inverts: Options of `System.encode` with which it goes from data to noise; none if it samples.
        limits: Values of an option that are read where others are not, and why.
        divides: It cannot start from a level without signal, and takes a little in its place.
    """

    name: str
    options: Config
    solvers: tuple[Solver, ...]
    end: str = "clean"
    divides: bool = False
    chain: str = "betas"
    eta: tuple[str, float] | None = None
    inverts: Config = field(factory=dict)
    limits: Mapping[str, tuple[tuple[Any, ...], str]] = field(factory=dict)

    def solver(self, config: Config) -> Solver | None:
        """Return the solver of a configuration; None if there is no such sampler."""
        short = self.ends_at_level_1(config)
        return next((solver for solver in self.solvers if solver.fits(config, short)), None)

    def read(self) -> frozenset[str]:
        """Return the options that are read."""
        groups = [CHAIN, EDM, STRAIGHT, SPACED, CLIPPED, THRESHOLDED, SIGMAS, LEARNED, ZERO_SNR, ENDS]
        groups += [SHIFTED] if self.chain == "flow" else []
        known = {name for group in groups for name in group} | set(INERT)
        known |= {
            "set_alpha_to_one",
            "original_inference_steps",
            "lambda_min_clipped",
            "use_lu_lambdas",
            "sigma_min",
            "sigma_max",
        }
        for solver in self.solvers:
            known |= set(solver.when) | set(solver.copied.values())
        return frozenset(known & set(self.options))

    def fixed(self, config: Config) -> Iterator[str]:
        """Yield the options that are not read and not at their defaults."""
        for name in sorted(set(self.options) - self.read()):
            if config[name] != self.options[name]:
                yield name

    def ends_at_level_1(self, config: Config) -> bool:
        """Return whether a chain ends at level 1 in place of clean data."""
        if self.end in self.options:
            return config[self.end] in ("sigma_min", False)
        return self.end == "level 1"


_STAYS = "diffusers' last step stays at the noisiest level"


def _dpm(algorithm: str, order: int | tuple[int, ...]) -> dict[str, Any]:
    return {"algorithm_type": algorithm, "solver_order": order}


_DPM_OPTIONS: dict[str, Any] = {
    **CHAIN,
    "solver_order": 2,
    **THRESHOLDED,
    "algorithm_type": "dpmsolver++",
    "solver_type": "midpoint",
    "lower_order_final": True,
    **SIGMAS,
    **FLOW,
    **ENDS,
    "lambda_min_clipped": -float("inf"),
    **LEARNED,
}
_DPM_INVERSE = {
    name: value
    for name, value in _DPM_OPTIONS.items()
    if name not in {*ENDS, "use_dynamic_shifting", "time_shift_type"}
}
_K_OPTIONS: dict[str, Any] = {**CHAIN, **SIGMAS, **SPACED}
_NARROW: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012}
_DISTILLED: dict[str, Any] = {
    **CHAIN,
    **_NARROW,
    "beta_schedule": "scaled_linear",
    "original_inference_steps": 50,
    "set_alpha_to_one": True,
    **_LEADING,
    **ZERO_SNR,
}
"""A network that was distilled; set_alpha_to_one, timestep_spacing and steps_offset change nothing."""

_PLAIN: dict[str, Any] = {"solver_type": "midpoint", "lower_order_final": True, "euler_at_final": False}
_MULTISTEP = (("dpmsolver++", (1, 2, 3)), ("dpmsolver", (1, 2, 3)), ("sde-dpmsolver++", (1, 2)))
"""Orders of each algorithm. At order 3 with noise diffusers weighs the curvature with the wrong sign."""
_ORDERS: dict[str, Any] = {"solver_order": (1, 2, 3)}
_PUBLISHED: dict[str, Any] = {"lower_order_long": False}
_FRESH: dict[str, Any] = {"eta": 1.0, "variance": "analytic", "s_noise": 1.0}
_COPIED = {name: name for name in ("algorithm_type", "solver_order", "solver_type", "lower_order_final")}
_COPIED_DEIS = {name: name for name in ("solver_order", "lower_order_final")}
_COPIED_UNIPC = _COPIED_DEIS | {"solver_type": "solver_type"}
_COPIED_CHAIN = {name: name for name in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")}
_COPIED_CHAIN |= {"trained_betas": "trained_betas", "rescale_zero_snr": "rescale_betas_zero_snr"}
_COPIED_DPM = _COPIED | {"euler_at_final": "euler_at_final"}

SCHEDULERS: dict[str, Scheduler] = {
    record.name: record
    for record in (
        Scheduler(
            "DDPMScheduler",
            {**CHAIN, "variance_type": "fixed_small", **CLIPPED, **THRESHOLDED, **_LEADING, **ZERO_SNR},
            (Solver("ancestral"),),
        ),
        Scheduler(
            "DDIMScheduler",
            {**CHAIN, **CLIPPED, "set_alpha_to_one": True, **THRESHOLDED, **_LEADING, **ZERO_SNR},
            (Solver("diffusers_ddim", ends=True), Solver("ddim")),
            end="set_alpha_to_one",
            eta=("eta", 0.0),
        ),
        Scheduler(
            "DDIMInverseScheduler",
            {**CHAIN, **CLIPPED, "set_alpha_to_one": True, **_LEADING, **ZERO_SNR},
            (Solver("ddim", {"set_alpha_to_one": True, "clip_sample_range": 1.0}, {"clipped_eps": False}),),
            inverts={"time_of": "end"},
        ),
        Scheduler(
            "PNDMScheduler",
            {**CHAIN, "skip_prk_steps": False, "set_alpha_to_one": False, **_LEADING},
            (Solver("diffusers_pndm", copied={"skip_prk_steps": "skip_prk_steps"}, ends=True),),
            end="set_alpha_to_one",
        ),
        Scheduler(
            "DPMSolverMultistepScheduler",
            {**_DPM_OPTIONS, "euler_at_final": False, "use_lu_lambdas": False, **SPACED, **ZERO_SNR},
            (
                *(Solver("diffusers_multistep", _dpm(*kind), {}, _COPIED_DPM, ends=True) for kind in _MULTISTEP),
                Solver("dpmpp_2m", _PLAIN | _dpm("dpmsolver++", 2), _PUBLISHED),
                Solver("sde_dpmpp_2m", _PLAIN | _dpm("sde-dpmsolver++", 2), _PUBLISHED),
            ),
            end="final_sigmas_type",
            divides=True,
        ),
        Scheduler(
            "DPMSolverMultistepInverseScheduler",
            {**_DPM_INVERSE, "euler_at_final": False, **SPACED},
            tuple(Solver("diffusers_multistep", _dpm(*kind), {}, _COPIED_DPM) for kind in _MULTISTEP[:2]),
            end="sigma_min",
            inverts={"final": "sigma_min"},
            limits={
                "timestep_spacing": (("linspace", "leading"), _STAYS),
                **dict.fromkeys(SIGMAS, ((False,), _STAYS)),
            },
        ),
        Scheduler(
            "DPMSolverSinglestepScheduler",
            {**_DPM_OPTIONS, "lower_order_final": False},
            tuple(Solver("diffusers_singlestep", _dpm(*kind), {}, _COPIED, ends=True) for kind in _MULTISTEP[:2]),
            end="final_sigmas_type",
        ),
        Scheduler(
            "DEISMultistepScheduler",
            {
                **CHAIN,
                "solver_order": 2,
                **THRESHOLDED,
                "algorithm_type": "deis",
                "solver_type": "logrho",
                "lower_order_final": True,
                **SIGMAS,
                **FLOW,
                **SPACED,
            },
            (
                Solver(
                    "diffusers_multistep", {"solver_order": (1, 2, 3)}, {"algorithm_type": "deis"}, _COPIED_DEIS, True
                ),
            ),
            end="level 1",
        ),
        Scheduler(
            "UniPCMultistepScheduler",
            {
                **CHAIN,
                "solver_order": 2,
                **THRESHOLDED,
                "predict_x0": True,
                "solver_type": "bh2",
                "lower_order_final": True,
                "disable_corrector": [],
                "solver_p": None,
                **SIGMAS,
                **FLOW,
                **SPACED,
                **ENDS,
                **ZERO_SNR,
                **_RANGE,
                "shift_terminal": None,
            },
            (
                Solver(
                    "diffusers_unipc",
                    {"solver_order": (1, 2, 3), "solver_type": ("bh2", "bh1")},
                    {},
                    _COPIED_UNIPC,
                    ends=True,
                ),
                *(
                    Solver(
                        "unipc",
                        {"solver_order": order, "lower_order_final": True},
                        {"estimates": order, **_PUBLISHED},
                        {"variant": "solver_type"},
                    )
                    for order in (1, 2)
                ),
            ),
            end="final_sigmas_type",
            divides=True,
        ),
        Scheduler(
            "EulerDiscreteScheduler",
            {
                **CHAIN,
                "interpolation_type": "linear",
                **SIGMAS,
                **_RANGE,
                "timestep_type": "discrete",
                **SPACED,
                **ZERO_SNR,
                **ENDS,
            },
            (Solver("euler"), Solver("diffusers_ddim", {}, {"eta": 0.0}, ends=True)),
            end="final_sigmas_type",
            divides=True,
        ),
        Scheduler(
            "EulerAncestralDiscreteScheduler",
            {**CHAIN, **SPACED, **ZERO_SNR},
            (Solver("euler_ancestral", {}, _FRESH),),
            divides=True,
        ),
        Scheduler(
            "HeunDiscreteScheduler",
            {**_K_OPTIONS, **_NARROW, **CLIPPED, "clip_sample": False},
            (Solver("heun", {}, _PUBLISHED),),
        ),
        Scheduler(
            "LMSDiscreteScheduler",
            _K_OPTIONS,
            (Solver("lms", {}, {"estimates": 4, "corrected_start": False} | _PUBLISHED),),
        ),
        Scheduler("KDPM2DiscreteScheduler", {**_K_OPTIONS, **_NARROW}, (Solver("dpm2", {}, _PUBLISHED),)),
        Scheduler(
            "KDPM2AncestralDiscreteScheduler",
            {**_K_OPTIONS, **_NARROW},
            (Solver("dpm2_ancestral", {}, _PUBLISHED | _FRESH),),
        ),
        Scheduler(
            "DPMSolverSDEScheduler",
            {**_K_OPTIONS, **_NARROW, "noise_sampler_seed": None},
            (Solver("dpmpp_sde", {}, {"eta": 1.0, "r": 0.5, "s_noise": 1.0}),),
        ),
        Scheduler(
            "LCMScheduler",
            {
                **_DISTILLED,
                **CLIPPED,
                "clip_sample": False,
                **THRESHOLDED,
                "timestep_scaling": 10.0,
            },
            (Solver("diffusers_lcm", copied={"timestep_scaling": "timestep_scaling"}),),
        ),
        Scheduler(
            "TCDScheduler",
            {**_DISTILLED, **CLIPPED, "clip_sample": False, **THRESHOLDED, "timestep_scaling": 10.0},
            (Solver("diffusers_tcd", {"clip_sample": False, "thresholding": False}, {}, _COPIED_CHAIN, ends=True),),
            end="level 1",
            eta=("gamma", 0.3),
        ),
        Scheduler(
            "EDMEulerScheduler",
            {**EDM, **ENDS},
            (Solver("euler"), Solver("diffusers_ddim", {}, {"eta": 0.0}, ends=True)),
            "final_sigmas_type",
            chain="edm",
        ),
        Scheduler(
            "EDMDPMSolverMultistepScheduler",
            {
                **EDM,
                "solver_order": 2,
                **THRESHOLDED,
                "algorithm_type": "dpmsolver++",
                "solver_type": "midpoint",
                "lower_order_final": True,
                "euler_at_final": False,
                **ENDS,
            },
            tuple(Solver("diffusers_multistep", _dpm(*kind), {}, _COPIED_DPM, ends=True) for kind in _MULTISTEP[::2]),
            "final_sigmas_type",
            chain="edm",
        ),
        Scheduler(
            "FlowMatchEulerDiscreteScheduler",
            {**STRAIGHT, **SHIFTED, "invert_sigmas": False, **SIGMAS, "stochastic_sampling": False},
            (Solver("flow_euler"),),
            chain="flow",
        ),
        Scheduler("FlowMatchHeunDiscreteScheduler", STRAIGHT, (Solver("flow_heun"),), chain="flow"),
    )
}

IN_PIPELINES = frozenset(
    f"{name}Scheduler"
    for name in ("DDPM", "DDIM", "DPMSolverMultistep", "DPMSolverSinglestep", "LCM", "TCD", "FlowMatchEulerDiscrete")
)
"""Classes that the unconditional pipelines of diffusers can run: these scale neither the input of a network nor the
noise that a chain starts from, and give every scheduler a generator, which others do not take."""
