"""Losses and timestep samplers with one mistake each."""

from __future__ import annotations

from typing import ClassVar

import torch
from attrs import frozen

from diffkit.gaussian import mean_flat, posterior_kl_bits, vlb_bits
from diffkit.options import number
from diffkit.parts.losses.hybrid import Hybrid
from diffkit.parts.losses.simple import Simple
from diffkit.parts.losses.vlb import VLB
from diffkit.parts.timesteps.loss_second_moment import History, LossSecondMoment
from diffkit.parts.timesteps.uniform import Uniform
from diffkit.protocols import ContinuousTimestepSampler, Loss, TimestepSampler
from mutants import Mutant


@frozen
class Reduced(Loss):
    def __call__(self, at):
        return {"loss": (at.out - at.target).square().mean()}


@frozen
class FourAxes(Loss):
    def __call__(self, at):
        return {"loss": (at.out - at.target).square().mean(dim=(1, 2, 3))}


@frozen
class NoiseForTarget(Loss):
    """The noise as target whatever the network predicts."""

    def __call__(self, at):
        return {"loss": mean_flat((at.out - at.noise).square())}


@frozen
class NegativeWeight(Loss):
    """A weight that changes sign where the signal is stronger than the noise."""

    def __call__(self, at):
        return {"loss": mean_flat((at.out - at.target).square() * -at.level.log_snr)}


@frozen
class BatchNormalized(Loss):
    """Weights that are made to sum to one over the batch."""

    def __call__(self, at):
        weight = torch.sigmoid(at.level.log_snr).flatten()
        return {"loss": mean_flat((at.out - at.target).square()) * weight / weight.mean()}


@frozen
class InPlace(Loss):
    def __call__(self, at):
        return {"loss": mean_flat(at.out.detach().sub_(at.target).square()) + 0 * mean_flat(at.out)}


@frozen
class RandomInside(Loss):
    def __call__(self, at):
        keep = torch.rand_like(at.out) > 0.1
        return {"loss": mean_flat((at.out - at.target).square() * keep)}


@frozen
class BranchOnFirst(Loss):
    needs_transition: ClassVar[bool] = True

    def __call__(self, at):
        mse = mean_flat((at.out - at.target).square())
        return {"loss": torch.where(at.transition.first, 2 * mse, mse) if at.transition.first.any() else mse}


@frozen
class MeanNotDetached(Loss):
    """IDDPM's hybrid without the stop-gradient."""

    needs_transition: ClassVar[bool] = True
    needs_learned_variance: ClassVar[bool] = True
    trains_variance: ClassVar[bool] = True

    def __call__(self, at):
        squared = (at.out - at.target).square()
        return {"loss": mean_flat(squared) + vlb_bits(at, squared_error=squared, out=at.out)}


@frozen
class VarianceDetached(Loss):
    needs_transition: ClassVar[bool] = True
    needs_learned_variance: ClassVar[bool] = True
    trains_variance: ClassVar[bool] = True

    def __call__(self, at):
        squared = (at.out - at.target).square()
        fixed = at._replace(log_variance=at.log_variance.detach())
        return {"loss": mean_flat(squared) + vlb_bits(fixed, squared_error=squared.detach(), out=at.out.detach())}


@frozen
class BoundTakenForCount(Loss):
    """The first decoder_rows rows taken for the rows at level 1."""

    needs_transition: ClassVar[bool] = True

    def __call__(self, at):
        squared, transition = (at.out - at.target).square(), at.transition
        weight = transition.kl_weight * at.level.c_out.square()
        kl = posterior_kl_bits(squared, weight, at.log_variance, transition.log_variance)
        rank = torch.arange(len(kl))
        return {"loss": torch.where(rank < at.decoder_rows, 2 * kl, kl)}


@frozen
class InfiniteWeight(Loss):
    """A weight 1 / (1 - snr / max snr): infinite at the cleanest level."""

    needs_transition: ClassVar[bool] = True

    def columns(self, table):
        import numpy as np

        share = table.beta / table.beta[1]
        with np.errstate(divide="ignore"):
            return {"weight": 1 / np.abs(1 - share)}

    def __call__(self, at):
        return {"loss": mean_flat((at.out - at.target).square() * at.cols["weight"])}


@frozen
class ThreeChannels(Loss):
    """Counts on RGB: the fourth channel of a latent is not trained."""

    def __call__(self, at):
        return {"loss": mean_flat((at.out[:, :3] - at.target[:, :3]).square())}


@frozen
class FirstChannel(Loss):
    def __call__(self, at):
        return {"loss": mean_flat((at.out - at.target).square()[:, 0:1])}


@frozen
class Centred(Loss):
    """An error whose mean over the channels is taken off."""

    def __call__(self, at):
        error = at.out - at.target
        return {"loss": mean_flat((error - error.mean(1, keepdim=True)).square())}


