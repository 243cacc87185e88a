"""Classifier-free guidance: its definition for every parameterization, its variance, its interval, its cost."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from guidance_support import Labelled, level_at, system_of
from hypothesis import given
from hypothesis import strategies as st

import diffkit
from diffkit.errors import CompositionError, OptionError
from diffkit.guidance import (
    AdaptiveProjected,
    Autoguidance,
    ClassifierFree,
    ClassifierFreeZero,
    DynamicThreshold,
    StaticThreshold,
)
from diffkit.likelihood import score
from diffkit.protocols import ConditionalGuidance, Guidance, IntervalGuidance

NULL = {"y": 3}
Y = torch.tensor([0, 1, 2])


def noisy(channels: int = 3, axes: int = 2) -> torch.Tensor:
    return torch.randn(3, channels, *(4,) * axes, generator=torch.Generator().manual_seed(1))


def parts_of(system, x, level, y=Y):
    """Predictions with and without the label, as the network alone gives them."""
    with_it, without = (system.denoiser(y=label, clip=False)(x, level) for label in (y, torch.full((3,), 3)))
    return with_it, without


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("mean", ["eps", "x_start", "v"])
@pytest.mark.parametrize("var", ["learned_range", "learned", "fixed_large"])
@pytest.mark.parametrize("joint", [True, False])
def test_it_guides_the_mean_of_every_channel_and_leaves_the_variance(channels, mean, var, joint):
    system = system_of(channels, mean, var)
    x, level = noisy(channels), level_at(system, torch.tensor([1, 9, 17]))
    guided = system.denoiser(guidance=ClassifierFree(2.5, null=NULL, joint=joint), y=Y, clip=False)(x, level)
    with_it, without = parts_of(system, x, level)
    wanted = without.x_start + 2.5 * (with_it.x_start - without.x_start)
    torch.testing.assert_close(guided.x_start, wanted, rtol=1e-4, atol=1e-5 * float(wanted.detach().abs().max()))
    torch.testing.assert_close(guided.log_variance, with_it.log_variance)
    assert var == "fixed_large" or not torch.allclose(with_it.log_variance, without.log_variance, atol=1e-3)


@pytest.mark.parametrize("axes", [1, 3])
def test_any_number_of_axes(axes):
    system = system_of(2, axes=axes)
    x, level = noisy(2, axes), level_at(system, torch.tensor([2, 10, 20]), ndim=axes + 2)
    guided = system.denoiser(guidance=ClassifierFree(3.0, null=NULL), y=Y, clip=False)(x, level)
    with_it, without = parts_of(system, x, level)
    torch.testing.assert_close(guided.x_start, torch.lerp(without.x_start, with_it.x_start, 3.0))


def of_rows(values):
    return values.view(-1, 1, 1, 1)


@pytest.mark.parametrize("threshold", [None, 1.5])
def test_projected_guidance_keeps_the_share_along_the_estimate_and_cuts_the_norm(threshold):
    system = system_of(mean="v")
    x, level = noisy(), level_at(system, torch.tensor([1, 9, 17]))
    with_it, without = (found.x_start for found in parts_of(system, x, level))
    difference = with_it - without
    if threshold is not None:
        assert (difference.flatten(1).norm(dim=1) > threshold).any()
        difference = difference * of_rows((threshold / difference.flatten(1).norm(dim=1)).clamp(max=1))
    unit = with_it / of_rows(with_it.flatten(1).norm(dim=1))
    along = of_rows((difference * unit).flatten(1).sum(1)) * unit
    for share in (0.0, 0.25, 1.0):
        part = AdaptiveProjected(4.0, along=share, threshold=threshold, null=NULL)
        guided = system.denoiser(guidance=part, y=Y, clip=False)(x, level).x_start
        torch.testing.assert_close(guided, with_it + 3 * (difference - along + share * along), rtol=1e-4, atol=1e-4)
    if threshold is None:  # the last of them keeps all
        plain = system.denoiser(guidance=ClassifierFree(4.0, null=NULL), y=Y, clip=False)(x, level).x_start
        torch.testing.assert_close(guided, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mean", ["eps", "v", "x_start"])
def test_cfg_zero_guides_by_the_nearest_multiple_of_the_velocity_without_the_label(mean):
    system = system_of(mean=mean)
    x, level = noisy(), level_at(system, torch.tensor([3, 9, 17]))
    velocities = []
    for found in parts_of(system, x, level):
        eps = (x - level.alpha * found.x_start) / level.sigma
        velocities.append((eps - found.x_start).detach())
    towards, away = velocities
    multiples = torch.linspace(-2, 3, 50001)
    best = torch.stack(
        [
            multiples[(t.flatten() - multiples[:, None] * a.flatten()).norm(dim=1).argmin()]
            for t, a in zip(*velocities, strict=True)
        ]
    )
    wanted = of_rows(best) * away + 2.5 * (towards - of_rows(best) * away)
    guided = system.denoiser(guidance=ClassifierFreeZero(2.5, null=NULL), y=Y, clip=False)(x, level).x_start
    found = (x - level.alpha * guided) / level.sigma - guided
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_guiding_x_start_is_guiding_eps():
    system = system_of(mean="eps", var="fixed_small")
    x, level = noisy(), level_at(system, 12)
    guided = system.denoiser(guidance=ClassifierFree(4.0, null=NULL), y=Y, clip=False)(x, level).x_start
    eps = [(x - level.alpha * p.x_start) / level.sigma for p in parts_of(system, x, level)]
    wanted = (x - level.sigma * (eps[1] + 4 * (eps[0] - eps[1]))) / level.alpha
    torch.testing.assert_close(guided, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("joint", [True, False])
def test_scale_one_is_the_network_and_zero_the_null_class(joint):
    system = system_of()
    x, level = noisy(), level_at(system, 9)
    with_it, without = parts_of(system, x, level)
    one, zero = (
        system.denoiser(guidance=ClassifierFree(s, null=NULL, joint=joint), y=Y, clip=False)(x, level) for s in (1, 0)
    )
    torch.testing.assert_close(one.x_start, with_it.x_start)
    torch.testing.assert_close(zero.x_start, without.x_start)


def test_it_acts_before_clipping():
    system = system_of()
    x, level = noisy(), level_at(system, 9)
    free = system.denoiser(guidance=ClassifierFree(5.0, null=NULL), y=Y, clip=False)(x, level).x_start
    clipped = system.denoiser(guidance=ClassifierFree(5.0, null=NULL), y=Y, clip=True)(x, level).x_start
    assert free.abs().max() > 1
    torch.testing.assert_close(clipped, free.clamp(-1, 1))


def test_one_call_on_twice_the_batch_or_two():
    system = system_of()
    for joint, calls in ((True, [6]), (False, [3, 3])):
        system.network.calls.clear()
        system.denoiser(guidance=ClassifierFree(2.0, null=NULL, joint=joint), y=Y)(noisy(), level_at(system, 9))
        assert system.network.calls == calls


@given(low=st.floats(0.05, 2), width=st.floats(0.1, 10))
def test_the_interval_holds_row_by_row(low, width):
    """Rows outside of it are the network's own, to the last bit."""
    system = system_of(var="fixed_small")
    k = torch.tensor([2, 9, 17])
    level = level_at(system, k)
    x = noisy()
    guidance = ClassifierFree(3.0, interval=(low, low + width), null=NULL, joint=False)
    got = system.denoiser(guidance=guidance, y=Y, clip=False)(x, level).x_start
    all_guided = system.denoiser(guidance=ClassifierFree(3.0, null=NULL), y=Y, clip=False)(x, level).x_start
    plain = parts_of(system, x, level)[0].x_start
    ratio = (system.table.sigma / system.table.alpha)[k]
    for i, inside in enumerate((ratio > low) & (ratio <= low + width)):
        if inside:
            torch.testing.assert_close(got[i], all_guided[i])
        else:
            assert torch.equal(got[i], plain[i])


