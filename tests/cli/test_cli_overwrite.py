"""Existing files are never replaced without --overwrite, which is refused before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_support import Command, Refused
from PIL import Image

import diffkit
from diffkit.cli.parsing.commands import load, table
from diffkit.cli.parsing.request import look
from diffkit.evaluation.sample_folder import overview

FILES = {
    "data check": [("PICTURES",), {"--out": "found.json"}],
    "data import": [("--data", "digits"), {"--to": "digits.npz"}],
    "evaluate": [
        ("PICTURES", "--data", "digits", "--extractor", "digits"),
        {"--save-reference": "digits.npz", "--out": "found.json"},
    ],
    "explain": [(), {"--plot": "plot.png"}],
    "export": [("SYSTEM",), {"--to": "weights.pt"}],
    "nll": [("SYSTEM", "--data", "digits"), {"--out": "found.npz", "--plot": "terms.png"}],
    "report": [("SYSTEM",), {"--out": "page.html"}],
}
FOLDERS = {
    "average": [("SYSTEM",), {"--out": "averaged"}],
    "cascade": [("SYSTEM", "SYSTEM"), {"--out": "cascaded"}],
    "edit": [("SYSTEM", "PICTURES"), {"--out": "drawn"}],
    "import": [("weights.pt",), {"--to": "system"}],
    "inpaint": [("SYSTEM", "PICTURES", "--mask", "mask.png"), {"--out": "drawn"}],
    "interpolate": [("SYSTEM", "a.png", "b.png"), {"--out": "between"}],
    "invert": [("SYSTEM", "PICTURES"), {"--out": "inverted"}],
    "merge": [("SYSTEM",), {"--out": "merged"}],
    "nll": [("SYSTEM", "--data", "digits"), {"--published": "published"}],
    "upscale": [("SYSTEM", "PICTURES"), {"--out": "drawn"}],
}
OTHERWISE = {
    "demo": "goes on with what it began",
    "new-plugin": "never replaces a folder, in whose files somebody may have worked",
    "sample": "goes on with what it began",
    "train": "goes on with what it began",
    "train-classifier": "goes on with what it began",
}
WRITTEN = {"out", "to", "plot", "published", "save_reference"}


def lines(table: dict) -> list[tuple[str, tuple[str, ...], str, str]]:
    return [(name, words, flag, to) for name, (words, flags) in table.items() for flag, to in flags.items()]


def test_every_command_that_writes_is_here():
    writing = set()
    for name in table():
        fields = {option.key for option in look(name, load(table()[name]).SPEC, []).options}
        if fields & WRITTEN:
            writing.add(name)
            assert "overwrite" in fields or name in OTHERWISE, name
    assert writing == {*FILES, *FOLDERS, *OTHERWISE}


@pytest.mark.parametrize(("name", "words", "flag", "to"), lines(FILES))
def test_a_file_stays(refused: Refused, tmp_path: Path, name: str, words: tuple[str, ...], flag: str, to: str):
    (tmp_path / to).write_text("mine")
    text = refused(*name.split(), *words, flag, tmp_path / to)
    assert text == f"{flag} {tmp_path / to} exists already; name another file; use --overwrite"
    assert (tmp_path / to).read_text() == "mine"


@pytest.mark.parametrize(("name", "words", "flag", "to"), lines(FOLDERS))
def test_a_folder_stays(refused: Refused, tmp_path: Path, name: str, words: tuple[str, ...], flag: str, to: str):
    (tmp_path / to).mkdir()
    (tmp_path / to / "mine").touch()
    text = refused(*name.split(), *words, flag, tmp_path / to)
    assert text == f"{flag} {tmp_path / to} is not empty; name another folder; use --overwrite"
    assert [path.name for path in (tmp_path / to).iterdir()] == ["mine"]


def test_images_are_written_into_a_new_folder_only(refused: Refused, tmp_path: Path):
    (tmp_path / "mine").touch()
    for more in ([], ["--overwrite"]):
        assert refused("data", "import", "--data", "digits", "--to", tmp_path, *more) == (
            f"--to {tmp_path} is not empty; name a folder that is new or empty, or a .npz file"
        )


def test_overwriting_is_a_choice(command: Command, saved: Path, tmp_path: Path):
    for name, words in {
        "plot.png": ["explain", "--num-steps", "30", "--plot"],
        "digits.npz": ["data", "import", "--data", "digits", "--to"],
        "page.html": ["report", saved, "-n", "0", "--out"],
    }.items():
        path = tmp_path / name
        path.write_text("mine")
        found = command(*words, path, "--overwrite")
        assert found.code == 0, found.err
        assert path.read_bytes() != b"mine"


def test_files_that_the_command_names_are_renewed(command: Command, saved: Path):
    for _ in range(2):
        assert command("report", saved, "-n", "0").code == 0


@pytest.mark.parametrize("name", ["sample", "edit"])
def test_an_overview_of_another_folder_stays(refused: Refused, saved: Path, tmp_path: Path, name: str):
    (tmp_path / "out_grid.png").write_text("mine")
    Image.fromarray(np.zeros((8, 6), np.uint8)).save(tmp_path / "a.png")
    words = [saved, "--steps", "2"] if name == "sample" else [saved, tmp_path / "a.png"]
    assert refused(name, *words, "--out", tmp_path / "out") == (
        f"{tmp_path / 'out_grid.png'} exists already, next to --out; name another folder; use --overwrite"
    )
    assert (tmp_path / "out_grid.png").read_text() == "mine" and not (tmp_path / "out").exists()


def test_the_overview_of_this_folder_is_next_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert overview(Path()) == tmp_path / "here_grid.png" and overview(Path("a/b")) == Path("a/b_grid.png")
    with pytest.raises(diffkit.DiffkitError, match=r"^out='/' has no folder around it, where the overview goes"):
        overview(Path("/"))


def test_nothing_is_written_over_what_is_read(refused: Refused, saved: Path, tmp_path: Path):
    data = tmp_path / "images.npz"
    np.savez(data, np.zeros((3, 8, 6, 1), np.uint8))
    before = data.read_bytes()
    for words, text in (
        (["nll", saved, "--data", data, "--out", data], f"--out {data} is what --data reads"),
        (
            ["evaluate", data, "--data", "digits", "--save-reference", data],
            f"--save-reference {data} is what SAMPLES reads",
        ),
        (["invert", saved, data, "--out", saved], f"--out {saved} is what RUN reads"),
    ):
        assert refused(*words, "--overwrite") == f"{text}; name another one"
    assert data.read_bytes() == before
