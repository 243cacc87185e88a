"""Measure how cost grows, and write results/growth.json, its page and its picture.

python -m benchmarks.growth           # some minutes on one core
python -m benchmarks.growth --draw    # the page and the picture again, from growth.json
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # the benchmarks import each other by their file names

from measuring import machine  # noqa: E402

from benchmarks.growth import cases, report  # noqa: E402

RESULTS = HERE / "results"


def of_processes() -> list[cases.Row]:
    """`cases.processes` at each point, each in a process of its own: torch remembers a group of processes."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return pool.map(cases.processes, cases.POINTS["processes"], chunksize=1)


CASES: dict[str, Callable[[], Any]] = {
    "resolution": cases.by_resolution,
    "channels": cases.by_channels,
    "levels": cases.by_levels,
    "batch": cases.by_batch,
    "processes": of_processes,
    "memory": lambda: cases.saved_by_layer(cases.system_of()),
    "ways": cases.ways,
}


def main(arguments: list[str]) -> None:
    """Measure what is named, everything by default, and write everything."""
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    stored = RESULTS / "growth.json"
    found = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
    for name in [] if "--draw" in arguments else arguments or CASES:
        found |= {name: CASES[name](), "machine": machine()}
        print(name, found[name])
        stored.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "growth.md").write_text(report.page(found), encoding="utf-8")
    report.draw(found, RESULTS / "growth.png")


if __name__ == "__main__":
    main(sys.argv[1:])
