"""Laws of variance parameterizations."""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs
import numpy as np
import torch
from torch import Tensor

from diffkit.protocols import VarianceParameterization
from diffkit.table import ProcessTable, respace
from diffkit.testing._check import LawError, NotApplicableError, Where, check, record_where
from diffkit.testing._close import require, require_close, require_same
from diffkit.testing._host import on_fake_tensors
from diffkit.testing._paths import VP, WHOLE, WITHOUT_SIGNAL

STEPS = (1, 2, 3, 20, 1000)
OUTPUTS = (-1.0, -0.3, 0.0, 0.8, 1.0)
"""Values of the network's variance channels that are tried: the promised range and its ends."""


def _tables() -> Iterator[tuple[ProcessTable, Where]]:
    for path in (*WHOLE, *WITHOUT_SIGNAL):
        for num_steps in STEPS:
            yield path.table(num_steps), record_where(Where(path.label, num_steps))
    short = Where("vp", 5, detail="1000 levels respaced to 5")
    yield respace(VP.table(1000), [1, 2, 400, 999, 1000]), record_where(short)
    repeats = Where("vp", 4, detail="levels 2 and 4 repeat the one below")
    yield ProcessTable.from_alpha_bar(np.array([1.0, 0.9, 0.9, 0.5, 0.5])), record_where(repeats)


