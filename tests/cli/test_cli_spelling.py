"""Options in errors of the library are flags on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import Refused

from diffkit.cli.parsing.commands import load, table
from diffkit.cli.parsing.request import look
from diffkit.cli.parsing.spelling import in_flags
from diffkit.errors import Message, Setting


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    path.touch()
    return look("train", load(table()["train"]).SPEC, ["--data", str(path), "--out", "o", "--steps", "1"]).options


@pytest.mark.parametrize(
    ("setting", "flag"),
    [
        (Setting("num_steps"), "--num-steps"),
        (Setting("num_steps", 10), "--num-steps 10"),
        (Setting("data_shape", (3, 4)), "--data-shape 3,4"),
        (Setting("bins", None), "--bins none"),
        (Setting("groups", 7), "--backbone.groups 7"),
        (Setting("backbone.groups", 7), "--backbone.groups 7"),
        (Setting("conv_resample", False, "backbone"), "--backbone.no-conv-resample"),
        (Setting("num_classes", ...), "--backbone.num-classes ..."),
        (Setting("labels", False, "data"), "--data.no-labels"),
        (
            Setting("loss", ("hybrid", {"vb_weight": 0.5, "scale_by_steps": False})),
            "--loss hybrid --loss.vb-weight 0.5 --loss.scale-by-steps=false",
        ),
        (Setting("null_conditions", {"y": 1}), "null_conditions={'y': 1}"),  # only Python has it
        (Setting("unknown", 3), "unknown=3"),
    ],
)
def test_settings_are_flags(options, setting: Setting, flag: str):
    assert in_flags(Message("use ", setting), options) == f"use {flag}"


def test_the_command_line_reports_it(refused: Refused, saved: Path, tmp_path: Path):
    out = ["--out", tmp_path / "o"]
    assert refused("explain", "--num-steps", "0") == "--num-steps must be >= 1, got 0"
    assert refused("sample", saved, "-n", "0") == "-n must be >= 1 and <= 10000000, got 0"
    assert "--steps must be <= 12" in refused("sample", saved, "--steps", "13", *out)
    assert refused("explain", "--loss", "hybrid").endswith("use --var learned_range or --loss simple")
    assert refused("explain", "--train-spacing", "2000").startswith("--train-spacing: ")
    assert refused("explain", "--backbone.channel-mult", "0") == "each of --backbone.channel-mult must be > 0, got 0"
