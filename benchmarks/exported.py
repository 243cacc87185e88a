"""Sampling as a file against the system it came from: seconds of a step, for three samplers and two networks.

    python benchmarks/exported.py        # compiles six files, in some minutes -> results/exported.json

Each file, compiled by AOTInductor, each as torch.export leaves it, and the system itself take the same steps from the
same noise, in turn in one process with one thread of the CPU; the least of three rounds counts. A compiled file needs a
C++ compiler.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import HERE, interleaved, machine
from torch import Tensor

import diffkit
from diffkit.system.prepared import SamplingJob
from diffkit.tasks.exporting import host

SAMPLERS = ("ddim", "dpmpp_2m", "ancestral")
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("unet", {"channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (8,)}),
    "dit": ("dit", {"hidden": 128, "depth": 4, "heads": 4, "patch": 2}),
}
SHAPE, STEPS, BATCHES, ROUNDS = (3, 16, 16), 10, (1, 8), 3
Rows = list[dict[str, Any]]


def system_of(network: str) -> diffkit.System:
    """A small system with random weights: those of a new one would give zeros."""
    torch.manual_seed(0)
    system = diffkit.compose(schedule="cosine", backbone=NETWORKS[network], data_shape=SHAPE)
    with torch.no_grad():
        for weight in system.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    return system.eval()


def eager(job: SamplingJob, x: Tensor, noise: Tensor) -> Callable[[], Tensor]:
    """The system's own steps from x, with the noise of each."""
    program = job.program()

    def run() -> Tensor:
        drawn = iter(noise)
        return job.finish(program, range(len(x)), x.clone(), lambda: next(drawn), lambda _: None)

    return run


def rows_of(network: str, sampler: str, folder: Path) -> Rows:
    """Rows of one network and sampler, one for each batch."""
    system = system_of(network)
    begun, files = time.perf_counter(), {}
    for kind in ("exported", "compiled"):
        to = folder / f"{network}-{sampler}-{kind}.pt2"
        files[kind] = diffkit.export(system, to, sampler=sampler, steps=STEPS, compiled=kind == "compiled")
    taken = time.perf_counter() - begun
    loaded = {kind: host.load(str(path)) for kind, path in files.items()}
    found: Rows = []
    for batch in BATCHES:
        x = torch.randn(batch, *SHAPE)
        noise = torch.randn(STEPS, *x.shape)
        job = system.prepare(batch, sampler=sampler, steps=STEPS)
        given = [x.numpy(), noise.numpy()] if job.program().stochastic else [x.numpy()]
        ways: dict[str, Callable[[], Any]] = {"eager": eager(job, x, noise)}
        ways |= {kind: partial(run, *given) for kind, run in loaded.items()}
        expected = ways["eager"]()
        difference = (torch.from_numpy(ways["compiled"]()) - expected).abs().max() / expected.abs().max()
        best = {way: min(seconds) for way, seconds in interleaved(ways, ROUNDS).items()}
        found.append(
            {
                "network": network,
                "sampler": sampler,
                "batch": batch,
                **{f"{way}_ms_per_step": float(f"{1e3 * seconds / STEPS:.3g}") for way, seconds in best.items()},
                "exported_times_faster_than_eager": round(best["eager"] / best["exported"], 2),
                "compiled_times_faster_than_eager": round(best["eager"] / best["compiled"], 2),
                "relative_difference_of_compiled": float(f"{difference:.1e}"),
                "s_to_write_both": round(taken, 1),
            }
        )
        print(found[-1], flush=True)
    return found


def main() -> None:
    """Write the files, run them, and write the result."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        rows = [row for name in NETWORKS for sampler in SAMPLERS for row in rows_of(name, sampler, Path(folder))]
    sizes = {name: sum(weight.numel() for weight in system_of(name).parameters()) for name in NETWORKS}
    content = {
        "benchmark": "exported",
        "about": "Sampling as a file, as torch.export leaves it and compiled by AOTInductor, against the system itself",
        "setup": {"shape": SHAPE, "steps": STEPS, "best_of": ROUNDS, "parameters": sizes},
        "machine": machine(),
        "rows": rows,
    }
    (HERE / "results" / "exported.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
