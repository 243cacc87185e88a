"""Samplers with one mistake each."""

from __future__ import annotations

import itertools
from typing import ClassVar

import numpy as np
import torch
from attrs import frozen

from diffkit.protocols import MultistageSampler, Prediction, Sampler
from mutants import Mutant


@frozen
class TwoStage(MultistageSampler):
    """Order 2 from two evaluations: Euler half way, then the slope found there (a Rosenbrock-type pair).

    ``x_s = alpha_s (x / alpha_t + (rho_s - rho_t) eps_t + (rho_s - rho_t) (r_s - r_t) / (r_mid - r_t) / 2 change)``
    """

    order: ClassVar[int] = 2

    def nodes(self, steps):
        t, s = steps.t.log_snr, steps.s.log_snr
        return np.where(np.isfinite(s), (t + np.where(np.isfinite(s), s, 0)) / 2, t + 1)[:, None]

    def plan(self, steps):
        t, s, (mid,) = steps.t, steps.s, steps.nodes
        start, end, half = (level.sigma / level.alpha for level in (t, s, mid))
        return {
            "x": s.alpha / t.alpha,
            "eps": s.alpha * (end - start),
            "mid_x": mid.alpha / t.alpha,
            "mid_eps": mid.alpha * (half - start),
            "change": s.alpha * self.weight(start, end, half),
        }

    def weight(self, start, end, half):
        """0 where the node could be no other than the start, as on a schedule with no level between."""
        apart = half != start
        return np.where(apart, (end - start) ** 2 / (2 * np.where(apart, half - start, 1.0)), 0.0)

    def problems(self, composition):
        if composition.table.alpha_bar[-1] == 0:
            yield "it divides by alpha, which is 0 at level T; use another schedule"

    def step(self, denoise, x, state, row, noise, last):
        c, (mid,) = row.coef, row.nodes
        eps = (x - row.t.alpha * denoise(x, row.t).x_start) / row.t.sigma
        y = c["mid_x"] * x + c["mid_eps"] * eps
        eps_mid = (y - mid.alpha * denoise(y, mid).x_start) / mid.sigma
        return c["x"] * x + c["eps"] * eps + c["change"] * (eps_mid - eps), state


@frozen
class TwoStageWrongEnd(TwoStage):
    """One noise scale from the other end of its interval: as in azula, it costs an order and shows in nothing else."""

    def weight(self, start, end, half):
        return super().weight(start, end, half) * (end - half) / (end - start)


@frozen
class NodeAtTheStart(TwoStage):
    """Divides by the distance of its node, which is 0 on a schedule that has no level between."""

    def weight(self, start, end, half):
        return (end - start) ** 2 / (2 * (half - start))


@frozen
class Linear(Sampler):
    """DDIM with eta, written out so that each place can be got wrong."""

    eta: float = 0.0
    order: ClassVar[int] = 1

    @property
    def stochastic(self):
        return self.eta > 0

    def std(self, t, s):
        return self.eta * s.sigma * np.sqrt(-np.expm1(t.log_snr - s.log_snr))

    def coefs(self, t, s):
        std = self.std(t, s) if self.eta else 0.0 * s.sigma
        keep = np.sqrt(np.maximum(s.sigma**2 - std**2, 0)) / t.sigma
        return keep, s.alpha - keep * t.alpha, std

    def plan(self, steps):
        return dict(zip(("x", "x_start", "noise"), self.coefs(steps.t, steps.s), strict=True))

    def step(self, denoise, x, state, row, noise, last):
        c = row.coef
        y = c["x"] * x + c["x_start"] * denoise(x, row.t).x_start
        return (y if noise is None else y + c["noise"] * noise), state


@frozen
class CurrentAlpha(Linear):
    """The mean takes the alpha of the level it leaves: hackable_diffusion's adjusted DDIM."""

    def coefs(self, t, s):
        keep, _, std = super().coefs(t, s)
        return keep, t.alpha - keep * t.alpha, std


@frozen
class WrongSign(Linear):
    def coefs(self, t, s):
        keep, _, std = super().coefs(t, s)
        return keep, s.alpha + keep * t.alpha, std


