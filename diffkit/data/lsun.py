"""An LSUN category: a database (LMDB) of encoded images.

Source: Yu et al. 2015, arXiv:1506.03365; the published databases hold one WebP image to a key.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any

from attrs import field, frozen
from numpy.typing import NDArray

from diffkit.data.images import Form, decode_image
from diffkit.errors import DataError, needed

_environments: dict[str, Any] = {}
"""Open databases by path: LMDB refuses to open one twice in a process."""


def _close_databases() -> None:
    """Close all open databases before a fork, as LMDB must not be shared between processes; each opens its own."""
    for environment in _environments.values():
        environment.close()
    _environments.clear()


if sys.platform != "win32":
    os.register_at_fork(before=_close_databases)


@frozen
class LsunPictures:
    """The images of an LSUN database, as `diffkit.data.images.Pictures`.

    Attributes:
        path: Folder of the database, or its file.
        form: Form that each image is converted to.
        keys: Its keys, in the database's order.
    """

    path: Path
    form: Form
    keys: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def of(cls, path: Path, form: Form) -> LsunPictures:
        """Return the images of an LSUN database.

        Raises:
            DataError: The database is missing, damaged or empty.
            MissingExtraError: The package lmdb is not installed.
        """
        with _transaction(path) as transaction:
            keys = tuple(bytes(key) for key in transaction.cursor().iternext(keys=True, values=False))
        if not keys:
            raise DataError(f"{str(path)!r} holds no image")
        return cls(path, form, keys)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.keys)

    def name(self, index: int) -> str:
        """Return the key of an image as text."""
        return self.keys[index].decode("ascii", "backslashreplace")

    def read(self, index: int) -> NDArray[Any]:
        """Return the pixels of an image of the database, (C, H, W)."""
        with _transaction(self.path) as transaction:
            content = transaction.get(self.keys[index])
        name = f"{self.path}: {self.name(index)}"
        if content is None:
            raise DataError(f"{name}: the database no longer has it")
        return decode_image(io.BytesIO(bytes(content)), name, self.form)

    def stamps(self) -> list[Any]:
        """Return the number of images, and size and modification time of the database."""
        stat = (self.path / "data.mdb" if self.path.is_dir() else self.path).stat()
        return [len(self), stat.st_size, stat.st_mtime_ns]


def _transaction(path: Path) -> Any:
    with needed("lsun", "reading an LMDB database"):
        import lmdb
    place = os.path.realpath(path)
    if place not in _environments:
        if not path.exists():
            raise DataError(f"{str(path)!r} is not there; LSUN's databases are folders such as bedroom_train_lmdb")
        try:
            _environments[place] = lmdb.open(
                str(path), readonly=True, lock=False, readahead=False, subdir=path.is_dir(), max_readers=1
            )
        except lmdb.Error as error:
            raise DataError(f"{str(path)!r} cannot be read as an LMDB database: {error}") from error
    return _environments[place].begin(buffers=True)
