"""Measuring samples from the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli_support import Command, Refused

import diffkit

pytest.importorskip("torchmetrics")
pytest.importorskip("sklearn")


@pytest.fixture
def digits(make_system: Callable[..., Path]) -> Path:
    return make_system("digits", data_shape=(1, 8, 8), bins=17)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Half the held-out digits in the published layout, on 8 bits."""
    from diffkit.data.loading import load

    data = load("digits", split="held_out")
    path = tmp_path / "samples.npz"
    np.savez(path, np.rint(data.images[:150].transpose(0, 2, 3, 1) * (255 / 16)).astype(np.uint8))
    return path


def test_a_system_is_sampled_and_measured(command: Command, digits: Path):
    words = ["--data", "digits", "--data.split", "train", "--extractor", "digits", "--num", "20", "--steps", "2"]
    found = command("evaluate", digits, *words)
    assert found.code == 0, found.err
    assert found.out.startswith(f"writing {digits / 'evaluation.json'}\n")
    assert "FD (digits)" in found.out and f"20 from samples of {digits} (steps 2) (" in found.out
    kept = json.loads((digits / "evaluation.json").read_text())
    assert [row["name"] for row in kept["values"]] == ["fid", "kid", "inception_score", "precision", "recall"]
    assert kept["settings"]["reference"]["source"] == "digits train"


def test_guidance_is_part_of_what_is_measured(command: Command, make_system: Callable[..., Path], monkeypatch):
    labelled = ("mlp", {"hidden": 8, "depth": 1, "num_classes": 10, "null_class": True})
    run = make_system("guided", data_shape=(1, 8, 8), bins=17, backbone=labelled, num_steps=4)
    guidance, draw = [], diffkit.System.sample

    def sample(self: diffkit.System, *arguments: object, **options: object) -> object:
        guidance.append(options.get("guidance"))
        return draw(self, *arguments, **options)

    monkeypatch.setattr(diffkit.System, "sample", sample)
    words = ["--data", "digits", "--data.labels", "--extractor", "digits", "--num", "20", "--metrics", "fid"]
    found = command("evaluate", run, *words, "--guidance", "cfg", "--guidance.scale", "2")
    assert found.code == 0, found.err
    assert guidance == [diffkit.guidance.ClassifierFree(2.0)]
    assert f"samples of {run} (guidance cfg scale=2) (" in found.out


def test_files_against_stored_statistics(command: Command, samples: Path, tmp_path: Path):
    reference, out = tmp_path / "reference.npz", tmp_path / "found.json"
    with_data = ["--data", "digits", "--data.split", "train", "--extractor", "digits"]
    made = command("evaluate", *with_data, "--save-reference", reference)
    assert made.code == 0 and "statistics of 1498 examples by digits" in made.out
    stored = command(
        "evaluate", samples, "--reference", reference, "--extractor", "digits", "--metrics", "fid,kid", "--out", out
    )
    assert stored.code == 0, stored.err
    assert "150 from" in stored.out and "Precision" not in stored.out
    found = {row["name"]: row["value"] for row in json.loads(out.read_text())["values"]}
    assert set(found) == {"fid", "kid"} and 0 < found["fid"] < 2
    direct = command("evaluate", samples, *with_data, "--metrics", "fid")
    assert f"{found['fid']:.4g}" in direct.out


def test_a_folder_is_resized_only_on_request(command: Command, refused: Refused, tmp_path: Path):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "pngs"
    folder.mkdir()
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        image.fromarray(pixels).save(folder / f"{i}.png")
    words = ["--data", "digits", "--extractor", "digits", "--metrics", "fid"]
    assert "6 from" in command("evaluate", folder, *words).out
    image.fromarray(np.zeros((9, 8), np.uint8)).save(folder / "odd.png")
    text = refused("evaluate", folder, *words)
    assert "have several sizes: 8x8 (0.png), 9x8 (odd.png)" in text and text.endswith("use --size 8")
    assert "7 from" in command("evaluate", folder, *words, "--size", "8").out


def test_the_overview_of_drawn_samples_is_not_a_sample(command: Command, digits: Path, tmp_path: Path):
    pytest.importorskip("PIL.Image")
    out = tmp_path / "drawn"
    assert command("sample", digits, "-n", "6", "--steps", "2", "--out", out).code == 0
    assert (tmp_path / "drawn_grid.png").is_file()
    assert command("data", "check", out).out.startswith(f"{out}: 6 images")
    words = ["--data", "digits", "--extractor", "digits", "--metrics", "fid"]
    found = command("evaluate", out, *words, "--out", tmp_path / "found.json")
    assert found.code == 0, found.err
    assert f"6 from {out}" in found.out


