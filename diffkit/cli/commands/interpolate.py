"""Draw pictures between two: both are inverted to noise, and sampling starts between their noises."""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL, short
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.drawing import MOST, OF_INVERSION, PictureOptions
from diffkit.errors import OptionError
from diffkit.options import integer
from diffkit.runtime.output import note


@frozen(kw_only=True)
class Options(PictureOptions):
    """Options of ``diffkit interpolate``.

    Attributes:
        first: The picture at one end.
        second: The picture at the other.
        n: How many, with both ends.
        classes: Name or index of the class of both; "none", which means no class, by default.
        batch_size: How many are made at a time.
    """

    first: Path = field(metadata=POSITIONAL)
    second: Path = field(metadata=POSITIONAL)
    n: int = integer(7, ge=2, le=MOST, metadata=short("-n"))
    batch_size: int = integer(64, ge=1)
    out: Path = Path("between")


SPEC = CommandSpec(
    {"Options": Options},
    {"sampler": "heun", "guidance": None},
    config=True,
    composed=("guidance",),
    defaults=OF_INVERSION,
)


def run(parsed: ParsedOptions) -> None:
    """Draw the pictures between, and write them."""
    from diffkit.cli.shared.tasks import PictureTask, read_one, write
    from diffkit.tasks import interpolate

    options = parsed.make(Options)
    if len(options.classes) > 1:
        raise OptionError(f"--classes must name one class, which both ends are of, got {','.join(options.classes)}")
    task = PictureTask.of(options, parsed)
    ends = (read_one(path, task.shape) for path in (options.first, options.second))
    between = task.call(interpolate, *ends, options.n, count=None, batch_size=options.batch_size).cpu()
    for line in write(options.out, [("between", between)], [between], "from the first to the second"):
        note(line)
