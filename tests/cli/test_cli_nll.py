"""Scoring data from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import Command, Refused
from numpy.testing import assert_allclose

import diffkit


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Seven random 8x6 images with labels, in the published layout."""
    rng = np.random.default_rng(0)
    path = tmp_path / "images.npz"
    np.savez(path, rng.integers(0, 256, (7, 8, 6, 1), dtype=np.uint8), np.array([0, 1, 2, 0, 1, 2, 0]))
    return path


def test_terms_are_those_of_the_system(command: Command, saved: Path, images: Path, tmp_path: Path):
    out = tmp_path / "nll.npz"
    words = ["--data", images, "--data.labels", "true", "--num", "4", "--steps", "5", "--out", out]
    found = command("nll", saved, *words)
    assert found.code == 0, found.err
    assert found.out.startswith(f"writing {out}\n") and "bits/dim over 4 examples" in found.out
    with np.load(images) as arrays, np.load(out) as terms:
        assert terms["terms"].shape == terms["eps_mse"].shape == terms["x_start_mse"].shape == (4, 5)
        assert_allclose(terms["total"], terms["terms"].sum(1) + terms["prior"], rtol=1e-5)
        index = terms["index"]
        assert len(set(index.tolist())) == 4 and index.max() < 7
        x = torch.from_numpy(arrays["arr_0"][index]).movedim(-1, 1).float() / 127.5 - 1
        bound = diffkit.load(saved).bits_per_dim(x, steps=5, seed=0, y=arrays["arr_1"][index].tolist())
        assert_allclose(terms["total"], bound.total.numpy(), rtol=1e-5)
        assert terms["levels"].tolist() == bound.levels.tolist()


def test_fewer_examples_than_the_default_are_all_scored(command: Command, make_system: Callable, images: Path):
    found = command("nll", make_system(data_shape=(1, 8, 6)), "--data", images)
    assert "bits/dim over 7 examples" in found.out


def test_refusals(refused: Refused, saved: Path, make_system: Callable, images: Path, tmp_path: Path):
    other = make_system()
    assert refused("nll", saved, "--data", images, "--num", "8") == (
        "--num must be <= 7, the examples in the data, got 8"
    )
    assert refused("nll", saved, "--data", images, "--num", "0") == "num must be >= 1, got 0"
    assert refused("nll", saved, "--data", images) == (
        "the system has 3 classes, but the data has no labels; load it with labels"
    )
    assert refused("nll", other, "--data", images) == (
        "the data has shape (1, 8, 6), the system was composed for (1, 4, 4)"
    )
    assert refused("nll", other, "--data", images, "--out", "a.json") == "--out must end in .npz, got a.json"
    assert refused("nll", other, "--data", images, "--out", tmp_path / "no" / "a.npz").endswith(
        "is in a folder that is not there"
    )
    assert "is not there" in refused("nll", other, "--data", tmp_path / "no.npz")
