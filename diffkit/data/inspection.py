"""Inspect a folder or archives of images: kinds, sizes, classes, and unusable files; every file is read once."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from diffkit.data import tar_index
from diffkit.data.folder import list_images
from diffkit.data.images import (
    ORIENTATION,
    WIDE_MODES,
    grey_to_8_bit,
    has_transparency,
    open_image_file,
    remove_transparency,
    rotate_upright,
)
from diffkit.data.labels import Labels, read_labels
from diffkit.data.names import printable
from diffkit.data.parallel import map_in_order
from diffkit.data.shard_names import is_path_of_shards
from diffkit.data.zip_archives import list_members, read_member, read_table_member
from diffkit.errors import DataError
from diffkit.protocols import NO_CLASS
from diffkit.runtime.images import need_pillow
from diffkit.runtime.progress import progress as show_progress

_SHOWN = 20
"""EXIF's tag for how a camera was held; 1 is upright."""


@frozen
class ImageProperties:
    """Properties of one image file, as an inspection finds them.

    Attributes:
        format: File format, such as "PNG".
        mode: Pillow's name for the kind of pixels, such as "RGB" or "I;16".
        size: (H, W) after rotation by the EXIF orientation.
        frames: Number of frames, of which the first is read.
        turned: Whether its EXIF orientation requires a rotation.
        transparent: Whether it has transparency of some kind.
    """

    format: str
    mode: str
    size: tuple[int, int]
    frames: int
    turned: bool
    transparent: bool


