"""Digits drawn by their names as texts, after a tenth of the benchmark's training."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "benchmarks" / "digits").is_dir():
    pytest.skip("the benchmarks are not part of this distribution", allow_module_level=True)
pytest.importorskip("sklearn")
sys.path.insert(0, str(ROOT))

from benchmarks.digits.texts import UPDATES, measured, trained  # noqa: E402


@pytest.mark.slow
def test_texts_are_drawn_as_asked(tmp_path):
    """Chance is a tenth."""
    system = trained(tmp_path / "run", UPDATES // 10)
    assert measured(system, 1.5, count=200, steps=20)["recognised"] > 0.6
