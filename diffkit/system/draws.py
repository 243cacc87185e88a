"""What training draws for each example, and the loss at these draws: `system(x)` and `diffkit.train` share both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from diffkit.errors import OptionError
from diffkit.options import check_integer
from diffkit.protocols import Composition, Model, PairSampler, State
from diffkit.system.randomness import Purpose, key, keys, normals, uniforms
from diffkit.tensors import has_values

HALF = 0.5
"""Share of the examples that get the previous estimate of a network that reads it; Chen et al. 2022, arXiv:2208.04202,
section 3.3."""


class Draws(NamedTuple):
    """The randomness of a training loss.

    Attributes:
        level: Levels that the timestep sampler drew, (B,); see `System.loss_terms`.
        weight: Its weights, (B,) float32.
        noise: Standard normal, (B, C, *S).
        drawn_level: The levels where they were drawn, if they were moved: on the host, those at level 1 are counted
            without waiting for a device.
        level_to: Second levels, (B,), if a `PairSampler` drew them.
        estimates: Whether the network gets its previous estimate, (B,), if it reads one.
    """

    level: Tensor
    weight: Tensor
    noise: Tensor
    drawn_level: Tensor | None = None
    level_to: Tensor | None = None
    estimates: Tensor | None = None

    @property
    def decoder_rows(self) -> int:
        """Upper bound on the rows at level 1; see `System.loss_terms`."""
        return count_first(self.level if self.drawn_level is None else self.drawn_level)

    def to(self, device: torch.device) -> Draws:
        """Return the draws on a device; levels and weights go there together, in float64, which holds both exactly."""
        level, weight, noise, _, *further = self
        if further != [None, None]:
            further = [None if each is None else _moved(each, device) for each in further]
            self = self._replace(level_to=further[0], estimates=further[1])
        if level.device == device:
            return self._replace(weight=_moved(weight, device), noise=_moved(noise, device))
        both = _moved(torch.stack([level.double(), weight.double()]), device)
        return Draws(both[0].to(level.dtype), both[1].to(weight.dtype), _moved(noise, device), level, *further)

    def some(self, rows: slice) -> Draws:
        """Return the draws of some of the examples."""
        drawn_level = None if self.drawn_level is None else self.drawn_level[rows]
        to = None if self.level_to is None else self.level_to[rows]
        estimates = None if self.estimates is None else self.estimates[rows]
        return Draws(self.level[rows], self.weight[rows], self.noise[rows], drawn_level, to, estimates)


def random_draws(
    parts: Composition, x_start: Tensor, generator: torch.Generator | None = None, state: State = None
) -> Draws:
    """Return the draws for data from a generator; noise is drawn on its device, levels as in `random_levels`.

    Args:
        parts: The composition; its timestep sampler draws the levels.
        x_start: Clean data, (B, C, *S).
        generator: Source of all randomness; the global one by default.
        state: State of the timestep sampler; its initial state by default.
    """
    level, to, weight = random_pairs(parts, len(x_start), generator, state)
    device = x_start.device if generator is None else generator.device
    noise = torch.randn(x_start.shape, generator=generator, device=device, dtype=x_start.dtype)
    estimates = None
    if parts.self_conditioned:
        estimates = torch.rand(len(x_start), dtype=torch.float64, generator=generator, device=device) < HALF
    return Draws(level, weight, noise, level_to=to, estimates=estimates)


def random_pairs(
    parts: Composition, batch: int, generator: torch.Generator | None = None, state: State = None
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return levels (B,), second levels (B,) of a `PairSampler` or None, and weights (B,)."""
    batch = check_integer("batch", batch, ge=0, le=2**31)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise OptionError(
            f"generator must be a torch.Generator, got a {type(generator).__name__}; torch.Generator().manual_seed(0) "
            "is one"
        )
    device = torch.device("cpu") if generator is None else generator.device
    shape = (batch, 2) if isinstance(parts.timesteps, PairSampler) else (batch,)
    u = torch.rand(shape, dtype=torch.float64, generator=generator, device=device)
    if state is None:
        state = pytree.tree_map_only(Tensor, lambda held: held.to(device), parts.timesteps.init(parts.table))
    return _sampled(parts, state, u.to(_device_of(state, device)))


def _sampled(parts: Composition, state: State, u: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """What a timestep sampler makes of uniforms: levels, second levels or None, and weights."""
    timesteps, num_steps = parts.timesteps, parts.table.num_steps
    if isinstance(timesteps, PairSampler):
        return timesteps.sample(state, u, num_steps)
    level, weight = timesteps.sample(state, u, num_steps)
    return level, None, weight


def seeded_draws(
    parts: Composition, state: State, seed: int, step: int, batch: int, rows: slice, device: torch.device
) -> Draws:
    """Return the draws of one step of training: a function of (seed, step, position in the batch) and the state.

    Args:
        parts: The composition; its timestep sampler draws the levels.
        state: State of the timestep sampler; levels and weights of the whole batch are drawn where it is, on the CPU if
            it has no tensors.
        seed: Of the run.
        step: Completed updates.
        batch: Examples in the batch, over all processes.
        rows: The examples that noise is drawn for.
        device: Where it is drawn.
    """
    place = _device_of(state, torch.device("cpu"))
    u = uniforms(keys(key(seed, Purpose.LEVEL, step), batch, place))
    if isinstance(parts.timesteps, PairSampler):
        u = torch.stack([u, uniforms(keys(key(seed, Purpose.LEVEL_TO, step), batch, place))], 1)
    level, to, weight = _sampled(parts, state, u)
    start, stop, _ = rows.indices(batch)
    noise = normals(keys(key(seed, Purpose.NOISE, step), stop - start, device, start), parts.data_shape)
    estimates = None
    if parts.self_conditioned:
        estimates = uniforms(keys(key(seed, Purpose.ESTIMATE, step), batch, place)) < HALF
    return Draws(level, weight, noise, level_to=to, estimates=estimates)


def training_loss(
    loss_terms: Callable[..., dict[str, Tensor]],
    model: Model | None,
    x_start: Tensor,
    draws: Draws,
    conditions: Mapping[str, Any],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss that training minimizes, (B,), weighted by the timestep sampler, and the unweighted terms.

    Args:
        loss_terms: The method of that name of the system, or of the classifier, that is trained.
        model, x_start, conditions: Its arguments.
        draws: For these examples, on their device.
    """
    more = {} if draws.level_to is None else {"level_to": draws.level_to}
    if draws.estimates is not None:
        more["estimates"] = draws.estimates
    terms = loss_terms(model, x_start, draws.level, draws.noise, decoder_rows=draws.decoder_rows, **more, **conditions)
    return terms["loss"] * draws.weight, terms


def count_first(level: Tensor) -> int:
    """Upper bound on the rows at level 1: on the CPU their number, rounded up to a power of two; else the batch size.

    The rounding limits the number of compiled variants.
    """
    if level.is_floating_point() or not has_values(level):
        return len(level)
    count = int((level == 1).sum())
    return min(len(level), 1 << (count - 1).bit_length()) if count else 0


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, for which the host does not wait unless it is the host."""
    return tensor.to(device, non_blocking=device.type != "cpu")


def _device_of(state: State, default: torch.device) -> torch.device:
    """The device of a state's first tensor."""
    first = next((leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)), None)
    return default if first is None else first.device