@frozen
class Pooled(Loss):
    """An error seen through an average of neighbours."""

    def __call__(self, at):
        error = at.out - at.target
        return {
            "loss": mean_flat((error[..., 1:] + error[..., :-1]).square()) if error.ndim > 2 else mean_flat(error**2)
        }


@frozen
class Laplace(Loss):
    """The absolute error: at its kink the gradient is the sign of a rounding error. Right, though."""

    lean: float = number(0.0)

    problems = Simple.problems

    def __call__(self, at):
        error = at.out - at.target
        return {"loss": mean_flat(error.abs() + self.lean * error)}


@frozen
class Distance(Loss):
    """The root of the squared error, whose kink is one for all elements together."""

    lean: float = number(0.0)

    problems = Simple.problems

    def __call__(self, at):
        error = (at.out - at.target).flatten(1)
        return {"loss": error.norm(dim=1) + self.lean * error.sum(1)}


@frozen
class Leaning(Loss):
    """A little reward for large outputs, too little to show in the loss of a prediction that is off."""

    def __call__(self, at):
        return {"loss": mean_flat((at.out - at.target).square() - 1e-5 * at.out)}


@frozen
class FromZero(TimestepSampler):
    def sample(self, state, u, num_steps):
        t = (u * num_steps).long()
        return t, torch.ones(len(t))


@frozen
class NeverT(TimestepSampler):
    """T - 1 where T belongs: the last level is never trained."""

    def sample(self, state, u, num_steps):
        t = (u * max(num_steps - 1, 1)).long() + 1
        return t, torch.ones(len(t))


@frozen
class BiasedWeights(TimestepSampler):
    """Prefers noisy levels, and does not undo it."""

    def sample(self, state, u, num_steps):
        return (u.sqrt() * num_steps).long() + 1, torch.ones(len(u))


@frozen
class OwnUniforms(TimestepSampler):
    def sample(self, state, u, num_steps):
        t = torch.randint(1, num_steps + 1, u.shape)
        return t, torch.ones(len(t))


@frozen
class TrajectoryPoint(TimestepSampler):
    """Level by second moment, history written out, no protection against anything."""

    history: int = 2

    def init(self, table):
        return History(
            torch.ones(table.num_steps, self.history, dtype=torch.float64),
            torch.zeros(table.num_steps, dtype=torch.int64),
        )

    def probabilities(self, state):
        size = state.values.square().mean(1).sqrt()
        return 0.99 * size / size.sum() + 0.01 / len(size)

    def weight(self, p, num_steps):
        return 1 / (p * num_steps)

    def sample(self, state, u, num_steps):
        p = self.probabilities(state)
        total = p.cumsum(0)
        i = torch.searchsorted(total / total[-1], u, right=True).clamp(max=num_steps - 1)
        return i + 1, self.weight(p[i] / total[-1], num_steps).float()

    def update(self, state, t, losses):
        values, seen = state.values.clone(), state.seen.clone()
        for k, loss in zip(t.tolist(), losses.tolist(), strict=True):
            values[k - 1, seen[k - 1] % self.history] = loss
            seen[k - 1] += 1
        return History(values, seen)


@frozen
class WeightOfP(TrajectoryPoint):
    """p where 1/p belongs."""

    def weight(self, p, num_steps):
        return p * num_steps


@frozen
class ForgetsT(TrajectoryPoint):
    def weight(self, p, num_steps):
        return 1 / p


@frozen
class DuplicatesLost(TrajectoryPoint):
    """Indexed assignment keeps one of several losses of a level."""

    def update(self, state, t, losses):
        i = t - 1
        values, seen = state.values.clone(), state.seen.clone()
        values[i, seen[i] % self.history] = losses.double()
        seen[i] += 1
        return History(values, seen)


@frozen
class UpdatesInPlace(TrajectoryPoint):
    def update(self, state, t, losses):
        i = t - 1
        state.values[i, state.seen[i] % self.history] = losses.double()
        return History(state.values, state.seen + torch.bincount(i, minlength=len(state.seen)))


@frozen
class WarmUpOnTheHost(LossSecondMoment):
    def probabilities(self, state):
        if (state.seen < self.history).any():
            return torch.full_like(state.values[:, 0], 1 / len(state.values))
        return super().probabilities(state)


@frozen
class ByClock(TimestepSampler):
    """Levels in proportion to how far log_snr is from 0, which is not finite where there is no signal."""

    def init(self, table):
        return (torch.from_numpy(self.size(table.log_snr[1:])),)

    def size(self, log_snr):
        return 1 + abs(log_snr)

    def sample(self, state, u, num_steps):
        p = state[0] / state[0].sum()
        i = torch.searchsorted(p.cumsum(0), u, right=True).clamp(max=num_steps - 1)
        return i + 1, (1 / (p[i] * num_steps)).float()


