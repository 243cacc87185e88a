"""Time and memory that a run would take, measured on a few updates of a copy; no file is written."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import attrs
import torch
from attrs import frozen

from diffkit.data.base import Batch
from diffkit.data.loading import as_data
from diffkit.errors import OptionError
from diffkit.runtime.output import log
from diffkit.runtime.progress import duration
from diffkit.runtime.run_layout import CHECKPOINTS, step_of
from diffkit.training import checkpoint, run_folder
from diffkit.training.batches import batches
from diffkit.training.config import TrainConfig, TrainOptions
from diffkit.training.data_order import DataOrder
from diffkit.training.engines import Engine, engine_for
from diffkit.training.loop import resolved
from diffkit.training.preflight import Classes, check
from diffkit.training.trainable import Trainable
from diffkit.training.trainer import Trainer

UPDATES = 3
"""Number of trial updates: the first is slower (memory is allocated, kernels are chosen), so the others are timed."""
PATIENCE = 10.0
"""Seconds that these updates may take; if they would take longer, the time is extrapolated from fewer examples."""


@frozen
class DryRun:
    """Time, memory and disk space that a run would take.

    Attributes:
        parameters: Of the network.
        trained: Those of them that are trained.
        device: Where it would run, and in how many processes.
        memory: Peak bytes: of a GPU, that of its tensors; of a CPU, that of the whole process. None if it cannot
            be measured.
        step_seconds: Seconds of an update, with the exchange between processes; previews and checkpoints not counted.
        steps: Updates in all.
        done: Updates that the run in ``out`` has completed already.
        examples: In the data.
        batch_size: Examples per update.
        checkpoint: Bytes of one checkpoint.
        kept: Bytes of a finished run: its stored checkpoints, and the system.
        loss: Of the first batch, before any update.
        tried: Examples per timed update; None is the whole batch.
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

    @property
    def steps_per_epoch(self) -> float:
        """Updates in which every example is seen once."""
        return self.examples / self.batch_size

    @property
    def seconds(self) -> float:
        """Seconds of all remaining updates."""
        return self.step_seconds * max(self.steps - self.done, 0)

    def __str__(self) -> str:
        """Return a few lines of text."""
        epochs = self.steps / self.steps_per_epoch
        frozen = "" if self.trained == self.parameters else f", {self.trained:,} of them trained"
        done = f", {self.done:,} of them done" if self.done else ""
        rate = self.batch_size / self.step_seconds
        speed = f"{rate:,.1f} images/s" if rate >= 1 else f"{rate:.2g} images/s"
        update, memory = f"{_seconds(self.step_seconds)}, {speed}", "cannot be measured here"
        if self.tried is not None:
            update = f"about {duration(self.step_seconds)}, {speed}; {self.tried} of {self.batch_size} examples tried"
            memory = "not measured, as no whole batch was tried; diffkit size estimates it"
        elif self.memory is not None:
            memory = f"{_bytes(self.memory)} at most"
        rows = {
            "parameters": f"{self.parameters:,}{frozen}",
            "device": self.device,
            "memory": memory,
            "update": update,
            "training": f"{self.steps:,} steps{done}, about {duration(self.seconds)}",
            "epoch": f"{self.examples:,} images, {self.steps_per_epoch:,.1f} steps; {epochs:,.1f} epochs in all",
            "checkpoint": f"{_bytes(self.checkpoint)}; {_bytes(self.kept)} in the end",
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
    **options: Unpack[TrainOptions],
) -> DryRun:
    """Return the time and memory of `diffkit.train` with these arguments, from a few updates of a copy of the system.

    All checks that training makes before its first update are made, but nothing is written. The batches are
    the first ones of the run; on a CPU that is slow for the network, only some of their examples are tried. Under a
    launcher every process must call it.

    Args:
        system, data, config, options: As in `diffkit.train`.
        out: Folder of the run; only read. A run in it must be one that `diffkit.train` would continue.
        progress: Print on standard error which updates are tried.
    Raises:
        OptionError, DataError, SpecError, CheckpointError, DivergedError: As `diffkit.train`.
    """
    config = resolved(config, options)
    found, spec = as_data(data), system.spec()
    check(system, spec, found, config)
    done = 0 if out is None else _done(Path(out), spec, config, found, system)
    assert system.network is not None
    with engine_for(system.device, config) as engine:
        devices = [engine.device] if engine.device.type == "cuda" else []
        spared = _reset_memory(engine.device, system)
        with torch.random.fork_rng(devices):
            trial = _Trial(system, spec, found, config, engine, progress and engine.ranks.rank == 0)
            trainer, seconds, loss, tried = trial.go()
        files = {name: _size(tensors) for name, tensors in trainer.files().items()}
        whole = sum(files.values())
        parameters = [*system.network.parameters()]
        return DryRun(
            parameters=sum(p.numel() for p in parameters),
            trained=sum(p.numel() for p in parameters if p.requires_grad),
            device=_where(engine),
            memory=_memory(engine.device, spared) if tried == config.batch_size else None,
            step_seconds=seconds,
            steps=config.steps,
            done=done,
            examples=len(found),
            batch_size=config.batch_size,
            checkpoint=whole,
            kept=whole * _checkpoints(config) + files["model"],
            loss=loss,
            tried=None if tried == config.batch_size else tried,
        )


