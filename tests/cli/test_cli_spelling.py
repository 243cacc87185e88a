"""Errors of the library speak of flags on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import Refused

from diffkit.cli.parsing.commands import load
from diffkit.cli.parsing.request import look
from diffkit.cli.parsing.spelling import in_flags


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("data") / "pictures.npz"
    path.touch()
    return look("train", load("train").takes(), ["--data", str(path), "--out", "o", "--steps", "1"]).options


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ("num_steps must be >= 1, got 0", "--num-steps must be >= 1, got 0"),
        ("steps must be >= 1, got 0", "--steps must be >= 1, got 0"),
        ("each of data_shape must be >= 1", "each of --data-shape must be >= 1"),
        ("at num_steps=10; use num_steps >= 21, or", "at --num-steps 10; use --num-steps >= 21, or"),
        ("use var='learned_range' or loss='simple'", "use --var learned_range or --loss simple"),
        ("compose with data_shape=(3, 4, 6)", "compose with --data-shape 3,4,6"),
        ("compose with data_shape=(3,)", "compose with --data-shape 3"),
        ("compose with bins=None", "compose with --bins none"),
        ("bins must be >= 2, got 1; None is continuous", "--bins must be >= 2, got 1; none is continuous"),
        (
            "  backbone 'unet': groups=32 does not divide; use groups=7",
            "  backbone 'unet': --backbone.groups 32 does not divide; use --backbone.groups 7",
        ),
        ("conv_resample=False has no", "--backbone.no-conv-resample has no"),
        ("resblock_updown=True; leave", "--backbone.resblock-updown; leave"),
        ("engine=True: failed; leave engine out", "--engine: failed; leave --engine out"),
        ("pass labels=False", "pass --data.no-labels"),
        ("engine='accelerate' ...; leave engine out for", "--engine accelerate ...; leave --engine out for"),
        ("leave flip at 0", "leave --flip at 0"),
        (
            "  backbone.groups=32, now backbone.groups=7",
            "  --backbone.groups 32, now --backbone.groups 7",
        ),
        ("give num_classes=... to it", "give --backbone.num-classes ... to it"),
        ("  loss      what is minimized", "  --loss      what is minimized"),
        (
            "take loss=('hybrid', {'vb_weight': 0.5, 'scale_by_steps': False}) or loss='vlb'",
            "take --loss hybrid --loss.vb-weight 0.5 --loss.scale-by-steps=false or --loss vlb",
        ),
    ],
)
def test_names_become_flags(options, said: str, wanted: str):
    assert in_flags(said, options) == wanted


@pytest.mark.parametrize(
    "said",
    [
        "no schedule named 'num_steps'; did you mean 'steps=3'?",
        "cannot read runs/num_steps/steps=5/model.safetensors",
        "num_steps.txt is not there",
        "mean 'x_start' cannot recover x_start",
        "out 'run' is being written by another training",
        "unknown_option=3 is unknown",
        "the steps must be few",
        "backbone unet(channels=128, num_heads=4), now mlp(hidden=3)",
        "Thing(inner=Other(steps=3), data_shape=(3, 4), num_steps=None) is another",
    ],
)
def test_anything_else_stays(options, said: str):
    assert in_flags(said, options) == said


def test_the_command_line_reports_it(refused: Refused, saved: Path, tmp_path: Path):
    out = ["--out", tmp_path / "o"]
    assert refused("explain", "--num-steps", "0") == "--num-steps must be >= 1, got 0"
    assert refused("sample", saved, "-n", "0") == "-n must be >= 1, got 0"
    assert refused("sample", saved, "--steps", "13", *out).startswith("--steps must be <= 12")
    assert refused("explain", "--loss", "hybrid").endswith("use --var learned_range or --loss simple")
    assert refused("explain", "--train-spacing", "2000").startswith("--train-spacing: steps must be <= 1000")
    assert refused("explain", "--backbone.channel-mult", "0") == "each of --backbone.channel-mult must be > 0, got 0"
