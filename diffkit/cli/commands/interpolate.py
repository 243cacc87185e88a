"""Draw pictures between two: both are inverted to noise, and sampling starts between their noises."""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL, Steps, short, steps_help
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.drawing import MOST, STEPS, sampling_options
from diffkit.errors import OptionError
from diffkit.options import integer
from diffkit.runtime.output import note


@frozen
class Options:
    """Options of ``diffkit interpolate``.

    Attributes:
        run: A saved system or training run (a folder).
        first: The picture at one end.
        second: The picture at the other.
        n: How many, with both ends.
        classes: Name or index of the class of both; "none", which means no class, by default.
        steps: Which levels are visited.
        batch_size: How many are made at a time.
        out: Folder for the results; created if needed.
        device: Such as cpu or cuda; a GPU if there is one.
        overwrite: Write into a folder that holds something already.
    """

    run: Path = field(metadata=POSITIONAL)
    first: Path = field(metadata=POSITIONAL)
    second: Path = field(metadata=POSITIONAL)
    n: int = field(default=7, metadata=short("-n"))
    classes: tuple[str, ...] = ()
    steps: Steps = field(default=None, metadata=steps_help())
    batch_size: int = integer(64, ge=1)
    out: Path = Path("between")
    device: str | None = None
    overwrite: bool = False


SPEC = CommandSpec({"Options": Options}, {"sampler": "heun", "guidance": None}, config=True, defaults=STEPS)


def run(parsed: ParsedOptions) -> None:
    """Draw the pictures between, and write them."""
    from diffkit.cli.commands.invert import check_deterministic
    from diffkit.cli.shared import tasks
    from diffkit.options import check_integer
    from diffkit.tasks import interpolate

    options = parsed.make(Options)
    check_integer("n", options.n, ge=2, le=MOST)
    tasks.check_out(options.out, options.overwrite)
    if len(options.classes) > 1:
        raise OptionError(f"--classes must name one class, which both ends are of, got {','.join(options.classes)}")
    how = sampling_options(parsed)
    check_deterministic(how["sampler"])
    saved = tasks.load(options.run, options.device, parsed.parts.get("guidance"))
    first, second = (tasks.read_one(path, saved.system.data_shape) for path in (options.first, options.second))
    one = {name: values[0] for name, values in tasks.conditions_for(saved, options.classes, 1).items()}
    between = interpolate(
        saved.system,
        first,
        second,
        options.n,
        steps=options.steps,
        batch_size=options.batch_size,
        **how,
        **one,
    ).cpu()
    for line in tasks.write(options.out, [("between", between)], [between], "from the first to the second"):
        note(line)
