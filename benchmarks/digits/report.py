"""The results as a page and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.digits.cases import BOUND_STEPS, PRICED_AS, SAMPLERS, STEPS, VARIANCE_STEPS

_INTRODUCTION = """\
# How many steps the digits need

The network of `diffkit demo` (Improved DDPM: cosine schedule, 100 levels, learned variance, hybrid loss), {drawn}
samples for each figure, no guidance. "Recognised" is the share that a classifier trained on real digits reads as the
class asked for, "distance" Frechet's, between features of a second classifier, from the digits trained on. Real digits
that were held out: {recognised:.1%}, {distance:.2f}. Made by `python -m benchmarks.digits` (commit {commit}, Python
{python}, torch {torch}, one CPU thread); `digits.json` has every figure.

![quality and bound against steps](digits.png)
"""


def write(found: dict[str, Any], path: Path) -> None:
    """Write a Markdown page."""
    lines = [
        _INTRODUCTION.format(drawn=found["drawn"], **found["real"], **found["machine"]),
        *_quality("Samplers", "sampler", SAMPLERS, found["samplers"], "evaluations of 10 steps"),
        "## Variances of ancestral sampling",
        "",
        "The same network and the same noise; what differs is the variance of each step.",
        "",
        *_variances(found["variances"]),
        "## Bits per pixel of held-out digits",
        "",
        "The variational bound on evenly spaced levels / on those with the best bound (`diffkit.spacing.optimal`), "
        "which were found, like the errors that `analytic` takes, on digits trained on.",
        "",
        *_bounds(found["bounds"]),
    ]
    path.write_text("\n".join(lines).rstrip() + "\n")


def _quality(title: str, key: str, names: Any, rows: list[dict[str, Any]], cost: str) -> list[str]:
    out = [
        f"## {title}: recognised, distance",
        "",
        f"| {key} | {cost} | " + " | ".join(f"{n} steps" for n in STEPS) + " |",
        "| --- | --- |" + " --- |" * len(STEPS),
    ]
    for name in names:
        cells = [row for row in rows if row[key] == name]
        asked = next(row["evaluations"] for row in cells if row["steps"] == 10)
        out.append(f"| {name} | {asked} | " + " | ".join(map(_figures, cells)) + " |")
    return [*out, ""]


def _figures(row: dict[str, Any]) -> str:
    return f"{row['recognised']:.0%}, {row['distance']:.2f}"


def _variances(rows: list[dict[str, Any]]) -> list[str]:
    out = [
        "| variance, levels | " + " | ".join(f"{n} steps" for n in VARIANCE_STEPS) + " |",
        "| --- |" + " --- |" * len(VARIANCE_STEPS),
    ]
    for var in PRICED_AS:
        for spacing in ("even", "optimal"):
            cells = {row["steps"]: row for row in rows if (row["var"], row["spacing"]) == (var, spacing)}
            out.append(
                f"| {var}, {spacing} | "
                + " | ".join(_figures(cells[n]) if n in cells else "" for n in VARIANCE_STEPS)
                + " |"
            )
    return [*out, ""]


def _bounds(rows: list[dict[str, Any]]) -> list[str]:
    found = {(row["var"], row["spacing"], row["steps"]): row["bits"] for row in rows}
    out = [
        "| variance | " + " | ".join(f"{n} steps" for n in BOUND_STEPS) + " |",
        "| --- |" + " --- |" * len(BOUND_STEPS),
    ]
    for var in PRICED_AS:
        cells = []
        for steps in BOUND_STEPS:
            even, best = found[var, "even", steps], found.get((var, "optimal", steps))
            cells.append(f"{even:.3f}" if best is None else f"{even:.3f} / {best:.3f}")
        out.append(f"| {var} | " + " | ".join(cells) + " |")
    return [*out, ""]


_DRAWN_SAMPLERS = {
    "ancestral": "k-o",
    "ddim": "C0-o",
    "dpmpp_2m": "C2-o",
    "unipc": "C4-o",
    "sde_dpmpp_2m": "C1--s",
    "heun": "C5--s",
    "dpmpp_2s": "C9--s",
    "restart": "C3--s",
}
_VARIANCES = {"learned_range": "C0", "analytic": "C2", "fixed_small": "C1", "fixed_large": "C3"}


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw distance against evaluations for samplers, and distance and bound against steps for variances."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    samplers, variances, bounds = figure.subplots(1, 3)
    for name, style in _DRAWN_SAMPLERS.items():
        rows = [row for row in found["samplers"] if row["sampler"] == name]
        x, y = [row["evaluations"] for row in rows], [row["distance"] for row in rows]
        samplers.plot(x, y, style, markersize=4, linewidth=1.2, label=name)
    samplers.set(title="samplers", xlabel="evaluations of the network", ylabel="distance from real digits")
    for panel, rows, key in ((variances, found["variances"], "distance"), (bounds, found["bounds"], "bits")):
        for var, colour in _VARIANCES.items():
            for spacing, style in (("even", "-o"), ("optimal", "--s")):
                kept = [row for row in rows if (row["var"], row["spacing"]) == (var, spacing)]
                x, y = [row["steps"] for row in kept], [row[key] for row in kept]
                panel.plot(x, y, colour + style, markersize=4, linewidth=1.2, label=f"{var}, {spacing}")
        panel.set(xlabel="steps")
    variances.set(title="ancestral: variance and levels", ylabel="distance from real digits")
    bounds.set(title="likelihood of held-out digits", ylabel="bits per pixel, at most")
    for panel in (samplers, variances, bounds):
        panel.set(xscale="log", yscale="log")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    for panel in (samplers, variances):
        panel.axhline(found["real"]["distance"], color="0.5", linewidth=1, linestyle=":")
    figure.savefig(path, dpi=110)
