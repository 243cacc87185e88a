"""Everything that can be known to be wrong before any work is done."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from attrs import frozen
from torch import nn

from diffkit._errors import DataError, OptionError
from diffkit.data.base import Batch, Data
from diffkit.data.finite import not_finite
from diffkit.data.ranges import bins_advice
from diffkit.decoders import decoder_for
from diffkit.files import bare, not_plain
from diffkit.spec import fits_json
from diffkit.training.config import TrainConfig
from diffkit.training.reading import read
from diffkit.training.trainable import Trainable


@frozen
class Classes:
    """What the network knows about classes.

    Attributes:
        known: False for a network of the user's own, of which nothing can be known.
        count: Number of classes, or None.
        null: Label that means "no class", or None.
        told: The class is what the network tells, not what it is told: it is a classifier.
    """

    known: bool
    count: int | None
    null: int | None
    told: bool = False

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Classes:
        """Read them from the options of a system's backbone, or from what a classifier says."""
        if "classifier" in spec:
            return cls(True, spec["num_classes"], None, told=True)
        part = spec["parts"]["backbone"] or {}
        options = part.get("recipe", part).get("options")
        if options is None or "num_classes" not in options:
            return cls(False, None, None)
        count = options["num_classes"]
        return cls(True, count, count if options.get("null_class") else None)


def check(system: Trainable, spec: Mapping[str, Any], data: Data, config: TrainConfig) -> None:
    """Raise one error that lists everything about system, data and options that does not fit.

    Raises:
        OptionError: The system has nothing to train, or an option does not fit it.
        DataError: The data does not fit the system or the options.
    """
    if system.backbone is None:
        raise OptionError("the system was composed with backbone=None, so there is nothing to train")
    if bare(system.backbone) is not system.backbone:
        raise OptionError(
            f"the system's network is wrapped in {type(system.backbone).__name__}, which training does itself: leave "
            "it out, and ask for compile=True in the options of training, or for several processes by torchrun"
        )
    _check_weights(system.backbone)
    if config.workers > (most := max(64, 4 * (os.cpu_count() or 1))):
        raise OptionError(f"workers={config.workers} are more reading processes than help here; take at most {most}")
    classes = Classes.of(spec)
    if classes.told and config.preview_every is not None:
        raise OptionError("a classifier draws no samples, so there is nothing to preview; leave preview_every out")
    problems = list(_data_problems(system, data, config))
    if not problems:
        some = read(data, range(min(len(data), 8)))
        ask = _classifier_problems if classes.told else _label_problems
        problems = [*ask(classes, data, config, some)]
        problems += [] if classes.told else _low_res_problems(system, some)
        problems = problems or [*batch_problems(some, data, classes.count), *_description_problems(data)]
    if problems:
        raise DataError("\n  ".join(["the data cannot be trained on:", *problems]) if problems[1:] else problems[0])


def _check_weights(network: nn.Module) -> None:
    """Refuse a network with nothing to train, or whose weights no checkpoint can hold, or lose updates to rounding."""
    if odd := not_plain(network.state_dict()):
        raise OptionError(f"the network cannot be trained: {odd}; train it first, and quantize a copy of the result")
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if not trained:
        raise OptionError(
            "the system's network has no parameter that requires a gradient, so there is nothing to train"
        )
    short = {name: p.dtype for name, p in trained.items() if p.dtype.itemsize < torch.float32.itemsize}
    if short:
        name, dtype = next(iter(short.items()))
        precision = "fp16" if dtype == torch.float16 else "bf16"
        raise OptionError(
            f"{len(short)} of the {len(trained)} parameters to train are short, such as {name!r} in "
            f"{str(dtype).removeprefix('torch.')}, and lose most updates to rounding; call float() on the system and "
            f"train with precision={precision!r}, which computes in that and holds the parameters in float32"
        )


def _data_problems(system: Trainable, data: Data, config: TrainConfig) -> Iterator[str]:
    if len(data) < 1:
        yield "the data is empty"
    elif config.batch_size > len(data):
        yield (
            f"batch_size is {config.batch_size}, but the data has {len(data)} examples; "
            f"use a batch_size of at most {len(data)}"
        )
    if tuple(data.shape) != system.data_shape:
        yield (
            f"the data has shape {tuple(data.shape)}, the system was composed for {system.data_shape}; "
            f"compose with data_shape={tuple(data.shape)}"
        )
    if data.bins != bins_of(system):
        yield (
            f"the data has {_words(data.bins)}, the system was composed for {_words(bins_of(system))}; "
            f"{bins_advice(data, bins_of(system))}"
        )
    if config.preview_every is not None and len(data.shape) != 3:
        yield f"previews are of images, but the data has shape {tuple(data.shape)}; leave preview_every out"
    if config.flip > 0 and len(data.shape) < 3:
        yield f"flip={config.flip:g} mirrors images, but the data has shape {tuple(data.shape)}; leave flip at 0"


