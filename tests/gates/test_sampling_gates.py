"""What a sampling step may cost beside the network: operations, uploads and host reads, and mutants over the line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from attrs import frozen
from counters import DEVICE, counted

import diffkit
from diffkit.protocols import Sampler
from diffkit.registry import registry
from diffkit.system.sampling import sampling_program

LIMITS = {
    ("ancestral", "learned_range"): 11,
    ("ancestral", "fixed_small"): 9,
    ("ddim", "fixed_small"): 5,
    (("ddim", (("eta", 1.0),)), "fixed_small"): 7,
    ("euler", "fixed_small"): 5,
    ("dpmpp_2m", "fixed_small"): 6,
}
"""(sampler, variance) -> operations per step beside the network, clipping and the draw of noise included."""
SHAPE = (3, 8, 8)


def sampler_of(slot) -> Sampler:
    name, options = (slot, ()) if isinstance(slot, str) else slot
    return registry("sampler").create(name, **dict(options))


def walk(
    sampler: Sampler, variance: str, steps: int, device: torch.device, batch: int = 2
) -> Callable[[], torch.Tensor]:
    """A walk whose network returns a stored tensor."""
    loss = "hybrid" if variance == "learned_range" else "simple"
    system = diffkit.compose(schedule="linear", var=variance, loss=loss, backbone=None, data_shape=SHAPE)
    x = torch.zeros(batch, *SHAPE, device=device)
    out = torch.zeros(batch, 3 * (1 + system.parts.var.extra_outputs), *SHAPE[1:], device=device)
    program = sampling_program(system.parts, sampler, system.table_for(steps))
    denoiser = system.denoiser(lambda x, time: out, clip=True)
    return lambda: program.finish(denoiser, x, lambda: torch.randn(batch, *SHAPE, device=device))


def per_step(sampler: Sampler, variance: str, batch: int = 2) -> tuple[float, float]:
    """Operations and uploads per step of a second walk, whatever a walk costs once left out."""
    walks = [walk(sampler, variance, steps, DEVICE, batch) for steps in (10, 20)]
    few, many = (counted(run) for run in walks if run() is not None)
    return (many.count - few.count) / 10, (many.uploads - few.uploads) / 10


@pytest.mark.parametrize(("slot", "variance"), LIMITS)
def test_operations_and_uploads_of_a_step(slot, variance):
    for batch in (1, 2):
        operations, uploads = per_step(sampler_of(slot), variance, batch)
        assert operations <= LIMITS[slot, variance]
        assert uploads == 0


@pytest.mark.parametrize("name", registry("sampler").built_in_names())
def test_no_sampler_uploads_or_reads_in_a_step(name):
    """A read of a value raises on this device."""
    assert per_step(sampler_of(name), "fixed_small")[1] == 0


def test_a_walk_uploads_its_table_once():
    assert counted(walk(sampler_of("ancestral"), "fixed_small", 5, DEVICE)).uploads == 1


# ---- what the gates must not let through -----------------------------------------------------------------------------


@frozen
class Wrapped(Sampler):
    """Ancestral sampling with something added to every step."""

    stochastic = True
    order = 1

    def plan(self, steps):
        return sampler_of("ancestral").plan(steps)

    def step(self, denoise, x, state, row, noise, last):
        x, state = sampler_of("ancestral").step(denoise, x, state, row, noise, last)
        return self.spoilt(x), state

    def spoilt(self, x):
        return x


class WithReads(Wrapped):
    def spoilt(self, x):
        return x / float(x.sum())


class WithBranches(Wrapped):
    def spoilt(self, x):
        return x if x.isfinite().all() else x.nan_to_num()


class WithUploads(Wrapped):
    def spoilt(self, x):
        return x * torch.tensor([1.0]).to(x.device)


class WithOperations(Wrapped):
    def spoilt(self, x):
        for _ in range(3):
            x = x * 1
        return x


def test_the_wrapper_alone_passes():
    operations, uploads = per_step(Wrapped(), "fixed_small")
    assert operations <= LIMITS["ancestral", "fixed_small"] and uploads == 0


@pytest.mark.parametrize("mutant", [WithReads, WithBranches])
def test_a_host_read_is_caught(mutant):
    with pytest.raises((RuntimeError, NotImplementedError), match=r"meta"):
        per_step(mutant(), "fixed_small")


def test_an_upload_is_caught():
    assert per_step(WithUploads(), "fixed_small")[1] == 1


def test_operations_are_caught():
    slot = ("ancestral", "learned_range")
    assert per_step(WithOperations(), slot[1])[0] > LIMITS[slot]
