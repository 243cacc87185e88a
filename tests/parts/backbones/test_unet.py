from functools import partial
from types import SimpleNamespace

import pytest
import torch
from backbone_support import close, golden, inputs, param_counts, randomize, size
from hypothesis import given, settings
from hypothesis import strategies as st

from diffkit.errors import OptionError
from diffkit.parts.backbones._layout import default_channel_mult
from diffkit.parts.backbones.unet import UNet
from diffkit.registry import registry

Tiny = partial(UNet, channels=8, groups=4, num_res_blocks=1, num_heads=2)
NAMES = ["unet_uncond", "unet_cond_sigma", "unet_deep_ds4", "unet_superres"]
NAMES += ["adm_legacyattn_avgpool", "adm_updown_newattn"]
CONFIGURATIONS = [name for name in param_counts() if not name.startswith("dit") and "classifier" not in name]


def _from_golden(name):
    stored = golden(name)
    low_res_channels = stored.arrays["in__low_res"].shape[1] if name == "unet_superres" else 0
    recipe = UNet(**stored.options(), low_res_channels=low_res_channels)
    return stored, stored.load(recipe.build(stored.shape, stored.about["kwargs"]["out_channels"]))


def _random(recipe, shape, out_channels=None):
    return randomize(recipe.build(shape, out_channels or shape[0]))


def _problem(recipe, shape):
    with pytest.raises(OptionError) as caught:
        recipe.build(shape, shape[0])
    return str(caught.value)


# --- against the reference


@pytest.mark.parametrize("name", NAMES)
def test_matches_reference(name):
    stored, network = _from_golden(name)
    stored.check(network)


@pytest.mark.parametrize("name", [name for name in NAMES if "feat_middle" in golden(name).arrays])
def test_features_match_reference(name):
    stored, network = _from_golden(name)
    features = network.features(**stored.arguments)
    close(features.middle, stored.arrays["feat_middle"])
    # Means of hundreds of values of order 1 that nearly cancel: compare on the scale of the values.
    for got, key in ((features.down, "feat_down_mean"), (features.up, "feat_up_mean")):
        assert [h.mean().item() for h in got] == pytest.approx(stored.arrays[key].tolist(), rel=1e-4, abs=1e-5)


def test_features_are_what_forward_passes_through():
    stored, network = _from_golden("unet_superres")
    features = network.features(**stored.arguments)
    close(network.out(features.up[-1]), stored.arrays["out"])
    assert len(features.down) == len(features.up) == 4


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_size_of_published_configurations(name):
    about = param_counts()[name]
    flags = about["flags"]
    side = flags.get("image_size", 256)
    resolutions = flags.get("attention_resolutions", "16,8")
    recipe = UNet(
        channels=flags["num_channels"],
        num_res_blocks=flags["num_res_blocks"],
        attention_resolutions=[int(size) for size in resolutions.split(",")],
        num_heads=flags.get("num_heads", 4),
        num_head_channels=flags.get("num_head_channels"),
        attention_order="new" if flags.get("use_new_attention_order") else "legacy",
        scale_shift_norm=flags.get("use_scale_shift_norm", True),
        resblock_updown=flags.get("resblock_updown", False),
        dropout=flags.get("dropout", 0.0),
        num_classes=1000 if flags.get("class_cond") else None,
        low_res_channels=3 if "upsample" in name else 0,
    )
    with torch.device("meta"):
        network = recipe.build((3, side, side), 6)
    keys = list(network.state_dict())
    assert size(network) == about["params"]
    assert len(keys) == about["tensors"]
    assert keys[:2] == about["first_keys"]
    assert keys[-2:] == about["last_keys"]


def test_channels_in_counts_the_small_image():
    assert UNet().channels_in((3, 8, 8)) == 3
    assert UNet(low_res_channels=2).channels_in((3, 8, 8)) == 5


def test_fresh_network_returns_zero_and_learns_in_the_last_layer_first():
    network = Tiny().build((3, 8, 8), 6)
    x, time = inputs((3, 8, 8))
    out = network(x, time)
    assert torch.equal(out, torch.zeros(2, 6, 8, 8))
    (out - 1).square().mean().backward()
    assert network.out[2].weight.grad.abs().max() > 0


def test_what_starts_at_zero():
    """The last convolution of every residual branch and of the network, and no other weight."""
    state = UNet(channels=8, groups=8, channel_mult=(1, 2), num_res_blocks=1).build((3, 8, 8), 3).state_dict()
    zero = {key.rsplit(".", 1)[0] for key, value in state.items() if key.endswith("weight") and not value.any()}
    branches = {key.rsplit(".", 1)[0] for key in state if "out_layers.3" in key or "proj_out" in key}
    assert zero == branches | {"out.2"}


