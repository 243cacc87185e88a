"""Data sources: digits, points, photographs, CIFAR-10 and NumPy files, as frozen options; opening one reads data."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from attrs import field, frozen

from diffkit.errors import MissingExtraError, OptionError
from diffkit.options import choice, flag, integer, integers

if TYPE_CHECKING:
    from diffkit.data.base import Data

HELD_OUT = 6
"""Every sixth digit is held out: 299 of 1,797."""


class Source(Protocol):
    """Protocol of a data source: options that identify data, for Python, the command line and TOML files."""

    @abstractmethod
    def open(self) -> Data:
        """Read the data of the source.

        Raises:
            DataError: The data is missing or cannot be used.
            MissingExtraError: A package that it needs is not installed.
        """


@frozen(kw_only=True)
class Digits(Source):
    """Data source: the 1,797 handwritten digits of scikit-learn, 1x8x8, 17 grey levels, 10 classes.

    Attributes:
        split: "all", "train" (1,498 of them) or "held_out" (the other 299: every sixth).
        labels: Give the digit as condition ``y``.
    Source: Alpaydin & Kaynak 1998, UCI "Optical recognition of handwritten digits", test part.
    """

    split: str = choice("all", ("all", "train", "held_out"))
    labels: bool = flag(True)

    def open(self) -> Data:
        """Read the digits; needs scikit-learn."""
        try:
            from sklearn.datasets import load_digits  # type: ignore[import-untyped]
        except ImportError as error:
            raise MissingExtraError("demo", "the digits data") from error
        import numpy as np

        from diffkit.data.arrays import from_array

        images, labels = load_digits(return_X_y=True)
        held_out = np.arange(len(images)) % HELD_OUT == HELD_OUT - 1
        picked = {"all": held_out | True, "train": ~held_out, "held_out": held_out}[self.split]
        return from_array(
            images[picked].reshape(-1, 1, 8, 8).astype(np.uint8),
            labels=labels[picked] if self.labels else None,
            bins=17,
            source="digits" if self.split == "all" else f"digits {self.split}",
        )


@frozen(kw_only=True)
class Points(Source):
    """Data source: points in the plane, of unit variance, continuous data of shape (2,) for the mlp.

    Attributes:
        kind: "moons" (2 classes), "gaussians" (8 on a circle) or "rings" (2).
        examples: Number of points, >= 1.
        seed: Seed of the points.
        labels: Give the class as condition ``y``.
    """

    kind: str = choice("moons", ("moons", "gaussians", "rings"))
    examples: int = integer(10_000, ge=1)
    seed: int = integer(0, ge=0)
    labels: bool = flag(False)

    def open(self) -> Data:
        """Draw the points."""
        import numpy as np

        from diffkit.data.arrays import from_array
        from diffkit.data.points import KINDS, standardize_points

        points, labels = KINDS[self.kind](self.examples, np.random.default_rng(self.seed))
        return from_array(
            standardize_points(points), labels=labels if self.labels else None, source=f"points {self.kind} {self.seed}"
        )


@frozen(kw_only=True)
class Photographs(Source):
    """Data source: pieces of the two colour photographs of scikit-learn, a temple and a flower, 427x640; 2 classes.

    Attributes:
        size: Height and width of a piece; one number for a square.
        pieces: "grid" (side by side, every ``stride`` pixels) or "random" (anywhere).
        stride: Pixels from a piece of the grid to the next; by default ``size``, without overlap.
        examples: Number of random pieces.
        seed: Seed of random pieces.
        labels: Give the photograph as condition ``y``.
    """

    size: tuple[int, ...] = integers((64,), ge=1, le=640)
    pieces: str = choice("grid", ("grid", "random"))
    stride: int | None = integer(None, optional=True, ge=1)
    examples: int = integer(1000, ge=1)
    seed: int = integer(0, ge=0)
    labels: bool = flag(False)

    def open(self) -> Data:
        """Cut the photographs into pieces; needs scikit-learn and Pillow."""
        from diffkit.data.arrays import from_array
        from diffkit.data.photographs import NAMES, grid_pieces, load_photographs, random_pieces

        if len(self.size) not in (1, 2):
            raise OptionError(f"size must be one number or two, got {self.size!r}")
        size = (self.size[0], self.size[-1])
        if self.pieces == "grid":
            images, labels = grid_pieces(load_photographs(), size, self.stride or size)
        else:
            images, labels = random_pieces(load_photographs(), size, self.examples, self.seed)
        return from_array(
            images,
            labels=labels if self.labels else None,
            classes=NAMES if self.labels else None,
            source=f"photographs {self.pieces}",
        )


@frozen(kw_only=True)
class Cifar10(Source):
    """Data source: CIFAR-10 from its archive, 60,000 colour images of 32x32, 10 classes.

    Attributes:
        archive: cifar-10-python.tar.gz or cifar-10-binary.tar.gz, or the folder it was unpacked to.
        split: "train" (50,000) or "test" (10,000).
        labels: Give the class as condition ``y``.
        names: "archive" (airplane, automobile, ...) or "published" (plane, car, ..., numbered in sorted order, as in
            improved-diffusion's script and networks).
    Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images".
    """

    archive: Path = field(converter=Path)
    split: str = choice("train", ("train", "test"))
    labels: bool = flag(True)
    names: str = choice("archive", ("archive", "published"))

    def open(self) -> Data:
        """Read the archive of CIFAR-10; nothing in it is executed."""
        from diffkit.data.arrays import from_array
        from diffkit.data.cifar10 import number_classes, read_cifar10

        images, labels = read_cifar10(self.archive, self.split)
        labels, names = number_classes(labels, self.names == "published")
        return from_array(
            images,
            labels=labels if self.labels else None,
            classes=names if self.labels else None,
            source=f"{self.archive} {self.split}",
        )


@frozen(kw_only=True)
class NumpyFile(Source):
    """Data source: a NumPy file, .npz with arr_0 (images) and maybe arr_1 (labels), or .npy with images.

    A .npz may also have the arrays classes, their names, and bins, as ``diffkit data import`` writes them.

    Attributes:
        path: The file; a .npy is memory-mapped.
        labels: Give the labels of a .npz as condition ``y``.
        bins: Number of values that data takes; by default 256 for uint8.
        layout: "channels_last", as improved-diffusion writes its samples, or "channels_first"; by default the shape
            decides, and ambiguous shapes are refused.
    """

    path: Path = field(converter=Path)
    labels: bool = flag(False)
    bins: int | None = integer(None, optional=True, ge=2)
    layout: str | None = choice(None, ("channels_last", "channels_first"), optional=True)

    def open(self) -> Data:
        """Open the NumPy file, without unpickling."""
        from diffkit.data.numpy_files import open_numpy_file

        return open_numpy_file(self.path, labels=self.labels, bins=self.bins, layout=self.layout)
