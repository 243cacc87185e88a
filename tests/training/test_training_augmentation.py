"""Data that draws as it is read, such as a random crop: the draws are the seed's, the step's and the process's."""

# ruff: noqa: NPY002  NumPy's old generator is what transforms of images draw from

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from training_support import content, lines, system, train

from diffkit.training.batches import batches
from diffkit.training.data_order import DataOrder
from diffkit.training.preflight import AcceptedLabels


class Drawing:
    """Four pixels of torch, numpy and random each, drawn anew whenever an example is read."""

    shape, bins, classes = (1, 4, 4), None, None

    def __len__(self):
        return 20

    def __getitem__(self, index):
        drawn = [torch.rand(4), torch.from_numpy(np.random.rand(4)), torch.tensor([random.random() for _ in range(4)])]
        return torch.cat([*drawn, torch.full((4,), float(index))]).view(1, 4, 4).float(), {}


def read(seed=0, start=0, stop=3, rows=slice(None), workers=0):
    """Images of some batches, (steps, rows, 16)."""
    from diffkit.data.loading import as_data

    order = DataOrder(20, 6, seed)
    found = batches(
        as_data(Drawing()),
        order,
        start,
        stop,
        rows=rows,
        classes=AcceptedLabels(None, None),
        workers=workers,
        locks=[],
        pin=False,
    )
    return torch.stack([batch.images.flatten(1) for batch in found])


@pytest.mark.parametrize("library", [slice(0, 4), slice(4, 8), slice(8, 12)])
@pytest.mark.parametrize("workers", [0, 1])
def test_every_step_and_example_and_seed_draws_for_itself(library, workers):
    drawn = torch.cat([read(seed, workers=workers)[..., library].flatten() for seed in (0, 1)])
    assert len(drawn.unique()) == len(drawn) == 2 * 3 * 6 * 4


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_draw_what_one_process_does(workers):
    assert torch.equal(read(workers=workers), read())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_draws_the_same(workers):
    assert torch.equal(read(start=1, workers=workers), read()[1:])


def test_processes_draw_for_themselves():
    first, second = read(rows=slice(0, 3)), read(rows=slice(3, 6))
    assert len(torch.cat([first, second])[..., :12].unique()) == 2 * 3 * 3 * 12


def test_reading_leaves_the_callers_generators_alone():
    def states():
        kind, words, *rest = np.random.get_state()
        return torch.get_rng_state().tolist(), (kind, words.tolist(), *rest), random.getstate()

    before = states()
    read()
    assert states() == before


def test_a_run_that_was_interrupted_and_had_workers_is_the_same(tmp_path):
    def run(out, **options):
        composed = system(bins=None, backbone=("mlp", {"hidden": 8, "depth": 1}))
        train(out, system=composed, data=Drawing(), label_dropout=0.0, **options)

    run(tmp_path / "whole", steps=6)
    run(tmp_path / "parts", steps=3, workers=1)
    run(tmp_path / "parts", steps=6, workers=2)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
