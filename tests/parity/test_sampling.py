"""Single steps and whole loops against improved-diffusion, the stored noise in place of its generator's draws."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from reference import LOOPS, MEANS, PROCESSES, VARS, assert_close, compose, golden, mean_is_clipped, model_of

from diffkit.system.bound import BoundTerms, prior_bits
from diffkit.system.call_parts import parts_for
from diffkit.system.sampling import encoding_program, sampling_program

STEPS = {
    "p_sample": ("ancestral", {"clip": True}),
    "p_sample_noclip": ("ancestral", {"clip": False}),
    "ddim_eta0.0": (("ddim", {"eta": 0.0}), {"clip": True}),
    "ddim_eta0.5": (("ddim", {"eta": 0.5}), {"clip": True}),
    "ddim_eta1.0": (("ddim", {"eta": 1.0}), {"clip": True}),
    "ddim_reverse": ("ddim", {"clip": True}),
}


def clips(mean: str, name: str, clip: bool) -> bool:
    """What our steps have to be told to take the published ones."""
    return mean_is_clipped(mean, clip) if name.startswith("p_sample") else clip


def stored_steps():
    for process, name, mean, var, suffix in product(PROCESSES, STEPS, MEANS, VARS, ("", "__rescale")):
        if f"{name}__{mean}__{var}{suffix}" in golden(f"sample_steps_{process}"):
            yield process, name, mean, var, suffix


@pytest.mark.parametrize(("process", "name", "mean", "var", "suffix"), [*stored_steps()])
def test_one_step(process, name, mean, var, suffix):
    stored = golden(f"sample_steps_{process}")
    key = f"{name}__{mean}__{var}{suffix}"
    sampler, processing = STEPS[name]
    clip = clips(mean, name, **processing)
    system = compose(PROCESSES[process], mean=mean, var=var, rescale_time=bool(suffix))
    assert_close(one_step(system, stored, sampler, name, model_of(var), clip), stored, key)


def one_step(system, stored, sampler, name, model, clip, **conditions):
    """One step at a different level for every row."""
    x, t, noise = (torch.from_numpy(stored[n]) for n in ("x", "t", "noise"))
    chosen = parts_for(system.parts, sampler).sampler
    if name == "ddim_reverse":
        program, rows = encoding_program(system.parts, chosen, system.table, past_end=True), t
    else:
        program, rows = sampling_program(system.parts, chosen, system.table), system.num_steps - 1 - t
    row = program.columns.on(x.device)[rows]
    denoiser = system.denoiser(model, clip=clip, **conditions)
    return program.step(denoiser, x, (), row, noise if chosen.stochastic else None, False)[0]


@pytest.mark.parametrize("process", PROCESSES)
def test_conditions_reach_the_network(process):
    stored = golden(f"sample_steps_{process}")
    system = compose(PROCESSES[process], var="LEARNED_RANGE")
    y = torch.from_numpy(stored["y"])
    got = one_step(system, stored, "ancestral", "p_sample", model_of("LEARNED_RANGE"), clip=True, y=y)
    assert_close(got, stored, "p_sample_y__EPSILON__LEARNED_RANGE")


@pytest.mark.parametrize("process", PROCESSES)
def test_a_batch_of_levels_is_each_row_alone(process):
    stored = golden(f"sample_steps_{process}")
    system = compose(PROCESSES[process], var="LEARNED_RANGE")
    together = one_step(system, stored, "ancestral", "p_sample", model_of("LEARNED_RANGE"), clip=True)
    for i in range(len(together)):
        alone = one_step(
            system,
            {name: stored[name][i : i + 1] for name in ("x", "t", "noise")},
            "ancestral",
            "p_sample",
            model_of("LEARNED_RANGE"),
            clip=True,
        )
        torch.testing.assert_close(alone[0], together[i])


def combinations(stored, prefix):
    return [k.removeprefix(prefix) for k in stored if k.startswith(prefix) and not k.endswith("__f64")]


def system_for(loop: str, tag: str):
    mean, var = tag.split("__")
    rescale = tag == "EPSILON__LEARNED_RANGE"
    return compose(LOOPS[loop], mean=mean, var=var, rescale_time=rescale), model_of(var)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", ["p_sample_loop", "ddim_sample_loop_eta0.0", "ddim_sample_loop_eta1.0"])
def test_whole_loops(loop, name):
    stored = golden(f"loops_{loop}")
    tags = combinations(stored, f"{name}__")
    assert len(tags) == 4
    for tag in tags:
        system, model = system_for(loop, tag)
        clip = clips(tag.split("__")[0], name, clip=True)
        draws = iter(torch.from_numpy(stored["step_noise"]))
        sampler = "ancestral" if name == "p_sample_loop" else ("ddim", {"eta": float(name[-3:])})
        x = torch.from_numpy(stored["x_T"])
        got = system.sample_from(model, x, lambda draws=draws: next(draws), sampler=sampler, clip=clip)
        assert_close(got, stored, f"{name}__{tag}")


@pytest.mark.parametrize("loop", LOOPS)
def test_reverse_loop(loop):
    stored = golden(f"loops_{loop}")
    for tag in combinations(stored, "ddim_reverse_loop__"):
        system, model = system_for(loop, tag)
        x = torch.from_numpy(stored["x_start"])
        assert_close(system.encode(x, model=model, start="level1"), stored, f"ddim_reverse_loop__{tag}")


@pytest.mark.parametrize("loop", LOOPS)
def test_every_intermediate_sample(loop):
    stored = golden(f"loops_{loop}")
    for tag in combinations(stored, "p_sample_trajectory__"):
        mean, var = tag.split("__")
        system, model = compose(LOOPS[loop], mean=mean, var=var), model_of(var)  # stored without rescaled time
        draws = iter(torch.from_numpy(stored["step_noise"]))
        program = sampling_program(system.parts, system.parts.sampler, system.table)
        moments = program.run(system.denoiser(model), torch.from_numpy(stored["x_T"]), lambda draws=draws: next(draws))
        assert_close(torch.stack([m.x for m in moments]), stored, f"p_sample_trajectory__{tag}")


def every_term(system, model, x_start, noises, clip):
    """Terms and errors from level T down, each (B, T)."""
    terms, denoiser = BoundTerms.of(system.parts, system.table, system.decoder), system.denoiser(model, clip=clip)
    columns = []
    for i, noise in enumerate(noises):
        level = torch.full((len(x_start),), system.num_steps - i)
        columns.append(terms(denoiser, x_start, level, noise, len(x_start)))
    return [torch.stack(column, 1) for column in zip(*columns, strict=True)]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("clip", ["clip", "noclip"])
def test_variational_bound(loop, clip):
    """Columns of the stored terms descend in t; diffkit's ascend in level."""
    stored = golden(f"loops_{loop}")
    for tag in {
        k.split("__", 1)[1].removesuffix("__vb") for k in stored if k.startswith(f"bpd_{clip}__") and k.endswith("__vb")
    }:
        system, model = system_for(loop, tag)
        x_start, noises = (torch.from_numpy(stored[name]) for name in ("x_start", "step_noise"))
        bits, _, _ = every_term(system, model, x_start, noises, mean_is_clipped(tag.split("__")[0], clip == "clip"))
        _, x_start_mse, eps_mse = every_term(system, model, x_start, noises, clip == "clip")
        key = f"bpd_{clip}__{tag}__"
        assert_close(bits, stored, key + "vb")
        assert_close(x_start_mse, stored, key + "xstart_mse")
        assert_close(eps_mse, stored, key + "mse")
        prior = prior_bits(system.table, x_start)
        assert_close(prior, stored, key + "prior_bpd")
        assert_close(bits.sum(1) + prior, stored, key + "total_bpd")


def test_ddim_at_eta_1_is_finite_everywhere():
    """The published code takes the root of a rounding error below 0 at these step counts, and returns NaN."""
    for steps in (4, 6, 9, 13, 16, 19, 20, 23, 26, 29, 30, 31, 35, 38):
        system = compose(dict(schedule="cosine", num_steps=4000))
        model = model_of("FIXED_LARGE")
        got = system.sample(2, steps=steps, sampler=("ddim", {"eta": 1.0}), seed=0, model=model, progress=False)
        assert got.isfinite().all()
