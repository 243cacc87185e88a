"""Configurations read into compositions sample as diffusers' own schedulers do, in float64.

diffusers' modules are run with float64 in place of float32 (`diffusers_doubles.doubled`), as their tables are in
float32. Where the two differ, a rule has the name of the difference.
"""

from __future__ import annotations

import random
from itertools import product
from typing import Any, NamedTuple

import pytest

pytest.importorskip("diffusers")

from diffusers_doubles import doubled, gap

# diffusers hands tensors to np.array, which torch and NumPy 2 do not agree on; and it warns of what it changes.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

SAME = 1e-10
ROUNDED = 1e-6
"""On "squaredcos_cap_v2" sigma / alpha goes up to 2e4, and its rounding with it."""
FAST = 6
"""How many cases of each sweep the fast lane runs, by a fixed seed."""


class Case(NamedTuple):
    """One configuration, and how it is sampled."""

    scheduler: str
    options: dict[str, Any]
    steps: int = 10
    calls: dict[str, Any] = {}  # noqa: RUF012  never changed


BETAS: tuple[dict[str, Any], ...] = (
    {},
    dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    dict(beta_schedule="squaredcos_cap_v2"),
)
PREDICTIONS = tuple(dict(prediction_type=kind) for kind in ("epsilon", "sample", "v_prediction"))
SPACINGS = tuple(dict(timestep_spacing=kind) for kind in ("leading", "trailing", "linspace"))
CLIPS: tuple[dict[str, Any], ...] = (
    {},
    dict(clip_sample=False),
    dict(clip_sample_range=0.5),
    dict(thresholding=True),
    dict(thresholding=True, sample_max_value=2.5, dynamic_thresholding_ratio=0.9),
    dict(clip_sample=False, steps_offset=1),
)


def each(*choices: Any) -> list[dict[str, Any]]:
    return [{key: value for choice in chosen for key, value in choice.items()} for chosen in product(*choices)]


SIGMAS = [{f"use_{kind}_sigmas": True} for kind in ("karras", "exponential", "beta")]
ENDS = [dict(final_sigmas_type="sigma_min")]
OPTIONS: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "DDPMScheduler": [
        (options, {}) for options in each([dict(variance_type=kind) for kind in ("fixed_small", "fixed_large")], CLIPS)
    ],
    "DDIMScheduler": [
        (options, dict(eta=eta, use_clipped_model_output=True))
        for options in each(
            [CLIPS[1], CLIPS[2], CLIPS[4], CLIPS[5]], [dict(set_alpha_to_one=end) for end in (True, False)]
        )
        for eta in (0.0, 0.5)
    ],
    "DPMSolverMultistepScheduler": [
        (options, {})
        for options in [
            *each([dict(solver_order=order) for order in (1, 2, 3)], [{}, *ENDS]),
            *[dict(algorithm_type="sde-dpmsolver++", solver_order=order) for order in (1, 2)],
            dict(algorithm_type="sde-dpmsolver++", solver_type="heun"),
            dict(solver_type="heun", euler_at_final=True),
            *SIGMAS,
            CLIPS[4],
        ]
    ],
    "EulerDiscreteScheduler": [
        (options, {})
        for options in [
            {},
            *ENDS,
            *SIGMAS,
            *each(SIGMAS, ENDS),
            dict(steps_offset=1),
            *each([dict(steps_offset=1)], ENDS),
            *each([dict(use_karras_sigmas=True, sigma_min=0.1, sigma_max=8.0)], [{}, *ENDS]),
        ]
    ],
}
FIRST = [
    Case(name, common | options, 10, calls)
    for name, kinds in OPTIONS.items()
    for options, calls in kinds
    for common in each(BETAS, SPACINGS, PREDICTIONS)
]
"""1,458 configurations of the four classes that were read first."""

