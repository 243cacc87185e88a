"""Scheduler configurations read into compositions, against diffusers' own schedulers.

diffusers keeps its tables in float32, so that alpha_bar is off by up to 1e-5 of itself after 1000 factors; states agree
to a few times 1e-4 unless it says otherwise.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

import torch
from diffkit_diffusers import (
    DiffusersBetas,
    DiffusersDDIM,
    DiffusersLCM,
    DiffusersMultistep,
    DiffusersPNDM,
    DiffusersSinglestep,
    DiffusersSpacing,
    DiffusersTCD,
    DiffusersUniPC,
    from_scheduler_config,
    to_scheduler_config,
)
from diffkit_diffusers.schedulers import SCHEDULERS
from diffusers_support import Answers, walk

import diffkit
from diffkit.testing import Check, parametrize_checks

import diffusers  # isort: skip
from diffusers import (  # isort: skip
    CMStochasticIterativeScheduler,
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)

# diffusers hands tensors to np.array, which torch and NumPy 2 do not agree on.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SHAPE = (2, 4, 4)
BETAS: dict[str, dict[str, Any]] = {
    "linear": {},
    "scaled_linear": dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "cosine": dict(beta_schedule="squaredcos_cap_v2"),
    "trained": dict(trained_betas=np.linspace(1e-3, 0.03, 100).tolist(), num_train_timesteps=100),
    "short": dict(num_train_timesteps=40),
}


@parametrize_checks(
    "schedule",
    DiffusersBetas(),
    DiffusersBetas(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    DiffusersBetas(beta_schedule="sigmoid"),
    expected_failures={"ends_in_noise": "as in diffusers, the ends are meant for one T and stay as they are at others"},
)
def test_schedule_whose_betas_are_given(check: Check):
    check()


@parametrize_checks(
    "schedule",
    DiffusersBetas(beta_schedule="squaredcos_cap_v2"),
    DiffusersBetas(rescale_zero_snr=True),
    DiffusersBetas(rescale_zero_snr=True, smallest_alpha_bar=2.0**-24),
)
def test_schedule(check: Check):
    check()


@parametrize_checks("sampler", DiffusersDDIM(eta=0.5))
def test_sampler(check: Check):
    check()


@pytest.mark.slow
@parametrize_checks(
    "sampler",
    DiffusersMultistep(algorithm_type="dpmsolver", solver_order=3),
    DiffusersMultistep(algorithm_type="sde-dpmsolver++", solver_type="heun"),
    DiffusersPNDM(),
    DiffusersSinglestep(solver_order=3, solver_type="heun"),
    DiffusersTCD(gamma=0.0),
    DiffusersUniPC(solver_order=3, lower_order_final=False),
)
def test_solver(check: Check):
    check()


@pytest.mark.slow
@parametrize_checks(
    "sampler",
    DiffusersUniPC(solver_order=3),
    expected_failures={"encodes_at_its_order": "the last steps of the way up have a lower order, too, where it counts"},
)
def test_solver_of_lower_order_at_the_end(check: Check):
    check()


@pytest.mark.slow
@parametrize_checks(
    "sampler",
    DiffusersLCM(timestep_scaling=1e12),
    DiffusersTCD(),
    expected_failures={"order_as_declared": "it is accurate for a network that is a flow map, and for no mean of data"},
)
def test_consistency_steps(check: Check):
    """LCM's boundary condition is out of the way, as it is where there is some noise."""
    check()


@parametrize_checks("spacing", DiffusersSpacing(5), DiffusersSpacing(5, "EulerDiscreteScheduler", sigmas="karras"))
def test_spacing(check: Check):
    check()


def said_by(scheduler: Any) -> Any:
    """What a scheduler writes into its scheduler_config.json."""
    return json.loads(scheduler.to_json_string())


def start(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0))


