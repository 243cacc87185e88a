"""Bits per dimension of a data set: batches and processes change nothing."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch

import diffkit
from diffkit._errors import DataError, OptionError
from diffkit.data import load
from diffkit.evaluation.scoring import check_fit, chosen, ode_data, score_data
from diffkit.ranks import Ranks, ranks


@pytest.fixture(scope="module")
def system():
    torch.manual_seed(0)
    return diffkit.compose(
        schedule="cosine", var="learned_range", loss="hybrid", data_shape=(1, 4, 3), num_steps=9,
        backbone=("mlp", {"hidden": 8, "depth": 1, "num_classes": 2}),
    )  # fmt: skip


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return load(rng.integers(0, 256, (11, 1, 4, 3), dtype=np.uint8), labels=rng.integers(0, 2, 11))


class Recorded(Ranks):
    """One of several processes that run after each other: what the others have is known to the last."""

    parts: ClassVar[list] = []

    def gather(self, mine):
        Recorded.parts.append(mine)
        return list(Recorded.parts)


@pytest.mark.parametrize("world", [2, 3, 12])
def test_processes_share_the_work(system, data, world):
    alone = score_data(system, data, labels=True, seed=3)
    Recorded.parts = []
    for rank in range(world):
        found = score_data(system, data, labels=True, seed=3, batch_size=2, among=Recorded(rank, world))
    for name in ("total", "prior", "index", "terms", "x_start_mse", "eps_mse", "visits", "deviations"):
        np.testing.assert_allclose(getattr(found, name), getattr(alone, name), rtol=1e-5, atol=1e-7)
    assert found.index.tolist() == list(range(11))


def test_the_noise_goes_with_the_place_in_the_data(system, data):
    every = score_data(system, data, labels=True)
    some = score_data(system, data, labels=True, index=np.array([2, 7]), levels_per_example=None)
    np.testing.assert_allclose(some.total, every.total[[2, 7]], rtol=1e-5)


def test_a_single_process_needs_no_group():
    with ranks() as among:
        assert (among.rank, among.size, among.gather(3)) == (0, 1, [3])


def test_chosen_examples():
    assert chosen(5, None, 0).tolist() == [0, 1, 2, 3, 4]
    found = chosen(1000, 10, 1)
    assert (
        len(set(found.tolist())) == 10 and (np.diff(found) > 0).all() and found.tolist() == chosen(1000, 10, 1).tolist()
    )
    with pytest.raises(OptionError, match="num must be <= 5, the examples in the data, got 6"):
        chosen(5, 6, 0)


def test_data_that_does_not_fit(system, data):
    check_fit(system, data, classes=2)
    with pytest.raises(DataError, match="the data has no labels"):
        check_fit(system, load(data.images), classes=2)
    with pytest.raises(DataError, match=r"the data has shape \(1, 3, 4\)"):
        check_fit(system, load(data.images.reshape(11, 1, 3, 4)), classes=None)
    with pytest.raises(DataError, match="there is no data to score"):
        score_data(system, data, index=np.array([], dtype=np.int64))


def test_flow_ode_of_a_data_set(system, data):
    pytest.importorskip("torchdiffeq")
    seen = []
    found = ode_data(
        system, data, index=np.arange(3), labels=True, batch_size=2, advance=seen.append, rtol=1e-2, atol=1e-2
    )
    assert found.bits.shape == (3,) and seen == [2, 1] and found.evaluations > 20
