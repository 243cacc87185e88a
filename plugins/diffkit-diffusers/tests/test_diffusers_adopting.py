"""A model of diffusers with its scheduler as a system of diffkit: its samples, its labels, and its learned variance."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)

import diffkit
from diffkit import OptionError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, by diffusers
SHAPE = (1, 4, 4)
SMALL = dict(
    sample_size=4, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4
)


def unet(**options):
    torch.manual_seed(0)
    blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    return UNet2DModel(**SMALL, **blocks, **options).eval().double()


def dit():
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=8, in_channels=1, out_channels=2, num_layers=1, sample_size=4,
        patch_size=2, num_embeds_ada_norm=3, norm_num_groups=1,
    )  # fmt: skip
    return network.double()


def home_samples(home, estimate, x):
    """x at clean data, and the levels on the way, from the scheduler's own first timestep."""
    home.set_timesteps(10)
    x = x * float(getattr(home, "init_noise_sigma", 1.0))
    for t in home.timesteps:
        x = home.step(estimate(home.scale_model_input(x, t), t), t, x).prev_sample
    return x, sorted(int(t) + 1 for t in home.timesteps)


def in_float64(scheduler):
    """The same scheduler with a table that is not rounded to float32."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    return scheduler


@pytest.mark.slow
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(
    ("kind", "options", "sampler", "tolerance"),
    [
        (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": True}, "ddim", 1e-10),
        # these compute in float32 whatever x is: Euler's casts x, DPM-Solver's has its noise levels in it
        (EulerDiscreteScheduler, {"timestep_spacing": "leading"}, "euler", 1e-5),
        (DPMSolverMultistepScheduler, {"timestep_spacing": "leading", "final_sigmas_type": "zero"}, "dpmpp_2m", 1e-5),
    ],
)
def test_it_samples_as_its_own_scheduler(kind, options, sampler, tolerance, guided):
    network, scheduler = unet(num_class_embeds=4), DDPMScheduler(num_train_timesteps=1000)
    system = diffkit.adopt((network, scheduler), data_shape=SHAPE, null_conditions={"y": 3})
    y, none = torch.tensor([0, 2]), torch.tensor([3, 3])

    def estimate(x, t):
        labelled = network(x, t, class_labels=y).sample
        return labelled if not guided else 3.0 * labelled - 2.0 * network(x, t, class_labels=none).sample

    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    home = kind.from_config(scheduler.config, **options)
    home = in_float64(home) if sampler == "ddim" else home
    with torch.no_grad():
        theirs, levels = home_samples(home, estimate, x)
    alpha = float(system.table.alpha[levels[-1]])
    x = alpha * x * float(home.init_noise_sigma) if sampler == "euler" else x
    guidance = ("cfg", {"scale": 3.0}) if guided else None
    ours = system.sample(2, start=x, steps=levels, sampler=sampler, clip=False, guidance=guidance, y=y, progress=False)
    assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


@pytest.mark.slow
def test_what_means_no_label_is_read():
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    system = diffkit.adopt((dit(), scheduler), data_shape=SHAPE)
    assert system.parts.names["var"] == "learned_range"
    x = torch.randn(2, *SHAPE, dtype=torch.float64)
    how = dict(start=x, steps=3, seed=0, progress=False)
    assert system.sample(2, **how, y=torch.tensor([0, 1]), sampler="ancestral").isfinite().all()
    unguided = {"guidance": ("cfg", {"scale": 0.0})}
    none, labelled = (system.sample(2, **how, y=torch.tensor(y)) for y in ([3, 3], [0, 1]))
    assert torch.allclose(system.sample(2, **how, y=torch.tensor([0, 1]), **unguided), none, atol=1e-12)
    assert not torch.allclose(labelled, none)
    attending = dict(down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",))
    torch.manual_seed(0)
    text = UNet2DConditionModel(
        **SMALL | {"block_out_channels": (8,)}, **attending, cross_attention_dim=6, attention_head_dim=4
    )
    system = diffkit.adopt((text.double(), scheduler), data_shape=SHAPE)
    context = torch.randn(2, 3, 6, dtype=torch.float64)
    none = system.sample(2, **how, context=torch.zeros(2, 1, 6))
    assert torch.allclose(system.sample(2, **how, context=context, **unguided), none, atol=1e-12)


@pytest.mark.slow
def test_a_model_without_its_scheduler_is_refused():
    with pytest.raises(OptionError, match=r"give \(model, scheduler\)"):
        diffkit.adopt(unet(), data_shape=SHAPE)
