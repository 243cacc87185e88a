"""Training from the command line: what is composed, where it goes, and how it goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_support import Command, Refused
from safetensors.torch import load_file

import diffkit
from diffkit.cli.shared.recipe import _source
from diffkit.training import read_metrics

TINY = [
    "--backbone", "mlp", "--backbone.hidden", "8", "--backbone.depth", "1", "--schedule", "cosine",
    "--num-steps", "8", "--batch-size", "4", "--log-every", "2",
]  # fmt: skip


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "images.npz"
    np.savez(path, rng.integers(0, 256, (9, 4, 6, 3), dtype=np.uint8), np.arange(9) % 2)
    return path


def test_data_decides_what_is_composed(command: Command, images: Path, tmp_path: Path):
    out = tmp_path / "run"
    words = ["train", "--data", images, "--data.labels", "true", "--out", out, "--label-dropout", "0.5", *TINY]
    found = command(*words, "--steps", "2")
    assert found.code == 0, found.err
    assert found.out.splitlines() == [
        f"run: {out}/",
        "data: 9 examples of 3x4x6, 256 values, 2 classes",
        "system: schedule cosine, mean eps, var fixed_large, loss simple, timesteps uniform, sampler ancestral, "
        "backbone mlp",
    ]
    system = diffkit.load(out)
    assert system.data_shape == (3, 4, 6) and system.settings.bins == 256
    assert system.spec()["parts"]["backbone"]["options"] == {
        "hidden": 8, "depth": 1, "num_classes": 2, "null_class": True, "times": 1,
        "self_condition": False,
    }  # fmt: skip
    assert command(*words, "--steps", "4").code == 0
    assert "continuing" in command(*words, "--steps", "6").err
    assert command("sample", out, "-n", "2", "--out", tmp_path / "s", "--classes", "none,1").code == 0
    assert command("nll", out, "--data", images, "--data.labels", "true", "--num", "2").code == 0


@pytest.mark.parametrize("command_line", [["train", "--steps", "1", *TINY], ["train-classifier", "--steps", "1"]])
def test_options_of_data_go_by_their_flags(command_line: list[str], refused: Refused, tmp_path: Path):
    pictures(tmp_path / "grey", "L")
    words = [*command_line, "--out", tmp_path / "run", "--data", tmp_path / "grey", "--data.size", "4"]
    assert refused(*words, "--data.channels", "2") == "--data.channels must be 1, 3 or 4, got 2"
    assert refused(*words, "--data.bits", "16") == (
        "--data.bits 16 is for grey images; use --data.channels 1 or --data.bits 8"
    )


@pytest.mark.parametrize(
    ("mode", "more", "said"),
    [
        ("L", [], True),
        ("RGB", [], False),
        ("L", ["--data.channels", "3"], False),
        ("L", ["--data.channels", "1"], False),
    ],
)
def test_grey_pictures_read_in_colour_are_reported(mode, more, said, command: Command, tmp_path: Path):
    pictures(tmp_path / "some", mode)
    words = ["train", "--data", tmp_path / "some", "--data.size", "4", "--out", tmp_path / "run", "--steps", "1", *TINY]
    found = command(*words, *more)
    assert found.code == 0, found.err
    note = "; all 4 pictures checked are grey: --data.channels 1 reads them so"
    assert (note in found.out.splitlines()[1]) == said


def pictures(folder: Path, mode: str) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(4):
        pixels = rng.integers(0, 256, (4, 4, 3) if mode == "RGB" else (4, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_a_run_does_not_go_back(command: Command, refused: Refused, images: Path, tmp_path: Path):
    words = ["train", "--data", images, "--out", tmp_path / "run", *TINY]
    assert command(*words, "--steps", "3").code == 0
    assert command(*words, "--steps", "3").code == 0  # it is done
    assert refused(*words, "--steps", "2") == (
        f"--steps 2 counts from the start of the run, and {tmp_path / 'run'} has 3 steps already; "
        "ask for more to go on, or choose another folder"
    )


def test_more_steps_for_a_picture_than_there_are_levels(command: Command, images: Path, tmp_path):
    words = ["train", "--data", images, "--out", tmp_path / "run", "--steps", "1", "--preview-every", "1", *TINY]
    assert command(*words, "--preview-steps", "9").code == 0  # or as many as there are
    recipe = tmp_path / "run" / "config.toml"
    recipe.write_text('engine = "torch"\n' + recipe.read_text())  # an option of recipes written before
    assert command("train", "--config", tmp_path / "run/config.toml", "--out", tmp_path / "again").code == 0


def test_classes_that_nothing_is_learned_of_are_reported(command: Command, images: Path, tmp_path: Path):
    words = ["train", "--data", images, "--data.labels", "true", "--out", tmp_path / "run", "--steps", "1", *TINY]
    found = command(*words, "--backbone.num-classes", "7")
    assert "note: the network has 7 classes, the data 2; the other 5 are never trained" in found.out.splitlines()


def test_options_override_the_data(command: Command, images: Path, tmp_path: Path):
    out = tmp_path / "run"
    words = ["--data", images, "--out", out, "--steps", "1", *TINY, "--backbone.num-classes", "none"]
    assert command("train", *words).code == 0
    assert diffkit.load(out).spec()["parts"]["backbone"]["options"]["num_classes"] is None


def test_same_seed_same_weights(command: Command, images: Path, tmp_path: Path):
    for name in ("a", "b"):
        words = ["--data", images, "--out", tmp_path / name, "--steps", "1", *TINY, "--seed", "3"]
        assert command("train", *words).code == 0
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert one == two


def test_validation(command: Command, refused: Refused, images: Path, tmp_path: Path):
    out, held = tmp_path / "run", tmp_path / "held.npz"
    with np.load(images) as found:
        np.savez(held, found["arr_0"][:3])
    words = ["train", "--data", images, "--steps", "5", *TINY]
    found = command(*words, "--out", out, "--val", held, "--val-every", "3")
    assert found.code == 0, found.err
    lines = [line for line in read_metrics(out) if "val_loss" in line]
    assert [line["step"] for line in lines] == [3, 5] and "val_mse" in lines[0]
    assert f'[val]\nname = "{held}"' in (out / "config.toml").read_text()
    assert command("train", "--config", out / "config.toml", "--out", tmp_path / "again").code == 0
    again = [line["val_loss"] for line in read_metrics(tmp_path / "again") if "val_loss" in line]
    assert again == [line["val_loss"] for line in lines]
    assert "val_loss" in command("runs", out).out
    assert command("report", out, "--out", tmp_path / "report.html").code == 0
    told = refused(*words, "--out", tmp_path / "b", "--val", "digits")
    assert told.startswith("--val must fit the system as the data does: the data cannot be trained on:")


@pytest.mark.parametrize(
    ("words", "flags", "more"),
    [
        (["--batch-size", "10"], ["--batch-size"], "use --batch-size 9"),
        (["--lr", "-1"], ["--lr"], ">= 0"),
        (["--data-shape", "1,4,6"], [], "use --data-shape 3,4,6"),
        (["--device", "nowhere"], ["--device"], "there is cpu"),
        (["--out", "images.npz"], ["--out"], "name a folder"),
    ],
)
def test_refusals(
    refused: Refused, images: Path, monkeypatch, words: list[str], flags: list[str], more: str, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    own = TINY[: TINY.index("--batch-size")] if "--batch-size" in words else TINY
    text = refused(
        "train", "--data", images, "--steps", "1", *own, *([] if "--out" in words else ["--out", "run"]), *words
    )
    assert text.flags == flags and more in text


UPSAMPLER = [
    "--backbone", "unet", "--backbone.channels", "8", "--backbone.channel-mult", "1,2",
    "--backbone.num-res-blocks", "1", "--backbone.groups", "4", "--backbone.attention-resolutions", "2",
    "--schedule", "cosine", "--num-steps", "4", "--batch-size", "2",
]  # fmt: skip


def test_training_for_super_resolution(command: Command, refused: Refused, images: Path, tmp_path: Path):
    out = tmp_path / "run"
    words = ["train", "--data", images, "--low-res", "2,3", "--steps", "1"]
    found = command(*words, "--out", out, *UPSAMPLER)
    assert found.code == 0, found.err
    assert "data: 9 examples of 3x4x6, 256 values, low_res 2x3" in found.out
    assert diffkit.load(out).spec()["parts"]["backbone"]["options"]["low_res_channels"] == 3
    assert "use the backbone 'unet'; use low_res_channels=3" in refused(*words, "--out", tmp_path / "b", *TINY)
    assert "the network reads low_res of 3 channels, but the data gives none" in refused(
        *words[:3], "--steps", "1", "--out", tmp_path / "b", *UPSAMPLER, "--backbone.low-res-channels", "3"
    )
    assert "--low-res must not be larger than the data, (4, 6), got (8, 8)" in refused(
        *words[:3], "--steps", "1", "--low-res", "8", "--out", tmp_path / "b", *UPSAMPLER
    )
    assert not (tmp_path / "b").exists()


def losses(run: Path) -> list[float | None]:
    return [line["loss"] for line in read_metrics(run)]


RECIPES = {
    "classes": ["--data.labels", "true", "--label-dropout", "0.3", "--loss", "hybrid", "--var", "learned_range",
                "--loss.vb-weight", "0.5", "--timesteps", "loss_second_moment", "--ema", "0.9,0.99", *TINY],
    "upsampler": ["--low-res", "2,3", "--train-spacing", "3", *UPSAMPLER],
    "points": ["--data", "points", "--data.kind", "rings", "--seed", "3", "--anneal", "--sampler", "ddim", *TINY],
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_holds_what_repeats_it(command: Command, images: Path, tmp_path: Path, name: str):
    data = [] if name == "points" else ["--data", images]
    words = ["--steps", "3", "--log-every", "1", "--lr", "0.01"]
    chosen = [word for word in RECIPES[name] if word not in ("--log-every", "2") or name == "upsampler"]
    assert command("train", *data, *chosen, *words, "--out", tmp_path / "a").code == 0
    found = command("train", "--config", tmp_path / "a" / "config.toml", "--out", tmp_path / "b")
    assert found.code == 0, found.err
    assert losses(tmp_path / "a") == losses(tmp_path / "b") and len(losses(tmp_path / "a")) == 3
    one, two = ((tmp_path / run / "model.safetensors").read_bytes() for run in "ab")
    assert one == two
    one, two = ((tmp_path / run / "config.toml").read_text() for run in "ab")
    assert one == two and one.startswith("# diffkit train --config THIS_FILE --out ANOTHER_FOLDER repeats")


def test_paths_are_whole_so_that_a_run_is_repeated_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    name, options = _source("pictures", {"size": 8, "cache": Path("kept.npy")})
    assert (name, options) == (str(tmp_path / "pictures"), {"size": 8, "cache": tmp_path / "kept.npy"})
    name, options = _source("cifar10", {"archive": Path("a.tar.gz")})
    assert (name, options) == ("cifar10", {"archive": tmp_path / "a.tar.gz"})


def test_a_run_that_resumes_holds_its_last_options(command: Command, images: Path, tmp_path: Path):
    words = ["train", "--data", images, "--out", tmp_path / "a", *TINY, "--steps"]
    assert command(*words, "1").code == 0
    assert command(*words, "2").code == 0
    assert "\nsteps = 2\n" in (tmp_path / "a" / "config.toml").read_text()
    command(*words, "3", "--lr", "1")  # is refused, and must leave no trace
    assert "\nsteps = 2\n" in (tmp_path / "a" / "config.toml").read_text()


def test_dry_run(command: Command, images: Path, tmp_path: Path):
    words = ["train", "--data", images, "--out", tmp_path / "run", *TINY, "--steps", "5000", "--dry-run"]
    found = command(*words)
    assert found.code == 0, found.err
    said = found.out.splitlines()
    assert said[0] == "dry run: nothing is written" and said[1].startswith("data: 9 examples")
    assert [line.split()[0] for line in said[3:]] == [
        "parameters", "device", "memory", "update", "training", "epoch", "checkpoint", "loss",
    ]  # fmt: skip
    assert "epoch       9 images, 2.2 steps; 2,222.2 epochs in all" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.npz"]


def test_trackers_are_chosen_by_name(refused: Refused, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = ["train", "--data", images, "--out", tmp_path / "run", *TINY, "--steps", "1", "--track"]
    assert refused(*words, "wandbb").startswith("no tracker named 'wandbb'; did you mean 'wandb'?")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert refused(*words, "wandb").startswith("tracking with Weights & Biases needs the 'wandb' extra")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_an_interrupted_start_left_is_new(command: Command, images: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("process 1 on a machine\n")
    found = command("train", "--data", images, "--out", tmp_path / "run", "--steps", "1", *TINY)
    assert found.code == 0 and (tmp_path / "run" / "spec.json").is_file()


def test_values_that_are_not_scaled(command: Command, tmp_path: Path):
    np.savez(tmp_path / "raw.npz", np.linspace(0, 255, 8 * 16, dtype=np.float32).reshape(8, 4, 4, 1))
    words = ["--backbone", "mlp", "--backbone.hidden", "8", "--backbone.depth", "1", "--schedule", "cosine"]
    words += ["--num-steps", "8", "--steps", "1", "--batch-size", "4", "--out", tmp_path / "run"]
    found = command("train", "--data", tmp_path / "raw.npz", *words)
    assert found.code == 0, found.err
    assert "data: 8 examples of 1x4x4, continuous values in 0..255\n" in found.out
    assert "note: values lie in 0..255; networks expect about [-1, 1]" in found.err


def test_what_needs_no_data_is_refused_before_any_is_read(
    command: Command, refused: Refused, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, run = tmp_path / "photos", tmp_path / "run"
    folder.mkdir()
    assert command("train", "--data", images, "--steps", "1", *TINY, "--out", run).code == 0
    monkeypatch.setattr("diffkit.cli.shared.data.opened", lambda *_: pytest.fail("data was read"))
    words = ["train", "--data", folder, "--data.size", "4", "--steps", "1", *TINY, "--out", tmp_path / "new"]
    assert "--strategy fsdp shares the network among processes, but there is one" in refused(
        *words, "--strategy", "fsdp"
    )
    dropped = "--label-dropout 0.1 drops classes, but the data has no classes; "
    assert refused(*words, "--label-dropout", "0.1") == f"{dropped}add --data.labels folders, or prefix"
    words[2:5] = [images]
    assert refused(*words, "--label-dropout", "0.1") == f"{dropped}add --data.labels true"
    assert refused(*words[:-1], run, "--lr", "0.5", "--seed", "3").splitlines() == [
        f"out {str(run)!r} holds a run that differs from this one:",
        "  --lr 0.0001, now --lr 0.5",
        "  --seed 0, now --seed 3",
        "pass the same options, or choose another folder",
    ]
    classifier = ["train-classifier", "--data", folder, "--data.size", "4", "--steps", "1", "--out", tmp_path / "c"]
    assert refused(*classifier) == (
        "a classifier learns from labels, but the data has none; add --data.labels folders, or prefix"
    )


def test_weights_to_begin_with(command: Command, refused: Refused, images: Path, tmp_path: Path):
    words = ["train", *TINY, "--steps", "2", "--data", images, "--lr", "0"]
    assert command(*words, "--out", tmp_path / "first").code == 0
    wanted = diffkit.load(tmp_path / "first").state_dict()
    again = [*words, "--seed", "5", "--init", tmp_path / "first", "--out", tmp_path / "second"]
    found = command(*again)
    assert found.code == 0, found.err
    file = tmp_path / "first" / "model.safetensors"
    assert f"weights: {file}: {len(wanted)} tensors taken, 0 left as they were" in found.out
    for name, value in diffkit.load(tmp_path / "second").state_dict().items():
        assert torch.equal(value, wanted[name])
    assert "weights: " not in command(*again, "--steps", "4").out  # it goes on with its own
    other = command("train", "--config", tmp_path / "second" / "config.toml", "--out", tmp_path / "third")
    assert f"weights: {file}: " in other.out
    wide = command(*words, "--init", file, "--out", tmp_path / "wide", "--var", "learned_range", "--loss", "hybrid")
    assert "left: " in wide.out and " in the file, " in wide.out
    assert "was trained as another system: var fixed_large" in wide.out
    assert "was trained as another system" not in found.out
    assert "is not a file of weights, and no folder of a run" in refused(
        *words, "--init", tmp_path / "nowhere", "--out", tmp_path / "fourth"
    )


@pytest.mark.slow
def test_a_folder_to_begin_with_decides_what_data_does_not(command: Command, tmp_path: Path):
    """Data of other classes, channels and sizes: what does not fit is listed, and nothing else is lost."""

    def train(name: str, side: int, channels: int, classes: int, *more: object) -> list[str]:
        images = np.random.default_rng(0).integers(0, 256, (12, side, side, channels), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", images, np.arange(12) % max(classes, 1))
        words = ["--data", tmp_path / f"{name}.npz", "--data.labels", "true" if classes else "false"]
        found = command("train", *words, "--out", tmp_path / name, "--steps", "1", "--batch-size", "4", *more)
        assert found.code == 0, found.err
        return [line.strip() for line in found.out.splitlines() if "left: " in line or "not used: " in line]

    small = "--backbone.channels 8 --backbone.groups 4 --backbone.num-res-blocks 1 --backbone.channel-mult 1,2"
    parts = "--backbone.attention-resolutions 4 --schedule cosine --var learned_range --loss hybrid --num-steps 9"
    train("base", 8, 1, 3, *small.split(), *parts.split(), "--label-dropout", "0.1")
    init = ["--init", tmp_path / "base"]
    wanted = diffkit.load(tmp_path / "base")
    assert train("same", 8, 1, 3, *init) == train("larger", 16, 1, 3, *init) == []
    assert train("fewer", 8, 1, 2, *init) == ["left: label_emb.weight is (4, 32) in the file, (3, 32) here"]
    assert train("none", 8, 1, 0, *init) == ["not used: label_emb.weight"]
    colours = [line.split()[1] for line in train("colours", 8, 3, 3, *init)]
    assert colours == ["input_blocks.0.0.weight", "out.2.weight", "out.2.bias"]
    assert len(train("deeper", 8, 1, 3, *init, "--backbone.num-res-blocks", "2")) > 0
    file = tmp_path / "base" / "model.safetensors"
    assert train("begun", 8, 1, 3, "--init", file, *small.split(), "--schedule", "cosine")  # the weights alone
    train("begun", 8, 1, 3, *init, "--schedule", "cosine")  # a run goes on with its own parts
    for name in ("same", "larger", "fewer", "none", "colours", "deeper"):
        found = diffkit.load(tmp_path / name)
        assert found.parts.names == wanted.parts.names and found.num_steps == 9


def test_one_of_several_sets_of_weights_to_begin_with(command: Command, refused: Refused, images: Path, tmp_path: Path):
    words = ["train", *TINY, "--steps", "1", "--data", images, "--lr", "0"]
    assert command(*words, "--out", tmp_path / "first").code == 0
    first = diffkit.load(tmp_path / "first")
    state = first.network.state_dict()
    torch.save({"ema_0.9": state, "ema_0.99": state, "model": state}, tmp_path / "three.pt")
    again = [*words, "--init", tmp_path / "three.pt", "--out", tmp_path / "second"]
    assert "use --init-entry ema_0.9 or " in refused(*again)
    assert "from 'ema_0.9'" in command(*again, "--init-entry", "ema_0.9").out
    repeated = command("train", "--config", tmp_path / "second" / "config.toml", "--out", tmp_path / "third")
    assert "from 'ema_0.9'" in repeated.out
    assert "give --init too" in refused(*words, "--init-entry", "model", "--out", tmp_path / "fourth")


def test_defaults_of_sampling_are_saved_and_repeated(command: Command, tmp_path: Path):
    """Guidance and steps of a call that says nothing: from the line, from the run's own file, in explain."""
    line = "--data digits --backbone mlp --schedule cosine --num-steps 10 --steps 1 --batch-size 4 --label-dropout 0.1"
    guided = "--sampling-steps 5 --guidance cfg --guidance.scale 2"
    first = command("train", *line.split(), *guided.split(), "--out", tmp_path / "a")
    again = command("train", "--config", tmp_path / "a" / "config.toml", "--out", tmp_path / "b")
    assert (first.code, again.code) == (0, 0), first.err + again.err
    for run in ("a", "b"):
        sampling = diffkit.load(tmp_path / run).settings.sampling
        assert (sampling["steps"], sampling["guidance"]["name"], sampling["guidance"]["scale"]) == (5, "cfg", 2.0)
    assert "where a call says nothing: steps=5" in command("explain", "--spec", tmp_path / "a").out
    weights = (tmp_path / "a" / "model.safetensors").read_bytes()
    other = command("train", *line.split(), "--sampling-steps", 7, "--out", tmp_path / "a")
    assert "the defaults of sampling in" in other.err and diffkit.load(tmp_path / "a").settings.sampling == {"steps": 7}
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == weights
    assert "sampling in" not in command("train", *line.split(), "--sampling-steps", 7, "--out", tmp_path / "a").err


