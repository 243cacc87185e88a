"""What lies where in the folder of a saved system, and in that of a training run; nothing is read here.

RUN/spec.json, RUN/model.safetensors   a system and its weights: all there is of one that was only saved
RUN/config.json, RUN/config.toml       how a run is trained, on what data; and how the command line was asked for it
RUN/metrics.jsonl                      one line of numbers every few steps
RUN/checkpoints/step_00001000/         everything that continues the training to the bit
RUN/previews/step_00001000.png         samples on the way
RUN/tensorboard/                       what TensorBoard shows of a run that it tracks
"""

from __future__ import annotations

from pathlib import Path

SPEC, WEIGHTS = "spec.json", "model.safetensors"
CONFIG, RECIPE = "config.json", "config.toml"
CHECKPOINTS, MANIFEST = "checkpoints", "manifest.json"
PREVIEWS, TENSORBOARD = "previews", "tensorboard"
STEPS = "step_*"
"""Pattern of what `step_name` returns, with a suffix or without."""


def is_run(folder: Path) -> bool:
    """Return whether a training run is in a folder: nothing else leaves its configuration there."""
    return (folder / CONFIG).exists()


def weights_file(path: Path) -> Path:
    """Return the file of weights that a path means: a file, or that in the folder of a run or a saved system."""
    return path / WEIGHTS if path.is_dir() else path


def step_name(step: int) -> str:
    """Return how what belongs to a step is called."""
    return f"step_{step:08d}"


def step_of(path: Path) -> int:
    """Return the step that something belongs to."""
    return int(path.stem.removeprefix("step_"))
