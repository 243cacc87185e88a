"""Measure what the goals for speed ask for, and say which are met: one command, 6 to 8 minutes on an idle core.

    IMPROVED_DIFFUSION=CHECKOUT python benchmarks/goals.py [FOLDER]

Results go to FOLDER (default benchmarks/results/amx), as `pytest benchmarks` writes them, the goals to its goals.json,
and all to its page. A goal without its plugin, peer or machine is left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import render
from measuring import HERE, machine

CASES = (
    "test_sampler_arithmetic.py",
    "test_loss_arithmetic.py",
    "test_bound.py::test_bound_of_one_image[32-32]",
    "test_networks.py::test_slices",
    "test_kernels.py",
)
Rows = list[dict[str, Any]]


class Goal(NamedTuple):
    """A figure, where it stands, and what it has to be.

    Attributes:
        about: What it is.
        file: Name of the file of results.
        find: Rows -> a ratio as `measuring.ratio` returns.
        limit: What it has to be at least, or at most.
        at_most: Whether the limit is one from above.
    """

    about: str
    file: str
    find: Callable[[Rows], Mapping[str, float]]
    limit: float
    at_most: bool = False


def cell(column: str, **where: str) -> Callable[[Rows], Mapping[str, float]]:
    """Return a function that finds the value of a column in the row with these values."""

    def find(rows: Rows) -> Mapping[str, float]:
        return next(row[column] for row in rows if all(row.get(name) == value for name, value in where.items()))

    return find


def goals() -> Iterator[Goal]:
    """All of them."""
    for batch in (8, 32):
        forward, both = f"kernels_forward_b{batch}", f"kernels_forward_backward_b{batch}"
        best = "kernel bf16 weights"
        yield Goal(
            f"bfloat16 forward over float32, batch {batch}",
            forward,
            cell("times_layers", case=best),
            3 if batch == 8 else 4,
        )
        yield Goal(
            f"bfloat16 both ways over float32, batch {batch}",
            both,
            cell("times_layers", case="kernel bf16"),
            2.4 if batch == 8 else 3,
        )
        for name in ("layers", "kernel"):
            for file, way in ((forward, "forward"), (both, "both ways")):
                about = f"float32 {way} over improved-diffusion, batch {batch}, {name}"
                yield Goal(about, file, cell("times_improved-diffusion", case=name), 1.15)
    yield Goal(
        "bfloat16 sampling over float32, batch 16", "kernels_sampling_b16", cell("times_layers", case="kernel bf16"), 3
    )
    drawn = "sampler_arithmetic_drawn_b1"
    theirs = "times_faster_than_diffusers"
    yield Goal("DDIM over diffusers, batch 1", drawn, cell(theirs, sampler="ddim"), 5)
    yield Goal("DPM-Solver++ 2M over diffusers, batch 1", drawn, cell(theirs, sampler="dpmpp_2m"), 8)
    for variance in ("learned_range", "fixed_small"):
        where = dict(sampler="ancestral", variance=variance)
        yield Goal(f"ancestral, drawn, over diffusers, batch 1, {variance}", drawn, cell(theirs, **where), 3)
    # as measured before the steps were changed, beside other jobs
    for sampler, before in (("ddim", 2.66), ("dpmpp_2m", 3.98), ("euler", 2.87), ("ancestral", 2.37)):
        about = f"{sampler} over diffusers, batch 16, no less than before"
        yield Goal(about, "sampler_arithmetic_drawn_b16", cell(theirs, sampler=sampler), before)
    yield Goal("DDIM over its five operations", drawn, cell("times_its_operations", sampler="ddim"), 1.3, at_most=True)
    for batch, side in ((16, 32), (64, 32), (32, 64)):
        file = f"loss_arithmetic_b{batch}_{side}"
        yield Goal(f"hybrid over simple, {batch}x{side}x{side}", file, cell("hybrid_over_simple"), 2.5, at_most=True)
    batched = "times_faster_than_plain_loop"
    yield Goal("bound at 32x32 over the loop", "bound_unet32_32", cell(batched, case="16 pairs a call"), 2.5)
    yield Goal("128 images at once over 8 times 16", "network_slices", cell("times_in_16", case="128 at once"), 0.9)


def found_in(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each goal whose figure is in a folder of results."""
    for goal in goals():
        path = folder / f"{goal.file}.json"
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
        try:
            found = goal.find(rows)
            best = found["best"]
        except (StopIteration, KeyError):
            continue
        met = best <= goal.limit if goal.at_most else best >= goal.limit
        wanted = f"at {'most' if goal.at_most else 'least'} {goal.limit:g}"
        yield {
            "goal": goal.about,
            "wanted": wanted,
            "best": best,
            "median": found["median"],
            "met": "yes" if met else "no",
        }


def main(folder: Path) -> int:
    """Measure, and write goals.json and the page of the folder."""
    given = ["-q", "-p", "no:cacheprovider", "--full", "--results", str(folder)]
    code = pytest.main([*given, *(str(HERE / case) for case in CASES)])
    rows = list(found_in(folder))
    about = "What the goals for speed ask for: ratios of the least times, and medians of pairs"
    content = {"benchmark": "goals", "about": about, "setup": {}, "machine": machine(), "rows": rows}
    (folder / "goals.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    render.main(folder)
    for row in rows:
        print(*row.values(), sep=" | ")
    return int(code)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "results" / "amx"))
