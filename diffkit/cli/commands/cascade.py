"""Put a base system and upsamplers together as one folder, a cascade, which diffkit sample draws from.

    diffkit cascade runs/base runs/up --noise 0.1 --steps 100,25 --out systems/cascade

The base comes first; each upsampler (diffkit train --low-res) enlarges what the stage before makes.
"""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.paths import check_new_folder
from diffkit.options import integers, numbers
from diffkit.runtime.output import note


@frozen
class Options:
    """Options of ``diffkit cascade``.

    Attributes:
        stage: Saved systems or training runs (folders), the one that makes the smallest images first.
        out: Folder for the cascade.
        noise: Level of noise on the small images of each upsampler, 0 to 1; of all of them, if one is given. Train with
            --low-res-noise of at least as much.
        steps: Number of sampling steps of each stage, which it then has by default; as it was saved by default.
        overwrite: Write into a folder that holds something already.
    """

    stage: tuple[Path, ...] = field(metadata=POSITIONAL)
    out: Path
    noise: tuple[float, ...] = numbers((0.0,), single=True, ge=0, le=1)
    steps: tuple[int, ...] | None = integers(None, optional=True, ge=1)
    overwrite: bool = False


SPEC = CommandSpec({"Options": Options})


def run(parsed: ParsedOptions) -> None:
    """Write the cascade."""
    options = parsed.make(Options)
    check_new_folder("--out", options.out, overwrite=options.overwrite)
    from diffkit.evaluation.cascades import cascade_of

    noise = options.noise[0] if len(options.noise) == 1 else options.noise
    cascade = cascade_of(options.stage, noise=noise, steps=options.steps)
    cascade.save(options.out)
    shapes = " -> ".join("x".join(map(str, system.data_shape)) for system in cascade.systems)
    note(f"cascade: {options.out}/ ({shapes})")
