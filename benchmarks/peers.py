"""Other libraries' ways of doing the same; each returns None if its library is not installed.

README.md says how to install them without a second torch; published.py holds the one peer that is a checkout.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from types import ModuleType
from unittest import mock

import published
import torch
from torch import Tensor, nn

INSTALLED = {
    "diffusers": ("diffusers.schedulers", "diffusers.models.unets.unet_2d"),
    "azula": ("azula.plugins.adm._src.unet",),
    "denoising-diffusion-pytorch": (),  # imported by `alone`, which stands in for what it does not need
    "k-diffusion": (),  # likewise
    "torchebm": ("torchebm.samplers",),
}
"""Distributions that are compared with where they are installed -> their modules that are used."""


def versions() -> dict[str, str | None]:
    """Peer -> its version, or a checkout's commit; None for one that is not here.

    Raises:
        ValueError: One is here and cannot be used, which must not look as if it were left out.
    """
    return {name: _version(name) for name in INSTALLED} | {"improved-diffusion": published.commit()}


@functools.cache
def _version(name: str) -> str | None:
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
    try:
        for module in INSTALLED[name]:
            importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{name} {found} is installed but cannot be imported ({error}); "
            "install the peers as benchmarks/README.md says, or uninstall it"
        ) from error
    return found


BETAS = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
SCHEDULERS = {
    "ancestral": ("DDPMScheduler", {"clip_sample": True}),
    "ddim": ("DDIMScheduler", {"clip_sample": True}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
}
"""Sampler of diffkit -> the scheduler of diffusers that takes the same steps."""


def diffusers_loop(sampler: str, steps: int, out: Tensor, start: Tensor, variance: str) -> Callable[[], Tensor] | None:
    """diffusers' loop around a network that returns ``out``, its tables made beforehand.

    Args:
        sampler: A key of `SCHEDULERS`.
        steps: How many.
        out: What the network returns, (B, C, *S) or (B, 2 C, *S).
        start: Data at the first level, (B, C, *S).
        variance: "fixed_small" or "learned_range"; for "ancestral".
    """
    try:
        import diffusers
    except ImportError:
        return None
    name, options = SCHEDULERS[sampler]
    more = {"variance_type": variance} if sampler == "ancestral" else {}
    scheduler = getattr(diffusers, name)(**BETAS, **options, **more)
    scheduler.set_timesteps(steps)
    start = start * float(scheduler.init_noise_sigma)

    def run() -> Tensor:
        x = start
        if hasattr(scheduler, "_step_index"):  # a walk that starts anew
            scheduler._step_index = None
            scheduler.model_outputs = [None] * getattr(scheduler.config, "solver_order", 1)
            scheduler.lower_order_nums = 0
        with torch.no_grad():
            for t in scheduler.timesteps:
                scheduler.scale_model_input(x, t)
                x = scheduler.step(out, t, x).prev_sample
        return x

    return run


DENOISING, KARRAS = "denoising_diffusion_pytorch", "k_diffusion"
UNUSED = {
    DENOISING: ("torchvision", "accelerate", "ema_pytorch", "scipy", "scipy.optimize"),
    KARRAS: ("torchvision", "torchvision.transforms", "torchdiffeq", "torchsde"),
}
"""What these packages import for a trainer, for reading images, or for one loss or sampler that is not measured."""


@functools.cache
def alone(package: str, module: str) -> ModuleType | None:
    """Import a module of a package of `UNUSED` alone; None if that is not installed.

    The packages import all of their modules, and they torchvision and others, none of which takes part in the
    arithmetic. So the package itself is not run, and `UNUSED` are stood in for while the module is imported:
    torchvision has to match the torch at hand to the digit, and pip would rather bring another torch.

    Args:
        package, module: The package, and the name of the module within it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    sys.modules.setdefault(package, importlib.util.module_from_spec(spec))
    try:
        with _stood_in_for(UNUSED[package]):
            return importlib.import_module(f"{package}.{module}")
    except ImportError:
        sys.modules.pop(package, None)
        return None


def denoising_diffusion(module: str) -> ModuleType | None:
    """Import a module of denoising-diffusion-pytorch alone; None if that library is not installed."""
    return alone(DENOISING, module)


@contextmanager
def _stood_in_for(names: Iterable[str]) -> Iterator[None]:
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: mock.MagicMock(name=name) for name in before})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


