"""The command runs, once the package is installed."""

from __future__ import annotations

import pytest

from diffkit.__main__ import main


def test_it_prints_its_levels(capsys: pytest.CaptureFixture[str]) -> None:
    assert not main(["my-command", "--num-steps", "3"])
    assert capsys.readouterr().out.count("level") == 4
