"""How deep a call is: the number of diffkit's frames between the caller and the network."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import diffkit

HOME = str(Path(diffkit.__file__).parent)
SHAPE = (1, 4, 4)


def frames_of(call) -> int:
    """The largest number of diffkit's frames below ``call(system, model)`` at a call of the model."""
    system, depths = diffkit.compose(schedule="cosine", backbone=None, data_shape=SHAPE, num_steps=20), []

    def model(x, time):
        frame, depth = sys._getframe(1), 0
        while frame is not None:
            depth, frame = depth + frame.f_code.co_filename.startswith(HOME), frame.f_back
        depths.append(depth)
        return 0.1 * x

    call(system, model)
    return max(depths)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpmpp_2m", "heun", "deis", "churn"])
def test_sampling_reaches_the_network_in_seven_frames(sampler):
    assert frames_of(lambda system, model: system.sample(2, sampler=sampler, model=model, progress=False)) <= 7


def test_the_bound_reaches_the_network_in_six_frames():
    assert frames_of(lambda system, model: system.bits_per_dim(torch.zeros(2, *SHAPE), model=model)) <= 6


def test_the_loss_reaches_the_network_in_five_frames():
    """Four of them are the system's, one is the function that training shares."""
    assert frames_of(lambda system, model: system(torch.zeros(2, *SHAPE), model=model)) <= 5
