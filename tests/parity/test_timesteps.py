"""The timestep samplers against improved-diffusion's resamplers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import golden

from diffkit import ProcessTable
from diffkit.registry import registry

CASES = {"h3": (8, {"history": 3, "uniform_prob": 0.01}), "default": (6, {})}


def update_one_by_one(sampler, state, ts, losses):
    for t, loss in zip(ts, losses, strict=True):
        state = sampler.update(state, torch.tensor([t + 1]), torch.tensor([loss]))
    return state


def update_at_once(sampler, state, ts, losses):
    return sampler.update(state, torch.from_numpy(ts + 1), torch.from_numpy(losses))


@pytest.mark.parametrize("tag", CASES)
@pytest.mark.parametrize("update", [update_one_by_one, update_at_once])
def test_loss_second_moment(tag, update):
    stored = {k.removeprefix(f"{tag}__"): v for k, v in golden("resampler").items()}
    steps, options = CASES[tag]
    sampler = registry("timesteps").create("loss_second_moment", **options)
    state = sampler.init(ProcessTable.from_betas(np.full(steps, 0.1)))

    def weights():
        p = sampler.probabilities(state).numpy()
        return p / p.sum()

    def normalized(key):
        return stored[key] / stored[key].sum()

    np.testing.assert_allclose(weights(), normalized("weights_initial"), rtol=1e-12)
    state = update(sampler, state, stored["stage1_ts"], stored["stage1_losses"])
    np.testing.assert_allclose(weights(), normalized("weights_stage1_not_warm"), rtol=1e-12)
    state = update(sampler, state, np.array([steps - 1]), np.array([2.5]))
    np.testing.assert_allclose(weights(), normalized("weights_stage2_warm"), rtol=1e-12)
    state = update(sampler, state, stored["stage3_ts"], stored["stage3_losses"])
    np.testing.assert_allclose(weights(), normalized("weights_stage3"), rtol=1e-12)
    history = stored["loss_history_stage3"].shape[1]
    oldest_first = [
        np.roll(row, -int(count) % history) for row, count in zip(state.values.numpy(), state.seen, strict=True)
    ]
    np.testing.assert_allclose(oldest_first, stored["loss_history_stage3"], rtol=1e-12)

    u = np.random.RandomState(1234).random_sample(32)
    t, weight = sampler.sample(state, torch.from_numpy(u), steps)
    np.testing.assert_array_equal(t.numpy() - 1, stored["sample_seed1234_indices"])
    np.testing.assert_allclose(weight.numpy(), stored["sample_seed1234_weights"], rtol=1e-6)


def test_uniform():
    stored = golden("resampler")
    u = np.random.RandomState(77).random_sample(20)
    t, weight = registry("timesteps").create("uniform").sample((), torch.from_numpy(u), 10)
    np.testing.assert_array_equal(t.numpy() - 1, stored["uniform10__sample_seed77_indices"])
    np.testing.assert_allclose(weight.numpy(), stored["uniform10__sample_seed77_weights"], rtol=1e-6)
