"""A folder of images as data."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import evolve, field, frozen
from numpy.typing import NDArray
from torch import Tensor

from diffkit._errors import DataError
from diffkit.data.base import Batch, Data, Image, Indices, description
from diffkit.data.images import pillow, read_image
from diffkit.progress import progress as show_progress

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif"))
IN_MEMORY = 2 * 1024**3
"""Pixels up to this many bytes are kept in memory, which is over ten times as fast as decoding them every epoch."""


@frozen
class Listing:
    """What a folder holds.

    Attributes:
        files: Image files, in the order of the published code: sorted within each folder, folders in their place.
        ignored: Every other file with the reason, in the same order.
    """

    files: tuple[Path, ...]
    ignored: tuple[tuple[Path, str], ...] = field(factory=tuple)


@frozen(eq=False)
class FolderData(Data):
    """Images of a folder, decoded once when they fit into memory and at every use when they do not.

    Attributes:
        root: The folder.
        files: Image files, in order of index.
        shape: Of one example, (C, H, W).
        background: Grey value under transparent pixels.
        bins: 256.
        labels: Class of each, (N,) int64, or None.
        classes: Their names, or None.
        skipped: Files that are no examples, each with the reason.
        pixels: All images, (N, C, H, W) uint8, or None if they do not fit into memory.
    """

    root: Path
    files: tuple[Path, ...]
    shape: tuple[int, ...]
    background: int = 255
    bins: int | None = 256
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None
    skipped: tuple[tuple[Path, str], ...] = ()
    pixels: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image, Mapping[str, int | Tensor]]:
        """Return image ``index``, (C, H, W) uint8, and its class if it has one."""
        image, conditions = self.batch([index])[1:]
        return image[0], {name: int(value) for name, value in conditions.items()}

    def batch(self, indices: Indices) -> Batch:
        """Return the images with these indices."""
        picked = np.array(indices, np.int64)
        pixels = np.stack([self.decoded(i) for i in picked]) if self.pixels is None else self.pixels[picked]
        conditions = {} if self.labels is None else {"y": torch.from_numpy(self.labels[picked])}
        return Batch(torch.from_numpy(picked), torch.from_numpy(pixels), conditions)

    def decoded(self, index: int) -> NDArray[np.uint8]:
        """Return image ``index`` as read from its file."""
        channels, height, width = self.shape
        return read_image(self.files[index], channels, (height, width), self.background)

    def describe(self) -> dict[str, Any]:
        """Return the facts of the data, how many images each class has, and a fingerprint of the files' names."""
        facts: dict[str, Any] = {"source": str(self.root), **description(self)}
        if self.labels is not None and self.classes is not None:
            facts["class_counts"] = np.bincount(self.labels, minlength=len(self.classes)).tolist()
        names = "\n".join(path.relative_to(self.root).as_posix() for path in self.files)
        digest = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:16]
        return facts | {"skipped": len(self.skipped), "fingerprint": digest}


def list_images(root: Path) -> Listing:
    """Return the image files under a folder, visiting each linked folder once.

    Raises:
        DataError: The folder is not there, or is no folder.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "is not there"
        raise DataError(f"{str(root)!r} {what}")
    files: list[Path] = []
    ignored: list[tuple[Path, str]] = []
    _walk(root, files, ignored, set())
    return Listing(tuple(files), tuple(ignored))


def open_folder(
    root: Path,
    *,
    size: tuple[int, int],
    channels: int = 3,
    labels: str | None = None,
    on_error: str = "stop",
    background: int = 255,
    progress: bool = False,
) -> FolderData:
    """Return the images of a folder as data, after reading every file once.

    Args:
        root: The folder, searched with all folders in it.
        size: (H, W) of every example.
        channels: 1, 3 or 4.
        labels: "folders", where the class is the folder right below the root; "prefix", where it is the file's name up
            to the first underscore, as in the published code; None for no classes.
        on_error: "stop" at files that cannot be read, naming them all; or "skip" them with a line for each.
        background: Grey value under transparent pixels.
        progress: Show how far the reading is.
    Raises:
        DataError: There is no image, or one cannot be read.
    """
    pillow()
    listing = list_images(root)
    data = FolderData(root, listing.files, (channels, *size), background)
    pixels, bad = _read_all(data, progress)
    if bad and on_error == "stop":
        raise DataError(_unreadable(bad, len(data)))
    kept = [i for i in range(len(data)) if i not in bad]
    if not kept:
        raise DataError(
            f"{str(root)!r} holds no readable image ({len(listing.ignored)} other files, {len(bad)} unreadable); "
            f"images end in {' '.join(sorted(SUFFIXES))}"
        )
    for reason in bad.values():
        print(f"skipped {reason}", file=sys.stderr)
    files = tuple(listing.files[i] for i in kept)
    found, classes = _classes(root, files, labels)
    return evolve(
        data,
        files=files,
        labels=found,
        classes=classes,
        skipped=(*listing.ignored, *((listing.files[i], reason) for i, reason in bad.items())),
        pixels=pixels[kept] if pixels is not None and bad else pixels,
    )


def _unreadable(bad: Mapping[int, str], count: int) -> str:
    reasons = list(bad.values())
    lines = [f"{len(bad)} of {count} files cannot be read; remove them, or pass on_error='skip':", *reasons[:20]]
    return "\n  ".join([*lines, "..."] if len(bad) > 20 else lines)


def _read_all(data: FolderData, progress: bool) -> tuple[NDArray[np.uint8] | None, dict[int, str]]:
    """Decode every file once; return the pixels if they fit into memory, and the reason for each unreadable file."""
    fits = len(data) * math.prod(data.shape) <= IN_MEMORY
    pixels = np.empty((len(data), *data.shape), np.uint8) if fits else None
    bad: dict[int, str] = {}
    with show_progress(len(data), "reading images", progress) as advance:
        for i in range(len(data)):
            try:
                decoded = data.decoded(i)
            except DataError as error:
                bad[i] = str(error)
            else:
                if pixels is not None:
                    pixels[i] = decoded
            advance(1)
    return pixels, bad


def _walk(folder: Path, files: list[Path], ignored: list[tuple[Path, str]], seen: set[str]) -> None:
    real = os.path.realpath(folder)
    if real in seen:
        ignored.append((folder, "a link to a folder that was visited already"))
        return
    seen.add(real)
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.is_dir():
            _walk(path, files, ignored, seen)
        elif reason := _unusable(path):
            ignored.append((path, reason))
        else:
            files.append(path)


def _unusable(path: Path) -> str | None:
    if path.suffix.lower() not in SUFFIXES:
        return "no image by its name"
    if path.name.startswith("._"):
        return "what macOS keeps beside a file"
    if not path.exists():
        return "a link to nothing"
    return None if path.is_file() else "no regular file"


def _classes(
    root: Path, files: Sequence[Path], labels: str | None
) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Class of each file, counted in order of the sorted names, and the names."""
    if labels is None:
        return None, None
    if labels == "folders":
        loose = [path for path in files if path.parent == root]
        if loose:
            raise DataError(
                f"labels='folders', but {len(loose)} images are in no folder below {str(root)!r} (first: "
                f"{loose[0].name!r}); move them, or pass labels='prefix' or None"
            )
        names = [path.relative_to(root).parts[0] for path in files]
    else:
        names = [path.name.split("_")[0] for path in files]
    classes = sorted(set(names))
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index[name] for name in names], np.int64), tuple(classes)
