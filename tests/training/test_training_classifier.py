"""Classifiers of noisy data: what they minimize, how they are trained and saved, and what they refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from attrs import frozen
from forks import forked, forking
from lanes import some_by_default
from test_training_ranks import assert_near, assert_same
from torch import nn
from training_support import content, images, lines, points, train

import diffkit
from diffkit.data import from_array
from diffkit.errors import DataError, OptionError, SpecError
from diffkit.evaluation import _digits
from diffkit.guidance import Classifier, ClassifierGuidance, NoisyClassifier
from diffkit.protocols import ContinuousTimestepSampler
from diffkit.weights import is_classifier, load_classifier

TINY = Classifier(
    channels=8, num_res_blocks=1, channel_mult=(1,), attention_resolutions=(), num_heads=1,
    num_head_channels=None, pool="adaptive", groups=4,
)  # fmt: skip


def noisy(seed: int = 0, recipe=TINY, classes: int = 3, noised: bool = True, **more) -> NoisyClassifier:
    """On the levels of a system of 1x4x4 with 17 values."""
    settings = dict(schedule="cosine", data_shape=(1, 4, 4), num_steps=20, bins=17, backbone=None)
    torch.manual_seed(seed)
    return NoisyClassifier(diffkit.compose(**(settings | more)), recipe, classes, noised=noised)


OPTIONS = dict(label_dropout=0.0, weight_decay=0.05)


def fit(out, seed: int = 0, classifier: NoisyClassifier | None = None, **options):
    return train(out, system=classifier or noisy(seed), **(OPTIONS | options))


class Plain(nn.Module):
    """A perceptron of a user's own, which notes what it is given."""

    def __init__(self, outputs: int = 7, size: int = 16):
        super().__init__()
        self.body = nn.Linear(size + 1, outputs)

    def forward(self, x, time):
        self.given = x, time
        return self.body(torch.cat([x.flatten(1), time[:, None] / 1000], 1))


def example(classes: int = 7):
    torch.manual_seed(1)
    level = torch.tensor([1, 5, 20, 11, 2])
    return torch.rand(5, 1, 4, 4) * 2 - 1, level, torch.randn(5, 1, 4, 4), torch.arange(5) % classes


@pytest.mark.parametrize("noised", [True, False])
def test_the_loss_is_the_cross_entropy_at_the_level(noised):
    classifier = noisy(recipe=Plain(), classes=7, noised=noised)
    x, level, eps, y = example()
    found = classifier.loss_terms(None, x, level, eps, y=y)
    table = classifier.table
    at = level.numpy() if noised else np.ones(5, int)
    alpha, sigma, _ = (torch.from_numpy(c)[:, None, None, None] for c in table.at(at))
    x_t = (alpha * x + sigma * eps).float() if noised else x
    time = torch.from_numpy(table.time[at]).float()
    torch.testing.assert_close(classifier.network.given, (x_t, time))
    likely = classifier.network(x_t, time).softmax(1)
    torch.testing.assert_close(found["loss"], -likely[torch.arange(5), y].log())
    rank = (likely > likely[torch.arange(5), y][:, None]).sum(1)
    assert torch.equal(found["acc1"], (rank < 1).float()) and torch.equal(found["acc5"], (rank < 5).float())
    assert found["acc1"].sum() < found["acc5"].sum() < 5
    assert noisy(recipe=Plain(5), classes=5).loss_terms(None, x, level, eps, y=y % 5).keys() == {"loss", "acc1"}


def test_the_network_is_given_what_guidance_gives_it():
    system = diffkit.compose(
        schedule="cosine", num_steps=20, bins=17, data_shape=(1, 4, 4), backbone=("mlp", {"hidden": 4, "depth": 1})
    )
    classifier = NoisyClassifier(system, Plain(), 7)
    x, _, eps, y = example()
    for k in (1, 20):
        guidance = ClassifierGuidance(classifier, label="class")
        moments = system.trajectory(5, steps=[k], guidance=guidance, start=eps, **{"class": y})
        next(iter(moments))
        _, time = classifier.network.given
        classifier.loss_terms(None, torch.zeros_like(x), torch.full((5,), k), eps, y=y)
        assert torch.equal(time, classifier.network.given[1])
    assert dict(classifier.named_parameters()).keys() == {"network.body.weight", "network.body.bias"}


@frozen
class Continuous(ContinuousTimestepSampler):
    def sample(self, state, u, num_steps):
        return 10 * u - 5, torch.ones(len(u))


def test_a_classifier_of_short_weights_is_given_data_in_their_dtype():
    x, level, eps, y = example(3)
    whole = noisy().loss_terms(None, x, level, eps, y=y)["loss"]
    short = noisy().bfloat16().loss_terms(None, x, level, eps, y=y)["loss"]
    assert short.dtype == torch.float32
    torch.testing.assert_close(short, whole, rtol=0.1, atol=0.1)  # bfloat16 has 8 bits


