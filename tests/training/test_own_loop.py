"""The loop of one's own in docs/training.md runs as it stands, and what it needs is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from training_support import system

import diffkit
from diffkit.errors import OptionError
from diffkit.training import Ema

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE.partition("## A loop of your own")[2].partition("\n## ")[0], re.DOTALL)


def test_the_loop_runs_and_learns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "docs"}
    torch.manual_seed(0)
    code = CODE[0]  # the second is for accelerate
    exec(code, names)
    assert names["step"] == 2 * (1797 // 64)
    assert names["images"].shape == (4, 1, 8, 8)
    assert names["loss"].item() < 0.9  # that of a network that says nothing is 1
    saved = diffkit.load("systems/own").network.state_dict()
    for name, value in names["ema"].state("ema_0.999", names["system"].network).items():
        assert torch.equal(saved[name], value), name


def test_a_sampler_that_learns_is_passed_on():
    """As in the documentation; the same as a run, whose losses are without the weights."""
    composed = system(timesteps=("loss_second_moment", {"history": 2}), num_steps=5)
    state = composed.parts.timesteps.init(composed.table)
    x, y = torch.zeros(40, 1, 4, 4), torch.zeros(40, dtype=torch.int64)
    for _ in range(4):
        terms = composed(x, y=y, timesteps_state=state)
        state = composed.parts.timesteps.update(state, terms["level"], (terms["loss"] / terms["weight"]).detach())
    assert terms["weight"].unique().numel() > 1


def test_one_rate_or_several():
    network = torch.nn.Linear(2, 2)
    assert Ema(network, 0.9).labels == ("ema_0.9",)
    assert Ema(network, [0.9, 0.5], widths=0.1).labels == ("ema_0.9", "ema_0.5", "power_0.1")
    with pytest.raises(OptionError, match=r"each of rates must be >= 0 and < 1, got 1.0"):
        Ema(network, 1.0)
    with pytest.raises(OptionError, match=r"each of widths must be > 0 and <= 0.28, got 0.5"):
        Ema(network, (), widths=(0.5,))
