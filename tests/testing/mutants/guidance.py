"""Guidance with one mistake each."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from attrs import frozen

from diffkit.options import number
from diffkit.protocols import Estimate, IntervalGuidance, Prediction
from mutants import Mutant


@frozen
class Away(IntervalGuidance):
    """Away from no class, written out for labels of which 4 means none, above a level of noise."""

    neutral: ClassVar = ("scale", 1.0)

    scale: float = number(2.0)
    low: float = number(0.5)

    def inactive_at(self, at):
        return at.sigma <= self.low * at.alpha

    def guide(self, evaluate, x, level, conditions):
        given, none = evaluate(x, level, conditions), evaluate(x, level, {**conditions, "y": 0 * conditions["y"] + 4})
        weight = 1 + (self.scale - 1) * (level.sigma > self.low * level.alpha).to(x.dtype)
        return self.made(given, none, none.x_start + weight * (given.x_start - none.x_start), x)

    def made(self, given, none, x_start, x):
        return given.with_x_start(x_start)


@frozen
class ScaleOfThePaper(Away):
    """The formula's scale is 1 + w (Ho & Salimans, eq. 6), the declaration that of w."""

    neutral: ClassVar = ("scale", 0.0)


@frozen
class AfterClipping(Away):
    """A change after clipping that the scale does not reach."""

    def correct(self, prediction, x, level, conditions):
        return Prediction(0.99 * prediction.x_start, prediction.log_variance)


@frozen
class NormOfTheBatch(Away):
    """Rescaled by the spread of the whole batch (Lin et al., section 3.4, without dim=)."""

    def made(self, given, none, x_start, x):
        return given.with_x_start(x_start * given.x_start.std() / x_start.std())


@frozen
class VarianceWithoutClass(Away):
    """All channels guided alike (guided-diffusion issue 32: eps and rest)."""

    def made(self, given, none, x_start, x):
        return Estimate(x_start, none.raw)


@frozen
class IntervalInSigma(Away):
    """Idle levels are counted by sigma, the interval by sigma / alpha."""

    def inactive_at(self, at):
        return np.asarray(at.sigma <= 2 * self.low)


@frozen
class LosesFloat64(Away):
    def made(self, given, none, x_start, x):
        return given.with_x_start(x_start.float())


@frozen
class InPlace(Away):
    def made(self, given, none, x_start, x):
        x.mul_(0.5)
        return given.with_x_start(x_start)


@frozen
class BranchesOnData(Away):
    def made(self, given, none, x_start, x):
        return given.with_x_start(x_start.clamp(-9, 9) if x_start.abs().max() > 9 else x_start)


@frozen
class Overflows(Away):
    def made(self, given, none, x_start, x):
        return given.with_x_start(x_start / 0)


@frozen
class NullForAll(Away):
    """The null label as one number, where a network takes a label for each example."""

    def guide(self, evaluate, x, level, conditions):
        none = evaluate(x, level, {**conditions, "y": 4})
        return self.made(evaluate(x, level, conditions), none, none.x_start, x)


MUTANTS = [
    Mutant("guidance", NullForAll(), Away(), "works_with_labels", "one for each example"),
    Mutant("guidance", Overflows(), Away(), "works_with_labels", "NaN or infinity"),
    Mutant("guidance", ScaleOfThePaper(), Away(), "neutral_changes_nothing", "level"),
    Mutant("guidance", AfterClipping(), Away(), "neutral_samples_are_plain", "sample"),
    Mutant("guidance", NormOfTheBatch(), Away(), "rows_are_independent", "example alone"),
    Mutant("guidance", VarianceWithoutClass(), Away(), "learned_variance_stays", "log-variance"),
    Mutant("guidance", IntervalInSigma(), Away(), "inactive_where_it_says", "level"),
    Mutant("guidance", LosesFloat64(), Away(), "keeps_the_form", "float64"),
    Mutant("guidance", InPlace(), Away(), "pure", "x unchanged"),
    Mutant("guidance", BranchesOnData(), Away(), "reads_no_value", "value"),
]
