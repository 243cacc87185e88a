"""One image file to one uint8 array: what neither Pillow nor the published pipelines decide is decided here.

The order is: first frame, orientation, 16 bits to 8 by scaling, transparency onto a background, colour mode, resize,
crop. The published code converts after resizing, which mangles palettes, and clips 16-bit images to white.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffkit._errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def read_image(path: Path, channels: int, size: tuple[int, int], background: int = 255) -> NDArray[np.uint8]:
    """Return an image file as (C, H, W) uint8.

    Args:
        path: The file; of an animation, the first frame is read.
        channels: 1 grey, 3 RGB, 4 RGBA.
        size: (H, W) to resize and crop to.
        background: Grey value, 0..255, under transparent pixels; not used with 4 channels.
    Raises:
        DataError: The file is no image, damaged or of a kind that cannot be read; the text says which file.
    """
    pillow()
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = eight_bit(ImageOps.exif_transpose(opened))
            image = image.convert("RGBA") if channels == 4 else flattened(image, background).convert(_MODES[channels])
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too large to be read safely: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: {type(error).__name__}: {error}") from error
    pixels = np.asarray(resized_and_cropped(image, size))
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def resized_and_cropped(image: Image, size: tuple[int, int]) -> Image:
    """Return the centre of an image, scaled so that it just covers (H, W).

    Halved with a box filter while it is at least twice as large, then bicubic, as guided-diffusion does it; theirs is
    for squares, which this equals.
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


def eight_bit(image: Image) -> Image:
    """Return 16-bit and floating-point grey as 8-bit grey by scaling, where Pillow would clip; others as they are."""
    from PIL import Image

    if image.mode in _SIXTEEN:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"integer pixels from {values.min()} to {values.max()}, neither 8 nor 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"floating-point pixels from {values.min():g} to {values.max():g}, not in [0, 1]")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    return image


def flattened(image: Image, background: int) -> Image:
    """Return an image without transparency, what is transparent put onto a grey value."""
    from PIL import Image

    if "A" not in image.getbands() and "a" not in image.getbands() and "transparency" not in image.info:
        return image
    over = image.convert("RGBA")
    under = Image.new("RGBA", over.size, (background, background, background, 255))
    return Image.alpha_composite(under, over).convert("RGB")


def pillow() -> None:
    """Raise `MissingExtraError` if Pillow is not installed."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("train", "reading image files") from error
