"""``compile=``: one graph for every step, count of steps and batch size, and the same samples as without."""

from __future__ import annotations

import gc
import re
import weakref

import pytest
import torch
from counting_backend import Backend
from lanes import some_by_default
from networks import Tiny

import diffkit
from diffkit.errors import OptionError
from diffkit.guidance import MMPS, Autoguidance, ClassifierFree, ClassifierGuidance, DynamicThreshold
from diffkit.protocols import MultistageSampler
from diffkit.system.compiling import GRAPHS
from diffkit.tasks import average_pool, image_to_image, inpaint, invert, solve

SAMPLERS = ["ancestral", "ddim", "dpmpp_2m", "dpm_solver_2", "heun", "sde_dpmpp_2m", "unipc"]


@pytest.fixture
def backend():
    torch._dynamo.reset()
    yield Backend()
    torch._dynamo.reset()


def system_of(channels: int = 3, var: str = "learned_range", **more) -> diffkit.System:
    out = channels * (2 if var == "learned_range" else 1)
    parts = dict(schedule="cosine", var=var, loss="hybrid" if out > channels else "simple", num_steps=40) | more
    return diffkit.compose(backbone=Tiny(channels, out), data_shape=(channels, 4, 4), **parts).eval()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_and_batches_share_a_graph(backend, sampler):
    """Two for samplers that do not evaluate the network at level 0: their last step is another one."""
    system, part = system_of(), diffkit.registry.registry("sampler").create(sampler)
    wanted = 2 if isinstance(part, MultistageSampler) else 1
    for n, steps, batch_size in ((4, 3, None), (4, 7, None), (6, 5, None), (8, 4, 5), (2, None, None)):
        how = dict(steps=steps, sampler=sampler, seed=1, batch_size=batch_size, y=list(range(n)), progress=False)
        plain = system.sample(n, **how)
        torch.testing.assert_close(system.sample(n, compile={"backend": backend}, **how), plain, rtol=1e-4, atol=1e-4)
    assert backend.graphs == wanted


def test_a_single_example_is_a_graph_of_its_own(backend):
    system = system_of()
    for n in (1, 1, 3, 1):
        system.sample(n, steps=3, sampler="ddim", compile={"backend": backend}, progress=False)
    assert backend.graphs == 2


def classifier(x, time):
    return torch.stack([x.tanh().flatten(1).sum(1), x.cos().flatten(1).sum(1)], 1)


GUIDANCE = {
    "cfg": lambda scale: ClassifierFree(scale, null={"y": 9}),
    "cfg_interval_threshold": lambda scale: [
        ClassifierFree(scale, interval=(0.1, scale), null={"y": 9}),
        DynamicThreshold(0.9),
    ],
    "autoguidance": lambda scale: Autoguidance(WEAK, scale),
    "classifier": lambda scale: ClassifierGuidance(classifier, scale, label="target", clip=True),
}
WEAK = Tiny(3, 6).eval()


@pytest.mark.parametrize("name", some_by_default(GUIDANCE, 2))
def test_guidance_is_in_the_graph_whatever_its_strength(backend, name):
    """A number that changes becomes an input of the graph, at the cost of one more graph for all its values."""
    system = system_of()
    target = {"target": [0, 1, 0]} if name == "classifier" else {}
    for scale in (2.0, 2.5, 3.0, 4.0):
        how = dict(steps=4, guidance=GUIDANCE[name](scale), seed=1, y=[0, 1, 2], progress=False, **target)
        compiled = system.sample(3, compile={"backend": backend}, **how)
        torch.testing.assert_close(compiled, system.sample(3, **how), rtol=1e-4, atol=1e-4)
    assert backend.graphs <= 3


def test_trajectories_and_encoding_are_compiled_too(backend):
    system, how = system_of(), dict(steps=5, seed=1, sampler="ddim")
    plain, compiled = (list(system.trajectory(3, compile=c, **how)) for c in (False, {"backend": backend}))
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a.x, b.x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(a.x_start, b.x_start, rtol=1e-4, atol=1e-4)
    assert backend.graphs == 1
    x = torch.rand(3, 3, 4, 4)
    one, two = (system.encode(x, steps=5, compile=c) for c in (False, {"backend": backend}))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    assert backend.graphs == 2


