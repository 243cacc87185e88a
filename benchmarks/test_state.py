"""What training does beside the network: running means, optimizer, gradient norm, and checkpoints on disk."""

from __future__ import annotations

import copy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from configurations import SMALL, system_of
from measuring import DEVICE, interleaved, table
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import diffkit
from diffkit.runtime.run_layout import step_name
from diffkit.training import checkpoint
from diffkit.training.checkpoint_writer import _copied
from diffkit.training.ema import Ema

PAIRS = {
    "AdamW fused": ("AdamW loop",),
    "norm at once": ("norm parameter by parameter",),
    "save": ("torch.save",),
    "training waits for a save": ("torch.save",),
    "load, verified": ("torch.load",),
}
"""Case -> what it is compared with."""


def networks(full: bool) -> list[str]:
    return [SMALL, "iddpm/cifar10-uncond"] if full or DEVICE.type == "cuda" else [SMALL]


def system_with_gradients(name: str) -> diffkit.System:
    system = system_of(name)
    for parameter in system.parameters():
        parameter.grad = torch.randn_like(parameter)
    return system


@pytest.mark.parametrize("name", [SMALL, "iddpm/cifar10-uncond"])
def test_running_means(name, full, record):
    if name not in networks(full):
        pytest.skip("add --full for the larger network")
    network = system_of(name).network
    means, theirs = Ema(network, [0.9999], warmup=False), [p.detach().clone() for p in network.parameters()]
    averaged = AveragedModel(copy.deepcopy(network), multi_avg_fn=get_ema_multi_avg_fn(0.9999))

    @torch.no_grad()
    def loop() -> None:
        for mean, parameter in zip(theirs, network.parameters(), strict=True):
            mean.mul_(0.9999).add_(parameter, alpha=1 - 0.9999)

    cases = {
        "diffkit": lambda: means.update(10),
        "plain loop": loop,
        "AveragedModel": lambda: averaged.update_parameters(network),
    }
    rows = table(interleaved(cases, rounds=15), "ms", 1e3, against={"diffkit": ("plain loop", "AveragedModel")})
    count = sum(1 for _ in network.parameters())
    record(f"ema_{name.replace('/', '_')}", "One running mean of the weights", rows, dtype="float32", tensors=count)


@pytest.mark.parametrize("name", [SMALL, "iddpm/cifar10-uncond"])
def test_optimizer_and_norm(name, full, record):
    if name not in networks(full):
        pytest.skip("add --full for the larger network")
    parameters = list(system_with_gradients(name).parameters())
    fused = torch.optim.AdamW(parameters, fused=True)
    loop = torch.optim.AdamW([p.detach().clone().requires_grad_() for p in parameters], foreach=False)
    for group in loop.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn_like(parameter)
    gradients = [p.grad for p in parameters]
    cases = {
        "AdamW fused": fused.step,
        "AdamW loop": loop.step,
        "norm at once": lambda: torch.nn.utils.get_total_norm(gradients),
        "norm parameter by parameter": lambda: sum(float((g**2).sum()) for g in gradients) ** 0.5,
    }
    rows = table(interleaved(cases, rounds=9), "ms", 1e3, against=PAIRS)
    record(f"optimizer_{name.replace('/', '_')}", "Optimizer step and gradient norm", rows, tensors=len(parameters))


@pytest.mark.parametrize("name", [SMALL, "iddpm/cifar10-uncond"])
def test_checkpoints(name, full, record, tmp_path):
    """Both write the same tensors; ours are flushed to the disk and verified when read."""
    if name not in networks(full):
        pytest.skip("add --full for the larger network")
    weights = system_of(name).network.state_dict()
    files = {"model": weights, "ema": {key: value.clone() for key, value in weights.items()}}
    checkpoint.write(tmp_path, 1, files, {})
    path = tmp_path / step_name(1)
    torch.save(files, tmp_path / "plain.pt")

    def again() -> None:
        checkpoint.write(tmp_path, 2, files, {})

    cases = {
        "save": again,
        "torch.save": lambda: torch.save(files, tmp_path / "again.pt"),
        "load, verified": lambda: checkpoint.read(path),
        "torch.load": lambda: torch.load(tmp_path / "plain.pt", weights_only=True),
    }
    rows = table(interleaved(cases, rounds=5), "ms", 1e3, against=PAIRS)
    size = sum(value.numel() * value.element_size() for tensors in files.values() for value in tensors.values())
    record(
        f"checkpoint_{name.replace('/', '_')}", "Checkpoints: CPU time of writing and reading", rows, mb=size // 10**6
    )


def large_state(mb: int, folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Tensors of 1 MiB like those of a run: weights, a mean, and two moments in one file; written in both ways."""
    names = {"model": 1, "ema_0.9999": 1, "optimizer": 2}
    files = {
        name: {f"{i}": torch.randn(512, 512) for i in range(share * max(1, mb // 4))} for name, share in names.items()
    }
    checkpoint.write(folder, 1, files, {})
    torch.save(files, folder / "plain.pt")
    return files


@pytest.mark.parametrize("mb", [80, 600])
def test_waiting_for_saves(mb, full, record, tmp_path):
    """Wall time that training stands still for a save."""
    if mb > 80 and not full:
        pytest.skip("add --full for the larger state")
    files = large_state(mb, tmp_path)
    cases = {
        "training waits for a save": lambda: [_copied(tensors) for tensors in files.values()],
        "torch.save": lambda: torch.save(files, tmp_path / "again.pt"),
    }
    rows = table(interleaved(cases, rounds=7, now=time.perf_counter), "ms", 1e3, against=PAIRS)
    record(f"waiting_save_{mb}", "Checkpoints: wall time that training waits for a save", rows, mb=mb)


LOAD = """
import sys, time, torch
from pathlib import Path
from diffkit.training import checkpoint
torch.set_num_threads(1)
begun = time.perf_counter()
if sys.argv[1] == "load, verified":
    checkpoint.read(Path("step_00000001"))
else:
    torch.load("plain.pt", weights_only=True)
print(time.perf_counter() - begun)
"""


@pytest.mark.parametrize("mb", [80, 600])
def test_waiting_for_loads(mb, full, record, tmp_path):
    """Wall time of a load from warm files, each in a new process: in an old one, memory of the last load is at hand."""
    if mb > 80 and not full:
        pytest.skip("add --full for the larger state")
    large_state(mb, tmp_path)
    seconds: dict[str, list[float]] = {"load, verified": [], "torch.load": []}
    for _ in range(9):
        for case, found in seconds.items():
            command = [sys.executable, "-c", LOAD, case]
            found.append(float(subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout))
    rows = table(seconds, "ms", 1e3, against=PAIRS)
    for row in rows:
        row["least_ms"] = round(min(seconds[row["case"]]) * 1e3, 1)
    record(f"waiting_load_{mb}", "Checkpoints: wall time of a load in a new process", rows, mb=mb)
