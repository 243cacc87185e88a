"""Everything that can be known to be wrong before any work is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from attrs import frozen

from diffkit._errors import DataError, OptionError
from diffkit.data.base import Batch, Data
from diffkit.decoders import Binned
from diffkit.system import System
from diffkit.training.config import TrainConfig


@frozen
class Classes:
    """What the network knows about classes.

    Attributes:
        known: False for a network of the user's own, of which nothing can be known.
        count: Number of classes, or None.
        null: Label that means "no class", or None.
    """

    known: bool
    count: int | None
    null: int | None

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Classes:
        """Read them from the options of a system's backbone."""
        options = (spec["parts"]["backbone"] or {}).get("options")
        if options is None or "num_classes" not in options:
            return cls(False, None, None)
        count = options["num_classes"]
        return cls(True, count, count if options.get("null_class") else None)


def check(system: System, spec: Mapping[str, Any], data: Data, config: TrainConfig) -> None:
    """Raise one error that lists everything about system, data and options that does not fit.

    Raises:
        OptionError: The system has nothing to train, or an option does not fit it.
        DataError: The data does not fit the system or the options.
    """
    if system.backbone is None:
        raise OptionError("the system was composed with backbone=None, so there is nothing to train")
    if not any(p.requires_grad for p in system.backbone.parameters()):
        raise OptionError(
            "the system's network has no parameter that requires a gradient, so there is nothing to train"
        )
    problems = list(_data_problems(system, data, config))
    if not problems:
        problems = list(_label_problems(Classes.of(spec), data, config, data.batch(np.arange(1))))
    if problems:
        raise DataError("\n  ".join(["the data cannot be trained on:", *problems]) if problems[1:] else problems[0])


def _data_problems(system: System, data: Data, config: TrainConfig) -> Iterator[str]:
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
            f"compose with bins={data.bins}"
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
    if config.label_dropout > 0 and classes.null is None:
        yield (
            f"label_dropout={config.label_dropout:g} needs a network with a label for no class; compose with "
            "null_class=True in the backbone's options"
        )


def bins_of(system: System) -> int | None:
    """Return how many values the system's data takes, or None if it is continuous."""
    bins = system.settings.bins
    return Binned(**bins).bins if isinstance(bins, Mapping) else bins


def _words(bins: int | None) -> str:
    return "continuous values (bins=None)" if bins is None else f"{bins} bins"
