"""Laws of couplings."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from diffkit.protocols import Coupling, Pairing
from diffkit.testing._check import NotApplicableError, Where, check, record_where
from diffkit.testing._close import require, require_close, require_same

_SHAPES = ((2,), (1, 4, 4), (3, 5))
_BATCHES = 400
_ROWS = 16
_SIGMAS = 6.0


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _pair(part: Coupling, x_start: Tensor, noise: Tensor, seed: int, y: Tensor | None = None) -> Pairing:
    conditions = {name: _normal(tuple(x_start.shape), seed + 7) for name in part.own_conditions}
    if y is not None:
        conditions["y"] = y
    return part.pair(x_start, noise, conditions, torch.Generator().manual_seed(seed))


def _batches(rows: int = _ROWS) -> Iterator[tuple[Tensor, Tensor, Where]]:
    for number, shape in enumerate(_SHAPES):
        where = record_where(Where(detail=f"data {(rows, *shape)}"))
        yield 0.3 * _normal((rows, *shape), number) + 0.5, _normal((rows, *shape), 100 + number), where


@check("coupling")
def noise_for_each_example(part: Coupling) -> None:
    """It returns noise of the data's shape, finite, and weights (B,) that are finite and not negative, or None.

    It takes data of any shape, and one example alone.
    Usually: a flattened batch that is not put back, or a division by B - 1.
    """
    for rows in (_ROWS, 1):
        for x_start, noise, where in _batches(rows):
            found = _pair(part, x_start, noise, 0)
            require(found.noise.shape == noise.shape, f"noise {tuple(noise.shape)}", tuple(found.noise.shape), where)
            require(found.noise.dtype == noise.dtype, f"noise {noise.dtype}", found.noise.dtype, where)
            require(bool(found.noise.isfinite().all()), "finite noise", "inf or NaN", where)
            if (weight := found.weight) is not None:
                good = weight.shape == (rows,) and bool((weight.isfinite() & (weight >= 0)).all())
                require(good, f"{rows} finite weights >= 0", weight, where)


@check("coupling")
def same_arguments_same_noise(part: Coupling) -> None:
    """The same arguments and a generator in the same state give the same noise, and no argument is changed.

    Usually: the global generator, a counter, or an operation ending in "_".
    """
    for x_start, noise, where in _batches():
        before = x_start.clone(), noise.clone()
        first = _pair(part, x_start, noise, 3)
        torch.rand(5)  # the global generator moves on
        _pair(part, noise, x_start, 4)
        require_same(_pair(part, x_start, noise, 3).noise, first.noise, "the same noise again", where)
        require_same((x_start, noise), before, "arguments unchanged", where)


@check("coupling")
def noise_stays_normal(part: Coupling) -> None:
    """Over many batches, of data to one side or the other, noise is standard normal as it came in, weighted.

    Usually: a nearest neighbour, by which some noise is taken often and some never, or noise shifted towards the data.
    """
    for side in (-3.0, 3.0):
        found, weights = [], []
        for batch in range(_BATCHES):
            x_start = 0.3 * _normal((_ROWS, 2), batch) + side
            pairing = _pair(part, x_start, _normal((_ROWS, 2), 10_000 + batch), batch)
            found.append(pairing.noise.double())
            weights.append(torch.ones(_ROWS) if pairing.weight is None else pairing.weight)
        noise, weight = torch.cat(found), torch.cat(weights).double()[:, None]
        for power, wanted, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (4, 3.0, 96.0)):
            moment = (weight * noise**power).sum(0) / weight.sum()
            limit = _SIGMAS * (2 * variance / len(noise)) ** 0.5  # drawn with replacement, noise varies twice as much
            where = Where(detail=f"moment {power} of {len(noise)} draws, data near {side:g}")
            require_close(moment, torch.full_like(moment, wanted), limit, f"about {wanted:g}", where, scale=1.0)


@check("coupling")
def rows_as_declared(part: Coupling) -> None:
    """With scope "row", an example's noise depends on no other example; the scope is "row" or "batch".

    Usually: a coupling that looks at the whole batch, but says it does not, so that processes change the run.
    """
    require(part.scope in ("row", "batch"), 'scope "row" or "batch"', part.scope)
    if part.scope == "batch":
        raise NotApplicableError("it looks at whole batches")
    for x_start, noise, where in _batches():
        conditions = {name: _normal(tuple(x_start.shape), 7) for name in part.own_conditions}
        whole = part.pair(x_start, noise, conditions, torch.Generator().manual_seed(0)).noise
        for row in (0, 5):
            alone = {name: value[row : row + 1] for name, value in conditions.items()}
            generator = torch.Generator().manual_seed(0)
            found = part.pair(x_start[row : row + 1], noise[row : row + 1], alone, generator).noise
            require_same(found, whole[row : row + 1], "the same noise for one row alone", where)
