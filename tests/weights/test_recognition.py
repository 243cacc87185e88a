"""What shapes reveal, on every published network and on layouts that were never published."""

from __future__ import annotations

import attrs
import pytest
import torch
from weights_support import CLASSIFIERS, UNETS, golden, written

import diffkit
from diffkit import presets, weights
from diffkit.errors import CheckpointError, OptionError
from diffkit.guidance.classifier import Classifier
from diffkit.parts.backbones.dit import SIZES, DiT
from diffkit.parts.backbones.unet import UNet
from diffkit.weights._infer_options import infer_options
from diffkit.weights._resolve_options import fitting_presets

NETWORKS = [name for name in presets.names() if not name.endswith(("vlb", "bs64", "cat256", "horse256", "nodropout"))]


def shapes_of(network):
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def built(recipe, shape, out):
    with torch.device("meta"):
        return recipe.build(shape, out)


@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks_are_read_off_their_shapes(name):
    preset = diffkit.preset(name)
    found = infer_options(shapes_of(preset.build(device="meta")))
    said = dict(preset.composition.get("backbone", preset.composition))
    options = dict(found.options)
    if found.family == "dit":
        assert SIZES[said["size"]][:2] == (options.pop("depth"), options.pop("hidden"))
        assert options.pop("mlp_ratio") == 4
        assert found.label_rows == said["num_classes"] + 1
    elif found.family == "unet":
        assert found.label_rows == (said.get("num_classes") or 0)
        side = preset.composition["data_shape"][1]
        sizes = tuple(side // 2**level for level, attends in enumerate(found.attention) if attends)
        assert sizes == said["attention_resolutions"]
        assert found.channels_in == 3 + said.get("low_res_channels", 0)
        assert found.channels_out == 6
    else:
        assert found.channels_out == said["num_classes"]
    for option, value in options.items():
        assert value == said.get(option, getattr(UNet(), option, None)), option
    if found.data_shape:
        assert found.data_shape == preset.composition["data_shape"]
    assert name in fitting_presets(found)
    assert fitting_presets(found, preset.file)[0] == name


@pytest.mark.parametrize("name", UNETS + CLASSIFIERS)
def test_golden_networks_are_read_off_their_shapes(name):
    given = golden(name).kwargs
    found = infer_options({key: tuple(value.shape) for key, value in golden(name).state.items()})
    assert found.options["channels"] == given["model_channels"]
    assert found.options["num_res_blocks"] == given["num_res_blocks"]
    assert list(found.options["channel_mult"]) == list(given["channel_mult"])
    assert found.options["scale_shift_norm"] == given.get("use_scale_shift_norm", False)
    assert found.options["resblock_updown"] == given.get("resblock_updown", False)
    assert found.options.get("conv_resample", True) == given.get("conv_resample", True)
    assert found.options.get("pool") == given.get("pool")
    factors = [2**level for level, attends in enumerate(found.attention) if attends]
    assert set(factors) == set(given["attention_resolutions"])
    assert found.channels_out == given["out_channels"]


SMALL = {"channels": 16, "groups": 4, "num_heads": 2}


@pytest.mark.parametrize(("updown", "conv"), [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("mult", [(1,), (2, 2, 2), (0.5, 1, 1.5), (1, 1, 1, 1, 1, 1)])
@pytest.mark.parametrize("attention", [(), (0, 1, 2)])
def test_any_layout_of_a_unet_is_read_back(updown, conv, blocks, mult, attention):
    sizes = [32 // 2**level for level in attention if level < len(mult)]
    recipe = UNet(
        **SMALL,
        num_res_blocks=blocks,
        channel_mult=mult,
        attention_resolutions=sizes,
        resblock_updown=updown,
        conv_resample=conv,
        num_classes=5,
    )
    found = infer_options(shapes_of(built(recipe, (2, 32), 4)))
    assert found.options["num_res_blocks"] == blocks
    assert found.options["channel_mult"] == mult
    assert found.options.get("resblock_updown", updown) == updown
    assert found.options.get("conv_resample", conv) == conv
    assert [level for level, attends in enumerate(found.attention) if attends] == [
        level for level in attention if level < len(mult)
    ]
    assert (found.channels_in, found.channels_out, found.label_rows, found.axes) == (2, 4, 5, 1)


@pytest.mark.parametrize("pool", ["adaptive", "attention", "spatial", "spatial_v2"])
@pytest.mark.parametrize("updown", [False, True])
@pytest.mark.parametrize(("blocks", "mult"), [(1, (1, 2)), (2, (1, 1, 2)), (2, (1, 2, 2)), (3, (1, 2))])
def test_any_layout_of_a_classifier_is_read_back(pool, updown, blocks, mult):
    recipe = Classifier(
        channels=16,
        groups=4,
        num_head_channels=8,
        num_res_blocks=blocks,
        channel_mult=mult,
        resblock_updown=updown,
        pool=pool,
        attention_resolutions=(8,),
    )
    found = infer_options(shapes_of(built(recipe, (3, 32, 32) if len(mult) > 2 else (3, 16, 16), 7)), blocks)
    assert (found.family, found.options["pool"], found.channels_out) == ("classifier", pool, 7)
    assert (found.options["num_res_blocks"], found.options["channel_mult"]) == (blocks, mult)
    assert found.options["resblock_updown"] == updown
    if pool == "attention":
        assert found.data_shape == ((3, 32, 32) if len(mult) > 2 else (3, 16, 16))


def test_a_classifier_of_equal_blocks_asks_how_many_there_are():
    recipe = Classifier(
        channels=16, groups=4, num_head_channels=8, num_res_blocks=1, channel_mult=(1, 1, 1), attention_resolutions=()
    )
    shapes = shapes_of(built(recipe, (3, 16, 16), 7))
    with pytest.raises(
        OptionError,
        match="more than one number of blocks per level; use num_res_blocks=1 or num_res_blocks=2 or num_res_blocks=5",
    ):
        infer_options(shapes)
    assert infer_options(shapes, 1).options["channel_mult"] == (1, 1, 1)
    assert infer_options(shapes, 2).options["channel_mult"] == (1, 1)
    assert infer_options(shapes, 5).options["channel_mult"] == (1,)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_number_of_axes_is_seen(axes):
    shape = (1, *[8] * axes)
    assert infer_options(shapes_of(built(UNet(**SMALL, channel_mult=(1, 2)), shape, 1))).axes == axes


def test_grid_of_a_transformer_is_recognized_by_its_positions(tmp_path):
    """4 x 16 patches are as many as 8 x 8; only the values of the positions differ."""
    for rows, columns in ((8, 32), (16, 16), (32, 8)):
        network = DiT(depth=1, hidden=32, heads=2).build((4, rows, columns), 8)
        torch.save(network.state_dict(), tmp_path / "dit.pt")
        assert weights.identify(tmp_path / "dit.pt").options["data_shape"] == (4, rows, columns)
    state = network.state_dict() | {"pos_embed": torch.randn(1, 64, 32)}
    torch.save(state, tmp_path / "dit.pt")
    assert "data_shape" not in weights.identify(tmp_path / "dit.pt").options


def test_identify_describes_a_file(tmp_path):
    found = weights.identify(written(tmp_path, "adm_updown_newattn"))
    assert (found.family, found.num_parameters, found.dtypes) == ("unet", 829_638, ("float32",))
    text = str(found)
    assert text.startswith("adm_updown_newattn.pt: a U-Net, 829,638 values in float32")
    for part in ("channel_mult = (1, 2)", "resblock_updown = True", "presets of these shapes: none"):
        assert part in text
    halves = {name: value.half() for name, value in golden("dit_small").state.items()}
    torch.save({"ema": halves, "model": halves}, tmp_path / "half.pt")
    assert "values in float16, entry 'ema' of 'ema', 'model'" in str(weights.identify(tmp_path / "half.pt"))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        found.family = "dit"


@pytest.mark.parametrize(
    "state",
    [
        {"conv1.weight": torch.zeros(2, 2)},
        {"time_embed.0.weight": torch.zeros(8, 2)},
        {"transformer.h.0.attn.weight": torch.zeros(2), "lm_head.weight": torch.zeros(2)},
    ],
)
def test_foreign_weights_are_named(state, tmp_path):
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError,
        match=rf"x.pt: {len(state)} tensors of an unknown kind of network \(first: {next(iter(state))}\)",
    ):
        diffkit.load_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("lost", ["middle_block.1.qkv.weight", "input_blocks.1.0.in_layers.2.weight", "out.2.weight"])
def test_incomplete_networks_are_refused(lost, tmp_path):
    stored = golden("unet_uncond")
    torch.save({name: value for name, value in stored.state.items() if name != lost}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt: "):
        diffkit.load_checkpoint(tmp_path / "x.pt", **stored.unseen, **TRAINED_SIMPLE)


TRAINED_SIMPLE = {
    "schedule": "cosine",
    "num_steps": 1000,
    "mean": "eps",
    "var": "fixed_large",
    "loss": "simple",
}


def test_a_unet_with_more_than_ours_is_refused(tmp_path):
    """Stable Diffusion's U-Net has the same names and transformer blocks where we have attention."""
    stored = golden("unet_uncond")
    torch.save(
        stored.state | {"input_blocks.1.2.transformer_blocks.0.attn2.to_q.weight": torch.zeros(2)}, tmp_path / "x.pt"
    )
    with pytest.raises(CheckpointError, match=r"x.pt: .* 1 unknown \(first: input_blocks.1.2.transformer_blocks"):
        diffkit.load_checkpoint(tmp_path / "x.pt", **stored.unseen, **TRAINED_SIMPLE)
