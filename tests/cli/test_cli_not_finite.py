"""A value that is not finite is reported, not drawn or counted as if it were one; so is a disk that is full."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import Command, Refused

import diffkit
from diffkit.errors import DivergedError
from diffkit.runtime.finite import check_finite
from diffkit.runtime.images import png, to_integers


def broken(folder: Path) -> Path:
    """The same system with a weight that is not a number."""
    system = diffkit.load(folder)
    next(system.parameters()).data.view(-1)[0] = float("nan")
    return system.save(folder.parent / "broken")


def test_samples_that_are_not_finite(command: Command, make_system: Callable, tmp_path: Path):
    run = broken(make_system(data_shape=(1, 8, 8)))
    found = command("sample", run, "-n", "4", "--out", tmp_path / "samples")
    assert found.code == 2 and "error: none of 4 samples is finite: the network's weights are not" in found.err
    assert not list((tmp_path / "samples").glob("*.png"))
    (tmp_path / "image.png").write_bytes(png(np.zeros((1, 8, 8), np.uint8)))
    found = command("edit", run, tmp_path / "image.png", "--strength", "0.5", "--out", tmp_path / "edited")
    assert found.code == 2 and "none of 1 samples is finite" in found.err
    np.save(tmp_path / "data.npy", np.zeros((3, 1, 8, 8), np.uint8))
    data = ["--data", tmp_path / "data.npy", "--data.layout", "channels_first"]
    found = command("nll", run, *data)
    assert found.code == 0 and "warning: the bits/dim of 3 of 3 examples are not finite" in found.err


def test_some_samples_that_are_not_finite(capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder):
    samples = torch.zeros(9, 1, 2, 2)
    check_finite(samples)
    samples[2:, 0, 1, 1] = float("inf")
    check_finite(samples, first=10)
    said = "warning: 7 of 9 samples are not finite (12, 13, 14, 15, 16, ...)\n"
    assert capsys.readouterr().err == said
    with pytest.raises(DivergedError, match="none of 7 samples is finite"):
        check_finite(samples[2:])
    values = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.2])
    assert to_integers(values, 255).tolist() == [0, 255, 0, 153] and not recwarn.list


def test_weights_that_are_not_finite(command: Command, make_system: Callable, tmp_path: Path):
    unet = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "groups": 4}
    run = broken(make_system(data_shape=(1, 8, 8), backbone=("unet", unet)))
    diffkit.weights.export(diffkit.load(run), tmp_path / "weights.pt")
    found = command("import", tmp_path / "weights.pt", "--to", tmp_path / "imported")
    assert found.code == 2 and not (tmp_path / "imported").exists()
    assert "time_embed.0.weight has 1 values that are not finite; take the weights of an earlier" in found.err


def test_a_full_disk_is_not_a_fault_of_diffkit(
    refused: Refused, make_system: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*given: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere/file")

    monkeypatch.setattr("diffkit.evaluation.sample_folder.SampleFolder.begin", full)
    said = refused("sample", make_system(), "-n", "1", "--out", tmp_path / "out")
    hint = "what was written stays, and the same command goes on where it can"
    assert said == f"No space left on device: somewhere/file; {hint}"


def test_a_name_that_is_too_long(refused: Refused, make_system: Callable, tmp_path: Path):
    said = refused("sample", make_system(), "-n", "1", "--out", tmp_path / ("a" * 300))
    assert said.startswith("File name too long: ")
