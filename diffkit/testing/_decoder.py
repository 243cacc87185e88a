"""Laws of decoders."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from diffkit.protocols import Decoder
from diffkit.testing._check import NotApplicableError, Where, check, record_where
from diffkit.testing._close import require, require_close, require_same
from diffkit.testing._host import on_fake_tensors

_MEANS = (-1.2, -0.3, 0.0, 0.9)
_LOG_VARIANCES = (-8.0, -3.0, 0.0, 2.0)


def _gaussians() -> Iterator[tuple[Tensor, Tensor, Where]]:
    for mean in _MEANS:
        for log_variance in _LOG_VARIANCES:
            where = record_where(Where(detail=f"mean {mean:g}, log-variance {log_variance:g}"))
            yield torch.tensor(mean, dtype=torch.float64), torch.tensor(log_variance, dtype=torch.float64), where


@check("decoder")
def probabilities_sum_to_one(part: Decoder) -> None:
    """The probabilities of all values that data takes sum to 1; a density integrates to 1.

    Usually: bins that overlap or leave gaps, end bins that are not open, or a missing factor in the density.
    """
    for mean, log_variance, where in _gaussians():
        if part.bins is None:
            std = float((0.5 * log_variance).exp())
            x = torch.linspace(-12, 12, 4001, dtype=torch.float64) * std + mean
            total = torch.trapezoid(part.log_prob(x, mean, log_variance).exp(), x)
        else:
            x = torch.linspace(-1, 1, part.bins, dtype=torch.float64)
            total = part.log_prob(x, mean, log_variance).exp().sum()
        require_close(total, 1.0, 1e-6, "a sum of", where)


@check("decoder")
def finite_in_the_tails(part: Decoder) -> None:
    """The log-likelihood is finite, float32 too, however far the mean is off and however narrow the Gaussian.

    Usually: the log of a difference of probabilities that rounds to 0.
    """
    x = torch.linspace(-1, 1, 9)
    for mean in (-3.0, 0.0, 3.0):
        for log_variance in (-16.0, -8.0, 4.0):
            found = part.log_prob(x, torch.full_like(x, mean), torch.full_like(x, log_variance))
            where = Where(detail=f"mean {mean:g}, log-variance {log_variance:g}, float32")
            require(bool(found.isfinite().all()), "a finite log-likelihood", found, where)


@check("decoder")
def each_element_on_its_own(part: Decoder) -> None:
    """It returns one number for each element of the data, which depends on that element only; arguments broadcast.

    Usually: a sum over elements, or a reshape that mixes them.
    """
    generator = torch.Generator().manual_seed(1)
    x = (torch.randint(0, 5, (2, 3, 4), generator=generator) / 2 - 1).double()
    mean = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    log_variance = torch.randn(2, 1, 1, generator=generator, dtype=torch.float64)
    found = part.log_prob(x, mean, log_variance)
    require(found.shape == x.shape and found.dtype == x.dtype, f"{tuple(x.shape)} {x.dtype}", tuple(found.shape))
    alone = part.log_prob(x[1, 2, 3], mean[1, 2, 3], log_variance[1, 0, 0])
    require_close(found[1, 2, 3], alone, 1e-12, "log-likelihood of the element alone")


@check("decoder")
def bounded_data_has_bounds(part: Decoder) -> None:
    """Data with bins lies in [-1, 1]: it is declared as bounded.

    Usually: bounded left False, so that data out of range is scored.
    """
    if part.bins is None:
        raise NotApplicableError("its data is continuous")
    require(part.bounded is True, "bounded = True", part.bounded)
    require(isinstance(part.bins, int) and part.bins >= 2, "bins, an integer >= 2", part.bins)


@check("decoder")
def pure(part: Decoder) -> None:
    """It changes no argument, gives the same for the same, and reads no value.

    Usually: an operation in place, or a Python `if` on a tensor.
    """
    x, mean, log_variance = torch.linspace(-1, 1, 5), torch.zeros(5), torch.full((5,), -2.0)
    before = x.clone(), mean.clone(), log_variance.clone()
    first = part.log_prob(x, mean, log_variance)
    require_same((x, mean, log_variance), before, "arguments unchanged")
    require_same(part.log_prob(x, mean, log_variance), first, "the same again")
    with on_fake_tensors():
        part.log_prob(torch.empty(5), torch.empty(5), torch.empty(5))