@pytest.mark.parametrize("sampler", ["ancestral", "heun", "dpm_solver_2"])
def test_steps_outside_of_the_interval_cost_one_evaluation(sampler):
    """And are what they would be if the null class were evaluated there, too."""
    system, interval = system_of(), (0.2, 2.0)
    outer = Always(ClassifierFree(3.0, interval=interval, null=NULL))
    how = dict(sampler=sampler, seed=0, y=Y, progress=False)
    spared = system.sample(3, guidance=ClassifierFree(3.0, interval=interval, null=NULL), **how)
    calls = list(system.network.calls)
    system.network.calls.clear()
    torch.testing.assert_close(spared, system.sample(3, guidance=outer, **how), rtol=1e-4, atol=1e-4)
    assert len(calls) == len(system.network.calls) and set(system.network.calls) == {6}
    ratio = system.table.sigma[1:] / system.table.alpha[1:]
    inside = int(((ratio > interval[0]) & (ratio <= interval[1])).sum())
    if sampler == "ancestral":
        touched = [i for i in range(20) if calls[19 - i] == 6]
        assert inside <= len(touched) <= inside + 1 and set(calls) == {3, 6}
    assert calls[0] == calls[-1] == 3


class Always(Guidance):
    """A guidance that declares itself active at every level."""

    def __init__(self, guidance):
        self.guidance = guidance

    def guide(self, evaluate, x, level, conditions):
        return self.guidance.guide(evaluate, x, level, conditions)


