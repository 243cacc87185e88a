"""A folder of images as a source of data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

from diffkit.data.sources._images import ImageSource, check_labels_option

if TYPE_CHECKING:
    from diffkit.data.base import Data


@frozen(kw_only=True)
class Folder(ImageSource):
    """Data source: a folder of images, of any size and kind, resized and cropped to one size.

    Attributes:
        path: The folder; folders in it are searched too.
        labels: "folders" (the folder below ``path`` is the class), "prefix" (the file's name up to the first
            underscore is), a .csv file with columns file and label, a .json file such as dataset.json, or "none".
    """

    path: Path = field(converter=Path)
    labels: str = field(default="none", validator=check_labels_option)

    def open(self) -> Data:
        """Read every image of the folder once; needs Pillow."""
        from diffkit.data.folder import open_folder

        labels = None if self.labels == "none" else self.labels
        return open_folder(self.path, form=self.form(), labels=labels, **self.read_keywords())
