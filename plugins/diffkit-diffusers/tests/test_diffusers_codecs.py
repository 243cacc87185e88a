"""AutoencoderKL as a codec."""

from __future__ import annotations

import pytest
import torch
from diffkit_diffusers.codecs import DiffusersKL

import diffkit
from diffkit.errors import CheckpointError, OptionError
from diffkit.testing import check_component, report

pytest.importorskip("diffusers")

CONFIG = dict(
    in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
    scaling_factor=0.5, shift_factor=0.25,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vae")
    AutoencoderKL(**CONFIG).save_pretrained(path)
    return path


def test_it_is_read_with_its_scale_and_saved_with_the_system(folder, tmp_path):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder).eval()
    system = diffkit.compose(
        codec=DiffusersKL(folder=str(folder)),
        data_shape=(3, 16, 16),
        backbone="mlp",
        schedule="cosine",
        num_steps=10,
        mean="v",
    )
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        z = (vae.encode(x).latent_dist.mean - 0.25) * 0.5
        torch.testing.assert_close(system.to_latents(x), z)
        torch.testing.assert_close(system.from_latents(z), vae.decode(z / 0.5 + 0.25).sample)
    again = diffkit.load(system.save(tmp_path / "system"))
    assert again.settings.codec.folder is None and again.data_shape == (3, 16, 16)
    torch.testing.assert_close(again.to_latents(x), z)
    other = diffkit.compose(
        codec=DiffusersKL(folder=str(folder), scale=1.0, shift=0.0), data_shape=(3, 16, 16), backbone=None
    )
    torch.testing.assert_close(other.to_latents(x), z / 0.5 + 0.25)


def test_laws():
    results = check_component("codec", DiffusersKL(config=CONFIG))
    assert all(result.ok for result in results), report(results)


def test_what_is_missing(folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read, so there is no AutoencoderKL"):
        diffkit.compose(codec=DiffusersKL(folder=str(tmp_path)), data_shape=(3, 16, 16), backbone=None)
    with pytest.raises(OptionError, match="has neither a folder nor a config"):
        diffkit.compose(codec=DiffusersKL(), data_shape=(3, 16, 16), backbone=None)
    with pytest.raises(OptionError, match=r"multiples of 2, got \(3, 15, 16\)"):
        diffkit.compose(codec=DiffusersKL(folder=str(folder)), data_shape=(3, 15, 16), backbone=None)