class Stored(nn.Module):
    """A network that returns a stored tensor, with the attributes that denoising-diffusion-pytorch asks of its own."""

    self_condition = False

    def __init__(self, out: Tensor, channels: int):
        super().__init__()
        self.out, self.channels, self.out_dim = out, channels, out.shape[1]

    def forward(self, x: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.out


def denoising_diffusion_process(out: Tensor, channels: int, **options: object) -> nn.Module | None:
    """denoising-diffusion-pytorch's process around a network that returns ``out``; None if not installed.

    With 2 C channels it is the one with learned variances, else the one with the posterior's.

    Args:
        out: What the network returns, (B, C, H, W) or (B, 2 C, H, W).
        channels: C.
        options: Of its constructor.
    """
    simple, learned = (denoising_diffusion(name) for name in (DENOISING, "learned_gaussian_diffusion"))
    if simple is None or learned is None:
        return None
    simple.tqdm = lambda steps, **kwargs: steps  # no bar: the other loops have none
    chosen = simple.GaussianDiffusion if out.shape[1] == channels else learned.LearnedGaussianDiffusion
    given = dict(image_size=tuple(out.shape[2:]), objective="pred_noise", auto_normalize=False)
    return chosen(Stored(out, channels), **given, **options).to(out.device)


def denoising_diffusion_loop(sampler: str, steps: int, out: Tensor, start: Tensor) -> Callable[[], Tensor] | None:
    """denoising-diffusion-pytorch's loop around a network; None if not installed, or if it has no such sampler.

    It cannot take fewer ancestral steps than it has levels, so it is given ``steps`` levels: the betas are others, the
    arithmetic of a step is the same. Its DDIM loop draws its own start, and noise in every step, which it multiplies
    by 0.

    Args:
        sampler: "ancestral" or "ddim".
        steps: How many.
        out: What the network returns, (B, C, H, W) or (B, 2 C, H, W).
        start: Data at the first level, (B, C, H, W).
    """
    if sampler not in ("ancestral", "ddim"):
        return None
    levels = dict(timesteps=steps) if sampler == "ancestral" else dict(timesteps=1000, sampling_timesteps=steps)
    process = denoising_diffusion_process(out, start.shape[1], beta_schedule="linear", **levels)
    if process is None:
        return None

    def run() -> Tensor:
        x = start
        for t in reversed(range(steps)):
            x, _ = process.p_sample(x, t)
        return x

    return run if sampler == "ancestral" else lambda: process.ddim_sample(tuple(start.shape))


def azula_loop(sampler: str, steps: int, out: Tensor, start: Tensor) -> Callable[[], Tensor] | None:
    """azula's loop around a network that returns ``out``, on its VP path; None if not installed.

    Its exponential Adams-Bashforth method of order 2 stands beside DPM-Solver++ 2M, which it is on even grids.

    Args:
        sampler, steps, start: As in `denoising_diffusion_loop`; "euler" and "dpmpp_2m" too.
        out: What the network returns, (B, C, *S).
    """
    try:
        from azula import denoise, noise, sample
    except ImportError:
        return None
    kinds = {"ancestral": "DDPMSampler", "ddim": "DDIMSampler", "euler": "EulerSampler", "dpmpp_2m": "xEABSampler"}
    denoiser = denoise.SimpleDenoiser(Stored(out, start.shape[1]), noise.VPSchedule())
    loop = getattr(sample, kinds[sampler])(denoiser, steps=steps, silent=True)
    return lambda: loop(start)


def k_diffusion_loop(sampler: str, steps: int, out: Tensor, start: Tensor) -> Callable[[], Tensor] | None:
    """k-diffusion's loop around a network that returns eps; None if not installed, or if it has no such sampler.

    Args:
        sampler, steps, out, start: As in `azula_loop`. Its ancestral sampler is Euler's; it has no DDIM.
    """
    sampling, external = alone(KARRAS, "sampling"), alone(KARRAS, "external")
    name = {"ancestral": "euler_ancestral", "euler": "euler", "dpmpp_2m": "dpmpp_2m"}.get(sampler)
    if sampling is None or external is None or name is None:
        return None
    betas = torch.linspace(BETAS["beta_start"], BETAS["beta_end"], BETAS["num_train_timesteps"])

    class Denoiser(external.DiscreteEpsDDPMDenoiser):
        def get_eps(self, x: Tensor, time: Tensor) -> Tensor:
            return out

    denoiser = Denoiser(None, (1 - betas).cumprod(0), quantize=False).to(out.device)
    sigmas, walk = denoiser.get_sigmas(steps), getattr(sampling, f"sample_{name}")
    return lambda: walk(denoiser, start * sigmas[0], sigmas, disable=True)


def torchebm_loop(sampler: str, steps: int, out: Tensor, start: Tensor) -> Callable[[], Tensor] | None:
    """torchebm's loop around a network that returns noise, on its VP path; None if not installed or without it.

    Args:
        sampler, steps, out, start: As in `azula_loop`. Beside "euler" its Euler-Maruyama stands for "ancestral".
    """
    options = {"ancestral": {"mode": "sde", "integrator": "euler_maruyama"}, "euler": {"integrator": "euler"}}
    if sampler not in options:
        return None
    try:
        from torchebm.samplers import FlowSampler
    except ImportError:
        return None
    given = dict(interpolant="vp", prediction="noise", sample_eps=1e-3, device=out.device)
    walk = FlowSampler(Stored(out, start.shape[1]), **given, **options[sampler])
    return lambda: walk.sample(x=start, n_steps=steps)


def denoising_diffusion_loss(out: Tensor, channels: int) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """denoising-diffusion-pytorch's mean loss with ``out`` for the network's output; None if it is not installed.

    Args:
        out: (B, C, H, W) for its simple loss, (B, 2 C, H, W) for its hybrid one.
        channels: C.

    Returns: A function of x_start, level - 1 and noise, as `plain.PlainDiffusion` counts levels.
    """
    process = denoising_diffusion_process(out, channels, timesteps=1000, beta_schedule="cosine")
    return None if process is None else process.p_losses


@contextmanager
def stored_noise(noise: Tensor) -> Iterator[None]:
    """Hand every peer that draws noise the same stored tensor, so that arithmetic is timed without the draw."""

    def stored(*args: object, **kwargs: object) -> Tensor:
        return noise

    with mock.patch.object(torch, "randn_like", stored):
        try:
            target = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
            with mock.patch(target, stored):
                yield
        except ModuleNotFoundError:
            yield
