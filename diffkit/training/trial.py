"""What a training would take, found out by a few of its updates on a copy; no file is touched."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import torch
from attrs import frozen

from diffkit._errors import OptionError
from diffkit.data.base import as_data
from diffkit.folders import CHECKPOINTS, step_of
from diffkit.training import checkpoint, run
from diffkit.training.batches import batches
from diffkit.training.checks import Classes, check
from diffkit.training.config import TrainConfig, TrainOptions
from diffkit.training.engines import Engine, engine_for
from diffkit.training.loop import resolved
from diffkit.training.order import DataOrder
from diffkit.training.trainable import Trainable
from diffkit.training.trainer import Trainer

UPDATES = 3
"""Updates that are tried: the first is slower (memory is asked for, kernels are chosen), so the others are timed."""
PATIENCE = 10.0
"""Seconds after whose first update no other is tried."""


@frozen
class DryRun:
    """What a training would take.

    Attributes:
        parameters: Of the network.
        trained: Those of them that are trained.
        device: Where it would run, and in how many processes.
        memory: Peak bytes: of a GPU, what its tensors take; of a CPU, all that the process takes. None if no one can
            tell.
        step_seconds: Of an update, between processes if there are several; pictures and checkpoints not counted.
        steps: Updates in all.
        done: Updates that the run in ``out`` has already.
        examples: In the data.
        batch_size: Examples per update.
        checkpoint: Bytes of one checkpoint.
        kept: Bytes of a finished run: the checkpoints it keeps, and the system.
        loss: Of the first batch, before any update.
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

    @property
    def steps_per_epoch(self) -> float:
        """Updates in which every example is seen once."""
        return self.examples / self.batch_size

    @property
    def seconds(self) -> float:
        """Of all updates that are left."""
        return self.step_seconds * max(self.steps - self.done, 0)

    def __str__(self) -> str:
        """Say it in a few lines."""
        epochs = self.steps / self.steps_per_epoch
        frozen = "" if self.trained == self.parameters else f", {self.trained:,} of them trained"
        done = f", {self.done:,} of them done" if self.done else ""
        speed = self.batch_size / self.step_seconds
        rows = {
            "parameters": f"{self.parameters:,}{frozen}",
            "device": self.device,
            "memory": f"{_bytes(self.memory)} at most" if self.memory is not None else "cannot be measured here",
            "update": f"{_seconds(self.step_seconds)}, {speed:,.1f} images/s",
            "training": f"{self.steps:,} steps{done}, about {_duration(self.seconds)}",
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
    **options: Unpack[TrainOptions],
) -> DryRun:
    """Return what `diffkit.train` with these arguments would take, after a few real updates of a copy of the system.

    Everything that training would refuse before its first update is refused, but nothing is written. The batches are
    the first ones of the run. Under a launcher every process must call it.

    Args:
        system, data, config, options: As in `diffkit.train`.
        out: Folder of the run; only read. A run that is there must be one that this training would continue.
    Raises:
        OptionError, DataError, SpecError, CheckpointError, DivergedError: As `diffkit.train`.
    """
    config = resolved(config, options)
    found, spec = as_data(data), system.spec()
    check(system, spec, found, config)
    done = 0 if out is None else _done(Path(out), spec, config, found, system)
    assert system.backbone is not None
    with engine_for(system.device, config) as engine:
        devices = [engine.device] if engine.device.type == "cuda" else []
        trial = copy.deepcopy(system)
        spared = _reset_memory(engine.device, system)
        with torch.random.fork_rng(devices):
            trainer, seconds, loss = _tried(trial, spec, found, config, engine)
        files = {name: _size(tensors) for name, tensors in trainer.files().items()}
        whole = sum(files.values())
        parameters = [*system.backbone.parameters()]
        return DryRun(
            parameters=sum(p.numel() for p in parameters),
            trained=sum(p.numel() for p in parameters if p.requires_grad),
            device=_where(engine),
            memory=_memory(engine.device, spared),
            step_seconds=max(engine.ranks.gather(seconds)),
            steps=config.steps,
            done=done,
            examples=len(found),
            batch_size=config.batch_size,
            checkpoint=whole,
            kept=whole * _checkpoints(config) + files["model"],
            loss=loss,
        )


def _done(folder: Path, spec: Mapping[str, Any], config: TrainConfig, data: Any, system: Trainable) -> int:
    """Updates that a run has already; refuses one that would not be continued."""
    if folder.exists() and not folder.is_dir():
        raise OptionError(f"out {str(folder)!r} is a file; choose a folder")
    if not folder.is_dir():
        return 0
    assert system.backbone is not None
    run.check_same(folder, spec, config, data, system.backbone)
    newest = next(checkpoint.newest_first(folder / CHECKPOINTS), None)
    return 0 if newest is None else step_of(newest)


def _tried(
    system: Trainable, spec: Mapping[str, Any], data: Any, config: TrainConfig, engine: Engine
) -> tuple[Trainer, float, float]:
    """A trainer after a few updates, the seconds that one takes, and the first loss."""
    assert system.backbone is not None
    classes = Classes.of(spec)
    trainer = Trainer(system, system.backbone, config, engine, classes.null)
    trainer.network.train()
    times: list[float] = []
    loss = float("nan")
    for batch in batches(
        data,
        DataOrder(len(data), config.batch_size, config.seed),
        0,
        UPDATES,
        rows=engine.rows(config.batch_size),
        num_classes=classes.count,
        workers=min(config.workers, 1),
        locks=[],
        pin=engine.device.type == "cuda",
    ):
        begun = time.perf_counter()
        trainer.update(batch)
        _wait(engine.device)
        times.append(time.perf_counter() - begun)
        if len(times) == 1:
            first = trainer.metrics()["loss"]
            loss = float("nan") if first is None else first
            if engine.ranks.any(times[0] > PATIENCE):
                break
    later = times[1:] or times
    return trainer, sum(later) / len(later), loss


def _checkpoints(config: TrainConfig) -> int:
    """How many checkpoints a finished run has."""
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
    """Begin to measure; return the bytes of the original, which training would not have beside the copy."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    assert system.backbone is not None
    return _size(dict(system.backbone.state_dict()))


def _memory(device: torch.device, spared: int) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device)) - spared
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _seconds(value: float) -> str:
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def _duration(seconds: float) -> str:
    """Such as "40 s", "3 min", "2 h 5 min", "3 days 4 h"."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} days {hours % 24} h"