def test_what_an_idle_guidance_keeps_to_itself_never_reaches_the_network():
    class Keeping(Always, ConditionalGuidance, IntervalGuidance):
        own_conditions = frozenset(["secret"])

        def inactive_at(self, at):
            return at.alpha < 2

    system = system_of()
    guidance = Keeping(ClassifierFree(3.0, null=NULL))
    how = dict(steps=3, seed=0, y=Y, progress=False)
    quiet = system.sample(3, guidance=guidance, secret=5, **how)
    torch.testing.assert_close(quiet, system.sample(3, **how))


@pytest.mark.parametrize(("interval", "guided"), [((0.0, float("inf")), True), ((1e6, float("inf")), False)])
def test_an_interval_may_be_open_at_both_ends(interval, guided):
    system = system_of()
    x, level = noisy(), level_at(system, torch.tensor([1, 2, 19]))
    got = system.denoiser(guidance=ClassifierFree(3.0, interval=interval, null=NULL), y=Y, clip=False)(x, level)
    with_it, without = (p.x_start for p in parts_of(system, x, level))
    torch.testing.assert_close(got.x_start, torch.lerp(without, with_it, 3.0) if guided else with_it)


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_rescaling_brings_the_spread_back(rescale):
    system = system_of()
    x, level = noisy(), level_at(system, 15)

    def spread(x_start):
        return x_start.flatten(1).std(1, correction=0)

    plain, free, got = (
        spread(system.denoiser(guidance=g, y=Y, clip=False)(x, level).x_start)
        for g in (None, ClassifierFree(4.0, null=NULL), ClassifierFree(4.0, rescale=rescale, null=NULL))
    )
    torch.testing.assert_close(got, rescale * plain + (1 - rescale) * free)


def test_rescaling_a_constant_changes_nothing():
    system = diffkit.compose(backbone=None, data_shape=(1,), num_steps=20, mean="x_start", schedule="cosine")
    guidance = ClassifierFree(4.0, rescale=1.0, null=NULL)
    denoiser = system.denoiser(lambda x, time, y: 0 * x + y[:, None], guidance=guidance, y=Y, clip=False)
    got = denoiser(torch.zeros(3, 1), level_at(system, 5, ndim=2)).x_start
    torch.testing.assert_close(got, torch.tensor([[-9.0], [-5.0], [-1.0]]))


BACKBONES = [
    ("mlp", {"hidden": 8, "depth": 1}),
    ("unet", {"channels": 8, "groups": 8, "num_res_blocks": 1, "channel_mult": [1], "attention_resolutions": [8]}),
    ("dit", {"hidden": 8, "heads": 2, "depth": 1}),
]


@pytest.mark.parametrize(("name", "options"), BACKBONES)
def test_the_null_class_is_the_networks_last_label(name, options):
    options = {**options, "num_classes": 5, "null_class": True}
    system = diffkit.compose(backbone=(name, options), data_shape=(2, 8, 8), num_steps=20, schedule="cosine")
    seen = []
    system.network.register_forward_pre_hook(lambda module, args, given: seen.append(given["y"]), with_kwargs=True)
    images = system.sample(2, steps=2, guidance=ClassifierFree(2.0), seed=0, y=[1, 4], progress=False)
    assert images.isfinite().all()
    assert [y.tolist() for y in seen] == [[1, 4, 5, 5]] * 2


@pytest.mark.parametrize(("name", "options"), BACKBONES)
@pytest.mark.parametrize("classes", [{}, {"num_classes": 5}])
def test_a_network_without_a_null_class_is_refused_before_work(name, options, classes):
    system = diffkit.compose(backbone=(name, options | classes), data_shape=(2, 8, 8), num_steps=20, schedule="cosine")
    text = f"guidance 'cfg': backbone '{name}' has no null class; build it with num_classes and null_class=True"
    for call in (
        lambda: system.sample(2, guidance=ClassifierFree(2.0), y=[1, 2]),
        lambda: system.trajectory(2, guidance=ClassifierFree(2.0), y=[1, 2]),
        lambda: system.encode(torch.zeros(2, 2, 8, 8), guidance=ClassifierFree(2.0), y=[1, 2]),
        lambda: system.bits_per_dim(torch.zeros(2, 2, 8, 8), guidance=ClassifierFree(2.0), y=[1, 2]),
    ):
        with pytest.raises(CompositionError, match=re.escape(text)):
            call()


