"""Arithmetic of Gaussians that losses, samplers and the bound share. In nats unless the name contains bits.

Importing this module does not import torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.protocols import Decoder, Level, LossInputs

V = TypeVar("V")

NATS_PER_BIT = math.log(2)


def mean_flat(x: Tensor) -> Tensor:
    """Mean over all but the first dimension, (B, ...) -> (B,)."""
    x = x.flatten(1)
    return x.sum(1) / x.shape[1]  # the gradient of `mean` would be a tensor as large as x


def mixed(a: Tensor, x: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """``a x + b y`` with a coefficient for each example, (B,1..); x and y are (B, ...).

    `addcmul` is slower here: on a CPU it does not vectorize over a broadcast operand.
    """
    return a * x + b * y


def squared_error(out: Tensor, target: Tensor) -> Tensor:
    """``(out - target)^2`` of tensors of one shape, elementwise, in one operation each way."""
    from torch.nn.functional import mse_loss

    return mse_loss(out, target, reduction="none")


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """``KL(N(mean1, exp log_variance1) || N(mean2, exp log_variance2))``, elementwise, nats; arguments broadcast.

    Source: Kingma & Welling 2014, arXiv:1312.6114, appendix B.
    """
    difference = log_variance1 - log_variance2
    return 0.5 * (difference.expm1() - difference + (mean1 - mean2).square() * (-log_variance2).exp())


def decode(out: Tensor, x_t: Tensor, level: Level) -> Tensor:
    """Estimate of clean data from the network's mean channels: ``c_skip x_t + c_out out``, (B, C, *S)."""
    return (level.c_skip * x_t).addcmul_(level.c_out, out)


def posterior_kl_bits(
    squared_error: Tensor, weight: Tensor, log_variance: Tensor, posterior_log_variance: Tensor
) -> Tensor:
    """``KL(q(x_{k-1} | x_k, x_start) || p(x_{k-1} | x_k))`` in bits per dimension, (B,).

    Both means are linear in their x_start with the same coefficients, so their distance is a squared error that the
    caller has computed already.

    Args:
        squared_error: Of x_start, or of the network's output, (B, C, *S).
        weight: Turns it into (difference of means)^2 / posterior variance, (B,1..).
        log_variance: Of p, nats, broadcastable.
        posterior_log_variance: Of q, nats, (B,1..).
    """
    d = posterior_log_variance - log_variance
    # expm1 is accurate for nearly equal variances, exp for a very negative d; float32 needs both.
    return mean_flat((d.expm1() - d).addcmul(d.exp(), weight * squared_error)) * (0.5 / NATS_PER_BIT)


def trained_kl_bits(
    squared_error: Tensor, weight: Tensor, log_variance: Tensor, posterior_log_variance: Tensor
) -> Tensor:
    """`posterior_kl_bits` for a loss: one exponential instead of two, and a gradient in one operation.

    In float32 a value is off by up to 1e-7 nats, which matters when thousands of small terms are summed, not for one
    sampled term. The gradient is as accurate as that of `posterior_kl_bits`; ``posterior_log_variance`` has none, as it
    is a column of a table.
    """
    from diffkit.tensors import MeanKL, is_ordinary

    error = weight * squared_error
    if is_ordinary(error) and log_variance.shape == error.shape:
        mean: Tensor = MeanKL.apply(log_variance, posterior_log_variance, error)  # type: ignore[no-untyped-call]
    else:
        d = posterior_log_variance - log_variance
        ratio = d.exp()
        mean = mean_flat((ratio - 1).addcmul(ratio, error) - d)
    return mean * (0.5 / NATS_PER_BIT)


def with_decoder_term(
    kl_bits: Tensor,
    x_start: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    first: Tensor,
    decoder: Decoder,
    decoder_rows: int,
) -> Tensor:
    """Replace the KL by the decoder's negative log-likelihood in the rows at level 1; bits per dimension, (B,).

    The decoder costs several times the KL, so it is evaluated for ``decoder_rows`` rows only, preferring rows at level
    1; the caller gives their number, so that shapes stay static.

    Args:
        kl_bits: KL of every row, (B,).
        x_start: Data, (B, C, *S).
        mean: Of p(x_0 | x_1) (which is the estimate of x_start there), (B, C, *S).
        log_variance: Of p, nats, broadcastable to data.
        first: True in rows at level 1, (B,).
        decoder: Log-likelihood of data under a Gaussian.
        decoder_rows: At least the number of True in `first`, at most B.
    """
    if decoder_rows == 0:
        return kl_bits
    if decoder_rows >= kl_bits.shape[0]:
        return (-mean_flat(decoder.log_prob(x_start, mean, log_variance)) / NATS_PER_BIT).where(first, kl_bits)
    rows = first.float().topk(decoder_rows).indices
    log_variance = log_variance.expand_as(x_start)[rows]
    nll = -mean_flat(decoder.log_prob(x_start[rows], mean[rows], log_variance)) / NATS_PER_BIT
    return kl_bits.scatter(0, rows, nll.where(first[rows], kl_bits[rows]))


def vlb_bits(at: LossInputs, *, squared_error: Tensor, out: Tensor) -> Tensor:
    """Term of the variational bound at each row's level, bits per dimension, (B,).

    Args:
        at: Arguments of the loss; its transition and log_variance must not be None.
        squared_error: ``(out - target)^2``, (B, C, *S); detach it so that the gradient does not reach the mean.
        out: The network's mean channels, likewise.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eqs. 4 to 7.
    """
    transition = required(at.transition, "transition")
    log_variance = required(at.log_variance, "log_variance")
    weight = transition.kl_weight * at.level.c_out.square()
    kl = trained_kl_bits(squared_error, weight, log_variance, transition.log_variance)
    # as `decode` does, but out of place, so that vmap may map the network's weights
    mean = mixed(at.level.c_skip, at.x_t, at.level.c_out, out) if at.decoder_rows else out
    return with_decoder_term(kl, at.x_start, mean, log_variance, transition.first, at.decoder, at.decoder_rows)


def required(value: V | None, name: str) -> V:
    """Return a field of `LossInputs` that is never None here; composition has checked the loss's `needs`."""
    assert value is not None, f"{name} is missing: a loss that uses it must list it in needs"
    return value
