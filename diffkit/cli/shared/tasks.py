"""Shared by the commands of `diffkit.tasks`: reading pictures, classes, writing pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from diffkit.cli.shared.paths import check_new_folder
from diffkit.errors import DataError, OptionError
from diffkit.runtime.files import write_atomically, write_through
from diffkit.runtime.finite import check_finite
from diffkit.runtime.images import grid, need_pillow, pixels, png
from diffkit.runtime.output import log
from diffkit.runtime.publishing import new_folder, together, unfinished

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.cli.shared.guidance import Slot
    from diffkit.evaluation.saved import Saved


@frozen(eq=False)
class Pictures:
    """The input pictures of a task.

    Attributes:
        images: (N, C, H, W) float32 in [-1, 1].
        names: Unique name of each.
    """

    images: Tensor
    names: tuple[str, ...]


def check_out(out: Path, overwrite: bool) -> None:
    """Refuse a folder for results that cannot be written, or holds something already."""
    from diffkit.evaluation.sample_folder import check_overview, overview

    need_pillow("writing PNG files")
    overwrite = overwrite or unfinished([out, overview(out)])
    check_new_folder("--out", out, overwrite=overwrite)
    check_overview(out, overwrite=overwrite)


def load(folder: Path, device: str | None, guidance: Slot = None) -> Saved:
    """Load a system of pictures with 8 bits at most, which needs no other picture; refuse any other.

    Args:
        folder: Its folder.
        device: Device to load it to.
        guidance: Guidance, if any.
    """
    from diffkit.cli.shared.device import device as find_device
    from diffkit.cli.shared.guidance import check_null
    from diffkit.evaluation.saved import load as load_saved

    saved = load_saved(folder, find_device(device))
    shape, bins = saved.system.data_shape, saved.bins
    if len(shape) != 3 or bins is None or bins > 256:
        kind = f"data of shape {shape}" if len(shape) != 3 else "continuous data" if bins is None else f"{bins} values"
        raise OptionError(f"{folder} makes {kind}, no 8-bit pictures; call diffkit.tasks in Python")
    if saved.low_res_channels:
        raise OptionError(f"{folder} enlarges small pictures, and does nothing else; use diffkit sample --low-res")
    check_null(guidance, saved)
    return saved


def read_pictures(path: Path, shape: tuple[int, ...], *, resize: bool = True) -> Pictures:
    """Return a picture, or all those of a folder, resized and cropped to ``shape`` as for training, which is logged.

    Args:
        path: A file or folder.
        shape: (C, H, W).
        resize: False refuses pictures of any other size.
    Raises:
        DataError: It is not there, holds no picture, or one cannot be read.
        OptionError: The system's channels are not those of a picture, or a size is wrong.
    """
    import numpy as np
    import torch

    from diffkit.data.base import scale_images
    from diffkit.data.images import Form, read_image

    if shape[0] not in (1, 3, 4):
        raise OptionError(f"pictures have 1, 3 or 4 channels, this system {shape[0]}; call diffkit.tasks in Python")
    files = _files(path)
    size = (shape[1], shape[2])
    for file in () if resize else files:
        check_size(str(file), file, size)
    form = Form(size=size, channels=shape[0])
    images = torch.from_numpy(np.stack([read_image(file, form) for file in files]))
    _say_resized(files, size)
    stems = [file.stem for file in files]
    unique = len(set(stems)) == len(stems)
    return Pictures(
        scale_images(images, 256), tuple(stems if unique else [f"{i:06d}_{s}" for i, s in enumerate(stems)])
    )


def read_one(path: Path, shape: tuple[int, ...]) -> Tensor:
    """Return one picture, (C, H, W) float32 in [-1, 1]; see `read_pictures`."""
    if path.is_dir():
        raise OptionError(f"{path} is a folder; name one picture")
    return read_pictures(path, shape).images[0]


def check_size(label: str, path: Path, size: tuple[int, int]) -> None:
    """Raise `OptionError` unless a picture has just that height and width."""
    found = _size(path)
    if found != size:
        raise OptionError(f"{label} is {_sized(found)}, it has to be {_sized(size)}")


def _say_resized(files: Sequence[Path], size: tuple[int, int]) -> None:
    """Log if pictures had another size than the system makes."""
    others = [(file.name, found) for file in files if (found := _size(file)) != size]
    if others:
        name, first = others[0]
        more = f" and {len(others) - 1} more" if others[1:] else ""
        log(f"resized and cropped to {_sized(size)}: {name} ({_sized(first)}){more}")


def _size(path: Path) -> tuple[int, int]:
    """Height and width of a picture, upright."""
    from diffkit.data.images import open_image_file, rotate_upright

    with open_image_file(path, str(path)) as image:
        width, height = rotate_upright(image).size
    return height, width


def _sized(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _files(path: Path) -> tuple[Path, ...]:
    from diffkit.data.folder import list_images

    if not path.exists():
        raise DataError(f"{path} is not there; name a picture, or a folder of them")
    if not path.is_dir():
        return (path,)
    files = list_images(path).files
    if not files:
        raise DataError(f"{path} holds no picture")
    return files


def conditions_for(saved: Saved, words: tuple[str, ...], count: int, *, each: int = 1) -> dict[str, Any]:
    """Return ``y`` for ``each`` variants of ``count`` pictures, as `System.sample` takes it; nothing without classes.

    Args:
        saved: The system.
        words: Names or indices of classes: none, one for all, or one for each picture. None is "no class", if the
            system knows such.
        count: How many pictures.
        each: How many variants of every picture, which are consecutive.
    Raises:
        OptionError: Another number of classes, one that is not there, or none where one is needed.
    """
    if len(words) not in (0, 1, count):
        raise OptionError(f"--classes must name one class, or one for each of {count} pictures, got {len(words)}")
    if saved.num_classes is not None and not words and saved.null_class is None:
        known = ", ".join(saved.name(label) for label in range(saved.num_classes))
        raise OptionError(f"this system needs the class of every picture; name it with --classes ({known})")
    labels = saved.labels(words or ("none",) if saved.num_classes is not None else words, count)
    return {} if labels is None else {"y": [label for label in labels for _ in range(each)]}


def write(
    out: Path,
    rows: Sequence[tuple[str, Tensor]],
    shown: Sequence[Tensor],
    words: str = "a row for each picture",
    more: Mapping[str, bytes] | None = None,
) -> list[str]:
    """Write results as PNG files, and an overview next to the folder; return a line for each.

    Args:
        out: The folder.
        rows: For every picture its name and its results, (n, C, H, W).
        shown: What to show of every picture in the overview, (k, C, H, W), a row for each.
        words: What the overview shows.
        more: Further files of the folder, name -> content.
    """
    import torch

    from diffkit.evaluation.sample_folder import overview

    check_finite(torch.cat([results for _, results in rows]))
    tiles = [tile for row in shown for tile in pixels(row, 256)]
    pictures = dict(_pictures(rows))
    with together([out, overview(out)]):
        with new_folder(out) as folder:
            for name, content in (pictures | dict(more or {})).items():
                write_through(folder / name, content)
        write_atomically(overview(out), png(grid(tiles, columns=len(shown[0]))))
    return [f"{out}/: {len(pictures)} PNG files", f"{overview(out)}: {words}"]


def _pictures(rows: Sequence[tuple[str, Tensor]]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each PNG file."""
    for name, results in rows:
        for i, image in enumerate(pixels(results, 256)):
            suffix = f"_{i:02d}" if len(results) > 1 else ""
            yield f"{name}{suffix}.png", png(image)
