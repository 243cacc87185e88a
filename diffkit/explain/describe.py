"""Explain a composition from its parts, without building or calling a network."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import nn

from diffkit.errors import OptionError
from diffkit.explain.explanation import FAINT, Explanation, PartNote, TrainingNotes
from diffkit.gaussian import NATS_PER_BIT
from diffkit.options import option_names
from diffkit.protocols import Composition, ConditionalBackbone, Decoder, NetworkLoss
from diffkit.registry import LOCAL, SLOTS, registry
from diffkit.registry.kernels import kernel_name
from diffkit.registry.resolve import Slot, resolve, resolve_several
from diffkit.runtime.run_layout import SPEC
from diffkit.spacing import Spacing, remark_on_karras, remark_on_start
from diffkit.system.call_parts import parts_for
from diffkit.system.coefficients import scalings
from diffkit.system.compose import compose, network_problems, times_of
from diffkit.system.loading import from_spec, read_spec
from diffkit.system.module import System
from diffkit.system.network_calls import network_calls
from diffkit.system.objective import Objective
from diffkit.table import F64, ProcessTable
from diffkit.training.config import LR_SCHEDULE_FIELDS, OPTIMIZER_FIELDS, TrainConfig, resolve_config
from diffkit.training.parameter_groups import as_groups, freezing, matching, torch_groups

_MANY_FAINT = 0.2
"""Share of levels of almost pure noise above which there is a remark; a fifth of the linear schedule's levels could be
skipped with little harm (Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.2)."""
_SECTIONS = re.compile(r"(Attributes|Args|Source|Deviates|Returns|Raises):")


def explain(
    what: System | Mapping[str, Any] | str | Path | None = None,
    *,
    steps: Spacing = None,
    sampler: Slot = None,
    network: bool = False,
    training: Mapping[str, Any] | None = None,
    **composition: Any,
) -> Explanation:
    """Return an explanation of a system, or of a composition that is not built yet.

    Args:
        what: A system, the folder of a saved one, or keywords of `diffkit.compose` as a mapping.
        steps: Levels that sampling visits, as in `System.sample`; those of the system by default.
        sampler: The sampler; the composed one by default.
        network: Build the network, without memory for its weights, and count its parameters.
        training: Keywords of `diffkit.train`, of which ``optimizer``, ``lr_schedule``, ``hooks``, ``param_groups`` and
            ``freeze`` are explained; with ``network``, patterns are counted.
        composition: Keywords of `diffkit.compose`, in place of ``what``.
    Raises:
        OptionError, UnknownComponentError, CompositionError: As `diffkit.compose`.
        CheckpointError, SpecError: As `diffkit.load`.
    """
    if isinstance(what, System | str | Path):
        if composition:
            raise OptionError(f"a system is given, so {', '.join(map(repr, composition))} cannot be changed")
        system, recipe = (what, what.parts.backbone) if isinstance(what, System) else _load_without_network(Path(what))
    else:
        keywords = dict(what or {}) | composition
        recipe = _resolve_recipe(keywords.pop("backbone", "unet"))
        system = compose(**keywords | _null_conditions(keywords, recipe), backbone=None)
    found = _network(system, recipe) if network else None
    explained = _explain(system, recipe, steps, sampler, found)
    return explained if training is None else attrs.evolve(explained, training=_explain_training(training, found))


def _explain_training(training: Mapping[str, Any], network: nn.Module | None) -> TrainingNotes:
    options = dict(training)
    hooks = resolve_several("hook", options.pop("hooks", None))
    config = resolve_config(None, {"steps": 1} | options)
    parts: list[tuple[str, Iterable[str], Any]] = [
        ("optimizer", OPTIMIZER_FIELDS, config.optimizer_part),
        ("lr_schedule", LR_SCHEDULE_FIELDS, config.lr_schedule_part),
    ]
    notes = [describe_part(kind, part) for kind, fields, part in parts if not options.keys().isdisjoint(fields)]
    notes += [describe_part("hook", hook) for hook, _ in hooks]
    return TrainingNotes(tuple(notes), *_pattern_sizes(config, network))


def _pattern_sizes(
    config: TrainConfig, network: nn.Module | None
) -> tuple[dict[str, int | None], dict[str, int | None]]:
    """Return the groups of parameters and the frozen patterns, each with the number of its parameters if known."""
    groups = as_groups(config.param_groups)
    if network is None:
        return dict.fromkeys(map(str, groups)), dict.fromkeys(config.freeze)
    with freezing(network, config.freeze):
        found = torch_groups(network, groups, lr=config.lr, weight_decay=config.weight_decay)
    of_groups = {
        str(group): sum(parameter.numel() for parameter in each["params"])
        for group, each in zip(groups, found, strict=False)  # the last of torch's has all others
    }
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    return of_groups, {each: sum(sizes[name] for name in matching(each, sizes, "freeze")) for each in config.freeze}


def loss_weights(parts: Composition, decoder: Decoder, learned: Mapping[str, nn.Module] | None = None) -> F64:
    """Return the weight of a squared error of x_start in the gradient of the loss, at levels 1..T, (T,).

    It is measured, so that it is right for any loss: the gradient at a small error of the estimate of x_start, divided
    by the gradient of a plain squared error. NaN for a loss that calls the network again: its error is another one.

    Args:
        parts: The composition.
        decoder: Log-likelihood of data at level 1.
        learned: Modules of its parts that have weights, by kind.
    """
    table = parts.table
    if isinstance(parts.loss, NetworkLoss):
        return np.full(table.num_steps, np.nan)
    objective = Objective.of(parts, decoder, learned)
    c_out = torch.from_numpy(scalings(parts.mean, table).c_out[1:, None])
    error = 1e-3  # of x_start; small compared with every noise level, for the one loss that is not quadratic (level 1)
    mean = (error / c_out).requires_grad_()
    raw = mean.new_zeros(len(mean), parts.var.extra_outputs)
    between = parts.continuous_time
    level = torch.from_numpy(table.log_snr[1:].copy()) if between else torch.arange(1, len(mean) + 1)
    clean = torch.zeros_like(c_out)
    terms = objective.terms(lambda x, time: torch.cat([mean, raw], 1), clean, level, clean, len(mean), {})
    (gradient,) = torch.autograd.grad(terms["loss"].sum(), mean)
    return np.asarray((gradient / (2 * error * c_out)).squeeze(1).numpy())


def _resolve_recipe(slot: Any) -> Any:
    return None if slot is None or isinstance(slot, torch.nn.Module) else resolve("backbone", slot)[0]


def _null_conditions(given: Mapping[str, Any], recipe: Any) -> dict[str, Any]:
    """The null conditions, given or the recipe's, as a keyword of `compose`; guidance needs them."""
    own = given.get("null_conditions")
    known = recipe.null_conditions() if own is None and isinstance(recipe, ConditionalBackbone) else own
    return {"null_conditions": known}


