"""The study's figures: one point for each seed, a line through their mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

import diffkit
from benchmarks.paper.cells import FEW, SKIPS
from benchmarks.paper.claims import Results, noise_scale

BLUE, ORANGE, GREEN, GREY = "#2a6fbb", "#d9772b", "#3c8d53", "#8a8a8a"
LABELS = {
    "simple": "L_simple",
    "hybrid": "L_hybrid",
    "vlb": "L_vlb, uniform levels",
    "vlb_is": "L_vlb, importance sampled",
}


def draw(results: Results, folder: Path, floor: float) -> dict[str, str]:
    """Write every figure whose cells are there; return file name -> caption."""
    captions = {}
    for name, (caption, size, panels) in FIGURES.items():
        figure = Figure(figsize=size, layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(panels)))
        for axis, panel in zip(axes, panels, strict=True):
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            panel(axis, results, floor)
        figure.savefig(folder / name, dpi=100, metadata={"Software": None})
        captions[name] = caption
    return captions


def _lines(axis: Axes, x: Any, by_seed: Mapping[int, Any], color: str, label: str, style: str = "-") -> None:
    values = np.array(list(by_seed.values()), dtype=np.float64)
    if not len(values):
        return
    axis.plot(x, values.mean(0), style, color=color, label=label, linewidth=1.8)
    for row in values:
        axis.plot(x, row, ".", color=color, markersize=4, alpha=0.6)


def _log_y(axis: Axes, *, narrow: bool = False) -> None:
    """A log scale with plain numbers; evenly spaced ones where it is less than a decade."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(MaxNLocator(5) if narrow else LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())


def alpha_bar(axis: Axes, results: Results, _: float) -> None:
    for schedule, color in (("linear", ORANGE), ("cosine", BLUE)):
        table = diffkit.compose(schedule=schedule, num_steps=results.study.num_steps, backbone=None).table
        axis.plot(np.arange(1, table.num_steps + 1) / table.num_steps, table.alpha_bar[1:], color=color, label=schedule)
    axis.set(xlabel="level / T", ylabel="alpha_bar", title="Signal left (fig. 5)")
    axis.legend(frameon=False)


def skips(axis: Axes, results: Results, floor: float) -> None:
    for schedule, color in (("linear", ORANGE), ("cosine", BLUE)):
        found = results.quality("skips", schedule, "hybrid")
        _lines(axis, SKIPS, {s: [each[str(k)] for k in SKIPS] for s, each in found.items()}, color, schedule)
    axis.axhline(floor, color=GREY, linestyle=":", label="held-out digits")
    axis.set(xlabel="share of the chain skipped", ylabel="FD (digits)", title="Skipping the noisy end (fig. 4)")
    _log_y(axis)
    axis.legend(frameon=False)


def objectives(axis: Axes, results: Results, _: float) -> None:
    wanted = [("linear", "simple"), ("cosine", "simple"), ("cosine", "hybrid"), ("cosine", "vlb"), ("cosine", "vlb_is")]
    for place, (schedule, objective) in enumerate(wanted):
        values = [each["bits"] for each in results.likelihood(schedule, objective).values()]
        if values:
            axis.plot(values, [place] * len(values), ".", color=GREY)
            axis.plot(np.mean(values), place, "o", color=ORANGE if schedule == "linear" else BLUE)
    axis.set_yticks(range(len(wanted)), [f"{LABELS[o]}\n{s}" for s, o in wanted], fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel="bits/dim, held-out crops", title="Objectives (tables 1, 2)")


def terms(axis: Axes, results: Results, _: float) -> None:
    for objective, color in (("simple", ORANGE), ("hybrid", BLUE), ("vlb_is", GREEN)):
        found = results.likelihood("cosine", objective)
        if found:
            each = next(iter(found.values()))
            axis.plot(each["levels"], each["terms"], color=color, label=LABELS[objective], linewidth=1)
    axis.set(xlabel="level", ylabel="bits/dim", title="Terms of the bound (fig. 2)", xscale="log", yscale="log")
    axis.legend(frameon=False, fontsize=8)


