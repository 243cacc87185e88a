"""Guidance by gradients: Bayes' rule on exact data, both shifts, both places, and what is refused.

Numbers of the published code are compared in tests/parity/test_guidance.py.
"""

from __future__ import annotations

import re

import pytest
import torch
from guidance_support import level_at, system_of

import diffkit
from diffkit.errors import CompositionError, OptionError
from diffkit.guidance import Classifier, ClassifierGuidance, GradientGuidance
from diffkit.system.call_parts import parts_for
from diffkit.system.sampling import sampling_program
from diffkit.testing.oracles import MixtureOracle, network_of

MEANS = torch.tensor([[[-0.6, 0.1, 0.3]], [[0.5, 0.4, -0.2]]], dtype=torch.float64)
TWO = MixtureOracle([0.3, 0.7], MEANS, 0.25)


def exact_system(mean: str = "eps") -> diffkit.System:
    return diffkit.compose(
        schedule="cosine", mean=mean, backbone=None, data_shape=(1, 3), num_steps=50, clip_x_start=False
    )


def exact_classifier(system):
    """Logits of p(class | x_t), by Bayes' rule."""

    def classifier(x, time):
        k = (time.double()[:, None] - torch.from_numpy(system.table.time[1:].copy())).abs().argmin(1) + 1
        alpha, sigma = (torch.from_numpy(c.copy())[k].view(-1, 1, 1) for c in (system.table.alpha, system.table.sigma))
        variance = alpha**2 * 0.25**2 + sigma**2
        squared = [((x.double() - alpha * mean) ** 2 / variance).flatten(1).sum(1) for mean in MEANS]
        return (-0.5 * torch.stack(squared, 1) + TWO.weights.log()).to(x.dtype)

    return classifier


@pytest.mark.parametrize("mean", ["eps", "x_start", "v"])
def test_an_exact_classifier_makes_the_exact_conditional_denoiser(mean):
    """At scale 1 the score form is Bayes' rule."""
    system = exact_system(mean)
    k, x = torch.tensor([2, 10, 25, 40]), torch.randn(4, 1, 3)
    y = torch.tensor([0, 1, 1, 0])
    level = level_at(system, k, ndim=3)
    guidance = ClassifierGuidance(exact_classifier(system), 1.0, label="target")
    got = system.denoiser(network_of(TWO, system), guidance=guidance, target=y)(x, level).x_start
    for i in range(4):
        one = MixtureOracle([1.0], MEANS[y[i]][None], 0.25)
        wanted = one.x_start(x[i : i + 1].double(), level.alpha[i].double(), level.sigma[i].double())
        torch.testing.assert_close(got[i : i + 1].double(), wanted, rtol=1e-3, atol=1e-4)


def test_samples_go_to_the_given_class():
    system = exact_system()
    y = torch.tensor([0, 1]).repeat(8)
    guidance = ClassifierGuidance(exact_classifier(system), 1.0, label="target")
    x = system.sample(
        16, guidance=guidance, sampler="ddim", seed=0, model=network_of(TWO, system), target=y, progress=False
    )
    distance = ((x[:, None] - MEANS) ** 2).flatten(2).sum(2)
    assert torch.equal(distance.argmin(1), y)


def log_prob(x, time, conditions):
    return -((x - 0.3) ** 2 * (1 + time / 1000).view(-1, 1, 1, 1)).flatten(1).sum(1)


def gradient(x, time):
    return -2 * (x - 0.3) * (1 + time / 1000).view(-1, 1, 1, 1)


@pytest.mark.parametrize("at", ["x_t", "mean"])
@pytest.mark.parametrize("var", ["learned_range", "fixed_small"])
@pytest.mark.parametrize("channels", [1, 4])
def test_the_mean_of_an_ancestral_step_moves_by_variance_times_gradient(at, var, channels):
    system = system_of(channels, var=var)
    guidance = GradientGuidance(log_prob, 1.5, at=at, shift="mean")
    y, k = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 19])
    x, row = torch.randn(3, channels, 4, 4), system.num_steps - k

    def mean(*guided):
        parts = parts_for(system.parts, "ancestral", list(guided))
        program = sampling_program(parts, parts.sampler, system.table)
        denoiser = system.denoiser(guidance=list(guided), y=y)
        matrix = program.columns.on(x.device)[row]
        return program.step(denoiser, x, (), matrix, torch.zeros_like(x), False)[0], denoiser(
            x, program.columns.level(matrix, 4, "t")
        )

    (plain, before), (moved, after) = mean(), mean(guidance)
    time = torch.from_numpy(system.table.time.copy()).float()
    where, when = (x, time[k]) if at == "x_t" else (plain, time[(k - 1).clamp_min(1)])
    wanted = plain + 1.5 * before.log_variance.exp() * gradient(where, when)
    torch.testing.assert_close(moved, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.log_variance, before.log_variance)


