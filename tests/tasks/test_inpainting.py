"""Inpainting by replacement and by RePaint's resampling."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from gaussian_support import FullGaussian, system_for
from hypothesis import given
from hypothesis import strategies as st

import diffkit
from diffkit.errors import CompositionError, OptionError
from diffkit.guidance import StaticThreshold
from diffkit.registry import registry
from diffkit.tasks import inpaint
from diffkit.tasks.inpainting import add_noise, repaint_moves
from diffkit.testing.oracles import GaussianOracle, network_of

COUPLED = FullGaussian(torch.zeros(2).double(), torch.tensor([[0.25, 0.24], [0.24, 0.25]]).double())
KNOWN = torch.tensor([1.0, 0.0])


def halving(x, time, **conditions):
    return 0.5 * x


@given(num_steps=st.integers(1, 40), resample=st.integers(1, 4), jump=st.integers(1, 12))
def test_a_walk_goes_down_by_steps_and_up_by_jumps(num_steps, resample, jump):
    if resample > 1 and jump >= num_steps:
        with pytest.raises(OptionError) as refused:
            repaint_moves(num_steps, resample, jump)
        if num_steps == 1:  # no jump fits
            assert str(refused.value).endswith("; use resample=1")
            return
        advice = f"jump={jump} does not fit {num_steps} steps; use jump={num_steps // 2} or resample=1"
        assert str(refused.value) == advice
        repaint_moves(num_steps, resample, num_steps // 2)
        return
    moves = repaint_moves(num_steps, resample, jump)
    assert moves[0][0] == num_steps and moves[-1][1] == 0
    assert all(a[1] == b[0] for a, b in itertools.pairwise(moves))
    ups = [goes_to - comes_from for comes_from, goes_to in moves if goes_to > comes_from]
    assert set(ups) <= {jump} and all(a - b == 1 for a, b in moves if a > b)
    places = len(range(0, num_steps - jump, jump))
    assert len(ups) == (resample - 1) * places


def test_the_papers_walk():
    """Jumps of 2 over 5 levels, each stretch walked twice, by hand."""
    assert [goes_to for _, goes_to in repaint_moves(5, 2, 2)] == [4, 3, 2, 4, 3, 2, 1, 0, 2, 1, 0]
    assert [goes_to for _, goes_to in repaint_moves(3, 1, 10)] == [2, 1, 0]


def test_noising_up_keeps_the_marginal():
    table = system_for((2,), schedule="cosine", num_steps=20).table
    x = torch.full((1, 1), 3.0)
    for low, high in ((0, 1), (0, 20), (3, 9), (19, 20)):
        mean = float(add_noise(table, x, low, high, torch.zeros(1, 1)) / 3)
        std = float(add_noise(table, 0 * x, low, high, torch.ones(1, 1)))
        assert mean * table.alpha[low] == pytest.approx(table.alpha[high], rel=1e-5, abs=1e-9)
        spread = (mean * table.sigma[low]) ** 2 + std**2
        assert spread == pytest.approx(table.sigma[high] ** 2, rel=1e-5)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize("resample", [1, 3])
def test_what_is_known_comes_back_exactly(sampler, resample):
    system = system_for((2, 3, 4), num_steps=12)
    image, known = torch.randn(2, 2, 3, 4), torch.rand(2, 1, 3, 4) < 0.5
    got = inpaint(
        system, image, known, resample=resample, jump=3, sampler=sampler, seed=0, model=halving, progress=False
    )
    assert torch.equal(got[known.expand_as(got)], image[known.expand_as(got)]) and got.isfinite().all()
    assert not torch.equal(got, image)


def test_resampling_makes_the_unknown_fit_the_known():
    """Two coupled values, one known to be 0.8: the other is N(0.768, 0.14)."""
    system = system_for((2,), num_steps=100)
    model = network_of(COUPLED, system)

    def made(resample):
        return inpaint(
            system,
            torch.tensor([0.8, 0.0]),
            KNOWN.expand(64, 2),
            n=64,
            resample=resample,
            jump=2,
            seed=0,
            model=model,
            progress=False,
        )[:, 1]

    replaced, resampled = made(1), made(6)
    assert abs(float(resampled.mean()) - 0.768) < 0.05
    assert abs(float(replaced.mean()) - 0.768) > 2 * abs(float(resampled.mean()) - 0.768)
    assert 0.1 < float(resampled.std()) < 0.18


PAIR = FullGaussian(torch.tensor([0.3, -0.2]).double(), torch.tensor([[0.25, 0.15], [0.15, 0.25]]).double())
OWN_ROUTE = {"restart", "dpmpp_sde"}
"""Samplers that choose the levels they visit; inpainting refuses them."""
SAMPLERS = [name for name in registry("sampler").built_in_names() if name not in OWN_ROUTE]
WITH_MEMORY = ["deis", "dpmpp_2m", "dpmpp_3m", "lms", "pndm", "sde_dpmpp_2m", "sde_dpmpp_3m", "unipc"]


def check_the_marginal(sampler, steps, resample, jump, tolerance):
    """With nothing known, jumps and descents of an exact network leave the distribution of data as it is."""
    system, n = system_for((2,), num_steps=1000), 1000
    how = dict(steps=steps, resample=resample, jump=jump, sampler=sampler, progress=False)
    torch.manual_seed(0)
    got = inpaint(system, torch.zeros(2), torch.zeros(2), n=n, model=network_of(PAIR, system), **how).double()
    assert (got.mean(0) - PAIR.mean).abs().max() < 0.07
    assert (torch.cov(got.T) - PAIR.covariance).abs().max() < tolerance


@pytest.mark.parametrize("sampler", WITH_MEMORY)
def test_jumps_keep_the_marginal(sampler):
    check_the_marginal(sampler, 20, 3, 2, tolerance=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("steps", "resample", "jump"), [(20, 4, 2), (30, 3, 7), (50, 3, 1), (40, 2, 20)])
def test_any_jumps_keep_the_marginal(sampler, steps, resample, jump):
    check_the_marginal(sampler, steps, resample, jump, tolerance=0.11)  # euler_ancestral alone is 0.06 off at 20 steps


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["deis", "unipc"])
def test_the_papers_jumps_keep_the_marginal(sampler):
    check_the_marginal(sampler, 250, 10, 10, tolerance=0.08)


@pytest.mark.parametrize("sampler", sorted(OWN_ROUTE))
def test_samplers_with_levels_of_their_own_are_refused(sampler):
    with pytest.raises(OptionError, match="has an order of levels of its own"):
        inpaint(system_for((2,), num_steps=20), torch.zeros(2), KNOWN, sampler=sampler, model=halving, jump=2)


@pytest.mark.parametrize(
    ("sampler", "steps", "resample", "jump"),
    [("dpmpp_2m", 100, 6, 2), *(pytest.param(s, 250, 10, 10, marks=pytest.mark.slow) for s in ("dpmpp_2m", "lms"))],
)
def test_samplers_with_memory_make_the_unknown_fit_the_known(sampler, steps, resample, jump):
    """As for the ancestral sampler: N(0.768, 0.14). Jumps of 10, the paper's, get a part of the way."""
    system = system_for((2,), num_steps=1000)
    torch.manual_seed(0)
    how = dict(steps=steps, resample=resample, jump=jump, sampler=sampler, progress=False)
    made = inpaint(system, torch.tensor([0.8, 0.0]), KNOWN, n=400, model=network_of(COUPLED, system), **how)[:, 1]
    assert abs(float(made.mean()) - 0.768) < 0.05
    assert 0.1 < float(made.std()) < 0.18


