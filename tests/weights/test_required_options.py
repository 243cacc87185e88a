"""Options that shapes cannot show are required, and those that contradict them are named, option by option."""

from __future__ import annotations

import pytest
import torch
from lanes import some_by_default
from weights_support import FIXED, TRAINED, golden, written

import diffkit
from diffkit import weights
from diffkit.errors import CheckpointError, OptionError, UnknownComponentError

COND = golden("unet_cond_sigma").unseen


@pytest.fixture
def unet(tmp_path):
    return written(tmp_path, "unet_cond_sigma")


def refused(error, path, **options):
    with pytest.raises(error) as caught:
        diffkit.load_checkpoint(path, **options)
    return str(caught.value)


def meta_file(tmp_path, name, **overrides):
    """A file of the shapes of a published network, with hardly any bytes in it."""
    state = diffkit.preset(name).build(device="meta", **overrides).state_dict()
    path = tmp_path / "file.pt"
    torch.save({key: torch.zeros(1).expand(value.shape) for key, value in state.items()}, path)
    return path


# --- missing


def test_all_missing_options_are_listed_at_once_with_published_values(tmp_path):
    text = refused(OptionError, meta_file(tmp_path, "adm/imagenet64"))
    names = [line.split()[0] for line in text.splitlines()[1:-1]]
    assert names == [
        *("data_shape", "num_heads", "attention_order"),
        *("schedule", "num_steps", "mean", "loss", "rescale_time", "null_class"),
    ]
    for published in (
        "data_shape=(3, 64, 64)",
        "attention_order='new'",
        "num_head_channels=64",
        "schedule='cosine'",
        "num_steps=1000",
        "rescale_time=False",
        "loss=('hybrid', {'vb_weight': 1.0, 'scale_by_steps': False})",
    ):
        assert f"(published: {published})" in text
    assert text.endswith("a preset of these shapes gives all options; use preset='adm/imagenet64'")


def test_presets_that_differ_in_what_is_missing_are_all_named(tmp_path):
    text = refused(OptionError, meta_file(tmp_path, "iddpm/cifar10-uncond"))
    assert "preset='iddpm/cifar10-uncond' or preset='iddpm/cifar10-uncond-vlb'" in text
    assert "(published: loss=('hybrid', {'vb_weight': 0.001, 'scale_by_steps': True}) or loss='vlb')" in text


def test_the_name_of_a_published_file_puts_its_preset_first(tmp_path):
    path = meta_file(tmp_path, "iddpm/cifar10-uncond").rename(tmp_path / "cifar10_uncond_vlb_50M_500K.pt")
    assert "preset='iddpm/cifar10-uncond-vlb' or preset='iddpm/cifar10-uncond'" in refused(OptionError, path)


@pytest.mark.parametrize("name", ["data_shape", "attention_order", "num_heads", *TRAINED])
def test_each_missing_option_is_listed_alone(name, unet):
    options = {key: value for key, value in (COND | TRAINED).items() if key != name} | {"null_class": False}
    lines = refused(OptionError, unet, **options).splitlines()
    assert len(lines) == 3
    assert lines[1].split()[0] == name


def test_the_order_of_attention_is_never_guessed_unless_there_is_one_head(tmp_path, unet):
    order_left_out = {key: value for key, value in (COND | TRAINED).items() if key != "attention_order"}
    assert "attention_order" in refused(OptionError, unet, **order_left_out)
    one = order_left_out | {"num_heads": 1, "num_heads_upsample": 1}
    assert diffkit.load_checkpoint(unet, **one).parts.backbone.num_heads == 1
    assert "attention_order" in refused(OptionError, unet, **one | {"num_heads_upsample": 2})
    assert "attention_order" in refused(OptionError, unet, **one | {"num_head_channels": 8})


def test_rescaled_time_is_the_same_at_1000_steps(unet):
    options = {key: value for key, value in (COND | TRAINED).items() if key != "rescale_time"}
    assert "rescale_time" in refused(OptionError, unet, **options)
    system = diffkit.load_checkpoint(unet, **options | {"num_steps": 1000})
    assert not system.settings.rescale_time


def test_a_fixed_variance_must_be_named(tmp_path):
    path, unseen = written(tmp_path, "unet_uncond"), golden("unet_uncond").unseen
    assert "'fixed_small' (sigma_small)" in refused(OptionError, path, **unseen, **TRAINED)
    system = diffkit.load_checkpoint(path, **unseen, **FIXED | {"var": "fixed_small"})
    assert system.parts.names["var"] == "fixed_small"