def _levels(
    var: VarianceParameterization, table: ProcessTable, output: float | None = None, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Return the log-variance at levels 1..T, (T,), with all variance channels equal to ``output``."""
    cols = {name: torch.from_numpy(column[1:].copy()).to(dtype)[:, None] for name, column in _columns(var, table)}
    raw = _raw(var, table.num_steps, output, dtype)
    return var.log_variance(raw, cols).expand(table.num_steps, 1)[:, 0]


def _raw(var: VarianceParameterization, batch: int, output: float | None, dtype: torch.dtype) -> Tensor | None:
    if not var.extra_outputs:
        return None
    return torch.full((batch, var.extra_outputs), 0.0 if output is None else output, dtype=dtype)


def _columns(var: VarianceParameterization, table: ProcessTable) -> Iterator[tuple[str, np.ndarray]]:
    yield from var.columns(table).items()


def _outputs(var: VarianceParameterization) -> tuple[float | None, ...]:
    return OUTPUTS if var.extra_outputs else (None,)


def _output(value: float | None) -> str:
    return "" if value is None else f"network output {value:g}"


def _of_the_table(var: VarianceParameterization) -> None:
    if not var.columns(VP.table(20)):
        raise NotApplicableError("it takes nothing from the table: units and range are the network's own")


@check("var")
def columns_are_float64(var: VarianceParameterization) -> None:
    """The columns of a variance are float64 arrays of T + 1 rows, finite in rows 1..T.

    Usually: a log of 0 at level 1 (the posterior has no variance there; use table.posterior_log_variance).
    """
    for table, where in _tables():
        for name, column in _columns(var, table):
            found = f"{column.dtype} {column.shape}"
            good = column.dtype == np.float64 and column.shape == (table.num_steps + 1,)
            require(good, f"column {name!r} float64 ({table.num_steps + 1},)", found, where)
            bad = np.flatnonzero(~np.isfinite(column[1:]))
            at = attrs.evolve(where, level=int(bad[0]) + 1 if bad.size else None)
            require(not bad.size, f"column {name!r} finite", column[1:][bad][:1], at)


@check("var")
def finite_at_every_level(var: VarianceParameterization) -> None:
    """The log-variance is finite at every level, 1 included, for any output of moderate size, in float32.

    Usually: the log of the posterior variance at level 1, which is 0; the log or root of a negative output.
    """
    for table, where in _tables():
        for output in (*_outputs(var), *((-3.0, 3.0) if var.extra_outputs else ())):
            found = _levels(var, table, output, torch.float32)
            bad = torch.nonzero(~torch.isfinite(found)).flatten().tolist()
            at = attrs.evolve(where, level=bad[0] + 1 if bad else None, detail=where.detail or _output(output))
            require(not bad, "a finite log-variance", [float(found[i]) for i in bad[:1]], at)


@check("var")
def inside_the_bounds(var: VarianceParameterization) -> None:
    """A variance made of the table lies between the posterior's and the upper one, for network outputs in [-1, 1].

    These are the right ones for data at one point and for unit normal data; a variance beyond them fits no data.
    Usually: beta of the un-respaced table, beta in VP units on another path, a variance or a standard deviation in
    place of a log-variance, or an interpolation that takes 0..1 for -1..1.
    """
    _of_the_table(var)
    for table, where in _tables():
        low, high = table.posterior_log_variance[1:], table.upper_log_variance[1:]
        low, high = np.minimum(low, high), np.maximum(low, high)
        for output in _outputs(var):
            found = _levels(var, table, output).numpy()
            beyond = np.maximum(low - found, found - high)
            worst = int(np.argmax(beyond))
            at = attrs.evolve(where, level=worst + 1, detail=where.detail or _output(output))
            expected = f"log-variance in [{low[worst]:.6g}, {high[worst]:.6g}]"
            require(bool(beyond[worst] <= 1e-9), expected, f"{found[worst]:.6g}", at)


@check("var")
def follows_the_table_in_use(var: VarianceParameterization) -> None:
    """A variance depends only on the noise levels of the table in use, not on where they came from.

    Usually: beta taken from the training table through index, or levels identified by their time.
    """
    _of_the_table(var)
    root = VP.table(1000)
    short = respace(root, [1, 100, 350, 700, 1000])
    alone = ProcessTable.from_alpha_sigma(short.alpha[1:], short.sigma[1:])
    for output in _outputs(var):
        found, expected = _levels(var, short, output), _levels(var, alone, output)
        where = Where("vp", 5, detail="1000 levels respaced to 5, against a table of those levels alone")
        require_close(found, expected, 1e-8, "log-variance", where, level_of=lambda i: i + 1)


@check("var")
def is_a_log_variance(var: VarianceParameterization) -> None:
    """The log-variance grows by 2 log c if data is scaled by c: it is the natural log of a variance of the data.

    Usually: a variance (grows by c^2), a standard deviation's log (grows by log c), bits or log10, or beta in VP
    units, which knows no units of the data.
    """
    _of_the_table(var)
    scale = 3.0
    for path in WHOLE:
        table = path.table(20)
        scaled = attrs.evolve(table, total_std=_readonly(table.total_std * scale))
        for output in _outputs(var):
            found = _levels(var, scaled, output) - _levels(var, table, output)
            where = Where(path.label, 20, detail="path scaled by 3")
            require_close(found, 2 * np.log(scale), 1e-9, "growth by", where, level_of=lambda i: i + 1)


@check("var")
def any_shape_of_data(var: VarianceParameterization) -> None:
    """A variance of any shape of data broadcasts to it, with one row of columns or one for each example.

    Usually: a view or an index that counts on two spatial axes or three channels.
    """
    table = VP.table(20)
    level = torch.tensor([1, 7, 20])
    for shape in ((2,), (1, 5), (3, 4, 6), (4, 2, 3, 2)):
        raw = torch.randn(3, shape[0] * var.extra_outputs, *shape[1:]) if var.extra_outputs else None
        where = Where("vp", 20, detail=f"data {shape}")
        matrix = {name: torch.from_numpy(column).float() for name, column in _columns(var, table)}
        rows = {name: column[level].view(-1, *(1,) * len(shape)) for name, column in matrix.items()}
        together = _broadcast(var.log_variance(raw, rows), (3, *shape), where)
        for i in range(3):
            own = {name: column[level[i]] for name, column in matrix.items()}
            alone = var.log_variance(None if raw is None else raw[i : i + 1], own)
            alone = _broadcast(alone, (1, *shape), where)
            require_close(alone[0], together[i], 1e-6, "log-variance of one row alone", where)


def _broadcast(found: Tensor, shape: tuple[int, ...], where: Where) -> Tensor:
    try:
        return found.expand(shape)
    except RuntimeError as error:
        expected = f"a shape that broadcasts to {shape}"
        raise LawError(expected, str(tuple(found.shape)), where, "an axis kept or dropped") from error


@check("var")
def network_is_asked(var: VarianceParameterization) -> None:
    """Every variance channel of the network is used: a change of any, anywhere, changes the log-variance.

    Usually: extra_outputs that is declared but not read, the first channel's variance taken for all, a detach, or a
    clamp inside [-1, 1].
    """
    if not var.extra_outputs:
        raise NotApplicableError("it has no variance channels")
    table, levels = VP.table(20), 18
    for shape in ((1,), (5, 2, 3)):
        where = Where("vp", 20, detail=f"data {shape}")
        axes = (1,) * len(shape)
        cols = {name: torch.from_numpy(column[3:].copy()).view(-1, *axes) for name, column in _columns(var, table)}
        size = (levels, shape[0] * var.extra_outputs, *shape[1:])
        raw = torch.linspace(-0.9, 0.9, math.prod(size), dtype=torch.float64).view(size).requires_grad_()
        found = _broadcast(var.log_variance(raw, cols), (levels, *shape), where)
        require(found.requires_grad, "a gradient into the variance channels", "none", where)
        weight = torch.rand(found.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        (gradient,) = torch.autograd.grad((found * weight).sum(), raw, allow_unused=True)
        require(gradient is not None, "a gradient into the variance channels", "none", where)
        silent = torch.nonzero(gradient == 0).tolist()
        at = attrs.evolve(where, level=silent[0][0] + 3 if silent else None)
        place = f"0 at channel {silent[0][1]}, place {tuple(silent[0][2:])}" if silent else ""
        require(not silent, "a gradient that is not zero", place, at)


@check("var")
def pure_on_the_device(var: VarianceParameterization) -> None:
    """A variance changes none of its arguments, gives the same result twice, and reads no value.

    Usually: an in-place clamp_ or mul_ on the network's output, or an `if` on a tensor.
    """
    table = VP.table(20)
    cols = {name: torch.from_numpy(column)[1:, None].float() for name, column in _columns(var, table)}
    raw = torch.randn(20, var.extra_outputs) if var.extra_outputs else None
    before = ({name: c.clone() for name, c in cols.items()}, None if raw is None else raw.clone())
    first, again = var.log_variance(raw, cols), var.log_variance(raw, cols)
    require_same([cols, raw], [*before], "arguments unchanged", cause="an operation ending in '_'")
    require_same(again, first, "the same result twice", cause="something remembered or random")
    with on_fake_tensors() as mode:
        fake = {name: mode.from_tensor(c) for name, c in cols.items()}
        var.log_variance(None if raw is None else mode.from_tensor(raw), fake)


def _readonly(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False
    return values
