"""The page and the picture of `growth.json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffkit.runtime.plots import BLUE, ORANGE, figure

TITLES = {
    "resolution": ("side of the images", ("forward_ms", "update_ms")),
    "channels": ("channels at full size", ("forward_ms", "update_ms")),
    "levels": ("levels T", ("compose_ms", "bound_ms")),
    "batch": ("examples in a call", ("forward_ms", "update_ms")),
    "processes": ("processes", ("ddp_sent_mb", "fsdp_share_mb")),
}

PAGE = """# How cost grows

One thing varies, at five points. The network is a U-Net of 32 channels, (1, 2, 2) at 32x32, with attention at 8x8, if
nothing else is said, trained with the hybrid loss in batches of 8. Made by `python -m benchmarks.growth` on
{device}, torch {torch}, commit {commit}, load {load}; `growth.json` has every figure.
Times are the least CPU time of two rounds, per image, in milliseconds; operations, bytes and exchanges are counted.
**No GPU was at hand.**

![cost against what varies](growth.png)
"""

TEXTS = {
    "resolution": (
        "Resolution",
        "Operations and saved memory grow with the number of pixels, attention faster: its tokens are a sixteenth of "
        "the pixels, and their products grow with the square. Small images cost more for each pixel.",
    ),
    "channels": (
        "Channels",
        "Operations and weights grow with the square of the width, saved memory with the width. A wider network uses "
        "matrix units better, so its time grows more slowly than its operations.",
    ),
    "levels": (
        "Levels",
        "An update and a sampling of 50 steps cost the same at any T, here of an 8x8 network of 16 channels. Composing "
        "computes the tables, and the bound of an image, in milliseconds, has a term for each level.",
    ),
    "batch": (
        "Batch",
        "A forward pass of a large batch is evaluated in slices, so its cost for each image no longer rises. "
        "Memory of an update, weights and optimizer included, grows with the batch.",
    ),
    "processes": (
        "Processes",
        "Counted for one of so many processes that train the network at 16x16: what it sends in an update, in how many "
        "calls, and its share of the weights with FSDP. With DDP every process has all of them.",
    ),
}


def page(found: Mapping[str, Any]) -> str:
    """Return the page for what was found."""
    lines = [PAGE.format(**found["machine"])]
    for name, (title, text) in TEXTS.items():
        lines += [f"## {title}\n", *wrapped(text), "", *table(found[name]), ""]
    lines += ["## Memory of an image, and where it goes\n"]
    lines += [
        *wrapped("What the forward pass of one image saves for the backward pass, by the layer that saves it first.")
    ]
    lines += ["", *table([{"layer": name, "mb": size} for name, size in found["memory"].items()]), ""]
    lines += ["## Less memory, and its price\n"]
    lines += wrapped(
        "`checkpoint` is the option of the backbones: activations within blocks are computed again in the backward "
        "pass. `copied` copies every saved tensor away and back, as offloading to a host does: on a GPU that is the "
        "traffic on its bus, here it is copies in memory. `image mb` is what one image "
        "more adds to the peak of an update."
    )
    return "\n".join([*lines, "", *table(found["ways"])]).rstrip() + "\n"


def wrapped(text: str) -> list[str]:
    """The text in lines of at most 120 characters."""
    import textwrap

    return textwrap.wrap(text, 118)


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield a Markdown table."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    yield "| " + " | ".join(name.replace("_", " ") for name in columns) + " |"
    yield "|" + " ---: |" * len(columns)
    for row in rows:
        yield "| " + " | ".join(f"{row.get(name, '')}" for name in columns) + " |"


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Write the picture: one panel for each thing that varies."""
    drawing = figure("Cost against what varies, both axes logarithmic", figsize=(12, 7), dpi=90)
    for place, (name, (label, columns)) in enumerate(TITLES.items(), 1):
        axes = drawing.add_subplot(2, 3, place)
        for column, color in zip(columns, (BLUE, ORANGE), strict=True):
            points = [(row["point"], row[column]) for row in found[name] if row.get(column)]
            axes.plot(*zip(*points, strict=True), "o-", color=color, label=column.replace("_", " "))
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks([row["point"] for row in found[name]], [str(row["point"]) for row in found[name]])
        axes.set_xlabel(label)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    axes = drawing.add_subplot(2, 3, 6)
    layers = found["memory"]
    axes.barh(list(layers)[::-1], list(layers.values())[::-1], color=BLUE)
    axes.set_xlabel("MB saved for one image")
    drawing.savefig(path)
