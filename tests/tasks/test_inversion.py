"""Inversion, exact inversion, interpolation: how well what goes to noise comes back."""

from __future__ import annotations

import re

import pytest
import torch
from gaussian_support import bimodal, bimodal_data, system_for

import diffkit
from diffkit.errors import OptionError
from diffkit.registry import registry
from diffkit.tasks import ExactCode, exact_decode, exact_encode, interpolate, invert, reconstruct
from diffkit.tasks.interpolation import slerp
from diffkit.testing.oracles import GaussianOracle, network_of

DETERMINISTIC = [
    name for name in registry("sampler").built_in_names() if not registry("sampler").create(name).stochastic
]
GOAL = 4e-3
"""RMS at 50 + 50 steps that the best other library reaches with order 2."""

WORST = {
    "ddim": 5e-2, "dpm_solver_1": 5e-2, "euler": 5e-2, "dpmpp_2m": 3e-2, "dpmpp_3m": 4e-2, "unipc": 2e-2, "deis": 3e-2,
    "lms": 1e-2, "pndm": 8e-3, "heun": 5e-4, "dpm2": 1e-3, "dpm_solver_2": 1e-3, "dpmpp_2s": 3e-3, "dpm_solver_3": 3e-3,
    "rk4": 2e-3,
}  # fmt: skip
"""RMS at 50 + 50 steps, a third to a half above what either schedule has. Before long steps were told apart, 'heun' had
4e-2, 'unipc' and 'dpmpp_3m' 1e-1."""


@pytest.fixture(scope="module", params=["cosine", "linear"])
def exact(request):
    """A system whose network knows bimodal data exactly, and data."""
    system, shape = system_for((1, 2), schedule=request.param), (1, 2)
    return system, network_of(bimodal(shape), system), bimodal_data(32, shape)


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_every_deterministic_sampler_inverts_and_reports_how_well(exact, sampler):
    system, model, x = exact
    found = invert(system, x, steps=50, sampler=sampler, model=model, progress=False)
    rms = (found.reconstruction - x).square().mean().sqrt()
    torch.testing.assert_close(found.error.square().mean().sqrt(), rms)
    assert f"{float(rms):.2e} RMS round-trip error" in str(found)
    assert rms < WORST[sampler], f"{sampler}: {rms:.1e}"


@pytest.mark.parametrize("sampler", ["heun", "dpm_solver_2", "dpm2"])
def test_order_two_comes_back_better_than_the_goal(exact, sampler):
    system, model, x = exact
    found = invert(system, x, steps=50, sampler=sampler, model=model, progress=False)
    assert found.error.square().mean().sqrt() < GOAL
    torch.testing.assert_close(
        reconstruct(system, x, sampler=sampler, model=model, progress=False), found.reconstruction
    )
    first = invert(system, x, steps=50, sampler="ddim", model=model, progress=False)
    assert first.error.square().mean().sqrt() > 2 * GOAL


@pytest.mark.parametrize("sampler", DETERMINISTIC)
def test_an_imperfect_network_inverts_as_it_samples(sampler):
    """Without signal an estimate of x_start has the error of eps a thousandfold; clipped, it comes back anyway."""
    system = system_for((1, 2), bins=256, clip_x_start=True)
    exact, x = (
        network_of(GaussianOracle(0.1, 0.3), system),
        (0.1 + 0.3 * torch.randn(32, 1, 2, **seeded())).clamp(-1, 1),
    )
    rough = lambda x, time: exact(x, time) + 0.05 * (3 * x).cos()  # noqa: E731
    found = invert(system, x, sampler=sampler, model=rough, progress=False)
    assert found.error.max() < 0.4
    unclipped = invert(system, x, sampler=sampler, model=rough, clip=False, progress=False)
    assert unclipped.error.max() > 2 * found.error.max()


