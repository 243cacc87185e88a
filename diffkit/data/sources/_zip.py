"""A zip archive of images as a source of data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from diffkit.data.sources._images import ImageSource, check_labels_option, patterns

if TYPE_CHECKING:
    from diffkit.data.base import Data


@frozen(kw_only=True)
class Zip(ImageSource):
    """A zip archive of images, such as EDM's and StyleGAN's dataset tools write; it is not unpacked.

    Attributes:
        path: The archive.
        labels: As for a folder; a table such as dataset.json may also be in the archive.
        within: A folder of the archive to read, such as "train"; by default all of it.
        ignore: Patterns of images to leave out: "*_mask.png" and "masks" are compared with the names of files and of
            the folders they are in, "a/b/*" with the path from the top.
        label_column: Column of the classes in a .csv or .jsonl table.
    """

    path: Path = field(converter=Path)
    labels: str = field(default="none", validator=check_labels_option)
    within: str | None = None
    ignore: tuple[str, ...] = patterns()
    label_column: str = "label"

    def open(self) -> Data:
        """Read every image of the zip archive once; needs Pillow."""
        from diffkit.data.zip_archives import open_zip

        labels = None if self.labels == "none" else self.labels
        chosen: dict[str, Any] = {"ignore": self.ignore, "label_column": self.label_column, "within": self.within}
        return open_zip(self.path, form=self.form(), labels=labels, **chosen, **self.read_keywords())
