"""From names to a system: resolve every slot, compose the parts, and report all problems at once."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from diffkit.errors import (
    CompositionError,
    DiffkitError,
    Message,
    OptionError,
    ProtocolError,
    did_you_mean,
    joined,
    naming,
    problem,
)
from diffkit.options import check_flag, check_integer, option_names
from diffkit.parts.codecs.identity import Identity
from diffkit.parts.couplings.independent import Independent
from diffkit.protocols import (
    AutoencoderCodec,
    Codec,
    Composition,
    ConditionalBackbone,
    ContinuousSchedule,
    Decoder,
    InvariantLoss,
    LearnedSchedule,
    NetworkLoss,
    PairSampler,
    ResizableBackbone,
    TimeSampler,
    TwoTimeBackbone,
)
from diffkit.registry import SLOTS
from diffkit.registry.contracts import problems_of
from diffkit.registry.resolve import Slot, resolve
from diffkit.runtime.files import unwrap_module
from diffkit.spacing import Spacing
from diffkit.system.building import bounded
from diffkit.system.call_parts import noise_problems
from diffkit.system.codec import check_autoencoder
from diffkit.system.codec_files import open_codec
from diffkit.system.coefficients import scalings
from diffkit.system.learned import build_modules
from diffkit.system.module import System
from diffkit.system.null_conditions import nulls_of, plain_nulls
from diffkit.system.numerics import computing
from diffkit.system.sampling_defaults import check_sampling, plain_sampling
from diffkit.system.saving import foreign_modules, shape_of
from diffkit.system.settings import MOST_STEPS, Settings, decoder_for, plain_spacing, shortest
from diffkit.system.signatures import NamedTime, check_takes_time
from diffkit.system.training_table import training_table
from diffkit.tensors import device_of, precision_of

MOST_VALUES = 2**31
"""Largest number of values of an example: 8 GiB of float32."""


_OF_NETWORK = {"time_argument": None, "time_to_argument": None, "null_conditions": None}
"""Arguments that are of a network, and not passed on to another one."""


class _Default(int):
    """A default, which can be told from the same number given by the caller."""


def compose(
    *,
    schedule: Slot = "linear",
    mean: Slot = "eps",
    var: Slot = "fixed_large",
    loss: Slot = "simple",
    timesteps: Slot = "uniform",
    sampler: Slot = "ancestral",
    backbone: Slot | nn.Module | None = "unet",
    data_shape: Sequence[int] = (3, 64, 64),
    num_steps: int = 1000,
    train_spacing: Spacing = None,
    rescale_time: bool = True,
    clip_x_start: bool | None = None,
    bins: int | Mapping[str, Any] | None = _Default(256),
    decoder: Slot = None,
    coupling: Slot = None,
    codec: Slot = None,
    time_argument: str | None = None,
    time_to_argument: str | None = None,
    null_conditions: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
    modules: Mapping[str, nn.Module] | None = None,
    device: str | torch.device | None = None,
) -> System:
    """Build a whole diffusion system from its parts.

    Each part is a name ("cosine"), a pair ("cosine", {"s": 0.01}), a mapping {"name": "cosine", "s": 0.01}, or an
    instance. The defaults are improved-diffusion's.

    Args:
        schedule: Noise schedule.
        mean: Mean parameterization: what the network predicts.
        var: Variance of the reverse step.
        loss: What training minimizes.
        timesteps: Timestep sampler: which levels training visits.
        sampler: Sampler; any other can be chosen at sampling time.
        backbone: The network's recipe; any `nn.Module` with ``forward(x, time, **conditions)``, which receives x in the
            dtype of its weights and time in float32 or longer; or None, if every call has ``model=``.
        data_shape: Shape of one example, (C, *S).
        num_steps: T, the number of levels.
        train_spacing: Train on a respaced table; see `diffkit.spacing`.
        rescale_time: Condition the network on ``(k - 1) 1000 / T``, so that time does not depend on T. False is what
            guided-diffusion and DiT do.
        clip_x_start: Clip estimates of clean data to [-1, 1] in sampling and scoring, never in training. True for
            binned data, False for continuous data.
        bins: Number of equally spaced values in [-1, 1] that data takes: 256 is 8-bit. A mapping sets all options of
            the decoder "binned". None is continuous data, unbounded.
        decoder: Likelihood of data at the last step, in place of ``bins``.
        coupling: Which noise each training example is mixed with; independent noise by default.
        codec: What is between data and network, such as ("standardize", {"mean": 5, "std": 2}); nothing by default.
            ``data_shape`` and ``bins`` are then those of the data, and the network sees latents.
        time_argument: Name of a foreign network's time argument; second positional by default.
        time_to_argument: Name of the second time of a foreign network that takes two: that of the level a step goes to.
        null_conditions: Null value of each condition of the network, such as ``{"y": 10}``: a number, which fills a
            tensor of any shape; a tensor of one example; a text; a mapping or list of such; or None, which leaves the
            condition out. Used by classifier-free guidance, label_dropout and examples without a class. By default
            those of the backbone.
        sampling: Options that sampling has where a call does not give them, such as ``{"steps": 250, "guidance":
            ("cfg", {"scale": 1.5})}``: steps, guidance by name, clip and final. They are saved with the system. None
            given to a call is none of them: ``steps=None`` visits every level. Scores do not use them.
        modules: Modules of your own for parts with weights, by kind, in place of those that the parts build.
        device: Device of the network. By default a foreign network is not moved, and a backbone is built on the CPU.
    Raises:
        UnknownComponentError: No part of that name; the nearest is suggested.
        OptionError: An option or argument is wrong.
        CompositionError: Parts do not fit each other; every problem is listed, each with a fix.
    """
    slots = dict(schedule=schedule, mean=mean, var=var, loss=loss, timesteps=timesteps, sampler=sampler)
    resolved = {kind: resolve(kind, slot) for kind, slot in slots.items()}
    recipe, network_name = _resolve_backbone(backbone)
    num_steps, place = check_integer("num_steps", num_steps, ge=1), _device(device)
    if num_steps > MOST_STEPS:
        raise OptionError(f"num_steps {num_steps} is more than a table holds; use at most {MOST_STEPS}")
    coupled, coupling_name = _optional("coupling", coupling, Independent)
    between, codec_name = _optional("codec", codec, Identity)
    if isinstance(between, AutoencoderCodec) and between.folder is not None:
        between, opened = open_codec(between)
        modules = {"codec": opened, **(modules or {})}
    likelihood, data_decoder = _decoder(bins, decoder) if between is None else _of_latents(between, bins, decoder)
    settings = Settings(
        data_shape=_shape(data_shape),
        num_steps=num_steps,
        train_spacing=plain_spacing("train_spacing", train_spacing),
        rescale_time=check_flag("rescale_time", rescale_time),
        clip_x_start=data_decoder.bounded if clip_x_start is None else check_flag("clip_x_start", clip_x_start),
        time_argument=time_argument,
        null_conditions=plain_nulls(null_conditions),
        sampling=plain_sampling(sampling),
        coupling=coupled,
        time_to_argument=time_to_argument,
        codec=between,
        **likelihood,
    )
    others = {"coupling": coupled, "decoder": data_decoder}
    every = resolved | {kind: (part, type(part).__name__) for kind, part in others.items()}
    where = place or (device_of(recipe) if isinstance(recipe, nn.Module) else None)
    every |= {} if between is None else {"codec": (between, codec_name["codec"])}
    latents = latent_shape(between, settings.data_shape)
    trained, frozen = build_modules(every, modules, lambda kind: shape_of(kind, settings.data_shape, latents), where)
    nulls, classes = _conditions_of(recipe, settings, network_name)
    parts = Composition(
        table=training_table(resolved["schedule"][0], settings, trained.get("schedule")),
        **{kind: part for kind, (part, _) in resolved.items()},
        names={kind: name for kind, (_, name) in resolved.items()}
        | {"backbone": network_name}
        | coupling_name
        | codec_name,
        data_shape=latents,
        backbone=None if isinstance(recipe, nn.Module) else recipe,
        null_conditions=nulls,
        classes=classes,
        times=times_of(recipe, time_to_argument),
        coupling=coupled,
        codec=between,
    )
    _refuse(parts, recipe, data_decoder)
    check_sampling(settings.sampling, parts)
    if "codec" in frozen:
        check_autoencoder(attrs.evolve(parts, codec_module=_without_values(frozen["codec"])), settings.data_shape)
    network = _build(recipe, parts, place, time_argument, time_to_argument)
    return System(parts, settings, network, trained, frozen)


def _resolve_backbone(slot: Slot | nn.Module | None) -> tuple[Any, str]:
    if slot is None:
        return None, "none"
    if isinstance(slot, nn.Module):
        return slot, type(unwrap_module(slot)).__name__
    return resolve("backbone", slot)


def _conditions_of(recipe: Any, settings: Settings, name: str) -> tuple[Mapping[str, Any] | None, int | None]:
    """Null conditions and number of classes; None for each that is unknown."""
    owner, own, classes = f"backbone {name!r}", settings.null_conditions, None
    if isinstance(recipe, ConditionalBackbone):
        with naming(owner):
            own = recipe.null_conditions() if own is None else own
            classes = recipe.count_classes()
        if isinstance(classes, bool) or not isinstance(classes, int | None) or (classes or 0) < 0:
            raise ProtocolError(f"{owner}: count_classes() must return a number of classes or None, got {classes!r}")
    return nulls_of(owner, own), classes


def times_of(recipe: Any, time_to_argument: str | None) -> int | None:
    """How many times the network takes; None without a network."""
    if isinstance(recipe, nn.Module):
        return 1 if time_to_argument is None else 2
    if recipe is None:
        return None
    return recipe.times if isinstance(recipe, TwoTimeBackbone) else 1


def _shape(data_shape: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(data_shape, tuple | list) or not data_shape:
        raise OptionError("must be (channels, *sizes), such as (3, 64, 64)", option="data_shape", value=data_shape)
    shape = tuple(check_integer("each of data_shape", size, ge=1) for size in data_shape)
    if math.prod(shape) > MOST_VALUES:
        raise OptionError(f"data_shape {shape!r} is {math.prod(shape)} values; an example has at most {MOST_VALUES}")
    return shape


def _decoder(bins: int | Mapping[str, Any] | None, slot: Slot) -> tuple[dict[str, Any], Decoder]:
    """The settings ``bins`` and ``decoder``, and the decoder they stand for."""
    if slot is None:
        decoder = decoder_for(bins)
        plain = {name: getattr(decoder, name) for name in bins} if isinstance(bins, Mapping) else decoder.bins
        return {"bins": plain, "decoder": None}, decoder
    if not isinstance(bins, _Default):
        raise OptionError(f"bins {bins!r} and decoder {slot!r} both name the decoder; give one of them")
    decoder, _ = resolve("decoder", slot)
    return shortest(decoder), decoder


def _optional(kind: str, slot: Slot, idle: type[Any]) -> tuple[Any, dict[str, str]]:
    """A part that a system may be without, and its name by kind; None for one of the class ``idle``."""
    part, name = (None, "") if slot is None else resolve(kind, slot)
    return (None, {}) if part is None or isinstance(part, idle) else (part, {kind: name})


def _of_latents(codec: Codec, bins: int | Mapping[str, Any] | None, slot: Slot) -> tuple[dict[str, Any], Decoder]:
    """The settings ``bins`` of data and ``decoder`` of its latents, and that decoder, which is of continuous values."""
    if slot is not None:
        found, decoder = _decoder(bins, slot)
        if decoder.bounded:
            raise OptionError(
                f"decoder {slot!r} is of values in [-1, 1], but a codec gives the network latents; leave it out"
            )
        return found, decoder
    if isinstance(bins, _Default):
        bins = None if codec.exact else int(bins)
    if bins is not None and (codec.exact or isinstance(bins, Mapping)):
        raise OptionError(
            "are values in [-1, 1] with a likelihood, which latents have not",
            option="bins",
            value=bins,
            fix={"bins": None},
        )
    return {"bins": None if bins is None else check_integer("bins", bins, ge=2), "decoder": None}, decoder_for(None)


def latent_shape(codec: Codec | None, data_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one example as the network sees it.

    Raises:
        OptionError: The codec does not take data of this shape.
        ProtocolError: Its latents have no shape, or it is exact and they are not as many as values of the data.
    """
    if codec is None:
        return data_shape
    owner = f"codec {type(codec).__name__!r}"
    with naming(owner):
        try:
            found = codec.latent_shape(data_shape)
        except OptionError as error:
            raise OptionError(Message(f"{owner}: ", error.message.of("codec"))) from error
    good = isinstance(found, tuple) and found and all(type(size) is int and size >= 1 for size in found)
    if not good or (codec.exact and math.prod(found) != math.prod(data_shape)):
        wanted = f"{math.prod(data_shape)} values, as the data has" if codec.exact else "(channels, *sizes)"
        raise ProtocolError(f"{owner}: latent_shape must return a shape of {wanted}, got {found!r}")
    return found