def noise(axis: Axes, results: Results, _: float) -> None:
    for place, objective in enumerate(("hybrid", "vlb", "vlb_is")):
        found = [noise_scale(results.study, each[objective]) for each in results.noise().values()]
        for value, least in found:
            axis.plot(place, value, "^" if least else ".", color=GREY)
        if found:
            axis.plot(place, np.exp(np.mean(np.log([value for value, _ in found]))), "o", color=BLUE)
    axis.set_xticks(range(3), [LABELS[o].replace(", ", ",\n") for o in ("hybrid", "vlb", "vlb_is")], fontsize=8)
    axis.set(ylabel="gradient noise scale", title="Noise of the gradient (fig. 7)", yscale="log", xlim=(-0.5, 2.5))


def few_steps(axis: Axes, results: Results, floor: float) -> None:
    hybrid = results.quality("few_steps", "cosine", "hybrid")
    simple = results.quality("few_steps", "cosine", "simple")
    ways = [
        (hybrid, "learned", BLUE, "-", "L_hybrid, learned variance"),
        (simple, "fixed_large", ORANGE, "-", "L_simple, variance beta"),
        (simple, "fixed_small", GREEN, "-", "L_simple, variance beta-tilde"),
        (hybrid, "ddim", BLUE, "--", "L_hybrid, DDIM"),
        (simple, "ddim", ORANGE, "--", "L_simple, DDIM"),
    ]
    for found, way, color, style, label in ways:
        _lines(axis, FEW, {s: [each[way][str(n)] for n in FEW] for s, each in found.items()}, color, label, style)
    axis.axhline(floor, color=GREY, linestyle=":", label="held-out digits")
    axis.set(xlabel="sampling steps", ylabel="FD (digits)", title="Few steps (fig. 8)", xscale="log")
    _log_y(axis)
    axis.set_xticks(FEW, [str(n) for n in FEW])
    axis.minorticks_off()
    axis.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 0.07))


def ratio(axis: Axes, results: Results, _: float) -> None:
    for steps, color in ((100, ORANGE), (1000, GREEN), (4000, BLUE)):
        table = diffkit.compose(schedule="linear", num_steps=steps, backbone=None).table
        fraction = table.posterior().variance[2:] / table.upper_variance[2:]
        axis.plot(np.arange(2, steps + 1) / steps, fraction, color=color, label=f"T = {steps}")
    axis.set(
        xlabel="level / T", ylabel="beta-tilde / beta", title="The two ends of the variance (fig. 1)", xscale="log"
    )
    axis.legend(frameon=False)


def size(quantity: str, label: str) -> Callable[[Axes, Results, float], None]:
    def panel(axis: Axes, results: Results, _: float) -> None:
        points = [
            (each["parameters"], each[quantity])
            for width in results.study.widths
            for each in results.likelihood("cosine", "hybrid", width).values()
        ]
        if points:
            x, y = np.array(points).T
            axis.plot(x, y, "o", color=BLUE, markersize=4)
        if len({x for x, _ in points}) > 1:
            slope, offset = np.polyfit(np.log(x), np.log(y), 1)
            line = np.array([x.min(), x.max()])
            axis.plot(line, np.exp(offset) * line**slope, color=GREY, label=f"exponent {slope:.3f}")
            axis.legend(frameon=False)
        axis.set(xlabel="parameters", ylabel=label, title=f"Model size (fig. 10): {label}", xscale="log")
        _log_y(axis, narrow=True)
        counts = sorted({x for x, _ in points})
        axis.set_xticks(counts, [f"{count / 1e3:.0f}k" for count in counts])
        axis.xaxis.set_minor_formatter(NullFormatter())

    return panel


Panel = Callable[[Axes, Results, float], None]
FIGURES: Mapping[str, tuple[str, tuple[float, float], tuple[Panel, ...]]] = {
    "schedules.png": ("How much of the chain is wasted", (9, 3.4), (alpha_bar, skips)),
    "objectives.png": ("Bits/dim of each objective, and what the levels contribute", (9, 3.4), (objectives, terms)),
    "noise_and_steps.png": (
        "Gradient noise (a triangle is the least it can be), and samples from few steps",
        (9, 3.4),
        (noise, few_steps),
    ),
    "variance_and_size.png": (
        "The learned variance's range, and model size",
        (12, 3.4),
        (ratio, size("eps_mse", "L_simple"), size("bits", "bits/dim")),
    ),
}
