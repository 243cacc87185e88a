"""Run an exported graph in a process without diffkit, and compare it with the run it came from.

Both get the same noise and classes. The exit code is 2 if they differ by more than rounding allows.
"""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.errors import OptionError
from diffkit.options import integer
from diffkit.runtime.output import show


@frozen
class Options:
    """Options of ``diffkit check-export``.

    Attributes:
        file: The file that diffkit export wrote.
        run: The saved system or training run it came from (a folder).
        n: How many examples to compare.
        seed: Seed of noise and classes.
    """

    file: Path = field(metadata=POSITIONAL)
    run: Path = field(metadata=POSITIONAL)
    n: int = integer(3, ge=1, le=1000)
    seed: int = integer(0, ge=0)


SPEC = CommandSpec({"Options": Options})


def run(parsed: ParsedOptions) -> None:
    """Compare, and say how they differ."""
    import diffkit
    from diffkit.tasks.exporting import check_export

    options = parsed.make(Options)
    found = check_export(options.file, diffkit.load(options.run), examples=options.n, seed=options.seed)
    show(str(found))
    if not found.ok:
        raise OptionError(f"{options.file} differs from {options.run} by more than rounding")
