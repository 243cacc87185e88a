"""A folder of images: which files are in it, and how each is read. Imports no torch, so that workers start fast."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen
from numpy.typing import NDArray

from diffkit._errors import DataError
from diffkit.data.images import Form, read_image
from diffkit.data.labels import labels_of
from diffkit.data.names import printable
from diffkit.pictures import need_pillow

if TYPE_CHECKING:
    from diffkit.data.pictures import PictureData

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif"))


@frozen
class Listing:
    """What a folder holds.

    Attributes:
        files: Image files, in the order of the published code: sorted within each folder, folders in their place.
        ignored: Every other file with the reason, in the same order.
    """

    files: tuple[Path, ...]
    ignored: tuple[tuple[Path, str], ...] = field(factory=tuple)

    def check_any(self, root: Path) -> None:
        """Raise `DataError` if there is no image."""
        if not self.files:
            raise no_image(root, len(self.ignored))


@frozen
class Files:
    """Image files of a folder, as `diffkit.data.pictures.Pictures`.

    Attributes:
        root: The folder.
        files: The files, in order of index.
        form: What each is made into.
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
        """Return name, bytes and time of change of each file, which change when the pictures do."""
        found = [os.stat(path) for path in self.files]  # noqa: PTH116 - a third faster, on many files
        return [[self.name(i), stat.st_size, stat.st_mtime_ns] for i, stat in enumerate(found)]


def list_images(root: Path) -> Listing:
    """Return the image files under a folder, visiting each linked folder once.

    Raises:
        DataError: The folder is not there, is no folder, or cannot be listed.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "is not there"
        raise DataError(f"{str(root)!r} {what}")
    files: list[Path] = []
    ignored: list[tuple[Path, str]] = []
    try:
        entries = _entries(root)
    except OSError as error:
        raise DataError(f"{str(root)!r} cannot be listed: {error.strerror}") from error
    _walk(root, entries, files, ignored, {os.path.realpath(root)})
    return Listing(tuple(files), tuple(ignored))


def open_folder(
    root: Path,
    *,
    form: Form,
    labels: str | None = None,
    on_error: str = "stop",
    cache: Path | None = None,
    processes: int = 0,
    check: bool = True,
    progress: bool = False,
) -> PictureData:
    """Return the images of a folder as data, after reading every file once, unless told not to.

    Args:
        root: The folder, searched with all folders in it.
        form: Size, channels and the like of every example.
        labels: "folders", where the class is the folder right below the root; "prefix", where it is the file's name up
            to the first underscore, as in the published code; a .csv or .json table of labels; None for no classes.
        on_error: "stop" at files that cannot be read, naming them all; or "skip" them with a line for each.
        cache: A .npy file that keeps the pixels from one run to the next.
        processes: Processes that read; 0 reads in this one.
        check: False reads nothing beforehand, so that a damaged file is met when it is used.
        progress: Show how far the reading is.
    Raises:
        DataError: There is no image, one cannot be read, or a label is missing.
    """
    need_pillow("reading image files")
    from diffkit.data.pictures import PictureData

    listing = list_images(root)
    listing.check_any(root)
    files = Files(root, listing.files, form)
    found = None if labels is None else labels_of([files.name(i) for i in range(len(files))], labels, root)
    return PictureData.opened(
        files,
        source=str(root),
        labels=found,
        ignored=[(printable(path.relative_to(root)), reason) for path, reason in listing.ignored],
        on_error=on_error,
        cache=cache,
        processes=processes,
        check=check,
        progress=progress,
    )


def no_image(where: Path, others: int) -> DataError:
    """Return the error for a folder or archive without images."""
    return DataError(
        f"{str(where)!r} holds no image ({others} other files); images end in {' '.join(sorted(SUFFIXES))}"
    )


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: entry.name)


def _walk(
    folder: Path,
    entries: list[os.DirEntry[str]],
    files: list[Path],
    ignored: list[tuple[Path, str]],
    seen: set[str],
) -> None:
    for entry in entries:
        path = folder / entry.name
        if _is_folder(entry):
            _enter(path, files, ignored, seen)
        elif reason := _unusable(entry):
            ignored.append((path, reason))
        else:
            files.append(path)


def _enter(folder: Path, files: list[Path], ignored: list[tuple[Path, str]], seen: set[str]) -> None:
    real = os.path.realpath(folder)
    if real in seen:
        ignored.append((folder, "a link to a folder that was visited already"))
        return
    seen.add(real)
    try:
        entries = _entries(folder)
    except OSError as error:
        ignored.append((folder, f"a folder that cannot be listed: {error.strerror}"))
        return
    _walk(folder, entries, files, ignored, seen)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _unusable(entry: os.DirEntry[str]) -> str | None:
    if entry.name.startswith("._"):
        return "what macOS keeps beside a file"
    if os.path.splitext(entry.name)[1].lower() not in SUFFIXES:  # noqa: PTH122 - no Path for each of 100,000 names
        return "no image by its name"
    try:
        if entry.is_file():
            return None
    except OSError:
        return "a link to itself"
    return "a link to nothing" if entry.is_symlink() else "no regular file"
