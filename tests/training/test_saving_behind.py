"""Saves behind training: a kill, an error or an end at any of their moments loses nothing that was saved."""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import forking
from lanes import in_lanes
from training_support import checkpoints, content, images, lines, train
from write_watch import Fault, Watch

import diffkit
from diffkit.errors import CheckpointError, DataError
from diffkit.training import checkpoint, checkpoint_writer
from diffkit.training.checkpoint_writer import CheckpointWriter
from diffkit.training.trainer import Trainer

OPTIONS: dict[str, Any] = dict(steps=12, save_every=3, log_every=2, keep=2)


class Pause:
    """Holds the writing thread at a moment of a save until it is told to go on."""

    def __init__(self, monkeypatch, owner=checkpoint, name="_commit"):
        self.reached, self.go_on = threading.Event(), threading.Event()
        call = getattr(owner, name)

        def paused(*arguments, **more):
            self.reached.set()
            assert self.go_on.wait(60)
            return call(*arguments, **more)

        monkeypatch.setattr(owner, name, paused)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """And what is written is what the tensors were when the save began."""
    train(tmp_path / "whole", **(OPTIONS | dict(async_save=False)))
    pause, update, steps = Pause(monkeypatch), Trainer.update, []

    def watched(self, batch, draws=None):
        update(self, batch, draws)
        if self.step == 5:
            assert pause.reached.wait(60) and checkpoints(tmp_path / "run") == []
            pause.go_on.set()
        steps.append(self.step)

    monkeypatch.setattr(Trainer, "update", watched)
    train(tmp_path / "run", **(OPTIONS | dict(keep=9)))
    assert steps == list(range(1, 13)) and checkpoints(tmp_path / "run") == [12, 9, 6, 3]
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    train(tmp_path / "three", **(OPTIONS | dict(steps=3)))
    path = tmp_path / "run" / "checkpoints" / "step_00000003"
    assert {p.name: p.read_bytes() for p in path.glob("*.safetensors")} == content(tmp_path / "three")
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")


def test_one_save_is_in_flight_and_the_next_waits_for_it(tmp_path, monkeypatch):
    running, most, write = [0], [0], CheckpointWriter._write

    def counted(self, *arguments):
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.02)
        write(self, *arguments)
        running[0] -= 1

    monkeypatch.setattr(CheckpointWriter, "_write", counted)
    train(tmp_path, **(OPTIONS | dict(save_every=1, steps=5)))
    assert most == [1] and running == [0] and checkpoints(tmp_path) == [5, 4]


def test_an_error_of_the_write_ends_the_run_at_the_next_update(tmp_path, monkeypatch):
    train(tmp_path, **(OPTIONS | dict(steps=3)))
    before, steps, update = content(tmp_path), [], Trainer.update

    def full(file, state):
        raise OSError(errno.ENOSPC, "No space left on device", file.name)

    def slow(self, batch, draws=None):
        time.sleep(0.02)
        update(self, batch, draws)
        steps.append(self.step)

    with (
        monkeypatch.context() as patched,
        pytest.raises(CheckpointError, match=r"cannot write checkpoint .* No space") as caught,
    ):
        patched.setattr(checkpoint, "write_weights", full)
        patched.setattr(Trainer, "update", slow)
        train(tmp_path, **(OPTIONS | dict(steps=60, save_every=3)))
    assert steps[-1] < 60 and "\n" not in str(caught.value)
    assert checkpoints(tmp_path) == [3] and content(tmp_path) == before
    diffkit.load(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, None])
def test_a_signal_and_an_error_wait_for_the_save_in_flight(tmp_path, monkeypatch, number):
    pause, update = Pause(monkeypatch, checkpoint_writer, "renew"), Trainer.update

    def ended(self, batch, draws=None):
        if self.step == 4:
            assert pause.reached.wait(60)
            threading.Timer(0.05, pause.go_on.set).start()
            if number is None:
                raise DataError("of a test")
            signal.raise_signal(number)
        update(self, batch, draws)

    monkeypatch.setattr(Trainer, "update", ended)
    with pytest.raises(DataError if number is None else SystemExit):
        train(tmp_path, **OPTIONS)
    assert checkpoints(tmp_path) == ([4, 3] if number is None else [5, 3])
    assert not [thread for thread in threading.enumerate() if thread.name == "save"]
    diffkit.load(tmp_path)


def _killed_at(run: Path, at: int | None, moment: float = 0.0, **options: Any) -> int:
    """Run training in a fork that is killed at a write of the thread that saves, or after some seconds."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if at is not None:
                sys.addaudithook(Watch(run, Fault("kill", at), thread="save"))
            train(run, **(OPTIONS | options))
            status = 0
        finally:
            os._exit(status)
    if at is None:
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@forking
@in_lanes(default=3, slow=40)
def test_a_kill_at_any_write_of_a_save_loses_nothing_but_time(tmp_path, chosen):
    train(tmp_path / "whole", val=images(5), **OPTIONS)
    kills = 0
    for at in chosen(range(1, 110)):
        run = tmp_path / f"at{at}"
        code = _killed_at(run, at, val=images(5))
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        if (run / "model.safetensors").exists():
            diffkit.load(run)
        train(run, val=images(5), **OPTIONS)
        assert lines(run) == lines(tmp_path / "whole"), at
        assert content(run) == content(tmp_path / "whole"), at
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step_00000009", "step_00000012"]
        assert (run / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert kills >= 2


@pytest.mark.slow
@forking
def test_kills_at_random_moments_of_a_run_that_saves_all_the_time(tmp_path):
    rng, run, options = random.Random(0), tmp_path / "run", dict(steps=60, save_every=1)
    train(tmp_path / "whole", **(OPTIONS | options))
    for _ in range(20):
        if checkpoints(run)[:1] == [60]:
            break
        _killed_at(run, None, rng.uniform(0.2, 0.8), **options)
        if (run / "model.safetensors").exists():
            diffkit.load(run)
    train(run, **(OPTIONS | options))
    assert lines(run) == lines(tmp_path / "whole") and content(run) == content(tmp_path / "whole")


def test_without_async_save_nothing_is_copied_and_no_thread_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "_copied", None)
    monkeypatch.setattr(threading, "Thread", None)
    train(tmp_path, **(OPTIONS | dict(async_save=False)))
    assert checkpoints(tmp_path) == [12, 9] and torch.get_num_threads() >= 1
