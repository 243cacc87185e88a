"""Arguments of a system's calls, checked before any work."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from diffkit.errors import OptionError
from diffkit.options import check_callable, check_integer
from diffkit.protocols import Composition, PairSampler
from diffkit.runtime.finite import examples_hold, rows_not_finite
from diffkit.system.denoiser import as_float
from diffkit.table import ProcessTable
from diffkit.tensors import has_values

_MOST_VALUES = 2**40
"""Largest number of values of all samples of a call: 4 TiB of float32."""


def checked_data(x_start: Tensor, data_shape: tuple[int, ...], bounded: bool) -> Tensor:
    """Return clean data of a system, (B, C, *S), as float32 or float64, ready for arithmetic.

    Args:
        x_start: The data.
        data_shape: That of the system's data.
        bounded: Whether it must lie in [-1, 1].
    Raises:
        OptionError: It is not a tensor, has another shape, is not floating point, has NaN or an infinity, or lies
            outside of [-1, 1] for data with bins.
    """
    if not isinstance(x_start, Tensor):
        raise OptionError(
            f"x_start must be a tensor (B, {_joined(data_shape)}), got {type(x_start).__name__}; "
            "a data set is scored by diffkit.evaluation.scoring.Scoring(system, data).bound()"
        )
    if x_start.ndim != len(data_shape) + 1 or x_start.shape[1:] != data_shape:
        raise OptionError(f"x_start must have shape (B, {_joined(data_shape)}), got {tuple(x_start.shape)}")
    if not x_start.is_floating_point():
        raise OptionError(
            f"x_start must be floating point in [-1, 1], got {x_start.dtype}; for 8-bit images: x / 127.5 - 1"
        )
    # On a GPU the check would synchronize at every step; data are checked where they are read.
    if has_values(x_start):
        low, high = (float(v) for v in x_start.detach().aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise OptionError(f"x_start is not finite: {examples_hold(rows_not_finite(x_start.detach()))}")
        if bounded and not (low >= -1 - 1e-4 and high <= 1 + 1e-4):
            pixels = low >= 0 and 1 < high <= 255
            raise OptionError(
                f"x_start must lie in [-1, 1], got values in [{low:g}, {high:g}]; "
                + (
                    "for 8-bit images: x / 127.5 - 1"
                    if pixels
                    else "scale it, or compose with bins=None for unbounded data"
                )
            )
    return as_float(x_start)


def check_draws(
    x_start: Tensor, level: Tensor, noise: Tensor, parts: Composition, level_to: Tensor | None = None
) -> None:
    """Raise `OptionError` unless there is one level and one noise for each example, and every level is in 1..T.

    The range is checked on the CPU only and outside of tracing, where that needs no synchronization.
    """
    check_tensors(x_start=x_start, level=level, noise=noise)
    if level.shape != x_start.shape[:1]:
        raise OptionError(f"level must have shape {tuple(x_start.shape[:1])}, got {tuple(level.shape)}")
    if noise.shape != x_start.shape:
        raise OptionError(f"noise must have shape {tuple(x_start.shape)}, as x_start, got {tuple(noise.shape)}")
    if isinstance(parts.timesteps, PairSampler):
        check_tensors(level_to=level_to)
        if level_to is None or level_to.shape != level.shape:
            raise OptionError(f"level_to must have shape {tuple(level.shape)}, as level")
    elif level_to is not None:
        raise OptionError(f"{parts.label('timesteps')} draws one level for each example; leave level_to out")
    num_steps = parts.table.num_steps
    if level.is_floating_point() and not parts.continuous_time:
        raise OptionError(
            f"level must be integers in 1..{num_steps}, got {level.dtype}; a timestep sampler that draws log_snr has "
            "to inherit from diffkit.protocols.ContinuousTimestepSampler"
        )
    if level.is_floating_point() or not has_values(level):
        return
    try:
        low, high = (int(k) for k in level.aminmax())
    except RuntimeError:  # levels that vmap maps over have no value to look at
        return
    if low < 1 or high > num_steps:
        raise OptionError(f"level must lie in 1..{num_steps}, got values in {low}..{high}")
    if level_to is not None and bool(((level_to < 0) | (level_to > level)).any()):
        raise OptionError("level_to must lie in 0..level, for each example")


def check_tensors(**values: object) -> None:
    """Raise `OptionError` unless each is a tensor with an entry for each example."""
    for name, value in values.items():
        if not isinstance(value, Tensor) or not value.ndim:
            what = "a single number" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise OptionError(f"{name} must be a tensor with an entry for each example, got {what}")


def check_arguments(noise_fn: object, table: object, x_transform: object) -> None:
    """Raise `OptionError` for arguments of `System.sample_from` of another type."""
    if noise_fn is not None:
        check_callable("noise_fn", noise_fn, "noise_fn()")
    if x_transform is not None:
        check_callable("x_transform", x_transform, "x_transform(x_start)")
    if table is not None and not isinstance(table, ProcessTable):
        raise OptionError(f"table must be a ProcessTable, such as System.table_for(20), got a {type(table).__name__}")


def checked_count(n: object, data_shape: tuple[int, ...]) -> int:
    """The number of examples; raises `OptionError` if their values would exceed any memory."""
    found = check_integer("n", n, ge=1)
    if found * math.prod(data_shape) > _MOST_VALUES:
        raise OptionError(f"n {found} is more than memory holds; make at most some millions at a time")
    return found


def _joined(shape: Sequence[int]) -> str:
    return ", ".join(map(str, shape))
