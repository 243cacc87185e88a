"""`diffkit.train`: check all arguments, begin or resume a run, update until done or stopped, write checkpoints."""

from __future__ import annotations

import platform
import time
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, Unpack

import numpy as np
import torch
from torch import Tensor

from diffkit._version import __version__
from diffkit.data.base import Batch, Data
from diffkit.data.loading import as_data
from diffkit.data.matching import match_classes
from diffkit.data.ranges import range_of
from diffkit.errors import DataError, DiffkitError, DivergedError, OptionError, ProcessLostError
from diffkit.registry.resolve import Slot
from diffkit.runtime.distributed import Ranks, is_lost_process
from diffkit.runtime.output import log
from diffkit.runtime.progress import bar
from diffkit.runtime.run_layout import CHECKPOINTS, step_name
from diffkit.system.module import System
from diffkit.system.saving import frozen_records, renew, renew_frozen
from diffkit.training import checkpoint, run_folder
from diffkit.training.adapting import StoredBase, adapter_attached
from diffkit.training.batches import batches
from diffkit.training.checkpoint_writer import CheckpointWriter
from diffkit.training.config import TrainConfig, TrainOptions, resolve_config
from diffkit.training.data_order import DataOrder
from diffkit.training.engines import Engine, engine_for
from diffkit.training.hook import HookFacts, Tracker
from diffkit.training.latents import caches_latents, open_latents, write_latents
from diffkit.training.lock import NAME as LOCK
from diffkit.training.lock import RunLock
from diffkit.training.metrics_file import MetricsFile, has_metrics_line, repair_metrics
from diffkit.training.optimizer_building import check_optimizer
from diffkit.training.parameter_groups import freezing
from diffkit.training.precision import emulation_warning
from diffkit.training.preflight import AcceptedLabels, check_training, examples_for
from diffkit.training.reading_errors import worker_died_error
from diffkit.training.run_hooks import NamedHook, RunHooks, choose_hooks
from diffkit.training.signals import StopSignals
from diffkit.training.teacher import find_teacher, teacher_record
from diffkit.training.trainable import Trainable, frozen_of, trained_of
from diffkit.training.trainer import Trainer
from diffkit.training.validation import HeldOutData, check_held_out

T = TypeVar("T", bound=Trainable)
_PATIENCE = 60.0
"""Seconds that a GPU has to finish its queued work, after an error in a job of several processes."""
_RESUME_ADVICE = "run the same command again to resume"


