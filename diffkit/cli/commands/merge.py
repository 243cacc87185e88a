"""Merge the adapter of a run into its network's weights: a saved system that needs no base any more."""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.paths import check_new_folder
from diffkit.runtime.output import note


@frozen
class Options:
    """Options of ``diffkit merge``.

    Attributes:
        run: A training run with an adapter (a folder).
        out: Folder for the system, which diffkit sample and the others read.
        base: Folder with the weights beside which the adapter was trained, if they are not where they were.
        overwrite: Write into a folder that holds something already.
    """

    run: Path = field(metadata=POSITIONAL)
    out: Path
    base: Path | None = None
    overwrite: bool = False


SPEC = CommandSpec({"Options": Options})


def run(parsed: ParsedOptions) -> None:
    """Write the system."""
    options = parsed.make(Options)
    check_new_folder("--out", options.out, overwrite=options.overwrite)
    note(f"system: {options.out}/")

    import diffkit

    diffkit.weights.merged(diffkit.load(options.run, base=options.base)).save(options.out)
