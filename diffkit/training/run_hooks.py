"""The hooks of a run: chosen by name or given, called in order, their states saved with each checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
from attrs import frozen
from torch import Tensor

from diffkit.errors import DiffkitError, HookError, OptionError, ProtocolError, did_you_mean, failure
from diffkit.registry import registry
from diffkit.registry.resolve import Slot, resolve, resolve_several
from diffkit.runtime.output import log
from diffkit.system.saving import fits_json
from diffkit.training.config import TrainConfig
from diffkit.training.hook import Hook, HookFacts, HookResult, HookState, Tracker
from diffkit.training.metrics import FIXED_NAMES, finite_or_none

MOMENTS = ("at_begin", "after_backward", "after_update", "after_validation", "after_line", "at_save", "at_end")
_TOO_LATE = {
    "at_begin": "before the first update, so its metric {} has no line",
    **dict.fromkeys(("after_line", "at_save"), "after the line of its step, so its metric {} has none"),
}
"""Moments that no line of metrics belongs to."""
_PREFIX = "hook/"
"""Start of the names of hooks' tensors in a checkpoint."""


@frozen
class NamedHook:
    """A hook and its name in messages and checkpoints, which no other hook of the run has."""

    name: str
    hook: Hook


def choose_hooks(config: TrainConfig, hooks: Slot, track: Sequence[str | Tracker]) -> tuple[NamedHook, ...]:
    """Return the hooks of a run: those that options stand for, those named or given, and its trackers.

    Args:
        config: Options; ``max_time`` and ``preview_every`` stand for hooks.
        hooks: A name, a pair of name and options, an instance, or a list of these.
        track: Names of trackers, or trackers.
    Raises:
        UnknownComponentError, OptionError, PluginLoadError, ProtocolError, MissingExtraError: As `diffkit.registry`.
    """
    found: list[tuple[Any, str]] = []
    if config.preview_every is not None:
        options = {"every": config.preview_every, "count": config.preview, "steps": config.preview_steps}
        found.append(resolve("hook", ("previews", options)))
    if config.max_time is not None:
        found.append(resolve("hook", ("time_budget", {"seconds": config.max_time})))
    if isinstance(track, str):
        raise OptionError("must be a list", option="track", value=track, fix={"track": [track]})
    found += resolve_several("hook", hooks) if hooks else ()
    found += map(_tracker, track)
    counts: dict[str, int] = {}
    named = []
    for hook, name in found:
        counts[name] = counts.get(name, 0) + 1
        named.append(NamedHook(name if counts[name] == 1 else f"{name}#{counts[name]}", hook))
    return tuple(named)


def _tracker(chosen: str | Tracker) -> tuple[Tracker, str]:
    """Return a tracker by name, or one that was given; an object need not inherit from `Tracker`."""
    if not isinstance(chosen, str):
        missing = [name for name in ("begin", "metrics", "preview", "end") if not hasattr(type(chosen), name)]
        if missing:
            raise OptionError(f"{type(chosen).__name__} is not a tracker; see diffkit.training.Tracker")
        name = type(chosen).__name__
        return chosen if isinstance(chosen, Hook) else _Adapted(chosen), name
    known = TRACKERS + tuple(entry.name for entry in registry("hook").entries() if entry.origin != "diffkit")
    if chosen.rpartition(":")[2] not in known:
        raise OptionError(f"no tracker named {chosen!r}{did_you_mean(chosen, known)} (known: {', '.join(known)})")
    found, name = resolve("hook", chosen)
    if not isinstance(found, Tracker):
        raise OptionError(f"hook {name!r} is not a tracker, which only observes; name it as a hook")
    return found, name


TRACKERS = ("tensorboard", "wandb")
"""Built-in hooks that are trackers."""


class _Adapted(Tracker):
    """A tracker of a class that does not inherit from `Tracker`."""

    def __init__(self, tracker: Any):
        self.begin, self.metrics = tracker.begin, tracker.metrics  # type: ignore[method-assign]
        self.preview, self.end = tracker.preview, tracker.end  # type: ignore[method-assign]


