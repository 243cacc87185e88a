"""Laws of timestep samplers."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from diffkit.protocols import ContinuousTimestepSampler, PairSampler, State, TimestepSampler
from diffkit.testing._check import NotApplicableError, Where, check, record_where
from diffkit.testing._close import map_tree, require, require_close, require_same, tree_leaves
from diffkit.testing._host import on_fake_tensors
from diffkit.testing._paths import VP, WITHOUT_SIGNAL, NoisePath, compose_on_path

STEPS = (1, 2, 3, 20)
_GRID = 1 << 16  # uniforms in a grid that covers [0, 1)
_GOLDEN = (5**0.5 - 1) / 2  # whose multiples, modulo 1, are spread evenly
_LARGEST = 1 - 2.0**-53  # the largest float64 below 1


def _uniforms(count: int = 4096) -> Tensor:
    """Return a grid over [0, 1), with both ends."""
    middle = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.cat([middle.new_zeros(1), middle, middle.new_full((1,), _LARGEST)])


def _draw(timesteps: TimestepSampler, state: State, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """Return levels and weights; of pairs the first levels, with second uniforms that are spread evenly."""
    if not isinstance(timesteps, PairSampler):
        return timesteps.sample(state, u, num_steps)
    t, _, weight = timesteps.sample(state, _pairs(u), num_steps)
    return t, weight


def _pairs(u: Tensor) -> Tensor:
    """Return pairs of uniforms, (B, 2), of which the first are given."""
    return torch.stack([u, (torch.arange(len(u), dtype=torch.float64, device=u.device) + 0.5) * _GOLDEN % 1], 1)


def _states(timesteps: TimestepSampler, num_steps: int) -> Iterator[tuple[str, State]]:
    """Yield states of a timestep sampler: initial; after uneven, zero, NaN losses; with no signal at T."""
    state = timesteps.init(VP.table(num_steps))
    yield "a fresh state", state
    level = torch.arange(num_steps).repeat(64) + 1
    uneven = (level.double() / num_steps) ** 3 * 10 + 0.01
    yield "after losses 1000 times as large at T", timesteps.update(state, level, uneven.float())
    yield "after losses of zero", timesteps.update(state, level, torch.zeros(len(level)))
    broken = uneven.float().clone()
    broken[::7], broken[::11] = torch.nan, torch.inf
    yield "after losses some of which are NaN or inf", timesteps.update(state, level, broken)
    if _accepts_path(timesteps, path := WITHOUT_SIGNAL[0]):
        state = timesteps.init(path.table(num_steps))
        yield f"{path.label}, a fresh state", state
        yield f"{path.label}, after losses 1000 times as large at T", timesteps.update(state, level, uneven.float())


def _accepts_path(timesteps: TimestepSampler, path: NoisePath) -> bool:
    """Return whether a timestep sampler accepts a path, from its problems(); the checks find other faults."""
    parts = attrs.evolve(compose_on_path(path, 20).parts, timesteps=timesteps)
    return not list(timesteps.problems(parts))


def _cases(timesteps: TimestepSampler) -> Iterator[tuple[int, State, Where]]:
    for num_steps in STEPS:
        for label, state in _states(timesteps, num_steps):
            yield num_steps, state, record_where(Where(num_steps=num_steps, detail=label))


def _discrete(timesteps: TimestepSampler) -> None:
    if isinstance(timesteps, ContinuousTimestepSampler):
        raise NotApplicableError("its levels are continuous")


@check("timesteps")
def draws_levels_of_the_table(timesteps: TimestepSampler) -> None:
    """A timestep sampler draws int64 levels in 1..T and finite float32 weights > 0, for all uniforms in [0, 1).

    Usually: 0..T-1 for 1..T, rounding up at the upper end, or a weight 1/p where p can be 0.
    """
    _discrete(timesteps)
    for num_steps, state, where in _cases(timesteps):
        t, weight = _draw(timesteps, state, _uniforms(), num_steps)
        require(t.dtype == torch.int64 and t.shape == (4098,), "int64 (B,)", f"{t.dtype} {tuple(t.shape)}", where)
        _require_weights(weight, where)
        low, high = int(t.min()), int(t.max())
        require(low >= 1 and high <= num_steps, f"levels in 1..{num_steps}", f"{low}..{high}", where)


def _require_weights(weight: Tensor, where: Where) -> None:
    good = weight.dtype == torch.float32 and weight.shape == (4098,)
    require(good, "weights float32 (B,)", f"{weight.dtype} {tuple(weight.shape)}", where)
    usable = bool(weight.isfinite().all() and (weight > 0).all())
    require(usable, "weights finite and > 0", f"{float(weight.min())} to {float(weight.max())}", where)


@check("timesteps")
def unbiased(timesteps: TimestepSampler) -> None:
    """A timestep sampler's weights undo its preference: p(t) w(t) T = 1 at every level, in every state.

    Usually: a weight of another p than was drawn from, a forgotten T, or levels that are never drawn.
    """
    _discrete(timesteps)
    for num_steps, state, where in _cases(timesteps):
        share, slack = _weighted_shares(timesteps, state, num_steps)
        require_close(share * num_steps, 1.0, 1e-5 + slack, "p(t) w(t) T", where, level_of=lambda i: i + 1, scale=1.0)


def _weighted_shares(timesteps: TimestepSampler, state: State, num_steps: int) -> tuple[Tensor, float]:
    """Return p(t) w(t) at levels 1..T, and its accuracy relative to 1 / T."""
    u = (torch.arange(_GRID, dtype=torch.float64) + 0.5) / _GRID
    t, weight = _draw(timesteps, state, u, num_steps)
    found = torch.zeros(num_steps, dtype=torch.float64)
    ascending = bool((t[1:] >= t[:-1]).all()) and not isinstance(timesteps, PairSampler)
    if ascending and _elementwise(timesteps, state, num_steps, u, t):
        edges = _level_edges(timesteps, state, num_steps)
        middle = (edges[1:] + edges[:-1]) / 2
        levels, weights = _draw(timesteps, state, middle, num_steps)
        found.scatter_add_(0, levels - 1, (edges[1:] - edges[:-1]) * weights.double())
        return found, 0.0
    found.scatter_add_(0, t - 1, weight.double() / _GRID)
    if isinstance(timesteps, PairSampler):
        return found, 32 * num_steps * float(weight.max()) / _GRID
    return found, 4 * num_steps * float(weight.max()) / _GRID


def _elementwise(timesteps: TimestepSampler, state: State, num_steps: int, u: Tensor, t: Tensor) -> bool:
    some = torch.randperm(len(u), generator=torch.Generator().manual_seed(0))[:257]
    return torch.equal(_draw(timesteps, state, u[some], num_steps)[0], t[some])


def _level_edges(timesteps: TimestepSampler, state: State, num_steps: int) -> Tensor:
    """Return the uniforms u at which the level jumps, found by bisection, with 0 and 1."""
    level = torch.arange(1, num_steps, dtype=torch.int64)
    low, high = torch.zeros(num_steps - 1, dtype=torch.float64), torch.ones(num_steps - 1, dtype=torch.float64)
    for _ in range(60 if num_steps > 1 else 0):
        middle = (low + high) / 2
        above = _draw(timesteps, state, middle.clamp(max=_LARGEST), num_steps)[0] > level
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return torch.cat([low.new_zeros(1), high, low.new_ones(1)])


@check("timesteps")
def second_levels_are_below(timesteps: TimestepSampler) -> None:
    """Of a pair of levels the second is not above the first: int64 in 0..t, or a float64 log_snr of at least the first.

    Usually: s drawn on 0..T, whatever t is, or rounded up to t + 1 at the upper end; sort the two.
    """
    if not isinstance(timesteps, PairSampler):
        raise NotApplicableError("it draws one level for each example")
    ends = torch.tensor([0.0, 0.3, 0.7, _LARGEST], dtype=torch.float64)
    u = torch.cat([_pairs(_uniforms()), torch.cartesian_prod(ends, ends)])
    for num_steps, state, where in _cases(timesteps):
        t, s, _ = timesteps.sample(state, u, num_steps)
        same = s.shape == t.shape and s.dtype == t.dtype
        require(same, f"s of {t.dtype} {tuple(t.shape)}, as t", f"{s.dtype} {tuple(s.shape)}", where)
        wrong = (s < t) if t.is_floating_point() else (s > t) | (s < 0)
        bad = wrong.nonzero().flatten().tolist()
        pair = (t[bad[0]].item(), s[bad[0]].item()) if bad else ()
        expected = "log_snr of s >= that of t" if t.is_floating_point() else "0 <= s <= t"
        require(not bad, expected, f"t, s = {pair}", where)


@check("timesteps")
def same_uniforms_same_draw(timesteps: TimestepSampler) -> None:
    """A timestep sampler's draw is a function of state and uniforms, and changes neither.

    Usually: torch.rand or multinomial inside sample, or a counter.
    """
    for num_steps, state, where in _cases(timesteps):
        u = _uniforms()
        before = map_tree(torch.clone, (state, u))
        first = _draw(timesteps, state, u, num_steps)
        require_same(_draw(timesteps, state, u, num_steps), first, "the same draw", where)
        require_same((state, u), before, "state and uniforms unchanged", where)


@check("timesteps")
def update_is_pure(timesteps: TimestepSampler) -> None:
    """A timestep sampler's update changes no argument, gives the same for the same, and returns a state of tensors.

    Usually: an in-place write into the history, or a counter that is a Python number.
    """
    for num_steps, state, where in _cases(timesteps):
        t, losses = _batch(num_steps)
        before = map_tree(torch.clone, (state, t, losses))
        first = timesteps.update(state, t, losses)
        require_same((state, t, losses), before, "arguments unchanged", where)
        require_same(timesteps.update(state, t, losses), first, "the same state", where)
        tensors = all(isinstance(leaf, Tensor) for leaf in tree_leaves(first))
        require(tensors, "a state of tensors", [type(leaf).__name__ for leaf in tree_leaves(first)], where)
        forms = [[(leaf.shape, leaf.dtype) for leaf in tree_leaves(s)] for s in (state, first)]
        require(forms[0] == forms[1], "a state that keeps its shapes and dtypes", forms[1], where)


def _batch(num_steps: int) -> tuple[Tensor, Tensor]:
    """Return a batch of levels, many of them equal, and losses."""
    generator = torch.Generator().manual_seed(3)
    t = torch.randint(1, num_steps + 1, (24,), generator=generator)
    return t, torch.rand(24, generator=generator) * 5


@check("timesteps")
def batch_is_its_rows(timesteps: TimestepSampler) -> None:
    """A timestep sampler's update by a batch equals updates by its rows in turn, also with a level twice.

    So it does not matter how a batch is split over ranks or accumulation steps.
    Usually: indexed assignment, of which only one of several writes to the same place survives.
    """
    for num_steps, state, where in _cases(timesteps):
        t, losses = _batch(num_steps)
        whole, one_by_one = timesteps.update(state, t, losses), state
        for i in range(len(t)):
            one_by_one = timesteps.update(one_by_one, t[i : i + 1], losses[i : i + 1])
        drawn, expected = (_draw(timesteps, s, _uniforms(), num_steps) for s in (whole, one_by_one))
        at = attrs.evolve(where, detail=f"{where.detail}, then 24 rows with duplicates")
        require_close(drawn[1], expected[1], 1e-5, "weight", at)
        require_same(drawn[0], expected[0], "the levels drawn as after its rows in turn", at)


@check("timesteps")
def reads_no_value(timesteps: TimestepSampler) -> None:
    """A timestep sampler never makes the host wait: no value of a tensor is read.

    Usually: an `if` on whether the history is full, a loop over the batch, or torch.unique.
    """
    with on_fake_tensors():
        state = timesteps.init(VP.table(20))
        t, _ = _draw(timesteps, state, torch.zeros(4, dtype=torch.float64), 20)
        if not isinstance(timesteps, ContinuousTimestepSampler):
            timesteps.update(state, t, torch.zeros(4))


@check("timesteps")
def covers_continuous_levels(timesteps: TimestepSampler) -> None:
    """A continuous timestep sampler gives distinct finite float64 log_snr for all u in [0, 1), weights of mean 1.

    Usually: an inverse distribution function that is infinite at u = 0 (clamp u), or weights left unnormalized.
    """
    if not isinstance(timesteps, ContinuousTimestepSampler):
        raise NotApplicableError("its levels are discrete")
    state, u = timesteps.init(VP.table(20)), _uniforms()
    log_snr, weight = _draw(timesteps, state, u, 20)
    found = f"{log_snr.dtype} {tuple(log_snr.shape)}"
    require(log_snr.dtype == torch.float64 and log_snr.shape == u.shape, "log_snr float64 (B,)", found)
    bad = (~log_snr.isfinite()).nonzero().flatten().tolist()
    at = Where(detail=f"u = {float(u[bad[0]])!r}" if bad else "")
    require(not bad, "a finite log_snr", [float(log_snr[i]) for i in bad[:1]], at)
    _require_weights(weight, Where())
    inner = log_snr[1:-1]
    gaps = inner.sort().values.diff()
    require(bool((gaps > 0).all()), "a different log_snr for every u", "a log_snr of nonzero probability")
    require_close(weight[1:-1].double().mean(), 1.0, 1e-2, "mean weight", scale=1.0)
