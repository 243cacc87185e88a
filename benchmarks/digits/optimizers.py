"""Muon against AdamW on the digits: held-out loss after the same number of updates, three seeds each.

    python -m benchmarks.digits.optimizers

It trains the demo's network (191,218 parameters) on one CPU thread, some 6 minutes in all, with the loss "simple" and
the same learning rates for both, and writes results/optimizers.json and optimizers.md.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import diffkit
from diffkit.demo import COMPOSITION

RESULTS = Path(__file__).parent / "results"
UPDATES, EVERY, BATCH_SIZE = 240, 80, 32
SEEDS = (0, 1, 2)
RUNS: tuple[tuple[str, float], ...] = tuple((name, lr) for name in ("adamw", "muon") for lr in (1e-3, 3e-3, 1e-2))
"""Optimizer and learning rate; steps of muon are as large as those of adamw at the same one."""


def main() -> None:
    """Train, and write the results."""
    torch.set_num_threads(1)
    rows = [measure(name, lr, seed) for name, lr in RUNS for seed in SEEDS]
    found = {
        "updates": UPDATES,
        "batch_size": BATCH_SIZE,
        "versions": {"torch": torch.__version__, "diffkit": diffkit.__version__},
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "optimizers.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "optimizers.md").write_text(report(found))


def measure(name: str, lr: float, seed: int) -> dict[str, Any]:
    """Train once; the held-out loss is that of the averaged weights, with the same levels and noise each time."""
    torch.manual_seed(seed)
    system = diffkit.compose(**{**COMPOSITION, "var": "fixed_large", "loss": "simple"})
    data, held_out = (diffkit.data.loading.load("digits", split=split) for split in ("train", "held_out"))
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        diffkit.train(
            system,
            data,
            out=folder,
            val=held_out,
            val_every=EVERY,
            steps=UPDATES,
            batch_size=BATCH_SIZE,
            optimizer=name,
            lr=lr,
            warmup=20,
            lr_schedule="linear",
            ema=0.98,
            seed=seed,
            progress=False,
        )
        lines = diffkit.training.read_metrics(folder)
        losses = {line["step"]: round(line["val_loss"], 5) for line in lines if line.get("val_loss") is not None}
        return {
            "optimizer": name,
            "lr": lr,
            "seed": seed,
            "val_loss": losses,
            "cpu_seconds": round(time.process_time() - begun, 1),
        }


def report(found: dict[str, Any]) -> str:
    """The table: a line for each optimizer and learning rate."""
    steps = sorted({int(step) for row in found["rows"] for step in row["val_loss"]})
    lines = [
        "# Muon and AdamW on the digits",
        "",
        f"Held-out loss of the digits by number of updates ({found['batch_size']} examples each): mean of seeds "
        f"{', '.join(map(str, SEEDS))}, and the range of the last.",
        "",
        "| optimizer | lr | " + " | ".join(map(str, steps)) + " | range | CPU s |",
        "| --- | --- | " + " | ".join("---" for _ in steps) + " | --- | --- |",
    ]
    for name, lr in RUNS:
        rows = [row for row in found["rows"] if (row["optimizer"], row["lr"]) == (name, lr)]
        by_step = [[{int(k): v for k, v in row["val_loss"].items()}[step] for row in rows] for step in steps]
        means = " | ".join(f"{mean(values):.4f}" for values in by_step)
        last, seconds = by_step[-1], mean(row["cpu_seconds"] for row in rows)
        lines.append(f"| {name} | {lr:g} | {means} | {min(last):.4f} to {max(last):.4f} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
