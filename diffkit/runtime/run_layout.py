"""Names of the files and folders of a saved system and of a training run; no file is read here.

RUN/spec.json, RUN/model.safetensors   a system and its weights: a saved system has only these
RUN/config.json, RUN/config.toml       options and data of a run; and the options of the command
RUN/metrics.jsonl                      one line of numbers every few steps
RUN/checkpoints/step_00001000/         everything that resumes the run exactly
RUN/latents.npy, .npz, .json           latents of all examples, if a codec makes them by an autoencoder
RUN/base/                              the system beside which an adapter is trained, if it is stored nowhere else
RUN/previews/step_00001000.png         samples during training
RUN/tensorboard/                       TensorBoard's files, if it is a tracker of the run
"""

from __future__ import annotations

from pathlib import Path

SPEC, WEIGHTS = "spec.json", "model.safetensors"
CONFIG, RECIPE = "config.json", "config.toml"
CHECKPOINTS, MANIFEST = "checkpoints", "manifest.json"
BASE = "base"
PREVIEWS, TENSORBOARD = "previews", "tensorboard"
STEPS = "step_*"
"""Pattern of what `step_name` returns, with a suffix or without."""


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a training run, by its configuration file."""
    return (folder / CONFIG).exists()


def is_saved(folder: Path) -> bool:
    """Return whether a folder is that of a run or of a saved system."""
    return (folder / SPEC).is_file()


def weights_file(path: Path) -> Path:
    """Return a path if it is that of a file, or the file of weights in the folder of a run or a saved system."""
    return path / WEIGHTS if path.is_dir() else path


def step_name(step: int) -> str:
    """Return the name of a checkpoint or preview of a step."""
    return f"step_{step:08d}"


def step_of(path: Path) -> int:
    """Return the step in the name of a checkpoint or preview."""
    return int(path.stem.removeprefix("step_"))
