"""The variational bound on bits per dimension, all levels batched together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from diffkit.columns import Columns, level_columns, transition_columns
from diffkit.conditions import rows_of
from diffkit.decoders import Decoder
from diffkit.denoiser import Denoiser
from diffkit.gaussian import NATS_PER_BIT, mean_flat, mixed, normal_kl, posterior_kl_bits, with_decoder_term
from diffkit.noise import Seed, seeds_of
from diffkit.protocols import Composition
from diffkit.table import ProcessTable


@frozen(eq=False)
class Bound:
    """The bound of each example, in bits per dimension, and what it is made of.

    Attributes:
        total: Sum of the terms and the prior, (B,).
        prior: KL between the end of the forward process and what sampling starts from, (B,).
        terms: Of levels 1..T in ascending order: column 0 is the decoder's negative log-likelihood, (B, T).
        x_start_mse: Mean squared error of the estimate of x_start at each level, (B, T).
        eps_mse: The same of the noise, re-derived from that estimate, (B, T).
        levels: Level of each column, in the root table, (T,) int64.
    """

    total: Tensor
    prior: Tensor
    terms: Tensor
    x_start_mse: Tensor
    eps_mse: Tensor
    levels: Tensor

    def __str__(self) -> str:
        count = len(self.total)
        error = f" +- {self.total.std().item() / count**0.5:.4f}" if count > 1 else ""
        return (
            f"{self.total.mean().item():.4f}{error} bits/dim over {count} examples "
            f"(level 1: {self.terms[:, 0].mean().item():.4f}, levels above: "
            f"{self.terms[:, 1:].sum(1).mean().item():.4f}, prior: {self.prior.mean().item():.4f})"
        )


@frozen(eq=False)
class BoundTerms:
    """Terms of the bound at given levels, with all randomness given.

    Attributes:
        columns: Levels and transitions of the table in use.
        decoder: Log-likelihood of data at level 1.
    """

    columns: Columns
    decoder: Decoder

    @classmethod
    def of(cls, parts: Composition, table: ProcessTable, decoder: Decoder) -> BoundTerms:
        """Compute the columns of a table in use."""
        blocks = {"level": level_columns(parts, table), "transition": transition_columns(table)}
        return cls(Columns(blocks), decoder)

    def __call__(
        self, denoiser: Denoiser, x_start: Tensor, level: Tensor, noise: Tensor, decoder_rows: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the term in bits per dimension, and the mean squared errors of x_start and noise, each (B,).

        Args:
            denoiser: Network and its processing; clipping applies.
            x_start: Data, (B, C, *S).
            level: Level 1..T of the table in use, (B,) int64.
            noise: Standard normal, (B, C, *S).
            decoder_rows: Upper bound on the rows at level 1.
        """
        rows = self.columns.on(x_start.device, x_start.dtype)[level]
        at, transition = self.columns.level(rows, x_start.ndim), self.columns.transition(rows, x_start.ndim)
        x_t = mixed(at.alpha, x_start, at.sigma, noise)
        estimate, log_variance = denoiser(x_t, at)
        assert log_variance is not None, "composition refuses a bound without a variance"
        error = (estimate - x_start).square()
        kl = posterior_kl_bits(error, transition.kl_weight, log_variance, transition.log_variance)
        terms = with_decoder_term(kl, x_start, estimate, log_variance, transition.first, self.decoder, decoder_rows)
        eps = (x_t - at.alpha * estimate) / at.sigma
        return terms, mean_flat(error), mean_flat((eps - noise).square())


def prior_bits(table: ProcessTable, x_start: Tensor) -> Tensor:
    """``KL(q(x_T | x_start) || N(0, scale_T^2))`` in bits per dimension, (B,).

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 7.
    """
    alpha, sigma, scale = (float(a[-1]) for a in (table.alpha, table.sigma, table.scale))
    mean = x_start * (alpha / scale)
    log_variance = 2 * torch.log(x_start.new_tensor(sigma / scale))
    zero = x_start.new_zeros(())
    return mean_flat(normal_kl(mean, log_variance, zero, zero)) / NATS_PER_BIT


def variational_bound(
    terms: BoundTerms,
    denoiser_for: Callable[[Mapping[str, Any]], Denoiser],
    table: ProcessTable,
    x_start: Tensor,
    *,
    rows_per_call: int,
    seed: Seed,
    conditions: Mapping[str, Any],
    show: Callable[[int], None],
) -> Bound:
    """Evaluate every level of every example, ``rows_per_call`` (example, level) pairs to a call of the network.

    The noise of example i at its k-th level is a function of (seed, i, k), or of its own seed and k, whatever
    rows_per_call is.
    """
    batch, steps = len(x_start), table.num_steps
    found = x_start.new_empty(3, batch * steps)
    noise = _pair_noise(seed, x_start, steps)
    for start in range(0, batch * steps, rows_per_call):
        pairs = range(start, min(start + rows_per_call, batch * steps))
        place = torch.arange(pairs.start, pairs.stop, device=x_start.device)
        example, level = place // steps, place % steps + 1
        picked = rows_of(conditions, example, batch)
        first = sum(pair % steps == 0 for pair in pairs)
        drawn = torch.stack([noise(pair) for pair in pairs])
        values = terms(denoiser_for(picked), x_start[example], level, drawn, first)
        found[:, pairs.start : pairs.stop] = torch.stack(values)
        show(len(pairs))
    bits, x_start_mse, eps_mse = found.view(3, batch, steps)
    prior = prior_bits(table, x_start)
    levels = torch.from_numpy(table.index[1:].copy())
    return Bound(bits.sum(1) + prior, prior, bits, x_start_mse, eps_mse, levels)


def _pair_noise(seed: Seed, x_start: Tensor, steps: int) -> Callable[[int], Tensor]:
    """Noise of one (example, level) pair, asked for in ascending order."""
    device, shape = x_start.device, x_start.shape[1:]
    generator = None if seed is None else torch.Generator(device)
    seeds = [] if seed is None else seeds_of(seed, range(len(x_start)))

    def draw(pair: int) -> Tensor:
        if generator is not None and pair % steps == 0:
            generator.manual_seed(seeds[pair // steps])
        return torch.randn(shape, generator=generator, device=device, dtype=x_start.dtype)

    return draw
