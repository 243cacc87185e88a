"""Other programs that follow a training: TensorBoard, Weights & Biases, or any object that is a `Tracker`.

RUN/metrics.jsonl stays the record. A tracker is told the same numbers, and the pictures of RUN/previews, as they come.
One that begins to follow a run later is told first what went before.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from diffkit.errors import MissingExtraError, OptionError, did_you_mean
from diffkit.runtime.files import write_atomically
from diffkit.runtime.images import open_image
from diffkit.runtime.run_layout import CONFIG, PREVIEWS, STEPS, TENSORBOARD, step_of
from diffkit.runtime.strict_json import read_json
from diffkit.training.logs import read_metrics, say

_QUARTILE = re.compile(r".*_q\d")


@runtime_checkable
class Tracker(Protocol):
    """Follows a training, in the first of its processes; ``step`` counts completed updates everywhere."""

    def begin(self, folder: Path, step: int) -> None:
        """Hear that the run in ``folder`` begins, or goes on, after ``step`` updates; what it knew of later is void."""

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Hear a line of metrics: "step", and numbers by name, None where one is not finite."""

    def preview(self, step: int, path: Path) -> None:
        """Hear of a picture of samples, a PNG file."""

    def end(self) -> None:
        """Hear that training ends, for good or not."""


class TensorBoard(Tracker):
    """Writes RUN/tensorboard; a run that goes on hides what it wrote of later steps before.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "tracking with TensorBoard") from error
        self._open: Callable[..., Any] = SummaryWriter
        self.writer: Any = None

    def begin(self, folder: Path, step: int) -> None:
        """Open the folder of the run."""
        where = folder / TENSORBOARD
        known = any(where.glob("events.*"))
        self.writer = self._open(str(where), purge_step=step + 1 if known else None)
        if not known:
            tell_history(self, folder, step)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Write scalars, means over quartiles of the levels under a heading of their own."""
        for name, value in line.items():
            if name != "step" and value is not None:
                self.writer.add_scalar(f"quartiles/{name}" if _QUARTILE.fullmatch(name) else name, value, line["step"])
        self.writer.flush()  # a killed training must not have written less than its checkpoint knows

    def preview(self, step: int, path: Path) -> None:
        """Write a picture."""
        import numpy as np

        with open_image(path) as image:
            self.writer.add_image("previews", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def end(self) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()


class WandB(Tracker):
    """Reports to Weights & Biases as one run, whose name is in RUN/wandb.json; steps that it has already it ignores.

    WANDB_PROJECT (diffkit by default), WANDB_ENTITY, WANDB_MODE and its other environment variables decide where to.

    Raises:
        MissingExtraError: wandb is not installed.
    """

    def __init__(self) -> None:
        try:
            import wandb  # type: ignore[import-not-found,unused-ignore]
        except ImportError as error:
            raise MissingExtraError("wandb", "tracking with Weights & Biases") from error
        self._wandb: Any = wandb
        self.run: Any = None

    def begin(self, folder: Path, step: int) -> None:
        """Begin the run, or go on with it.

        Raises:
            OptionError: It cannot be begun, such as for want of a login.
        """
        name = folder / "wandb.json"
        known = name.exists()
        if not known:
            write_atomically(name, (json.dumps({"id": secrets.token_hex(4)}) + "\n").encode())
        try:
            self.run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", "diffkit"),
                name=folder.resolve().name,
                id=read_json(name, OptionError)["id"],
                resume="allow",
                dir=str(folder),
                config=read_json(folder / CONFIG, OptionError),
            )
        except Exception as error:  # wandb has several errors of its own
            raise OptionError(f"wandb cannot begin: {error}; WANDB_MODE=offline needs no login") from error
        if not known:
            tell_history(self, folder, step)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Report numbers."""
        self.run.log({name: value for name, value in line.items() if value is not None}, step=line["step"])

    def preview(self, step: int, path: Path) -> None:
        """Report a picture."""
        self.run.log({"previews": self._wandb.Image(str(path))}, step=step)

    def end(self) -> None:
        """Send what is left."""
        if self.run is not None:
            self.run.finish()


KNOWN: Mapping[str, Callable[[], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}
"""Trackers by name."""


class Trackers:
    """All that follow one training; one that fails is left behind with a warning, training goes on.

    Args:
        chosen: Names, or trackers.
    Raises:
        OptionError: No tracker has that name, or it is none.
        MissingExtraError: What it needs is not installed.
    """

    def __init__(self, chosen: Sequence[str | Tracker]):
        if isinstance(chosen, str):
            raise OptionError(f"track must be a list, got {chosen!r}; write [{chosen!r}]")
        self.all = [_tracker(one) for one in chosen]

    def begin(self, folder: Path, step: int) -> None:
        """Tell all of them; here an error still stops the training."""
        for one in self.all:
            one.begin(folder, step)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Tell all of them."""
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self._tell(lambda one: one.metrics(plain))

    def preview(self, step: int, path: Path) -> None:
        """Tell all of them."""
        self._tell(lambda one: one.preview(step, path))

    def end(self) -> None:
        """Tell all of them."""
        self._tell(lambda one: one.end())

    def _tell(self, tell: Callable[[Tracker], None]) -> None:
        for one in list(self.all):
            try:
                tell(one)
            except Exception as error:  # whatever another program does, it must not end a training
                self.all.remove(one)
                say(f"warning: {type(one).__name__} failed and is told no more: {error}")


def tell_history(tracker: Tracker, folder: Path, step: int) -> None:
    """Tell a tracker what a run wrote up to ``step``, in order."""
    told: list[tuple[int, int, Mapping[str, Any] | Path]] = [
        *((line["step"], 0, line) for line in read_metrics(folder) if line["step"] <= step),
        *((number, 1, path) for number, path in _previews(folder) if number <= step),
    ]
    for number, _, what in sorted(told, key=lambda each: each[:2]):
        if isinstance(what, Path):
            tracker.preview(number, what)
        else:
            tracker.metrics(what)


def _previews(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in (folder / PREVIEWS).glob(f"{STEPS}.png"):
        yield step_of(path), path


def _tracker(chosen: str | Tracker) -> Tracker:
    if not isinstance(chosen, str):
        if not isinstance(chosen, Tracker):
            raise OptionError(f"{type(chosen).__name__} is no tracker; see diffkit.training.Tracker")
        return chosen
    if chosen not in KNOWN:
        raise OptionError(f"no tracker named {chosen!r}{did_you_mean(chosen, KNOWN)} (known: {', '.join(KNOWN)})")
    return KNOWN[chosen]()
