"""Schedules and mean parameterizations with one mistake each."""

from __future__ import annotations

import itertools
from typing import ClassVar

import numpy as np
import torch
from attrs import evolve, frozen

from diffkit.errors import OptionError
from diffkit.options import number
from diffkit.parts.means.eps import Eps
from diffkit.parts.means.v import V
from diffkit.parts.means.x_prev import XPrev
from diffkit.protocols import ContinuousSchedule, MeanParameterization, NoiseSchedule, Scalings
from diffkit.table import ProcessTable, Steps
from mutants import Mutant


@frozen
class Exploding(ContinuousSchedule):
    """Karras et al.'s spacing of sigma, known at any log_snr."""

    low: float = number(0.002, gt=0)
    high: float = number(80.0, gt=0)

    def table(self, num_steps):
        ends = self.low ** (1 / 7), self.high ** (1 / 7)
        sigmas = np.linspace(*ends, num_steps) ** 7 if num_steps > 1 else np.array([self.high])
        return ProcessTable.from_sigmas(sigmas, self.time(sigmas))

    def time(self, sigmas):
        return np.log(sigmas) / 4

    def level(self, log_snr):
        return torch.sqrt(1 + torch.exp(-log_snr)), -log_snr / 8


@frozen
class DividesByStepsLessOne(Exploding):
    def table(self, num_steps):
        ends = self.low ** (1 / 7), self.high ** (1 / 7)
        share = np.arange(num_steps) / np.float64(num_steps - 1)
        sigmas = (ends[0] + share * (ends[1] - ends[0])) ** 7
        return ProcessTable.from_sigmas(sigmas, np.log(sigmas) / 4)


@frozen
class OneFormulaTwice(Exploding):
    """The time of a level written a second time, with another constant (edm's two sigma functions)."""

    def level(self, log_snr):
        return torch.sqrt(1 + torch.exp(-log_snr)), -log_snr / 4


@frozen
class VarianceForScale(Exploding):
    def level(self, log_snr):
        return 1 + torch.exp(-log_snr), -log_snr / 8


@frozen
class NormalizesTheBatch(Exploding):
    def level(self, log_snr):
        total_std, time = super().level(log_snr)
        return total_std, time / time.abs().max() * 2


@frozen
class LevelInPlace(Exploding):
    def level(self, log_snr):
        return torch.sqrt(1 + torch.exp(-log_snr)), log_snr.mul_(-1 / 8)


@frozen
class RoundedTime(Exploding):
    def time(self, sigmas):
        return np.round(np.log(sigmas), 1)


_CALLS = itertools.count()


@frozen
class Counts(Exploding):
    """Something remembered between calls."""

    def table(self, num_steps):
        return Exploding(self.low, self.high + next(_CALLS)).table(num_steps)


@frozen
class LessNoiseAtTheEnd(Exploding):
    """A noise share stored in addition to alpha_bar, and clipped too low, after level 1."""

    def table(self, num_steps):
        table = super().table(num_steps)
        noise = table.one_minus_alpha_bar.copy()
        noise[2:] = np.minimum(noise[2:], noise[1] / 2)
        noise.flags.writeable = False
        return evolve(table, one_minus_alpha_bar=noise)


@frozen
class MostlySignal(Exploding):
    """Stops at sigma = 0.5: sampling starts from noise that training never saw."""

    high: float = number(0.5, gt=0)


@frozen
class UnscaledBetas(NoiseSchedule):
    """DDPM's variances, whatever T is: 20 of them leave most of the signal."""

    def table(self, num_steps):
        return ProcessTable.from_betas(np.linspace(1e-4, 0.02, num_steps))


@frozen
class Float32Column(Exploding):
    def table(self, num_steps):
        table = super().table(num_steps)
        time = table.time.astype(np.float32)
        time.flags.writeable = False
        return evolve(table, time=time)


@frozen
class InconsistentBeta(Exploding):
    """A table made by hand, whose beta is that of the level below."""

    def table(self, num_steps):
        table = super().table(num_steps)
        beta = np.roll(table.beta, 1)
        beta[0] = 0.0
        beta.flags.writeable = False
        return evolve(table, beta=beta)


@frozen
class NoisyLevel0(Exploding):
    """A floor under the noise share, at level 0 too."""

    def table(self, num_steps):
        table = super().table(num_steps)
        noise = np.maximum(table.one_minus_alpha_bar, 1e-9)
        noise.flags.writeable = False
        return evolve(table, one_minus_alpha_bar=noise)


@frozen
class RefusesWithoutHelp(NoiseSchedule):
    needs: int = 5

    def table(self, num_steps):
        if num_steps < self.needs:
            raise OptionError(self.text())
        return Exploding().table(num_steps)

    def text(self):
        return "too few steps"


@frozen
class RefusesWithHelp(RefusesWithoutHelp):
    def text(self):
        return f"num_steps must be >= {self.needs}"


@frozen
class EpsForScale1(MeanParameterization):
    """sigma rebuilt from alpha, which only scale 1 allows: on a VE path c_out is 0."""

    def scalings(self, at, prev):
        return Scalings(1 / at.alpha, -((1 - at.alpha**2) ** 0.5) / at.alpha, at.alpha**0)


@frozen
class PlainNumber(MeanParameterization):
    def scalings(self, at, prev):
        return Scalings(1 / at.alpha, -at.sigma / at.alpha, 1.0)


