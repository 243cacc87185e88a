"""The command line in this process, and a tiny saved system."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cli_support import Command, Outcome, Refusal, Refused

import diffkit
from diffkit.__main__ import main


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """``command("list", "var")`` -> exit code and what was written."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: str | Path) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def refused(command: Command) -> Refused:
    """The error of a command that must be refused: one message, exit code 2, nothing on standard output."""

    def run(*words: str | Path) -> Refusal:
        found = command(*words)
        assert found.code == 2, found
        assert found.err.startswith("error: ") and "Traceback" not in found.err, found.err
        return Refusal(found.err.removeprefix("error: ").rstrip("\n"))

    return run


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny class-conditional system of grey 8x6 images, with class names as a training run saves them."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved")
    system = diffkit.compose(
        schedule="cosine",
        var="learned_range",
        loss="hybrid",
        backbone=("mlp", {"hidden": 8, "depth": 1, "num_classes": 3, "null_class": True}),
        data_shape=(1, 8, 6),
        num_steps=12,
    )
    system.save(folder)
    (folder / "config.json").write_text('{"data": {"classes": ["cat", "dog", "owl"]}}')
    return folder


@pytest.fixture
def make_system(tmp_path: Path) -> Callable[..., Path]:
    """Save a tiny unconditional system of any data shape."""

    def make(name: str = "other", **keywords: object) -> Path:
        system = diffkit.compose(
            **{
                "schedule": "cosine",
                "num_steps": 4,
                "backbone": ("mlp", {"hidden": 8, "depth": 1}),
                "data_shape": (1, 4, 4),
                **keywords,
            }
        )
        return system.save(tmp_path / name)

    return make
