"""Bits per dimension of a data set: read batch by batch, over all processes of a launcher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffkit._errors import DataError, OptionError
from diffkit.data.base import Data, scaled
from diffkit.likelihood.ode import OdeLikelihood, ode_likelihood
from diffkit.likelihood.scores import Chunk, Scores, merged, score
from diffkit.options import check_integer
from diffkit.ranks import Ranks
from diffkit.system import System


def chosen(size: int, num: int | None, seed: int) -> NDArray[np.int64]:
    """Return the indices of ``num`` examples out of ``size`` (all if None), ascending; a function of the seed.

    Raises:
        OptionError: There are not so many.
    """
    if num is None:
        return np.arange(size, dtype=np.int64)
    check_integer("num", num, ge=1)
    if num > size:
        raise OptionError(f"num must be <= {size}, the examples in the data, got {num}")
    return np.sort(np.random.default_rng(seed).permutation(size)[:num])


def check_fit(system: System, data: Data, *, classes: int | None) -> None:
    """Raise `DataError` unless data is what the system was made for.

    Args:
        system: The system.
        data: The data.
        classes: How many classes its network needs; None if it has none.
    """
    if tuple(data.shape) != system.data_shape:
        raise DataError(f"the data has shape {tuple(data.shape)}, the system was composed for {system.data_shape}")
    if classes is not None and data.classes is None:
        raise DataError(f"the system has {classes} classes, but the data has no labels; load it with labels")


def score_data(
    system: System,
    data: Data,
    *,
    index: NDArray[np.int64] | None = None,
    labels: bool = False,
    batch_size: int = 64,
    among: Ranks | None = None,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> Scores:
    """Return the variational bound of a data set, in constant memory.

    Args:
        system: The system.
        data: The data.
        index: Which examples; all by default. Levels and noise of each are a function of the seed and its index in the
            data, whatever the batches and processes.
        labels: Give the data's conditions to the network.
        batch_size: Examples that are in memory at a time.
        among: The processes to share the work with; each returns the whole result.
        seed: As in `score`.
        progress: Show a bar, in the first process.
        options: The other options of `diffkit.likelihood.score`.
    """
    index = np.arange(len(data), dtype=np.int64) if index is None else index
    among = among or Ranks()
    mine = index[among.rank :: among.size]
    part = None
    if len(mine):
        chunks = _chunks(system, data, mine, batch_size, labels)
        shown = progress and among.rank == 0
        part = score(system, chunks, indices=mine.tolist(), size=len(mine), seed=seed, progress=shown, **options)
    found = [scores for scores in among.gather(part) if scores is not None]
    if not found:
        raise DataError("there is no data to score")
    return merged(found)


def ode_data(
    system: System,
    data: Data,
    *,
    index: NDArray[np.int64],
    labels: bool = False,
    batch_size: int = 64,
    advance: Callable[[int], None] | None = None,
    **options: Any,
) -> OdeLikelihood:
    """Return the likelihood of examples by the flow ODE, batch by batch; ``options`` are `ode_likelihood`'s."""
    parts = []
    for x_start, conditions in _chunks(system, data, index, batch_size, labels):
        parts.append(ode_likelihood(system, x_start, **conditions, **options))
        if advance is not None:
            advance(len(x_start))
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in _EACH}
    return OdeLikelihood(**joined, meaning=parts[0].meaning, evaluations=sum(part.evaluations for part in parts))


_EACH = ("bits", "probe_error", "draw_error", "latent")


def _chunks(system: System, data: Data, index: NDArray[np.int64], batch_size: int, labels: bool) -> Iterator[Chunk]:
    bins = system.settings.bins
    values = bins if bins is None or isinstance(bins, int) else int(bins["bins"])
    for start in range(0, len(index), check_integer("batch_size", batch_size, ge=1)):
        batch = data.batch(index[start : start + batch_size])
        yield scaled(batch.images, values).to(system.device), batch.conditions if labels else {}