def recompose(system: System, **changes: Any) -> System:
    """Return a system with some arguments of `compose` changed and all others as before.

    The network is the same one, with its weights, unless ``backbone`` is among the changes: training either system
    trains both, and ``device`` moves both. So are the modules of parts with weights that are not among the changes, if
    they fit the shape of the data. A network that learned to predict one thing has to learn another ``mean``.
    With another ``data_shape`` the network is reused if it can process that size; the U-Net can if its resolution
    levels can halve the new sides.

    Args:
        system: Any system; its parts are not changed.
        changes: Keywords of `compose`.
    Raises:
        OptionError, CompositionError, UnknownComponentError: As `compose`.
        CompositionError: The network does not fit the changes, such as a learned variance, which needs more channels.
    """
    known = inspect.signature(compose).parameters
    for name in changes.keys() - known.keys():
        raise OptionError(f"recompose takes what compose takes, not {name!r}{did_you_mean(name, known)}")
    arguments = {kind: getattr(system.parts, kind) for kind in SLOTS if kind != "backbone"}
    arguments |= attrs.asdict(system.settings, recurse=False)
    changes = changes | {"modules": _kept_modules(system, changes) | dict(changes.get("modules") or {})}
    changed_decoder = bool({"bins", "decoder"} & changes.keys())
    for name, unused in (("bins", system.settings.decoder is not None), ("decoder", system.settings.decoder is None)):
        if changed_decoder or unused:
            del arguments[name]
    if "backbone" in changes:
        return compose(**arguments | _OF_NETWORK | changes)
    network, recipe = system.network, system.parts.backbone
    if recipe is None or network is None:
        own = network.network if isinstance(network, NamedTime) else network
        return _in_mode_of(system, compose(**arguments | {"backbone": own} | changes))
    if {"data_shape", "codec"} & changes.keys() and isinstance(recipe, ResizableBackbone):
        between, _ = _optional("codec", (arguments | changes)["codec"], Identity)
        other = latent_shape(between, _shape((arguments | changes)["data_shape"]))
        if other != system.parts.data_shape:
            recipe = recipe.resized(system.parts.data_shape, other)
    changed = compose(**arguments | changes | {"backbone": recipe, "device": "meta"})
    if _shapes(unwrap_module(network)) != _shapes(changed.network):
        _check_same(compose(**arguments | {"backbone": system.parts.backbone, "device": "meta"}), changed, network)
    if system.parts.data_shape != changed.parts.data_shape:
        _check_size(network, changed)
    found = changed.with_network(network.to(_device(changes.get("device"))))
    for module in (found.learned, found.frozen):
        module.to(found.device)
    return _in_mode_of(system, found)