def train(
    system: T,
    data: Any,
    *,
    out: str | Path,
    val: Any = None,
    config: TrainConfig | None = None,
    progress: bool = True,
    hooks: Slot = (),
    track: Sequence[str | Tracker] = (),
    teacher: System | str | Path | None = None,
    base: str | Path | None = None,
    **options: Unpack[TrainOptions],
) -> T:
    """Train a system, or resume its run, and return it with its averaged weights, ready to sample.

    ``out`` becomes a run: a folder that `diffkit.load` reads (`diffkit.weights.load_classifier` for a classifier),
    with metrics and checkpoints. If it is already a run of the same system, data and options, training resumes from
    its newest intact checkpoint; on a CPU, bit for bit as if it had never been interrupted. If it is a run of another
    system, data or options, an error is raised and nothing is overwritten.

    SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) save a checkpoint after the current update, and then end the process with
    status 143 or 138, or raise KeyboardInterrupt.

    Under a launcher such as torchrun the processes share each update's ``batch_size`` examples; each process calls this
    function with the same arguments, its system on a device of its own. Levels, noise and the order of the data do not
    depend on the number of processes, and a run may be resumed with another number.

    Args:
        system: A system or a `diffkit.guidance.NoisyClassifier`; it is trained in place, on its device.
        data: Training data: see `diffkit.data.loading.load`, or any class with the members of `diffkit.data.MapData`.
        out: Folder of the run.
        val: Held-out data, in the same forms as ``data``. Every ``val_every`` updates and at the end, its loss and
            metrics with the averaged weights are added to the line of metrics, as "val_loss" and so on.
        config: Options of training. Its fields may also be given as keywords, which override it.
        progress: Log where files are written and show a bar; False logs warnings only.
        hooks: What runs beside the updates, such as "early_stopping", ("gradient_norms", {"depth": 1}), any
            `diffkit.training.Hook`, or a list of these.
        track: Trackers to report to: "tensorboard", "wandb", or any `diffkit.training.Tracker`.
        teacher: The system that a loss learns from, or its folder, if the loss has ``teacher="system"``.
        base: With an adapter: the folder or file that the system was loaded from, which the run then names. By default
            the system is stored in the run's folder.
        options: Fields of `TrainConfig`.
    Returns:
        The system, with the running mean of the first EMA rate as its weights, in evaluation mode.
    Raises:
        OptionError: An option is wrong; the folder cannot be written, holds another run, or is in use by another
            process; or memory is exhausted, and the message says what to try.
        DataError: The data does not fit the system or the options.
        SpecError: The system has a part without a registered name, which cannot be saved.
        CheckpointError: The run's checkpoints are damaged, or one cannot be written.
        DivergedError: The loss or gradient was not finite for too many updates in a row.
        HookError: A hook failed; the last complete update is saved.
        MissingExtraError: A tracker's package is not installed.
    """
    begun, config = time.monotonic(), resolve_config(config, options)
    chosen = choose_hooks(config, hooks, track)
    with adapter_attached(system, config, base, out) as stored:
        if (trained := trained_of(system)) is not None:
            check_optimizer(trained, config)
        found, held_out = examples_for(config, as_data(data)), None if val is None else as_data(val)
        config = config.for_examples(len(found))
        spec, learns_from = system.spec(), find_teacher(system, config, teacher)
        spec |= teacher_record(learns_from, system, teacher) | frozen_records(frozen_of(system))
        check_training(system, spec, found, config)
        if held_out is not None:
            held_out = match_classes(held_out, found.classes, whose="the data", what="val")
            check_held_out(system, spec, held_out, config)
    assert system.network is not None and trained is not None
    with freezing(trained, config.freeze), engine_for(system.device, config) as engine, ExitStack() as stack:
        _check_same_arguments(engine.ranks, spec, config, found, held_out)
        locks: list[RunLock] = []

        def begin() -> tuple[Path, str]:
            folder = run_folder.prepare_folder(out)
            locks.append(stack.enter_context(RunLock(folder)))
            run_folder.check_same_run(folder, spec, config, found, trained)
            return folder, locks[0].path.read_text()

        folder, lock = engine.ranks.rank_zero(begin)
        engine.ranks.all_ranks(lambda: _check_shared(folder, lock))
        return _Training(
            system, spec, found, config, engine, folder, locks, progress, chosen, held_out, begun, learns_from, stored
        ).run()


