"""Per-level coefficients: float64 columns on the host, one row-major matrix on the device, one gather per call."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from attrs import field, frozen
from torch import Tensor

from diffkit.errors import OptionError, ProtocolError
from diffkit.protocols import (
    Coefficients,
    Composition,
    ContinuousSchedule,
    Level,
    MeanParameterization,
    Scalings,
    Transition,
)
from diffkit.table import F64, Coefs, ProcessTable, Steps, interpolated_levels

LEVEL = ("alpha", "sigma", "log_snr", "c_skip", "c_out", "c_in", "time")
_SAME_PATH = 1e-6
"""Tolerance for total_std and times on one path: rounding differences between two formulas."""
BARE = "bare"
"""Column that marks a block without columns of variance or guidance: nodes within a step."""
TRANSITION = ("coef_x_start", "coef_x_t", "log_variance", "kl_weight", "first")


VARIANCE = "var"
"""The variance part, as an owner of coefficients; those of guidance are `guidance_owner`."""

NamedColumns = Mapping[str, F64]
"""Name -> float64 column of a block that is read together."""


def guidance_owner(place: int) -> str:
    """Return the owner name of the guidance at a place in a call's list."""
    return f"guidance {place}"


def _owned(owner: str, columns: Mapping[str, F64], table: ProcessTable) -> dict[str, F64]:
    """Columns of one owner under unique names, ``owner/name``."""
    if not isinstance(columns, Mapping) or not all(isinstance(name, str) for name in columns):
        raise ProtocolError(f"columns() of {owner} must return a mapping of names to columns, got {columns!r}")
    return {f"{owner}/{name}": _column(f"column {name!r} of {owner}", c, table) for name, c in columns.items()}


def _column(label: str, column: object, table: ProcessTable) -> F64:
    """One column, (T+1,) float64."""
    wanted = (table.num_steps + 1,)
    try:
        found = np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProtocolError(f"{label} must be numbers, (T+1,), got a {type(column).__name__}") from error
    if found.shape != wanted:
        raise ProtocolError(f"{label} must have shape {wanted}, got {found.shape}")
    return found


def _owner_and_name(key: str) -> tuple[str, str]:
    owner, _, name = key.partition("/")
    return owner, name


