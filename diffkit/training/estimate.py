"""Dry run: an estimate of the time, memory and disk space of a training run, from a few updates of a copy."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import attrs
import torch
from attrs import frozen
from torch import nn

from diffkit.data.base import Batch
from diffkit.data.loading import as_data
from diffkit.errors import OptionError
from diffkit.runtime.output import log
from diffkit.runtime.progress import duration
from diffkit.system.module import System
from diffkit.system.network_calls import network_calls
from diffkit.system.saving import frozen_records
from diffkit.training import checkpoint, run_folder
from diffkit.training.adapting import attach_adapter
from diffkit.training.batches import batches
from diffkit.training.config import TrainConfig, TrainOptions, resolve_config
from diffkit.training.data_order import DataOrder
from diffkit.training.engines import Engine, engine_for
from diffkit.training.optimizer_building import check_optimizer
from diffkit.training.parameter_groups import freezing
from diffkit.training.preflight import AcceptedLabels, check_training, examples_for
from diffkit.training.teacher import find_teacher, teacher_record
from diffkit.training.trainable import Trainable, frozen_of, trained_of
from diffkit.training.trainer import Trainer

UPDATES = 3
"""Number of trial updates. The first one is slower (memory is allocated, kernels are chosen) and is not timed."""
PATIENCE = 10.0
"""Seconds that the trial updates may take; if they would take longer, time is extrapolated from fewer examples."""


@frozen
class DryRun:
    """Result of a dry run: the time, memory and disk space that a training run would take.

    Attributes:
        parameters: Number of the network's parameters.
        trained: Number of its parameters that are trained.
        device: Where the run would be, and in how many processes.
        memory: Peak bytes: of the tensors on a GPU; on a CPU of the whole process, with ``copied``. None if unknown.
        step_seconds: Seconds per update, with the exchange between processes, without previews and checkpoints.
        steps: Total number of updates.
        done: Updates that the run in ``out`` has completed already.
        examples: Number of examples in the data.
        batch_size: Examples per update.
        checkpoint: Bytes of one checkpoint.
        kept: Bytes of a finished run: its stored checkpoints, and the system.
        loss: Loss of the first batch, before any update.
        tried: Examples per timed update; None if that is the whole batch.
        copied: Bytes of memory of the host that a save takes while training goes on, in the process with the most; 0
            without ``async_save``.
        network_calls: Forward passes of an update, where the loss calls the network again; else empty.
    """

    parameters: int
    trained: int
    device: str
    memory: int | None
    step_seconds: float
    steps: int
    done: int
    examples: int
    batch_size: int
    checkpoint: int
    kept: int
    loss: float
    tried: int | None = None
    copied: int = 0
    network_calls: str = ""

    @property
    def steps_per_epoch(self) -> float:
        """Number of updates in which every example is seen once."""
        return self.examples / self.batch_size

    @property
    def seconds(self) -> float:
        """Estimated seconds of all remaining updates."""
        return self.step_seconds * max(self.steps - self.done, 0)

    def __str__(self) -> str:
        """Return the result of the dry run as a few lines of text."""
        epochs = self.steps / self.steps_per_epoch
        frozen = "" if self.trained == self.parameters else f", {self.trained:,} of them trained"
        done = f", {self.done:,} of them done" if self.done else ""
        rate = self.batch_size / self.step_seconds
        speed = f"{rate:,.1f} images/s" if rate >= 1 else f"{rate:.2g} images/s"
        update, memory = f"{_seconds_text(self.step_seconds)}, {speed}", "cannot be measured here"
        if self.tried is not None:
            update = f"about {duration(self.step_seconds)}, {speed}; {self.tried} of {self.batch_size} examples tried"
            memory = "not measured, as no whole batch was tried; diffkit size estimates it"
        elif self.memory is not None:
            memory = f"{_bytes_text(self.memory)} at most"
        copied = f"; {_bytes_text(self.copied)} of host memory for the copy that is written" if self.copied else ""
        rows = {
            "parameters": f"{self.parameters:,}{frozen}",
            "device": self.device,
            "memory": memory,
            **({"passes": self.network_calls} if self.network_calls else {}),
            "update": update,
            "training": f"{self.steps:,} steps{done}, about {duration(self.seconds)}",
            "epoch": f"{self.examples:,} images, {self.steps_per_epoch:,.1f} steps; {epochs:,.1f} epochs in all",
            "checkpoint": f"{_bytes_text(self.checkpoint)}; {_bytes_text(self.kept)} in the end{copied}",
            "loss": f"{self.loss:.4f} at first",
        }
        return "\n".join(f"{name:<11} {text}" for name, text in rows.items())


def dry_run(
    system: Trainable,
    data: Any,
    *,
    out: str | Path | None = None,
    config: TrainConfig | None = None,
    progress: bool = False,
    teacher: System | str | Path | None = None,
    **options: Unpack[TrainOptions],
) -> DryRun:
    """Return an estimate of the time and memory of `diffkit.train`, from a few updates of a copy of the system.

    All checks that training makes before its first update are made, and nothing is written. The batches are the first
    ones of the run; on a slow CPU only some of their examples are used. Under a launcher every process must call it.

    Args:
        system, data, config, options: As in `diffkit.train`.
        out: Folder of the run, which is only read; if it holds a run, `diffkit.train` must be able to resume it.
        progress: Print on standard error which updates are made.
        teacher: As in `diffkit.train`.
    Raises:
        OptionError, DataError, SpecError, CheckpointError, DivergedError: As `diffkit.train`.
    """
    config = resolve_config(config, options)
    if config.adapter is not None and system.network is not None:
        system = system.with_network(copy.deepcopy(system.network))
        attach_adapter(system, config, None, "" if out is None else out)
    if (trained := trained_of(system)) is not None:
        check_optimizer(trained, config)
    found, spec = examples_for(config, as_data(data)), system.spec()
    config = config.for_examples(len(found))
    learns_from = find_teacher(system, config, teacher)
    spec |= teacher_record(learns_from, system, teacher) | frozen_records(frozen_of(system))
    check_training(system, spec, found, config)
    assert trained is not None
    with freezing(trained, config.freeze), engine_for(system.device, config) as engine:
        done = 0 if out is None else _completed_updates(Path(out), spec, config, found, trained)
        devices = [engine.device] if engine.device.type == "cuda" else []
        original = _reset_peak_memory(engine.device, system)
        with torch.random.fork_rng(devices):
            trial = _TrialUpdates(system, spec, found, config, engine, progress and engine.ranks.rank == 0, learns_from)
            trainer, seconds, loss, tried = trial.run()
        files = {name: _tensor_bytes(tensors) for name, tensors in trainer.files().items()}
        whole = sum(files.values())
        copied = _copied_bytes(trainer) if config.async_save else 0
        parameters = [*trained.parameters()]
        return DryRun(
            parameters=sum(p.numel() for p in parameters),
            trained=sum(p.numel() for p in parameters if p.requires_grad),
            device=_device_text(engine),
            memory=_peak_memory(engine.device, original, copied) if tried == config.batch_size else None,
            step_seconds=seconds,
            steps=config.steps,
            done=done,
            examples=len(found),
            batch_size=config.batch_size,
            checkpoint=whole,
            kept=whole * _count_checkpoints(config) + files["model"],
            loss=loss,
            tried=None if tried == config.batch_size else tried,
            copied=copied,
            network_calls=network_calls(system.objective) if isinstance(system, System) else "",
        )


def _completed_updates(
    folder: Path, spec: Mapping[str, Any], config: TrainConfig, data: Any, trained: nn.Module
) -> int:
    """Return the number of completed updates of a run; raise if it cannot be resumed with these arguments."""
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"out {str(folder)!r} is a file; choose a folder")
    if not folder.is_dir():
        return 0
    run_folder.check_same_run(folder, spec, config, data, trained)
    return checkpoint.completed_updates(folder)


class _TimedUpdates(NamedTuple):
    """Result of trial updates: the trainer after them, seconds per update, the first loss, and examples per update."""

    trainer: Trainer
    seconds: float
    loss: float
    examples: int


class _TrialUpdates:
    """Makes trial updates of copies of a system, with few examples first if whole batches may take long."""

    def __init__(
        self,
        system: Trainable,
        spec: Mapping[str, Any],
        data: Any,
        config: TrainConfig,
        engine: Engine,
        logs_for_job: bool,
        teacher: System | None,
    ):
        self.system, self.data, self.config, self.engine, self.logs_for_job = system, data, config, engine, logs_for_job
        self.classes, self.teacher = AcceptedLabels.of(system.parts), teacher

    def run(self) -> _TimedUpdates:
        """Return the result of trial updates with whole batches, or one extrapolated from few examples."""
        whole, size = self.config.batch_size, self.engine.ranks.size
        found: list[_TimedUpdates] = []
        while self._may_be_slow() and size < whole and len(found) < 2:
            self._log(f"trying updates of {size} of {whole} examples")
            found = [*found[-1:], self._time_updates(size, updates=2)]
            expected = _extrapolate_seconds(found, whole)
            self._log(
                f"an update of {size} takes {_seconds_text(found[-1].seconds)}, one of {whole} about "
                f"{duration(expected)}, all about {duration(expected * self.config.steps)}"
            )
            if expected * UPDATES <= PATIENCE:
                break
            size = min(whole, int(size * PATIENCE / 2 / found[-1].seconds))
            if len(found) == 2 or size < 2 * found[-1].examples:
                return found[-1]._replace(seconds=expected)
        found.clear()  # the whole batch may need their memory
        return self._time_updates(whole, UPDATES)

    def _may_be_slow(self) -> bool:
        """Whether to try few examples first: not on a GPU, and not with a network that compiles anew for each size."""
        return self.engine.device.type != "cuda" and not self.config.compile

    def _time_updates(self, size: int, updates: int) -> _TimedUpdates:
        """Make trial updates of ``size`` examples; if the first, slower one exceeds `PATIENCE`, it is the only one."""
        micro = self.config.microbatch
        config = attrs.evolve(self.config, batch_size=size, microbatch=None if micro is None else min(micro, size))
        engine, system = self.engine, copy.deepcopy(self.system)
        trained = trained_of(system)
        assert trained is not None
        trainer = Trainer(system, trained, config, engine, self.teacher)
        trainer.network.train()
        times: list[float] = []
        loss = float("nan")
        with closing(self._batches(config, updates)) as loader:
            for batch in loader:
                begun = time.perf_counter()
                trainer.update(batch)
                _synchronize(engine.device)
                times.append(max(engine.ranks.gather(time.perf_counter() - begun)))
                if len(times) == 1:
                    first = trainer.metrics()["loss"]
                    loss = float("nan") if first is None else first
                    if times[0] > PATIENCE:
                        break
        later = times[1:] or times
        return _TimedUpdates(trainer, sum(later) / len(later), loss, size)

    def _batches(self, config: TrainConfig, updates: int) -> Generator[Batch, None, None]:
        return batches(
            self.data,
            DataOrder(len(self.data), config.batch_size, config.seed, self.data.sequential),
            0,
            updates,
            rows=self.engine.local_slice(config.batch_size),
            classes=self.classes,
            workers=min(config.workers, 1),
            locks=[],
            pin=self.engine.device.type == "cuda",
        )

    def _log(self, text: str) -> None:
        if self.logs_for_job:
            log(text)


def _extrapolate_seconds(found: Sequence[_TimedUpdates], size: int) -> float:
    """Return the seconds of an update of ``size`` examples, on the line through two tried sizes, or in proportion."""
    last = found[-1]
    if len(found) == 1:
        return last.seconds * size / last.examples
    slope = max(last.seconds - found[0].seconds, 0.0) / (last.examples - found[0].examples)
    return last.seconds + slope * (size - last.examples)


def _count_checkpoints(config: TrainConfig) -> int:
    """Number of checkpoints in a finished run."""
    regular, at_the_end = config.steps // config.save_every, config.steps % config.save_every > 0
    newest = min(config.keep - at_the_end, regular)
    if config.keep_every is None:
        return newest + at_the_end
    older = (regular - newest) * config.save_every
    return newest + at_the_end + older // math.lcm(config.save_every, config.keep_every)


def _tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _copied_bytes(trainer: Trainer) -> int:
    """Return the bytes that `CheckpointWriter.save` copies, in the process with the most."""
    files, engine = trainer.files(), trainer.engine
    own = sum(map(_tensor_bytes, engine.share(files).values()))
    if not engine.replicates and engine.ranks.rank == 0:  # which puts the weights of the saved system together
        own += _tensor_bytes(files[trainer.sampling_file])
    return int(max(engine.ranks.gather(own)))


def _device_text(engine: Engine) -> str:
    several = f", {engine.ranks.size} processes ({engine.name})" if engine.ranks.size > 1 else ""
    if engine.device.type != "cuda":
        return f"{engine.device}, {torch.get_num_threads()} threads{several}"
    return f"{engine.device} ({torch.cuda.get_device_name(engine.device)}){several}"


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak_memory(device: torch.device, system: Trainable) -> int:
    """Reset the peak of GPU memory; return the bytes of the original network, which training has no copy of."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    trained = trained_of(system)
    assert trained is not None
    return _tensor_bytes(dict(trained.state_dict()))


def _peak_memory(device: torch.device, original: int, copied: int) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device)) - original
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return copied + peak * (1 if sys.platform == "darwin" else 1024)  # bytes on macOS, KiB on Linux


def _bytes_text(count: int) -> str:
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _seconds_text(value: float) -> str:
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s" if value < 90 else duration(value)
