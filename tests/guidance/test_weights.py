"""The weight of a guidance by level and by example, held against the guided score of a mixture in closed form."""

from __future__ import annotations

import math
import re

import pytest
import torch
from guidance_support import system_of

import diffkit
from diffkit.errors import OptionError
from diffkit.guidance import (
    AdaptiveProjected,
    Autoguidance,
    ClassifierFree,
    ClassifierFreeZero,
    ClassifierGuidance,
    GradientGuidance,
)
from diffkit.protocols import IntervalGuidance
from diffkit.system.call_parts import parts_for
from diffkit.system.coefficients import CoefficientTable, level_coefficients
from diffkit.testing.oracles import LabelledMixtureOracle, MixtureOracle, labelled_network_of, network_of

MEANS = torch.tensor([[[-0.6, 0.2]], [[0.5, 0.5]], [[0.1, -0.7]]], dtype=torch.float64)
DATA = LabelledMixtureOracle(MixtureOracle([0.3, 0.3, 0.4], MEANS, 0.2), [0, 1, 1])
WORSE = MixtureOracle([0.3, 0.3, 0.4], MEANS, 0.5)
SYSTEM = diffkit.compose(
    schedule="cosine", backbone=None, data_shape=(1, 2), num_steps=24, bins=None, null_conditions={"y": 2}
)
NETWORK, UNLABELLED = labelled_network_of(DATA, SYSTEM), network_of(DATA.mixture, SYSTEM)
LEVELS, Y = (2, 9, 15, 22), (0, 1, 1, 0)


def level_of(time):
    """Alpha and sigma of times of the network."""
    k = (time.double()[:, None] - torch.from_numpy(SYSTEM.table.time[1:].copy())).abs().argmin(1) + 1
    return tuple(torch.from_numpy(c.copy())[k] for c in (SYSTEM.table.alpha, SYSTEM.table.sigma))


def log_class_prob(x, time):
    rows = [
        DATA.log_class_prob(x[i : i + 1], float(a), float(s))
        for i, (a, s) in enumerate(zip(*level_of(time), strict=True))
    ]
    return torch.cat(rows)


def log_prob(x, time, conditions):
    return log_class_prob(x, time)[torch.arange(len(x)), conditions["target"]]


def worse_by(x, y, weight, alpha, sigma):
    better, worse = (one.at(alpha, sigma).score(x) for one in (DATA.given(y), WORSE))
    return (x + sigma**2 * (worse + weight * (better - worse))) / alpha


FIELDS = {
    "cfg": (lambda s, **k: ClassifierFree(s, **k), NETWORK, DATA.guided),
    "cfg in two calls": (lambda s, **k: ClassifierFree(s, joint=False, **k), NETWORK, DATA.guided),
    "apg": (lambda s, **k: AdaptiveProjected(s, along=1.0, **k), NETWORK, DATA.guided),
    "autoguidance": (
        lambda s, **k: Autoguidance(lambda x, time, y: network_of(WORSE, SYSTEM)(x, time), s, **k),
        NETWORK,
        worse_by,
    ),
    "classifier": (lambda s, **k: ClassifierGuidance(log_class_prob, s, label="target", **k), UNLABELLED, DATA.guided),
    "gradient": (lambda s, **k: GradientGuidance(log_prob, s, own={"target"}, **k), UNLABELLED, DATA.guided),
}
"""Guidance whose field is a score of densities: how to make it, its network, and its estimate in closed form."""

