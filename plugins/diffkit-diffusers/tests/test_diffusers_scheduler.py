"""Any diffkit sampler inside pipelines of diffusers, and pipelines opened and written as systems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("diffusers")

import torch
from diffkit_diffusers import DiffkitScheduler, DiffusersBetas, open_pipeline, to_scheduler_config, write_pipeline
from diffusers_support import SMALL_UNET, Answers, walk
from torch._subclasses.fake_tensor import FakeTensorMode

import diffkit
from diffkit.registry import registry

import diffusers  # isort: skip
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel  # isort: skip

pytestmark = [
    # diffusers hands tensors to np.array, which torch and NumPy 2 do not agree on.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

SHAPE = (2, 4, 4)
SAMPLERS = [*registry("sampler").built_in_names(), ("ddim", {"eta": 0.5})]


def chain(**slots: Any) -> diffkit.System:
    settings = dict(backbone=None, data_shape=SHAPE, num_steps=100, rescale_time=False) | slots
    return diffkit.compose(**settings)


def start() -> torch.Tensor:
    return torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))


def noise_fn(seed: int = 1) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(3, *SHAPE, generator=generator)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("steps", [1, 7])
@pytest.mark.parametrize("var", ["fixed_small", "learned_range"])
def test_a_pipelines_loop_is_the_samplers_own(sampler: Any, steps: int, var: str):
    """The same numbers as diffkit's loop, to the bit, whatever the sampler does within a step."""
    system = chain(var=var, loss="hybrid" if var == "learned_range" else "simple", sampler=sampler)
    model = Answers(system.parts.var.extra_outputs)
    scheduler = DiffkitScheduler.from_system(system)
    try:
        found = walk(scheduler, model, start(), steps, generator=torch.Generator().manual_seed(1))
    except diffkit.OptionError as error:
        assert "changes its sample before it first asks the network" in str(error)
        assert sampler == "churn"
        return
    expected = system.sample_from(model, start(), noise_fn(), system.table_for(steps))
    assert torch.equal(found, expected)
    asked = scheduler.timesteps
    assert asked.dtype == torch.int64
    assert scheduler.num_inference_steps <= len(asked)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "even"])
def test_it_visits_the_levels_asked_for(spacing: str):
    scheduler = DiffkitScheduler.from_system(chain(), sampler="ddim", timestep_spacing=spacing)
    scheduler.set_timesteps(10)
    theirs = DDIMScheduler(num_train_timesteps=100, timestep_spacing="linspace" if spacing == "even" else spacing)
    theirs.set_timesteps(10)
    assert scheduler.timesteps.tolist() == theirs.timesteps.tolist()
    scheduler.set_timesteps(timesteps=[80, 40, 3])
    assert scheduler.timesteps.tolist() == [80, 40, 3]


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ancestral_is_diffusers_ddpm(variance: str):
    theirs = DDPMScheduler(num_train_timesteps=100, variance_type=variance)
    system = chain(schedule="diffusers_betas", var=variance, sampler="ancestral")
    mine = DiffkitScheduler.from_system(system, timestep_spacing="leading")
    found, expected = (
        walk(s, Answers(), start(), 10, generator=torch.Generator().manual_seed(1)) for s in (mine, theirs)
    )
    torch.testing.assert_close(found, expected, rtol=5e-4, atol=5e-4)


def test_preconditioned_models_are_given_scaled_input():
    pytest.importorskip("diffkit_edm")
    system = diffkit.compose(
        schedule="edm_karras", mean="edm", sampler="edm_heun", backbone=None, data_shape=SHAPE, num_steps=12, bins=None
    )
    scheduler = DiffkitScheduler.from_system(system)
    assert scheduler.init_noise_sigma == pytest.approx(6401**0.5)
    x = start() * scheduler.init_noise_sigma
    found = walk(scheduler, Answers(), x, 12)
    expected = system.sample_from(Answers(), x, None)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(scheduler.timesteps) == 23
    assert scheduler.timesteps.dtype == torch.float32