def _kept_modules(system: System, changes: Mapping[str, Any]) -> dict[str, nn.Module]:
    """The modules of parts that are not changed, and fit the shape of the data."""
    kept = {kind: module for kind, module in (*system.learned.items(), *system.frozen.items()) if kind not in changes}
    if "data_shape" not in changes:
        return kept
    shape, old = _shape(changes["data_shape"]), system.data_shape
    between = _optional("codec", changes.get("codec", system.settings.codec), Identity)[0]
    latents = latent_shape(between, shape)
    own = foreign_modules(system.parts, kept, lambda kind: shape_of(kind, old, system.parts.data_shape))
    misfits = foreign_modules(system.parts, kept, lambda kind: shape_of(kind, shape, latents)).keys() - own.keys()
    return {kind: module for kind, module in kept.items() if kind not in misfits}


def _in_mode_of(system: System, changed: System) -> System:
    """A system with the training mode of another, from which it has its network."""
    changed.training = system.training
    changed.learned.train(system.training)
    if isinstance(changed.network, NamedTime):
        changed.network.training = system.training
    return changed


def _check_same(before: System, changed: System, network: nn.Module) -> None:
    """Raise `CompositionError` if `compose` would build another network for the changed system than before.

    The recipes are compared, as the network itself may have adapters or quantized layers.
    """
    old, new = _shapes(before.network), _shapes(changed.network)
    other = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if not other:
        return
    channels, data_shape = changed.parts.out_channels, changed.parts.data_shape
    takes = before.parts.data_shape != data_shape and _shape_of_answer(network, data_shape) == (
        channels,
        *data_shape[1:],
    )
    raise CompositionError(
        f"the network does not fit these parts: {len(other)} of its weights would have another shape (first: "
        f"{other[0]}); give recompose "
        + (
            "backbone=system.network, which reuses it unchanged"
            if takes
            else "a backbone as well, which is built anew; diffkit.weights.load_matching copies what fits"
        )
    )


