"""Solvers under strong guidance: how far samples are from the exactly guided ones, at equal cost.

    python -m benchmarks.solvers.guided

Data is a mixture of 50 normals around digits of 8x8 pixels, five of each class, whose guided score is known in closed
form, so that the error is the solver's alone. Writes results/guided.json and guided.md.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import diffkit
from diffkit.testing import LabelledMixtureOracle, MixtureOracle, labelled_network_of

RESULTS = Path(__file__).parent / "results"
SAMPLES, PER_CLASS, STD, LEVELS, FINE = 40, 5, 0.1, 1000, 200
SCALES = (1.0, 4.0, 8.0, 15.0)
EVALUATIONS = (10, 20, 40)
TWO = ("heun", "dpm_solver_2", "dpmpp_2s")
"""Samplers with two evaluations a step, and one in the last."""
SAMPLERS = ("ddim", "dpmpp_2m", "unipc", "lms", *TWO)
WAYS: Mapping[str, Mapping[str, Any]] = {
    "the same scale at every level": {},
    '`by_level="cosine"`': {"by_level": "cosine"},
    "`interval=(0.2, 3)`": {"interval": (0.2, 3.0)},
}


def data() -> LabelledMixtureOracle:
    """Return the mixture: the first digits of each class."""
    digits = diffkit.data.loading.load("digits", split="train")
    labels = torch.tensor([int(digits[i][1]["y"]) for i in range(len(digits))])
    chosen = torch.cat([(labels == label).nonzero()[:PER_CLASS, 0] for label in range(10)])
    images = torch.stack([diffkit.data.scale_images(digits[int(i)][0][None], digits.bins)[0] for i in chosen])
    return LabelledMixtureOracle(MixtureOracle(torch.ones(len(chosen)), images.double(), STD), labels[chosen])


def measured() -> list[dict[str, Any]]:
    """Return the error of every case: root mean square over pixels, whose range is 2, median over samples.

    The mean would be that of the few samples that end at another digit.
    """
    system = diffkit.compose(
        schedule="cosine",
        num_steps=LEVELS,
        data_shape=(1, 8, 8),
        backbone=None,
        bins=None,
        null_conditions={"y": 10},
    )
    start = torch.randn(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    how: dict[str, Any] = {"y": torch.arange(SAMPLES) % 10, "start": start, "clip": False, "progress": False}
    how["model"] = labelled_network_of(data(), system)
    found = []
    for way, options in WAYS.items():
        for scale in SCALES if not options else SCALES[1:]:
            guided = how | {"guidance": ("cfg", {"scale": scale, **options})}
            exact = system.sample(SAMPLES, sampler="heun", steps=FINE, **guided)
            for sampler in SAMPLERS:
                errors = []
                for count in EVALUATIONS:
                    steps = (count + 1) // 2 if sampler in TWO else count
                    made = system.sample(SAMPLES, sampler=sampler, steps=steps, **guided)
                    errors.append(float((made - exact).square().mean((1, 2, 3)).sqrt().median()))
                found.append({"way": way, "scale": scale, "sampler": sampler, "errors": errors})
                print(found[-1], flush=True)
    return found


def table(found: list[dict[str, Any]], way: str) -> str:
    """Return the errors of one way to guide, a row for each sampler."""
    own = [case for case in found if case["way"] == way]
    scales = sorted({case["scale"] for case in own})
    lines = [f"| sampler | {' | '.join(f'scale {scale:g}' for scale in scales)} |", "| --- |" + " --- |" * len(scales)]
    for sampler in SAMPLERS:
        errors = {case["scale"]: case["errors"] for case in own if case["sampler"] == sampler}
        cells = [" / ".join(f"{error:.2g}" for error in errors[scale]) for scale in scales]
        lines.append(f"| `{sampler}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the results."""
    torch.set_num_threads(1)
    found = measured()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    facts = {"commit": commit.strip(), "torch": torch.__version__, "samples": SAMPLES, "evaluations": EVALUATIONS}
    (RESULTS / "guided.json").write_text(json.dumps(facts | {"cases": found}, indent=1) + "\n")
    heads = [f"## {way[0].upper() + way[1:]}\n\n{table(found, way)}" for way in WAYS]
    text = [
        "# Solvers under guidance",
        f"Root mean square error, median over samples, against Heun's method in {FINE} steps, at "
        f"{', '.join(map(str, EVALUATIONS))} evaluations; classifier-free guidance, schedule `cosine`, evenly "
        f"spaced levels, {SAMPLES} samples, data in [-1, 1]. `python -m benchmarks.solvers.guided` makes it.",
        *heads,
    ]
    (RESULTS / "guided.md").write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
