"""Every built-in part, with enough option values that each option takes more than one."""

from __future__ import annotations

from typing import Any

import pytest

from diffkit.registry import KINDS, registry

SMALL_UNET: dict[str, Any] = dict(channels=8, groups=4, num_heads=2)
SMALL_DIT: dict[str, Any] = dict(depth=2, hidden=32, heads=2)

OPTIONS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "schedule": {
        "linear": [{}, {"start": 1e-3, "end": 0.01}, {"start": 1e-4, "end": 0.5}],
        "cosine": [{}, {"s": 0.0}, {"s": 0.05, "max_beta": 0.5}],
    },
    "mean": {},
    "var": {},
    "loss": {
        "hybrid": [{}, {"vb_weight": 1.0, "scale_by_steps": False}, {"vb_weight": 0.1}],
        "vlb": [{}, {"scale_by_steps": False}],
        "huber": [{}, {"delta": 0.1}],
    },
    "timesteps": {
        "loss_second_moment": [{}, {"history": 1, "uniform_prob": 1.0}, {"history": 3, "uniform_prob": 0.1}],
    },
    "sampler": {
        "ddim": [{}, {"eta": 0.3}, {"eta": 1.0}],
        "euler_ancestral": [{}, {"eta": 0.4}, {"variance": "learned"}],
        "dpm2_ancestral": [{}, {"eta": 0.4}, {"variance": "learned"}],
        "sde_dpmpp_2m": [{}, {"eta": 0.4}, {"variance": "learned"}],
        "dpm_solver_2": [{}, {"r": 0.7}],
        "dpmpp_2s": [{}, {"r": 0.7}],
        "deis": [{}, {"estimates": 2, "corrected_start": False}],
        "lms": [{}, {"estimates": 2, "corrected_start": False}],
        "unipc": [{}, {"estimates": 1, "variant": "bh1"}, {"estimates": 3}],
        "restart": [{}, {"times": 0}, {"times": 1, "rho_min": 0.2, "rho_max": 2.0}],
        "churn": [{}, {"s_churn": 0.0}, {"s_churn": 5.0, "s_tmin": 0.1, "s_tmax": 2.0}],
    },
    "backbone": {
        "mlp": [
            {"hidden": 16, "depth": 1},
            {"hidden": 7, "depth": 2, "num_classes": 3},
            {"num_classes": 2, "null_class": True},
        ],
        "unet": [
            SMALL_UNET,
            SMALL_UNET
            | dict(
                channels=12,
                groups=3,
                num_heads=1,
                scale_shift_norm=False,
                conv_resample=False,
                channel_mult=(1.0, 2.0),
                num_res_blocks=1,
            ),
            SMALL_UNET
            | dict(resblock_updown=True, num_head_channels=4, attention_order="new", channel_mult=(1.0, 1.5)),
            SMALL_UNET | dict(num_classes=3, null_class=True, dropout=0.1, num_heads_upsample=1, num_res_blocks=1),
            SMALL_UNET | dict(low_res_channels=3, checkpoint=True, attention_resolutions=(), num_res_blocks=1),
        ],
        "dit": [
            SMALL_DIT,
            SMALL_DIT | dict(patch=4, mlp_ratio=2.0, num_classes=3),
            SMALL_DIT
            | dict(size="B", hidden=48, heads=3, patch=1, num_classes=2, null_class=True, checkpoint=True, depth=1),
        ],
    },
}


def values_of(kind: str, name: str) -> list[dict[str, Any]]:
    """Option values a part is tried with; one without options needs no mention above."""
    return OPTIONS[kind].get(name, [{}])


def cases() -> list[Any]:
    """Kind, name and options of each built-in part and each of its option values; the third and further are slow."""
    return [
        pytest.param(kind, name, options, id=f"{kind}-{name}{i or ''}", marks=[pytest.mark.slow] if i > 1 else [])
        for kind in KINDS
        for name in registry(kind).built_in_names()
        for i, options in enumerate(values_of(kind, name))
    ]