def test_clipping_again_is_an_option():
    system, x = system_of(), torch.randn(3, 3, 4, 4)
    level, y = level_at(system, 19), torch.tensor([0, 1, 2])
    free, clipped = (
        system.denoiser(guidance=GradientGuidance(log_prob, 2.0, clip=clip), y=y, clip=True)(x, level).x_start
        for clip in (False, True)
    )
    assert free.abs().max() > 1.5
    torch.testing.assert_close(clipped, free.clamp(-1, 1))


def test_without_signal_there_is_nothing_to_follow():
    system = system_of(mean="v")
    level = level_at(system, 20)
    nothing = level._replace(alpha=torch.zeros(()), log_snr=torch.tensor(-torch.inf))
    x, y = torch.randn(3, 3, 4, 4), torch.tensor([0, 1, 2])
    got = system.denoiser(guidance=GradientGuidance(log_prob), y=y)(x, nothing).x_start
    torch.testing.assert_close(got, system.denoiser(y=y)(x, nothing).x_start)


@pytest.mark.parametrize("pool", ["adaptive", "attention"])
def test_the_built_in_classifier_guides(pool):
    system = system_of(3)
    options = dict(channels=8, num_res_blocks=1, channel_mult=(1, 2), num_head_channels=8, groups=8, pool=pool)
    classifier = Classifier(**options, attention_resolutions=(4,)).build((3, 4, 4), 3)
    for parameter in classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    y, x = torch.tensor([0, 1, 2]), torch.randn(3, 3, 4, 4)
    level = level_at(system, 10)
    guided = system.denoiser(guidance=ClassifierGuidance(classifier.train(), 3.0), y=y, clip=False)
    with torch.no_grad():
        shift = guided(x, level).x_start - system.denoiser(y=y, clip=False)(x, level).x_start
    at = x.clone().requires_grad_()
    chosen = classifier(at, level.time.expand(3)).log_softmax(1)[range(3), y]
    (wanted,) = torch.autograd.grad(chosen.sum(), at)
    torch.testing.assert_close(shift, 3 * level.sigma**2 / level.alpha * wanted, rtol=1e-3, atol=1e-4)
    system.sample(3, steps=2, guidance=ClassifierGuidance(classifier, 3.0), y=y, progress=False)
    assert classifier.training and not shift.requires_grad


def test_a_checkpointed_classifier_guides():
    """torch.func cannot see through recomputation; autograd can."""
    options = dict(channels=8, num_res_blocks=1, channel_mult=(1,), groups=8, num_head_channels=8, pool="adaptive")
    plain, saving = (
        Classifier(**options, attention_resolutions=(4,), checkpoint=c).build((3, 4, 4), 3) for c in (False, True)
    )
    for parameter in plain.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    saving.load_state_dict(plain.state_dict())
    system, x, y = system_of(3), torch.randn(3, 3, 4, 4), torch.tensor([0, 1, 2])
    with torch.no_grad():  # as in sampling
        one, two = (
            system.denoiser(guidance=ClassifierGuidance(c, 3.0), y=y)(x, level_at(system, 10)).x_start
            for c in (plain, saving)
        )
    torch.testing.assert_close(one, two)


def test_a_network_without_classes_is_not_given_the_label():
    system = exact_system()
    guidance = ClassifierGuidance(exact_classifier(system), label="target")
    model = network_of(TWO, system)
    seen = []

    def spy(x, time, **conditions):
        seen.append(conditions)
        return model(x, time)

    system.sample(4, steps=2, guidance=guidance, model=spy, seed=0, target=[0, 1, 0, 1], batch_size=3, progress=False)
    assert seen == [{}] * 4


class Midway(diffkit.protocols.MultistageSampler):
    """A sampler that evaluates between levels."""

    def plan(self, steps):
        return {}

    def nodes(self, steps):
        return ((steps.t.log_snr + steps.s.log_snr) / 2)[:, None]

    def step(self, denoise, x, state, row, noise, last):
        return x, state