@frozen
class AlphaBarForAlpha(Linear):
    """alpha_bar where its root belongs."""

    def coefs(self, t, s):
        keep, _, std = super().coefs(t, s)
        return keep, s.alpha**2 - keep * t.alpha**2, std


@frozen
class OffByOneLevel(Linear):
    """The previous level re-derived, one row off (diffusers 9261, 11347, 12633)."""

    def coefs(self, t, s):
        keep, x_start, std = super().coefs(t, s)
        return np.roll(keep, 1), np.roll(x_start, 1), std


@frozen
class TextbookNoise(Linear):
    """Song et al.'s eq. 16 as printed, which knows only scale 1."""

    def std(self, t, s):
        return self.eta * np.sqrt((1 - s.alpha**2) / (1 - t.alpha**2) * (1 - (t.alpha / s.alpha) ** 2))

    def problems(self, composition):
        if composition.schedule.kind == "ve":
            yield "alpha is 1 everywhere"


@frozen
class VarianceForStd(Linear):
    def coefs(self, t, s):
        keep, x_start, std = super().coefs(t, s)
        return keep, x_start, std**2


@frozen
class NoiseOnLastStep(Linear):
    def coefs(self, t, s):
        keep, x_start, std = super().coefs(t, s)
        return keep, x_start, np.where(s.sigma > 0, std, 0.01)


@frozen
class InPlace(Linear):
    def step(self, denoise, x, state, row, noise, last):
        x_start = denoise(x, row.t).x_start
        return x.mul_(row.coef["x"]).add_(row.coef["x_start"] * x_start), state


@frozen
class ViewOfNoise(Linear):
    """The noise buffer is written into, and handed out as the result."""

    def step(self, denoise, x, state, row, noise, last):
        y, _ = super().step(denoise, x, state, row, None, last)
        return noise.mul_(row.coef["noise"]).add_(y), state


@frozen
class BranchOnTensor(Linear):
    """k-diffusion branches on device values every step."""

    def step(self, denoise, x, state, row, noise, last):
        if row.s.sigma == 0:
            return denoise(x, row.t).x_start, state
        return super().step(denoise, x, state, row, noise, last)


@frozen
class HostRead(Linear):
    def step(self, denoise, x, state, row, noise, last):
        c = {name: value.item() for name, value in row.coef.items()}
        return c["x"] * x + c["x_start"] * denoise(x, row.t).x_start, state


@frozen
class BatchStatistic(Linear):
    """x rescaled by the batch's own size, as dynamic thresholding over the wrong axes does."""

    def step(self, denoise, x, state, row, noise, last):
        y, state = super().step(denoise, x, state, row, noise, last)
        return y * (1 + 1e-3 * x.abs().mean()), state


@frozen
class OwnNoise(Linear):
    def step(self, denoise, x, state, row, noise, last):
        return super().step(denoise, x, state, row, torch.randn_like(x), last)


@frozen
class FixedAxes(Linear):
    """An image's four axes taken for granted."""

    def step(self, denoise, x, state, row, noise, last):
        b, c, *sides = x.shape
        height, width = sides if sides else (1, 1)
        y, _ = super().step(denoise, x, state, row, noise, last)
        return y.reshape(b, c, height, width).reshape(x.shape), state


@frozen
class CancelsInFloat32(Linear):
    """sigma rebuilt from alpha inside the step."""

    def step(self, denoise, x, state, row, noise, last):
        t, s = row.t, row.s
        x_start = denoise(x, t).x_start
        eps = (x - t.alpha * x_start) / (1 - t.alpha**2).sqrt()
        return s.alpha * x_start + (1 - s.alpha**2).clamp(min=0).sqrt() * eps, state

    def problems(self, composition):
        if composition.schedule.kind != "vp":
            yield "it is for scale 1"


@frozen
class UndeclaredLast(Linear):
    def step(self, denoise, x, state, row, noise, last):
        if last:
            return denoise(x, row.t).x_start, state
        return super().step(denoise, x, state, row, noise, last)


@frozen
class OrderTwoInName(Linear):
    order: ClassVar[int] = 2


@frozen
class DownwardsOnly(Linear):
    """Takes the step from more to less noise for granted."""

    def coefs(self, t, s):
        keep = np.minimum(s.sigma / t.sigma, 1.0)
        return keep, s.alpha - keep * t.alpha, 0.0 * keep


