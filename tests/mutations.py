"""Damage to files: by structure for JSON and TOML, by bytes for any; the same for the same seed."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e-300, 1e300, float("nan"), float("inf"), float("-inf")),
    *(10**9, 10**12, 2**31, 2**63 - 1, 2**63, 10**30, 10**400, -(10**30)),
    *(
        "",
        "x",
        "\x1b[31mred\x07",
        "a\nb",
        "\u202eright",
        "\udcff",
        "\ud800",
        "é",
        "x" * 10_000,
        "../../etc/passwd",
        "nan",
    ),
    *([], {}, [[]], [None], [1, "a"], {"": 1}, {"name": None}, {"\x1b[2J": 1}, [10**9] * 3, [1] * 1000),
)
"""Values that no field expects, or not of this size."""


def by_structure(content: Any, seed: int) -> Any:
    """Plain data with one or two places changed: another value there, nothing there, twice there, or one more."""
    rng = random.Random(seed)
    found = {"root": copy.deepcopy(content)}
    for _ in range(rng.choice((1, 1, 1, 2))):
        if not (places := list(_places(found))):
            break  # the first change left nothing
        holder, key = rng.choice(places)
        change = rng.choice((_replace, _replace, _replace, _replace, _remove, _add, _nest, _scale))
        change(rng, holder, key)
    return found.get("root")


def by_bytes(content: bytes, seed: int) -> bytes:
    """Bytes with a few flipped, cut off, taken out, put in or said twice."""
    rng = random.Random(seed)
    found, at = bytearray(content), rng.randrange(len(content) + 1)
    match rng.randrange(6):
        case 0:
            for _ in range(rng.choice((1, 1, 3, 30))):
                found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
        case 1:
            del found[at:]
        case 2:
            del found[at : at + rng.randrange(1, 40)]
        case 3:
            found[at:at] = rng.choice(
                (b"\0", b"[" * 5000, b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"}", b"NaN", b"\x1b[2J")
            )
        case 4:
            found[at:at] = found[at : at + rng.randrange(1, 200)]
        case 5:
            found[at : at + 8] = rng.randbytes(8)
    return bytes(found)


def as_json(content: Any) -> bytes:
    """JSON, with what it does not have as Python writes it."""
    return json.dumps(content, indent=2).encode()


def json_mutations(content: bytes, seeds: range) -> Iterator[tuple[int, bytes]]:
    """Yield damaged forms of a JSON file by seed, three of four by structure."""
    parsed = json.loads(content)
    for seed in seeds:
        yield seed, by_bytes(content, seed) if seed % 4 == 0 else as_json(by_structure(parsed, seed))


def _places(holder: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in plain data, as what holds it and its key or index."""
    keys = list(holder) if isinstance(holder, dict) else range(len(holder))
    for key in keys:
        yield holder, key
        if isinstance(holder[key], dict | list):
            yield from _places(holder[key])


def _replace(rng: random.Random, holder: Any, key: Any) -> None:
    holder[key] = copy.deepcopy(rng.choice(ODD))


def _remove(rng: random.Random, holder: Any, key: Any) -> None:
    del holder[key]


def _add(rng: random.Random, holder: Any, key: Any) -> None:
    more = copy.deepcopy(rng.choice(ODD))
    if isinstance(holder, dict):
        holder[rng.choice(("extra", "name", "\x1b[31m", "device", "backbone", "self"))] = more
    else:
        holder.insert(rng.randrange(len(holder) + 1), more)


def _nest(rng: random.Random, holder: Any, key: Any) -> None:
    wrap: Callable[[Any], Any] = rng.choice((lambda value: [value], lambda value: {"name": value}))
    for _ in range(rng.choice((1, 2, 40, 500))):
        holder[key] = wrap(holder[key])


def _scale(rng: random.Random, holder: Any, key: Any) -> None:
    if isinstance(holder[key], int | float):
        holder[key] = holder[key] * rng.choice((-1, 0, 2, 1000, 10**9, 0.5))
    elif isinstance(holder[key], str):
        holder[key] = rng.choice((holder[key].upper(), holder[key] + "\0", holder[key][:-1], holder[key] * 100))
