"""Inspect a folder or archive of images: kinds, sizes, classes, and unusable files; every file is read once."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

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
from diffkit.data.labels import read_labels
from diffkit.data.names import printable
from diffkit.data.parallel import map_in_order
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
    """Read every image of a folder or zip archive once, and report how training would use it.

    Args:
        source: The folder or archive.
        labels: As `diffkit.data.Folder` takes them, or None.
        size: (H, W) that the images will be resized to; smaller images are counted.
        processes: Number of processes that read images; 0 reads in this process.
        progress: Show a progress bar.
    Raises:
        DataError: The source is missing, cannot be listed or has no image.
    """
    need_pillow("reading image files")
    names, ignored = _list_source(source)
    inspect = partial(inspect_image, source)
    images: dict[str, ImageProperties] = {}
    unreadable: dict[str, str] = {}
    readable: list[int] = []
    with show_progress(len(names), "checking images", progress) as advance:
        for i, found in enumerate(map_in_order(inspect, names, processes)):
            name = printable(names[i])
            if isinstance(found, DataError):
                unreadable[name] = str(found).partition(f"{name}: ")[2]
            else:
                images[name] = found
                readable.append(i)
            advance(1)
    counts = _count_classes(source, names, labels, readable)
    return InspectionReport(printable(source), images, unreadable, dict(ignored), *counts, size)


def inspect_image(source: Path, name: str) -> ImageProperties:
    """Return the properties of an image of a folder or zip archive, after decoding all of it.

    Raises:
        DataError: It cannot be read.
    """
    file = io.BytesIO(read_member(source, name)) if _is_zip(source) else source / name
    with open_image_file(file, printable(name)) as found:
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


def _is_zip(source: Path) -> bool:
    return source.suffix == ".zip" and source.is_file()


def _list_source(source: Path) -> tuple[Sequence[str], Sequence[tuple[str, str]]]:
    """Return the names of a source's images, and of the other files with the reason why they are not used."""
    if _is_zip(source):
        return list_members(source)
    if not source.is_dir():
        found = "a file" if source.exists() else "not there"
        made = "which diffkit data import makes of other data"
        raise DataError(f"{printable(source)} is {found}; name a folder or .zip of images, {made}")
    listing = list_images(source)
    listing.check_any(source)
    names = [path.relative_to(source).as_posix() for path in listing.files]
    return names, [(printable(path.relative_to(source)), reason) for path, reason in listing.ignored]


def _count_classes(
    source: Path, names: Sequence[str], labels: str | None, readable: Sequence[int]
) -> tuple[dict[str, int] | None, int, str | None]:
    """Return how many images each class has, how many have none, and the fault of the labels."""
    if labels is None or not readable:
        return None, 0, None
    try:
        found = read_labels(names, labels, source, read_table_member(source, labels) if _is_zip(source) else None)
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
