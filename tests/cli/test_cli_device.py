"""A device that is not here is refused at once, whatever the command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_support import Command, Refused

from diffkit.cli.parsing import commands
from diffkit.cli.parsing.request import look

LINES = {
    "edit": ["RUN", "PICTURES"],
    "evaluate": ["PICTURES", "--data", "digits"],
    "export": ["RUN", "--to", "network.pt2"],
    "inpaint": ["RUN", "PICTURES", "--mask", "mask.png"],
    "interpolate": ["RUN", "a.png", "b.png"],
    "invert": ["RUN", "PICTURES"],
    "nll": ["RUN", "--data", "digits"],
    "report": ["RUN"],
    "sample": ["RUN"],
    "train": ["--data", "digits", "--out", "run", "--steps", "1"],
    "train-classifier": ["--data", "digits", "--out", "run", "--steps", "1"],
    "upscale": ["RUN", "PICTURES"],
}


def test_every_command_with_a_device_is_here():
    options = {name: look(name, commands.load(command).SPEC, []).options for name, command in commands.table().items()}
    having = {name for name, each in options.items() if "device" in [option.key for option in each]}
    assert having == {*LINES}


@pytest.mark.parametrize("name", LINES)
def test_no_such_device(command: Command, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    found = command(name, *LINES[name], "--device", "foo")
    assert (found.code, found.out) == (2, "")
    assert found.err.startswith("error: --device foo is not the name of a device; there is cpu")
    assert not list(tmp_path.iterdir())


def test_no_such_gpu(refused: Refused, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for built, why in ((True, "PyTorch sees no GPU"), (False, "this PyTorch is built without CUDA")):
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda built=built: built)
        assert refused("sample", "RUN", "--device", "cuda") == f"--device cuda is not here ({why}); there is cpu"


def test_another_gpu_is_named(refused: Refused, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda:1"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert refused("sample", "RUN", "--device", "cuda:7") == (
        "--device cuda:7 is not here; there is cpu, cuda, cuda:0, cuda:1"
    )
    assert "spec.json" in refused("sample", "RUN", "--device", "cpu")
