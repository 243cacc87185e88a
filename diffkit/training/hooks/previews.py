"""Pictures of samples while training goes on: RUN/previews/step_00001000.png."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen

from diffkit.errors import UNSET, DataError, DivergedError, OptionError
from diffkit.options import integer
from diffkit.registry import registry
from diffkit.runtime.files import write_atomically
from diffkit.runtime.images import grid, need_pillow, pixels, png
from diffkit.runtime.output import log
from diffkit.runtime.run_layout import PREVIEWS, step_name
from diffkit.system.conditions import mapped
from diffkit.system.module import System
from diffkit.training.hook import Hook, HookFacts, HookResult, HookState
from diffkit.training.reading_errors import read_examples


@registry("hook").register("previews")
@frozen
class Previews(Hook):
    """Draws samples with the current averaged weights, each from the same noise and conditions.

    The options ``preview_every``, ``preview`` and ``preview_steps`` of training stand for it. Conditions are those of
    examples spread evenly over the data. Trackers get the pictures, too. Data in units of its own is drawn from the
    lowest value of a picture to the highest.

    Attributes:
        every: Updates between pictures, >= 1.
        count: Samples in a picture, >= 1.
        steps: Sampling steps, >= 1; all of a system that has fewer.
    Raises:
        MissingExtraError: Pillow is not installed.
    """

    every: int = integer(1000, ge=1)
    count: int = integer(16, ge=1)
    steps: int = integer(50, ge=1)

    def __attrs_post_init__(self) -> None:
        """Check that pictures can be written."""
        need_pillow("drawing previews")

    def at_begin(self, facts: HookFacts, state: HookState) -> HookResult | None:
        """Refuse what has no pictures; draw the one that is missing where a run resumes."""
        if not isinstance(facts.system, System):
            raise OptionError(
                "a classifier draws no samples, so there is nothing to preview", fix={"preview_every": UNSET}
            )
        if len(facts.data.shape) != 3:
            raise DataError(
                f"previews are of images, but the data has shape {tuple(facts.data.shape)}",
                fix={"preview_every": UNSET},
            )
        return None if facts.step == 0 or _path(facts).exists() else self.after_update(facts, state)

    def after_update(self, facts: HookFacts, state: HookState) -> HookResult | None:
        """Draw a picture if it is due; rank 0 writes it.

        If no sample is finite, a warning is logged instead: an early network may diverge in so few sampling steps.
        """
        if facts.step % self.every:
            return None
        path = _path(facts)
        try:
            samples = self._samples(facts)
        except DivergedError as error:
            log(f"warning: no preview {path}: {error}")
            return None
        if facts.rank != 0 or not self._write(samples, path):
            return None
        return HookResult(picture=path)

    def _samples(self, facts: HookFacts) -> torch.Tensor:
        system, data = facts.system, facts.data
        assert isinstance(system, System), "refused at the start"
        some = read_examples(data, np.linspace(0, len(data) - 1, self.count).round().astype(np.int64))
        conditions: dict[str, Any] = {
            name: mapped(lambda t: t.to(system.device), value) for name, value in some.conditions.items()
        }
        steps = min(self.steps, system.num_steps)
        with facts.averaged() as model, torch.no_grad():
            samples = system.sample(
                self.count, steps=steps, seed=facts.config.seed, model=model, progress=False, **conditions
            )
        return system.to_drawn(samples)

    def _write(self, samples: torch.Tensor, path: Path) -> bool:
        columns = max(1, round(self.count**0.5))
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, png(grid(list(pixels(samples, 256)), columns)))
        except OSError as error:  # a failed preview must not end training
            log(f"warning: cannot write preview {path}: {error}")
            return False
        return True


def _path(facts: HookFacts) -> Path:
    return facts.folder / PREVIEWS / f"{step_name(facts.step)}.png"