def _load_without_network(folder: Path) -> tuple[System, Any]:
    """Load a saved system without its network, and return it with the network's recipe."""
    spec = read_spec(folder / SPEC)
    parts = dict(spec.get("parts", {}))
    slot = parts.pop("backbone", None)
    named = slot is not None and slot.get("name") is not None
    recipe = resolve("backbone", (slot["name"], slot["options"]))[0] if named else None
    settings = dict(spec.get("settings", {}))
    settings |= _null_conditions(settings, recipe)
    return from_spec(spec | {"parts": parts | {"backbone": None}, "settings": settings}), recipe


def _network(system: System, recipe: Any) -> nn.Module | None:
    """Return the network of a system, or one of its recipe without memory for its weights."""
    if system.network is not None or recipe is None:
        return system.network
    with torch.device("meta"):
        network: nn.Module = recipe.build(system.parts.data_shape, system.parts.out_channels)
    return network


def _explain(system: System, recipe: Any, steps: Spacing, sampler: Slot, network: nn.Module | None) -> Explanation:
    table, parts = system.table, system.parts
    steps = (system.settings.sampling or {}).get("steps") if steps is None else steps
    kinds = [kind for kind in SLOTS if kind != "backbone"]
    notes = [describe_part(kind, getattr(parts, kind)) for kind in kinds] + (
        [describe_part("backbone", recipe)] if recipe else []
    )
    for kind in ("decoder", "coupling", "codec"):
        part = getattr(system.settings, kind)
        notes += [] if part is None else [describe_part(kind, part)]
    chosen = parts_for(system.parts, sampler).sampler
    grid = _visited_levels(system.table_for(steps))
    weight = loss_weights(parts, system.decoder, system.objective.learned)
    posterior = table.posterior()
    kl_weight = (posterior.coef_x_start**2 * np.exp(-table.posterior_log_variance))[1:]
    return Explanation(
        parts=tuple(notes),
        settings={
            **{name: getattr(system.settings, name) for name in ("data_shape", "num_steps", "train_spacing")},
            "clip_x_start": system.settings.clip_x_start,
            "latent_shape": system.parts.data_shape,
            "bins": system.bins,
            "sampling": system.settings.sampling,
        },
        level=table.index[1:],
        alpha_bar=table.alpha_bar[1:],
        snr=np.exp(table.log_snr[1:]),
        beta=table.beta[1:],
        posterior_std=np.sqrt(posterior.variance[1:]),
        upper_std=np.sqrt(table.upper_variance[1:]),
        time=table.time[1:],
        gain=np.abs(scalings(parts.mean, table).c_out[1:]),
        weight=weight,
        bound_weight=table.num_steps * kl_weight / (2 * NATS_PER_BIT),
        sampler=describe_part("sampler", chosen),
        grid=grid,
        remarks=tuple(_remarks(system, recipe, grid, steps)),
        num_parameters=None if network is None else sum(parameter.numel() for parameter in network.parameters()),
        network_calls=network_calls(system.objective),
        kernel=kernel_name(system.device),
    )