@frozen
class IgnoresItsNoise(Linear):
    """stochastic says yes, the step says no."""

    def coefs(self, t, s):
        keep, x_start, std = Linear(0.0).coefs(t, s)
        return keep, x_start, std


@frozen
class AveragedNoise(Linear):
    """One number of noise for all elements of an example: their mean."""

    def step(self, denoise, x, state, row, noise, last):
        one = noise.flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1))
        return super().step(denoise, x, state, row, one.expand_as(x), last)


@frozen
class SummedNoise(Linear):
    """The same, blown up so that every element has the spread it should have."""

    def step(self, denoise, x, state, row, noise, last):
        one = noise.flatten(1).sum(1).view(-1, *[1] * (x.ndim - 1)) / noise[0].numel() ** 0.5
        return super().step(denoise, x, state, row, one.expand_as(x), last)


@frozen
class CopiedNoise(Linear):
    """The first channel's noise for all, as a grey mask would be spread."""

    def step(self, denoise, x, state, row, noise, last):
        return super().step(denoise, x, state, row, noise[:, :1].expand_as(x), last)


@frozen
class CopiedAlongRows(Linear):
    """One number of noise for each row of a picture."""

    def step(self, denoise, x, state, row, noise, last):
        return super().step(denoise, x, state, row, noise[..., :1].expand_as(x) if x.ndim > 2 else noise, last)


@frozen
class MirroredNoise(Linear):
    """Noise mirrored at a plane: every element's is of all elements, and none is shared. Right, though."""

    def step(self, denoise, x, state, row, noise, last):
        mean = noise.flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1))
        return super().step(denoise, x, state, row, noise - 2 * mean, last)


@frozen
class LouderOnPictures(Linear):
    def step(self, denoise, x, state, row, noise, last):
        return super().step(denoise, x, state, row, noise * 1.1 if x.ndim > 2 else noise, last)


@frozen
class CentresPictures(Linear):
    """Takes its mean from every channel of an estimate, where there is a picture to take it from."""

    def step(self, denoise, x, state, row, noise, last):
        def centred(x, level):
            x_start, known = denoise(x, level)
            spatial = tuple(range(2, x.ndim))
            return Prediction(x_start - x_start.mean(spatial, keepdim=True) if spatial else x_start, known)

        return super().step(centred, x, state, row, noise, last)


@frozen
class NoSignalForgotten(Linear):
    """Divides by alpha, and does not say that alpha may be 0."""

    def coefs(self, t, s):
        ratio = np.divide(s.alpha, t.alpha)
        rest = s.sigma - ratio * t.sigma
        return ratio + rest / t.sigma, -rest * t.alpha / t.sigma, 0.0 * ratio


_PLANS = itertools.count()


@frozen
class CountsItsPlans(Linear):
    def coefs(self, t, s):
        keep, x_start, std = super().coefs(t, s)
        return keep * (1 + 1e-9 * next(_PLANS)), x_start, std


@frozen
class NeedsTwoSteps(Linear):
    """k-diffusion's SDE multistep samplers fail at one step; so does this plan."""

    def coefs(self, t, s):
        gap = np.diff(t.log_snr)
        assert np.max(gap) > 0
        return super().coefs(t, s)


@frozen
class Ancestral(Sampler):
    """The posterior's mean and the part's variance, written out."""

    stochastic: ClassVar[bool] = True

    def plan(self, steps):
        return dict(zip(("x_start", "x", "noise"), (*steps.posterior()[:2], 1.0 * (steps.s.sigma > 0)), strict=True))

    def step(self, denoise, x, state, row, noise, last):
        c, found = row.coef, denoise(x, row.t)
        return c["x_start"] * found.x_start + c["x"] * x + c["noise"] * self.std(found.log_variance) * noise, state

    def std(self, log_variance):
        return torch.exp(log_variance / 2)


@frozen
class LogVarianceTakenForLogStd(Ancestral):
    def std(self, log_variance):
        return torch.exp(log_variance)


