"""Train on handwritten digits, draw some of each class, and measure them: 3 to 6 minutes on one CPU core.

The digits come with scikit-learn. A second call with the same folder resumes where the first was stopped.
"""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.paths import check_folder
from diffkit.demo import STEPS
from diffkit.errors import OptionError
from diffkit.options import integer
from diffkit.runtime.output import note, show


@frozen
class Options:
    """Options of ``diffkit demo``.

    Attributes:
        out: Folder for the samples, the loss curve, the figures and the trained system.
        steps: Updates of the weights; the digits are good at the default.
        seed: Seed of everything random.
    """

    out: Path = field(default=Path("demo"))
    steps: int = STEPS
    seed: int = integer(0, ge=0)


SPEC = CommandSpec({"Options": Options})


def run(parsed: ParsedOptions) -> None:
    """Run the demo and print its results."""
    from diffkit import demo

    options = parsed.make(Options)
    check_folder("--out", options.out)
    if options.out.is_dir() and any(options.out.iterdir()) and not (options.out / "run").is_dir():
        raise OptionError(f"--out {options.out} is not empty, but holds no demo to go on with; name another folder")
    note(f"writing to {options.out}/")
    show(demo.run(options.out, steps=options.steps, seed=options.seed))
