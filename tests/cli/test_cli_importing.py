"""Parts of a file of one's own on the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_support import Command, Refused

from diffkit.registry import registry

PARTS = """
import numpy as np
from attrs import frozen
from beside_parts import WIDTH
from diffkit.options import number
from diffkit.protocols import NoiseSchedule
from diffkit.registry import registry
from diffkit.table import ProcessTable


@registry("schedule").register("imported_logistic")
@frozen
class Logistic(NoiseSchedule):
    \"\"\"alpha_bar falls as a logistic curve.\"\"\"

    width: float = number(WIDTH, gt=0)

    def table(self, num_steps):
        u = 1 / (1 + np.exp(np.linspace(-self.width, self.width, num_steps + 1)))
        return ProcessTable.from_alpha_bar(u / u[0])
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_parts.py").write_text("WIDTH = 4.0\n")
    (tmp_path / "parts_of_a_test.py").write_text(PARTS)
    yield tmp_path / "parts_of_a_test.py"
    for name in ("parts_of_a_test", "beside_parts"):
        sys.modules.pop(name, None)
    registry("schedule")._here.pop("imported_logistic", None)


def test_parts_of_a_file_go_by_their_names(command: Command, refused: Refused, parts: Path, tmp_path: Path):
    np.savez(tmp_path / "images.npz", np.zeros((9, 4, 6, 3), np.uint8))
    words = ["--data", tmp_path / "images.npz", "--backbone", "mlp", "--backbone.hidden", "8", "--num-steps", "8"]
    words += ["--steps", "2", "--batch-size", "4", "--out", tmp_path / "run", "--schedule", "imported_logistic"]
    assert "no schedule named 'imported_logistic'" in refused("train", *words)
    found = command("train", *words, "--schedule.width", "5", "--import", parts)
    assert found.code == 0, found.err
    registry("schedule")._here.pop("imported_logistic")
    sys.modules.pop("parts_of_a_test")
    asked = ["sample", tmp_path / "run", "-n", "1", "--steps", "2", "--out", tmp_path / "samples"]
    assert "(on the command line, --import FILE.py runs a file of yours)" in refused(*asked)
    assert command(f"--import={parts}", *asked).code == 0
    assert "imported_logistic" in command("list", "schedule", "--import", parts).out


SOURCE = """
from pathlib import Path

import numpy as np
from attrs import field, frozen
from diffkit.data import Source, from_array
from diffkit.registry import registry


@registry("data").register("imported_series")
@frozen(kw_only=True)
class Series(Source):
    \"\"\"Rows of a text file.\"\"\"

    path: Path = field(converter=Path)

    def open(self):
        return from_array(np.loadtxt(self.path, dtype=np.float32)[:, None], source="series")
"""


def test_a_source_of_a_file_may_have_an_option_path(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(registry("data"), "_here", {})
    (tmp_path / "source_of_a_test.py").write_text(SOURCE)
    np.savetxt(tmp_path / "rows.txt", np.arange(12.0).reshape(3, 4))
    asked = ["check", "--import", tmp_path / "source_of_a_test.py", "--data", "imported_series"]
    found = command(*asked, "--data.path", tmp_path / "rows.txt")
    assert found.code == 0, found.out + found.err
    sys.modules.pop("source_of_a_test")


@pytest.mark.parametrize(
    ("content", "name", "text"),
    [
        (None, "parts_of_a_test.py", "is not a Python file"),
        ("", "parts.txt", "is not a Python file"),
        ("1 / 0", "parts_of_a_test.py", "failed: ZeroDivisionError: division by zero"),
        ("import sys; sys.exit(3)", "parts_of_a_test.py", "failed: SystemExit: 3"),
        ("raise BaseException('a\\nb')", "parts_of_a_test.py", "failed: BaseException: a b"),
        ("def f(): f()\nf()", "parts_of_a_test.py", "failed: RecursionError: maximum recursion depth exceeded"),
        ("", "parts.of.py", "has a dot in its name, as no module has; give the file another name"),
        ("", "json.py", "has the name of another module; give the file another name"),
    ],
)
def test_a_file_that_cannot_be_run(content, name, text, refused: Refused, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    if content is not None:
        (tmp_path / name).write_text(content)
    assert refused("list", "--import", tmp_path / name) == f"--import {tmp_path / name} {text}"
    assert "parts_of_a_test" not in sys.modules


def test_a_file_must_be_named(refused: Refused):
    assert "--import needs a Python file" in refused("list", "--import")


def test_a_file_that_is_not_text(refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "parts_of_a_test.py").write_bytes(b"x = '\xff'")
    text = refused("list", "--import", tmp_path / "parts_of_a_test.py")
    assert "failed: SyntaxError: " in text and "\n" not in text
    (tmp_path / "folder.py").mkdir()
    assert refused("list", "--import", tmp_path / "folder.py").endswith("is not a Python file")


def test_what_a_file_prints_is_not_a_result(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "parts_of_a_test.py").write_text("print('hello')")
    found = command("--import", tmp_path / "parts_of_a_test.py", "--version")
    sys.modules.pop("parts_of_a_test")
    assert found.err == "hello\n" and "hello" not in found.out
