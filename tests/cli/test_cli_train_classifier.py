"""Training a classifier of noisy data from the command line, and guiding samples with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_support import Command, Refused
from PIL import Image

import diffkit
from diffkit.training import read_metrics
from diffkit.weights import load_classifier

TINY = [
    "--channels", "4", "--num-res-blocks", "1", "--channel-mult", "1", "--num-head-channels", "none",
    "--num-heads", "1", "--groups", "2", "--pool", "adaptive", "--batch-size", "4", "--log-every", "2",
]  # fmt: skip
SYSTEM = [
    "--backbone", "mlp", "--backbone.hidden", "8", "--backbone.depth", "1", "--schedule", "cosine", "--schedule.s",
    "0.01", "--num-steps", "8", "--batch-size", "4", "--steps", "1",
]  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "images.npz"
    np.savez(path, rng.integers(0, 256, (9, 4, 4, 3), dtype=np.uint8), np.arange(9) % 2)
    return path


def test_patterns_are_checked_before_every_image_is_read(command: Command, refused: Refused, tmp_path: Path):
    for i in range(3):
        (tmp_path / "data" / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "data" / f"{i % 2}" / f"{i}.png")
    (tmp_path / "data" / "0" / "torn.png").write_bytes(b"no image")
    words = ["train-classifier", "--data", tmp_path / "data", "--data.size", "4", "--data.labels", "folders", *TINY]
    words += ["--num-steps", "30", "--out", tmp_path / "out", "--steps", "2"]
    assert "--freeze frist.* matches no parameter of the network" in refused(*words, "--freeze", "frist.*")
    assert "torn.png" in command(*words).err


def spec(folder: Path) -> dict:
    return json.loads((folder / "spec.json").read_text())


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())["train"]


def test_from_data_to_guided_samples(command: Command, refused: Refused, images: Path, tmp_path: Path):
    data = ["--data", images, "--data.labels", "true"]
    system, out = tmp_path / "system", tmp_path / "classifier"
    assert command("train", *data, "--out", system, *SYSTEM).code == 0
    words = ["train-classifier", *data, "--system", system, "--out", out, *TINY]
    found = command(*words, "--steps", "2")
    assert found.code == 0, found.err
    assert found.out.splitlines() == [
        f"run: {out}/",
        "data: 9 examples of 3x4x4, 256 values, 2 classes",
        "classifier: num_classes=2, 8 levels of schedule 'cosine'",
    ]
    assert "continuing" in command(*words, "--steps", "4").err
    found, steered = spec(out), diffkit.load(system).spec()
    assert found["parts"]["schedule"] == steered["parts"]["schedule"] and found["settings"]["num_steps"] == 8
    line = read_metrics(out)[-1]
    assert {"loss", "acc1"} < line.keys() and any(name.startswith("acc1_q") for name in line)
    assert load_classifier(out).training is False
    told = config(out)
    assert (told["lr"], told["weight_decay"], told["ema"]) == (3e-4, 0.05, [])
    steer = ["--guidance", "classifier", "--guidance.classifier", out, "--guidance.scale", "2"]
    found = command("sample", system, "-n", "4", "--out", tmp_path / "s", *steer)
    assert found.code == 0, found.err
    assert "is not a system" in refused("sample", out, "--out", tmp_path / "n")


def test_what_a_run_wrote_down_repeats_it(command: Command, images: Path, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    words = ["--data", images, "--data.labels", "true", "--schedule", "cosine", "--num-steps", "8", "--steps", "2"]
    assert command("train-classifier", *words, "--out", one, *TINY, "--no-noised", "--weight-decay", "0").code == 0
    assert command("train-classifier", "--config", one / "config.toml", "--out", two).code == 0
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    assert (one / "config.toml").read_text() == (two / "config.toml").read_text()
    assert config(one)["weight_decay"] == 0 and spec(one)["settings"]["noised"] is False


def test_a_file_that_lists_what_classifiers_have_no_use_for(command: Command, refused: Refused, tmp_path: Path):
    """As earlier versions wrote it."""
    words, path = ["train-classifier", "--data", "digits", "--out", tmp_path / "run", "--config"], tmp_path / "a.toml"
    path.write_text("label_dropout = 0.0\npreview = 16\npreview_steps = 50\nsteps = 7\n")
    found = command(*words, path, "--print-config")
    assert found.code == 0 and "steps = 7" in found.out and "preview" not in found.out, found.err
    path.write_text("label_dropout = 0.1\n")
    assert "label_dropout is not an option" in refused(*words, path)


def test_validation(command: Command, refused: Refused, images: Path, tmp_path: Path):
    out, held = tmp_path / "run", tmp_path / "held.npz"
    with np.load(images) as found:
        np.savez(held, found["arr_0"][:3], found["arr_1"][:3])
    words = ["train-classifier", "--data", images, "--data.labels", "true", "--out", out, "--steps", "5", *TINY]
    val = ["--val", held, "--val.labels", "true"]
    assert command(*words, *val, "--val-every", "4").code == 0
    lines = [line for line in read_metrics(out) if "val_loss" in line]
    assert [line["step"] for line in lines] == [4, 5] and 0 <= lines[0]["val_acc1"] <= 1
    assert str(held) in (out / "config.toml").read_text()
    assert command("train-classifier", "--config", out / "config.toml", "--out", tmp_path / "again").code == 0
    again = [line for line in read_metrics(tmp_path / "again") if "val_loss" in line]
    assert [line["val_loss"] for line in again] == [line["val_loss"] for line in lines]
    assert "--val must fit the system as the data does: a classifier learns from labels, but" in refused(
        *words, "--val", held
    )


def test_a_dry_run_writes_nothing(command: Command, images: Path, tmp_path: Path):
    words = ["--data", images, "--data.labels", "true", "--out", tmp_path / "run", "--steps", "9", *TINY]
    found = command("train-classifier", *words, "--dry-run")
    assert found.code == 0 and "parameters" in found.out and not (tmp_path / "run").exists()


def test_presets_are_those_of_classifiers(command: Command, refused: Refused, images: Path, tmp_path: Path):
    words = ["--data", images, "--out", tmp_path / "run"]
    found = command("train-classifier", *words, "--preset", "adm/classifier64", "--print-config")
    assert found.code == 0, found.err
    for line in ("steps = 300000", "lr = 0.0006", "weight_decay = 0.2", "num_res_blocks = 4", "num_classes = 1000"):
        assert line in found.out.splitlines()
    assert "is a system, not a classifier" in refused("train-classifier", *words, "--preset", "adm/imagenet64")
    assert "diffkit train-classifier takes it" in refused("train", *words, "--preset", "adm/classifier64")


def test_refusals(refused: Refused, saved: Path, images: Path, tmp_path: Path):
    words = ["train-classifier", "--data", images, "--out", tmp_path / "run", "--steps", "1", *TINY]
    labelled = [*words, "--data.labels", "true"]
    assert refused(*words) == "a classifier learns from labels, but the data has none; add --data.labels true"
    assert "add --data.labels true" in refused(*words, "--num-classes", "2")
    assert "the data has 2 classes, but the classifier has 1" in refused(*labelled, "--num-classes", "1")
    assert refused(*labelled, "--system", tmp_path, "--schedule", "cosine", "--num-steps", "9") == (
        "--system sets --num-steps, --schedule already; leave one of them out"
    )
    assert "is not there; a saved system is a folder" in refused(*labelled, "--system", tmp_path)
    assert refused(*labelled, "--system", saved) == (
        f"the data has shape (3, 4, 4), --system {saved} makes (1, 8, 6); a classifier reads what the system makes"
    )
    assert refused(*labelled, "--preview-every", "1") == "no option '--preview-every': a classifier draws no samples"
    assert not (tmp_path / "run").exists()


def test_help_lists_what_it_takes_and_no_more(command: Command, refused: Refused, images: Path, tmp_path: Path):
    text = command("train-classifier", "--help").out
    assert "--flip" in text and "--preview" not in text and "--label-dropout" not in text
    words = ["train-classifier", "--data", images, "--out", tmp_path / "run", "--steps", "1"]
    assert "--preview" not in command(*words, "--print-config").out
    assert "learns from every label" in refused(*words, "--label-dropout", "0.1")


@pytest.mark.parametrize(
    ("words", "heads"),
    [
        (["--channels", "32"], 32),
        (["--channels", "12", "--groups", "4"], 4),
        (["--channels", "12", "--groups", "4", "--num-heads", "3"], None),
        (["--channels", "12", "--groups", "4", "--num-head-channels", "6"], 6),
    ],
)
def test_heads_fit_the_width(command: Command, images: Path, tmp_path: Path, words: list[str], heads: int | None):
    data = ["--data", images, "--data.labels", "true", "--batch-size", "4", "--steps", "1"]
    small = ["--num-res-blocks", "1", "--channel-mult", "1", "--attention-resolutions", "4"]
    found = command("train-classifier", *data, "--out", tmp_path / "run", *small, *words)
    assert found.code == 0, found.err
    assert spec(tmp_path / "run")["classifier"]["num_head_channels"] == heads


def test_classes_of_the_system_and_of_held_out_data(command: Command, refused: Refused, images: Path, tmp_path: Path):
    with np.load(images) as found:
        arrays = dict(found)

    def named(name: str, *classes: str) -> list[object]:
        np.savez(tmp_path / name, **arrays, classes=np.array(classes))
        return [tmp_path / name, "--data.labels", "true"]

    system = tmp_path / "system"
    right, other = named("right.npz", "box", "disc"), named("other.npz", "disc", "zed")
    assert command("train", "--data", *right, "--out", system, *SYSTEM).code == 0
    words = ["train-classifier", *TINY, "--steps", "1", "--out", tmp_path / "out"]
    assert refused(*words, "--data", *other, "--system", system) == (
        f"--system {system} has classes box, disc; the data has disc, zed; a classifier receives the numbers of the "
        "system's classes, so give it data of them"
    )
    assert refused(*words, "--data", *right, "--val", other[0], "--val.labels", "true") == (
        "the data has classes box, disc; val has disc, zed, and zed cannot be matched by name; give data of the same "
        "classes"
    )
