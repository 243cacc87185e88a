"""Samples to measure: drawn from a system, or read from files without resizing them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

import numpy as np

from diffkit.data import from_array
from diffkit.data.base import Data
from diffkit.data.folder import list_images
from diffkit.data.images import upright_size
from diffkit.data.loading import source_for
from diffkit.errors import DataError, Fix
from diffkit.runtime.finite import check_finite
from diffkit.runtime.images import need_pillow, open_image, to_integers
from diffkit.system.call_options import JobOptions, shows_options
from diffkit.system.module import System

_SHOWN = 3
_GREY = frozenset(("1", "L", "LA", "I", "I;16", "I;16B", "F"))


@shows_options(JobOptions)
def draw_samples(
    system: System,
    n: int,
    *,
    source: str = "samples",
    batch_size: int = 64,
    progress: bool = True,
    **options: Unpack[JobOptions],
) -> Data:
    """Draw n samples of a system and return them as data, rounded to the nearest of its bins if it has any.

    Args:
        system: The system.
        n: Number of samples.
        source: Name of the samples in results.
        batch_size: Number of samples that are drawn at a time.
        progress: Show a bar with an ETA on standard error.
        options: Those of `diffkit.system.call_options.JobOptions`.
        conditions: As in `System.sample`.
    Raises:
        DivergedError: No sample is finite.
    """
    x = system.sample(n, batch_size=min(n, batch_size), progress=progress, **options).cpu()
    if system.device.type != "cpu":  # on a CPU it was checked while sampling
        check_finite(x)
    bins = system.bins
    if bins is None:
        return from_array(x.float(), source=source)
    return from_array(to_integers(x, bins - 1).astype(np.uint8 if bins <= 256 else np.int64), bins=bins, source=source)


def read_samples(
    path: Path,
    *,
    size: int | tuple[int, ...] | None = None,
    labels: bool = False,
    on_error: str = "stop",
    layout: str | None = None,
) -> Data:
    """Read the samples in a folder or file; images of a folder must have one size, unless a size is given.

    Resizing changes every metric, so images are resized only if a size is given.

    Args:
        path: A folder of images, or a .npz or .npy file.
        size: Height and width to resize the images of a folder to; one number for a square.
        labels: Read the labels of a file.
        on_error: At images of a folder that cannot be read: "stop", naming them all, or "skip" them.
        layout: Layout of a file, "channels_last" or "channels_first"; by default the shape decides.
    Raises:
        DataError: There are no images, or the images of a folder have several sizes.
    """
    if not path.is_dir():
        options = {"labels": labels or None, "layout": layout}
        return source_for(path, **{name: value for name, value in options.items() if value is not None}).open()
    found = image_kinds(path)
    if size is None:
        size = one_size(path, found, "metrics depend on how they are resized", {"size": next(iter(found))[0]})
    channels = 3 if any(kind[2] == 3 for kind in found) else 1
    return source_for(path, size=size, channels=channels, on_error=on_error).open()


_Kind = tuple[int, int, int]


def one_size(folder: Path, kinds: Mapping[_Kind, Path], advice: str, fix: Fix = ()) -> tuple[int, int]:
    """Return height and width of the images of a folder, which are of these kinds; raise if there are several sizes."""
    height, width, _ = next(iter(kinds))
    if any(kind[:2] != (height, width) for kind in kinds):
        some = ", ".join(f"{h}x{w} ({example.name})" for (h, w, _), example in list(kinds.items())[:_SHOWN])
        raise DataError(f"the images of {str(folder)!r} have several sizes: {some}; {advice}", fix=fix)
    return height, width


def image_kinds(folder: Path) -> Mapping[_Kind, Path]:
    """Return height, width and channels of the images of a folder, each with its first file; reads headers only."""
    need_pillow("reading image files")
    found: dict[_Kind, Path] = {}
    for path in list_images(folder).files:
        kind = _image_kind(path)
        if kind is not None:
            found.setdefault(kind, path)
    if not found:
        raise DataError(f"{str(folder)!r} holds no readable image")
    return found


def _image_kind(path: Path) -> _Kind | None:
    try:
        with open_image(path) as opened:
            return *upright_size(opened), 1 if opened.mode in _GREY else 3
    except Exception:  # Pillow may raise any error; reading the data will name the file
        return None