def test_nothing_is_read_from_the_device():
    for sampler in ("heun", "ancestral", "dpmpp_2m"):
        scheduler = DiffkitScheduler.from_system(chain(), sampler=sampler)
        scheduler.set_timesteps(5)
        # The matrix of coefficients is uploaded once; a chain of zeros does that.
        walk(scheduler, Answers(), start(), 5, generator=torch.Generator())
        scheduler.set_timesteps(5)
        columns = scheduler._program.columns
        columns.on(torch.device("cpu"), torch.float32)
        with FakeTensorMode(allow_non_fake_inputs=True):
            x = torch.empty(3, *SHAPE)
            for t in scheduler.timesteps:
                x = scheduler.step(torch.empty(3, *SHAPE), t, scheduler.scale_model_input(x, t)).prev_sample
        assert x.shape == (3, *SHAPE)


def test_half_precision_in_half_precision_out():
    scheduler = DiffkitScheduler.from_system(chain(), sampler="ddim")
    found = walk(scheduler, Answers(), start().half(), 5)
    assert found.dtype == torch.float16
    expected = walk(scheduler, Answers(), start(), 5)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


def test_the_estimate_of_clean_data_is_there():
    scheduler = DiffkitScheduler.from_system(chain(mean="x_start", clip_x_start=False), sampler="heun")
    scheduler.set_timesteps(3)
    x = start()
    for t in scheduler.timesteps:
        out = torch.full_like(x, float(t))
        result = scheduler.step(out, t, x)
        torch.testing.assert_close(result.pred_original_sample, out)
        x = result.prev_sample
    scheduler.set_timesteps(3)
    assert torch.equal(scheduler.step(out, t, start(), return_dict=False)[0], scheduler_first(out))


def scheduler_first(out: torch.Tensor) -> torch.Tensor:
    scheduler = DiffkitScheduler.from_system(chain(mean="x_start", clip_x_start=False), sampler="heun")
    scheduler.set_timesteps(3)
    return scheduler.step(out, None, start()).prev_sample


def test_a_pipeline_may_change_the_sample_between_steps():
    """As inpainting pipelines do: what is handed in counts, where the sampler steps from it."""
    system = chain(sampler="ddim")
    scheduler = DiffkitScheduler.from_system(system)
    scheduler.set_timesteps(4)
    x, answers = start(), Answers()
    for t in scheduler.timesteps:
        x = scheduler.step(answers(x, t), t, x).prev_sample
        x[:, 0] = 0.25
    expected = start()
    from diffkit.system.sampling import sampling_program

    program = sampling_program(system.parts, system.parts.sampler, system.table_for(4))
    rows = program.columns.on(expected.device, expected.dtype)
    for row in rows:
        expected, _ = program.step(system.denoiser(answers), expected, (), row, None, False)
        expected[:, 0] = 0.25
    assert torch.equal(x, expected)


def test_a_chain_may_begin_later():
    system = chain(sampler="heun")
    scheduler = DiffkitScheduler.from_system(system)
    scheduler.set_timesteps(5)
    scheduler.set_begin_index(4)
    assert (scheduler.begin_index, scheduler.step_index) == (4, 4)
    x, answers = start(), Answers()
    for t in scheduler.timesteps[4:]:
        x = scheduler.step(answers(x, t), t, x).prev_sample
    levels = [int(k) for k in system.table_for(5).index[1:4]]
    expected = system.sample_from(answers, start(), None, system.table_for(levels))
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(diffkit.OptionError, match="begin_index 3 is not where a step starts"):
        scheduler.set_begin_index(3)


def test_noise_is_added_as_in_diffusers():
    theirs = DDPMScheduler(num_train_timesteps=100)
    mine = DiffkitScheduler.from_system(chain(schedule="diffusers_betas"))
    x, noise, t = start(), start().flip(0), torch.tensor([0, 50, 99])
    torch.testing.assert_close(mine.add_noise(x, noise, t), theirs.add_noise(x, noise, t), rtol=1e-4, atol=1e-4)
    assert len(mine) == 100


def test_calls_out_of_order_are_refused():
    scheduler = DiffkitScheduler.from_system(chain(), sampler="ddim")
    with pytest.raises(diffkit.OptionError, match="call set_timesteps before step"):
        scheduler.step(start(), 0, start())
    with pytest.raises(diffkit.OptionError, match="exactly one of num_inference_steps and timesteps"):
        scheduler.set_timesteps()
    walk(scheduler, Answers(), start(), 2)
    with pytest.raises(diffkit.OptionError, match="every timestep has been answered; call set_timesteps"):
        scheduler.step(start(), 0, start())
    with pytest.raises(diffkit.OptionError, match="a DiffkitScheduler is made with"):
        DiffkitScheduler()
    with pytest.raises(diffkit.OptionError, match="timestep_spacing must be one of"):
        DiffkitScheduler.from_system(chain(), timestep_spacing="karras")