@frozen
class NumPyOnTensors(MeanParameterization):
    def scalings(self, at, prev):
        d = np.sqrt(at.alpha**2 + at.sigma**2)
        return Scalings(at.alpha / d**2, -at.sigma / d**2, d**0)


@frozen
class BranchOnLevels(MeanParameterization):
    def scalings(self, at, prev):
        d = at.alpha**2 + at.sigma**2
        if (d - 1).max() < 1e-9:
            return Scalings(at.alpha * 1, -at.sigma, d**0)
        return Scalings(at.alpha / d, -at.sigma / d, d**0)


@frozen
class NormalizedOverLevels(MeanParameterization):
    def scalings(self, at, prev):
        return Scalings(0 * at.sigma, at.sigma / at.sigma.max(), at.sigma**0)


@frozen
class ChangesItsArgument(MeanParameterization):
    def scalings(self, at, prev):
        sigma = at.sigma
        sigma /= at.alpha
        return Scalings(1 / at.alpha, -sigma, at.alpha**0)


@frozen
class VanishingOutput(MeanParameterization):
    """c_out 0 at the cleanest level, as one divided-out factor too many leaves it."""

    def scalings(self, at, prev):
        first = at.sigma == at.sigma.min()
        return Scalings(1 / at.alpha, np.where(first, 0.0, -at.sigma / at.alpha), at.alpha**0)


@frozen
class SkipTooLarge(MeanParameterization):
    """A skip so large at noisy levels that the answer drowns in its rounding."""

    def scalings(self, at, prev):
        return Scalings(at.alpha**-6, -at.sigma / at.alpha, at.alpha**0)


@frozen
class SeesNothing(MeanParameterization):
    def scalings(self, at, prev):
        return V().scalings(at, prev)._replace(c_in=0 * at.sigma)


@frozen
class Preconditioned(MeanParameterization):
    """V with an input of unit size."""

    def scalings(self, at, prev):
        return V().scalings(at, prev)._replace(c_in=1 / self.scale(at))

    def scale(self, at):
        return (at.alpha**2 + at.sigma**2) ** 0.5


@frozen
class TimesScale(Preconditioned):
    """c_in multiplied by the scale, not divided by it."""

    def scale(self, at):
        return 1 / super().scale(at)


@frozen
class PrevNotRefused(MeanParameterization):
    """Needs the level below, and does not say so where there is none."""

    def scalings(self, at, prev):
        posterior = Steps(at, prev).posterior()
        return Scalings(-posterior.coef_x_t / posterior.coef_x_start, 1 / posterior.coef_x_start, at.sigma**0)


@frozen
class PrevNotDeclared(XPrev):
    continuous_time: ClassVar[bool] = True


@frozen
class LevelsOnlyNotRefused(V):
    """Says that it is known at levels only, and takes continuous ones."""

    continuous_time: ClassVar[bool] = False


def _schedule(broken, caught_by, found_at=""):
    return Mutant("schedule", broken, Exploding(), caught_by, found_at)


def _mean(broken, caught_by, twin, found_at=""):
    return Mutant("mean", broken, twin, caught_by, found_at)


MUTANTS = [
    _schedule(DividesByStepsLessOne(), "table_at_any_length"),
    _schedule(OneFormulaTwice(), "level_agrees_with_table", "time"),
    _schedule(VarianceForScale(), "level_agrees_with_table", "total_std"),
    _schedule(NormalizesTheBatch(), "level_is_elementwise"),
    _schedule(LevelInPlace(), "level_is_elementwise"),
    _schedule(RoundedTime(), "time_tells_levels_apart", "T = 1000"),
    _schedule(Counts(), "same_call_same_table"),
    _schedule(LessNoiseAtTheEnd(), "noise_grows"),
    _schedule(MostlySignal(), "ends_in_noise", "T = 2"),
    _schedule(UnscaledBetas(), "ends_in_noise", "T = 2"),
    _schedule(Float32Column(), "arrays_are_float64", "time"),
    _schedule(InconsistentBeta(), "columns_agree", "beta"),
    _schedule(NoisyLevel0(), "level_0_is_clean"),
    Mutant("schedule", RefusesWithoutHelp(), RefusesWithHelp(), "table_at_any_length", "too few steps"),
    _mean(EpsForScale1(), "claims_a_path", Eps(), "ve path"),
    _mean(PlainNumber(), "arrays_of_the_levels_shape", Eps(), "c_in"),
    _mean(NumPyOnTensors(), "tensors_agree_with_arrays", V()),
    _mean(BranchOnLevels(), "tensors_agree_with_arrays", V()),
    _mean(NormalizedOverLevels(), "each_level_on_its_own", Eps()),
    _mean(ChangesItsArgument(), "each_level_on_its_own", Eps()),
    _mean(VanishingOutput(), "claims_a_path", Eps()),
    _mean(SkipTooLarge(), "decodes_its_target", Eps()),
    _mean(SeesNothing(), "input_of_moderate_size", V(), "found:    0"),
    _mean(TimesScale(), "input_of_moderate_size", Preconditioned(), "ve path"),
    _mean(PrevNotDeclared(), "between_levels_as_declared", XPrev(), "prev=None"),
    _mean(LevelsOnlyNotRefused(), "between_levels_as_declared", V(), "problems()"),
    _mean(PrevNotRefused(), "tensors_agree_with_arrays", Eps()),
]

RIGHT = [("mean", Preconditioned())]
