"""Bits per dimension of a data set: batches and processes change nothing."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch

import diffkit
from diffkit.data.loading import load
from diffkit.errors import DataError, OptionError
from diffkit.evaluation import _result_cache
from diffkit.evaluation.scoring import Scoring, check_data_fits, choose_examples
from diffkit.runtime.distributed import Ranks, join_ranks


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


def scoring(system, data, options):
    """Return a scoring, and the options that are not its own."""
    own = options.keys() & {"index", "labels", "batch_size", "ranks", "keep"}
    rest = {name: value for name, value in options.items() if name not in own}
    return Scoring(system, data, **{name: options[name] for name in own}), rest


def score_data(system, data, **options):
    found, rest = scoring(system, data, options)
    return found.bound(**rest)


def ode_data(system, data, **options):
    found, rest = scoring(system, data, options)
    return found.flow(**rest)


class Recorded(Ranks):
    """One of several processes that run after each other: what the others have is known to the last."""

    parts: ClassVar[list] = []

    def gather(self, mine):
        Recorded.parts.append(mine)
        return list(Recorded.parts)


def shared(world, function, *args, **options):
    """What the last of several processes has."""
    Recorded.parts = []
    return [function(*args, **options, ranks=Recorded(rank, world)) for rank in range(world)][-1]


@pytest.mark.parametrize("world", [2, 3, 12])
def test_any_number_of_processes_finds_the_same_to_the_last_bit(system, data, world):
    options = dict(labels=True, seed=3, batch_size=2)
    alone, found = score_data(system, data, **options), shared(world, score_data, system, data, **options)
    for name in ("total", "prior", "index", "terms", "x_start_mse", "eps_mse", "visits", "deviations"):
        np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))
    assert found.index.tolist() == list(range(11))


def test_batches_change_rounding_only(system, data):
    alone, found = (score_data(system, data, labels=True, seed=3, batch_size=n) for n in (11, 3))
    for name in ("total", "prior", "terms", "x_start_mse", "eps_mse", "deviations"):
        np.testing.assert_allclose(getattr(found, name), getattr(alone, name), rtol=1e-5, atol=1e-7)


def test_much_data_has_few_parts_of_many_batches(system, data, tmp_path, monkeypatch):
    """Each result has terms of all levels, so there must not be one for every few of a million examples."""
    options = dict(labels=True, seed=3, batch_size=2)
    alone = score_data(system, data, **options)
    monkeypatch.setattr("diffkit.evaluation.scoring.PARTS", 3)
    found = score_data(system, data, keep=tmp_path / "parts", **options)
    assert _result_cache.count_results(tmp_path / "parts") == 3  # of 4, 4 and 3 examples
    np.testing.assert_array_equal(found.total, alone.total)
    np.testing.assert_allclose(found.deviations, alone.deviations, rtol=1e-9)
    pytest.importorskip("torchdiffeq")
    loose = dict(labels=True, batch_size=2, rtol=1e-2, atol=1e-2)
    few = ode_data(system, data, **loose)
    monkeypatch.undo()
    assert torch.equal(few.bits, ode_data(system, data, **loose).bits)


def test_the_noise_goes_with_the_place_in_the_data(system, data):
    every = score_data(system, data, labels=True)
    some = score_data(system, data, labels=True, index=np.array([2, 7]), levels_per_example=None)
    np.testing.assert_allclose(some.total, every.total[[2, 7]], rtol=1e-5)


def test_a_single_process_needs_no_group():
    with join_ranks() as among:
        assert (among.rank, among.size, among.gather(3)) == (0, 1, [3])


def test_chosen_examples():
    assert choose_examples(5, None, 0).tolist() == [0, 1, 2, 3, 4]
    found = choose_examples(1000, 10, 1)
    assert (
        len(set(found.tolist())) == 10
        and (np.diff(found) > 0).all()
        and found.tolist() == choose_examples(1000, 10, 1).tolist()
    )
    with pytest.raises(OptionError, match="num must be <= 5, the examples in the data, got 6"):
        choose_examples(5, 6, 0)


def test_data_that_does_not_fit(system, data):
    check_data_fits(system, data, classes=2)
    with pytest.raises(DataError, match="the data has no labels"):
        check_data_fits(system, load(data.images), classes=2)
    with pytest.raises(DataError, match=r"the data has shape \(1, 3, 4\)"):
        check_data_fits(system, load(data.images.reshape(11, 1, 3, 4)), classes=None)
    with pytest.raises(DataError, match="there is no data to score"):
        score_data(system, data, index=np.array([], dtype=np.int64))


def test_flow_ode_of_a_data_set(system, data):
    pytest.importorskip("torchdiffeq")
    options = dict(index=np.array([1, 4, 9]), labels=True, batch_size=2, rtol=1e-2, atol=1e-2, seed=5)
    found = ode_data(system, data, **options)
    assert found.bits.shape == (3,) and found.evaluations > 20 and "uniform" in found.meaning
    two = shared(2, ode_data, system, data, **options)
    assert torch.equal(two.bits, found.bits) and two.evaluations == found.evaluations
    whole = ode_data(system, data, **options | {"index": None, "batch_size": 11})  # the same noise, other steps
    torch.testing.assert_close(whole.bits[[1, 4, 9]], found.bits, rtol=0.02, atol=0.02)


# ---- going on --------------------------------------------------------------------------------------------------------


def stopping(system, monkeypatch, limit=10**9):
    """Make the system's own network count calls of it; the weights and the spec stay as they are."""
    seen, forward = [0], type(system.network).forward

    def counting(self, x, time, **given):
        seen[0] += len(x)
        if seen[0] > limit:
            raise KeyboardInterrupt
        return forward(self, x, time, **given)

    monkeypatch.setattr(type(system.network), "forward", counting)
    return seen


