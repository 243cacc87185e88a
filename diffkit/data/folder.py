"""A folder of images: which files are in it, and how each is read. Imports no torch, so that workers start fast."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from numpy.typing import NDArray

from diffkit.data.ignored import split_ignored
from diffkit.data.images import Form, read_image
from diffkit.data.labels import read_labels
from diffkit.data.left_out import file_reason, folder_reason, is_above, is_system_path
from diffkit.data.names import printable
from diffkit.errors import DataError
from diffkit.runtime.images import need_pillow

if TYPE_CHECKING:
    from diffkit.data.image_data import PictureData

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif"))


@frozen
class FolderListing:
    """The files of a folder of images.

    Attributes:
        files: Image files, in improved-diffusion's order: files and folders sorted by name, at every depth.
        ignored: Every other file with the reason, in the same order.
    """

    files: tuple[Path, ...]
    ignored: tuple[tuple[Path, str], ...] = field(factory=tuple)

    def check_any(self, root: Path) -> None:
        """Raise `DataError` if the folder has no image."""
        if not self.files:
            raise no_image_error(root, len(self.ignored))


@frozen
class FolderPictures:
    """Image files of a folder, as `diffkit.data.images.Pictures`.

    Attributes:
        root: The folder.
        files: The files, in order of index.
        form: Form that each image is converted to.
    """

    root: Path
    files: tuple[Path, ...]
    form: Form

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self.files)

    def name(self, index: int) -> str:
        """Return the path of a file within the folder, with "/" between folders."""
        return self.files[index].relative_to(self.root).as_posix()

    def read(self, index: int) -> NDArray[Any]:
        """Return the pixels of a file, (C, H, W)."""
        return read_image(self.files[index], self.form)

    def stamps(self) -> list[list[Any]]:
        """Return name, size and modification time of each file, which change when the images do."""
        found = [os.stat(path) for path in self.files]  # noqa: PTH116 - a third faster, on many files
        return [[self.name(i), stat.st_size, stat.st_mtime_ns] for i, stat in enumerate(found)]


def list_images(root: Path) -> FolderListing:
    """Return the image files under a folder; each linked folder is visited once, hidden and parent folders never.

    Raises:
        DataError: The folder is missing, is a file, or cannot be listed.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "is not there"
        raise DataError(f"{str(root)!r} {what}")
    try:
        entries = _entries(root)
    except OSError as error:
        raise DataError(f"{str(root)!r} cannot be listed: {error.strerror}") from error
    lister = _FolderWalk(root)
    lister.list_entries(entries)
    return FolderListing(tuple(lister.files), tuple(lister.ignored))


def open_folder(
    root: Path,
    *,
    form: Form,
    labels: str | None = None,
    ignore: Sequence[str] = (),
    label_column: str = "label",
    **options: Any,
) -> PictureData:
    """Return the images of a folder as data, after reading every file once, unless ``check`` is False.

    Args:
        root: The folder, searched with all folders in it.
        form: Size, channels and bits of every example.
        labels: "folders", where the class is the folder right below the root; "prefix", where it is the file's name up
            to the first underscore, as in improved-diffusion; a .csv, .json or .jsonl table; None for no classes.
        ignore: Patterns of images to leave out; see `diffkit.data.ignored.split_ignored`.
        label_column: Column of the classes in a .csv or .jsonl table.
        options: ``on_error``, ``max_skipped``, ``cache``, ``processes``, ``check`` and ``progress`` of
            `PictureData.from_pictures`.
    Raises:
        DataError: There is no image, one cannot be read, or a label is missing.
    """
    need_pillow("reading image files")
    from diffkit.data.image_data import PictureData

    listing = list_images(root)
    listing.check_any(root)
    ignored = [(printable(path.relative_to(root)), reason) for path, reason in listing.ignored]
    files = FolderPictures(root, listing.files, form)
    if ignore:
        left_out = split_ignored([files.name(i) for i in range(len(files))], ignore, root)
        ignored += [(files.name(i), f"ignored by {by!r}") for i, by in enumerate(left_out) if by]
        files = FolderPictures(root, tuple(f for f, by in zip(files.files, left_out, strict=True) if not by), form)
        FolderListing(files.files, listing.ignored).check_any(root)
    names = [] if labels is None else [files.name(i) for i in range(len(files))]
    found = read_labels(names, labels, root, column=label_column)
    return PictureData.from_pictures(files, source=str(root), labels=found, ignored=ignored, **options)


def no_image_error(where: Path, others: int) -> DataError:
    """Return the error for a folder or archive without images."""
    return DataError(
        f"{str(where)!r} holds no image ({others} other files); images end in {' '.join(sorted(SUFFIXES))}"
    )


def _entries(folder: Path | os.DirEntry[str]) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: entry.name)


class _FolderWalk:
    """Lists the files of a folder and of all folders in it."""

    def __init__(self, root: Path):
        self.files: list[Path] = []
        self.ignored: list[tuple[Path, str]] = []
        self.root = os.path.realpath(root)
        self.seen = {self.root}

    def list_entries(self, entries: list[os.DirEntry[str]]) -> None:
        """List entries of the root folder in order, and the content of each folder in place of the folder."""
        open_ = [(self.root, iter(entries))]
        while open_:
            real, left = open_[-1]
            entry = next(left, None)
            if entry is None:
                open_.pop()
            elif _is_folder(entry):
                inner = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)  # noqa: PTH118
                open_.append((inner, iter(self._enter(entry, inner))))
            elif reason := _reason_ignored(entry):
                self.ignored.append((Path(entry.path), reason))
            else:
                self.files.append(Path(entry.path))

    def _enter(self, entry: os.DirEntry[str], real: str) -> list[os.DirEntry[str]]:
        """Return the entries of a folder; for a folder that is left out, none, after recording the reason."""
        try:
            reason = folder_reason(entry.name) or self._reason_not_visited(entry, real)
            if reason is None:
                return _entries(entry)
        except OSError as error:
            reason = f"a folder that cannot be listed: {error.strerror}"
        self.ignored.append((Path(entry.path), reason))
        return []

    def _reason_not_visited(self, entry: os.DirEntry[str], real: str) -> str | None:
        """Return why a folder is not visited, by its resolved path, or None."""
        if entry.is_symlink() and is_above(real, self.root):
            return "a link to a folder that holds this one"
        if is_system_path(real) and not is_system_path(self.root):
            return "a link to something other than a folder of files"
        if real in self.seen:
            return "a link to a folder that was visited already"
        self.seen.add(real)
        return None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _reason_ignored(entry: os.DirEntry[str]) -> str | None:
    if reason := file_reason(entry.name):
        return reason
    if os.path.splitext(entry.name)[1].lower() not in SUFFIXES:  # noqa: PTH122 - no Path for each of 100,000 names
        return "no image by its name"
    try:
        if entry.is_symlink() and is_system_path(os.path.realpath(entry.path)):
            return "a link to something other than a file"
        if entry.is_file():
            return None
    except OSError:
        return "a link to itself"
    return "a link to nothing" if entry.is_symlink() else "no regular file"
