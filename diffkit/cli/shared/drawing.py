"""Options of the commands that draw variants of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from diffkit.cli.parsing.options import Steps, short, steps_help
from diffkit.errors import OptionError
from diffkit.options import integer
from diffkit.registry import canonical

if TYPE_CHECKING:
    from diffkit.cli.parsing.spec import ParsedOptions

MOST = 10_000
"""Variants of a picture at most: they are all in memory, and in one overview."""


@frozen
class Drawing:
    """Options for drawing variants.

    Attributes:
        n: How many of each picture.
        classes: Name or index of a class, for all pictures or one for each; "none", which means no class, by default.
        steps: Which levels are visited.
        seed: Seed of everything random.
        batch_size: How many are made at a time.
        out: Folder for the results; created if needed.
        device: Such as cpu or cuda; a GPU if there is one.
        overwrite: Write into a folder that holds something already.
    """

    n: int = field(default=1, metadata=short("-n"))
    classes: tuple[str, ...] = ()
    steps: Steps = field(default=None, metadata=steps_help("all levels"))
    seed: int = integer(0, ge=0)
    batch_size: int = integer(64, ge=1)
    out: Path = field(default=Path("drawn"))
    device: str | None = None
    overwrite: bool = False

    def check(self) -> None:
        """Check the options before anything is loaded."""
        from diffkit.cli.shared.tasks import check_out
        from diffkit.options import check_integer

        check_integer("n", self.n, ge=1, le=MOST)
        check_out(self.out, self.overwrite)


STEPS: Mapping[str, str] = {"steps": "50, or all if there are fewer"}
"""Words for the default of `diffkit.tasks.invert`."""


def chosen(**options: Any) -> dict[str, Any]:
    """Return the options that were given; the others have the system's defaults."""
    return {name: value for name, value in options.items() if value is not None}


def sampling_options(parsed: ParsedOptions) -> dict[str, Any]:
    """Return the sampler and the guidance that were chosen, as `System.sample` takes them."""
    from diffkit.cli.shared.guidance import refuse_folders

    slot = parsed.parts.get("guidance")
    refuse_folders(slot)
    if slot is not None and canonical(slot[0]) == "cfg" and not parsed.values.get("classes"):
        raise OptionError("--guidance cfg has no effect without a class; name one with --classes")
    return {"sampler": parsed.parts.get("sampler"), **chosen(guidance=slot)}
