"""Score a data set in bits per dimension: batch by batch, shared between processes, resumable.

scoring = Scoring(system, diffkit.data.load("digits"), keep=Path("parts"))
scoring.bound(levels_per_example=10).mean

A result does not depend on the process that computes it, so any number of processes gives the same, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from attrs import field, frozen
from numpy.typing import NDArray
from torch import Tensor

from diffkit._version import __version__
from diffkit.data.base import Batch, Data, scale_images
from diffkit.errors import DataError, OptionError
from diffkit.evaluation._result_cache import Arrays, ResultCache
from diffkit.likelihood.continuous import ContinuousBound, continuous_bound, merge_bounds
from diffkit.likelihood.ode import OdeLikelihood, ode_likelihood
from diffkit.likelihood.scores import Scores, merge_scores, score
from diffkit.likelihood.stratified_levels import Strata
from diffkit.options import check_integer
from diffkit.runtime.distributed import Ranks
from diffkit.runtime.files import weights_digest
from diffkit.runtime.progress import progress as show_progress
from diffkit.system.codec import check_likelihood
from diffkit.system.module import System


def choose_examples(size: int, num: int | None, seed: int) -> NDArray[np.int64]:
    """Choose the examples to score: return the indices of ``num`` out of ``size`` (all if None), ascending, by seed.

    Raises:
        OptionError: There are fewer examples.
    """
    if num is None:
        return np.arange(size, dtype=np.int64)
    check_integer("num", num, ge=1)
    if num > size:
        raise OptionError(f"must be <= {size}, the examples in the data", option="num", value=num)
    return np.sort(np.random.default_rng(seed).permutation(size)[:num])


def check_data_fits(system: System, data: Data, *, classes: int | None) -> None:
    """Raise `DataError` unless the data to score fits the system, and `OptionError` if it has no likelihood there.

    Args:
        system: The system.
        data: The data.
        classes: Number of classes of its network; None if it has none.
    """
    check_likelihood(system.parts)
    if tuple(data.shape) != system.data_shape:
        raise DataError(f"the data has shape {tuple(data.shape)}, the system was composed for {system.data_shape}")
    if classes is not None and data.classes is None:
        raise DataError(f"the system has {classes} classes, but the data has no labels", fix={"labels": ...})
    if classes is not None and data.classes is not None and len(data.classes) > classes:
        raise DataError(
            f"the data has {len(data.classes)} classes, the system {classes}; give data of the system's classes"
        )
    if classes is not None and (without := data.describe().get("without_class")):
        raise DataError(f"{without} examples of the data have no class; give a class for each, which scores depend on")


PARTS = 256
"""Largest number of parts, whose results are stored and sent between processes; each has the terms of all levels."""
_EACH = ("bits", "probe_error", "draw_error", "latent")
Advance = Callable[[int], None]
Compute = Callable[[NDArray[np.int64], Batch, Advance], Arrays]


@frozen(eq=False)
class Scoring:
    """How a data set is scored: in parts of one or several batches, which the processes take in turn.

    Only a part is in memory at a time.

    Attributes:
        system: The system.
        data: The data.
        index: Indices of the examples; all by default. Levels and noise of an example are a function of the seed and
            its index in the data, and do not depend on batches and processes.
        labels: Pass the data's labels, the condition y, to the network; other conditions are always passed.
        batch_size: Examples on the device at a time. Data is read, shared and stored in parts of that many examples, or
            of a multiple, so that there are at most 256 parts.
        ranks: The processes that share the work, a part at a time; each returns the whole result, the same for any
            number of processes.
        keep: Folder for the result of each part, from which a stopped call is resumed; none by default.
        progress: Show a progress bar, in rank 0.
    """

    system: System
    data: Data
    index: NDArray[np.int64] | None = None
    labels: bool = False
    batch_size: int = 16
    ranks: Ranks = field(factory=Ranks)
    keep: Path | None = None
    progress: bool = False

    def bound(self, *, seed: int = 0, **options: Any) -> Scores:
        """Return the variational bound.

        Args:
            seed: As in `score`.
            options: The other options of `diffkit.likelihood.score`.
        Raises:
            OptionError: An option is wrong.
            DataError: There is no data, or it does not fit the system.
        """
        every = Strata.of(self.system.table_for(options.get("steps")).num_steps, options.get("levels_per_example"))

        def bound(rows: NDArray[np.int64], batch: Batch, advance: Advance) -> Arrays:
            chunks = ((x_start, given) for x_start, given, _ in self._chunks(rows, batch))
            found = score(self.system, chunks, indices=rows.tolist(), seed=seed, progress=advance, **options)
            return attrs.asdict(found, recurse=False)

        parts = self._compute_all("bits/dim", bound, len(every.first), options | {"seed": seed})
        whole = {"levels_per_example": len(every.first), "values": math.prod(self.system.data_shape)}
        return merge_scores([Scores(**part | whole) for part in parts])

    def continuous(self, *, times_per_example: int = 32, **options: Any) -> ContinuousBound:
        """Return the bound in continuous time; options are those of `diffkit.likelihood.continuous_bound`."""
        options = options | {"times_per_example": times_per_example}

        def bound(rows: NDArray[np.int64], batch: Batch, advance: Advance) -> Arrays:
            found = [
                continuous_bound(self.system, x_start, indices=here, progress=advance, **given, **options)
                for x_start, given, here in self._chunks(rows, batch)
            ]
            return attrs.asdict(merge_bounds(found), recurse=False)

        parts = self._compute_all("bits/dim", bound, times_per_example + 1, options)
        return merge_bounds([ContinuousBound(**part | {"times_per_example": times_per_example}) for part in parts])

    def flow(self, **options: Any) -> OdeLikelihood:
        """Return the likelihood by the flow ODE; options are those of `diffkit.likelihood.ode_likelihood`.

        The solver's steps are shared by a batch, so the batch size changes the last digits; the processes do not.
        """

        def exact(rows: NDArray[np.int64], batch: Batch, advance: Advance) -> Arrays:
            found = list[OdeLikelihood]()
            for x_start, given, here in self._chunks(rows, batch):
                found.append(ode_likelihood(self.system, x_start, indices=here, **given, **options))
                advance(len(x_start))
            arrays = {name: torch.cat([getattr(f, name) for f in found]).detach().cpu().numpy() for name in _EACH}
            return arrays | {"meaning": found[0].meaning, "evaluations": sum(f.evaluations for f in found)}

        parts = self._compute_all("flow ODE", exact, 1, options)
        joined = {name: torch.from_numpy(np.concatenate([part[name] for part in parts])) for name in _EACH}
        evaluations = sum(int(part["evaluations"]) for part in parts)
        return OdeLikelihood(**joined, meaning=str(parts[0]["meaning"]), evaluations=evaluations)

    def _compute_all(self, label: str, compute: Compute, units: int, options: Mapping[str, Any]) -> list[Arrays]:
        """Return the results of all parts, in order, in every process."""
        every, ranks = self._parts(), self.ranks
        mine = range(ranks.rank, len(every), ranks.size)
        stored = ResultCache.of(self.keep, self._job(label, options) if self.keep is not None else {})

        def results() -> dict[int, Arrays]:
            found = {}
            total = sum(len(every[number]) for number in mine) * units
            with show_progress(total, label, self.progress and ranks.rank == 0) as advance:
                for number in mine:
                    rows = every[number]
                    batch = self.data.batch(rows)
                    found[number], there = stored.get_or_compute(batch, partial(compute, rows, batch, advance))
                    if there:
                        advance(len(rows) * units)
            return found

        done = {number: part for found in ranks.all_ranks(results) for number, part in found.items()}
        return [done[number] for number in sorted(done)]

    def _chunks(self, rows: NDArray[np.int64], part: Batch) -> Iterator[tuple[Tensor, dict[str, Any], list[int]]]:
        """Yield the batches of a part: clean data on the system's device, conditions, and indices in the data."""
        given = {name: c for name, c in part.conditions.items() if self.labels or name != "y"}
        for start in range(0, len(part.images), self.batch_size):
            here = slice(start, start + self.batch_size)
            x_start = scale_images(part.images[here], self.system.bins).to(self.system.device)
            yield x_start, {name: c[here] for name, c in given.items()}, rows[here].tolist()

    def _parts(self) -> list[NDArray[np.int64]]:
        index = np.arange(len(self.data), dtype=np.int64) if self.index is None else self.index
        if not len(index):
            raise DataError("there is no data to score")
        batch = check_integer("batch_size", self.batch_size, ge=1)
        size = batch * math.ceil(len(index) / (batch * PARTS))
        return [index[start : start + size] for start in range(0, len(index), size)]

    def _job(self, label: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return everything besides the part that its result depends on, for the result cache."""
        return {
            "diffkit": __version__,
            "what": label,
            "system": self.system.spec(),
            "weights": weights_digest(self.system.state_dict(), shapes=True),
            "labels": self.labels,
            "batch_size": self.batch_size,
            "autocast": _autocast(self.system.device),
            "compiled": _is_compiled(self.system),
            "options": dict(options),
        }


def _autocast(device: torch.device) -> str | None:
    """Return the dtype of an enclosing autocast context, if there is one."""
    return str(torch.get_autocast_dtype(device.type)) if torch.is_autocast_enabled(device.type) else None


def _is_compiled(system: System) -> bool:
    """Whether `nn.Module.compile` was called on the network or a part of it, which changes last digits."""
    return any(getattr(module, "_compiled_call_impl", None) is not None for module in system.modules())
