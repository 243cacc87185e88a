"""A zip archive of images as a source of data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

from diffkit.data.sources._images import ImageSource, check_labels_option

if TYPE_CHECKING:
    from diffkit.data.base import Data


@frozen(kw_only=True)
class Zip(ImageSource):
    """A zip archive of images, such as EDM's and StyleGAN's dataset tools write; it is not unpacked.

    Attributes:
        path: The archive.
        labels: As for a folder; a table such as dataset.json may also be in the archive.
    """

    path: Path = field(converter=Path)
    labels: str = field(default="none", validator=check_labels_option)

    def open(self) -> Data:
        """Read every image of the zip archive once; needs Pillow."""
        from diffkit.data.zip_archives import open_zip

        labels = None if self.labels == "none" else self.labels
        return open_zip(self.path, form=self.form(), labels=labels, **self.read_keywords())
