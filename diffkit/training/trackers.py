"""Experiment trackers: TensorBoard, Weights & Biases, or any object with the methods of `Tracker`.

A tracker receives the metrics of RUN/metrics.jsonl and the pictures of RUN/previews as they are written. A tracker that
is added to a run later receives the earlier metrics and pictures first.
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
from diffkit.runtime.output import log
from diffkit.runtime.run_layout import CONFIG, PREVIEWS, STEPS, TENSORBOARD, step_of
from diffkit.runtime.strict_json import read_json
from diffkit.training.metrics_file import read_metrics

_QUARTILE = re.compile(r".*_q\d")


@runtime_checkable
class Tracker(Protocol):
    """Protocol of an experiment tracker, which rank 0 calls; ``step`` is always the number of completed updates."""

    def begin(self, folder: Path, step: int) -> None:
        """Called when the run in ``folder`` begins, or resumes after ``step`` updates; data of later steps is void."""

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Called with a line of metrics: "step", and numbers by name, None where one is not finite."""

    def preview(self, step: int, path: Path) -> None:
        """Called with the path of a preview, a PNG file."""

    def end(self) -> None:
        """Called when training ends, completed or interrupted."""


class TensorBoard(Tracker):
    """Tracker for TensorBoard, in RUN/tensorboard; a resumed run hides entries of later steps written before.

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
        """Open TensorBoard's folder of the run."""
        where = folder / TENSORBOARD
        exists = any(where.glob("events.*"))
        self.writer = self._open(str(where), purge_step=step + 1 if exists else None)
        if not exists:
            replay_history(self, folder, step)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Write metrics as scalars of TensorBoard, those by quartile of the levels under a heading of their own."""
        for name, value in line.items():
            if name != "step" and value is not None:
                self.writer.add_scalar(f"quartiles/{name}" if _QUARTILE.fullmatch(name) else name, value, line["step"])
        self.writer.flush()  # a killed run must not have written less than its checkpoint

    def preview(self, step: int, path: Path) -> None:
        """Write a preview as an image of TensorBoard."""
        import numpy as np

        with open_image(path) as image:
            self.writer.add_image("previews", np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def end(self) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()


class WandB(Tracker):
    """Tracker for Weights & Biases: one run there, whose id is in RUN/wandb.json; steps that it has are ignored.

    Its environment variables choose the destination: WANDB_PROJECT (diffkit by default), WANDB_ENTITY, WANDB_MODE ...

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
        """Begin or resume the run of Weights & Biases.

        Raises:
            OptionError: It cannot be begun, for example without a login.
        """
        file = folder / "wandb.json"
        exists = file.exists()
        if not exists:
            write_atomically(file, (json.dumps({"id": secrets.token_hex(4)}) + "\n").encode())
        try:
            self.run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", "diffkit"),
                name=folder.resolve().name,
                id=read_json(file, OptionError)["id"],
                resume="allow",
                dir=str(folder),
                config=read_json(folder / CONFIG, OptionError),
            )
        except Exception as error:  # wandb has several errors of its own
            raise OptionError(f"wandb cannot begin: {error}; WANDB_MODE=offline needs no login") from error
        if not exists:
            replay_history(self, folder, step)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Report metrics."""
        self.run.log({name: value for name, value in line.items() if value is not None}, step=line["step"])

    def preview(self, step: int, path: Path) -> None:
        """Report a preview."""
        self.run.log({"previews": self._wandb.Image(str(path))}, step=step)

    def end(self) -> None:
        """Send remaining data."""
        if self.run is not None:
            self.run.finish()


NAMED_TRACKERS: Mapping[str, Callable[[], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}
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
        self.all = [_create_tracker(one) for one in chosen]

    def begin(self, folder: Path, step: int) -> None:
        """Call `begin` of every tracker; an error in it stops training, unlike later errors."""
        for one in self.all:
            one.begin(folder, step)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Pass a line of metrics to every tracker."""
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        self._call_each(lambda one: one.metrics(plain))

    def preview(self, step: int, path: Path) -> None:
        """Pass a preview to every tracker."""
        self._call_each(lambda one: one.preview(step, path))

    def end(self) -> None:
        """End every tracker."""
        self._call_each(lambda one: one.end())

    def _call_each(self, call: Callable[[Tracker], None]) -> None:
        for one in list(self.all):
            try:
                call(one)
            except Exception as error:  # an error in a tracker must not end the run
                self.all.remove(one)
                log(f"warning: {type(one).__name__} failed and is not called again: {error}")


def replay_history(tracker: Tracker, folder: Path, step: int) -> None:
    """Pass a tracker the metrics and previews that a run wrote up to ``step``, in order."""
    history: list[tuple[int, int, Mapping[str, Any] | Path]] = [
        *((line["step"], 0, line) for line in read_metrics(folder) if line["step"] <= step),
        *((number, 1, path) for number, path in _list_previews(folder) if number <= step),
    ]
    for number, _, item in sorted(history, key=lambda each: each[:2]):
        if isinstance(item, Path):
            tracker.preview(number, item)
        else:
            tracker.metrics(item)


def _list_previews(folder: Path) -> Iterator[tuple[int, Path]]:
    for path in (folder / PREVIEWS).glob(f"{STEPS}.png"):
        yield step_of(path), path


def _create_tracker(chosen: str | Tracker) -> Tracker:
    if not isinstance(chosen, str):
        if not isinstance(chosen, Tracker):
            raise OptionError(f"{type(chosen).__name__} is not a tracker; see diffkit.training.Tracker")
        return chosen
    if chosen not in NAMED_TRACKERS:
        raise OptionError(
            f"no tracker named {chosen!r}{did_you_mean(chosen, NAMED_TRACKERS)} (known: {', '.join(NAMED_TRACKERS)})"
        )
    return NAMED_TRACKERS[chosen]()