@frozen
class ByBoundedClock(ByClock):
    def size(self, log_snr):
        return super().size(log_snr.clip(-20, 20))


@frozen
class RefusesNoSignal(ByClock):
    """The same, but it says so."""

    def problems(self, composition):
        if composition.table.alpha_bar[-1] == 0:
            yield "log_snr is not finite at level T; use another schedule"


@frozen
class PythonCounter(Uniform):
    """A state that is not a tensor, and cannot be checkpointed with the others."""

    def init(self, table):
        return (0,)

    def update(self, state, t, losses):
        return (state[0] + 1,)


@frozen
class LogNormal(ContinuousTimestepSampler):
    def sample(self, state, u, num_steps):
        return 2.4 - 2.4 * torch.special.ndtri(self.inside(u)), torch.ones(len(u))

    def inside(self, u):
        return u.clamp(min=1e-12)


@frozen
class InfiniteAt0(LogNormal):
    def inside(self, u):
        return u


@frozen
class Float32Levels(LogNormal):
    def sample(self, state, u, num_steps):
        log_snr, weight = super().sample(state, u, num_steps)
        return log_snr.float(), weight


def _loss(broken, caught_by, twin=None, found_at=""):
    return Mutant("loss", broken, twin or Simple(), caught_by, found_at)


def _timesteps(broken, caught_by, twin=None, found_at=""):
    return Mutant("timesteps", broken, twin or Uniform(), caught_by, found_at)


MUTANTS = [
    _loss(Reduced(), "one_number_for_each_example"),
    _loss(FourAxes(), "any_shape_of_data"),
    _loss(NoiseForTarget(), "least_at_the_exact_prediction"),
    _loss(NoiseForTarget(), "no_pull_at_the_exact_prediction"),
    _loss(NegativeWeight(), "least_at_the_exact_prediction"),
    _loss(BatchNormalized(), "rows_are_independent"),
    _loss(InPlace(), "pure"),
    _loss(RandomInside(), "pure"),
    _loss(BranchOnFirst(), "reads_no_value", VLB()),
    _loss(BranchOnFirst(), "one_graph", VLB()),
    _loss(MeanNotDetached(), "trains_what_it_declares", Hybrid()),
    _loss(VarianceDetached(), "trains_what_it_declares", Hybrid()),
    _loss(BoundTakenForCount(), "decoder_rows_change_nothing", VLB()),
    _loss(InfiniteWeight(), "columns_are_float64"),
    _loss(ThreeChannels(), "every_element_counts", found_at="where [3, 0, 0]"),
    _loss(FirstChannel(), "every_element_counts", found_at="where [1, 0, 0]"),
    _loss(Centred(), "every_element_counts", found_at="where [:, 0, 0]"),
    _loss(Pooled(), "every_element_counts", found_at="+-"),
    _loss(Leaning(), "no_pull_at_the_exact_prediction"),
    _loss(Laplace(1.1), "no_pull_at_the_exact_prediction", Laplace()),
    _loss(Laplace(1.1), "no_pull_at_the_exact_prediction", Laplace(0.5)),
    _loss(Distance(0.9), "no_pull_at_the_exact_prediction", Distance()),
    _timesteps(FromZero(), "draws_levels_of_the_table", found_at="0.."),
    _timesteps(NeverT(), "unbiased"),
    _timesteps(BiasedWeights(), "unbiased"),
    _timesteps(OwnUniforms(), "same_uniforms_same_draw"),
    _timesteps(WeightOfP(), "unbiased", LossSecondMoment()),
    _timesteps(ForgetsT(), "unbiased", LossSecondMoment()),
    _timesteps(TrajectoryPoint(), "draws_levels_of_the_table", LossSecondMoment(), "losses of zero"),
    _timesteps(TrajectoryPoint(), "reads_no_value", LossSecondMoment()),
    _timesteps(DuplicatesLost(), "batch_is_its_rows", LossSecondMoment(2)),
    _timesteps(UpdatesInPlace(), "update_is_pure", LossSecondMoment()),
    _timesteps(WarmUpOnTheHost(), "reads_no_value", LossSecondMoment()),
    _timesteps(ByClock(), "draws_levels_of_the_table", ByBoundedClock(), "no signal at T"),
    _timesteps(ByClock(), "unbiased", RefusesNoSignal(), "no signal at T"),
    _timesteps(PythonCounter(), "update_is_pure"),
    _timesteps(InfiniteAt0(), "covers_continuous_levels", LogNormal(), "u = 0.0"),
    _timesteps(Float32Levels(), "covers_continuous_levels", LogNormal()),
]

RIGHT = [("loss", Laplace()), ("loss", Laplace(0.5)), ("loss", Distance()), ("timesteps", RefusesNoSignal())]
