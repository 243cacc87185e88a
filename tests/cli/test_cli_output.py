"""What a command prints, where that cannot be printed, and what a terminal would obey."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import Command, Refused

from diffkit.cli._app import run
from diffkit.registry import refresh
from diffkit.runtime import output

TRAIN = ["train", "--data", "points", "--data.examples", "50", "--steps", "2", "--batch-size", "2", "--num-steps", "50"]
TRAIN += ["--backbone", "mlp", "--backbone.hidden", "4", "--out"]


class Full(io.StringIO):
    """A stream on a disk that is full."""

    def __init__(self, error: OSError):
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


FULL = OSError(28, "No space left on device")
GONE = BrokenPipeError(32, "Broken pipe")


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


BROKEN = {"missing": lambda: None, "closed": closed, "full": lambda: Full(FULL), "left": lambda: Full(GONE)}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_run_resumes_where_nothing_can_be_printed(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdout", BROKEN[kind]())
    monkeypatch.setattr(sys, "stderr", BROKEN[kind]())
    assert run([*TRAIN, str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize("words", [["list", "var"], ["--help"], ["list", "--help"], ["--version"]])
def test_results_that_cannot_be_printed_are_an_error(words: list[str], monkeypatch: pytest.MonkeyPatch):
    for kind, why in {"missing": "it is closed", "full": "No space left on device"}.items():
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        monkeypatch.setattr(sys, "stdout", BROKEN[kind]())
        assert run(words) == 2
        want = f"error: standard output cannot be written: {why}; what was printed there is lost\n"
        assert sys.stderr.getvalue() == want
    monkeypatch.setattr(sys, "stdout", BROKEN["left"]())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert run(words) == 141
    assert sys.stderr.getvalue() == ""  # as other programs that feed a pipe


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16", "utf-8"])
def test_names_outside_the_encoding_are_spelled_out(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
):
    streams = [io.TextIOWrapper(io.BufferedWriter(io.FileIO(tmp_path / each, "w")), encoding) for each in "ab"]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    name = os.fsdecode("雪\x1b[31m".encode() + b"\xff")
    assert run([*TRAIN, str(tmp_path / name)]) == 0
    for stream, begins in zip(streams, ("run: ", "training in "), strict=True):
        stream.close()
        text = Path(stream.name).read_text(encoding)
        assert text.startswith(begins) and "\x1b" not in text
        assert ("雪" in text) == encoding.startswith("utf") and r"\x1b[31m\udcff" in text


def test_a_folder_with_any_name_is_reported(command: Command, saved: Path, tmp_path: Path):
    pytest.importorskip("jinja2")
    folder = tmp_path / os.fsdecode(b"\xff\x1b")
    shutil.copytree(saved, folder)
    found = command("report", folder, "-n", "1", "--steps", "2")
    assert found.code == 0, found.err
    assert r"\udcff" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_configuration_holds_any_text(command: Command):
    text = 'a"b\\c\x1b\n\u202e雪\U000e0001'
    found = command("explain", "--spec", text, "--print-config")
    assert tomllib.loads(found.out)["spec"] == text and "\x1b" not in found.out


def test_nothing_is_left_in_buffers_that_would_fail_when_python_ends():
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    code = "import sys; from diffkit.runtime.output import log, note; log('x'); note('y'); sys.exit(7)"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=full, env=environment, check=False)
    assert done.returncode == 7


def test_files_do_not_get_the_place_of_a_closed_stream(tmp_path: Path):
    code = (
        "import os; from diffkit.runtime.output import safe_output\n"
        f"with safe_output(): assert os.open({str(tmp_path)!r}, os.O_RDONLY) > 2"
    )
    done = subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code], check=False)
    assert done.returncode == 0


def test_a_line_break_in_a_name_breaks_no_error(refused: Refused, tmp_path: Path):
    assert refused("sample", tmp_path / "a\nerror: b").splitlines() == [
        f"{tmp_path}/a\\nerror: b/spec.json is not there; a saved system is a folder with spec.json and "
        "model.safetensors"
    ]


def test_printable_spells_out_what_terminals_obey():
    assert output.printable("a\x1b[2J\x9b\u202e\udcff\n雪") == r"a\x1b[2J\x9b\u202e\udcff\n雪"
    assert output.printable("a\nb\t\x07", keep="\n\t") == "a\nb\t\\x07"


EVIL = "\x1b]0;pwn\x07\x1b[2J hi"


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution whose every text holds terminal codes."""
    folder = tmp_path / "evil-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: evil\nVersion: 1.0\nSummary: {EVIL}\n more\n")
    (folder / "entry_points.txt").write_text("[diffkit.schedule]\nevil = evil_of_a_test:Evil\n")
    (tmp_path / "evil_of_a_test.py").write_text(
        f"""
from attrs import frozen
from diffkit.options import choice, number
from diffkit.protocols import NoiseSchedule

@frozen
class Evil(NoiseSchedule):
    {f"Doc {EVIL}."!r}
    __doc__ = {f"Doc {EVIL}.{chr(10)}{chr(10)}Attributes:{chr(10)}    width: Wide {EVIL}."!r}

    width: float = number(4.0, gt=0)
    way: str = choice({EVIL!r}, {EVIL!r}, "b")

    def table(self, num_steps):
        raise ValueError({EVIL!r})
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("DIFFKIT_PLUGINS", "evil")
    refresh()
    yield
    monkeypatch.undo()
    refresh()
    sys.modules.pop("evil_of_a_test", None)


@pytest.mark.usefixtures("evil")
@pytest.mark.parametrize(
    "words",
    [
        ["list", "schedule"],
        ["explain", "--schedule", "evil", "--help"],
        ["explain", "--schedule", "evil"],
        ["explain", "--schedule", "evil", "--schedule.way", "\x1b[2J"],
        ["explain", "--schedule", "\x1b[2J"],
        ["explain", "--\x1b[2J"],
        ["\x1b[2J"],
        ["explain", "--schedule", "evil", "--print-config"],
        ["explain", "--spec", "\x1b[2J"],
        ["--debug", "explain", "--spec", "\x1b[2J"],
        ["check", "--schedule", "evil", "--only", "\x1b"],
    ],
)
def test_text_of_others_cannot_talk_to_the_terminal(command: Command, words: list[str]):
    found = command(*words)
    assert found.out + found.err and "\x1b" not in found.out + found.err and "\x07" not in found.out + found.err


@pytest.mark.usefixtures("evil")
def test_a_summary_takes_one_line(command: Command):
    (line,) = [line for line in command("list", "schedule").out.splitlines() if "evil" in line]
    assert line.endswith(r"Doc \x1b]0;pwn\x07\x1b[2J hi")
