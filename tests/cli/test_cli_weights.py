"""Public weights in and out, and sizes, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cli_support import Command, Refused

import diffkit
from diffkit import weights
from diffkit.guidance.classifier import Classifier
from diffkit.system.loading import read_spec

UNSEEN = ["--data-shape", "3,8,8", "--num-heads", "2", "--attention-order", "legacy", "--groups", "4"]
TRAINED = ["--schedule", "cosine", "--schedule.s", "0.01", "--num-steps", "40", "--mean", "eps", "--no-rescale-time"]
TRAINED += ["--loss", "hybrid"]


@pytest.fixture
def unet(tmp_path: Path) -> Path:
    system = diffkit.compose(
        backbone=("unet", {"channels": 8, "groups": 4, "channel_mult": (1,), "num_res_blocks": 1, "num_heads": 2}),
        data_shape=(3, 8, 8),
        var="learned_range",
        loss="hybrid",
    )
    return weights.export(system.network, tmp_path / "unet.pt")  # the network alone, as from elsewhere


@pytest.fixture
def with_classes(tmp_path: Path) -> Path:
    """A saved system of two classes and "no class"."""
    options = {
        "channels": 8,
        "groups": 4,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (8, 4),
    }
    system = diffkit.compose(
        schedule=("cosine", {"s": 0.01}),
        backbone=("unet", options | {"num_classes": 2, "null_class": True, "attention_order": "new"}),
        data_shape=(3, 8, 8),
        num_steps=7,
        sampler=("ddim", {"eta": 0.5}),
    )
    return system.save(tmp_path / "run")


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_an_exported_file_carries_its_spec(ending: str, command: Command, with_classes: Path, tmp_path: Path):
    file, again = tmp_path / f"a{ending}", tmp_path / "again"
    assert command("export", with_classes, "--to", file).code == 0
    found = command("import", file, "--to", again)
    assert found.code == 0, found.err
    assert "it carries its spec" in found.out
    assert diffkit.load(again).spec() == diffkit.load(with_classes).spec()
    one, other = (diffkit.load(folder).state_dict() for folder in (with_classes, again))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_others_read_a_file_of_ours_as_the_published_ones(ending: str, command: Command, with_classes: Path, tmp_path):
    from safetensors.torch import load_file

    file, network = tmp_path / f"a{ending}", diffkit.load(with_classes).network
    assert command("export", with_classes, "--to", file).code == 0
    state = load_file(file) if ending == ".safetensors" else torch.load(file, weights_only=True)
    assert state.keys() == network.state_dict().keys()
    network.load_state_dict(state)


def test_options_override_the_spec_of_a_file(command: Command, refused: Refused, with_classes: Path, tmp_path):
    command("export", with_classes, "--to", tmp_path / "a.pt")
    more = ["--sampler", "ancestral", "--dropout", "0.5", "--num-heads", "2"]
    assert command("import", tmp_path / "a.pt", "--to", tmp_path / "b", *more).code == 0
    was, now = diffkit.load(with_classes).spec(), diffkit.load(tmp_path / "b").spec()
    assert now["parts"]["sampler"]["name"] == "ancestral"
    options = {"dropout": 0.5, "num_heads": 2, "num_head_channels": None}
    assert now["parts"]["backbone"]["options"] == was["parts"]["backbone"]["options"] | options
    assert now["settings"] == was["settings"]
    text = refused("import", tmp_path / "a.pt", "--to", tmp_path / "c", "--num-classes", "3")
    assert "num-classes is 2 and one label for no class in the file, 3 given" in text


def test_what_a_file_reports_of_itself_may_be_damaged(refused: Refused, with_classes: Path, tmp_path: Path):
    from safetensors.torch import save_file

    weights.export(diffkit.load(with_classes), tmp_path / "a.pt")
    tensors = dict(torch.load(tmp_path / "a.pt", weights_only=True))
    for text, said in [
        ("{", "is not JSON"),
        ("3", "is not a JSON object"),
        ('{"format": 99}', "this spec has format 99"),
    ]:
        save_file(tensors, tmp_path / "b.safetensors", {"diffkit": text})
        assert said in refused("import", tmp_path / "b.safetensors", "--to", tmp_path / "b")


def test_a_label_that_means_no_class_is_required(refused: Refused, with_classes: Path, tmp_path: Path):
    weights.export(diffkit.load(with_classes).network, tmp_path / "foreign.pt")
    line = "  --null-class    if the last of its 3 labels means no class"
    text = refused("import", tmp_path / "foreign.pt", "--to", tmp_path / "b", *UNSEEN)
    assert line in text.splitlines()
    assert "--null-class" not in refused(
        "import", tmp_path / "foreign.pt", "--to", tmp_path / "b", "--null-class", *UNSEEN
    )
    text = refused("import", tmp_path / "foreign.pt", "--to", tmp_path / "b", *UNSEEN, *TRAINED, "--num-classes", "2")
    assert "--num-classes is 3 in the file, 2 given; use --null-class" in text


def test_classifiers_of_ours_say_themselves_what_they_are(command: Command, tmp_path: Path):
    recipe = Classifier(channels=8, groups=4, channel_mult=(1, 2), num_res_blocks=1, num_head_channels=8)
    system = diffkit.compose(schedule="cosine", backbone=None, data_shape=(3, 8, 8), num_steps=9)
    torch.manual_seed(0)
    diffkit.guidance.NoisyClassifier(system, recipe, 5).save(tmp_path / "run")
    assert command("export", tmp_path / "run", "--to", tmp_path / "c.pt").code == 0
    found = command("import", tmp_path / "c.pt", "--to", tmp_path / "again")
    assert found.code == 0, found.err
    one, other = (read_spec(tmp_path / name / "spec.json") for name in ("run", "again"))
    assert one == other


def test_a_file_is_described(command: Command, unet: Path):
    found = command("import", unet)
    assert found.code == 0
    assert found.out.startswith("unet.pt: a U-Net, ")
    assert "channels_out = 6" in found.out
    assert "saved" not in found.out


def test_a_file_becomes_a_system_and_a_file_again(command: Command, unet: Path, tmp_path: Path):
    found = command("import", unet, "--to", tmp_path / "system", *UNSEEN, *TRAINED)
    assert found.code == 0, found.err
    assert found.out.endswith(f"saved in {tmp_path / 'system'}\n")
    system = diffkit.load(tmp_path / "system")
    assert system.num_steps == 40
    assert system.parts.schedule.s == 0.01
    assert not system.settings.rescale_time
    again = command("export", tmp_path / "system", "--to", tmp_path / "again.pt")
    assert again.out == f"wrote {tmp_path / 'again.pt'}\n"
    one, other = (torch.load(path, weights_only=True) for path in (unet, tmp_path / "again.pt"))
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_missing_is_listed_and_nothing_is_written(refused: Refused, unet: Path, tmp_path: Path):
    text = refused("import", unet, "--to", tmp_path / "system", *UNSEEN)
    assert [line.split()[0] for line in text.splitlines()[1:-1]] == [
        *("--schedule", "--num-steps", "--mean", "--loss", "--rescale-time")
    ]
    assert not (tmp_path / "system").exists()


def test_a_preset_that_does_not_fit_is_recognized_by_its_options(refused: Refused, unet: Path, tmp_path: Path):
    text = refused("import", unet, "--to", tmp_path / "system", "--preset", "iddpm/cifar10-uncond")
    assert text.startswith(
        f"{unet} does not fit preset 'iddpm/cifar10-uncond':\n  channels is 8 in the file, 128 given"
    )


@pytest.mark.slow
def test_a_preset_gives_all_options(command: Command, tmp_path: Path):
    torch.save(diffkit.preset("dit/s8-256").build().state_dict(), tmp_path / "dit.pt")
    found = command("import", tmp_path / "dit.pt", "--to", tmp_path / "system", "--preset", "dit/s8-256")
    assert found.code == 0, found.err
    assert diffkit.load(tmp_path / "system").settings.bins is None


def test_classifiers_too(command: Command, tmp_path: Path):
    recipe = Classifier(channels=8, groups=4, channel_mult=(1, 2), num_res_blocks=1, num_head_channels=8)
    path = weights.export(recipe.build((3, 8, 8), 5), tmp_path / "classifier.pt")
    options = ["--num-head-channels", "8", "--attention-order", "legacy", "--groups", "4"]
    assert command("import", path, "--to", tmp_path / "folder", *options).code == 0
    network = weights.load_classifier(tmp_path / "folder")
    assert network(torch.zeros(2, 3, 8, 8), torch.zeros(2)).shape == (2, 5)
    assert command("export", tmp_path / "folder", "--to", tmp_path / "again.safetensors").code == 0
    assert weights.identify(tmp_path / "again.safetensors").options == weights.identify(path).options


def test_bad_paths_are_refused_before_work(refused: Refused, unet: Path, tmp_path: Path):
    assert "--to" in refused("import", unet, "--to", unet, *UNSEEN, *TRAINED)
    assert "must end in .pt or .pth or .safetensors" in refused("export", tmp_path, "--to", tmp_path / "x.bin")
    assert "is not there" in refused("export", tmp_path, "--to", tmp_path / "x.pt")
    assert "needs FILE" in refused("import")


def test_size(command: Command):
    found = command("size", "--backbone", "mlp", "--data-shape", "2", "--bins", "none", "--memory-gb", "1")
    assert found.code == 0, found.err
    assert found.out.splitlines()[0].startswith("parameters  ")
    assert "in 1 GB" in found.out


@pytest.mark.slow
def test_size_of_a_preset_with_another_option(command: Command):
    found = command(
        "size", "--preset", "dit/s2-256", "--backbone.patch", "8", "--batch-size", "4", "--precision", "bf16"
    )
    assert found.out.splitlines()[0] == "parameters  33,142,016"
    assert "batch 4 in bf16" in found.out
