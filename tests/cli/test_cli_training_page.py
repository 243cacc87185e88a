"""Every command on the page on training is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from diffkit.cli.parsing import importing
from diffkit.cli.parsing.commands import load, table
from diffkit.cli.parsing.request import look, resolve

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
LAUNCHER = ["torchrun", "--nproc-per-node", "8", "-m", "--"]


@pytest.mark.parametrize("line", LINES)
def test_a_command_is_taken(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "config.toml").write_text('steps = 1\ndata = "points"\n')
    words = shlex.split(line)
    if words[0] == "torchrun":
        assert words[: len(LAUNCHER)] == LAUNCHER
        words = words[len(LAUNCHER) :]
    assert words[0] == "diffkit"
    words, files = importing.split(words)
    assert files == ([Path("parts.py")] if "--import" in line else [])
    if files:  # which is nobody's here
        words = [word.replace("logistic", "cosine") for word in words]
    parsed, _ = resolve(look(words[1], load(table()[words[1]]).SPEC, words[2:]))
    assert parsed.values


def test_there_are_commands():
    assert len(LINES) >= 8


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`(--[a-z][\w.-]*)", PAGE))))
def test_an_option_is_one_of_train_or_sample(option: str):
    words = {"train": ["--optimizer", "muon", "--lr-schedule", "wsd"], "sample": [], "runs": []}
    known = {o.flag for name in words for o in look(name, load(table()[name]).SPEC, words[name]).options}
    negative = {o.negative for name in ("train", "sample") for o in look(name, load(table()[name]).SPEC, []).options}
    assert option in known | negative | {importing.FLAG}