TASKS = {
    "inpaint": lambda system, c: inpaint(
        system, torch.zeros(2, 3, 4, 4), torch.eye(4), resample=2, jump=2, steps=5, seed=0, compile=c, progress=False
    ),
    "image_to_image": lambda system, c: image_to_image(
        system, torch.zeros(2, 3, 4, 4), strength=0.5, steps=8, seed=0, compile=c, progress=False
    ),
    "invert": lambda system, c: invert(system, torch.zeros(2, 3, 4, 4), steps=4, compile=c, progress=False).latent,
    "solve": lambda system, c: solve(
        system, torch.zeros(2, 3, 2, 2), MMPS(average_pool(2), 0.1), steps=4, seed=0, compile=c, progress=False
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_tasks_are_compiled_too(backend, name):
    system = system_of()
    plain, compiled = (TASKS[name](system, c) for c in (False, {"backend": backend}))
    torch.testing.assert_close(plain, compiled, rtol=1e-3, atol=1e-3)
    assert 1 <= backend.graphs <= 2


def test_graphs_belong_to_their_system(backend):
    one, two = system_of(), system_of()
    for system in (one, two, one):
        system.sample(2, steps=2, compile={"backend": backend}, progress=False)
    assert backend.graphs == 2
    gone = weakref.ref(one)
    del one, system
    gc.collect()
    assert gone() is None and GRAPHS.count(two) == 1


@pytest.mark.slow
def test_many_ways_of_asking_do_not_run_into_the_compilers_limit(backend, monkeypatch):
    """torch.compile allows eight graphs for one piece of code; every way of asking has its own."""
    system = system_of()
    for eta in range(10):
        system.sample(2, steps=1, sampler=("ddim", {"eta": eta / 10}), compile={"backend": backend}, progress=False)
    assert backend.graphs == 10 == GRAPHS.count(system)
    monkeypatch.setattr(GRAPHS, "most", 3)
    system.sample(2, steps=1, sampler="ddim", compile={"backend": backend, "dynamic": False}, progress=False)
    assert GRAPHS.count(system) == 3


def test_sampling_does_not_return_unused_estimates(backend, monkeypatch):
    def refuse(*given):
        raise AssertionError("a trajectory was recorded")

    monkeypatch.setattr("diffkit.system.sampling.step_with_denoised", refuse)
    monkeypatch.setattr("diffkit.system.prepared.step_with_denoised", refuse)
    system = system_of()
    system.sample(2, steps=2, progress=False)
    system.sample(2, steps=2, compile={"backend": backend}, progress=False)


class Breaking(Tiny):
    """Looks at a value."""

    def forward(self, x, time, y=None):
        return super().forward(x, time) * (2 if float(x.sum()) > 0 else 1)


def test_a_compiler_that_fails_is_named(backend):
    def failing(graph, inputs):
        raise RuntimeError("no working compiler")

    system = system_of(var="fixed_small")
    with pytest.raises(
        OptionError, match=r"torch's compiler failed \((.|\n)*no working compiler.*\); use compile=False$"
    ):
        system.sample(2, steps=2, compile={"backend": failing}, progress=False)


def test_a_network_that_cannot_be_captured_is_named_with_a_way_out(backend):
    system = system_of(var="fixed_small")
    with pytest.raises(
        OptionError, match=r"cannot capture this step as one graph .*use compile=False or compile=.*fullgraph"
    ):
        system.sample(2, steps=2, model=Breaking(3, 3).eval(), compile={"backend": backend}, progress=False)
    how = {"backend": backend, "fullgraph": False}
    assert system.sample(2, steps=2, model=Breaking(3, 3).eval(), compile=how, progress=False).isfinite().all()


STATIC = [
    ({"mode": "reduce-overhead"}, True),
    ({"mode": "max-autotune"}, True),
    ({"options": {"triton.cudagraphs": True}}, True),
    ({"mode": "max-autotune-no-cudagraphs"}, False),
    ({"options": {"triton.cudagraphs": False}}, False),
    ({}, False),
]


@pytest.mark.parametrize(("how", "static"), STATIC, ids=str)
def test_the_output_of_a_cuda_graph_is_copied(how, static, monkeypatch):
    """It writes over it in the next step; every mode of torch.compile that captures one is known."""
    system, begun, given = system_of(var="fixed_small"), [], []

    def backend(graph, inputs, **options):
        def run(*arguments):
            given.append(graph(*arguments))
            return given[-1]

        return run

    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(True))
    torch._dynamo.reset()
    moments = list(system.trajectory(2, steps=3, sampler="ddim", compile={"backend": backend, **how}))
    torch._dynamo.reset()
    own = {tensor.data_ptr() for out in given for tensor in out}
    assert len(begun) == (3 if static else 0)
    assert all((moment.x.data_ptr() in own) is not static for moment in moments)


BAD = [
    (
        dict(compile="fast"),
        "compile must be True, False, 'step', 'cuda_graph' or arguments of torch.compile, got 'fast'",
    ),
    (dict(compile=1.5), "compile must be True, False, 'step', 'cuda_graph' or arguments of torch.compile, got 1.5"),
    (dict(compile="cuda_graph"), "compile='cuda_graph' needs a GPU, the system is on cpu; use compile='step'"),
]


@pytest.mark.parametrize(("arguments", "text"), BAD, ids=[text[:30] for _, text in BAD])
def test_wrong_use(arguments, text):
    with pytest.raises(OptionError, match=re.escape(text)):
        system_of().sample(2, **arguments)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # torch's compiler uses what torch deprecates
@pytest.mark.parametrize("sampler", ["ancestral", "dpmpp_2m"])
def test_inductor_gives_the_same_samples(sampler):
    """The real compiler, with guidance; it reorders float32 sums."""
    network = ("mlp", {"hidden": 16, "depth": 1, "num_classes": 3, "null_class": True})
    system = diffkit.compose(
        schedule="cosine", var="learned_range", loss="hybrid", num_steps=40, data_shape=(3, 4, 4), backbone=network
    ).eval()
    for parameter in system.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    torch._dynamo.reset()
    for n, steps in ((4, 5), (6, 8)):
        y = [i % 3 for i in range(n)]
        how = dict(steps=steps, sampler=sampler, guidance=ClassifierFree(2.0), seed=1, y=y, progress=False)
        plain = system.sample(n, **how)
        torch.testing.assert_close(system.sample(n, compile=True, **how), plain, rtol=0, atol=2e-3)
    torch._dynamo.reset()


@pytest.mark.gpu
@pytest.mark.parametrize("sampler", ["ancestral", "dpmpp_2m", "heun"])
def test_a_cuda_graph_gives_the_same_samples(sampler):
    system = system_of().cuda()
    how = dict(sampler=sampler, seed=1, y=[0, 1, 2, 3], progress=False)
    for steps in (5, 9):
        plain = system.sample(4, steps=steps, **how)
        captured = system.sample(4, steps=steps, compile="cuda_graph", **how)
        torch.testing.assert_close(captured, plain, rtol=0, atol=2e-3)
