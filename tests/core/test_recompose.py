"""One part of a system changed, and everything else as it was, the network and its weights among it."""

from __future__ import annotations

import pytest
import torch
from networks import Tiny

import diffkit
from diffkit._errors import CompositionError, OptionError
from diffkit.losses.huber import Huber

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
    assert changed.backbone is system.backbone and changed.recipe == system.recipe
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
    assert other.recipe is not None and other.settings.time_argument is None


def test_the_mode_stays():
    for system in (make(), make(backbone=Tiny(3, 3), time_argument="time")):
        assert diffkit.recompose(system, sampler="heun").training
        changed = diffkit.recompose(system.eval(), sampler="heun")
        assert not any(module.training for module in changed.modules())


def test_without_a_network():
    assert diffkit.recompose(make(backbone=None), mean="x_start").backbone is None


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


def test_a_slip_is_said():
    with pytest.raises(OptionError, match="recompose takes what compose takes, not 'los'; did you mean 'loss'"):
        diffkit.recompose(make(), los="huber")


@pytest.mark.parametrize("name", ["parts", "settings"])
def test_nothing_is_changed_in_place(name):
    system = make()
    with pytest.raises(AttributeError, match=rf"a system's {name} are fixed; diffkit.recompose\("):
        setattr(system, name, getattr(system, name))
