"""WebDataset's shards: tar archives of images with what belongs to each beside it by the same stem; not unpacked.

`a/000001.jpg`, `a/000001.cls` and `a/000001.json` are one example, whose stem `a/000001` ends at the first dot of the
file's name. Images are read by their offset, in any order.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from attrs import field, frozen
from numpy.typing import NDArray

from diffkit.data.folder import SUFFIXES, no_image_error
from diffkit.data.images import Form, decode_image
from diffkit.data.labels import Labels, read_labels
from diffkit.data.left_out import path_reason
from diffkit.data.names import printable
from diffkit.data.shard_names import list_shards
from diffkit.data.tar_index import Member, index_shards, read_member
from diffkit.errors import DataError, OptionError
from diffkit.runtime.images import need_pillow
from diffkit.runtime.strict_json import parse_json, shown

if TYPE_CHECKING:
    from diffkit.data.image_data import PictureData


ALONE = "no image of the same stem"
"""Why a file belongs to no example."""


@frozen(eq=False)
class ShardPictures:
    """The images in tar archives, as `diffkit.data.images.Pictures`.

    Attributes:
        shards: The archives.
        names: The name of each image, with that of its archive.
        places: Number of its archive, offset and size in bytes, (N, 3) int64.
        form: Form that each image is converted to.
    """

    shards: tuple[Path, ...]
    names: tuple[str, ...] = field(repr=False)
    places: NDArray[np.int64] = field(repr=False)
    form: Form

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.names)

    def name(self, index: int) -> str:
        """Return the name of an archive and of the image in it."""
        return self.names[index]

    def read(self, index: int) -> NDArray[Any]:
        """Return the pixels of an image, (C, H, W)."""
        shard, offset, size = (int(each) for each in self.places[index])
        name = printable(self.names[index])
        return decode_image(io.BytesIO(read_member(self.shards[shard], offset, size, name)), name, self.form)

    def stamps(self) -> list[Any]:
        """Return name, place and size of each image, and the modification time of its archive."""
        times = [shard.stat().st_mtime_ns for shard in self.shards]
        return [[name, *place, times[place[0]]] for name, place in zip(self.names, self.places.tolist(), strict=True)]


@frozen
class _Example:
    """The files of one stem in one archive.

    Attributes:
        shard: The number of the archive.
        files: The files by ending, such as "jpg".
        image: The ending of its image.
    """

    shard: int
    files: Mapping[str, Member]
    image: str


@frozen(eq=False)
class ShardListing:
    """Where the examples in tar archives are.

    Attributes:
        path: The path that names the archives.
        shards: The archives.
        names: The name of each example's image, with that of its archive.
        examples: The files of each example.
        ignored: The files that are left out, with the reason.
        alone: The files without an image of the same stem.
        identity: A digest of the names and sizes of archives and of all files in them.
    """

    path: Path
    shards: tuple[Path, ...]
    names: tuple[str, ...]
    examples: Sequence[_Example]
    ignored: Sequence[tuple[str, str]]
    alone: Sequence[str]
    identity: str

    @property
    def places(self) -> list[tuple[int, int, int]]:
        """Return the number of the archive, the offset and the size in bytes of each image."""
        images = [each.files[each.image] for each in self.examples]
        return [(each.shard, m.offset, m.size) for each, m in zip(self.examples, images, strict=True)]

    def read_labels(self, labels: str | None, label: str = "label") -> Labels | None:
        """Return the labels; the arguments are those of `open_shards`."""
        if labels in (None, "folders", "prefix"):
            return read_labels([each.files[each.image].name for each in self.examples], labels, self.shards[0])
        rows = [
            (name, _parse_label(self._content(each, labels), labels, label, printable(name)))
            for name, each in zip(self.names, self.examples, strict=True)
            if labels in each.files
        ]
        return read_labels(self.names, labels, self.path, json.dumps({"labels": rows}).encode())

    def _content(self, example: _Example, ending: str) -> bytes:
        member = example.files[ending]
        return read_member(self.shards[example.shard], member.offset, member.size, printable(member.name))


def open_shards(
    path: Path,
    *,
    form: Form,
    labels: str | None = None,
    label: str = "label",
    image: str | None = None,
    index: Path | None = None,
    **options: Any,
) -> PictureData:
    """Return the images in tar archives as data, after reading every one once, unless ``check`` is False.

    Args:
        path: A .tar file, a folder of them, or a pattern as in `diffkit.data.shard_names.list_shards`.
        form: Size, channels and bits of every example.
        labels: "cls" or "json" for the class in the file of that ending; "folders" or "prefix" as for a folder; None.
        label: The entry of a .json file that is the class.
        image: Ending of the images, such as "jpg" or "input.png"; by default the only image of each stem.
        index: A .json file that stores where each file is; None reads the archives' headers each time.
        options: ``on_error``, ``max_skipped``, ``cache``, ``processes``, ``check`` and ``progress`` of
            `PictureData.from_pictures`.
    Raises:
        DataError: An archive is damaged, a file belongs to no image, an image cannot be read, or a label is missing.
    """
    need_pillow("reading image files")
    from diffkit.data.image_data import PictureData

    found = list_examples(path, image=image, index=index, progress=options.get("progress", False))
    if found.alone and options.get("on_error") != "skip":
        wanted = "no image" if image is None else f"no .{image}"
        raise DataError(
            f"{len(found.alone)} files have {wanted} of the same stem, the first: {found.alone[0]}; pack them again, "
            "or leave them out",
            fix={"on_error": "skip"},
        )
    ignored = [*found.ignored, *((name, ALONE) for name in found.alone)]
    if not found.examples:
        raise no_image_error(path, len(ignored))
    return PictureData.from_pictures(
        ShardPictures(found.shards, found.names, np.array(found.places, np.int64), form),
        source=str(path),
        labels=found.read_labels(labels, label),
        ignored=ignored,
        identity=found.identity,
        **options,
    )


def list_examples(
    path: Path, *, image: str | None = None, index: Path | None = None, progress: bool = False
) -> ShardListing:
    """Return where the examples in tar archives are; the arguments are those of `open_shards`.

    Raises:
        DataError: An archive is missing or damaged.
        OptionError: A stem has several images, and ``image`` is None.
    """
    shards = list_shards(path)
    names = _shard_names(shards)
    found = index_shards(shards, index, progress)
    examples, ignored, alone = _find_examples(found, names, image)
    return ShardListing(
        path,
        shards,
        tuple(_text(names[each.shard], each.files[each.image]) for each in examples),
        examples,
        ignored,
        alone,
        _identity(shards, names, found),
    )


def _shard_names(shards: Sequence[Path]) -> list[str]:
    """Return the path of each archive below the folder that holds all of them."""
    root = os.path.commonpath([shard.absolute().parent for shard in shards])
    return [shard.absolute().relative_to(root).as_posix() for shard in shards]


def _find_examples(
    found: Sequence[Sequence[Member]], names: Sequence[str], image: str | None
) -> tuple[list[_Example], list[tuple[str, str]], list[str]]:
    """Return the examples in archives, the files that are left out with the reason, and those without an image."""
    examples: list[_Example] = []
    ignored: list[tuple[str, str]] = []
    alone: list[str] = []
    for shard, members in enumerate(found):
        stems: dict[str, dict[str, Member]] = {}
        for member in members:
            folder, _, file = member.name.rpartition("/")
            if reason := path_reason(folder.split("/"), file):
                ignored.append((printable(_text(names[shard], member)), reason))
                continue
            start, _, ending = file.partition(".")
            stems.setdefault(f"{folder}/{start}", {})[ending.lower()] = member
        for files in stems.values():
            if (found_image := _image_ending(files, image, names[shard])) is not None:
                examples.append(_Example(shard, files, found_image))
            else:
                alone += [printable(_text(names[shard], member)) for member in files.values()]
    return examples, ignored, alone


def _image_ending(files: Mapping[str, Member], image: str | None, shard: str) -> str | None:
    """Return the ending of the image among the files of one stem; None if there is none."""
    if image is not None:
        return image.lower() if image.lower() in files else None
    found = [ending for ending in files if f".{ending.rpartition('.')[2]}" in SUFFIXES]
    if len(found) > 1:
        raise OptionError(
            f"{printable(_text(shard, files[found[0]]))} is one of {len(found)} images of one stem, which ends at the "
            f"first dot: {', '.join(found)}",
            fix={"image": found[0]},
        )
    return found[0] if found else None


def _parse_label(content: bytes, ending: str, label: str, name: str) -> str | int | None:
    """Return the class in a .cls or .json file; None for an empty one or null."""
    try:
        if ending == "cls":
            return content.decode().strip() or None
        found = parse_json(content)
        value = found.get(label, found) if isinstance(found, dict) else found
    except ValueError as error:
        raise DataError(f"{name}: its .{ending} cannot be read: {error}") from error
    if value is found:
        raise DataError(f"{name}: its .json has no entry {label!r}; name the class's entry with label")
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise DataError(f"{name}: its class is {shown(value)}, neither a name nor a number")
    return value if value != "" else None


def _identity(shards: Sequence[Path], names: Sequence[str], found: Sequence[Sequence[Member]]) -> str:
    """Return a digest of the names and sizes of archives and of all files in them."""
    digest = hashlib.sha256()
    for each in _facts(shards, names, found):
        digest.update(repr(each).encode(errors="surrogateescape"))
    return digest.hexdigest()


def _facts(shards: Sequence[Path], names: Sequence[str], found: Sequence[Sequence[Member]]) -> Iterator[Any]:
    for shard, name, members in zip(shards, names, found, strict=True):
        yield name, shard.stat().st_size
        yield [(member.name, member.size) for member in members]


def _text(shard: str, member: Member) -> str:
    return f"{shard}: {member.name}"
