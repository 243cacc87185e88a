"""Export data to a folder of PNGs or one .npz: from any source, in constant memory, complete or not at all."""

from __future__ import annotations

import shutil
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffkit.data.base import Data
from diffkit.data.image_data import PictureData
from diffkit.data.parallel import map_in_order
from diffkit.errors import DataError, OptionError
from diffkit.runtime.files import replacing
from diffkit.runtime.images import need_pillow
from diffkit.runtime.progress import progress as show_progress
from diffkit.runtime.publishing import new_folder
from diffkit.runtime.temporaries import is_temporary, replacement

_FEWEST_DIGITS = 5
"""As improved-diffusion's script names the files of CIFAR-10."""
Example = tuple[int, NDArray[Any], int | None]


class Exporter:
    """Exports data to a folder of PNGs or a .npz file; reads every example once, and records those it cannot read.

    Args:
        data: The data.
        on_error: "stop" at the first example that cannot be read, or "skip" such examples.
        processes: Number of processes that decode; 0 decodes in this process. They are used for encoded images only.
        progress: Show a progress bar.
    Attributes:
        skipped: For each skipped example, why it could not be read.
    """

    def __init__(self, data: Data, *, on_error: str = "stop", processes: int = 0, progress: bool = False):
        self.data, self.on_error, self.processes, self.progress = data, on_error, processes, progress
        self.skipped: list[str] = []

    def to_folder(self, out: Path, *, prefix: str | None = None) -> list[str]:
        """Export to a folder of PNGs named by class and the example's number, such as ``cat_00003.png``.

        Returns:
            The classes in the order of their numbers when the folder is read with labels "prefix".
        Raises:
            OptionError: The folder exists already and is not empty.
            DataError: The data has no pixels, two classes would have one name, or an example cannot be read.
        """
        need_pillow("writing PNG files")
        from PIL import Image

        if out.exists() and (not out.is_dir() or not all(map(is_temporary, out.iterdir()))):
            raise OptionError(f"{str(out)!r} exists already; name a folder that is new or empty")
        _check_drawable(self.data)
        if without := self.data.describe().get("without_class"):
            raise DataError(f"{without} examples have no class, which names of PNGs cannot express; write a .npz")
        names = file_prefixes(self.data.classes)
        digits = max(_FEWEST_DIGITS, len(str(len(self.data) - 1)))
        with new_folder(out) as work:
            for i, image, label in self._examples():
                before = names[label] if names and label is not None else prefix
                name = f"{i:0{digits}d}.png" if before is None else f"{before}_{i:0{digits}d}.png"
                Image.fromarray(to_pillow_array(image, self.data.bins)).save(work / name)
        return sorted(names)

    def to_npz(self, out: Path) -> None:
        """Export to a .npz file: ``arr_0``, the images (N, *S, C), and ``arr_1``, labels, with ``classes``, if any.

        ``bins`` is the number of values that images take. improved-diffusion writes and reads the first two arrays.

        Raises:
            DataError: An example cannot be read.
        """
        data = self.data
        labels: list[int] = []
        dtype = _export_dtype(data)
        with replacing(out) as temporary, replacement(out.with_name(f"{out.name}.pixels")) as pixels:
            count = 0
            with pixels.open("wb") as file:
                for _, image, label in self._examples():
                    file.write(np.moveaxis(image, 0, -1).astype(dtype).tobytes())
                    labels += [] if label is None else [label]
                    count += 1
            if not count:
                raise DataError(f"none of {len(data)} examples can be read; the first: {self.skipped[0]}")
            shape = (count, *data.shape[1:], data.shape[0])
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
                _add_pixel_file(archive, "arr_0", pixels, shape, dtype)
                if labels:
                    _add_array(archive, "arr_1", np.array(labels, np.int64))
                if labels and data.classes is not None:
                    _add_array(archive, "classes", np.array(data.classes))
                if data.bins is not None:
                    _add_array(archive, "bins", np.array(data.bins))

    def _examples(self) -> Iterator[Example]:
        """Yield number, image (C, *S) and class of each example that can be read."""
        with show_progress(len(self.data), "writing images", self.progress) as advance:
            for i, found in enumerate(self._read()):
                advance(1)
                if not isinstance(found, DataError):
                    yield i, *found
                elif self.on_error == "skip":
                    self.skipped.append(str(found))
                else:
                    raise DataError(f"{found}; remove it, or skip such examples", fix={"on_error": "skip"}) from found

    def _read(self) -> Iterator[tuple[NDArray[Any], int | None] | DataError]:
        data = self.data
        if not isinstance(data, PictureData):
            yield from map_in_order(self._read_one, range(len(data)))
            return
        for i, found in enumerate(map_in_order(data.pictures.read, data.rows.tolist(), self.processes)):
            label = None if data.labels is None else int(data.labels[i])
            yield found if isinstance(found, DataError) else (found, label)

    def _read_one(self, index: int) -> tuple[NDArray[Any], int | None]:
        image, conditions = self.data[index]
        return torch.as_tensor(image).numpy(), int(conditions["y"]) if "y" in conditions else None


