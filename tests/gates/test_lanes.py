"""The lanes of the tests: what each one tries of a test that has too many cases."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lanes import SEED, Chosen, in_lanes

ROOT = Path(__file__).parents[2]


def _marks(lanes: pytest.MarkDecorator) -> list[tuple[str, list[str]]]:
    return [(param.id, [mark.name for mark in param.marks]) for param in lanes.args[1]]


def test_each_lane_has_its_mark():
    lanes = in_lanes(default=2, slow=5, parts=2)
    assert _marks(lanes) == [
        ("2-of-seed-0", []),
        ("5-of-seed-0", ["slow"]),
        ("all-1-of-2", ["soak"]),
        ("all-2-of-2", ["soak"]),
    ]
    assert [mark for _, mark in _marks(in_lanes(slow=5))] == [["slow"], ["soak"]]


def test_the_soak_lane_tries_all_cases():
    found = [case for part in range(3) for case in Chosen(part=part, parts=3)(range(10))]
    assert sorted(found) == list(range(10))


def test_a_seed_decides_what_a_shorter_lane_tries(monkeypatch):
    cases = range(1000)
    assert Chosen(5, seed=0)(cases) == Chosen(5, seed=0)(cases) != Chosen(5, seed=1)(cases)
    assert len(Chosen(5)(cases)) == 5 and Chosen(5)(range(3)) == [0, 1, 2]
    monkeypatch.setenv(SEED, "7")
    assert _marks(in_lanes(slow=5))[0][0] == "5-of-seed-7"


def test_make_runs_every_lane_and_the_default_leaves_out_the_others():
    makefile, project = (ROOT / "Makefile").read_text(), (ROOT / "pyproject.toml").read_text()
    commands = re.findall(r"^\t\$\(PYTEST\)(?: -m (.*))?$", makefile, re.MULTILINE)
    assert commands == ["", "", '"slow and not soak"', "soak"]
    assert "-m 'not slow and not soak and not gpu'" in project
