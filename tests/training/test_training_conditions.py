"""Conditions in training: classes of any backbone, texts, embeddings with a mask, and examples without a class."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from attrs import frozen
from torch import nn
from training_support import content, images, system, train

import diffkit
from diffkit.data import from_array
from diffkit.errors import DataError, OptionError
from diffkit.guidance import ClassifierFree
from diffkit.options import integer
from diffkit.protocols import ConditionalBackbone
from diffkit.registry import registry
from diffkit.training import validate

SHAPE = (1, 4, 4)
DRAW = dict(steps=3, seed=0, progress=False)


class Labelled(nn.Module):
    """A line of pixels and an embedding of labels, if there are any."""

    def __init__(self, out_channels, labels):
        super().__init__()
        self.line = nn.Conv2d(1, out_channels, 3, padding=1)
        self.table = nn.Embedding(labels, out_channels) if labels else None
        self.seen = []

    def forward(self, x, time, y=None):
        out = self.line(x) + (time / 1000).view(-1, 1, 1, 1)
        if self.table is None:
            return out
        self.seen.append(y)
        return out + self.table(y)[:, :, None, None]


@frozen
class ThirdParty(ConditionalBackbone):
    """A class-conditional network whose options have names of their own; label ``kinds`` is for none.

    Attributes:
        kinds: How many kinds of things there are; 0 for one that is not told.
    """

    kinds: int = integer(0, ge=0)

    def null_conditions(self):
        return {"y": self.kinds} if self.kinds else None

    def build(self, data_shape, out_channels):
        return Labelled(out_channels, self.kinds + 1 if self.kinds else 0)


@frozen
class ZeroForNone(ThirdParty):
    """The same with an option called num_classes, of which 0 means none."""

    num_classes: int = integer(0, ge=0)

    def null_conditions(self):
        return {"y": self.num_classes} if self.num_classes else None

    def build(self, data_shape, out_channels):
        return Labelled(out_channels, self.num_classes + 1 if self.num_classes else 0)


@pytest.fixture(autouse=True)
def named(monkeypatch):
    """Their names, for as long as a test takes."""
    monkeypatch.setattr(registry("backbone"), "_here", {})
    for name, part in (("third_party", ThirdParty), ("zero_for_none", ZeroForNone)):
        registry("backbone").register(name)(part)


def third(**options):
    return system(backbone=options.pop("backbone", ("third_party", options)))


@pytest.mark.parametrize("backbone", [("third_party", {"kinds": 3}), ("zero_for_none", {"num_classes": 3})])
def test_a_class_conditional_backbone_of_a_third_party(tmp_path, backbone):
    """It trains, drops classes, samples with guidance, saves and loads."""
    made = train(tmp_path / "run", system=third(backbone=backbone), steps=4, label_dropout=0.5)
    seen = torch.cat([y for y in made.network.seen if y is not None])
    assert set(seen.tolist()) == {0, 1, 2, 3}
    want = made.sample(3, y=[0, 1, 2], guidance=ClassifierFree(2.0), **DRAW)
    again = diffkit.load(tmp_path / "run")
    assert torch.equal(again.sample(3, y=[0, 1, 2], guidance=ClassifierFree(2.0), **DRAW), want)
    assert not torch.equal(again.sample(3, y=-1, **DRAW), again.sample(3, y=0, **DRAW))


@pytest.mark.parametrize("name", ["third_party", "zero_for_none"])
def test_a_backbone_without_classes_of_a_third_party(tmp_path, name):
    data = from_array(np.zeros((10, *SHAPE), np.uint8), bins=17)
    train(tmp_path / "run", system=third(backbone=name), data=data, steps=2, label_dropout=0.0)
    text = "label_dropout=0.2 drops classes, but the data has no classes; load it with labels; leave label_dropout out"
    with pytest.raises(DataError, match=text):
        train(tmp_path / "other", system=third(backbone=name), data=data)


@pytest.mark.slow
def test_a_third_party_on_the_command_line(tmp_path):
    from diffkit.__main__ import main

    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", arr_0=rng.integers(0, 255, (12, 4, 4, 1), np.uint8), arr_1=np.arange(12) % 3)
    run, out = str(tmp_path / "run"), str(tmp_path / "samples")
    how = "--backbone third_party --backbone.kinds 3 --schedule cosine --num-steps 10 --steps 2 --batch-size 4"
    how += f" --label-dropout 0.5 --data.labels true --data {tmp_path / 'data.npz'} --out {run}"
    assert main(["train", *how.split()]) == 0
    cfg = "-n 3 --steps 2 --guidance cfg --guidance.scale 2"
    assert main(["sample", run, "--out", out, *cfg.split()]) == 0
    assert any((tmp_path / "samples").iterdir())


# ---- texts and embeddings --------------------------------------------------------------------------------------------

WORDS = ["", "a cat", "a dog", "a very long bird"]


class Text(nn.Module):
    """Reads words, or tokens (B, L, 8) under a mask (B, L)."""

    def __init__(self):
        super().__init__()
        self.words, self.layer, self.line = nn.Embedding(4, 1), nn.Linear(8, 1), nn.Conv2d(1, 2, 3, padding=1)
        self.seen = []

    def forward(self, x, time, words=None, tokens=None, mask=None, context=None):
        self.seen.append((words, tokens, mask, context))
        out = self.line(x)
        if words is not None:
            out = out + self.words(torch.tensor([WORDS.index(word) for word in words])).view(-1, 1, 1, 1)
        if context is not None:
            tokens, mask = context["tokens"], context["mask"]
        if tokens is not None:
            out = out + ((self.layer(tokens)[..., 0] * mask).sum(1) / mask.sum(1).clamp(min=1)).view(-1, 1, 1, 1)
        return out


class Captioned:
    """Images of which each has words, or tokens and a mask, or both of these in a mapping."""

    shape, bins, classes = SHAPE, 17, None

    def __init__(self, *names):
        self.names = names

    def __len__(self):
        return 20

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        tokens, mask = rng.standard_normal((5, 8)).astype(np.float32), np.arange(5) < 2 + index % 4
        found = {"words": WORDS[1 + index % 3], "tokens": tokens, "mask": mask}
        found["context"] = {"tokens": tokens, "mask": mask}
        return rng.integers(0, 17, SHAPE), {name: found[name] for name in self.names}


def texts(null):
    torch.manual_seed(0)
    return system(backbone=Text(), null_conditions=null)


EMBEDDED = {"tokens": torch.zeros(5, 8), "mask": 1}


def test_a_network_of_embeddings_with_a_mask(tmp_path):
    """It trains, drops both together, samples with guidance, saves and loads."""
    made = train(tmp_path / "run", system=texts(EMBEDDED), data=Captioned("tokens", "mask"), label_dropout=0.5)
    tokens = torch.cat([seen[1] for seen in made.network.seen])
    masks = torch.cat([seen[2] for seen in made.network.seen])
    dropped = (tokens == 0).flatten(1).all(1)
    assert 0.25 < dropped.double().mean() < 0.75
    assert masks[dropped].all() and not masks[~dropped].all(1).all()
    given = dict(tokens=torch.randn(3, 5, 8), mask=torch.ones(3, 5, dtype=torch.bool), guidance=ClassifierFree(2.0))
    want = made.sample(3, **given, **DRAW)
    again = diffkit.load(tmp_path / "run", backbone=Text())
    assert torch.equal(again.sample(3, **given, **DRAW), want)
    none = again.sample(3, tokens=None, mask=given["mask"], **DRAW)
    assert torch.equal(none, again.sample(3, tokens=0 * given["tokens"], mask=given["mask"], **DRAW))


@pytest.mark.parametrize(
    ("null", "names"),
    [({"words": ""}, ["words"]), ({"context": EMBEDDED}, ["context"]), (EMBEDDED, ["tokens", "mask"])],
)
def test_dropped_conditions_do_not_depend_on_microbatches_or_interruptions(tmp_path, null, names):
    options = dict(data=Captioned(*names), label_dropout=0.5, ema=())
    whole = train(tmp_path / "whole", system=texts(null), **options)
    train(tmp_path / "twice", system=texts(null), steps=8, anneal_steps=12, **options)
    train(tmp_path / "twice", system=texts(null), anneal_steps=12, **options)
    assert content(tmp_path / "twice").keys() == content(tmp_path / "whole").keys()
    pieces = train(tmp_path / "pieces", system=texts(null), microbatch=2, **options)
    for name, weight in whole.network.state_dict().items():
        torch.testing.assert_close(pieces.network.state_dict()[name], weight, rtol=1e-4, atol=1e-5)
    flat = [[str(part) for seen in each.network.seen for part in rows(seen)] for each in (whole, pieces)]
    assert flat[0] == flat[1]
    assert validate(whole, Captioned(*names))["loss"] > 0


def rows(seen):
    """What each example was given."""
    values = [value for value in seen if value is not None]
    values = [*values[0].values()] if isinstance(values[0], dict) else values
    return list(zip(*values, strict=True))


@pytest.mark.parametrize(
    ("null", "names", "text"),
    [
        (None, ["words"], "label_dropout=0.2 needs a network with a label for no class; use null_conditions={'y': "),
        ({"y": 3}, ["words"], "label_dropout=0.2 drops classes, but the data has no y; load it with labels"),
        ({"words": None}, ["words"], "label_dropout=0.2 cannot leave 'words' out for one example alone; comp"),
        ({"words": 3}, ["tokens", "mask"], "label_dropout=0.2 drops classes, but the data has no words"),
        ({"tokens": torch.zeros(7, 8)}, ["tokens", "mask"], "label_dropout=0.2 cannot drop conditions: the null "
                                                            "condition of 'tokens' has shape (7, 8), but an example's"),
        ({"y": 3}, ["y"], "the data does not fit the network: the network Text takes no condition 'y'"),
    ],
)  # fmt: skip
def test_what_cannot_be_dropped_is_refused_before_the_run(tmp_path, null, names, text):
    data = images() if names == ["y"] else Captioned(*names)
    with pytest.raises(DataError, match=re.escape(text)):
        train(tmp_path / "run", system=texts(null), data=data)
    assert not (tmp_path / "run").exists()


def test_a_condition_that_the_network_needs_and_the_data_has_not(tmp_path):
    class Needing(Text):
        def forward(self, x, time, words):
            return super().forward(x, time, words)

    made = system(backbone=Needing())
    text = "the network Needing needs the condition 'words'; pass words=..."
    with pytest.raises(DataError, match=re.escape(text)):
        train(tmp_path / "run", system=made, data=Captioned("tokens"), label_dropout=0.0)
    with pytest.raises(OptionError, match=re.escape(text)):
        made.sample(2, **DRAW)


def test_examples_whose_conditions_differ_in_form_are_named(tmp_path):
    class Odd(Captioned):
        def __getitem__(self, index):
            image, found = super().__getitem__(index)
            return image, found | {"words": 3 if index == 4 else found["words"]}

    with pytest.raises(DataError, match=r"example 4 has words of shape \(\), example 0 a str; give one form"):
        train(tmp_path / "run", system=texts({"words": ""}), data=Odd("words"))


# ---- examples without a class ----------------------------------------------------------------------------------------


class Partly:
    """Images of which every other has a class."""

    shape, bins, classes = SHAPE, 17, ("0", "1", "2")

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return np.full(SHAPE, index % 17, np.int64), {"y": index % 3 if index % 2 else -1}


def test_an_example_without_a_class_is_given_the_null_label(tmp_path):
    made = train(tmp_path / "run", system=third(kinds=3), data=Partly(), steps=4, label_dropout=0.0)
    seen = torch.cat(made.network.seen)
    assert set(seen.tolist()) == {0, 1, 2, 3} and 5 <= (seen == 3).sum() <= 15
    built_in = train(tmp_path / "other", data=Partly(), steps=2)
    assert validate(built_in, Partly())["loss"] > 0


@pytest.mark.parametrize(
    "backbone", [("mlp", {"hidden": 8, "depth": 1, "num_classes": 3}), Labelled(2, 3), ("third_party", {})], ids=str
)
def test_an_example_without_a_class_is_refused_where_nothing_means_none(tmp_path, backbone):
    made = system(backbone=backbone)
    with pytest.raises(DataError, match=r"example 0 has no class \(-1\), but the network has no label for no class"):
        train(tmp_path / "run", system=made, data=Partly(), label_dropout=0.0)
    assert not (tmp_path / "run").exists()


def test_a_classifier_needs_every_class(tmp_path):
    from diffkit.guidance import Classifier, NoisyClassifier

    small = dict(channels=8, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(), num_head_channels=None)
    noisy = NoisyClassifier(system(), Classifier(**small, groups=4, pool="adaptive"), 3)
    with pytest.raises(DataError, match="example 0 has no class"):
        diffkit.train(noisy, Partly(), out=tmp_path / "run", steps=1, batch_size=4, progress=False)
