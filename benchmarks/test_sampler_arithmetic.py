"""What a sampling step costs beside the network: a network that returns a stored tensor, 3x64x64, 50 steps.

Every walk is prepared beforehand, on both sides: its levels, its tables, its first noise. "drawn" draws fresh noise in
every step of a stochastic sampler, "stored" hands out the same tensor, so that the arithmetic is seen alone.
denoising-diffusion-pytorch's DDIM draws noise in every step, and multiplies it by 0.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import published
import pytest
import torch
from counting import operations
from measuring import DEVICE, interleaved, median, ratio
from peers import (
    SCHEDULERS,
    azula_loop,
    denoising_diffusion_loop,
    diffusers_loop,
    k_diffusion_loop,
    stored_noise,
    torchebm_loop,
)
from plain import PlainDiffusion

import diffkit
from diffkit.system.prepared import SamplingJob

STEPS, SHAPE = 50, (3, 64, 64)
PAIRS = [
    ("ancestral", "learned_range"),
    ("ancestral", "fixed_small"),
    ("ddim", "fixed_small"),
    ("dpmpp_2m", "fixed_small"),
    ("euler", "fixed_small"),
]


def system_of(variance: str) -> diffkit.System:
    loss = "hybrid" if variance == "learned_range" else "simple"
    return diffkit.compose(schedule="linear", var=variance, loss=loss, backbone=None, data_shape=SHAPE)


def our_loop(job: SamplingJob, start, noise):
    """Our loop, prepared as far as the peers' loops are."""
    program, rows = job.program(), range(job.n)
    denoiser, noise_fn = job.denoiser(rows), (lambda: noise) if noise is not None else job.noise(rows)
    return lambda: program.finish(denoiser, start, noise_fn)


def five_operations(start: torch.Tensor, out: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The operations that a step of DDIM consists of, and nothing around them."""
    a, b, c, d = (torch.tensor(value) for value in (1.1, -0.4, 0.9, 0.1))

    def run() -> torch.Tensor:
        x = start
        with torch.no_grad():
            for _ in range(STEPS):
                x_start = (a * x).addcmul_(b, out).clamp_(-1, 1)
                x = (c * x).addcmul_(d, x_start)
        return x

    return run


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("drawn", [True, False], ids=["drawn", "stored"])
def test_sampler_arithmetic(batch, drawn, record):
    start, noise = (torch.randn(batch, *SHAPE, device=DEVICE) for _ in range(2))
    rows = []
    for sampler, variance in PAIRS:
        if sampler != "ancestral" and not drawn:
            continue  # nothing is drawn there
        system = system_of(variance)
        out = torch.randn(batch, 6 if variance == "learned_range" else 3, *SHAPE[1:], device=DEVICE)
        clip = sampler in ("ancestral", "ddim")  # as diffusers does by default
        job = system.prepare(batch, steps=STEPS, sampler=sampler, clip=clip, model=lambda x, time, out=out: out)
        cases = {"diffkit": our_loop(job, start, None if drawn else noise)}
        plain = PlainDiffusion(system.table_for(STEPS).beta[1:])
        if variance == "learned_range":
            cases["plain"] = lambda plain=plain, out=out: plain.loop(plain.ancestral, lambda x, t: out, start)
        elif sampler == "ddim":
            wide = torch.cat([out, out], 1)
            cases["plain"] = lambda plain=plain, wide=wide: plain.loop(plain.ddim, lambda x, t: wide, start)
        others = {
            "improved-diffusion": published.loop(sampler, system.table.beta[1:], STEPS, out, start, variance),
            "diffusers": diffusers_loop(sampler, STEPS, out, start, variance) if sampler in SCHEDULERS else None,
            "denoising-diffusion-pytorch": denoising_diffusion_loop(sampler, STEPS, out, start),
        }
        if variance != "learned_range":
            arguments = (sampler, STEPS, out, start)
            others |= {"azula": azula_loop(*arguments), "k-diffusion": k_diffusion_loop(*arguments)}
            others |= {"torchebm": torchebm_loop(*arguments)}
        cases |= {name: theirs for name, theirs in others.items() if theirs is not None}
        if "improved-diffusion" in cases:
            with stored_noise(noise):
                apart = (our_loop(job, start, noise)() - cases["improved-diffusion"]()).abs().max()
            assert apart < 1e-3, "the published loop takes other steps"  # its tables are float32
        with nullcontext() if drawn else stored_noise(noise):
            seconds = interleaved(cases, rounds=21)
            counts = {name: round(operations(case) / STEPS, 1) for name, case in cases.items()}
        row = {"sampler": sampler, "variance": variance}
        row |= {f"{name}_us": median(taken, STEPS / 1e6) for name, taken in seconds.items()}
        row |= {f"times_faster_than_{n}": ratio(t, seconds["diffkit"]) for n, t in seconds.items() if n != "diffkit"}
        if sampler == "ddim":  # apart, as peers push both out of the caches, and the longer one more
            alone = interleaved({"ours": cases["diffkit"], "its operations": five_operations(start, out)}, rounds=61)
            row["times_its_operations"] = ratio(alone["ours"], alone["its operations"])
        rows.append(row | {f"{name}_ops": count for name, count in counts.items()})
    kind = "drawn" if drawn else "stored"
    about = "Time per sampling step beside the network" + (", noise drawn" if drawn else ", without the draw")
    record(f"sampler_arithmetic_{kind}_b{batch}", about, rows, dtype="float32", shape=[batch, *SHAPE], steps=STEPS)
