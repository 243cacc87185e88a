"""Whatever a configuration or a command line holds: it is taken as it stands, or refused in one message."""

from __future__ import annotations

import copy
import io
import math
import random
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import diffkit
from diffkit.__main__ import main
from diffkit.cli.parsing.commands import built_in, load
from diffkit.cli.parsing.request import look
from diffkit.errors import OptionError
from diffkit.registry import registry

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


SHOWN = {"RUN": "run", "PICTURES": "pictures", "FIRST": "pictures/0.png", "SECOND": "pictures/1.png"}
SHOWN |= {"SAMPLES": "data.npz", "SOURCE": "pictures", "FILE": "none.pt", "NAME": "diffkit-x"}
ANYTHING = [*WORDS, "0", "-1", "3", "0.5", "1e30", "inf", "none", "8,6", "ddim", "cpu", "meta", "run", "pictures"]
ANYTHING += ["mask.png", "data.npz", "x.npz", "x.json", "npz", "all", "karras4", "uniform", "cat", "--seed"]


def any_line(choose: random.Random) -> list[str]:
    """A line of any command that ends soon, with some of its options, most of them wrong."""
    name = choose.choice([each for each in built_in() if each not in ("demo", "explain", "report", "size", "list")])
    spec = load(built_in()[name]).SPEC
    slots = [f"--{kind}=data.npz" for kind in ("data", "val") if kind in spec.slots and choose.random() < 0.8]
    for kind in sorted(set(spec.slots) - {"data", "val"}):
        slots += [f"--{kind}={choose.choice(registry(kind).built_in_names())}"] if choose.random() < 0.3 else []
    try:
        options = look(name, spec, slots).options
    except OptionError:  # guidance that only Python can hold
        return [*name.split(), *slots]
    words = [*name.split(), *(SHOWN.get(o.flag, "run") for o in options if o.positional), *slots]
    for option in options:
        likely = {"out": "out", "to": "to", "mask": "mask.png", "steps": "2", "kind": "schedule"}.get(option.key)
        if not (option.positional or option.chooses) and choose.random() < (0.9 if likely else 0.06):
            value = likely if likely and choose.random() < 0.8 else choose.choice(ANYTHING)
            words += [f"{option.flag}={value}"] if choose.random() < 0.3 else [option.flag, value]
    return [*words, "--print-config"] if name.startswith("train") and "--dry-run" not in words else words


@pytest.mark.slow
def test_lines_of_any_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backbone = ("mlp", {"hidden": 8, "depth": 1, "num_classes": 3, "null_class": True})
    diffkit.compose(schedule="cosine", backbone=backbone, data_shape=(1, 8, 6), num_steps=12).save("run")
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 6, 1), np.uint8)
    np.savez("data.npz", images, np.arange(7) % 3)
    (tmp_path / "pictures").mkdir()
    for i in range(2):
        Image.fromarray(images[i, :, :, 0]).save(f"pictures/{i}.png")
    Image.fromarray(np.repeat(np.array([[255] * 3 + [0] * 3], np.uint8), 8, 0)).save("mask.png")
    choose = random.Random(0)
    for line in (any_line(choose) for _ in range(600)):
        code, _ = said(*line)
        assert code in (0, 2), line
