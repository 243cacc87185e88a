"""Measure how straight paths are with each coupling, in the plane: `benchmarks/results/couplings.json`.

python -m benchmarks.couplings    # about two minutes on one core

A flow on two moons is trained with each coupling by the same updates, and sampled by Euler steps from the same noise.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffkit

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the benchmarks import each other by their file names

from measuring import machine  # noqa: E402

COUPLINGS: dict[str, Any] = {
    "independent": None,
    "minibatch_ot": "minibatch_ot",
    "minibatch_ot, sinkhorn": ("minibatch_ot", {"method": "sinkhorn", "iterations": 20}),
    "immiscible": "immiscible",
}
STEPS = (1, 2, 4, 8, 16, 32)
EXACT = 200
"""Steps that stand for the exact solution."""
SAMPLES = 2048
GOAL = 0.1
"""Error of a sample that its number of steps is measured at; the moons are 3 wide."""
TRAINING: dict[str, Any] = dict(steps=2000, batch_size=256, lr=1e-3, ema=(0.99,), log_every=2000, progress=False)


def trained(coupling: Any, out: str) -> diffkit.System:
    """Return a flow on two moons."""
    torch.manual_seed(0)
    system = diffkit.compose(
        schedule="flow_linear",
        mean="velocity",
        sampler="flow_euler",
        timesteps="flow_logit_normal",
        coupling=coupling,
        backbone=("mlp", {"hidden": 128, "depth": 3}),
        data_shape=(2,),
        num_steps=EXACT,
        bins=None,
    )
    return diffkit.train(system, diffkit.data.loading.load("points", kind="moons"), out=out, **TRAINING)


def paths(system: diffkit.System, start: Tensor) -> tuple[float, Tensor]:
    """Return the mean length of paths over the mean distance of their ends, and where they end."""
    places = [start, *(point.x for point in system.trajectory(len(start), start=start))]
    length = sum((after - before).norm(dim=1) for before, after in itertools.pairwise(places))
    return float(length.mean() / (places[-1] - start).norm(dim=1).mean()), places[-1]


def row(name: str, coupling: Any) -> dict[str, Any]:
    """Return what is measured of one coupling."""
    with tempfile.TemporaryDirectory() as out:
        system = trained(coupling, f"{out}/run")
    start = torch.randn(SAMPLES, 2, generator=torch.Generator().manual_seed(1))
    detour, ends = paths(system, start)
    distance = float((ends - start).norm(dim=1).mean())
    errors = {}
    for steps in STEPS:
        found = system.sample(SAMPLES, start=start, steps=steps, progress=False)
        errors[steps] = float((found - ends).square().sum(1).mean().sqrt())
    enough = next((steps for steps in STEPS if errors[steps] <= GOAL), None)
    return {
        "case": name,
        "distance": round(distance, 3),
        "length over distance": round(detour, 4),
        **{f"error in {steps}": round(error, 4) for steps, error in errors.items()},
        f"steps to {GOAL}": enough,
    }


def main() -> None:
    """Measure each coupling, and write the results."""
    torch.set_num_threads(1)
    rows = []
    for name, coupling in COUPLINGS.items():
        rows.append(row(name, coupling))
        print(rows[-1], flush=True)
    setup = {"schedule": "flow_linear", "network": "mlp 128x3", "updates": TRAINING["steps"], "batch": 256}
    about = f"a flow on two moons; error: RMS distance from the ends of {EXACT} Euler steps"
    found = {"benchmark": "couplings", "about": about, "setup": setup, "machine": machine(), "rows": rows}
    (HERE / "results" / "couplings.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
