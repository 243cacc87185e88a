"""Laws of mean parameterizations."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import numpy as np
import torch

from diffkit.errors import CompositionError
from diffkit.protocols import MeanParameterization, Scalings
from diffkit.table import Coefs, ProcessTable
from diffkit.testing._check import LawError, NotApplicableError, Where, check, record_where
from diffkit.testing._close import require, require_close, require_same
from diffkit.testing._host import on_fake_tensors
from diffkit.testing._paths import WHOLE, WITHOUT_SIGNAL, ContinuousLevels, NoisePath, compose_on_path, target_of

STEPS = (1, 2, 3, 20, 1000)
NAMES = ("c_skip", "c_out", "c_in")
_FAINT, _HUGE = 1e-3, 1e3
"""Sizes of the network's input beyond these are taken for mistakes. x_t as it is reaches 90 on the VE path, whose first
networks were given it so; and data of another unit, such as 0..255, needs a c_in that would make unit data small."""


def _claimed_paths(mean: MeanParameterization) -> list[NoisePath]:
    """Return the paths on which a mean can be composed."""
    claimed = []
    for path in (*WHOLE, *WITHOUT_SIGNAL):
        try:
            record_where(Where(path.label, 20))
            compose_on_path(path, 20, mean=mean, sampler="ancestral")
        except CompositionError:
            continue
        except Exception:  # not a refusal; each check finds out for itself what is wrong
            pass
        claimed.append(path)
    kinds = {path.kind for path in claimed}
    require(bool(kinds), "a path it can be used on", "a CompositionError on vp, ve and linear")
    return claimed


def _tables(mean: MeanParameterization) -> Iterator[tuple[ProcessTable, Where]]:
    for path in _claimed_paths(mean):
        for num_steps in STEPS:
            yield path.table(num_steps), record_where(Where(path.label, num_steps))


def _scalings(mean: MeanParameterization, table: ProcessTable) -> Scalings:
    with np.errstate(all="ignore"):
        return mean.scalings(table.at(slice(1, None)), table.at(slice(None, -1)))


@check("mean")
def claims_a_path(mean: MeanParameterization) -> None:
    """The mean can be used on the variance-preserving path, or says in problems() why not.

    Usually: c_out is 0 or infinite at some level (alpha = 1, sigma = 1 or alpha = 0 put into a VP-only formula).
    """
    for path in WHOLE:
        try:
            compose_on_path(path, 20, mean=mean, sampler="ancestral")
        except CompositionError as error:
            problems = list(mean.problems(compose_on_path(path, 20).parts))
            require(bool(problems), "c_out finite and nonzero, or a sentence in problems()", error, Where(path.label))


@check("mean")
def arrays_of_the_levels_shape(mean: MeanParameterization) -> None:
    """The mean's scalings are three float64 arrays of the levels' shape, finite at every level.

    Usually: a plain number where an array belongs (write at.sigma**0), or a division by sigma or alpha that is 0.
    """
    for table, where in _tables(mean):
        for name, values in zip(NAMES, _scalings(mean, table), strict=True):
            found = f"{type(values).__name__} {getattr(values, 'dtype', '')} {np.shape(values)}"
            good = isinstance(values, np.ndarray) and values.dtype == np.float64
            require(good and values.shape == (table.num_steps,), f"{name} float64 ({table.num_steps},)", found, where)
            bad = np.flatnonzero(~np.isfinite(values))
            level = int(bad[0]) + 1 if bad.size else None
            require(not bad.size, f"a finite {name}", "inf or NaN", Where(where.path, where.num_steps, level))


@check("mean")
def decodes_its_target(mean: MeanParameterization) -> None:
    """The mean decodes its training target to x_start, on every path it can be used on.

    Usually: c_out that vanishes at a level (then nothing can be told from the output), or is so small that digits go.
    """
    x_start, eps = np.array([[0.7], [-1.0]]), np.array([[-0.4], [2.0]])
    for table, where in _tables(mean):
        at, scalings = table.at(slice(1, None)), _scalings(mean, table)
        zero = np.flatnonzero(scalings.c_out == 0)
        require(not zero.size, "c_out != 0", "0", attrs.evolve(where, level=int(zero[0]) + 1 if zero.size else None))
        p, q = target_of(at, scalings)
        x_t, out = at.alpha * x_start + at.sigma * eps, p * x_start + q * eps
        found = (scalings.c_skip * x_t + scalings.c_out * out).T
        require_close(found, x_start.T, 1e-10, "x_start", where, level_of=lambda i: i + 1)


@check("mean")
def input_of_moderate_size(mean: MeanParameterization) -> None:
    """The mean scales the network's input to moderate size, c_in x_t, at every level, for data of unit size.

    Usually: c_in left at 0, or multiplied by the path's total_std where it should be divided by it.
    """
    for table, where in _tables(mean):
        at = table.at(slice(1, None))
        size = np.abs(_scalings(mean, table).c_in) * np.hypot(at.alpha, at.sigma)
        worst = int(np.argmax(np.abs(np.log(np.maximum(size, 1e-300)))))
        expected = f"a standard deviation in [{_FAINT:g}, {_HUGE:g}]"
        at_level = attrs.evolve(where, level=worst + 1)
        require(bool(_FAINT <= size[worst] <= _HUGE), expected, f"{size[worst]:.3g}", at_level)


@check("mean")
def each_level_on_its_own(mean: MeanParameterization) -> None:
    """The mean's scalings at a level depend only on it and the level below, and its arguments are not changed.

    Usually: a normalization over all levels, an index into the table, or an in-place operation.
    """
    for table, where in _tables(mean):
        at, prev = table.at(slice(1, None)), table.at(slice(None, -1))
        whole = _scalings(mean, table)
        for rows in (slice(0, 1), slice(-1, None), slice(None, None, -1)):
            some = [Coefs(*(column[rows].copy() for column in coefs)) for coefs in (at, prev)]
            before = [Coefs(*(column.copy() for column in coefs)) for coefs in some]
            with np.errstate(all="ignore"):
                found = mean.scalings(*some)
            require_same(some, before, "arguments unchanged", where, cause="an in-place operation such as /=")
            for name, a, b in zip(NAMES, found, whole, strict=True):
                require_close(a, b[rows], 1e-12, name, where, cause="something that depends on other levels")


@check("mean")
def between_levels_as_declared(mean: MeanParameterization) -> None:
    """The mean's scalings are the same without a level below; or continuous_time is False, and it refuses such levels.

    Usually: coefficients made of the level below; declare continuous_time = False, and say so in problems().
    """
    if not mean.continuous_time:
        _requires_refusal_of_continuous_levels(mean)
        return
    for table, where in _tables(mean):
        at, prev = table.at(slice(1, None)), table.at(slice(None, -1))
        with np.errstate(all="ignore"):
            target = mean.scalings(at, prev)
            try:
                found = mean.scalings(at, None)
            except Exception as error:
                expected = "coefficients with prev=None"
                raise LawError(expected, f"{type(error).__name__}: {error}", where) from error
        for name, a, b in zip(NAMES, found, target, strict=True):
            require_close(a, b, 1e-12, name, where, level_of=lambda i: i + 1)


def _requires_refusal_of_continuous_levels(mean: MeanParameterization) -> None:
    for path in _claimed_paths(mean):
        parts = compose_on_path(path, 20, timesteps=ContinuousLevels(), loss="simple", sampler="ancestral").parts
        problems = list(mean.problems(attrs.evolve(parts, mean=mean)))
        require(bool(problems), "a sentence in problems() where levels are continuous", "none", Where(path.label))


@check("mean")
def tensors_agree_with_arrays(mean: MeanParameterization) -> None:
    """The mean's scalings of float64 tensors are tensors equal to those of arrays, and read no value.

    Usually: a NumPy function (np.sqrt) on what may be a tensor; write x**0.5, or branch on nothing.
    """
    for path in _continuous_paths(mean):
        table = path.table(20)
        arrays = table.at(slice(1, None))
        tensors = Coefs(*(torch.from_numpy(column.copy()) for column in arrays))
        where = Where(path.label, 20, detail="continuous levels")
        expected = mean.scalings(arrays, None)
        for name, tensor, array in zip(NAMES, mean.scalings(tensors, None), expected, strict=True):
            good = isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64
            require(good, f"{name} as a float64 tensor", getattr(tensor, "dtype", type(tensor).__name__), where)
            require_close(tensor, array, 1e-12, name, where, level_of=lambda i: i + 1)
        with on_fake_tensors():
            mean.scalings(Coefs(*(torch.ones(3, dtype=torch.float64) for _ in range(3))), None)


def _continuous_paths(mean: MeanParameterization) -> list[NoisePath]:
    found = []
    for path in _claimed_paths(mean):
        try:
            compose_on_path(path, 20, mean=mean, timesteps=ContinuousLevels(), loss="simple", sampler="ancestral")
        except CompositionError:
            continue
        found.append(path)
    if not found:
        raise NotApplicableError("it refuses continuous levels")
    return found
