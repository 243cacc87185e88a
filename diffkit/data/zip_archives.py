"""Zip archives of images, such as EDM's and StyleGAN's dataset tools write; read without unpacking them."""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from numpy.typing import NDArray

from diffkit.data.folder import SUFFIXES, no_image_error
from diffkit.data.ignored import split_ignored
from diffkit.data.images import Form, decode_image
from diffkit.data.labels import read_labels
from diffkit.data.left_out import path_reason
from diffkit.data.names import printable
from diffkit.errors import DataError, did_you_mean
from diffkit.runtime.images import need_pillow

if TYPE_CHECKING:
    from diffkit.data.image_data import PictureData

_LARGEST = 1 << 30
"""Largest size in bytes of a file in an archive; a larger one is not an image, and might fill the memory."""
_archives: dict[tuple[int, str], tuple[int, zipfile.ZipFile]] = {}
"""Modification time and open archive, by process and path: processes must not share the position in an open file."""


@frozen
class ZipPictures:
    """The images of a zip archive, as `diffkit.data.images.Pictures`.

    Attributes:
        path: The archive.
        names: Its images, sorted.
        form: Form that each image is converted to.
        root: Start of every name, the folder of the archive that is read.
    """

    path: Path
    names: tuple[str, ...] = field(repr=False)
    form: Form
    root: str = ""

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def name(self, index: int) -> str:
        """Return the path of an image within the archive, or the folder of it."""
        return self.names[index].removeprefix(self.root)

    def read(self, index: int) -> NDArray[Any]:
        """Return the pixels of an image, (C, H, W)."""
        member = self.names[index]
        return decode_image(io.BytesIO(read_member(self.path, member)), member_text(self.path, member), self.form)

    def stamps(self) -> list[Any]:
        """Return name, size and checksum of each image."""
        archive = _open_archive(self.path)
        return [[info.filename, info.file_size, info.CRC] for info in map(archive.getinfo, self.names)]


def open_zip(
    path: Path,
    *,
    form: Form,
    labels: str | None = None,
    within: str | None = None,
    ignore: Sequence[str] = (),
    label_column: str = "label",
    **options: Any,
) -> PictureData:
    """Return the images of a zip archive as data, after reading every one once, unless ``check`` is False.

    Args:
        path: The archive.
        form: Size, channels and bits of every example.
        labels: As for a folder; a table may also be in the archive, as dataset.json is.
        within: A folder of the archive; names of files are relative to it.
        ignore: Patterns of images to leave out; see `diffkit.data.ignored.split_ignored`.
        label_column: Column of the classes in a .csv or .jsonl table.
        options: ``on_error``, ``max_skipped``, ``cache``, ``processes``, ``check`` and ``progress`` of
            `PictureData.from_pictures`.
    Raises:
        DataError: The file is not an archive, has no image, an image cannot be read, or a label is missing.
    """
    need_pillow("reading image files")
    from diffkit.data.image_data import PictureData

    names, ignored = list_members(path)
    root, source = "", str(path)
    if within is not None:
        names, root = _names_within(path, names, within), f"{within.strip('/')}/"
        source = f"{path}/{within.strip('/')}"
    if ignore:
        left_out = split_ignored([name.removeprefix(root) for name in names], ignore, path)
        ignored += [(printable(name), f"ignored by {by!r}") for name, by in zip(names, left_out, strict=True) if by]
        names = tuple(name for name, by in zip(names, left_out, strict=True) if not by)
        if not names:
            raise no_image_error(path, len(ignored))
    pictures = ZipPictures(path, names, form, root)
    listed = [pictures.name(i) for i in range(len(names))]
    found = read_labels(listed, labels, path, read_table_member(path, labels), label_column)
    return PictureData.from_pictures(pictures, source=source, labels=found, ignored=ignored, **options)


def _names_within(path: Path, names: Sequence[str], within: str) -> tuple[str, ...]:
    """Return the images in a folder of an archive, or raise `DataError` with the folders that have images."""
    found = tuple(name for name in names if name.startswith(f"{within.strip('/')}/"))
    if not found:
        folders = sorted({name.rpartition("/")[0] for name in names if "/" in name})
        listed = ", ".join(map(repr, folders[:5])) or "none"
        near = did_you_mean(within.strip("/"), folders)
        raise DataError(f"within {within!r} is not a folder with images in {str(path)!r}{near} (known: {listed})")
    return found


def list_members(path: Path) -> tuple[tuple[str, ...], list[tuple[str, str]]]:
    """Return the images of a zip archive, sorted, and its other files with the reason why they are left out.

    Raises:
        DataError: The file is not an archive, or has no image.
    """
    reasons = {info.filename: _reason_left_out(info) for info in _open_archive(path).infolist() if not info.is_dir()}
    names = tuple(name for name in sorted(reasons) if reasons[name] is None)
    ignored = [(printable(name), reason) for name, reason in sorted(reasons.items()) if reason is not None]
    if not names:
        raise no_image_error(path, len(ignored))
    return names, ignored


def read_table_member(path: Path, labels: str | None) -> bytes | None:
    """Return the content of a table of labels in a zip archive; None if there is none, or a file of that name."""
    if labels is None or Path(labels).exists() or labels not in _open_archive(path).namelist():
        return None
    return read_member(path, labels)


def read_member(path: Path, member: str) -> bytes:
    """Return the content of a file in a zip archive, or raise `DataError` with both names."""
    name = member_text(path, member)
    try:
        archive = _open_archive(path)
        if archive.getinfo(member).file_size > _LARGEST:
            raise DataError(f"{name}: more than {_LARGEST} bytes, which no image has")
        return archive.read(member)
    except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{name}: {type(error).__name__}: {error}") from error


def member_text(path: Path, member: str) -> str:
    """Return the name of a file in a zip archive for error messages."""
    return f"{printable(path)}: {printable(member)}"


def _reason_left_out(info: zipfile.ZipInfo) -> str | None:
    """Return why a file of an archive is left out, or None."""
    found = PurePosixPath(info.filename)
    if reason := path_reason(found.parts[:-1], found.name):
        return reason
    if stat.S_ISLNK(info.external_attr >> 16):
        return "a link, which archives are not followed through"
    return None if found.suffix.lower() in SUFFIXES else "no image by its name"


def _open_archive(path: Path) -> zipfile.ZipFile:
    place = os.getpid(), os.path.realpath(path)
    try:
        changed = path.stat().st_mtime_ns
        if place not in _archives or _archives[place][0] != changed:
            _archives[place] = changed, zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise DataError(f"{str(path)!r} cannot be read as a zip archive: {error}") from error
    return _archives[place][1]