@frozen(eq=False)
class CoefficientTable:
    """Blocks of float64 columns of equal length, ready to be read by row on any device.

    Attributes:
        blocks: Name of a block -> name of a column -> float64 (rows,). The columns of `LEVEL` come first, in this
            order, in a block that is read as a level.
    """

    blocks: Mapping[str, NamedColumns]
    _spans: dict[str, tuple[int, int]] = field(init=False, repr=False)
    _owners: dict[str, list[tuple[str, str]] | None] = field(init=False, repr=False)
    _on: dict[tuple[torch.device, torch.dtype], Tensor] = field(factory=dict, init=False, repr=False)

    @_spans.default
    def _find_spans(self) -> dict[str, tuple[int, int]]:
        ends = np.cumsum([len(block) for block in self.blocks.values()])
        return {n: (int(end) - len(b), len(b)) for (n, b), end in zip(self.blocks.items(), ends, strict=True)}

    @_owners.default
    def _find_owners(self) -> dict[str, list[tuple[str, str]] | None]:
        """Owner and name of the columns after those of `LEVEL`, block by block; None for a block marked `BARE`.

        Computed once: a graph in which torch.compile traced this would be specialized to the values of the columns.
        """

        def of(block: NamedColumns) -> list[tuple[str, str]] | None:
            return None if BARE in block else [_owner_and_name(key) for key in list(block)[len(LEVEL) :]]

        return {name: of(block) for name, block in self.blocks.items()}

    def on(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the coefficients as a matrix (rows, columns) on a device, uploaded once per device and dtype."""
        key = (device, dtype)
        if key in self._on:
            return self._on[key]
        columns = np.stack([column for block in self.blocks.values() for column in block.values()], axis=1)
        matrix = torch.from_numpy(columns).to(device=device, dtype=dtype)
        if type(matrix) is Tensor:  # a fake tensor is not cached: it has no values
            self._on[key] = matrix
        return matrix

    def release(self) -> None:
        """Free the matrices on devices; `on` makes them again."""
        self._on.clear()

    def read(self, rows: Tensor, ndim: int, block: str) -> dict[str, Tensor]:
        """Return one block of gathered rows as named coefficients.

        Args:
            rows: One row (n,), or one for each example (B, n).
            ndim: Number of dimensions of the data.
            block: Name of the block.
        Returns:
            Name -> 0-d tensor, or (B,1..) with ndim dimensions.
        """
        return dict(zip(self.blocks[block], self._values(rows, ndim, block), strict=True))

    def _values(self, rows: Tensor, ndim: int, block: str) -> tuple[Tensor, ...]:
        """The coefficients of `read`, without their names."""
        start, length = self._spans[block]
        part = rows.narrow(-1, start, length)
        if part.ndim > 1:
            part = part.view(*part.shape, *(1,) * (ndim - 1))
        return part.unbind(-ndim if rows.ndim > 1 else 0)

    def level(self, rows: Tensor, ndim: int, block: str = "level") -> Level:
        """Return a block of level columns as a `Level`; its coefficients are None if the block is marked `BARE`."""
        alpha, sigma, log_snr, c_skip, c_out, c_in, time, *more = self._values(rows, ndim, block)
        time = time.flatten() if time.ndim else time
        coefficients, owners = None, self._owners[block]
        if owners is not None:
            by_owner: dict[str, dict[str, Tensor]] = {}
            for (owner, name), value in zip(owners, more, strict=True):
                by_owner.setdefault(owner, {})[name] = value
            coefficients = Coefficients(by_owner)
        return Level(alpha, sigma, log_snr, c_skip, c_out, c_in, time, coefficients)

    def transition(self, rows: Tensor, ndim: int) -> Transition:
        """Return the block "transition" as a `Transition`."""
        found = self.read(rows, ndim, "transition")
        first = found.pop("first").flatten() > 0
        return Transition(**found, first=first)


def scalings(mean: MeanParameterization, table: ProcessTable, rows: np.ndarray | None = None) -> Scalings:
    """Return the mean parameterization's coefficients at levels 0..T, float64 (T+1,); row 0 is (1, 0, 1).

    Not finite where the parameterization is undefined.

    Args:
        mean: The mean parameterization.
        table: The training table.
        rows: Some of its levels, int64 (n,), in place of all.
    """
    levels = np.arange(table.num_steps + 1) if rows is None else rows
    t = np.maximum(levels, 1)
    with np.errstate(all="ignore"):
        found = mean.scalings(table.at(t), table.at(t - 1))
    return Scalings(*[np.where(levels > 0, c, row0) for row0, c in zip((1.0, 0.0, 1.0), found, strict=True)])


def scalings_in_use(parts: Composition, table: ProcessTable) -> Scalings:
    """Return the mean parameterization's coefficients at levels 0..T of a table in use, float64 (T+1,).

    Every level must be a training level, or schedule and mean must be defined at any log_snr, or the table one of
    levels between those of training.

    Raises:
        OptionError: They are none of these.
    """
    rows = None if table.interpolated else training_rows(table, parts.table)
    if rows is not None:
        return scalings(parts.mean, parts.table, rows)
    path = path_of(parts, table)
    if path is None:
        raise OptionError(
            f"the table of {table.num_steps} steps has levels that are not in the training table, where the network "
            "is not defined; make it by System.table_for(steps)"
        )
    if isinstance(path, InterpolatedPath):
        _check_between(parts, table)
    else:
        _check_on_path(parts, path, table)
    with np.errstate(all="ignore"):
        found = parts.mean.scalings(table.at(slice(1, None)), None)
    return Scalings(*[np.concatenate([[row0], c]) for row0, c in zip((1.0, 0.0, 1.0), found, strict=True)])


def training_rows(table: ProcessTable, training: ProcessTable) -> np.ndarray | None:
    """Row of the training table that each row of a respaced table came from, int64 (T'+1,); None if there is none.

    Times are not compared.
    """
    rows = np.minimum(np.searchsorted(training.index, table.index), training.num_steps)
    pairs = (
        (training.index, table.index),
        (training.alpha_bar, table.alpha_bar),
        (training.total_std, table.total_std),
    )
    return rows if all(np.array_equal(of_training[rows], own) for of_training, own in pairs) else None


def continuous_path(parts: Composition) -> ContinuousSchedule | None:
    """Return the schedule, if it and the mean parameterization are defined at every log_snr; None otherwise."""
    return parts.schedule if isinstance(parts.schedule, ContinuousSchedule) and parts.mean.continuous_time else None


@frozen
class InterpolatedPath:
    """The path between the levels of a table, as `ContinuousSchedule` has it: total_std and time are interpolated."""

    table: ProcessTable

    def level(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Return (total_std, time) at any log_snr, each of its shape, float64."""
        found = interpolated_levels(self.table, log_snr.numpy())
        return torch.from_numpy(found.total_std), torch.from_numpy(found.time)


def path_of(parts: Composition, table: ProcessTable) -> ContinuousSchedule | InterpolatedPath | None:
    """Return where the network is defined between the levels of a table in use; None if at levels only.

    Raises:
        OptionError: The table has levels between those of training, where the mean is not defined.
    """
    path = continuous_path(parts)
    if path is not None or not table.interpolated:
        return path
    if not parts.mean.continuous_time:
        raise OptionError(
            f"{parts.label('mean')} is defined at the levels of training only; use steps that visit them, such as a "
            "number"
        )
    return InterpolatedPath(parts.table)


def _check_between(parts: Composition, table: ProcessTable) -> None:
    """Raise `OptionError` if the levels of an interpolated table are not between those of the training table."""
    training = parts.table
    level = interpolated_levels(training, table.log_snr[1:])
    root = np.interp(level.position, np.arange(len(training.index)), training.index)
    own = table.index[1:] + (0.0 if table.fraction is None else table.fraction[1:])
    if not (np.allclose(own, root, rtol=0, atol=_SAME_PATH) and np.allclose(table.total_std[1:], level.total_std)):
        raise OptionError(
            f"the table of {table.num_steps} steps was not made from this system's; make it by System.table_for(steps)"
        )


def _check_on_path(parts: Composition, path: ContinuousSchedule, table: ProcessTable) -> None:
    """Raise `OptionError` if total_std or time differs from a continuous schedule's at the table's log_snr."""
    log_snr = table.log_snr[1:]
    known = np.isfinite(log_snr)
    exact = path.level(torch.from_numpy(log_snr[known]))
    for name, value in zip(("total_std", "time"), exact, strict=True):
        if not np.allclose(getattr(table, name)[1:][known], value.numpy(), rtol=_SAME_PATH, atol=_SAME_PATH):
            raise OptionError(
                f"the table of {table.num_steps} steps has another {name} than {parts.label('schedule')} at its noise "
                "levels; make it by System.table_for(steps), or by the schedule's table(num_steps)"
            )


def level_coefficients(parts: Composition, table: ProcessTable) -> dict[str, F64]:
    """Block of `Level` columns for a table in use, (T+1,) each, followed by those of the variance and each guidance.

    The mean parameterization is that of the training table; the variance interpolates on the table in use.

    Raises:
        OptionError: The network is not defined at the table's levels.
    """
    mean = scalings_in_use(parts, table)
    columns = dict(zip(LEVEL, (*table.at(), *mean, table.time), strict=True))
    if parts.times != 1:  # a network of two times is also given that of level 0
        columns["time"] = np.concatenate([[clean_time(parts)], table.time[1:]])
    columns |= _owned(VARIANCE, parts.var.columns(table), table)
    for i, guidance in enumerate(parts.guidance):
        columns |= _owned(guidance_owner(i), guidance.columns(table), table)
    return columns


def clean_time(parts: Composition) -> float:
    """Return the time of level 0: the schedule's own, or one step of the training table before that of level 1."""
    path, time = continuous_path(parts), parts.table.time
    if path is not None:
        clean = float(path.level(torch.tensor(np.inf, dtype=torch.float64))[1])
        if np.isfinite(clean):
            return clean
    step = time[2] - time[1] if len(time) > 2 else 1.0
    return float(time[1] - step)


def rate_coefficients(level: NamedColumns) -> dict[str, F64]:
    """Block of the derivatives of `Level` columns with respect to time, by differences of neighbours, (T+1,) each."""
    time, edges = level["time"], 2 if len(level["time"]) > 2 else 1
    with np.errstate(all="ignore"):
        rates = {name: np.gradient(level[name], time, edge_order=edges) for name in LEVEL}  # type: ignore[call-overload]
    finite = {name: np.where(np.isfinite(rate), rate, 0.0) for name, rate in rates.items()}
    return finite | {BARE: np.zeros(len(level["time"]))}


def node_coefficients(
    parts: Composition, table: ProcessTable, steps: Steps, log_snr: F64, start: Mapping[str, F64]
) -> tuple[list[dict[str, F64]], tuple[Coefs, ...]]:
    """Columns of `Level` at nodes within steps, and their coefficients.

    Args:
        parts: The composition.
        table: The table in use.
        steps: The steps.
        log_snr: Of each node, (n, m).
        start: Columns of the levels that the steps start from, (n,) each.
    Returns:
        For each of the m nodes, its block of columns (n,) and its alpha, sigma and log_snr.
    """
    path = path_of(parts, table)
    found = []
    for column in log_snr.T:
        if path is None:
            node = _nearest_level(parts, steps, column, start)
        else:
            node = _continuous_node(parts.mean, path, steps, column, start)
        found.append(node | {BARE: np.zeros(len(column))})
    return found, tuple(Coefs(c["alpha"], c["sigma"], c["log_snr"]) for c in found)


def _continuous_node(
    mean: MeanParameterization,
    path: ContinuousSchedule | InterpolatedPath,
    steps: Steps,
    log_snr: F64,
    start: Mapping[str, F64],
) -> dict[str, F64]:
    """Coefficients of a node at exactly these log_snr; at the step's start, which may have no signal, its own."""
    at_start = log_snr == steps.t.log_snr
    log_snr = np.where(at_start, 0.0, log_snr)
    total_std, time = (c.numpy() for c in path.level(torch.from_numpy(log_snr)))
    share = 1 / (1 + np.exp(-log_snr)), 1 / (1 + np.exp(log_snr))
    at = Coefs(total_std * np.sqrt(share[0]), total_std * np.sqrt(share[1]), log_snr)
    found = zip(LEVEL, (*at, *mean.scalings(at, None), time), strict=True)
    return {name: np.where(at_start, start[name], column) for name, column in found}


def _nearest_level(parts: Composition, steps: Steps, log_snr: F64, start: Mapping[str, F64]) -> dict[str, F64]:
    """Columns of the nearest training level in log_snr: strictly between each step's ends, or beyond its start.

    Where there is no such level, those of the step's start.
    """
    table = parts.table
    known = table.log_snr[None, 1:]
    node, t, s = log_snr[:, None], steps.t.log_snr[:, None], steps.s.log_snr[:, None]
    between = (known > np.minimum(t, s)) & (known < np.maximum(t, s))
    beyond = np.where(t < s, (node < t) & (known < t), (node > t) & (known > t))
    stays = np.where(t < s, node <= t, node >= t)
    allowed = np.where(stays, beyond, between)
    with np.errstate(invalid="ignore"):  # a level without signal is never the nearest
        distance = np.abs(known - node)
        # t itself may be nearer than any level beyond it
        allowed = allowed & (distance <= np.where(stays, np.abs(t - node), np.inf)) & np.isfinite(known)
    nearest = np.argmin(np.where(allowed, distance, np.inf), axis=1)
    columns = dict(zip(LEVEL, (*table.at(), *scalings(parts.mean, table), table.time), strict=True))
    found = allowed.any(axis=1)
    return {name: np.where(found, column[nearest + 1], start[name]) for name, column in columns.items()}


def transition_coefficients(table: ProcessTable) -> dict[str, F64]:
    """Block of `Transition` columns for a table in use, (T+1,) each."""
    posterior, log_variance = table.posterior(), table.posterior_log_variance
    weight = posterior.coef_x_start**2 * np.exp(-log_variance)
    first = np.arange(table.num_steps + 1) == 1
    rows = (posterior.coef_x_start, posterior.coef_x_t, log_variance, weight, first.astype(np.float64))
    return dict(zip(TRANSITION, rows, strict=True))


def target_coefficients(level: NamedColumns) -> dict[str, F64]:
    """Columns p, q of the network's target ``p x_start + q eps``; in float64 because of the division by c_out."""
    c_skip, c_out = level["c_skip"][1:], level["c_out"][1:]
    p = (1 - c_skip * level["alpha"][1:]) / c_out
    q = -c_skip * level["sigma"][1:] / c_out
    return {"x_start": np.concatenate([[0.0], p]), "noise": np.concatenate([[0.0], q])}
