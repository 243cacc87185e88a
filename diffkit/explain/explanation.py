"""The result of `explain`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import field, frozen

from diffkit.table import F64

FAINT = 0.01
"""Below this alpha_bar a level counts as almost pure noise: under 1 % of its variance is signal."""


_SHOWN = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


@frozen
class PartNote:
    """One part of a composition in its explanation.

    Attributes:
        kind: Kind of part.
        name: Registered name, or the name of its class.
        origin: Distribution it comes from, with its version; "" if it has no registered name.
        options: Name -> value.
        text: Its description, with its equation.
        source: Its source in the literature.
    """

    kind: str
    name: str
    origin: str
    options: Mapping[str, Any]
    text: str
    source: str


@frozen
class TrainingNotes:
    """What was chosen of training.

    Attributes:
        parts: Optimizer, schedule of the learning rate and hooks, as far as they were chosen.
        groups: Each group of parameters as a command line spells it, and the number of its parameters; None if the
            network was not built.
        frozen: Each pattern of parameters that are not trained, and their number.
    """

    parts: tuple[PartNote, ...]
    groups: Mapping[str, int | None]
    frozen: Mapping[str, int | None]


@frozen(eq=False)
class Explanation:
    """Explanation of a composition; ``print`` shows it, `plot` draws it. Columns are float64 arrays over levels 1..T.

    Attributes:
        parts: The parts, the network's recipe last.
        settings: The other arguments of `diffkit.compose`.
        level: Level in the root table, int64.
        alpha_bar, snr, beta: Share of signal in the variance, signal-to-noise ratio, variance of the noising step.
        posterior_std, upper_std: The two bounds of the reverse step's standard deviation, in units of the data.
        time: The time that the network is conditioned on.
        gain: How much an error of the network's output is enlarged in x_start, |c_out|.
        weight: Weight of a squared error of x_start in the gradient of the loss, with a learned variance at the middle
            of its range; without that of the timestep sampler.
        bound_weight: Its weight in the variational bound, bits per dimension, with the posterior's variance.
        sampler: The sampler.
        grid: Levels that sampling visits, ascending; not integers where they lie between those of training.
        remarks: Remarks to consider before training.
        num_parameters: Number of the network's parameters; None if it was not built.
        network_calls: Forward passes of an update, where the loss calls the network again; else empty.
        kernel: Distribution and version whose kernel normalizes in U-Nets and classifiers here; None if torch does.
        training: What was chosen of training; None if nothing was.
    """

    parts: tuple[PartNote, ...]
    settings: Mapping[str, Any]
    level: np.ndarray = field(repr=False)
    alpha_bar: F64 = field(repr=False)
    snr: F64 = field(repr=False)
    beta: F64 = field(repr=False)
    posterior_std: F64 = field(repr=False)
    upper_std: F64 = field(repr=False)
    time: F64 = field(repr=False)
    gain: F64 = field(repr=False)
    weight: F64 = field(repr=False)
    bound_weight: F64 = field(repr=False)
    sampler: PartNote
    grid: tuple[float, ...] = field(repr=False)
    remarks: tuple[str, ...]
    num_parameters: int | None = None
    network_calls: str = ""
    kernel: str | None = None
    training: TrainingNotes | None = None

    def __str__(self) -> str:
        return as_text(self)

    def plot(self, path: str | Path) -> Path:
        """Plot levels, loss weights, variances and sampling grid into a PNG (or any format matplotlib writes).

        Raises:
            MissingExtraError: matplotlib is not installed.
            OptionError: The file cannot be written.
        """
        from diffkit.explain.plot import draw_explanation

        return draw_explanation(self, Path(path))

    def rows(self) -> list[int]:
        """Indices of a few levels to show, ascending."""
        last = len(self.level) - 1
        return sorted({round(share * last) for share in _SHOWN} | {min(1, last)})


WIDTH = 120


_INDENT = " " * 12


def as_text(e: Explanation) -> str:
    """Return the whole explanation."""
    return "\n".join([*_head(e), "", *_parts(e), "", *_levels(e), "", *_sampling(e), *_training(e), *_remarks(e)])


def _head(e: Explanation) -> Iterator[str]:
    s = e.settings
    bins = s["bins"]
    values = "continuous values" if bins is None else f"{bins} values in [-1, 1]"
    steps = f"T = {s['num_steps']}" + (f", trained on {len(e.level)} of them" if s["train_spacing"] is not None else "")
    clip = "x_start clipped to [-1, 1] when sampling" if s["clip_x_start"] else "x_start not clipped"
    if e.num_parameters is not None:
        yield f"network of {e.num_parameters:,} parameters"
    if e.kernel is not None:
        yield f"group norms by {e.kernel}, within rounding of torch's; DIFFKIT_PLUGINS= leaves it out"
    if e.network_calls:
        yield f"forward passes of an update: {e.network_calls}"
    shape, latent_shape = ("x".join(map(str, s[name])) for name in ("data_shape", "latent_shape"))
    latents = "" if shape == latent_shape else f", latents {latent_shape}"
    yield f"data {shape}, {values}{latents}; {steps}; {clip}"


def _parts(e: Explanation) -> Iterator[str]:
    yield "PARTS"
    for part in e.parts:
        yield from _part(part)


def _part(part: PartNote) -> Iterator[str]:
    origin = "" if part.origin.startswith("diffkit ") else f"  [{part.origin or 'not registered'}]"
    yield f"  {part.kind:9} {part.name}{_options(part)}{origin}"
    text = part.text if not part.source else f"{part.text}\nSource: {part.source}"
    for line in filter(None, text.splitlines()):
        yield from textwrap.wrap(line, WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)


def _options(part: PartNote) -> str:
    chosen = ", ".join(f"{name}={value!r}" for name, value in part.options.items() if value is not None)
    lines = textwrap.wrap(f"({chosen})", WIDTH - 12 - len(part.name), subsequent_indent=" " * 13)
    return " " + "\n".join(lines) if chosen else ""


def _levels(e: Explanation) -> Iterator[str]:
    yield "LEVELS   level 0 is clean data"
    names = ("level", "alpha_bar", "snr", "beta", "std from", "std to", "time", "gain", "weight", "in bound")
    yield "  " + "".join(f"{name:>10}" for name in names)
    columns = (e.alpha_bar, e.snr, e.beta, e.posterior_std, e.upper_std, e.time, e.gain, e.weight, e.bound_weight)
    for i in e.rows():
        yield "  " + f"{e.level[i]:10d}" + "".join(f"{_short(column[i]):>10}" for column in columns)
    yield from _wrapped(
        "std from, std to: the reverse step's standard deviation if all data were one point (beta-tilde), and if data "
        "were a unit Gaussian (beta). gain: how much an error of the network's output is enlarged in x_start. weight: "
        "of a squared error of x_start in the loss; in bound: the same in the variational bound."
    )


def _short(value: float) -> str:
    return f"{value:.4f}" if 0.001 <= abs(value) < 1 else f"{value:.4g}"


def _sampling(e: Explanation) -> Iterator[str]:
    yield "SAMPLING"
    total = len(e.level)
    count = "every level" if len(e.grid) == total else f"{len(e.grid)} of {total} levels"
    if any(isinstance(k, float) for k in e.grid):
        count = f"{len(e.grid)} levels between those of training, where time is interpolated in log-SNR"
    yield from _wrapped(f"{e.sampler.name}{_options(e.sampler)}: {count}: {_abbreviated(e.grid)}")
    if e.settings.get("sampling"):
        own = ", ".join(f"{name}={value!r}" for name, value in e.settings["sampling"].items())
        yield from _wrapped(f"where a call says nothing: {own}")


def _training(e: Explanation) -> Iterator[str]:
    if e.training is None:
        return
    yield ""
    yield "TRAINING"
    for part in e.training.parts:
        yield from _part(part)
    for what, patterns in (("group", e.training.groups), ("frozen", e.training.frozen)):
        for pattern, count in patterns.items():
            yield f"  {what:9} {pattern}" + ("" if count is None else f"  {count:,} parameters")


def _abbreviated(levels: Sequence[float]) -> str:
    words = [f"{k:.5g}" if isinstance(k, float) else str(k) for k in levels]
    return ", ".join(words if len(words) <= 12 else [*words[:5], "...", *words[-5:]])


def _remarks(e: Explanation) -> Iterator[str]:
    if e.remarks:
        yield ""
        yield "REMARKS"
    for remark in e.remarks:
        yield from textwrap.wrap(remark, WIDTH - 4, initial_indent="  * ", subsequent_indent="    ")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH - 2, initial_indent="  ", subsequent_indent="  ")
