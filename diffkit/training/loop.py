"""`diffkit.train`: check all arguments, begin or resume a run, update until done or stopped, write checkpoints."""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar, Unpack

import attrs
import numpy as np
import torch

from diffkit._version import __version__
from diffkit.data.base import Batch, Data
from diffkit.data.loading import as_data
from diffkit.data.matching import counted_as
from diffkit.data.ranges import range_of
from diffkit.errors import CheckpointError, DataError, DiffkitError, DivergedError, OptionError, ProcessLostError
from diffkit.runtime.distributed import Ranks, is_lost
from diffkit.runtime.run_layout import CHECKPOINTS, step_name
from diffkit.system.saving import write
from diffkit.training import checkpoint, run_folder
from diffkit.training.batches import batches
from diffkit.training.config import TrainConfig, TrainOptions, unknown
from diffkit.training.data_order import DataOrder
from diffkit.training.engines import Engine, engine_for
from diffkit.training.lock import NAME as LOCK
from diffkit.training.lock import RunLock
from diffkit.training.logs import MetricsFile, bar, has_line, repair, say
from diffkit.training.precision import emulated
from diffkit.training.preflight import Classes, check
from diffkit.training.previews import Previews
from diffkit.training.reading import lost_worker
from diffkit.training.signals import StopSignals
from diffkit.training.trackers import Tracker, Trackers
from diffkit.training.trainable import Trainable
from diffkit.training.trainer import Trainer
from diffkit.training.validation import Held, check_held

T = TypeVar("T", bound=Trainable)
_PATIENCE = 60.0
"""Seconds that a GPU has to finish its queued work, after an error in a job of several processes."""


def train(
    system: T,
    data: Any,
    *,
    out: str | Path,
    val: Any = None,
    config: TrainConfig | None = None,
    progress: bool = True,
    track: Sequence[str | Tracker] = (),
    **options: Unpack[TrainOptions],
) -> T:
    """Train a system, or resume its run, and return it with its averaged weights, ready to sample.

    ``out`` becomes a run: a folder that `diffkit.load` reads (`diffkit.weights.load_classifier` if it is a classifier),
    with metrics and checkpoints. If it is already a run of the same system, data and options, training continues
    after its newest whole checkpoint; on a CPU, bit for bit as if it had never been interrupted. A run of another
    system, data or options is never overwritten or restarted: that is an error.

    SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) save a checkpoint after the current update, and then end the process with
    status 143 or 138, or raise KeyboardInterrupt.

    Under a launcher such as torchrun the processes train together, with ``batch_size`` examples an update between them;
    each calls this function with the same arguments, its system on a device of its own. Levels, noise and the order of
    the data do not depend on the number of processes, and a run may be resumed with another number.

    Args:
        system: A system or a `diffkit.guidance.NoisyClassifier`; it is trained in place, on its device.
        data: Training data: see `diffkit.data.loading.load`, or any class that honours `diffkit.data.MapData`.
        out: Folder of the run.
        val: Held-out data, in the same forms as ``data``; every ``val_every`` updates and at the end its loss and
            other metrics, with the averaged weights, go into the lines of metrics as "val_loss" and so on.
        config: Options of training. Its fields may also be given as keywords, instead of it or to override it.
        progress: Log where files are written and show a bar; False logs warnings only.
        track: Trackers to report to: "tensorboard", "wandb", or any `diffkit.training.Tracker`.
        options: Fields of `TrainConfig`.
    Returns:
        The system, with the running mean of the first EMA rate as its weights, in evaluation mode.
    Raises:
        OptionError: An option is wrong; the folder cannot be written, holds another run, or is in use by another
            process; or memory is exhausted, and the text names what to try.
        DataError: The data does not fit the system or the options.
        SpecError: The system has a part without a registered name, which cannot be saved.
        CheckpointError: The run's checkpoints are damaged, or one cannot be written.
        DivergedError: The loss or gradient was not finite for too many updates in a row.
        MissingExtraError: What ``track`` names is not installed.
    """
    config, trackers = resolved(config, options), Trackers(track)
    found, held_out = as_data(data), None if val is None else as_data(val)
    spec = system.spec()
    check(system, spec, found, config)
    if held_out is not None:
        held_out = counted_as(held_out, found.classes, whose="the data", what="val")
        check_held(system, spec, held_out, config)
    with engine_for(system.device, config) as engine, ExitStack() as held:
        _agree(engine.ranks, spec, config, found, held_out)
        locks: list[RunLock] = []

        def begin() -> tuple[Path, str]:
            folder = run_folder.prepare(out)
            locks.append(held.enter_context(RunLock(folder)))
            assert system.network is not None
            run_folder.check_same(folder, spec, config, found, system.network)
            return folder, locks[0].path.read_text()

        folder, lock = engine.ranks.rank_zero(begin)
        engine.ranks.all_ranks(lambda: _check_shared(folder, lock))
        return _Training(system, spec, found, config, engine, folder, locks, progress, trackers, held_out).go()


