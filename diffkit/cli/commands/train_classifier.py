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

from attrs import frozen

from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.data import described, grey, opened
from diffkit.cli.shared.hooks import hooks_of
from diffkit.cli.shared.paths import check_run_folder
from diffkit.errors import DataError, OptionError
from diffkit.guidance.classifier import Classifier
from diffkit.runtime.output import note, show
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
    "label_dropout": "a classifier learns from every label",
}
"""Options of training that do not apply to classifiers."""


@frozen
class Options:
    """Options of ``diffkit train-classifier``.

    Attributes:
        out: Folder of the run: checkpoints, metrics and the classifier as diffkit sample reads it.
        system: Saved system or training run to guide: its noise levels are used.
        device: Such as cpu or cuda; a GPU if there is one.
        track: Experiment trackers: tensorboard, wandb.
        dry_run: Try a few updates on a copy, print what the run would take (memory, time, size), and stop. Nothing
            is written.
    """

    out: Path
    system: Path | None = None
    device: str | None = None
    track: tuple[str, ...] = ()
    dry_run: bool = False


@frozen
class Noise:
    """Classes and noise levels of the classifier.

    Attributes:
        num_classes: Number of classes.
        noised: Train on noisy data; false trains on clean data only.
        data_shape: Shape of one example, channels first.
        bins: How many equally spaced values in [-1, 1] data takes: 256 is 8-bit, none is continuous data.
        num_steps: T, the number of noise levels.
        train_spacing: Train on some of the levels only: "250", "10,15,20", "ddim50", "trailing50", ...
        rescale_time: Condition the network on (k - 1) 1000 / T, so that it means the same at any T.
    """

    num_classes: int | None = None
    noised: bool = True
    data_shape: tuple[int, ...] | None = None
    bins: int | None = None
    num_steps: int = 1000
    train_spacing: str | int | tuple[int, ...] | None = None
    rescale_time: bool = True


LEVELS = ("num_steps", "train_spacing", "rescale_time")
OF_SYSTEM = (*LEVELS, "data_shape", "bins")


_OF_DATA = {"num_classes": "that of the data", "data_shape": "that of the data", "bins": "that of the data"}
SPEC = CommandSpec(
    {"Options": Options, "Training": TrainConfig, "Network": Classifier, "Noise levels": Noise},
    {"data": None, "val": None, "hook": None, "schedule": "linear", "timesteps": "uniform"},
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
    options, config, recipe = parsed.make(Options), parsed.make(TrainConfig, **PUBLISHED), _network(parsed)
    check_run_folder("--out", options.out)
    _check_levels(options, parsed)
    from diffkit.cli.commands.train import print_nothing, refuse_before_reading, way_to_classes
    from diffkit.cli.shared.recipe import Recipe
    from diffkit.runtime.distributed import launched

    hooks = hooks_of(parsed)
    refuse_before_reading(config, options.out, hooks, options.track)
    if way := way_to_classes(parsed):
        raise OptionError(f"a classifier learns from labels, but the data has none; {way}")
    say, tell = (note, show) if launched().rank == 0 else (print_nothing, print_nothing)
    say("dry run: nothing is written" if options.dry_run else f"run: {options.out}/")
    data = opened(parsed)

    import torch

    import diffkit
    from diffkit.cli.shared.device import device_of_rank
    from diffkit.guidance import NoisyClassifier

    system, noise = _levels(options, parsed, data), parsed.make(Noise)
    count = _count(noise, data)
    torch.manual_seed(config.seed)
    noisy = NoisyClassifier(system, recipe, count, noised=noise.noised, device=device_of_rank(options.device))
    say(f"data: {described(data)}{grey(parsed, data)}\nclassifier: {noisy.extra_repr()}")
    if options.dry_run:
        tell(diffkit.training.dry_run(noisy, data, out=options.out, config=config, progress=True))
        return
    written = Recipe(_recipe(noisy, recipe, config, parsed))
    val = opened(parsed, "val") if "val" in parsed.parts else None
    diffkit.train(noisy, data, out=options.out, val=val, config=config, hooks=hooks, track=[written, *options.track])


def _network(parsed: ParsedOptions) -> Classifier:
    """The classifier; its heads are as wide as the published ones, if that divides its width."""
    if "num_heads" in parsed.values:
        return parsed.make(Classifier, num_head_channels=None)
    return parsed.make(Classifier, num_head_channels=math.gcd(HEAD, parsed.make(Classifier).channels))


def _check_levels(options: Options, parsed: ParsedOptions) -> None:
    """Refuse levels that are named twice."""
    if options.system is None:
        return
    named = [name for name in OF_SYSTEM if name in parsed.values] + (
        ["schedule"] if "schedule" in parsed.chosen else []
    )
    if named:
        flags = ", ".join("--" + name.replace("_", "-") for name in named)
        raise OptionError(f"--system sets {flags} already; leave one of them out")


def _levels(options: Options, parsed: ParsedOptions, data: Data) -> System:
    """A system without a network, at the noise levels of the classifier."""
    import diffkit

    slots: dict[str, Any] = {kind: (name, dict(more)) for kind, (name, more) in parsed.parts.items()}
    del slots["data"]
    slots.pop("val", None)
    chosen = {name: parsed.values[name] for name in OF_SYSTEM if name in parsed.values}
    found: dict[str, Any] = {"data_shape": tuple(data.shape), "bins": data.bins} | chosen
    if options.system is not None:
        guided = _without_network(options.system)
        _check_classes(options.system, data)
        slots["schedule"] = guided.parts.schedule
        found = {name: getattr(guided.settings, name) for name in OF_SYSTEM}
        if tuple(data.shape) != guided.data_shape:
            raise DataError(
                f"the data has shape {tuple(data.shape)}, --system {options.system} makes {guided.data_shape}; "
                "a classifier reads what the system makes"
            )
    # x_start works with any schedule, and a classifier does not use it
    return diffkit.compose(**slots, **found, mean="x_start", backbone=None)


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


def _without_network(folder: Path) -> System:
    import diffkit
    from diffkit.runtime.run_layout import SPEC
    from diffkit.system.loading import read_spec

    spec = read_spec(folder / SPEC)
    return diffkit.from_spec({**spec, "parts": {**spec.get("parts", {}), "backbone": None}})


def _count(noise: Noise, data: Data) -> int:
    if noise.num_classes is not None:
        return noise.num_classes
    if not data.classes:
        raise OptionError("a classifier learns from labels, but the data has none; use data that has some")
    return len(data.classes)


def _recipe(noisy: NoisyClassifier, recipe: Classifier, config: TrainConfig, parsed: ParsedOptions) -> str:
    """Return what is in config.toml: ``system`` is spelled out as its levels."""
    from diffkit.cli.shared.recipe import options_in
    from diffkit.cli.shared.recipe import recipe as as_toml

    settings = {name: getattr(noisy.settings, name) for name in OF_SYSTEM}
    noise = Noise(num_classes=noisy.num_classes, noised=noisy.noised, **settings)
    trained = {name: value for name, value in options_in(config).items() if name not in WITHOUT}
    parts = {kind: (part["name"], getattr(noisy.parts, kind)) for kind, part in noisy.spec()["parts"].items()}
    return as_toml(
        "train-classifier", noisy.device, {**trained, **options_in(recipe), **options_in(noise)}, parts, parsed.parts
    )