def _check_size(network: nn.Module, changed: System) -> None:
    """Raise `OptionError` if the weights fit the new shape, but the network stores the layout of the old one."""
    data_shape = changed.parts.data_shape
    shape, wanted = _shape_of_answer(network, data_shape), (changed.parts.out_channels, *data_shape[1:])
    if shape is not None and shape != wanted:
        raise CompositionError(
            f"the network does not fit data of shape {data_shape}: it returns {shape}, and {wanted} is needed; give "
            "recompose a backbone as well, which is built anew"
        )


def _shapes(network: nn.Module | None) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor in a network's state; quantized layers have other objects there too."""
    state = {} if network is None else network.state_dict()
    return {name: tuple(value.shape) for name, value in state.items() if isinstance(value, Tensor)}


def _device(device: str | torch.device | None) -> torch.device | None:
    """Return a device that is usable on this machine; None stays None."""
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except Exception as error:  # torch raises RuntimeError, AssertionError and others, by device
        reason = str(error).splitlines()[0].rstrip(".")
        raise OptionError(f"device {str(device)!r} cannot be used: {reason}; 'cpu' always can") from error
    return found


def _refuse(parts: Composition, recipe: Any, decoder: Decoder) -> None:
    """Raise one `CompositionError` that lists every problem of the parts and of the core."""
    kinds = [kind for kind in SLOTS if kind != "backbone" or not (recipe is None or isinstance(recipe, nn.Module))]
    with computing("whether these parts fit"):
        problems = [each for k in kinds for each in problems_of(parts.label(k), getattr(parts, k), parts)]
        problems += problems_of(f"decoder {type(decoder).__name__!r}", decoder, parts)
        for kind, part in (("coupling", parts.coupling), ("codec", parts.codec)):
            problems += [] if part is None else problems_of(parts.label(kind), part, parts)
        problems += [*noise_problems(parts), *_core_problems(parts)]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise CompositionError(joined("\n  ", [f"{count} composing this system:", *dict.fromkeys(problems)]))


