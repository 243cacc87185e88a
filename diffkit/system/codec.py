"""Data as the network sees it, and back, by a system's codec; without one both are the same, at no cost."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkit.errors import OptionError, ProtocolError
from diffkit.gaussian import NATS_PER_BIT
from diffkit.protocols import Codec, Composition


def to_latents(parts: Composition, x: Tensor) -> Tensor:
    """Return the latents of data that was checked, (B, C, *S).

    Raises:
        ProtocolError: The codec returns another shape than it declares, or another dtype.
    """
    if parts.codec is None:
        return x
    return _checked("encode", parts.codec, parts.codec.encode(x), (x.shape[0], *parts.data_shape), x.dtype)


def from_latents(parts: Composition, z: Tensor, data_shape: tuple[int, ...]) -> Tensor:
    """Return the data of latents, (B, C, *S).

    Raises:
        ProtocolError: As `to_latents`.
    """
    if parts.codec is None:
        return z
    return _checked("decode", parts.codec, parts.codec.decode(z), (z.shape[0], *data_shape), z.dtype)


def _checked(what: str, codec: Codec, found: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if found.shape != shape or found.dtype != dtype:
        raise ProtocolError(
            f"codec {type(codec).__name__!r}: {what} must return {dtype} of shape {shape}, got {found.dtype} of shape "
            f"{tuple(found.shape)}"
        )
    return found


def check_likelihood(parts: Composition) -> None:
    """Raise `OptionError` if data has no likelihood, as the codec loses part of it."""
    if parts.codec is not None and not parts.codec.exact:
        raise OptionError(
            f"{parts.label('codec')} does not give data back exactly, so that data has no likelihood; score latents by "
            f"diffkit.recompose(system, codec=None, bins=None, data_shape={parts.data_shape})"
        )


def volume_bits(parts: Composition, x: Tensor) -> Tensor | float:
    """Return the bits per dimension to add for data to those of its latents, (B,); 0 without a codec.

    A density of data is that of its latents times ``|det dz/dx|``.
    """
    if parts.codec is None:
        return 0.0
    return -parts.codec.log_det(x) / (x.shape[1:].numel() * NATS_PER_BIT)
