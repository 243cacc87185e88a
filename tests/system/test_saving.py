"""A saved folder rebuilds the whole system; damage, age and missing parts are said in one line."""

from __future__ import annotations

import json
import re
from typing import ClassVar

import numpy as np
import pytest
import torch
from attrs import frozen
from networks import Tiny

import diffkit
from diffkit.errors import CheckpointError, OptionError, SpecError
from diffkit.parts.samplers.ddim import DDIM
from diffkit.protocols import Sampler
from diffkit.registry import registry
from diffkit.system.loading import from_spec, load


def make(**more) -> diffkit.System:
    settings = dict(
        schedule=("cosine", {"s": 0.01}),
        mean="v",
        var="learned_range",
        loss=("hybrid", {"vb_weight": 1, "scale_by_steps": False}),
        timesteps=("loss_second_moment", {"history": 3}),
        sampler=("ddim", {"eta": 0.5}),
        backbone=("mlp", {"hidden": 16, "depth": 1, "num_classes": 4}),
        data_shape=(1, 4, 4),
        num_steps=30,
        train_spacing=[1, 10, 20, 30],
        rescale_time=False,
        bins=17,
    )
    return diffkit.compose(**settings | more)


@pytest.fixture
def folder(tmp_path):
    return make().save(tmp_path / "system")


def test_round_trip(folder):
    original, loaded = make(), load(folder)
    original.load_state_dict(loaded.state_dict())
    assert loaded.spec() == original.spec() and not loaded.training
    assert loaded.table == original.table and loaded.decoder == original.decoder
    ours, theirs = (s.sample(2, seed=0, y=[1, 2], progress=False) for s in (original, loaded))
    assert torch.equal(ours, theirs)


def test_parts_are_called_as_before():
    assert from_spec(make().spec()).parts.names == make().parts.names
    assert (
        diffkit.compose(schedule="diffkit:cosine", backbone=None, data_shape=(2,)).parts.names["schedule"] == "cosine"
    )


def test_spec_is_plain_json_and_rebuilds(folder):
    spec = make().spec()
    assert json.loads(json.dumps(spec)) == spec
    again = from_spec(spec)
    assert again.spec() == spec
    assert spec["parts"]["schedule"] == {
        "name": "cosine",
        "options": {"s": 0.01, "max_beta": 0.999},
        "origin": "diffkit",
        "version": diffkit.__version__,
    }


def test_saving_again_replaces_whole_files(folder):
    before = sorted(p.name for p in folder.iterdir())
    make().save(folder)
    assert sorted(p.name for p in folder.iterdir()) == before == ["model.safetensors", "spec.json"]
    load(folder)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (dict(train_spacing=np.arange(2, 21, 2)), list(range(2, 21, 2))),
        (dict(train_spacing=range(1, 30, 5)), [1, 6, 11, 16, 21, 26]),
        (dict(train_spacing=(3, np.int64(9))), [3, 9]),
        (dict(train_spacing=np.int64(5)), 5),
        (dict(bins=np.int64(17)), 17),
        (dict(bins={"bins": np.int32(17), "floor": np.float32(0)}), {"bins": 17, "floor": 0.0}),
    ],
)
def test_numbers_of_numpy_are_saved_as_plain_ones(tmp_path, given, kept):
    system = make(**given)
    settings = json.loads(json.dumps(system.spec()))["settings"]
    assert [settings[name] for name in given] == [kept]
    assert load(system.save(tmp_path)).table == system.table


def test_options_of_numpy_are_saved_as_plain_ones():
    parts = dict(
        loss=("hybrid", {"vb_weight": np.float32(0.5), "scale_by_steps": False}),
        timesteps=("loss_second_moment", {"history": np.int64(3)}),
        backbone=("mlp", {"hidden": np.int32(16), "depth": np.uint8(1)}),
    )
    system = make(**parts, num_steps=np.int64(30), data_shape=(np.int64(1), 4, 4))
    spec = json.loads(json.dumps(system.spec()))
    assert from_spec(spec).spec() == system.spec()
    assert spec["parts"]["timesteps"]["options"]["history"] == 3


def test_an_option_that_json_cannot_hold_is_named():
    @registry("sampler").register("odd_option")
    @frozen
    class OddOption(Sampler):
        order: ClassVar[int] = 1
        ways: object = np.int64(5)

        def plan(self, steps):
            return {}

        def step(self, denoise, x, state, row, noise, last):
            return x, state

    system = make(sampler="odd_option")
    text = "sampler 'odd_option' cannot be saved: JSON cannot hold ways=np.int64(5); give plain numbers, words or lists"
    with pytest.raises(SpecError, match=re.escape(text)):
        system.spec()


def test_loading_needs_a_foreign_network(tmp_path):
    network = Tiny(1, 2)
    make(backbone=network).save(tmp_path)
    with pytest.raises(SpecError, match=re.escape("this system has a network of its own (Tiny); pass backbone=")):
        load(tmp_path)
    loaded = load(tmp_path, backbone=Tiny(1, 2))
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network.parameters(), strict=True))


def edit(folder, change):
    path = folder / "spec.json"
    spec = json.loads(path.read_text())
    change(spec)
    path.write_text(json.dumps(spec))


