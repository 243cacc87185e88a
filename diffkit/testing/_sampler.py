"""Laws of samplers, on runs with exact denoisers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from diffkit.errors import ProtocolError
from diffkit.protocols import EarlyNoiseSampler, Level, MultistageSampler, Prediction, Sampler
from diffkit.tasks.step_densities import step_density
from diffkit.testing._check import LawError, NotApplicableError, Where, check, recorded_where
from diffkit.testing._close import map_tree, require, require_close, require_same, tree_leaves
from diffkit.testing._exact_runs import MIXTURE, NORMAL, PICTURE, POINT, propagate_normal
from diffkit.testing._host import count_graphs, on_fake_tensors
from diffkit.testing._probe import (
    PreparedSampler,
    accepted_paths,
    prepare_sampler,
    prepare_still,
    prepared_samplers,
    tells_the_end,
)


def _start(
    prepared: PreparedSampler, batch: int = 3, dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (2,)
) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    return (x * float(prepared.table.total_std[-1])).to(dtype)


def _noises(prepared: PreparedSampler, x: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(prepared.program.num_steps)]


def _plain(x: Tensor, level: Level, to: Level | None = None) -> Prediction:
    """Return a denoiser for any shape of data that depends on the level alone."""
    known = None if not level.coefficients else level.coefficients["log_variance"]
    return Prediction(torch.tanh(x / (1 + level.sigma)), known)


@check("sampler")
def plan_is_finite(sampler: Sampler) -> None:
    """On every path that a sampler accepts, its plan has finite float64 columns, one row for each step.

    Usually: 0/0 or a log of 0 on the step to level 0, or at level T where alpha may be 0 (say so in problems()), or
    a node that coincides with the step's start, as it may on a discrete schedule.
    """
    try:
        for found in prepared_samplers(sampler, (1, 2, 3, 20, 1000)):
            for name, column in found.plan.items():
                require(column.dtype == np.float64, f"column {name!r} float64", column.dtype, found.where)
                with np.errstate(over="ignore"):
                    finite = bool(np.isfinite(column.astype(np.float32)).all())
                require(finite, f"column {name!r} finite in float32", "inf", found.where)
    except ProtocolError as error:
        raise LawError("finite columns, or a sentence in problems()", str(error), recorded_where()) from error


@check("sampler")
def same_plan_again(sampler: Sampler) -> None:
    """A sampler's plan for the same steps is the same to the bit, whatever was planned in between.

    Usually: something counted or cached on the class or in the module.
    """
    for path in accepted_paths(sampler):
        first = prepare_sampler(sampler, path, 20).plan
        prepare_sampler(sampler, path, 3)
        require_same(prepare_sampler(sampler, path, 20).plan, first, "the same plan again", Where(path.label, 20))


@check("sampler")
def point_is_reached(sampler: Sampler) -> None:
    """With the exact denoiser of a single data point, sampling ends at that point, from any start.

    Usually: noise added on the last step, a last step that stops short of level 0, or a coefficient of x_start that
    is not alpha_s.
    """
    for found in prepared_samplers(sampler):
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
            x = _start(found, dtype=dtype)
            *_, end = found.run(found.with_variance(POINT), x, _noises(found, x))
            point = POINT.x_start(end, 1.0, 0.0)
            where = attrs.evolve(found.where, detail=str(dtype).removeprefix("torch."))
            size = 1 + float(found.table.total_std.max())
            require_close(end, point, tolerance, "x", where, scale=size)


@check("sampler")
def keeps_the_marginals(sampler: Sampler) -> None:
    """With the exact denoiser of a single data point, every step keeps mean alpha_s x_start and spread sigma_s.

    These are the plan identities: for coefficients a of x, b_j of estimates of x_start and c of noise,
    ``a alpha_t + sum_j b_j = alpha_s`` and ``(a sigma_t)^2 + c^2 = sigma_s^2``. They are probed, not read off names.
    Usually: alpha or sigma of the wrong end of the step, alpha_bar for alpha, a formula for total_std 1 on another
    path, or a variance where a standard deviation belongs.
    """
    for found in prepared_samplers(sampler, (1, 2, 3, 12)):
        alpha, sigma = found.table.alpha, found.table.sigma
        top = found.levels[0]
        spreads = propagate_normal(found, POINT, POINT.at(float(alpha[top]), float(sigma[top])))
        for i, spread in enumerate(spreads):
            t, s = found.levels[i], found.levels[i + 1]
            where = attrs.evolve(found.where, level=t, detail=f"step from level {t} to {s}")
            exact = POINT.at(float(alpha[s]), float(sigma[s]))
            size = float(sigma[s]) + 1e-3
            require_close(spread.mean, exact.mean, 1e-9, "mean", where, scale=size)
            require_close(spread.std, exact.std.expand(2), 1e-8, "spread", where, scale=size)


@check("sampler")
def elements_on_their_own(sampler: Sampler) -> None:
    """With the exact denoiser of a single image, a step keeps each element's mean and spread, with independent noise.

    The spread is compared with that of points after the same step, so that noise of another scale is not meant.
    Usually: noise averaged over elements or copied from one of them (mean, [:, :1], expand_as), or a mean over axes
    that only pictures have.
    """
    for found in prepared_samplers(sampler, (1, 2, 3)):
        top, every = found.levels[0], [POINT, PICTURE]
        starts = [data.at(float(found.table.alpha[top]), float(found.table.sigma[top])) for data in every]
        points, pictures = (propagate_normal(found, *pair) for pair in zip(every, starts, strict=True))
        for i, (point, picture) in enumerate(zip(points, pictures, strict=True)):
            t, s = found.levels[i], found.levels[i + 1]
            where = attrs.evolve(found.where, level=t, detail=f"step from level {t} to {s}, data (2, 2, 3)")
            alpha, sigma = float(found.table.alpha[s]), float(found.table.sigma[s])
            size = sigma + 1e-3
            require_close(picture.mean, PICTURE.at(alpha, sigma).mean, 1e-9, "mean", where, scale=size)
            require_close(picture.std, point.std[0], 1e-8, "spread, as of points,", where, scale=size)
            for spread in (point, picture):
                at = attrs.evolve(where, detail=f"step from level {t} to {s}, data {tuple(spread.mean.shape)}")
                _require_uncorrelated(spread.covariance / size**2, at)


def _require_uncorrelated(covariance: Tensor, where: Where) -> None:
    between = covariance - covariance.diag().diag()
    worst = int(between.abs().argmax())
    shared = float(between.flatten()[worst])
    pair = divmod(worst, len(between))
    found = f"{shared:.3g} between elements {pair[0]} and {pair[1]}"
    require(
        abs(shared) <= 1e-8, "noise of its own in every element: covariances of 0, in units of the noise", found, where
    )


@check("sampler")
def noise_as_declared(sampler: Sampler) -> None:
    """A stochastic sampler uses the noise it is given; a deterministic one works without.

    Usually: `stochastic` that does not follow the options, or noise drawn inside the step.
    """
    used = False
    for found in prepared_samplers(sampler, (20,)):
        x = _start(found)
        denoise = found.with_variance(NORMAL)
        *_, quiet = found.run(denoise, x)
        *_, loud = found.run(denoise, x, _noises(found, x))
        used |= not torch.equal(quiet, loud)
    if sampler.stochastic:
        require(used, "a result that depends on the noise", "none does, on any path")


@check("sampler")
def steps_have_a_density(sampler: Sampler) -> None:
    """A stochastic sampler's step is normal given x and the state: its log-density is that of its noise, transformed.

    By a change of variables it is ``log N(noise) - log |d x_s / d noise|``, for every step with noise. Usually: noise
    added before an evaluation of the network (inherit from EarlyNoiseSampler), or mixed between elements by more than a
    permutation.
    """
    if not sampler.stochastic or isinstance(sampler, EarlyNoiseSampler):
        raise NotApplicableError("it adds no noise, or adds it before it evaluates the network, as it says")
    for found in prepared_samplers(sampler, (1, 2, 4)):
        denoise = found.with_variance(MIXTURE)
        x = _start(found, batch=1)
        noises = _noises(found, x)
        history = _history(found, denoise, x, noises)
        for i, ((x, state), (after, _)) in enumerate(pairwise(history)):
            where = attrs.evolve(found.where, level=found.levels[i])
            row, last = found.row(i), found.is_last(i)

            def step(noise: Tensor, given: Any = (found, denoise, x, state, row, last)) -> Tensor:
                prepared, *before, at_end = given
                return prepared.program.step(*before, noise, at_end)[0]

            slope = torch.autograd.functional.jacobian(step, noises[i]).view(2, 2)  # type: ignore[no-untyped-call]
            value, noisy, *_ = step_density(found.program, denoise, x, state, row, after, last)
            has_noise = bool(slope.any())
            require(
                bool(noisy) == has_noise, f"a step with{'' if has_noise else 'out'} noise", str(not has_noise), where
            )
            if has_noise:
                exact = -0.5 * (noises[i].square() + np.log(2 * np.pi)).sum() - slope.det().abs().log()
                require_close(value, exact.view(1), 1e-6, "log-density", where, scale=1.0)


@check("sampler")
def any_shape_of_data(sampler: Sampler) -> None:
    """A sampler keeps shape and dtype of x: points, signals, images or volumes, one or many, float32 or float64.

    Usually: a view, sum or mean over fixed axes, or a constant tensor of another dtype.
    """
    for path in accepted_paths(sampler):
        for num_steps in (1, 2, 3):
            found = prepare_sampler(sampler, path, num_steps)
            for shape, batch in (((2,), 1), ((3, 5), 2), ((1, 4, 6), 2), ((2, 2, 3, 2), 1)):
                for dtype in (torch.float32, torch.float64):
                    x = _start(found, batch, dtype, shape)
                    where = attrs.evolve(found.where, detail=f"data {tuple(x.shape)} {dtype}")
                    for after in found.run(_plain, x, _noises(found, x)):
                        shape_kept = after.shape == x.shape and after.dtype == dtype
                        require(shape_kept, "the same shape and dtype", f"{tuple(after.shape)} {after.dtype}", where)
                        require(bool(after.isfinite().all()), "finite x", "inf or NaN", where)


@check("sampler")
def never_asks_at_level_0(sampler: Sampler) -> None:
    """A sampler evaluates the network only where there is noise, never at sigma = 0.

    Usually: a second evaluation at level s on the last step; inherit from MultistageSampler and leave it out if `last`.
    """
    for found in prepared_samplers(sampler):
        sigmas: list[float] = []

        def denoise(
            x: Tensor,
            level: Level,
            to: Level | None = None,
            prepared: PreparedSampler = found,
            sigmas: list[float] = sigmas,
        ) -> Prediction:
            sigmas.append(float(level.sigma.min()))
            return prepared.with_variance(NORMAL)(x, level, to)

        x = _start(found)
        for i, _ in enumerate(found.run(denoise, x, _noises(found, x))):
            where = attrs.evolve(found.where, level=found.levels[i])
            require(min(sigmas, default=1.0) > 0, "sigma > 0", "an evaluation at sigma = 0", where)


@check("sampler")
def step_of_no_length(sampler: Sampler) -> None:
    """A deterministic sampler that tells the network where a step goes leaves x as it is if that is where it starts.

    Usually: coefficients of the two ends mistaken for each other, or a division by the difference of two levels, which
    is 0 there.
    """
    if sampler.stochastic or not tells_the_end(sampler):
        raise NotApplicableError("it does not tell the network where a step goes, or adds noise")
    for path in accepted_paths(sampler):
        still = prepare_still(sampler, path, 6)
        x = _start(still)
        for i in range(still.program.num_steps):
            where = attrs.evolve(still.where, level=still.levels[i], detail="a step from this level to itself")
            after, _ = still.step(_plain, x, sampler.init(x), i, None)
            require_close(after, x, 1e-9, "x", where, scale=1 + x.abs().max())


@check("sampler")
def last_only_if_declared(sampler: Sampler) -> None:
    """A sampler that is not a MultistageSampler, or sets uses_last = False, gives the same for `last` True or False.

    Usually: an `if last:` in a sampler that never receives it; inherit from MultistageSampler.
    """
    if _uses_last(sampler):
        raise NotApplicableError("it uses `last`")
    for found in prepared_samplers(sampler, (3,)):
        x, state = _start(found), sampler.init(_start(found))
        noise = _noises(found, x)[0] if sampler.stochastic else None
        denoise, row = found.with_variance(NORMAL), found.row(0)
        with torch.no_grad():
            results = [found.program.step(denoise, x, state, row, noise, last)[0] for last in (False, True)]
        require_same(results[1], results[0], "the same step with last=True", found.where)


def _uses_last(sampler: Sampler) -> bool:
    return isinstance(sampler, MultistageSampler) and sampler.uses_last


@check("sampler")
def pure_steps(sampler: Sampler) -> None:
    """A sampler's step changes and keeps none of its arguments, and gives the same for the same arguments.

    Usually: an operation ending in "_", a buffer that is written again, or noise drawn inside the step.
    """
    for found in prepared_samplers(sampler, (4,)):
        x = _start(found)
        noises = _noises(found, x)
        denoise = found.with_variance(NORMAL)
        expected = list(found.run(denoise, x, noises))
        require_same(list(found.run(denoise, x, noises)), expected, "the same run again", found.where)
        _require_no_trace(found, denoise, x, noises, expected)


def _require_no_trace(
    found: PreparedSampler, denoise: Any, x: Tensor, noises: list[Tensor], expected: list[Tensor]
) -> None:
    """Run a sampler while comparing the arguments after each step and overwriting them with NaN."""
    state = found.sampler.init(x)
    for i, after in enumerate(expected):
        given = map_tree(torch.clone, (x, state, found.row(i), noises[i]))
        before = map_tree(torch.clone, given)
        noise = given[3] if found.sampler.stochastic else None
        result, state = found.step(denoise, given[0], given[1], i, noise, given[2])
        where = attrs.evolve(found.where, level=found.levels[i])
        require_same(given, before, "x, state, row and noise unchanged by the step", where)
        for name, tensor in zip(("x", "row", "noise"), (given[0], given[2], given[3]), strict=True):
            tensor.fill_(torch.nan)
            require(bool(result.isfinite().all()), f"a result of its own, not a view of {name}", "one", where)
        require_same(result, after, "the same as in one run", where)
        for leaf in tree_leaves(state):
            require(bool(torch.as_tensor(leaf).isfinite().all()), "a state of its own", "a view of an argument", where)
        x = result


@check("sampler")
def no_hidden_state(sampler: Sampler) -> None:
    """Two sampling runs, one step of each in turn, end where they end alone.

    Usually: history kept on the sampler or in the module; carry it in the state.
    """
    for found in prepared_samplers(sampler, (5,)):
        denoise = found.with_variance(NORMAL)
        starts = (_start(found), 0.3 - _start(found))
        noises = _noises(found, starts[0])
        alone = [list(found.run(denoise, x, noises)) for x in starts]
        for i, pair in enumerate(zip(*(found.run(denoise, x, noises) for x in starts), strict=True)):
            where = attrs.evolve(found.where, level=found.levels[i])
            require_same(pair, tuple(run[i] for run in alone), "what each run gives alone", where)


@check("sampler")
def rows_are_independent(sampler: Sampler) -> None:
    """A sampler's steps of an example depend on nothing else in the batch, whose rows may be at different levels.

    Usually: a mean or norm over the batch, a state that has no row for each example, or coefficients turned into
    numbers.
    """
    for found in prepared_samplers(sampler, (6,)):
        if _uses_last(sampler) and found.program.num_steps < 2:
            continue
        denoise = found.with_variance(NORMAL)
        x = _start(found, batch=3)
        noises = _noises(found, x)
        histories = [_history(found, denoise, x[i : i + 1], [n[i : i + 1] for n in noises]) for i in range(3)]
        steps = (0, 2, 4)
        mixed = [history[step] for history, step in zip(histories, steps, strict=True)]
        _require_states_with_rows(mixed, found.where)
        joint_x, joint_state = map_tree(lambda *rows: torch.cat(rows), *[(m[0], m[1]) for m in mixed])
        rows = torch.stack([found.row(i) for i in steps])
        noise = torch.cat([noises[step][i : i + 1] for i, step in enumerate(steps)])
        after, _ = found.step(denoise, joint_x, joint_state, 0, noise if sampler.stochastic else None, rows)
        for i, step in enumerate(steps):
            where = attrs.evolve(found.where, level=found.levels[step], detail="one of three rows at three levels")
            expected = histories[i][step + 1][0]
            require_close(after[i : i + 1], expected, 1e-10, "x", where, scale=1 + expected.abs().max())


def _history(found: PreparedSampler, denoise: Any, x: Tensor, noises: list[Tensor]) -> list[tuple[Tensor, Any]]:
    """Return x and state of one example before each step and after the last."""
    state = found.sampler.init(x)
    out = [(x, state)]
    for i in range(found.program.num_steps):
        x, state = found.step(denoise, x, state, i, noises[i] if found.sampler.stochastic else None)
        out.append((x, state))
    return out


def _require_states_with_rows(mixed: list[tuple[Tensor, Any]], where: Where) -> None:
    shapes = [
        [tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(state)] for _, state in mixed
    ]
    for shape in shapes:
        same = shape == shapes[0] and all(isinstance(s, tuple) and s[:1] == (1,) for s in shape)
        require(same, "a state of tensors with a row for each example, the same at every step", str(shapes), where)


@check("sampler")
def state_keeps_its_form(sampler: Sampler) -> None:
    """A sampler's state is tensors with the number, shapes and dtypes that init() returns.

    Usually: None or an empty tuple to start with and history later; start with zeros and weight them with 0.
    """
    for found in prepared_samplers(sampler, (4,)):
        x = _start(found, dtype=torch.float32)
        history = _history(found, found.with_variance(NORMAL), x, _noises(found, x))
        forms = [[_form(leaf) for leaf in tree_leaves(state)] for _, state in history]
        for i, form in enumerate(forms):
            where = attrs.evolve(found.where, level=found.levels[max(i - 1, 0)])
            require(form == forms[0], f"{forms[0]} as from init()", str(form), where)
            require(all(f != "no tensor" for f in form), "tensors", f"{tree_leaves(history[i][1])}", where)


def _form(leaf: Any) -> str:
    return f"{tuple(leaf.shape)} {leaf.dtype}" if isinstance(leaf, Tensor) else "no tensor"


@check("sampler")
def float32_is_enough(sampler: Sampler) -> None:
    """Each of a thousand sampling steps has the same result in float32 as in float64, relative to the noise there.

    Usually: 1 - alpha^2 or another difference of near numbers inside the step; cancel it in the plan, in float64.
    """
    found = prepare_sampler(sampler, accepted_paths(sampler)[0], 1000)
    x = _start(found)
    noises = _noises(found, x)
    denoise = found.with_variance(POINT)
    history = _history(found, denoise, x, noises)
    for i, (before, (expected, _)) in enumerate(pairwise(history)):
        x, state = map_tree(Tensor.float, before)
        after, _ = found.step(denoise, x, state, i, noises[i].float() if sampler.stochastic else None)
        t, s = found.levels[i], found.levels[i + 1]
        where = attrs.evolve(found.where, level=t, detail=f"step from level {t} to {s} in float32")
        require_close(after, expected, 1e-3, "x", where, scale=max(float(found.table.sigma[s]), 1e-3))


@check("sampler")
def reads_no_value(sampler: Sampler) -> None:
    """A sampler's step never makes the host wait: it reads no value of a tensor and branches on none.

    Usually: .item(), float(x), `if` on a tensor, boolean indexing, or torch.tensor(x).
    """
    found = prepare_sampler(sampler, accepted_paths(sampler)[0], 3)
    matrix = found.matrix(torch.float32)
    with on_fake_tensors() as mode:
        fake = mode.from_tensor(matrix)
        x = torch.zeros(2, 2)
        state = sampler.init(x)
        for i in range(found.program.num_steps):
            noise = torch.zeros(2, 2) if sampler.stochastic else None
            x, state = found.program.step(_plain, x, state, fake[i], noise, found.is_last(i))


@check("sampler")
def one_graph_for_all_steps(sampler: Sampler) -> None:
    """One compiled graph serves every sampling step (and one more the last, if the sampler uses `last`).

    Usually: a Python number that changes from step to step, or a state that changes its form.
    """
    found = prepare_sampler(sampler, accepted_paths(sampler)[0], 6)
    x = torch.zeros(2, 2)
    steps = found.program.num_steps
    history = _history(found, _plain, x, [torch.zeros(2, 2)] * steps)
    noise = torch.zeros(2, 2) if sampler.stochastic else None

    def calls() -> Any:
        for i in range(steps):
            yield *history[i], found.row(i, torch.float32), noise, found.is_last(i)

    def step(x: Tensor, state: Any, row: Tensor, noise: Tensor | None, last: bool) -> Any:
        return found.program.step(_plain, x, state, row, noise, last)

    graphs = count_graphs(step, calls())
    allowed = 2 if _uses_last(sampler) else 1
    require(graphs <= allowed, f"{allowed} graph(s) for {steps} steps", f"{graphs}", found.where)