def test_the_program_of_a_walk_is_cached():
    system = system_for((2,), num_steps=20)
    job = system.prepare(1, sampler="dpmpp_2m", model=halving)
    assert job.restarting_program({20: 4, 6: 0}) is job.restarting_program({20: 4, 6: 0})
    assert job.restarting_program({20: 4, 6: 0}) is not job.restarting_program({20: 2, 4: 0})


@pytest.mark.parametrize("resample", [1, 2])
def test_an_example_is_a_function_of_its_seed_alone(resample):
    system = system_for((1, 4), num_steps=8)
    image, known = torch.randn(5, 1, 4), torch.tensor([True, False, False, True])
    how = dict(resample=resample, jump=2, model=halving, progress=False)
    whole = inpaint(system, image, known, seed=3, **how)
    torch.testing.assert_close(inpaint(system, image, known, seed=3, batch_size=2, **how), whole)
    alone = inpaint(system, image[:1], known, seed=[11], **how)
    mixed = inpaint(system, image[[2, 0]], known, seed=[4, 11], **how)
    torch.testing.assert_close(mixed[1], alone[0])


def test_conditions_and_guidance_reach_the_walk():
    system, seen = system_for((1, 4), num_steps=4), []

    def model(x, time, y):
        seen.append(y.tolist())
        return x

    got = inpaint(
        system,
        torch.zeros(1, 4),
        torch.tensor([1, 0, 0, 0]),
        n=3,
        resample=1,
        batch_size=2,
        guidance=StaticThreshold(0.01),
        sampler="ddim",
        y=[5, 6, 7],
        model=model,
        progress=False,
    )
    assert got.shape == (3, 1, 4) and got.abs().max() <= 0.011
    assert seen == [[5, 6]] * 4 + [[7]] * 4


@pytest.mark.parametrize(
    "shape", [(3, 4), (1, 3, 4), (2, 3, 4), (1, 1, 3, 4), (5, 1, 3, 4), (1, 2, 3, 4), (5, 2, 3, 4)]
)
def test_every_shape_of_a_mask(shape):
    system = system_for((2, 3, 4), num_steps=3)
    got = inpaint(system, torch.ones(2, 3, 4), torch.ones(shape), n=5, resample=1, model=halving, progress=False)
    assert torch.equal(got, torch.ones(5, 2, 3, 4))