def test_null_conditions_of_every_kind():
    seen = []

    def model(x, time, **given):
        seen.append(given)
        return torch.zeros_like(x)

    system = diffkit.compose(backbone=None, data_shape=(2,), num_steps=20, schedule="cosine")
    x, level = torch.zeros(3, 2), level_at(system, 5, ndim=2)
    embedding = torch.randn(3, 7, 4)

    def without(null, joint=False, **given):
        seen.clear()
        guidance = ClassifierFree(2.0, null=null, joint=joint)
        system.denoiser(model, guidance=guidance, **given)(x, level)
        return seen[-1]

    got = without({"text": torch.zeros(1, 7, 4)}, text=embedding, size=5)
    assert torch.equal(got["text"], torch.zeros(3, 7, 4)) and got["size"] == 5
    got = without({"text": torch.ones(7, 4).expand(3, 7, 4)}, text=embedding)
    assert torch.equal(got["text"], torch.ones(3, 7, 4))
    assert "text" not in without({"text": None}, text=embedding)
    assert torch.equal(without({"strength": 0.5}, strength=torch.ones(3))["strength"], torch.full((3,), 0.5))
    got = without({"text": torch.zeros(1, 7, 4)}, joint=True, text=embedding, mode="fast")
    assert got["text"].shape == (6, 7, 4) and got["mode"] == "fast"
    with pytest.raises(
        OptionError, match=r"condition 'text' cannot be evaluated with and without in one call.*joint=F"
    ):
        without({"text": None}, joint=True, text=embedding)
    with pytest.raises(OptionError, match=r"guidance 'cfg' needs the condition 'text'; pass text="):
        without({"text": None})


def test_a_guided_sample_does_not_depend_on_its_batch():
    system, guidance = system_of(), [ClassifierFree(2.0, null=NULL, rescale=0.5), DynamicThreshold(0.9)]
    whole = system.sample(4, steps=5, guidance=guidance, seed=3, y=[0, 1, 2, 0], progress=False)
    cut = system.sample(4, steps=5, guidance=guidance, seed=3, y=[0, 1, 2, 0], batch_size=3, progress=False)
    torch.testing.assert_close(whole, cut, rtol=1e-4, atol=1e-5)
    moments = list(system.trajectory(4, steps=5, guidance=guidance, seed=3, y=[0, 1, 2, 0]))
    torch.testing.assert_close(moments[-1].x, whole)
    plain = system.sample(4, steps=5, seed=3, y=[0, 1, 2, 0], progress=False)
    assert not torch.allclose(plain, whole, atol=1e-2)


def test_encoding_and_the_bound_are_guided():
    system, x = system_of(), torch.rand(3, 3, 4, 4) * 2 - 1
    for call in (
        lambda g: system.encode(x, steps=5, guidance=g, y=Y),
        lambda g: system.bits_per_dim(x, steps=5, guidance=g, seed=0, y=Y).total,
    ):
        torch.testing.assert_close(call(ClassifierFree(1.0, null=NULL)), call(None))
        assert not torch.allclose(call(ClassifierFree(3.0, null=NULL)), call(None), atol=1e-3)


def test_guidance_takes_what_comes_before_it_for_the_network():
    system, weak = system_of(), Labelled(3, 2).eval()
    x, level = noisy(), level_at(system, 12)

    def value(*guidance):
        return system.denoiser(guidance=guidance, y=Y, clip=False)(x, level).x_start

    cfg, threshold = ClassifierFree(6.0, null=NULL), StaticThreshold(0.5)
    torch.testing.assert_close(value(cfg, threshold), value(cfg).clamp(-0.5, 0.5))
    with_it, without = (p.x_start.clamp(-0.5, 0.5) for p in parts_of(system, x, level))
    torch.testing.assert_close(value(threshold, cfg), torch.lerp(without, with_it, 6.0))
    both = value(cfg, Autoguidance(weak, 2.0))
    worse = system.denoiser(weak, guidance=cfg, y=Y, clip=False)(x, level).x_start
    torch.testing.assert_close(both, torch.lerp(worse, value(cfg), 2.0))


