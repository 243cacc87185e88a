"""Draw samples from a saved system, as PNG files, one grid and the .npz that the published code writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from diffkit._errors import OptionError
from diffkit.cli._options import POSITIONAL, short
from diffkit.cli._paths import check_folder
from diffkit.cli._takes import Given, Takes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from diffkit.cli._saved import Saved

FORMATS = ("png", "grid", "npz")


@frozen
class Options:
    """Options of ``diffkit sample``.

    Attributes:
        run: A saved system or training run (a folder).
        n: How many samples.
        out: Folder for the samples; made if it is not there.
        format: What to write: png (a file each), grid (all in one PNG), npz (arr_0 uint8 (N, H, W, C), arr_1 labels).
        classes: Names or indices of classes, taken in turn; all classes by default. "none" is no class.
        steps: How many levels to visit, or "10,15,20", "ddim50", "leading50", "trailing50", "linspace50"; all levels
            by default.
        seed: Sample i depends on the seed and i only, whatever the batch size.
        batch_size: How many are made at a time.
        device: Such as cpu or cuda; a GPU if there is one.
        overwrite: Write into a folder that holds samples already.
    """

    run: Path = field(metadata=POSITIONAL)
    n: int = field(default=16, metadata=short("-n"))
    out: Path = field(default=Path("samples"))
    format: tuple[str, ...] = ("png", "grid")
    classes: tuple[str, ...] = ()
    steps: int | str | tuple[int, ...] | None = None
    seed: int = 0
    batch_size: int = 64
    device: str | None = None
    overwrite: bool = False


@frozen(eq=False)
class Samples:
    """What was drawn.

    Attributes:
        images: (N, C, *S): uint8, uint16, or float32 for continuous data.
        labels: (N,), or None.
        names: What each sample's class is called; empty without classes.
    """

    images: NDArray[Any]
    labels: NDArray[np.int64] | None
    names: tuple[str, ...] = field(repr=False)


def takes() -> Takes:
    """Return the options."""
    return Takes(
        {"Options": Options},
        {"sampler": None, "guidance": None},
        config=True,
        defaults={"sampler": "as it was composed"},
    )


def run(given: Given) -> None:
    """Draw the samples and write them."""
    options = given.make(Options)
    _check(options)
    saved = _load(options)
    _check_shape(options, saved)
    labels = saved.labels(options.classes, options.n)
    print(f"writing to {options.out}/", flush=True)
    samples = draw(saved, options, given.parts, labels)
    for line in write(options.out, options.format, samples):
        print(line)


def draw(
    saved: Saved,
    options: Options,
    parts: Mapping[str, tuple[str, Mapping[str, Any]]],
    labels: list[int] | None,
) -> Samples:
    """Return the samples as pixel values, drawn with the sampler and guidance among ``parts``, if there are any."""
    import numpy as np

    from diffkit.cli._pictures import pixels
    from diffkit.guidance import guidance_for

    conditions: dict[str, Any] = {} if labels is None else {"y": labels}
    x = saved.system.sample(
        options.n,
        steps=options.steps,
        sampler=parts.get("sampler"),
        guidance=guidance_for(parts.get("guidance")),
        seed=options.seed,
        batch_size=options.batch_size,
        **conditions,
    )
    names = () if labels is None else tuple(map(saved.name, labels))
    return Samples(pixels(x, saved.bins), None if labels is None else np.array(labels, dtype=np.int64), names)


def write(out: Path, formats: tuple[str, ...], samples: Samples) -> list[str]:
    """Write the samples in each format and say what was written, a line each."""
    from diffkit.cli._pictures import channels_last, file_name, grid, write_npz, write_png

    out.mkdir(parents=True, exist_ok=True)
    count, said = len(samples.images), []
    if "png" in formats:
        for i, image in enumerate(samples.images):
            write_png(out / file_name(i, samples.names[i] if samples.names else None), image)
        said.append(f"{out}/: {count} PNG files")
    if "grid" in formats:
        order, columns = _arranged(samples)
        write_png(out / "grid.png", grid([samples.images[i] for i in order], columns))
        said.append(f"{out / 'grid.png'}: {'a row for each class' if samples.names else 'all in one'}")
    if "npz" in formats:
        shape = channels_last(samples.images).shape
        path = out / f"samples_{'x'.join(map(str, shape))}.npz"
        write_npz(path, samples.images, samples.labels)
        said.append(f"{path}: arr_0 {samples.images.dtype} {shape}" + (", arr_1 labels" if samples.names else ""))
    return said


def _arranged(samples: Samples) -> tuple[list[int], int]:
    """Order of the samples in the grid, and how many to a row: a row for each class, else as square as may be."""
    count = len(samples.images)
    if samples.labels is None:
        return list(range(count)), math.ceil(math.sqrt(count))
    labels = samples.labels.tolist()
    return sorted(range(count), key=lambda i: (labels[i], i)), max(labels.count(label) for label in labels)


def _check(options: Options) -> None:
    """Refuse what can be seen before anything is loaded."""
    from diffkit.options import check_integer

    check_integer("n", options.n, ge=1)
    check_integer("batch_size", options.batch_size, ge=1)
    unknown = [word for word in options.format if word not in FORMATS]
    if unknown or not options.format:
        raise OptionError(f"--format must be some of {', '.join(FORMATS)}, got {','.join(options.format)!r}")
    check_folder("--out", options.out)
    if options.out.is_dir() and any(options.out.iterdir()) and not options.overwrite:
        raise OptionError(f"--out {options.out} is not empty; name another folder, or pass --overwrite")
    if set(options.format) & {"png", "grid"}:
        from diffkit.cli._pictures import need_pillow

        need_pillow()


def _load(options: Options) -> Saved:
    from diffkit.cli._saved import load

    return load(options.run, options.device)


def _check_shape(options: Options, saved: Saved) -> None:
    """Refuse pictures of what has no pixels."""
    shape, bins = saved.system.data_shape, saved.bins
    if not set(options.format) & {"png", "grid"}:
        return
    if len(shape) != 3:
        raise OptionError(f"data of shape {shape} is no picture; use --format npz")
    if bins is None or bins > 256:
        kind = "continuous" if bins is None else f"{bins}-valued"
        raise OptionError(f"{kind} data does not fit into 8-bit PNG files; use --format npz")
