"""Batches in the order of `DataOrder`, read in this process or ahead of time in worker processes.

Data may draw from the global generators of torch, NumPy and Python as it is read, such as where to crop. They are
seeded for every batch, by the run's seed, the step and the first row that this process reads of it: the draws are the
same with any number of workers, and after an interruption.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from diffkit.data.base import Batch, Data
from diffkit.errors import DataError
from diffkit.system.randomness import Purpose, key, seeded
from diffkit.training.data_order import DataOrder, Indices
from diffkit.training.lock import RunLock
from diffkit.training.preflight import Classes, batch_problems
from diffkit.training.reading import Failure, read, unpacked
from diffkit.training.signals import ignore_signals


class _Reader(Dataset[Batch | Failure]):
    """A dataset whose "items" for torch's loader are whole batches, so that arrays are read in one go.

    In a worker an error is returned, not raised: torch would put a traceback into its text, and lose some errors.
    """

    def __init__(self, data: Data, classes: Classes, in_worker: bool):
        self.data, self.classes, self.in_worker = data, classes, in_worker

    def __getitem__(self, batch: tuple[int, Indices]) -> Batch | Failure:
        try:
            return self._read(*batch)
        except BaseException as error:
            if not self.in_worker:
                raise
            return Failure.of(error)

    def _read(self, seed: int, indices: Indices) -> Batch:
        with seeded(seed):
            batch = read(self.data, indices)
        problem = next(batch_problems(batch, self.data, self.classes), None)
        if problem is not None:
            raise DataError(problem)
        return batch


class _Worker:
    """Initializes a worker process: leaves signals and locks to its parent."""

    def __init__(self, locks: Sequence[RunLock]):
        self.locks = locks

    def __call__(self, worker: int) -> None:
        ignore_signals()
        for lock in self.locks:
            lock.forget()


def batches(
    data: Data,
    order: DataOrder,
    start: int,
    stop: int,
    *,
    rows: slice = slice(None),
    classes: Classes,
    workers: int,
    locks: Sequence[RunLock],
    pin: bool,
) -> Iterator[Batch]:
    """Yield the batches of updates ``start`` to ``stop - 1``.

    Args:
        data: What to read.
        order: Which examples each batch holds.
        start, stop: Range of updates.
        rows: Which examples of each batch; all by default.
        classes: Which labels are allowed.
        workers: Processes that read ahead; 0 reads in this one.
        locks: Locks that this process holds, which workers must not keep alive.
        pin: Put batches where a GPU can fetch them without the host waiting.
    Raises:
        DataError: When a batch is read that cannot be trained on, or cannot be read or sent to a worker.
    """
    loader = DataLoader(
        _Reader(data, classes, in_worker=workers > 0),
        batch_size=None,
        sampler=_Lazy(order, start, stop, rows),
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_Worker(locks) if workers else None,
        generator=torch.Generator(),  # for the one number the loader draws, which must not come from the global one
    )
    return unpacked(_started(loader, workers))


def _started(loader: DataLoader[Batch | Failure], workers: int) -> Iterator[Batch | Failure]:
    """Return a loader's iterator, its workers started; raise if the data cannot be sent to another process."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Got pickle error")  # the error reports it
            return iter(loader)
    except Exception as error:  # pickle raises errors of many kinds, and so does the data's code
        if not workers:
            raise
        raise DataError(
            f"the data cannot be sent to reading processes: {error}; let it hold functions of a module, no lambda "
            "and no open file",
            fix={"workers": 0},
        ) from error


class _Lazy:
    """The seed and the indices of each batch, computed when they are used."""

    def __init__(self, order: DataOrder, start: int, stop: int, rows: slice):
        self.order, self.start, self.stop, self.rows = order, start, stop, rows

    def __iter__(self) -> Iterator[tuple[int, Indices]]:
        first = self.rows.start or 0
        for step in range(self.start, self.stop):
            yield key(self.order.seed, Purpose.DATA, step, first), self.order.batch(step)[self.rows]
