"""Latents of all examples, computed once before a run: a memory-mapped file of their means and log-variances.

RUN/latents.npy     moments of the latents of each example, (N, 2 C, *S) float32
RUN/latents.npz     the conditions of each example, if all of them are tensors
RUN/latents.json    the record: what they were computed from, and the sizes of the files

The record is written last, so that files of a build that was interrupted are not used, but made again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from diffkit.data.base import Batch, Data, Image, Indices, scale_images
from diffkit.data.cache import MemoryMappedArray, reserve_disk_space
from diffkit.errors import CheckpointError
from diffkit.protocols import AutoencoderCodec
from diffkit.runtime.files import replacing, write_atomically
from diffkit.runtime.progress import progress as show_progress
from diffkit.runtime.strict_json import reason
from diffkit.system.codec import moments
from diffkit.system.module import System
from diffkit.system.saving import frozen_records, part_spec
from diffkit.training.config import TrainConfig
from diffkit.training.reading_errors import read_examples
from diffkit.training.trainable import Trainable

MOMENTS, CONDITIONS, RECORD = "latents.npy", "latents.npz", "latents.json"
_AT_A_TIME = 64


class LatentData(Data):
    """Data whose examples are moments of latents, with the conditions of other data.

    Args:
        data: The other data.
        moments: Moments of all of its examples.
        conditions: Their conditions; None if they are read from the data.
        shape: Shape of the moments of one example.
    """

    def __init__(
        self,
        data: Data,
        moments: MemoryMappedArray,
        conditions: Mapping[str, Tensor] | None,
        shape: tuple[int, ...],
    ):
        self.data, self.moments, self.conditions = data, moments, conditions
        self.shape, self.bins, self.classes = shape, None, data.classes
        self.deterministic, self.sequential = True, data.sequential

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Image, Mapping[str, Any]]:
        """Return the moments of example ``index``, and its conditions."""
        found = self.batch([index])
        return found.images[0], {name: value[0] for name, value in found.conditions.items()}

    def batch(self, indices: Indices) -> Batch:
        """Return the moments of the examples with these indices, and their conditions."""
        rows = np.asarray(indices, dtype=np.int64)
        images, at = torch.from_numpy(self.moments[rows]), torch.from_numpy(rows)
        if self.conditions is None:
            return self.data.batch(rows)._replace(images=images)
        return Batch(at, images, {name: value[at] for name, value in self.conditions.items()})


def caches_latents(system: Trainable, data: Data, config: TrainConfig) -> bool:
    """Return whether a run computes the latents of its data once, as they are the same in every epoch."""
    return (
        config.cache_latents
        and isinstance(system, System)
        and isinstance(system.parts.codec, AutoencoderCodec)
        and bool(data.deterministic)
        and config.flip == 0
    )


def write_latents(system: System, data: Data, folder: Path, show: bool) -> None:
    """Write the moments of the latents of all examples into the folder of a run, unless they are there.

    Raises:
        CheckpointError: The files cannot be written.
    """
    record = _record(system, data)
    if _is_there(folder, record):
        return
    channels, *sizes = system.parts.data_shape
    shape = (len(data), 2 * channels, *sizes)
    try:
        with replacing(folder / MOMENTS) as temporary:
            array = open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
            reserve_disk_space(temporary)
            conditions = _encode(system, data, array, show)
            array.flush()
            del array
        if conditions is not None:
            with replacing(folder / CONDITIONS) as temporary, temporary.open("wb") as file:
                np.savez(file, **{name: value.numpy() for name, value in conditions.items()})  # type: ignore[arg-type]  # its stub
        sizes_of = {name: _size(folder / name) for name in (MOMENTS, CONDITIONS)}
        write_atomically(
            folder / RECORD, json.dumps({**record, "conditions": conditions is not None, **sizes_of}).encode()
        )
    except OSError as error:
        need = 4 * math.prod(shape)
        raise CheckpointError(f"cannot write {folder / MOMENTS}: {reason(error)}; {need} bytes are needed") from error


@torch.no_grad()
def _encode(system: System, data: Data, array: Any, show: bool) -> dict[str, Tensor] | None:
    """Fill in the moments of all examples, and return their conditions, or None if they are not all tensors."""
    found: list[dict[str, Any]] = []
    with show_progress(len(data), "encoding", show) as advance:
        for start in range(0, len(data), _AT_A_TIME):
            rows = range(start, min(start + _AT_A_TIME, len(data)))
            batch = read_examples(data, rows)
            x = scale_images(batch.images, system.bins).to(system.device)
            array[rows.start : rows.stop] = moments(system.parts, x).cpu().numpy()
            found.append(batch.conditions)
            advance(len(rows))
    if not all(isinstance(value, Tensor) for conditions in found for value in conditions.values()):
        return None
    joined = {name: torch.cat([conditions[name] for conditions in found]) for name in found[0]}
    return joined if sum(value.nbytes for value in joined.values()) <= array.nbytes else None


def open_latents(data: Data, system: System, folder: Path) -> LatentData:
    """Return the data with the latents that `write_latents` wrote."""
    conditions = None
    if json.loads((folder / RECORD).read_text())["conditions"]:
        with np.load(folder / CONDITIONS, allow_pickle=False) as arrays:
            conditions = {name: torch.from_numpy(arrays[name]) for name in arrays}
    channels, *sizes = system.parts.data_shape
    return LatentData(data, MemoryMappedArray(folder / MOMENTS), conditions, (2 * channels, *sizes))


def _record(system: System, data: Data) -> dict[str, Any]:
    """What latents are computed from; the run's own checks compare the data itself."""
    codec = part_spec("codec", system.settings.codec)
    facts = {"codec": codec, "data": data.describe(), **frozen_records(system.frozen)}
    return {"key": hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()}


def _is_there(folder: Path, record: Mapping[str, Any]) -> bool:
    try:
        known = json.loads((folder / RECORD).read_text())
        return all(known.get(name) == value for name, value in record.items()) and all(
            known.get(name) == _size(folder / name) for name in (MOMENTS, CONDITIONS)
        )
    except (OSError, ValueError, AttributeError):
        return False


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