def test_a_network_of_ones_own(command: Command, samples: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "network_of_mine.py").write_text(
        "import torch\ntorch.manual_seed(0)\nnet = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p not in ("", str(tmp_path))])
    words = ["--data", "digits", "--data.split", "train", "--extractor", "network_of_mine:net", "--metrics", "fid"]
    found = command("evaluate", samples, *words, "--out", "found.json")
    assert found.code == 0, found.err
    assert "FD (network_of_mine:net)" in found.out and "options " not in found.out
    assert "weights_sha256" in json.loads((tmp_path / "found.json").read_text())["settings"]["extractor"]


def test_nothing_is_drawn_that_cannot_be_measured(
    refused: Refused, make_system: Callable[..., Path], tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(diffkit.System, "sample", lambda *_, **__: pytest.fail("samples were drawn"))
    other = make_system("wide", data_shape=(1, 8, 6), bins=17)
    words = ["--data", "digits", "--extractor", "digits"]
    assert "the digits extractor reads images of shape (1, 8, 8), got (1, 8, 6)" in refused("evaluate", other, *words)
    assert "sfid needs spatial features" in refused(
        "evaluate", make_system("right", data_shape=(1, 8, 8), bins=17), *words, "--metrics", "sfid"
    )
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    assert 'pip install "diffkit[metrics]"' in refused("evaluate", tmp_path / "right", *words)


@pytest.mark.parametrize(
    ("words", "flags", "more"),
    [
        (["SAMPLES"], ["--data", "--reference"], "name the data to compare with"),
        (["--data", "digits"], ["--save-reference"], "name the samples to measure"),
        (["SAMPLES", "--data", "digits", "--steps", "4"], ["--steps"], "is for a saved system"),
        (["SAMPLES", "--data", "digits", "--guidance", "none"], ["--guidance"], "is for a saved system"),
        (["RUN", "--data", "digits", "--size", "4"], ["--size"], "a system draws them in its own"),
        (["SAMPLES", "--data", "digits", "--size", "4,5,6"], ["--size"], "one number or two"),
        (["SAMPLES", "--data", "digits", "--extractor", "digit"], [], "did you mean 'digits'"),
        (["SAMPLES", "--data", "digits", "--metrics", "fld"], [], "no metric named 'fld'"),
        (["RUN", "--data", "digits", "--metrics", "sfid"], [], "'inception' gives"),
        (["SAMPLES", "--data", "digits", "--kid-subset-size", "1"], ["--kid-subset-size"], ">= 2"),
        (["nowhere", "--data", "digits"], [], "name a folder of images, a .npz file or a saved system"),
        (["SAMPLES", "--reference", "nowhere.npz"], [], "is not there"),
        (["SAMPLES", "--data", "digits", "--out", "a.txt"], ["--out"], ".json"),
        (["SAMPLES", "--data", "digits", "--num", "100000"], ["--num"], "is more than the 150 samples"),
        (["SAMPLES", "--data", "digits", "--num", "2"], ["--neighbours"], "name other metrics with --metrics"),
    ],
)
def test_refusals(refused: Refused, digits: Path, samples: Path, words: list[str], flags: list[str], more: str):
    """Each comes before the reference is computed."""
    places = {"RUN": digits, "SAMPLES": samples}
    own = [] if "--extractor" in words else ["--extractor", "digits"]
    text = refused("evaluate", *(places.get(word, word) for word in words), *own)
    assert text.flags == flags and more in text


def test_shapes_are_compared_before_anything_is_drawn(
    command: Command, refused: Refused, make_system: Callable[..., Path], tmp_path: Path, monkeypatch
):
    (tmp_path / "network_of_shapes.py").write_text(
        "import torch\ntorch.manual_seed(0)\nflat = torch.nn.Flatten()\n"
        "conv = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(2))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in sys.path if p not in ("", str(tmp_path))])
    rng = np.random.default_rng(0)
    for name, shape in (("small", (9, 4, 4, 3)), ("large", (9, 6, 6, 3)), ("grey", (9, 4, 4, 1))):
        np.savez(tmp_path / f"{name}.npz", rng.integers(0, 256, shape, dtype=np.uint8))
    words = ["--metrics", "fid", "--extractor"]
    flat, conv = (f"network_of_shapes:{name}" for name in ("flat", "conv"))
    system = make_system("rgb", data_shape=(3, 4, 4))
    with monkeypatch.context() as patched:
        patched.setattr(diffkit.System, "sample", lambda *_, **__: pytest.fail("samples were drawn"))
        for samples in (system, "small.npz"):
            assert refused("evaluate", samples, "--data", "large.npz", *words, flat) == (
                f"samples have shape (3, 4, 4), the data (3, 6, 6), of which extractor {flat!r} has 48 and 108 "
                "features; make them alike: read the data in the size and channels of the samples, or the samples in "
                "another size"
            )
        text = refused("evaluate", system, "--data", "grey.npz", *words, conv)
        assert text.startswith("samples have shape (3, 4, 4), the data (1, 4, 4), and extractor 'network_of_shapes:co")
        assert "\n" not in text
        text = refused("evaluate", "grey.npz", "--data", "grey.npz", *words, conv)
        assert text.startswith(f"extractor {conv!r} cannot read images of shape (1, 4, 4): ")
    stored = ["--extractor", flat, "--save-reference", "large_stats.npz"]
    assert command("evaluate", "--data", "large.npz", *stored).code == 0
    assert "the reference has 108 features" in refused(
        "evaluate", "small.npz", "--reference", "large_stats.npz", *words, flat
    )
    found = command("evaluate", "small.npz", "--data", "large.npz", *words, conv)
    assert found.code == 0 and "note: samples have shape [3, 4, 4], the reference [3, 6, 6]" in found.out


def test_data_of_other_classes_than_the_systems(refused: Refused, saved: Path, tmp_path: Path, monkeypatch):
    (tmp_path / "network_of_classes.py").write_text("import torch\nflat = torch.nn.Flatten()\n")
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 6, 1), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", arr_0=images, arr_1=np.arange(4) % 2, classes=np.array(["cat", "zed"]))
    words = ["--data", "data.npz", "--data.labels", "true", "--metrics", "fid", "--extractor"]
    assert "zed cannot be matched by name" in refused("evaluate", saved, *words, "network_of_classes:flat")


def test_what_has_no_effect_on_a_reference_is_refused(refused: Refused, tmp_path: Path):
    words = ["--data", "digits", "--extractor", "digits", "--save-reference", tmp_path / "reference.npz"]
    text = refused("evaluate", *words, "--metrics", "kid", "--neighbours", "2", "--out", tmp_path / "out.json")
    assert text.fix == "leave out --metrics, --neighbours, --out"
    assert "--steps is for a saved system, and none is named" in refused("evaluate", *words, "--steps", "3")
