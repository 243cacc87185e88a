"""`diffkit.train`: check everything, continue or begin a run, update until done or told to stop, keep what matters."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

import attrs
import numpy as np
import torch

from diffkit import __version__
from diffkit._errors import DivergedError, OptionError, did_you_mean
from diffkit.data.base import Batch, Data, as_data
from diffkit.system import System
from diffkit.training import checkpoint, run
from diffkit.training.batches import batches
from diffkit.training.checks import Classes, check
from diffkit.training.config import TrainConfig, TrainOptions
from diffkit.training.engine import Engine, engine_for
from diffkit.training.lock import RunLock
from diffkit.training.logs import MetricsFile, bar, say
from diffkit.training.order import DataOrder
from diffkit.training.signals import StopSignals
from diffkit.training.trainer import Trainer


def train(
    system: System,
    data: Any,
    *,
    out: str | Path,
    config: TrainConfig | None = None,
    progress: bool = True,
    **options: Unpack[TrainOptions],
) -> System:
    """Train a system, or go on training it, and return it with its averaged weights, ready to sample.

    ``out`` becomes a run: a folder that `diffkit.load` reads, with metrics and checkpoints. If it is one already, of
    the same system, data and options, training continues after its newest whole checkpoint; on a CPU, as if it had
    never been interrupted, to the bit. Nothing is overwritten and nothing starts again unasked.

    SIGTERM and SIGINT (Ctrl-C) save a checkpoint after the current update, and then end the process with status 143 or
    raise KeyboardInterrupt.

    Args:
        system: What to train; it is trained in place, where it is.
        data: What to train on: see `diffkit.data.load`, or any class that honours `diffkit.data.MapData`.
        out: Folder of the run.
        config: How to train. Any of its fields may be given as keywords instead, or beside it to override it.
        progress: Say where things go and show a bar; False is silent but for warnings.
        options: Fields of `TrainConfig`.
    Returns:
        The system, with the first of the EMA rates as its weights, in evaluation mode.
    Raises:
        OptionError: An option is wrong, the folder cannot be written or is another run's, or someone writes to it.
        DataError: The data does not fit the system or the options.
        SpecError: The system has a part that no name can rebuild.
        CheckpointError: The run's checkpoints are damaged, or one cannot be written.
        DivergedError: The loss or gradient was not finite for too many updates in a row.
    """
    config = resolved(config, options)
    found = as_data(data)
    spec = system.spec()
    check(system, spec, found, config)
    engine = engine_for(system.device, config.precision)
    folder = run.prepare(out)
    with RunLock(folder) as lock:
        run.check_same(folder, spec, config, found)
        return _Training(system, spec, found, config, engine, folder, lock, progress).go()


def resolved(config: TrainConfig | None, options: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration with options in place of its fields.

    Raises:
        OptionError: An option has no such name, type or value, or steps is missing.
    """
    names = [field.name for field in attrs.fields(TrainConfig)]
    for name in options:
        if name not in names:
            raise OptionError(f"train has no option {name!r}{did_you_mean(name, names)} (known: {', '.join(names)})")
    if config is not None:
        return attrs.evolve(config, **options)
    if "steps" not in options:
        raise OptionError("train needs steps, the number of updates")
    return TrainConfig(**options)


