"""Models of diffusers as backbones: the same answers, the right shapes, and errors in diffkit's words."""

from __future__ import annotations

import copy
from typing import Any

import pytest

pytest.importorskip("diffusers")

import torch
from diffkit_diffusers import DiffusersDiT, DiffusersUNet2D, DiffusersUNet2DCondition
from diffusers_support import SMALL_DIT, SMALL_UNET

import diffkit
from diffkit.testing import Check, parametrize_checks

from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel  # isort: skip


@parametrize_checks("backbone", DiffusersUNet2D(**SMALL_UNET), DiffusersDiT(**SMALL_DIT))
def test_backbone(check: Check):
    check()


def test_defaults_are_those_of_diffusers():
    import inspect

    import attrs

    for recipe, model in ((DiffusersUNet2D, UNet2DModel), (DiffusersDiT, DiTTransformer2DModel)):
        theirs = inspect.signature(model.__init__).parameters
        mine = {f.name: f.default for f in attrs.fields(recipe)}
        assert {name: theirs[name].default for name in mine} == mine
        left = set(theirs) - set(mine) - {"self", "sample_size", "in_channels", "out_channels", "norm_type"}
        assert not left


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(num_class_embeds=5),
        dict(class_embed_type="timestep"),
        dict(time_embedding_type="fourier"),
        dict(time_embedding_type="learned", num_train_timesteps=1000),
        dict(
            resnet_time_scale_shift="scale_shift", downsample_type="resnet", upsample_type="resnet", add_attention=False
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("var", ["fixed_large", "learned_range"])
def test_the_unet_answers_as_in_diffusers(options: dict[str, Any], var: str):
    loss = "hybrid" if var == "learned_range" else "simple"
    backbone = DiffusersUNet2D(**SMALL_UNET | options)
    system = diffkit.compose(backbone=backbone, var=var, loss=loss, data_shape=(3, 8, 12), rescale_time=False)
    channels = 6 if var == "learned_range" else 3
    theirs = UNet2DModel(sample_size=(8, 12), out_channels=channels, **SMALL_UNET | options)
    theirs.load_state_dict(system.network.model.state_dict())
    labelled = "num_class_embeds" in options or "class_embed_type" in options
    conditions = {"y": torch.tensor([1, 4])} if labelled else {}
    labels = {"class_labels": conditions["y"]} if labelled else {}
    x, time = torch.randn(2, 3, 8, 12), torch.tensor([7, 999])
    with torch.no_grad():
        found = system.network(x, time.float(), **conditions)
        torch.testing.assert_close(found, theirs(x, time, **labels).sample)
    terms = system(torch.rand(2, 3, 8, 12), **conditions)
    terms["loss"].mean().backward()
    assert diffkit.from_spec(system.spec()).parts.backbone == backbone


def test_the_transformer_answers_as_in_diffusers():
    backbone = DiffusersDiT(**SMALL_DIT)
    system = diffkit.compose(
        backbone=backbone, var="learned_range", loss="hybrid", data_shape=(4, 8, 8), bins=None, rescale_time=False
    )
    theirs = DiTTransformer2DModel(sample_size=8, out_channels=8, **SMALL_DIT)
    system.network.model.load_state_dict(theirs.state_dict())
    x, time, y = torch.randn(2, 4, 8, 8), torch.tensor([7, 999]), torch.tensor([0, 3])
    with torch.no_grad():
        found = system.eval().network(x, time.float(), y=y)
        torch.testing.assert_close(found, theirs.eval()(x, time, class_labels=y).sample)
    assert backbone.null_conditions() == {"y": 3}
    assert system.sample(2, steps=3, y=1, progress=False).shape == (2, 4, 8, 8)
    assert diffkit.from_spec(system.spec()).parts.backbone == backbone


SMALL_CONDITION: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 5,
}


def test_the_network_with_a_context_answers_as_in_diffusers():
    backbone = DiffusersUNet2DCondition(**SMALL_CONDITION)
    system = diffkit.compose(backbone=backbone, data_shape=(3, 8, 8), rescale_time=False).eval()
    theirs = UNet2DConditionModel(sample_size=8, in_channels=3, out_channels=3, **SMALL_CONDITION).eval()
    theirs.load_state_dict(system.network.model.state_dict())
    x, time, context = torch.randn(2, 3, 8, 8), torch.tensor([7, 999]), torch.randn(2, 4, 5)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        found = system.network(x, time.float(), context=context, context_mask=mask)
        torch.testing.assert_close(found, theirs(x, time, context, encoder_attention_mask=mask.bool()).sample)
        short = system.network(x[1:], time[1:].float(), context=context[1:, :2])
        torch.testing.assert_close(found[1:], short, atol=1e-6, rtol=1e-5)
        none = [system.network(x, time.float(), context=c, context_mask=m) for c, m in ((0, None), (context, 0 * mask))]
        torch.testing.assert_close(*none, atol=1e-6, rtol=1e-5)
        low = copy.deepcopy(system.network).bfloat16()
        low_x, low_context = x.bfloat16(), context.bfloat16()
        padded = low(low_x, time.float(), context=low_context, context_mask=mask)
        alone = low(low_x[1:], time[1:].float(), context=low_context[1:, :2])
        for each, like in ((padded, found), (alone, short)):
            torch.testing.assert_close(each.float(), like, atol=2e-2 * float(found.abs().max()), rtol=0)
    assert backbone.null_conditions() == {"context": 0.0} and backbone.context_width() == 5


