"""Write any data as a folder of PNGs named by class, or as one .npz: CIFAR-10 and LSUN from their archives, and others.

The data is what --data names, with its options: --data cifar10 --data.archive cifar-10-python.tar.gz, for example.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen

from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.paths import check_file, check_folder
from diffkit.errors import OptionError, within
from diffkit.runtime.output import log, note

if TYPE_CHECKING:
    from diffkit.data.exporting import Exporter


@frozen
class Options:
    """Options of ``diffkit data import``.

    Attributes:
        to: A new folder for PNGs, or a .npz file.
        prefix: Start of the names of the PNGs if there are no classes, such as bedroom.
        overwrite: Replace the .npz file if it exists; a folder must be new or empty.
    """

    to: Path = field()
    prefix: str | None = None
    overwrite: bool = False


SPEC = CommandSpec({"Options": Options}, {"data": None}, required=frozenset({"data"}))


def run(parsed: ParsedOptions) -> None:
    """Read the data once, and write it."""
    options = parsed.make(Options)
    npz = options.to.suffix == ".npz"
    if npz:
        check_file("--to", options.to, overwrite=options.overwrite)
    else:
        _check_folder(options.to)
    if options.prefix is not None and (npz or not options.prefix or set(options.prefix) & set("/\\_")):
        raise OptionError("--prefix is for PNGs, and holds no '/' or '_'")
    exporter = _exporter(parsed)
    note(f"writing {len(exporter.data)} examples to {options.to}{'' if npz else '/'}")
    if npz:
        exporter.to_npz(options.to)
    else:
        _say_order(exporter, exporter.to_folder(options.to, prefix=options.prefix))
    for reason in exporter.skipped:
        log(f"skipped {reason}")
    written = len(exporter.data) - len(exporter.skipped)
    note(f"wrote {written} examples" + (f", skipped {len(exporter.skipped)}" if exporter.skipped else ""))


def _check_folder(path: Path) -> None:
    """Refuse a folder that is not empty: its files could not be distinguished from those to be written."""
    check_folder("--to", path)
    if path.is_dir() and any(path.iterdir()):
        raise OptionError(f"--to {path} is not empty; name a folder that is new or empty, or a .npz file")


def _exporter(parsed: ParsedOptions) -> Exporter:
    from diffkit.data.exporting import Exporter
    from diffkit.data.loading import source_for

    name, chosen = parsed.parts["data"]
    with within("data"):
        source: Any = source_for(name, **chosen)
    known = [each.name for each in attrs.fields(type(source))]
    if "check" in known and "check" not in chosen and "cache" not in chosen:
        source = attrs.evolve(source, check=False)  # every image is read once anyway
    return Exporter(
        source.open(),
        on_error=str(chosen.get("on_error", "stop")),
        processes=int(chosen.get("processes", 0)),
        progress=True,
    )


def _say_order(exporter: Exporter, names: list[str]) -> None:
    """Print the order of classes in the folder, if it differs from that of the data."""
    from diffkit.data.exporting import file_prefixes

    if names and names != file_prefixes(exporter.data.classes):
        note(f"read with --data.labels prefix, its classes are counted in this order: {', '.join(names)}")
