"""Find a data source by name, path or type."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from diffkit.data.image_sources import Folder, HuggingFace, Lsun, Zip
from diffkit.data.sources import Cifar10, Digits, File, Photographs, Points, Source
from diffkit.errors import DataError, OptionError, did_you_mean

if TYPE_CHECKING:
    from diffkit.data.arrays import from_array as from_array
    from diffkit.data.base import Data


def as_data(data: Any) -> Data:
    """Return anything that training accepts as `Data`: data, a tensor or array, a folder, a file or a name.

    Raises:
        DataError: It is none of these; the text names what it lacks.
    """
    from diffkit.data.base import Data, MapData, Stacked
    from diffkit.data.classes import checked_names
    from diffkit.data.torch_datasets import hint

    if isinstance(data, Data):
        return data
    if isinstance(data, MapData):
        if data.classes is not None:
            checked_names(list(data.classes))
        return Stacked(data)
    try:
        return load(data)
    except TypeError as error:
        wanted = ("shape", "bins", "classes", "__len__", "__getitem__")
        missing = [name for name in wanted if name not in dir(data)]
        raise DataError(
            f"{type(data).__name__} is not data: it has no {', '.join(missing)}"
            f"{hint(data) or '; see diffkit.data.MapData'}"
        ) from error


NAMED: Mapping[str, type[Source]] = {
    "digits": Digits,
    "points": Points,
    "photographs": Photographs,
    "cifar10": Cifar10,
    "lsun": Lsun,
    "hf": HuggingFace,
}
"""Sources that have a name; a folder or a file is given by its path."""


def load(source: Any, **options: Any) -> Data:
    """Return data to train on.

    Args:
        source: A name ("digits", "points", "photographs", "cifar10", "lsun", "hf"), a folder or .zip of images, a
            .npz or .npy file, or an array or tensor (N, C, *S).
        options: Those of `Digits`, `Points`, `Photographs`, `Cifar10`, `Lsun`, `HuggingFace`, `Folder`, `Zip` or
            `File`, or of `from_array`.
    Raises:
        DataError: There is no such data, or it cannot be used.
        OptionError: An option is wrong, or the source has no such option.
        MissingExtraError: A package that reads it is not installed.
    """
    if isinstance(source, str | os.PathLike):
        return source_for(source, **options).open()
    import numpy as np
    from torch import Tensor

    from diffkit.data.arrays import from_array

    if not isinstance(source, Tensor | np.ndarray):
        raise OptionError(f"{type(source).__name__} is not an array, tensor, path or name")
    _known(options, ("labels", "classes", "bins", "layout", "source"), "an array")
    return from_array(source, **options)


def source_for(source: str | os.PathLike[str], **options: Any) -> Source:
    """Return the options that a name or path and its keywords stand for; only the kind of path is looked up.

    A folder with the name of a source is "./digits", or a `pathlib.Path`.
    """
    name = os.fspath(source)
    kind = NAMED.get(name) if isinstance(source, str) else None
    if kind is not None:
        return _build(kind, f"{name!r}", options)
    path = Path(name)
    if path.suffix in (".npz", ".npy"):
        return _build(File, "a NumPy file", options | {"path": path})
    if path.suffix == ".zip" and path.is_file():
        return _build(Zip, "a zip archive", options | {"path": path})
    if not path.is_dir():
        what = "is a file, but not a .npz, .npy or .zip" if path.exists() else "is not a folder or file"
        raise DataError(f"data {name!r} {what}, and no data has that name{did_you_mean(name, NAMED)}")
    if "size" not in options:
        raise OptionError(f"data {name!r} is a folder of images, which come in many sizes", fix={"size": 64})
    return _build(Folder, "a folder", options | {"path": path})


def _build(kind: type[Any], label: str, options: Mapping[str, Any]) -> Source:
    fields = attrs.fields(kind)
    _known(options, [field.name for field in fields], label)
    missing = [field.name for field in fields if field.default is attrs.NOTHING and field.name not in options]
    if missing:
        raise OptionError(f"data {label} needs {' and '.join(missing)}")
    if isinstance(options.get("size"), int):
        options = {**options, "size": (options["size"],)}
    source: Source = kind(**options)
    return source


def _known(options: Mapping[str, Any], names: Any, label: str) -> None:
    for name in options:
        if name not in names:
            raise OptionError(f"{label} has no option {name!r}{did_you_mean(name, names)} (known: {', '.join(names)})")
