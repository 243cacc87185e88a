"""Whatever a configuration or a command line holds: it is taken as it stands, or refused in one message."""

from __future__ import annotations

import copy
import io
import math
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffkit.__main__ import main

BASE: dict[str, Any] = {
    "out": "runs/x",
    "steps": 10,
    "lr": 2e-4,
    "ema": [0.99],
    "anneal": True,
    "precision": "bf16",
    "num_steps": 50,
    "data": {"name": "digits", "split": "all"},
    "schedule": {"name": "cosine", "s": 0.01},
    "loss": {"name": "hybrid", "vb_weight": 0.5},
    "var": {"name": "learned_range"},
    "backbone": {"name": "mlp", "hidden": 8, "depth": 1},
}
WORDS = ["cosine", "linear", "os.system", "digits", "fp16", "true", "1", "", "../x", "endd", "💥", "a\nb", "nan"]
VALUES = st.recursive(
    st.one_of(
        st.sampled_from(WORDS),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.integers(-5, 2**70),
        st.floats(),
        st.booleans(),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "s", "x"]), inner, max_size=2),
    max_leaves=4,
)
PATHS = [(key,) for key in BASE] + [
    (key, own) for key, table in BASE.items() if isinstance(table, dict) for own in table
]
KEYS = st.sampled_from(["stepz", "lr", "seed", "keep", "schedule", "batch_size", "s", "name", "guidance", "x.y", ""])


@st.composite
def configurations(draw: st.DrawFn) -> tuple[dict[str, Any], set[tuple[str, ...]]]:
    """A configuration with some of its values, keys and tables changed, and where."""
    made, changed = copy.deepcopy(BASE), set()
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(PATHS))
        table = made.get(path[0]) if len(path) == 2 else made
        if not isinstance(table, dict):
            continue
        how = draw(st.sampled_from(["value", "key", "drop"]))
        if how == "drop":
            table.pop(path[-1], None)
            continue
        key = path[-1] if how == "value" else draw(KEYS)
        table[key] = draw(VALUES)
        changed.add((*path[:-1], key))
    return made, changed


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        escaped = "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in value)
        return f'"{escaped}"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(k)} = {toml(v)}" for k, v in value.items()) + "}"
    return str(value)


def document(table: dict[str, Any]) -> str:
    return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in table.items())


def said(*words: str) -> tuple[int, str]:
    """Exit code and standard output of a command that must end in an orderly way."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main(list(words))
    assert code in (0, 2), err.getvalue()
    assert "Traceback" not in err.getvalue()
    assert code == 0 or err.getvalue().startswith("error: "), err.getvalue()
    return code, out.getvalue()


def same(given: Any, printed: Any) -> bool:
    """Whether a value was taken as it stands; an integer may become the same float, and one number a list of it."""
    if isinstance(given, bool) or isinstance(printed, bool):
        return given is printed
    if isinstance(printed, list) and isinstance(given, int | float):
        return same([given], printed)
    if isinstance(given, list) and isinstance(printed, list):
        return len(given) == len(printed) and all(map(same, given, printed))
    if isinstance(given, int | float) and isinstance(printed, int | float):
        return given == printed or (math.isnan(given) and math.isnan(printed))
    return bool(given == printed)


def check_configuration(folder: Path, made: dict[str, Any], changed: set[tuple[str, ...]]) -> None:
    path = folder / "run.toml"
    path.write_text(document(made), encoding="utf-8")
    code, out = said("train", "--config", str(path), "--print-config")
    if code:
        return
    printed = tomllib.loads(out)
    for place in changed:
        wanted, found = at(made, place), at(printed, place)
        if wanted is None or isinstance(wanted, dict):
            continue
        found = found.get("name") if isinstance(found, dict) else found  # a part may be named without a table
        assert same(wanted, found), (place, wanted, found)


def at(table: Any, place: tuple[str, ...]) -> Any:
    for key in place:
        table = table.get(key) if isinstance(table, dict) else None
    return table


def check_text(folder: Path, text: bytes) -> None:
    path = folder / "run.toml"
    path.write_bytes(text)
    said("train", "--config", str(path), "--print-config")


FLAGS = [
    "--steps",
    "--lr",
    "--out",
    "--schedule",
    "--schedule.s",
    "--stepz",
    "--data",
    "--ema",
    "--anneal",
    "--no-anneal",
]
LINES = st.lists(
    st.sampled_from(FLAGS) | st.sampled_from(WORDS) | st.integers().map(str) | st.text(max_size=5), max_size=6
)


def check_line(folder: Path, words: list[str]) -> None:
    given_words = [word for word in words if "\0" not in word]
    code, _ = said(
        "train", "--data", "digits", "--out", str(folder / "x"), "--steps", "9", *given_words, "--print-config"
    )
    assert not (folder / "x").exists()
    assert code == 0 or given_words


def trying(count: int, check: Any, *strategies: Any) -> None:
    quiet = settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
    quiet(given(*strategies)(check))()


@pytest.mark.parametrize("count", [12, pytest.param(2000, marks=pytest.mark.slow)])
def test_configurations(tmp_path, count):
    trying(count, lambda made: check_configuration(tmp_path, *made), configurations())


@pytest.mark.parametrize("count", [12, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_configurations(tmp_path, count):
    whole = document(BASE).encode()
    place = st.integers(0, len(whole) - 1)
    cut = st.tuples(place, st.binary(max_size=4), place).map(lambda t: whole[: t[0]] + t[1] + whole[t[0] + t[2] % 9 :])
    trying(count, lambda text: check_text(tmp_path, text), cut | st.binary(max_size=60))


@pytest.mark.parametrize("count", [12, pytest.param(2000, marks=pytest.mark.slow)])
def test_command_lines(tmp_path, count):
    trying(count, lambda words: check_line(tmp_path, words), LINES)
