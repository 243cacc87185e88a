"""The table of the chain that a call's steps visit."""

from __future__ import annotations

import attrs
import numpy as np
import torch

from diffkit.protocols import Composition
from diffkit.spacing import Grid
from diffkit.system.coefficients import continuous_path, path_of
from diffkit.table import F64, ProcessTable, interpolate, respace


def chain_of(parts: Composition, found: tuple[int, ...] | Grid) -> ProcessTable:
    """Return the training table respaced to some of its levels, or at noise levels between them.

    Raises:
        OptionError: The noise levels are not those of a chain, or parts are defined at levels of training only.
    """
    if isinstance(found, tuple):
        return respace(parts.table, found)
    table = interpolate(parts.table, found.log_snr, found.time)
    path_of(parts, table)
    return table if continuous_path(parts) is None else _on_path(parts, table)


def _on_path(parts: Composition, table: ProcessTable) -> ProcessTable:
    """A table with total_std and time of a continuous schedule, which has them at any log_snr."""
    path, finite = continuous_path(parts), np.isfinite(table.log_snr)
    assert path is not None, "called for continuous schedules only"
    exact = path.level(torch.from_numpy(table.log_snr[finite]))

    def changed(column: F64, values: torch.Tensor) -> F64:
        out = column.copy()
        out[finite] = values.numpy()
        out.flags.writeable = False
        return out

    total_std, time = (changed(c, v) for c, v in zip((table.total_std, table.time), exact, strict=True))
    return attrs.evolve(table, total_std=total_std, time=time)