def test_data_at_level_1_comes_back_there(exact):
    system, model, x = exact
    how = dict(steps=50, model=model, progress=False)
    found = invert(system, x, final="sigma_min", **how)
    assert found.error.square().mean().sqrt() < GOAL
    assert not torch.equal(found.latent, invert(system, x, **how).latent)
    own = diffkit.recompose(system, sampling={"final": "sigma_min"})
    assert torch.equal(found.reconstruction, invert(own, x, **how).reconstruction)


def seeded():
    return {"generator": torch.Generator().manual_seed(0)}


def test_the_latent_is_noise(exact):
    """To what sampling starts from: zero mean, unit spread."""
    system, model, x = exact
    latent = invert(system, x, model=model, progress=False).latent
    assert abs(float(latent.mean())) < 0.3 and 0.8 < float(latent.std()) < 1.25


def test_a_stochastic_sampler_cannot_be_inverted():
    calls = []
    for sampler in ("ancestral", ("ddim", {"eta": 1.0})):
        with pytest.raises(OptionError, match="encode needs a deterministic sampler; use sampler='heun' or"):
            invert(system_for((1, 2)), torch.zeros(1, 2), sampler=sampler, model=calls.append)
    assert not calls


# ---- exactly ---------------------------------------------------------------------------------------------------------


class Rough:
    """A network that has learned nothing; remembers the largest value it met, which rounding errors go with."""

    largest = 1.0

    def __call__(self, x, time):
        self.largest = max(self.largest, float(x.abs().max()))
        return (2 * x).sin().maximum(1 - x.abs()) + (time / 300).cos().view(-1, 1, 1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-12)])
@pytest.mark.parametrize("mean", ["eps", "x_start", "v"])
@pytest.mark.parametrize("steps", [2, 3, 20])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_exact_inversion_is_exact_with_any_network(dtype, tolerance, mean, steps, gamma):
    system = system_for((1, 2), mean=mean)
    x = torch.randn(3, 1, 2, dtype=dtype)
    how = dict(steps=steps, gamma=gamma, model=Rough(), progress=False)
    back = exact_decode(system, exact_encode(system, x, **how), **how)
    torch.testing.assert_close(back, x, rtol=0, atol=tolerance * how["model"].largest)


def test_exact_inversion_of_exact_data(exact):
    system, model, x = exact
    code = exact_encode(system, x, model=model, progress=False)
    back = exact_decode(system, code, model=model, progress=False)
    assert (back - x).abs().max() < 1e-5 and 0.8 < float(code.latent.std()) < 1.25


def test_sampling_with_it_is_nearer_to_the_exact_solution_than_ddim(exact):
    system, model, _ = exact
    z = torch.randn(32, 1, 2, generator=torch.Generator().manual_seed(2))
    exact_x = system.sample(32, steps=500, sampler="dpm_solver_2", start=z, model=model, progress=False)
    ddim = system.sample(32, steps=100, sampler="ddim", start=z, model=model, progress=False)
    bdia = exact_decode(system, z, steps=100, model=model, progress=False)
    assert (bdia - exact_x).square().mean() < (ddim - exact_x).square().mean()


def test_a_code_knows_its_walk():
    system, x = system_for((1, 2)), torch.randn(3, 1, 2, dtype=torch.float64)
    how = dict(model=Rough(), progress=False)
    code = exact_encode(system, x, steps="trailing8", gamma=0.9, **how)
    assert len(code.levels) == 8 and code.gamma == 0.9
    for more in ({}, {"steps": "trailing8"}, {"steps": code.levels, "gamma": 0.9}):
        torch.testing.assert_close(exact_decode(system, code, **more, **how), x, rtol=0, atol=1e-9)
    with pytest.raises(OptionError, match=r"steps=20 visits 20 levels \(1, .*but the code was made on 8 levels"):
        exact_decode(system, code, steps=20, **how)
    with pytest.raises(OptionError, match=r"gamma=1.0, but the code was made with 0.9; leave gamma out"):
        exact_decode(system, code, gamma=1.0, **how)
    plain = ExactCode(code.latent, code.below)
    same = exact_decode(system, plain, steps="trailing8", gamma=0.9, **how)
    torch.testing.assert_close(same, x, rtol=0, atol=1e-9)


