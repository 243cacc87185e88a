"""A zip archive of images, such as EDM's and StyleGAN's dataset tools write; read without unpacking it."""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from numpy.typing import NDArray

from diffkit.data.folder import SUFFIXES, no_image
from diffkit.data.images import Form, decoded
from diffkit.data.labels import labels_of
from diffkit.data.left_out import path_reason
from diffkit.data.names import printable
from diffkit.errors import DataError
from diffkit.runtime.images import need_pillow

if TYPE_CHECKING:
    from diffkit.data.image_data import PictureData

_LARGEST = 1 << 30
"""Largest size of a file in an archive, in bytes; a larger one is not an image, and may be made to fill the memory."""
_archives: dict[tuple[int, str], tuple[int, zipfile.ZipFile]] = {}
"""Time of change and open archive, by process and path: two processes must not share the position in an open file."""


@frozen
class Members:
    """The images of a zip archive, as `diffkit.data.images.Pictures`.

    Attributes:
        path: The archive.
        names: Its images, sorted.
        form: What each image is made into.
    """

    path: Path
    names: tuple[str, ...] = field(repr=False)
    form: Form

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def name(self, index: int) -> str:
        """Return the path of an image within the archive."""
        return self.names[index]

    def read(self, index: int) -> NDArray[Any]:
        """Return the pixels of an image, (C, H, W)."""
        member = self.names[index]
        return decoded(io.BytesIO(content_of(self.path, member)), named(self.path, member), self.form)

    def stamps(self) -> list[Any]:
        """Return name, bytes and checksum of each image."""
        archive = _opened(self.path)
        return [[info.filename, info.file_size, info.CRC] for info in map(archive.getinfo, self.names)]


def open_zip(path: Path, *, form: Form, labels: str | None = None, **options: Any) -> PictureData:
    """Return the images of a zip archive as data, after reading every one once, unless ``check`` is False.

    Args:
        path: The archive.
        form: Size, channels and the like of every example.
        labels: As for a folder; a table may also be in the archive, as dataset.json is.
        options: ``on_error``, ``max_skipped``, ``cache``, ``processes``, ``check`` and ``progress`` of
            `PictureData.opened`.
    Raises:
        DataError: It is not an archive, there is no image in it, one cannot be read, or a label is missing.
    """
    need_pillow("reading image files")
    from diffkit.data.image_data import PictureData

    names, ignored = list_members(path)
    found = labels_of(names, labels, path, table_in(path, labels))
    return PictureData.opened(Members(path, names, form), source=str(path), labels=found, ignored=ignored, **options)


def list_members(path: Path) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """Return the images of an archive, sorted, and its other files with the reason that they are left out.

    Raises:
        DataError: It is not an archive, or there is no image in it.
    """
    reasons = {info.filename: _reason(info) for info in _opened(path).infolist() if not info.is_dir()}
    names = tuple(name for name in sorted(reasons) if reasons[name] is None)
    ignored = [(printable(name), reason) for name, reason in sorted(reasons.items()) if reason is not None]
    if not names:
        raise no_image(path, len(ignored))
    return names, ignored


def table_in(path: Path, labels: str | None) -> bytes | None:
    """Return the table of labels that is in the archive, if there is one and none outside."""
    if labels is None or Path(labels).exists() or labels not in _opened(path).namelist():
        return None
    return content_of(path, labels)


def content_of(path: Path, member: str) -> bytes:
    """Return a file of an archive, or raise `DataError` with both names."""
    name = named(path, member)
    try:
        archive = _opened(path)
        if archive.getinfo(member).file_size > _LARGEST:
            raise DataError(f"{name}: more than {_LARGEST} bytes, which no image has")
        return archive.read(member)
    except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{name}: {type(error).__name__}: {error}") from error


def named(path: Path, member: str) -> str:
    """Return the name of a file of an archive for error messages."""
    return f"{printable(path)}: {printable(member)}"


def _reason(info: zipfile.ZipInfo) -> str | None:
    """Why a file is left out, or None."""
    found = PurePosixPath(info.filename)
    if reason := path_reason(found.parts[:-1], found.name):
        return reason
    if stat.S_ISLNK(info.external_attr >> 16):
        return "a link, which archives are not followed through"
    return None if found.suffix.lower() in SUFFIXES else "no image by its name"


def _opened(path: Path) -> zipfile.ZipFile:
    place = os.getpid(), os.path.realpath(path)
    try:
        changed = path.stat().st_mtime_ns
        if place not in _archives or _archives[place][0] != changed:
            _archives[place] = changed, zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read as a zip archive: {error}") from error
    return _archives[place][1]
