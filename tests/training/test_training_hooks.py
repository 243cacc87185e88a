"""Hooks of training: when they are called, what they may do, and that their state resumes to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import frozen
from training_support import content, images, lines, train

import diffkit
from diffkit.data.arrays import from_array
from diffkit.errors import HookError, OptionError, ProtocolError
from diffkit.options import integer
from diffkit.training import Hook, HookResult
from diffkit.training.hooks.early_stopping import EarlyStopping
from diffkit.training.hooks.gradient_norms import GradientNorms
from diffkit.training.hooks.time_budget import TimeBudget

QUICK: dict[str, Any] = dict(label_dropout=0.0, log_every=3, save_every=4, val_every=2, ema=(0.9,))


def run(out: Path, steps: int = 12, **options: Any) -> diffkit.System:
    return train(out, **QUICK | dict(steps=steps, val=images(8)) | options)


@frozen
class Mean(Hook):
    """A running mean of the loss, as a tensor and a number; fails or stops at chosen steps."""

    stop_at: int = integer(10**9, ge=1)
    fail_at: int = integer(10**9, ge=1)

    def init(self):
        return {"mean": torch.zeros(2), "count": 0, "seen": []}

    def after_update(self, facts, state):
        mean = state["mean"].lerp(torch.tensor(facts.loss()), 0.5)
        found = {**state, "mean": mean, "count": state["count"] + 1}
        stop = "the limit is reached" if facts.step == self.stop_at else ""
        return HookResult(found, {"mean_loss": mean[0]} if facts.logs else {}, stop)

    def after_validation(self, facts, state):
        if facts.step == self.fail_at:
            raise RuntimeError("out of ink")
        return HookResult({**state, "seen": [*state["seen"], facts.step]})


class Calls(Hook):
    """Records its calls."""

    def __init__(self):
        self.heard: list[str] = []

    def _hear(self, name, facts):
        self.heard.append(f"{name} {facts.step}")

    def at_begin(self, facts, state):
        self._hear("begin", facts)

    def after_backward(self, facts, state):
        assert facts.gradients.keys() == facts.parameters.keys()
        self._hear("backward", facts)

    def after_update(self, facts, state):
        assert not facts.gradients and not facts.metrics
        self._hear("update", facts)

    def after_validation(self, facts, state):
        assert "val_loss" in facts.metrics
        self._hear("validation", facts)

    def after_line(self, facts, state):
        assert facts.metrics["step"] == facts.step
        self._hear("line", facts)

    def at_save(self, facts, state):
        self._hear("save", facts)

    def at_end(self, facts, state):
        assert facts.checkpoint.name == f"step_{facts.step:08d}"
        self._hear("end", facts)


def test_the_moments_of_a_run(tmp_path):
    calls = Calls()
    run(tmp_path, steps=4, hooks=calls, val_every=3, log_every=2, save_every=4)
    assert calls.heard == [
        *("begin 0", "backward 0", "update 1", "backward 1", "update 2", "line 2", "backward 2", "update 3"),
        *("validation 3", "line 3", "backward 3", "update 4", "validation 4", "line 4", "save 4", "end 4"),
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder, hooks=[Mean(), EarlyStopping(patience=3, min_delta=10.0)])
    return folder


def test_hooks_change_no_update_and_add_their_metrics(tmp_path, whole):
    run(tmp_path, steps=6)
    plain = [{k: v for k, v in line.items() if k != "mean_loss"} for line in lines(whole)]
    assert plain[: len(lines(tmp_path))] == lines(tmp_path)
    assert [line["step"] for line in lines(whole) if "mean_loss" in line] == [3, 6]


def test_early_stopping_stops_and_stays_stopped(tmp_path, whole, capsys):
    """The first reading is the best; three more without an improvement of 10 end the run after 8 updates."""
    assert [line["step"] for line in lines(whole)][-1] == 8
    run(whole, hooks=[Mean(), EarlyStopping(patience=3, min_delta=10.0)], progress=True)
    said = capsys.readouterr().err
    assert "stopped after step 8 of 12 by early_stopping: val_loss has not improved in 3 readings (best" in said
    assert lines(whole)[-1]["step"] == 8


@pytest.mark.parametrize("at", [5, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 2, 3, 4, 6, 7))])
def test_a_run_that_was_interrupted_has_the_same_states(tmp_path, whole, at):
    hooks = [EarlyStopping(patience=3, min_delta=10.0)]
    run(tmp_path, hooks=[Mean(stop_at=at), *hooks])
    assert all(line["step"] <= at for line in lines(tmp_path))
    run(tmp_path, hooks=[Mean(), *hooks])
    assert lines(tmp_path) == lines(whole) and content(tmp_path) == content(whole)
    newest = [json.loads((path / "checkpoints/step_00000008/manifest.json").read_text()) for path in (tmp_path, whole)]
    assert newest[0]["hooks"] == newest[1]["hooks"]
    assert newest[0]["hooks"]["states"]["Mean"]["seen"] == [2, 4, 6, 8]


def test_a_hook_that_fails_is_named_and_the_run_goes_on_to_the_bit(tmp_path, whole):
    hooks = [EarlyStopping(patience=3, min_delta=10.0)]
    with pytest.raises(HookError, match="hook 'Mean' failed at step 6: RuntimeError: out of ink"):
        run(tmp_path, hooks=[Mean(fail_at=6), *hooks])
    assert (tmp_path / "checkpoints" / "step_00000006").is_dir()
    run(tmp_path, hooks=[Mean(), *hooks])
    assert lines(tmp_path) == lines(whole) and content(tmp_path) == content(whole)


def test_a_run_that_is_made_longer_is_as_one_that_never_ended(tmp_path):
    """Its last validation and line of metrics were not due, and are in no state."""
    hooks = [Mean(), EarlyStopping(metric="loss", patience=9, maximize=True)]
    for folder, steps in (("longer", 5), ("longer", 9), ("whole", 9)):
        run(tmp_path / folder, steps=steps, hooks=hooks, val_every=3, save_every=3)
    manifests = [
        json.loads((tmp_path / name / "checkpoints/step_00000009/manifest.json").read_text())
        for name in ("longer", "whole")
    ]
    assert manifests[0]["hooks"] == manifests[1]["hooks"]
    assert content(tmp_path / "longer") == content(tmp_path / "whole")


class Rare(Hook):
    """Adds a metric at one step only."""

    def after_update(self, facts, state):
        return HookResult(metrics={"fid": 1.0}) if facts.step == 4 else None


@pytest.mark.parametrize(
    ("metric", "val", "text"),
    [
        ("val_loss", None, "reads 'val_loss', which this run never measures; pass val, or metric='loss'"),
        ("val_los", images(8), "reads 'val_los', which no validation has; did you mean 'val_loss'? (known: val_loss,"),
        ("los", images(8), "reads 'los', which the line of step 3 does not have; did you mean 'loss'? (known: step,"),
    ],
)
def test_early_stopping_refuses_a_metric_that_it_would_never_read(tmp_path, metric, val, text):
    with pytest.raises(OptionError) as caught:
        run(tmp_path, steps=4, val=val, hooks=("early_stopping", {"metric": metric}))
    assert f"hook 'early_stopping': it {text}" in str(caught.value)


def test_early_stopping_waits_for_a_metric_that_another_hook_may_add(tmp_path):
    run(tmp_path, steps=5, hooks=[EarlyStopping(metric="fid"), Rare()])
    assert [line["step"] for line in lines(tmp_path) if "fid" in line] == [4]


def test_a_hook_that_is_left_out_is_remarked(tmp_path, capsys):
    run(tmp_path, steps=2, hooks=Mean())
    run(tmp_path, steps=3, progress=True)
    assert "note: the run had the hook 'Mean', whose state is dropped" in capsys.readouterr().err


def test_a_time_budget_stops_each_call(tmp_path, capsys):
    for _ in range(3):
        run(tmp_path / "run", steps=3, max_time=1e-9, progress=True, log_every=1)
    said = capsys.readouterr().err
    assert "stopped after step 1 of 3 by time_budget: 1e-09 seconds are over" in said and "after step 2 of 3" in said
    run(tmp_path / "whole", steps=3, log_every=1)
    assert content(tmp_path / "run") == content(tmp_path / "whole")


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("1h30m", 5400), ("1h 30m", 5400), ("45s", 45), ("90", 90)]
)
def test_a_duration_may_be_a_text(text, seconds):
    assert TimeBudget(text).seconds == seconds


@pytest.mark.parametrize("text", ["2 hours", "", "h", "-2h", 0, True])
def test_other_texts_are_no_durations(text):
    with pytest.raises(OptionError, match="seconds"):
        TimeBudget(text)


def test_gradient_norms_add_up(tmp_path):
    run(tmp_path, steps=3, hooks=["gradient_norms", GradientNorms(["*.bias", "*"])], log_every=3)
    line = lines(tmp_path)[-1]
    for chosen in (["grad_norm/*.bias", "grad_norm/*"], [n for n in line if "/" in n and "*" not in n]):
        assert len(chosen) > 1
    patterns = line["grad_norm/*.bias"] ** 2 + line["grad_norm/*"] ** 2
    layers = sum(line[n] ** 2 for n in line if "/" in n and "*" not in n)
    assert patterns == pytest.approx(layers)


class Returns(Hook):
    """Returns what it is given."""

    def __init__(self, value: Any):
        self.value = value

    def after_update(self, facts, state):
        return self.value


class ReturnsLate(Hook):
    """Returns a metric at a moment that no line of metrics follows."""

    def __init__(self, moment: str):
        self.moment = moment

    def _metric(self, moment):
        return HookResult(metrics={"a": 1.0}) if moment == self.moment else None

    def at_begin(self, facts, state):
        return self._metric("at_begin")

    def after_line(self, facts, state):
        return self._metric("after_line")

    def at_save(self, facts, state):
        return self._metric("at_save")


@pytest.mark.parametrize(
    ("hooks", "error", "text"),
    [
        ("early_stoping", LookupError, "no hook named 'early_stoping'; did you mean 'early_stopping'?"),
        (("early_stopping", {"patient": 3}), OptionError, "hook 'early_stopping' has no option 'patient'"),
        (("early_stopping", {"patience": 0}), OptionError, "hook 'early_stopping': patience must be >= 1, got 0"),
        (EarlyStopping, OptionError, "hook must be an instance, not the class EarlyStopping"),
        (3, OptionError, "hook must be a name"),
        (GradientNorms(["attn*"]), OptionError, "hook 'gradient_norms': patterns='attn*' matches no parameter of"),
        (Returns("stop"), ProtocolError, "after_update must return None or a diffkit.training.HookResult, got a str"),
        (Returns(HookResult(metrics={"loss": 1.0})), ProtocolError, "metric 'loss' has the name of another; rename"),
        (Returns(HookResult(metrics={"a": "b"})), ProtocolError, "metric 'a' must be a number or a 0-d tensor"),
        (
            ReturnsLate("after_line"),
            ProtocolError,
            "after_line is after the line of its step, so its metric 'a' has none",
        ),
        (ReturnsLate("at_save"), ProtocolError, "at_save is after the line of its step, so its metric 'a' has none"),
        (ReturnsLate("at_begin"), ProtocolError, "at_begin is before the first update, so its metric 'a' has no line"),
        (Returns(HookResult(state={"a": object()})), ProtocolError, "its state has a=<object"),
        (Returns(HookResult(state={"a": float("inf")})), ProtocolError, "its state has a=inf, which a checkpoint"),
    ],
)
def test_what_is_wrong_is_one_clear_error(tmp_path, hooks, error, text):
    with pytest.raises(error) as caught:
        run(tmp_path / "run", steps=2, hooks=hooks)
    assert text in str(caught.value) and "\n" not in str(caught.value)
    assert isinstance(hooks, Hook) or not (tmp_path / "run").exists()


def test_epochs_are_steps_of_the_data(tmp_path):
    """23 examples in batches of 5: three epochs are 14 updates, and four go on from there."""
    for folder, options in (
        ("epochs", dict(epochs=3)),
        ("epochs", dict(epochs=4)),
        ("steps", dict(steps=19)),
    ):
        train(tmp_path / folder, data=images(23), **QUICK | dict(steps=None) | options)
    assert content(tmp_path / "epochs") == content(tmp_path / "steps")
    with pytest.raises(OptionError, match="and steps 5 both say how long to train"):
        train(tmp_path / "no", **QUICK | dict(steps=5, epochs=3))


def test_overfitting_trains_on_the_first_examples_only(tmp_path):
    every = images(23)
    few = from_array(every.images[:4], labels=every.labels[:4], bins=17, classes=every.classes)
    for folder, data, options in (
        ("overfit", every, dict(overfit=4, flip=0.5)),
        ("few", few, dict(batch_size=4)),
    ):
        train(tmp_path / folder, data=data, **QUICK | dict(steps=4) | options)
    assert content(tmp_path / "overfit") == content(tmp_path / "few")
