"""Save a training run's system with another mean of its weights, by decay rate or, made afterwards, of any width.

--rate takes one of the rates that the run was trained with; --width makes a mean over any share of the training from
the power-function means (--ema-power) in the stored checkpoints of the run.
"""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL, options_of
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.parsing.spelling import as_cli_flags
from diffkit.cli.shared.paths import check_new_folder
from diffkit.errors import OptionError
from diffkit.options import integer, number
from diffkit.runtime.output import note
from diffkit.training.config import TrainConfig


@frozen
class Options:
    """Options of ``diffkit average``.

    Attributes:
        run: A training run (a folder).
        out: Folder for the system, which diffkit sample and the others read.
        rate: Decay rate of the mean, one that the run was trained with.
        width: Relative width of the mean: 0.05 is over about the last twentieth of the training.
        step: The mean as it was after this many updates; the newest by default.
        overwrite: Write into a folder that holds something already.
    """

    run: Path = field(metadata=POSITIONAL)
    out: Path
    rate: float | None = number(None, optional=True, gt=0, lt=1)
    width: float | None = number(None, optional=True, gt=0, le=0.28)
    step: int | None = integer(None, optional=True, ge=1)
    overwrite: bool = False


SPEC = CommandSpec({"Options": Options})


def run(parsed: ParsedOptions) -> None:
    """Write the system."""
    options = parsed.make(Options)
    check_new_folder("--out", options.out, overwrite=options.overwrite)
    if (options.rate is None) == (options.width is None):
        raise OptionError("give either --rate, one of those that the run was trained with, or --width")
    note(f"system: {options.out}/")
    from diffkit.training.posthoc_ema import averaged

    with as_cli_flags(options_of(TrainConfig)):  # the missing option is one of training
        system = averaged(options.run, rate=options.rate, width=options.width, step=options.step, progress=True)
    system.save(options.out)