def resolved(config: TrainConfig | None, options: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration with options in place of its fields.

    Raises:
        OptionError: An option has no such name, type or value, or steps is missing.
    """
    names = [field.name for field in attrs.fields(TrainConfig)]
    for name in options:
        if name not in names:
            raise OptionError(unknown(name, names))
    if config is not None:
        return attrs.evolve(config, **options)
    if "steps" not in options:
        raise OptionError("train needs steps, the number of updates")
    return TrainConfig(**options)


def _agree(ranks: Ranks, spec: Mapping[str, Any], config: TrainConfig, data: Data, val: Data | None) -> None:
    """Raise unless every process was called with the same system, options and data."""
    if ranks.size == 1:
        return
    others = ranks.gather((spec, config, [None if each is None else run_folder.identity(each) for each in (data, val)]))
    for rank, other in enumerate(others):
        if other[:2] != others[0][:2]:
            raise OptionError(f"process {rank} was called with another system or other options than process 0")
        if other != others[0]:
            raise DataError(f"process {rank} reads other data than process 0: {other[2]}, not {others[0][2]}")


def _check_shared(folder: Path, lock: str) -> None:
    """Raise unless this process sees the lock file of process 0."""
    path = folder / LOCK
    if not path.exists() or path.read_text() != lock:
        raise OptionError(
            f"out {str(folder)!r} is not the same folder in all processes; it must be on a file system that all "
            "machines share"
        )


class _Training(Generic[T]):
    """One call of `train`, from the lock to the end."""

    def __init__(
        self,
        system: T,
        spec: Mapping[str, Any],
        data: Data,
        config: TrainConfig,
        engine: Engine,
        folder: Path,
        locks: list[RunLock],
        progress: bool,
        trackers: Trackers,
        val: Data | None,
    ):
        assert system.network is not None
        self.network = system.network
        self.system, self.spec, self.data, self.config = system, spec, data, config
        self.engine, self.ranks, self.folder, self.locks = engine, engine.ranks, folder, locks
        self.writes = engine.ranks.rank == 0
        self.trackers = trackers if self.writes else Trackers([])
        self.progress = progress and self.writes
        self.checkpoints = folder / CHECKPOINTS
        self.trainer = Trainer(system, self.network, config, engine)
        self.previews, self.held = Previews(folder, self.trainer, data), Held(val, self.trainer)
        self.facts = run_folder.facts(config, data, run_folder.frozen_in(self.network))
        self.saved = 0  # the step of the newest checkpoint

    def go(self) -> T:
        try:
            return self._go()
        finally:
            self.trackers.end()

    def _go(self) -> T:
        with _writing(self.folder):
            self._begin()
        self.ranks.rank_zero(lambda: self.trackers.begin(self.folder, self.trainer.step))
        self._make_up()
        if self.trainer.step < self.config.steps:
            self._train()
        step, device = self.trainer.step, self.engine.device
        self.network.load_state_dict(self.trainer.sampling_weights())
        del self.trainer, self.previews, self.held  # shares, means and moments: the whole network may need their memory
        self.network.to(device)
        self._say(f"done: {step} steps; {run_folder.result(self.spec, self.folder)}")
        return self.system.eval()

    def _train(self) -> None:
        """Make the remaining updates; if anything ends them early, the last complete one is saved first."""
        devices = [self.engine.device] if self.engine.device.type == "cuda" else []
        with torch.random.fork_rng(devices), self._signals() as stop:
            try:
                self._loop(stop)
            except BaseException as error:
                stop.failed = True
                self._rescue(error)
                if (explained := self._explained(error)) is not None:
                    raise explained from error
                raise
        stop.leave()

    def _signals(self) -> StopSignals:
        trainer = self.trainer
        return StopSignals(launched=self.ranks.size > 1, busy=lambda: trainer.busy)

    def _begin(self) -> None:
        """Restore the newest checkpoint, if there is one, and log where files are written."""
        if self.writes:
            run_folder.sweep_folders(self.folder)
        found, faults = self._newest()
        for fault in faults if self.writes else ():
            say(f"warning: {fault}")
        if remark := emulated(self.config.precision, self.engine.device):
            self._say(f"note: {remark}")
        if self.writes and (values := range_of(self.data)) and values.remark:
            self._say(f"note: {values.remark}")
        where, several = str(self.folder), f" in {self.ranks.size} processes" if self.ranks.size > 1 else ""
        if found is None:
            self._say(f"training in {where!r}: {self.config.steps} steps{several}")
        else:
            self.trainer.restore(found.step, found.files)
            self.trainer.names = tuple(found.manifest.get("terms", ()))
            self.saved = found.step
            text = f"continuing {where!r} after step {found.step} of {self.config.steps}{several}"
            (say if faults and self.writes else self._say)(text)
            self._repair(found.step, renewed_soon=bool(faults) and found.step < self.config.steps)
        self.ranks.rank_zero(lambda: run_folder.write_facts(self.folder, self.facts))
        self.ranks.rank_zero(lambda: repair(self.folder, self.trainer.step))

    def _make_up(self) -> None:
        """Complete the work of the newest checkpoint's step, if the run ended there: metrics, preview, pruning."""
        step, config, window = self.trainer.step, self.config, self.trainer.window
        if step == 0 or not self.trainer.names:
            return
        last, due, validates = step == config.steps, step % config.log_every == 0, self.held.due(step)
        if (last or due or validates) and not self.ranks.rank_zero(lambda: has_line(self.folder, step)):
            held = self.held.measure() if validates else {}
            with self._metrics() as metrics:
                self._note(metrics, None, (last or due) and bool(window.rows), held)
        if due:
            window.rows.clear()
        if self.previews.due(step) and not self.ranks.rank_zero(lambda: self.previews.is_there(step)):
            self.trackers.preview(step, self.previews.draw())
        if last:
            self.ranks.rank_zero(self._prune)

    def _metrics(self) -> AbstractContextManager[MetricsFile | None]:
        """The run's file of metrics, which the first process writes."""
        with _writing(self.folder):
            return MetricsFile(self.folder, self.trainer.step) if self.writes else nullcontext()

    def _repair(self, step: int, renewed_soon: bool) -> None:
        """Write the folder's system again, unless it is that of the checkpoint just read.

        Where newer checkpoints are damaged, the system is newer than the checkpoint read; if it is intact, and updates
        remain, it is left until the first save.
        """
        weights = self.trainer.sampling_weights(keep=self.writes)
        fault = self.ranks.rank_zero(lambda: run_folder.fault(self.folder, weights))
        if fault is None or (renewed_soon and not fault.damaged):
            return
        self.ranks.rank_zero(lambda: write(self.spec, weights, self.folder, renews=True, damaged=fault.damaged))
        if self.writes:
            say(f"warning: {fault.text}; it was written again from the checkpoint of step {step}")

    def _newest(self) -> tuple[checkpoint.Checkpoint | None, list[str]]:
        """The newest whole checkpoint and the faults of newer ones, found by the first process."""
        found: list[checkpoint.Checkpoint | None] = []

        def look() -> tuple[int | None, list[str]]:
            newest, faults = checkpoint.read_newest(self.checkpoints)
            found.append(newest)
            return (None if newest is None else newest.step), faults

        step, faults = self.ranks.rank_zero(look)
        if not found and step is not None:
            found.append(checkpoint.read(self.checkpoints / step_name(step)))
        return (found[0] if found else None), faults

    def _loop(self, stop: StopSignals) -> None:
        config, trainer = self.config, self.trainer
        trainer.network.train()
        if config.compile:
            self._say("compiling: the first update takes minutes")
        with (
            self._metrics() as metrics,
            bar(trainer.step, config.steps, self.progress) as shown,
        ):
            clock = _Clock(trainer.step, config.batch_size)
            incoming = self._batches()
            stop.hold_back_children()
            batch = _following(incoming)
            if self.ranks.any(isinstance(batch, Exception)):
                self._fail(batch)
            while isinstance(batch, Batch):
                self._update(batch)
                stop.interrupt()
                shown.advance()
                last, due = trainer.step == config.steps, trainer.step % config.log_every == 0
                # read before the processes agree whether to continue, so that a read error ends all of them
                batch = None if last or stop.requested() else _following(incoming)
                state = self.ranks.largest(_state(stop.requested(), batch))
                if due:
                    trainer.refuse_divergence()
                held = self.held.measure() if self.held.due(trainer.step) else {}
                if due or (held and not last):
                    shown.note(self._note(metrics, clock, due, held))
                if due:
                    trainer.window.rows.clear()
                # one process alone saves as for any other error, so that a full disk does not hide the first error
                ending = state == _STOPS or (state == _FAILS and self.ranks.size > 1)
                if last or ending or trainer.step % config.save_every == 0:
                    if metrics is not None:
                        metrics.sync()
                    self._save()
                if last and not due:  # after the save, which stores the window of metrics for a resumed run
                    shown.note(self._note(metrics, clock, True, held))
                if self.previews.due(trainer.step):
                    self.trackers.preview(trainer.step, self.previews.draw())
                if state == _FAILS:
                    self._fail(batch)
                if state == _STOPS:
                    break
        stop.share(self.ranks)
        if stop.received is not None:
            self._say(f"{stop.received.name}: saved step {trainer.step} in {str(self.folder)!r}; train again to go on")

    def _fail(self, batch: Batch | Exception | None) -> None:
        """Raise in all processes the read error of one of them; all must call it."""

        def read() -> None:
            if isinstance(batch, Exception):
                raise batch

        self.ranks.all_ranks(read)

    def _note(
        self, metrics: MetricsFile | None, clock: _Clock | None, learned: bool, held: Mapping[str, float | None]
    ) -> str:
        """Write a line of metrics to the file and the trackers, and return a short form of it.

        Args:
            metrics: The file, or None where another process writes it.
            clock: Measures the speed, or None.
            learned: Whether to include the means over training steps since the last such line.
            held: Metrics of held-out data, if measured.
        """
        step = self.trainer.step
        line: dict[str, Any] = {"step": step, "samples": step * self.config.batch_size}
        if learned:
            line |= self.trainer.metrics() | (clock.lap(step) if clock else {})
        line |= held
        if metrics is not None:
            metrics.write(line)
        self.trackers.metrics(line)
        words = [f"{name} {_number(line[name])}" for name in ("loss", "val_loss") if name in line]
        return ", ".join([*words, *([f"{line['images_per_s']:.0f} images/s"] if "images_per_s" in line else [])])

    def _update(self, batch: Batch) -> None:
        """Update with one batch; if memory is exhausted, raise an error that names a microbatch to try."""
        try:
            self.trainer.update(batch)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            rows = min(self.config.microbatch or len(batch.images), len(batch.images))
            raise OptionError(
                f"{self.engine.device} has no memory for {rows} examples at a time, at step {self.trainer.step}; the "
                "run continues from its last checkpoint with "
                + ("the same result but for rounding" if rows > 1 else "a smaller network, or on several GPUs"),
                fix={"microbatch": rows // 2} if rows > 1 else {"strategy": "fsdp"},
            ) from error

    def _batches(self) -> Iterator[Batch]:
        config = self.config
        return batches(
            self.data,
            DataOrder(len(self.data), config.batch_size, config.seed),
            self.trainer.step,
            config.steps,
            rows=self.engine.rows(config.batch_size),
            classes=Classes.of(self.system.parts),
            workers=config.workers,
            locks=self.locks,
            pin=self.engine.device.type == "cuda",
        )

    def _save(self, ranks: Ranks | None = None) -> None:
        """Write a checkpoint, then the system with its current sampling weights, then remove old checkpoints.

        Args:
            ranks: The processes that save; all by default.
        """
        step, ranks = self.trainer.step, self.ranks if ranks is None else ranks
        files = self.engine.share(self.trainer.files())
        checkpoint.write(self.checkpoints, step, files, self._facts(), ranks)
        self.saved = step
        weights = self.trainer.sampling_weights(keep=self.writes)
        ranks.rank_zero(lambda: write(self.spec, weights, self.folder, renews=True))
        ranks.rank_zero(self._prune)

    def _prune(self) -> None:
        with _writing(self.checkpoints):
            checkpoint.prune(self.checkpoints, self.config.keep, self.config.keep_every)

    # ---- when something goes wrong ---------------------------------------------------------------------------------

    def _rescue(self, error: BaseException) -> None:
        """Save the last complete update before an error is raised, if possible, and log where to resume."""
        if not self.writes or (step := self.trainer.step) == 0:
            return
        what, where = type(error).__name__, str(self.folder)
        reason = self._unsaved(error) if self._learned(error) else None
        if reason is None:
            say(f"{what}: saved step {self.saved} in {where!r}; train again to go on")
        else:
            since = f"step {self.saved}" if self.saved else "the beginning"
            say(f"warning: {what}: updates since {since} are lost, {step - self.saved} of them: {reason}")

    def _learned(self, error: BaseException) -> bool:
        """Whether the weights have changed since the newest checkpoint; skipped updates change nothing."""
        skipped = int(self.trainer.in_a_row) if isinstance(error, DivergedError) else 0
        return self.trainer.step - skipped > self.saved

    def _unsaved(self, error: BaseException) -> str | None:
        """Save, or return the reason why that was not possible.

        With several processes, an error may occur in one of them while the others wait for it: so the first process
        saves by itself, which it can if it holds the whole state.
        """
        if not self.engine.replicates:
            return "the weights are shared out among processes that no longer work together"
        if isinstance(cause := error.__cause__, RuntimeError) and _is_out_of_memory(cause):
            traceback.clear_frames(cause.__traceback__)  # they hold the tensors of the failed update
        try:
            if self.ranks.size > 1 and not _is_idle(self.engine.device):
                return f"{self.engine.device} waits for another process"
            reason = self.trainer.to_last_update()
            if reason is None:
                self._save(Ranks())
        except Exception as failure:
            return " ".join(str(failure).split())
        return reason

    def _explained(self, error: BaseException) -> DiffkitError | None:
        """The error to raise instead of one whose message is not enough by itself."""
        if isinstance(error, DivergedError):
            newest = next(checkpoint.newest_first(self.checkpoints), None)
            saved = "no checkpoint was made before"
            if newest is not None:
                saved = f"the last checkpoint is {str(newest)!r}; a new run can begin with its weights (--init)"
            return DivergedError(f"{error}; {saved}")
        if self.ranks.size > 1 and is_lost(error):
            return ProcessLostError("another process of this job ended, see its own error; train again to go on")
        return lost_worker(error) if self.config.workers else None

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
            "world_size": self.ranks.size,
            "engine": self.engine.name,
            "terms": [*self.trainer.names],
            "parts": parts,
            "spec": self.spec,
            "run": self.facts,
        }

    def _say(self, text: str) -> None:
        if self.progress:
            say(text)


_GOES_ON, _STOPS, _FAILS = range(3)
"""State of a run after an update; the largest of all processes counts."""


def _state(stopping: bool, batch: Batch | Exception | None) -> int:
    return _FAILS if isinstance(batch, Exception) else _STOPS if stopping else _GOES_ON


def _following(incoming: Iterator[Batch]) -> Batch | Exception | None:
    """The next batch, or the error that reading it raises, or None at the end."""
    try:
        return next(incoming, None)
    except Exception as error:
        return error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn errors of the operating system into a `CheckpointError` that names the file.

    Raises:
        CheckpointError: Instead of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write {error.filename or folder}: {error.strerror or error}") from error


def _is_idle(device: torch.device) -> bool:
    """Whether a device finishes its queued work within the timeout; one that waits for a lost process never does."""
    if device.type != "cuda":
        return True
    stream, end = torch.cuda.current_stream(device), time.monotonic() + _PATIENCE
    while not (done := bool(stream.query())) and time.monotonic() < end:  # type: ignore[no-untyped-call,unused-ignore]
        time.sleep(0.1)
    return done


class _Clock:
    """Measures the speed of training, from one line of metrics to the next."""

    def __init__(self, step: int, batch_size: int):
        self.step, self.batch_size, self.begun = step, batch_size, time.monotonic()

    def lap(self, step: int) -> dict[str, float]:
        """Return the speed since the last lap, and start the next."""
        now = time.monotonic()
        speed = (step - self.step) * self.batch_size / max(now - self.begun, 1e-9)
        self.step, self.begun = step, now
        return {"images_per_s": round(speed, 1)}


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory is exhausted; on a CPU torch has no error class for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
