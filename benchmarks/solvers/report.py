"""The results as a page and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.solvers.cases import MEANS, SCHEDULES, STEPS

_PATHS = ("vp", "ve", "linear")


_INTRODUCTION = """\
# How accurate every sampler is

Data is a mixture of two normals on a line (0.3 at -0.8, 0.7 at 0.5, standard deviation 0.25 each), the network is
exact, arithmetic is float64, and steps go down to level 0. Made by `python -m benchmarks.solvers` (commit {commit},
Python {python}, torch {torch}, one CPU thread); `solvers.json` has every figure.

* Deterministic samplers: root mean square distance from the exact solution of the probability-flow ODE, over 63
  quantiles of what sampling starts from.
* Stochastic samplers (marked ~): errors of mean / standard deviation of 65536 draws; chance is about 0.002. The start
  is spread over quantiles of pure noise, and where level T still has signal (VP linear: alpha_bar 4e-5, VE: 1.6e-4) a
  little is lost that no sampler can mend.

![error against evaluations](solvers.png)

## Order of convergence

Least squares through the errors at 160, 320 and 640 steps between log-SNR -4 and 4, every second step twice as wide as
its neighbours. Deterministic: distance from the exact solution, the lower of normal and mixture data. Stochastic: mean
and standard deviation of normal data, worked out, not drawn. A sampler keeps its word if it is at most 0.2 short.
"""


def write(found: dict[str, Any], path: Path) -> None:
    """Write a Markdown page."""
    lines = [
        _INTRODUCTION.format(**found["machine"]),
        "| sampler | declared | VP | VE | straight | kept |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_order_row(name, order) for name, order in found["orders"].items()),
        "",
        *(line for schedule in SCHEDULES for line in _section(found, schedule)),
    ]
    path.write_text("\n".join(lines).rstrip() + "\n")


def _order_row(name: str, order: dict[str, Any]) -> str:
    measured = [order["measured"][path] for path in _PATHS]
    kept = "yes" if min(measured) >= order["declared"] - 0.2 else "no"
    return f"| {name} | {order['declared']} | {' | '.join(map(_order, measured))} | {kept} |"


def _order(value: float) -> str:
    return "exact" if value > 1e6 else f"{value:.2f}"


def _section(found: dict[str, Any], schedule: str) -> list[str]:
    cases = [case for case in found["errors"] if case["schedule"] == schedule]
    means = [mean for mean in MEANS if any(case["mean"] == mean and "error" in case for case in cases)]
    refused = [case for case in cases if "refused" in case]
    names = dict.fromkeys(case["sampler"] for case in cases if "sampler" in case)
    rows = {name: [case for case in cases if case.get("sampler") == name] for name in found["orders"] if name in names}
    gap = max(_gap(group) for group in rows.values())
    header, what = " | ".join(f"{n} steps" for n in STEPS), SCHEDULES[schedule][0]
    return [
        f"## {schedule}",
        "",
        f"{what[:1].upper()}{what[1:]}. Means {', '.join(means)}, which agree to {gap:.0e}.",
        "",
        *(f"Refused at composition: {case['refused']}" for case in refused),
        *([""] if refused else []),
        f"| sampler | evaluations of 10 steps | {header} |",
        "| --- | --- |" + " --- |" * len(STEPS),
        *(_row(name, group[0]) for name, group in rows.items()),
        "",
    ]


def _gap(group: list[dict[str, Any]]) -> float:
    """Largest difference between means, relative to the error or 1e-6, whichever is larger."""
    return max(
        abs(a - b) / max(abs(b), 1e-6) for case in group for a, b in zip(case["error"], group[0]["error"], strict=True)
    )


def _row(name: str, case: dict[str, Any]) -> str:
    start = f"| {name} {'~' if case['stochastic'] else ''}| {case['evaluations'][1]} | "
    if case["stochastic"]:
        pairs = zip(case["error_of_mean"], case["error_of_std"], strict=True)
        return start + " | ".join(f"{mean:.0e} / {std:.0e}" for mean, std in pairs) + " |"
    return start + " | ".join(f"{error:.1e}" for error in case["error"]) + " |"


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw error against evaluations of the network, a column for each schedule."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(SCHEDULES) + 2, 8), layout="constrained")
    rows = figure.subplots(2, len(SCHEDULES), sharey="row", sharex=True)
    for panels, names in zip(rows, (_DETERMINISTIC, _STOCHASTIC), strict=True):
        for panel, schedule in zip(panels, SCHEDULES, strict=True):
            for name, style in names.items():
                for case in found["errors"]:
                    if (case["schedule"], case["mean"], case.get("sampler")) == (schedule, "v", name):
                        panel.plot(case["evaluations"], case["error"], style, markersize=4, linewidth=1.2, label=name)
            panel.set(xscale="log", yscale="log")
            panel.grid(alpha=0.3)
        panels[-1].legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=9, frameon=False)
    rows[0][0].set(ylim=(1e-5, 3), ylabel="deterministic: distance from the exact solution")
    rows[1][0].set(ylim=(1e-3, 3), ylabel="stochastic: error of mean or deviation")
    for top, bottom, schedule in zip(*rows, SCHEDULES, strict=True):
        top.set_title(schedule)
        bottom.set_xlabel("evaluations of the network")
    figure.savefig(path, dpi=110)


_DETERMINISTIC = {
    "ddim": "k-o",
    "pndm": "C7-o",
    "deis": "C0-o",
    "lms": "C1-o",
    "dpmpp_2m": "C2-o",
    "dpmpp_3m": "C3-o",
    "unipc": "C4-o",
    "heun": "C5--s",
    "dpm2": "C6--s",
    "dpm_solver_2": "C8--s",
    "dpmpp_2s": "C9--s",
    "dpm_solver_3": "k--s",
    "rk4": "C0--s",
}
"""Multistep ones have solid lines, single-step ones dashed. 'euler' and 'dpm_solver_1' are 'ddim' by another name."""
_STOCHASTIC = {
    "ancestral": "k-o",
    "euler_ancestral": "C0--o",
    "sde_dpmpp_2m": "C2-o",
    "sde_dpmpp_3m": "C4-o",
    "dpm2_ancestral": "C6--s",
    "dpmpp_2s_ancestral": "C9--s",
    "dpmpp_sde": "C5--s",
    "churn": "C1--s",
    "restart": "C3--s",
    "predictor_corrector": "C7--s",
    "sa_solver": "C8-o",
}
