"""Each library's models as systems: every deterministic sampler, the library's own numbers, and other tasks."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from adopt_support import MODELS, SHAPE, Tiny

import diffkit
from diffkit import OptionError
from diffkit.likelihood import ode_likelihood
from diffkit.registry import registry
from diffkit.tasks.inverse import masked, solve

DETERMINISTIC = [
    name for name in registry("sampler").built_in_names() if not registry("sampler").create(name).stochastic
]
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries


def adopted(name):
    make, options, shape = MODELS[name]
    obj = make()
    return obj, diffkit.adopt(obj, data_shape=shape, **options)


def noise(system, n=2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, *system.data_shape, generator=generator, dtype=torch.float64)
    return x * float(system.table.total_std[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_all_of_diffkit_runs_on_an_adopted_model(name, tmp_path):
    _, system = adopted(name)
    x = noise(system)
    for sampler in DETERMINISTIC:
        found = system.sample(2, start=x, steps=6, sampler=sampler, progress=False)
        assert bool(found.isfinite().all()), sampler
    clean = system.sample(2, start=x, steps=6, progress=False)
    assert bool(system.encode(clean, steps=6).isfinite().all())
    score = ode_likelihood(system, clean.float(), seed=0, rtol=1e-2, atol=1e-2)
    assert bool(score.bits.isfinite().all())
    observed = torch.ones(system.data_shape)
    observed[0] = 0
    method = ("pigdm", {"operator": masked(observed), "noise_std": 0.1})
    restored = solve(system, clean.float() * observed, method, steps=4, seed=0, progress=False)
    assert bool(restored.isfinite().all())
    system.save(tmp_path / "saved")
    again = diffkit.load(tmp_path / "saved", backbone=system.network)
    assert torch.equal(again.sample(2, start=x, steps=6, progress=False), clean)


def _times(system, levels):
    return torch.from_numpy(system.table.time[[*reversed(levels)]].copy())


LEVELS = [5, 20, 40, 60, 75, 90]


def ours(system, x, sampler):
    """x at the lowest of the levels, from the highest."""
    *_, before, _ = system.trajectory(len(x), start=x, steps=LEVELS, sampler=sampler, clip=False)
    return before.x


def scaled(system):
    top = LEVELS[-1]
    return noise(system) / float(system.table.total_std[-1]) * float(system.table.total_std[top])


@pytest.mark.parametrize(("sampler", "theirs"), [("euler", "euler"), ("heun", "heun"), ("dpmpp_2m", "dpmpp_2m")])
def test_k_diffusion_samples_the_same(sampler, theirs):
    denoiser, system = adopted("k_diffusion")
    from k_diffusion import sampling

    x = scaled(system)
    run = getattr(sampling, f"sample_{theirs}")
    assert torch.allclose(ours(system, x, sampler), run(denoiser, x, _times(system, LEVELS), disable=True), atol=1e-10)


@pytest.mark.parametrize(("sampler", "theirs"), [("ddim", "DDIMSampler"), ("heun", "HeunSampler")])
def test_azula_samples_the_same(sampler, theirs):
    denoiser, system = adopted("azula")
    import azula.sample

    times = _times(system, LEVELS)
    kind = type("OnTimes", (getattr(azula.sample, theirs),), {"timesteps": property(lambda self: times)})
    x = scaled(system)
    assert torch.allclose(ours(system, x, sampler), kind(denoiser, silent=True)(x), atol=1e-10)


def test_flow_matching_and_guidance_are_the_same():
    velocity, system = adopted("flow_matching")
    from flow_matching.solver import ODESolver

    system = diffkit.recompose(system, backbone=system.network, null_conditions={"y": None})

    def guided(x, t):
        t, y = t.expand(len(x)), torch.ones(len(x))
        unlabelled = velocity(x, t)
        return unlabelled + 3.0 * (velocity(x, t, y=y) - unlabelled)

    x = scaled(system)
    theirs = ODESolver(guided).sample(x, step_size=None, method="euler", time_grid=_times(system, LEVELS))
    points = system.trajectory(
        2,
        start=x,
        steps=LEVELS,
        sampler="ddim",
        clip=False,
        guidance=("cfg", {"scale": 3.0, "joint": False}),
        y=torch.ones(2),
    )
    *_, before, _ = points
    assert torch.allclose(before.x, theirs, atol=1e-10)


def test_physicsnemo_samples_the_same():
    (predictor, scheduler), system = adopted("physicsnemo")
    from adopt_support import imported

    solver = imported("physicsnemo.diffusion.samplers.heun").HeunSolver(scheduler.get_denoiser(x0_predictor=predictor))
    x = theirs = scaled(system)
    times = _times(system, LEVELS)
    for t, s in pairwise(times):
        theirs = solver.step(theirs, t.expand(2), s.expand(2))
    assert torch.allclose(ours(system, x, "heun"), theirs, atol=1e-10)


def test_deepinv_samples_the_same():
    sde, system = adopted("deepinv")
    from deepinv.sampling.sde_solver import DDIMSolver

    x = scaled(system)
    theirs = DDIMSolver(timesteps=_times(system, LEVELS)).sample(sde, x).sample
    assert torch.allclose(ours(system, x, "ddim"), theirs, atol=1e-5)  # its denoiser computes in float32


def test_a_reading_that_is_wrong_is_named():
    make, options, shape = MODELS["azula"]
    with pytest.raises(
        OptionError, match=r"from that of azula by .*, so predicts='eps' is in doubt; use predicts='x_start'"
    ):
        diffkit.adopt(make(), data_shape=shape, predicts="eps", **options)


def test_nothing_is_imported_before_a_model_is_read():
    code = (
        "import diffkit, sys\n"
        "try:\n    diffkit.adopt(lambda x, t: x, data_shape=(1, 2, 2))\n"
        "except diffkit.OptionError as error:\n    print(error)\n"
        f"assert not set({sorted(MODELS)}) & set(sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "no reader for function" in said and "use predicts='eps'" in said


def test_a_model_of_the_wrong_form_is_refused():
    for name, obj in (
        ("azula", Tiny()),
        ("sbi", Tiny()),
        ("edm", Tiny()),
        ("torchebm", Tiny()),
        ("physicsnemo", Tiny()),
    ):
        try:
            with pytest.raises(OptionError, match=r"; |adopt"):
                diffkit.adopt(obj, data_shape=SHAPE, reader=name)
        except ImportError:
            continue


def test_times_are_those_that_are_given():
    make, _, shape = MODELS["edm"]
    system = diffkit.adopt(make(), data_shape=shape, reader="edm", times=[0.1, 1.0, 10.0])
    assert np.allclose(system.table.sigma[1:], [0.1, 1.0, 10.0], rtol=1e-12)