PER_EXAMPLE = torch.tensor([1.5, 4.0, 8.0, 0.5], dtype=torch.float64)
WEIGHTS = {
    "number": ({"s": 3.0}, lambda i, alpha, sigma: (3.0, 1.0)),
    "by example": ({"s": PER_EXAMPLE}, lambda i, alpha, sigma: (float(PER_EXAMPLE[i]), 1.0)),
    "linear": ({"s": 3.0, "by_level": "linear"}, lambda i, alpha, sigma: (3.0, 2 / math.pi * math.atan(alpha / sigma))),
    "cosine": ({"s": 3.0, "by_level": "cosine"}, lambda i, alpha, sigma: (3.0, alpha**2 / (alpha**2 + sigma**2))),
    "table": (
        {"s": 3.0, "by_level": "0.5:0.2,2:1"},
        lambda i, alpha, sigma: (3.0, 0.2 + 0.8 * min(max(math.log(2 * sigma / alpha) / math.log(4), 0), 1)),
    ),
    "function, in an interval": (
        {"s": PER_EXAMPLE, "by_level": lambda log_snr: 1 / (1 + log_snr.square()), "interval": (0.3, 4.0)},
        lambda i, alpha, sigma: (
            float(PER_EXAMPLE[i]),
            (0.3 < sigma / alpha <= 4) / (1 + (2 * math.log(alpha / sigma)) ** 2),
        ),
    ),
}


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("name", FIELDS)
def test_the_guided_field_is_the_score_in_closed_form(name, weight):
    make, network, wanted = FIELDS[name]
    options, share = WEIGHTS[weight]
    guidance = make(**options)
    neutral = guidance.neutral[1]
    x = torch.randn(4, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    columns = CoefficientTable({"level": level_coefficients(parts_for(SYSTEM.parts, None, guidance), SYSTEM.table)})
    level = columns.level(columns.on(torch.device("cpu"), x.dtype)[torch.tensor(LEVELS)], x.ndim)
    label = "y" if network is NETWORK else "target"
    denoiser = SYSTEM.denoiser(network, guidance=guidance, clip=False, **{label: torch.tensor(Y)})
    found = denoiser(x, level).x_start
    for i, k in enumerate(LEVELS):
        alpha, sigma = float(SYSTEM.table.alpha[k]), float(SYSTEM.table.sigma[k])
        scale, part = share(i, alpha, sigma)
        exact = wanted(x[i : i + 1], Y[i], neutral + (scale - neutral) * part, alpha, sigma)
        torch.testing.assert_close(found[i : i + 1], exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("guidance", [ClassifierFree, AdaptiveProjected, ClassifierFreeZero])
@pytest.mark.parametrize("sampler", ["ancestral", "dpm_solver_2"])
def test_a_scale_by_example_goes_with_its_example(guidance, sampler):
    """With a sampler that evaluates between levels, too, where a step has no coefficients."""
    system, scales = system_of(), torch.tensor([0.5, 2.0, 3.0, 7.0, 1.0])
    y = [0, 1, 2, 0, 1]
    how = dict(steps=3, sampler=sampler, seed=0, progress=False)
    made = guidance(scales, null={"y": 3}, by_level="cosine")
    together = system.sample(5, y=y, guidance=made, batch_size=2, **how)
    for i in range(5):
        alone = guidance(float(scales[i]), null={"y": 3}, by_level="cosine")
        one = system.sample(5, y=y, guidance=alone, **how)[i]
        torch.testing.assert_close(together[i], one, rtol=1e-5, atol=1e-5)


def test_two_guidances_have_scales_of_their_own():
    system, first, second = system_of(), torch.tensor([2.0, 3.0]), torch.tensor([1.5, 0.5])
    how = dict(steps=3, sampler="ddim", seed=0, progress=False, y=[0, 1])
    both = [ClassifierFree(first, null={"y": 3}), ClassifierFree(second, null={"y": 2})]
    made = system.sample(2, guidance=both, **how)
    for i in range(2):
        alone = [ClassifierFree(float(first[i]), null={"y": 3}), ClassifierFree(float(second[i]), null={"y": 2})]
        torch.testing.assert_close(made[i], system.sample(2, guidance=alone, **how)[i], rtol=1e-5, atol=1e-5)


def test_levels_without_a_share_cost_one_evaluation():
    system = system_of()
    table: tuple[tuple[float, float], ...] = ((0.5, 0.0), (1.0, 1.0))
    guidance = ClassifierFree(3.0, null={"y": 3}, by_level=table, joint=False)
    assert isinstance(guidance, IntervalGuidance)
    at = system.table.at()
    assert (guidance.inactive_at(at) == (at.sigma <= 0.5 * at.alpha)).all()
    system.network.calls.clear()
    system.sample(2, guidance=guidance, y=0, sampler="ddim", progress=False)
    assert len(system.network.calls) == 20 + int((at.sigma[1:] > 0.5 * at.alpha[1:]).sum())


def test_one_form_of_a_table_and_plain_data():
    as_text = ClassifierFree(2.0, by_level="0.5:0,1:1")
    assert as_text == ClassifierFree(2.0, by_level=[[0.5, 0], [1, 1]]) and as_text.by_level == ((0.5, 0.0), (1.0, 1.0))
    given = {"name": "cfg", "scale": 2.0, "null": {"y": 3}, "by_level": "0.5:0,1:1"}
    system = system_of(sampling={"guidance": given})
    how = dict(steps=2, seed=0, y=0, progress=False)
    same = system.sample(1, guidance=ClassifierFree(2.0, null={"y": 3}, by_level=as_text.by_level), **how)
    assert torch.equal(system.sample(1, **how), same)


TEXT = "must be 'linear', 'cosine', a table of (noise-to-signal ratio > 0, share)"
BAD = [
    (lambda: ClassifierFree("3"), "scale must be a number, got '3'"),
    (lambda: ClassifierFree(torch.ones(2, 2)), "scale must be a number, or a floating-point tensor (B,) with one for"),
    (lambda: ClassifierFree(torch.tensor([1, 2])), "scale must be a number, or a floating-point tensor (B,) with one"),
    (lambda: ClassifierFree(2.0, by_level="quadratic"), f"by_level {TEXT}"),
    (lambda: ClassifierFree(2.0, by_level="0:1,1"), f"by_level {TEXT}"),
    (lambda: ClassifierFree(2.0, by_level=((0.0, 1.0),)), f"by_level {TEXT}"),
    (lambda: ClassifierFree(2.0, by_level=((1.0, 1.0), (1.0, 0.0))), "has a noise-to-signal ratio twice"),
    (
        lambda: system_of().sample(3, y=0, guidance=ClassifierFree(torch.ones(2), null={"y": 3})),
        "scale must be a number, or one for each of 3 examples, got 2",
    ),
    (
        lambda: system_of().sample(
            3, y=0, steps=2, progress=False, guidance=ClassifierFree(2.0, null={"y": 3}, by_level=lambda log_snr: 0.5)
        ),
        "by_level must return a tensor of shares, got a float",
    ),
]


@pytest.mark.parametrize(("call", "text"), BAD, ids=[f"{i} {text[:30]}" for i, (_, text) in enumerate(BAD)])
def test_wrong_weights(call, text):
    with pytest.raises(OptionError, match=re.escape(text)):
        call()