def _core_problems(parts: Composition) -> Iterator[str]:
    learned, continuous = parts.var.extra_outputs > 0, parts.continuous_time
    if parts.loss.needs_learned_variance and not learned:
        yield problem(
            f"{parts.label('loss')} trains the variance, but {parts.label('var')} has none to train",
            fix=[{"var": "learned_range"}, {"loss": "simple"}],
        )
    if learned and not parts.loss.trains_variance:
        weighted = "vb_weight" in (option_names(type(parts.loss)) or ())
        yield problem(
            f"{parts.label('loss')} has no term that trains {parts.label('var')}",
            fix=[*([{"vb_weight": 0.001}] if weighted else []), {"loss": "hybrid"}, {"var": "fixed_large"}],
        )
    if continuous and not isinstance(parts.schedule, ContinuousSchedule):
        yield problem(
            f"{parts.label('timesteps')} draws continuous levels, but {parts.label('schedule')} has discrete ones",
            fix={"timesteps": "uniform"},
        )
    if continuous and parts.loss.needs_transition:
        yield problem(
            f"{parts.label('loss')} needs steps between levels, but {parts.label('timesteps')} draws continuous levels",
            fix=[{"loss": "simple"}, {"timesteps": "uniform"}],
        )
    yield from _schedule_problems(parts)
    yield from network_problems(parts)
    yield from _mean_problems(parts)


