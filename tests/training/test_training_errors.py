"""Whatever ends a run early, what it has learned stays, and it goes on as if nothing had happened."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forks import forked, forking
from torch import nn
from training_support import checkpoints, content, lines, point_system, points, system, train

import diffkit
from diffkit.errors import CheckpointError, DataError, DivergedError, OptionError, ProcessLostError
from diffkit.training import checkpoint, signals
from diffkit.training.ema import Ema
from diffkit.training.metrics_file import MetricsFile
from diffkit.training.trainer import Trainer
from diffkit.training.validation import HeldOutData

OPTIONS: dict[str, Any] = dict(steps=12, save_every=100, log_every=5)
BAD = 21
"""Number of an example that the sixth update is the first to meet."""


class Examples:
    """Of which number 21 raises an error, or kills the process that reads it."""

    shape, bins, classes = (1, 4, 4), 17, None

    def __init__(self, error: BaseException | None = None, kills: bool = False):
        self.error, self.kills = error, kills

    def __len__(self):
        return 23

    def __getitem__(self, i):
        if i == BAD and self.error is not None:
            raise self.error
        if i == BAD and self.kills:
            signal.raise_signal(signal.SIGKILL)
        return torch.full((1, 4, 4), i % 17, dtype=torch.uint8), {}


def plain(seed: int = 0, **more: Any) -> diffkit.System:
    return system(seed, backbone=("mlp", {"hidden": 16, "depth": 1}), **more)


def same(a: Path, b: Path) -> None:
    """Two runs have the same result, to the bit."""
    assert lines(a) == lines(b)
    assert content(a) == content(b)
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "error", [OSError("image file is truncated"), KeyError("label"), StopIteration(), ValueError()]
)
def test_an_example_that_cannot_be_read(tmp_path, error, workers, capsys):
    if workers and isinstance(error, StopIteration | ValueError):
        pytest.skip("one process that reads, and two errors, are enough")
    options = OPTIONS | dict(label_dropout=0, batch_size=4)
    kind = type(error).__name__
    with pytest.raises(DataError, match=rf"^example 21 cannot be read: {kind}") as caught:
        train(tmp_path / "run", system=plain(), data=Examples(error), workers=workers, progress=True, **options)
    assert "\n" not in str(caught.value) and kind in repr(caught.value.__cause__)
    saved = checkpoints(tmp_path / "run")[0]
    assert f"DataError: saved step {saved} in" in capsys.readouterr().err
    for name in ("run", "whole"):
        train(tmp_path / name, system=plain(), data=Examples(), **options)
    same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_end_that_comes_out_of_the_data(tmp_path, error, workers):
    options = OPTIONS | dict(label_dropout=0, batch_size=4)
    with pytest.raises(type(error)):
        train(tmp_path, system=plain(), data=Examples(error), workers=workers, **options)
    assert checkpoints(tmp_path)[0] > 0


# torch's handler of SIGCHLD may raise while torch counts the open files that are left, and leave one unclosed
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_worker_that_is_killed(tmp_path):
    options = OPTIONS | dict(label_dropout=0, batch_size=4)
    with pytest.raises(DataError, match=r"a process that reads data was killed, .*; use workers=0"):
        train(tmp_path, system=plain(), data=Examples(kills=True), workers=1, **options)
    assert checkpoints(tmp_path)[0] > 0


class TroubleError(Exception):
    pass


def raising(monkeypatch, owner, name, error, at=7):
    """Let a method raise once the run is at some step."""
    whole = getattr(owner, name)

    def method(self, *args, **more):
        trainer = self if isinstance(self, Trainer) else getattr(self, "trainer", None)
        step = calls[0] if trainer is None else trainer.step
        calls[0] += 1
        if step == at and not raised:
            raised.append(step)
            raise error
        return whole(self, *args, **more)

    calls, raised = [0], []
    monkeypatch.setattr(owner, name, method)


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        (Trainer, "_inputs", 7),
        (Trainer, "_loss", 7),
        (Trainer, "_finish", 7),
        (Trainer, "raise_if_diverged", 7),
        (MetricsFile, "write", 1),
        (HeldOutData, "measure", 6),
    ],
)
@pytest.mark.parametrize(
    "error", [TroubleError("out of luck"), pytest.param(KeyboardInterrupt(), marks=pytest.mark.slow)]
)
def test_an_error_anywhere_keeps_the_last_complete_update(tmp_path, monkeypatch, owner, name, at, error):
    options = OPTIONS | dict(val_every=6, preview_every=6, preview=1, preview_steps=2, microbatch=2)
    val = Examples()
    with monkeypatch.context() as patched, pytest.raises(type(error)) as caught:
        raising(patched, owner, name, error, at)
        train(tmp_path / "run", system=plain(), data=Examples(), val=val, **(options | dict(label_dropout=0)))
    assert caught.value is error
    assert checkpoints(tmp_path / "run")[0] in (5, 6, 7)
    for folder in ("run", "whole"):
        train(tmp_path / folder, system=plain(), data=Examples(), val=val, **(options | dict(label_dropout=0)))
    same(tmp_path / "run", tmp_path / "whole")
    previews = [(tmp_path / folder / "previews" / "step_00000006.png").read_bytes() for folder in ("run", "whole")]
    assert previews[0] == previews[1]


def test_an_update_that_was_half_made_is_not_saved(tmp_path, monkeypatch, capsys):
    """The weights have moved already and their means have not: nothing can bring that back."""
    with monkeypatch.context() as patched, pytest.raises(TroubleError):
        raising(patched, Ema, "update", TroubleError(), at=7)
        train(tmp_path / "run", **(OPTIONS | dict(save_every=4)))
    assert checkpoints(tmp_path / "run") == [4]
    said = capsys.readouterr().err
    assert "warning: TroubleError: the 3 updates since step 4 are lost: the error came while they changed" in said
    for name in ("run", "whole"):
        train(tmp_path / name, **(OPTIONS | dict(save_every=4)))
    same(tmp_path / "run", tmp_path / "whole")


def test_ctrl_c_twice_in_the_middle_of_an_update_waits_for_its_end(tmp_path, monkeypatch):
    update = Ema.update

    def interrupted(self, step):
        if step == 6:
            signal.raise_signal(signal.SIGINT)
            monkeypatch.setattr(signals, "PATIENCE", 0.0)
            signal.raise_signal(signal.SIGINT)
        update(self, step)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Ema, "update", interrupted)
        train(tmp_path / "run", **OPTIONS)
    assert checkpoints(tmp_path / "run") == [7]
    for name in ("run", "whole"):
        train(tmp_path / name, **OPTIONS)
    same(tmp_path / "run", tmp_path / "whole")


class Running(nn.Module):
    """With running means, which a forward pass changes."""

    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(2), nn.Linear(2, 2)

    def forward(self, x, time):
        return self.out(self.norm(x))


def test_running_means_are_those_of_the_last_complete_update(tmp_path, monkeypatch):
    options = OPTIONS | dict(data=points(), label_dropout=0, batch_size=6, microbatch=3)

    def run(name):
        torch.manual_seed(0)
        train(tmp_path / name, system=point_system(backbone=Running()), **options)

    with monkeypatch.context() as patched, pytest.raises(TroubleError):
        raising(patched, Trainer, "_finish", TroubleError(), at=7)
        run("run")
    assert checkpoints(tmp_path / "run") == [7]
    for name in ("run", "whole"):
        run(name)
    same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 1 byte")])
def test_out_of_memory(tmp_path, monkeypatch, error):
    with monkeypatch.context() as patched, pytest.raises((OptionError, MemoryError)) as caught:
        raising(patched, Trainer, "update", error)
        train(tmp_path / "run", **OPTIONS)
    assert isinstance(caught.value, MemoryError) or "use microbatch=2" in str(caught.value)
    assert checkpoints(tmp_path / "run") == [7]


class Late(nn.Module):
    """Not finite from some call on."""

    def __init__(self, calls: int):
        super().__init__()
        self.linear, self.calls = nn.Linear(2, 2), calls

    def forward(self, x, time):
        self.calls -= 1
        return self.linear(x) / (self.calls >= 0)


def test_divergence_keeps_the_weights_of_before(tmp_path):
    options = OPTIONS | dict(data=points(), label_dropout=0, max_skips=2)
    with pytest.raises(DivergedError, match=r"the last checkpoint is .*step_00000008'; a new run can begin with its"):
        train(tmp_path, system=point_system(backbone=Late(5)), **options)
    assert checkpoints(tmp_path) == [8]
    assert all(
        t.isfinite().all() for t in checkpoint.read(tmp_path / "checkpoints" / "step_00000008").files["model"].values()
    )
    with pytest.raises(DivergedError, match="step_00000008"):  # skipped updates change nothing worth another checkpoint
        train(tmp_path, system=point_system(backbone=Late(0)), **options)
    assert checkpoints(tmp_path) == [8]


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch, capsys):
    update = Trainer.update

    def spoilt(self, batch, draws=None):
        update(self, batch, draws)
        if self.step == 7:
            with torch.no_grad():
                next(self.network.parameters()).fill_(float("nan"))
            raise TroubleError

    monkeypatch.setattr(Trainer, "update", spoilt)
    with pytest.raises(TroubleError):
        train(tmp_path, **(OPTIONS | dict(save_every=4)))
    assert checkpoints(tmp_path) == [4]
    assert "the 3 updates since step 4 are lost: the weights are not finite" in capsys.readouterr().err


def test_a_full_disk_loses_no_more_than_it_must(tmp_path, monkeypatch, capsys):
    def full(file, state):
        raise OSError(errno.ENOSPC, "No space left on device", file.name)

    with monkeypatch.context() as patched, pytest.raises(CheckpointError, match="No space left on device"):
        patched.setattr(checkpoint, "write_weights", full)
        train(tmp_path / "run", **(OPTIONS | dict(save_every=4)))
    lost = re.search(
        r"warning: CheckpointError: the (\d+) updates since the beginning are lost", capsys.readouterr().err
    )
    assert lost and 4 <= int(lost[1]) <= 12  # noticed at the next update after the write has failed
    assert checkpoints(tmp_path / "run") == []
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == []
    for name in ("run", "whole"):
        train(tmp_path / name, **(OPTIONS | dict(save_every=4)))
    same(tmp_path / "run", tmp_path / "whole")


def test_a_full_disk_does_not_hide_what_went_wrong(tmp_path, monkeypatch, capsys):
    def full(file, state):
        raise OSError(errno.ENOSPC, "No space left on device", file.name)

    monkeypatch.setattr(checkpoint, "write_weights", full)
    with pytest.raises(DataError, match="example 21 cannot be read: OSError: truncated"):
        options = OPTIONS | dict(label_dropout=0, batch_size=4)
        train(tmp_path, system=plain(), data=Examples(OSError("truncated")), **options)
    said = capsys.readouterr().err
    assert "warning: DataError: the 5 updates since the beginning are lost: cannot write checkpoint" in said


@forking
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_an_example_that_one_process_cannot_read_ends_all_with_everything_saved(tmp_path, strategy):
    options = OPTIONS | dict(label_dropout=0, batch_size=4, strategy=strategy)

    def job(rank):
        with pytest.raises(DataError, match="example 21 cannot be read: OSError: truncated"):
            train(tmp_path / "run", system=plain(rank), data=Examples(OSError("truncated")), **options)

    forked(2, job)
    assert checkpoints(tmp_path / "run")[0] > 0
    for name in ("run", "whole"):
        forked(2, lambda rank, n=name: train(tmp_path / n, system=plain(rank), data=Examples(), **options) and None)
    same(tmp_path / "run", tmp_path / "whole")


@forking
@pytest.mark.parametrize(
    ("strategy", "faulty", "saved"),
    [("ddp", 1, [7]), ("ddp", 0, [7]), pytest.param("fsdp", 1, [4], marks=pytest.mark.slow)],
)
def test_an_error_in_one_process_hangs_none(tmp_path, strategy, faulty, saved, monkeypatch):
    """What one holds all of, the first saves by itself; shares cannot be put together any more."""

    def job(rank):
        if rank == faulty:
            raising(monkeypatch, Trainer, "_inputs", TroubleError("alone"))
        with pytest.raises((TroubleError, ProcessLostError)) as caught:
            train(tmp_path / "run", seed=rank, batch_size=8, strategy=strategy, **(OPTIONS | dict(save_every=4)))
        return type(caught.value).__name__

    names = forked(2, job)
    assert names[faulty] == "TroubleError" and names[1 - faulty] == "ProcessLostError"
    assert checkpoints(tmp_path / "run")[:1] == saved
    options = OPTIONS | dict(save_every=4, batch_size=8, strategy=strategy)
    for name in ("run", "whole"):
        forked(2, lambda rank, n=name: train(tmp_path / n, seed=rank, **options) and None)
    same(tmp_path / "run", tmp_path / "whole")


LEFT_BY_AN_ERROR = """
import sys
import torch, diffkit
from diffkit.training.trainer import Trainer

class Examples:
    shape, bins, classes = (1, 4, 4), 17, None

    def __len__(self):
        return 23

    def __getitem__(self, i):
        return torch.full((1, 4, 4), i % 17, dtype=torch.uint8), {}

def update(self, batch, draws=None):
    raise ValueError("out of luck")

if __name__ == "__main__":
    Trainer.update = update
    system = diffkit.compose(schedule="cosine", backbone="mlp", data_shape=(1, 4, 4), num_steps=10, bins=17)
    try:
        diffkit.train(system, Examples(), out=sys.argv[1], steps=9, batch_size=4, workers=1, progress=False)
    except ValueError as error:
        kept = error  # whose traceback holds whatever read the data
"""


def test_an_error_that_is_kept_keeps_no_worker_alive(tmp_path):
    """Workers ignore signals, so that an interpreter that waits for one at its exit would wait for ever."""
    script = tmp_path / "script.py"
    script.write_text(LEFT_BY_AN_ERROR)
    environment = {**os.environ, "PYTHONPATH": str(Path(diffkit.__file__).parents[1])}
    subprocess.run([sys.executable, script, tmp_path / "run"], env=environment, check=True, timeout=60)