class RunHooks:
    """The hooks of one run, their states, and what they returned for the current step.

    All that hooks do after an update belongs to its step: an error in between restores the states from before, and the
    resumed run calls them again.

    Args:
        hooks: The hooks.
        facts: What is the same in every call: folder, config, data, rank, trainer.
    Attributes:
        metrics: What hooks returned for the line of metrics of this step.
        stop: Why training stops after this step, and by which hook; empty if it goes on.
        error: The error of a hook at this step.
        open: Whether the calls after the last update are not complete.
    """

    def __init__(self, hooks: Sequence[NamedHook], facts: HookFacts):
        names = tuple(each.name for each in hooks if not each.hook.observes)
        self._facts, self.rank = attrs.evolve(facts, hooks=names), facts.rank
        self._hooks = [each for each in hooks if not each.hook.observes or facts.rank == 0]
        self._at: dict[str, list[NamedHook]] = {moment: [] for moment in MOMENTS}
        for each in self._hooks:
            for moment in MOMENTS:
                if getattr(type(each.hook), moment) is not getattr(Hook, moment):  # it does something then
                    self._at[moment].append(each)
        self._states: dict[str, HookState] = {}
        for each in self._hooks:
            self._states[each.name] = self._checked_state(each, self._call(each, each.hook.init))
        self.metrics: dict[str, float | Tensor] = {}
        self.stop, self.open, self._begun = "", False, False
        self.error: DiffkitError | None = None
        # all processes must agree on what they exchange, and trackers are in one of them only
        self.may_stop = any(not each.hook.observes for each in hooks)
        self.commit()

    def has(self, moment: str) -> bool:
        """Return whether a hook does anything at a moment."""
        return bool(self._at[moment])

    # ---- calls -----------------------------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Call `at_begin` of every hook; an error in it stops training, of trackers as well."""
        self._begun = True
        for each in self._at["at_begin"]:
            self._run(each, "at_begin", self._facts_at(step), keep=True)
        self.commit(open=self.open)

    def call(
        self, moment: str, step: int, *, metrics: Mapping[str, Any] | None = None, logs: bool = False, keep: bool = True
    ) -> None:
        """Call every hook that does something at a moment; an error of a hook is in `error` then.

        Args:
            moment: One of `MOMENTS`.
            step: Completed updates.
            metrics: See `HookFacts`.
            logs: See `HookFacts`.
            keep: Whether the states change.
        """
        listening = self._at[moment]
        if not listening or self.error is not None:
            return
        facts = self._facts_at(step, metrics, logs)
        for each in list(listening):
            try:
                self._run(each, moment, facts, keep)
            except Exception as error:
                if not each.hook.observes:
                    self.error = error if isinstance(error, DiffkitError) else HookError(str(error))
                    return
                self._drop(each, error)

    def _run(self, each: NamedHook, moment: str, facts: HookFacts, keep: bool) -> None:
        method = getattr(each.hook, moment)
        result = self._call(each, lambda: method(facts, self._states[each.name]), f"at step {facts.step}")
        if result is None:
            return
        if not isinstance(result, HookResult):
            raise ProtocolError(
                f"hook {each.name!r}: {moment} must return None or a diffkit.training.HookResult, got "
                f"a {type(result).__name__}"
            )
        if result.state is not None and keep:
            self._states[each.name] = self._checked_state(each, result.state)
        if result.metrics:
            self.metrics |= self._checked_metrics(each, moment, result.metrics)
        if result.stop and not self.stop:
            self.stop = f"{each.name}: {result.stop}"
        if result.picture is not None:
            self._show(facts.step, result.picture)

    def _call(self, each: NamedHook, do: Any, when: str = "at the start") -> Any:
        """Call a hook's own code; an error that is not diffkit's own becomes a `HookError` that names it."""
        try:
            return do()
        except (DiffkitError, MemoryError):
            raise
        except Exception as error:
            raise HookError(f"hook {each.name!r} failed {when}: {failure(error)}") from error

    def _show(self, step: int, picture: Path) -> None:
        """Pass a picture to every tracker."""
        for each in list(self._hooks):
            try:
                if isinstance(each.hook, Tracker):
                    each.hook.preview(step, picture)
            except Exception as error:
                self._drop(each, error)

    def _drop(self, each: NamedHook, error: Exception) -> None:
        """Leave out a tracker that failed: it must not end the run."""
        self._hooks.remove(each)
        self._at = {moment: [one for one in hooks if one is not each] for moment, hooks in self._at.items()}
        cause = error.__cause__ or error
        log(f"warning: {each.name} failed and is not called again: {cause}")

    def end(self) -> None:
        """Call `at_end` of every hook that began, once; an error in it is a warning."""
        if not self._begun:
            return
        self._begun, facts = False, self._facts_at(self._facts._trainer.step)
        for each in self._at["at_end"]:
            try:
                self._run(each, "at_end", facts, keep=False)
            except Exception as error:
                self._drop(each, error)
        del self._facts  # which holds the means and moments

    def _facts_at(self, step: int, metrics: Mapping[str, Any] | None = None, logs: bool = False) -> HookFacts:
        return attrs.evolve(self._facts, step=step, logs=logs, metrics=finite_or_none(metrics or {}))

    # ---- what they return ------------------------------------------------------------------------------------------

    def _checked_state(self, each: NamedHook, state: Any) -> HookState:
        """Return a state, after checking that a checkpoint can hold it."""
        if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
            raise ProtocolError(
                f"hook {each.name!r}: its state must be a mapping by name, got a {type(state).__name__}"
            )
        for name, value in state.items():
            if not isinstance(value, Tensor) and not fits_json(value):
                raise ProtocolError(
                    f"hook {each.name!r}: its state has {name}={value!r}, which a checkpoint cannot hold; let it be "
                    "tensors, finite numbers, words, None, or lists of them"
                )
        return MappingProxyType(dict(state))  # one that was committed must not change

    def _checked_metrics(self, each: NamedHook, moment: str, metrics: Any) -> dict[str, float | Tensor]:
        """Return metrics, after checking that they are numbers under names of their own, and that a line follows."""
        for name, value in metrics.items():
            if moment in _TOO_LATE:
                raise ProtocolError(
                    f"hook {each.name!r}: {moment} is {_TOO_LATE[moment].format(repr(name))}; return it from "
                    "after_update, where facts.logs is true if a line follows"
                )
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number and not (isinstance(value, Tensor) and value.ndim == 0):
                raise ProtocolError(
                    f"hook {each.name!r}: its metric {name!r} must be a number or a 0-d tensor, got "
                    f"a {type(value).__name__}"
                )
            taken = name in FIXED_NAMES or name in self._facts._trainer.names or name.startswith("val_")
            if taken or name in self.metrics:
                raise ProtocolError(f"hook {each.name!r}: its metric {name!r} has the name of another; rename it")
        return dict(metrics)

    def take_metrics(self) -> dict[str, float]:
        """Return the metrics for the line of this step as numbers; waits for the device if there are tensors."""
        found = {name: float(value) for name, value in self.metrics.items()}
        self.metrics = {}
        return found

    # ---- state -----------------------------------------------------------------------------------------------------

    def commit(self, *, open: bool = False) -> None:
        """Take the states for those of the last update; ``open`` if its calls are not complete."""
        self._saved, self.open = (dict(self._states), dict(self.metrics)), open

    def rollback(self) -> None:
        """Restore the states that were committed, after an error between."""
        self._states, self.metrics = dict(self._saved[0]), dict(self._saved[1])

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the states, for a checkpoint."""
        found = (
            (f"{_PREFIX}{name}/{key}", value) for name, state in self._states.items() for key, value in state.items()
        )
        return {name: value for name, value in found if isinstance(value, Tensor)}

    def record(self) -> dict[str, Any]:
        """Return all else of the states, for the manifest of a checkpoint; empty without hooks that have any."""
        states = {
            name: {key: value for key, value in state.items() if not isinstance(value, Tensor)}
            for name, state in self._states.items()
            if state
        }
        metrics = {name: float(value) for name, value in self.metrics.items()}
        found = {"states": states, "metrics": metrics, "open": self.open}
        return {name: value for name, value in found.items() if value}

    def restore(self, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[str]:
        """Restore what `record` and `tensors` returned; yield a remark for each hook that is not there any more."""
        states: dict[str, dict[str, Any]] = {name: dict(state) for name, state in record.get("states", {}).items()}
        for full, value in tensors.items():
            if full.startswith(_PREFIX):
                name, key = full.removeprefix(_PREFIX).split("/", 1)
                states.setdefault(name, {})[key] = value
        for name, state in states.items():
            if (own := self._states.get(name)) is not None:
                self._states[name] = MappingProxyType(
                    {key: _moved_like(value, own.get(key)) for key, value in state.items()}
                )
            else:
                yield f"the run had the hook {name!r}, whose state is dropped"
        self.metrics = dict(record.get("metrics", {}))
        self.commit(open=bool(record.get("open")))


def _moved_like(value: Any, own: Any) -> Any:
    """Return a tensor of a checkpoint where the hook has its own of that name; anything else as it is."""
    return value.to(own.device) if isinstance(value, Tensor) and isinstance(own, Tensor) else value