class _Training:
    """One call of `train`, from the lock to the end."""

    def __init__(
        self,
        system: System,
        spec: Mapping[str, Any],
        data: Data,
        config: TrainConfig,
        engine: Engine,
        folder: Path,
        lock: RunLock,
        progress: bool,
    ):
        assert system.backbone is not None
        self.system, self.spec, self.data, self.config = system, spec, data, config
        self.engine, self.folder, self.lock, self.progress = engine, folder, lock, progress
        self.checkpoints = folder / run.CHECKPOINTS
        self.classes = Classes.of(spec)
        self.trainer = Trainer(system, system.backbone, config, engine, self.classes.null)

    def go(self) -> System:
        self._begin()
        if self.trainer.step < self.config.steps:
            devices = [self.engine.device] if self.engine.device.type == "cuda" else []
            try:
                with torch.random.fork_rng(devices), StopSignals() as stop:
                    self._loop(stop)
            except DivergedError as error:
                newest = next(checkpoint.newest_first(self.checkpoints), None)
                kept = "no checkpoint was made before" if newest is None else f"the last checkpoint is {str(newest)!r}"
                raise DivergedError(f"{error}; {kept}") from error
            stop.leave()
        assert self.system.backbone is not None
        self.system.backbone.load_state_dict(dict(self.trainer.sampling_weights()))
        self._say(f"done: {self.trainer.step} steps; diffkit.load({str(self.folder)!r}) has the result")
        return self.system.eval()

    def _begin(self) -> None:
        """Take up the newest checkpoint, if there is one, and say where things go."""
        found, faults = checkpoint.read_newest(self.checkpoints)
        for fault in faults:
            say(f"warning: {fault}")
        where = str(self.folder)
        if found is None:
            self._say(f"training in {where!r}: {self.config.steps} steps")
        else:
            self.trainer.restore(found.step, found.files)
            text = f"continuing {where!r} after step {found.step} of {self.config.steps}"
            (say if faults else self._say)(text)
        run.write_facts(self.folder, self.config, self.data)

    def _loop(self, stop: StopSignals) -> None:
        config, trainer = self.config, self.trainer
        self.system.train()
        with (
            MetricsFile(self.folder, trainer.step) as metrics,
            bar(trainer.step, config.steps, self.progress) as shown,
        ):
            clock = _Clock(trainer.step, config.batch_size)
            for batch in self._batches():
                trainer.update(batch)
                shown.advance()
                stopping = self.engine.any(stop.received is not None)
                last, due = trainer.step == config.steps, trainer.step % config.log_every == 0
                if due:
                    trainer.refuse_divergence()
                    line = trainer.metrics() | clock.lap(trainer.step)
                    metrics.write(line)
                    trainer.window.rows.clear()
                    shown.note(f"loss {_number(line['loss'])}, {line['images_per_s']:.0f} images/s")
                if last or stopping or trainer.step % config.save_every == 0:
                    metrics.sync()
                    self._save()
                if last and not due:  # after the save, which keeps the window open for a run that goes on
                    metrics.write(trainer.metrics() | clock.lap(trainer.step))
                if stopping:
                    break
        if stop.received is not None:
            self._say(f"{stop.received.name}: saved step {trainer.step} in {str(self.folder)!r}; train again to go on")

    def _batches(self) -> Iterator[Batch]:
        config = self.config
        return batches(
            self.data,
            DataOrder(len(self.data), config.batch_size, config.seed),
            self.trainer.step,
            config.steps,
            num_classes=self.classes.count,
            workers=config.workers,
            lock=self.lock,
            pin=self.engine.device.type == "cuda",
        )

    def _save(self) -> None:
        """Write a checkpoint, then the system as it samples now, then remove what is too old."""
        step = self.trainer.step
        checkpoint.write(self.checkpoints, step, self.trainer.files(), self._facts())
        run.write_model(self.folder, self.spec, self.trainer.sampling_weights())
        checkpoint.prune(self.checkpoints, self.config.keep)

    def _facts(self) -> dict[str, Any]:
        parts = {
            kind: part and {k: v for k, v in part.items() if k != "options"}
            for kind, part in self.spec["parts"].items()
        }
        return {
            "diffkit": __version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
            "seed": self.config.seed,
            "world_size": self.engine.world_size,
            "parts": parts,
        }

    def _say(self, text: str) -> None:
        if self.progress:
            say(text)


class _Clock:
    """How fast training is, from one line of metrics to the next."""

    def __init__(self, step: int, batch_size: int):
        self.step, self.batch_size, self.begun = step, batch_size, time.monotonic()

    def lap(self, step: int) -> dict[str, float]:
        """Return the speed since the last lap, and start the next."""
        now = time.monotonic()
        speed = (step - self.step) * self.batch_size / max(now - self.begun, 1e-9)
        self.step, self.begun = step, now
        return {"images_per_s": round(speed, 1)}


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
