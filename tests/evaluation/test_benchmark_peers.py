"""Peers of the benchmarks: found where they are, left out where not, and installed without another torch."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
if not (FOLDER / "peers.py").is_file():
    pytest.skip("the benchmarks are not part of this distribution", allow_module_level=True)

BETAS = np.linspace(1e-4, 0.02, 8)
OWN = ("peers", "published", "render", "improved_diffusion", "denoising_diffusion_pytorch")
"""Modules that a test imports afresh, so that none sees another's stand-ins."""

PROCESS = """
import enum
import torch

class ModelMeanType(enum.Enum):
    PREVIOUS_X, START_X, EPSILON = 1, 2, 3

class ModelVarType(enum.Enum):
    LEARNED, FIXED_SMALL, FIXED_LARGE, LEARNED_RANGE = 1, 2, 3, 4

class LossType(enum.Enum):
    MSE, RESCALED_MSE, KL, RESCALED_KL = 1, 2, 3, 4

class GaussianDiffusion:
    def __init__(self, *, betas, model_mean_type, model_var_type, loss_type, rescale_timesteps=False):
        assert model_mean_type is ModelMeanType.EPSILON and loss_type is LossType.RESCALED_MSE and rescale_timesteps
        self.betas, self.kind, self.num_timesteps = betas, model_var_type.name, len(betas)

    def p_sample_loop(self, model, shape, noise=None, clip_denoised=True, denoised_fn=None, model_kwargs=None,
                      device=None, progress=False):
        return model(noise, torch.zeros(shape[0], device=device)) + self.num_timesteps

    def ddim_sample_loop(self, model, shape, noise=None, clip_denoised=True, denoised_fn=None, model_kwargs=None,
                         device=None, progress=False, eta=0.0):
        return model(noise, torch.zeros(shape[0], device=device)) - self.num_timesteps

    def training_losses(self, model, x_start, t, model_kwargs=None, noise=None):
        loss = (model(x_start, t) - noise).flatten(1).mean(1) + (self.kind == "LEARNED_RANGE")
        return {"loss": loss, "mse": loss, "vb": loss}

    def calc_bpd_loop(self, model, x_start, clip_denoised=True, model_kwargs=None):
        assert not torch.is_grad_enabled()
        descending = torch.arange(self.num_timesteps - 1, -1, -1).expand(len(x_start), -1)
        return {"vb": descending, "total_bpd": descending.sum(1)}
"""
RESPACE = """
from .gaussian_diffusion import GaussianDiffusion

def space_timesteps(num_timesteps, section_counts):
    return set(range(*section_counts))

class SpacedDiffusion(GaussianDiffusion):
    def __init__(self, use_timesteps, **kwargs):
        super().__init__(**{**kwargs, "betas": kwargs["betas"][: len(use_timesteps)]})
"""
UNET = """
from torch import nn

class UNetModel(nn.Module):
    def __init__(self, in_channels, model_channels, out_channels, num_res_blocks, attention_resolutions, dropout=0,
                 channel_mult=(1, 2, 4, 8), conv_resample=True, dims=2, num_classes=None, use_checkpoint=False,
                 num_heads=1, num_heads_upsample=-1, use_scale_shift_norm=False):
        super().__init__()
        self.given = dict(locals())
        self.input_blocks = nn.Sequential(nn.Sequential(nn.Conv2d(in_channels, model_channels, 3)))
        self.out = nn.Sequential(nn.Conv2d(model_channels, out_channels, 3))
"""
SIMPLE = """
from accelerate import Accelerator
from ema_pytorch import EMA
from scipy.optimize import linear_sum_assignment
from torchvision import transforms as T, utils
import torch
from torch import nn

tqdm = None

class GaussianDiffusion(nn.Module):
    def __init__(self, model, *, image_size, timesteps=1000, sampling_timesteps=None, objective="pred_v",
                 beta_schedule="sigmoid", auto_normalize=True):
        super().__init__()
        assert model.channels == 3 and not model.self_condition and objective == "pred_noise" and not auto_normalize
        self.model, self.times = model, sampling_timesteps or timesteps

    def p_sample(self, x, t: int, x_self_cond=None):
        return x + 1, self.model(x, t, x_self_cond)

    def ddim_sample(self, shape, return_all_timesteps=False):
        return torch.full(shape, float(sum(1 for _ in tqdm(range(self.times), desc="steps"))))

    def p_losses(self, x_start, t, noise=None):
        return (self.model(x_start, t) - noise).mean()
"""
LEARNED = """
import torch
from denoising_diffusion_pytorch.denoising_diffusion_pytorch import GaussianDiffusion

class LearnedGaussianDiffusion(GaussianDiffusion):
    def p_losses(self, x_start, t, noise=None):
        return torch.tensor(float(self.model.out_dim))
"""


