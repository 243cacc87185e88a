"""Programs kept between calls: the same samples, less work, and nothing kept that could go stale."""

from __future__ import annotations

import gc
import threading
import weakref
from contextlib import nullcontext

import pytest
import torch
from attrs import define, field, frozen
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import diffkit
from diffkit.parts.samplers.ddim import DDIM
from diffkit.system.cache import MOST_CACHED_STEPS
from diffkit.system.prepared import PROGRAMS

SHAPE = (1, 4, 4)


def system_of(**options):
    return diffkit.compose(backbone=None, data_shape=SHAPE, var="fixed_small", loss="simple", **options)


def network(x, time):
    return 0.3 * x + time.view(-1, 1, 1, 1) / 1000


def program_of(system, **options):
    return system.prepare(2, model=network, **options).program()


def sample(system, **options):
    return system.sample(2, seed=1, model=network, progress=False, **options)


def test_the_same_call_takes_the_same_program():
    system = system_of()
    assert program_of(system, steps=5, sampler="ddim") is program_of(system, steps=5, sampler=DDIM())


@pytest.mark.parametrize("other", [{"steps": 6}, {"sampler": ("ddim", {"eta": 0.5})}, {"sampler": "euler"}])
def test_another_call_takes_another(other):
    system = system_of()
    how = {"steps": 5, "sampler": "ddim"}
    assert program_of(system, **how) is not program_of(system, **(how | other))


def test_another_system_takes_another():
    assert program_of(system_of(), steps=5) is not program_of(system_of(), steps=5)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpmpp_2m", "heun", "dpm_solver_3"])
def test_samples_are_the_same_from_a_cached_program(sampler):
    system = system_of()
    first, again = (sample(system, steps=6, sampler=sampler) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(first, sample(system_of(), steps=6, sampler=sampler))


def test_sampling_and_encoding_programs_are_cached_separately():
    system, x = system_of(), torch.zeros(1, *SHAPE)
    found = [system.encode(x, steps=5, start=start, model=network) for start in ("clean", "level1")]
    sample(system, steps=5, sampler="ddim")
    again = [system.encode(x, steps=5, start=start, model=network) for start in ("clean", "level1")]
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert not torch.equal(*found)


def test_the_cache_is_bounded_and_freed_with_its_system():
    system = system_of()
    for steps in range(1, PROGRAMS.most + 4):
        program_of(system, steps=steps)
    assert PROGRAMS.count(system) == PROGRAMS.most
    gone = weakref.ref(system)
    del system
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("how", [{"steps": None}, {"steps": 100, "sampler": ("restart", {"times": 120})}])
def test_a_long_program_is_not_cached(how):
    system = system_of(num_steps=MOST_CACHED_STEPS + 1)
    assert program_of(system, **how).num_steps > MOST_CACHED_STEPS
    assert program_of(system, **how) is not program_of(system, **how)


def test_a_network_may_write_into_the_times_it_is_given():
    def writing(x, time):
        return 0.3 * x + time.div_(1000).view(-1, 1, 1, 1)

    system = system_of()
    how = dict(steps=3, sampler="ddim", seed=1, model=writing, progress=False)
    assert torch.equal(system.sample(1, **how), system.sample(1, **how))


def test_a_program_of_a_mutable_part_is_not_cached():
    @define(eq=False)
    class Scaled(DDIM):
        by: float = 1.0

        def plan(self, steps):
            return {name: self.by * column for name, column in super().plan(steps).items()}

    system, sampler = system_of(), Scaled()
    before = program_of(system, steps=5, sampler=sampler).columns.blocks["coef"]["x"]
    object.__setattr__(sampler, "by", 2.0)
    after = program_of(system, steps=5, sampler=sampler).columns.blocks["coef"]["x"]
    assert (after == 2 * before).all()


@frozen
class Hidden(DDIM):
    by: float = field(default=1.0, eq=False)


@frozen
class Wrapping(DDIM):
    inner: object = None


@pytest.mark.parametrize("sampler", [Hidden(), Wrapping(inner=object())])
def test_a_program_of_a_part_with_partial_equality_is_not_cached(sampler):
    system = system_of()
    assert program_of(system, steps=5, sampler=sampler) is not program_of(system, steps=5, sampler=sampler)
    plain = Wrapping(inner=(DDIM(), None, 0.5))
    assert program_of(system, steps=5, sampler=plain) is program_of(system, steps=5, sampler=plain)


def test_a_program_with_guidance_is_not_cached():
    system = system_of()
    how = dict(steps=5, guidance=diffkit.guidance.DynamicThreshold())
    assert program_of(system, **how) is not program_of(system, **how)


def test_inference_mode_leaves_nothing_behind():
    """A network that differentiates, such as an energy's, would refuse tensors made in inference mode."""
    system = system_of()
    scale = torch.nn.Parameter(torch.ones(()))

    def energy(x, time):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad((scale * x.square() * time.view(-1, 1, 1, 1)).sum(), x)[0].detach()

    prepared = program_of(system, steps=3, sampler="ddim")
    with torch.inference_mode():
        sample(system, steps=3, sampler="ddim")
        for _ in range(2):
            prepared.finish(system.denoiser(network), torch.zeros(2, *SHAPE), None)
    assert system.sample(2, steps=3, sampler="ddim", model=energy, progress=False).isfinite().all()


def test_fake_tensors_leave_nothing_behind():
    system, kinds = system_of(), []
    for mode in (FakeTensorMode(), nullcontext(), FakeTensorMode()):
        with mode:
            kinds.append(type(system.sample(2, steps=3, sampler="ddim", model=network, progress=False)))
    assert kinds == [FakeTensor, torch.Tensor, FakeTensor]
    for mode in (FakeTensorMode(), nullcontext()):
        with mode:
            terms = system.loss_terms(network, torch.zeros(2, *SHAPE), torch.tensor([1, 2]), torch.zeros(2, *SHAPE))
    assert type(terms["loss"]) is torch.Tensor


def test_a_program_runs_on_fake_tensors_in_between():
    system = system_of()
    program = program_of(system, steps=3, sampler="ddim")
    with FakeTensorMode(allow_non_fake_inputs=True):
        program.finish(system.denoiser(network), torch.zeros(2, *SHAPE), None)
    assert type(program.finish(system.denoiser(network), torch.zeros(2, *SHAPE), None)) is torch.Tensor


def test_threads_share_a_system_and_each_gets_its_own():
    """Each walk by two threads, other walks beside them, and all of them in the same step at any time."""
    samplers, spacings = ("dpmpp_2m", "ancestral", ("ddim", {"eta": 0.5})), ("leading8", "trailing8")
    ways = [
        dict(sampler=sampler, steps=steps, seed=seed) for seed in (1, 2) for sampler in samplers for steps in spacings
    ]
    expected = [system_of().sample(2, model=network, progress=False, **how) for how in ways]
    system, together, found = system_of(), threading.Barrier(2 * len(ways), timeout=30), {}

    def in_step(x, time):
        together.wait()
        return network(x, time)

    def run(i):
        found[i] = system.sample(2, model=in_step, progress=False, **ways[i % len(ways)])

    for how in ways:
        program_of(system, **how)  # so that there is one to share
    threads = [threading.Thread(target=run, args=(i,)) for i in range(2 * len(ways))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(x.flatten().tolist()) for x in expected}) == len(ways)
    assert all(torch.equal(found[i], expected[i % len(ways)]) for i in range(len(threads)))