# --- shapes


@pytest.mark.parametrize(
    "shape",
    [(1, 16), (5, 8), (2, 8, 12), (4, 16, 8), (2, 3, 8, 8), (1, 1, 8, 4), (3, 5, 5), (1, 1, 1), (1, 1)],
)
def test_data_of_one_two_and_three_axes(shape):
    network = _random(Tiny(), shape, 7)
    x, time = inputs(shape, batch=1)
    out = network(x, time)
    assert out.shape == (1, 7, *shape[1:])
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_only_the_inner_two_of_three_axes_are_halved():
    network = Tiny(channel_mult=(1, 1, 1)).build((1, 3, 8, 12), 1)
    x, time = inputs((1, 3, 8, 12))
    assert network.features(x, time).middle.shape == (2, 8, 3, 2, 3)


@pytest.mark.parametrize("updown", [False, True])
def test_every_way_of_resampling_in_three_axes(updown):
    network = _random(Tiny(resblock_updown=updown, channel_mult=(1, 2)), (1, 3, 8, 4))
    x, time = inputs((1, 3, 8, 4))
    assert network(x, time).shape == x.shape


@given(sides=st.lists(st.integers(1, 600), min_size=1, max_size=3).map(tuple))
@settings(max_examples=200, derandomize=True)
def test_defaults_fit_any_image(sides):
    recipe = UNet()
    layout = recipe._layout((3, *sides))
    assert layout.problems() == ()
    assert all(size >= 4 for size in layout.sizes[1:])


@pytest.mark.parametrize(
    ("sides", "mult"),
    [
        ((4, 4), (1,)),
        ((8, 8), (1, 2)),
        ((16, 16), (1, 2, 2)),
        ((28, 28), (1, 2, 2)),
        ((33, 33), (1,)),
        ((32, 32), (1, 2, 2, 2)),
        ((64, 32), (1, 2, 2, 2)),
        ((48, 48), (1, 2, 2, 2)),
        ((64, 64), (1, 2, 3, 4)),
        ((128, 128), (1, 1, 2, 3, 4)),
        ((256, 256), (1, 1, 2, 2, 4, 4)),
        ((512, 512), (0.5, 1, 1, 2, 2, 4, 4)),
        ((1024, 1024), (0.5, 1, 1, 2, 2, 4, 4)),
        ((64,), (1, 2, 3, 4)),
    ],
)
def test_default_widths(sides, mult):
    assert default_channel_mult(sides) == mult


@pytest.mark.parametrize(
    ("shape", "attention"),
    [
        ((3, 32, 32), (False, True, True, False)),
        ((3, 64, 64), (False, False, True, True)),
        ((3, 256, 256), (False, False, False, False, True, True)),
        ((1, 28, 28), (False, True, False)),
        ((3, 8, 8), (True, False)),
        ((3, 4, 4), (False,)),
    ],
)
def test_default_attention_is_at_16_and_8(shape, attention):
    assert UNet()._layout(shape).attention == attention


def test_wider_first_level():
    network = _random(Tiny(channel_mult=(2, 1)), (3, 8, 8))
    x, time = inputs((3, 8, 8))
    assert network(x, time).shape == x.shape


def test_fractional_widths():
    assert UNet(channels=24, channel_mult=(0.5, 1.5), groups=12)._layout((3, 8, 8)).widths == (12, 36)


# --- options