def _visited_levels(table: ProcessTable) -> tuple[float, ...]:
    """Levels in the root table, integers unless they lie between."""
    levels: list[float] = table.index[1:].tolist()
    return tuple(levels if table.fraction is None else (table.index + table.fraction)[1:].tolist())


def describe_part(kind: str, part: Any) -> PartNote:
    """Describe one part for an explanation, by its options and its class's docstring."""
    known = registry(kind).provenance(part)
    body, source = _read_docstring(type(part).__doc__ or "")
    return PartNote(
        kind=kind,
        name=known.name if known else type(part).__name__,
        origin="" if known is None else LOCAL if known.origin == LOCAL else f"{known.origin} {known.version}",
        options={name: getattr(part, name) for name in option_names(type(part)) or ()},
        text=body,
        source=source,
    )


def _read_docstring(docstring: str) -> tuple[str, str]:
    """Return a docstring's text before the first section, one sentence or formula per line, and its "Source:"."""
    lines = inspect.cleandoc(docstring).splitlines()
    starts = [i for i, line in enumerate(lines) if _SECTIONS.match(line)] + [len(lines)]
    source = next((i for i in starts[:-1] if lines[i].startswith("Source:")), None)
    if source is None:
        return _join_lines(lines[: starts[0]]), ""
    following = lines[source : starts[starts.index(source) + 1]]
    return _join_lines(lines[: starts[0]]), " ".join(map(str.strip, following)).removeprefix("Source: ")


def _join_lines(lines: Iterable[str]) -> str:
    """Return text with the lines of each sentence joined."""
    out = [""]
    for line in lines:
        if line and out[-1] and not out[-1].endswith((".", "``")):
            out[-1] += f" {line}"
        else:
            out.append(line)
    return "\n".join(filter(None, out)).replace("`", "")


def _remarks(system: System, recipe: Any, grid: tuple[float, ...], steps: Spacing) -> Iterable[str]:
    table, parts = system.table, system.parts
    if recipe is not None:
        yield from recipe.problems(parts)
        names = {**parts.names, "backbone": describe_part("backbone", recipe).name}
        yield from network_problems(attrs.evolve(parts, backbone=recipe, times=times_of(recipe, None), names=names))
    for kind, module in (*system.learned.items(), *system.frozen.items()):
        state = "trained with the network" if kind in system.learned else "frozen"
        yield f"{parts.label(kind)} has {sum(p.numel() for p in module.parameters())} weights of its own, {state}"
    yield from _remarks_on_levels(table)
    yield from _remarks_on_variance(system)
    gain = np.abs(scalings(parts.mean, table).c_out[1:])
    worst = int(np.argmax(gain))
    if gain[worst] > 100 and not system.settings.clip_x_start:
        yield (
            f"an error of the network is enlarged {gain[worst]:.3g} times in x_start at level "
            f"{table.index[worst + 1]}, and x_start is not clipped; mean='v' or mean='x_start' would not enlarge it"
        )
    if remark := remark_on_start(table, int(grid[-1])):
        yield remark
    if remark := remark_on_karras(table, steps):
        yield remark


def _remarks_on_levels(table: ProcessTable) -> Iterable[str]:
    faint = table.alpha_bar[1:] < FAINT
    share = float(faint.mean())
    if share > _MANY_FAINT and table.num_steps > 1:
        first = int(table.index[1:][faint][0])
        yield (
            f"{share:.0%} of the levels ({first} to {table.index[-1]}) are almost pure noise (alpha_bar < {FAINT:g}), "
            "so steps spent there change little; schedule 'cosine' has 6 %"
        )
    if table.alpha_bar[-1] > FAINT:
        yield (
            f"level {table.index[-1]} still has alpha_bar = {table.alpha_bar[-1]:.3g}, but sampling starts from pure "
            "noise; samples will lack contrast or the right brightness"
        )


def _remarks_on_variance(system: System) -> Iterable[str]:
    table, parts = system.table, system.parts
    if not parts.var.extra_outputs:
        return
    width = np.sqrt(table.upper_variance[2:] / table.posterior().variance[2:])
    wide = np.flatnonzero(width > 1.01)
    if parts.names["var"] == "learned_range" and table.num_steps > 2:
        top = int(table.index[wide[-1] + 2]) if wide.size else 1
        yield (
            "the two ends of the learned variance differ by more than 1 % of a standard deviation only up to level "
            f"{top} of {table.index[-1]}; above it the variance is as good as fixed"
        )
    if system.settings.train_spacing is not None:
        yield (
            f"training is on {table.num_steps} of {system.settings.num_steps} levels, and a loss that is scaled by the "
            f"number of steps is scaled by {table.num_steps}"
        )
