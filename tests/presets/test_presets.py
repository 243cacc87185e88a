"""Every published configuration, against the reference implementations' own counts and key layouts."""

from __future__ import annotations

import copy
import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest
import torch
from lanes import some_by_default

import diffkit
from diffkit import presets
from diffkit.errors import OptionError, UnknownComponentError
from diffkit.training.config import TrainConfig

HERE = Path(__file__).parent
PUBLISHED = json.loads((HERE / "published.json").read_text())["networks"]
COUNTS = json.loads((HERE.parent / "golden" / "nets" / "param_counts.json").read_text())
SYSTEMS = [name for name in presets.names() if not diffkit.preset(name).classifier]
COUNTED_AS = {
    "improved/imagenet64_uncond": "iddpm/imagenet64-uncond",
    "improved/imagenet64_cond": "iddpm/imagenet64-cond",
    "improved/cifar10_uncond": "iddpm/cifar10-uncond",
    "improved/lsun256_uncond": "iddpm/lsun-bedroom256",
    "improved/upsample256_cond": "iddpm/upsample64-256",
    "adm/64": "adm/imagenet64",
    "adm/256": "adm/imagenet256",
    "adm/512": "adm/imagenet512",
    "adm/classifier256": "adm/classifier256",
    "adm/classifier64_depth4": "adm/classifier64",
    **{
        f"dit/DiT-{size}/{patch}": f"dit/{size.lower()}{patch}-256"
        for size in ("S", "B", "L", "XL")
        for patch in (2, 4, 8)
    },
}


def layout(state):
    lines = [f"{key} {','.join(map(str, value.shape))}" for key, value in state.items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_all_published_networks_have_a_preset():
    assert set(presets.names()) == set(PUBLISHED)
    assert len(presets.names()) == 36


@pytest.mark.parametrize("name", ["adm/imagenet64-256", "adm/imagenet128-512"])
def test_published_pipelines_are_cascades(name):
    """Each stage has the size of the one before, by its name, and the systems chain, on the meta device."""
    found = presets.cascade(name)
    systems = [stage.compose(device="meta") for stage in found.stages]
    cascade = diffkit.Cascade(systems, noise=found.noise)
    small, large = (int(size) for size in name.removeprefix("adm/imagenet").split("-"))
    assert [system.data_shape for system in cascade.systems] == [(3, small, small), (3, large, large)]
    assert [system.settings.sampling for system in cascade.systems] == [{"steps": 250}] * 2
    with pytest.raises(UnknownComponentError, match="no cascade named 'adm/imagenet64-255'; did you mean"):
        presets.cascade("adm/imagenet64-255")


@pytest.mark.parametrize("name", some_by_default(presets.names(), 2))
def test_network_is_the_published_one(name):
    preset, published = diffkit.preset(name), PUBLISHED[name]
    network = preset.build(device="meta")
    state = network.state_dict()
    trained = sum(parameter.numel() for parameter in network.parameters())
    assert trained == preset.num_parameters == published.get("trainable", published["params"])
    assert sum(value.numel() for value in state.values()) == published["params"]
    assert len(state) == published["tensors"]
    assert layout(state) == published["layout"]


@pytest.mark.parametrize("counted", COUNTS)
def test_counts_agree_with_the_golden_ones(counted):
    published, golden = PUBLISHED[COUNTED_AS[counted]], COUNTS[counted]
    assert published["params"] == golden["params"]
    assert published["tensors"] == golden["tensors"]
    assert published.get("trainable") == golden.get("trainable_params")


@pytest.mark.parametrize("name", some_by_default(SYSTEMS, 2))
def test_composes_and_prints_the_flags(name):
    system = diffkit.preset(name).compose(device="meta")
    flags, options = PUBLISHED[name]["flags"], system.parts.backbone
    assert system.parts.var.extra_outputs == 1
    assert system.settings.rescale_time == ("uncond" in name and name.startswith("iddpm"))
    assert system.num_steps == (4000 if name.startswith("iddpm") and "lsun" not in name else 1000)
    if name.startswith("dit"):
        assert system.settings.bins is None
        assert not system.settings.clip_x_start
        return
    side = flags.get("image_size", flags.get("large_size", 256))
    assert system.data_shape == (3, side, side)
    assert options.dropout == flags.get("dropout", 0.0)
    assert options.num_head_channels == flags.get("num_head_channels")
    assert options.num_head_channels or options.num_heads == flags.get("num_heads", 4)
    assert (options.attention_order == "new") == flags.get("use_new_attention_order", False)
    sizes = [int(size) for size in flags.get("attention_resolutions", "16,8").split(",")]
    assert list(options.attention_resolutions) == sizes


@pytest.mark.parametrize("name", SYSTEMS)
def test_loss_is_the_published_one(name):
    system = diffkit.preset(name).compose(backbone=None)
    loss = system.parts.loss
    if name.endswith("-vlb"):
        assert system.parts.names["loss"] == "vlb"
        assert system.parts.names["timesteps"] == "loss_second_moment"
    elif system.settings.rescale_time:  # the two flags were set together in every published model
        assert (loss.vb_weight, loss.scale_by_steps) == (1e-3, True)
    else:
        assert (loss.vb_weight, loss.scale_by_steps) == (1.0, False)


@pytest.mark.parametrize("name", presets.names())
def test_recipes_are_keywords_of_training_and_sampling(name):
    preset = diffkit.preset(name)
    TrainConfig(**{"steps": 1} | dict(preset.training))
    assert set(preset.training) <= {field.name for field in attrs.fields(TrainConfig)}
    assert set(preset.sampling) <= {"steps"}
    assert preset.source
    assert preset.license
    assert (preset.file is None) == (preset.url is None)


def test_files_are_named_once():
    found = [diffkit.preset(name).file for name in presets.names()]
    published = [file for file in found if file]
    assert len(published) == len(set(published)) == 25


def test_overrides_reach_single_options():
    preset = diffkit.preset("adm/imagenet64")
    system = preset.compose(device="meta", backbone={"num_classes": 10, "checkpoint": True}, sampler="ddim")
    recipe = system.parts.backbone
    assert (recipe.num_classes, recipe.checkpoint, recipe.channels) == (10, True, 192)
    assert system.parts.names["sampler"] == "ddim"
    assert preset.composition["backbone"]["num_classes"] == 1000
    assert preset.keywords(loss={"name": "vlb"})["loss"] == {"name": "vlb"}
    assert preset.keywords(loss={"vb_weight": 0.5})["loss"] == {
        "name": "hybrid",
        "vb_weight": 0.5,
        "scale_by_steps": False,
    }


def test_classifier_builds_and_is_not_a_system():
    preset = diffkit.preset("adm/classifier64")
    network = preset.build(device="meta", num_classes=7, num_res_blocks=1)
    assert network(torch.empty(2, 3, 64, 64, device="meta"), torch.empty(2, device="meta")).shape == (2, 7)
    with pytest.raises(OptionError, match=r"'adm/classifier64' is a classifier, .* build\(\) makes its network"):
        preset.compose()


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownComponentError, match="no preset named 'iddpm/cifar10'; did you mean 'iddpm/cifar10-unc"):
        diffkit.preset("iddpm/cifar10")