# ---- pipelines -------------------------------------------------------------------------------------------------------


def unet() -> Any:
    torch.manual_seed(0)
    return UNet2DModel(sample_size=8, in_channels=1, out_channels=1, **SMALL_UNET).eval()


def images(pipeline: Any, steps: int = 5) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    out = pipeline(batch_size=2, generator=generator, num_inference_steps=steps, output_type="np")
    return np.asarray(out.images)


def test_a_pipeline_runs_with_any_sampler():
    system = chain(data_shape=(1, 8, 8), num_steps=1000)
    model = unet()
    for sampler in ("ancestral", "dpmpp_2m", "heun"):
        scheduler = DiffkitScheduler.from_system(system, sampler=sampler)
        found = images(DDPMPipeline(model, scheduler))
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 1, 8, 8, generator=generator)
        expected = system.sample_from(
            lambda x, time: model(x, time).sample,
            x,
            lambda g=generator: torch.randn(2, 1, 8, 8, generator=g),
            system.table_for(5),
            sampler=sampler,
        )
        expected = (expected / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_pipeline_with_a_diffkit_sampler_is_saved_and_opened(tmp_path: Path):
    scheduler = DiffkitScheduler.from_system(chain(data_shape=(1, 8, 8)), sampler=("ddim", {"eta": 0.3}))
    pipeline = DDPMPipeline(unet(), scheduler)
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["diffkit_diffusers.scheduler", "DiffkitScheduler"]
    again = DDPMPipeline.from_pretrained(tmp_path)
    assert again.scheduler.system.spec() == scheduler.system.spec()
    np.testing.assert_array_equal(images(again), images(pipeline))


_ZERO_SNR = dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")


@pytest.mark.parametrize("pipeline", [DDPMPipeline, DDIMPipeline])
def test_a_pipeline_is_opened_as_a_system(tmp_path: Path, pipeline: Any):
    kind = DDPMScheduler if pipeline is DDPMPipeline else DDIMScheduler
    theirs = pipeline(unet(), kind(beta_end=0.015, prediction_type="v_prediction", timestep_spacing="leading"))
    theirs.save_pretrained(tmp_path)
    system = open_pipeline(tmp_path)
    assert system.data_shape == (1, 8, 8)
    assert system.parts.schedule == DiffusersBetas(beta_end=0.015)
    assert not system.training
    # Clipping aside, where the two differ for DDIM (see the sampler's text).
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 8, 8, generator=generator)
    found = system.sample_from(
        None, x, lambda: torch.randn(2, 1, 8, 8, generator=generator), system.table_for("leading5")
    )
    found = (found / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, images(theirs), atol=2e-3 if pipeline is DDPMPipeline else 0.2)


