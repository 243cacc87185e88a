"""Every built-in part, with enough option values that each option takes more than one.

A part that is not mentioned here is tried as it is made by default, and with every option changed at once; so adding
one to diffkit needs no change here, unless it is large by default or its options exclude each other.
"""

from __future__ import annotations

import re
from typing import Any

import attrs
import pytest

from diffkit.errors import DiffkitError
from diffkit.registry import SLOTS, registry

SMALL_UNET: dict[str, Any] = dict(channels=8, groups=4, num_heads=2)
SMALL_DIT: dict[str, Any] = dict(depth=2, hidden=32, heads=2)

OPTIONS: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("schedule", "linear"): [{}, {"start": 1e-3, "end": 0.01}, {"start": 1e-4, "end": 0.5}],
    ("schedule", "cosine"): [{}, {"s": 0.05, "max_beta": 0.5}, {"s": 0.0}],
    ("schedule", "zero_snr"): [{}, {"of": "cosine", "of_options": {"s": 0.1}}],
    # measured errors belong to their model, so any but zero differ from what a table alone says
    ("var", "analytic"): [{}, {"x_start_mse": (0.0,) * 1000}],
    ("loss", "hybrid"): [{}, {"vb_weight": 1.0, "scale_by_steps": False}],
    ("timesteps", "loss_second_moment"): [
        {},
        {"history": 3, "uniform_prob": 0.1},
        {"history": 1, "uniform_prob": 1.0},
    ],
    ("sampler", "ddim"): [{}, {"eta": 1.0}, {"eta": 0.3}],
    ("sampler", "churn"): [{}, {"s_churn": 20.0, "s_tmin": 0.1, "s_tmax": 5.0}, {"s_noise": 1.007}],
    ("sampler", "dpmpp_sde"): [{}, {"eta": 0.5, "r": 0.3}, {"s_noise": 1.01}],
    # bh1 only matters while there is one difference, so with more estimates in the error of the first step alone
    ("sampler", "unipc"): [{}, {"estimates": 1, "variant": "bh1"}, {"estimates": 3}],
    ("backbone", "mlp"): [
        {"hidden": 16, "depth": 1},
        {"hidden": 7, "depth": 2, "num_classes": 3},
        {"num_classes": 2, "null_class": True},
    ],
    ("backbone", "unet"): [
        SMALL_UNET,
        SMALL_UNET
        | dict(channels=12, groups=3, num_heads=1, scale_shift_norm=False, conv_resample=False)
        | dict(channel_mult=(1.0, 2.0), num_res_blocks=1),
        SMALL_UNET | dict(resblock_updown=True, num_head_channels=4, attention_order="new", channel_mult=(1.0, 1.5)),
        SMALL_UNET | dict(num_classes=3, null_class=True, dropout=0.1, num_heads_upsample=1, num_res_blocks=1),
        SMALL_UNET | dict(low_res_channels=3, checkpoint=True, attention_resolutions=(), num_res_blocks=1),
    ],
    ("backbone", "dit"): [
        SMALL_DIT,
        SMALL_DIT | dict(patch=4, mlp_ratio=2.0, num_classes=3),
        SMALL_DIT
        | dict(size="B", hidden=48, heads=3, patch=1, num_classes=2, null_class=True, checkpoint=True, depth=1),
    ],
}


def cases() -> list[Any]:
    """Kind, name and options of each built-in part and each of its option values.

    The third and further are slow, and a sampler's second: each of its checks walks many levels.
    """

    def marks(kind: str, i: int) -> list[Any]:
        return [pytest.mark.slow] if i > (0 if kind == "sampler" else 1) else []

    return [
        pytest.param(kind, name, options, id=f"{kind}-{name}{i or ''}", marks=marks(kind, i))
        for kind in SLOTS
        for name in registry(kind).built_in_names()
        for i, options in enumerate(values_of(kind, name))
    ]


def values_of(kind: str, name: str) -> list[dict[str, Any]]:
    """Option values a part is tried with."""
    if (kind, name) in OPTIONS:
        return OPTIONS[kind, name]
    changed = _changed(registry(kind).get(name))
    return [{}, changed] if changed else [{}]


def known_failures(options: dict[str, Any]) -> dict[str, str]:
    """Laws that an option is there to break, and why: only the noise scale of some samplers is such an option."""
    if options.get("s_noise", 1.0) == 1.0:
        return {}
    louder = "noise of another scale leaves no step the spread it should have, which is what the option is for"
    return dict.fromkeys(("keeps_the_marginals", "order_as_declared"), louder)


def _changed(part: Any) -> dict[str, Any]:
    """Another value for every option that has one which can be had together with those before."""
    found: dict[str, Any] = {}
    for option in attrs.fields(part):
        for value in _others(part, option):
            if _works(part, found | {option.name: value}):
                found[option.name] = value
                break
    return found


def _others(part: Any, option: Any) -> list[Any]:
    default = option.default
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
