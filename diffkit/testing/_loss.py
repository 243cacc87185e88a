"""Laws of losses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from diffkit.errors import CompositionError, OptionError
from diffkit.protocols import Loss, NetworkLoss, PairSampler
from diffkit.table import Coefs
from diffkit.testing._check import NotApplicableError, Where, check, record_where
from diffkit.testing._close import map_tree, require, require_close, require_same
from diffkit.testing._host import count_graphs, on_fake_tensors
from diffkit.testing._paths import VE, VP, WHOLE, ContinuousLevels, LevelPairs, NoisePath, compose_on_path, target_of

_MEANS = ("eps", "x_start", "v", "score", "x_prev")
_VARS = ("fixed_small", "learned_range", "learned")
_SHAPE = (2, 3, 4)
_MANY_CHANNELS = (5, 2, 3)  # more than the three of RGB, and the four of a latent
_NEAR = 1e-7  # of the exact prediction's size: far beyond its rounding, and too near for curvature to count


@frozen(eq=False)
class LossCase:
    """Case of the checks of losses: a loss in a composition, with a batch of data at some levels.

    Attributes:
        system: The composition.
        where: What it is, for a finding.
        x_start, noise: Data on the decoder's bins, away from its ends, and noise, float64.
        level: Level of each row (log_snr where levels are continuous).
        exact: Mean channels of the exact prediction.
        raw: Variance channels, or None.
        level_to: Second level of each row, where the loss reads pairs; else None.
    """

    system: Any
    where: Where
    x_start: Tensor
    noise: Tensor
    level: Tensor
    exact: Tensor
    raw: Tensor | None
    level_to: Tensor | None = None

    def terms(self, mean: Tensor, raw: Tensor | None = None, **more: Any) -> dict[str, Tensor]:
        """Return the loss's terms when the network answers with these channels."""
        raw = self.raw if raw is None else raw
        out = mean if raw is None else torch.cat([mean, raw], 1)
        given = {"x_start": self.x_start, "level": self.level, "noise": self.noise, "level_to": self.level_to} | more
        found: dict[str, Tensor] = self.system.loss_terms(lambda x, time, **_: out, **given)
        return found

    def rows(self, picked: Tensor) -> LossCase:
        """Return the case with some rows of the batch only."""
        names = ("x_start", "noise", "level", "exact", "raw", "level_to")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        return attrs.evolve(self, **{name: value[picked] for name, value in given.items()})


def _system(loss: Loss, path: NoisePath, num_steps: int, **parts: Any) -> Any:
    pairs = {"timesteps": LevelPairs()} if isinstance(loss, NetworkLoss) and loss.needs_pairs else {}
    parts = {"sampler": "ancestral", "data_shape": _SHAPE} | parts | pairs
    try:
        return compose_on_path(path, num_steps, loss=loss, **parts).requires_grad_(False)  # weights of the loss
    except (CompositionError, OptionError):
        return None


