"""Analytic-DPM: the best variance for a trained model, from its measured error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from attrs import frozen

from diffkit.errors import OptionError
from diffkit.options import numbers
from diffkit.protocols import Composition, VarianceParameterization
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64, ProcessTable


@registry("var").register("analytic")
@frozen
class Analytic(VarianceParameterization):
    """``variance = posterior variance + coef_x_start^2 e``, e the mean squared error of x_start at the level.

    Of all variances that are the same in every dimension this one has the lowest bound, on any respaced chain. Nothing
    is trained: e is what `System.bits_per_dim` measures at every level, ``bound.x_start_mse.mean(0).tolist()``. A
    network with variance channels is used for its mean only.

    Attributes:
        x_start_mse: e of each level of the un-respaced table, per dimension, (T,), >= 0; empty means no error,
            which gives the posterior's variance.
    Source: Bao et al. 2022, arXiv:2201.06503, theorem 1; for networks that are not exact, arXiv:2206.07309.
    Deviates: level 1, where the posterior has no variance, has e alone, which is the best for the decoder's term too if
    data is continuous; the paper's code clips it. Between two levels e is a line from one to the other.
    """

    x_start_mse: tuple[float, ...] = numbers((), ge=0)

    def columns(self, table: ProcessTable) -> Mapping[str, F64]:
        """Return the analytic log-variance of the table in use."""
        if not self.x_start_mse:
            return {"log_variance": table.posterior_log_variance}
        if len(self.x_start_mse) < table.index[-1]:
            raise OptionError(self._too_short(table))
        error = np.array(self.x_start_mse)[table.index[1:] - 1]
        if table.fraction is not None:  # between two levels, where nothing was measured
            above = np.array(self.x_start_mse)[np.minimum(table.index[1:], len(self.x_start_mse) - 1)]
            error = error + table.fraction[1:] * (above - error)
        posterior = table.posterior()
        variance = posterior.variance[1:] + posterior.coef_x_start[1:] ** 2 * error
        # Without error and variance, as at level 1 of perfect models, the clipped variance is used.
        log_variance = np.log(variance, out=table.posterior_log_variance[1:].copy(), where=variance > 0)
        return {"log_variance": np.concatenate([[0.0], log_variance])}

    def log_variance(self, raw: Tensor | None, cols: Mapping[str, Tensor]) -> Tensor:
        """Return the column, 0-d or (B,1..)."""
        return cols["log_variance"]

    def problems(self, composition: Composition) -> Iterable[str]:
        """Report that there are fewer errors than levels."""
        if self.x_start_mse and len(self.x_start_mse) < composition.table.index[-1]:
            yield f"{composition.label('var')}: {self._too_short(composition.table)}"

    def _too_short(self, table: ProcessTable) -> str:
        return (
            f"x_start_mse has {len(self.x_start_mse)} values, but the table goes up to level {table.index[-1]}; "
            "measure every level with steps=None"
        )