BAD = [
    (
        lambda: GradientGuidance(log_prob, at="mean"),
        "at='mean' is of the step's mean; the score is that of x_t; use shift='mean' or at='x_t'",
    ),
    (lambda: ClassifierGuidance(log_prob, shift="mean", clip=True), "clip=True has no effect on the mean"),
    (lambda: ClassifierGuidance(log_prob, at="x_s"), "at must be one of 'x_t', 'mean', got 'x_s'"),
    (lambda: ClassifierGuidance("resnet"), "classifier must be a network or a function, got 'resnet'"),
    (lambda: GradientGuidance(None), "log_prob must be a network or a function, got None"),
    (
        lambda: system_of().sample(2, guidance=ClassifierGuidance(log_prob, label="target"), y=[0, 1]),
        "guidance 'classifier' needs the condition 'target'; pass target=...",
    ),
    (
        lambda: system_of().sample(2, guidance=GradientGuidance(log_prob, shift="mean"), sampler=Midway(), y=[0, 1]),
        "it moves a step, but sampler 'Midway' evaluates between levels; use shift='score'",
    ),
    (
        lambda: system_of().denoiser(guidance=GradientGuidance(log_prob, shift="mean"), y=torch.tensor([0]))(
            torch.zeros(1, 3, 4, 4), level_at(system_of(), 3)
        ),
        "shift='mean' needs the step's variance, which is not known here; use shift='score'",
    ),
]


@pytest.mark.parametrize(("call", "text"), BAD, ids=[text[:40] for _, text in BAD])
def test_wrong_use(call, text):
    with pytest.raises((OptionError, CompositionError), match=re.escape(text)):
        call()


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (7, "condition 'target' has label 7, but the classifier has 3 classes, 0..2"),
        (-1, "condition 'target' has label -1, but the classifier has 3 classes"),
        (1.5, "condition 'target' must be class numbers, one for each example, got 1.5"),
        ("a", "condition 'target' must be class numbers, one for each example, got 'a'"),
    ],
)
def test_a_label_that_the_classifier_does_not_know_is_refused(label, text):
    system = diffkit.compose(backbone="mlp", data_shape=(2,), bins=None, num_steps=20, schedule="cosine")
    guidance = ClassifierGuidance(lambda x, time: x @ torch.ones(2, 3), label="target")
    with pytest.raises(OptionError, match=re.escape(text)):
        system.sample(2, steps=2, guidance=guidance, target=label, progress=False)


STEPS = dict(steps=2, seed=0, progress=False)
POINTS = dict(backbone=None, data_shape=(2,), num_steps=5, schedule="cosine", bins=None)


def halving(x, time):
    return 0.5 * x


@pytest.mark.parametrize(
    ("log_prob", "text"),
    [
        (lambda x, time, given: x.detach().sum(1), "log_prob follows data but has no gradient"),
        (torch.no_grad()(lambda x, time, given: x.sum(1)), "log_prob follows data but has no gradient"),
        (
            lambda x, time, given: x.mean(),
            r"log_prob must return a number for each of 3 examples, got .* of shape \(\)",
        ),
        (lambda x, time, given: x, r"log_prob must return a number for each of 3 examples, got .* of shape \(3, 2\)"),
        (
            lambda x, time, given: x.sum(1).long(),
            "log_prob must return a number for each of 3 examples, got torch.int64",
        ),
        (lambda x, time, given: None, "log_prob must return a number for each of 3 examples, got None"),
    ],
)
def test_a_likelihood_that_could_steer_nothing_is_refused(log_prob, text):
    with pytest.raises(OptionError, match=text):
        diffkit.compose(**POINTS).sample(3, model=halving, guidance=GradientGuidance(log_prob), **STEPS)


def test_a_constant_likelihood_steers_nothing():
    system, constant = diffkit.compose(**POINTS), GradientGuidance(lambda x, time, given: torch.zeros(len(x)))
    found = system.sample(3, model=halving, guidance=constant, **STEPS)
    assert torch.equal(found, system.sample(3, model=halving, **STEPS))


@pytest.mark.parametrize(
    ("classifier", "text"),
    [
        (lambda x, time: x[:, 0], r"the classifier must return logits, \(3, classes\), got \(3,\)"),
        (lambda x, time: x[:1], r"the classifier must return logits, \(3, classes\), got \(1, 2\)"),
        (lambda x, time: (x,), r"the classifier must return logits, \(3, classes\), got a tuple"),
        (lambda x, time: x.detach(), "log_prob follows data but has no gradient"),
    ],
)
def test_a_classifier_that_could_steer_nothing_is_refused(classifier, text):
    guidance = ClassifierGuidance(classifier, label="wanted")
    with pytest.raises(OptionError, match=text):
        diffkit.compose(**POINTS).sample(3, model=halving, guidance=guidance, wanted=0, **STEPS)


def test_a_likelihood_of_short_weights_is_given_data_in_their_dtype():
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones((), dtype=torch.bfloat16))

        def forward(self, x, time, given):
            assert x.dtype == torch.bfloat16
            return (self.weight * x).sum(1)

    system = diffkit.compose(**POINTS)
    found = system.sample(3, model=halving, guidance=GradientGuidance(Network()), **STEPS)
    plain = GradientGuidance(lambda x, time, given: x.sum(1))
    torch.testing.assert_close(found, system.sample(3, model=halving, guidance=plain, **STEPS))
