"""Laws of hooks of training, each on short runs of a small system."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen

import diffkit
from diffkit.data.arrays import ArrayData, from_array
from diffkit.errors import ProtocolError
from diffkit.registry.contracts import check_contract
from diffkit.runtime.run_layout import CHECKPOINTS
from diffkit.system.module import System
from diffkit.testing._check import LawError, NotApplicableError, Where, check, record_where
from diffkit.testing._close import require
from diffkit.training.checkpoint import newest_first, read_manifest
from diffkit.training.hook import Hook, HookFacts, HookResult, HookState
from diffkit.training.metrics_file import read_metrics

_STEPS, _AT = 6, 3
"""Updates of a run, and the one after which it is interrupted: between two validations."""
_SHAPE = (1, 4, 4)


@frozen
class _Interrupt(Hook):
    """Stops after an update, as a signal would."""

    at: int

    def after_update(self, facts: HookFacts, state: HookState) -> HookResult | None:
        return HookResult(stop="the kit stops it here") if facts.step == self.at else None


@frozen
class _Run:
    """What a run wrote.

    Attributes:
        step: Its last update.
        weights: Digests of the files of its newest checkpoint, but of that which holds the states of hooks.
        state: The state of the hook, and the digest of the file with its tensors.
        lines: Lines of metrics without the speed.
    """

    step: int
    weights: Mapping[str, str]
    state: Any
    lines: list[dict[str, Any]]


def _data() -> ArrayData:
    images = np.random.default_rng(0).integers(0, 256, (12, *_SHAPE)).astype(np.uint8)
    return from_array(images, bins=256)


def _system() -> System:
    torch.manual_seed(0)
    small = ("mlp", {"hidden": 8, "depth": 1})
    return diffkit.compose(schedule="cosine", backbone=small, num_steps=10, data_shape=_SHAPE)


def _train(folder: Path, *hooks: Hook, steps: int = _STEPS) -> _Run:
    often: dict[str, Any] = dict(batch_size=4, lr=0.01, ema=0.9, log_every=4, val_every=2, save_every=_AT)
    diffkit.train(_system(), _data(), out=folder, val=_data(), steps=steps, hooks=hooks, progress=False, **often)
    newest = next(newest_first(folder / CHECKPOINTS))
    manifest = read_manifest(newest)
    digests = {name: record["sha256"] for name, record in manifest["files"].items()}
    lines = [{k: v for k, v in line.items() if k != "images_per_s"} for line in read_metrics(folder)]
    states = manifest.get("hooks", {}).get("states", {})
    return _Run(manifest["step"], digests, (states, digests.pop("trainer.safetensors")), lines)


def _trained(*hooks: Hook, steps: int = _STEPS) -> _Run:
    """A run in a folder of its own; what a hook may not return is a `LawError`."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return _train(Path(folder) / "run", *hooks, steps=steps)
        except ProtocolError as error:
            raise LawError("None or a HookResult of plain data", str(error)) from error


_FIRST: list[tuple[Any, _Run]] = []


def _first_run(part: Any) -> _Run:
    """The first run with a part, which several laws read; that of the last part is cached."""
    if not (_FIRST and _FIRST[0][0] is part):
        _FIRST[:] = [(part, _trained(part))]
    return _FIRST[0][1]


@cache
def _plain(steps: int) -> _Run:
    """A run without hooks."""
    return _trained(steps=steps)


@check("hook")
def members_of_a_hook(part: Any) -> None:
    """A hook has every member of its protocol, with the right arguments.

    Usually: a misspelt method, or an argument left out.
    """
    try:
        check_contract("hook", part)
    except ProtocolError as error:
        raise LawError("every member of the protocol", str(error)) from error


@check("hook")
def returns_plain_results(part: Any) -> None:
    """At each moment a hook returns None or a HookResult: a state that a checkpoint can hold, numbers under new names.

    Usually: an array or an infinite number in the state, a metric with the name of a term of the loss, or one that is
    returned when the line of its step is written.
    """
    _first_run(part)


@check("hook")
def changes_no_update(part: Any) -> None:
    """A hook reads: weights, moments, means and metrics are those of a run without it, to the bit.

    Usually: an operation in place on weights or gradients, or train mode left behind.
    """
    found = _first_run(part)
    plain, where = _plain(found.step), record_where(Where(detail=f"after {found.step} updates"))
    for name, digest in plain.weights.items():
        require(found.weights[name] == digest, f"{name} as without the hook", "another", where)
    lines = {line["step"]: line for line in found.lines}
    for line in plain.lines if found.step == _STEPS else ():
        own = lines[line["step"]]
        require({k: own[k] for k in line} == line, f"{line}", own, where)


@check("hook")
def holds_no_state(part: Any) -> None:
    """An instance that was used in one run does the same in the next: its state is what it returns, not an attribute.

    Usually: a count, a best value or an open file kept on the hook itself.
    """
    first, again = _first_run(part), _trained(part)
    require(again == first, f"the same again: {first.state[0]}, last step {first.step}", _seen(again))


@check("hook")
def resumes_to_the_bit(part: Any) -> None:
    """A run that was interrupted has the states and metrics of one that never was.

    Usually: state that is not returned, or that is set anew in at_begin.
    """
    whole = _first_run(part)
    if whole.step <= _AT:
        raise NotApplicableError(f"it stops the run before {_AT + 1} updates")
    with tempfile.TemporaryDirectory() as folder:
        _train(Path(folder) / "run", part, _Interrupt(_AT))
        found = _train(Path(folder) / "run", part)
    where = Where(detail=f"interrupted after {_AT} of {_STEPS} updates")
    require(found.state == whole.state, f"the state {whole.state[0]}", found.state[0], where)
    require(found.lines == whole.lines, f"{whole.lines[-1]}", found.lines[-1], where)


def _seen(run: _Run) -> str:
    return f"{run.state[0]}, last step {run.step}"
