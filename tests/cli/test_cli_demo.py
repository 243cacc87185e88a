"""The demo's command; what the demo does is tested where it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import Command, Refused

from diffkit import demo


def test_options_reach_the_demo(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    calls = []
    monkeypatch.setattr(demo, "run", lambda out, **options: calls.append((out, options)) or "a report")
    found = command("demo", "--out", tmp_path / "d", "--steps", "3", "--seed", "5")
    assert found.out.splitlines() == [f"writing to {tmp_path / 'd'}/", "a report"]
    assert calls == [(tmp_path / "d", {"steps": 3, "seed": 5})]
    command("demo")
    assert calls[1] == (Path("demo"), {"steps": demo.STEPS, "seed": 0})


def test_refusals(refused: Refused, tmp_path: Path):
    (tmp_path / "x").touch()
    assert refused("demo", "--out", tmp_path / "x").endswith("is a file; name a folder")
    assert refused("demo", "--out", tmp_path).endswith("holds no demo to go on with; name another folder")
    assert refused("demo", "--steps", "0", "--out", tmp_path / "d") == "--steps must be >= 1, got 0"
