"""Reports metrics and pictures to Weights & Biases."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffkit.errors import MissingExtraError, OptionError
from diffkit.registry import registry
from diffkit.runtime.files import write_atomically
from diffkit.runtime.run_layout import CONFIG
from diffkit.runtime.strict_json import read_json
from diffkit.training.hook import Tracker
from diffkit.training.hooks._history import replay_history


@registry("hook").register("wandb")
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
