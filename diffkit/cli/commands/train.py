"""Train a system on your data, or resume its run: the same command again continues the run in --out.

The shape of the data, its number of values and its classes decide the settings of the system, unless options give
others. A finished or interrupted run is a saved system: diffkit sample, nll and explain --spec take its folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from diffkit.cli.parsing.parts import part_options
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.shared.composition import PARTS, SOURCES, Composition, keywords
from diffkit.cli.shared.data import described, first_look, grey, opened, source_of
from diffkit.cli.shared.hooks import hooks_of
from diffkit.cli.shared.paths import check_run_folder
from diffkit.errors import OptionError, within
from diffkit.runtime.output import note, show
from diffkit.training.config import TrainConfig

if TYPE_CHECKING:
    from diffkit.data.base import Data
    from diffkit.system.module import System
    from diffkit.weights import Loaded


@frozen
class Options:
    """Options of ``diffkit train``.

    Attributes:
        out: Folder of the run: checkpoints, metrics and the system as diffkit.load reads it.
        init: Begin with the weights of a file (of diffkit export, or a published one), or of the folder of a run or a
            saved system, where name and shape fit. A run that has begun keeps its own.
        init_entry: Which set of weights, if the file of --init holds several, such as model and ema.
        low_res: Train for super-resolution: give the network each image shrunk to this size (one number, or height and
            width) as well, for it to enlarge; needs a backbone with low_res_channels, such as unet.
        device: Such as cpu or cuda; a GPU if there is one.
        track: Experiment trackers: tensorboard, wandb.
        dry_run: Try a few updates on a copy, print what the run would take (memory, time, size), and stop. Nothing
            is written.
    """

    out: Path
    init: Path | None = None
    init_entry: str | None = None
    low_res: tuple[int, ...] | None = None
    device: str | None = None
    track: tuple[str, ...] = ()
    dry_run: bool = False


SPEC = CommandSpec(
    {"Options": Options, "Training": TrainConfig, "Composition": Composition},
    {"data": None, "val": None, "hook": None, **PARTS},
    required=frozenset({"data"}),
    config=True,
    preset=("composition", "training"),
    defaults={"data_shape": "that of the data", "bins": "that of the data"},
)


def run(parsed: ParsedOptions) -> None:
    """Compose the system and train it."""
    options, config = parsed.make(Options), parsed.make(TrainConfig)
    check_run_folder("--out", options.out)
    init = None if options.init is None else _weights_in(options.init)
    if options.init_entry is not None and init is None:
        raise OptionError("--init-entry names weights in the file of --init; give --init too, or leave it out")
    hooks = hooks_of(parsed)
    refuse_before_reading(config, options.out, hooks, options.track)
    if config.label_dropout > 0 and (way := way_to_classes(parsed)):
        raise OptionError(f"--label-dropout {config.label_dropout:g} drops classes, but the data has no classes; {way}")
    from diffkit.runtime.distributed import launched

    say, tell = (note, show) if launched().rank == 0 else (print_nothing, print_nothing)
    say("dry run: nothing is written" if options.dry_run else f"run: {options.out}/")
    data, is_glance = first_look(parsed, options.low_res)
    composition = composed(parsed, data, config)

    import torch

    import diffkit
    from diffkit.cli.shared.device import device_of_rank
    from diffkit.cli.shared.recipe import Recipe

    torch.manual_seed(config.seed)
    system = diffkit.compose(**composition, device=device_of_rank(options.device))
    _refuse_preview(config, system.num_steps)
    data = opened(parsed, low_res=options.low_res) if is_glance else data
    say(f"data: {described(data)}{grey(parsed, data)}\nsystem: {_named(system.parts.names)}")
    if remark := _unused_classes(system, data):
        say(remark)
    if init is not None and not _has_begun(options.out):
        say(f"weights: {init}: {_begin_with(system, init, options.init_entry)}")
    if options.dry_run:
        tell(diffkit.training.dry_run(system, data, out=options.out, config=config, progress=True))
        return
    written = Recipe(_recipe(system, composition, config, attrs.evolve(options, init=init), parsed))
    val = opened(parsed, "val", options.low_res) if "val" in parsed.parts else None
    diffkit.train(system, data, out=options.out, val=val, config=config, hooks=hooks, track=[written, *options.track])


def _recipe(
    system: System, composition: Mapping[str, Any], config: TrainConfig, options: Options, parsed: ParsedOptions
) -> str:
    """Return what is in config.toml."""
    from diffkit.cli.shared.recipe import options_in, recipe

    of_run = {name: getattr(options, name) for name in ("init", "init_entry", "low_res")}
    settings = [field.name for field in attrs.fields(Composition) if field.name in composition]
    composed = options_in(Composition(**{name: composition[name] for name in settings}))
    values = {name: value for name, value in of_run.items() if value is not None} | options_in(config) | composed
    parts = {kind: (composition[kind][0], getattr(system.parts, kind)) for kind in PARTS if kind in composition}
    if "decoder" in parts:  # which knows the number of values
        del values["bins"]
    return recipe("train", system.device, values, parts, parsed.parts)


def _weights_in(path: Path) -> Path:
    """The file of weights at a path, complete."""
    from diffkit.runtime.run_layout import weights_file

    found = weights_file(path).resolve()
    if not found.is_file():
        raise OptionError(f"--init {path} is not a file of weights, and no folder of a run or a saved system")
    return found


def _begin_with(system: System, init: Path, entry: str | None) -> Loaded:
    """Take weights over, or say in this command's words which of several sets to choose."""
    from diffkit.weights import load_matching

    with within(entry="init_entry"):
        return load_matching(system, init, entry=entry)