def _check_same_arguments(
    ranks: Ranks, spec: Mapping[str, Any], config: TrainConfig, data: Data, val: Data | None
) -> None:
    """Raise unless every process called `train` with the same system, options and data."""
    if ranks.size == 1:
        return
    others = ranks.gather(
        (spec, config, [None if each is None else run_folder.data_identity(each) for each in (data, val)])
    )
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
    """The training loop: one call of `train`, after its arguments are checked and its folder is locked."""

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
        hooks: Sequence[NamedHook],
        val: Data | None,
        begun: float,
        teacher: System | None,
        stored_base: StoredBase | None,
    ):
        trained = trained_of(system)
        assert trained is not None
        self.network = trained
        self.system, self.spec, self.data, self.config = system, spec, data, config
        self.engine, self.ranks, self.folder, self.locks = engine, engine.ranks, folder, locks
        self.is_rank_zero = engine.ranks.rank == 0
        self.progress = progress and self.is_rank_zero
        self.checkpoints = folder / CHECKPOINTS
        self.trainer = Trainer(system, self.network, config, engine, teacher)
        self.held_out = HeldOutData(val, self.trainer)
        rank, has_val = self.ranks.rank, val is not None
        facts = HookFacts(
            0, config.steps, folder, config, data, rank, validates=has_val, trainer=self.trainer, begun=begun
        )
        self.hooks = RunHooks(hooks, facts)
        self.trainer.after_backward = self._after_backward if self.hooks.has("after_backward") else None
        self.config_content = run_folder.config_content(config, data, run_folder.frozen_parameters(self.network))
        self.stored_base = stored_base
        self.saves = CheckpointWriter(folder, spec, config, engine.ranks)

    def run(self) -> T:
        hooks = self.hooks
        try:
            return self._run()
        finally:
            hooks.end()

    def _run(self) -> T:
        with checkpoint.write_errors(self.folder):
            self._begin()
        self.ranks.all_ranks(lambda: self.hooks.begin(self.trainer.step))
        self._finish_resumed_step()
        stops = self._share_stop()
        if self.trainer.step < self.config.steps and not stops:
            stops = self._train()
        step, device = self.trainer.step, self.engine.device
        self.hooks.end()
        self.network.load_state_dict(self.trainer.sampling_weights())
        # shards, means and moments: the network may need their memory
        del self.trainer, self.hooks, self.held_out
        self.network.to(device)
        done = f"stopped after step {step} of {self.config.steps} by {stops}" if stops else f"done: {step} steps"
        self._log(f"{done}; {run_folder.result_text(self.spec, self.folder)}")
        return self.system.eval()

    def _train(self) -> str:
        """Make the remaining updates, and return why a hook stopped them, or nothing.

        If an error ends them early, the last complete update is saved first.
        """
        devices = [self.engine.device] if self.engine.device.type == "cuda" else []
        with torch.random.fork_rng(devices), self._signals() as stop:
            try:
                self._loop(stop)
            except BaseException as error:
                stop.failed = True
                self._save_on_error(error)
                if (explained := self._with_explanation(error)) is not None:
                    raise explained from error
                raise
        stop.end_as_signalled()
        return self._share_stop()

    def _share_stop(self) -> str:
        """Return why a hook of any process stops training; empty if none does."""
        if not self.hooks.may_stop:
            return ""
        return next(filter(None, self.ranks.gather(self.hooks.stop)), "")

    def _signals(self) -> StopSignals:
        trainer = self.trainer
        return StopSignals(launched=self.ranks.size > 1, busy=lambda: trainer.busy)

    def _begin(self) -> None:
        """Restore the newest checkpoint, if there is one, and log where files are written."""
        if self.is_rank_zero:
            run_folder.sweep_folders(self.folder)
        found, faults = self._read_newest()
        for fault in faults if self.is_rank_zero else ():
            log(f"warning: {fault}")
        if warning := emulation_warning(self.config.precision, self.engine.device):
            self._log(f"note: {warning}")
        if self.is_rank_zero and self.system.parts.codec is None and (values := range_of(self.data)) and values.remark:
            self._log(f"note: {values.remark}")
        where, several = str(self.folder), f" in {self.ranks.size} processes" if self.ranks.size > 1 else ""
        if found is None:
            self._log(f"training in {where!r}: {self.config.steps} steps{several}")
        else:
            self.trainer.restore(found.step, found.files)
            self.trainer.names = tuple(found.manifest.get("terms", ()))
            self.saves.saved = found.step
            for remark in self.hooks.restore(found.manifest.get("hooks") or {}, found.files["trainer"]):
                self._log(f"note: {remark}")
            text = f"continuing {where!r} after step {found.step} of {self.config.steps}{several}"
            (log if faults and self.is_rank_zero else self._log)(text)
            self._repair_system(found.step, rewritten_soon=bool(faults) and found.step < self.config.steps)
        self.ranks.rank_zero(lambda: renew_frozen(self.spec.get("frozen", {}), frozen_of(self.system), self.folder))
        self.ranks.rank_zero(lambda: run_folder.write_config(self.folder, self.config_content))
        self._cache_latents()
        if self.stored_base is not None:
            self.ranks.rank_zero(partial(self.stored_base.write, self.folder))
            self.stored_base = None
        self.ranks.rank_zero(lambda: repair_metrics(self.folder, self.trainer.step))

    def _finish_resumed_step(self) -> None:
        """After resuming, do what the previous process may not have done after it saved the checkpoint's step.

        That is to write the line of metrics, to draw the preview, and to remove old checkpoints.
        """
        step, config, window = self.trainer.step, self.config, self.trainer.window
        if step == 0 or not self.trainer.names:
            return
        last, due, validates = step == config.steps, step % config.log_every == 0, self.held_out.due(step)
        again = self.hooks.open  # a hook failed, or an error came, before all of them were called
        if again:
            self._call_hooks("after_update")
        wanted = last or due or validates or bool(self.hooks.metrics)
        if wanted and (again or not self.ranks.rank_zero(lambda: has_metrics_line(self.folder, step))):
            val_metrics = self.held_out.measure() if validates else {}
            self._call_hooks("after_validation", val_metrics)
            with self._metrics() as metrics:
                self._log_metrics(metrics, None, (last or due) and bool(window.rows), val_metrics)
        self._raise_hook_error()
        if not again:
            self.hooks.rollback()  # the checkpoint has their states after this step
        self.hooks.metrics = {}
        self.hooks.commit()
        if due:
            window.rows.clear()
        if last:
            self.ranks.rank_zero(self.saves.prune)

    def _metrics(self) -> AbstractContextManager[MetricsFile | None]:
        """Open the run's metrics file in rank 0; None in the other processes."""
        with checkpoint.write_errors(self.folder):
            return MetricsFile(self.folder, self.trainer.step) if self.is_rank_zero else nullcontext()

    def _repair_system(self, step: int, rewritten_soon: bool) -> None:
        """Rewrite the saved system in the folder unless it has the weights of the checkpoint just read.

        It is also rewritten with new defaults of sampling, which training does not depend on.
        If newer checkpoints were damaged, the saved system is ahead of the checkpoint read. An intact one is left until
        the next save rewrites it, if there is one (``rewritten_soon``).
        """
        weights = self.trainer.sampling_weights(keep=self.is_rank_zero)
        fault = self.ranks.rank_zero(lambda: run_folder.find_system_fault(self.folder, weights))
        if fault is None and self.ranks.rank_zero(lambda: run_folder.samples_otherwise(self.folder, self.spec)):
            self.ranks.rank_zero(lambda: renew(self.spec, weights, self.folder))
            self._log(f"note: the defaults of sampling in {str(self.folder)!r} are those of this call now")
        if fault is None or (rewritten_soon and not fault.damaged):
            return
        self.ranks.rank_zero(lambda: renew(self.spec, weights, self.folder, damaged=fault.damaged))
        if self.is_rank_zero:
            log(f"warning: {fault.text}; it was written again from the checkpoint of step {step}")

    def _read_newest(self) -> tuple[checkpoint.Checkpoint | None, list[str]]:
        """Return the newest intact checkpoint, which rank 0 chooses and all processes read, and newer ones' faults."""
        found: list[checkpoint.Checkpoint | None] = []

        def read() -> tuple[int | None, list[str]]:
            newest, faults = checkpoint.read_newest(self.checkpoints)
            found.append(newest)
            return (None if newest is None else newest.step), faults

        step, faults = self.ranks.rank_zero(read)
        if not found and step is not None:
            found.append(checkpoint.read(self.checkpoints / step_name(step)))
        return (found[0] if found else None), faults

    def _loop(self, stop: StopSignals) -> None:
        config, trainer = self.config, self.trainer
        trainer.network.train()
        if config.compile:
            self._log("compiling: the first update takes minutes")
        with (
            self._metrics() as metrics,
            bar(config.steps, "training", self.progress, done=trainer.step) as progress_bar,
            closing(self._load_batches()) as loader,
        ):
            speed = _SpeedMeter(trainer.step, config.batch_size)
            stop.defer_child_errors()
            batch = _next_batch(loader)
            if self.ranks.any(isinstance(batch, Exception)):
                self._raise_in_all(batch)
            while isinstance(batch, Batch):
                self._update(batch)
                self.hooks.commit(open=True)
                stop.raise_deferred()
                progress_bar.advance()
                last, due = trainer.step == config.steps, trainer.step % config.log_every == 0
                self._call_hooks("after_update")
                # read before the processes agree whether to continue, so that a read error ends all of them
                stopping = stop.requested() or bool(self.hooks.stop)
                batch = None if last or stopping else _next_batch(loader)
                state = self.ranks.largest(self._state_of_loop(stopping, batch))
                if state == _HOOK_FAILS:
                    self._raise_hook_error()
                if due:
                    trainer.raise_if_diverged()
                val_metrics = self.held_out.measure() if self.held_out.due(trainer.step) else {}
                if val_metrics:
                    self._call_hooks("after_validation", val_metrics)
                logs = due or ((val_metrics or self.hooks.metrics) and not last)
                if logs:
                    progress_bar.note(self._log_metrics(metrics, speed, due, val_metrics))
                if self.hooks.may_stop and (due or val_metrics or self.ranks.size == 1):
                    state = max(state, self.ranks.largest(self._state_of_loop(bool(self.hooks.stop), None)))
                    if state == _HOOK_FAILS:
                        self._raise_hook_error()
                self.hooks.commit()
                if due:
                    trainer.window.rows.clear()
                # a single process saves in _save_on_error instead, so a failed save cannot hide the read error
                ending = state == _STOPS or (state == _FAILS and self.ranks.size > 1)
                if last or ending or trainer.step % config.save_every == 0:
                    self._save()
                if last and not due:  # after the save, which stores the window of metrics for a resumed run
                    progress_bar.note(self._log_metrics(metrics, speed, True, val_metrics))
                    self._raise_hook_error()
                if state == _FAILS:
                    self.saves.wait()
                    self._raise_in_all(batch)
                if state == _STOPS:
                    break
            self.saves.wait()
        stop.share(self.ranks)
        if stop.received is not None:
            self._log(f"{stop.received.name}: saved step {trainer.step} in {str(self.folder)!r}; {_RESUME_ADVICE}")

    def _call_hooks(self, moment: str, metrics: Mapping[str, Any] | None = None) -> None:
        """Call the hooks of a moment; their states do not change where only the end of the run makes it come."""
        step, config = self.trainer.step, self.config
        if not self.hooks.has(moment):
            return
        every = {"after_validation": config.val_every, "after_line": config.log_every}.get(moment, 1)
        keep = step % every == 0 or (moment == "after_line" and step < config.steps)
        self.hooks.call(moment, step, metrics=metrics, logs=self._logs(step), keep=keep)

    def _logs(self, step: int) -> bool:
        """Whether a line of metrics follows that is due after so many updates."""
        return step % self.config.log_every == 0 or step == self.config.steps

    def _after_backward(self) -> None:
        step = self.trainer.step
        self.hooks.call("after_backward", step, logs=self._logs(step + 1))
        if self.hooks.error is not None:
            raise self.hooks.error

    def _raise_hook_error(self) -> None:
        """Raise the error of a hook of one process in all of them; all must call it."""
        if self.hooks.may_stop:
            self._raise_in_all(self.hooks.error)

    def _raise_in_all(self, found: object) -> None:
        """Raise in all processes what is an error in one of them; all must call it."""

        def check() -> None:
            if isinstance(found, Exception):
                raise found

        self.ranks.all_ranks(check)

    def _log_metrics(
        self,
        metrics: MetricsFile | None,
        speed: _SpeedMeter | None,
        train_metrics: bool,
        val_metrics: Mapping[str, float | None],
    ) -> str:
        """Write a line of metrics to the file and the trackers, and return a short form of it.

        Args:
            metrics: The file, or None where another process writes it.
            speed: Measures the speed, or None.
            train_metrics: Whether to include the means over the updates since the last line that had them.
            val_metrics: Metrics of held-out data; empty if not measured.
        """
        step = self.trainer.step
        line: dict[str, Any] = {"step": step, "samples": step * self.config.batch_size}
        if train_metrics:
            line |= self.trainer.metrics() | (speed.lap(step) if speed else {})
        line |= val_metrics
        line |= self.hooks.take_metrics()
        if metrics is not None:
            metrics.write(line)
        self._call_hooks("after_line", line)
        words = [f"{name} {_metric_text(line[name])}" for name in ("loss", "val_loss") if name in line]
        return ", ".join([*words, *([f"{line['images_per_s']:.0f} images/s"] if "images_per_s" in line else [])])

    def _update(self, batch: Batch) -> None:
        """Make one update; if memory is exhausted, raise an error that names a microbatch to try."""
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

    def _cache_latents(self) -> None:
        """Let the run read latents that are computed once, where it may."""
        system, data = self.system, self.data
        if self.trainer.step >= self.config.steps or not caches_latents(system, data, self.config):
            return
        assert isinstance(system, System), "a classifier has none"
        self.ranks.rank_zero(lambda: write_latents(system, data, self.folder, self.progress))
        self.data, self.trainer.encoded = open_latents(data, system, self.folder), True

    def _load_batches(self) -> Generator[Batch, None, None]:
        config = self.config
        return batches(
            self.data,
            DataOrder(len(self.data), config.batch_size, config.seed, self.data.sequential),
            self.trainer.step,
            config.steps,
            rows=self.engine.local_slice(config.batch_size),
            classes=AcceptedLabels.of(self.system.parts),
            workers=config.workers,
            locks=self.locks,
            pin=self.engine.device.type == "cuda",
        )

    def _state_of_loop(self, stopping: bool, batch: Batch | Exception | None) -> int:
        if self.hooks.error is not None:
            return _HOOK_FAILS
        failing = self.saves.failed or isinstance(batch, Exception)
        return _FAILS if failing else _STOPS if stopping else _CONTINUES

    def _save(self) -> None:
        """Save a checkpoint and then the system with its current sampling weights; see `CheckpointWriter`."""
        self._call_hooks("at_save")
        self._raise_hook_error()
        self.hooks.commit()
        self.saves.save(*self._state())

    def _state(self) -> tuple[int, checkpoint.Files, Mapping[str, Tensor], Mapping[str, Any]]:
        """Return what a save takes: the step, tensors of this process, weights for sampling, facts."""
        files = self.trainer.files()
        files = self.engine.share({**files, "trainer": {**files["trainer"], **self.hooks.tensors()}})
        if self.engine.replicates:
            weights = files.get(self.trainer.sampling_file, {})
        else:
            weights = self.trainer.sampling_weights(keep=self.is_rank_zero)
        return self.trainer.step, files, weights, self._manifest_facts()

    # ---- when something goes wrong ---------------------------------------------------------------------------------

    def _save_on_error(self, error: BaseException) -> None:
        """Save the last complete update before an error is raised, if possible, and log where to resume."""
        with suppress(Exception):  # the save in flight; if it failed, the one below is tried instead
            self.saves.wait()
        if not self.is_rank_zero or (step := self.trainer.step) == 0:
            return
        what, where = type(error).__name__, str(self.folder)
        self.hooks.rollback()
        reason = self._save_or_reason(error) if self._has_unsaved_updates(error) else None
        if reason is None:
            self._log(f"{what}: saved step {self.saves.saved} in {where!r}; {_RESUME_ADVICE}")
        else:
            since = f"step {self.saves.saved}" if self.saves.saved else "the beginning"
            log(f"warning: {what}: the {step - self.saves.saved} updates since {since} are lost: {reason}")

    def _has_unsaved_updates(self, error: BaseException) -> bool:
        """Whether the weights have changed since the newest checkpoint, which skipped updates do not change."""
        skipped = int(self.trainer.consecutive_skips) if isinstance(error, DivergedError) else 0
        return self.trainer.step - skipped > self.saves.saved

    def _save_or_reason(self, error: BaseException) -> str | None:
        """Save after an error, or return the reason why that is not possible.

        One of several processes may have failed while the others wait for it. So rank 0 saves alone, which is possible
        only if it has all weights.
        """
        if not self.engine.replicates:
            return "the weights are sharded over processes that no longer work together"
        if isinstance(cause := error.__cause__, RuntimeError) and _is_out_of_memory(cause):
            traceback.clear_frames(cause.__traceback__)  # they hold the tensors of the failed update
        try:
            if self.ranks.size > 1 and not _is_idle(self.engine.device):
                return f"{self.engine.device} waits for another process"
            reason = self.trainer.restore_last_update()
            if reason is None:
                self.saves.save_alone(*self._state())
        except Exception as failure:
            return " ".join(str(failure).split())
        return reason

    def _with_explanation(self, error: BaseException) -> DiffkitError | None:
        """Return the error to raise instead of one that needs a better message; None for any other error."""
        if isinstance(error, DivergedError):
            newest = next(checkpoint.newest_first(self.checkpoints), None)
            saved = "no checkpoint was made before"
            if newest is not None:
                saved = f"the last checkpoint is {str(newest)!r}; a new run can begin with its weights (--init)"
            return DivergedError(f"{error}; {saved}")
        if self.ranks.size > 1 and is_lost_process(error):
            return ProcessLostError(f"another process of this job ended, see its own error; {_RESUME_ADVICE}")
        return worker_died_error(error) if self.config.workers else None

    def _manifest_facts(self) -> dict[str, Any]:
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
            "run": self.config_content,
            **({"hooks": record} if (record := self.hooks.record()) else {}),
        }

    def _log(self, text: str) -> None:
        if self.progress:
            log(text)


_CONTINUES, _STOPS, _FAILS, _HOOK_FAILS = range(4)
"""State of a run after an update; the largest of all processes counts."""


def _next_batch(loader: Iterator[Batch]) -> Batch | Exception | None:
    """Return the next batch, or the error that reading it raised, or None at the end."""
    try:
        return next(loader, None)
    except Exception as error:
        return error


def _is_idle(device: torch.device) -> bool:
    """Whether a device finishes its queued work in time; one that waits for a lost process never does."""
    if device.type != "cuda":
        return True
    stream, end = torch.cuda.current_stream(device), time.monotonic() + _PATIENCE
    while not (done := bool(stream.query())) and time.monotonic() < end:  # type: ignore[no-untyped-call,unused-ignore]
        time.sleep(0.1)
    return done


class _SpeedMeter:
    """Measures the speed of training between lines of metrics."""

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


def _metric_text(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
