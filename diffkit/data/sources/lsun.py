"""A category of LSUN."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

from diffkit.data.sources._images import ImageSource
from diffkit.registry import registry

if TYPE_CHECKING:
    from diffkit.data.base import Data


@registry("data").register("lsun")
@frozen(kw_only=True)
class Lsun(ImageSource):
    """Data source: a category of LSUN, an LMDB database of images, resized and cropped to one size.

    Attributes:
        database: Its folder, such as bedroom_train_lmdb.
    Source: Yu et al. 2015, arXiv:1506.03365.
    """

    database: Path = field(converter=Path)

    def open(self) -> Data:
        """Read every image of the LSUN database once; needs the package lmdb."""
        from diffkit.data.image_data import PictureData
        from diffkit.data.lsun import LsunPictures

        pictures = LsunPictures.of(self.database, self.form())
        return PictureData.from_pictures(pictures, source=str(self.database), **self.read_keywords())
