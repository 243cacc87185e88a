"""Random compositions: every part that is installed, its options ordinary or extreme, on data of any size.

A case is a number, and what it composes is a function of that number and of what is installed.
"""

from __future__ import annotations

import math
import random
import typing
from typing import Any

import attrs

from diffkit.registry import SLOTS, registry

NUMBERS = (0.0, 1.0, -1.0, 0.5, 2.0, 1e-3, 1e3, 1e-6, 1e6, 1e-12, 1e9, -1e9, 1e-300, 1e300, 1 - 1e-9, 0.999)
INTEGERS = (0, 1, 2, 3, 5, 10, 100, 1000, -1, 10**6, 2**31, 2**63, 10**20)
WORDS = (
    "eps",
    "x_start",
    "v",
    "linear",
    "cosine",
    "vp",
    "ve",
    "log_snr",
    "log_noise",
    "analytic",
    "learned",
    "bh1",
    "",
)
STEPS = (1, 2, 3, 4, 5, 10, 20, 50, 100, 250, 1000, 2000, 4000, 5000)
SHAPES = ((1,), (2,), (3,), (1, 1), (1, 7), (3, 16), (1, 1, 1), (1, 8, 6), (3, 5, 7), (2, 2, 3, 2))
SPACINGS = (
    None,
    1,
    2,
    3,
    5,
    10,
    "ddim5",
    "quad5",
    "time4",
    "logsnr6",
    "karras5",
    "trailing3",
    "karras4:rho=2",
    "25,25",
)


def composition(number: int) -> dict[str, Any]:
    """Return keywords of `diffkit.compose` and, under "steps", which levels sampling visits."""
    rng = random.Random(number)
    found: dict[str, Any] = {kind: _part(rng, kind) for kind in SLOTS if kind != "backbone"}
    found["backbone"] = ("mlp", {"hidden": rng.choice((1, 4, 8)), "depth": 1})
    found["data_shape"] = rng.choice(SHAPES)
    found["num_steps"] = rng.choice((rng.choice(STEPS), rng.randint(1, 5000)))
    found["bins"] = rng.choice((None, 2, 256, 256, 65536, {"bins": 256}))
    if rng.random() < 0.2:
        found["train_spacing"] = rng.choice(SPACINGS)
    if rng.random() < 0.3:
        found["clip_x_start"] = rng.random() < 0.5
    if rng.random() < 0.2:
        found["rescale_time"] = False
    found["steps"] = rng.choice(SPACINGS) if found["num_steps"] <= 20 else rng.choice(SPACINGS[1:])
    return found


def _part(rng: random.Random, kind: str) -> Any:
    entries = sorted(registry(kind).entries(), key=lambda entry: entry.name)
    name = rng.choice(entries).name
    if rng.random() < 0.6:  # extreme options seldom fit: with fewer of them, more is composed
        return name
    cls = registry(kind).get(name)
    hints = typing.get_type_hints(cls)
    options = {f.name: _value(rng, hints.get(f.name), f.default) for f in attrs.fields(cls) if f.init}
    return (name, {key: value for key, value in options.items() if value is not attrs.NOTHING})


def _value(rng: random.Random, kind: Any, default: Any) -> Any:
    """A value of a declared type, or nothing."""
    if rng.random() < 0.5:
        return attrs.NOTHING
    choices = typing.get_args(kind)
    if kind is bool:
        return rng.random() < 0.5
    if kind is int or (choices and int in choices):
        return rng.choice(INTEGERS)
    if kind is str:
        return rng.choice((*WORDS, default))
    if typing.get_origin(kind) is tuple:
        return tuple(rng.choice(NUMBERS) for _ in range(rng.choice((0, 1, 2, 5))))
    if kind is float or (choices and float in choices):
        return _near(rng, default) if rng.random() < 0.7 else rng.choice(NUMBERS)
    return attrs.NOTHING


def _near(rng: random.Random, default: Any) -> float:
    """A number of about the size of the default."""
    if not isinstance(default, int | float) or isinstance(default, bool) or not math.isfinite(default):
        return rng.choice(NUMBERS)
    return float(default) * 10 ** rng.uniform(-2, 2) if default else rng.uniform(-2, 2)
