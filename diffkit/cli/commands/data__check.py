"""Read every image of a folder, .zip or .tar once, and list files that training would skip or stop at, and others.

Sizes, kinds and classes are counted. Exit code 1 if an image cannot be read or the labels do not fit.
Of a .npz or .npy file it prints the content, and the range of continuous values.
"""

from __future__ import annotations

import json
from pathlib import Path

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.paths import check_file
from diffkit.data.sources._images import image_size
from diffkit.errors import DataError
from diffkit.options import choice, integer
from diffkit.runtime.output import note, show


@frozen
class Options:
    """Options of ``diffkit data check``.

    Attributes:
        source: A folder of images, searched with all folders in it, or a .zip of images; .tar files of them (one, a
            folder or a pattern); or a .npz or .npy file.
        labels: Classes of images to count: "folders", "prefix", or a .csv, .json or .jsonl table, as in train; of .tar
            files "cls", "json", "folders" or "prefix".
        size: Height and width that the images are meant for; which are smaller is counted.
        processes: Processes that read; 0 reads in this one.
        layout: Of a .npz or .npy file, "channels_last" or "channels_first"; by default the shape decides.
        out: A .json file for everything that was found, file by file.
        overwrite: Replace that file if it exists.
    """

    source: Path = field(metadata=POSITIONAL)
    labels: str = "none"
    size: tuple[int, ...] | None = image_size(optional=True)
    processes: int = integer(0, ge=0)
    layout: str | None = choice(None, ("channels_last", "channels_first"), optional=True)
    out: Path | None = None
    overwrite: bool = False


SPEC = CommandSpec({"Options": Options})


def run(parsed: ParsedOptions) -> None:
    """Print the findings; exit with code 1 if something cannot be used."""
    from diffkit.data.inspection import check_images
    from diffkit.runtime.files import write_atomically

    options = parsed.make(Options)
    check_file("--out", options.out, (".json",), overwrite=options.overwrite)
    if options.source.suffix in (".npz", ".npy") and options.source.is_file():
        _check_arrays(options, parsed)
        return
    _check_source(options)
    parsed.refuse(f"{{}} is for a .npz or .npy file; leave it out for {options.source}", "layout")
    size = None if options.size is None else (options.size[0], options.size[-1])
    labels = None if options.labels == "none" else options.labels
    report = check_images(options.source, labels=labels, size=size, processes=options.processes, progress=True)
    show(report)
    if options.out is not None:
        write_atomically(options.out, json.dumps(report.as_dict(), indent=1).encode())
        note(f"wrote {options.out}")
    if not report.good:
        raise SystemExit(1)


def _check_arrays(options: Options, parsed: ParsedOptions) -> None:
    """Print the content of a NumPy file, as training reads it."""
    from diffkit.cli.shared.data import described
    from diffkit.data.loading import source_for
    from diffkit.data.ranges import range_of
    from diffkit.evaluation.sampling import has_labels

    parsed.refuse(f"{{}} is for images; leave it out for {options.source}", "labels", "size", "out")
    data = source_for(options.source, labels=has_labels(options.source), layout=options.layout).open()
    show(f"{options.source}: {described(data)}")
    if (values := range_of(data)) and values.remark:
        show(f"note: {values.remark}")


def _check_source(options: Options) -> None:
    """Refuse anything but a folder, .zip or .tar of images, with advice, and labels that it cannot have."""
    from diffkit.data.loading import registered_name, source_for
    from diffkit.data.shard_names import is_path_of_shards

    source, wanted = options.source, "name a folder, .zip or .tar of images"
    if source.is_dir() or (source.suffix == ".zip" and source.is_file()) or is_path_of_shards(source):
        source_for(source, labels=options.labels, size=options.size or 1)
        return
    if source.exists():
        raise DataError(f"{source} is a file; {wanted} (other files are checked when they are read)")
    if registered_name(str(source)):
        raise DataError(
            f"{source} is data with a name of its own, which is checked when it is read; {wanted}, "
            f"or make one: diffkit data import --data {source} --to FOLDER"
        )
    raise DataError(f"{source} is not there; {wanted}")
