"""Commands that write files, each with what it reads; `write_faults` interrupts them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from write_faults import Command

import diffkit
from diffkit.__main__ import main

SIZE = ("--data.size", "8,6")
TINY = (
    "--schedule",
    "cosine",
    "--backbone",
    "mlp",
    "--backbone.hidden",
    "4",
    "--backbone.depth",
    "1",
    "--num-steps",
    "20",
)


def _system(room: Path, name: str = "system", shape: tuple[int, ...] = (3, 8, 6), bins: int | None = 256) -> None:
    torch.manual_seed(0)
    diffkit.compose(
        schedule="cosine",
        var="learned_range",
        loss="hybrid",
        backbone=("mlp", {"hidden": 4, "depth": 1}),
        data_shape=shape,
        bins=bins,
        num_steps=6,
    ).save(room / name)


def _unet(room: Path) -> None:
    torch.manual_seed(0)
    small = {"channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "attention_resolutions": (), "dropout": 0.0}
    diffkit.compose(schedule="cosine", backbone=("unet", small), data_shape=(1, 8, 8), num_steps=6).save(
        room / "system"
    )


def _two_stages(room: Path) -> None:
    _unet(room)
    small = {"channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "attention_resolutions": (), "dropout": 0.0}
    up = ("unet", {**small, "low_res_channels": 1})
    diffkit.compose(schedule="cosine", backbone=up, data_shape=(1, 16, 16), num_steps=6).save(room / "up")


def _pictures(room: Path, count: int = 3, folder: str = "pictures", channels: int = 1) -> None:
    from PIL import Image

    (room / folder).mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        shape = (8, 6) if channels == 1 else (8, 6, channels)
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(room / folder / f"p{i}.png")


def _system_and_pictures(room: Path) -> None:
    _system(room)
    _pictures(room)


def _for_evaluation(room: Path) -> None:
    _system(room, shape=(3, 8, 6))
    _pictures(room, 6, channels=3)
    _pictures(room, 6, "samples", channels=3)
    (room / "look.py").write_text((Path(__file__).parents[1] / "evaluation" / "stand_in.py").read_text())


def _nothing(room: Path) -> None:
    """Leave the folder empty."""


def _points_run(room: Path) -> None:
    import contextlib
    import io
    import os

    here = Path.cwd()
    os.chdir(room)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main(list(TRAIN)) == 0
    finally:
        os.chdir(here)


TRAIN = (
    *("train", "--data", "points", "--data.examples", "50", "--out", "run", "--steps", "6", "--batch-size", "4"),
    *("--save-every", "2", "--log-every", "1", "--keep", "2", "--ema", "0.9,0.99", *TINY),
)
EVALUATE = ("evaluate", "samples", "--extractor", "look:StandInExtractor", "--neighbours", "2", "--metrics", "fid,kid")


@cache
def commands() -> dict[str, Command]:
    """All of them, by name."""
    found = [
        Command("train", TRAIN, _nothing),
        Command(
            "sample",
            ("sample", "system", "-n", "5", "--batch-size", "2", "--format", "png,grid,npz", "--out", "drawn"),
            _system,
        ),
        Command("nll", ("nll", "system", "--data", "pictures", *SIZE, "--batch-size", "2"), _system_and_pictures),
        Command(
            "nll_files",
            (
                "nll",
                "system",
                "--data",
                "pictures",
                *SIZE,
                "--batch-size",
                "2",
                "--out",
                "bits.npz",
                "--published",
                "terms",
                "--plot",
                "terms.png",
            ),
            _system_and_pictures,
        ),
        Command(
            "nll_ode",
            (
                "nll",
                "system",
                "--data",
                "pictures",
                *SIZE,
                "--ode",
                "--tolerance",
                "0.1",
                "--batch-size",
                "2",
                "--out",
                "bits.npz",
            ),
            _system_and_pictures,
        ),
        Command(
            "evaluate",
            (*EVALUATE, "--data", "pictures", *SIZE, "--out", "found.json", "--save-reference", "real.npz"),
            _for_evaluation,
        ),
        Command("data_import_folder", ("data", "import", "--data", "pictures", *SIZE, "--to", "imported"), _pictures),
        Command("data_import_npz", ("data", "import", "--data", "pictures", *SIZE, "--to", "imported.npz"), _pictures),
        Command("data_check", ("data", "check", "pictures", "--out", "found.json"), _pictures),
        Command(
            "cache",
            ("nll", "system", "--data", "pictures", *SIZE, "--data.cache", "pixels.npy", "--batch-size", "2"),
            _system_and_pictures,
        ),
        Command("report", ("report", "run", "-n", "0", "--out", "page.html"), _points_run),
        Command("average", ("average", "run", "--rate", "0.99", "--out", "averaged"), _points_run),
        Command("cascade", ("cascade", "system", "up", "--out", "cascaded"), _two_stages),
        Command("export_pt", ("export", "system", "--to", "weights.pt"), _unet),
        Command("export_safetensors", ("export", "system", "--to", "weights.safetensors"), _unet),
        Command(
            "edit", ("edit", "system", "pictures", "--out", "edited", "-n", "2", "--steps", "2"), _system_and_pictures
        ),
        Command("invert", ("invert", "system", "pictures", "--out", "inverted", "--steps", "2"), _system_and_pictures),
        Command(
            "explain_plot", ("explain", "--plot", "levels.png", "--schedule", "cosine", "--num-steps", "20"), _nothing
        ),
        Command("new_plugin", ("new-plugin", "diffkit-warp-speed", "--kind", "schedule"), _nothing),
    ]
    return {command.name: command for command in found}
