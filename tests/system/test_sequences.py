"""Prompts of several lengths, for networks that take a mask."""

import pytest
import torch

import diffkit
from diffkit.errors import OptionError

BACKBONE = ("dit", {"hidden": 16, "depth": 1, "heads": 2, "patch": 4, "context": 3})


@pytest.fixture(scope="module")
def system():
    found = diffkit.compose(schedule="cosine", backbone=BACKBONE, data_shape=(1, 8, 8), num_steps=20)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in found.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return found


def prompt(length, seed=1):
    return torch.randn(length, 3, generator=torch.Generator().manual_seed(seed))


def drawn(system, n=3, **options):
    return system.sample(n, steps=3, seed=0, progress=False, **options)


def same(one, other):
    assert (one - other).abs().max() <= 1e-5


def test_a_list_is_padded(system):
    texts = [prompt(2, 1), prompt(1, 2), prompt(4, 3)]
    together = drawn(system, context=texts)
    for i, text in enumerate(texts):
        same(together[i], drawn(system, context=[text])[i])
    same(drawn(system, context=[text.numpy() for text in texts]), together)
    with pytest.raises(OptionError, match="must have one value for each of 3 examples, got 2"):
        drawn(system, context=texts[:2])


@pytest.mark.parametrize("guidance", ["cfg", "apg", "cfg_zero"])
def test_negative_prompts_of_another_length_share_the_call(system, guidance):
    texts, negative = [prompt(2, 1), prompt(5, 2), prompt(1, 3)], prompt(3, 4)
    options = {"scale": 2.0, "null": {"context": negative[None]}}
    apart = drawn(system, context=texts, guidance=(guidance, {**options, "joint": False}))
    same(drawn(system, context=texts, guidance=(guidance, options)), apart)
    for i, text in enumerate(texts):
        same(drawn(system, context=text[None], guidance=(guidance, options))[i], apart[i])
    assert (apart - drawn(system, context=texts, guidance=(guidance, {"scale": 2.0}))).abs().max() > 1e-3


def test_several_guidances_keep_their_negative_prompts(system):
    one, other = prompt(3, 4)[None], prompt(6, 5)[None]
    both = [("cfg", {"scale": 2.0, "null": {"context": one}}), ("cfg", {"scale": 1.5, "null": {"context": other}})]
    apart = [(name, {**options, "joint": False}) for name, options in both]
    same(drawn(system, context=[prompt(2)], guidance=both), drawn(system, context=[prompt(2)], guidance=apart))
    swapped = drawn(system, context=[prompt(2)], guidance=[both[0], ("cfg", {**both[1][1], "null": {"context": one}})])
    assert (swapped - drawn(system, context=[prompt(2)], guidance=both)).abs().max() > 1e-3


def test_the_mask_of_a_prompt_is_not_that_of_the_negative_one(system):
    padded = torch.cat([prompt(1, 1), torch.full((2, 3), 9.0)])
    mask, negative = torch.tensor([[1, 0, 0]]), prompt(3, 4)[None]
    guidance = ("cfg", {"scale": 2.0, "null": {"context": negative}})
    found = drawn(system, context=padded[None], context_mask=mask, guidance=guidance)
    same(found, drawn(system, context=padded[None, :1], guidance=guidance))


def test_a_number_is_no_prompt(system):
    nothing = drawn(system, context=torch.zeros(1, 1, 3))
    for zero in (0, 0.0, None, torch.zeros(3)):
        same(drawn(system, context=zero), nothing)
    same(drawn(system, context=0, guidance=("cfg", {"scale": 2.0})), nothing)
