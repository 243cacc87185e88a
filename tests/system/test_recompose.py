"""One part of a system changed, and everything else as it was, the network and its weights among it."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
import torch
from lanes import some_by_default
from networks import Tiny
from torch import nn

import diffkit
from diffkit.errors import CompositionError, OptionError
from diffkit.parts.backbones.unet import UNet
from diffkit.parts.losses.huber import Huber
from diffkit.protocols import Backbone

SHAPE = (3, 8, 8)


def make(**more) -> diffkit.System:
    settings = dict(
        schedule=("cosine", {"s": 0.01}),
        mean="v",
        sampler=("ddim", {"eta": 0.5}),
        backbone=("mlp", {"hidden": 8, "depth": 1}),
        data_shape=SHAPE,
        num_steps=30,
        train_spacing=[1, 9, 30],
        rescale_time=False,
        bins=17,
    )
    return diffkit.compose(**settings | more)


def test_one_part_changes_and_the_rest_stays():
    system = make()
    changed = diffkit.recompose(system, loss=("huber", {"delta": 0.25}))
    assert changed.parts.loss == Huber(0.25) and changed.parts.names["loss"] == "huber"
    assert changed.network is system.network and changed.parts.backbone == system.parts.backbone
    assert changed.settings == system.settings
    assert system.parts.names["loss"] == "simple"
    wanted = make(loss=("huber", {"delta": 0.25}))
    assert changed.spec() == wanted.spec()
    x, generator = torch.zeros(2, *SHAPE), lambda: torch.Generator().manual_seed(0)
    found = changed(x, generator=generator(), model=lambda x, time: 0.3 * x)["loss"]
    torch.testing.assert_close(found, wanted(x, generator=generator(), model=lambda x, time: 0.3 * x)["loss"])


@pytest.mark.parametrize("time_argument", [None, "when"])
def test_a_network_of_your_own_stays(time_argument):
    class Own(Tiny):
        def forward(self, x, when):
            return super().forward(x, when)

    system = make(backbone=Own(3, 3), time_argument=time_argument)
    changed = diffkit.recompose(system, sampler="heun", num_steps=40, train_spacing=None)
    assert next(changed.parameters()) is next(system.parameters()) and changed.table.num_steps == 40
    assert changed.sample(2, steps=3, progress=False).shape == (2, *SHAPE)
    other = diffkit.recompose(system, backbone=("mlp", {"hidden": 8}))
    assert other.parts.backbone is not None and other.settings.time_argument is None


def test_the_mode_stays():
    for system in (make(), make(backbone=Tiny(3, 3), time_argument="time")):
        assert diffkit.recompose(system, sampler="heun").training
        changed = diffkit.recompose(system.eval(), sampler="heun")
        assert not any(module.training for module in changed.modules())


def test_without_a_network():
    assert diffkit.recompose(make(backbone=None), mean="x_start").network is None


def test_a_network_that_does_not_fit_is_named():
    learned = dict(var="learned_range", loss="hybrid")
    with pytest.raises(
        CompositionError, match=r"2 of its weights would have another shape .*give recompose a backbone"
    ):
        diffkit.recompose(make(), **learned)
    with pytest.raises(CompositionError, match="give it 6 output channels"):
        diffkit.recompose(make(backbone=Tiny(3, 3)), **learned)
    fresh = diffkit.recompose(make(), backbone=("mlp", {"hidden": 8, "depth": 1}), **learned)
    assert fresh.parts.var.extra_outputs == 1


def test_a_typo_gets_a_suggestion():
    with pytest.raises(OptionError, match="recompose takes what compose takes, not 'los'; did you mean 'loss'"):
        diffkit.recompose(make(), los="huber")


@pytest.mark.parametrize("name", ["parts", "settings"])
def test_nothing_is_changed_in_place(name):
    system = make()
    with pytest.raises(AttributeError, match=rf"a system's {name} are fixed; diffkit.recompose\("):
        setattr(system, name, getattr(system, name))


# ---- data of another size --------------------------------------------------------------------------------------------

SMALL = dict(channels=8, groups=4, num_res_blocks=1)
UNETS = {
    "levels and attention by the size": (dict(SMALL), (3, 8, 8), (3, 16, 16)),
    "more levels at the other size": (SMALL | {"num_classes": 2, "null_class": True}, (3, 4, 4), (3, 64, 32)),
    "smaller": (SMALL | {"num_classes": 2}, (3, 32, 32), (3, 8, 16)),
    "attention said": (SMALL | {"channel_mult": (1, 2), "attention_resolutions": (8, 4)}, (3, 8, 8), (3, 12, 20)),
    "no attention": (SMALL | {"channel_mult": (1, 2), "attention_resolutions": ()}, (3, 8, 8), (3, 16, 16)),
    "sequences": (SMALL | {"resblock_updown": True}, (3, 16), (3, 48)),
    "volumes": (SMALL | {"low_res_channels": 3}, (3, 2, 8, 8), (3, 5, 16, 16)),
}


def _answers(system, batch=2):
    x = torch.linspace(-1, 1, batch * int(np.prod(system.data_shape))).view(batch, *system.data_shape)
    given = {}
    if getattr(system.parts.backbone, "num_classes", None):
        given["y"] = torch.arange(batch) % 2
    if getattr(system.parts.backbone, "low_res_channels", 0):
        given["low_res"] = x[:, :, ..., ::2, ::2]
    with torch.no_grad():
        return system.network(x, torch.linspace(5.0, 800.0, batch), **given)


@pytest.mark.parametrize(("options", "shape", "other"), some_by_default(UNETS.values(), 3), ids=UNETS)
def test_a_unet_takes_data_of_another_size_with_its_weights(options, shape, other, tmp_path):
    torch.manual_seed(0)
    system = make(backbone=("unet", options), data_shape=shape, train_spacing=None).eval()
    with torch.no_grad():
        for weight in system.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    system.save(tmp_path / "first")
    for known in (system, diffkit.load(tmp_path / "first")):
        known.eval()
        changed = diffkit.recompose(known, data_shape=other)
        assert changed.network is known.network and changed.data_shape == other
        given = {"y": 1} if "num_classes" in options else {}
        given |= {"low_res": torch.zeros(1, *shape)} if "low_res_channels" in options else {}
        assert changed.sample(1, steps=2, progress=False, **given).shape == (1, *other)
        changed.save(tmp_path / "second")
        again = diffkit.load(tmp_path / "second").eval()
        torch.testing.assert_close(_answers(again), _answers(changed))
        back = diffkit.recompose(again, data_shape=shape)
        torch.testing.assert_close(_answers(back), _answers(system))


def test_a_size_that_the_levels_cannot_halve_is_refused():
    system = make(backbone=("unet", SMALL), data_shape=(3, 16, 16), train_spacing=None)
    with pytest.raises(CompositionError, match=r"sides 18x18 cannot be halved 2 times.* multiples of 4"):
        diffkit.recompose(system, data_shape=(3, 18, 18))
    with pytest.raises(CompositionError, match=r"first: input_blocks.0.0.weight\); give recompose a backbone as well"):
        diffkit.recompose(system, data_shape=(1, 16, 16))


@pytest.mark.parametrize("name", ["mlp", "dit"])
def test_a_network_of_one_size_is_refused_and_the_advice_works(name):
    options = {"hidden": 8, "depth": 1} | ({"heads": 2, "patch": 2} if name == "dit" else {})
    system = make(backbone=(name, options))
    with pytest.raises(CompositionError, match="give recompose a backbone as well, which is built anew"):
        diffkit.recompose(system, data_shape=(3, 4, 4))
    assert diffkit.recompose(system, data_shape=(3, 4, 4), backbone=(name, options)).data_shape == (3, 4, 4)


@attrs.frozen
class Sized(Backbone):
    """A recipe whose parameters depend on the size, of a network that takes any."""

    def build(self, data_shape, out_channels):
        network = Tiny(data_shape[0], out_channels, len(data_shape) - 1)
        network.never_read = nn.Parameter(torch.zeros(data_shape[-1]))
        return network


@pytest.mark.parametrize(
    ("backbone", "shape", "other"),
    [
        (("dit", dict(patch=2, depth=1, hidden=32, heads=2, num_classes=3)), (3, 8, 16), (3, 16, 8)),
        (("dit", dict(patch=2, depth=1, hidden=32, heads=2)), (3, 8, 8), (3, 4, 16)),
        (("mlp", dict(hidden=16, depth=1)), (3, 8, 4), (3, 4, 8)),
        (("mlp", dict(hidden=16, depth=1)), (4,), (2, 2)),
    ],
)
def test_weights_that_fit_another_layout_are_not_enough(backbone, shape, other):
    """The positions of a grid, and the axes of what is returned, are those the network was built for."""
    system = diffkit.compose(schedule="cosine", backbone=backbone, data_shape=shape, num_steps=10)
    with pytest.raises(CompositionError, match="give recompose a backbone as well, which is built anew"):
        diffkit.recompose(system, data_shape=other)
    y = {"y": 1} if "num_classes" in backbone[1] else {}
    changed = diffkit.recompose(system, data_shape=other, backbone=backbone)
    assert changed.sample(2, steps=2, progress=False, **y).shape == (2, *other)


@pytest.mark.parametrize("classes", [None, 2])
@pytest.mark.parametrize("as_network", [True, False])
def test_a_network_that_needs_other_conditions_than_classes_takes_another_size(as_network, classes):
    unet = UNet(channels=8, groups=8, channel_mult=(1, 2), num_res_blocks=1, low_res_channels=1, num_classes=classes)
    backbone = unet.build((3, 8, 8), 3) if as_network else unet
    system = diffkit.compose(schedule="cosine", backbone=backbone, data_shape=(3, 8, 8), num_steps=10)
    given = {"low_res": torch.zeros(2, 1, 4, 4)} | ({"y": 1} if classes else {})
    larger = diffkit.recompose(system, data_shape=(3, 16, 16))
    assert larger.sample(2, steps=2, progress=False, **given).shape == (2, 3, 16, 16)


def test_a_network_that_takes_the_size_though_its_recipe_builds_another_stays_by_the_advice():
    system = make(backbone=Sized())
    with pytest.raises(CompositionError, match=r"give recompose backbone=system.network, which reuses it unchanged"):
        diffkit.recompose(system, data_shape=(3, 4, 4))
    changed = diffkit.recompose(system, data_shape=(3, 4, 4), backbone=system.network)
    assert changed.network is system.network
    assert changed.sample(2, steps=2, progress=False).shape == (2, 3, 4, 4)


def test_a_network_with_classes_may_be_given_as_a_network():
    system = make(backbone=("unet", SMALL | {"num_classes": 2}), data_shape=(3, 16, 16), train_spacing=None)
    changed = diffkit.recompose(system, data_shape=(3, 32, 32), backbone=system.network)
    assert changed.sample(1, steps=2, y=1, progress=False).shape == (1, 3, 32, 32)


def test_adapters_and_quantized_layers_stay():
    """They are in no recipe, but the change does not concern the network."""
    system = make()
    system.network.first = nn.Sequential(system.network.first, nn.Linear(8, 8))
    changed = diffkit.recompose(system, sampler="heun", loss="simple")
    assert changed.network is system.network
    assert changed.sample(2, steps=2, progress=False).shape == (2, *SHAPE)
