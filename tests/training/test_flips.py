"""Mirrored examples: at the given rate, by (seed, step, position), with everything that belongs to them."""

from __future__ import annotations

import math

import pytest
import torch
from training_support import content, lines, point_system, points, train

from diffkit.errors import DataError
from diffkit.training.augmentation import mirrored


@pytest.mark.parametrize("shape", [(1, 4, 6), (3, 5, 5), (2, 3, 4, 5)])
def test_an_example_is_mirrored_or_as_it_was(shape):
    x = torch.arange(20 * math.prod(shape), dtype=torch.float32).reshape(20, *shape)
    found, _ = mirrored(x, {}, 0.5, seed=0, step=3)
    turned = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(found, x, strict=True)])
    same = torch.tensor([torch.equal(a, b) for a, b in zip(found, x, strict=True)])
    assert (turned ^ same).all() and turned.any() and same.any()


def test_the_rate_is_the_one_given():
    x = torch.tensor([0.0, 1.0]).expand(20_000, 1, 1, 2)
    share = mirrored(x, {}, 0.25, 0, 0)[0][..., 0].mean()
    assert abs(share - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 20_000)
    assert torch.equal(mirrored(x, {}, 1.0, 0, 0)[0], x.flip(-1))
    assert torch.equal(mirrored(x, {}, 0.0, 0, 0)[0], x)


def test_seed_and_step_decide():
    x = torch.tensor([0.0, 1.0]).expand(64, 1, 1, 2)
    first = mirrored(x, {}, 0.5, 0, 0)[0]
    assert torch.equal(first, mirrored(x, {}, 0.5, 0, 0)[0])
    assert not torch.equal(first, mirrored(x, {}, 0.5, 0, 1)[0])
    assert not torch.equal(first, mirrored(x, {}, 0.5, 1, 0)[0])
    assert torch.equal(first[:9], mirrored(x[:9], {}, 0.5, 0, 0)[0])


def test_conditions_that_are_images_go_along_and_others_stay():
    x = torch.tensor([0.0, 1.0]).expand(64, 1, 1, 2)
    y = torch.arange(64)
    found, conditions = mirrored(x, {"low_res": x * 3, "y": y}, 0.5, 0, 0)
    assert torch.equal(conditions["low_res"], found * 3) and torch.equal(conditions["y"], y)


def test_runs_with_flips_resume_to_the_bit_whatever_reads_and_cuts_the_batches(tmp_path):
    train(tmp_path / "whole", flip=0.5)
    train(tmp_path / "parts", steps=7, flip=0.5)
    train(tmp_path / "parts", seed=1, flip=0.5, workers=2)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    train(tmp_path / "plain")
    assert lines(tmp_path / "plain") != lines(tmp_path / "whole")


def test_data_other_than_images_is_not_mirrored(tmp_path):
    with pytest.raises(DataError, match=r"flip=0.5 mirrors images, but the data has shape \(2,\); leave flip out"):
        train(tmp_path / "run", data=points(), system=point_system(), flip=0.5, label_dropout=0.0)
