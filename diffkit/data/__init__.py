"""Data to train on: `load` it from a name, a folder, a file or an array, or bring any class that honours `MapData`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit.runtime.lazy import on_first_use

if TYPE_CHECKING:
    from diffkit.data.arrays import ArrayData as ArrayData
    from diffkit.data.arrays import from_array as from_array
    from diffkit.data.base import Batch as Batch
    from diffkit.data.base import Data as Data
    from diffkit.data.base import MapData as MapData
    from diffkit.data.base import scale_images as scale_images
    from diffkit.data.encoded import Encoded as Encoded
    from diffkit.data.image_data import PictureData as PictureData
    from diffkit.data.iterables import from_iterable as from_iterable
    from diffkit.data.loading import as_data as as_data
    from diffkit.data.loading import load as load
    from diffkit.data.low_res import LowRes as LowRes
    from diffkit.data.measuring import measured as measured
    from diffkit.data.sources._file import NumpyFile as NumpyFile
    from diffkit.data.sources._folder import Folder as Folder
    from diffkit.data.sources._source import Source as Source
    from diffkit.data.sources._zip import Zip as Zip
    from diffkit.data.sources.cifar10 import Cifar10 as Cifar10
    from diffkit.data.sources.digits import Digits as Digits
    from diffkit.data.sources.hf import HuggingFace as HuggingFace
    from diffkit.data.sources.lsun import Lsun as Lsun
    from diffkit.data.sources.photographs import Photographs as Photographs
    from diffkit.data.sources.points import Points as Points
    from diffkit.data.sources.webdataset import WebDataset as WebDataset
    from diffkit.data.torch_datasets import from_dataset as from_dataset

__all__, __getattr__, __dir__ = on_first_use(__name__)
