"""One image file to one array of integers: decisions that Pillow and the published pipelines leave open.

The order is: first frame, orientation, 16 bits to 8 by scaling, transparency onto a background, colour mode, resize,
crop. improved-diffusion converts after resizing, which mangles palettes, and clips 16-bit images to white.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from diffkit.data.names import printable
from diffkit.data.parallel import in_order
from diffkit.errors import DataError
from diffkit.runtime.images import FORMATS, need_pillow, open_image
from diffkit.runtime.progress import progress as show_progress

if TYPE_CHECKING:
    from PIL.Image import Image

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N", "I")
"""Pillow's modes of integers that are wider than 8 bits."""


@frozen
class Form:
    """The form that images are converted to.

    Attributes:
        size: (H, W) to resize and crop to.
        channels: 1 grey, 3 RGB, 4 RGBA.
        bits: 8, or 16 for one channel.
        background: Grey value, 0..255, under transparent pixels; not used with 4 channels.
    """

    size: tuple[int, int]
    channels: int = 3
    bits: int = 8
    background: int = 255

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, *self.size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its pixels: uint8 or uint16."""
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)


def read_image(path: Path, form: Form) -> NDArray[Any]:
    """Return an image file as (C, H, W), uint8 or uint16; of an animation, the first frame.

    Args:
        path: The file.
        form: Form to convert it to.
    Raises:
        DataError: The file is not an image, damaged or of a kind that cannot be read; the text names the file.
    """
    return decoded(path, printable(path), form)


def decoded(file: Path | BinaryIO, name: str, form: Form) -> NDArray[Any]:
    """Return an encoded image as (C, H, W), uint8 or uint16.

    Args:
        file: A path, or an open file such as ``io.BytesIO``.
        name: Its name in errors.
        form: Form to convert it to.
    Raises:
        DataError: It is not an image, damaged or of a kind that cannot be read.
    """
    with opened(file, name) as found:
        image = upright(found)
        pixels = _sixteen(image, form) if form.bits == 16 else _eight(image, form)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


@contextmanager
def opened(file: Path | BinaryIO, name: str) -> Iterator[Image]:
    """Yield an image; any error of it within the block becomes a `DataError` with its name."""
    need_pillow("reading image files")
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a fully decoded image is used; others raise
            with open_image(file) as found:
                yield found
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: too large to be read safely: {error}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: no image of a kind that is read ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's decoders may raise any error at a damaged file
        raise DataError(f"{name}: {type(error).__name__}: {error}") from error


def upright(image: Image) -> Image:
    """Return an image turned by its EXIF orientation."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _eight(image: Image, form: Form) -> NDArray[Any]:
    image = eight_bit(image, form.background)
    if form.channels == 4:
        image = image.convert("RGBA")
    else:
        image = flattened(image, form.background).convert(_MODES[form.channels])
    return np.asarray(resized_and_cropped(image, form.size))


def _sixteen(image: Image, form: Form) -> NDArray[Any]:
    """Grey of 16 bits, resized in floating point, for which Pillow has every filter."""
    from PIL import Image

    if image.mode in SIXTEEN:
        values = _integers(image, form.background).astype(np.float32)
    elif image.mode == "F":
        values = _fractions(image) * np.float32(65535)
    else:
        values = np.asarray(flattened(image, form.background).convert("L"), np.float32) * 257
    resized = np.asarray(resized_and_cropped(Image.fromarray(values), form.size))
    pixels: NDArray[np.uint16] = np.rint(resized).clip(0, 65535).astype(np.uint16)
    return pixels


def resized_and_cropped(image: Image, size: tuple[int, int]) -> Image:
    """Return the centre of an image, scaled so that it just covers (H, W).

    Halved with a box filter while it is at least twice as large, then bicubic, as in guided-diffusion, whose
    function is for squares, where this is equal.
    """
    from PIL import Image

    height, width = size
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    target = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(target, Image.Resampling.BICUBIC)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def eight_bit(image: Image, background: int) -> Image:
    """Return 16-bit and floating-point grey as 8-bit grey by scaling, where Pillow would clip; others as they are.

    16-bit grey has its transparent value, if it has one, put onto the background here.
    """
    from PIL import Image

    if image.mode in SIXTEEN:
        return Image.fromarray(((_integers(image, background) + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray(np.rint(_fractions(image) * 255).astype(np.uint8))
    return image


def _integers(image: Image, background: int) -> NDArray[np.int64]:
    values = np.asarray(image).astype(np.int64)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        values[values == clear] = background * 257
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"integer pixels from {values.min()} to {values.max()}, neither 8 nor 16 bits")
    return values


def _fractions(image: Image) -> NDArray[np.float32]:
    values = np.asarray(image, np.float32)
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"floating-point pixels from {values.min():g} to {values.max():g}, not in [0, 1]")
    return values


def flattened(image: Image, background: int) -> Image:
    """Return an image without transparency, what is transparent put onto a grey value."""
    from PIL import Image

    if not transparent(image):
        return image
    over = image.convert("RGBA")
    under = Image.new("RGBA", over.size, (background, background, background, 255))
    return Image.alpha_composite(under, over).convert("RGB")


def transparent(image: Image) -> bool:
    """Whether an image has transparency of any kind: a channel, or a colour that stands for it."""
    return "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info


class Pictures(Protocol):
    """Encoded images in some order, of any storage."""

    @property
    @abstractmethod
    def form(self) -> Form:
        """The form that each is converted to."""

    @abstractmethod
    def __len__(self) -> int:
        """Return how many there are."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the name of picture ``index``, the same in every run."""

    @abstractmethod
    def read(self, index: int) -> NDArray[Any]:
        """Return picture ``index``, (C, H, W), uint8 or uint16; raise `DataError` if it cannot be read."""

    @abstractmethod
    def stamps(self) -> list[Any]:
        """Return plain values that change whenever a picture does."""


def decode_all(
    pictures: Pictures, into: NDArray[Any] | None, *, processes: int, doing: str, progress: bool
) -> dict[int, str]:
    """Decode every picture into an array, if there is one; return why the unreadable are so.

    Args:
        pictures: The images.
        into: Their pixels, (len(pictures), C, H, W), or None.
        processes: Processes that decode; 0 decodes in this one.
        doing: A few words for the work.
        progress: Show a progress bar.
    """
    bad: dict[int, str] = {}
    with show_progress(len(pictures), doing, progress) as advance:
        for i, found in enumerate(in_order(pictures.read, range(len(pictures)), processes)):
            if isinstance(found, DataError):
                bad[i] = str(found)
            elif into is not None:
                into[i] = found
            advance(1)
    return bad