@frozen
class Multistep(Sampler):
    """DPM-Solver++(2M), with a history of one estimate."""

    order: ClassVar[int] = 2

    def ratio(self, h, before):
        return h / (2 * before)

    def plan(self, steps):
        t, s = steps.t, steps.s
        h = (s.log_snr - t.log_snr) / 2
        before = np.concatenate([[np.inf], h[:-1]])
        good = np.isfinite(h) & np.isfinite(before)
        w = np.where(good, self.ratio(np.where(good, h, 1), np.where(good, before, 1)), 0.0)
        a = s.sigma / t.sigma
        b = s.alpha - a * t.alpha
        return {"x": a, "new": b * (1 + w), "old": -b * w}

    def init(self, x):
        return (torch.zeros_like(x),)

    def step(self, denoise, x, state, row, noise, last):
        new, (old,), c = denoise(x, row.t).x_start, state, row.coef
        return c["x"] * x + c["new"] * new + c["old"] * old, (new,)


@frozen
class EqualSteps(Multistep):
    """The history weighted as if all steps were equal."""

    def ratio(self, h, before):
        return 0.5 + 0 * h


@frozen
class ForgottenHalf(Multistep):
    """r = h_1 / h without its half: the straight line through the wrong point."""

    def ratio(self, h, before):
        return h / before


@frozen
class StatelessPlan(Multistep):
    """The history starts as an empty tuple and becomes one of tensors."""

    def init(self, x):
        return ()

    def step(self, denoise, x, state, row, noise, last):
        return super().step(denoise, x, state or (torch.zeros_like(x),), row, noise, last)


_HISTORY: dict[str, torch.Tensor] = {}


@frozen
class HiddenHistory(Multistep):
    """History kept in the module: it leaks into the next batch (diffusers 6631, 8711)."""

    def init(self, x):
        _HISTORY["old"] = torch.zeros_like(x)
        return ()

    def step(self, denoise, x, state, row, noise, last):
        y, (new,) = super().step(denoise, x, (_HISTORY["old"],), row, noise, last)
        _HISTORY["old"] = new
        return y, ()


@frozen
class RowlessState(Multistep):
    """A step counter without a row for each example."""

    def init(self, x):
        return (torch.zeros_like(x), torch.zeros(()))

    def step(self, denoise, x, state, row, noise, last):
        y, (new,) = super().step(denoise, x, state[:1], row, noise, last)
        return y, (new, state[1] + 1)


@frozen
class Trapezoid(MultistageSampler):
    """Heun's method, with the flag of the last step."""

    order: ClassVar[int] = 2

    def plan(self, steps):
        t, s = steps.t, steps.s
        return {"x": s.alpha / t.alpha, "slope": s.alpha * (s.sigma / s.alpha - t.sigma / t.alpha)}

    def problems(self, composition):
        if composition.table.alpha_bar[-1] == 0:
            yield "it divides by alpha, which is 0 at level T; use another schedule"

    def step(self, denoise, x, state, row, noise, last):
        c = row.coef
        eps = self.eps(denoise, x, row.t)
        y = c["x"] * x + c["slope"] * eps
        return (y if last else c["x"] * x + c["slope"] * (eps + self.eps(denoise, y, row.s)) / 2), state

    def eps(self, denoise, x, level):
        return (x - level.alpha * denoise(x, level).x_start) / level.sigma


@frozen
class AsksAtLevel0(Trapezoid):
    """Evaluates where there is no noise, and hides the NaN."""

    uses_last: ClassVar[bool] = False

    def step(self, denoise, x, state, row, noise, last):
        y, state = super().step(denoise, x, state, row, noise, False)
        euler, _ = super().step(denoise, x, state, row, noise, True)
        return torch.where(y.isfinite(), y, euler), state


@frozen
class SecondSlopeAtFirstLevel(Trapezoid):
    """The second slope evaluated at t, not s."""

    def step(self, denoise, x, state, row, noise, last):
        c = row.coef
        eps = self.eps(denoise, x, row.t)
        y = c["x"] * x + c["slope"] * eps
        return (y if last else c["x"] * x + c["slope"] * (eps + self.eps(denoise, y, row.t)) / 2), state


def _of(broken, caught_by, twin=None, found_at=""):
    return Mutant("sampler", broken, twin or Linear(), caught_by, found_at)


