"""The README, run from top to bottom with smaller numbers."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_support import Command

ROOT = Path(__file__).parents[2]
EXTRAS = (ROOT / "docs" / "learn" / "extras.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")

SMALLER_PYTHON = {
    "steps=2000, batch_size=64": "steps=2, batch_size=8, progress=False",
    "sample(8, steps=50": "sample(2, progress=False, steps=2",
    "sample(8, steps=20": "sample(2, progress=False, steps=2",
}
SMALLER_COMMANDS = {
    "--steps 1000 --batch-size 64": "--steps 1 --batch-size 2",
    "-n 20 --steps 50": "-n 1 --steps 2",
    "--num 100 --levels-per-example 10": "--num 2 --levels-per-example 2",
}


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """Blocks of a language, each with the text block that follows it at once, if one does."""
    pattern = rf"```{language}\n(.*?)```\n(?:\n```text\n(.*?)```)?"
    return ((found[1], found[2] or "") for found in re.finditer(pattern, README, re.DOTALL))


def with_smaller(text: str, smaller: dict[str, str], used: set[str]) -> str:
    for full, small in smaller.items():
        used |= {full} if full in text else set()
        text = text.replace(full, small)
    return text


def test_python_blocks_run_and_errors_are_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from diffkit.registry import registry

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry("schedule"), "_here", {})
    names: dict[str, object] = {"np": np, "__name__": "readme"}
    used: set[str] = set()
    for code, expected in blocks("python"):
        code = with_smaller(code, SMALLER_PYTHON, used)
        if "Error: " not in expected:
            exec(code, names)
            continue
        with pytest.raises(Exception) as caught:
            exec(code, names)
        assert f"{type(caught.value).__name__}: {caught.value}\n" == expected
    assert used == set(SMALLER_PYTHON), "a number in the README changed, so this test would run it at full size"
    assert names["again"].data_shape == (1, 8, 8)
    assert (tmp_path / "systems" / "digits" / "spec.json").exists()


def test_commands_run(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    lines = [line for code, _ in blocks("bash") for line in code.splitlines() if line.startswith("diffkit ")]
    lines.remove("diffkit demo")
    used: set[str] = set()
    for line in lines:
        found = command(*shlex.split(with_smaller(line, SMALLER_COMMANDS, used))[1:])
        assert found.code == 0, f"{line}\n{found.err}"
    assert used == set(SMALLER_COMMANDS), "a number in the README changed, so this test would run it at full size"
    assert (tmp_path / "digit_samples_grid.png").exists()


def test_every_extra_is_in_the_table():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    rows = EXTRAS.partition("| extra | for |")[2].partition("\n\n")[0]
    named = {name for row in rows.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(project["optional-dependencies"]) - {"bench", "dev", "docs"}  # which users have no need of


def test_every_part_of_the_table_is_there():
    from diffkit.registry import registry

    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", README, re.MULTILINE)
    assert len(rows) == 7
    for kind, names in rows:
        assert set(re.findall(r"`(\w+)`", names)) <= set(registry(kind).built_in_names())


def test_ci_and_make_run_the_test_command_of_the_readme():
    commands = {line.partition("#")[0].strip() for code, _ in blocks("bash") for line in code.splitlines()}
    assert {"python -m pytest -n 2", 'python -m pip install -c constraints-cpu.txt -e ".[dev]"'} <= commands
    for path in (".ci/run", "Makefile"):
        text = (ROOT / path).read_text(encoding="utf-8")
        assert "-m pytest -n 2" in text and '-c constraints-cpu.txt -e ".[dev]"' in text
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
