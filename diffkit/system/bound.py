"""The variational bound on bits per dimension, all levels batched together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from attrs import frozen
from numpy.typing import NDArray
from torch import Tensor

from diffkit.gaussian import NATS_PER_BIT, mean_flat, mixed, normal_kl, posterior_kl_bits, with_decoder_term
from diffkit.options import check_integer
from diffkit.protocols import Composition, Decoder
from diffkit.system.coefficients import CoefficientTable, level_coefficients, transition_coefficients
from diffkit.system.denoiser import Denoiser
from diffkit.system.randomness import Seed, seeds_of
from diffkit.table import ProcessTable

DenoiserOf = Callable[[Tensor], Denoiser]
"""The denoiser of the examples with these indices, which may repeat."""


@frozen(eq=False)
class Bound:
    """The bound of each example, in bits per dimension, and its terms.

    Attributes:
        total: Sum of the terms and the prior, (B,).
        prior: KL between the end of the forward process and the distribution sampling starts from, (B,).
        terms: Of levels 1..T in ascending order: column 0 is the decoder's negative log-likelihood, (B, T).
        x_start_mse: Mean squared error of the estimate of x_start at each level, of latents with a codec, (B, T).
        eps_mse: Mean squared error of the noise, computed from that estimate, (B, T).
        levels: Level of each column, in the root table, (T,) int64; the one below, where it lies between two.
        values: Number of values of an example.
    """

    total: Tensor
    prior: Tensor
    terms: Tensor
    x_start_mse: Tensor
    eps_mse: Tensor
    levels: Tensor
    values: int

    @property
    def nats(self) -> Tensor:
        """The bound of each example in nats, (B,)."""
        return self.total * (self.values * NATS_PER_BIT)

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

    columns: CoefficientTable
    decoder: Decoder

    @classmethod
    def of(cls, parts: Composition, table: ProcessTable, decoder: Decoder) -> BoundTerms:
        """Compute the columns of a table in use."""
        blocks = {"level": level_coefficients(parts, table), "transition": transition_coefficients(table)}
        return cls(CoefficientTable(blocks), decoder)

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
        estimate, log_variance = denoiser(x_t, at)[:2]
        assert log_variance is not None, "composition raises an error for a bound without a variance"
        error = (estimate - x_start).square()
        kl = posterior_kl_bits(error, transition.kl_weight, log_variance, transition.log_variance)
        terms = with_decoder_term(kl, x_start, estimate, log_variance, transition.first, self.decoder, decoder_rows)
        eps = (x_t - at.alpha * estimate) / at.sigma
        return terms, mean_flat(error), mean_flat((eps - noise).square())


def prior_bits(table: ProcessTable, x_start: Tensor) -> Tensor:
    """``KL(q(x_T | x_start) || N(0, total_std_T^2))`` in bits per dimension, (B,).

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 7.
    """
    alpha, sigma, total_std = (float(a[-1]) for a in (table.alpha, table.sigma, table.total_std))
    mean = x_start * (alpha / total_std)
    log_variance = 2 * torch.log(x_start.new_tensor(sigma / total_std))
    zero = x_start.new_zeros(())
    return mean_flat(normal_kl(mean, log_variance, zero, zero)) / NATS_PER_BIT


def rows_at_a_time(rows_per_call: int | None, device: torch.device) -> int:
    """Return the number of (example, level) pairs in one call of the network: by default 16 on a CPU, 256 on a GPU.

    Raises:
        OptionError: It is not an integer >= 1.
    """
    if rows_per_call is None:
        return 16 if device.type == "cpu" else 256
    return check_integer("rows_per_call", rows_per_call, ge=1)


def variational_bound(
    terms: BoundTerms,
    table: ProcessTable,
    denoiser_of: DenoiserOf,
    x_start: Tensor,
    seed: Seed,
    rows_per_call: int,
    show: Callable[[int], None],
    volume: Tensor | float = 0.0,
) -> Bound:
    """Evaluate every level of every example.

    The noise of example i at its k-th level is a function of (seed, i, k), or of its own seed and k, independent of
    rows_per_call.

    Args:
        terms: Terms on the table in use.
        table: The table in use.
        seed: As `checked_seed` returns.
        denoiser_of, x_start, rows_per_call, show: As in `terms_of_pairs`; x_start are latents if there is a codec.
        volume: Bits to add to the decoder's term, for the volume that a codec changes, (B,).
    """
    batch = len(x_start)
    level = np.tile(np.arange(1, table.num_steps + 1), (batch, 1))
    seeds = None if seed is None else seeds_of(seed, range(batch))
    bits, x_start_mse, eps_mse = terms_of_pairs(terms, denoiser_of, x_start, level, seeds, rows_per_call, show)
    bits[:, 0] += volume
    prior = prior_bits(table, x_start)
    levels = torch.from_numpy(table.index[1:].copy())
    return Bound(bits.sum(1) + prior, prior, bits, x_start_mse, eps_mse, levels, x_start[0].numel())


def terms_of_pairs(
    terms: BoundTerms,
    denoiser_of: DenoiserOf,
    x_start: Tensor,
    level: NDArray[np.int64],
    seeds: Sequence[int] | None,
    rows_per_call: int,
    show: Callable[[int], None],
) -> Tensor:
    """Return the values of `BoundTerms` at K levels of each example, (3, B, K), with ``rows_per_call`` pairs in a call.

    Args:
        terms: Terms on the table in use.
        denoiser_of: Returns the network and its processing for some of the examples; `SamplingJob.denoiser`.
        x_start: Data, (B, C, *S).
        level: Levels 1..T of the table in use, (B, K).
        seeds: Seed of the noise of each example, drawn level after level; None is unseeded.
        rows_per_call: Number of (example, level) pairs in one call of the network.
        show: Called with the number of pairs after each call.
    """
    flat, count, device = level.ravel(), level.shape[1], x_start.device
    found = x_start.new_empty(3, len(flat))
    noise = _pair_noise(seeds, x_start, count)
    at = torch.from_numpy(flat).to(device)  # uploaded once: an upload in each call would synchronize
    for start in range(0, len(flat), rows_per_call):
        pairs = range(len(flat))[start : start + rows_per_call]
        rows = slice(pairs.start, pairs.stop)
        example = torch.arange(pairs.start, pairs.stop, device=device) // count
        drawn = torch.stack([noise(pair) for pair in pairs])
        first = int((flat[rows] == 1).sum())
        found[:, rows] = torch.stack(terms(denoiser_of(example), x_start[example], at[rows], drawn, first))
        show(len(pairs))
    return found.view(3, *level.shape)


def _pair_noise(seeds: Sequence[int] | None, x_start: Tensor, count: int) -> Callable[[int], Tensor]:
    """Noise of one (example, level) pair; called for pairs in ascending order."""
    device, shape = x_start.device, x_start.shape[1:]
    generator = None if seeds is None else torch.Generator(device)

    def draw(pair: int) -> Tensor:
        if generator is not None and seeds is not None and pair % count == 0:
            generator.manual_seed(seeds[pair // count])
        return torch.randn(shape, generator=generator, device=device, dtype=x_start.dtype)

    return draw
