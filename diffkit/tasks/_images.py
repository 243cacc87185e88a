"""Checks of the images and masks that tasks receive."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkit.errors import OptionError
from diffkit.options import check_integer
from diffkit.system.conditions import as_tensor
from diffkit.system.module import System


def images_for(system: System, name: str, image: Tensor, n: int | None = None) -> Tensor:
    """Return the images of a task, (n, C, *S) in float, from one for all examples, (C, *S), or one for each.

    Args:
        system: The system.
        name: Name of the argument in messages.
        image: The image or images.
        n: How many examples; by default as many as there are images.
    Raises:
        OptionError: The shape or the number of images is wrong.
    """
    image, count = _check_image_shape(system, name, image, n)
    return system.checked(image).expand(count, *system.data_shape)


def image_and_mask(system: System, image: Tensor, known: Tensor, n: int | None) -> tuple[Tensor, Tensor]:
    """Return images with 0 where nothing of them is known, and how much is known, 0 to 1, each (n, C, *S).

    Args:
        system: The system.
        image: As in `images_for`; its unknown part may have any values, even NaN.
        known: The mask, as in `mask_for`.
        n: Number of examples; by default as many as there are images.
    Raises:
        OptionError: As in `images_for` and `mask_for`.
    """
    image, count = _check_image_shape(system, "image", image, n)
    mask = mask_for(system, known, count)
    return system.checked(torch.where(mask > 0, image, 0)), mask


def _check_image_shape(system: System, name: str, image: Tensor, n: int | None) -> tuple[Tensor, int]:
    """Return one image, (1, C, *S), or one for each example, (n, C, *S), on the system's device; and n."""
    shape = system.data_shape
    image = as_tensor(name, image)
    if image.ndim == len(shape):
        image = image[None]
    count = len(image) if n is None else check_integer("n", n, ge=1)
    if image.ndim != len(shape) + 1 or image.shape[1:] != shape:
        listed = ", ".join(map(str, shape))
        raise OptionError(f"{name} must have shape ({listed}) or (n, {listed}), got {tuple(image.shape)}")
    if len(image) not in (1, count):
        raise OptionError(f"{name} must be one, or one for each of {count} examples, got {len(image)}")
    if not image.is_floating_point():
        raise OptionError(f"{name} must be floating point in [-1, 1], got {image.dtype}; for 8-bit: x / 127.5 - 1")
    return image.to(system.device), count


def mask_for(system: System, mask: Tensor, n: int) -> Tensor:
    """Return a mask as float (n, C, *S) from 0 to 1; the axes of examples and channels may be missing.

    Raises:
        OptionError: The shape is wrong, or a value is out of range.
    """
    shape = (n, *system.data_shape)
    spatial = shape[2:]
    mask = as_tensor("the mask", mask)
    fits = {spatial, (1, *spatial), shape[1:], (1, 1, *spatial), (n, 1, *spatial), (1, *shape[1:]), shape}
    if tuple(mask.shape) not in fits:
        raise OptionError(
            f"the mask must have shape {spatial}, {shape[1:]}, {(n, 1, *spatial)} or {shape}, got {tuple(mask.shape)}"
        )
    if mask.dtype != torch.bool and not bool(((mask >= 0) & (mask <= 1)).all()):
        raise OptionError("the mask must hold numbers from 0 (to be made) to 1 (known)")
    return mask.to(system.device).float().expand(shape)
