"""Data as the network sees it, and back, by a system's codec; without one both are the same, at no cost."""

from __future__ import annotations

import torch
from torch import Tensor

from diffkit.errors import DiffkitError, OptionError, ProtocolError
from diffkit.gaussian import NATS_PER_BIT
from diffkit.protocols import AutoencoderCodec, Codec, Composition
from diffkit.system.randomness import Purpose, key, keys, normals


def to_latents(parts: Composition, x: Tensor) -> Tensor:
    """Return the latents of data that was checked, (B, C, *S).

    Raises:
        ProtocolError: The codec returns another shape than it declares, or another dtype.
    """
    if parts.codec is None:
        return x
    return _checked("encode", parts.codec, parts.encode(x), (x.shape[0], *parts.data_shape), x.dtype)


def moments(parts: Composition, x: Tensor) -> Tensor:
    """Return mean and log-variance of the latents of data by an autoencoder, (B, 2 C, *S); see `AutoencoderCodec`.

    Raises:
        ProtocolError: As `to_latents`.
    """
    codec, module = parts.codec, parts.codec_module
    assert isinstance(codec, AutoencoderCodec) and module is not None, "it is one that is drawn from"
    channels, *sizes = parts.data_shape
    return _checked("moments", codec, codec.moments(x, module), (x.shape[0], 2 * channels, *sizes), x.dtype)


def drawn(moments: Tensor, noise: Tensor) -> Tensor:
    """Return latents drawn from their distribution with standard normal noise, (B, C, *S)."""
    mean, log_variance = moments.chunk(2, 1)
    return mean + (0.5 * log_variance).exp() * noise.to(mean)


def random_latents(parts: Composition, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return the latents of data to train on, (B, C, *S): drawn, if their codec is an autoencoder."""
    if not isinstance(parts.codec, AutoencoderCodec):
        return to_latents(parts, x)
    found, device = moments(parts, x), x.device if generator is None else generator.device
    shape = (x.shape[0], *parts.data_shape)
    return drawn(found, torch.randn(shape, generator=generator, device=device).to(x.device))


def seeded_latents(parts: Composition, x: Tensor, seed: int, step: int, start: int, encoded: bool) -> Tensor:
    """Return the same in training, where the draws of an example depend on seed, step and place in the batch.

    Args:
        parts: The composition.
        x: Data; or the moments of its latents, if it is ``encoded``.
        seed, step: Of the run and the update.
        start: Number of the first example in the whole batch.
        encoded: Whether x is moments.
    """
    if not isinstance(parts.codec, AutoencoderCodec):
        return to_latents(parts, x)
    found = x if encoded else moments(parts, x)
    noise = normals(keys(key(seed, Purpose.LATENTS, step), x.shape[0], x.device, start), parts.data_shape)
    return drawn(found, noise)


def from_latents(parts: Composition, z: Tensor, data_shape: tuple[int, ...]) -> Tensor:
    """Return the data of latents, (B, C, *S).

    Raises:
        ProtocolError: As `to_latents`.
    """
    if parts.codec is None:
        return z
    return _checked("decode", parts.codec, parts.decode(z), (z.shape[0], *data_shape), z.dtype)


def _checked(what: str, codec: Codec, found: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if found.shape != shape or found.dtype != dtype:
        raise ProtocolError(
            f"codec {type(codec).__name__!r}: {what} must return {dtype} of shape {shape}, got {found.dtype} of shape "
            f"{tuple(found.shape)}"
        )
    return found


def check_autoencoder(parts: Composition, data_shape: tuple[int, ...]) -> None:
    """Raise if the module of an autoencoder takes no data of this shape, or gives other shapes than declared.

    It is one on the meta device, so that nothing is computed. A module that cannot run there is checked at its first
    real call.
    """
    x = torch.zeros(2, *data_shape, device="meta")
    try:
        with torch.no_grad():
            from_latents(parts, to_latents(parts, x), data_shape)
    except DiffkitError:
        raise
    except NotImplementedError:  # an operation without a kernel on the meta device
        return
    except Exception as error:  # a module of the caller's own may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if "meta" not in reason:
            raise OptionError(
                f"{parts.label('codec')}: its module takes no data of shape {data_shape} ({reason}); give one with "
                "encode(x), mean and log-variance (B, 2 C, *S), and decode(z), made for such data"
            ) from error


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
