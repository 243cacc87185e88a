"""Conditions that are dropped by themselves, each with a probability of its own."""

import pytest
import torch
from training_support import train

import diffkit
from diffkit.errors import DataError, OptionError
from diffkit.training.augmentation import drop_conditions
from diffkit.training.config import TrainConfig


def test_each_is_dropped_as_often_as_given_whatever_the_other():
    n, null = 20_000, {"y": 9, "context": 0.0}
    conditions = {"y": torch.zeros(n, dtype=torch.int64), "context": torch.ones(n, 2, 3)}
    config = TrainConfig(steps=1, condition_dropout={"y": 0.2, "context": 0.5})
    assert config == TrainConfig(steps=1, condition_dropout="y=0.2, context=0.5")
    for name, probability in config.dropouts.items():
        conditions = drop_conditions(conditions, {name: null[name]}, probability, 0, 3, n, 0, name)
    y, context = conditions["y"] == 9, (conditions["context"] == 0).flatten(1).all(1)
    shares = [each.float().mean().item() for each in (y, context, y & context)]
    assert shares == pytest.approx([0.2, 0.5, 0.1], abs=0.01)


class Both:
    """Examples with a class and a context."""

    shape, bins, classes = (1, 4, 4), None, ("a", "b")

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.zeros(1, 4, 4), {"y": index % 2, "context": torch.ones(1 + index % 2, 3)}


def system(**options):
    recipe = {"channels": 8, "groups": 4, "num_res_blocks": 1, "channel_mult": (1,), "num_heads": 2, "context": 3}
    backbone = ("unet", recipe | {"num_classes": 2} | options)
    return diffkit.compose(backbone=backbone, schedule="cosine", num_steps=10, data_shape=(1, 4, 4), bins=None)


def test_a_run_drops_them_and_resumes(tmp_path):
    options = dict(data=Both(), batch_size=4, label_dropout=0.3, condition_dropout={"y": 0.5, "context": 0.5})
    made = train(tmp_path / "run", system=system(null_class=True), steps=2, **options)
    assert all(p.isfinite().all() for p in made.parameters())
    train(tmp_path / "run", system=system(null_class=True), steps=3, **options)
    with pytest.raises(OptionError, match="condition_dropout"):
        train(tmp_path / "run", system=system(null_class=True), steps=4, **options | {"condition_dropout": "y=0.5"})


def test_refused(tmp_path):
    text = "drops 'y', which has no null condition; those that can be dropped: context"
    with pytest.raises(DataError, match=text):
        train(tmp_path / "run", system=system(), data=Both(), batch_size=4, label_dropout=0, condition_dropout="y=0.5")
    for value in ("y", "y=2", {"": 0.1}, "y=nan"):
        with pytest.raises(OptionError, match="must be probabilities such as"):
            TrainConfig(steps=1, condition_dropout=value)
