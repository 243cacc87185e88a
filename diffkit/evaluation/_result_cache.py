"""A cache of the results of batches, each written to a file at once, so that a stopped job can be resumed.

A file is named by a digest of everything that its result depends on: the job and the batch. So a result is
never used for other data, weights or options.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen

from diffkit.data.base import Batch
from diffkit.errors import OptionError
from diffkit.runtime.publishing import save_npz
from diffkit.runtime.temporaries import sweep

Arrays = dict[str, Any]
_NAME = re.compile(r"[0-9a-f]{64}\.npz")


@frozen
class ResultCache:
    """Cache of the results of the batches of one job.

    Attributes:
        folder: Folder of the results; None caches nothing.
        job: Everything besides the batch that a result depends on, as text.
    """

    folder: Path | None
    job: str

    @classmethod
    def of(cls, folder: Path | None, job: Mapping[str, Any]) -> ResultCache:
        """Return the cache of a job that is described by plain data.

        Raises:
            OptionError: The data cannot be written as JSON.
        """
        if folder is None:
            return cls(None, "")
        try:
            return cls(folder, json.dumps(job, sort_keys=True))
        except TypeError as error:
            raise OptionError(f"keep works for options that can be written as JSON: {error}; leave it out") from error

    def get_or_compute(self, batch: Batch, compute: Callable[[], Arrays]) -> tuple[Arrays, bool]:
        """Return the result of a batch, computed if it is not in the cache, and whether it was."""
        if self.folder is None:
            return compute(), False
        path = self.folder / f"{self._digest(batch)}.npz"
        found = _read(path)
        if found is not None:
            return found, True
        found = compute()
        self.folder.mkdir(exist_ok=True)
        save_npz(path, **found)
        return found, False

    def _digest(self, batch: Batch) -> str:
        digest = hashlib.sha256(self.job.encode())
        for name, tensor in (("indices", batch.indices), ("images", batch.images), *sorted(batch.conditions.items())):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).tobytes())
        return digest.hexdigest()


def count_results(folder: Path) -> int:
    """Return the number of cached results in a folder."""
    return sum(1 for path in folder.iterdir() if _NAME.fullmatch(path.name)) if folder.is_dir() else 0


def remove_results(folder: Path) -> None:
    """Remove the cached results of a folder, and the folder if it is empty then."""
    if not folder.is_dir():
        return
    sweep(folder)
    for path in folder.iterdir():
        if _NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def _read(path: Path) -> Arrays | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            return dict(loaded)
    except Exception:  # a missing or damaged result is computed again
        return None
