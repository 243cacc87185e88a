"""Writing a page from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from cli_support import Command, Refused

pytest.importorskip("jinja2")
pytest.importorskip("PIL.Image")


def test_the_page_lies_in_the_run(command: Command, saved: Path, tmp_path: Path):
    found = command("report", saved, "-n", "6", "--steps", "3")
    assert found.code == 0, found.err
    assert found.out == f"writing {saved / 'report.html'}\n"
    page = (saved / "report.html").read_text()
    assert "A class to each column: cat, dog, owl." in page and "3 steps, seed 0" in page
    alias_of = command("report", saved, "--out", tmp_path / "page.html", "-n", "0")
    assert alias_of.code == 0 and (tmp_path / "page.html").is_file()


def test_results_of_other_commands_are_on_it(command: Command, make_system: Callable[..., Path]):
    pytest.importorskip("sklearn")
    pytest.importorskip("torchmetrics")
    folder = make_system("digits", data_shape=(1, 8, 8), bins=17)
    data = ["--data", "digits", "--data.split", "held_out"]
    assert command("nll", folder, *data, "--num", "3").code == 0
    assert command("evaluate", folder, *data, "--extractor", "digits", "--num", "10").code == 0
    exact = pytest.importorskip("torchdiffeq") and ["--ode", "--num", "2", "--tolerance", "1e-2"]
    assert command("nll", folder, *data, *exact).code == 0
    assert command("report", folder, "-n", "4").code == 0
    page = (folder / "report.html").read_text()
    assert (
        "over 3 examples" in page
        and "over 2 examples by the flow ODE (a bound, uniform" in page
        and "FD (digits)" in page
        and "Not scored yet" not in page
    )


def test_refusals(refused: Refused, saved: Path, tmp_path: Path):
    assert refused("report", saved, "--out", tmp_path / "page.txt").startswith("--out must end in .html or .htm")
    assert refused("report", saved, "-n", "-1") == "-n must be >= 0 and <= 1000, got -1"
    assert "is not there" in refused("report", tmp_path / "nothing").splitlines()[-1]