def package(folder: Path, name: str, **modules: str) -> Path:
    (folder / name).mkdir(parents=True)
    for module, text in modules.items():
        (folder / name / f"{module}.py").write_text(text)
    return folder


@pytest.fixture
def own(monkeypatch):
    """Import a module of the benchmarks, with no checkout and nothing imported before."""
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] in OWN}
    for name in kept:
        del sys.modules[name]
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delenv("IMPROVED_DIFFUSION", raising=False)
    yield importlib.import_module
    for name in [name for name in sys.modules if name.split(".")[0] in OWN]:
        del sys.modules[name]
    sys.modules.update(kept)


@pytest.fixture
def published(own, tmp_path, monkeypatch):
    """The module, with a stand-in of the checkout."""
    modules = dict(__init__="", gaussian_diffusion=PROCESS, respace=RESPACE, unet=UNET)
    monkeypatch.setenv("IMPROVED_DIFFUSION", str(package(tmp_path / "checkout", "improved_diffusion", **modules)))
    return own("published")


@pytest.fixture
def peers(own, tmp_path, monkeypatch):
    """The module, with a stand-in of denoising-diffusion-pytorch whose package cannot be imported as a whole."""
    modules = dict(
        __init__="raise RuntimeError", denoising_diffusion_pytorch=SIMPLE, learned_gaussian_diffusion=LEARNED
    )
    monkeypatch.syspath_prepend(str(package(tmp_path / "site", "denoising_diffusion_pytorch", **modules)))
    return own("peers")


def test_without_a_checkout_everything_is_left_out(own, monkeypatch):
    published, x = own("published"), torch.zeros(2, 3, 4, 4)
    for value in (None, ""):
        if value is not None:
            monkeypatch.setenv("IMPROVED_DIFFUSION", value)
        assert published.checkout() is None and published.commit() is None
        assert published.loop("ancestral", BETAS, 4, x, x, "fixed_small") is None
        assert published.bound(BETAS, lambda x, t: x) is None and published.unet(nn.Identity(), None, 4) is None


def test_a_folder_that_is_not_a_checkout_is_refused(own, tmp_path, monkeypatch):
    monkeypatch.setenv("IMPROVED_DIFFUSION", str(tmp_path))
    with pytest.raises(ValueError, match=r"IMPROVED_DIFFUSION is '.*', which has no improved_diffusion/gaussian_diffu"):
        own("published").checkout()


def test_the_loops_of_a_checkout(published):
    out, start = torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    found = {name: published.loop(name, BETAS, 5, out, start, "fixed_small") for name in ("ancestral", "ddim", "euler")}
    assert found["euler"] is None
    assert (found["ancestral"]() == 1 + 5).all() and (found["ddim"]() == 1 - 5).all()


def test_the_losses_and_the_bound_of_a_checkout(published):
    loss, noise = published.PublishedLoss(BETAS), torch.zeros(2, 3, 4, 4)
    given = (lambda x, t: x, noise + 3, torch.tensor([0, 7]), noise)
    assert loss.steps == 8
    assert loss.simple(*given).tolist() == [3, 3] and loss.hybrid(*given).tolist() == [4, 4]
    assert published.bound(BETAS, lambda x, t: x)(noise)[1].tolist() == list(range(8))  # cleanest first


