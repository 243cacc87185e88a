"""Guidance by a network that the command line names by its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import Command, Refused
from PIL import Image

import diffkit
from diffkit.guidance import Autoguidance, Classifier, ClassifierGuidance, NoisyClassifier
from diffkit.weights import load_classifier

RECIPE = Classifier(
    channels=4, num_res_blocks=1, channel_mult=(1,), attention_resolutions=(), num_heads=1,
    num_head_channels=None, pool="adaptive", groups=2,
)  # fmt: skip


@pytest.fixture
def classifier(tmp_path: Path) -> Callable[..., Path]:
    """Save an untrained classifier, by default of the data and levels of ``saved``."""

    def make(name: str = "classifier", classes: int = 3, **keywords: object) -> Path:
        torch.manual_seed(1)
        settings = dict(schedule="cosine", data_shape=(1, 8, 6), num_steps=12, backbone=None)
        noisy = NoisyClassifier(diffkit.compose(**(settings | keywords)), RECIPE, classes)
        for parameter in noisy.parameters():
            torch.nn.init.normal_(parameter, std=0.5)  # the last layer is zero at first, and has no gradient
        return noisy.save(tmp_path / name)

    return make


def drawn(folder: Path) -> np.ndarray:
    (file,) = folder.glob("*.npz")
    with np.load(file) as found:
        return found["arr_0"]


def pixels(x: torch.Tensor) -> np.ndarray:
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def test_by_a_classifier(command: Command, refused: Refused, saved: Path, classifier: Callable, tmp_path: Path):
    folder = classifier()
    words = ["sample", saved, "-n", "3", "--steps", "4", "--format", "npz", "--out", tmp_path / "s"]
    steered = ["--guidance", "classifier", "--guidance.classifier", folder, "--guidance.scale", "6"]
    found = command(*words, *steered)
    assert found.code == 0, found.err
    guidance = ClassifierGuidance(load_classifier(folder), 6.0)
    told = dict(steps=4, seed=0, y=[0, 1, 2], progress=False)
    expected = diffkit.load(saved).sample(3, guidance=guidance, **told)
    assert np.abs(drawn(tmp_path / "s").astype(int) - pixels(expected)).max() <= 1
    plain = pixels(diffkit.load(saved).sample(3, **told))
    assert np.abs(plain.astype(int) - pixels(expected)).max() > 5
    mean = command(*words, *steered, "--guidance.shift", "mean", "--guidance.at", "mean", "--overwrite")
    assert mean.code == 0, mean.err
    other = classifier("other", timesteps="stratified")
    (other / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert "now ClassifierGuidance(classifier=ClassifierNetwork " in refused(*words, *steered)
    assert command(*words, "--guidance", "classifier", "--guidance.classifier", other, "--overwrite").code == 0


def test_a_system_without_classes_is_given_the_classifiers(
    command: Command, classifier: Callable, make_system: Callable, tmp_path: Path
):
    folder, system = classifier(data_shape=(1, 4, 4), num_steps=4), make_system()
    (folder / "config.json").write_text('{"data": {"classes": ["cat", "dog", "owl"]}}')
    words = ["sample", system, "-n", "4", "--format", "npz", "--out", tmp_path / "s", "--classes", "owl"]
    found = command(*words, "--guidance", "classifier", "--guidance.classifier", folder)
    assert found.code == 0, found.err
    (file,) = (tmp_path / "s").glob("*.npz")
    assert np.load(file)["arr_1"].tolist() == [2, 2, 2, 2]


def test_an_imported_classifier_does_not_say_its_levels(
    command: Command, saved: Path, classifier: Callable, tmp_path: Path
):
    folder = classifier(schedule="linear", num_steps=30)
    spec = json.loads((folder / "spec.json").read_text())
    (folder / "spec.json").write_text(json.dumps({k: v for k, v in spec.items() if k not in ("parts", "settings")}))
    words = ["sample", saved, "-n", "2", "--format", "npz", "--out", tmp_path / "s", "--guidance", "classifier"]
    assert command(*words, "--guidance.classifier", folder).code == 0


def test_a_classifier_of_something_else(refused: Refused, saved: Path, classifier: Callable, tmp_path: Path):
    words = ["sample", saved, "--out", tmp_path / "s", "--guidance", "classifier"]
    assert refused(*words) == "diffkit sample needs --guidance.classifier"
    chosen = [*words, "--guidance.classifier"]
    assert refused(*chosen, saved) == f"{saved} does not hold a classifier; a saved system is read by diffkit.load"
    assert refused(*chosen, classifier(schedule="linear", num_steps=30, data_shape=(1, 4, 4), classes=2)) == (
        "--guidance.classifier does not fit this system: it reads data of shape (1, 4, 4), the system's network sees "
        "(1, 8, 6); it has 2 classes, the system has 3; it was trained on schedule "
        "linear(start=0.0001, end=0.02), the system on schedule "
        "cosine(s=0.008, max_beta=0.999); it was trained with num_steps=30, the system with 12"
    )
    file = tmp_path / "classifier.pt"
    file.touch()
    assert "is a file; diffkit import" in refused(*chosen, file)
    assert refused(*chosen, classifier(), "--classes", "none").startswith("no class 'none'")
    assert refused("sample", classifier()).startswith("this is a classifier of noisy data, which is used for guidance")


def test_the_default_of_a_system_can_be_switched_off(
    command: Command, refused: Refused, make_system: Callable, tmp_path: Path
):
    labelled = ("mlp", {"hidden": 8, "depth": 1, "num_classes": 3, "null_class": True})
    run = make_system(backbone=labelled, sampling={"guidance": ("cfg", {"scale": 9.0})})
    words = ["sample", run, "-n", "3", "--format", "npz", "--out", tmp_path / "s"]
    assert command(*words).code == 0
    assert "guidance" in refused(*words, "--guidance", "none")  # the samples there are guided
    assert command(*words, "--guidance", "none", "--overwrite").code == 0
    expected = diffkit.load(run).sample(3, seed=0, y=[0, 1, 2], guidance=None, progress=False)
    assert np.abs(drawn(tmp_path / "s").astype(int) - pixels(expected)).max() <= 1
    assert command(*words, "--guidance.scale", "2", "--overwrite").code == 0
    expected = diffkit.load(run).sample(3, seed=0, y=[0, 1, 2], guidance=("cfg", {"scale": 2}), progress=False)
    assert np.abs(drawn(tmp_path / "s").astype(int) - pixels(expected)).max() <= 1
    printed = command(*words, "--guidance.rescale", "0.5", "--print-config").out
    assert '[guidance]\nname = "cfg"\nscale = 9.0\n' in printed and "rescale = 0.5" in printed
    assert refused("sample", make_system("none"), "--guidance.scale", "2") == (
        "--guidance.scale needs a guidance; write --guidance NAME before it, such as apg, autoguidance or cfg"
    )
    assert refused(*words, "--no-guidance") == "no option '--no-guidance'; write --guidance none"
    (tmp_path / "c.toml").write_text('guidance = "none"')
    assert command(*words, "--config", tmp_path / "c.toml", "--overwrite").code == 0
    (tmp_path / "g.toml").write_text('[guidance]\nname = "cfg"\nscale = 2.0')
    assert command(*words, "--config", tmp_path / "g.toml", "--guidance", "none").code == 0


def test_by_a_worse_system(command: Command, refused: Refused, saved: Path, tmp_path: Path):
    worse = diffkit.load(saved)
    torch.nn.init.normal_(next(worse.parameters()))
    worse.save(tmp_path / "worse")
    words = ["sample", saved, "-n", "3", "--steps", "4", "--format", "npz", "--out", tmp_path / "s"]
    steered = ["--guidance", "autoguidance", "--guidance.model", tmp_path / "worse", "--guidance.scale", "2"]
    found = command(*words, *steered)
    assert found.code == 0, found.err
    guidance = Autoguidance(worse, 2.0)
    expected = diffkit.load(saved).sample(3, steps=4, seed=0, y=[0, 1, 2], guidance=guidance, progress=False)
    assert np.abs(drawn(tmp_path / "s").astype(int) - pixels(expected)).max() <= 1


@pytest.mark.parametrize("conditional", [True, False])
def test_pictures_are_guided_by_networks_too(
    command: Command, saved: Path, make_system: Callable, classifier: Callable, tmp_path: Path, conditional: bool
):
    run = saved if conditional else make_system(data_shape=(1, 8, 6), num_steps=12)
    folder, picture = classifier(), tmp_path / "p.png"
    Image.new("L", (6, 8)).save(picture)
    words = ["edit", run, picture, "--classes", "2", "--guidance", "classifier", "--guidance.classifier", folder]
    assert command(*words, "--guidance.scale", "6", "--out", tmp_path / "e").code == 0
    label = "y" if conditional else "class"
    guidance = ClassifierGuidance(load_classifier(folder), 6.0, label=label)
    expected = diffkit.tasks.image_to_image(
        diffkit.load(run),
        -torch.ones(1, 1, 8, 6),
        strength=0.5,
        seed=0,
        guidance=guidance,
        progress=False,
        **{label: [2]},
    )
    with Image.open(tmp_path / "e" / "p.png") as found:
        assert np.abs(np.asarray(found).astype(int) - pixels(expected)[0, :, :, 0]).max() <= 1


def test_networks_of_other_classes(refused: Refused, saved: Path, classifier: Callable, tmp_path: Path):
    folder = classifier()
    (folder / "config.json").write_text('{"data": {"classes": ["dog", "cat", "owl"]}}')
    words = ["sample", saved, "--out", tmp_path / "s", "--guidance"]
    differ = "the system has classes cat, dog, owl; {} has dog, cat, owl"
    assert refused(*words, "classifier", "--guidance.classifier", folder) == (
        f"--guidance.classifier does not fit this system: {differ.format(folder)}"
    )
    worse = diffkit.load(saved).save(tmp_path / "worse")
    (worse / "config.json").write_text('{"data": {"classes": ["dog", "cat", "owl"]}}')
    assert refused(*words, "autoguidance", "--guidance.model", worse, "--guidance.scale", "2") == (
        f"--guidance.model does not fit this system: {differ.format(worse)}"
    )
