"""Saving behind training: a checkpoint's tensors are copied, and a thread writes them while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffkit.runtime.distributed import Ranks, background_ranks
from diffkit.runtime.files import sync_file
from diffkit.runtime.run_layout import CHECKPOINTS, step_name
from diffkit.system.saving import renew
from diffkit.training import checkpoint
from diffkit.training.checkpoint import Files
from diffkit.training.config import TrainConfig
from diffkit.training.metrics_file import NAME as METRICS


class CheckpointWriter:
    """Writes the checkpoints of a run, each followed by the system with its current sampling weights.

    `save` copies the tensors into memory of the host and returns. A thread then serializes, hashes, flushes and renames
    the copies, in the order that makes each file appear whole or not at all. One save is in flight at most: the next
    waits for it. The error of a save is raised by the next call, in every process.

    Args:
        folder: The folder of the run.
        spec: The system's spec.
        config: ``async_save``, ``timeout``, ``keep`` and ``keep_every`` are used.
        ranks: The processes that save together; in the thread they communicate by a group of their own.
    Attributes:
        saved: Step of the newest checkpoint, 0 without any.
        model_record: Record of the weights in the saved system, if known.
    """

    def __init__(self, folder: Path, spec: Mapping[str, Any], config: TrainConfig, ranks: Ranks):
        self.folder, self.spec, self.config, self.ranks = folder, spec, config, ranks
        self.saved = 0
        self.model_record: Mapping[str, Any] | None = None
        self._own_ranks: Ranks | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether a save has failed whose error was not raised yet."""
        return self._error is not None

    def save(self, step: int, files: Files, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Save after ``step`` updates; all processes must call it.

        Args:
            step: Completed updates.
            files: The tensors of the checkpoint that this process writes; see `diffkit.training.checkpoint.write`.
            weights: The system's weights for sampling, in rank 0; they may be one of ``files``.
            facts: Plain data for the checkpoint's manifest.
        Raises:
            CheckpointError: The save before failed; or this one did, without ``async_save``.
        """
        self.wait()
        if not self.config.async_save:
            self._write(step, files, weights, facts, self.ranks)
            return
        if self._own_ranks is None:
            self._own_ranks = background_ranks(self.ranks, self.config.timeout)
        copies = {name: _copied(tensors) for name, tensors in files.items()}
        same = next((copies[name] for name, tensors in files.items() if tensors is weights), None)
        job = step, copies, _copied(weights) if same is None else same, facts, self._own_ranks
        self._thread = threading.Thread(target=self._try_write, args=job, name="save")
        self._thread.start()

    def save_alone(self, step: int, files: Files, weights: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Save in this process, without the others and without a copy, after an error."""
        self._write(step, files, weights, facts, Ranks())

    def wait(self) -> None:
        """Wait for the save in flight, if there is one.

        Raises:
            CheckpointError: It failed, in one process or another; earlier checkpoints are as before.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def prune(self) -> None:
        """Remove old and damaged checkpoints."""
        with checkpoint.write_errors(self.folder / CHECKPOINTS):
            checkpoint.prune(self.folder / CHECKPOINTS, self.config.keep, self.config.keep_every)

    def _try_write(self, *arguments: Any) -> None:
        """Write in the thread; keep an error for the thread that trains."""
        try:
            self._write(*arguments)
        except BaseException as error:
            self._error = error

    def _write(
        self, step: int, files: Files, weights: Mapping[str, Tensor], facts: Mapping[str, Any], ranks: Ranks
    ) -> None:
        """Flush the metrics, then write the checkpoint, then the saved system, then remove old checkpoints."""
        ranks.rank_zero(self._sync_metrics)
        records = checkpoint.write(self.folder / CHECKPOINTS, step, files, facts, ranks)
        self.saved = step
        ranks.rank_zero(lambda: self._write_system(files, weights, records))

    def _sync_metrics(self) -> None:
        with checkpoint.write_errors(self.folder / METRICS):
            sync_file(self.folder / METRICS)

    def _write_system(self, files: Files, weights: Mapping[str, Tensor], records: Mapping[str, Any]) -> None:
        same = next((name for name, tensors in files.items() if tensors is weights), None)
        written = None
        if same is not None:
            name = f"{same}.safetensors"
            written = self.folder / CHECKPOINTS / step_name(self.saved) / name, records[name]
        self.model_record = renew(self.spec, weights, self.folder, before=self.model_record, written=written)
        self.prune()


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors in memory of the host."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
