"""An interrupted run goes on as if it had never been interrupted."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from training_support import checkpoints, content, images, lines, point_system, points, system, train

import diffkit
from diffkit.errors import OptionError
from diffkit.training import read_metrics, signals
from diffkit.training.loop import _Training
from diffkit.training.trainer import Trainer


def test_continuing_is_bit_identical(tmp_path):
    whole = train(tmp_path / "whole")
    train(tmp_path / "parts", steps=3)
    train(tmp_path / "parts", steps=7, seed=1)
    parts = train(tmp_path / "parts", seed=2)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_channels_last_network_continues_to_the_bit(tmp_path):
    """Fused AdamW reads weights and moments as they lie in memory, and files hold them in order."""

    def composed():
        unet = ("unet", {"channels": 8, "groups": 4, "num_res_blocks": 1, "channel_mult": (1,), "num_classes": 3})
        made = system(backbone=unet)
        made.network.to(memory_format=torch.channels_last)
        return made

    train(tmp_path / "whole", system=composed(), steps=4, label_dropout=0)
    train(tmp_path / "parts", system=composed(), steps=2, label_dropout=0)
    train(tmp_path / "parts", system=composed(), steps=4, label_dropout=0)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


@pytest.mark.parametrize("log_every", [2, 5])
def test_a_line_of_metrics_that_spans_an_interruption_is_the_same(tmp_path, log_every):
    train(tmp_path / "whole", steps=20, log_every=log_every)
    train(tmp_path / "parts", steps=9, log_every=log_every)
    train(tmp_path / "parts", steps=20, log_every=log_every)
    due = [line for line in lines(tmp_path / "parts") if line["step"] % log_every == 0]
    assert due == lines(tmp_path / "whole")


def test_the_sampler_that_learns_continues_with_what_it_learned(tmp_path):
    def run(name, steps):
        composed = system(timesteps=("loss_second_moment", {"history": 2}), num_steps=5)
        train(tmp_path / name, system=composed, steps=steps)

    run("whole", 16)
    run("parts", 11)
    run("parts", 16)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    count = load(content(tmp_path / "whole")["trainer.safetensors"])["timesteps.1"]
    assert count.sum() == 16 * 5  # every unweighted loss was seen once


def test_network_dropout_is_reproduced(tmp_path):
    def composed():
        torch.manual_seed(0)
        unet = dict(channels=8, num_res_blocks=1, channel_mult=(1,), attention_resolutions=(), groups=4, dropout=0.5)
        return diffkit.compose(schedule="cosine", backbone=("unet", unet), data_shape=(1, 4, 4), num_steps=20, bins=17)

    data = images()
    data.labels = None
    options = dict(data=data, label_dropout=0, save_every=100)
    train(tmp_path / "whole", system=composed(), steps=6, **options)
    torch.manual_seed(123)  # whatever the global generator holds
    train(tmp_path / "parts", system=composed(), steps=2, **options)
    train(tmp_path / "parts", system=composed(), steps=6, **options)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")


def test_the_global_generator_is_left_as_it_was(tmp_path):
    composed, before = system(), torch.get_rng_state()
    train(tmp_path, system=composed, steps=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_change_nothing(tmp_path):
    train(tmp_path / "here", steps=4)
    train(tmp_path / "there", steps=4, workers=1)
    assert content(tmp_path / "there") == content(tmp_path / "here")


def test_metrics_are_rewritten_not_appended_twice(tmp_path):
    train(tmp_path, steps=6)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": 1.0}\n{"step": 8, "lo')  # lines of updates that no checkpoint holds
    train(tmp_path, steps=10)
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 11))


def test_a_finished_run_is_returned_as_it_is(tmp_path):
    done = train(tmp_path)
    stamp = (tmp_path / "model.safetensors").stat().st_mtime_ns
    again = train(tmp_path, seed=5)
    for a, b in zip(done.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == stamp


def test_continuous_data_trains_and_continues(tmp_path):
    options = dict(data=points(), label_dropout=0)
    train(tmp_path / "whole", system=point_system(), **options)
    train(tmp_path / "parts", system=point_system(), **(options | {"steps": 5}))
    train(tmp_path / "parts", system=point_system(), **options)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


class Forked:
    """A run in a process of its own, forked from this one, which says the number of each update that it has done."""

    def __init__(self, out: Path, pause: float = 0.0, **options: Any):
        reading, writing = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            status = 1
            try:
                self._run(out, pause, writing, options)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        self.steps = os.fdopen(reading)

    @staticmethod
    def _run(out: Path, pause: float, writing: int, options: dict[str, Any]) -> None:
        update = Trainer.update

        def told(self, batch, draws=None):
            update(self, batch, draws)
            time.sleep(pause)
            os.write(writing, f"{self.step}\n".encode())

        Trainer.update = told
        train(out, steps=60, save_every=3, **options)

    def wait_for(self, step: int) -> None:
        assert any(int(line) >= step for line in self.steps), "the run ended early"

    def kill(self) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        self.steps.close()


forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork a process")


@forking
def test_kill_9_loses_nothing_but_time(tmp_path):
    process = Forked(tmp_path / "killed")
    process.wait_for(20)
    process.kill()
    assert 15 <= checkpoints(tmp_path / "killed")[0] < 60
    train(tmp_path / "killed", steps=60, save_every=3)
    train(tmp_path / "whole", steps=60, save_every=3)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))


@pytest.mark.parametrize("last", [6, 12])
def test_what_was_still_to_do_after_the_last_save_is_made_up(tmp_path, monkeypatch, last):
    options = dict(steps=12, save_every=6, log_every=5, val_every=100, preview_every=6, preview=4, preview_steps=3)
    train(tmp_path / "whole", val=images(8), **options)

    class Killed(BaseException):
        pass

    save = _Training._save

    def saved_and_killed(self):
        save(self)
        if self.trainer.step == last:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(_Training, "_save", saved_and_killed)
        with pytest.raises(Killed):
            train(tmp_path / "killed", val=images(8), **options)
    previews = tmp_path / "killed" / "previews"
    (previews / f"step_{last:08d}.png").unlink()
    (previews / ".step_00000012.png.7a504f23.tmp").touch()
    train(tmp_path / "killed", val=images(8), **options)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert "val_loss" in lines(tmp_path / "killed")[-1]
    for path in (tmp_path / "whole" / "previews").iterdir():
        assert (previews / path.name).read_bytes() == path.read_bytes()
    assert len(list(previews.iterdir())) == 2
    before = (tmp_path / "killed" / "metrics.jsonl").read_bytes()
    train(tmp_path / "killed", val=images(8), **options)
    assert (tmp_path / "killed" / "metrics.jsonl").read_bytes() == before


@forking
def test_workers_left_behind_do_not_keep_the_lock(tmp_path):
    process = Forked(tmp_path, workers=1)
    process.wait_for(4)
    process.kill()
    train(tmp_path, steps=5, save_every=3)


@forking
def test_a_second_writer_is_refused_at_once_and_the_lock_dies_with_its_holder(tmp_path):
    process = Forked(tmp_path, pause=0.05)
    try:
        process.wait_for(1)
        begun = time.monotonic()
        with pytest.raises(OptionError, match=rf"is being written by another training .process {process.process} on"):
            train(tmp_path)
        assert time.monotonic() - begun < 1
    finally:
        process.kill()
    train(tmp_path, steps=2)


@pytest.mark.parametrize(("number", "how"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_saves_after_the_update_at_hand(tmp_path, monkeypatch, capsys, number, how):
    update = Trainer.update

    def signalled(self, batch, draws=None):
        if self.step == 6:
            signal.raise_signal(number)
        update(self, batch, draws)

    before = signal.getsignal(number)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "update", signalled)
        with pytest.raises(how) as caught:
            train(tmp_path / "parts", steps=12, progress=True)
    assert caught.value.args == ((143,) if how is SystemExit else ())
    assert signal.getsignal(number) is before
    assert checkpoints(tmp_path / "parts")[0] == 7
    assert f"{number.name}: saved step 7" in capsys.readouterr().err
    diffkit.load(tmp_path / "parts")
    train(tmp_path / "parts", steps=12)
    train(tmp_path / "whole", steps=12)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


def test_a_second_ctrl_c_does_not_wait(tmp_path, monkeypatch):
    def impatient(self, batch, draws=None):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # the same once more
        monkeypatch.setattr(signals, "PATIENCE", 0.0)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("unreachable")

    monkeypatch.setattr(Trainer, "update", impatient)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    assert checkpoints(tmp_path) == []


@pytest.mark.slow
@forking
def test_forty_kills_at_random_moments(tmp_path):
    rng, run = random.Random(0), tmp_path / "killed"
    for _ in range(40):
        process = Forked(run)
        time.sleep(rng.uniform(0.02, 0.3))
        process.kill()
        if (run / "model.safetensors").exists():
            diffkit.load(run)
        if checkpoints(run)[:1] == [60]:
            shutil.rmtree(run)
    train(run, steps=60, save_every=3)
    train(tmp_path / "whole", steps=60, save_every=3)
    assert lines(run) == lines(tmp_path / "whole")
    assert content(run) == content(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_a_long_life_leaks_nothing(tmp_path):
    """2,000 updates, saved every 3 and begun again every 50: memory, open files and the folder stay as they are."""

    def memory() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    def opened() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    found = []
    for steps in range(50, 2001, 50):
        train(tmp_path, steps=steps, save_every=3, log_every=10, keep=2)
        found.append((memory(), opened()))
    (before, files), (after, files_after) = found[4], found[-1]
    assert after < 1.05 * before
    assert files_after == files
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00001998", "step_00002000"]
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(10, 2001, 10))
