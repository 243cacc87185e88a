"""Every built-in part, with enough option values that each option takes more than one.

A part that is not mentioned here is tried as it is made by default, and with every option changed at once; so adding
one to diffkit needs no change here, unless it is large by default or its options exclude each other.
"""

from __future__ import annotations

import math
import re
from typing import Any

import attrs
import pytest
import torch
from lanes import some_by_default

from diffkit.errors import DiffkitError
from diffkit.registry import KINDS, registry

SMALL_UNET: dict[str, Any] = dict(channels=8, groups=4, num_heads=2)
SMALL_DIT: dict[str, Any] = dict(depth=2, hidden=32, heads=2)


NEED_FILES = {("data", name) for name in ("cifar10", "hf", "lsun", "webdataset")} | {("extractor", "inception")}
NEED_FILES |= {("hook", "tensorboard"), ("hook", "wandb")}


def half(x: torch.Tensor) -> torch.Tensor:
    """An operator: every second value."""
    return x.flatten(1)[:, ::2]


def conditions(n: int, data_shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """What guidance needs: what `half` measures of some data, and a class."""
    x = torch.linspace(-1, 1, n * math.prod(data_shape), dtype=torch.float64).view(n, *data_shape)
    return {"measurement": half(x), "target": torch.arange(n) % 4}


def logits(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """A classifier of four classes."""
    rows = x.flatten(1)
    return torch.stack([rows.sum(1), rows.square().sum(1), rows[:, 0], -rows[:, 0]], 1)


def log_prob(x: torch.Tensor, time: torch.Tensor, conditions: Any) -> torch.Tensor:
    """A log-likelihood of noisy data."""
    return -x.flatten(1).square().sum(1)


def worse(x: torch.Tensor, time: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A worse network, with channels for a variance."""
    return torch.cat([0.3 * x] * 2, 1)


MEASURED: dict[str, Any] = {"operator": lambda x: 2 * half(x), "noise_std": 0.5}

ENDS: dict[str, Any] = {"sigma_min": 0.3, "sigma_max": 5.0}

OPTIONS: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("hook", "previews"): [{"every": 2, "count": 2, "steps": 2}, {"every": 3, "count": 1, "steps": 1}],
    ("hook", "time_budget"): [{}, {"seconds": "1h"}],
    ("hook", "early_stopping"): [
        {"patience": 2, "min_delta": 1.0},
        {"metric": "loss", "maximize": True, "patience": 3, "min_delta": 0.5},
    ],
    ("hook", "gradient_norms"): [{}, {"patterns": ("*.bias", "*")}, {"depth": 1}],
    ("schedule", "linear"): [{}, {"start": 1e-3, "end": 0.01}, {"start": 1e-4, "end": 0.5}],
    ("codec", "autoencoder"): [
        {"channels": (4, 4), "latent_channels": 2},
        {"channels": (4, 6), "scale": 0.5, "shift": 0.1},
    ],
    ("codec", "standardize"): [
        {},
        {"per": "whole"},
        {"mean": 0.5, "std": (0.5,)},
        {"mean": (5, 6, 7), "std": (1, 2, 3)},
    ],
    ("schedule", "cosine"): [{}, {"s": 0.05, "max_beta": 0.5}, {"s": 0.0}],
    ("schedule", "table"): [{}, {"alpha": (0.9, 0.1), "sigma": (0.3, 1.0), "times": (0.1, 0.9)}],
    ("schedule", "zero_snr"): [{}, {"of": "cosine", "of_options": {"s": 0.1}}],
    # measured errors belong to their model, so any but zero differ from what a table alone says
    ("var", "analytic"): [{}, {"x_start_mse": (0.0,) * 1000}],
    ("loss", "hybrid"): [{}, {"vb_weight": 1.0, "scale_by_steps": False, "space": "v"}],
    ("timesteps", "loss_second_moment"): [
        {},
        {"history": 3, "uniform_prob": 0.1},
        {"history": 1, "uniform_prob": 1.0},
    ],
    ("sampler", "ddim"): [{}, {"eta": 1.0}, {"eta": 0.3, "clipped_eps": False}],
    ("sampler", "churn"): [
        {},
        {"s_churn": 20.0, "s_tmin": 0.1, "s_tmax": 5.0, "solver": "dpm2", "lower_order_long": False},
        {"solver": "euler"},
        {"s_noise": 1.007},
    ],
    ("sampler", "euler_ancestral"): [{}, {"eta": 0.5, "variance": "learned"}, {"s_noise": 1.01}],
    ("sampler", "dpm2_ancestral"): [
        {},
        {"eta": 0.5, "variance": "learned"},
        {"lower_order_long": False},
        {"s_noise": 1.01},
    ],
    ("sampler", "dpmpp_2s_ancestral"): [{}, {"eta": 0.5, "r": 0.3, "variance": "learned"}, {"s_noise": 1.01}],
    ("sampler", "sde_dpmpp_2m"): [
        {},
        {"eta": 0.5, "variance": "learned"},
        {"solver": "heun", "lower_order_long": False, "lower_order_final": True},
        {"s_noise": 1.01},
    ],
    ("sampler", "sde_dpmpp_3m"): [
        {},
        {"eta": 0.5, "variance": "learned"},
        {"weights": "published", "lower_order_long": False, "lower_order_final": True},
        {"s_noise": 1.01},
    ],
    ("sampler", "dpmpp_sde"): [{}, {"eta": 0.5, "r": 0.3}, {"s_noise": 1.01}],
    ("sampler", "sa_solver"): [
        {},
        {"estimates": 2, "tau": 0.0, "lower_order_long": False},
        {"estimates": 1, "tau": 0.5, "s_tmin": 0.0, "s_tmax": 100.0, "corrected": False},
    ],
    ("sampler", "predictor_corrector"): [{}, {"snr": 0.3, "bounded": False}],
    # bh1 only matters while there is one difference, so with more estimates in the error of the first step alone
    ("sampler", "unipc"): [
        {},
        {"estimates": 1, "variant": "bh1"},
        {"estimates": 3, "lower_order_long": False},
        {"lower_order_final": True},
    ],
    ("backbone", "mlp"): [
        {"hidden": 16, "depth": 1},
        {"hidden": 7, "depth": 2, "num_classes": 3},
        {"num_classes": 2, "null_class": True, "times": 2, "self_condition": True},
    ],
    ("backbone", "unet"): [
        SMALL_UNET,
        SMALL_UNET
        | dict(channels=12, groups=3, num_heads=1, scale_shift_norm=False, conv_resample=False)
        | dict(channel_mult=(1.0, 2.0), num_res_blocks=1),
        SMALL_UNET
        | dict(resblock_updown=True, num_head_channels=4, attention_order="new", channel_mult=(1.0, 1.5))
        | dict(times=2, self_condition=True),
        SMALL_UNET | dict(num_classes=3, null_class=True, dropout=0.1, num_heads_upsample=1, num_res_blocks=1),
        SMALL_UNET
        | dict(low_res_channels=3, low_res_level=True, checkpoint=True, attention_resolutions=(), num_res_blocks=1),
        SMALL_UNET | dict(checkpoint=True, attention_resolutions=(), num_res_blocks=1, context=3),
    ],
    ("backbone", "dit"): [
        SMALL_DIT,
        SMALL_DIT | dict(patch=4, mlp_ratio=2.0, num_classes=3, times=2, self_condition=True),
        SMALL_DIT
        | dict(
            size="B", hidden=48, heads=3, patch=1, num_classes=2, null_class=True, checkpoint=True, depth=1, context=5
        ),
    ],
    ("adapter", "lora"): [{}, {"r": 2, "alpha": 4.0, "targets": ("qkv", "time_embed.0", "in_layers.2")}],
    ("data", "photographs"): [
        {"size": 200},
        {"size": 32, "pieces": "random", "stride": 16, "examples": 9, "seed": 1, "labels": True},
    ],
    # a floor is a share of each value's probability that is there to be added
    ("decoder", "binned"): [{"floor": 0.0}, {"bins": 17, "cdf": "exact"}],
    **{("spacing", name): [{"count": 4}, {"count": 7}] for name in ("ddim", "leading", "linspace", "trailing")},
    **{("spacing", name): [{"count": 4}, {"count": 7}] for name in ("logsnr", "quad", "time")},
    ("spacing", "karras"): [
        {"count": 4},
        {"count": 7, "rho": 3.0},
        {"count": 5, "exact": True},
        {"count": 3, **ENDS},
    ],
    ("spacing", "exponential"): [{"count": 4}, {"count": 7, "rho": 2.0, **ENDS}, {"count": 3, "exact": False}],
    ("spacing", "beta"): [
        {"count": 4},
        {"count": 7, "a": 0.5, "b": 1.5, "measure": "sigma", **ENDS},
        {"count": 5, "exact": False},
    ],
    ("spacing", "sigmas"): [
        {"values": (3.0, 1.0, 0.3)},
        {"values": (0.0, 2.0, 1.0), "times": (0.0, 600.0, 400.0), "exact": False},
    ],
    ("spacing", "sections"): [{"counts": (4,)}, {"counts": (1, 1, 2)}],
    # dampening and nesterov exclude each other
    ("optimizer", "sgd"): [{}, {"momentum": 0.0, "dampening": 0.1}, {"momentum": 0.5, "nesterov": True}],
    ("optimizer", "muon"): [
        {},
        {"scale": "spectral", "nesterov": False, "iterations": 3, "adamw": ("2.*",)},
        {"momentum": 0.9, "adamw_lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-6},
    ],
    ("guidance", "apg"): [
        {"scale": 2.0},
        {"scale": 3.0, "along": 0.3, "threshold": 0.5, "interval": (0.3, 2.0), "null": {"y": 4}, "joint": False},
        {"scale": 2.0, "by_level": "linear"},
    ],
    ("guidance", "cfg_zero"): [
        {"scale": 2.0, "by_level": "cosine"},
        {"scale": 3.0, "interval": (0.3, 2.0), "null": {"y": 4}, "joint": False},
    ],
    ("guidance", "autoguidance"): [
        {"model": worse, "scale": 2.0},
        {"model": lambda x, time, y: worse(2 * x, time, y), "scale": 0.5, "interval": (0.3, 2.0)},
        {"model": worse, "scale": 2.0, "by_level": "0.1:0,1:1"},
    ],
    # its neutral limit is 1e9, which largest has to leave room for
    ("guidance", "dynamic_threshold"): [{}, {"percentile": 0.9, "limit": 0.5, "largest": 2e9}],
    ("guidance", "cfg"): [
        {"scale": 2.0},
        {"scale": 3.0, "interval": (0.3, 2.0), "rescale": 0.7, "null": {"y": 4}, "joint": False},
        {"scale": 2.0, "by_level": ((0.3, 0.0), (1.0, 1.0), (4.0, 0.0))},
    ],
    ("guidance", "classifier"): [
        {"classifier": logits},
        {"classifier": lambda x, time: 2 * logits(x, time), "scale": 0.5, "clip": True},
        {"classifier": logits, "label": "target", "at": "mean", "shift": "mean", "interval": (0.3, 2.0)},
        {"classifier": logits, "by_level": "cosine"},
    ],
    ("guidance", "gradient"): [
        {"log_prob": log_prob},
        {"log_prob": lambda x, time, conditions: log_prob(x / 2, time, conditions), "scale": 0.5, "clip": True},
        {"log_prob": log_prob, "own": ("target",), "at": "mean", "shift": "mean", "by_level": "linear"},
        {"log_prob": log_prob, "interval": (0.3, 2.0)},
    ],
    ("guidance", "diffpir"): [{"operator": half}, MEASURED | {"weight": 2.0, "data_std": 0.5, "iterations": 2}],
    ("guidance", "dps"): [{"operator": half}, MEASURED | {"step": 0.5, "form": "likelihood"}],
    ("guidance", "mmps"): [{"operator": half, "noise_std": 0.1}, MEASURED | {"iterations": 2}],
    ("guidance", "pigdm"): [{"operator": half}, MEASURED | {"data_std": 0.5, "iterations": 2}],
}


def checked_names(kind: str) -> list[str]:
    """Names of the built-in parts of a kind that need no file and no network; the others have tests of their own."""
    return [name for name in registry(kind).built_in_names() if (kind, name) not in NEED_FILES]


def cases() -> list[Any]:
    """Kind, name and options of each built-in part and each of its option values.

    The third and further are slow, and the second of a loss, sampler, guidance or hook: their checks take long. So is
    the first of every other sampler.
    """
    found = []
    for kind in KINDS:
        first = [_case(kind, name, 0, options) for name, options in _values(kind, 0)]
        found += some_by_default(first, 2 if kind == "sampler" else 1)
        for i in range(1, max((len(values_of(kind, name)) for name in checked_names(kind)), default=0)):
            slow = i > (0 if kind in ("loss", "sampler", "guidance", "hook") else 1)
            found += [_case(kind, name, i, options, slow) for name, options in _values(kind, i)]
    return found


def _case(kind: str, name: str, i: int, options: dict[str, Any], slow: bool = False) -> Any:
    return pytest.param(kind, name, options, id=f"{kind}-{name}{i or ''}", marks=[pytest.mark.slow] if slow else [])


def _values(kind: str, i: int) -> list[tuple[str, dict[str, Any]]]:
    """Names of the parts that have that many values and one more, each with its value number ``i``."""
    values = {name: values_of(kind, name) for name in checked_names(kind)}
    return [(name, options[i]) for name, options in values.items() if len(options) > i]


def values_of(kind: str, name: str) -> list[dict[str, Any]]:
    """Option values a part is tried with."""
    if (kind, name) in OPTIONS:
        return OPTIONS[kind, name]
    changed = _changed(registry(kind).get(name))
    return [{}, changed] if changed else [{}]


def conditions_for(kind: str, part: Any) -> Any:
    """Conditions that the kit cannot find by itself: those of a guidance for itself."""
    names = set(getattr(part, "own_conditions", ())) if kind == "guidance" else ()
    return (lambda n, shape: {k: v for k, v in conditions(n, shape).items() if k in names}) if names else None


def known_failures(kind: str, name: str, options: dict[str, Any]) -> dict[str, str]:
    """Laws that a part or option is there to break, and why."""
    if (kind, name) == ("extractor", "digits"):
        return {"identity_follows_the_weights": "its weights follow from a recipe, which its identity holds"}
    if not options.get("bounded", True):
        return {"order_as_declared": "the own error of a corrector's step remains in however short steps"}
    if options.get("s_noise", 1.0) == 1.0:
        return {}
    louder = "noise of another scale leaves no step the spread it should have, which is what the option is for"
    return dict.fromkeys(("keeps_the_marginals", "order_as_declared"), louder)


def _changed(part: Any) -> dict[str, Any]:
    """Another value for every option that has one which can be had together with those before."""
    found: dict[str, Any] = {}
    for option in attrs.fields(part) if attrs.has(part) else ():
        for value in _others(part, option):
            if _works(part, found | {option.name: value}):
                found[option.name] = value
                break
    return found


def _others(part: Any, option: Any) -> list[Any]:
    default = option.default
    if option.name == "betas":
        return [(0.5, 0.9)]
    if option.name == "end":
        return [500_000]
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, str):
        return [word for word in _allowed_words(part, option.name) if word != default]
    if isinstance(default, int):
        return [default + 1, default - 1]
    if isinstance(default, float):
        return [value for value in (default / 2, default * 2, 0.1, 0.9) if value != default]
    return []


def _allowed_words(part: Any, name: str) -> list[str]:
    try:
        part(**{name: "no such word"})
    except DiffkitError as error:
        text = str(error).partition(", got ")[0]
        return re.findall(r"'(\w+)'", text) or re.findall(r"\w+", text.partition("(known: ")[2])
    return []


def _works(part: Any, options: dict[str, Any]) -> bool:
    try:
        part(**options)
    except (TypeError, ValueError):
        return False
    return True