BAD_EXACT = [
    (lambda s: exact_encode(s, torch.zeros(1, 2), steps=1), "exact inversion needs at least 2 steps, got 1"),
    (lambda s: exact_encode(s, torch.zeros(1, 2), gamma=0), "gamma must be > 0 and <= 1, got 0"),
    (lambda s: exact_decode(s, torch.zeros(4, 2)), "the code must have shape (4, 1, 2), got (4, 2)"),
]


@pytest.mark.parametrize(("call", "text"), BAD_EXACT, ids=[text[:30] for _, text in BAD_EXACT])
def test_wrong_use_of_exact_inversion(call, text):
    system = system_for((1, 2))
    system.network = torch.nn.Identity()
    with pytest.raises(OptionError, match=re.escape(text)):
        call(system)


# ---- between ---------------------------------------------------------------------------------------------------------


def test_interpolation_begins_and_ends_at_the_images(exact):
    system, model, x = exact
    got = interpolate(system, x[0], x[1], 5, model=model, progress=False)
    assert got.shape == (5, 1, 2)
    torch.testing.assert_close(got[[0, 4]], x[:2], rtol=0, atol=2e-2)
    cut = interpolate(system, x[0], x[1], [0.0, 0.5, 1.0], batch_size=2, model=model, progress=False)
    torch.testing.assert_close(cut, got[[0, 2, 4]], rtol=1e-4, atol=1e-4)


def test_the_great_circle():
    a, b = torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0])
    for weight in (0.0, 0.25, 0.5, 1.0):
        point = slerp(a, b, weight)
        torch.testing.assert_close(point.norm(), torch.tensor(1.0))
        angle = torch.tensor(weight * torch.pi / 2)
        torch.testing.assert_close(point, angle.cos() * a + angle.sin() * b)
    torch.testing.assert_close(slerp(a, 2 * a, 0.5), 1.5 * a)
    torch.testing.assert_close(slerp(a, -a, 0.25), 0.5 * a)
    assert slerp(0 * a, b, 0.5).isfinite().all()


BAD_WEIGHTS = [
    (dict(weights=1), "weights must be >= 2, got 1"),
    (dict(weights=[]), "weights must have at least one position"),
    (dict(weights=[1.5]), "each weight must be >= 0 and <= 1, got 1.5"),
    (dict(first=torch.zeros(2, 1, 2)), "first and second must be one image each, got 3 in all"),
    (dict(second=torch.zeros(3)), "second must have shape (1, 2) or (n, 1, 2), got (3,)"),
    (dict(sampler="ancestral"), "encode needs a deterministic sampler"),
]


@pytest.mark.parametrize(("arguments", "text"), BAD_WEIGHTS, ids=[text[:30] for _, text in BAD_WEIGHTS])
def test_wrong_use_of_interpolation(arguments, text):
    given = {"first": torch.zeros(1, 2), "second": torch.ones(1, 2), "model": Rough(), "progress": False} | arguments
    with pytest.raises(OptionError, match=re.escape(text)):
        interpolate(system_for((1, 2)), **given)


def test_fewer_levels_than_the_default_are_all_visited():
    system = system_for((1, 2), num_steps=20)
    model, x = network_of(bimodal((1, 2)), system), bimodal_data(4, (1, 2))
    how = dict(model=model, progress=False)
    whole = invert(system, x, steps=20, **how)
    torch.testing.assert_close(invert(system, x, **how).latent, whole.latent)
    torch.testing.assert_close(reconstruct(system, x, **how), whole.reconstruction)
    torch.testing.assert_close(exact_decode(system, exact_encode(system, x, **how), **how), x)
    assert interpolate(system, x[0], x[1], 3, **how).shape == (3, 1, 2)
    with pytest.raises(OptionError, match="steps must be <= 20"):
        invert(system, x, steps=50, **how)
