"""All steps of a sampler as one module whose steps are a loop: what is exported as a file.

The loop is torch's ``scan``, whose body is traced once, so that a file of 50 steps is hardly larger than one of 10 and
its network is in it once. Steps in which other guidance acts, and the last step of a sampler that treats it in its own
way, are loops of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import attrs
import torch
from torch import Tensor, nn
from torch._higher_order_ops import scan
from torch.utils import _pytree as pytree

from diffkit.protocols import State
from diffkit.system.denoiser import Denoiser
from diffkit.system.module import System
from diffkit.system.prepared import SamplingJob
from diffkit.system.sampling import Program, Row


class Walk(nn.Module):
    """A sampler's walk from noise to data, with network, guidance and conditions, in eval mode.

    Call it with x, standard normal noise (B, C, *S); then, if `takes_noise`, the noise of the steps (n, B, C, *S); then
    the conditions in the order of their names. It returns samples (B, C, *S).

    Args:
        system: The system.
        job: What to sample with: sampler, table, guidance, clipping.
        conditions: Names of the conditions.
        draws: Draw the noise of a stochastic sampler's steps inside, from torch's generator.
    """

    rows: Tensor

    def __init__(self, system: System, job: SamplingJob, conditions: Sequence[str], *, draws: bool = False):
        super().__init__()
        self.network = job.model
        self.conditions = tuple(conditions)
        self.program = job.program()
        self.register_buffer("rows", self.program.columns.on(job.device).clone())
        self.takes_noise = self.program.stochastic and not draws
        self._owner = [(system, job)]  # in a list, so that the system is no submodule
        self.eval()

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        """Return samples, (B, C, *S); arguments as of the class."""
        given, program = list(more), self.program
        noise = given.pop(0) if self.takes_noise else None
        system, job = self._owner[0]
        conditions = dict(zip(self.conditions, given, strict=True))
        found = system.checked_conditions(job.parts, job.model, conditions, x.shape[0], x.device)
        x = x * float(job.table.total_std[-1])
        state = program.sampler.init(x)
        for denoise, steps in _loops(attrs.evolve(job, conditions=found), program):
            x, state = self._loop(denoise, steps, x, state, noise)
        return system.from_latents(x)

    def _loop(
        self, denoise: Denoiser, steps: range, x: Tensor, state: State, noise: Tensor | None
    ) -> tuple[Tensor, State]:
        """Take consecutive steps in one loop; return x and the sampler's state after them."""
        program, last = self.program, self.program.is_last(steps[0])
        leaves, spec = pytree.tree_flatten(state)

        def step(carried: list[Tensor], given: list[Tensor]) -> tuple[list[Tensor], Tensor]:
            x, *leaves = (each.clone() for each in carried)  # a loop may not return what it was given
            state, row = pytree.tree_unflatten(leaves, spec), Row(program.columns, given[0], x.ndim, program.num_nodes)
            drawn = given[1] if noise is not None else torch.randn_like(x) if program.stochastic else None
            x, state = program.sampler.step(denoise, x, state, row, drawn, last)
            return [x.clone(), *(leaf.clone() for leaf in pytree.tree_leaves(state))], x.new_zeros(1)

        part = slice(steps.start, steps.stop)
        each = [self.rows[part]] if noise is None else [self.rows[part], noise[part]]
        begin = [x.clone(), *(leaf.clone() for leaf in leaves)]
        if len(steps) > 1:
            (x, *leaves), _ = scan(step, begin, each, dim=0)
        else:
            (x, *leaves), _ = step(begin, [of_step[0] for of_step in each])
        return x, pytree.tree_unflatten(leaves, spec)


def _loops(job: SamplingJob, program: Program) -> Iterator[tuple[Denoiser, range]]:
    """Consecutive steps of one denoiser and one argument ``last``, as numbers of the first and one after the last."""
    denoisers = job.denoisers(program)
    each = list(denoisers) if isinstance(denoisers, Sequence) else [denoisers] * program.num_steps
    start = 0
    for _, steps in groupby(enumerate(each), key=lambda pair: (id(pair[1]), program.is_last(pair[0]))):
        stop = start + len(list(steps))
        yield each[start], range(start, stop)
        start = stop
