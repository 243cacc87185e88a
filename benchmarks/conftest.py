"""Benchmarks record, they never assert a time. Results go to ``--results`` (default benchmarks/results) as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the costly cases too")
    parser.addoption("--results", default=str(HERE / "results"), help="folder for the JSON files")


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "device": cuda or f"{platform.machine()} CPU, 1 thread of {os.cpu_count()}",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or None,
        "load": round(os.getloadavg()[0], 2),
    }


def interleaved(cases: Mapping[str, Callable[[], object]], rounds: int = 15) -> dict[str, list[float]]:
    """CPU seconds of each case, taken in turn so that a drift of the machine hits all alike; two warm-ups."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(2):
        for case in cases.values():
            case()
    for _ in range(rounds):
        for name, case in cases.items():
            begun = time.process_time()
            case()
            found[name].append(time.process_time() - begun)
    return found


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times faster, pair by pair: median, 10th and 90th percentile."""
    ratios = sorted(a / b for a, b in zip(slow, fast, strict=True))
    cut = statistics.quantiles(ratios, n=10)
    return {"median": round(statistics.median(ratios), 2), "p10": round(cut[0], 2), "p90": round(cut[-1], 2)}


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[[str, list[dict[str, Any]]], None]:
    """Write the rows of one benchmark, and print them as a table."""

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        folder = Path(request.config.getoption("--results"))
        folder.mkdir(parents=True, exist_ok=True)
        content = {"benchmark": name, "machine": machine(), "rows": rows}
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{name}")
            for row in rows:
                print("  " + "  ".join(f"{key}={value}" for key, value in row.items()))

    return write