def test_latents_need_bins(tmp_path):
    text = refused(OptionError, written(tmp_path, "dit_small"))
    assert [line.split()[0] for line in text.splitlines()[1:-1]] == ["heads", *TRAINED, "bins"]
    assert "bins=None" in text


def test_widths_that_32_groups_do_not_divide_must_name_theirs(tmp_path):
    network = diffkit.compose(
        backbone=("unet", {"channels": 8, "groups": 4, "channel_mult": (1,), "num_res_blocks": 1}), data_shape=(3, 8, 8)
    )
    path = weights.export(network.network, tmp_path / "x.pt")
    options = FIXED | {"data_shape": (3, 8, 8), "num_heads": 4, "attention_order": "legacy"}
    assert refused(OptionError, path, **options).splitlines()[1].split()[0] == "groups"
    assert diffkit.load_checkpoint(path, **options, groups=4).parts.backbone.groups == 4


# --- contradicted


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"channels": 64}, "channels is 32 in the file, 64 given"),
        ({"num_res_blocks": 2}, "num_res_blocks is 1 in the file, 2 given"),
        ({"channel_mult": [1, 2]}, "channel_mult is (1, 1) in the file, (1, 2) given"),
        ({"scale_shift_norm": False}, "scale_shift_norm is True in the file, False given"),
        ({"resblock_updown": True}, "resblock_updown is False in the file, True given"),
        ({"conv_resample": False}, "conv_resample is True in the file, False given"),
        ({"num_classes": 1000}, "num_classes is 10 in the file, 1000 given"),
        ({"num_classes": None}, "num_classes is 10 in the file, None given"),
        ({"num_classes": 10, "null_class": True}, "num_classes is 9 and one label for no class in the file, 10 given"),
        ({"attention_resolutions": (2,)}, "attention_resolutions is (8, 4) in the file, (2,) given"),
        ({"low_res_channels": 3}, "low_res_channels is 0 in the file, 3 given"),
        ({"data_shape": (3, 8)}, "data_shape must have 3 sizes for the file's 2 spatial axes, got (3, 8)"),
        ({"data_shape": (4, 8, 8)}, "data_shape has 4 channels, but the file's network reads 3 and returns 6"),
        ({"var": "fixed_large"}, "var is 'fixed_large', but the file has a learned variance: it returns 6 channels"),
    ],
)
def test_a_contradiction_names_the_option(options, sentence, unet):
    text = refused(CheckpointError, unet, **(COND | TRAINED | options))
    assert text.splitlines()[:2] == [f"{unet} does not fit the options given:", f"  {sentence}"]
    assert len(text.splitlines()) == 3


def test_all_contradictions_are_named_at_once(unet):
    text = refused(CheckpointError, unet, preset="iddpm/imagenet64-cond")
    assert text.splitlines()[0] == f"{unet} does not fit preset 'iddpm/imagenet64-cond':"
    for name in ("channels", "num_res_blocks", "channel_mult", "num_classes"):
        assert f"  {name} is " in text


@pytest.mark.parametrize(
    ("file", "preset", "sentences"),
    some_by_default(
        [
            ("iddpm/imagenet64-cond", "iddpm/imagenet64-uncond", ["channels is 192", "num_classes is 1000"]),
            (
                "iddpm/imagenet64-uncond",
                "iddpm/cifar10-uncond",
                ["channel_mult is (1, 2, 3, 4)", "attention_resolutions"],
            ),
            ("adm/imagenet256", "adm/imagenet256-uncond", ["num_classes is 1000 in the file, None given"]),
            ("adm/imagenet256-uncond", "adm/imagenet256", ["num_classes is None in the file, 1000 given"]),
            (
                "adm/upsample64-256",
                "adm/imagenet256",
                ["channels is 192", "low_res_channels is 3 in the file, 0 given"],
            ),
            ("iddpm/upsample64-256", "adm/upsample64-256", ["resblock_updown is False in the file, True given"]),
            (
                "adm/upsample128-512",
                "adm/upsample64-256",
                ["attention_resolutions is (16, 8) in the file, (32, 16, 8)"],
            ),
            ("dit/xl2-256", "dit/l2-256", ["size is 'XL' in the file, 'L' given"]),
            ("dit/xl2-256", "dit/xl2-512", ["data_shape is (4, 32, 32) in the file, (4, 64, 64) given"]),
            ("dit/xl4-256", "dit/xl2-256", ["patch is 4 in the file, 2 given"]),
        ],
        3,
    ),
)
def test_a_wrong_preset_is_reported_by_its_options(file, preset, sentences):
    from diffkit.weights._infer_options import infer_options
    from diffkit.weights._known_options import known_options
    from diffkit.weights._option_conflicts import option_conflicts

    state = diffkit.preset(file).build(device="meta").state_dict()
    found = infer_options({name: tuple(value.shape) for name, value in state.items()})
    text = "\n".join(option_conflicts(found, known_options(found.family, preset, {})))
    for sentence in sentences:
        assert sentence in text