@frozen
class NoiseBeforeEvaluation(Linear):
    """Part of the noise moves x before the network sees it, by as little as the step is long."""

    def step(self, denoise, x, state, row, noise, last):
        c = row.coef
        moved = x if noise is None else x + 0.1 * c["noise"] * noise
        y = c["x"] * x + c["x_start"] * denoise(moved, row.t).x_start
        return (y if noise is None else y + c["noise"] * noise), state


MUTANTS = [
    _of(TwoStageWrongEnd(), "order_as_declared", TwoStage(), "order 1.0"),
    _of(NodeAtTheStart(), "plan_is_finite", TwoStage(), "levels of the table only"),
    _of(CurrentAlpha(), "keeps_the_marginals", found_at="vp path, T = 1, level 1"),
    _of(CurrentAlpha(), "order_as_declared"),
    _of(WrongSign(), "keeps_the_marginals"),
    _of(AlphaBarForAlpha(), "keeps_the_marginals"),
    _of(OffByOneLevel(), "keeps_the_marginals"),
    _of(TextbookNoise(1.0), "keeps_the_marginals", Linear(1.0), "linear path"),
    _of(VarianceForStd(1.0), "keeps_the_marginals", Linear(1.0), "spread"),
    _of(VarianceForStd(0.5), "order_as_declared", Linear(0.5)),
    _of(LogVarianceTakenForLogStd(), "keeps_the_marginals", Ancestral(), "spread"),
    _of(NoiseOnLastStep(1.0), "point_is_reached", Linear(1.0)),
    _of(InPlace(), "pure_steps", found_at="unchanged"),
    _of(ViewOfNoise(1.0), "pure_steps", Linear(1.0)),
    _of(BranchOnTensor(), "reads_no_value"),
    _of(BranchOnTensor(), "one_graph_for_all_steps"),
    _of(HostRead(), "reads_no_value"),
    _of(HostRead(), "rows_are_independent"),
    _of(BatchStatistic(), "rows_are_independent"),
    _of(OwnNoise(1.0), "pure_steps", Linear(1.0), "the same run again"),
    _of(FixedAxes(), "any_shape_of_data"),
    _of(CancelsInFloat32(), "float32_is_enough"),
    _of(UndeclaredLast(), "last_only_if_declared"),
    _of(OrderTwoInName(), "order_as_declared", found_at="an order of at least 1.8"),
    _of(DownwardsOnly(), "encodes_at_its_order"),
    _of(IgnoresItsNoise(1.0), "noise_as_declared", Linear(1.0)),
    _of(NoiseBeforeEvaluation(1.0), "steps_have_a_density", Linear(1.0), "log-density"),
    _of(AveragedNoise(1.0), "keeps_the_marginals", Linear(1.0), "spread"),
    _of(AveragedNoise(0.5), "order_as_declared", Linear(0.5)),
    _of(SummedNoise(1.0), "elements_on_their_own", Linear(1.0), "between elements 0 and 1"),
    _of(CopiedNoise(1.0), "elements_on_their_own", Linear(1.0), "between elements 0 and 1"),
    _of(CopiedAlongRows(1.0), "elements_on_their_own", Linear(1.0), "data (2, 2, 3)"),
    _of(LouderOnPictures(1.0), "elements_on_their_own", Linear(1.0), "spread"),
    _of(CentresPictures(), "elements_on_their_own", found_at="mean"),
    _of(NoSignalForgotten(), "plan_is_finite", found_at="no signal at T"),
    _of(CountsItsPlans(), "same_plan_again"),
    _of(NeedsTwoSteps(), "plan_is_finite"),
    _of(EqualSteps(), "order_as_declared", Multistep()),
    _of(ForgottenHalf(), "order_as_declared", Multistep()),
    _of(StatelessPlan(), "state_keeps_its_form", Multistep()),
    _of(StatelessPlan(), "one_graph_for_all_steps", Multistep()),
    _of(HiddenHistory(), "no_hidden_state", Multistep()),
    _of(RowlessState(), "rows_are_independent", Multistep()),
    _of(AsksAtLevel0(), "never_asks_at_level_0", Trapezoid()),
    _of(SecondSlopeAtFirstLevel(), "order_as_declared", Trapezoid()),
]

RIGHT = [("sampler", MirroredNoise(1.0)), ("sampler", MirroredNoise(0.5))]
