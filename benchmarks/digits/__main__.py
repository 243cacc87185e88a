"""Measure, and write results/digits.json, digits.md and digits.png."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

import diffkit
from benchmarks.digits.cases import (
    BOUND_STEPS,
    DRAWN,
    SAMPLERS,
    STEPS,
    VARIANCE_STEPS,
    Digits,
    errors_of,
    labels_for,
    optimal,
    quality_of,
    run_folder,
    systems_of,
)
from benchmarks.digits.report import draw, write

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Train unless there is a run, then measure on one CPU thread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="training run of `diffkit demo`; trained anew by default")
    parser.add_argument("--draw", action="store_true", help="measure nothing: draw what digits.json holds")
    parser.add_argument("--only", nargs="+", choices=SAMPLERS, help="measure these samplers anew, and keep the rest")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "digits.json"
    if arguments.draw:
        found = json.loads(path.read_text())
    else:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory() as folder:
            trained = diffkit.load(run_folder(arguments.run, Path(folder)))
        found = renewed(json.loads(path.read_text()), trained, arguments.only) if arguments.only else measure(trained)
        path.write_text(json.dumps(found, indent=1) + "\n")
    write(found, RESULTS / "digits.md")
    draw(found, RESULTS / "digits.png")


def measure(trained: diffkit.System) -> dict[str, Any]:
    """All figures."""
    train, held_out = Digits.of("train"), Digits.of("held_out")
    systems, errors = systems_of(trained, train), errors_of(trained, train)
    score = quality_of(train)
    return {
        "machine": _machine(),
        "drawn": DRAWN,
        "real": score(held_out.images, held_out.labels),
        "samplers": list(_samplers(trained, score, SAMPLERS)),
        "variances": list(_variances(systems, errors, score)),
        "bounds": list(_bounds(systems, errors, held_out)),
    }


def renewed(found: dict[str, Any], trained: diffkit.System, names: list[str]) -> dict[str, Any]:
    """The same with some samplers measured anew."""
    kept = [row for row in found["samplers"] if row["sampler"] not in names]
    return found | {"samplers": kept + list(_samplers(trained, quality_of(Digits.of("train")), names))}


def _samplers(trained: diffkit.System, score: Any, names: Iterable[str]) -> Iterator[dict[str, Any]]:
    labels = labels_for(DRAWN)
    for name in names:
        sampler = SAMPLERS[name]
        for steps in STEPS:
            asked = Asked(trained.network)
            images = trained.sample(DRAWN, steps=steps, sampler=sampler, seed=0, y=labels, progress=False, model=asked)
            yield {"sampler": name, "steps": steps, "evaluations": asked.count} | score(images, labels)
        print("sampler", name, flush=True)


class Asked:
    """A network that counts how often it is called."""

    def __init__(self, network: Any):
        self.network, self.count = network, 0

    def __call__(self, x: torch.Tensor, time: torch.Tensor, **conditions: Any) -> torch.Tensor:
        self.count += 1
        return self.network(x, time, **conditions)


def _chains(systems: Any, errors: torch.Tensor, counts: tuple[int, ...]) -> Iterator[tuple[str, str, int, Any]]:
    """Variance, spacing, number of steps and its levels."""
    for var, (system, _) in systems.items():
        for count in counts:
            yield var, "even", count, count
            if count < system.num_steps:
                yield var, "optimal", count, optimal(system, errors, count, var)


def _variances(systems: Any, errors: torch.Tensor, score: Any) -> Iterator[dict[str, Any]]:
    """Ancestral sampling: whose variance, on which levels."""
    labels = labels_for(DRAWN)
    for var, spacing, count, steps in _chains(systems, errors, VARIANCE_STEPS):
        system, model = systems[var]
        images = system.sample(DRAWN, steps=steps, sampler="ancestral", seed=0, y=labels, progress=False, model=model)
        yield {"var": var, "spacing": spacing, "steps": count} | score(images, labels)
    print("variances", flush=True)


def _bounds(systems: Any, errors: torch.Tensor, held_out: Digits) -> Iterator[dict[str, Any]]:
    """Bits per pixel of held-out digits."""
    for var, spacing, count, steps in _chains(systems, errors, BOUND_STEPS):
        system, model = systems[var]
        bound = system.bits_per_dim(
            held_out.images, steps=steps, y=held_out.labels, seed=0, rows_per_call=256, progress=False, model=model
        )
        total = bound.total
        found = {"bits": float(total.mean()), "error": float(total.std() / len(total) ** 0.5)}
        yield {"var": var, "spacing": spacing, "steps": count, "levels": bound.levels.tolist()} | found
    print("bounds", flush=True)


def _machine() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "device": "cpu",
        "dtype": "float32",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
    }


if __name__ == "__main__":
    main()
