"""Train a system on your data, or resume its run: the same command again continues the run in --out.

The shape of the data, its number of values and its classes decide the settings of the system, unless options give
others. A finished or interrupted run is a saved system: diffkit sample, nll and explain --spec take its folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from diffkit.cli.parsing.parts import part_options
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions, chosen
from diffkit.cli.shared.codec import check_encoder, lacks_options, measured_codec
from diffkit.cli.shared.composition import (
    OF_TRAINING,
    SOURCES,
    SYSTEM,
    Composition,
    Sampling,
    keywords,
    loaded_base,
    parts_of,
    settings_of,
)
from diffkit.cli.shared.data import described, first_look, grey, opened
from diffkit.cli.shared.training import RunOptions, check_before_reading, say, train, way_to_classes
from diffkit.errors import CheckpointError, OptionError, within
from diffkit.runtime.run_layout import is_saved
from diffkit.training.config import TrainConfig

if TYPE_CHECKING:
    from diffkit.data.base import Data
    from diffkit.system.module import System


@frozen(kw_only=True)
class Options(RunOptions):
    """Options of ``diffkit train``.

    Attributes:
        init: Begin with the weights of a file (of diffkit export, or a published one), or of the folder of a run or a
            saved system, where name and shape fit. A run that has begun keeps its own. A folder's parts and levels are
            the defaults of those that no option names. With --adapter, the weights beside which that is trained; of a
            folder, its system too, unless --backbone is given.
        init_entry: Which set of weights, if the file of --init holds several, such as model and ema.
        low_res: Train for super-resolution: give the network each image shrunk to this size (one number, or height and
            width) as well, for it to enlarge; needs a backbone with low_res_channels, such as unet.
    """

    init: Path | None = None
    init_entry: str | None = None
    low_res: tuple[int, ...] | None = None


SPEC = CommandSpec(
    {"Options": Options, "Training": TrainConfig, "Composition": Composition, "Sampling": Sampling},
    {"data": None, "val": None, **SYSTEM, **OF_TRAINING, "adapter": None},
    required=frozenset({"data"}),
    begins=True,
    config=True,
    preset=("composition", "training", "sampling"),
    defaults={"data_shape": "that of the data", "bins": "that of the data", "sampling_steps": "all levels"},
)


def run(parsed: ParsedOptions) -> None:
    """Compose the system and train it."""
    options, config = parsed.make(Options), parsed.make(TrainConfig)
    check_before_reading(options, config, parsed)
    init = None if options.init is None else _weights_in(options.init)
    if options.init_entry is not None and init is None:
        raise OptionError("--init-entry names weights in the file of --init; give --init too, or leave it out")
    if config.label_dropout > 0 and (way := way_to_classes(parsed)):
        raise OptionError(f"--label-dropout {config.label_dropout:g} drops classes, but the data has no classes; {way}")
    say("dry run: nothing is written" if options.dry_run else f"run: {options.out}/")
    if config.adapter is not None and init is None:
        raise OptionError("--adapter is trained beside weights; name them with --init FOLDER")
    check_encoder(parsed.parts.get("codec"))
    data, is_glance = first_look(parsed, options.low_res)
    saved = init.parent if init is not None and is_saved(init.parent) else None
    composition = composed(parsed, data, config, saved if config.adapter is None else None)
    if lacks_options(composition.get("codec")):
        data, is_glance = opened(parsed, low_res=options.low_res) if is_glance else data, False
        composition["codec"] = measured_codec(composition["codec"], data, options.out)

    import torch

    import diffkit
    from diffkit.cli.shared.device import device_of_rank
    from diffkit.cli.shared.recipe import recipe
    from diffkit.training.checkpoint import completed_updates
    from diffkit.training.optimizer_building import check_optimizer

    torch.manual_seed(config.seed)
    device = device_of_rank(options.device)
    base = saved if config.adapter is not None else None
    of_base = base is not None and "backbone" not in parsed.chosen
    system = loaded_base(base, parsed, device) if base and of_base else diffkit.compose(**composition, device=device)
    if system.trained is not None:
        check_optimizer(system.trained, config)
    data = opened(parsed, low_res=options.low_res) if is_glance else data
    named = ", ".join([f"{kind} {name}" for kind, name in system.parts.names.items()])
    say(f"data: {described(data)}{grey(parsed, data)}\nsystem: {named}")
    if remark := _unused_classes(system, data):
        say(remark)
    if init is not None and not of_base and (config.adapter is not None or not completed_updates(options.out)):
        from diffkit.weights import load_matching

        with within(entry="init_entry"):
            found_weights = load_matching(system, init, entry=options.init_entry)
        say(f"weights: {init}: {found_weights}")
        if config.adapter is not None and (found_weights.left or found_weights.reshaped):
            raise OptionError("--adapter is trained beside complete weights; leave --backbone out, or --adapter")
        if remark := _learned_otherwise(init.parent, system):
            say(remark)
    found = {name: composition[name] for name in ("data_shape", "bins") if name in composition} | chosen(init=init)
    kept = {kind: composition[kind] for kind in composition.keys() & {"backbone", "codec"}}
    if of_base:
        found, kept = found | settings_of(system), parts_of(system)
    content = recipe("train", SPEC, parsed, system.device, found, kept)
    train(system, data, options, config, content, parsed, options.low_res, base)


def _weights_in(path: Path) -> Path:
    """The file of weights at a path, complete."""
    from diffkit.runtime.run_layout import weights_file

    found = weights_file(path).resolve()
    if not found.is_file():
        raise OptionError(f"--init {path} is not a file of weights, and no folder of a run or a saved system")
    return found


_FREE_PARTS = ("loss", "timesteps", "sampler")
_FREE_SETTINGS = ("coupling", "bins", "decoder", "clip_x_start", "null_conditions")
"""What may differ between two systems whose networks mean the same."""


def _learned_otherwise(folder: Path, system: System) -> str:
    """Return a note if weights are of a saved system that the network means something else in, else an empty text."""
    from diffkit.training.run_differences import read_comparable_spec, system_differences

    try:
        was = read_comparable_spec(folder)
    except CheckpointError:  # there is none, or it is of something else
        return ""
    now = json.loads(json.dumps(system.spec()))
    now["parts"] |= {kind: was["parts"].get(kind) for kind in _FREE_PARTS}
    now["settings"] |= {name: was["settings"].get(name) for name in _FREE_SETTINGS}
    found = system_differences(folder, now)
    return f"note: the network of {folder} was trained as another system: {'; '.join(found)}" if found else ""


def _unused_classes(system: System, data: Data) -> str:
    """Return a note if the network has more classes than the data, else an empty text."""
    known, there = system.parts.classes, len(data.classes or ())
    if not there or not known or known <= there:
        return ""
    return f"note: the network has {known} classes, the data {there}; the other {known - there} are never trained"


def composed(parsed: ParsedOptions, data: Data, config: TrainConfig, saved: Path | None) -> dict[str, Any]:
    """Return keywords for `diffkit.compose`: the options parsed, and those of the data for others.

    Args:
        parsed: The options.
        data: The data.
        config: Options of training.
        saved: The folder of a saved system whose weights the network begins with.
    """
    found = keywords(parsed, data_shape=tuple(data.shape), bins=data.bins)
    name, own = found["backbone"]
    known = {option.path[-1] for option in part_options("backbone", name)}
    classes = {"num_classes": len(data.classes)} if data.classes else {}
    wanted = classes | ({"null_class": True} if classes and config.label_dropout > 0 else {})
    if parsed.values.get("low_res") is not None:
        wanted["low_res_channels"] = data.shape[0]
    if saved is not None and not classes and "num_classes" not in own:
        own = {key: value for key, value in own.items() if key != "null_class"}
    backbone = (name, {key: value for key, value in wanted.items() if key in known} | own)
    found["backbone"] = backbone if saved is None else for_size(backbone, saved, found["data_shape"])
    return {name: value for name, value in found.items() if name not in (*SOURCES, *OF_TRAINING, "adapter")}


def for_size(backbone: tuple[str, Any], saved: Path, shape: tuple[int, ...]) -> tuple[str, Any]:
    """Return a backbone with the layers of the saved one for data of another size, but for options of its own."""
    from diffkit.protocols import ResizableBackbone
    from diffkit.registry.resolve import resolve
    from diffkit.runtime.run_layout import SPEC as SYSTEM_SPEC
    from diffkit.system.loading import read_spec

    name, options = backbone
    spec = read_spec(saved / SYSTEM_SPEC)
    was, settings = spec["parts"].get("backbone") or {}, spec["settings"]
    if was.get("name") != name or len(settings["data_shape"]) != len(shape) or "codec" in settings:
        return backbone
    old, new = (resolve("backbone", (name, each))[0] for each in (was["options"], options))
    if not isinstance(old, ResizableBackbone):
        return backbone
    other = old.resized(tuple(settings["data_shape"]), shape)
    values = {each: (getattr(old, each), getattr(new, each), getattr(other, each)) for each in was["options"]}
    return name, {**options, **{each: to for each, (of, own, to) in values.items() if to != of == own}}