def _case(system: Any, where: Where, level: Tensor, seed: int = 0) -> LossCase:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(level), *system.data_shape)
    steps = torch.randint(20, 235, shape, generator=generator, dtype=torch.int64)
    x_start, noise = steps / 127.5 - 1, torch.randn(shape, generator=generator, dtype=torch.float64)
    x_start = x_start.double()
    raw = None
    if system.parts.var.extra_outputs:
        channels = shape[1] * system.parts.var.extra_outputs
        raw = torch.rand(shape[0], channels, *shape[2:], generator=generator, dtype=torch.float64) * 1.6 - 0.8
        raw = raw - 3.0 if not system.parts.var.columns(system.table) else raw
    exact, pairs = _exact_prediction(system, level, x_start, noise), isinstance(system.parts.timesteps, PairSampler)
    return LossCase(system, where, x_start, noise, level, exact, raw, level // 2 if pairs else None)


def _exact_prediction(system: Any, level: Tensor, x_start: Tensor, noise: Tensor) -> Tensor:
    """Return the output of a perfect network."""
    if level.is_floating_point():
        total_std, _ = system.parts.schedule.level(level)
        at = Coefs(total_std * level.sigmoid().sqrt(), total_std * (-level).sigmoid().sqrt(), level)
        target: tuple[Any, ...] = target_of(at, system.parts.mean.scalings(at, None))
    else:
        table = system.table
        at = table.at(slice(1, None))
        columns = target_of(at, system.parts.mean.scalings(at, table.at(slice(None, -1))))
        target = tuple(torch.from_numpy(column)[level - 1] for column in columns)
    p, q = (value.view(-1, *(1,) * (x_start.ndim - 1)) for value in target)
    exact: Tensor = p * x_start + q * noise
    return exact


def _levels(num_steps: int) -> Tensor:
    """Return the levels of a batch: 1 (twice), T and some between."""
    return torch.tensor([1, num_steps, 1, max(1, num_steps // 3), max(1, num_steps - 1), max(1, num_steps // 2)])


def _compositions(loss: Loss) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield pairs of a mean and a variance that a loss can be composed with, on a VP table of 20 levels."""
    accepted = 0
    for var in _VARS:
        for mean in _MEANS:
            system = _system(loss, VP, 20, mean=mean, var=var)
            if system is not None:
                accepted += 1
                yield {"mean": mean, "var": var}, system
    require(accepted > 0, "a mean and a variance that it goes with", "all built-in ones are refused")


def _cases(loss: Loss, bins: int | None = None, continuous: bool = True) -> Iterator[LossCase]:
    """Yield a loss in every composition, and at continuous levels if it supports them."""
    for parts, _ in _compositions(loss):
        yield _case_on(loss, VP, 20, bins, parts)
    yield from _few_cases(loss, bins, continuous)


def _few_cases(loss: Loss, bins: int | None = None, continuous: bool = True) -> Iterator[LossCase]:
    """Yield one mean with each variance, on several tables, and at continuous levels if the loss supports them."""
    for var in {parts["var"]: None for parts, _ in _compositions(loss)}:
        parts = next(parts for parts, _ in _compositions(loss) if parts["var"] == var)
        for path, num_steps in ((VE, 20), (VP, 1), (VP, 2), (VP, 3)):
            if _system(loss, path, num_steps, bins=bins, **parts) is not None:
                yield _case_on(loss, path, num_steps, bins, parts)
    if continuous and not loss.needs_transition and not isinstance(loss, NetworkLoss):
        yield from _continuous_cases(loss, bins)


def _case_on(loss: Loss, path: NoisePath, num_steps: int, bins: int | None, parts: dict[str, Any]) -> LossCase:
    label = f"mean {parts['mean']!r}, var {parts['var']!r}"
    where = record_where(Where(path.label, num_steps, detail=label))
    return _case(_system(loss, path, num_steps, bins=bins, **parts), where, _levels(num_steps))


def _continuous_cases(loss: Loss, bins: int | None, shape: tuple[int, ...] = _SHAPE) -> Iterator[LossCase]:
    level = torch.tensor([-6.0, -2.0, 0.1, 3.0, 7.0], dtype=torch.float64)
    for path in WHOLE:
        plain = {"timesteps": ContinuousLevels(), "mean": "v", "var": "fixed_small"}
        system = _system(loss, path, 20, bins=bins, data_shape=shape, **plain)
        if system is not None:
            yield _case(system, record_where(Where(path.label, detail="continuous levels")), level)


def _some_output(case: LossCase, seed: int = 7, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    away = torch.randn(case.exact.shape, generator=generator, dtype=torch.float64)
    return case.exact + size * away


def _reads_one_output(loss: Loss) -> None:
    if isinstance(loss, NetworkLoss):
        raise NotApplicableError("it calls the network again, so that its optimum is another")


def _level_of(case: LossCase, row: int) -> Where:
    level = case.level[row]
    if level.is_floating_point():
        return attrs.evolve(case.where, detail=f"{case.where.detail}, log_snr {float(level):g}")
    return attrs.evolve(case.where, level=int(level))


@check("loss")
def one_number_for_each_example(loss: Loss) -> None:
    """The loss returns "loss" and metrics, each a finite float32 (B,), also for a network that is far off.

    Usually: .mean() over the batch, a log of something that reaches 0, or float64 constants.
    """
    for case in _cases(loss, bins=256):
        for size in (0.0, 1.0, 10.0):
            given = map_tree(torch.Tensor.float, (case.x_start, case.noise, _some_output(case, size=size), case.raw))
            terms = case.terms(given[2], given[3], x_start=given[0], noise=given[1])
            require("loss" in terms, "a term called 'loss'", sorted(terms), case.where)
            for name, term in terms.items():
                found = f"{term.dtype} {tuple(term.shape)}"
                good = term.shape == (len(case.level),) and term.dtype == torch.float32
                require(good, f"{name!r} float32 ({len(case.level)},)", found, case.where)
                bad = (~term.isfinite()).nonzero().flatten().tolist()
                at = _level_of(case, bad[0]) if bad else case.where
                require(not bad, f"{name!r} finite", [float(term[i]) for i in bad[:1]], at)


@check("loss")
def any_shape_of_data(loss: Loss) -> None:
    """The loss takes points, signals, images and volumes, one example or many.

    Usually: dim=(1, 2, 3), a shape written out, or a squeeze that takes the batch axis with it.
    """
    for parts, _ in _compositions(loss):
        for shape, batch in (((2,), 1), ((3, 5), 2), ((1, 4, 6), 2), ((2, 2, 3, 2), 1)):
            system = _system(loss, VP, 20, data_shape=shape, **parts)
            where = Where("vp", 20, detail=f"data {(batch, *shape)}")
            case = _case(system, where, torch.tensor([20, 1])[:batch])
            for name, term in case.terms(_some_output(case)).items():
                require(tuple(term.shape) == (batch,), f"{name!r} of shape ({batch},)", tuple(term.shape), where)


@check("loss")
def least_at_the_exact_prediction(loss: Loss) -> None:
    """The loss is least at the exact prediction, at every level, and larger at one that is clearly off.

    Usually: a target of another parameterization, a wrong sign or weight (a negative one), or alpha for sqrt alpha.
    """
    _reads_one_output(loss)
    for case in _cases(loss):
        least = case.terms(case.exact)["loss"]
        for seed, size in ((1, 1e-3), (2, 0.03), (3, 0.5), (4, 3.0)):
            for sign in (1, -1):
                other = case.terms(_some_output(case, seed, sign * size))["loss"]
                gain = least - other
                worst = int(gain.argmax())
                small = 1e-9 * (1 + float(least[worst].abs()))
                found = f"{float(other[worst]):.6g} at a prediction off by {size}"
                expected = f"a loss >= {float(least[worst]):.6g}, that of the exact prediction"
                require(float(gain[worst]) <= small, expected, found, _level_of(case, worst))
                if size >= 0.5:
                    flat = (other <= least).nonzero().flatten().tolist()
                    at = _level_of(case, flat[0]) if flat else case.where
                    require(not flat, f"a larger loss at a prediction off by {size}", "the same", at)


@check("loss")
def every_element_counts(loss: Loss) -> None:
    """The loss grows if any element of the exact mean is moved, alone or with others along any axes.

    Usually: some channels cut out (out[:, :3] of data that has four), or a mean over an axis taken off the error.
    """
    _reads_one_output(loss)
    moves, labels = _directions(_MANY_CHANNELS)
    still = torch.zeros_like(moves[:1])
    for case in _small_cases(loss):
        levels, count = len(case.level), len(moves) + 1
        rows = case.rows(torch.arange(levels).repeat_interleave(count))
        moved = torch.cat([still, moves]).repeat(levels, 1, 1, 1)
        for sign in (3.0, -3.0):
            cost = rows.terms(rows.exact + sign * moved)["loss"].view(levels, count)
            added = cost[:, 1:] - cost[:, :1]
            free = (added <= 1e-9 * added.max(1, keepdim=True).values).nonzero().tolist()
            at = _level_of(case, free[0][0]) if free else case.where
            what = labels[free[0][1]] if free else ""
            expected = f"a larger loss where {what} of the mean is off by {abs(sign):g}"
            require(not free, expected, "no larger one", at)


def _directions(shape: tuple[int, ...]) -> tuple[Tensor, list[str]]:
    """Return directions (M, *shape), products of one for each axis: one place, all places, or alternating signs."""
    found, labels = [torch.ones((), dtype=torch.float64)], [""]
    for side in shape:
        places = torch.eye(side, dtype=torch.float64)
        signs = torch.ones(2, side, dtype=torch.float64)
        signs[1, 1::2] = -1
        found = [torch.tensordot(move, axis, 0) for move in found for axis in (*places, *signs)]
        labels = [f"{label}{place}, " for label in labels for place in (*range(side), ":", "+-")]
    return torch.stack(found), [f"[{label.removesuffix(', ')}]" for label in labels]


def _small_cases(loss: Loss) -> Iterator[LossCase]:
    """Yield one mean with each variance, on data of many channels and few places, and at continuous levels."""
    level = torch.tensor([1, 6, 20])
    for var in {parts["var"]: None for parts, _ in _compositions(loss)}:
        parts = next(parts for parts, _ in _compositions(loss) if parts["var"] == var)
        for path in (VP, VE):
            system = _system(loss, path, 20, data_shape=_MANY_CHANNELS, **parts)
            if system is not None:
                label = f"mean {parts['mean']!r}, var {parts['var']!r}, data {_MANY_CHANNELS}"
                yield _case(system, record_where(Where(path.label, 20, detail=label)), level)
    if not loss.needs_transition:
        yield from _continuous_cases(loss, None, _MANY_CHANNELS)


@check("loss")
def no_pull_at_the_exact_prediction(loss: Loss) -> None:
    """At the exact prediction the loss has no gradient into the mean, or a kink from which it grows.

    Slopes are taken to either side, a little off the exact prediction, as at the kink of an absolute error the
    gradient is whatever rounding makes of it.
    Usually: a term that trains something else through the network's mean; detach the mean there.
    """
    _reads_one_output(loss)
    for case in _cases(loss):
        size = _gradient(case, _some_output(case, size=1.0)).abs().flatten(1).max(1).values
        still = (size == 0).nonzero().flatten().tolist()
        at = _level_of(case, still[0]) if still else case.where
        require(not still, "a gradient into the mean away from the exact prediction", "none", at)
        fall = -_slopes(case) / size
        worst = int(fall.argmax())
        found = f"a slope of {-float(fall[worst]):.3g} of the usual"
        require(float(fall[worst]) < 1e-6, "no slope downwards", found, _level_of(case, worst))


def _slopes(case: LossCase) -> Tensor:
    """Return the least slope of the loss at the exact prediction, for each row, along each element and the gradient."""
    levels, shape = len(case.level), case.exact.shape[1:]
    alone = torch.eye(case.exact[0].numel(), dtype=torch.float64).view(-1, *shape)
    alone = torch.cat([alone, -alone]).expand(levels, -1, *shape)
    pull = _gradient(case, case.exact)[:, None]
    largest = pull.abs().flatten(1).max(1).values.view(-1, *[1] * (pull.ndim - 1))
    moves = torch.cat([alone, -pull / largest.clamp(min=1e-300)], 1)
    count = moves.shape[1]
    rows = case.rows(torch.arange(levels).repeat_interleave(count))
    step = _NEAR * (1 + rows.exact.abs().flatten(1).max(1).values).view(-1, *[1] * len(shape))
    moves = moves.flatten(0, 1)
    slope = (_gradient(rows, rows.exact + step * moves) * moves).flatten(1).sum(1)
    return slope.view(levels, count).min(1).values


def _gradient(case: LossCase, mean: Tensor) -> Tensor:
    """Return the loss's gradient with respect to the mean channels."""
    mean = mean.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(case.terms(mean)["loss"].sum(), mean)
    return gradient


@check("loss")
def trains_what_it_declares(loss: Loss) -> None:
    """The loss trains a learned variance if `trains_variance`, and not the mean by a variance that it needs.

    Usually: a detach too many, or too few: IDDPM's bound trains the variance only, its mean is detached.
    """
    learned = [case for case in _cases(loss, continuous=False) if case.raw is not None]
    expected = "a learned variance that it goes with, since trains_variance is True"
    require(bool(learned) or not loss.trains_variance, expected, "none; all are refused")
    if not learned:
        raise NotApplicableError("it goes with fixed variances only")
    for case in learned:
        if case.where.num_steps == 1:  # one level, where both ends of the range are one
            continue
        mean, raw = _some_output(case).requires_grad_(), case.raw.clone().requires_grad_()  # type: ignore[union-attr]
        gradients = torch.autograd.grad(case.terms(mean, raw)["loss"].sum(), (mean, raw), allow_unused=True)
        require(gradients[1] is not None, "a gradient into the variance channels", "none", case.where)
        silent = (gradients[1].flatten(1).abs().max(1).values == 0).nonzero().flatten().tolist()
        at = _level_of(case, silent[0]) if silent else case.where
        require(not silent, "a gradient into the variance channels", "0", at)
        if loss.needs_learned_variance:
            other = torch.autograd.grad(case.terms(mean, raw.detach() + 0.3)["loss"].sum(), mean)[0]
            size = gradients[0].abs().max()
            require_close(
                other, gradients[0], 1e-9, "the mean's gradient, whatever the variance", case.where, scale=size
            )


@check("loss")
def rows_are_independent(loss: Loss) -> None:
    """The loss of an example, and its metrics, depend on nothing else in the batch.

    Usually: a normalization, a mean or a sort over the batch.
    """
    for case in _few_cases(loss, bins=256):
        mean = _some_output(case)
        together = case.terms(mean)
        for i in range(len(case.level)):
            picked = torch.tensor([i])
            alone = case.rows(picked).terms(mean[picked])
            for name, term in together.items():
                at = _level_of(case, i)
                require_close(alone[name], term[picked], 1e-9, f"{name!r} of one row alone", at)


@check("loss")
def decoder_rows_change_nothing(loss: Loss) -> None:
    """The loss and its gradients are the same for any true bound on the number of rows at level 1.

    Usually: the decoder's rows put back in the wrong places, or the bound taken for the exact number.
    """
    for case in _few_cases(loss, bins=256, continuous=False):
        mean = _some_output(case).requires_grad_()
        count = int((case.level == 1).sum())
        expected = _with_gradient(case, mean, None)
        for rows in sorted({count, min(count + 1, len(case.level)), len(case.level)}):
            found = _with_gradient(case, mean, rows)
            at = attrs.evolve(case.where, detail=f"decoder_rows={rows}, {count} rows at level 1")
            for name, a, b in zip(("loss", "gradient"), found, expected, strict=True):
                require_close(a, b, 1e-9, name, at, scale=1 + b.detach().abs().max())


def _with_gradient(case: LossCase, mean: Tensor, rows: int | None) -> tuple[Tensor, Tensor]:
    loss = case.terms(mean, decoder_rows=rows)["loss"]
    return loss, torch.autograd.grad(loss.sum(), mean)[0]


@check("loss")
def pure(loss: Loss) -> None:
    """The loss changes none of its arguments, and gives the same terms for the same arguments.

    Usually: an operation ending in "_", noise drawn inside, or a running mean kept on the class.
    """
    for case in _few_cases(loss, bins=256):
        mean = _some_output(case)
        given = (case.x_start, case.noise, case.level, mean, case.raw)
        before = map_tree(torch.clone, given)
        first = case.terms(mean)
        case.rows(torch.tensor([1, 0])).terms(mean[:2])
        require_same(case.terms(mean), first, "the same terms again", case.where)
        require_same(given, before, "arguments unchanged", case.where)


@check("loss")
def columns_are_float64(loss: Loss) -> None:
    """The columns of the loss are float64 arrays of T + 1 rows, finite in rows 1..T.

    Usually: a ratio or logarithm at a level where alpha or the posterior variance is 0.
    """
    for path in WHOLE:
        for num_steps in (1, 2, 3, 1000):
            where = Where(path.label, num_steps)
            for name, column in loss.columns(path.table(num_steps)).items():
                good = column.dtype == np.float64 and column.shape == (num_steps + 1,)
                require(good, f"{name!r} float64 ({num_steps + 1},)", f"{column.dtype} {column.shape}", where)
                require(bool(np.all(np.isfinite(column[1:]))), f"{name!r} finite", "inf or NaN", where)


@check("loss")
def reads_no_value(loss: Loss) -> None:
    """The loss never makes the host wait: no value of a tensor is read.

    Usually: an `if` on whether any row is at level 1, boolean indexing, or .item().
    """
    for _, system in _compositions(loss):
        system.objective.columns.on(torch.device("cpu"))  # once for all, as in training
        channels = _SHAPE[0] * (1 + system.parts.var.extra_outputs)
        with on_fake_tensors(strict=False):
            x, level = torch.zeros(2, *_SHAPE), torch.ones(2, dtype=torch.int64)
            out = torch.zeros(2, channels, *_SHAPE[1:])
            pair = {"level_to": level - 1} if isinstance(system.parts.timesteps, PairSampler) else {}
            system.loss_terms(lambda x, time, out=out, **_: out, x, level, x, decoder_rows=1, **pair)


@check("loss")
def one_graph(loss: Loss) -> None:
    """The whole loss compiles to one graph, which serves every level.

    Usually: a Python `if` on a tensor, or a loop whose length depends on values.
    """
    _, system = next(iter(_compositions(loss)))
    system.objective.columns.on(torch.device("cpu"))  # once for all, as in training
    extra = system.parts.var.extra_outputs

    def model(x: Tensor, time: Tensor, **_: Any) -> Tensor:
        return torch.cat([torch.tanh(x)] * (1 + extra), 1)

    def terms(x: Tensor, level: Tensor, noise: Tensor) -> Any:
        pair = {"level_to": level // 2} if isinstance(system.parts.timesteps, PairSampler) else {}
        return system.loss_terms(model, x, level, noise, **pair)

    def calls() -> Iterator[tuple[Tensor, ...]]:
        for k in (1, 7, 20):
            yield torch.rand(3, *_SHAPE) - 0.5, torch.tensor([k, 1, 3]), torch.randn(3, *_SHAPE)

    graphs = count_graphs(terms, calls())
    require(graphs == 1, "1 graph for 3 batches", str(graphs), Where("vp", 20))