def sampled(reading: Any, steps: int, x: torch.Tensor, seed: int = 0, **slots: Any) -> torch.Tensor:
    """Sample through diffkit, with noise drawn as diffusers draws it."""
    system = reading.compose(backbone=None, data_shape=SHAPE, bins=None, **slots)
    generator = torch.Generator().manual_seed(seed)
    table = system.table_for(reading.levels(steps))
    return system.sample_from(
        Answers(system.parts.var.extra_outputs),
        x,
        lambda: torch.randn(x.shape, generator=generator),
        table,
        guidance=reading.guidance,
    )


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize(
    "scheduler", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler]
)
def test_levels_are_those_of_diffusers(scheduler: Any, betas: str):
    theirs = scheduler(**BETAS[betas])
    mine = from_scheduler_config(said_by(theirs)).table
    np.testing.assert_allclose(mine.alpha_bar[1:], theirs.alphas_cumprod.numpy(), rtol=3e-5)
    np.testing.assert_array_equal(mine.time[1:], np.arange(mine.num_steps))


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize(
    "scheduler", [DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler]
)
def test_levels_without_terminal_signal(scheduler: Any, betas: str):
    theirs = scheduler(**BETAS[betas], rescale_betas_zero_snr=True, prediction_type="v_prediction")
    mine = from_scheduler_config(said_by(theirs)).table
    # The last levels are differences of nearly equal float32 numbers in diffusers.
    np.testing.assert_allclose(mine.alpha[1:], theirs.alphas_cumprod.sqrt().numpy(), atol=3e-4)
    # diffusers' floor may lie above the level before; there the chain would turn around.
    floor = scheduler in (DPMSolverMultistepScheduler, EulerDiscreteScheduler)
    assert mine.alpha_bar[-1] == (min(2.0**-24, mine.alpha_bar[-2] / 4) if floor else 0)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("t", [999, 500, 20, 1, 0])
@pytest.mark.parametrize("clip", [True, False])
def test_one_step_of_ddpm(prediction: str, t: int, clip: bool):
    theirs = DDPMScheduler(prediction_type=prediction, clip_sample=clip)
    system = from_scheduler_config(said_by(theirs)).compose(backbone=None, data_shape=SHAPE, bins=None)
    x, out = start(), start().flip(1) * 0.7
    expected = theirs.step(out, t, x, generator=torch.Generator().manual_seed(1)).prev_sample
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    table = system.table_for([t + 1] if t == 0 else [t, t + 1])
    drawn = iter([noise, torch.zeros_like(noise)])
    first = next(system_trajectory(system, lambda x, time: out, x, lambda: next(drawn), table))
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-4)


def system_trajectory(system: diffkit.System, model: Any, x: Any, noise_fn: Callable[[], Any], table: Any) -> Any:
    from diffkit.system.sampling import sampling_program

    program = sampling_program(system.parts, system.parts.sampler, table)
    return (moment.x for moment in program.run(system.denoiser(model), x, noise_fn))


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large", "learned_range"])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_chains_of_ddpm(betas: str, variance: str, spacing: str):
    theirs = DDPMScheduler(**BETAS[betas], variance_type=variance, timestep_spacing=spacing)
    reading = from_scheduler_config(said_by(theirs))
    expected = walk(
        theirs,
        Answers(variance == "learned_range"),
        start(),
        10,
        generator=torch.Generator().manual_seed(0),
    )
    torch.testing.assert_close(sampled(reading, 10, start()), expected, rtol=5e-4, atol=5e-4)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_a_chain_of_ddpm_ends_without_noise(variance: str):
    """Where diffusers' last timestep is not 0, it adds the last step's noise: all of it with a large variance."""
    theirs = DDPMScheduler(variance_type=variance, timestep_spacing="trailing")
    reading = from_scheduler_config(said_by(theirs))
    gap = sampled(reading, 10, start()) - walk(
        theirs, Answers(), start(), 10, generator=torch.Generator().manual_seed(0)
    )
    assert reading.levels(10)[0] == 100
    assert (float(gap.std()) > 0.1) == (variance == "fixed_large")


def test_chains_of_ddim_without_terminal_signal():
    theirs = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
    reading = from_scheduler_config(said_by(theirs))
    assert reading.table.alpha_bar[-1] == 0
    expected = walk(theirs, Answers(), start(), 10, use_clipped_model_output=True)
    # In diffusers the first levels of the rescaled chain have lost digits.
    torch.testing.assert_close(sampled(reading, 10, start()), expected, rtol=2e-3, atol=2e-3)


def test_low_snr_levels_may_be_clipped():
    options = dict(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1)
    theirs = DPMSolverMultistepScheduler(**options)
    theirs.set_timesteps(20)
    levels = from_scheduler_config(said_by(theirs)).levels(20)
    np.testing.assert_array_equal(levels, theirs.timesteps.numpy()[::-1] + 1)
    assert levels[-1] < 1000


