"""The demo writes its files, resumes where it was stopped, and at full length is as good as documented."""

from __future__ import annotations

import builtins
import json
import math

import pytest
from PIL import Image

from diffkit import demo
from diffkit.errors import MissingExtraError, OptionError
from diffkit.training import read_metrics


def test_a_short_demo(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(demo, "COMPOSITION", {**demo.COMPOSITION, "num_steps": 3})
    report = demo.run(tmp_path, steps=12, progress=False)
    assert capfd.readouterr() == ("", "")
    assert report.bits_uniform == math.log2(17)
    assert 2.5 < report.bits_gaussian < 3.0 and report.recognised_real > 0.97
    assert json.loads((tmp_path / "report.json").read_text())["bits_per_dim"] == report.bits_per_dim
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.width > 600 and len(picture.getcolors() or ()) > 10
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.width > 600
    text = str(report)
    for name in ("samples.png", "loss.png", "report.json", "run"):
        assert str(tmp_path / name) in text
    assert "samples read as the intended class" in text and "bits/dim on held-out digits" in text
    again = demo.run(tmp_path, steps=12, progress=False)
    assert (again.recognised, again.bits_per_dim) == (report.recognised, report.bits_per_dim)
    with pytest.raises(OptionError, match="seed=0, now seed=1"):
        demo.run(tmp_path, steps=12, seed=1, progress=False)


def test_what_the_demo_refuses(tmp_path, monkeypatch):
    with pytest.raises(OptionError, match="steps must be >= 1, got 0"):
        demo.run(tmp_path / "a", steps=0)
    original = builtins.__import__

    def missing(name, *rest):
        if name == "matplotlib":
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match=r'the demo needs the .demo. extra; run: pip install "diffkit\[demo\]"'):
        demo.run(tmp_path / "b")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow(minutes=5)
def test_the_whole_demo(tmp_path):
    report = demo.run(tmp_path, progress=False)
    assert report.recognised >= 0.97
    assert report.bits_per_dim < 2.1 < report.bits_gaussian
    assert read_metrics(tmp_path / "run")[-1]["step"] == demo.STEPS