def test_a_stopped_job_resumes(system, data, tmp_path, monkeypatch):
    options = dict(labels=True, seed=3, batch_size=2)
    alone = score_data(system, data, **options)
    keep = tmp_path / "parts"
    with monkeypatch.context() as patch:
        stopping(system, patch, limit=9 * 5)  # 9 levels each: in the third batch of two
        with pytest.raises(KeyboardInterrupt):
            score_data(system, data, keep=keep, **options)
    assert _result_cache.count_results(keep) == 2
    seen = stopping(system, monkeypatch)
    found = score_data(system, data, keep=keep, **options)
    assert seen[0] == 9 * 7 and _result_cache.count_results(keep) == 6
    for name in ("total", "terms", "deviations", "visits", "total_error"):
        np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))
    score_data(system, data, keep=keep, **options)
    assert seen[0] == 9 * 7  # all is there, for any number of processes
    shared(3, score_data, system, data, keep=keep, **options)
    assert seen[0] == 9 * 7


@pytest.mark.parametrize("change", ["seed", "levels", "weights", "data", "damage", "precision", "compilation"])
def test_nothing_is_taken_for_the_result_of_something_else(system, data, tmp_path, monkeypatch, change):
    keep, options = tmp_path / "parts", dict(labels=True, seed=3, batch_size=2, index=np.arange(2))
    score_data(system, data, keep=keep, **options)
    (part,) = keep.iterdir()
    seen = stopping(system, monkeypatch)
    if change == "seed":
        options["seed"] = 4
    elif change == "levels":
        options["levels_per_example"] = 9
    elif change == "weights":
        with torch.no_grad():
            next(system.parameters()).add_(1e-3)
    elif change == "data":
        images = data.images.copy()
        images[1, 0, 0, 0] ^= 1
        data = load(images, labels=[int(y) for y in data.batch(range(11)).conditions["y"]])
    elif change == "compilation":
        monkeypatch.setattr(system.network, "_compiled_call_impl", None)  # to be as it was afterwards
        system.network.compile(backend="eager")
    elif change == "damage":
        part.write_bytes(part.read_bytes()[:100])
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "precision"):
        score_data(system, data, keep=keep, **options)
    assert seen[0] == 18


def test_the_flow_resumes_too(system, data, tmp_path):
    pytest.importorskip("torchdiffeq")
    options = dict(index=np.arange(3), labels=True, batch_size=2, rtol=1e-2, atol=1e-2, keep=tmp_path / "parts")
    first, again = ode_data(system, data, **options), ode_data(system, data, **options)
    assert torch.equal(first.bits, again.bits) and first.evaluations == again.evaluations
    assert _result_cache.count_results(tmp_path / "parts") == 2


def test_forgetting_removes_results_only(tmp_path):
    folder = tmp_path / "parts"
    _result_cache.remove_results(folder)
    folder.mkdir()
    (folder / f"{'0' * 64}.npz").touch()
    (folder / "notes.txt").touch()
    _result_cache.remove_results(folder)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"] and _result_cache.count_results(folder) == 0
    (folder / "notes.txt").unlink()
    _result_cache.remove_results(folder)
    assert not folder.exists()


def test_options_that_json_cannot_hold_are_not_cached(system, data, tmp_path):
    with pytest.raises(OptionError, match="keep works for options that can be written as JSON"):
        score_data(system, data, labels=True, keep=tmp_path / "parts", x_transform=torch.clone)