def _schedule_problems(parts: Composition) -> Iterator[str]:
    """Report what a schedule with weights is not trained by, and times that nothing turns into levels."""
    learned, timed = isinstance(parts.schedule, LearnedSchedule), isinstance(parts.timesteps, TimeSampler)
    if learned and not timed:
        yield problem(
            f"{parts.label('schedule')} has weights that times train, but {parts.label('timesteps')} draws levels",
            fix=[{"timesteps": "uniform_time"}, {"schedule": "log_linear"}],
        )
    if timed and not learned:
        yield problem(
            f"{parts.label('timesteps')} draws times, which {parts.label('schedule')} does not turn into levels",
            fix=[{"timesteps": "uniform"}, {"schedule": "monotone"}],
        )
    if learned and not isinstance(parts.loss, InvariantLoss):
        yield problem(
            f"{parts.label('schedule')} lowers the variance of a loss whose mean stays the same, but "
            f"{parts.label('loss')} would change with it",
            fix=[{"loss": "continuous_vlb"}, {"schedule": "log_linear"}],
        )


def network_problems(parts: Composition) -> Iterator[str]:
    """Report what a loss that calls the network again does not get, and pairs of levels that nothing reads."""
    loss, pairs = parts.loss, isinstance(parts.timesteps, PairSampler)
    if not isinstance(loss, NetworkLoss):
        if pairs:
            yield problem(
                f"{parts.label('timesteps')} draws pairs of levels, but {parts.label('loss')} reads one",
                fix={"timesteps": "uniform"},
            )
        return
    if parts.self_conditioned:
        yield problem(
            f"{parts.label('loss')} calls the network again, but {parts.label('backbone')} reads its previous estimate",
            fix={"self_condition": False},
        )
    if loss.needs_pairs and not pairs:
        yield (
            f"{parts.label('loss')} needs pairs of levels, but {parts.label('timesteps')} draws one for each example; "
            "use a timestep sampler that is a PairSampler"
        )
    if loss.needs_two_times and parts.times == 1:
        own = parts.backbone is None
        option = isinstance(parts.backbone, TwoTimeBackbone)
        yield problem(
            f"{parts.label('loss')} needs a network of two times, but {parts.label('backbone')} takes one"
            + ("" if option or own else "; use one that has two, such as 'unet' with times=2"),
            fix={"time_to_argument": "time_to"} if own else {"times": 2} if option else (),
        )


