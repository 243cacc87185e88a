"""An explanation as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from diffkit.decoders import decoder_for
from diffkit.explain import Explanation, PartNote

WIDTH = 120
_INDENT = " " * 12


def as_text(e: Explanation) -> str:
    """Return the whole explanation."""
    return "\n".join([*_head(e), "", *_parts(e), "", *_levels(e), "", *_sampling(e), *_remarks(e)])


def _head(e: Explanation) -> Iterator[str]:
    s = e.settings
    bins = decoder_for(s["bins"]).bins
    values = "continuous values" if bins is None else f"{bins} values in [-1, 1]"
    steps = f"T = {s['num_steps']}" + (f", trained on {len(e.level)} of them" if s["train_spacing"] is not None else "")
    clip = "x_start clipped to [-1, 1] when sampling" if s["clip_x_start"] else "x_start not clipped"
    if e.num_parameters is not None:
        yield f"network of {e.num_parameters:,} parameters"
    yield f"data {'x'.join(map(str, s['data_shape']))}, {values}; {steps}; {clip}"


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
    yield from _wrapped(f"{e.sampler.name}{_options(e.sampler)}: {count}: {_abbreviated(e.grid)}")


def _abbreviated(levels: Sequence[int]) -> str:
    words = list(map(str, levels))
    return ", ".join(words if len(words) <= 12 else [*words[:5], "...", *words[-5:]])


def _remarks(e: Explanation) -> Iterator[str]:
    if e.remarks:
        yield ""
        yield "REMARKS"
    for remark in e.remarks:
        yield from textwrap.wrap(remark, WIDTH - 4, initial_indent="  * ", subsequent_indent="    ")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH - 2, initial_indent="  ", subsequent_indent="  ")
