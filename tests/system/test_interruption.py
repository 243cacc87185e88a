"""Sampling that is stopped between two steps goes on to the same samples, to the bit."""

from __future__ import annotations

import pytest
import torch

import diffkit
from diffkit.errors import CheckpointError, OptionError
from diffkit.registry import registry
from diffkit.system.points import load_point, save_point


@pytest.fixture(scope="module")
def system():
    torch.manual_seed(0)
    found = diffkit.compose(
        schedule="cosine", var="learned_range", loss="hybrid", backbone="mlp", data_shape=(1, 4, 4), num_steps=40
    )
    for parameter in found.network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return found.eval()


class Interrupting:
    """A network that is interrupted at one of its calls."""

    def __init__(self, network, at):
        self.network, self.left = network, at

    def __call__(self, x, time, **conditions):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.network(x, time, **conditions)


@pytest.mark.parametrize("sampler", registry("sampler").built_in_names())
def test_a_saved_point_goes_on_to_the_bit(system, sampler, tmp_path):
    how = {"sampler": sampler, "steps": 6, "seed": 3}
    points = list(system.trajectory(2, **how))
    for point in points[1], points[-2]:
        loaded = load_point(save_point(point, tmp_path / "point.safetensors"))
        *_, end = system.trajectory(2, after=loaded, **how)
        assert torch.equal(end.x, points[-1].x)
        assert end.step == points[-1].step


@pytest.mark.parametrize("at", [1, 2, 9, 14, 24])
def test_an_interrupted_call_goes_on_to_the_bit(system, at, tmp_path):
    how = {"steps": 8, "seed": 3, "batch_size": 2, "progress": False, "resume": tmp_path / "state.safetensors"}
    whole = system.sample(5, **{**how, "resume": None})
    with pytest.raises(KeyboardInterrupt):
        system.sample(5, model=Interrupting(system.network, at), **how)
    assert how["resume"].exists() == (at > 1)
    calls = Interrupting(system.network, 100)
    assert torch.equal(system.sample(5, model=calls, **how), whole)
    assert 100 - calls.left == 24 - (at - 1)  # no step is taken twice
    assert not how["resume"].exists()


def test_another_call_does_not_go_on(system, tmp_path):
    path = tmp_path / "state.safetensors"
    how = {"steps": 8, "seed": 3, "progress": False, "resume": path}
    with pytest.raises(KeyboardInterrupt):
        system.sample(2, model=Interrupting(system.network, 5), **how)
    with pytest.raises(OptionError, match=r"is of a call with other seed, steps; repeat that call, or remove the file"):
        system.sample(2, **{**how, "seed": 4, "steps": 7})
    with pytest.raises(OptionError, match="resume needs a seed"):
        system.sample(2, **{**how, "seed": None})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="is not a saved point of sampling"):
        system.sample(2, **how)


def test_a_point_of_another_call_is_refused(system):
    point = next(system.trajectory(2, sampler="dpmpp_2m", steps=6, seed=0))
    for wrong, message in (
        ({"n": 3}, r"after is a point of data \(2, 1, 4, 4\), but this call makes \(3, 1, 4, 4\)"),
        ({"steps": 7}, "which this call does not visit; pass the sampler and the steps"),
        ({"sampler": "ddim"}, "after has the state of another sampler"),
    ):
        how = {"n": 2, "sampler": "dpmpp_2m", "steps": 6, "seed": 0} | wrong
        with pytest.raises(OptionError, match=message):
            next(system.trajectory(after=point, **how))