OPTIONS = {
    "num_res_blocks": 2,
    "channel_mult": (1, 2, 2),
    "attention_resolutions": (4,),
    "num_head_channels": 4,
    "scale_shift_norm": False,
    "resblock_updown": True,
    "num_classes": 3,
    "low_res_channels": 1,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_option_changes_the_network(option):
    shape = (3, 8, 8)
    plain, changed = Tiny().build(shape, 3), Tiny(**{option: OPTIONS[option]}).build(shape, 3)
    if option != "num_head_channels":
        assert size(plain) != size(changed)
    condition = {"num_classes": {"y": torch.tensor([2, 0])}, "low_res_channels": {"low_res": torch.ones(2, 1, 4, 4)}}
    x, time = inputs(shape)
    assert randomize(changed)(x, time, **condition.get(option, {})).shape == x.shape


@pytest.mark.parametrize(
    "options",
    [{"num_heads": 4}, {"num_head_channels": 8}, {"num_heads_upsample": 1}, {"attention_order": "new"}, {"groups": 2}],
)
def test_option_changes_the_result_for_the_same_weights(options):
    shape = (3, 8, 8)
    x, time = inputs(shape)
    plain, changed = Tiny().build(shape, 3), Tiny(**options).build(shape, 3)
    randomize(plain)
    changed.load_state_dict(plain.state_dict())
    assert (plain(x, time) - changed(x, time)).abs().max() > 1e-3


def test_num_heads_upsample_is_for_the_way_up_only():
    shape = (3, 8, 8)
    x, time = inputs(shape)
    plain, changed = randomize(Tiny().build(shape, 3)), Tiny(num_heads_upsample=1).build(shape, 3)
    changed.load_state_dict(plain.state_dict())
    assert torch.equal(plain.features(x, time).middle, changed.features(x, time).middle)


def test_average_resampling_has_no_weights_and_preserves_the_mean():
    network = Tiny(conv_resample=False).build((3, 8, 8), 3)
    assert not any(key.endswith(("op.weight", "conv.weight")) for key in network.state_dict())
    x = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    smaller = network.input_blocks[2][0](x)
    assert smaller.shape == (2, 8, 4, 4)
    assert torch.allclose(smaller.mean((2, 3)), x.mean((2, 3)), atol=1e-6)


def test_dropout_acts_in_training_only():
    network = _random(Tiny(dropout=0.5), (3, 8, 8))
    x, time = inputs((3, 8, 8))
    assert not torch.equal(network(x, time), network(x, time))
    network.eval()
    assert torch.equal(network(x, time), network(x, time))


# --- conditions


def test_null_class_is_one_row_more():
    assert Tiny(num_classes=10).build((3, 8, 8), 3).label_emb.num_embeddings == 10
    network = _random(Tiny(num_classes=10, null_class=True), (3, 8, 8))
    assert network.label_emb.num_embeddings == 11
    x, time = inputs((3, 8, 8))
    assert network(x, time, y=torch.tensor([10, 10])).shape == x.shape


def test_label_errors():
    x, time = inputs((3, 8, 8))
    plain, classes = Tiny().build((3, 8, 8), 3), Tiny(num_classes=10).build((3, 8, 8), 3)
    with pytest.raises(OptionError, match=r"y was given, but the network has no classes; leave it out, or build with"):
        plain(x, time, y=torch.tensor([1, 2]))
    with pytest.raises(OptionError, match=r"y is missing, but the network has 10 labels; pass y, \(B,\) integers"):
        classes(x, time)
    with pytest.raises(OptionError, match=r"y must be integers of shape \(2,\), got float32 of shape \(2,\)"):
        classes(x, time, y=torch.tensor([1.0, 2.0]))
    with pytest.raises(OptionError, match=r"y must be integers of shape \(2,\), got int64 of shape \(3,\)"):
        classes(x, time, y=torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("shape", [(2, 8), (2, 8, 12), (2, 2, 8, 8)])
def test_low_res_of_any_size_and_axes(shape):
    network = _random(Tiny(low_res_channels=1), shape)
    x, time = inputs(shape)
    small = torch.randn(2, 1, *(2 for _ in shape[1:]), generator=torch.Generator().manual_seed(0))
    first, second = network(x, time, low_res=small), network(x, time, low_res=-small)
    assert first.shape == x.shape
    assert not torch.allclose(first, second)


def test_low_res_takes_the_dtype_of_the_data():
    network = _random(Tiny(low_res_channels=1), (2, 8, 8)).bfloat16()
    x, time = inputs((2, 8, 8))
    assert network(x.bfloat16(), time, low_res=torch.ones(2, 1, 4, 4)).dtype == torch.bfloat16


def test_low_res_errors():
    x, time = inputs((3, 8, 8))
    plain, upsampler = Tiny().build((3, 8, 8), 3), Tiny(low_res_channels=3).build((3, 8, 8), 3)
    with pytest.raises(OptionError, match=r"low_res was given, but the network reads none; build with low_res_cha"):
        plain(x, time, low_res=x)
    with pytest.raises(OptionError, match=r"low_res is missing, but the network reads 3 channels of it; pass low_res"):
        upsampler(x, time)
    with pytest.raises(OptionError, match=r"low_res must have 4 axes and 3 channels, got \(2, 1, 4, 4\)"):
        upsampler(x, time, low_res=torch.zeros(2, 1, 4, 4))
    with pytest.raises(OptionError, match=r"low_res must have 4 axes and 3 channels, got \(2, 3, 4\)"):
        upsampler(x, time, low_res=torch.zeros(2, 3, 4))
    for rows in (1, 3):
        with pytest.raises(OptionError, match=f"low_res must have one image for each of 2 examples, got {rows}"):
            upsampler(x, time, low_res=torch.zeros(rows, 3, 4, 4))


# --- what does not fit


def test_axes():
    wanted = "has {} spatial axes, but a U-Net needs 1, 2 or 3; backbone 'mlp' takes data of any shape"
    assert _problem(UNet(), (2,)) == f"data_shape (2,) {wanted.format(0)}"
    assert _problem(UNet(), (1, 2, 2, 2, 2)) == f"data_shape (1, 2, 2, 2, 2) {wanted.format(4)}"


def test_sides():
    assert _problem(UNet(channel_mult=(1, 2, 2, 2)), (3, 28, 28)) == (
        "sides 28x28 cannot be halved 3 times, as 4 levels need; take sides that are multiples of 8, or fewer levels; "
        "use channel_mult=(1, 2, 2)"
    )
    assert _problem(UNet(channel_mult=(1, 2)), (3, 9)).endswith("use channel_mult=(1,)")
    assert _problem(UNet(channel_mult=()), (3, 8, 8)) == "channel_mult must name at least one level, got ()"


def test_outer_axis_of_three_may_have_any_size():
    assert UNet(channel_mult=(1, 2))._layout((3, 5, 8, 8)).problems() == ()


def test_groups():
    assert _problem(UNet(channels=48, channel_mult=(1, 2)), (3, 8, 8)) == (
        "groups=32 does not divide every level's width (48, 96); use groups=48"
    )
    assert "(64, 38)" in _problem(UNet(channels=64, channel_mult=(1, 0.6)), (3, 8, 8))


def test_attention_resolutions():
    assert _problem(UNet(attention_resolutions=(16, 5)), (3, 32, 32)) == (
        "attention_resolutions=(16, 5) names the size 5 of no level; the levels of sides 32x32 have sizes 32, 16, 8, 4"
    )
    assert UNet(attention_resolutions=())._layout((3, 8, 8)).attention == (False, False)


def test_heads():
    assert _problem(UNet(num_heads=3), (3, 32, 32)) == (
        "num_heads=3 does not divide the width of every level with attention (256); use a divisor of 256"
    )
    assert _problem(UNet(num_head_channels=48), (3, 32, 32)).startswith("num_head_channels=48 does not divide")
    assert _problem(UNet(num_heads_upsample=3), (3, 32, 32)).startswith("num_heads_upsample=3 does not divide")


def test_all_problems_are_told_at_once():
    text = _problem(UNet(channels=48, num_heads=5, attention_resolutions=(7,)), (3, 32, 32))
    assert len(text.splitlines()) == 3


def test_problems_are_those_of_the_data_shape():
    composition = SimpleNamespace(data_shape=(2,), label="{} 'unet'".format)
    (problem,) = UNet().problems(composition)
    assert problem.startswith("backbone 'unet': data_shape (2,) has 0 spatial axes")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"null_class": True},
            "null_class=True has no effect without classes; use null_class=False or num_classes=...",
        ),
        (
            {"num_head_channels": 4, "num_heads_upsample": 2},
            "num_heads_upsample=2 has no effect with num_head_channels",
        ),
        ({"conv_resample": False, "resblock_updown": True}, "resblock_updown=True has no effect without conv_resample"),
        ({"channels": 0}, "channels must be >= 1, got 0"),
        ({"channels": 1.5}, "channels must be an integer, got 1.5"),
        ({"num_res_blocks": 0}, "num_res_blocks must be >= 1 and <= 1000, got 0"),
        ({"channel_mult": (1, 0)}, "each of channel_mult must be > 0, got 0"),
        ({"channel_mult": "1,2"}, "channel_mult must be a list of numbers, got '1,2'"),
        ({"attention_resolutions": (0,)}, "each of attention_resolutions must be >= 1, got 0"),
        ({"num_heads": 0}, "num_heads must be >= 1, got 0"),
        ({"num_head_channels": 0}, "num_head_channels must be >= 1, got 0"),
        ({"num_heads_upsample": 0}, "num_heads_upsample must be >= 1, got 0"),
        ({"attention_order": "old"}, "attention_order must be one of 'legacy', 'new', got 'old'"),
        ({"scale_shift_norm": 1}, "scale_shift_norm must be True or False, got 1"),
        ({"dropout": 1.0}, "dropout must be >= 0 and < 1, got 1.0"),
        ({"num_classes": -1}, "num_classes must be >= 0, got -1"),
        ({"low_res_channels": -1}, "low_res_channels must be >= 0, got -1"),
        ({"groups": 0}, "groups must be >= 1, got 0"),
    ],
)
def test_option_errors(options, text):
    with pytest.raises(OptionError) as caught:
        UNet(**options)
    assert str(caught.value).startswith(text)


def test_is_registered():
    assert registry("backbone").get("unet") is UNet