def test_prompts_of_one_row_with_padding_and_negative_ones_of_another_length():
    backbone = DiffusersUNet2DCondition(**SMALL_CONDITION)
    system = diffkit.compose(backbone=backbone, schedule="cosine", data_shape=(3, 8, 8), num_steps=4).eval()
    prompt, negative, mask = torch.randn(1, 2, 5), torch.randn(1, 4, 5), torch.tensor([[1, 1, 0, 0, 0]])

    def drawn(null: Any, **conditions: Any) -> Any:
        guidance = ("cfg", {"scale": 2.0, "joint": False, "null": null})
        return system.sample(2, seed=0, guidance=guidance, progress=False, **conditions)

    expected = drawn({"context": negative.expand(2, -1, -1)}, context=prompt.expand(2, -1, -1))
    torch.testing.assert_close(drawn({"context": negative}, context=prompt), expected, atol=1e-5, rtol=0)
    null = {"context": negative, "context_mask": torch.ones(1, 4).long()}
    padded = torch.cat([prompt, torch.ones(1, 3, 5)], 1)
    torch.testing.assert_close(drawn(null, context=padded, context_mask=mask), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_the_network_with_a_context_compiles_to_one_graph():
    from torch._dynamo.testing import CompileCounter

    one_level = {
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
    }
    network = DiffusersUNet2DCondition(**SMALL_CONDITION | one_level).build((3, 8, 8), 3).eval()
    counter = CompileCounter()
    compiled = torch.compile(network, fullgraph=True, backend=counter)
    x, time, mask = torch.randn(2, 3, 8, 8), torch.tensor([7.0, 999.0]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    for each in (mask, 1 - mask):
        given = {"context": torch.randn(2, 4, 5), "context_mask": each}
        torch.testing.assert_close(compiled(x, time, **given), network(x, time, **given), atol=1e-5, rtol=1e-5)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_a_saved_system_samples_alike(tmp_path: Any):
    system = diffkit.compose(backbone=("diffusers_unet2d", SMALL_UNET), data_shape=(1, 8, 8), num_steps=50)
    system.eval().save(tmp_path)
    again = diffkit.load(tmp_path)
    assert torch.equal(
        again.sample(2, seed=0, steps=3, progress=False), system.sample(2, seed=0, steps=3, progress=False)
    )


REFUSED: dict[str, tuple[Any, tuple[int, ...], str]] = {
    "points": (DiffusersUNet2D(**SMALL_UNET), (2,), "takes images (C, H, W), but data_shape is (2,)"),
    "odd": (
        DiffusersUNet2D(**SMALL_UNET),
        (3, 9, 8),
        "halves images 1 times, so their sides must be multiples of 2, but data_shape is (3, 9, 8); use fewer "
        "block_out_channels",
    ),
    "oblong": (
        DiffusersDiT(**SMALL_DIT),
        (3, 8, 12),
        "takes square images (C, H, H) with H a multiple of patch_size=2, but data_shape is (3, 8, 12)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_shapes_that_do_not_fit_are_refused(case: str):
    backbone, shape, text = REFUSED[case]
    with pytest.raises(diffkit.CompositionError) as caught:
        diffkit.compose(backbone=backbone, data_shape=shape)
    assert text in str(caught.value)


def test_what_diffusers_refuses_is_an_option_error():
    with pytest.raises(diffkit.OptionError, match="backbone 'diffusers_unet2d': UNet2DModel cannot be made with these"):
        diffkit.compose(backbone=("diffusers_unet2d", {"down_block_types": ["DownBlock2D"]}), data_shape=(3, 8, 8))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"down_block_types": "DownBlock2D"}, "down_block_types must be a list of names, got 'DownBlock2D'"),
        ({"act_fn": 3}, "act_fn must be a name or None, got 3"),
        ({"dropout": 1}, "dropout must be >= 0 and < 1, got 1.0"),
    ],
)
def test_options_of_the_wrong_type(options: dict[str, Any], text: str):
    with pytest.raises(diffkit.OptionError) as caught:
        DiffusersUNet2D(**options)
    assert str(caught.value) == text