def test_the_network_of_a_checkout(published):
    ours = nn.Module()
    ours.input_blocks = nn.Sequential(nn.Sequential(nn.Conv2d(3, 16, 3)))
    ours.out = nn.Sequential(nn.Conv2d(16, 6, 3))
    recipe = SimpleNamespace(
        channels=16, num_res_blocks=2, attention_resolutions=(16, 8), dropout=0.3, channel_mult=(1, 2), num_heads=4,
        scale_shift_norm=True,
    )  # fmt: skip
    peer = published.unet(ours, recipe, 32)
    assert peer.given["attention_resolutions"] == (2, 4)  # factors, not pixels
    assert peer.given["in_channels"] == 3 and peer.given["out_channels"] == 6 and peer.given["dropout"] == 0.3
    assert torch.equal(peer.out[0].weight, ours.out[0].weight)


def test_a_package_is_loaded_without_what_it_does_not_need(peers):
    unused = [name for names in peers.UNUSED.values() for name in names]
    before = {name: sys.modules.get(name) for name in unused}
    out, start = torch.ones(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    assert (peers.denoising_diffusion_loop("ancestral", 5, out, start)() == 5).all()
    assert (peers.denoising_diffusion_loop("ddim", 7, out, start)() == 7).all()
    assert peers.denoising_diffusion_loop("euler", 5, out, start) is None
    assert {name: sys.modules.get(name) for name in unused} == before  # no stand-in is left behind


def test_the_output_reports_which_loss(peers):
    x = torch.zeros(2, 3, 4, 4)
    assert peers.denoising_diffusion_loss(x + 2, 3)(x, torch.tensor([0, 1]), x) == 2
    assert peers.denoising_diffusion_loss(torch.zeros(2, 6, 4, 4), 3)(x, torch.tensor([0, 1]), x) == 6


def test_a_package_that_is_not_there_is_left_out(own, monkeypatch):
    peers, x = own("peers"), torch.zeros(1, 3, 4, 4)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    assert peers.denoising_diffusion_loss(x, 3) is None
    assert peers.denoising_diffusion_loop("ancestral", 3, x, x) is None


def test_results_name_every_peer(own, published, monkeypatch):
    peers = own("peers")
    monkeypatch.setattr(peers.metadata, "version", lambda name: f"1.{len(name)}")
    monkeypatch.setattr(peers, "INSTALLED", dict.fromkeys(peers.INSTALLED, ("math",)))
    assert peers.versions() == {
        "diffusers": "1.9", "azula": "1.5", "denoising-diffusion-pytorch": "1.27", "k-diffusion": "1.11",
        "torchebm": "1.8", "improved-diffusion": "unknown",
    }  # fmt: skip
    assert "peers diffusers 1.9, azula 1.5, den" in own("render").facts({"peers": peers.versions()})
    peers._version.cache_clear()
    monkeypatch.setattr(peers.metadata, "version", raising(peers.metadata.PackageNotFoundError))
    assert peers.versions()["azula"] is None


def test_a_package_that_cannot_be_imported_is_not_a_package_left_out(own, monkeypatch):
    peers = own("peers")
    monkeypatch.setattr(peers.metadata, "version", lambda name: "1.5")
    monkeypatch.setattr(peers, "INSTALLED", {"azula": ("math", "not_there_at_all")})
    with pytest.raises(
        ValueError, match=r"^azula 1.5 is installed but cannot be imported \(No module named 'not_there"
    ):
        peers.versions()


def raising(error: type[Exception]):
    def version(name: str) -> str:
        raise error(name)

    return version


def test_the_extra_brings_no_other_torch_and_the_file_the_rest(own):
    listed = (FOLDER / "requirements-peers.txt").read_text().splitlines()
    pinned = {line.split("==")[0] for line in listed if line and not line.startswith("#")}
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["bench"]
    named = {re.split("[=>]", one)[0] for one in extra if not one.startswith("diffkit")}
    assert pinned >= {"azula", "denoising-diffusion-pytorch", "k-diffusion", "torchebm"}  # or bring a GPU's packages
    assert not pinned & {"torch", "torchvision", "triton"}
    assert named >= set(own("peers").INSTALLED) - pinned
