"""Decode an image file to an array of integers: frame, orientation, bits, transparency, colours, size.

The order is: first frame, orientation, 16 bits to 8 by scaling, transparency onto a background, colour mode, resize,
crop. improved-diffusion converts colours after resizing, which damages palette images, and clips 16-bit images.
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
from diffkit.data.parallel import map_in_order
from diffkit.errors import DataError
from diffkit.runtime.images import FORMATS, need_pillow, open_image
from diffkit.runtime.progress import progress as show_progress

if TYPE_CHECKING:
    from PIL.Image import Image

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
ORIENTATION, _TURNED = 0x0112, frozenset((5, 6, 7, 8))
"""EXIF's tag of the orientation, and its values for which height and width are swapped."""
WIDE_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I")
"""Pillow's modes of integers that are wider than 8 bits."""


@frozen
class Form:
    """The form that images are converted to: size, channels and bits.

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
        """Shape of an image, (C, H, W)."""
        return (self.channels, *self.size)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of pixels: uint8 or uint16."""
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)


def read_image(path: Path, form: Form) -> NDArray[Any]:
    """Return the pixels of an image file, (C, H, W) uint8 or uint16; of an animation, the first frame.

    Args:
        path: The file.
        form: Form to convert it to.
    Raises:
        DataError: The file is not an image, damaged or of a kind that cannot be read; the text names the file.
    """
    return decode_image(path, printable(path), form)


def decode_image(file: Path | BinaryIO, name: str, form: Form) -> NDArray[Any]:
    """Return the pixels of an encoded image, (C, H, W) uint8 or uint16.

    Args:
        file: A path, or an open file such as ``io.BytesIO``.
        name: Its name in errors.
        form: Form to convert it to.
    Raises:
        DataError: The file is not an image, damaged or of a kind that cannot be read.
    """
    with open_image_file(file, name) as found:
        image = rotate_upright(found)
        pixels = _to_16_bit(image, form) if form.bits == 16 else _to_8_bit(image, form)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


@contextmanager
def open_image_file(file: Path | BinaryIO, name: str) -> Iterator[Image]:
    """Open an image file and yield it; any error within the block becomes a `DataError` with the file's name."""
    need_pillow("reading image files")
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an image is used if all of it can be decoded, and raises otherwise
            with open_image(file) as found:
                yield found
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: too large to be read safely: {error}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: no image of a kind that is read ({', '.join(FORMATS)})") from error
    except Exception as error:  # Pillow's decoders may raise any error at a damaged file
        raise DataError(f"{name}: {type(error).__name__}: {error}") from error


def rotate_upright(image: Image) -> Image:
    """Return an image rotated by its EXIF orientation."""
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def upright_size(image: Image) -> tuple[int, int]:
    """Return height and width of an image after rotation by its EXIF orientation; pixels are not decoded."""
    width, height = image.size
    return (width, height) if image.getexif().get(ORIENTATION, 1) in _TURNED else (height, width)


def _to_8_bit(image: Image, form: Form) -> NDArray[Any]:
    image = grey_to_8_bit(image, form.background)
    if form.channels == 4:
        image = image.convert("RGBA")
    else:
        image = remove_transparency(image, form.background).convert(_MODES[form.channels])
    return np.asarray(resize_and_crop(image, form.size))


def _to_16_bit(image: Image, form: Form) -> NDArray[Any]:
    """Return an image as 16-bit grey, resized in floating point, as Pillow has no filters for 16 bits."""
    from PIL import Image

    if image.mode in WIDE_MODES:
        values = _grey_integers(image, form.background).astype(np.float32)
    elif image.mode == "F":
        values = _grey_fractions(image) * np.float32(65535)
    else:
        values = np.asarray(remove_transparency(image, form.background).convert("L"), np.float32) * 257
    resized = np.asarray(resize_and_crop(Image.fromarray(values), form.size))
    pixels: NDArray[np.uint16] = np.rint(resized).clip(0, 65535).astype(np.uint16)
    return pixels


def resize_and_crop(image: Image, size: tuple[int, int]) -> Image:
    """Return the centre of an image, after resizing it so that it just covers (H, W).

    It is halved with a box filter while it is at least twice as large, and then resized bicubically. For squares this
    is equal to guided-diffusion's function.
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


def grey_to_8_bit(image: Image, background: int) -> Image:
    """Return a 16-bit or floating-point grey image as 8-bit grey, scaled where Pillow would clip; others unchanged.

    In a 16-bit image that marks a grey value as transparent, this value becomes the background.
    """
    from PIL import Image

    if image.mode in WIDE_MODES:
        return Image.fromarray(((_grey_integers(image, background) + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        return Image.fromarray(np.rint(_grey_fractions(image) * 255).astype(np.uint8))
    return image


def _grey_integers(image: Image, background: int) -> NDArray[np.int64]:
    values = np.asarray(image).astype(np.int64)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        values[values == clear] = background * 257
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"integer pixels from {values.min()} to {values.max()}, neither 8 nor 16 bits")
    return values


def _grey_fractions(image: Image) -> NDArray[np.float32]:
    values = np.asarray(image, np.float32)
    if not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"floating-point pixels from {values.min():g} to {values.max():g}, not in [0, 1]")
    return values


def remove_transparency(image: Image, background: int) -> Image:
    """Return an image with its transparent pixels blended onto a grey background."""
    from PIL import Image

    if not has_transparency(image):
        return image
    over = image.convert("RGBA")
    under = Image.new("RGBA", over.size, (background, background, background, 255))
    return Image.alpha_composite(under, over).convert("RGB")


def has_transparency(image: Image) -> bool:
    """Return whether an image has transparency: a channel for it, or a colour that marks it."""
    return "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info


class Pictures(Protocol):
    """Protocol of a sequence of encoded images in any storage: files, an archive, a database, a dataset."""

    @property
    @abstractmethod
    def form(self) -> Form:
        """The form that each image is converted to."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of images."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the name of image ``index``, the same in every run."""

    @abstractmethod
    def read(self, index: int) -> NDArray[Any]:
        """Return the pixels of image ``index``, (C, H, W) uint8 or uint16; raise `DataError` if it cannot be read."""

    @abstractmethod
    def stamps(self) -> list[Any]:
        """Return plain values that change whenever an image does."""


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
        for i, found in enumerate(map_in_order(pictures.read, range(len(pictures)), processes)):
            if isinstance(found, DataError):
                bad[i] = str(found)
            elif into is not None:
                into[i] = found
            advance(1)
    return bad
