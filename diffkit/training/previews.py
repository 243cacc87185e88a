"""Pictures of samples while training goes on: RUN/previews/step_00001000.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffkit.data.base import Data
from diffkit.errors import DivergedError
from diffkit.runtime.files import write_atomically
from diffkit.runtime.images import grid, need_pillow, pixels, png
from diffkit.runtime.output import log
from diffkit.runtime.run_layout import PREVIEWS, step_name
from diffkit.system.conditions import mapped
from diffkit.system.module import System
from diffkit.training.reading_errors import read_examples
from diffkit.training.trainer import Trainer


class Previews:
    """Draws previews of samples with the current averaged weights, each from the same noise and conditions.

    Args:
        folder: The run's folder.
        trainer: The trainer of the run.
        data: Its training data; conditions are those of examples spread evenly over it.
    Raises:
        MissingExtraError: ``preview_every`` is set, but Pillow is not installed.
    """

    def __init__(self, folder: Path, trainer: Trainer, data: Data):
        self.folder, self.trainer, self.data = folder / PREVIEWS, trainer, data
        self.every, self.count = trainer.config.preview_every, trainer.config.preview
        if self.every is not None:
            need_pillow("drawing previews")

    def due(self, step: int) -> bool:
        """Return whether a preview is drawn after this step."""
        return self.every is not None and step % self.every == 0

    def is_there(self, step: int) -> bool:
        """Return whether the preview of a step exists."""
        return self._path(step).exists()

    def _path(self, step: int) -> Path:
        return self.folder / f"{step_name(step)}.png"

    def draw(self) -> Path:
        """Draw one preview and return its path; all processes must call it, and the first one writes the file.

        If no sample is finite, a warning is logged instead: an early network may diverge in so few sampling steps.
        """
        path = self._path(self.trainer.step)
        try:
            samples = self._samples()
        except DivergedError as error:
            log(f"warning: no preview {path}: {error}")
        else:
            self.trainer.engine.ranks.rank_zero(lambda: self._write(samples, path))
        return path

    def _samples(self) -> torch.Tensor:
        trainer, config = self.trainer, self.trainer.config
        system, seed = trainer.system, config.seed
        assert isinstance(system, System), "checks refuse previews of anything else"
        some = read_examples(self.data, np.linspace(0, len(self.data) - 1, self.count).round().astype(np.int64))
        conditions: dict[str, Any] = {
            name: mapped(lambda t: t.to(system.device), value) for name, value in some.conditions.items()
        }
        steps = min(config.preview_steps, system.num_steps)
        with trainer.averaged(), torch.no_grad():
            return system.sample(
                self.count, steps=steps, seed=seed, model=trainer.eval_model, progress=False, **conditions
            )

    def _write(self, samples: torch.Tensor, path: Path) -> None:
        columns = max(1, round(self.count**0.5))
        try:
            self.folder.mkdir(exist_ok=True)
            write_atomically(path, png(grid(list(pixels(samples, 256)), columns)))
        except OSError as error:  # a failed preview must not end training
            log(f"warning: cannot write preview {path}: {error}")