def _mean_problems(parts: Composition) -> Iterator[str]:
    """Report levels where the output does not determine x_start: c_out must be finite and nonzero, also in float32."""
    with np.errstate(over="ignore", under="ignore"):
        found = np.asarray(scalings(parts.mean, parts.table), dtype=np.float32)
    usable = np.all(np.isfinite(found), axis=0) & (found[1] != 0)
    bad = np.flatnonzero(~usable[1:]) + 1
    if bad.size:
        level = int(parts.table.index[bad[-1]])
        no_signal = parts.table.alpha_bar[bad[-1]] == 0
        where = "where alpha_bar = 0 " if no_signal else ""
        yield problem(
            f"{parts.label('mean')} cannot recover x_start {where}(level {level} of {parts.label('schedule')})",
            fix=[{"mean": "v"}, {"mean": "x_start"}],
        )


def _build(
    recipe: Any,
    parts: Composition,
    device: torch.device | None,
    time_argument: str | None,
    time_to_argument: str | None,
) -> nn.Module | None:
    channels = parts.out_channels
    if recipe is None:
        return None
    if isinstance(recipe, nn.Module):
        network = recipe if device is None else recipe.to(device)
        if time_argument is None:
            check_takes_time(network)
        named = time_argument is not None or time_to_argument is not None
        wrapped = NamedTime(network, time_argument, time_to_argument) if named else network
        _check_foreign(wrapped, parts, channels)
        return wrapped
    if time_argument is not None:
        raise OptionError("time_argument is for a network of your own; registered backbones take time second")
    if time_to_argument is not None:
        raise OptionError("time_to_argument is for a network of your own; built-in backbones have the option times=2")
    try:
        with bounded(device), device or torch.device("cpu"):
            built: nn.Module = recipe.build(parts.data_shape, channels)
    except OptionError as error:
        raise OptionError(Message(f"{parts.label('backbone')}: ", error.message.of("backbone"))) from error
    except (RuntimeError, MemoryError, TypeError) as error:  # torch cannot allocate, or represent, that size
        if isinstance(error, TypeError) and "Overflow" not in str(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else "memory does not suffice"
        raise OptionError(f"{parts.label('backbone')} cannot be built: {reason}; make it smaller") from error
    return built


def _check_foreign(network: nn.Module, parts: Composition, channels: int) -> None:
    """Raise `CompositionError` if a network returns the wrong shape, called on meta tensors: nothing is computed.

    A network that cannot run on meta tensors (it needs conditions, reads values, or makes tensors of its own on the
    CPU) is checked at its first real call.
    """
    shape = _shape_of_answer(network, parts.data_shape)
    needed = (channels, *parts.data_shape[1:])
    if shape is not None and shape != needed:
        extra = parts.var.extra_outputs
        raise CompositionError(
            "1 problem composing this system:\n  "
            f"backbone {type(network).__name__} returns {shape} for data of shape {parts.data_shape}, but "
            f"{parts.label('var')} needs {needed} ({parts.data_shape[0]} channels times {1 + extra}); give it "
            f"{channels} output channels" + (", or use var='fixed_large'" if extra else "")
        )


def _shape_of_answer(network: nn.Module, data_shape: tuple[int, ...]) -> tuple[int, ...] | None:
    x = torch.zeros(2, *data_shape, device="meta", dtype=precision_of(network))
    time = torch.ones(2, device="meta")
    try:
        copied = _without_values(network).eval()
        with torch.no_grad():
            try:
                return tuple(copied(x, time).shape[1:])
            except DiffkitError:  # a backbone of diffkit, perhaps inside of another module, that needs classes
                return tuple(copied(x, time, y=torch.zeros(2, dtype=torch.int64, device="meta")).shape[1:])
    except Exception:  # any failure on meta tensors, also for want of conditions, means that it cannot run on them
        return None


def _without_values(network: nn.Module) -> nn.Module:
    """A copy on the meta device: it takes no memory, and state that it stores in a call does not reach the network.

    Fake tensors would not do: a table that the call leaves in a cache outside of the network, such as that of
    `functools.lru_cache`, would then be fake.
    """
    shapes: dict[int, Tensor] = {id(buffer): buffer.detach().to("meta") for buffer in network.buffers()}
    for weight in network.parameters():
        shapes[id(weight)] = nn.Parameter(weight.detach().to("meta"), weight.requires_grad)
    return copy.deepcopy(network, shapes)