@pytest.mark.parametrize(
    "schedule", ["diffusers_betas", "linear", "cosine", ("diffusers_betas", {"rescale_zero_snr": True})]
)
@pytest.mark.parametrize("var", ["fixed_small", "learned_range"])
def test_a_system_is_written_as_a_pipeline_and_comes_back(tmp_path: Path, schedule: Any, var: str):
    system = diffkit.compose(
        schedule=schedule,
        mean="v",
        var=var,
        loss="hybrid" if var == "learned_range" else "simple",
        backbone=("diffusers_unet2d", SMALL_UNET),
        data_shape=(1, 8, 12),
        num_steps=60,
        rescale_time=False,
    ).eval()
    write_pipeline(system, tmp_path)
    again = open_pipeline(tmp_path)
    np.testing.assert_allclose(again.table.alpha_bar, system.table.alpha_bar, rtol=1e-9, atol=1e-15)
    np.testing.assert_array_equal(again.table.time, system.table.time)
    assert {k: again.parts.names[k] for k in ("mean", "var")} == {"mean": "v", "var": var}
    mine, theirs = (s.sample(2, seed=0, steps=6, progress=False) for s in (system, again))
    torch.testing.assert_close(theirs, mine, rtol=1e-5, atol=1e-5)
    if var == "fixed_small":
        pipeline = DDPMPipeline.from_pretrained(tmp_path)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 1, 8, 12, generator=generator)
        expected = system.sample_from(
            None, x, lambda: torch.randn(2, 1, 8, 12, generator=generator), system.table_for("leading5")
        )
        expected = (expected / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(images(pipeline), expected, atol=3e-3)


def test_a_system_is_written_with_its_own_sampler(tmp_path: Path):
    system = diffkit.compose(backbone=("diffusers_unet2d", SMALL_UNET), data_shape=(1, 8, 8), num_steps=40).eval()
    write_pipeline(system, tmp_path, sampler="dpmpp_2m")
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = system.sample_from(None, x, None, system.table_for(5), sampler="dpmpp_2m")
    expected = (expected / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(images(pipeline), expected, atol=1e-5)


def test_what_no_pipeline_has_is_told_at_once(tmp_path: Path):
    system = diffkit.compose(
        backbone=("mlp", {"hidden": 8}), mean="x_prev", data_shape=(1, 8, 8), num_steps=40, sampler="lms",
        sampling={"steps": "quad20", "guidance": ("dynamic_threshold", {})},
    )  # fmt: skip
    with pytest.raises(diffkit.OptionError) as caught:
        write_pipeline(system, tmp_path)
    told = str(caught.value)
    assert told.splitlines()[:4] == [
        "this system cannot be written as a pipeline of diffusers:",
        "  backbone 'mlp' is no UNet2DModel; compose with backbone='diffusers_unet2d'",
        "  the network is conditioned on other times than 0, 1, ..., T - 1; pass sampler=",
        "  mean 'x_prev' is none of eps, x_start, v; pass sampler=",
    ]
    assert told.splitlines()[4] == (
        "  sampler 'lms' with these options is not that of any scheduler; compose with sampler=('lms', "
        "{'estimates': 4, 'corrected_start': False, 'lower_order_long': False}), or pass sampler="
    )


_ENDS = {"beta_start": 1e-4, "beta_end": 0.02}


def written(**slots: Any) -> dict[str, Any]:
    return to_scheduler_config(
        diffkit.compose(schedule="diffusers_betas", backbone=None, data_shape=(1, 8, 8), rescale_time=False, **slots)
    )


def test_defaults_of_sampling_are_written_as_the_options_that_mean_them():
    config = written(sampler="ddim", clip_x_start=False, sampling={"steps": "trailing20", "clip": True})
    assert config["_class_name"] == "DDIMScheduler"
    assert (config["timestep_spacing"], config["clip_sample"]) == ("trailing", True)
    config = written(sampler="euler", clip_x_start=False, sampling={"final": "sigma_min"})
    assert (config["_class_name"], config["final_sigmas_type"]) == ("EulerDiscreteScheduler", "sigma_min")
    for slots, told in {
        "steps": (dict(sampling={"steps": "quad20"}), "steps='quad20' of sampling is not a spacing of DDPMScheduler"),
        "guidance": (
            dict(sampling={"guidance": "dynamic_threshold"}),
            "guidance 'dynamic_threshold' of sampling cannot be said",
        ),
        "eta": (dict(sampler=("ddim", {"eta": 0.5})), "eta=0.5 is given to each call of diffusers"),
        "gamma": (
            dict(
                sampler=("diffusers_tcd", {"gamma": 0.5, "final_alpha_bar": 0.9999, "beta_schedule": "linear"} | _ENDS)
            ),
            "gamma=0.5 is given to each call of diffusers",
        ),
        "another chain": (dict(sampler="diffusers_tcd"), "with these options is not that of any scheduler"),
        "clip": (dict(sampler="euler", clip_x_start=True), "EulerDiscreteScheduler has no clip_sample, but estimates"),
    }.values():
        with pytest.raises(diffkit.OptionError, match=told):
            written(**slots)


FOLDERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {}),
    "ddpm range": (DDPMScheduler, dict(clip_sample_range=0.5)),
    "ddpm threshold": (DDPMScheduler, dict(thresholding=True, sample_max_value=2.0)),
    "ddpm large": (DDPMScheduler, dict(variance_type="fixed_large", clip_sample=False, beta_schedule="scaled_linear")),
    "ddpm zero snr": (DDPMScheduler, _ZERO_SNR),
    "ddpm offset": (DDPMScheduler, dict(steps_offset=1, beta_schedule="squaredcos_cap_v2")),
    "ddim": (DDIMScheduler, {}),
    "ddim to level 1": (DDIMScheduler, dict(set_alpha_to_one=False, steps_offset=1, clip_sample=False)),
    "ddim zero snr": (DDIMScheduler, _ZERO_SNR),
    "ddim range": (DDIMScheduler, dict(clip_sample_range=0.5, timestep_spacing="linspace")),
    "ddim threshold": (DDIMScheduler, dict(thresholding=True, dynamic_thresholding_ratio=0.9)),
    "1": (
        diffusers.DPMSolverMultistepScheduler,
        dict(solver_order=1, final_sigmas_type="sigma_min"),
    ),
    "2m": (diffusers.DPMSolverMultistepScheduler, {}),
    "2m karras": (diffusers.DPMSolverMultistepScheduler, dict(use_karras_sigmas=True)),
    "2m sde": (diffusers.DPMSolverMultistepScheduler, dict(algorithm_type="sde-dpmsolver++", solver_type="heun")),
    "3m": (diffusers.DPMSolverMultistepScheduler, dict(solver_order=3, final_sigmas_type="sigma_min")),
    "2s": (diffusers.DPMSolverSinglestepScheduler, dict(lower_order_final=True)),
    "2m lu": (diffusers.DPMSolverMultistepScheduler, dict(use_lu_lambdas=True, euler_at_final=True)),
    "lcm": (diffusers.LCMScheduler, dict(original_inference_steps=60, timestep_scaling=5.0, steps_offset=1)),
    "tcd": (diffusers.TCDScheduler, dict(beta_schedule="linear", original_inference_steps=60)),
    "2m clipped": (
        diffusers.DPMSolverMultistepScheduler,
        dict(lambda_min_clipped=-5.1, beta_schedule="squaredcos_cap_v2", thresholding=True),
    ),
    "3s": (
        diffusers.DPMSolverSinglestepScheduler,
        dict(solver_order=3, solver_type="heun", use_karras_sigmas=True, final_sigmas_type="sigma_min"),
    ),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("ddpm range", "2m karras") else [pytest.mark.slow]) for name in FOLDERS],
)
def test_a_folder_comes_back_through_diffkit(tmp_path: Path, name: str):
    kind, options = FOLDERS[name]
    pipeline = DDIMPipeline if kind is DDIMScheduler else DDPMPipeline
    pipeline(unet(), kind(**options)).save_pretrained(tmp_path / "theirs")
    write_pipeline(open_pipeline(tmp_path / "theirs"), tmp_path / "ours")
    for file in ("model_index.json", "scheduler/scheduler_config.json"):
        theirs, ours = (json.loads((tmp_path / folder / file).read_text()) for folder in ("theirs", "ours"))
        assert ours == theirs
    theirs, ours = (pipeline.from_pretrained(tmp_path / folder) for folder in ("theirs", "ours"))
    np.testing.assert_allclose(images(ours, 6), images(theirs, 6), atol=1e-5)


