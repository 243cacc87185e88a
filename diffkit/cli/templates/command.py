"""Print the noise levels of a schedule.

Usage:

    diffkit my-command --num-steps 10
"""

from __future__ import annotations

from attrs import frozen

from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.options import integer
from diffkit.registry import registry
from diffkit.runtime.output import show


@frozen
class Options:
    """Options of the command.

    Attributes:
        num_steps: Number of levels, >= 1.
    """

    num_steps: int = integer(10, ge=1)


SPEC = CommandSpec({"Options": Options}, slots={"schedule": "cosine"})


def run(parsed: ParsedOptions) -> None:
    """Print a line for each level."""
    options = parsed.make(Options)
    name, values = parsed.parts["schedule"]
    table = registry("schedule").create(name, **values).table(options.num_steps)
    for level, sigma in enumerate(table.sigma):
        show(f"level {level}: sigma {sigma:.4f}")
