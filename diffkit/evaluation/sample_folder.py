"""The folder that samples are written to, so that sampling can stop anywhere and be resumed.

OUT/sampling.json               the sampling options; only the same can be resumed
OUT/000000.png, ...             each sample, there as soon as its batch is made
OUT/.batches/000000.npy         pixels of a batch, until a file of many samples is made of them
OUT/samples_NxHxWxC.npz         all samples, and OUT_grid.png, next to OUT, the first; made at the end of .batches

A file appears under its name when it is whole and on the disk. So what is there is done, and nothing else has to be
remembered.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from diffkit.errors import DataError, Message, OptionError, Setting, joined
from diffkit.runtime.files import sync_folder, write_through
from diffkit.runtime.images import grid, png
from diffkit.runtime.strict_json import read_json
from diffkit.training.lock import RunLock

FACTS = "sampling.json"
BATCHES = ".batches"
_AGAIN = {"overwrite": True}
IN_GRID = 256
"""The grid shows so many samples at most: all of a large set would be a picture that no viewer opens."""
_DIGESTS = {
    "system": "another system, or the same with other weights",
    "classes": Message("other ", Setting("classes"), ", or in another order"),
    "low_res": Message("other pictures of ", Setting("low_res")),
    "conditions": "other conditions",
    "noise": "noise that another version of diffkit drew",
}
"""Meaning of a differing digest."""
_OURS = re.compile(r"(.+_)?\d{6,}\.png|samples_\d+(x\d+)*\.npz")


@frozen(eq=False)
class SampleFolder:
    """The files of one sampling.

    Attributes:
        out: The folder.
        formats: Some of "png", "grid", "npz".
        batches: Indices of the samples of each batch, in order.
        labels: Class of each sample, (N,) int64, or None.
        names: Name of each sample's class; empty without classes.
        shape: Of one sample, (C, *S).
        facts: Facts that must be the same to resume, plain data.
        updated: Returns the facts of a folder begun by an earlier version as this one writes them.
    """

    out: Path
    formats: tuple[str, ...]
    batches: Sequence[range]
    labels: NDArray[np.int64] | None
    names: tuple[str, ...]
    shape: tuple[int, ...]
    facts: Mapping[str, Any]
    updated: Callable[[dict[str, Any]], dict[str, Any]] = dict

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.batches[-1].stop

    # ---- beginning -------------------------------------------------------------------------------------------------

    def check(self, overwrite: bool) -> None:
        """Raise `OptionError` if the folder holds anything but a part of this sampling."""
        if overwrite or not self.out.is_dir():
            self._check_grid(overwrite)
            return
        if not (self.out / FACTS).exists():
            if any(path.name != BATCHES for path in self.out.iterdir()):
                raise OptionError("is not empty; name another folder", option="out", value=str(self.out), fix=_AGAIN)
            self._check_grid(overwrite=False)
            return
        old = _read(self.out / FACTS)
        found = _differences(self._comparable(old), self.facts)
        if found:
            alone = len(found) == 1 and old.get("n") != self.count
            last = Message(Setting("n", old.get("n")), " (the last batch would be another)")
            how = last if alone else "the same options to resume"
            out = Message(Setting("out", str(self.out)), " holds samples drawn with other options:")
            raise OptionError(
                Message(joined("\n  ", [out, *found]), "\npass ", how, ", or name another folder"), fix=_AGAIN
            )

    def _comparable(self, old: Mapping[str, Any]) -> dict[str, Any]:
        """The options of the samples already in the folder, with as many classes as now if those are the same."""
        old = self.updated({"noise": "generators", **old})  # folders begun before the noise had a name
        if self.labels is None or "classes" not in old or not isinstance(old.get("n"), int):
            return old
        same = old["n"] > self.count or old["classes"] == digest(self.labels[: old["n"]])
        return {**old, **({"classes": self.facts.get("classes")} if same and old["n"] != self.count else {})}

    def _check_grid(self, overwrite: bool) -> None:
        if "grid" in self.formats:
            check_overview(self.out, overwrite=overwrite)

    def begin(self, overwrite: bool) -> RunLock:
        """Make the folder, or clear it of other samples, and return the lock on it.

        Raises:
            OptionError: Another process writes to it, or it holds something else.
        """
        if (self.out / BATCHES).is_symlink():
            raise OptionError(f"{self.out / BATCHES} is a link, and nothing is written through one; remove it")
        (self.out / BATCHES).mkdir(parents=True, exist_ok=True)
        lock = RunLock(self.out / BATCHES, "sampling")
        self.check(overwrite)
        if overwrite or not (self.out / FACTS).exists():
            self._clear()
            self._put(self.out / FACTS, (json.dumps(self.facts, indent=2) + "\n").encode())
        return lock

    def _clear(self) -> None:
        """Remove the samples of another sampling, if there is one, and what is in the way; nothing else."""
        ours = [*self.out.iterdir()] if (self.out / FACTS).exists() else []
        found = [*(self.out / BATCHES).glob("[0-9]*"), *(path for path in ours if _OURS.fullmatch(path.name))]
        found += [self._grid] if "grid" in self.formats or self._drew_grid() else []
        for path in (*found, self._npz, *map(self._png, range(self.count))):
            path.unlink(missing_ok=True)
        (self.out / FACTS).unlink(missing_ok=True)  # last, or what is left would pass for samples of the next

    def _drew_grid(self) -> bool:
        """True if the sampling that is in the folder drew the overview, which is then no longer of these samples."""
        try:
            return "grid" in _read(self.out / FACTS).get("format", ())
        except DataError:
            return False

    def pending(self) -> list[int]:
        """Return the numbers of the batches that are not done."""
        return [number for number in range(len(self.batches)) if not self._done(number)]

    def _done(self, number: int) -> bool:
        if self._needed(number) and not self._batch(number).exists():
            return False
        return "png" not in self.formats or all(self._png(i).exists() for i in self.batches[number])

    def _needed(self, number: int) -> bool:
        """True if a file that is still to be made needs the pixels of a batch."""
        in_grid = self.batches[number].start < IN_GRID
        return self._lacks_npz() or (self._lacks_grid() and in_grid)

    def _lacks_npz(self) -> bool:
        return "npz" in self.formats and not self._npz.exists()

    def _lacks_grid(self) -> bool:
        return "grid" in self.formats and not self._grid.exists()

    # ---- going on --------------------------------------------------------------------------------------------------

    def keep(self, number: int, images: NDArray[Any]) -> None:
        """Write the samples of one batch, (n, C, *S)."""
        if "png" in self.formats:
            for i, image in zip(self.batches[number], images, strict=True):
                self._put(self._png(i), png(image))
        if self._needed(number):
            buffer = io.BytesIO()
            np.save(buffer, images, allow_pickle=False)
            self._put(self._batch(number), buffer.getvalue())
        sync_folder(self.out)

    def finish(self) -> list[str]:
        """Make the files of many samples, remove the batches, and return a line for each file."""
        lines = [f"{self.out}/: {self.count} PNG files"] if "png" in self.formats else []
        if "grid" in self.formats:
            if self._lacks_grid():
                self._write_grid()
            lines.append(f"{self._grid}: {self._grid_words()}")
        if "npz" in self.formats:
            if self._lacks_npz():
                self._write_npz()
            lines.append(self._npz_words())
        sync_folder(self.out)
        shutil.rmtree(self.out / BATCHES, ignore_errors=True)
        return lines

    def _write_grid(self) -> None:
        first = [number for number, rows in enumerate(self.batches) if rows.start < IN_GRID]
        shown = [image for number in first for image in self._read(number)][:IN_GRID]
        order, columns = self._arranged(len(shown))
        content = png(grid([shown[i] for i in order], columns))
        self._put(self._grid, content, by=self._grid.with_name(f".{self._grid.name}.tmp"))

    def _arranged(self, count: int) -> tuple[list[int], int]:
        """Order of the samples in the grid, and how many to a row: a row for each class, else as square as may be."""
        if self._is_of_one_class(count):
            return list(range(count)), math.ceil(math.sqrt(count))
        assert self.labels is not None, "there are several"
        labels = self.labels[:count].tolist()
        return sorted(range(count), key=lambda i: (labels[i], i)), max(labels.count(label) for label in labels)

    def _is_of_one_class(self, count: int) -> bool:
        """True if the first samples are of one class, or there are no classes."""
        return self.labels is None or len(set(self.labels[:count].tolist())) == 1

    def _grid_words(self) -> str:
        words = "all in one" if self._is_of_one_class(min(self.count, IN_GRID)) else "a row for each class"
        return words if self.count <= IN_GRID else f"the first {IN_GRID}, {words}"

    def _write_npz(self) -> None:
        temporary = self.out / BATCHES / f"{self._npz.name}.tmp"
        temporary.unlink(missing_ok=True)  # it may be a link
        images = (self._read(number) for number in range(len(self.batches)))
        write_npz(temporary, (self.count, *self.shape[1:], self.shape[0]), images, self.labels)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(self._npz)

    def _npz_words(self) -> str:
        shape, dtype = _header(self._npz)
        return f"{self._npz}: arr_0 {dtype} {shape}" + ("" if self.labels is None else ", arr_1 labels")

    # ---- small things ----------------------------------------------------------------------------------------------

    @property
    def _grid(self) -> Path:
        return overview(self.out)

    @property
    def _npz(self) -> Path:
        sizes = (self.count, *self.shape[1:], self.shape[0])
        return self.out / f"samples_{'x'.join(map(str, sizes))}.npz"

    def _png(self, i: int) -> Path:
        return self.out / file_name(i, self.names[i] if self.names else None)

    def _batch(self, number: int) -> Path:
        return self.out / BATCHES / f"{number:06d}.npy"

    def _read(self, number: int) -> NDArray[Any]:
        path = self._batch(number)
        try:
            images: NDArray[Any] = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} is damaged: {error}; remove it and sample again") from error
        return images

    def _put(self, path: Path, content: bytes, by: Path | None = None) -> None:
        """Write a file so that it has its name only when it is whole and on the disk; until then it is at ``by``."""
        temporary = self.out / BATCHES / f"{path.name}.tmp" if by is None else by
        write_through(temporary, content)
        temporary.replace(path)


def overview(out: Path) -> Path:
    """Path of the grid of a sample folder: next to it, so that it is not taken for a sample."""
    whole = out if out.name not in ("", "..") else out.resolve()
    if not whole.name:
        raise OptionError(
            "has no folder around it, where the overview goes; name another folder", option="out", value=str(out)
        )
    return whole.with_name(f"{whole.name}_grid.png")


def check_overview(out: Path, *, overwrite: bool) -> None:
    """Raise `OptionError` unless the overview of a folder can be written, and replaces none, or may."""
    path = overview(out)
    nearest = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not os.access(nearest, os.W_OK):
        raise OptionError(
            Message(f"the overview {path}, next to ", Setting("out"), ", cannot be written; name another folder")
        )
    if path.exists() and not overwrite:
        raise OptionError(
            Message(f"{path} exists already, next to ", Setting("out"), "; name another folder"), fix=_AGAIN
        )


def digest(labels: NDArray[np.int64]) -> str:
    """Return 16 digits that stand for the classes of samples."""
    return hashlib.sha256(labels.tobytes()).hexdigest()[:16]


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of ``arr_0``, without reading it."""
    from zipfile import ZipFile

    with ZipFile(path) as archive, archive.open("arr_0.npy") as file:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    return shape, dtype


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path, DataError)
    except DataError as error:
        raise DataError(str(error), fix=_AGAIN) from error


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Each difference as "steps=50, now 100"."""
    now = json.loads(json.dumps(new))
    names = [name for name in dict.fromkeys([*now, *old]) if old.get(name) != now.get(name)]
    return [_difference(name, old.get(name), now.get(name)) for name in names]


def _difference(name: str, was: Any, now: Any) -> str:
    if name in _DIGESTS and was is not None and now is not None:
        return _DIGESTS[name]
    return Message(Setting(name, was), f", now {_word(now)}")


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_word, value))
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)


def channels_last(images: NDArray[Any]) -> NDArray[Any]:
    """Move the channels of (N, C, *S) to the end."""
    return np.moveaxis(images, 1, -1)


def write_npz(
    path: Path, shape: tuple[int, ...], batches: Iterable[NDArray[Any]], labels: NDArray[np.int64] | None
) -> None:
    """Write ``arr_0``, images (N, *S, C), and with labels ``arr_1``, (N,) int64, just as `numpy.savez` would.

    Only one batch is in memory at a time.

    Args:
        path: The file.
        shape: (N, *S, C).
        batches: The images in order, some at a time, each (n, C, *S), at least one.
        labels: Of all images.
    """
    with ZipFile(path, "w") as archive:
        with archive.open(ZipInfo("arr_0.npy"), "w", force_zip64=True) as file:
            for i, images in enumerate(batches):
                if not i:
                    _write_header(file, images.dtype, shape)
                file.write(np.ascontiguousarray(channels_last(images)).tobytes())
        if labels is not None:
            with archive.open(ZipInfo("arr_1.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array(file, labels, allow_pickle=False)


def _write_header(file: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def file_name(index: int, label: str | None) -> str:
    """Name of one PNG; a class comes first, so that the folder can be trained on with labels "prefix"."""
    safe = "" if label is None else re.sub(r"[^A-Za-z0-9.-]+", "-", label) + "_"
    return f"{safe}{index:06d}.png"
