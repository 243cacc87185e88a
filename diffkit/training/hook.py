"""Protocols of what runs beside the updates of training: `Hook`, and `Tracker`, a hook that only observes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from attrs import field, frozen
from torch import Tensor

from diffkit.data.base import Data
from diffkit.protocols import Model
from diffkit.runtime.run_layout import CHECKPOINTS
from diffkit.training.checkpoint import newest_first
from diffkit.training.config import TrainConfig
from diffkit.training.trainable import Trainable
from diffkit.training.trainer import Trainer

HookState = Mapping[str, Any]
"""State of a hook: plain data that JSON can hold, and tensors, by name."""

_NOTHING: Mapping[str, Any] = {}


@frozen(eq=False)
class HookFacts:
    """What a hook may read; nothing of it may be changed, and reading a tensor's value waits for the device.

    Attributes:
        step: Completed updates; in `Hook.after_backward` those before the current one.
        steps: Updates in all.
        folder: Folder of the run.
        config: Options of training.
        data: The training data.
        rank: Number of this process; every process calls its hooks, in the same order.
        validates: Whether there is held-out data to validate on.
        hooks: Names of the hooks of this run, without those that only observe.
        logs: Whether a line of metrics is written after the current update.
        metrics: The metrics of the validation, or of the line of metrics, that was just made; else empty.
    """

    step: int
    steps: int
    folder: Path
    config: TrainConfig
    data: Data
    rank: int = 0
    validates: bool = False
    hooks: tuple[str, ...] = ()
    logs: bool = False
    metrics: Mapping[str, float | None] = _NOTHING
    _trainer: Trainer = field(kw_only=True, repr=False)
    _begun: float = field(kw_only=True, repr=False)

    @property
    def system(self) -> Trainable:
        """The system that is trained, with its current weights."""
        return self._trainer.system

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trained parameters by name, without gradients; shards of them with strategy="fsdp"."""
        return {name: p.detach() for name, p in self._trainer.trained}

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Their gradients, of the whole batch and before clipping; empty but in `Hook.after_backward`."""
        return {name: p.grad.detach() for name, p in self._trainer.trained if p.grad is not None}

    def norm(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the norm of parameters or gradients together, 0-d; every process must call it."""
        return self._trainer.norm(tensors)

    @property
    def checkpoint(self) -> Path | None:
        """The newest complete checkpoint, or None."""
        return next(newest_first(self.folder / CHECKPOINTS), None)

    def seconds(self) -> float:
        """Return the time since this call of training began."""
        return time.monotonic() - self._begun

    def loss(self) -> float:
        """Return the mean loss of the last update; waits for the device."""
        return self._trainer.last_loss()

    @contextmanager
    def averaged(self) -> Iterator[Model]:
        """Context in which the system has the averaged weights, in evaluation mode; yields the model to sample with."""
        with self._trainer.averaged():
            yield self._trainer.eval_model


@frozen
class HookResult:
    """What a hook wants: all of it is optional.

    Attributes:
        state: Its state from now on; None leaves it as it is.
        metrics: Numbers, or 0-d tensors, for the line of metrics of this step, which is then written in any case. Only
            after_backward, after_update and after_validation come before that line.
        stop: The reason to stop training after this step, as a sentence without subject; empty goes on.
        picture: A picture that the hook wrote, for trackers.
    """

    state: HookState | None = None
    metrics: Mapping[str, float | Tensor] = _NOTHING
    stop: str = ""
    picture: Path | None = None


@runtime_checkable
class Hook(Protocol):
    """What runs beside the updates of training: reads, measures, stops. Its options are its only attributes.

    Inherit from it, and override the moments that it needs; the others cost nothing. Each is given read-only facts and
    the hook's state, and returns a `HookResult` or None. The state is in each checkpoint, and a resumed run goes on
    with it. Every process calls its hooks; if one of them stops, all stop after the same update.
    """

    observes: ClassVar[bool] = False

    def init(self) -> HookState:
        """Return the state at the start of a run."""
        return {}

    def at_begin(self, facts: HookFacts, state: HookState) -> HookResult | None:
        """Called when a run begins or resumes, before its first update."""
        return None

    def after_backward(self, facts: HookFacts, state: HookState) -> HookResult | None:
        """Called in each update when the gradients are complete, before the optimizer's step."""
        return None

    def after_update(self, facts: HookFacts, state: HookState) -> HookResult | None:
        """Called after each update."""
        return None

    def after_validation(self, facts: HookFacts, state: HookState) -> HookResult | None:
        """Called after each validation, whose metrics are in ``facts.metrics``.

        The state is not changed by the one after the last update, if it is not due: a run that is continued with more
        steps has none there.
        """
        return None

    def after_line(self, facts: HookFacts, state: HookState) -> HookResult | None:
        """Called after each line of metrics, ``facts.metrics``; the state is not changed by one that is not due.

        The line of a validation between two others has no metrics of training, such as "loss".
        """
        return None

    def at_save(self, facts: HookFacts, state: HookState) -> HookResult | None:
        """Called before a checkpoint is written, which then holds the state that this returns."""
        return None

    def at_end(self, facts: HookFacts, state: HookState) -> HookResult | None:
        """Called when training ends, completed, stopped or by an error; what it returns is ignored."""
        return None


@runtime_checkable
class Tracker(Hook, Protocol):
    """Protocol of an experiment tracker; ``step`` is always the number of completed updates.

    It only observes: rank 0 alone calls it, and after an error of its own it is not called again.
    """

    observes: ClassVar[bool] = True

    def begin(self, folder: Path, step: int) -> None:
        """Called when the run in ``folder`` begins, or resumes after ``step`` updates; data of later steps is void."""

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Called with a line of metrics: "step", and numbers by name, None where one is not finite."""

    def preview(self, step: int, path: Path) -> None:
        """Called with the path of a preview, a PNG file."""

    def end(self) -> None:
        """Called when training ends, completed or interrupted."""

    def at_begin(self, facts: HookFacts, state: HookState) -> None:
        """Begin."""
        self.begin(facts.folder, facts.step)

    def after_line(self, facts: HookFacts, state: HookState) -> None:
        """Pass the line on."""
        self.metrics(facts.metrics)

    def at_end(self, facts: HookFacts, state: HookState) -> None:
        """End."""
        self.end()
