"""Encoded images as data: decoded once if they fit into memory, read from a cache, or decoded at every use."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from diffkit.data.base import Batch, Data, Image, Indices, description
from diffkit.data.cache import MemoryMappedArray, cached_pixels
from diffkit.data.classes import class_counts
from diffkit.data.images import Pictures, decode_all
from diffkit.data.labels import Labels
from diffkit.data.names import printable
from diffkit.data.parallel import logs_for_job
from diffkit.data.skipping import Skipping, check_skipped_share
from diffkit.errors import DataError, joined, problem
from diffkit.runtime.output import log

IN_MEMORY = 2 * 1024**3
"""Pixels up to this many bytes are held in memory, which is over ten times as fast as decoding them every epoch."""


@frozen(eq=False)
class PictureData(Data):
    """Encoded images of a folder, an archive, a database or a dataset, as data.

    Attributes:
        pictures: All images, readable or not.
        rows: Which of them are the examples, (N,) int64.
        source: Name of the data in messages.
        shape: Shape of one example, (C, H, W).
        bins: 256, or 65536 for 16 bits.
        labels: Class of each example, (N,) int64, or None.
        classes: Names of the classes, or None.
        skipped: Files that are left out, by name, each with the reason.
        pixels: Pixels of all images, (len(pictures), C, H, W), in memory or mapped; None to decode at every use.
        identity: Further text that identifies these images, if their names do not.
        skipping: What to do about an image that cannot be read when it is used.
    """

    pictures: Pictures
    rows: NDArray[np.int64]
    source: str
    shape: tuple[int, ...]
    bins: int | None
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    pixels: NDArray[Any] | MemoryMappedArray | None = None
    identity: str = ""
    skipping: Skipping | None = None

    @classmethod
    def from_pictures(
        cls,
        pictures: Pictures,
        *,
        source: str,
        labels: Labels | None = None,
        ignored: Iterable[tuple[str, str]] = (),
        on_error: str = "stop",
        cache: Path | None = None,
        processes: int = 0,
        check: bool = True,
        max_skipped: float | None = None,
        identity: str = "",
        progress: bool = False,
    ) -> PictureData:
        """Return encoded images as data, after reading every one once.

        Args:
            pictures: The images.
            source: Name of the data in messages.
            labels: Class of each image.
            ignored: Other files, with the reason that they are not used.
            on_error: "stop" at images that cannot be read, naming them; or "skip" them with a line for each. With
                ``check=False`` a skipped image is replaced by the next one that can be read.
            cache: A .npy file that stores the decoded pixels for later runs.
            processes: Number of processes that read images; 0 reads in this process.
            check: False reads no image beforehand, so that a damaged one is found only when it is used.
            max_skipped: The largest share of the images that may be skipped; by default a half, at least ten.
            identity: Further text that identifies these images, if their names do not.
            progress: Show a progress bar.
        Raises:
            DataError: An image cannot be read and ``on_error`` is "stop", or too many cannot be read.
        """
        skipping = Skipping(len(pictures), on_error, max_skipped)
        if labels is not None:
            labels.class_numbers(range(len(pictures)))  # raises before the long work if they are wrong
        pixels: NDArray[Any] | MemoryMappedArray | None = None
        bad: Mapping[int, str] = {}
        if cache is not None:
            pixels, bad = cached_pixels(
                cache, pictures, processes=processes, skip=on_error == "skip", progress=progress
            )
        elif check:
            pixels, bad = _decode_all(pictures, processes, progress)
        if bad and on_error == "stop":
            raise DataError(unreadable_text(bad, len(pictures)))
        good = [i for i in range(len(pictures)) if i not in bad]
        if not good:
            raise DataError(f"{source!r} holds no readable image ({len(bad)} unreadable); the first: {bad[0]}")
        check_skipped_share(len(bad), len(pictures), skipping.most, next(iter(bad.values()), ""))
        for reason in bad.values() if logs_for_job() else ():
            log(f"skipped {reason}")
        numbers, classes = (None, None) if labels is None else labels.class_numbers(good)
        skipped = (*ignored, *((printable(pictures.name(i)), reason) for i, reason in bad.items()))
        bins = 2**pictures.form.bits
        rows = np.array(good, np.int64)
        shape = pictures.form.shape
        return cls(pictures, rows, source, shape, bins, numbers, classes, skipped, pixels, identity, skipping)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image, Mapping[str, int | Tensor]]:
        """Return image ``index``, (C, H, W), and its class if it has one."""
        image, conditions = self.batch([index])[1:]
        return image[0], {name: int(value) for name, value in conditions.items()}

    def batch(self, indices: Indices) -> Batch:
        """Return the images with these indices; 16-bit images as int32, as torch has few operators for uint16."""
        picked = np.array(indices, np.int64)
        taken, pixels = self._read(picked) if self.pixels is None else (picked, self.pixels[self.rows[picked]])
        pixels = pixels.astype(np.int32) if pixels.dtype == np.uint16 else pixels
        conditions = {} if self.labels is None else {"y": torch.from_numpy(self.labels[taken])}
        return Batch(torch.from_numpy(picked), torch.from_numpy(pixels), conditions)

    def _read(self, picked: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """Decode images; return the indices of those that could be read or replaced one, and their pixels."""
        skipping = self.skipping or Skipping(len(self), "stop")
        found = [skipping.read(int(i), lambda row: self.pictures.read(self.rows[row])) for i in picked]
        return np.array([i for i, _ in found], np.int64), np.stack([pixels for _, pixels in found])

    def describe(self) -> dict[str, Any]:
        """Return the facts of the data, how many images each class has, and a fingerprint of their names."""
        facts: dict[str, Any] = {"source": self.source, **description(self)}
        facts |= class_counts(self.labels, self.classes)
        names = self.identity + "\n".join(self.pictures.name(i) for i in self.rows)
        digest = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:16]
        return facts | {"skipped": len(self.skipped), "fingerprint": digest}


def unreadable_text(bad: Mapping[int, str], count: int) -> str:
    """Return the text of an error that names the images that cannot be read."""
    reasons = list(bad.values())
    first = problem(f"{len(bad)} of {count} files cannot be read; remove them", fix={"on_error": "skip"})
    last = problem("a run that began with these files can be resumed", fix={"check": False, "on_error": "skip"})
    return joined("\n  ", [first, *reasons[:20], *(["..."] if len(bad) > 20 else []), last])


def _decode_all(pictures: Pictures, processes: int, progress: bool) -> tuple[NDArray[Any] | None, dict[int, str]]:
    """Decode every image once; return all pixels if they fit into memory, and why each unreadable image is so."""
    form = pictures.form
    fits = len(pictures) * math.prod(form.shape) * form.dtype.itemsize <= IN_MEMORY
    pixels = np.zeros((len(pictures), *form.shape), form.dtype) if fits else None
    return pixels, decode_all(pictures, pixels, processes=processes, doing="reading images", progress=progress)