def test_published_steps_of_sampling_are_for_the_published_levels(command: Command):
    assert "sampling_steps = 250" in command("explain", "--preset", "adm/imagenet64", "--print-config").out
    assert "sampling_steps" not in command(
        "explain", "--preset", "adm/imagenet64", "--num-steps", "100", "--print-config"
    ).out.replace("# sampling_steps", "")


def test_names_of_parameters_are_options_and_repeat_from_the_file(command: Command, images: Path, tmp_path: Path):
    words = ["train", "--data", images, "--out", tmp_path / "a", "--steps", "2", "--freeze", "time_embed.*,out.[02].*"]
    found = command(*words, "--param-groups", "*.bias:weight_decay=0:lr=1e-3,first.*:lr=0", *TINY)
    assert found.code == 0, found.err
    text = (tmp_path / "a" / "config.toml").read_text()
    assert 'freeze = ["time_embed.*", "out.[02].*"]' in text
    groups = '[{ pattern = "*.bias", lr = 0.001, weight_decay = 0.0 }, { pattern = "first.*", lr = 0.0 }]'
    assert f"param_groups = {groups}" in text
    assert command("train", "--config", tmp_path / "a" / "config.toml", "--out", tmp_path / "b").code == 0
    first, again = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    changed = command(*words, "--param-groups", "*.bias:lr=1e-3", *TINY).err
    assert "--param-groups *.bias:lr=0.001:weight_decay=0,first.*:lr=0, now --param-groups *.bias:lr=0.001\n" in changed
    missing = command(
        "train", "--data", images, "--out", tmp_path / "c", "--steps", "2", "--freeze", "frist.*", *TINY
    ).err
    assert "--freeze frist.* matches no parameter of the network; did you mean 'first.*'?" in missing


@pytest.mark.slow
def test_an_adapter_of_a_saved_system_is_repeated_from_the_file(command: Command, images: Path, tmp_path: Path):
    how = {"data_shape": (3, 4, 6), "num_steps": 20, "backbone": ("mlp", {"hidden": 8, "depth": 1})}
    base = diffkit.compose(schedule="cosine", **how).save(tmp_path / "base")
    words = ("--adapter", "lora", "--adapter.targets", "first", "--steps", 2, "--batch-size", 4)
    found = command("train", "--data", images, "--init", base, *words, "--out", tmp_path / "a")
    assert found.code == 0, found.err
    found = command("train", "--config", tmp_path / "a" / "config.toml", "--out", tmp_path / "b")
    assert found.code == 0, found.err
    one, two = (diffkit.load(tmp_path / name) for name in "ab")
    assert one.num_steps == 20 and one.spec() == two.spec()
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name
