"""Data less its mean, divided by its standard deviation."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

import attrs
import numpy as np
from attrs import frozen

from diffkit.errors import OptionError, problem
from diffkit.options import choice, numbers
from diffkit.protocols import Composition, MeasuredCodec
from diffkit.registry import registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffkit.table import F64


@registry("codec").register("standardize")
@frozen
class Standardize(MeasuredCodec):
    """``z = (x - mean) / std``, for continuous data in any units.

    `diffkit train` measures a mean and std that are not given, in Python `diffkit.data.measured` does.

    Attributes:
        mean: One number, or one for each channel.
        std: One number, or one for each channel.
        per: What a mean and std are measured of: each "channel", or the "whole" data.
    """

    affine: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    mean: tuple[float, ...] | None = numbers(None, optional=True, single=True)
    std: tuple[float, ...] | None = numbers(None, optional=True, single=True, gt=0)
    per: str = choice("channel", ("channel", "whole"))

    @property
    def measured(self) -> bool:
        """True if it has a mean and a std."""
        return self.mean is not None and self.std is not None

    def measure(self, batches: Iterable[Tensor]) -> Standardize:
        """Return this codec with the mean and std of data; the std is 1 where data is constant."""
        count, mean, scatter = 0, np.zeros(1), np.zeros(1)
        for x in batches:
            rows = _by_channel(x) if self.per == "channel" else x.double().numpy().reshape(1, -1)
            count, mean, scatter = _merged(count, mean, scatter, rows)
        std = np.sqrt(scatter / max(count, 1))
        std = np.where(std > np.finfo(np.float32).eps * np.abs(mean), std, 1.0)
        return attrs.evolve(
            self,
            mean=tuple(mean.tolist()) if self.mean is None else self.mean,
            std=tuple(std.tolist()) if self.std is None else self.std,
        )

    def problems(self, composition: Composition) -> Iterable[str]:
        """Return that it has not been measured."""
        if not self.measured:
            yield problem(
                f"{composition.label('codec')} has no mean and std yet; diffkit train measures them, in Python "
                "codec=diffkit.data.measured('standardize', data) does"
            )

    def latent_shape(self, data_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the data, which has as many channels as there are means."""
        for name in ("mean", "std"):
            found = getattr(self, name)
            if found is not None and len(found) not in (1, data_shape[0]):
                raise OptionError(f"must be one number, or {data_shape[0]}, one per channel", option=name, value=found)
        return data_shape

    def encode(self, x: Tensor) -> Tensor:
        """Return ``(x - mean) / std``."""
        mean, std = self._columns(x)
        return (x - mean) / std

    def decode(self, z: Tensor) -> Tensor:
        """Return ``z std + mean``."""
        mean, std = self._columns(z)
        return z * std + mean

    def log_det(self, x: Tensor) -> Tensor:
        """Return minus the sum of ``log std`` over all values."""
        assert self.std is not None, "refused by `problems`"
        values = x.shape[1:].numel() / len(self.std)
        return x.new_full((x.shape[0],), -values * sum(map(math.log, self.std)))

    def _columns(self, x: Tensor) -> tuple[float | Tensor, float | Tensor]:
        assert self.mean is not None and self.std is not None, "refused by `problems`"
        if len(self.mean) == len(self.std) == 1:
            return self.mean[0], self.std[0]
        return _on(x, self.mean), _on(x, self.std)


def _on(x: Tensor, values: tuple[float, ...]) -> Tensor:
    """Values of channels, (1, C, 1, ...), made on x's device without an upload."""
    import torch

    shape = (1, 1, *(1,) * (x.ndim - 2))
    return torch.cat([x.new_full(shape, value) for value in values], 1)


def _by_channel(x: Tensor) -> F64:
    return np.asarray(x.double().movedim(1, 0).flatten(1).numpy())


def _merged(count: int, mean: F64, scatter: F64, rows: F64) -> tuple[int, F64, F64]:
    """Number, mean and sum of squared deviations with further values, (C, N), without cancellation.

    Source: Chan et al. 1983, "Algorithms for computing the sample variance".
    """
    more = rows.shape[1]
    own = rows.mean(1)
    gap, total = own - mean, count + more
    scatter = scatter + ((rows - own[:, None]) ** 2).sum(1) + gap**2 * (count * more / total)
    return total, mean + gap * (more / total), scatter