def test_a_soft_mask_is_a_strength_for_each_value():
    """Values are those of the noised image down to the level of their strength, and free below."""
    system, oracle, seen = system_for((4,), num_steps=20), GaussianOracle(0.2, 0.5), []
    network = network_of(oracle, system)

    def model(x, time):
        seen.append(x.clone())
        return network(x, time)

    image, known = torch.tensor([0.9, -0.8, 0.3, 0.5]), torch.tensor([1.0, 0.75, 0.4, 0.0])
    found = inpaint(system, image, known, n=2, sampler="ddim", resample=1, seed=3, model=model, progress=False)
    free = inpaint(
        system, image, torch.zeros(4), n=2, sampler="ddim", resample=1, seed=3, model=network, progress=False
    )
    torch.testing.assert_close(found[:, 3], free[:, 3])
    assert torch.equal(found[:, 0], image[[0, 0]])
    noise_fn = diffkit.system.randomness.noise_for(3, range(2), (4,), torch.device("cpu"))
    noise = [noise_fn() for _ in range(20)]  # of level 20, then of each level that a step goes to
    for column, level in ((1, 5), (2, 12)):
        alpha, sigma = float(system.table.alpha[level]), float(system.table.sigma[level])
        noised = alpha * image + sigma * noise[20 - level]
        torch.testing.assert_close(seen[20 - level][:, column], noised[:, column])
        flown = sampled_from(system, network, noised, level)
        torch.testing.assert_close(found[:, column], flown[:, column], rtol=1e-4, atol=1e-5)


def sampled_from(system, network, x, level):
    """Data at a level, sampled down to level 0 by ddim."""
    table = system.table_for(list(range(1, level + 1)))
    return system.sample_from(network, x, None, table, sampler="ddim")


IMAGE = torch.zeros(3, 2, 3, 4)
MASK = torch.ones(3, 4)
BAD = [
    (
        dict(known=torch.ones(4, 3)),
        "the mask must have shape (3, 4), (2, 3, 4), (3, 1, 3, 4) or (3, 2, 3, 4), got (4, 3)",
    ),
    (dict(known=torch.full((3, 4), 1.5)), "the mask must hold numbers from 0 (to be made) to 1 (known)"),
    (dict(known=torch.full((3, 4), float("nan"))), "the mask must hold numbers from 0 (to be made) to 1 (known)"),
    (dict(known="left"), "the mask must be a tensor or a NumPy array of numbers, got str"),
    (dict(image=torch.zeros(3, 1, 3, 4)), "image must have shape (2, 3, 4) or (n, 2, 3, 4), got (3, 1, 3, 4)"),
    (dict(image=[0]), "image must be a tensor or a NumPy array of numbers, got list"),
    (dict(n=2), "image must be one, or one for each of 2 examples, got 3"),
    (dict(image=torch.zeros(2, 3, 4, dtype=torch.uint8)), "image must be floating point in [-1, 1], got torch.uint8"),
    (dict(resample=0), "resample must be >= 1, got 0"),
    (dict(jump=0), "jump must be >= 1, got 0"),
    (dict(jump=10), "jump=10 does not fit 10 steps; use jump=5 or resample=1"),
    (dict(seed=[1, 2]), "seed must be one number, or one for each of 3 examples, got 2"),
    (dict(seed=-1), "seed must be >= 0, got -1"),
    (dict(sampler="dddim"), "no sampler named 'dddim'"),
    (dict(sampler="restart", jump=1), "sampler 'restart' has an order of levels of its own, which inpainting changes"),
]


@pytest.mark.parametrize(("arguments", "text"), BAD, ids=[text[:40] for _, text in BAD])
def test_wrong_use(arguments, text):
    calls = []
    given = {"image": IMAGE, "known": MASK, "model": lambda *a, **k: calls.append(a), "progress": False, "jump": 2}
    given |= arguments
    with pytest.raises((OptionError, CompositionError, LookupError), match=re.escape(text)):
        inpaint(system_for((2, 3, 4), num_steps=10), **given)
    assert not calls


@pytest.mark.parametrize("placeholder", [float("nan"), float("inf"), 99.0])
def test_what_is_not_known_may_hold_anything(placeholder):
    system, how = system_for((2,), num_steps=6, bins=256), dict(n=3, model=halving, resample=2, jump=2, seed=0)
    found = inpaint(system, torch.tensor([0.5, placeholder]), KNOWN, progress=False, **how)
    assert torch.equal(found, inpaint(system, torch.tensor([0.5, 0.0]), KNOWN, progress=False, **how))
    with pytest.raises(OptionError, match=r"x_start (is not finite|must lie in)"):
        inpaint(system, torch.tensor([placeholder, 0.0]), KNOWN, progress=False, **how)


def test_data_out_of_range_is_refused_where_data_is_binned():
    system = system_for((2, 3, 4), num_steps=10, bins=256)
    with pytest.raises(OptionError, match=re.escape("must lie in [-1, 1]")):
        inpaint(system, IMAGE + 3, MASK, model=halving)
