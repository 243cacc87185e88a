"""CIFAR-10 from its archive, in the Python or the binary version, packed or unpacked; nothing in it is executed.

The Python version is a pickle of a dictionary. It is read by an unpickler that accepts five names and replaces
each by a class of this module, so that a file can run neither code nor NumPy.

Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images"; the layouts are described on its page.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffkit.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PUBLISHED = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""Class names in the files that improved-diffusion's script writes, in the archive's order."""
_FILES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_LARGEST = 1 << 26
"""Largest size of a member in bytes; the largest real one has 31 million."""
_PIXELS = 3 * 32 * 32

Batch = tuple[NDArray[np.uint8], NDArray[np.int64]]


def read_cifar10(path: Path, split: str) -> Batch:
    """Return the images of CIFAR-10, (N, 3, 32, 32) uint8, and labels, (N,) int64, in the archive's order.

    Args:
        path: The archive (.tar.gz or .tar), or the folder it was unpacked to.
        split: "train" or "test".
    Raises:
        DataError: The archive is missing, damaged, not CIFAR-10, or imports a name that CIFAR-10 does not use.
    """
    names = _FILES[split]
    found = _read_members(path, [*names, *(f"{name}.bin" for name in names)])
    for suffix, reader in (("", _read_pickle), (".bin", _read_binary)):
        if all(f"{name}{suffix}" in found for name in names):
            batches = [reader(found[f"{name}{suffix}"], f"{path}: {name}{suffix}") for name in names]
            return np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches])
    raise DataError(
        f"{str(path)!r} is not a whole CIFAR-10: it lacks {', '.join(n for n in names if n not in found)} of the "
        "Python version, and the .bin files of the binary one"
    )


def number_classes(labels: NDArray[np.int64], published: bool) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return CIFAR-10's labels and class names: the archive's, or improved-diffusion's, which numbers names sorted."""
    if not published:
        return labels, CLASSES
    names = sorted(PUBLISHED)
    return np.array([names.index(name) for name in PUBLISHED], np.int64)[labels], tuple(names)


def _read_members(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Return the content of the files with these names, anywhere in the archive or folder."""
    if not path.exists():
        raise DataError(f"{str(path)!r} is not there; the archive is cifar-10-python.tar.gz or cifar-10-binary.tar.gz")
    try:
        if path.is_dir():
            files = [file for file in sorted(path.rglob("*")) if file.name in names and file.is_file()]
            for file in files:
                _check_size(file.stat().st_size, file.name)
            return {file.name: file.read_bytes() for file in files}
        return _read_tar(path, names)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{str(path)!r} cannot be read as an archive: {error}") from error


def _read_tar(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            file = archive.extractfile(member) if name in names and member.isfile() else None
            if file is not None:
                _check_size(member.size, name)
                found[name] = file.read()
    return found


def _check_size(size: int, name: str) -> None:
    if size > _LARGEST:
        raise DataError(f"{name} has {size} bytes, no CIFAR-10 file has more than {_LARGEST}")


# ---- the binary version --------------------------------------------------------------------------------------------


def _read_binary(content: bytes, name: str) -> Batch:
    """Return the images and labels of a file of CIFAR-10's binary version: records of a class and 3,072 pixels."""
    if len(content) % (1 + _PIXELS) or not content:
        raise DataError(f"{name} has {len(content)} bytes, which is not a multiple of {1 + _PIXELS}; it is damaged")
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS)
    return _check_batch(records[:, 1:], records[:, 0].astype(np.int64), name)


# ---- the Python version --------------------------------------------------------------------------------------------


class _PickledArray:
    """Replaces ``numpy.ndarray`` in CIFAR-10's pickle: holds the arguments that the pickle passes to it."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def value(self) -> NDArray[np.uint8]:
        """Return the pickled array, which must be of bytes."""
        _, shape, dtype, fortran, raw = self.state
        if (
            not isinstance(dtype, _PickledDtype)
            or dtype.name not in ("u1", "uint8")
            or fortran
            or not isinstance(raw, bytes)
        ):
            raise ValueError("its pixels are not bytes")
        return np.frombuffer(raw, np.uint8).reshape(shape)


class _PickledDtype:
    """Replaces ``numpy.dtype`` in CIFAR-10's pickle."""

    def __init__(self, name: Any = "", *rest: Any):
        self.name = name.decode() if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        pass


def _reconstruct(*arguments: Any) -> _PickledArray:
    return _PickledArray()


def _encode_latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """Replaces ``_codecs.encode``, which bytes are pickled as by Python 3 in an old protocol."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("it encodes a text in another way than Python does")
    return text.encode("latin1")


_ALLOWED_NAMES: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): _encode_latin1,
}


class _RestrictedUnpickler(pickle.Unpickler):
    """Reads a pickle of numbers, texts, lists and dictionaries; the five names become classes of this module."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED_NAMES:
            raise pickle.UnpicklingError(f"it imports {module}.{name}, which CIFAR-10 does not use; nothing was run")
        return _ALLOWED_NAMES[module, name]


def _read_pickle(content: bytes, name: str) -> Batch:
    try:
        found = _RestrictedUnpickler(io.BytesIO(content), encoding="bytes").load()
        texts = {key.decode() if isinstance(key, bytes) else key: value for key, value in found.items()}
        pixels, labels = texts["data"].value(), texts["labels"]
        if not all(type(label) is int for label in labels):
            raise ValueError("its labels are not integers")
        numbers = np.array(labels, np.int64)
    except Exception as error:  # a damaged or hostile pickle can raise any error
        raise DataError(f"{name} cannot be read: {type(error).__name__}: {error}") from error
    return _check_batch(pixels, numbers, name)


def _check_batch(pixels: NDArray[np.uint8], labels: NDArray[np.int64], name: str) -> Batch:
    if pixels.shape != (len(labels), _PIXELS):
        raise DataError(f"{name} has pixels of shape {pixels.shape} for {len(labels)} labels; it is not CIFAR-10")
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(CLASSES)):
        raise DataError(f"{name} has classes {labels.min()} to {labels.max()}; CIFAR-10 has 0 to 9")
    return pixels.reshape(-1, 3, 32, 32), labels
