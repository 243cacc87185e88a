"""A folder of images as a source of data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from diffkit.data.sources._images import ImageSource, check_labels_option, patterns

if TYPE_CHECKING:
    from diffkit.data.base import Data


@frozen(kw_only=True)
class Folder(ImageSource):
    """Data source: a folder of images, of any size and kind, resized and cropped to one size.

    Attributes:
        path: The folder; folders in it are searched too.
        labels: "folders" (the folder below ``path`` is the class), "prefix" (the file's name up to the first
            underscore is), a .csv file with columns file and label, a .json file such as dataset.json, a metadata.jsonl
            with "file_name" and "label" in each line, or "none".
        ignore: Patterns of images to leave out: "*_mask.png" and "masks" are compared with the names of files and of
            the folders they are in, "a/b/*" with the path from the top.
        label_column: Column of the classes in a .csv or .jsonl table.
    """

    path: Path = field(converter=Path)
    labels: str = field(default="none", validator=check_labels_option)
    ignore: tuple[str, ...] = patterns()
    label_column: str = "label"

    def open(self) -> Data:
        """Read every image of the folder once; needs Pillow."""
        from diffkit.data.folder import open_folder

        labels = None if self.labels == "none" else self.labels
        chosen: dict[str, Any] = {"ignore": self.ignore, "label_column": self.label_column}
        return open_folder(self.path, form=self.form(), labels=labels, **chosen, **self.read_keywords())
