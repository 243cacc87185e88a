"""What torchrun does with more than one machine: two agents that find each other by a rendezvous on this one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from training_support import checkpoints, content, lines

pytestmark = pytest.mark.slow(minutes=1)
HERE = Path(__file__).parent
PATIENCE = 600.0
"""Seconds until a job counts as stuck; on an idle machine each takes some 20."""
JOB = """
    import os, sys, time
    sys.path[:0] = [{here!r}, {tests!r}]
    import torch
    torch.set_num_threads(1)
    from pathlib import Path
    from training_support import train
    from diffkit.training.trainer import Trainer

    out, strategy, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
    update = Trainer.update

    def slow(self, batch, draws=None):
        update(self, batch, draws)
        time.sleep(pause)

    Trainer.update = slow
    train(Path(out), seed=int(os.environ["RANK"]), steps=60, save_every=3, batch_size=8, strategy=strategy)
"""


class Agent:
    """The torchrun of one machine, with one process."""

    def __init__(self, room: Path, number: int, port: int, out: Path, strategy: str, pause: float = 0.0):
        script = room / "job.py"
        script.write_text(textwrap.dedent(JOB.format(here=str(HERE), tests=str(HERE.parent))))
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={number}"]
        command += ["--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=job"]
        command += [f"--rdzv-conf=is_host={int(number == 0)},join_timeout=120", "--local-addr=127.0.0.1"]
        command += ["--max-restarts=3", str(script), str(out), strategy, str(pause)]
        self.said = room / f"agent{number}"
        with self.said.open("a") as said:
            environment = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
            self.process = subprocess.Popen(command, stdout=said, stderr=said, env=environment, start_new_session=True)

    def kill(self) -> None:
        """End the agent and its process at once, as a machine that loses its power does."""
        agent = self.process.pid
        workers = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
        for process in (agent, *map(int, workers)):
            os.kill(process, signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(run: Path, step: int) -> None:
    end = time.monotonic() + PATIENCE
    while not (checkpoints(run)[:1] or [0])[0] >= step:
        assert time.monotonic() < end, "training does not get on"
        time.sleep(0.05)


def texts(agents: list[Agent]) -> str:
    return "\n".join(agent.said.read_text()[-3000:] for agent in agents)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_machine_that_is_lost_and_comes_back_loses_nothing(tmp_path, strategy):
    port = free_port()
    agents = [Agent(tmp_path, number, port, tmp_path / "run", strategy, pause=0.1) for number in (0, 1)]
    wait_for(tmp_path / "run", 6)
    agents[1].kill()
    agents[1] = Agent(tmp_path, 1, port, tmp_path / "run", strategy)
    try:
        for agent in agents:
            assert agent.process.wait(PATIENCE) == 0, texts(agents)
    finally:
        for agent in agents:
            if agent.process.poll() is None:
                agent.kill()
    port = free_port()
    whole = [Agent(tmp_path, number, port, tmp_path / "whole", strategy) for number in (0, 1)]
    for agent in whole:
        assert agent.process.wait(PATIENCE) == 0, texts(whole)
    assert lines(tmp_path / "run") == lines(tmp_path / "whole")
    assert content(tmp_path / "run") == content(tmp_path / "whole")
