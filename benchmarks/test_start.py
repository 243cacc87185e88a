"""From nothing to a first result, each in a process of its own: import, compose, first update, first sample."""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import time

import pytest

CASES = {
    "import torch": "import torch",
    "import diffkit": "import diffkit",
    "diffkit.compose, no network": "import diffkit; diffkit.compose(backbone=None)",
    "the same at T = 4000": "import diffkit; diffkit.compose(schedule='cosine', num_steps=4000, backbone=None)",
    "first sample": """
import diffkit
net = ("unet", dict(channels=32, channel_mult=(1, 2), num_res_blocks=1))
diffkit.compose(backbone=net, data_shape=(3, 16, 16)).sample(1, steps=10, progress=False)""",
    "first update": """
import diffkit, torch
net = ("unet", dict(channels=32, channel_mult=(1, 2), num_res_blocks=1))
system = diffkit.compose(backbone=net, data_shape=(3, 16, 16))
optimizer = torch.optim.AdamW(system.parameters())
system(torch.zeros(4, 3, 16, 16))["loss"].mean().backward()
optimizer.step()""",
    "first update of diffkit.train": """
import diffkit, tempfile, torch
system = diffkit.compose(schedule="cosine", backbone="mlp", data_shape=(1, 8, 8), num_steps=10)
with tempfile.TemporaryDirectory() as out:
    diffkit.train(system, torch.zeros(8, 1, 8, 8), out=out, steps=1, batch_size=8, progress=False)""",
    "diffkit --help": "import sys; sys.argv = ['diffkit', '--help']\nfrom diffkit.__main__ import main\nmain()",
    "from diffusers import DDPMScheduler": "from diffusers import DDPMScheduler",
    "from diffusers import UNet2DModel, DDPMPipeline": "from diffusers import UNet2DModel, DDPMPipeline",
    "azula": "import azula.sample, azula.nn.unet",
}
CODE = """
import resource, time
try:
    {body}
except SystemExit:
    pass
import sys
used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
print(used, len(sys.modules), file=sys.stderr)
"""
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
NEEDS = {"from diffusers": "diffusers", "azula": "azula"}


def seconds_of(code: str) -> tuple[float, int]:
    body = CODE.format(body=code.strip().replace("\n", "\n    "))
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, check=True, env=ONE_THREAD)
    used, modules = done.stderr.split()[-2:]
    return float(used), int(modules)


def installed(name: str) -> bool:
    needed = next((package for start, package in NEEDS.items() if name.startswith(start)), None)
    return needed is None or importlib.util.find_spec(needed) is not None


def test_start(full, record):
    names = [name for name in CASES if installed(name)]
    if importlib.util.find_spec("cyclopts") is None:
        names.remove("diffkit --help")
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in names}
    for number in range(6 if full else 4):
        for name in names:
            taken = seconds_of(CASES[name])
            if number:  # the first fills the page cache
                found[name].append(taken)
    torch_alone = statistics.median(used for used, _ in found["import torch"])
    rows = []
    for name, taken in found.items():
        used = statistics.median(one for one, _ in taken)
        over = round(used - torch_alone, 2)
        rows.append({"case": name, "cpu_s": round(used, 2), "over_torch_s": over, "modules": taken[0][1]})
    record("start", "CPU seconds of a fresh process from its start", rows)


@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_compile(cache, full, record, tmp_path_factory, request):
    """Seconds until the first compiled sample, with an empty compiler cache and with one that has it all."""
    if not full:
        pytest.skip("minutes on a CPU; add --full")
    folder = request.config.cache.mkdir("inductor") if cache == "warm" else tmp_path_factory.mktemp("cold")
    code = """
import diffkit, time
net = ("unet", dict(channels=32, channel_mult=(1, 2), num_res_blocks=1))
system = diffkit.compose(backbone=net, data_shape=(3, 16, 16))
system.sample(2, steps=2, compile=True, progress=False)
"""
    environment = ONE_THREAD | {"TORCHINDUCTOR_CACHE_DIR": str(folder)}
    if cache == "warm":
        subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
    begun, before = time.perf_counter(), children_seconds()
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
    wall, cpu = time.perf_counter() - begun, children_seconds() - before
    row = {"cache": cache, "wall_s": round(wall, 1), "cpu_s": round(cpu, 1)}
    record(f"compile_{cache}", "A fresh process to its first compiled sample, small U-Net at 16x16", [row])


def children_seconds() -> float:
    """CPU time of the processes that have ended."""
    return sum(os.times()[2:4])