def set_part(kind, **values):
    return lambda spec: spec["parts"][kind].update(values)


WRONG_SPECS = [
    (lambda s: s.update(format=99, diffkit="9.0"), SpecError, "this spec has format 99, written by diffkit 9.0;"),
    (lambda s: s.pop("format"), SpecError, "this is not a diffkit spec: its format is None"),
    (lambda s: s.pop("parts"), SpecError, "the spec lacks 'parts'"),
    (lambda s: s["parts"].pop("loss"), SpecError, "the spec lacks 'loss'"),
    (lambda s: s["settings"].update(colour=1), SpecError, "the spec's settings do not fit diffkit"),
    (set_part("sampler", name="warp", origin="diffkit-warp", version="1.2"), SpecError,
     "this system uses sampler 'warp' of diffkit-warp 1.2, which is not installed; run: pip install diffkit-warp"),
    (set_part("sampler", name="warp"), SpecError, "which diffkit 0.1.0 does not have"),
    (set_part("sampler", origin="other"), SpecError, "but here that name is of diffkit; pass accept_origin=True"),
    (set_part("sampler", name="mine", origin="local"), SpecError, "registered in the process that saved it"),
    (set_part("schedule", options={"s": "os.system"}), ValueError, "s must be a number, got 'os.system'"),
    (set_part("schedule", name="os:system"), SpecError, "which diffkit 0.1.0 does not have"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "text"), WRONG_SPECS, ids=[w[2][:40] for w in WRONG_SPECS])
def test_a_spec_that_cannot_be_rebuilt(folder, change, kind, text):
    edit(folder, change)
    with pytest.raises(kind, match=re.escape(text)) as caught:
        load(folder)
    assert isinstance(caught.value, diffkit.DiffkitError)


def test_another_origin_can_be_accepted(folder):
    edit(folder, set_part("sampler", origin="other"))
    assert load(folder, accept_origin=True).parts.sampler == DDIM(eta=0.5)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGE = [
    (truncate, "is damaged: it has"),
    (flip, "is damaged: its SHA-256 is not the one that was written"),
    (lambda p: p.unlink(), "cannot read"),
]


@pytest.mark.parametrize(("damage", "text"), DAMAGE, ids=[t for _, t in DAMAGE])
def test_damaged_weights(folder, damage, text):
    damage(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=text):
        load(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\x00" * 64, b"PK\x03\x04 not safetensors"])
def test_weights_that_are_none(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    edit(folder, lambda s: s.pop("weights"))
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
        load(folder)


def test_weights_of_another_network(folder, tmp_path):
    other = make(backbone=("mlp", {"hidden": 8, "depth": 1, "num_classes": 4})).save(tmp_path / "other")
    (other / "model.safetensors").replace(folder / "model.safetensors")
    edit(folder, lambda s: s.pop("weights"))
    with pytest.raises(CheckpointError, match=r"these weights do not fit the network: .* of another shape"):
        load(folder)


@pytest.mark.parametrize(
    ("content", "text"), [("{", "cannot be read as JSON"), ("[]", "it holds a list, not an object")]
)
def test_a_spec_file_that_is_none(folder, content, text):
    (folder / "spec.json").write_text(content)
    with pytest.raises(CheckpointError, match=text):
        load(folder)


def test_an_empty_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"a saved system is a folder with spec\.json and model\.safetensors"):
        load(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        make().save(tmp_path / "file" / "system")


@frozen
class Unnamed(DDIM):
    """A part without a registered name."""


def test_an_unregistered_part_is_refused_before_anything_is_written(tmp_path):
    system = make(sampler=Unnamed())
    with pytest.raises(SpecError, match=re.escape("put @registry('sampler').register('unnamed') on the class")):
        system.save(tmp_path / "system")
    assert not (tmp_path / "system").exists()


def test_a_part_registered_here_rebuilds_here():
    named = registry("sampler").register("named_here")(frozen(type("NamedHere", (DDIM,), {})))
    system = make(sampler=named(eta=0.25))
    assert system.spec()["parts"]["sampler"]["origin"] == "local"
    assert from_spec(system.spec()).parts.sampler == named(eta=0.25)
    assert from_spec(system.spec()).parts.names["sampler"] == "named_here"


def test_a_shadowed_part_is_saved_by_its_full_name():
    registry("sampler").register("ddim", replace=True)(frozen(type("Other", (DDIM,), {})))
    try:
        kept = diffkit.compose(schedule="cosine", sampler="diffkit:ddim", backbone=None, data_shape=(2,))
        assert kept.parts.names["sampler"] == "diffkit:ddim"
    finally:
        del registry("sampler")._here["ddim"]


def test_a_folder_whose_name_no_file_can_have_is_refused(tmp_path):
    system = diffkit.compose(backbone=("mlp", {"hidden": 8, "depth": 1}), data_shape=(2,), bins=None)
    with pytest.raises(CheckpointError, match=r"cannot write .*null"):
        system.save(f"{tmp_path}/a\0b")
    with pytest.raises(OptionError, match=r"cannot be written.*null"):
        diffkit.train(system, torch.zeros(4, 2), out=f"{tmp_path}/a\0b", steps=1, batch_size=2, progress=False)