@frozen
class InspectionReport:
    """Result of inspecting a folder or archive of images.

    Attributes:
        source: The folder or archive.
        images: Every readable image by its path in the source.
        unreadable: Every image file that cannot be read, with the reason.
        ignored: Every other file, with the reason.
        classes: How many readable images each class has; None if labels is None.
        without_class: How many readable images have no class in their table.
        fault: Fault of the labels; None if there is none.
        size: (H, W) that the images will be resized to, or None.
    """

    source: str
    images: dict[str, ImageProperties]
    unreadable: dict[str, str]
    ignored: dict[str, str]
    classes: dict[str, int] | None = None
    without_class: int = 0
    fault: str | None = None
    size: tuple[int, int] | None = None

    @property
    def good(self) -> bool:
        """Whether training with ``on_error="stop"`` would take the folder."""
        return bool(self.images) and not self.unreadable and self.fault is None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the report as text, with at most twenty names of each kind."""
        lines = [
            f"{self.source}: {len(self.images)} images, {len(self.unreadable)} image files that cannot be read, "
            f"{len(self.ignored)} other files",
            *self._kinds(),
            *self._classes(),
            *_reason_lines("cannot be read:", self.unreadable),
            *_reason_lines("no image, and left out:", self.ignored),
        ]
        return "\n".join(lines)

    def _kinds(self) -> Iterator[str]:
        seen = list(self.images.values())
        if not seen:
            return
        yield f"  sizes    {_counts_text(f'{h}x{w}' for h, w in (each.size for each in seen))}"
        yield f"  formats  {_counts_text(each.format for each in seen)}"
        yield f"  modes    {_counts_text(each.mode for each in seen)}"
        remarks = {
            "of 16 bits, scaled to 8 unless --data.bits 16": sum(each.mode in WIDE_MODES for each in seen),
            "with transparency, which is put onto the background": sum(each.transparent for each in seen),
            "with more than one frame, of which the first is read": sum(each.frames > 1 for each in seen),
            "turned upright as their orientation says": sum(each.turned for each in seen),
        }
        if self.size is not None:
            height, width = self.size
            small = sum(each.size[0] < height or each.size[1] < width for each in seen)
            remarks[f"smaller than {height}x{width}, which are enlarged"] = small
        yield from (f"  {count} {text}" for text, count in remarks.items() if count)

    def _classes(self) -> Iterator[str]:
        if self.fault is not None:
            yield f"labels: {self.fault}"
        if self.classes is None:
            return
        yield f"  {len(self.classes)} classes: {_names_text([f'{printable(k)} {n}' for k, n in self.classes.items()])}"
        if self.without_class:
            yield f"  {self.without_class} images without a class, for networks with a label for no class"
        if len(self.classes) == len(self.images) > 1:
            yield "  every image is a class of its own; are these the intended labels?"


def check_images(
    source: Path,
    *,
    labels: str | None = None,
    size: tuple[int, int] | None = None,
    processes: int = 0,
    progress: bool = False,
) -> InspectionReport:
    """Read every image of a folder, a zip archive or tar archives once, and report how training would use it.

    Args:
        source: The folder or zip archive; or tar archives, as `diffkit.data.WebDataset` takes them.
        labels: As the data source takes them, or None.
        size: (H, W) that the images will be resized to; smaller images are counted.
        processes: Number of processes that read images; 0 reads in this process.
        progress: Show a progress bar.
    Raises:
        DataError: The source is missing, cannot be listed or has no image.
    """
    need_pillow("reading image files")
    listed = _list_source(source)
    images: dict[str, ImageProperties] = {}
    unreadable = dict(listed.faults)
    readable: list[int] = []
    with show_progress(len(listed.names), "checking images", progress) as advance:
        for i, found in enumerate(map_in_order(_inspect_image, listed.files, processes)):
            name = printable(listed.names[i])
            if isinstance(found, DataError):
                unreadable[name] = str(found).partition(f"{name}: ")[2]
            else:
                images[name] = found
                readable.append(i)
            advance(1)
    counts = _count_classes(listed.labels, labels, readable)
    return InspectionReport(printable(source), images, unreadable, dict(listed.ignored), *counts, size)


def _inspect_image(file: _File) -> ImageProperties:
    """Return the properties of an image, after decoding all of it; raise `DataError` if it cannot be read."""
    with open_image_file(file.open(), printable(file.name)) as found:
        image = rotate_upright(found)
        remove_transparency(grey_to_8_bit(image, 255), 255).convert("RGB")
        return ImageProperties(
            format=str(found.format),
            mode=found.mode,
            size=(image.height, image.width),
            frames=int(getattr(found, "n_frames", 1)),
            turned=found.getexif().get(ORIENTATION, 1) != 1,
            transparent=has_transparency(found),
        )


@frozen
class _File:
    """A file of a folder or archive.

    Attributes:
        name: Its name in messages.
        open: Returns its path, or its content as a file; picklable.
    """

    name: str
    open: Callable[[], Any]


@frozen
class _Listing:
    """The files of a source.

    Attributes:
        files: Its images.
        ignored: Other files, with the reason why they are not used.
        labels: Reads the labels of a name.
        faults: Files that training stops at, with the reason.
    """

    files: Sequence[_File]
    ignored: Sequence[tuple[str, str]]
    labels: Callable[[str], Labels | None]
    faults: Sequence[tuple[str, str]] = ()

    @property
    def names(self) -> list[str]:
        """Return the names of the images."""
        return [file.name for file in self.files]


def _list_source(source: Path) -> _Listing:
    if is_path_of_shards(source):
        return _list_shards(source)
    if source.suffix == ".zip" and source.is_file():
        names, ignored = list_members(source)
        files = [_File(name, partial(_open_member, source, name)) for name in names]
        return _Listing(
            files, ignored, lambda labels: read_labels(names, labels, source, read_table_member(source, labels))
        )
    listing = list_images(source)
    listing.check_any(source)
    paths = [path.relative_to(source).as_posix() for path in listing.files]
    return _Listing(
        [_File(name, partial(source.joinpath, name)) for name in paths],
        [(printable(path.relative_to(source)), reason) for path, reason in listing.ignored],
        lambda labels: read_labels(paths, labels, source),
    )


def _list_shards(source: Path) -> _Listing:
    from diffkit.data.tar_shards import ALONE, list_examples

    found = list_examples(source)
    files = [
        _File(name, partial(_open_shard, found.shards[shard], offset, size, name))
        for name, (shard, offset, size) in zip(found.names, found.places, strict=True)
    ]
    return _Listing(files, found.ignored, found.read_labels, [(name, ALONE) for name in found.alone])


def _open_member(source: Path, name: str) -> io.BytesIO:
    return io.BytesIO(read_member(source, name))


def _open_shard(shard: Path, offset: int, size: int, name: str) -> io.BytesIO:
    return io.BytesIO(tar_index.read_member(shard, offset, size, printable(name)))


def _count_classes(
    read: Callable[[str], Labels | None], labels: str | None, readable: Sequence[int]
) -> tuple[dict[str, int] | None, int, str | None]:
    """Return how many images each class has, how many have none, and the fault of the labels."""
    if labels is None or not readable:
        return None, 0, None
    try:
        found = read(labels)
        assert found is not None
        numbers, classes = found.class_numbers(readable)
    except DataError as error:
        return None, 0, str(error)
    count = Counter(numbers.tolist())
    return {name: count[i] for i, name in enumerate(classes)}, count[NO_CLASS], None


def _counts_text(values: Iterator[str]) -> str:
    """Return values with their counts, the most frequent first: ``64x64 (1200), 32x32 (4)``."""
    return _names_text([f"{value} ({count})" for value, count in Counter(values).most_common()], 6)


def _names_text(words: Sequence[str], most: int = _SHOWN) -> str:
    return ", ".join(words[:most]) + (f", and {len(words) - most} more" if len(words) > most else "")


def _reason_lines(title: str, reasons: dict[str, str]) -> Iterator[str]:
    if reasons:
        yield title
    for name, reason in list(reasons.items())[:_SHOWN]:
        yield f"  {name}: {reason}"
    if len(reasons) > _SHOWN:
        yield f"  ... and {len(reasons) - _SHOWN} more; --out FILE.json lists all"
