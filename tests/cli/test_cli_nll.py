"""Scoring data from the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import Command, Refused, seen_dtypes
from numpy.testing import assert_allclose

import diffkit
from diffkit.system.denoiser import Denoiser


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
        assert terms["terms"].shape == terms["eps_mse"].shape == terms["x_start_mse"].shape == (5,)
        assert_allclose(terms["total"].mean(), terms["terms"].sum() + terms["prior"].mean(), rtol=1e-6)
        index = terms["index"]
        assert len(set(index.tolist())) == 4 and index.max() < 7
        x = torch.from_numpy(arrays["arr_0"]).movedim(-1, 1).float() / 127.5 - 1
        bound = diffkit.load(saved).bits_per_dim(x, steps=5, seed=0, y=arrays["arr_1"].tolist())
        assert_allclose(terms["total"], bound.total[index].numpy(), rtol=1e-5)  # noise goes by the place in the data
        assert_allclose(terms["terms"], bound.terms[index].mean(0).numpy(), rtol=1e-5)
        assert terms["levels"].tolist() == bound.levels.tolist() and terms["visits"].tolist() == [4] * 5


def test_fewer_examples_than_the_default_are_all_scored(command: Command, make_system: Callable, images: Path):
    found = command("nll", make_system(data_shape=(1, 8, 6)), "--data", images)
    assert "bits/dim over 7 examples" in found.out


def test_what_it_takes_is_reported_before_and_the_advice_runs(
    command: Command, make_system: Callable, images: Path, monkeypatch: pytest.MonkeyPatch
):
    from diffkit.cli.commands import nll

    words = ["nll", make_system(data_shape=(1, 8, 6), num_steps=20), "--data", images, "--overwrite"]
    told = command(*words).err.splitlines()[0]
    begins = "scoring 7 examples at 20 of 20 levels each: 140 network evaluations, about "
    assert told.startswith(begins) and "--levels" not in told
    monkeypatch.setattr(nll, "LONG", 0.0)
    told = command(*words).err.splitlines()[0]
    advice = re.search(r"; (--levels-per-example) (10) estimates the same bound in about ", told)
    assert told.startswith(begins) and advice
    found = command(*words, *advice.groups())
    assert found.code == 0 and "7 examples, 10 of 20 levels each" in found.out
    assert "at 10 of 20 levels each: 70 network" in found.err.splitlines()[0]


def test_fewer_levels_files_and_plot(command: Command, saved: Path, images: Path, tmp_path: Path):
    pytest.importorskip("matplotlib")
    published, plot = tmp_path / "published", tmp_path / "terms.png"
    words = ["--num", "all", "--levels-per-example", "4", "--published", published, "--plot", plot]
    found = command("nll", saved, "--data", images, "--data.labels", "true", "--batch-size", "3", *words)
    assert found.code == 0, found.err
    assert "bits/dim over 7 examples, 4 of 12 levels each" in found.out and f"writing {plot}\n" in found.out
    assert np.load(published / "vb_terms.npz")["arr_0"].shape == (12,) and plot.stat().st_size > 5000


def test_exact_likelihood(command: Command, saved: Path, images: Path, tmp_path: Path):
    pytest.importorskip("torchdiffeq")
    out = tmp_path / "ode.npz"
    data = ["--data", images, "--data.labels", "true"]
    found = command("nll", saved, *data, "--num", "2", "--ode", "--probes", "2", "--tolerance", "1e-3", "--out", out)
    assert found.code == 0, found.err
    assert "bits/dim over 2 examples by the flow ODE: a bound, uniform dequantization" in found.out
    with np.load(out) as arrays:
        assert arrays["bits"].shape == arrays["probe_error"].shape == arrays["index"].shape == (2,)
    other = command("nll", saved, *data, "--num", "2", "--ode", "--dequantize", "decoder", "--tolerance", "1e-2")
    assert "level 1 as the latent variable of the decoder" in other.out
    other = command("nll", saved, *data, "--num", "2", "--ode", "--dequantize", "none", "--tolerance", "1e-2")
    assert "uniform dequantization" not in other.out and other.out != found.out


@pytest.mark.parametrize("how", [[], ["--ode", "--tolerance", "1e-1"]], ids=["bound", "ode"])
def test_clipping_is_as_composed_or_as_given(
    command: Command, saved: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: list[str]
):
    """By default as composed, and in the flow not at all."""
    seen, made = [], Denoiser.__init__
    monkeypatch.setattr(Denoiser, "__init__", lambda self, *a, **k: made(self, *a, **k) or seen.append(self.clip))
    words = ["nll", saved, "--data", images, "--data.labels", "true", "--num", "1", *how]
    for told, wanted in {"": not how, "--no-clip": False, "--clip": True}.items():
        seen.clear()
        found = command(*words, *told.split(), "--out", tmp_path / f"nll{told}.npz")
        assert found.code == 0, found.err
        assert seen[0] == wanted  # the trial of the flow's gradient, which follows, is never clipped


def test_what_a_stopped_command_found_is_used(command: Command, saved: Path, images: Path, monkeypatch):
    words = ["nll", saved, "--data", images, "--data.labels", "true", "--batch-size", "2", "--steps", "4"]
    parts = saved / "nll.parts"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("diffkit.likelihood.scores.Scores.save", stop)
        assert command(*words).code == 130
    kept = {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}
    assert len(kept) == 4
    with monkeypatch.context() as patch:
        patch.setattr("diffkit.evaluation.scoring.score", stop)  # nothing is left to compute
        found = command(*words)
    assert found.code == 0, found.err
    assert f"{parts} has 4 results of a command that was stopped" in found.out and not parts.exists()
    assert "bits/dim over 7 examples" in found.out


@pytest.mark.slow
@pytest.mark.parametrize("how", [["--steps", "6"], ["--ode"]], ids=["bound", "ode"])
def test_processes_share_the_work(saved: Path, images: Path, tmp_path: Path, command: Command, how: list[str]):
    """Two processes, as torchrun starts them, find what one finds, to the last bit."""
    words = ["nll", str(saved), "--data", str(images), "--data.labels", "true", "--num", "5", "--batch-size", "2", *how]
    if how == ["--ode"]:
        pytest.importorskip("torchdiffeq")
    assert command(*words, "--out", tmp_path / "one.npz").code == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--"]
    done = subprocess.run(
        [*torchrun, "diffkit", *words, "--out", str(tmp_path / "two.npz")],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bits/dim over 5 examples") == 1
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "two.npz") as two:
        assert set(one) == set(two)
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])


@pytest.mark.parametrize(
    ("words", "flags", "more"),
    [
        (["--num", "8"], ["--num"], "<= 7"),
        (["--num", "0"], ["--num"], ">= 1"),
        (["--num", "some"], ["--num"], "'all'"),
        (["--levels-per-example", "0"], ["--levels-per-example"], ">= 1"),
        (["--levels-per-example", "90", "--data.labels", "true"], ["--levels-per-example"], "2..12"),
        (["--ode", "--steps", "4", "--plot", "a.png"], ["--ode"], "leave out --steps, --plot"),
        (["--ode", "--precision", "bf16"], ["--ode"], "leave out --precision"),
        (["--ode", "--tolerance", "0"], ["--tolerance"], "> 0"),
        (["--ode", "--dequantize", "all"], ["--dequantize"], "'uniform' or 'decoder' or 'none'"),
        (["--probes", "4"], ["--probes"], "add --ode"),
        ([], [], "use --data.labels ..."),
        (["--out", "a.json"], ["--out"], ".npz"),
        (["--out", "nowhere/a.npz"], ["--out"], "is not there"),
        (["--plot", "terms.plot"], [], "its name must end in one of"),
    ],
)
def test_refusals(refused: Refused, saved: Path, images: Path, words: list[str], flags: list[str], more: str):
    text = refused("nll", saved, "--data", images, *words)
    assert text.flags == flags and more in text


def test_data_that_does_not_fit_is_refused(refused: Refused, make_system: Callable, images: Path, tmp_path: Path):
    text = refused("nll", make_system(), "--data", images)
    assert "(1, 8, 6)" in text and "(1, 4, 4)" in text
    assert "is not there" in refused("nll", tmp_path / "other", "--data", tmp_path / "no.npz")
    np.save(tmp_path / "numbers.npy", np.zeros((4, 3, 8, 6), np.float32))
    continuous = make_system("continuous", data_shape=(3, 8, 6), bins=None)
    flow = ["--data.layout", "channels_first", "--ode", "--dequantize", "uniform"]
    assert refused("nll", continuous, "--data", tmp_path / "numbers.npy", *flow).endswith("use --dequantize none")


def test_precision_and_compilation(
    command: Command, saved: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr("diffkit.system.compiling.compile_network", compiled.append)
    words = ["nll", saved, "--data", images, "--data.labels", "true", "--num", "4", "--steps", "3"]
    found = {}
    for name, more in {"plain": [], "bf16": ["--precision", "bf16"], "compiled": ["--compile"]}.items():
        out = tmp_path / f"{name}.npz"
        with seen_dtypes() as dtypes:
            outcome = command(*words, "--out", out, *more)
        assert outcome.code == 0, outcome.err
        assert dtypes == {torch.bfloat16 if name == "bf16" else None}
        assert ("compiling: the first batch takes minutes\n" in outcome.err) == (name == "compiled")
        found[name] = np.load(out)["total"]
    assert_allclose(found["bf16"], found["plain"], rtol=0.02)
    assert (found["compiled"] == found["plain"]).all() and len(compiled) == 1


def test_classes_are_those_of_the_run_by_name(command: Command, refused: Refused, saved: Path, tmp_path: Path):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 6, 1), dtype=np.uint8)

    def scored(name: str, classes: list[str], labels: list[int]) -> np.ndarray:
        np.savez(tmp_path / "data.npz", arr_0=images, arr_1=np.array(labels), classes=np.array(classes))
        found = command("nll", saved, *words, "--out", tmp_path / f"{name}.npz")
        assert found.code == 0, found.err
        return np.load(tmp_path / f"{name}.npz")["total"]

    words = ["--data", tmp_path / "data.npz", "--data.labels", "true", "--steps", "3"]
    right = scored("right", ["cat", "dog", "owl"], [1, 2, 2, 1, 2, 1])
    assert_allclose(scored("fewer", ["dog", "owl"], [0, 1, 1, 0, 1, 0]), right, rtol=1e-6)
    assert_allclose(scored("other", ["owl", "dog"], [1, 0, 0, 1, 0, 1]), right, rtol=1e-6)
    np.savez(tmp_path / "data.npz", arr_0=images, arr_1=np.arange(6) % 2, classes=np.array(["dog", "zed"]))
    assert "zed cannot be matched by name" in refused("nll", saved, *words, "--out", tmp_path / "no.npz")
    np.savez(tmp_path / "data.npz", arr_0=images, arr_1=np.array([0, 1, 2, 3, 0, 1]))
    text = refused("nll", saved, *words, "--out", tmp_path / "no.npz")
    assert text.startswith("the data has 4 classes, the system 3") and text.fix
