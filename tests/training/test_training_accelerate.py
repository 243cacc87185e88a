"""Training by Hugging Face accelerate: the same numbers, or an error before the first update."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest
import torch
from forks import forked, forking
from torch import nn
from training_support import content, lines, train

from diffkit.errors import MissingExtraError, OptionError

installed = pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="accelerate is not installed")
OPTIONS = dict(batch_size=8, steps=6)


@installed
@forking
def test_it_trains_what_torchs_own_engine_trains(tmp_path):
    forked(2, lambda rank: train(tmp_path / "own", seed=rank, **OPTIONS) and None)
    forked(2, lambda rank: train(tmp_path / "theirs", seed=rank, engine="accelerate", **OPTIONS) and None)
    assert lines(tmp_path / "theirs") == lines(tmp_path / "own")
    assert content(tmp_path / "theirs") == content(tmp_path / "own")


class StandIn:
    """The members of an Accelerator that the engine uses, with chosen faults."""

    num_processes, process_index, gradient_accumulation_steps = 1, 0, 1
    device, mixed_precision, wrapper = torch.device("cpu"), "no", None

    def __init__(self, cpu: bool, mixed_precision: str):
        assert cpu and mixed_precision == "no"

    def prepare_model(self, network: nn.Module) -> nn.Module:
        return network if self.wrapper is None else self.wrapper(network)

    def no_sync(self, model):
        raise AssertionError("one process has nobody to hold back from")

    def backward(self, loss):
        loss.backward()

    def free_memory(self):
        pass


@pytest.fixture
def accelerate(monkeypatch):
    """A module of that name whose Accelerator may be changed."""
    found = type("Accelerator", (StandIn,), {})
    module = types.ModuleType("accelerate")
    module.Accelerator = found
    monkeypatch.setitem(sys.modules, "accelerate", module)
    return found


def test_one_process_needs_nothing_wrapped(tmp_path, accelerate):
    train(tmp_path / "own", **OPTIONS)
    train(tmp_path / "theirs", engine="accelerate", **OPTIONS)
    assert content(tmp_path / "theirs") == content(tmp_path / "own")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("num_processes", 2, "processes: 2, not 1"),
        ("process_index", 1, "process number: 1, not 0"),
        ("mixed_precision", "bf16", "mixed_precision: 'bf16', not 'no'"),
        ("gradient_accumulation_steps", 4, "gradient_accumulation_steps: 4, not 1"),
        ("device", torch.device("meta"), "device: 'meta', not 'cpu'"),
        ("wrapper", nn.Sequential, "it wrapped the network in Sequential, not MLPNetwork"),
    ],
)
def test_a_mismatch_is_refused_before_the_first_update(tmp_path, accelerate, name, value, text):
    setattr(accelerate, name, staticmethod(value) if name == "wrapper" else value)
    with pytest.raises(OptionError, match=f"accelerate set up something other than requested:\n  {text}\n"):
        train(tmp_path, engine="accelerate", **OPTIONS)
    assert not (tmp_path / "checkpoints").exists()


def test_it_must_be_installed_and_shares_nothing_out(tmp_path, monkeypatch):
    with pytest.raises(OptionError, match="engine='accelerate' makes replicas only"):
        train(tmp_path, engine="accelerate", strategy="fsdp", **OPTIONS)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match="diffkit\\[accelerate\\]"):
        train(tmp_path, engine="accelerate", **OPTIONS)