def _done(folder: Path, spec: Mapping[str, Any], config: TrainConfig, data: Any, system: Trainable) -> int:
    """Number of completed updates of a run; raises if it could not be continued."""
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"out {str(folder)!r} is a file; choose a folder")
    if not folder.is_dir():
        return 0
    assert system.network is not None
    run_folder.check_same(folder, spec, config, data, system.network)
    newest = next(checkpoint.newest_first(folder / CHECKPOINTS), None)
    return 0 if newest is None else step_of(newest)


class _Tried(NamedTuple):
    """Result of some updates: the trainer after them, seconds of one, the first loss, and the number of examples."""

    trainer: Trainer
    seconds: float
    loss: float
    examples: int


class _Trial:
    """Runs updates on copies of a system, with few examples first where whole batches may take long."""

    def __init__(
        self,
        system: Trainable,
        spec: Mapping[str, Any],
        data: Any,
        config: TrainConfig,
        engine: Engine,
        logs_for_job: bool,
    ):
        self.system, self.data, self.config, self.engine, self.logs_for_job = system, data, config, engine, logs_for_job
        self.classes = Classes.of(system.parts)

    def go(self) -> _Tried:
        """Return the result of updates of the whole batch, or one extrapolated from few examples."""
        whole, size = self.config.batch_size, self.engine.ranks.size
        found: list[_Tried] = []
        while self._may_be_slow() and size < whole and len(found) < 2:
            self._say(f"trying updates of {size} of {whole} examples")
            found = [*found[-1:], self._tried(size, updates=2)]
            expected = _extrapolated(found, whole)
            self._say(
                f"an update of {size} takes {_seconds(found[-1].seconds)}, one of {whole} about "
                f"{duration(expected)}, all about {duration(expected * self.config.steps)}"
            )
            if expected * UPDATES <= PATIENCE:
                break
            size = min(whole, int(size * PATIENCE / 2 / found[-1].seconds))
            if len(found) == 2 or size < 2 * found[-1].examples:
                return found[-1]._replace(seconds=expected)
        found.clear()  # the whole batch may need their memory
        return self._tried(whole, UPDATES)

    def _may_be_slow(self) -> bool:
        """Whether to try few examples first: not on a GPU, nor compiled, which would compile again for another size."""
        return self.engine.device.type != "cuda" and not self.config.compile

    def _tried(self, size: int, updates: int) -> _Tried:
        """Make a few updates of ``size`` examples; the first, slower one is timed only if it takes too long already."""
        micro = self.config.microbatch
        config = attrs.evolve(self.config, batch_size=size, microbatch=None if micro is None else min(micro, size))
        engine, system = self.engine, copy.deepcopy(self.system)
        assert system.network is not None
        trainer = Trainer(system, system.network, config, engine)
        trainer.network.train()
        times: list[float] = []
        loss = float("nan")
        for batch in self._batches(config, updates):
            begun = time.perf_counter()
            trainer.update(batch)
            _wait(engine.device)
            times.append(max(engine.ranks.gather(time.perf_counter() - begun)))
            if len(times) == 1:
                first = trainer.metrics()["loss"]
                loss = float("nan") if first is None else first
                if times[0] > PATIENCE:
                    break
        later = times[1:] or times
        return _Tried(trainer, sum(later) / len(later), loss, size)

    def _batches(self, config: TrainConfig, updates: int) -> Iterator[Batch]:
        return batches(
            self.data,
            DataOrder(len(self.data), config.batch_size, config.seed),
            0,
            updates,
            rows=self.engine.rows(config.batch_size),
            classes=self.classes,
            workers=min(config.workers, 1),
            locks=[],
            pin=self.engine.device.type == "cuda",
        )

    def _say(self, text: str) -> None:
        if self.logs_for_job:
            log(text)


def _extrapolated(found: Sequence[_Tried], size: int) -> float:
    """Seconds of an update of ``size`` examples: on the line through two sizes that were tried, or in proportion."""
    last = found[-1]
    if len(found) == 1:
        return last.seconds * size / last.examples
    slope = max(last.seconds - found[0].seconds, 0.0) / (last.examples - found[0].examples)
    return last.seconds + slope * (size - last.examples)


def _checkpoints(config: TrainConfig) -> int:
    """Number of checkpoints in a finished run."""
    regular, at_the_end = config.steps // config.save_every, config.steps % config.save_every > 0
    newest = min(config.keep - at_the_end, regular)
    if config.keep_every is None:
        return newest + at_the_end
    older = (regular - newest) * config.save_every
    return newest + at_the_end + older // math.lcm(config.save_every, config.keep_every)


def _size(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _where(engine: Engine) -> str:
    several = f", {engine.ranks.size} processes ({engine.name})" if engine.ranks.size > 1 else ""
    if engine.device.type != "cuda":
        return f"{engine.device}, {torch.get_num_threads()} threads{several}"
    return f"{engine.device} ({torch.cuda.get_device_name(engine.device)}){several}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_memory(device: torch.device, system: Trainable) -> int:
    """Reset the peak of memory; return the bytes of the original, which training would not hold besides the copy."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    assert system.network is not None
    return _size(dict(system.network.state_dict()))


def _memory(device: torch.device, spared: int) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device)) - spared
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes on macOS, KiB on Linux


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _seconds(value: float) -> str:
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s" if value < 90 else duration(value)
