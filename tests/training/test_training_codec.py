"""Training in the units of data: the run on latents made by hand, to the bit, with the codec in its files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import diffkit
from diffkit.__main__ import main
from diffkit.data import from_array, measured, measuring
from diffkit.errors import DataError, OptionError
from diffkit.parts.codecs.standardize import Standardize

HOW = dict(batch_size=8, lr=0.01, save_every=3, progress=False)


def series(rows=40):
    rng = np.random.default_rng(0)
    return (np.array([[5.0], [-1.0]]) + np.array([[2.0], [0.5]]) * rng.standard_normal((rows, 2, 8))).astype(np.float32)


def compose(codec=None):
    torch.manual_seed(0)
    small = dict(schedule="cosine", num_steps=12, mean="v", backbone=("mlp", {"hidden": 8, "depth": 1}))
    return diffkit.compose(**small, data_shape=(2, 8), bins=None, codec=codec)


def test_a_run_is_that_on_latents_made_by_hand_and_resumes_to_the_bit(tmp_path):
    x = series()
    codec = measured("standardize", from_array(x))
    np.testing.assert_allclose(codec.mean, x.mean((0, 2)), rtol=1e-5)
    np.testing.assert_allclose(codec.std, x.std((0, 2)), rtol=1e-5)
    z = codec.encode(torch.from_numpy(x)).numpy()
    found = diffkit.train(compose(codec), from_array(x), out=tmp_path / "a", steps=6, val=from_array(x[:9]), **HOW)
    wanted = diffkit.train(compose(), from_array(z), out=tmp_path / "b", steps=6, val=from_array(z[:9]), **HOW)
    lines = [diffkit.training.read_metrics(tmp_path / name)[-1] for name in "ab"]
    assert lines[0]["val_loss"] == lines[1]["val_loss"]
    diffkit.train(compose(codec), from_array(x), out=tmp_path / "c", steps=3, **HOW)
    again = diffkit.train(compose(codec), from_array(x), out=tmp_path / "c", steps=6, **HOW)
    for name, value in wanted.network.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], value)
        assert torch.equal(again.network.state_dict()[name], value)
    assert diffkit.load(tmp_path / "a").settings.codec == codec
    with pytest.raises(OptionError, match="codec"):
        diffkit.train(compose(Standardize(0, 1)), from_array(x), out=tmp_path / "c", steps=9, **HOW)


def test_the_command_measures_once_and_the_spec_keeps_it(tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "x.npy", series())
    words = ["train", "--data", tmp_path / "x.npy", "--data.layout", "channels_first", "--codec", "standardize"]
    words += ["--out", tmp_path / "run", "--backbone", "mlp", "--schedule", "cosine", "--num-steps", "12"]
    words += ["--batch-size", "8", "--lr", "0.01", "--codec.per", "whole"]

    def spec(*more):
        assert main([*map(str, words), *more]) == 0
        return json.loads((tmp_path / "run" / "spec.json").read_text())["settings"]["codec"]["options"]

    first = spec("--steps", "1")
    assert first["mean"] == [pytest.approx(series().mean(), rel=1e-5)]
    monkeypatch.setattr(measuring, "measured", None)  # measuring again would raise
    assert spec("--steps", "2") == first
    config = (tmp_path / "run" / "config.toml").read_text()
    assert f"mean = [{first['mean'][0]}]" in config


def test_what_is_measured():
    x = series()
    given = measured(("standardize", {"std": (3.0, 4.0)}), from_array(x))
    assert given.std == (3.0, 4.0) and len(given.mean) == 2
    assert measured(given, None) is given
    flat = measured("standardize", from_array(np.full((4, 1, 3), 7.0)))
    assert (flat.mean, flat.std) == ((7.0,), (1.0,))
    x[3, 0, 0] = np.nan
    with pytest.raises(DataError, match="example 3"):
        measured("standardize", from_array(x))
