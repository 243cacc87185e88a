"""Validation: means over data that is not learned from, which leave the training as it is."""

from __future__ import annotations

import pytest
import torch
from test_training_classifier import fit, noisy
from training_support import content, images, system

from diffkit._errors import DataError, OptionError
from diffkit.training import Validation, read_metrics, validate
from diffkit.training.validation import NAME


class Even(torch.nn.Module):
    """Logits that depend on the time alone: what is found says which levels were visited."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.times = []

    def forward(self, x, time):
        assert not self.training
        self.times += time.tolist()
        return torch.zeros(len(x), 3) * self.scale


def test_every_example_once_at_levels_that_are_spread_evenly():
    classifier, data = noisy(recipe=Even()), images(40)
    classifier.train()
    found = validate(classifier, data, batch_size=7)
    assert classifier.backbone.training
    assert found.keys() == {f"{name}{q}" for name in ("loss", "acc1") for q in ("", "_q0", "_q1", "_q2", "_q3")}
    for name in ("loss", "loss_q0", "loss_q3"):
        assert found[name] == pytest.approx(torch.tensor(3.0).log().item(), rel=1e-6)
    times = torch.tensor(classifier.backbone.times)
    assert len(times) == 40 and (times.unique(return_counts=True)[1] <= 3).all() and len(times.unique()) == 20


def test_the_means_are_those_of_the_examples():
    classifier = noisy()
    torch.nn.init.normal_([*classifier.parameters()][-2])  # zero at first: every class as likely
    data, seen = images(30), []
    terms_of = classifier.loss_terms

    def noted(*args, **more):
        terms = terms_of(*args, **more)
        seen.append((args[2], terms))
        return terms

    classifier.loss_terms = noted
    found = validate(classifier, data, batch_size=11)
    level, loss = torch.cat([k for k, _ in seen]), torch.cat([t["loss"] for _, t in seen])
    accuracy = torch.cat([t["acc1"] for _, t in seen])
    assert found["loss"] == pytest.approx(loss.mean().item(), rel=1e-6)
    assert found["loss_q1"] == pytest.approx(loss[(level > 5) & (level <= 10)].mean().item(), rel=1e-6)
    assert found["acc1_q3"] == pytest.approx(accuracy[level > 15].mean().item(), rel=1e-6)
    again = validate(classifier, data, batch_size=30)
    assert again == pytest.approx(found, rel=1e-5) and validate(classifier, data, seed=1)["loss"] != found["loss"]


def test_a_system_is_validated_too():
    found = validate(system(), images())
    assert {"loss", "loss_q0"} < found.keys() and found["loss"] > 0


def test_it_changes_nothing_and_goes_on_with_the_run(tmp_path):
    def followed(out, steps):
        classifier = noisy()
        validation = Validation(classifier, images(9), every=2, last=steps, batch_size=4)
        fit(out, classifier=classifier, steps=steps, track=[validation])

    fit(tmp_path / "plain", steps=7)
    followed(tmp_path / "whole", 7)
    assert content(tmp_path / "plain") == content(tmp_path / "whole")
    followed(tmp_path / "parts", 5)
    followed(tmp_path / "parts", 7)
    whole, parts = (read_metrics(tmp_path / name, NAME) for name in ("whole", "parts"))
    assert [line["step"] for line in whole] == [2, 4, 6, 7]
    assert [line for line in parts if line["step"] != 5] == whole


def test_refusals():
    with pytest.raises(DataError, match=r"has class \d, but the network has 3 classes"):
        validate(noisy(), images(classes=9))
    with pytest.raises(OptionError, match="validation needs a network and discrete levels"):
        validate(system(backbone=None), images())
    with pytest.raises(OptionError, match="batch_size must be >= 1, got 0"):
        validate(noisy(), images(), batch_size=0)
    with pytest.raises(OptionError, match="every must be >= 1, got 0"):
        Validation(noisy(), images(), every=0, last=1)


class HalfFrozen(Even):
    """Has a part that stays in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.frozen = torch.nn.Dropout(0.5).eval()


def test_a_frozen_part_stays_frozen():
    network = HalfFrozen()
    validate(noisy(recipe=network), images(8))
    assert network.training and not network.frozen.training
