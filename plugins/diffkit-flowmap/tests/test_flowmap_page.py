"""The commands of docs/learn/one-step.md, and DDP, run as they are typed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import diffkit

NETWORK = "--backbone.channels 8 --backbone.groups 8 --backbone.channel-mult 1 --backbone.times 2"
TRAIN = (
    "train --data digits --data.split train --out run --steps {steps} --batch-size 8 --lr 3e-3 --schedule flow_linear "
    "--schedule.time-scale 10 --mean flow --var fixed_small --loss {loss} --timesteps flowmap_pairs "
    f"--sampler flow_map --num-steps 1 {NETWORK}"
)


def typed(*command: str, folder: Path, launcher: tuple[str, ...] = ("-m", "diffkit")) -> str:
    """What a command prints, run with the plugins that are known here."""
    given = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, *command],
        cwd=folder,
        env=os.environ | given,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["mean_flow", "shortcut"])
def test_the_commands_of_the_page(loss: str, tmp_path: Path):
    pytest.importorskip("sklearn")
    typed(*TRAIN.format(steps=2, loss=loss).split(), folder=tmp_path)
    typed("sample", "run", "-n", "2", "--out", "samples", folder=tmp_path)
    system = diffkit.load(tmp_path / "run")
    count: list[None] = []
    system.network.register_forward_pre_hook(lambda *_: count.append(None))
    system.sample(2, y=3, progress=False)
    assert len(count) == 1


@pytest.mark.slow
def test_two_processes_train_to_the_same_weights_and_resume_to_the_bit(tmp_path: Path):
    """DDP sees one forward pass of a loss that calls the network several times."""
    pytest.importorskip("sklearn")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "diffkit")
    for name, stops in {"whole": (4,), "cut": (2, 4)}.items():
        (tmp_path / name).mkdir()
        for steps in stops:
            command = TRAIN.format(steps=steps, loss="mean_flow") + " --microbatch 2"
            typed(*command.split(), folder=tmp_path / name, launcher=launcher)
    whole, cut = (diffkit.load(tmp_path / name / "run").network.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(value, cut[key]) for key, value in whole.items())
