"""The numbers of diffusers' own tests (see `diffusers_full_loops`), through diffkit."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("diffusers")

import torch
from diffkit_diffusers import DiffusersDDIM, DiffusersSpacing, from_scheduler_config
from diffusers_doubles import scheduler, theirs
from diffusers_full_loops import BASES, LOOPS, Loop
from torch import Tensor

import diffkit
from diffkit.protocols import Level, Prediction
from diffkit.system.sampling import sampling_program
from diffkit.table import ProcessTable, respace

# diffusers hands tensors to np.array, which torch and NumPy 2 do not agree on; and it warns of what it changes.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SCALED = ("Euler", "Heun", "LMS", "KDPM2")
"""Classes whose states are x / alpha."""
NAMED = ("karras", "exponential", "beta")
"""Kinds of sigmas."""
FLOAT32 = 1e-4
"""Relative: in diffusers 1 - alpha_bar of the first levels has lost four digits, at 1e-4 with a rounding of 6e-8."""
OTHERWISE = {
    "dpm_multi no_noise_thres": "a sample_max_value below 1 multiplies every estimate",
    "edm_dpm no_noise_thres": "the same",
    "edm_dpm v_prediction": "no mean has EDM's output with the other sign",
    "ddim_inverse v_prediction": "the first output, of timestep 0, is decoded at clean data, where v is eps",
    "ddim_inverse no_set_alpha_to_one": "data is taken for that of timestep 0",
    "dpm_multi_inverse no_noise_thres": "a sample_max_value below 1 multiplies every estimate",
    "dpm_multi_inverse karras_and_v_prediction": "the last step stays at the noisiest level",
    "pndm v_prediction": "v of several levels are mixed, and taken for that of the last",
}
"""Configurations that are refused or sampled otherwise; the tests below show that this alone makes the difference."""


def dummy_model(sample: Tensor, t: Tensor) -> Tensor:
    t = t.to(sample.dtype).view(-1, *(1,) * (sample.ndim - 1))
    return sample * t / (t + 1)


def dummies(loop: Loop) -> tuple[Tensor, Tensor]:
    """dummy_sample_deter and dummy_noise_deter."""
    shape = (4, 3, 8) if loop.name.startswith("unipc_1d") else (4, 3, 8, 8)
    count = math.prod(shape)
    rising = torch.arange(count, dtype=torch.float64)
    return tuple(
        (values.reshape(*shape[1:], 4) / count).permute(-1, *range(len(shape) - 1))
        for values in (rising, rising.flip(0))
    )  # type: ignore[return-value]


def start_of(loop: Loop, table: ProcessTable, first: float) -> Tensor:
    """What a loop begins with, on the path of the table: data at its top.

    Args:
        first: sigma / alpha that the whole chain begins with.
    """
    sample, noise = dummies(loop)
    alpha, sigma = float(table.alpha[-1]), float(table.sigma[-1])
    if loop.scheduler.startswith((*SCALED, "EDMEuler")):
        sample = sample * ((first**2 + 1) ** 0.5 if loop.scheduler.startswith("EDM") else first)
    elif not (loop.start and loop.mixed):
        return sample
    return alpha * sample + (sigma * noise if loop.start else 0)


def through_diffkit(loop: Loop, sign: float = 1.0, model: Any = dummy_model, **given: Any) -> Tensor:
    config = {"_class_name": loop.scheduler, **BASES[loop.scheduler], **loop.options}
    reading = from_scheduler_config(config, eta=0.0)
    system = reading.compose(backbone=None, data_shape=dummies(loop)[0].shape[1:], bins=None)
    if loop.scheduler.endswith("InverseScheduler"):
        how = {"steps": reading.steps(loop.steps), "model": model, **reading.encoding, **given}
        return system.encode(dummies(loop)[0], **how)
    whole = system.table_for(reading.steps(loop.steps))
    table = respace(whole, range(1, whole.num_steps + 1 - loop.start)) if loop.start else whole
    x = start_of(loop, table, float(whole.sigma[-1] / whole.alpha[-1]))
    generator = torch.manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(x.shape, generator=generator)

    if loop.scheduler.startswith(SCALED):
        # LMS takes the weights of its place in the whole chain, though it knows fewer estimates in the middle of it
        begins = 0 if loop.scheduler != "LMSDiscreteScheduler" else loop.start
        return scaled_twice(system, x, noise, whole if begins else table, begins)
    if loop.scheduler == "DPMSolverSinglestepScheduler" and loop.start:
        # a group of steps that is begun in its middle has one of order 1, and the next group starts there
        program = sampling_program(system.parts, DiffusersDDIM(), table)
        x = next(iter(program.run(system.denoiser(dummy_model), x, None))).x
        table = respace(table, range(1, table.num_steps))
    model = unscaled_model if loop.scheduler.startswith("EDMDPM") else model
    return system.sample_from(
        lambda x, time: sign * model(x, time), x, noise, table, guidance=reading.guidance, **given
    )


def unscaled_model(sample: Tensor, t: Tensor) -> Tensor:
    """These tests leave `scale_model_input` out."""
    sigma = (4 * t.to(sample.dtype)).exp().view(-1, *(1,) * (sample.ndim - 1))
    return dummy_model(sample * (sigma**2 + 0.5**2).sqrt(), t)


def scaled_twice(system: diffkit.System, x: Tensor, noise_fn: Any, table: ProcessTable, begins: int) -> Tensor:
    """A loop whose state is what `scale_model_input` returned: these tests of diffusers overwrite it by that.

    An evaluation at x is one at alpha x then, for which the network is given x.
    """
    program = sampling_program(system.parts, system.parts.sampler, table)

    def denoise(x: Tensor, level: Level, to: Level | None = None) -> Prediction:
        inner = x if first.pop() else level.alpha * x
        found = system.denoiser(lambda y, time: dummy_model(y / level.alpha, time))(inner, level)
        eps = (inner - level.alpha * found.x_start) / level.sigma
        return found._replace(x_start=(x - level.sigma * eps) / level.alpha)

    state = program.sampler.init(x)
    for i, row in enumerate(program.columns.on(x.device, x.dtype)):
        if i < begins:
            continue
        first = [False, True]
        x = x * float(table.alpha[table.num_steps - i])
        noise = noise_fn() if program.sampler.stochastic else None
        x, state = program.step(denoise, x, state, row, noise, program.is_last(i))
    return x


def meets(loop: Loop, found: Tensor) -> None:
    if loop.total is not None:
        assert float(found.abs().sum()) == pytest.approx(loop.total, abs=loop.within[0], rel=FLOAT32)
    assert float(found.abs().mean()) == pytest.approx(loop.mean, abs=loop.within[1], rel=FLOAT32)


def loops_of(*, fast: bool) -> list[Any]:
    read = [loop for loop in LOOPS if loop.name not in OTHERWISE]
    return [pytest.param(loop, id=loop.name.replace(" ", "-")) for loop in read if (loop.steps < 100) == fast]


@pytest.mark.parametrize("loop", loops_of(fast=True))
def test_full_loops_of_diffusers(loop: Loop):
    meets(loop, through_diffkit(loop))


@pytest.mark.slow
@pytest.mark.parametrize("loop", loops_of(fast=False))
def test_full_loops_of_a_thousand_steps(loop: Loop):
    meets(loop, through_diffkit(loop))


@pytest.mark.parametrize("name", [name for name in OTHERWISE if "thres" in name])
def test_a_small_largest_value_multiplies_every_estimate(name: str):
    """clamp(min=1, max=0.5) is 0.5, so that estimates are clipped to 0.5 and divided by it."""
    loop = next(loop for loop in LOOPS if loop.name == name)
    with pytest.raises(diffkit.OptionError, match="multiplies every estimate by 2"):
        through_diffkit(loop)
    meets(loop, through_diffkit(loop._replace(options={}), x_transform=lambda x: x.clamp(-0.5, 0.5) / 0.5))


def test_edm_with_the_other_sign():
    loop = next(loop for loop in LOOPS if loop.name == "edm_dpm v_prediction")
    meets(loop, through_diffkit(loop._replace(options={}), sign=-1.0))


def test_diffusers_takes_the_first_v_for_noise():
    """The same network, whose v of timestep 0 is the one that means so much noise."""
    loop = next(loop for loop in LOOPS if loop.name == "ddim_inverse v_prediction")
    beta = BASES["DDIMInverseScheduler"]["beta_start"]

    def model(x: Tensor, t: Tensor) -> Tensor:
        out = dummy_model(x, t)
        return (out - beta**0.5 * x) / (1 - beta) ** 0.5 if float(t[0]) == 0 else out

    meets(loop, through_diffkit(loop, model=model))


def test_data_at_timestep_0_is_refused():
    loop = next(loop for loop in LOOPS if loop.name == "ddim_inverse no_set_alpha_to_one")
    with pytest.raises(diffkit.OptionError, match=r"set_alpha_to_one=False, .* is not supported"):
        through_diffkit(loop)


def test_diffusers_mixes_v_of_several_levels():
    """The same network asked for eps: there diffusers goes where diffkit goes with v."""
    loop = next(loop for loop in LOOPS if loop.name == "pndm v_prediction")
    made = scheduler("PNDMScheduler", **BASES["PNDMScheduler"])

    def eps(x: Tensor, t: Tensor) -> Tensor:
        alpha_bar = made.alphas_cumprod[int(t)]
        return alpha_bar.sqrt() * dummy_model(x, t) + (1 - alpha_bar).sqrt() * x

    expected = theirs(made, loop.steps, dummies(loop)[0], eps)
    torch.testing.assert_close(through_diffkit(loop), expected, rtol=1e-9, atol=1e-9)


INVERSE = "DPMSolverMultistepInverseScheduler"


@pytest.mark.parametrize(
    "options", [dict(timestep_spacing="trailing"), *({f"use_{kind}_sigmas": True} for kind in NAMED)], ids=str
)
def test_the_last_step_of_an_inverse_chain_stays(options: dict[str, Any]):
    """It goes from a level to itself, and is not a number where the solver divides by its size."""
    made = scheduler(INVERSE, **options, solver_type="heun", lower_order_final=False)
    made.set_timesteps(20)
    assert made.sigmas[-1] == made.sigmas[-2]
    assert theirs(made, 20, torch.ones(2, 1, 2, 2, dtype=torch.float64)).isnan().all()
    with pytest.raises(diffkit.OptionError, match="is not supported: diffusers' last step stays at the noisiest level"):
        from_scheduler_config({"_class_name": INVERSE, **options})


def test_an_inverse_chain_without_its_last_step():
    loop = next(loop for loop in LOOPS if loop.name == "dpm_multi_inverse karras_and_v_prediction")
    steps = DiffusersSpacing(loop.steps, "DPMSolverMultistepScheduler", sigmas="karras")
    meets(loop, through_diffkit(loop._replace(options=dict(prediction_type="v_prediction")), steps=steps))


def test_noise_on_the_way_up_is_not_a_number():
    """Its variance, 1 - exp(-2 h), is negative."""
    made = scheduler(INVERSE, algorithm_type="sde-dpmsolver++")
    assert theirs(made, 4, torch.ones(2, 1, 2, 2, dtype=torch.float64)).isnan().all()
    with pytest.raises(diffkit.OptionError, match=r"algorithm_type='sde-dpmsolver\+\+', .* is not supported"):
        from_scheduler_config({"_class_name": INVERSE, "algorithm_type": "sde-dpmsolver++"})
