"""Load data: find its source by name, path or type, and open it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from diffkit.data.image_sources import Folder, HuggingFace, Lsun, Zip
from diffkit.data.sources import Cifar10, Digits, NumpyFile, Photographs, Points, Source
from diffkit.errors import DataError, OptionError, did_you_mean

if TYPE_CHECKING:
    from diffkit.data.arrays import from_array as from_array
    from diffkit.data.base import Data


def as_data(data: Any) -> Data:
    """Return anything that training accepts as `Data`: data, a tensor or array, a folder, a file or a name.

    Raises:
        DataError: The argument is none of these; the text names the members it lacks.
    """
    from diffkit.data.base import BatchedData, Data, MapData
    from diffkit.data.classes import check_class_names
    from diffkit.data.torch_datasets import from_dataset_hint

    if isinstance(data, Data):
        return data
    if isinstance(data, MapData):
        if data.classes is not None:
            check_class_names(list(data.classes))
        return BatchedData(data)
    try:
        return load(data)
    except TypeError as error:
        required = ("shape", "bins", "classes", "__len__", "__getitem__")
        missing = [name for name in required if name not in dir(data)]
        raise DataError(
            f"{type(data).__name__} is not data: it has no {', '.join(missing)}"
            f"{from_dataset_hint(data) or '; see diffkit.data.MapData'}"
        ) from error


NAMED: Mapping[str, type[Source]] = {
    "digits": Digits,
    "points": Points,
    "photographs": Photographs,
    "cifar10": Cifar10,
    "lsun": Lsun,
    "hf": HuggingFace,
}
"""Data sources by name; a folder or a file is given by its path."""


def load(source: Any, **options: Any) -> Data:
    """Load data to train on, by a name, a path or an array.

    Args:
        source: A name ("digits", "points", "photographs", "cifar10", "lsun", "hf"), a folder or .zip of images, a
            .npz or .npy file, or an array or tensor (N, C, *S).
        options: Those of `Digits`, `Points`, `Photographs`, `Cifar10`, `Lsun`, `HuggingFace`, `Folder`, `Zip` or
            `NumpyFile`, or of `from_array`.
    Raises:
        DataError: There is no such data, or it cannot be used.
        OptionError: An option is wrong, or the source has no such option.
        MissingExtraError: A package that it needs is not installed.
    """
    if isinstance(source, str | os.PathLike):
        return source_for(source, **options).open()
    import numpy as np
    from torch import Tensor

    from diffkit.data.arrays import from_array

    if not isinstance(source, Tensor | np.ndarray):
        raise OptionError(f"{type(source).__name__} is not an array, tensor, path or name")
    _check_option_names(options, ("labels", "classes", "bins", "layout", "source"), "an array")
    return from_array(source, **options)


def source_for(source: str | os.PathLike[str], **options: Any) -> Source:
    """Return the data source of a name or path, with options, without opening it.

    A folder with the name of a source is written "./digits", or as a `pathlib.Path`.
    """
    name = os.fspath(source)
    kind = NAMED.get(name) if isinstance(source, str) else None
    if kind is not None:
        return _create_source(kind, f"{name!r}", options)
    path = Path(name)
    if path.suffix in (".npz", ".npy"):
        return _create_source(NumpyFile, "a NumPy file", options | {"path": path})
    if path.suffix == ".zip" and path.is_file():
        return _create_source(Zip, "a zip archive", options | {"path": path})
    if not path.is_dir():
        what = "is a file, but not a .npz, .npy or .zip" if path.exists() else "is not a folder or file"
        raise DataError(f"data {name!r} {what}, and no data has that name{did_you_mean(name, NAMED)}")
    if "size" not in options:
        raise OptionError(f"data {name!r} is a folder of images; pass size=64 or size=(height, width)")
    return _create_source(Folder, "a folder", options | {"path": path})


def _create_source(kind: type[Any], label: str, options: Mapping[str, Any]) -> Source:
    fields = attrs.fields(kind)
    _check_option_names(options, [field.name for field in fields], label)
    missing = [field.name for field in fields if field.default is attrs.NOTHING and field.name not in options]
    if missing:
        raise OptionError(f"data {label} needs {' and '.join(missing)}")
    if isinstance(options.get("size"), int):
        options = {**options, "size": (options["size"],)}
    source: Source = kind(**options)
    return source


def _check_option_names(options: Mapping[str, Any], names: Any, label: str) -> None:
    for name in options:
        if name not in names:
            raise OptionError(f"{label} has no option {name!r}{did_you_mean(name, names)} (known: {', '.join(names)})")
