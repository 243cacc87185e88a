"""Options of the commands that work on pictures; what they do is in `diffkit.cli.shared.tasks`."""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL, STEPS, Steps, short
from diffkit.cli.parsing.spec import CommandSpec
from diffkit.options import integer

MOST = 10_000
"""Results of a picture at most: they are all in memory, and in one overview."""


@frozen(kw_only=True)
class PictureOptions:
    """Options of every command that works on pictures.

    Attributes:
        run: A saved system or training run (a folder).
        classes: Name or index of a class, for all pictures or one for each; "none", which means no class, by default.
        steps: Which levels are visited.
        out: Folder for the results; created if needed.
        device: Such as cpu or cuda; a GPU if there is one.
        overwrite: Write into a folder that holds something already.
    """

    run: Path = field(metadata=POSITIONAL)
    classes: tuple[str, ...] = ()
    steps: Steps = field(default=None, metadata=STEPS)
    out: Path
    device: str | None = None
    overwrite: bool = False


@frozen(kw_only=True)
class Drawing(PictureOptions):
    """Options of the commands that draw variants of pictures.

    Attributes:
        pictures: A picture, or a folder of them.
        n: How many of each picture.
        seed: Seed of everything random.
        batch_size: How many are made at a time.
    """

    pictures: Path = field(metadata=POSITIONAL)
    n: int = integer(1, ge=1, le=MOST, metadata=short("-n"))
    seed: int = integer(0, ge=0)
    batch_size: int = integer(64, ge=1)
    out: Path = Path("drawn")


AS_COMPOSED = {"sampler": "as it was composed", "steps": "all levels"}
"""Words for the defaults of a system."""
OF_INVERSION = {"steps": "50, or all if there are fewer"}
"""Words for the default of `diffkit.tasks.invert`."""


def sampling_spec(options: type, **defaults: str) -> CommandSpec:
    """Return the specification of a command that samples as the system was composed by default.

    Args:
        options: Its class of options.
        defaults: Further words for defaults.
    """
    return CommandSpec(
        {"Options": options},
        {"sampler": None, "guidance": None},
        config=True,
        composed=("sampler", "guidance"),
        defaults={**AS_COMPOSED, **defaults},
    )