def test_what_fits_is_suggested_instead(tmp_path):
    text = refused(CheckpointError, meta_file(tmp_path, "adm/imagenet64"), preset="adm/imagenet128")
    assert text.endswith("preset='adm/imagenet64'")


def test_classes_with_a_label_for_none(tmp_path, unet):
    system = diffkit.load_checkpoint(unet, **COND, **TRAINED, num_classes=9, null_class=True)
    assert (system.parts.backbone.num_classes, system.parts.backbone.null_class) == (9, True)


@pytest.mark.slow
def test_a_preset_for_another_size_of_image_attends_on_the_same_levels(tmp_path):
    path = meta_file(tmp_path, "iddpm/cifar10-uncond")
    system = diffkit.load_checkpoint(path, preset="iddpm/cifar10-uncond", data_shape=[3, 64, 64], dropout=0.0)
    assert system.parts.backbone.attention_resolutions == (32, 16)
    assert system.parts.backbone.dropout == 0


def test_heads_that_are_given_win_over_the_presets_channels_per_head(tmp_path):
    preset = "adm/classifier64"
    small = {"channels": 64, "num_res_blocks": 1}
    path = meta_file(tmp_path, preset, **small)
    network = weights.load_classifier(path, preset=preset, num_heads=2, **small)
    assert network.middle_block[1].heads == 2


def test_a_preset_of_another_family_or_name(tmp_path, unet):
    assert (
        refused(CheckpointError, unet, preset="dit/s2-256") == "the file is a U-Net, but preset 'dit/s2-256' is a DiT"
    )
    assert "did you mean 'dit/s2-256'?" in refused(UnknownComponentError, unet, preset="dit/s2_256")
    with pytest.raises(CheckpointError, match="the file is a classifier, but preset 'adm/imagenet64' is a U-Net"):
        weights.load_classifier(written(tmp_path, "classifier_adaptive_pool"), preset="adm/imagenet64")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chanels": 3}, "a U-Net has no option 'chanels'; did you mean 'channels'?"),
        ({"patch": 2}, "a U-Net has no option 'patch'"),
        ({"backbone": "unet"}, "a U-Net has no option 'backbone'"),
    ],
)
def test_unknown_options_are_refused(options, message, unet):
    assert refused(OptionError, unet, **options).startswith(message)


def test_contradicted_classifiers(tmp_path):
    path, unseen = written(tmp_path, "classifier_attention_pool"), golden("classifier_attention_pool").unseen
    for options, sentence in (
        ({"num_classes": 3}, "num_classes is 10 in the file, 3 given"),
        ({"pool": "spatial"}, "pool is 'attention' in the file, 'spatial' given"),
        ({"data_shape": (3, 16, 16)}, "data_shape is (3, 8, 8) in the file, (3, 16, 16) given"),
        ({"data_shape": (1, 8, 8)}, "data_shape has 3 channels in the file, 1 given"),
    ):
        with pytest.raises(CheckpointError) as caught:
            weights.load_classifier(path, **unseen | options)
        assert caught.value.args[0].splitlines()[1] == f"  {sentence}"
    with pytest.raises(OptionError) as missing:
        weights.load_classifier(path)
    assert [line.split()[0] for line in str(missing.value).splitlines()[1:-1]] == ["num_heads", "attention_order"]


def test_a_transformer_of_another_grid_is_refused(tmp_path):
    path = written(tmp_path, "dit_small")
    options = TRAINED | {"heads": 4, "bins": None}
    assert "data_shape is (4, 8, 8) in the file, (4, 4, 16) given" in refused(
        CheckpointError, path, **options, data_shape=(4, 4, 16)
    )
    state = torch.load(path, weights_only=True)
    torch.save(state | {"pos_embed": torch.randn_like(state["pos_embed"])}, path)
    assert "data_shape" in refused(OptionError, path, **options)
    assert "data_shape (4, 8, 16) has 32 patches, the file has 16" in refused(
        CheckpointError, path, **options, data_shape=(4, 8, 16)
    )