def test_continuous_levels():
    continuous = dict(schedule="log_linear", timesteps=Continuous())
    classifier = noisy(recipe=Plain(), classes=7, **continuous)
    x, _, eps, y = example()
    log_snr = torch.tensor([-3.0, 0.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    classifier.loss_terms(None, x, log_snr, eps, y=y)
    share = log_snr.sigmoid()[:, None, None, None]
    torch.testing.assert_close(classifier.network.given[0], (share.sqrt() * x + (1 - share).sqrt() * eps).float())
    with pytest.raises(OptionError, match="noised=False needs discrete levels, but timesteps 'Continuous'"):
        noisy(noised=False, **continuous)


def test_it_learns_as_the_quartiles_show(tmp_path):
    data = np.zeros((60, 1, 4, 4), np.uint8)
    labels = np.arange(60) % 3
    data[np.arange(60), 0, labels] = 16  # a bright row says the class
    data, options = from_array(data, labels=labels, bins=17), dict(batch_size=30, log_every=50, save_every=150)
    fit(tmp_path, data=data, classifier=noisy(recipe=Plain(3)), steps=150, **options)
    first, *_, last = lines(tmp_path)
    assert last["acc1_q0"] > 0.99 and last["acc1_q0"] > last["acc1_q3"] and last["loss"] < first["loss"]
    assert not {name for name in last if name.startswith("acc5")}


def test_a_stopped_run_resumes_to_the_bit(tmp_path):
    fit(tmp_path / "whole", steps=8, precision="bf16", microbatch=3)
    fit(tmp_path / "parts", steps=4, precision="bf16", microbatch=3)
    fit(tmp_path / "parts", steps=8, seed=1, precision="bf16", microbatch=3)
    assert content(tmp_path / "whole") == content(tmp_path / "parts")
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


@forking
@pytest.mark.parametrize("strategy", some_by_default(["ddp", "fsdp"], 2))
def test_processes_train_what_one_trains(tmp_path, strategy):
    options = dict(batch_size=8, steps=4, lr=1e-3)
    fit(tmp_path / "one", microbatch=4, **options)
    forked(2, lambda rank: fit(tmp_path / "two", seed=rank, strategy=strategy, **options) and None)
    if strategy == "ddp":
        assert_same(tmp_path / "one", tmp_path / "two")
    else:  # sharding adds gradients up in another order
        assert_near(tmp_path / "one", tmp_path / "two", weights=2e-6, losses=1e-6)


def test_saved_and_loaded(tmp_path):
    trained = fit(tmp_path / "run", steps=2)
    x, time = torch.randn(4, 1, 4, 4), torch.full((4,), 50.0)
    assert not trained.training
    trained.save(tmp_path / "saved")
    for folder in (tmp_path / "run", tmp_path / "saved"):
        assert is_classifier(folder)
        network = load_classifier(folder)
        assert not network.training and torch.equal(network(x, time), trained(x, time))
        with pytest.raises(SpecError, match=r"is a classifier .*; diffkit.weights.load_classifier reads its folder"):
            diffkit.load(folder)
    spec = json.loads((tmp_path / "run" / "spec.json").read_text())
    assert spec["parts"]["schedule"]["name"] == "cosine" and spec["num_classes"] == 3


def test_a_network_of_ones_own(tmp_path):
    trained = fit(tmp_path, classifier=noisy(recipe=Plain(3)), steps=1)
    with pytest.raises(SpecError, match=r"is a network of its own \(Plain\); pass network="):
        load_classifier(tmp_path)
    x, time = torch.randn(2, 1, 4, 4), torch.ones(2)
    assert torch.equal(load_classifier(tmp_path, network=Plain(3))(x, time), trained(x, time))
    with pytest.raises(OptionError, match=r"returned shape \(5, 4\), 3 classes need \(5, 3\)"):
        fit(tmp_path / "wrong", classifier=noisy(recipe=Plain(4)))


def test_a_run_of_another_classifier_or_a_system_is_not_continued(tmp_path):
    fit(tmp_path / "run", steps=1)
    wider = Classifier(channels=16, channel_mult=(1,), num_head_channels=16, pool="adaptive", groups=4)
    with pytest.raises(OptionError, match=r"channels=8, now channels=16(?s:.*)num_classes=3, now num_classes=4"):
        fit(tmp_path / "run", classifier=noisy(recipe=wider, classes=4), steps=2)
    with pytest.raises(OptionError, match=r"noised=True, now noised=False"):
        fit(tmp_path / "run", classifier=noisy(noised=False), steps=2)
    with pytest.raises(OptionError, match=r"mean none, now eps"):
        train(tmp_path / "run", **OPTIONS)
    train(tmp_path / "system", **OPTIONS, steps=1)
    with pytest.raises(OptionError, match=r"num_classes=None, now num_classes=3"):
        fit(tmp_path / "system", steps=2)


def test_a_dry_run(tmp_path):
    found = diffkit.training.dry_run(noisy(), images(), out=tmp_path / "run", steps=5, batch_size=4)
    assert found.loss > 0 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("told", "options"),
    [
        (
            "a classifier learns from labels, but the data has none",
            dict(data=from_array(np.zeros((9, 1, 4, 4), np.uint8), bins=17)),
        ),
        (
            "the data has 5 classes, but the classifier has 3; use num_classes=5",
            dict(data=images(classes=5)),
        ),
        ("label_dropout=0.1 would hide what a classifier learns", dict(label_dropout=0.1)),
        ("the data has shape (2,), the system was composed for (1, 4, 4)", dict(data=points())),
    ],
)
def test_data_that_does_not_fit(tmp_path, told, options):
    with pytest.raises(DataError) as caught:
        fit(tmp_path / "run", **options)
    assert told in str(caught.value) and not (tmp_path / "run").exists()


def test_other_refusals(tmp_path):
    with pytest.raises(OptionError, match="a classifier draws no samples, so there is nothing to preview"):
        fit(tmp_path / "run", preview_every=1)
    with pytest.raises(
        OptionError, match=r"network must be a diffkit.guidance.Classifier or a torch module, got 'cnn'"
    ):
        noisy(recipe="cnn")
    with pytest.raises(OptionError, match="num_classes must be >= 1, got 0"):
        noisy(classes=0)
    x, level, eps, y = example(3)
    for levels, drawn, text in (
        (level[:1], eps, r"level must have shape \(5,\)"),
        (level, eps[:1], r"noise must have shape \(5, "),
        (level[:, None], eps, r"level must have shape \(5,\)"),
        (level + 1000, eps, r"level must lie in 1\.\."),
    ):
        with pytest.raises(OptionError, match=text):
            noisy().loss_terms(None, x, levels, drawn, y=y)
    for labels in (y.tolist(), y.float(), y[:, None]):
        with pytest.raises(OptionError, match="condition 'y' must be class numbers, one for each example, got"):
            noisy().loss_terms(None, x, level, eps, y=labels)
    for labels in (y + 9, y - 9):
        with pytest.raises(OptionError, match="but the classifier has 3 classes"):
            noisy().loss_terms(None, x, level, eps, y=labels)
    with pytest.raises(OptionError, match=r"learns from the condition 'y' alone, got \['text', 'y'\]"):
        noisy().loss_terms(None, x, level, eps, y=y, text=y)
    small = from_array(np.zeros((9, 1, 4, 4), np.uint8), labels=np.zeros(9, int), bins=17)
    with pytest.raises(DataError, match="the data gives low_res, which a classifier does not read"):
        fit(tmp_path / "run", data=diffkit.data.LowRes(small, (2, 2)))


@pytest.mark.slow(minutes=1)
def test_it_guides_a_system_without_classes_to_the_class(tmp_path):
    """As a perceptron that was trained on clean digits only sees it."""
    torch.manual_seed(0)
    backbone = ("mlp", {"hidden": 256, "depth": 3})
    system = diffkit.compose(schedule="cosine", num_steps=100, bins=17, data_shape=(1, 8, 8), backbone=backbone)
    digits = diffkit.data.loading.load("digits", split="train", labels=False)
    options = dict(batch_size=64, lr=1e-3, progress=False)
    diffkit.train(system, digits, out=tmp_path / "system", steps=1500, ema=(0.995,), **options)
    recipe = Classifier(channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_resolutions=(), num_heads=1,
                        num_head_channels=None, groups=8, pool="adaptive")  # fmt: skip
    noisy = NoisyClassifier(system, recipe, 10)
    labelled = diffkit.data.loading.load("digits", split="train")
    diffkit.train(noisy, labelled, out=tmp_path / "classifier", steps=400, weight_decay=0.05, ema=(), **options)
    y = torch.arange(100) % 10

    def recognised(scale: float, shift: str) -> float:
        guidance = ClassifierGuidance(noisy, scale, shift=shift, label="class")
        told = {"steps": 25, "seed": 0, "progress": False, "class": y}
        found = system.sample(100, guidance=guidance, **told)
        return (_digits.trained_digits_network()(found.double())[1].argmax(1) == y).double().mean().item()

    assert recognised(0.0, "score") < 0.3  # 0.1 by chance
    assert recognised(3.0, "score") > 0.75 and recognised(3.0, "mean") > 0.65
