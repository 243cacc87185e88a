"""`Settings.sampling`: what a call of a system takes where the caller says nothing."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

import diffkit
from diffkit import tasks
from diffkit.errors import DiffkitError, OptionError
from diffkit.explain import explain
from diffkit.registry import KINDS

SHAPE = (1, 4, 4)


def network(x, time):
    return 0.1 * x


def system_of(**more):
    settings = dict(schedule="cosine", backbone=None, data_shape=SHAPE, num_steps=12, sampling={"steps": 4})
    return diffkit.compose(**settings | more)


def count(call) -> int:
    """The number of calls of the network in ``call(model)``."""
    seen = []
    call(lambda x, time: seen.append(len(x)) or network(x, time))
    return len(seen)


X = torch.zeros(1, *SHAPE)
CALLS = {
    "sample": lambda system, **o: system.sample(1, progress=False, **o),
    "trajectory": lambda system, **o: list(system.trajectory(1, **o)),
    "encode": lambda system, **o: system.encode(X, start="level1", **o),
    "inpaint": lambda system, **o: tasks.inpaint(system, X, torch.ones(4, 4), resample=1, progress=False, **o),
    "image_to_image": lambda system, **o: tasks.image_to_image(system, X, strength=1.0, progress=False, **o),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_takes_the_systems_steps_unless_it_names_others(name):
    system = system_of()
    assert count(lambda model: CALLS[name](system, model=model)) == 4
    assert count(lambda model: CALLS[name](system, model=model, steps=3)) == 3
    assert count(lambda model: CALLS[name](system, model=model, steps=None)) == 12
    assert count(lambda model: CALLS[name](system, model=model, steps="all")) == 12


def test_a_score_is_of_every_level():
    system = system_of(sampling={"steps": 4, "clip": False})
    assert system.bits_per_dim(X, model=network).terms.shape == (1, 12)
    plain = system_of(sampling=None)
    found = (one.bits_per_dim(X, seed=0, model=network).total for one in (system, plain))
    assert torch.equal(*found)


def test_clipping_is_the_systems_unless_a_call_says_otherwise():
    system, plain = system_of(sampling={"clip": False}), system_of(sampling=None)
    how = dict(steps=3, seed=0, model=lambda x, time: -9 * x, progress=False)
    assert torch.equal(system.sample(1, **how), plain.sample(1, clip=False, **how))
    assert torch.equal(system.sample(1, clip=None, **how), plain.sample(1, **how))
    assert not torch.equal(system.sample(1, **how), plain.sample(1, **how))


@pytest.mark.parametrize("steps", [4, "trailing4", [1, 5, 12], range(3, 13, 3), None])
def test_defaults_are_saved_and_loaded(steps, tmp_path):
    system = system_of(sampling={"steps": steps}, backbone="mlp")
    again = diffkit.load(system.save(tmp_path / "saved"))
    assert again.settings == system.settings
    assert again.spec() == system.spec() == json.loads(json.dumps(system.spec()))
    how = dict(seed=0, progress=False)
    assert torch.equal(again.sample(1, **how), system.eval().sample(1, steps=steps, **how))


def test_a_spec_without_defaults_is_as_before():
    assert "sampling" not in system_of(sampling=None).spec()["settings"]
    assert system_of(sampling={}).settings.sampling is None


@pytest.mark.parametrize(
    ("sampling", "text"),
    [
        ({"stesp": 4}, "sampling has no option 'stesp'; did you mean 'steps'? (known: steps, guidance, clip, final)"),
        (
            {"sampler": "ddim"},
            "sampling has no option 'sampler'; it is a part: compose(sampler=('ddim', {'eta': 0.5}))",
        ),
        ({"steps": 13}, "sampling={'steps': 13}: "),
        ({"steps": "often"}, "sampling={'steps': 'often'}: spacing 'often' has no known form"),
        ({"steps": {}}, "spacing as a mapping needs a 'name', got {}"),
        ({"clip": 3}, "clip of sampling must be"),
        (
            {"guidance": diffkit.guidance.ClassifierFree(2.0)},
            "guidance of sampling must be a name, (name, options) or a list of these",
        ),
        (["steps"], "sampling must be a mapping of options, such as {'steps': 250}"),
    ],
)
def test_a_wrong_default_is_refused_when_it_is_composed(sampling, text):
    with pytest.raises(OptionError, match=re.escape(text)):
        system_of(sampling=sampling)


def test_recompose_changes_them_or_leaves_them():
    system = system_of()
    assert diffkit.recompose(system, loss="huber").settings.sampling == {"steps": 4}
    assert diffkit.recompose(system, sampling={"steps": 5}).settings.sampling == {"steps": 5}
    assert diffkit.recompose(system, sampling=None).settings.sampling is None


def test_explain_shows_them():
    assert "where a call says nothing: steps=4" in str(explain(system_of()))
    assert "unless a call" not in str(explain(system_of(sampling=None)))


def test_a_preset_samples_as_it_was_published():
    preset = diffkit.preset("dit/xl2-256")
    assert preset.compose(device="meta").settings.sampling == {"steps": 250}
    assert preset.compose(device="meta", num_steps=100).settings.sampling is None
    assert preset.compose(device="meta", sampling={"steps": 50}).settings.sampling == {"steps": 50}


def test_a_run_goes_on_whatever_the_defaults(tmp_path):
    system = system_of(sampling=None, backbone="mlp", bins=None)
    how = dict(data=torch.zeros(8, *SHAPE), out=tmp_path / "run", batch_size=4, save_every=1)
    diffkit.train(system, steps=1, **how)
    diffkit.train(system_of(backbone="mlp", bins=None), steps=2, **how)
    assert diffkit.load(tmp_path / "run").settings.sampling == {"steps": 4}


@pytest.mark.skipif("guidance" not in KINDS, reason="guidance has no names")
def test_guidance_by_name_is_a_default():
    system = system_of(sampling={"guidance": ("dynamic_threshold", {"percentile": 0.9})})
    assert system.spec()["settings"]["sampling"] == {"guidance": {"name": "dynamic_threshold", "percentile": 0.9}}
    how = dict(steps=3, seed=0, model=lambda x, time: -9 * x, progress=False)
    named = diffkit.guidance.DynamicThreshold(0.9)
    assert torch.equal(system.sample(1, **how), system.sample(1, guidance=named, **how))
    assert not torch.equal(system.sample(1, **how), system.sample(1, guidance=None, **how))
    with pytest.raises(DiffkitError, match=re.escape("sampling={'guidance': {'name': 'dps_'}}")):
        system_of(sampling={"guidance": "dps_"})


@pytest.mark.parametrize(
    "guidance",
    [
        ["static_threshold", {"name": "dynamic_threshold"}],
        [("static_threshold", {}), ("dynamic_threshold", {})],
        [{"name": "static_threshold"}, {"name": "dynamic_threshold"}],
    ],
    ids=str,
)
def test_two_guidances_are_not_one_with_options(guidance):
    found = system_of(sampling={"guidance": guidance}).settings.sampling["guidance"]
    assert [one["name"] for one in found] == ["static_threshold", "dynamic_threshold"]


@pytest.mark.parametrize("steps", [5, [1, 40, 80], "karras4:exact", ("sigmas", {"values": [8.0, 2.0, 0.5]})], ids=str)
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "dpmpp_sde"])
def test_final_sigma_min_ends_before_the_step_to_clean_data(sampler, steps):
    def network(x, time):
        return 0.3 * x + 1e-3 * time.view(-1, 1, 1, 1)

    system = diffkit.compose(backbone=None, data_shape=(1, 2, 2), num_steps=100, sampler=sampler)
    table = system.table_for(steps)
    values = np.append(np.exp(-table.log_snr[1:] / 2), np.exp(-system.table.log_snr[1] / 2))
    whole = ("sigmas", {"values": sorted({round(value, 12) for value in values.tolist()})})
    if steps == [1, 40, 80] or steps == 5:
        whole = steps
    *_, before, _ = system.trajectory(2, steps=whole, seed=0, model=network)
    found = system.sample(2, steps=steps, seed=0, model=network, final="sigma_min", progress=False)
    torch.testing.assert_close(found, before.x, rtol=1e-5, atol=1e-5)
    own = diffkit.recompose(system, sampling={"steps": steps, "final": "sigma_min"})
    assert torch.equal(found, own.sample(2, seed=0, model=network, progress=False))


def test_final_is_refused_where_no_step_ends_at_level_1():
    system = diffkit.compose(backbone=None, data_shape=(1, 2, 2), num_steps=100)
    network = {"model": lambda x, time: x, "progress": False}
    for call, message in (
        (lambda: system.sample(1, steps=[1], final="sigma_min", **network), "has no step that ends at level 1"),
        (lambda: system.sample(1, final="end", **network), "final must be 'zero' or 'sigma_min', got 'end'"),
    ):
        with pytest.raises(OptionError, match=message):
            call()