BAD = [
    (lambda: ClassifierFree(), "scale"),
    (lambda: ClassifierFree("2"), "scale must be a number, got '2'"),
    (lambda: ClassifierFree(2.0, rescale=1.5), "rescale must be >= 0 and <= 1, got 1.5"),
    (lambda: ClassifierFree(2.0, interval=(1.0, 0.5)), "interval must be (low, high), noise-to-signal ratios"),
    (lambda: ClassifierFree(2.0, interval=0.5), "interval must be (low, high)"),
    (lambda: ClassifierFree(2.0, interval=(-1.0, 0.5)), "interval must be (low, high)"),
    (lambda: ClassifierFree(2.0, null=10), "null must be a mapping such as {'y': 10}, got 10"),
    (lambda: ClassifierFree(2.0, null={}), "null must be a mapping such as {'y': 10}, got {}"),
    (lambda: ClassifierFree(2.0, joint=2), "joint must be True or False, got 2"),
    (lambda: system_of().sample(1, guidance="cfg", y=[0]), "guidance 'cfg' needs 'scale'"),
    (lambda: system_of().sample(1, guidance=ClassifierFree, y=[0]), "guidance must be an instance, not the class"),
    (
        lambda: system_of().sample(1, guidance=ClassifierFree(2.0), y=[0]),
        "pass null, such as null={'y': 10}, or compose with null_conditions={'y': 10}",
    ),
    (
        lambda: system_of().sample(1, guidance=ClassifierFree(2.0, null=NULL)),
        "guidance 'cfg' needs the condition 'y'; pass y=...",
    ),
]


@pytest.mark.parametrize(("call", "text"), BAD, ids=[text[:40] for _, text in BAD])
def test_wrong_use(call, text):
    with pytest.raises((OptionError, CompositionError, TypeError), match=re.escape(text)):
        call()


ROWS = {
    "tensor": torch.tensor([3, 2, 1, 3]),
    "list": [3, 2, 1, 3],
    "array": np.array([3, 2, 1, 3]),
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=list(ROWS))
@pytest.mark.parametrize("joint", [True, False])
def test_a_null_row_goes_with_its_example(rows, joint):
    system, y = system_of(), [0, 1, 2, 0]
    call = dict(guidance=ClassifierFree(2.0, null={"y": rows}, joint=joint), seed=3, steps=4)
    whole = system.sample(4, y=y, progress=False, **call)
    one = ClassifierFree(2.0, null={"y": 1}, joint=joint)
    alone = system.sample(4, y=y, progress=False, **(call | {"guidance": one}))
    torch.testing.assert_close(whole[2], alone[2])
    assert not torch.allclose(whole[0], alone[0], atol=1e-3)
    cut = system.sample(4, y=y, batch_size=3, progress=False, **call)
    torch.testing.assert_close(cut, whole, rtol=1e-4, atol=1e-5)
    x = torch.zeros(4, *system.data_shape)
    bound = system.bits_per_dim(x, y=y, **call).total
    torch.testing.assert_close(system.bits_per_dim(x, y=y, rows_per_call=3, **call).total, bound)
    found = score(system, x, y=y, rows_per_call=3, **call)
    np.testing.assert_allclose(found.total, bound.numpy(), rtol=1e-5)


def test_null_rows_of_another_number_are_refused():
    system = system_of()
    text = "the null condition of 'y' must have one row, or one for each of 4 examples, got 3"
    with pytest.raises(OptionError, match=text):
        system.sample(4, guidance=ClassifierFree(2.0, null={"y": [1, 2, 3]}), y=[0, 1, 2, 0])
    with pytest.raises(OptionError, match=text):
        x = torch.zeros(4, *system.data_shape)
        system.sample_from(None, x, None, guidance=ClassifierFree(2.0, null={"y": [1, 2, 3]}), y=[0, 1, 2, 0])


def test_two_guidances_have_null_rows_of_their_own():
    system, call = system_of(), dict(steps=4, seed=0, y=[0, 1, 2, 0], progress=False)
    rows = [ClassifierFree(2.0, null={"y": each}) for each in ([1, 1, 1, 1], [3, 3, 3, 3])]
    numbers = [ClassifierFree(2.0, null={"y": each}) for each in (1, 3)]
    torch.testing.assert_close(system.sample(4, guidance=rows, **call), system.sample(4, guidance=numbers, **call))


def test_texts_and_mappings_have_null_conditions():
    seen = []

    def model(x, time, context, text):
        seen.append((context["e"], text))
        return torch.zeros_like(x)

    system = diffkit.compose(backbone=None, data_shape=(2,), num_steps=20, schedule="cosine")
    guidance = ClassifierFree(2.0, null={"text": "", "context": {"e": torch.zeros(1, 5)}})
    given = dict(text=["a", "b", "c"], context={"e": torch.ones(3, 5)})
    system.sample(3, steps=1, batch_size=2, model=model, guidance=guidance, progress=False, **given)
    assert [text for _, text in seen] == [["a", "b", "", ""], ["c", ""]]
    assert [e[:, 0].tolist() for e, _ in seen] == [[1, 1, 0, 0], [1, 0]]
