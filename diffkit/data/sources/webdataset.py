"""WebDataset's tar archives of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import Attribute, field, frozen

from diffkit.data.sources._images import ImageSource
from diffkit.errors import OptionError
from diffkit.options import choice
from diffkit.registry import registry

if TYPE_CHECKING:
    from diffkit.data.base import Data


def _check_json(instance: object, attribute: Attribute[Any], value: Path | None) -> None:
    if value is not None and value.suffix != ".json":
        raise OptionError("must be a .json file", option="index", value=str(value))


def _path_or_none(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)


@registry("data").register("webdataset")
@frozen(kw_only=True)
class WebDataset(ImageSource):
    """Data source: tar archives of images, as WebDataset has them; they are not unpacked.

    The files of one example have one stem: ``000001.jpg``, ``000001.cls`` and ``000001.json``.

    Attributes:
        path: A .tar file, a folder of them, or a pattern such as "train-{000..009}.tar" or "train-*.tar".
        labels: "cls" or "json" (the class is in the file of that ending), "folders" or "prefix" as for a folder of
            images, or "none".
        label: Entry of a .json file that is the class.
        image: Ending of the images, such as "jpg" or "input.png"; by default the only image of each stem.
        index: A .json file that stores where each file is, so that later runs need not read the archives' headers;
            built if needed, and again for archives that change.
    """

    path: Path = field(converter=Path)
    labels: str = choice("none", ("none", "cls", "json", "folders", "prefix"))
    label: str = "label"
    image: str | None = None
    index: Path | None = field(default=None, converter=_path_or_none, validator=_check_json)

    def open(self) -> Data:
        """Read every image of the archives once; needs Pillow."""
        from diffkit.data.tar_shards import open_shards

        return open_shards(
            self.path,
            form=self.form(),
            labels=None if self.labels == "none" else self.labels,
            label=self.label,
            image=None if self.image is None else self.image.removeprefix("."),
            index=self.index,
            **self.read_keywords(),
        )
