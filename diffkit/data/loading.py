"""Load data: find its source by name, path or type, and open it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffkit.data.shard_names import is_path_of_shards, list_shards
from diffkit.data.sources._file import NumpyFile
from diffkit.data.sources._folder import Folder
from diffkit.data.sources._source import Source
from diffkit.data.sources._zip import Zip
from diffkit.errors import DataError, OptionError, did_you_mean
from diffkit.options import option_names, required_options
from diffkit.registry import registry
from diffkit.registry.resolve import resolve

if TYPE_CHECKING:
    from diffkit.data.arrays import from_array as from_array
    from diffkit.data.base import Data


_LABELS: Mapping[Any, str] = {NumpyFile: "a NumPy file", Zip: "a zip archive", Folder: "a folder"}


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


def load(source: Any, **options: Any) -> Data:
    """Load data to train on, by a name, a path or an array.

    Args:
        source: A registered name ("digits", "points", "photographs", "cifar10", "lsun", "hf", or a plugin's), a folder
            or .zip of images, .tar files of them (one, a folder or a pattern), a .npz or .npy file, an array or tensor
            (N, C, *S), or a `Source`.
        options: Those of the source, such as `Digits`, `Folder` or `NumpyFile`; for an array those of `from_array`.
    Raises:
        DataError: There is no such data, or it cannot be used.
        OptionError: An option is wrong, or the source has no such option.
        MissingExtraError: A package that it needs is not installed.
    """
    if isinstance(source, str | os.PathLike):
        return source_for(source, **options).open()
    if _is_slot(source):
        _check_names(options, (), "data that has its options already")
        part: Source = resolve("data", source)[0]
        return part.open()
    import numpy as np
    from torch import Tensor

    from diffkit.data.arrays import from_array

    if not isinstance(source, Tensor | np.ndarray):
        raise OptionError(f"{type(source).__name__} is not an array, tensor, path or name")
    _check_names(options, ("labels", "classes", "bins", "layout", "source"), "an array")
    return from_array(source, **options)


def _is_slot(source: Any) -> bool:
    """Whether a value is a `Source`, a (name, options) pair or a mapping with a name."""
    pair = isinstance(source, tuple | list) and len(source) == 2 and isinstance(source[0], str)
    return (
        pair or Source in type(source).__mro__ or (isinstance(source, Mapping) and isinstance(source.get("name"), str))
    )


def registered_name(source: object) -> str | None:
    """Return the registered name of a data source that a text stands for; None for a path, which needs no registration.

    Raises:
        DataError: It is a plugin's name and a path.
    """
    if not isinstance(source, str) or not re.fullmatch(r"([\w.-]+:)?[a-z][a-z0-9_]*", source):
        return None
    if source in registry("data").built_in_names():
        return source
    known = {text for entry in registry("data").entries() for text in (entry.name, entry.qualified)}
    if source not in known:
        return None
    if Path(source).exists():
        raise DataError(f"data {source!r} is both a path here and a registered name; write './{source}' for the path")
    return source


def source_for(source: str | os.PathLike[str], **options: Any) -> Source:
    """Return the data source that a name or path and its options stand for; nothing is read yet.

    A folder with the name of a source is "./digits", or a `pathlib.Path`.
    """
    if registered := registered_name(source):
        part: Source = registry("data").create(registered, **options)
        return part
    name = os.fspath(source)
    found = class_for_path(path := Path(name))
    if found is Folder and "size" not in options:
        raise OptionError(f"data {name!r} is a folder of images, which come in many sizes", fix={"size": 64})
    return _create_source(found, _LABELS.get(found, "in tar files"), options | {"path": path})


def class_for_path(path: Path) -> Callable[..., Any]:
    """Return the class of the data source that reads a file, or a folder, which may be one of tar archives.

    Raises:
        DataError: There is no data of that name.
    """
    if path.suffix in (".npz", ".npy"):
        return NumpyFile
    if path.suffix == ".zip" and path.is_file():
        return Zip
    if is_path_of_shards(path):
        list_shards(path)  # raises if there is none
        return registry("data").get("webdataset")
    if not path.is_dir():
        what = "is a file, but not a .npz, .npy, .zip or .tar" if path.exists() else "is not a folder or file"
        names = registry("data").names()
        raise DataError(f"data {str(path)!r} {what}, and no data has that name{did_you_mean(str(path), names)}")
    return Folder


def _create_source(kind: Callable[..., Any], label: str, options: Mapping[str, Any]) -> Source:
    _check_names(options, option_names(kind) or (), label)
    if missing := [name for name in required_options(kind) if name not in options]:
        raise OptionError(f"data {label} needs {' and '.join(missing)}")
    source: Source = kind(**options)
    return source


def _check_names(options: Mapping[str, Any], names: Any, label: str) -> None:
    for name in options:
        if name not in names:
            raise OptionError(f"{label} has no option {name!r}{did_you_mean(name, names)} (known: {', '.join(names)})")
