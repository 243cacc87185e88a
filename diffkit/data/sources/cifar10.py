"""CIFAR-10 from its archive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

from diffkit.data.sources._source import Source
from diffkit.options import choice, flag
from diffkit.registry import registry

if TYPE_CHECKING:
    from diffkit.data.base import Data


@registry("data").register("cifar10")
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
        """Read the archive; nothing in it is executed."""
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
