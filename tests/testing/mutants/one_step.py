"""Losses of flow maps with one mistake each, on the way to a step that is exact."""

from __future__ import annotations

from typing import ClassVar

import torch
from attrs import frozen

from diffkit.gaussian import mean_flat
from diffkit.protocols import NetworkLoss, Tangent
from mutants import Mutant


def step(t, s):
    """Coefficients of x_t and of the average in ``x_s``."""
    keep = s.sigma / t.sigma
    return keep, s.alpha - t.alpha * keep


@frozen
class MeanFlow(NetworkLoss):
    """``keep (A - x_start) + (move / q) dA/dt`` is zero on average at the exact map."""

    optimum: ClassVar[str] = "flow_map"
    needs_pairs: ClassVar[bool] = True
    needs_two_times: ClassVar[bool] = True

    def __call__(self, at, network):
        t, rate = at.level, self.rate(network)
        along = rate.alpha * at.x_start + rate.sigma * at.noise
        out, slope = network.jvp(at.x_t, t, at.to, self.tangent(along, rate))
        average = (t.c_skip * at.x_t + t.c_out * out).detach()
        slope = rate.c_skip * at.x_t + t.c_skip * along + rate.c_out * out.detach() + t.c_out * slope
        error = self.error(at, average, slope, t.alpha * rate.sigma / t.sigma - rate.alpha)
        return {"loss": mean_flat((out - out.detach() + error / t.c_out).square())}

    def rate(self, network):
        return network.rate_at(network.t)

    def tangent(self, along, rate):
        return Tangent(along, rate)

    def error(self, at, average, slope, q):
        keep, move = step(at.level, at.to)
        return keep * (average - at.x_start) + move / q * slope


@frozen
class OtherSign(MeanFlow):
    """The derivative with the sign of time from noise to data."""

    def error(self, at, average, slope, q):
        return super().error(at, average, -slope, q)


@frozen
class NoLength(MeanFlow):
    """The derivative without the length of the step."""

    def error(self, at, average, slope, q):
        keep, _ = step(at.level, at.to)
        return keep * (average - at.x_start) + slope / q


@frozen
class Unweighted(MeanFlow):
    """The data in full, however little of it is left to go."""

    def error(self, at, average, slope, q):
        _, move = step(at.level, at.to)
        return average - at.x_start + move / q * slope


@frozen
class TimeStandsStill(MeanFlow):
    """The derivative along the data only."""

    def tangent(self, along, rate):
        return Tangent(along)


@frozen
class DenoiserOnly(MeanFlow):
    """Only the denoiser is learned, whatever the second level is."""

    def error(self, at, average, slope, q):
        return average - at.x_start


@frozen
class Shortcut(NetworkLoss):
    """One step is two steps of its halves; where both levels are one, the denoiser."""

    optimum: ClassVar[str] = "flow_map"
    needs_pairs: ClassVar[bool] = True
    needs_two_times: ClassVar[bool] = True

    def middle(self, network):
        if network.t.is_floating_point():
            return network.t + 0.5
        return (network.t + network.s) // 2

    def __call__(self, at, network):
        x, t, s = at.x_t, at.level, at.to
        m = network.level_at(self.middle(network))
        with torch.no_grad():
            first = network.x_start(x, t, m)
            keep, move = step(t, m)
            second = network.x_start(self.begin(x, keep * x + move * first), m, s)
            same = t.sigma == s.sigma
            whole = torch.where(same, 1.0, step(t, s)[1])
            wanted = second + self.share(step(m, s)[0] * move / whole) * (first - second)
            wanted = torch.where(same, self.alone(at, first), wanted)
        return {"loss": mean_flat((network.x_start(x, t, s) - wanted).square())}

    def begin(self, x, x_m):
        return x_m

    def share(self, share):
        return share

    def alone(self, at, own):
        return at.x_start


@frozen
class EqualHalves(Shortcut):
    """The mean of both estimates of clean data, which is right for velocities of the straight path only."""

    def share(self, share):
        return 0.5 + 0 * share


@frozen
class SecondFromTheStart(Shortcut):
    """The second step begins where the first began."""

    def begin(self, x, x_m):
        return x


@frozen
class NoDenoiser(Shortcut):
    """Nothing says what a step of no length is."""

    def alone(self, at, own):
        return own


@frozen
class Consistency(NetworkLoss):
    """The same clean data from neighbours on a path."""

    optimum: ClassVar[str] = "to_clean"

    def __call__(self, at, network):
        t, s = at.level, network.next_level()
        with torch.no_grad():
            there = network.x_start(*self.below(at, s))
        return {"loss": mean_flat((network.x_start(at.x_t, t) - self.wanted(at, there)).square())}

    def below(self, at, s):
        return s.alpha * at.x_start + s.sigma * at.noise, s

    def wanted(self, at, there):
        return there


@frozen
class OtherNoise(Consistency):
    """The neighbour lies on the path of other noise."""

    def below(self, at, s):
        return s.alpha * at.x_start - s.sigma * at.noise, s


@frozen
class SamePoint(Consistency):
    """The same noisy data at the level below."""

    def below(self, at, s):
        return at.x_t, s


@frozen
class Data(Consistency):
    """The data itself as the target: the denoiser."""

    def wanted(self, at, there):
        return at.x_start


CAUGHT = "least_at_the_exact_flow_map"
MUTANTS = [
    Mutant("loss", OtherSign(), MeanFlow(), CAUGHT, "no gradient"),
    Mutant("loss", NoLength(), MeanFlow(), CAUGHT, "no gradient"),
    Mutant("loss", Unweighted(), MeanFlow(), CAUGHT, "no gradient"),
    Mutant("loss", TimeStandsStill(), MeanFlow(), CAUGHT, "no gradient"),
    Mutant("loss", DenoiserOnly(), MeanFlow(), CAUGHT, "from 0.75 to 0.25"),
    Mutant("loss", EqualHalves(), Shortcut(), CAUGHT, "from 0.75 to 0.25"),
    Mutant("loss", SecondFromTheStart(), Shortcut(), CAUGHT, "from 0.75 to 0.25"),
    Mutant("loss", NoDenoiser(), Shortcut(), CAUGHT, "from 0.75 to 0.75"),
    Mutant("loss", OtherNoise(), Consistency(), CAUGHT, "no gradient"),
    Mutant("loss", SamePoint(), Consistency(), CAUGHT, "no gradient"),
    Mutant("loss", Data(), Consistency(), CAUGHT, "no gradient"),
]
RIGHT = []
