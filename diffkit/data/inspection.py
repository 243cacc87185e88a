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
from diffkit.data.images import SIXTEEN, eight_bit, flattened, opened, transparent, upright
from diffkit.data.labels import labels_of
from diffkit.data.names import printable
from diffkit.data.parallel import in_order
from diffkit.data.zipped import content_of, list_members, table_in
from diffkit.errors import DataError
from diffkit.protocols import NO_CLASS
from diffkit.runtime.images import need_pillow
from diffkit.runtime.progress import progress as show_progress

_SHOWN = 20
_ORIENTATION = 0x0112
"""EXIF's tag for how a camera was held; 1 is upright."""


@frozen
class Seen:
    """Properties of one image file.

    Attributes:
        format: Such as "PNG".
        mode: Pillow's name of its kind of pixels, such as "RGB" or "I;16".
        size: (H, W), upright.
        frames: How many pictures it holds, of which the first is read.
        turned: Its EXIF orientation requires a rotation.
        transparent: It has transparency of some kind.
    """

    format: str
    mode: str
    size: tuple[int, int]
    frames: int
    turned: bool
    transparent: bool


@frozen
class Report:
    """Content of a folder or archive.

    Attributes:
        source: The folder or archive.
        images: Every readable image by name within it.
        unreadable: Every image file that cannot be read, with the reason.
        ignored: Every other file, with the reason.
        classes: How many readable images each class has; None if labels is None.
        without_class: How many readable images have no class in their table.
        fault: Fault of the labels; None if there is none.
        size: (H, W) that the images are meant for, or None.
    """

    source: str
    images: dict[str, Seen]
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
        """Return it as text, with at most twenty names of each sort."""
        lines = [
            f"{self.source}: {len(self.images)} images, {len(self.unreadable)} image files that cannot be read, "
            f"{len(self.ignored)} other files",
            *self._kinds(),
            *self._classes(),
            *_listed("cannot be read:", self.unreadable),
            *_listed("no image, and left out:", self.ignored),
        ]
        return "\n".join(lines)

    def _kinds(self) -> Iterator[str]:
        seen = list(self.images.values())
        if not seen:
            return
        yield f"  sizes    {_counted(f'{h}x{w}' for h, w in (each.size for each in seen))}"
        yield f"  formats  {_counted(each.format for each in seen)}"
        yield f"  modes    {_counted(each.mode for each in seen)}"
        remarks = {
            "of 16 bits, scaled to 8 unless --data.bits 16": sum(each.mode in SIXTEEN for each in seen),
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
        yield f"  {len(self.classes)} classes: {_some([f'{printable(k)} {n}' for k, n in self.classes.items()])}"
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
) -> Report:
    """Read every image of a folder or zip archive once, and report how training would use it.

    Args:
        source: The folder or archive.
        labels: As `diffkit.data.Folder` takes them, or None.
        size: (H, W) that the images are meant for; which are smaller is counted.
        processes: Processes that read; 0 reads in this one.
        progress: Show how far it is.
    Raises:
        DataError: It is missing, cannot be listed or holds no image.
    """
    need_pillow("reading image files")
    names, ignored = _listed_images(source)
    look = partial(inspect, source)
    images: dict[str, Seen] = {}
    unreadable: dict[str, str] = {}
    kept: list[int] = []
    with show_progress(len(names), "checking images", progress) as advance:
        for i, found in enumerate(in_order(look, names, processes)):
            name = printable(names[i])
            if isinstance(found, DataError):
                unreadable[name] = str(found).partition(f"{name}: ")[2]
            else:
                images[name] = found
                kept.append(i)
            advance(1)
    counts = _counts(source, names, labels, kept)
    return Report(printable(source), images, unreadable, dict(ignored), *counts, size)


def inspect(source: Path, name: str) -> Seen:
    """Return the properties of an image of a folder or zip archive, after decoding it whole.

    Raises:
        DataError: It cannot be read.
    """
    file = io.BytesIO(content_of(source, name)) if _is_zip(source) else source / name
    with opened(file, printable(name)) as found:
        image = upright(found)
        flattened(eight_bit(image, 255), 255).convert("RGB")
        return Seen(
            format=str(found.format),
            mode=found.mode,
            size=(image.height, image.width),
            frames=int(getattr(found, "n_frames", 1)),
            turned=found.getexif().get(_ORIENTATION, 1) != 1,
            transparent=transparent(found),
        )


def _is_zip(source: Path) -> bool:
    return source.suffix == ".zip" and source.is_file()


def _listed_images(source: Path) -> tuple[Sequence[str], Sequence[tuple[str, str]]]:
    """Names of the images, and of the other files with the reason that they are left out."""
    if _is_zip(source):
        return list_members(source)
    listing = list_images(source)
    listing.check_any(source)
    names = [path.relative_to(source).as_posix() for path in listing.files]
    return names, [(printable(path.relative_to(source)), reason) for path, reason in listing.ignored]


def _counts(
    source: Path, names: Sequence[str], labels: str | None, kept: Sequence[int]
) -> tuple[dict[str, int] | None, int, str | None]:
    """How many images each class has, how many have none, and what is wrong with the labels."""
    if labels is None or not kept:
        return None, 0, None
    try:
        found = labels_of(names, labels, source, table_in(source, labels) if _is_zip(source) else None)
        assert found is not None
        numbers, classes = found.counted(kept)
    except DataError as error:
        return None, 0, str(error)
    count = Counter(numbers.tolist())
    return {name: count[i] for i, name in enumerate(classes)}, count[NO_CLASS], None


def _counted(values: Iterator[str]) -> str:
    """The commonest first: ``64x64 (1200), 32x32 (4)``."""
    return _some([f"{value} ({count})" for value, count in Counter(values).most_common()], 6)


def _some(words: Sequence[str], most: int = _SHOWN) -> str:
    return ", ".join(words[:most]) + (f", and {len(words) - most} more" if len(words) > most else "")


def _listed(title: str, reasons: dict[str, str]) -> Iterator[str]:
    if reasons:
        yield title
    for name, reason in list(reasons.items())[:_SHOWN]:
        yield f"  {name}: {reason}"
    if len(reasons) > _SHOWN:
        yield f"  ... and {len(reasons) - _SHOWN} more; --out FILE.json lists all"
