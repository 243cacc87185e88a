"""Data of a command line: opened, with errors that name its flags, and described in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from diffkit.cli.parsing.parts import part_options
from diffkit.cli.parsing.spec import ParsedOptions
from diffkit.errors import within

if TYPE_CHECKING:
    from diffkit.data import Source
    from diffkit.data.base import Data

LOOKED_AT = 64
"""Number of pictures that are checked for colour."""


def opened(parsed: ParsedOptions, kind: str = "data", low_res: tuple[int, ...] | None = None) -> Data:
    """Return the data that was chosen, with small images if ``low_res`` is parsed.

    Args:
        parsed: The options of the command.
        kind: "data" or "val".
        low_res: Size of the small images.
    """
    from diffkit.data import LowRes

    source = source_of(parsed, kind)
    with within(kind):
        data = source.open()
    return data if low_res is None else LowRes(data, low_res)


def first_look(parsed: ParsedOptions, low_res: tuple[int, ...] | None = None) -> tuple[Data, bool]:
    """Return the data for its shape and classes, and whether it still has to be opened: not every image is read yet."""
    name, options = parsed.parts["data"]
    known = {option.path[-1] for option in part_options("data", name)}
    quick = "check" in known and options.get("on_error", "stop") == "stop"  # what is skipped decides the classes
    chosen = {**options, "check": False, "cache": None} if quick else options
    return opened(attrs.evolve(parsed, parts={"data": (name, chosen)}), low_res=low_res), quick


def source_of(parsed: ParsedOptions, kind: str = "data") -> Source:
    """Return where the data comes from that was chosen, with nothing read."""
    from diffkit.data.loading import source_for

    source, options = parsed.parts[kind]
    with within(kind):
        return source_for(source, **options)


def described(data: Data) -> str:
    """Return a description of data in one line."""
    from diffkit.data.ranges import range_of

    found = range_of(data)
    values = f"{data.bins} values" if found is None else f"continuous values in {found}"
    classes = f", {len(data.classes)} classes" if data.classes else ""
    small = data.describe().get("low_res")
    small_size = "" if small is None else f", low_res {'x'.join(map(str, small))}"
    return f"{len(data)} examples of {'x'.join(map(str, data.shape))}, {values}{classes}{small_size}"


def grey(parsed: ParsedOptions, data: Data) -> str:
    """Return a hint if pictures are read in colour by default, but are grey; else an empty string."""
    source, options = parsed.parts["data"]
    known = {option.path[-1] for option in part_options("data", source)}
    if "channels" not in known or "channels" in options or data.shape[0] != 3:
        return ""
    count = min(len(data), LOOKED_AT)
    images = data.batch(range(count)).images
    if not (images == images[:, :1]).all():
        return ""
    return f"; all {count} pictures checked are grey: --data.channels 1 reads them so"
