"""Laws of codecs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import attrs
import torch
from attrs import frozen
from torch import Tensor, nn

from diffkit.errors import OptionError
from diffkit.protocols import AutoencoderCodec, Codec, MeasuredCodec
from diffkit.system.codec_files import open_codec
from diffkit.testing._check import NotApplicableError, Where, check, record_where
from diffkit.testing._close import require, require_close, require_same
from diffkit.testing._host import on_fake_tensors

_SHAPES = ((2,), (1, 6), (3, 4, 4), (1, 8, 8), (3, 16, 16), (3, 32, 32))
_ENOUGH = 3
"""Number of shapes that a codec is tried with."""
_ROWS = 3
_FEW_PLACES = 4
_MOST_VALUES = 200
"""Largest number of values of an example whose Jacobian is computed."""


def _data(shape: tuple[int, ...], rows: int, seed: int = 0) -> Tensor:
    """Positive data of no special mean and scale, (rows, *shape) float64."""
    generator = torch.Generator().manual_seed(seed)
    return 0.1 + 0.8 * torch.rand(rows, *shape, generator=generator, dtype=torch.float64)


@frozen(eq=False)
class _WithModule(Codec):
    """An autoencoder with its module, in the place of a codec without weights."""

    part: AutoencoderCodec
    module: nn.Module
    exact: ClassVar[bool] = False

    def latent_shape(self, data_shape: tuple[int, ...]) -> tuple[int, ...]:
        return self.part.latent_shape(data_shape)

    def encode(self, x: Tensor) -> Tensor:
        return self.part.encode(x, self.module)

    def decode(self, z: Tensor) -> Tensor:
        return self.part.decode(z, self.module)


def _with_module(part: AutoencoderCodec, shape: tuple[int, ...]) -> Codec:
    if part.folder is not None:
        part, _ = open_codec(part)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = part.build(shape)
    if module is None:
        raise NotApplicableError("its module is given by the caller")
    return _WithModule(part, module.double().requires_grad_(False).eval())


def _ready(part: Codec, shape: tuple[int, ...]) -> Codec:
    """The codec with its module, if it has one, and measured on data of a shape if it lacks options."""
    if isinstance(part, AutoencoderCodec):
        return _with_module(part, shape)
    if isinstance(part, MeasuredCodec) and not part.measured:
        return part.measure([_data(shape, 8, 5).float(), _data(shape, 4, 6).float()])
    return part


def _fitting(part: Codec) -> Iterator[tuple[Codec, tuple[int, ...], Where]]:
    """The codec with each shape of data that it takes."""
    found = 0
    for shape in _SHAPES if not isinstance(part, AutoencoderCodec) else _SHAPES[1:]:
        if found == _ENOUGH:
            return
        where = record_where(Where(detail=f"data {shape}"))
        try:
            part.latent_shape(shape)
        except OptionError:
            continue
        found += 1
        yield _ready(part, shape), shape, where
    if not found:
        raise NotApplicableError(f"it takes data of none of the shapes {', '.join(map(str, _SHAPES))}")


@check("codec")
def shapes_as_declared(part: Codec) -> None:
    """Latents have the declared shape, decoded data that of the data, both its dtype, and all are finite.

    Usually: a latent_shape that forgets a factor, or arithmetic that always ends in float32.
    """
    for codec, shape, where in _fitting(part):
        latent = codec.latent_shape(shape)
        for dtype in (torch.float32, torch.float64):
            for rows in (1, _ROWS):
                x = _data(shape, rows).to(dtype)
                z = codec.encode(x)
                require(z.shape == (rows, *latent), f"latents {(rows, *latent)}", tuple(z.shape), where)
                back = codec.decode(z)
                require(back.shape == x.shape, f"data {tuple(x.shape)}", tuple(back.shape), where)
                require(z.dtype == back.dtype == dtype, f"{dtype}", f"{z.dtype} and {back.dtype}", where)
                require(bool(z.isfinite().all() & back.isfinite().all()), "finite values", "inf or NaN", where)


@check("codec")
def decode_inverts_encode(part: Codec) -> None:
    """With exact = True decoding gives the data back, and encoding the latents; there are as many latents as values.

    Usually: a forgotten option on one of the two sides, or exact = True for a codec that loses part of the data.
    """
    if not part.exact:
        raise NotApplicableError("it is declared to lose part of the data")
    for codec, shape, where in _fitting(part):
        latents, values = math.prod(codec.latent_shape(shape)), math.prod(shape)
        require(latents == values, f"{values} latents", latents, where)
        x = _data(shape, _ROWS)
        z = codec.encode(x)
        require_close(codec.decode(z), x, 1e-9, "the data", where, scale=1.0)
        require_close(codec.encode(codec.decode(z)), z, 1e-9, "the latents", where, scale=z.abs().max())


@check("codec")
def log_det_is_that_of_encode(part: Codec) -> None:
    """With exact = True log_det is the log-determinant of the Jacobian of encode, by autograd, for each example.

    Usually: the sign, a mean in place of a sum, a sum over the batch, or one channel's term for all channels.
    """
    if not part.exact:
        raise NotApplicableError("it is declared to lose part of the data, which has no likelihood")
    for codec, shape, where in _fitting(part):
        if math.prod(shape) > _MOST_VALUES:
            continue
        x = _data(shape, _ROWS)
        found, expected = codec.log_det(x), torch.stack([_log_det(codec, row) for row in x])
        require(found.shape == (_ROWS,), f"one number for each of {_ROWS} examples", tuple(found.shape), where)
        require_close(found, expected, 1e-8, "log |det J|", where, scale=math.prod(shape))


def _log_det(codec: Codec, x: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian(lambda at: codec.encode(at[None])[0].flatten(), x)  # type: ignore[no-untyped-call]
    found: Tensor = torch.linalg.slogdet(jacobian.flatten(1)).logabsdet
    return found


@check("codec")
def affine_as_declared(part: Codec) -> None:
    """With affine = True decoding a weighted mean of latents gives the weighted mean of their data.

    Usually: affine = True for a codec with a curve, such as a logarithm, or with clipping.
    """
    if not part.affine:
        raise NotApplicableError("it is not declared as affine")
    for codec, shape, where in _fitting(part):
        a, b = codec.encode(_data(shape, _ROWS)), codec.encode(_data(shape, _ROWS, 1))
        for weight in (0.3, -20.0):
            mixed = weight * codec.decode(a) + (1 - weight) * codec.decode(b)
            found = codec.decode(weight * a + (1 - weight) * b)
            require_close(found, mixed, 1e-9, "the mean of the data", where, scale=abs(weight))


@check("codec")
def elementwise_as_declared(part: Codec) -> None:
    """With elementwise = True a value of data changes the latent in its place and no other, and the same back.

    Usually: elementwise = True for a codec that mixes channels or neighbours, or normalizes each example.
    """
    if not part.elementwise:
        raise NotApplicableError("it is not declared as elementwise")
    for codec, shape, where in _fitting(part):
        require(codec.latent_shape(shape) == shape, f"latents {shape}", codec.latent_shape(shape), where)
        x = _data(shape, 1)
        for name, function, at in (("encode", codec.encode, x), ("decode", codec.decode, codec.encode(x))):
            before, changed = function(at).flatten(), at.clone().flatten()
            changed[1] += 0.05
            moved = (function(changed.view_as(at)).flatten() != before).nonzero().flatten().tolist()
            require(moved == [1], f"a change by {name} at place 1 alone", f"at places {moved[:8]}", where)


@check("codec")
def spatial_as_declared(part: Codec) -> None:
    """With spatial = True the sides of latents divide those of data, and data in a corner changes latents most near it.

    Usually: spatial = True for a codec that flattens, transposes or transforms the axes of data.
    """
    if not part.spatial:
        raise NotApplicableError("it is not declared as spatial")
    for codec, shape, where in _fitting(part):
        latent = codec.latent_shape(shape)
        good = len(latent) == len(shape) and not any(a % b for a, b in zip(shape[1:], latent[1:], strict=True))
        require(good, f"latents of {len(shape) - 1} axes, whose sides divide {shape[1:]}", latent, where)
        if min(latent[1:]) < _FEW_PLACES:  # norms over so few places spread every change
            continue
        x = _data(shape, 1)
        changed = x.clone()
        sides = zip(shape[1:], latent[1:], strict=True)
        corner: tuple[slice, ...] = (slice(None), slice(None), *(slice(a // b) for a, b in sides))
        changed[corner] += 0.5
        moved = (codec.encode(changed) - codec.encode(x)).abs().sum(1)[0]
        at = [int(place) for place in torch.unravel_index(moved.argmax(), moved.shape)]
        near = all(2 * place < side for place, side in zip(at, latent[1:], strict=True))
        require(near, "the largest change in the half of each axis with the corner", f"at {at}", where)


@check("codec")
def rows_alone(part: Codec) -> None:
    """Latents, data and log_det of an example are the same alone as in a batch.

    Usually: statistics of the batch, such as its mean, or a batch norm in training mode.
    """
    for codec, shape, where in _fitting(part):
        x = _data(shape, _ROWS)
        z = codec.encode(x)
        for row in range(_ROWS):
            one = slice(row, row + 1)
            require_close(codec.encode(x[one]), z[one], 1e-9, "latents of one alone", where, scale=1.0)
            require_close(codec.decode(z[one]), codec.decode(z)[one], 1e-9, "data of one alone", where, scale=1.0)
            if codec.exact:
                log_det = codec.log_det(x)[one]
                require_close(codec.log_det(x[one]), log_det, 1e-9, "log_det of one alone", where, scale=1.0)


@check("codec")
def pure(part: Codec) -> None:
    """It changes no argument, gives the same for the same, reads no value, and decode has a gradient.

    Usually: an operation in place, random numbers, a Python `if` on a tensor, or detach().
    """
    for codec, shape, where in _fitting(part):
        x = _data(shape, _ROWS).float()
        z = codec.encode(x)
        before = x.clone(), z.clone()
        data = codec.decode(z)
        torch.rand(3)  # the global generator moves on
        require_same((codec.encode(x), codec.decode(z)), (z, data), "the same again", where)
        require_same((x, z), before, "arguments unchanged", where)
        at = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(codec.decode(at).sum(), at)
        require(bool(gradient.any()), "a gradient of decode", "none, or 0", where)
        with on_fake_tensors(strict=False):
            codec.decode(codec.encode(torch.empty(_ROWS, *shape)))


@check("codec")
def latents_are_drawn(part: Codec) -> None:
    """Moments of an autoencoder are mean and log-variance, of a sensible size, and encode returns the mean.

    Usually: a standard deviation or a variance in place of its log, or a scale on the mean alone.
    """
    if not isinstance(part, AutoencoderCodec):
        raise NotApplicableError("its latents are not drawn")
    for codec, shape, where in _fitting(part):
        assert isinstance(codec, _WithModule)
        x, latent = _data(shape, _ROWS), codec.latent_shape(shape)
        found = codec.part.moments(x, codec.module)
        wanted = (_ROWS, 2 * latent[0], *latent[1:])
        require(found.shape == wanted, f"moments {wanted}", tuple(found.shape), where)
        mean, log_variance = found.chunk(2, 1)
        require_close(codec.encode(x), mean, 1e-9, "the mean", where)
        if isinstance(scale := getattr(codec.part, "scale", None), float):
            twice = attrs.evolve(codec.part, scale=2 * scale)  # type: ignore[misc]
            other = twice.moments(x, codec.module).chunk(2, 1)
            require_close(other[0], 2 * mean, 1e-9, "twice the mean for twice the scale", where)
            require_close(other[1], log_variance + math.log(4), 1e-9, "its log-variance", where)


@check("codec")
def measured_on_any_batches(part: Codec) -> None:
    """Measuring gives a codec of the same class with all options, by the data alone, however it is cut into batches.

    Options that were given stay. Usually: a mean of the batches' means, or float32 sums.
    """
    if not isinstance(part, MeasuredCodec):
        raise NotApplicableError("it measures nothing")
    for codec, shape, where in _fitting(part):
        assert isinstance(codec, MeasuredCodec)
        require(codec.measured, "measured = True", codec.measured, where)
        require(type(codec) is type(part), f"a {type(part).__name__}", type(codec).__name__, where)
        again = codec.measure([_data(shape, 2, 9).float()])
        require(again == codec, "given options unchanged", again, where)
        if part.measured:
            continue
        x = (1000 + _data(shape, 7)).float()
        whole, cut = part.measure([x]), part.measure([x[:1], x[1:3], x[3:]])
        probe = x[:_ROWS].double()
        scale = whole.encode(probe).abs().max()
        require_close(cut.encode(probe), whole.encode(probe), 1e-6, "the same for other batches", where, scale=scale)
