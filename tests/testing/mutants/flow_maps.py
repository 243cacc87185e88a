"""Parts of flow maps with one mistake each: losses that call the network again, pairs of levels, second times."""

from __future__ import annotations

import torch
from attrs import evolve, frozen
from torch import nn

from diffkit.gaussian import mean_flat, squared_error
from diffkit.parts.backbones._mlp import MLPNetwork
from diffkit.parts.backbones.mlp import MLP
from diffkit.protocols import NetworkLoss, PairSampler, Sampler, Tangent
from diffkit.testing._paths import LevelPairs
from mutants import Mutant


def below(at, network):
    """x and level one below, on the same path."""
    low = network.next_level()
    return low.alpha * at.x_start + low.sigma * at.noise, low


@frozen
class Consistency(NetworkLoss):
    teacher: str | None = "ema"

    def __call__(self, at, network):
        target = network.teacher(*below(at, network))
        return {"loss": mean_flat(squared_error(network.x_start(at.x_t, at.level), target))}


@frozen
class Detached(Consistency):
    """A target and an estimate that are both constants."""

    def __call__(self, at, network):
        target = network.teacher(*below(at, network))
        return {"loss": mean_flat(squared_error(network.x_start(at.x_t, at.level).detach(), target))}


@frozen
class OwnTarget(Consistency):
    """The network's own estimate in place of the declared teacher's."""

    def __call__(self, at, network):
        target = network.x_start(*below(at, network)).detach()
        return {"loss": mean_flat(squared_error(network.x_start(at.x_t, at.level), target))}


@frozen
class TellsOneTime(Consistency):
    """The end of the step for a network that takes one time."""

    def __call__(self, at, network):
        x, low = below(at, network)
        estimate = network.x_start(at.x_t, at.level, low)
        return {"loss": mean_flat(squared_error(estimate, network.teacher(x, low)))}


@frozen
class MeanFlow(NetworkLoss):
    """The average of the network over a step, by its derivative along the path."""

    needs_two_times = True
    needs_pairs = True

    def end(self, at):
        return at.to

    def __call__(self, at, network):
        rate = network.rate_at(network.t)
        along = Tangent(rate.alpha * at.x_start + rate.sigma * at.noise, rate)
        out, derivative = network.jvp(at.x_t, at.level, self.end(at), along)
        length = (at.level.time - at.to.time).view(-1, *(1,) * (at.x_t.ndim - 1))
        return {"loss": mean_flat(squared_error(out, self.target(at, length * derivative)))}

    def target(self, at, change):
        return at.target - change


@frozen
class ForgetsTheEnd(MeanFlow):
    """A step that ends where it starts, so that the second time is always the first."""

    def end(self, at):
        return at.level

    def target(self, at, change):
        return at.target


@frozen
class AnyTwo(PairSampler):
    """A second level that may be above the first."""

    def sample(self, state, u, num_steps):
        t, s = ((u[:, i] * num_steps).long() + 1 for i in (0, 1))
        return t, s, torch.ones(len(u))


@frozen
class Sorted(PairSampler):
    """Two levels in order, of which the first is then not uniform, and weights of one."""

    def sample(self, state, u, num_steps):
        t, s = ((u[:, i] * num_steps).long() + 1 for i in (0, 1))
        return torch.maximum(t, s), torch.minimum(t, s), torch.ones(len(u))


@frozen
class FlowMap(Sampler):
    """A straight step by the estimate of the average over it."""

    def plan(self, steps):
        back = steps.s.sigma / steps.t.sigma
        return {"x": back, "x_start": self.gain(steps, back)}

    def gain(self, steps, back):
        return steps.s.alpha - steps.t.alpha * back

    def step(self, denoise, x, state, row, noise, last):
        x_start = denoise(x, row.t, to=row.s).x_start
        return row.coef["x"] * x + row.coef["x_start"] * x_start, state


@frozen
class OtherEnd(FlowMap):
    """No signal at the level that it starts from."""

    def gain(self, steps, back):
        return steps.s.alpha - back


class Loud(MLPNetwork):
    """The second time has an effect from the beginning."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        if self.time_to_embed is not None:
            nn.init.ones_(self.time_to_embed[2].bias)
            self.time_to_embed._load_state_dict_pre_hooks.clear()
            self.time_to_embed.register_load_state_dict_pre_hook(self._fill)

    @staticmethod
    def _fill(module, state, prefix, *_):
        state.update({f"{prefix}{name}": value for name, value in module.state_dict().items()})


class Deaf(MLPNetwork):
    """The second time is not passed on."""

    def forward(self, x, time, y=None, *, time_to=None):
        return super().forward(x, time, y) + 0 * sum(p.sum() for p in self.time_to_embed.parameters())


class FirstRow(MLPNetwork):
    """The second time of the first row for all."""

    def forward(self, x, time, y=None, *, time_to=None):
        time_to = None if time_to is None else time - (time - time_to)[:1]
        return super().forward(x, time, y, time_to=time_to)


class Halved(torch.autograd.Function):
    """The identity, with half of its gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


class HalfGradient(MLPNetwork):
    def forward(self, x, time, y=None, *, time_to=None):
        return super().forward(Halved.apply(x), time, y, time_to=time_to)


@frozen
class Small(MLP):
    """The recipe of a small network of one of these classes."""

    network: type = MLPNetwork

    def build(self, data_shape, out_channels):
        return self.network(data_shape, out_channels, width=8, depth=1, num_labels=0, times=self.times)


TWO = Small(times=2)

MUTANTS = [
    Mutant("loss", Detached(), Consistency(), "trains_the_network", "none"),
    Mutant("loss", TellsOneTime(), Consistency(), "trains_the_network", "takes one time"),
    Mutant("loss", OwnTarget(), Consistency(), "calls_the_teacher_it_declares", "0 calls"),
    Mutant("loss", Consistency(teacher=None), Consistency(), "calls_the_teacher_it_declares", "no call"),
    Mutant("loss", ForgetsTheEnd(), MeanFlow(), "reads_the_levels_it_declares", "the same"),
    Mutant("timesteps", AnyTwo(), LevelPairs(), "second_levels_are_below", "s <= t"),
    Mutant("timesteps", Sorted(), LevelPairs(), "unbiased", "p(t) w(t) T"),
    Mutant("sampler", OtherEnd(), FlowMap(), "step_of_no_length", "to itself"),
    Mutant("backbone", evolve(TWO, network=Loud), TWO, "second_time_starts_at_nothing"),
    Mutant("backbone", evolve(TWO, network=Deaf), TWO, "second_time_is_read", "row 0"),
    Mutant("backbone", evolve(TWO, network=FirstRow), TWO, "second_time_is_read", "rows"),
    Mutant("backbone", evolve(TWO, network=HalfGradient), TWO, "derivatives_agree", "backward"),
]

RIGHT = [("loss", MeanFlow()), ("sampler", FlowMap())]
