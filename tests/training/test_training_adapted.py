"""A network that its recipe no longer describes: what training prints about its result is true, and its code runs."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from training_support import images, system, train

import diffkit
from diffkit.errors import SpecError
from diffkit.guidance import Classifier, NoisyClassifier
from diffkit.system.saving import is_built_by


class Adapted(nn.Module):
    """A network and a low-rank addition to its input."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(16, 2, bias=False), nn.Linear(2, 32, bias=False)

    def forward(self, x, time, **conditions):
        return self.base(x, time, **conditions) + self.up(self.down(x.flatten(1))).view(-1, 2, 4, 4)


class Low(nn.Module):
    """A layer, and a low-rank addition to it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down, self.up = nn.Linear(layer.in_features, 2), nn.Linear(2, layer.out_features)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))


def first_linear(network):
    return next((name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear))


def wrapped(network):
    return Adapted(network)


def replaced(network):
    name, layer = first_linear(network)
    parent, _, own = name.rpartition(".")
    setattr(network.get_submodule(parent), own, Low(layer))
    return network


def parametrized(network):
    parametrizations.weight_norm(first_linear(network)[1])
    return network


def same_names(network):
    """Another class of layer with weights of the same names."""

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    first_linear(network)[1].__class__ = Doubled
    return network


CHANGES = [wrapped, replaced, parametrized, same_names]


def adapted(change):
    found = system()
    return found.with_network(change(found.network))


@pytest.mark.parametrize("change", CHANGES)
def test_the_last_message_is_true(tmp_path, change, capsys):
    trained = train(tmp_path / "run", system=adapted(change), steps=2, progress=True)
    said = capsys.readouterr().err.splitlines()[-1]
    code = re.search(r"diffkit\.load\(.*?\)", said)[0]
    assert f"; network must be of the class {type(trained.network).__name__}, as trained here" in said
    network = adapted(change).network
    loaded = eval(code, {"diffkit": diffkit, "network": network})
    x, level = torch.randn(2, 1, 4, 4), torch.tensor([3, 4])
    one, other = (s.network(x, level.float(), y=torch.tensor([0, 1])) for s in (trained, loaded))
    assert one.equal(other)
    with pytest.raises(SpecError, match=r"has a network of its own \(.*\); pass backbone= such a network"):
        diffkit.load(tmp_path / "run")


@pytest.mark.parametrize("change", CHANGES)
def test_saving_it_reports_the_same(tmp_path, change):
    trained = adapted(change)
    trained.save(tmp_path)
    with pytest.raises(SpecError, match="has a network of its own"):
        diffkit.load(tmp_path)
    loaded = diffkit.load(tmp_path, backbone=adapted(change).network)
    for one, other in zip(trained.parameters(), loaded.parameters(), strict=True):
        assert one.equal(other)


def test_such_a_run_resumes_also_with_a_loaded_network(tmp_path):
    train(tmp_path / "run", system=adapted(wrapped), steps=2, save_every=100)
    train(tmp_path / "run", system=adapted(wrapped), steps=4, save_every=100)
    train(tmp_path / "whole", system=adapted(wrapped), steps=4, save_every=100)
    one, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "whole"))
    assert one == other


def test_what_only_looks_different_is_the_same(tmp_path):
    found = system()
    assert found.spec()["parts"]["backbone"]["name"] == "mlp"
    assert found.with_network(nn.DataParallel(found.network)).spec()["parts"]["backbone"]["name"] == "mlp"
    found.network.requires_grad_(False)
    assert found.spec()["parts"]["backbone"]["name"] == "mlp"
    before = torch.get_rng_state()
    found.spec()
    assert torch.get_rng_state().equal(before)

    def unbuildable():
        raise RuntimeError("reads values")

    assert is_built_by(unbuildable, found.network)


def test_a_classifier_with_other_layers(tmp_path, capsys):
    recipe = Classifier(
        channels=8, channel_mult=(1,), attention_resolutions=(), num_res_blocks=1, groups=4, num_head_channels=8
    )
    recipe_of = dict(num_classes=3)
    noisy = NoisyClassifier(system(backbone=None), recipe, **recipe_of)
    assert "class" not in noisy.spec()["classifier"]
    noisy.network = replaced(noisy.network)
    train(tmp_path, system=noisy, data=images(), steps=1, label_dropout=0, ema=(), progress=True)
    code = re.search(r"diffkit\.weights\.load_classifier\(.*?\)", capsys.readouterr().err.splitlines()[-1])[0]
    again = replaced(NoisyClassifier(system(backbone=None), recipe, **recipe_of).network)
    loaded = eval(code, {"diffkit": diffkit, "network": again})
    for one, other in zip(noisy.network.parameters(), loaded.parameters(), strict=True):
        assert one.equal(other)
