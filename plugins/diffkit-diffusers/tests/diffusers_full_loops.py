"""The numbers of diffusers' own tests: sum and mean of |sample| after a full loop of each scheduler.

Source: tests/schedulers/test_scheduler_NAME.py of huggingface/diffusers, commit
58eb52c0803ea9af3abec60841c2a093bdf1f951 (2026-08-23), under the name of the test. Sums hold to 1e-2 and means to 1e-3
there, but for LCM and TCD (sums to 1e-3) and where `Loop.within` says so.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Loop(NamedTuple):
    """One test of diffusers.

    Attributes:
        name: Its file and name.
        scheduler: The class.
        options: Its options, other than `BASES`.
        total, mean: What is expected; None where the test does not look.
        steps: How many.
        start: The first step that is taken; 0 begins with dummy_sample_deter alone, others with noise mixed in.
        mixed: False if there is no noise in it although it starts later.
        within: Tolerances of total and mean.
    """

    name: str
    scheduler: str
    options: dict[str, Any]
    total: float | None
    mean: float
    steps: int = 10
    start: int = 0
    within: tuple[float, float] = (1e-2, 1e-3)
    mixed: bool = True


_LINEAR = dict(num_train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
_LONG = _LINEAR | dict(num_train_timesteps=1100)
_NARROW = dict(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
_DPM = _LINEAR | dict(lower_order_final=False, final_sigmas_type="sigma_min")

BASES: dict[str, dict[str, Any]] = {
    "DDPMScheduler": _LINEAR | dict(variance_type="fixed_small", clip_sample=True),
    "DDIMScheduler": _LINEAR | dict(clip_sample=True),
    "DDIMInverseScheduler": _LINEAR | dict(clip_sample=True),
    "DEISMultistepScheduler": _LINEAR | dict(solver_order=2),
    "DPMSolverMultistepScheduler": _DPM,
    "DPMSolverMultistepInverseScheduler": _LINEAR | dict(lower_order_final=False),
    "DPMSolverSinglestepScheduler": _LINEAR | dict(final_sigmas_type="sigma_min"),
    "EDMDPMSolverMultistepScheduler": dict(lower_order_final=False, final_sigmas_type="sigma_min"),
    "EDMEulerScheduler": dict(num_train_timesteps=256),
    "EulerDiscreteScheduler": _LONG,
    "EulerAncestralDiscreteScheduler": _LONG,
    "HeunDiscreteScheduler": _LONG,
    "KDPM2AncestralDiscreteScheduler": _LONG,
    "KDPM2DiscreteScheduler": _LONG,
    "LMSDiscreteScheduler": _LONG,
    "LCMScheduler": _NARROW,
    "PNDMScheduler": _LINEAR,
    "TCDScheduler": _NARROW,
    "UniPCMultistepScheduler": _LINEAR | dict(solver_order=2, solver_type="bh2", final_sigmas_type="sigma_min"),
}
"""get_scheduler_config() of each test."""

_V = dict(prediction_type="v_prediction")
_KARRAS = dict(use_karras_sigmas=True)
_THRESHOLD = dict(thresholding=True, dynamic_thresholding_ratio=0.87, sample_max_value=0.5)

LOOPS = (
    Loop("ddpm no_noise", "DDPMScheduler", {}, 258.9606, 0.3372, 1000),
    Loop("ddpm v_prediction", "DDPMScheduler", _V, 202.0296, 0.2631, 1000),
    Loop("ddpm with_noise", "DDPMScheduler", {}, 387.9466, 0.5051, 1000, 998),
    Loop("ddim no_noise", "DDIMScheduler", {}, 172.0067, 0.223967),
    Loop("ddim v_prediction", "DDIMScheduler", _V, 52.5302, 0.0684),
    Loop("ddim set_alpha_to_one", "DDIMScheduler", dict(set_alpha_to_one=True, beta_start=0.01), 149.8295, 0.1951),
    Loop("ddim no_set_alpha_to_one", "DDIMScheduler", dict(set_alpha_to_one=False, beta_start=0.01), 149.0784, 0.1941),
    Loop("ddim with_noise", "DDIMScheduler", {}, 354.5418, 0.4616, start=8),
    Loop("ddim_inverse no_noise", "DDIMInverseScheduler", {}, 671.6816, 0.8746),
    Loop("ddim_inverse v_prediction", "DDIMInverseScheduler", _V, 1394.2185, 1.8154),
    Loop(
        "ddim_inverse set_alpha_to_one",
        "DDIMInverseScheduler",
        dict(set_alpha_to_one=True, beta_start=0.01),
        539.9622,
        0.7031,
    ),
    Loop(
        "ddim_inverse no_set_alpha_to_one",
        "DDIMInverseScheduler",
        dict(set_alpha_to_one=False, beta_start=0.01),
        542.6722,
        0.7066,
    ),
    Loop("deis no_noise", "DEISMultistepScheduler", {}, None, 0.23916),
    Loop("deis v_prediction", "DEISMultistepScheduler", _V, None, 0.091),
    Loop("deis with_noise", "DEISMultistepScheduler", {}, 315.3016, 0.41054, start=8),
    Loop("dpm_multi no_noise", "DPMSolverMultistepScheduler", {}, None, 0.3301),
    Loop("dpm_multi with_noise", "DPMSolverMultistepScheduler", {}, 318.4111, 0.4146, start=5),
    Loop("dpm_multi no_noise_thres", "DPMSolverMultistepScheduler", _THRESHOLD, None, 1.1364),
    Loop("dpm_multi v_prediction", "DPMSolverMultistepScheduler", _V, None, 0.2251),
    Loop("dpm_multi karras_and_v_prediction", "DPMSolverMultistepScheduler", _V | _KARRAS, None, 0.2096),
    Loop("dpm_multi lu_and_v_prediction", "DPMSolverMultistepScheduler", _V | dict(use_lu_lambdas=True), None, 0.1554),
    Loop("dpm_multi_inverse no_noise", "DPMSolverMultistepInverseScheduler", {}, None, 0.7047),
    Loop(  # 19.8954 in float64
        "dpm_multi_inverse no_noise_thres",
        "DPMSolverMultistepInverseScheduler",
        _THRESHOLD,
        None,
        19.8933,
        within=(1e-2, 3e-3),
    ),
    Loop("dpm_multi_inverse v_prediction", "DPMSolverMultistepInverseScheduler", _V, None, 1.5194),
    Loop(
        "dpm_multi_inverse karras_and_v_prediction",
        "DPMSolverMultistepInverseScheduler",
        _V | _KARRAS,
        None,
        1.7833,
        within=(1e-2, 2e-3),
    ),
    Loop("dpm_single uneven_loop", "DPMSolverSinglestepScheduler", {}, None, 0.2574, 50, 3, mixed=False),
    Loop("dpm_single no_noise", "DPMSolverSinglestepScheduler", {}, None, 0.2791),
    Loop("dpm_single karras", "DPMSolverSinglestepScheduler", _KARRAS, None, 0.2248),
    Loop("dpm_single v_prediction", "DPMSolverSinglestepScheduler", _V, None, 0.1453),
    Loop("dpm_single karras_and_v_prediction", "DPMSolverSinglestepScheduler", _V | _KARRAS, None, 0.0649),
    Loop("dpm_single with_noise", "DPMSolverSinglestepScheduler", {}, 269.2187, 0.3505, start=5),
    Loop("edm_dpm no_noise", "EDMDPMSolverMultistepScheduler", {}, None, 0.0001),
    Loop("edm_dpm with_noise", "EDMDPMSolverMultistepScheduler", {}, 8.1661, 0.0106, start=5),
    Loop("edm_dpm no_noise_thres", "EDMDPMSolverMultistepScheduler", _THRESHOLD, None, 0.0080),
    Loop("edm_dpm v_prediction", "EDMDPMSolverMultistepScheduler", _V, None, 0.0092),
    Loop("edm_euler no_noise", "EDMEulerScheduler", {}, 34.1855, 0.044, within=(1e-3, 1e-3)),
    Loop("euler no_noise", "EulerDiscreteScheduler", {}, 10.0807, 0.0131),
    Loop("euler v_prediction", "EulerDiscreteScheduler", _V, 0.0002, 2.2676e-06),
    Loop("euler karras", "EulerDiscreteScheduler", _KARRAS, 124.52299499511719, 0.16213932633399963),
    Loop("euler with_noise", "EulerDiscreteScheduler", {}, 57062.9297, 74.3007, start=8),
    Loop("euler_ancestral no_noise", "EulerAncestralDiscreteScheduler", {}, 152.3192, 0.1983),
    Loop("euler_ancestral v_prediction", "EulerAncestralDiscreteScheduler", _V, 108.4439, 0.1412),
    Loop("euler_ancestral with_noise", "EulerAncestralDiscreteScheduler", {}, 56163.0508, 73.1290, start=8),
    Loop("heun no_noise", "HeunDiscreteScheduler", {}, 0.1233, 0.0002),
    Loop("heun v_prediction", "HeunDiscreteScheduler", _V, 4.6934e-07, 6.1112e-10),
    Loop("heun karras", "HeunDiscreteScheduler", _KARRAS, 0.00015, 1.9869554535034695e-07, within=(1e-2, 1e-2)),
    Loop("heun with_noise", "HeunDiscreteScheduler", {}, 75074.8906, 97.7538, start=8),
    Loop("kdpm2_ancestral no_noise", "KDPM2AncestralDiscreteScheduler", {}, 13979.9433, 18.2030, within=(1e-2, 5e-3)),
    Loop("kdpm2_ancestral v_prediction", "KDPM2AncestralDiscreteScheduler", _V, 331.8133, 0.4320),
    Loop(
        "kdpm2_ancestral with_noise",
        "KDPM2AncestralDiscreteScheduler",
        {},
        93087.3437,
        121.2074,
        start=8,
        within=(1e-2, 5e-3),
    ),
    Loop("kdpm2 v_prediction", "KDPM2DiscreteScheduler", _V, 4.6934e-07, 6.1112e-10),
    Loop("kdpm2 no_noise", "KDPM2DiscreteScheduler", {}, 20.4125, 0.0266),
    Loop("kdpm2 with_noise", "KDPM2DiscreteScheduler", {}, 70408.4062, 91.6776, start=8),
    Loop("lcm onestep", "LCMScheduler", {}, 18.7097, 0.0244, 1, within=(1e-3, 1e-3)),
    Loop("lcm multistep", "LCMScheduler", {}, 197.7616, 0.2575, within=(1e-3, 1e-3)),
    Loop("lms no_noise", "LMSDiscreteScheduler", {}, 1006.388, 1.31),
    Loop("lms v_prediction", "LMSDiscreteScheduler", _V, 0.0017, 2.2676e-06),
    Loop("lms karras", "LMSDiscreteScheduler", _KARRAS, 3812.9927, 4.9648, within=(2e-2, 1e-3)),
    Loop("lms with_noise", "LMSDiscreteScheduler", {}, 27663.6895, 36.0204, start=8),
    Loop("pndm no_noise", "PNDMScheduler", {}, 198.1318, 0.2580),
    Loop("pndm v_prediction", "PNDMScheduler", _V, 67.3986, 0.0878),
    Loop("pndm set_alpha_to_one", "PNDMScheduler", dict(set_alpha_to_one=True, beta_start=0.01), 230.0399, 0.2995),
    Loop("pndm no_set_alpha_to_one", "PNDMScheduler", dict(set_alpha_to_one=False, beta_start=0.01), 186.9482, 0.2434),
    Loop("tcd onestep_deter", "TCDScheduler", {}, 29.8715, 0.0389, 1, within=(1e-3, 1e-3)),
    Loop("tcd multistep_deter", "TCDScheduler", {}, 181.2040, 0.2359, within=(1e-3, 1e-3)),
    Loop("unipc no_noise", "UniPCMultistepScheduler", {}, None, 0.2464),
    Loop("unipc karras", "UniPCMultistepScheduler", _KARRAS, None, 0.2925),
    Loop("unipc v_prediction", "UniPCMultistepScheduler", _V, None, 0.1014),
    Loop("unipc karras_and_v_prediction", "UniPCMultistepScheduler", _V | _KARRAS, None, 0.1966),
    Loop("unipc with_noise", "UniPCMultistepScheduler", {}, 315.5757, 0.4109, start=8),
    Loop("unipc_1d no_noise", "UniPCMultistepScheduler", {}, None, 0.2441),
    Loop("unipc_1d karras", "UniPCMultistepScheduler", _KARRAS, None, 0.2898),
    Loop("unipc_1d v_prediction", "UniPCMultistepScheduler", _V, None, 0.1014),
    Loop("unipc_1d karras_and_v_prediction", "UniPCMultistepScheduler", _V | _KARRAS, None, 0.1944),
    Loop("unipc_1d with_noise", "UniPCMultistepScheduler", {}, 39.0870, 0.4072, start=8),
)