def _description_problems(data: Data) -> Iterator[str]:
    for name, value in data.describe().items():
        if not fits_json(value):
            yield (
                f"the data describes itself by {name}={value!r}, which JSON cannot hold; let it be plain numbers, "
                "words or lists"
            )


def _label_problems(classes: Classes, data: Data, config: TrainConfig, example: Batch) -> Iterator[str]:
    labelled = "y" in example.conditions
    names = data.classes
    if classes.known and labelled and classes.count is None:
        yield (
            "the data has classes, but the network has none; compose with num_classes="
            f"{'...' if names is None else len(names)} in the backbone's options, or load the data without labels"
        )
    if classes.count is not None and not labelled:
        yield (
            f"the network has {classes.count} classes, but the data has no labels; load it with labels, or compose "
            "without num_classes"
        )
    if classes.count is not None and labelled and names is not None and len(names) > classes.count:
        yield (
            f"the data has {len(names)} classes, but the network has {classes.count}; compose with "
            f"num_classes={len(names)}"
        )
    if config.label_dropout > 0 and not labelled:
        yield (
            f"label_dropout={config.label_dropout:g} drops classes, but the data has no classes; load it with labels, "
            "or leave label_dropout out"
        )
    elif config.label_dropout > 0 and classes.null is None:
        yield (
            f"label_dropout={config.label_dropout:g} needs a network with a label for no class; compose with "
            "null_class=True in the backbone's options"
        )


def _classifier_problems(classes: Classes, data: Data, config: TrainConfig, example: Batch) -> Iterator[str]:
    count, names = classes.count or 0, data.classes
    if "y" not in example.conditions:
        yield "a classifier learns from labels, but the data has none; load it with labels"
    elif names is not None and len(names) > count:
        yield (
            f"the data has {len(names)} classes, but the classifier tells {count} apart; give it "
            f"num_classes={len(names)}"
        )
    others = ", ".join(sorted(example.conditions.keys() - {"y"}))
    if others:
        yield f"the data gives {others}, which a classifier does not read; take the data without"
    if config.label_dropout > 0:
        yield f"label_dropout={config.label_dropout:g} would hide what a classifier learns; leave it out"


def _low_res_problems(system: Trainable, example: Batch) -> Iterator[str]:
    """Hold small images against the channels that the network reads of them; one of the user's own says for itself."""
    if system.parts.backbone is None:
        return
    wanted = system.parts.condition_channels
    small = example.conditions.get("low_res")
    found = 0 if small is None else small.shape[1]
    if found == wanted:
        return
    if not wanted:
        yield (
            f"the data gives low_res of {found} channels, but the network reads none; compose with "
            f"low_res_channels={found} in the options of the backbone 'unet', or take the data without"
        )
    elif not found:
        yield (
            f"the network reads low_res of {wanted} channels, but the data gives none; wrap it in "
            "diffkit.data.LowRes(data, size), which --low-res does, or compose without low_res_channels"
        )
    else:
        yield f"the network reads low_res of {wanted} channels, the data gives {found}; compose with that many"


def batch_problems(batch: Batch, data: Data, num_classes: int | None) -> Iterator[str]:
    """Say what is wrong with the values of some examples; cheap, and asked of every batch before it leaves the CPU."""
    yield from not_finite(batch)
    images, bins = batch.images, data.bins
    if images.is_floating_point() and bins is not None:
        low, high = (float(v) for v in images.aminmax())
        if not (low >= -1 - 1e-4 and high <= 1 + 1e-4):
            yield (
                f"{_which(batch)} have values in [{low:g}, {high:g}]; floating point with bins must lie in [-1, 1], or "
                f"give integers from 0 to {bins - 1}"
            )
    elif not images.is_floating_point():
        low, high = (int(v) for v in images.aminmax())
        if bins is None:
            yield f"{_which(batch)} are integers, but the data has bins=None, which is continuous; give floating point"
        elif low < 0 or high >= bins:
            yield f"{_which(batch)} have values in {low}..{high}; with {bins} bins they must lie in 0..{bins - 1}"
    labels = batch.conditions.get("y")
    if labels is not None and num_classes is not None:
        wrong = (labels < 0) | (labels >= num_classes)
        if wrong.any():
            at = int(wrong.nonzero()[0, 0])
            yield (
                f"example {int(batch.indices[at])} has class {labels[at].tolist()}, but the network has {num_classes} "
                f"classes, 0..{num_classes - 1}"
            )


def _which(batch: Batch) -> str:
    return f"examples {', '.join(map(str, batch.indices[:4].tolist()))}{', ...' if len(batch.indices) > 4 else ''}"


def bins_of(system: Trainable) -> int | None:
    """Return how many values the system's data takes, or None if it is continuous."""
    return decoder_for(system.settings.bins).bins


def _words(bins: int | None) -> str:
    return "continuous values (bins=None)" if bins is None else f"{bins} bins"