def test_a_pipeline_that_diffusers_cannot_run_is_not_written(tmp_path: Path):
    DDPMPipeline(unet(), diffusers.PNDMScheduler(skip_prk_steps=True)).save_pretrained(tmp_path)
    with pytest.raises(diffkit.OptionError, match="a DDPMPipeline cannot run a PNDMScheduler; pass sampler="):
        write_pipeline(open_pipeline(tmp_path), tmp_path / "ours")


def test_defaults_of_sampling_are_those_of_the_pipeline(tmp_path: Path):
    DDIMPipeline(unet(), DDIMScheduler(clip_sample_range=0.5, timestep_spacing="trailing")).save_pretrained(tmp_path)
    system = open_pipeline(tmp_path)
    assert system.prepare(1).table.num_steps == 50
    assert float(system.sample(2, seed=0, progress=False).abs().max()) <= 0.5


@pytest.mark.parametrize("fault", ["nothing", "class", "network", "weights"])
def test_a_folder_that_is_no_such_pipeline(tmp_path: Path, fault: str):
    if fault != "nothing":
        DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path)
    if fault == "class":
        (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    if fault == "network":
        (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    if fault == "weights":
        (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    text = {
        "nothing": "cannot be read as JSON",
        "class": "holds a pipeline of class 'StableDiffusionPipeline'; these can be opened: DDPMPipeline, DDIMPipeline",
        "network": "has a network of class 'UNet2DConditionModel'; UNet2DModel can be opened",
        "weights": "has no weights that can be read; they must be safetensors",
    }[fault]
    with pytest.raises(diffkit.OptionError) as caught:
        open_pipeline(tmp_path)
    assert text in str(caught.value)
