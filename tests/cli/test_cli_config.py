"""Options from a file: strict, complete, and overridden by the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import Command, Refused

import diffkit
from diffkit.presets import names


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "run.toml"
        path.write_text(text)
        return path

    return write


def resolved(command: Command, *words: str | Path) -> dict:
    found = command("explain", *words, "--print-config")
    assert found.code == 0, found.err
    return tomllib.loads(found.out)


def test_every_fault_is_reported_with_its_place(refused: Refused, file: Callable[[str], Path]):
    path = file(
        """
        num_steps = 1.7
        rescale_time = 1
        stepz = 3
        data_shape = [1, true]
        mean = 3
        [schedule]
        name = "cosine"
        max_bet = 4
        s = -1
        [loss]
        vb_weight = 1
        [backbone]
        name = "unet"
        channels = "64"
        groups = true
        """
    )
    first, *faults = refused("explain", "--config", path).splitlines()
    assert first == f"{path}: 10 faults:"
    assert {fault.strip().partition(" (known")[0] for fault in faults} == {
        "num_steps must be an integer, got 1.7",
        "rescale_time must be true or false, got 1",
        "stepz is not an option; did you mean 'steps'?",
        "data_shape must be a list of integers, got [1, true]",
        "mean must be a name or a table with a name, got 3",
        "schedule.max_bet is not an option; did you mean 'max_beta'?",
        "schedule.s must be >= 0, got -1.0",
        "loss needs a name",
        "backbone.channels must be an integer, got '64'",
        "backbone.groups must be an integer, got true",
    }


@pytest.mark.parametrize(
    "written",
    ['"*.bias:lr=0,out.*:lr=1"', '["*.bias:lr=0", {pattern = "out.*", lr = 1}]', '["*.bias:lr=0,out.*:lr=1"]'],
    ids=["a text", "a list", "a text in a list"],
)
def test_groups_of_parameters_are_written_as_in_python(command: Command, file: Callable[[str], Path], written: str):
    found = command(
        "train", "--config", file(f"param_groups = {written}"), "--data", "digits", "--out", "a", "--print-config"
    )
    assert found.code == 0, found.err
    groups = [{"pattern": "*.bias", "lr": 0.0}, {"pattern": "out.*", "lr": 1.0}]
    assert tomllib.loads(found.out)["param_groups"] == groups


def test_one_number_stands_for_a_list_of_it(command: Command, file: Callable[[str], Path], tmp_path: Path):
    (tmp_path / "images").mkdir()
    path = file(
        f"""
        out = "run"
        steps = 1
        ema = 0.9
        ema_power = 0.1
        low_res = 4
        track = "tensorboard"
        train_spacing = 250
        [data]
        name = "{tmp_path / "images"}"
        size = 16
        [backbone]
        name = "unet"
        channel_mult = 1
        attention_resolutions = 8
        """
    )
    found = command("train", "--config", path, "--print-config")
    assert found.code == 0, found.err
    read = tomllib.loads(found.out)
    assert [read[name] for name in ("ema", "ema_power", "low_res")] == [[0.9], [0.1], [4]]
    assert (read["track"], read["train_spacing"], read["data"]["size"]) == (["tensorboard"], 250, [16])
    assert (read["backbone"]["channel_mult"], read["backbone"]["attention_resolutions"]) == ([1], [8])


def test_a_list_is_required_as_a_file_spells_it(refused: Refused, file: Callable[[str], Path]):
    path = file('out = "run"\n[data]\nname = "digits"\n[backbone]\nname = "unet"\nattention_resolutions = "8,4"\n')
    assert refused("train", "--config", path) == (
        f"{path}: backbone.attention_resolutions must be a list of integers or none, got '8,4'"
    )
    assert refused("train", "--config", file("low_res = [true]")) == (
        f"{path}: low_res must be a list of integers or none, got [true]"
    )


def test_many_unknown_options_are_one_fault(refused: Refused, file: Callable[[str], Path]):
    path = file('lr = 1\nema = 0.9\nstepz = 2\nwarmup = 3\n[backbone]\nname = "mlp"\n')
    first, *more = refused("sample", "run", "--config", path).split(" (known: ")
    assert first == f"{path}: backbone, ema, lr, stepz, warmup are not options"
    assert len(more) == 1 and "steps" in more[0]
    path = file("stepz = 2\nseeed = 3\n")
    assert refused("sample", "run", "--config", path).startswith(
        f"{path}: seeed, stepz are not options; did you mean 'seed' and 'steps'? (known: run, "
    )


def test_a_dot_in_a_name_makes_no_option_of_a_part(refused: Refused, file: Callable[[str], Path]):
    assert "schedule.s is not an option" in refused(
        "explain", "--config", file('"schedule.s" = 0.1\nschedule = "cosine"\n')
    )


def test_one_fault_is_one_line(refused: Refused, file: Callable[[str], Path]):
    path = file("num_steps = true")
    assert refused("explain", "--config", path) == f"{path}: num_steps must be an integer, got true"


def test_an_empty_path_is_not_the_folder_at_hand(refused: Refused, file: Callable[[str], Path]):
    path = file('out = ""\n')
    assert refused("train", "--config", path, "--print-config") == f"{path}: out must not be empty"


def test_unknown_part_in_a_file(refused: Refused, file: Callable[[str], Path]):
    assert refused("explain", "--config", file('schedule = "cosin"')).startswith("no schedule named 'cosin'; did you")


def test_a_file_that_cannot_be_read(refused: Refused, file: Callable[[str], Path], tmp_path: Path):
    assert refused("explain", "--config", tmp_path / "no.toml").startswith(f"cannot read {tmp_path / 'no.toml'}: ")
    assert refused("explain", "--config", file("a = = 1")).startswith(f"{tmp_path / 'run.toml'} is not a TOML file: ")


def test_the_command_line_wins(command: Command, file: Callable[[str], Path]):
    path = file('num_steps = 100\nbins = "none"\n[schedule]\nname = "cosine"\ns = 0.01\n')
    found = resolved(command, "--config", path, "--num-steps", "50", "--schedule.max_beta", "0.9")
    assert found["num_steps"] == 50 and found["bins"] == "none"
    assert found["schedule"] == {"name": "cosine", "s": 0.01, "max_beta": 0.9}


def test_a_part_named_on_the_line_replaces_the_whole_part(command: Command, file: Callable[[str], Path]):
    path = file('[schedule]\nname = "cosine"\ns = 0.01\n')
    assert resolved(command, "--config", path, "--schedule", "linear")["schedule"] == {
        "name": "linear",
        "start": 0.0001,
        "end": 0.02,
    }
    assert resolved(command, "--config", path, "--schedule", "cosine")["schedule"]["s"] == 0.01


def test_other_data_on_the_line_keeps_what_fits_it(command: Command, file: Callable[[str], Path], tmp_path: Path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    path = file(
        f"""
        out = "run"
        steps = 1
        [data]
        name = "{tmp_path / "one"}"
        size = [16, 16]
        labels = "prefix"
        cache = "one.npy"
        """
    )
    words = ["train", "--config", path, "--print-config"]
    found = tomllib.loads(command(*words, "--data", tmp_path / "other").out)["data"]
    assert (found["name"], found["size"], found["labels"]) == (str(tmp_path / "other"), [16, 16], "prefix")
    assert "cache" not in found  # it is of the other pixels
    found = tomllib.loads(command(*words, "--data", tmp_path / "other", "--data.size", "8").out)["data"]
    assert (found["size"], found["labels"]) == ([8], "prefix")
    found = command(*words, "--data", "digits")
    assert found.code == 0 and tomllib.loads(found.out)["data"]["labels"] is True  # a switch there, and no way of them


def test_printed_options_are_complete_and_read_back_the_same(command: Command, file: Callable[[str], Path]):
    words = ["--schedule", "cosine", "--backbone.channel-mult", "1,2", "--bins", "none", "--clip-x-start=true"]
    printed = command("explain", *words, "--print-config").out
    again = command("explain", "--config", file(printed), "--print-config").out
    assert again == printed
    found = tomllib.loads(printed)
    assert (
        found["num_steps"] == 1000
        and found["loss"] == {"name": "simple", "space": "network"}
        and found["clip_x_start"] is True
    )
    assert found["backbone"]["channels"] == 128 and found["backbone"]["channel_mult"] == [1, 2]


def test_what_the_data_decides_is_a_comment(command: Command):
    words = ["train", "--data", "digits", "--out", 'a"b', "--steps", "3", "--print-config"]
    printed = command(*words).out
    assert "# data_shape: that of the data" in printed
    found = tomllib.loads(printed)
    assert found["out"] == 'a"b' and found["lr"] == 1e-4 and found["data"]["name"] == "digits"
    assert "data_shape" not in found


@pytest.mark.parametrize("spelling", ["--rescale-time=false", "--no-rescale-time", "--no_rescale_time"])
def test_switches(command: Command, spelling: str):
    assert resolved(command, spelling)["rescale_time"] is False
    assert resolved(command, "--rescale_time", "false")["rescale_time"] is False


def test_a_preset_lies_beneath_file_and_line(command: Command, refused: Refused, file: Callable[[str], Path]):
    preset = diffkit.preset("iddpm/cifar10-uncond")
    found = resolved(command, "--preset", preset.name)
    assert found["data_shape"] == [3, 32, 32] and found["loss"] == {**preset.composition["loss"], "space": "network"}
    assert "steps" not in found  # those of training, which to explain would be those of sampling
    path = file('num_steps = 50\n[backbone]\nname = "unet"\nchannels = 64\n')
    found = resolved(command, "--preset", preset.name, "--config", path, "--loss", "vlb")
    assert found["num_steps"] == 50 and found["loss"] == {"name": "vlb", "scale_by_steps": True}
    assert found["backbone"]["channels"] == 64 and found["backbone"]["dropout"] == 0.3
    words = ["train", "--preset", preset.name, "--data", "digits", "--out", "a", "--print-config"]
    assert tomllib.loads(command(*words).out)["steps"] == preset.training["steps"]
    assert refused("explain", "--preset", "iddpm/cifar").startswith("no preset named 'iddpm/cifar'; did you mean")
    assert refused("explain", "--preset", "adm/classifier64") == (
        "preset 'adm/classifier64' is a classifier, which guides sampling; diffkit train-classifier takes it"
    )


@pytest.mark.parametrize("name", [n for n in names() if not diffkit.preset(n).classifier])
def test_every_preset_can_be_trained_from_the_command_line(command: Command, name: str):
    words = ["train", "--preset", name, "--data", "digits", "--out", "a", "--steps", "1", "--print-config"]
    found = command(*words)
    assert found.code == 0, found.err


def test_items_of_a_list_may_be_given_one_by_one(command: Command):
    found = resolved(command, "--backbone.channel-mult", "1", "--backbone.channel-mult", "2,3")
    assert found["backbone"]["channel_mult"] == [1, 2, 3]


def test_an_integer_among_numbers_stays_one(command: Command, file: Callable[[str], Path]):
    path = file('[backbone]\nname = "unet"\nchannel_mult = [1, 0.5, 2]\n')
    for words in (["--backbone.channel-mult", "1,0.5,2"], ["--config", path]):
        mult = resolved(command, *words)["backbone"]["channel_mult"]
        assert [(type(each), each) for each in mult] == [(int, 1), (float, 0.5), (int, 2)]
