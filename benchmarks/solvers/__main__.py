"""Measure every sampler, and write results/solvers.json, solvers.md and solvers.png."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.solvers.cases import (
    LEVELS,
    MEANS,
    SAMPLERS,
    SCHEDULES,
    STEPS,
    exact,
    flow_to_data,
    moments_of_data,
    system_of,
)
from benchmarks.solvers.report import draw, write
from diffkit.errors import CompositionError
from diffkit.registry.resolve import resolve
from diffkit.system.sampling import sampling_program
from diffkit.testing import measured_orders

RESULTS = Path(__file__).parent / "results"
DRAWN = 65536


def main() -> None:
    """Run all cases on the CPU in float64."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", action="store_true", help="measure nothing: draw what solvers.json holds")
    parser.add_argument("--only", nargs="+", choices=SAMPLERS, help="measure these samplers anew, and keep the rest")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "solvers.json"
    if arguments.draw:
        found = json.loads(path.read_text())
    else:
        found = {"machine": _machine(), "orders": {}, "errors": []}
        if arguments.only:
            found = json.loads(path.read_text())
            found["errors"] = [case for case in found["errors"] if case.get("sampler", "") not in ("", *arguments.only)]
        names = arguments.only or list(SAMPLERS)
        found["orders"] |= dict(_orders(names))
        found["errors"] += _errors(names)
        path.write_text(json.dumps(found, indent=1) + "\n")
    write(found, RESULTS / "solvers.md")
    draw(found, RESULTS / "solvers.png")


def _machine() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": "cpu",
        "dtype": "float64",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
    }


def _orders(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for label in names:
        sampler = resolve("sampler", SAMPLERS[label])[0]
        yield label, {"declared": sampler.order, "measured": measured_orders(sampler)}
        print("order of", label, flush=True)


def _errors(names: list[str]) -> Iterator[dict[str, Any]]:
    for schedule, (_, slot, spacing) in SCHEDULES.items():
        for mean in MEANS:
            case = {"schedule": schedule, "mean": mean}
            try:
                system = system_of(slot, mean)
            except CompositionError as error:
                yield case | {"refused": str(error).partition("\n  ")[2]}
                continue
            for label in names:
                yield case | {"sampler": label} | _measure(system, resolve("sampler", SAMPLERS[label])[0], spacing)
        print("errors on", schedule, flush=True)


def _measure(system: Any, sampler: Any, spacing: str) -> dict[str, Any]:
    """Errors at level 0 for each number of steps, and how often the network was asked."""
    found: list[dict[str, float]] = []
    for steps in STEPS:
        table = system.table_for(f"{spacing}{steps}")
        program = sampling_program(system.parts, sampler, table)
        asked = 0

        def denoise(x: Any, level: Any) -> Any:
            nonlocal asked
            asked += 1
            return exact(system)(x, level)

        x = _quantiles(DRAWN if sampler.stochastic else 63) * float(table.total_std[-1])
        generator = torch.Generator().manual_seed(0)
        noise = lambda x=x, g=generator: torch.randn(x.shape, dtype=x.dtype, generator=g)  # noqa: E731
        end = program.finish(denoise, x, noise)
        found.append((_weak(end) if sampler.stochastic else _strong(end, x, table)) | {"evaluations": asked})
    columns = {name: [row[name] for row in found] for name in found[0]}
    return {"stochastic": bool(sampler.stochastic), "levels": LEVELS} | columns


def _quantiles(count: int) -> torch.Tensor:
    return torch.special.ndtri((torch.arange(count, dtype=torch.float64)[:, None] + 0.5) / count)


def _strong(end: torch.Tensor, x: torch.Tensor, table: Any) -> dict[str, float]:
    """Root mean square distance from the exact solution."""
    wanted = flow_to_data(x, float(table.alpha[-1]), float(table.sigma[-1]))
    return {"error": float((end - wanted).square().mean().sqrt())}


def _weak(end: torch.Tensor) -> dict[str, float]:
    """Errors of mean and standard deviation, to about 2e-3, and the larger of them."""
    mean, std = moments_of_data()
    of_mean, of_std = float(abs(end.mean() - mean)), float(abs(end.std() - std))
    return {"error": max(of_mean, of_std), "error_of_mean": of_mean, "error_of_std": of_std}


if __name__ == "__main__":
    np.seterr(all="raise", under="ignore")
    main()
