"""Options that errors of the command line name exist in the command that prints them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import diffkit.cli
from diffkit.cli.parsing.commands import load, table
from diffkit.cli.parsing.request import look

FOLDER = Path(diffkit.cli.__file__).parent
EVERYWHERE = {"--help", "--import", "--debug"}
GUIDANCE = ("classifier", "autoguidance")
SOURCES = ("digits", "points", "photographs", "images.npz", "images.npy", "./")
_WORD = re.compile(r"(?<![\w-])(--[a-z][\w.-]*)|\bdiffkit ([a-z-]+(?: check| import)?)\b|[;,]")


@cache
def flags(name: str) -> frozenset[str]:
    """Every option of a command, with those of any data it can read."""
    spec = load(table()[name]).SPEC
    slots = [kind for kind in ("data", "val") if kind in spec.slots]
    lines: list[list[str]] = [[]] + [[f"--{kind}", source] for kind in slots for source in SOURCES]
    if "guidance" in spec.slots:
        lines += [["--guidance", each] for each in GUIDANCE]
    options = [option for words in lines for option in look(name, spec, words).options]
    found = {f for option in options for f in (option.flag, option.negative, option.short) if f}
    return frozenset(found | {f"--{slot}" for slot in spec.slots} | EVERYWHERE)


def said(path: Path) -> Iterator[str]:
    """The texts of the errors that a file raises, with "…" for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
            continue
        for text in node.exc.args:
            if isinstance(text, ast.JoinedStr):
                yield "".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in text.values)
            elif isinstance(text, ast.Constant):
                yield str(text.value)


def commands_of(path: Path) -> list[str]:
    """The commands that may say what a file of the command line says."""
    name = path.stem.rstrip("_").replace("__", " ").replace("_", "-")
    return [name] if name in table() else list(table())


def named(text: str) -> Iterator[tuple[str, str]]:
    """Command, "" where none is named in the sentence, and option of every option in a text."""
    command = ""
    for flag, other in _WORD.findall(text):
        if flag:
            yield command, flag.rstrip(".")
        else:
            command = other if other in table() else ""


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.stem)
def test_options_in_errors_exist(path: Path):
    for text in said(path):
        for command, flag in named(text):
            meant = [command] if command else commands_of(path)
            assert any(flag in flags(name) for name in meant), f"{text!r}: {meant} has no {flag}"
