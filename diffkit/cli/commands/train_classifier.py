"""Train a classifier of noisy data, for classifier guidance, or resume its run with the same command.

diffkit train-classifier --data photos/ --data.size 64 --data.labels folders --system runs/a --out runs/c --steps 20000

diffkit sample runs/a --guidance classifier --guidance.classifier runs/c --guidance.scale 1

The noise levels are those of the system whose samples it guides: name its folder, or its schedule and number of
steps. Metrics are the loss and the accuracy, by quartile of the levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions, chosen
from diffkit.cli.shared.composition import OF_TRAINING, SOURCES, Levels
from diffkit.cli.shared.data import described, first_look, grey, opened
from diffkit.cli.shared.training import RunOptions, check_before_reading, say, train, way_to_classes
from diffkit.errors import DataError, OptionError
from diffkit.guidance.classifier import Classifier
from diffkit.training.config import TrainConfig

if TYPE_CHECKING:
    from diffkit.data.base import Data
    from diffkit.guidance import NoisyClassifier
    from diffkit.system.module import System

PUBLISHED: Mapping[str, Any] = {"lr": 3e-4, "weight_decay": 0.05, "ema": ()}
"""Training options of the published classifiers that differ from those of systems."""

HEAD = 64
"""Channels of an attention head in the published classifiers."""
WITHOUT: Mapping[str, str] = {
    **dict.fromkeys(("preview_every", "preview", "preview_steps"), "a classifier draws no samples"),
    **dict.fromkeys(("label_dropout", "condition_dropout"), "a classifier learns from every label"),
    "adapter": "a classifier is trained whole",
}
"""Options of training that do not apply to classifiers."""


@frozen(kw_only=True)
class Options(RunOptions):
    """Options of ``diffkit train-classifier``.

    Attributes:
        system: Saved system or training run to guide: its noise levels are used.
    """

    system: Path | None = None


@frozen
class Noise(Levels):
    """Classes and noise levels of the classifier.

    Attributes:
        num_classes: Number of classes.
        noised: Train on noisy data; false trains on clean data only.
        data_shape: Shape of one example, channels first.
        bins: How many equally spaced values in [-1, 1] data takes: 256 is 8-bit, none is continuous data.
    """

    num_classes: int | None = None
    noised: bool = True
    data_shape: tuple[int, ...] | None = None
    bins: int | None = None


OF_SYSTEM = (*(field.name for field in attrs.fields(Levels)), "data_shape", "bins")
_OF_DATA = {"num_classes": "that of the data", "data_shape": "that of the data", "bins": "that of the data"}
SPEC = CommandSpec(
    {"Options": Options, "Training": TrainConfig, "Network": Classifier, "Noise levels": Noise},
    {"data": None, "val": None, "schedule": "linear", "timesteps": "uniform", **OF_TRAINING},
    required=frozenset({"data"}),
    config=True,
    preset=("composition", "training"),
    classifier=True,
    without=WITHOUT,
    defaults=_OF_DATA
    | {"lr": "0.0003", "weight_decay": "0.05", "ema": "none"}
    | {"num_head_channels": f"{HEAD}, or fewer where that does not divide --channels; none with --num-heads"},
)


def run(parsed: ParsedOptions) -> None:
    """Build the classifier and train it."""
    options, config, network = parsed.make(Options), parsed.make(TrainConfig, **PUBLISHED), _network(parsed)
    check_before_reading(options, config, parsed)
    if options.system is not None:
        parsed.refuse("--system sets {} already; leave one of them out", *OF_SYSTEM, "schedule")
    if way := way_to_classes(parsed):
        raise OptionError(f"a classifier learns from labels, but the data has none; {way}")
    say("dry run: nothing is written" if options.dry_run else f"run: {options.out}/")
    data, is_glance = first_look(parsed)

    import torch

    from diffkit.cli.shared.device import device_of_rank
    from diffkit.guidance import NoisyClassifier
    from diffkit.training.optimizer_building import check_optimizer

    system, noise = _levels(options, parsed, data), parsed.make(Noise)
    count = _count(noise, data)
    torch.manual_seed(config.seed)
    noisy = NoisyClassifier(system, network, count, noised=noise.noised, device=device_of_rank(options.device))
    check_optimizer(noisy.network, config)
    data = opened(parsed) if is_glance else data
    say(f"data: {described(data)}{grey(parsed, data)}\nclassifier: {noisy.extra_repr()}")
    train(noisy, data, options, config, _recipe(noisy, network, config, parsed), parsed)


def _network(parsed: ParsedOptions) -> Classifier:
    """The classifier; its heads are as wide as the published ones, if that divides its width."""
    if "num_heads" in parsed.values:
        return parsed.make(Classifier, num_head_channels=None)
    return parsed.make(Classifier, num_head_channels=math.gcd(HEAD, parsed.make(Classifier).channels))


def _levels(options: Options, parsed: ParsedOptions, data: Data) -> System:
    """A system without a network, at the noise levels of the classifier."""
    import diffkit
    from diffkit.cli.shared.device import device_of_rank

    others = (*SOURCES, *OF_TRAINING)
    slots: dict[str, Any] = {
        kind: (name, dict(more)) for kind, (name, more) in parsed.parts.items() if kind not in others
    }
    chosen = {name: parsed.values[name] for name in OF_SYSTEM if name in parsed.values}
    found: dict[str, Any] = {"data_shape": tuple(data.shape), "bins": data.bins} | chosen
    if options.system is not None:
        guided = _guided(options.system)
        _check_classes(options.system, data)
        slots |= {"schedule": guided.parts.schedule, "codec": guided.settings.codec, "modules": {**guided.frozen}}
        found = {name: getattr(guided.settings, name) for name in OF_SYSTEM}
        if tuple(data.shape) != guided.data_shape:
            raise DataError(
                f"the data has shape {tuple(data.shape)}, --system {options.system} makes {guided.data_shape}; "
                "a classifier reads what the system makes"
            )
    # x_start works with any schedule, and a classifier does not use it
    return diffkit.compose(**slots, **found, mean="x_start", backbone=None, device=device_of_rank(options.device))


def _check_classes(folder: Path, data: Data) -> None:
    """Refuse data whose classes differ from the system's: in sampling, both receive the same number."""
    from diffkit.data.matching import class_difference_text, has_class_names
    from diffkit.evaluation.saved import class_names

    guided = class_names(folder)
    if guided is None or not data.classes or not (has_class_names(guided) and has_class_names(data.classes)):
        return
    if data.classes != guided:
        differ = class_difference_text(data.classes, guided, whose=f"--system {folder}")
        raise DataError(f"{differ}; a classifier receives the numbers of the system's classes, so give it data of them")