@pytest.mark.parametrize("form", ["file", "folder", "mapping"])
def test_a_configuration_is_read_from_a_file_a_folder_or_a_mapping(tmp_path: Path, form: str):
    DDIMScheduler(beta_end=0.01, prediction_type="v_prediction").save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    source = {"file": file, "folder": str(tmp_path), "mapping": json.loads(file.read_text())}[form]
    reading = from_scheduler_config(source)
    assert reading.slots["schedule"] == DiffusersBetas(beta_end=0.01)
    system = reading.compose(backbone=None, data_shape=SHAPE)
    assert system.parts.names["mean"] == "v"
    assert diffkit.from_spec(system.spec()).spec() == system.spec()


@pytest.mark.parametrize(
    ("made", "encoding"),
    [
        (DDIMInverseScheduler(steps_offset=1, clip_sample=False), {"time_of": "end"}),
        (
            DPMSolverMultistepInverseScheduler(
                solver_order=3, euler_at_final=True, timestep_spacing="leading", lambda_min_clipped=-5.1
            ),
            {"time_of": "start", "final": "sigma_min"},
        ),
    ],
    ids=["ddim", "multistep"],
)
def test_a_scheduler_that_inverts_comes_back(made: Any, encoding: dict[str, str]):
    config = said_by(made)
    reading = from_scheduler_config(config)
    written = to_scheduler_config(reading.compose(backbone=None, data_shape=SHAPE))
    assert written == {key: value for key, value in config.items() if key != "_diffusers_version"}
    assert {key: value for key, value in reading.encoding.items() if key != "sampler"} == encoding
    assert from_scheduler_config(said_by(DDIMScheduler())).encoding["time_of"] == "start"


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "learned": (
        DDPMScheduler,
        dict(variance_type="learned"),
        "variance_type='learned' is not supported: diffusers takes the network's output for a variance there, not for "
        "its logarithm; 'fixed_small', 'fixed_small_log', 'fixed_large', 'fixed_large_log', 'learned_range' are",
    ),
    "laplace": (
        DDPMScheduler,
        dict(beta_schedule="laplace"),
        "beta_schedule='laplace' is not supported; 'linear', 'scaled_linear', 'squaredcos_cap_v2', 'sigmoid' are",
    ),
    "flow": (
        DPMSolverMultistepScheduler,
        dict(prediction_type="flow_prediction"),
        "prediction_type='flow_prediction' is not supported; 'epsilon', 'sample', 'v_prediction' are",
    ),
    "flow sigmas": (
        DPMSolverMultistepScheduler,
        dict(use_flow_sigmas=True),
        "use_flow_sigmas=True is not supported; only False is",
    ),
    "sde order 3": (
        DPMSolverMultistepScheduler,
        dict(algorithm_type="sde-dpmsolver++", solver_order=3),
        "algorithm_type='sde-dpmsolver++', solver_order=3 is not supported; these are: algorithm_type='dpmsolver++', "
        "solver_order=1 or 2 or 3; algorithm_type='dpmsolver', solver_order=1 or 2 or 3; "
        "algorithm_type='sde-dpmsolver++', solver_order=1 or 2",
    ),
    "thresholding": (
        DDIMScheduler,
        dict(thresholding=True, sample_max_value=0.5),
        "thresholding with sample_max_value=0.5 is not supported: diffusers multiplies every estimate by 2 there; 1.0 "
        "and more are",
    ),
    "corrector": (
        UniPCMultistepScheduler,
        dict(disable_corrector=[0]),
        "disable_corrector=[0] is not supported; only [] is",
    ),
    "first level": (
        DPMSolverMultistepInverseScheduler,
        dict(timestep_spacing="leading", steps_offset=1),
        "steps_offset=1 is not supported; 0 is",
    ),
    "mu": (
        FlowMatchEulerDiscreteScheduler,
        dict(use_dynamic_shifting=True),
        "use_dynamic_shifting=True needs mu, which diffusers is told at each call; pass mu=",
    ),
    "v": (
        EDMEulerScheduler,
        dict(prediction_type="v_prediction"),
        "prediction_type='v_prediction' is not supported; 'epsilon' is",
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_options_and_defaults_are_those_of_diffusers(name: str):
    theirs = inspect.signature(getattr(diffusers, name).__init__).parameters
    if "kwargs" not in theirs:  # a stand-in for a class that needs another package
        assert {key: p.default for key, p in theirs.items() if key != "self"} == SCHEDULERS[name].options


def test_an_option_that_nobody_has_is_refused_by_name():
    config = {"_class_name": "EulerDiscreteScheduler", "use_karas_sigmas": True, "skip_prk_steps": True}
    with pytest.raises(diffkit.OptionError) as caught:
        from_scheduler_config(config)
    assert str(caught.value) == (
        "this EulerDiscreteScheduler cannot be read:\n  use_karas_sigmas=True is not known; did you mean "
        "'use_karras_sigmas'?"
    )


@pytest.mark.parametrize("case", REFUSED)
def test_what_diffkit_cannot_do_is_refused(case: str):
    scheduler, options, text = REFUSED[case]
    with pytest.raises(diffkit.OptionError) as caught:
        from_scheduler_config(said_by(scheduler(**options)))
    assert str(caught.value) == f"this {scheduler.__name__} cannot be read:\n  {text}"


def test_all_problems_are_told_at_once():
    config = said_by(EulerDiscreteScheduler(interpolation_type="log_linear", timestep_type="continuous"))
    with pytest.raises(diffkit.OptionError) as caught:
        from_scheduler_config(config)
    assert len(str(caught.value).splitlines()) == 3


def test_a_mapping_must_name_the_class():
    with pytest.raises(diffkit.OptionError, match="a scheduler's configuration without '_class_name' cannot be read"):
        from_scheduler_config(DDPMScheduler().config)


def test_a_scheduler_of_another_class_is_refused():
    with pytest.raises(diffkit.OptionError) as caught:
        from_scheduler_config(said_by(CMStochasticIterativeScheduler()))
    assert str(caught.value).startswith(
        "a scheduler of class 'CMStochasticIterativeScheduler' cannot be read; these can: DDPMScheduler, "
    )


@pytest.mark.parametrize("content", [None, "{", "[]", "\x00"])
def test_a_file_that_is_no_configuration(tmp_path: Path, content: str | None):
    file = tmp_path / "scheduler_config.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(diffkit.OptionError, match="cannot be read as a scheduler's configuration"):
        from_scheduler_config(tmp_path if content is not None else file)


@pytest.mark.parametrize("steps", [0, 1001, -1, 2.0, True])
def test_numbers_of_steps_there_are_not(steps: Any):
    with pytest.raises(diffkit.OptionError, match=r"steps must be an integer in 1\.\.1000"):
        from_scheduler_config(said_by(DDPMScheduler())).levels(steps)


def test_more_steps_than_a_network_was_distilled_on():
    reading = from_scheduler_config(said_by(LCMScheduler(original_inference_steps=20)))
    assert reading.spacing.count == 20
    with pytest.raises(diffkit.OptionError, match="original_inference_steps=20 has no 21 different timesteps"):
        reading.levels(21)


def test_an_offset_past_the_end():
    reading = from_scheduler_config(said_by(DDPMScheduler(steps_offset=1)))
    with pytest.raises(diffkit.OptionError, match="steps_offset=1 has no 1000 different timesteps below 1000"):
        reading.levels(1000)


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (lambda: DiffusersBetas(beta_start=0), "beta_start must be > 0 and < 1, got 0.0"),
        (lambda: DiffusersBetas(beta_schedule="square"), "beta_schedule must be one of"),
        (lambda: DiffusersBetas(trained_betas=[0.1, 2]), "each of trained_betas must be > 0 and <= 1, got 2"),
        (lambda: DiffusersBetas(trained_betas=[0.1]).table(2), "num_steps must be 1, got 2"),
        (lambda: DiffusersBetas(rescale_zero_snr=True).table(1), "needs num_steps >= 2, got 1"),
        (lambda: DiffusersDDIM(eta=2), "eta must be >= 0 and <= 1, got 2.0"),
        (lambda: DiffusersDDIM(final_alpha_bar=0), "final_alpha_bar must be > 0 and <= 1, got 0.0"),
    ],
)
def test_options_out_of_range(part: Callable[[], object], text: str):
    with pytest.raises(diffkit.OptionError) as caught:
        part()
    assert text in str(caught.value)
