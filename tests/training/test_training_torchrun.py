"""Jobs started by torchrun itself: processes that die, launchers that die, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from training_support import checkpoints, content, lines, train

from diffkit.errors import OptionError

pytestmark = pytest.mark.slow(minutes=1)
HERE = Path(__file__).parent

JOB = """
    import os, sys, time
    sys.path[:0] = [{here!r}, {tests!r}]
    import torch
    torch.set_num_threads(1)
    from pathlib import Path
    from training_support import train
    from diffkit.training.trainer import Trainer

    out, strategy, pause, dies_at = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    rank, update = int(os.environ["RANK"]), Trainer.update
    mark = Path(out) / "died"

    def watched(self, batch, draws=None):
        update(self, batch, draws)
        time.sleep(pause)
        if rank == 1 and self.step == dies_at and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), 9)

    Trainer.update = watched
    train(Path(out), seed=rank, steps=60, save_every=3, batch_size=8, strategy=strategy)
"""


def launch(tmp_path: Path, out: Path, strategy: str = "ddp", pause: float = 0.0, dies_at: int = -1, restarts: int = 0):
    script = tmp_path / "job.py"
    script.write_text(textwrap.dedent(JOB.format(here=str(HERE), tests=str(HERE.parent))))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", str(script), str(out), strategy, str(pause), str(dies_at)]
    with (tmp_path / "said").open("w") as said:
        return subprocess.Popen(command, stdout=said, stderr=said)


def wait_for(run: Path, step: int) -> None:
    end = time.monotonic() + 120
    while not (checkpoints(run)[:1] or [0])[0] >= step:
        assert time.monotonic() < end, "training does not get on"
        time.sleep(0.05)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_process_that_dies_is_started_again_and_nothing_is_lost(tmp_path, strategy):
    job = launch(tmp_path, tmp_path / "died", strategy, dies_at=25, restarts=1)
    assert job.wait(240) == 0, (tmp_path / "said").read_text()
    assert (tmp_path / "died" / "died").exists()
    whole = launch(tmp_path, tmp_path / "whole", strategy)
    assert whole.wait(240) == 0, (tmp_path / "said").read_text()
    assert lines(tmp_path / "died") == lines(tmp_path / "whole")
    assert content(tmp_path / "died") == content(tmp_path / "whole")


def test_processes_that_lose_their_launcher_save_and_end(tmp_path):
    run = tmp_path / "run"
    job = launch(tmp_path, run, pause=1.5)
    wait_for(run, 3)
    workers = children(job.pid)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    killed = time.monotonic()
    with pytest.raises(OptionError, match="is being written by another training"):
        train(run, steps=60, save_every=3, batch_size=8)
    while any(alive(worker) for worker in workers):
        assert time.monotonic() - killed < 10, "orphans train on"
        time.sleep(0.05)
    assert 3 < checkpoints(run)[0] < 60
    train(run, steps=60, save_every=3, batch_size=8)


def test_a_signal_to_the_launcher_saves_at_the_next_step(tmp_path):
    run = tmp_path / "run"
    job = launch(tmp_path, run, pause=0.2)
    wait_for(run, 3)
    job.send_signal(signal.SIGTERM)
    assert job.wait(30) != 0
    last = checkpoints(run)[0]
    assert 3 <= last < 60 and lines(run)[-1]["step"] == last


def children(parent: int) -> list[int]:
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in found]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
