"""Write a run as one HTML page: samples, curves, likelihood, metrics, its composition and how to repeat it.

The page fetches nothing and needs no server. It includes the results of diffkit nll and evaluate, if there are any.
"""

from __future__ import annotations

from pathlib import Path

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL, short
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.paths import check_file
from diffkit.options import integer
from diffkit.runtime.output import note

MOST = 1000
"""Samples of a page at most: they are all in it, in one picture."""


@frozen
class Options:
    """Options of ``diffkit report``.

    Attributes:
        run: A training run or saved system (a folder).
        out: The page; by default report.html in that folder.
        overwrite: Replace that file if it exists; report.html in the folder of the run is always replaced.
        n: How many samples are drawn for it, at most 1000; 0 draws none.
        steps: How many levels drawing them visits, or "10,15,20", "ddim50", ...; 50, or all if there are fewer.
        seed: Of the samples.
        device: Such as cpu or cuda; a GPU if there is one.
    """

    run: Path = field(metadata=POSITIONAL)
    out: Path | None = None
    overwrite: bool = False
    n: int = integer(36, ge=0, le=MOST, metadata=short("-n"))
    steps: int | str | tuple[int, ...] | None = None
    seed: int = integer(0, ge=0)
    device: str | None = None


SPEC = CommandSpec({"Options": Options}, config=True, defaults={"steps": "50, or all if there are fewer"})


def run(parsed: ParsedOptions) -> None:
    """Write the page."""
    from diffkit.cli.shared.device import device
    from diffkit.evaluation import report

    options = parsed.make(Options)
    out = options.run / "report.html" if options.out is None else options.out
    if options.run.is_dir() or options.out is not None:  # else the run is missing, which loading reports
        check_file("--out", out, (".html", ".htm"), overwrite=options.overwrite or options.out is None)
    note(f"writing {out}")
    report.write_report(
        options.run,
        out,
        n=options.n,
        steps=options.steps,
        seed=options.seed,
        device=device(options.device),
        progress=True,
    )
