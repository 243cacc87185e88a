"""Laws of guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor, nn

import diffkit
from diffkit.errors import CompositionError, OptionError
from diffkit.protocols import Composition, Guidance, Level, Prediction
from diffkit.system.call_parts import parts_for
from diffkit.system.coefficients import CoefficientTable, level_coefficients
from diffkit.system.guidance import inactive_at, own_conditions
from diffkit.system.module import System
from diffkit.testing._check import NotApplicableError, Where, check, given_conditions, record_where
from diffkit.testing._close import require, require_close, require_same
from diffkit.testing._conditions import given_rows
from diffkit.testing._host import on_fake_tensors
from diffkit.testing._parts import DATA_SHAPES

_SHAPES = ((3, 4, 4), *DATA_SHAPES)
"""Shapes of data that a guidance is tried on, until one fits what it holds."""
_STEPS = 12
_CLASSES = 4
_ROUNDING = 1e-8
"""Of a few float64 operations, with a gradient among them, in another batch."""


class _Labelled(nn.Module):
    """A small network of x_start within (-1, 1) and of a variance; rows are independent, label 4 means no class."""

    def __init__(self, data_shape: tuple[int, ...]):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        channels = data_shape[0]
        self.mix = nn.Parameter(0.4 * torch.randn(2 * channels, channels, generator=generator, dtype=torch.float64))
        self.shift = nn.Parameter(torch.randn(_CLASSES + 1, 2 * channels, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor, y: Tensor) -> Tensor:
        if not isinstance(y, Tensor) or y.shape != time.shape:  # as every network with labels does
            raise OptionError("must be a tensor of integers with one for each example", option="y", value=y)
        shift = self.shift[y] * (1 + time[:, None] / 1000)
        shift = shift.view(*shift.shape, *(1,) * (x.ndim - 2))
        return 0.95 * torch.tanh(torch.einsum("oc,nc...->no...", self.mix, x) + shift)


@frozen(eq=False)
class Setting:
    """A system of labelled data with a learned variance, and a guidance that fits it.

    Attributes:
        part: The guidance.
        system: The system, in float64 and without clipping.
    """

    part: Guidance
    system: System

    @property
    def where(self) -> Where:
        """Path, number of steps and shape of the data, for a finding."""
        return Where("vp", _STEPS, detail=f"data {self.system.data_shape}")

    def inputs(self, n: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Return x, the level of each example and the conditions, the same for every call."""
        generator = torch.Generator().manual_seed(5)
        x = torch.randn(n, *self.system.data_shape, generator=generator, dtype=torch.float64).to(dtype)
        levels = torch.tensor([1, _STEPS // 2, _STEPS - 1, 3]).repeat(n)[:n]
        return x, levels, self.conditions(n)

    def conditions(self, n: int) -> dict[str, Any]:
        """Return labels, and what the caller of the kit gave."""
        given = given_conditions()
        labels = torch.arange(n) % _CLASSES
        return {"y": labels} | ({} if given is None else given_rows(given, self.system.data_shape, n))

    def predict(self, part: Guidance | None, x: Tensor, levels: Tensor, conditions: Mapping[str, Any]) -> Prediction:
        """Return what the denoiser predicts with a guidance, or without."""
        if part is None:
            own = own_conditions(self.parts(self.part).guidance)
            conditions = {name: value for name, value in conditions.items() if name not in own}
        denoiser = self.system.denoiser(guidance=part, clip=False, **conditions)
        return denoiser(x, self.level(part, x, levels))

    def parts(self, part: Guidance | None) -> Composition:
        """Return the composition with a guidance."""
        return parts_for(self.system.parts, None, part)

    def level(self, part: Guidance | None, x: Tensor, levels: Tensor) -> Level:
        """Return the level of each row, with the coefficients of a guidance."""
        columns = CoefficientTable({"level": level_coefficients(self.parts(part), self.system.table)})
        return columns.level(columns.on(torch.device("cpu"), x.dtype)[levels], x.ndim)


def _setting(part: Guidance) -> Setting:
    """The first setting that a guidance works in."""
    first: Exception | None = None
    for shape in _SHAPES:
        setting = Setting(part, _system(shape))
        record_where(setting.where)
        try:
            setting.predict(part, *setting.inputs())
            return setting
        except Exception as error:
            first = first or error
    assert first is not None
    if isinstance(first, CompositionError):
        raise NotApplicableError(f"it refuses a system of labelled data: {first}") from first
    raise first


@cache
def _system(shape: tuple[int, ...]) -> System:
    return diffkit.compose(
        schedule="cosine",
        mean="x_start",
        var="learned_range",
        loss="hybrid",
        backbone=_Labelled(shape),
        data_shape=shape,
        num_steps=_STEPS,
        bins=None,
        null_conditions={"y": _CLASSES},
    ).eval()


def _neutral(part: Guidance) -> Guidance:
    if part.neutral is None:
        raise NotApplicableError("it declares no neutral option")
    name, value = part.neutral
    names = [field.alias or field.name for field in attrs.fields(type(part))]  # type: ignore[arg-type]  # an attrs class
    require(name in names, "neutral to name one of its options", f"{name!r}, which is not one")
    options: Any = part
    evolved: Guidance = attrs.evolve(options, **{name: value})
    return evolved


@check("guidance")
def works_with_labels(part: Guidance) -> None:
    """It guides a system of labelled data with a learned variance, or says in problems() why it cannot.

    Usually: a required condition that the kit does not know; pass the kit conditions={name: tensor}.
    """
    setting = _setting(part)
    x, levels, conditions = setting.inputs()
    found = setting.predict(part, x, levels, conditions).x_start
    require(bool(found.isfinite().all()), "a finite estimate", "NaN or infinity", setting.where)


@check("guidance")
def neutral_changes_nothing(part: Guidance) -> None:
    """With its neutral option the estimate is that of the plain network, at every level.

    Usually: a scale that is 0 where the formula's is 1, or the other way round.
    """
    setting, neutral = _setting(part), _neutral(part)
    _require_plain(setting, neutral, range(1, _STEPS + 1))


@check("guidance")
def neutral_samples_are_plain(part: Guidance) -> None:
    """With its neutral option whole samples are those of the plain network.

    Usually: a condition of its own that the network sees too, or a change after clipping.
    """
    setting, neutral = _setting(part), _neutral(part)
    x, _, conditions = setting.inputs()
    own = own_conditions(setting.parts(part).guidance)
    plain = {name: value for name, value in conditions.items() if name not in own}
    how: dict[str, Any] = dict(steps=6, sampler="ddim", start=x, progress=False)
    found = setting.system.sample(len(x), guidance=neutral, **how, **conditions)
    wanted = setting.system.sample(len(x), **how, **plain)
    require_close(found, wanted, 1e-6, "sample of the plain network", setting.where)  # errors of 6 steps


@check("guidance")
def rows_are_independent(part: Guidance) -> None:
    """An example's estimate depends on nothing else in the batch, and each may be at a level of its own.

    Usually: a norm, mean or percentile over the whole batch, or the level of the first example.
    """
    setting = _setting(part)
    x, levels, conditions = setting.inputs()
    whole = setting.predict(part, x, levels, conditions)
    for row in range(len(x)):
        alone = {name: _rows(value, row, len(x)) for name, value in conditions.items()}
        single = setting.predict(part, x[row : row + 1], levels[row : row + 1], alone)
        where = attrs.evolve(setting.where, level=int(levels[row]))
        require_close(whole.x_start[row], single.x_start[0], _ROUNDING, "x_start of the example alone", where)


@check("guidance")
def learned_variance_stays(part: Guidance) -> None:
    """The learned variance is the one of the plain network under the caller's conditions.

    Usually: an Estimate with raw of another evaluation, or without; use estimate.with_x_start.
    """
    setting = _setting(part)
    inputs = setting.inputs()
    found, wanted = (setting.predict(one, *inputs).log_variance for one in (part, None))
    assert wanted is not None
    require(found is not None, "a log-variance", "none", setting.where)
    require_close(found, wanted, _ROUNDING, "log-variance of the plain network", setting.where)


@check("guidance")
def inactive_where_it_says(part: Guidance) -> None:
    """At each level where inactive_at is True the estimate is that of the plain network.

    Usually: an interval whose ends are compared in other units than where it acts.
    """
    setting = _setting(part)
    idle = inactive_at(setting.parts(part).guidance[0], setting.system.table.at())
    levels = [level for level in range(1, _STEPS + 1) if idle[level]]
    if not levels:
        raise NotApplicableError("it acts at every level")
    _require_plain(setting, part, levels)


@check("guidance")
def keeps_the_form(part: Guidance) -> None:
    """The estimate has the shape and dtype of x, in float32 and float64, for one example and for several.

    Usually: a constant in another dtype, or a sum that loses an axis.
    """
    setting = _setting(part)
    for n in (1, 3):
        for dtype in (torch.float32, torch.float64):
            x, levels, conditions = setting.inputs(n, dtype)
            found = setting.predict(part, x, levels, conditions).x_start
            shown = f"{tuple(found.shape)} {found.dtype}"
            same = found.shape == x.shape and found.dtype == x.dtype
            require(same, f"{tuple(x.shape)} {x.dtype}", shown, setting.where)


@check("guidance")
def pure(part: Guidance) -> None:
    """It changes no argument and gives the same for the same.

    Usually: an operation in place (clamp_, mul_) on x or on the estimate it was given.
    """
    setting = _setting(part)
    x, levels, conditions = setting.inputs()
    before = x.clone(), {name: _copied(value) for name, value in conditions.items()}
    first, again = (setting.predict(part, x, levels, conditions).x_start for _ in range(2))
    require_same(x, before[0], "x unchanged", setting.where)
    require_same(conditions, before[1], "conditions unchanged", setting.where)
    require_same(again, first, "the same estimate again", setting.where)


@check("guidance")
def reads_no_value(part: Guidance) -> None:
    """It never makes the host wait: no value of a tensor is read.

    Usually: a Python `if` on a tensor, .item(), or a boolean index.
    """
    setting = _setting(part)
    x, levels, conditions = setting.inputs()
    level = setting.level(part, x, levels)
    denoiser = setting.system.denoiser(guidance=part, clip=False, **conditions)
    with on_fake_tensors(strict=False):
        denoiser(x, level)


def _require_plain(setting: Setting, part: Guidance, levels: Sequence[int]) -> None:
    """Raise unless the estimates at some levels are those of the plain network."""
    x, _, conditions = setting.inputs(len(levels))
    rows = torch.tensor(list(levels))
    found, wanted = (setting.predict(one, x, rows, conditions).x_start for one in (part, None))
    what = "x_start of the plain network"
    require_close(found, wanted, _ROUNDING, what, setting.where, level_of=lambda row: levels[row])


def _rows(value: Any, row: int, n: int) -> Any:
    """One example's condition."""
    return value[row : row + 1] if isinstance(value, Tensor | list) and len(value) == n else value


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
