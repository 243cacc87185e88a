"""Arguments of `diffkit.compose` other than the parts of a composition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import check_integer
from diffkit.parts.decoders.binned import Binned
from diffkit.parts.decoders.continuous import Continuous
from diffkit.protocols import Codec, Coupling, Decoder
from diffkit.spacing import Spacing, spacing_part

MOST_STEPS = 10**6
"""Largest number of levels of a table; its columns of float64 then take some 200 MB."""


@frozen
class Settings:
    """Arguments of `diffkit.compose` other than the parts; together with the parts they rebuild the system.

    Attributes:
        bins: The short way to name a decoder, "binned" or "continuous"; None if there is another.
        decoder: A decoder that ``bins`` cannot name, or None.
        coupling: A coupling, or None for independent noise.
        codec: A codec, or None where the network sees the data itself. With one, ``data_shape`` and ``bins`` are those
            of the data, and a decoder is of its latents.
    """

    data_shape: tuple[int, ...]
    num_steps: int
    train_spacing: Any
    rescale_time: bool
    clip_x_start: bool
    bins: int | Mapping[str, Any] | None
    time_argument: str | None
    null_conditions: Mapping[str, Any] | None = None
    sampling: Mapping[str, Any] | None = None
    decoder: Decoder | None = None
    coupling: Coupling | None = None
    time_to_argument: str | None = None
    codec: Codec | None = None


def plain_spacing(name: str, spacing: Spacing) -> Spacing:
    """Return a part, or a spacing as JSON can hold it: Python's integers for NumPy's, a list for an array or a range.

    Args:
        name: Name of the argument in messages.
        spacing: The spacing.
    Raises:
        OptionError: It is no number and no list of numbers.
    """
    if spacing is None or isinstance(spacing, str):
        return spacing
    if (part := spacing_part(spacing)) is not None:
        return part
    if isinstance(spacing, range) and len(spacing) > MOST_STEPS:
        raise OptionError(f"{name} {spacing!r} is more levels than a table holds, {MOST_STEPS}")
    try:
        found: int | list[int] = np.asarray(spacing).tolist()
    except ValueError as error:  # a list of lists of several lengths
        raise OptionError("must be a number of levels or a list of levels", option=name, value=spacing) from error
    return found


def decoder_of(settings: Settings) -> Decoder:
    """Return the decoder of a system: of its data, or with a codec of its latents, which are continuous."""
    if settings.decoder is not None:
        return settings.decoder
    return decoder_for(settings.bins if settings.codec is None else None)


def bins_of(settings: Settings) -> int | None:
    """Return how many values a system's data takes, in the user's units; None if it is continuous."""
    if settings.codec is None:
        return decoder_of(settings).bins
    assert settings.bins is None or isinstance(settings.bins, int), "`compose` refuses a mapping"
    return settings.bins


def decoder_for(bins: int | Mapping[str, Any] | None) -> Decoder:
    """Return the decoder of data with that many values, of `Binned` options, or of continuous data for None."""
    if bins is None:
        return Continuous()
    if isinstance(bins, Mapping):
        try:
            return Binned(**bins)
        except TypeError as error:
            raise OptionError(f"bins as a mapping takes bins, cdf and floor: {error}") from error
    try:
        return Binned(check_integer("bins", bins, ge=2))
    except OptionError as error:
        raise OptionError(f"{error}; 256 is 8-bit data, None is continuous data") from error


def shortest(decoder: Decoder) -> dict[str, Any]:
    """Return a decoder as ``bins`` if that can name it, else as ``decoder``: the one form in which it is saved."""
    if isinstance(decoder, Continuous):
        return {"bins": None, "decoder": None}
    if not isinstance(decoder, Binned):
        return {"bins": None, "decoder": decoder}
    plain = decoder == Binned(decoder.bins)
    options = {"bins": decoder.bins, "cdf": decoder.cdf, "floor": decoder.floor}
    return {"bins": decoder.bins if plain else options, "decoder": None}
