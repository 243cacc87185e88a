"""Validation: means over data that is not learned from, which leave the training as it is."""

from __future__ import annotations

import pytest
import torch
from forks import forked, forking
from lanes import some_by_default
from test_training_classifier import Continuous, fit, noisy
from training_support import content, images, lines, point_system, points, system, train

import diffkit
from diffkit.errors import DataError, OptionError
from diffkit.registry import registry
from diffkit.runtime.files import load_weights
from diffkit.training import Tracker, checkpoint, validate
from diffkit.training.checkpoint import newest_first


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
    assert classifier.network.training
    assert found.keys() == {f"{name}{q}" for name in ("loss", "acc1") for q in ("", "_q0", "_q1", "_q2", "_q3")}
    for name in ("loss", "loss_q0", "loss_q3"):
        assert found[name] == pytest.approx(torch.tensor(3.0).log().item(), rel=1e-6)
    times = torch.tensor(classifier.network.times)
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


def test_levels_that_are_continuous(monkeypatch):
    """Spread by the timestep sampler, with its weights, and the same each time."""
    monkeypatch.setattr(registry("timesteps"), "_here", {})
    registry("timesteps").register("continuous")(Continuous)
    composed = point_system(schedule="log_linear", timesteps=Continuous())
    found = validate(composed, points())
    assert found["loss"] > 0 and found == validate(composed, points(), batch_size=40)
    assert validate(composed, points(), seed=1)["loss"] != found["loss"]


# ---- while training ----------------------------------------------------------------------------------------------


def learned(run):
    """Lines of metrics about what was learned from, and nothing of what was held out."""
    found = [{name: value for name, value in line.items() if not name.startswith("val_")} for line in lines(run)]
    return [line for line in found if "loss" in line]


def held(run):
    """Lines of metrics about what was held out, by step."""
    return {
        line["step"]: {name[4:]: value for name, value in line.items() if name.startswith("val_")}
        for line in lines(run)
        if "val_loss" in line
    }


def test_the_last_line_is_what_the_saved_system_does(tmp_path):
    """It has the averaged weights, which the weights of the moment differ from."""
    train(tmp_path, val=images(9), val_every=4, steps=12, log_every=5, ema=(0.9, 0.5))
    found = held(tmp_path)
    assert list(found) == [4, 8, 12]
    assert found[12] == pytest.approx(validate(diffkit.load(tmp_path), images(9)), rel=1e-6)
    live = diffkit.load(tmp_path)
    load_weights(live.network, checkpoint.read(next(newest_first(tmp_path / "checkpoints"))).files["model"])
    assert found[12]["loss"] != pytest.approx(validate(live, images(9))["loss"], rel=1e-3)


def test_there_is_a_line_whenever_one_is_due(tmp_path):
    """Also between those of the training, which stay as they are."""
    train(tmp_path / "plain", steps=23, log_every=10)
    train(tmp_path / "held", steps=23, log_every=10, val=images(9), val_every=7)
    assert [line["step"] for line in lines(tmp_path / "held")] == [7, 10, 14, 20, 21, 23]
    assert list(held(tmp_path / "held")) == [7, 14, 21, 23]
    assert learned(tmp_path / "held") == lines(tmp_path / "plain")
    assert content(tmp_path / "held") == content(tmp_path / "plain")


def test_a_run_that_was_interrupted_is_the_same_to_the_bit(tmp_path):
    options = dict(val=images(9), val_every=2, log_every=3, system=None)
    train(tmp_path / "whole", steps=11, **options)
    for steps in (4, 6, 11):
        train(tmp_path / "parts", steps=steps, workers=steps % 3, **options)
    parts = {step: found for step, found in held(tmp_path / "parts").items() if step != 11}
    assert parts == {step: found for step, found in held(tmp_path / "whole").items() if step != 11}
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    assert [found["step"] for found in lines(tmp_path / "whole")] == [2, 3, 4, 6, 8, 9, 10, 11]


def test_lines_depend_on_no_seed_and_no_microbatch(tmp_path):
    """An untrained system: what differs could only come from the draws."""
    for name, options in {"a": {}, "b": dict(seed=5, microbatch=2, batch_size=7)}.items():
        train(tmp_path / name, val=images(9), steps=1, lr=0.0, **options)
    assert held(tmp_path / "a")[1] == pytest.approx(held(tmp_path / "b")[1], rel=1e-5)


