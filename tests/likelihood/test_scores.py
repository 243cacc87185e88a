"""The bound over data: what it is on Gaussian data, its errors, parts and files."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from gaussian_data import Ideal, true_bits
from torch import nn

import diffkit
from diffkit.errors import DataError, OptionError
from diffkit.likelihood import score
from diffkit.likelihood.scores import LevelMoments, merge_scores
from diffkit.likelihood.stratified_levels import Strata

MEAN, STD = 0.2, 0.5


class Linear(nn.Module):
    """A poor network: its errors differ from level to level."""

    def __init__(self, channels: int, outputs: int):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(outputs, channels) / 4)

    def forward(self, x, time, y=None):
        out = torch.einsum("oc,bc...->bo...", self.weight, x)
        return out if y is None else out + 0.1 * y.view(-1, *(1,) * (x.ndim - 1))


def learned(shape=(1, 4, 4), steps=40, **more):
    parts = dict(schedule="cosine", var="learned_range", loss="hybrid") | more
    return diffkit.compose(**parts, backbone=None, data_shape=shape, num_steps=steps)


@pytest.fixture
def system():
    return diffkit.compose(
        schedule="cosine", var="learned_range", loss="hybrid", backbone=Linear(1, 2), data_shape=(1, 4, 4), num_steps=40
    )


@pytest.fixture
def x():
    return torch.rand(5, 1, 4, 4) * 2 - 1


def gap(schedule, steps, raw):
    """Bound above the truth, on Gaussian data, with its standard error."""
    system = learned((1, 40, 40), steps, schedule=schedule, bins=None)
    x = MEAN + STD * torch.randn(16, 1, 40, 40, generator=torch.Generator().manual_seed(0))
    found = score(system, x, model=Ideal(system.table, MEAN, STD, raw=raw), rows_per_call=256)
    above = found.total - true_bits(x, MEAN, STD).numpy()
    return above.mean(), above.std() / 4


def test_the_bound_is_above_the_truth_and_approaches_it_with_the_number_of_levels():
    """With beta for the variance; what the noise adds is taken off by scoring the ideal variance with the same."""
    found = []
    for steps in (5, 20, 80):
        beta, ideal = gap("cosine", steps, 1.0), gap("cosine", steps, "ideal")
        assert beta[0] > -2 * beta[1]
        found.append(beta[0] - ideal[0])
    assert found[0] > 2.5 * found[1] > 6 * found[2] > 0.05


@pytest.mark.parametrize(("schedule", "steps"), [("cosine", 2), ("cosine", 30), ("linear", 60)])
def test_with_the_ideal_variance_the_bound_is_the_truth_at_any_number_of_levels(schedule, steps):
    above, error = gap(schedule, steps, "ideal")
    assert abs(above) < 3 * error and error < 0.015


def test_every_level_is_bits_per_dim(system, x):
    found, direct = score(system, x, seed=7), system.bits_per_dim(x, seed=7)
    np.testing.assert_allclose(found.total, direct.total.numpy(), rtol=1e-6)
    np.testing.assert_allclose(found.terms, direct.terms.mean(0).numpy(), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.eps_mse, direct.eps_mse.mean(0).numpy(), rtol=1e-6)
    np.testing.assert_allclose(found.x_start_mse, direct.x_start_mse.mean(0).numpy(), rtol=1e-6)
    errors = direct.terms.double().std(0).numpy() / math.sqrt(5)
    np.testing.assert_allclose(found.errors()[0], errors, rtol=1e-4, atol=1e-9)
    assert found.levels.tolist() == list(range(1, 41)) and found.visits.tolist() == [5] * 40


@pytest.mark.parametrize("levels", [None, 9])
def test_batches_and_parts_change_nothing(system, x, levels):
    whole = score(system, x, seed=1, levels_per_example=levels)
    streamed = score(system, [(x[:2], {}), (x[2:], {})], seed=1, levels_per_example=levels, rows_per_call=3)
    parts = [score(system, x[i : i + 1], seed=1, levels_per_example=levels, indices=[i]) for i in (4, 1, 0, 3, 2)]
    for other in (streamed, merge_scores(parts)):
        for name in ("total", "prior", "terms", "x_start_mse", "eps_mse", "deviations", "total_error"):
            np.testing.assert_allclose(getattr(other, name), getattr(whole, name), rtol=1e-5, atol=1e-7)
        assert other.index.tolist() == [0, 1, 2, 3, 4] and other.visits.tolist() == whole.visits.tolist()


def test_a_batch_is_read_when_its_turn_comes(system, x):
    read = []

    def batches():
        for i in range(3):
            read.append(i)
            yield x[i : i + 1], {}

    reading = batches()
    assert score(system, reading, steps=3).total.shape == (3,) and read == [0, 1, 2]


def test_progress_counts_pairs_of_example_and_level(system, x):
    told = []
    score(system, x, steps=3, rows_per_call=4, progress=told.append)
    assert told == [4, 4, 4, 3]


def test_conditions_go_with_their_examples(x):
    system = diffkit.compose(schedule="cosine", backbone=Linear(1, 1), data_shape=(1, 4, 4), num_steps=20)
    one = score(system, x[:2], seed=0, y=[0, 3], rows_per_call=7)
    split = score(system, [(x[:1], {"y": [0]}), (x[1:2], {"y": torch.tensor([3])})], seed=0)
    np.testing.assert_allclose(one.total, split.total, rtol=1e-6)
    other = score(system, x[:2], seed=0, y=[0, 0])
    assert other.total[0] == pytest.approx(one.total[0]) and other.total[1] != pytest.approx(one.total[1])


@pytest.mark.parametrize("steps", [1, 2, 3, "5,5", [4, 11, 40]])
def test_every_respacing(system, x, steps):
    found = score(system, x, steps=steps, seed=0)
    assert found.levels.tolist() == system.table_for(steps).index[1:].tolist()
    np.testing.assert_allclose(found.total, system.bits_per_dim(x, steps=steps, seed=0).total.numpy(), rtol=1e-6)


@pytest.mark.parametrize("shape", [(2,), (3, 5), (1, 2, 3, 2)])
@pytest.mark.parametrize("bins", [None, 2, 17, 65536])
def test_every_decoder_and_shape(shape, bins):
    network = Linear(shape[0], 2 * shape[0])
    system = diffkit.compose(
        var="learned_range", loss="hybrid", mean="v", backbone=network, data_shape=shape, num_steps=20, bins=bins,
        schedule="cosine",
    )  # fmt: skip
    found = score(system, torch.rand(1, *shape) * 2 - 1)
    assert np.isfinite(found.total).all() and math.isnan(found.std_error)


# ---- fewer than all levels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 5, 13])
def test_fewer_levels_have_no_bias(levels):
    """Over every level of every stratum the estimates average to the sum of all terms, exactly."""
    strata = Strata.of(30, levels)
    terms = np.random.default_rng(0).random(31)
    expected = sum(
        size * terms[first : first + size].mean() for first, size in zip(strata.first, strata.size, strict=True)
    )
    assert expected == pytest.approx(terms[1:].sum(), rel=1e-12)
    rng = np.random.default_rng(1)
    drawn = np.stack([strata.draw(rng) for _ in range(4000)])
    totals = strata.total(terms[drawn])
    assert abs(totals.mean() - terms[1:].sum()) < 4 * totals.std() / 4000**0.5


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 30, 1000, 4000])
def test_strata_cut_the_levels_without_gap(steps):
    for count in {min(2, steps), min(3, steps), (steps + 1) // 2 + 1, max(steps - 1, 2), steps}:
        if count > steps:
            continue
        strata = Strata.of(steps, count)
        assert len(strata.first) == count and strata.first[0] == 1 and strata.size[0] == 1
        assert (strata.size >= 1).all() and strata.first[-1] + strata.size[-1] == steps + 1
    assert Strata.of(steps, None).complete


def test_the_stated_error_covers_the_real_one(system, x):
    """A bound on what it should be, and no more than three times that."""
    one = x[:1].expand(300, -1, -1, -1)
    for levels in (8, 16, 40):
        found = score(system, one, levels_per_example=levels, rows_per_call=512)
        stated, real = math.sqrt((found.total_error**2).mean()), found.total.std()
        assert 0.9 * real < stated < 3 * real


def test_fewer_levels_agree_with_all(system, x):
    many = x.repeat(80, 1, 1, 1)
    few, every = score(system, many, levels_per_example=10, rows_per_call=512), score(system, many, rows_per_call=512)
    assert abs(few.mean - every.mean) < 4 * math.hypot(few.std_error, every.std_error)
    assert few.visits[0] == 400 and few.visits.sum() == 4000
    low, high = few.interval()
    assert low < every.mean < high or abs(few.mean - every.mean) < 3 * few.std_error
    seen = few.visits > 20
    np.testing.assert_array_less(abs(few.terms - every.terms)[seen], 6 * few.errors()[0][seen] + 1e-3)


def test_too_few_or_too_many_levels(system, x):
    for count in (1, 41, 0):
        with pytest.raises(
            OptionError, match=re.escape(f"levels_per_example must be in 2..40, or None for all, got {count}")
        ):
            score(system, x, levels_per_example=count)
    assert score(system, x, levels_per_example=40).total == pytest.approx(score(system, x).total)


# ---- results ---------------------------------------------------------------------------------------------------------


def test_moments_are_those_of_numpy():
    rng = np.random.default_rng(0)
    values = 1e4 + rng.normal(size=(3, 60, 4))
    level = np.stack([rng.permutation(6)[:4] + 1 for _ in range(60)])
    found = LevelMoments.empty(7)
    for rows in (slice(0, 1), slice(1, 40), slice(40, 60)):
        found = found.merge(LevelMoments.of(values[:, rows], level[rows], 7))
    for k in range(1, 7):
        picked = values[:, level == k]
        assert found.count[k - 1] == picked.shape[1]
        np.testing.assert_allclose(found.mean[:, k - 1], picked.mean(1), rtol=1e-13)
        np.testing.assert_allclose(found.deviations()[:, k - 1], picked.std(1, ddof=1), rtol=1e-9)
    assert found.count[6] == 0 and np.isnan(found.deviations()[:, 6]).all()


def test_text(system, x):
    text = str(score(system, x))
    assert re.fullmatch(
        r"[\d.]+ \+- [\d.]+ bits/dim over 5 examples \(level 1: [\d.]+, levels above: [\d.]+, prior: [\d.e-]+\)", text
    )
    assert "10 of 40 levels each" in str(score(system, x, levels_per_example=10))
    assert "over 1 example " in str(score(system, x[:1]))


def test_files(system, x, tmp_path):
    found = score(system, x, levels_per_example=6)
    with np.load(found.save(tmp_path / "terms.npz")) as loaded:
        assert set(loaded) == {
            "total", "total_error", "prior", "index", "levels", "visits", "terms", "terms_error",
            "x_start_mse", "x_start_mse_error", "eps_mse", "eps_mse_error",
        }  # fmt: skip
        np.testing.assert_array_equal(loaded["terms"], found.terms)
        np.testing.assert_array_equal(loaded["terms_error"], found.errors()[0])
    every = score(system, x)
    paths = every.save_reference(tmp_path / "as_published")
    assert [path.name for path in paths] == ["vb_terms.npz", "mse_terms.npz", "xstart_mse_terms.npz"]
    for path, column in zip(paths, (every.terms, every.eps_mse, every.x_start_mse), strict=True):
        np.testing.assert_array_equal(np.load(path)["arr_0"], column[::-1])  # entry 0 is level T


@pytest.mark.parametrize("how", [dict(steps=3), dict(levels_per_example=5)])
def test_plot(system, x, tmp_path, how):
    pytest.importorskip("matplotlib")
    found = score(system, x, **how)
    assert found.plot(tmp_path / "terms.png").stat().st_size > 5000
    with pytest.raises(OptionError, match="cannot write the plot"):
        found.plot(tmp_path / "nowhere" / "terms.png")


def test_wrong_data(system, x):
    with pytest.raises(DataError, match="there is no data to score"):
        score(system, [])
    with pytest.raises(OptionError, match="x_start must have shape"):
        score(system, x[:, :, :3])
    with pytest.raises(OptionError, match="indices must have one entry for each example, got 2"):
        score(system, x, indices=[0, 1])
    with pytest.raises(OptionError, match="rows_per_call must be >= 1, got 0"):
        score(system, x, rows_per_call=0)
