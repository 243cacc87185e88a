"""Checks of system, data and options before training begins."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from diffkit.data.base import Batch, Data
from diffkit.data.finite import find_not_finite
from diffkit.data.first_examples import FirstExamples
from diffkit.data.ranges import bins_advice
from diffkit.errors import UNSET, DataError, Message, OptionError, joined, problem
from diffkit.options import option_names
from diffkit.protocols import NO_CLASS, Composition, ConditionalBackbone
from diffkit.runtime.files import unwrap_module
from diffkit.runtime.weights_files import not_plain
from diffkit.system.coupling import for_network
from diffkit.system.saving import fits_json
from diffkit.system.settings import bins_of
from diffkit.system.signatures import missing_problems, name_problems
from diffkit.training.augmentation import drop_conditions
from diffkit.training.config import TrainConfig
from diffkit.training.parameter_groups import frozen_names
from diffkit.training.reading_errors import read_examples
from diffkit.training.trainable import Trainable, trained_of


@frozen
class AcceptedLabels:
    """The labels ``y`` that the network to train accepts.

    Attributes:
        count: Number of the network's classes; 0 for none, None if unknown.
        null: The network's label for "no class", which replaces -1; None if it has no such label.
    """

    count: int | None
    null: int | None

    @classmethod
    def of(cls, parts: Composition) -> AcceptedLabels:
        """Return the labels that the network of a composition accepts."""
        null = (parts.null_conditions or {}).get("y")
        return cls(parts.classes, null if isinstance(null, int) else None)


def examples_for(config: TrainConfig, data: Data) -> Data:
    """Return the data to train on: all of it, or as few examples as the option ``overfit`` says."""
    return data if config.overfit is None else FirstExamples(data, config.overfit)


def check_training(system: Trainable, spec: Mapping[str, Any], data: Data, config: TrainConfig) -> None:
    """Check system, data and options before training: raise one error that lists everything that does not fit.

    Raises:
        OptionError: The system has nothing to train, or an option does not fit it.
        DataError: The data does not fit the system or the options.
    """
    if system.network is None:
        raise OptionError("the system was composed with backbone=None, so there is nothing to train")
    if unwrap_module(system.network) is not system.network:
        raise OptionError(
            f"the system's network is wrapped in {type(system.network).__name__}, which training does itself; leave "
            "it out, and pass compile=True to training, or start several processes by torchrun"
        )
    trained = trained_of(system) or system.network
    _check_weights(trained, frozen_names(trained, config.freeze))
    if config.workers > (most := max(64, 4 * (os.cpu_count() or 1))):
        raise OptionError(
            f"is more worker processes than are useful; pass at most {most}", option="workers", value=config.workers
        )
    classes, is_classifier = AcceptedLabels.of(system.parts), "classifier" in spec
    if is_classifier and config.preview_every is not None:
        raise OptionError("a classifier draws no samples, so there is nothing to preview", fix={"preview_every": UNSET})
    problems = list(_data_problems(system, data, config))
    if not problems:
        some = read_examples(data, range(min(len(data), 8)))
        if is_classifier:
            problems = [*_classifier_problems(classes, data, config, some)]
        else:
            problems = [*_label_problems(system, classes, data, some), *_low_res_problems(system, config, some)]
            problems += _context_problems(system, some)
            problems = problems or [*_condition_problems(system, some), *_dropping_problems(system, config, some)]
        problems = problems or [*_unlabelled_problems(system, classes, data)]
        problems = problems or [*batch_problems(some, data, classes), *_description_problems(data)]
    if problems:
        raise DataError(joined("\n  ", ["the data cannot be trained on:", *problems]) if problems[1:] else problems[0])


def _check_weights(network: nn.Module, frozen: Collection[str]) -> None:
    """Raise if a network has no trainable weights, or weights that cannot be saved or lose updates to rounding."""
    if odd := not_plain(network.state_dict()):
        raise OptionError(f"the network cannot be trained: {odd}; train it first, and quantize a copy of the result")
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad and name not in frozen}
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
        yield problem(
            f"is more than the {len(data)} examples of the data",
            option="batch_size",
            value=config.batch_size,
            fix={"batch_size": len(data)},
        )
    if tuple(data.shape) != system.data_shape:
        yield problem(
            f"the data has shape {tuple(data.shape)}, the system was composed for {system.data_shape}",
            fix={"data_shape": tuple(data.shape)},
        )
    if data.bins != (bins := bins_of(system.settings)):
        text = f"the data has {_bins_text(data.bins)}, the system was composed for {_bins_text(bins)}"
        yield Message(text, bins_advice(data, bins))
    if config.preview_every is not None and len(data.shape) != 3:
        yield problem(
            f"previews are of images, but the data has shape {tuple(data.shape)}", fix={"preview_every": UNSET}
        )
    if config.flip > 0 and len(data.shape) < 3:
        yield problem(
            f"mirrors images, but the data has shape {tuple(data.shape)}",
            option="flip",
            value=config.flip,
            fix={"flip": UNSET},
        )


def _description_problems(data: Data) -> Iterator[str]:
    for name, value in data.describe().items():
        if not fits_json(value):
            yield (
                f"the data's description has {name}={value!r}, which JSON cannot hold; let it be plain numbers, "
                "words or lists"
            )


def _label_problems(system: Trainable, classes: AcceptedLabels, data: Data, example: Batch) -> Iterator[str]:
    labelled = "y" in example.conditions
    names = data.classes
    if classes.count == 0 and labelled:
        yield problem(
            "the data has classes, but the network has none; load the data without labels"
            + ("" if _has_option(system, "num_classes") else ", or compose with one that has"),
            fix={"num_classes": ... if names is None else len(names)} if _has_option(system, "num_classes") else (),
        )
    if classes.count and not labelled:
        yield problem(
            f"the network has {classes.count} classes, but the data has no labels; load it with labels",
            fix={"num_classes": UNSET},
        )
    if classes.count and labelled and names is not None and len(names) > classes.count:
        yield problem(
            f"the data has {len(names)} classes, but the network has {classes.count}",
            fix={"num_classes": len(names)},
        )


def _condition_problems(system: Trainable, example: Batch) -> Iterator[str]:
    """Yield which conditions of the data the network does not accept, and which it requires that the data lacks."""
    if system.network is None:
        return
    conditions = for_network(system.settings.coupling, example.conditions)
    for misfit in (
        *name_problems(system.network, conditions, frozenset()),
        *missing_problems(system.network, conditions),
    ):
        yield f"the data does not fit the network: {misfit}"


def _dropping_problems(system: Trainable, config: TrainConfig, example: Batch) -> Iterator[str]:
    """Yield why conditions cannot be dropped at random, found by dropping those of some examples."""
    known = {name for name, value in (system.parts.null_conditions or {}).items() if value is not None}
    for name in config.dropouts:
        if name not in known or name not in example.conditions:
            what = "the data does not give" if name in known else "has no null condition"
            names = ", ".join(sorted(known & example.conditions.keys())) or "none"
            yield problem(
                f"drops {name!r}, which {what}; those that can be dropped: {names}",
                option="condition_dropout",
                value=config.condition_dropout,
                fix={"condition_dropout": UNSET},
            )
    if config.label_dropout <= 0:
        return
    null = system.parts.null_conditions or {}
    dropping = partial(problem, option="label_dropout", value=config.label_dropout)
    if not example.conditions or (null and not null.keys() & example.conditions.keys()):
        yield dropping(
            f"drops classes, but the data has no {', '.join(null) if null else 'classes'}; load it with labels",
            fix={"label_dropout": UNSET},
        )
    elif not null:
        yield dropping("needs a network with a label for no class", fix=_null_label_advice(system))
    left_out = [name for name in example.conditions if name in null and null[name] is None]
    if left_out:
        yield dropping(
            f"cannot leave {left_out[0]!r} out for one example alone; compose with null_conditions that give a value "
            "for it"
        )
        return
    try:
        drop_conditions(example.conditions, null, config.label_dropout, 0, 0, len(example.images))
    except OptionError as error:
        yield dropping(f"cannot drop conditions: {error}")


def _unlabelled_problems(system: Trainable, classes: AcceptedLabels, data: Data) -> Iterator[str]:
    """Yield a problem if the data has examples without a class, but the network has no label for them."""
    count = data.describe().get("without_class")
    if count and classes.null is None:
        yield problem(
            f"{count} examples have no class, but the network has no label for no class; give every example one",
            fix=_null_label_advice(system),
        )


def _null_label_advice(system: Trainable) -> Mapping[str, Any]:
    """Return the options of `compose` that give a network a label for "no class", as the fix of a message."""
    return {"null_class": True} if _has_option(system, "null_class") else {"null_conditions": {"y": ...}}


def _has_option(system: Trainable, name: str) -> bool:
    recipe = system.parts.backbone
    return recipe is not None and name in (option_names(type(recipe)) or ())


def _classifier_problems(classes: AcceptedLabels, data: Data, config: TrainConfig, example: Batch) -> Iterator[str]:
    count, names = classes.count or 0, data.classes
    if "y" not in example.conditions:
        yield "a classifier learns from labels, but the data has none; load it with labels"
    elif names is not None and len(names) > count:
        yield problem(
            f"the data has {len(names)} classes, but the classifier has {count}", fix={"num_classes": len(names)}
        )
    others = ", ".join(sorted(example.conditions.keys() - {"y"}))
    if others:
        yield f"the data gives {others}, which a classifier does not read; load the data without"
    if config.label_dropout > 0:
        yield problem(
            "would hide what a classifier learns",
            option="label_dropout",
            value=config.label_dropout,
            fix={"label_dropout": UNSET},
        )


def _low_res_problems(system: Trainable, config: TrainConfig, example: Batch) -> Iterator[str]:
    """Yield a problem unless low_res has the channels that the network reads, if the network has a recipe."""
    small = example.conditions.get("low_res")
    if config.low_res_noise > 0 and small is None:
        yield problem(
            "is noise on small images, but the data gives none",
            option="low_res_noise",
            value=config.low_res_noise,
            fix={"low_res_noise": UNSET},
        )
    if system.parts.backbone is None:
        return
    expected = system.parts.condition_channels
    found = 0 if small is None else small.shape[1]
    if found == expected:
        return
    if not expected:
        yield problem(
            f"the data gives low_res of {found} channels, but the network reads none; load the data "
            "without, or use the backbone 'unet'",
            fix={"low_res_channels": found},
        )
    elif not found:
        yield problem(
            f"the network reads low_res of {expected} channels, but the data gives none; wrap it in "
            "diffkit.data.LowRes(data, size), which --low-res does",
            fix={"low_res_channels": UNSET},
        )
    else:
        yield f"the network reads low_res of {expected} channels, the data gives {found}; compose with that many"


def _context_problems(system: Trainable, example: Batch) -> Iterator[str]:
    """Yield a problem unless the context has the width that the network reads, if the network has a recipe."""
    recipe = system.parts.backbone
    if not isinstance(recipe, ConditionalBackbone):
        return
    expected, context = recipe.context_width(), example.conditions.get("context")
    found = context.shape[-1] if isinstance(context, Tensor) and context.ndim == 3 else 0
    if not expected and context is not None and _has_option(system, "context"):
        yield problem(
            f"the data gives a context of width {found}, but the network reads none; load the data without",
            fix={"context": found},
        )
    elif expected and context is None:
        yield problem(
            f"the network reads a context of width {expected}, but the data gives none; wrap it in "
            "diffkit.data.Encoded(data, encode, texts)",
            fix={"context": UNSET},
        )
    elif expected and found != expected:
        what = f"of width {found}" if found else "that is not (L, width) for each example"
        yield f"the network reads a context of width {expected}, the data gives one {what}; compose with that width"


def batch_problems(batch: Batch, data: Data, classes: AcceptedLabels) -> Iterator[str]:
    """Yield what is wrong with the values of a training batch; cheap, as it is called for every batch, on the CPU."""
    yield from find_not_finite(batch)
    images, bins = batch.images, data.bins
    if images.is_floating_point() and bins is not None:
        low, high = (float(v) for v in images.aminmax())
        if not (low >= -1 - 1e-4 and high <= 1 + 1e-4):
            yield (
                f"{_examples_text(batch)} have values in [{low:g}, {high:g}]; floating point with bins must lie in "
                f"[-1, 1], or give integers from 0 to {bins - 1}"
            )
    elif not images.is_floating_point():
        low, high = (int(v) for v in images.aminmax())
        if bins is None:
            yield f"{_examples_text(batch)} are integers, but the data is continuous; give floating point"
        elif low < 0 or high >= bins:
            yield (
                f"{_examples_text(batch)} have values in {low}..{high}; with {bins} bins they must lie in 0..{bins - 1}"
            )
    if (labels := batch.conditions.get("y")) is not None:
        yield from _label_value_problems(labels, batch, classes)


def _label_value_problems(labels: Any, batch: Batch, classes: AcceptedLabels) -> Iterator[str]:
    """Yield the first label of a batch that the network does not accept."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.ndim != 1:
        if classes.count:
            yield f"the classes y must be whole numbers, one for each example, got {_labels_text(labels)}"
        return
    labels = labels.long()
    none = labels == NO_CLASS
    if classes.null is None and none.any():
        at = int(batch.indices[int(none.nonzero()[0, 0])])
        yield (
            f"example {at} has no class (-1), but the network has no label for no class; compose with null_class=True "
            "in the backbone's options, or null_conditions={'y': ...} for a network of your own"
        )
    elif classes.count:
        wrong = ~none & ((labels < 0) | (labels >= classes.count))
        if wrong.any():
            at = int(wrong.nonzero()[0, 0])
            yield (
                f"example {int(batch.indices[at])} has class {labels[at].tolist()}, but the network has "
                f"{classes.count} classes, 0..{classes.count - 1}"
            )


def _labels_text(labels: Any) -> str:
    if isinstance(labels, Tensor):
        return f"{str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}"
    return f"a {type(labels).__name__}"


def _examples_text(batch: Batch) -> str:
    return f"examples {', '.join(map(str, batch.indices[:4].tolist()))}{', ...' if len(batch.indices) > 4 else ''}"


def _bins_text(bins: int | None) -> str:
    return "continuous values (bins=None)" if bins is None else f"{bins} bins"