def test_data_that_draws_as_it_is_read_is_the_same_each_time(tmp_path):
    class Drawing(type(images())):
        def batch(self, indices):
            found = super().batch(indices)
            return found._replace(images=torch.randint_like(found.images, 17))

    data = images(9)
    val = Drawing(data.images, bins=17, labels=data.labels, classes=data.classes)
    train(tmp_path, val=val, val_every=1, steps=3, lr=0.0)
    assert len({found["loss"] for found in held(tmp_path).values()}) == 1


def test_a_classifier_is_validated_as_well(tmp_path):
    trained = fit(tmp_path, classifier=noisy(), steps=5, val=images(9), val_every=2, ema=())
    found = held(tmp_path)
    assert list(found) == [2, 4, 5] and 0 <= found[5]["acc1"] <= 1
    assert found[5] == pytest.approx(validate(trained, images(9)), rel=1e-6)


def test_trackers_hear_of_it(tmp_path):
    heard = []

    class Listener(Tracker):
        def begin(self, folder, step):
            pass

        def metrics(self, line):
            heard.append((line["step"], "loss" in line, "val_loss" in line))

        def preview(self, step, path):
            pass

        def end(self):
            pass

    train(tmp_path, val=images(9), val_every=2, log_every=3, steps=6, track=[Listener()])
    assert heard == [(2, False, True), (3, True, False), (4, False, True), (6, True, True)]


@forking
@pytest.mark.parametrize(("count", "strategy"), some_by_default([(9, "ddp"), (7, "fsdp"), (9, "fsdp"), (7, "ddp")], 2))
def test_processes_share_the_work(tmp_path, strategy, count):
    """Of 7 examples at 6 at a time the last lot has one, which leaves the first process none."""
    options = dict(val=images(count), val_every=3, steps=6, batch_size=6, lr=1e-3)
    train(tmp_path / "one", **options)
    forked(2, lambda rank: train(tmp_path / "two", seed=rank, strategy=strategy, **options) and None)
    one, two = held(tmp_path / "one"), held(tmp_path / "two")
    assert list(one) == list(two) == [3, 6]
    for step in one:
        assert two[step] == pytest.approx(one[step], rel=1e-4)


def test_refusals(tmp_path):
    with pytest.raises(DataError, match="the data has 9 classes, but the network has 3"):
        validate(noisy(), images(classes=9))
    with pytest.raises(OptionError, match="validation needs a network, but the system was composed with backbone=None"):
        validate(system(backbone=None), images())
    with pytest.raises(OptionError, match="batch_size must be >= 1, got 0"):
        validate(noisy(), images(), batch_size=0)
    with pytest.raises(OptionError, match="val_every must be >= 1, got 0"):
        train(tmp_path / "run", val=images(9), val_every=0)
    with pytest.raises(DataError, match=r"val must fit the system as the data does: the data cannot be trained on:\n"):
        train(tmp_path / "run", val=points())
    with pytest.raises(DataError, match="dict is not data"):
        train(tmp_path / "run", val={})
    assert not (tmp_path / "run").exists()


@forking
def test_processes_that_hold_out_other_data_are_refused(tmp_path):
    def job(rank):
        with pytest.raises(DataError, match="process 1 reads other data than process 0"):
            train(tmp_path / "run", seed=rank, val=images(9) if rank else None, batch_size=8)

    forked(2, job)


class HalfFrozen(Even):
    """Has a part that stays in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.frozen = torch.nn.Dropout(0.5).eval()


def test_a_frozen_part_stays_frozen():
    network = HalfFrozen()
    validate(noisy(recipe=network), images(8))
    assert network.training and not network.frozen.training


def test_classes_of_held_out_data_are_found_by_name(tmp_path):
    x = images(12).images

    def some(rows: slice, labels: list[int], classes: tuple[str, ...]) -> diffkit.data.Data:
        return diffkit.data.from_array(x[rows], labels=torch.tensor(labels), classes=classes, bins=17)

    data = some(slice(0, 12), [0, 1, 2] * 4, ("cat", "dog", "owl"))
    right = some(slice(0, 4), [1, 1, 2, 2], data.classes)
    turned = some(slice(0, 4), [1, 1, 0, 0], ("owl", "dog"))
    for name, val in (("right", right), ("turned", turned)):
        fit(tmp_path / name, data=data, val=val, steps=2, batch_size=4)
    assert lines(tmp_path / "right")[-1]["val_loss"] == lines(tmp_path / "turned")[-1]["val_loss"]