def _has_begun(out: Path) -> bool:
    from diffkit.runtime.run_layout import CHECKPOINTS
    from diffkit.training.checkpoint import newest_first

    return next(newest_first(out / CHECKPOINTS), None) is not None


def refuse_before_reading(config: TrainConfig, out: Path, hooks: Sequence[Any], track: Sequence[str]) -> None:
    """Check before images are read: hooks, trackers, processes, the folder of another run."""
    from diffkit.runtime.distributed import launched
    from diffkit.training.engines import check_processes
    from diffkit.training.run_folder import check_options
    from diffkit.training.run_hooks import choose_hooks

    choose_hooks(config, hooks, track)
    check_processes(config, launched().size)
    if config.epochs is None and config.overfit is None:  # else the options depend on the data
        refuse_past(out, config.steps)
        check_options(out, config)


def way_to_classes(parsed: ParsedOptions) -> str | None:
    """Return the option that gives data classes, if they are off; None if the data has some, as far as options show."""
    source, chosen = parsed.parts["data"][0], attrs.asdict(source_of(parsed), recurse=False)  # type: ignore[arg-type]  # an attrs class
    labels = chosen.get("labels")
    if labels == "none":
        return "add --data.labels folders, or prefix"
    if labels is False and Path(source).suffix != ".npy":
        return "add --data.labels true"
    return None if labels else "use data that has some"


def refuse_past(out: Path, steps: int) -> None:
    """Refuse fewer updates than a run has made: it cannot go back."""
    from diffkit.runtime.run_layout import CHECKPOINTS, step_of
    from diffkit.training.checkpoint import newest_first

    newest = next(newest_first(out / CHECKPOINTS), None)
    if newest is not None and step_of(newest) > steps:
        raise OptionError(
            f"--steps {steps} counts from the start of the run, and {out} has {step_of(newest)} steps already; ask for "
            "more to go on, or choose another folder"
        )


def _refuse_preview(config: TrainConfig, num_steps: int) -> None:
    """Refuse more steps for a picture than there are; the default takes all of fewer."""
    if config.preview_steps > num_steps and config.preview_steps != attrs.fields(TrainConfig).preview_steps.default:
        raise OptionError(
            f"--preview-steps {config.preview_steps} is more than the {num_steps} levels of this system; ask for "
            f"{num_steps} at most"
        )


def _unused_classes(system: System, data: Data) -> str:
    """Return a note if the network has more classes than the data, else an empty text."""
    known, there = system.parts.classes, len(data.classes or ())
    if not there or not known or known <= there:
        return ""
    return f"note: the network has {known} classes, the data {there}; the other {known - there} are never trained"


def composed(parsed: ParsedOptions, data: Data, config: TrainConfig) -> dict[str, Any]:
    """Return keywords for `diffkit.compose`: the options parsed, and those of the data for others."""
    found = keywords(parsed, data_shape=tuple(data.shape), bins=data.bins)
    name, chosen = found["backbone"]
    known = {option.path[-1] for option in part_options("backbone", name)}
    classes = {"num_classes": len(data.classes)} if data.classes else {}
    wanted = classes | ({"null_class": True} if classes and config.label_dropout > 0 else {})
    if parsed.values.get("low_res") is not None:
        wanted["low_res_channels"] = data.shape[0]
    found["backbone"] = (name, {key: value for key, value in wanted.items() if key in known} | chosen)
    return {name: value for name, value in found.items() if name not in (*SOURCES, "hook")}


def print_nothing(text: object) -> None:
    """Print nothing, as only the first process prints."""


def _named(names: Any) -> str:
    return ", ".join(f"{kind} {name}" for kind, name in names.items())
