"""Variance parameterizations with one mistake each."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from attrs import frozen

from diffkit.protocols import VarianceParameterization
from mutants import Mutant


@frozen
class Range(VarianceParameterization):
    """Learned range, written out."""

    extra_outputs: ClassVar[int] = 1

    def columns(self, table):
        return {"low": table.posterior_log_variance, "high": table.upper_log_variance}

    def log_variance(self, raw, cols):
        share = (raw + 1) / 2
        return share * cols["high"] + (1 - share) * cols["low"]


@frozen
class Upper(VarianceParameterization):
    """The upper variance, written out."""

    def columns(self, table):
        return {"value": table.upper_log_variance}

    def log_variance(self, raw, cols):
        return cols["value"]


@frozen
class UnrespacedBeta(Range):
    """The upper end is beta of the chain that training used (diffusers PR 3006)."""

    def columns(self, table):
        root = np.concatenate([[0.0], np.linspace(1e-4, 0.02, 1000)])
        return {"low": table.posterior_log_variance, "high": np.log(np.maximum(root[table.index], 1e-20))}


@frozen
class ByTime(Upper):
    """Levels identified by what the network is conditioned on."""

    def columns(self, table):
        step = np.diff(table.time, prepend=0.0)
        return {"value": table.upper_log_variance + np.where(np.abs(step) > 60, -1e-3, 0.0)}


@frozen
class NotALog(Upper):
    """A variance (diffusers issue 14569: one helper, three meanings)."""

    def columns(self, table):
        return {"value": table.upper_variance}


@frozen
class LogOfStd(Upper):
    def columns(self, table):
        return {"value": table.upper_log_variance / 2}


@frozen
class BetaInVPUnits(Upper):
    """beta knows nothing of the data's units: off the VP path the bounds are upside down."""

    def columns(self, table):
        return {"value": np.concatenate([[0.0], np.log(np.maximum(table.beta[1:], 1e-20))])}


@frozen
class LogOfZero(Range):
    """The posterior has no variance at level 1."""

    def columns(self, table):
        with np.errstate(divide="ignore"):
            return {"low": np.log(table.posterior().variance), "high": table.upper_log_variance}


@frozen
class ZeroToOne(Range):
    """An output in [0, 1] taken for granted."""

    def log_variance(self, raw, cols):
        return raw * cols["high"] + (1 - raw) * cols["low"]


@frozen
class Detached(Range):
    def log_variance(self, raw, cols):
        return super().log_variance(raw.detach(), cols)


@frozen
class ClampedInPlace(Range):
    def log_variance(self, raw, cols):
        return super().log_variance(raw.clamp_(-1, 1), cols)


@frozen
class LogOfOutput(Range):
    """The log of something that may be negative."""

    def log_variance(self, raw, cols):
        return super().log_variance(raw, cols) + 0 * raw.log()


@frozen
class ThreeChannels(Range):
    """Counts on RGB (diffusers, eight places; DiT PR 12)."""

    def log_variance(self, raw, cols):
        return super().log_variance(raw[:, :3], cols).expand(-1, 3, *raw.shape[2:])


@frozen
class FirstForAll(Range):
    """The first channel's variance taken for all."""

    def log_variance(self, raw, cols):
        return super().log_variance(raw[:, :1], cols)


@frozen
class Isotropic(Range):
    """One variance for all elements of an example: another model, and a right one."""

    def log_variance(self, raw, cols):
        return super().log_variance(raw.flatten(1).mean(1).view(-1, *[1] * (raw.ndim - 1)), cols)


@frozen
class Float32Columns(Range):
    def columns(self, table):
        return {name: column.astype(np.float32) for name, column in super().columns(table).items()}


@frozen
class HostRead(Range):
    def log_variance(self, raw, cols):
        return super().log_variance(raw, cols) if raw.abs().max() < 100 else cols["low"]


def _of(broken, caught_by, twin=None, found_at=""):
    return Mutant("var", broken, twin or (Range() if broken.extra_outputs else Upper()), caught_by, found_at)


MUTANTS = [
    _of(UnrespacedBeta(), "inside_the_bounds"),
    _of(UnrespacedBeta(), "follows_the_table_in_use"),
    _of(ByTime(), "follows_the_table_in_use"),
    _of(NotALog(), "inside_the_bounds"),
    _of(NotALog(), "is_a_log_variance"),
    _of(LogOfStd(), "is_a_log_variance"),
    _of(BetaInVPUnits(), "is_a_log_variance", found_at="scaled by 3"),
    _of(BetaInVPUnits(), "inside_the_bounds", found_at="ve path"),
    _of(LogOfZero(), "columns_are_float64", found_at="level 1"),
    _of(LogOfZero(), "finite_at_every_level", found_at="level 1"),
    _of(ZeroToOne(), "inside_the_bounds", found_at="network output -1"),
    _of(Detached(), "network_is_asked"),
    _of(FirstForAll(), "network_is_asked", found_at="0 at channel 1"),
    _of(ClampedInPlace(), "pure_on_the_device"),
    _of(LogOfOutput(), "finite_at_every_level"),
    _of(ThreeChannels(), "any_shape_of_data"),
    _of(Float32Columns(), "columns_are_float64"),
    _of(HostRead(), "pure_on_the_device"),
]

RIGHT = [("var", Range()), ("var", Isotropic())]
