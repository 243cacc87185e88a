"""Data to train on: `load` it from a name, a folder, a file or an array, or bring a class with `MapData`'s members."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit.data.image_sources import Folder, HuggingFace, Lsun, Zip
from diffkit.data.loading import NAMED, load
from diffkit.data.sources import Cifar10, Digits, NumpyFile, Photographs, Points, Source
from diffkit.runtime.lazy import on_first_use

if TYPE_CHECKING:
    from diffkit.data.arrays import ArrayData as ArrayData
    from diffkit.data.arrays import from_array as from_array
    from diffkit.data.base import Batch as Batch
    from diffkit.data.base import Data as Data
    from diffkit.data.base import MapData as MapData
    from diffkit.data.base import scale_images as scale_images
    from diffkit.data.image_data import PictureData as PictureData
    from diffkit.data.loading import as_data as as_data
    from diffkit.data.low_res import LowRes as LowRes
    from diffkit.data.torch_datasets import from_dataset as from_dataset


_NAMES: dict[str, tuple[str, ...]] = {
    "arrays": ("ArrayData", "from_array"),
    "torch_datasets": ("from_dataset",),
    "base": ("Batch", "Data", "MapData", "scale_images"),
    "loading": ("as_data",),
    "image_data": ("PictureData",),
    "low_res": ("LowRes",),
}
__all__ = [
    "NAMED",
    "Cifar10",
    "Digits",
    "Folder",
    "HuggingFace",
    "Lsun",
    "NumpyFile",
    "Photographs",
    "Points",
    "Source",
    "Zip",
    "load",
    *(name for names in _NAMES.values() for name in names),
]


__getattr__, __dir__ = on_first_use(__name__, _NAMES)
