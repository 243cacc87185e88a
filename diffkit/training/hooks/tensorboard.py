"""Reports metrics and pictures to TensorBoard, in RUN/tensorboard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffkit.errors import MissingExtraError
from diffkit.registry import registry
from diffkit.runtime.images import open_image
from diffkit.runtime.run_layout import TENSORBOARD
from diffkit.training.hook import Tracker
from diffkit.training.hooks._history import replay_history
from diffkit.training.metrics import is_of_quartile


@registry("hook").register("tensorboard")
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
                self.writer.add_scalar(f"quartiles/{name}" if is_of_quartile(name) else name, value, line["step"])
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