def test_a_preset_cannot_be_changed():
    preset = diffkit.preset("dit/s2-256")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        preset.name = "mine"
    with pytest.raises(TypeError):
        preset.composition["num_steps"] = 7
    with pytest.raises(TypeError):
        preset.composition["backbone"]["size"] = "XL"
    assert hash(preset) == hash(diffkit.preset("dit/s2-256"))


def test_reads_well():
    text = str(diffkit.preset("iddpm/cifar10-uncond"))
    assert text.startswith("iddpm/cifar10-uncond: CIFAR-10")
    for part in ("'hybrid' (vb_weight=0.001, scale_by_steps=True)", "52,546,438", "cifar10_uncond_50M_500K.pt"):
        assert part in text
    assert all(len(row) == 3 for row in presets.table())


@pytest.mark.parametrize("family", presets.FAMILIES)
def test_files_hold_known_keys_only(family):
    data = tomllib.loads((Path(presets.__file__).parent / f"{family}.toml").read_text(encoding="utf-8"))
    assert set(data) - {"cascades"} == {"family", "common", "presets"}
    assert all(set(entry) == {"about", "stages"} for entry in data.get("cascades", {}).values())
    assert set(data["family"]) == {"source", "license", "url"}
    known = {"like", "about", "file", "num_parameters", "training", "sampling", "compose", "classifier", "notes"}
    for entry in [data["common"], *data["presets"].values()]:
        assert set(entry) <= known


def test_values_are_read_only_copies_of_the_files():
    def walk(value):
        if isinstance(value, Mapping):
            assert not isinstance(value, dict)
            for each in value.values():
                walk(each)
        assert not isinstance(value, list)
        assert value != "none"

    for name in presets.names():
        walk(diffkit.preset(name).composition)
    assert copy.deepcopy(dict(diffkit.preset("adm/imagenet128").composition["backbone"]))["num_head_channels"] is None


def test_the_guide_names_every_published_file_with_its_preset():
    guide = (HERE.parents[1] / "docs" / "weights.md").read_text(encoding="utf-8")
    for name in presets.names():
        preset = diffkit.preset(name)
        if preset.file:
            assert f"| `{preset.file}` | `{name}` | {preset.about} |" in guide