def to_pillow_array(image: NDArray[Any], bins: int | None) -> NDArray[Any]:
    """Return an image (C, H, W) as an array that Pillow accepts, (H, W) or (H, W, C), scaled to 8 or 16 bits."""
    assert bins is not None
    top = 255 if bins <= 256 else 65535
    values = np.rint((image.astype(np.float64) + 1) * (top / 2)) if image.dtype.kind == "f" else image
    if image.dtype.kind != "f" and bins - 1 != top:
        values = np.rint(image * (top / (bins - 1)))
    pixels = np.moveaxis(values.astype(np.uint8 if top == 255 else np.uint16), 0, -1)
    return np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def file_prefixes(classes: Sequence[str] | None) -> list[str]:
    """Return the file name prefix of each class: its name, with "-" for characters that file names or prefixes exclude.

    Numbers are padded to the digits of the largest, so that they sort in numerical order.

    Raises:
        DataError: Two classes would have the same prefix.
    """
    if classes is None:
        return []
    width = max(len(name) for name in classes) if all(name.isdecimal() for name in classes) else 0
    names = ["".join(c if _is_plain(c) else "-" for c in name).zfill(width) or "-" for name in classes]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise DataError(f"classes {classes[names.index(name)]!r} and {classes[i]!r} would both be written {name!r}")
    return names


def _is_plain(character: str) -> bool:
    return character in ".-+ " or unicodedata.category(character)[0] in "LNM"


def _check_drawable(data: Data) -> None:
    if data.bins is None:
        raise DataError("continuous data has no pixels; write a .npz")
    if len(data.shape) != 3 or data.shape[0] not in (1, 3, 4):
        raise DataError(f"examples of shape {tuple(data.shape)} are not images of 1, 3 or 4 channels; write a .npz")
    if data.bins > 256 and data.shape[0] != 1:
        raise DataError(f"a PNG keeps {data.bins} values in grey only; write a .npz")


def _export_dtype(data: Data) -> np.dtype[Any]:
    """Return the dtype of exported examples: the smallest integers for their values, or float32."""
    if isinstance(data, PictureData):
        return data.pictures.form.dtype
    if torch.as_tensor(data[0][0]).is_floating_point():
        return np.dtype(np.float32)
    bins = data.bins or 2**31
    return np.dtype(np.uint8 if bins <= 256 else np.uint16 if bins <= 65536 else np.int64)


def _add_array(archive: zipfile.ZipFile, name: str, array: NDArray[Any]) -> None:
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as file:  # without a date: the same bytes at any time
        np.lib.format.write_array(file, array, allow_pickle=False)


def _add_pixel_file(
    archive: zipfile.ZipFile, name: str, content: Path, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> None:
    """Add a file of raw pixels to an archive as an array, without reading all of it into memory."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file, content.open("rb") as pixels:
        np.lib.format.write_array_header_1_0(file, header)
        shutil.copyfileobj(pixels, file)
