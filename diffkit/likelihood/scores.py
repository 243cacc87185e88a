"""The variational bound over any amount of data, in constant memory, with the error of every number.

scores = score(system, batches, seed=0)                          # every level
scores = score(system, batches, seed=0, levels_per_example=50)   # an unbiased estimate, with its error
print(scores); scores.save("terms.npz"); scores.plot("terms.png")
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from attrs import field, frozen
from numpy.typing import NDArray
from torch import Tensor

from diffkit.errors import DataError, OptionError
from diffkit.gaussian import NATS_PER_BIT
from diffkit.likelihood.stratified_levels import Strata
from diffkit.options import check_integer
from diffkit.protocols import Composition
from diffkit.runtime.eval_mode import eval_mode
from diffkit.runtime.progress import progress as show_progress
from diffkit.runtime.publishing import save_npz
from diffkit.system.bound import BoundTerms, prior_bits, rows_at_a_time, terms_of_pairs
from diffkit.system.call_options import SCORED, EstimateOptions, conditions_in, options_in, shows_options
from diffkit.system.codec import check_likelihood, to_latents, volume_bits
from diffkit.system.conditions import check_unused
from diffkit.system.guidance import with_guidance
from diffkit.system.module import System
from diffkit.system.prepared import SamplingJob
from diffkit.system.randomness import seeds_of
from diffkit.table import F64, ProcessTable

NORMAL_95 = 1.959964
"""Half-width of a 95 % interval in standard errors (97.5 % quantile of the normal distribution)."""
FAINT = 1e-6
"""Share of the largest term below which a term is left out of plots, whose log scale it would stretch."""
QUANTITIES = ("terms", "x_start_mse", "eps_mse")

Chunk = tuple[Tensor, Mapping[str, Any]]
"""A batch: clean data (B, C, *S), and conditions."""


@frozen(eq=False)
class Scores:
    """Scores of many examples: the variational bound in bits per dimension, and its terms.

    Attributes:
        total: Bound of each example (an estimate of it, unless every level was visited), float64 (N,).
        total_error: Its standard error from the noise and the levels left out, without the decoder's term, (N,).
        prior: KL between the end of the forward process and what sampling starts from, (N,).
        index: Index of each example in the data, int64 (N,).
        levels: Level of each entry below, in the root table, ascending, int64 (T,).
        visits: Number of examples that visited the level, int64 (T,).
        terms: Mean of the bound's term at each level; the first is the decoder's negative log-likelihood, (T,).
        x_start_mse: Mean squared error of the estimate of x_start, (T,).
        eps_mse: Mean squared error of the estimate of the noise, derived from that of x_start, (T,).
        deviations: Standard deviation of each of those three over the visits, (3, T); NaN below two visits.
        levels_per_example: How many levels each example visited.
        values: Number of values of an example.
    """

    total: F64
    total_error: F64 = field(repr=False)
    prior: F64 = field(repr=False)
    index: NDArray[np.int64] = field(repr=False)
    levels: NDArray[np.int64] = field(repr=False)
    visits: NDArray[np.int64] = field(repr=False)
    terms: F64 = field(repr=False)
    x_start_mse: F64 = field(repr=False)
    eps_mse: F64 = field(repr=False)
    deviations: F64 = field(repr=False)
    levels_per_example: int
    values: int

    @property
    def nats(self) -> F64:
        """Bound of each example in nats, (N,)."""
        return self.total * (self.values * NATS_PER_BIT)

    @property
    def mean(self) -> float:
        """Mean bound over the data, bits per dimension."""
        return float(self.total.mean())

    @property
    def std_error(self) -> float:
        """Standard error of `mean` over examples, noise and levels left out; NaN for a single example."""
        count = len(self.total)
        return float(self.total.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan

    def interval(self, half_width: float = NORMAL_95) -> tuple[float, float]:
        """Return the confidence interval of `mean` under a normal distribution, 95 % by default."""
        reach = half_width * self.std_error
        return self.mean - reach, self.mean + reach

    def errors(self) -> F64:
        """Return the standard errors of terms, x_start_mse and eps_mse, (3, T); NaN below two visits."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.deviations / np.sqrt(self.visits))

    def __str__(self) -> str:
        count, steps = len(self.total), len(self.levels)
        error = self.std_error if count > 1 else self.total_error[0]
        visited = "" if self.levels_per_example == steps else f", {self.levels_per_example} of {steps} levels each"
        above = self.mean - self.prior.mean() - self.terms[0]
        return (
            f"{self.mean:.4f} +- {error:.4f} bits/dim over {count} example{'s' if count > 1 else ''}{visited} "
            f"(level {self.levels[0]}: {self.terms[0]:.4f}, levels above: {above:.4f}, prior: {self.prior.mean():.4g})"
        )

    def save(self, path: str | Path) -> Path:
        """Write the scores to an .npz file; arrays over levels ascend, in the order of `levels`.

        Over examples (N,): total, total_error, prior, index. Over levels (T,): levels, visits, and terms, x_start_mse,
        eps_mse with terms_error, x_start_mse_error, eps_mse_error.
        """
        names = ("total", "total_error", "prior", "index", "levels", "visits", *QUANTITIES)
        errors = {f"{name}_error": row for name, row in zip(QUANTITIES, self.errors(), strict=True)}
        arrays = {name: getattr(self, name) for name in names} | errors
        path = Path(path)
        path = path if path.suffix == ".npz" else path.with_name(f"{path.name}.npz")
        save_npz(path, **arrays)
        return path

    def save_reference(self, folder: str | Path) -> list[Path]:
        """Write the scores as improved-diffusion's three files: means over the data, levels DESCENDING (0 is level T).

        vb_terms.npz, mse_terms.npz and xstart_mse_terms.npz, each with arr_0 (T,).
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        named = {"vb": self.terms, "mse": self.eps_mse, "xstart_mse": self.x_start_mse}
        paths = [folder / f"{name}_terms.npz" for name in named]
        for path, column in zip(paths, named.values(), strict=True):
            save_npz(path, arr_0=column[::-1])
        return paths

    def plot(self, path: str | Path) -> Path:
        """Plot the bound's terms over levels with their 95 % intervals, and the share of the bound in the first levels.

        Raises:
            MissingExtraError: matplotlib is not installed.
            OptionError: The file cannot be written.
        """
        from diffkit.likelihood._plot import draw_scores

        return draw_scores(self, Path(path))


@shows_options(EstimateOptions, **SCORED)
def score(
    system: System,
    data: Tensor | Iterable[Chunk],
    *,
    levels_per_example: int | None = None,
    seed: int | None = 0,
    indices: Sequence[int] | None = None,
    rows_per_call: int | None = None,
    size: int | None = None,
    progress: bool | Callable[[int], None] = False,
    **options: Unpack[EstimateOptions],
) -> Scores:
    """Return the variational bound on the negative log-likelihood of data, in bits per dimension.

    With every level and the same seed it is `System.bits_per_dim`, batch by batch: the noise of example i is a function
    of (seed, i) and its levels, whatever the batches are.

    Args:
        system: Any system with discrete levels or a continuous schedule.
        data: Clean data (N, C, *S), or batches of it with their conditions, read one at a time.
        levels_per_example: Number of levels that each example visits; all by default. Fewer give an unbiased estimate:
            level 1, and a uniform one of each of the strata that the other levels are cut into.
        seed: Levels and noise of example i are a function of (seed, i); None draws new ones.
        indices: Index of each example, in the order they come; 0, 1, 2, ... by default.
        rows_per_call: Number of (example, level) pairs per network call; 16 on a CPU, 256 on a GPU.
        size: Number of examples, for the progress bar, if data has no length.
        progress: Show a bar on standard error; or a function that is called with the number of (example, level) pairs
        options: Those of `diffkit.system.call_options.EstimateOptions`.
        conditions: Keywords for the network, if data is one tensor.
    Raises:
        OptionError: An argument is wrong, or data does not fit the system.
        DataError: There is no data.
    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, eqs. 4 to 7.
    """
    check_likelihood(system.parts)
    seed = None if seed is None else check_integer("seed", seed, ge=0)
    conditions, options = conditions_in(options, EstimateOptions), SCORED | options_in(options, EstimateOptions)
    table = system.table_for(options.get("steps"))
    strata = Strata.of(table.num_steps, levels_per_example)
    guided = with_guidance(system.parts, options.get("guidance"))
    scorer = _LevelScorer(system, table, guided, strata, seed, rows_per_call)
    batches: Iterable[Chunk] = [(data, conditions)] if isinstance(data, Tensor) else data
    total = len(data) if isinstance(data, Tensor) else size
    found, parts, seen = LevelMoments.empty(table.num_steps), list[F64](), list[int]()
    with show_progress((total or 0) * len(strata.first), "bits/dim", progress is True and total is not None) as bar:
        advance = progress if callable(progress) else bar
        for x_start, given in batches:
            places = range(len(seen), len(seen) + len(x_start))
            if indices is not None and places.stop > len(indices):
                raise OptionError(f"indices must have one entry for each example, got {len(indices)}")
            index = [int(i) if indices is None else int(indices[i]) for i in places]
            job = system.prepare(len(x_start), seed=seed, **options, **given)
            check_unused(job.model, given, "sampler", "compile", "final")
            values, prior, level = scorer(x_start, job, index, advance)
            found = found.merge(LevelMoments.of(values, level, table.num_steps))
            parts.append(np.stack([strata.total(values[0]) + prior, strata.error(values[0]), prior]))
            seen.extend(index)
    if not seen:
        raise DataError("there is no data to score")
    levels = table.index[1:].copy()
    each, dims = np.concatenate(parts, axis=1), math.prod(system.data_shape)
    return _create_scores(each, np.array(seen, dtype=np.int64), found, levels, len(strata.first), dims)


def merge_scores(scores: Sequence[Scores]) -> Scores:
    """Merge the scores of several parts of the data, in ascending order of index."""
    found = LevelMoments.empty(len(scores[0].levels))
    for part in scores:
        found = found.merge(LevelMoments.from_scores(part))
    index = np.concatenate([part.index for part in scores])
    each = np.concatenate([np.stack([part.total, part.total_error, part.prior]) for part in scores], axis=1)
    order = np.argsort(index, kind="stable")
    one = scores[0]
    return _create_scores(each[:, order], index[order], found, one.levels, one.levels_per_example, one.values)


@frozen(eq=False)
class LevelMoments:
    """Mean and scatter of the bound's three quantities at each level, merged batch by batch without cancellation.

    Attributes:
        count: Number of visits, int64 (T,).
        mean: (3, T) float64; zero without visits.
        scatter: Sum of squared deviations from the mean, (3, T).
    Source: Chan et al. 1983, "Algorithms for computing the sample variance", for the merging.
    """

    count: NDArray[np.int64]
    mean: F64
    scatter: F64

    @classmethod
    def empty(cls, steps: int) -> LevelMoments:
        """Return moments of no data."""
        return cls(np.zeros(steps, dtype=np.int64), np.zeros((3, steps)), np.zeros((3, steps)))

    @classmethod
    def of(cls, values: F64, level: NDArray[np.int64], steps: int) -> LevelMoments:
        """Return the moments at each level of one batch of scores: values (3, B, K) at levels (B, K) in 1..steps."""
        place = level.ravel() - 1
        count = np.bincount(place, minlength=steps)
        rows = values.reshape(3, -1)
        share = np.maximum(count, 1)
        mean = np.stack([np.bincount(place, row, steps) for row in rows]) / share
        squared = (rows - mean[:, place]) ** 2
        scatter = np.stack([np.bincount(place, row, steps) for row in squared])
        return cls(count, mean, np.asarray(scatter, dtype=np.float64))

    @classmethod
    def from_scores(cls, scores: Scores) -> LevelMoments:
        """Return the moments of scores."""
        mean = np.stack([getattr(scores, name) for name in QUANTITIES])
        scatter = np.nan_to_num(scores.deviations**2) * np.maximum(scores.visits - 1, 0)
        return cls(scores.visits, np.nan_to_num(mean), scatter)

    def merge(self, other: LevelMoments) -> LevelMoments:
        """Return the moments at each level of two sets of scores together."""
        count = self.count + other.count
        share = other.count / np.maximum(count, 1)
        gap = other.mean - self.mean
        mean = self.mean + gap * share
        return LevelMoments(count, mean, self.scatter + other.scatter + gap**2 * (self.count * share))

    def deviations(self) -> F64:
        """Return the standard deviations, (3, T); NaN below two visits."""
        spread = np.sqrt(self.scatter / np.maximum(self.count - 1, 1))
        return np.asarray(np.where(self.count > 1, spread, np.nan))


class _LevelScorer:
    """Scores a batch at some levels, a fixed number of (example, level) pairs per call of the network."""

    def __init__(
        self,
        system: System,
        table: ProcessTable,
        parts: Composition,
        strata: Strata,
        seed: int | None,
        rows: int | None,
    ):
        self.system, self.table, self.strata, self.seed = system, table, strata, seed
        self.rows = rows_at_a_time(rows, system.device)
        self.terms = BoundTerms.of(parts, table, system.decoder)

    @torch.no_grad()
    def __call__(
        self, x_start: Tensor, job: SamplingJob, index: Sequence[int], advance: Callable[[int], None]
    ) -> tuple[F64, F64, NDArray[np.int64]]:
        """Return the bound's three quantities (3, B, K), the prior's bits (B,), and the levels visited (B, K)."""
        x_start = self.system.checked(x_start).to(self.system.device)
        z, volume = to_latents(self.system.parts, x_start), volume_bits(self.system.parts, x_start)
        level = np.stack([self._levels(i) for i in index])
        seeds = None if self.seed is None else seeds_of(self.seed, index)
        with eval_mode(self.system, *job.networks()):
            found = terms_of_pairs(self.terms, job.denoiser, z, level, seeds, self.rows, advance)
        found[0, :, 0] += volume  # the first level of each example is level 1, whose term is the decoder's
        prior = prior_bits(self.table, z)
        return found.double().cpu().numpy(), prior.double().cpu().numpy(), level

    def _levels(self, index: int) -> NDArray[np.int64]:
        entropy = None if self.seed is None else (self.seed, index, 1)  # the noise has (seed, index)
        return self.strata.draw(np.random.default_rng(entropy))


def _create_scores(
    each: F64,
    index: NDArray[np.int64],
    found: LevelMoments,
    levels: NDArray[np.int64],
    levels_per_example: int,
    values: int,
) -> Scores:
    total, total_error, prior = each
    terms, x_start_mse, eps_mse = np.where(found.count > 0, found.mean, np.nan)
    return Scores(
        total=total,
        total_error=total_error,
        prior=prior,
        index=index,
        levels=levels,
        visits=found.count,
        terms=terms,
        x_start_mse=x_start_mse,
        eps_mse=eps_mse,
        deviations=found.deviations(),
        levels_per_example=levels_per_example,
        values=values,
    )
