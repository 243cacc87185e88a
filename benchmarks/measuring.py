"""How things are timed: in turn, in medians, and as ratios of what was taken together.

On a CPU the quantity is the process's CPU time with one thread, which other jobs on the machine disturb least; on a GPU
it is wall time between synchronizations. Nothing here asserts a time.
"""

from __future__ import annotations

import gc
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import versions

from diffkit.training.precision import emulation_warning

HERE = Path(__file__).parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

PEAK_FLOPS = {"H200": 790e12, "H100": 790e12, "A100": 280e12}
"""Dense bfloat16 matrix rate, FLOP/s, that a utilisation is a share of; by part of the device's name.

H200: the rate that large products reach, 0.80 of the data sheet's 989e12, which no program reaches. H100 has the same
arithmetic; A100 is 0.90 of its data sheet.
"""


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "device": device_name(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "peers": {name: version for name, version in versions().items() if version},
        "commit": commit(),
        "load": round(os.getloadavg()[0], 2),
    }


def commit() -> str | None:
    """The commit that is checked out; None without git, or in a copy of the files alone."""
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    except OSError:
        return None
    return found.stdout.strip() or None


def device_name() -> str:
    """The GPU's name, or what CPU this is."""
    if DEVICE.type == "cuda":
        return torch.cuda.get_device_name()
    tell = getattr(torch.cpu, "get_capabilities", dict)  # torch 2.9 or newer
    name = tell().get("cpu_name") or f"{platform.machine()} CPU"
    emulates = ", bfloat16 emulated" if emulation_warning("bf16", DEVICE) else ""
    return f"{name} ({torch.backends.cpu.get_cpu_capability()}{emulates}), 1 thread of {os.cpu_count()}"


def peak_flops() -> float | None:
    """The device's entry in `PEAK_FLOPS`; None if there is none."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name in device_name()), None)


def clock() -> float:
    """Seconds: CPU time of the process, or, on a GPU, wall time once the device is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    rounds: int = 15,
    now: Callable[[], float] = clock,
    warm_ups: int = 2,
) -> dict[str, list[float]]:
    """Seconds of each case and round by the clock ``now``, after some warm-ups.

    All cases are run in every round, so that a drift of the machine hits them alike, in an order that is drawn anew, so
    that none always follows the same neighbour: one that leaves memory to be given back makes the next one slower.
    """
    found: dict[str, list[float]] = {name: [] for name in cases}
    order = random.Random(0)
    for _ in range(warm_ups):
        for case in cases.values():
            case()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name in order.sample(list(cases), len(cases)):
                begun = now()
                cases[name]()
                found[name].append(now() - begun)
    finally:
        gc.enable()
    return found


def median(seconds: list[float], per: float = 1.0, digits: int = 3) -> float:
    """Median of what one of ``per`` parts took, to so many significant digits."""
    value = statistics.median(seconds) / per
    return float(f"{value:.{digits}g}")


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times faster, pair by pair: median, 10th and 90th percentile; and "best", of the least times of each."""
    ratios = sorted(a / b for a, b in zip(slow, fast, strict=True))
    cut = statistics.quantiles(ratios, n=10)
    found = {"median": statistics.median(ratios), "p10": cut[0], "p90": cut[-1], "best": min(slow) / min(fast)}
    return {name: round(value, 2) for name, value in found.items()}


def table(
    seconds: Mapping[str, list[float]], unit: str, scale: float, against: Mapping[str, tuple[str, ...]]
) -> list[dict[str, Any]]:
    """One row per case: its median in a unit, and how many times faster it is than others in the same rounds.

    Args:
        seconds: As `interleaved` returns.
        unit: Name of the column, such as "us_per_step".
        scale: What a second is in that unit.
        against: Case -> those it is compared with.
    """
    rows = []
    for name, taken in seconds.items():
        compared = {f"times_faster_than_{other}": ratio(seconds[other], taken) for other in against.get(name, ())}
        rows.append({"case": name, unit: median(taken, 1 / scale), **compared})
    return rows