_DPM = [dict(solver_order=order) for order in (1, 2, 3)]
_TWO = [PREDICTIONS[0], PREDICTIONS[2]]
NEXT = [
    Case(f"{name}Scheduler", options, steps)
    for name, kinds in {
        "DPMSolverMultistep": each(_DPM, [{}, dict(use_lu_lambdas=True)], BETAS[1:2])
        + each(_DPM, ENDS, [dict(algorithm_type="dpmsolver", solver_type=kind) for kind in ("midpoint", "heun")])
        + each(_DPM, ENDS, [dict(lower_order_final=False)], PREDICTIONS),
        "DPMSolverSinglestep": each(
            _DPM, [{}, *ENDS], [dict(solver_type=kind, lower_order_final=True) for kind in ("midpoint", "heun")]
        )
        + each(_DPM, ENDS, [dict(algorithm_type="dpmsolver")], [{}, SIGMAS[0]]),
        "DEISMultistep": each(_DPM, PREDICTIONS, SPACINGS) + each(_DPM, SIGMAS),
        "UniPCMultistep": each(_DPM, PREDICTIONS, [dict(solver_type="bh1"), {}], [{}, *ENDS])
        + each(_DPM, SIGMAS, [{}, *ENDS])
        + each(_DPM, SPACINGS, [dict(lower_order_final=False, final_sigmas_type="sigma_min")]),
        "PNDM": each(
            [dict(skip_prk_steps=skip, set_alpha_to_one=end) for skip in (True, False) for end in (True, False)],
            [{}, dict(steps_offset=1)],
            BETAS[:2],
        ),
        "EulerAncestralDiscrete": each(SPACINGS, _TWO, BETAS),
        "HeunDiscrete": each(
            SPACINGS, PREDICTIONS, [{}, *SIGMAS, dict(clip_sample=True, clip_sample_range=2.0)], BETAS
        ),
        "LMSDiscrete": each(SPACINGS, PREDICTIONS, [{}, *SIGMAS], BETAS),
        "KDPM2Discrete": each(SPACINGS, _TWO, [{}, *SIGMAS], BETAS[:2]),
        "KDPM2AncestralDiscrete": each(SPACINGS, _TWO, [{}, *SIGMAS], BETAS[:2]),
        "DDIMInverse": each(
            PREDICTIONS,
            [{}, dict(steps_offset=1), dict(timestep_spacing="trailing")],
            [{}, dict(clip_sample=False)],
            BETAS,
        ),
        "DPMSolverMultistepInverse": each(
            _DPM,
            PREDICTIONS,
            [dict(steps_offset=1), dict(solver_type="heun"), dict(lower_order_final=False), SPACINGS[0]],
        )
        + each(_DPM, [dict(algorithm_type="dpmsolver"), dict(euler_at_final=True), CLIPS[4]], BETAS[:2])
        + [BETAS[2] | dict(lambda_min_clipped=-5.1)],
        "LCM": each(
            PREDICTIONS,
            BETAS[1:],
            [{}, dict(original_inference_steps=40, clip_sample=True), dict(timestep_scaling=0.002), CLIPS[4]],
        )
        + each(PREDICTIONS[2:], [dict(rescale_betas_zero_snr=True)]),
        "EDMEuler": each(
            [{}, *ENDS], [dict(sigma_schedule=kind) for kind in ("karras", "exponential")], [dict(rho=5.0)]
        ),
        "EDMDPMSolverMultistep": each(_DPM, [{}, *ENDS], [dict(sigma_data=0.7), CLIPS[4]])
        + [dict(algorithm_type="sde-dpmsolver++", solver_order=order) for order in (1, 2)],
        "FlowMatchEulerDiscrete": each([{}, *SIGMAS], [{}, dict(shift=3.0), dict(shift_terminal=0.1)])
        + each([dict(use_dynamic_shifting=True)], [{}, dict(time_shift_type="linear")]),
        "FlowMatchHeunDiscrete": each([{}, dict(shift=3.0)]),
    }.items()
    for options in kinds
    for steps in (4, 16)
]
NEXT += [
    Case("TCDScheduler", options, steps, {} if eta is None else {"eta": eta})
    for options in each(PREDICTIONS, BETAS[1:], [{}, dict(original_inference_steps=40)])
    + each(PREDICTIONS[2:], [dict(rescale_betas_zero_snr=True)])
    for eta in (None, 0.0, 0.5, 1.0)
    for steps in (1, 4, 16)
]
"""The classes that were read next."""


def sample(cases: list[Case]) -> list[Case]:
    return random.Random(18).sample(cases, FAST)


def difference(case: Case) -> str | None:
    """The rule by which the two differ, if they do."""
    spacing = case.options.get("timestep_spacing", "leading")
    if case.scheduler == "DDIMScheduler" and spacing == "linspace":
        return "the previous level is the next one listed; in diffusers T // n timesteps below, which is not listed"
    if case.scheduler == "DDIMInverseScheduler" and case.options["prediction_type"] != "epsilon":
        return "diffusers decodes the first output at clean data, where v is eps and x_start leaves eps open"
    if case.scheduler == "DDIMInverseScheduler" and spacing == "trailing" and 1000 % case.steps:
        return "a step begins where the one before ended; in diffusers T // n timesteps below its end"
    if case.scheduler == "DDPMScheduler" and (spacing == "trailing" or case.options.get("steps_offset")):
        return "a chain ends without noise; diffusers adds the last step's where its timestep is not 0"
    if case.options.get("solver_type") == "bh1" and "final_sigmas_type" not in case.options:
        return "diffusers' last step to clean data is not finite"
    return None


def check(case: Case) -> None:
    found = gap(case.scheduler, case.steps, case.options, **case.calls)
    within = ROUNDED if case.options.get("beta_schedule") == "squaredcos_cap_v2" else SAME
    assert found < within or difference(case) is not None, f"{found:.1e} for {case}"


def test_the_sweep_has_as_many_cases_as_before():
    assert len(FIRST) == 1458


@pytest.mark.parametrize("cases", [FIRST, NEXT], ids=["first", "next"])
def test_samples_are_those_of_diffusers(cases: list[Case]):
    for case in sample(cases):
        check(case)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({case.scheduler for case in FIRST + NEXT}))
def test_samples_of_all_configurations_are_those_of_diffusers(name: str):
    wrong = []
    for case in FIRST + NEXT:
        if case.scheduler == name:
            try:
                check(case)
            except AssertionError as error:
                wrong.append(str(error))
    assert not wrong, f"{len(wrong)}: " + "\n".join(wrong[:12])


def test_doubles_are_in_float64():
    assert str(doubled("DDIMScheduler")().alphas_cumprod.dtype) == "torch.float64"
