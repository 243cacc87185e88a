"""Experiment trackers: TensorBoard, Weights & Biases, or any object with the methods of `Tracker`.

A tracker receives the metrics of RUN/metrics.jsonl and the pictures of RUN/previews as they are written. One that is
added to a run later first receives the earlier ones.
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
    """Receives the metrics of a run, in the first of its processes; ``step`` counts completed updates everywhere."""

    def begin(self, folder: Path, step: int) -> None:
        """Called when the run in ``folder`` begins or resumes after ``step`` updates; later data is obsolete."""

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Called with a line of metrics: "step", and numbers by name, None where one is not finite."""

    def preview(self, step: int, path: Path) -> None:
        """Called with the path of a picture of samples, a PNG file."""

    def end(self) -> None:
        """Called when training ends, completed or interrupted."""


class TensorBoard(Tracker):
    """Writes RUN/tensorboard; a resumed run hides entries of later steps written before.

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
            replay_history(self, folder, step)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Write scalars, means over quartiles of the levels under a heading of their own."""
        for name, value in line.items():
            if name != "step" and value is not None:
                self.writer.add_scalar(f"quartiles/{name}" if _QUARTILE.fullmatch(name) else name, value, line["step"])
        self.writer.flush()  # a killed run must not have written less than its checkpoint

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
    """Reports to Weights & Biases as one run, whose name is in RUN/wandb.json; steps that it has already are ignored.

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
        """Begin or resume the run.

        Raises:
            OptionError: It cannot be begun, for example without a login.
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
            replay_history(self, folder, step)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Report numbers."""
        self.run.log({name: value for name, value in line.items() if value is not None}, step=line["step"])

    def preview(self, step: int, path: Path) -> None:
        """Report a picture."""
        self.run.log({"previews": self._wandb.Image(str(path))}, step=step)

    def end(self) -> None:
        """Send remaining data."""
        if self.run is not None:
            self.run.finish()


KNOWN: Mapping[str, Callable[[], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}
"""Trackers by name."""


class Trackers:
    """The trackers of a run; one that fails is dropped with a warning, and training continues.

    Args:
        chosen: Names, or trackers.
    Raises:
        OptionError: No tracker has that name, or an object is not a tracker.
        MissingExtraError: A package that it needs is not installed.
    """

    def __init__(self, chosen: Sequence[str | Tracker]):
        if isinstance(chosen, str):
            raise OptionError("must be a list", option="track", value=chosen, fix={"track": [chosen]})
        self.all = [_tracker(one) for one in chosen]

    def begin(self, folder: Path, step: int) -> None:
        """Call `begin` of all of them; here an error still stops training."""
        for one in self.all:
            one.begin(folder, step)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Call all of them."""
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self._tell(lambda one: one.metrics(plain))

    def preview(self, step: int, path: Path) -> None:
        """Call all of them."""
        self._tell(lambda one: one.preview(step, path))

    def end(self) -> None:
        """Call all of them."""
        self._tell(lambda one: one.end())

    def _tell(self, tell: Callable[[Tracker], None]) -> None:
        for one in list(self.all):
            try:
                tell(one)
            except Exception as error:  # an error in a tracker must not end the run
                self.all.remove(one)
                say(f"warning: {type(one).__name__} failed and is not called again: {error}")


def replay_history(tracker: Tracker, folder: Path, step: int) -> None:
    """Pass a tracker the metrics and previews that a run wrote up to ``step``, in order."""
    history: list[tuple[int, int, Mapping[str, Any] | Path]] = [
        *((line["step"], 0, line) for line in read_metrics(folder) if line["step"] <= step),
        *((number, 1, path) for number, path in _previews(folder) if number <= step),
    ]
    for number, _, what in sorted(history, key=lambda each: each[:2]):
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
            raise OptionError(f"{type(chosen).__name__} is not a tracker; see diffkit.training.Tracker")
        return chosen
    if chosen not in KNOWN:
        raise OptionError(f"no tracker named {chosen!r}{did_you_mean(chosen, KNOWN)} (known: {', '.join(KNOWN)})")
    return KNOWN[chosen]()
