"""Systems whose network reads a context: one prompt for all, negative prompts of another length, any batch size."""

import pytest
import torch

import diffkit

BACKBONES = {
    "unet": {"channels": 8, "groups": 4, "num_res_blocks": 1, "channel_mult": (1, 2), "num_heads": 2, "context": 3},
    "dit": {"patch": 4, "depth": 1, "hidden": 16, "heads": 2, "context": 3},
}


@pytest.fixture(scope="module", params=BACKBONES)
def system(request):
    backbone = (request.param, BACKBONES[request.param])
    found = diffkit.compose(backbone=backbone, schedule="cosine", num_steps=6, data_shape=(1, 8, 8))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in found.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return found.eval()


def prompt(rows, length, seed=1):
    return torch.randn(rows, length, 3, generator=torch.Generator().manual_seed(seed))


def drawn(system, n=3, scale=2.0, null=None, joint=False, **options):
    guidance = ("cfg", {"scale": scale, "joint": joint, **({} if null is None else {"null": null})})
    return system.sample(n, seed=0, guidance=guidance, progress=False, **options)


def same(one, other, tolerance=1e-5):
    assert (one - other).abs().max() <= tolerance


def test_a_prompt_of_one_row_serves_all(system):
    same(drawn(system, context=prompt(1, 2)), drawn(system, context=prompt(1, 2).expand(3, -1, -1)))


@pytest.mark.parametrize("joint", [False, True])
def test_padding_changes_nothing_under_guidance(system, joint):
    padded = torch.cat([prompt(1, 2), torch.full((1, 3, 3), 9.0)], 1)
    mask = torch.tensor([[1, 1, 0, 0, 0]])
    found = drawn(system, context=padded, context_mask=mask, joint=joint)
    same(found, drawn(system, context=prompt(1, 2)))
    # the null condition is that of an empty text, whatever the prompt's length and mask
    nothing = {"context": torch.zeros(1, 1, 3), "context_mask": torch.ones(1, 1).bool()}
    same(found, drawn(system, context=padded, context_mask=mask, null=nothing))


def test_negative_prompts_may_have_another_length(system):
    negative = prompt(1, 4, seed=5)
    found = drawn(system, context=prompt(1, 2), null={"context": negative})
    longer = torch.cat([negative, torch.ones(1, 2, 3)], 1)
    null = {"context": longer, "context_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}
    same(found, drawn(system, context=prompt(1, 2), context_mask=torch.ones(1, 2), null=null))
    assert (found - drawn(system, context=prompt(1, 2))).abs().max() > 1e-3


def test_any_batch_size_is_the_same(system):
    context, mask = prompt(3, 3), torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 0]])
    whole = drawn(system, context=context, context_mask=mask)
    same(whole, drawn(system, context=context, context_mask=mask, batch_size=2))
    x = torch.zeros(3, 1, 8, 8)
    bits = system.bits_per_dim(x, seed=0, progress=False, context=context, context_mask=mask)
    alone = system.bits_per_dim(x[:1], seed=0, progress=False, context=context[:1], context_mask=mask[:1])
    same(bits.total[:1], alone.total)