def _guided(folder: Path) -> System:
    """The system that is guided; without its network, if there are no weights of a codec to be read."""
    import diffkit
    from diffkit.runtime.run_layout import SPEC
    from diffkit.system.loading import read_spec

    spec = read_spec(folder / SPEC)
    if "codec" in spec.get("settings", {}):
        return diffkit.load(folder)
    return diffkit.from_spec({**spec, "parts": {**spec.get("parts", {}), "backbone": None}})


def _count(noise: Noise, data: Data) -> int:
    if noise.num_classes is not None:
        return noise.num_classes
    if not data.classes:
        raise OptionError("a classifier learns from labels, but the data has none; use data that has some")
    return len(data.classes)


def _recipe(noisy: NoisyClassifier, network: Classifier, config: TrainConfig, parsed: ParsedOptions) -> str:
    """Return what is in config.toml: ``system`` is spelled out as its levels."""
    from diffkit.cli.shared.recipe import recipe

    found = {"bins": None, **chosen(**{name: getattr(noisy.settings, name) for name in OF_SYSTEM})}
    found |= {name: getattr(config, name) for name in PUBLISHED}
    found |= {"num_classes": noisy.num_classes, **chosen(num_head_channels=network.num_head_channels)}
    schedule = noisy.spec()["parts"]["schedule"]
    spec = attrs.evolve(SPEC, without={**WITHOUT, "system": "its levels are options"})
    parts = {"schedule": (schedule["name"], chosen(**schedule["options"]))}
    return recipe("train-classifier", spec, parsed, noisy.device, found, parts)
