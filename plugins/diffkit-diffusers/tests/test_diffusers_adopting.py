"""A model of diffusers with its scheduler as a system of diffkit."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

import diffkit
from diffkit import OptionError


def model():
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()


@pytest.mark.slow
def test_an_adopted_model_samples_as_its_own_scheduler():
    network, scheduler = model(), DDPMScheduler(num_train_timesteps=1000)
    system = diffkit.adopt((network, scheduler), data_shape=(1, 4, 4))
    x = torch.randn(2, 1, 4, 4)
    home = DDIMScheduler.from_config(scheduler.config, clip_sample=False, set_alpha_to_one=True)
    home.set_timesteps(10)
    theirs = x
    with torch.no_grad():
        for t in home.timesteps:
            theirs = home.step(network(theirs, t).sample, t, theirs).prev_sample
    levels = sorted(int(t) + 1 for t in home.timesteps)
    ours = system.sample_from(None, x, None, system.table_for(levels), sampler="ddim", clip=False)
    assert torch.allclose(ours, theirs, atol=1e-4)  # its table is multiplied in float32
    with pytest.raises(OptionError, match=r"give \(model, scheduler\)"):
        diffkit.adopt(network, data_shape=(1, 4, 4))
