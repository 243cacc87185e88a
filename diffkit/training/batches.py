"""Batches in the order of `DataOrder`, read in this process or ahead of time in worker processes.

Data may draw from the global generators of torch, NumPy and Python as it is read, such as where to crop. They are
seeded for every batch, by the run's seed, the step and the first row that this process reads of it: the draws are the
same with any number of workers, and after an interruption.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffkit.data.base import Batch, Data
from diffkit.errors import DataError
from diffkit.system.randomness import Purpose, key, seeded
from diffkit.training.data_order import DataOrder, Indices
from diffkit.training.lock import RunLock
from diffkit.training.preflight import AcceptedLabels, batch_problems
from diffkit.training.reading_errors import WorkerFailure, raise_worker_failures, read_examples
from diffkit.training.signals import ignore_signals

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


class _BatchDataset:
    """A dataset whose items, for torch's DataLoader, are batches, so that one call of the data reads a whole batch.

    In a worker an error is returned, not raised: torch would add a traceback to its text, and lose some errors.
    """

    def __init__(self, data: Data, classes: AcceptedLabels, in_worker: bool):
        self.data, self.classes, self.in_worker = data, classes, in_worker

    def __getitem__(self, batch: tuple[int, Indices]) -> Batch | WorkerFailure:
        if not self.in_worker:
            return self.read(*batch)
        try:
            return self.read(*batch)
        except BaseException as error:
            return WorkerFailure.of(error)

    def read(self, seed: int, indices: Indices) -> Batch:
        with nullcontext() if self.data.deterministic else seeded(seed):
            batch = read_examples(self.data, indices)
        problem = next(batch_problems(batch, self.data, self.classes), None)
        if problem is not None:
            raise DataError(problem)
        return batch


class _WorkerSetup:
    """Sets up a worker process of the DataLoader: it ignores stop signals and closes its copies of the run's locks."""

    def __init__(self, locks: Sequence[RunLock]):
        self.locks = locks

    def __call__(self, worker: int) -> None:
        ignore_signals()
        for lock in self.locks:
            lock.close_inherited()


def batches(
    data: Data,
    order: DataOrder,
    start: int,
    stop: int,
    *,
    rows: slice = slice(None),
    classes: AcceptedLabels,
    workers: int,
    locks: Sequence[RunLock],
    pin: bool,
) -> Generator[Batch, None, None]:
    """Yield the training batches of updates ``start`` to ``stop - 1``; closing it ends the worker processes.

    Args:
        data: The data.
        order: Which examples each batch holds.
        start, stop: Range of updates.
        rows: Which examples of each batch this process reads; all by default.
        classes: The labels that are allowed.
        workers: Number of worker processes that read ahead; 0 reads in this process.
        locks: Locks of this process; workers close their copies, which would outlive it.
        pin: Put batches into pinned memory, from which a GPU copies without the host waiting.
    Raises:
        DataError: A batch cannot be read, cannot be trained on, or cannot be sent to a worker.
    """
    dataset, indices = _BatchDataset(data, classes, in_worker=workers > 0), _BatchIndices(order, start, stop, rows)
    if not workers and not pin:
        return (_as_tensors(dataset.read(*each)) for each in indices)
    from torch.utils.data import DataLoader

    loader: DataLoader[Batch | WorkerFailure] = DataLoader(
        dataset,  # type: ignore[arg-type]  # which needs only items
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        pin_memory=pin,
        worker_init_fn=_WorkerSetup(locks) if workers else None,
        generator=torch.Generator(),  # the loader draws one number, which would change the global generator
    )
    return raise_worker_failures(_start_workers(loader, workers))


def _as_tensors(batch: Batch) -> Batch:
    """Return a batch whose arrays and numbers are tensors, as a DataLoader returns it."""
    if isinstance(batch.images, Tensor) and all(isinstance(each, Tensor) for each in batch.conditions.values()):
        return batch
    from torch.utils.data import default_convert

    found: Batch = default_convert(batch)  # type: ignore[no-untyped-call]
    return found


def _start_workers(loader: DataLoader[Batch | WorkerFailure], workers: int) -> Iterator[Batch | WorkerFailure]:
    """Start the workers of a DataLoader and return its iterator; raise if the data cannot be sent to a process."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Got pickle error")  # the error reports it
            return iter(loader)
    except Exception as error:  # pickle raises errors of many kinds, and so does the data's code
        if not workers:
            raise
        raise DataError(
            f"the data cannot be sent to worker processes: {error}; let it hold functions of a module, no lambda "
            "and no open file",
            fix={"workers": 0},
        ) from error


class _BatchIndices:
    """The seed and the indices of each batch, computed when they are used."""

    def __init__(self, order: DataOrder, start: int, stop: int, rows: slice):
        self.order, self.start, self.stop, self.rows = order, start, stop, rows

    def __iter__(self) -> Iterator[tuple[int, Indices]]:
        first = self.rows.start or 0
        for step in range(self.start, self.stop):
            yield key(self.order.seed, Purpose.DATA, step, first), self.order.batch(step)[self.rows]
