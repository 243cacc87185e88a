"""``diffkit data``: what a folder holds, and archives into folders."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cli_support import Command, Refused
from PIL import Image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(4):
        Image.fromarray(np.full((8, 8, 3), i * 60, np.uint8)).save(root / f"{'cat' if i % 2 else 'dog'}_{i}.png")
    return root


def test_a_good_folder(command: Command, photos: Path, tmp_path: Path):
    found = command("data", "check", photos, "--labels", "prefix", "--out", tmp_path / "found.json", "--size", "8")
    assert found.code == 0
    assert found.out.splitlines() == [
        f"{photos}: 4 images, 0 image files that cannot be read, 0 other files",
        "  sizes    8x8 (4)",
        "  formats  PNG (4)",
        "  modes    RGB (4)",
        "  2 classes: cat 2, dog 2",
        f"wrote {tmp_path / 'found.json'}",
    ]
    kept = json.loads((tmp_path / "found.json").read_text())
    assert kept["classes"] == {"cat": 2, "dog": 2} and kept["images"]["cat_1.png"]["mode"] == "RGB"


def code_of(command: Command, *words: str | Path) -> int:
    with pytest.raises(SystemExit) as caught:
        command(*words)
    return int(str(caught.value.code))


def test_what_cannot_be_read_is_named_and_the_exit_code_is_1(command: Command, photos: Path, capsys):
    (photos / "cut.png").write_bytes((photos / "dog_0.png").read_bytes()[:40])
    assert code_of(command, "data", "check", photos) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("4 images, 1 image files that cannot be read, 0 other files")
    assert out[-2] == "cannot be read:" and out[-1].startswith("  cut.png: ")


def test_labels_that_do_not_fit_are_exit_code_1(command: Command, photos: Path, capsys):
    assert code_of(command, "data", "check", photos, "--labels", "folders") == 1
    assert "labels: labels='folders' needs every image in a folder; 4 are in none" in capsys.readouterr().out


def test_more_than_twenty_names_are_in_the_file(command: Command, photos: Path, tmp_path: Path, capsys):
    for i in range(25):
        (photos / f"bad{i:02}.png").write_bytes(b"")
    assert code_of(command, "data", "check", photos, "--out", tmp_path / "found.json") == 1
    assert "  ... and 5 more; --out FILE.json lists all" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "found.json").read_text())["unreadable"]) == 25


def test_refusals(command: Command, refused: Refused, photos: Path, tmp_path: Path):
    """Missing, a file, empty, fewer images than a batch, classes that are not there: another message for each."""
    (tmp_path / "empty").mkdir()
    words = ["--data.size", "8", "--out", tmp_path / "run", "--steps", "1", "--backbone", "mlp", "--batch-size", "5"]
    found = [
        command("data", "check", tmp_path / "nowhere"),
        command("data", "check", photos / "dog_0.png"),
        command("train", "--data", tmp_path / "empty", *words),
        command("train", "--data", photos, *words),
        command("train", "--data", photos, "--data.labels", "folders", *words),
    ]
    assert command("data", "check", tmp_path / "empty") == found[2]._replace(out="")
    messages = [each.err.splitlines()[-1] for each in found]
    assert [each.code for each in found] == [2] * 5 and len(set(messages)) == 5
    assert all(message.startswith("error: ") for message in messages), messages
    assert messages[0] == f"error: {tmp_path / 'nowhere'} is not there; name a folder, .zip or .tar of images"
    assert messages[3].startswith("error: --batch-size 5 is more than the 4 examples")
    assert not (tmp_path / "run").exists()
    assert refused("data", "check", photos, "--labels", "prefx").startswith("--labels must be 'none', 'folders', ")
    assert refused("data").startswith("diffkit data needs a command: ")
    assert "check" in refused("data", "chekc", photos)
    assert "check, import" in refused("data", "--out", "x")


def test_import_into_pngs_that_can_be_trained_on(command: Command, tmp_path: Path):
    out = tmp_path / "digits"
    found = command("data", "import", "--data", "digits", "--data.split", "held_out", "--to", out)
    assert found.code == 0, found.err
    assert found.out.splitlines() == [f"writing 299 examples to {out}/", "wrote 299 examples"]
    assert len(list(out.glob("3_*.png"))) == 27 and (out / "5_00000.png").exists()
    assert command("data", "check", out, "--labels", "prefix", "--size", "8").code == 0


def test_import_reports_when_classes_are_counted_in_another_order(command: Command, tmp_path: Path):
    path = tmp_path / "d.npz"
    np.savez(path, np.zeros((2, 4, 4), np.uint8), np.array([0, 1]), classes=np.array(["owl", "cat"]))
    found = command("data", "import", "--data", path, "--data.labels", "true", "--to", tmp_path / "out")
    assert "read with --data.labels prefix, its classes are counted in this order: cat, owl" in found.out


def test_import_into_an_npz_with_images_skipped(command: Command, photos: Path, tmp_path: Path):
    (photos / "dog_2.png").write_bytes(b"")
    words = [
        "data",
        "import",
        "--data",
        photos,
        "--data.size",
        "4",
        "--data.labels",
        "prefix",
        "--to",
        tmp_path / "o.npz",
    ]
    stopped = command(*words)
    assert stopped.code == 2 and "dog_2.png: no image" in stopped.err and not (tmp_path / "o.npz").exists()
    found = command(*words, "--data.on-error", "skip")
    assert found.code == 0 and found.out.splitlines()[-1] == "wrote 3 examples, skipped 1"
    assert found.err.splitlines()[-1].startswith("skipped ")
    with np.load(tmp_path / "o.npz") as arrays:
        assert arrays["arr_0"].shape == (3, 4, 4, 3) and arrays["arr_1"].tolist() == [0, 0, 1]
        assert arrays["classes"].tolist() == ["cat", "dog"]


def test_an_archive_of_images_is_data(command: Command, photos: Path, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in photos.iterdir():
            archive.write(path, path.name)
    words = ["--data", tmp_path / "photos.zip", "--data.size", "4", "--data.labels", "prefix"]
    assert command("data", "import", *words, "--to", tmp_path / "out").code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir())[0] == "cat_00000.png"


def test_refusals_of_import(refused: Refused, photos: Path, tmp_path: Path):
    words = ["data", "import", "--data", "digits"]
    assert refused("data", "import", "--to", tmp_path / "a") == "diffkit data import needs --data"
    assert refused("data", "import", "--data", "cifar10", "--to", tmp_path / "a").endswith("needs --data.archive")
    assert "is not empty" in refused(*words, "--to", photos)
    assert refused(*words, "--to", photos / "dog_0.png").endswith("is a file; name a folder")
    assert refused(*words, "--to", tmp_path / "a", "--prefix", "a_b") == "--prefix is for PNGs, and holds no '/' or '_'"
    assert refused(*words, "--to", tmp_path / "a.npz", "--prefix", "a").startswith("--prefix is for PNGs")


def test_check_gives_advice_instead(refused: Refused, tmp_path: Path):
    (tmp_path / "a.gz").touch()
    assert "is a file; name a folder, .zip or .tar of images" in refused("data", "check", tmp_path / "a.gz")
    (tmp_path / "a.npz").touch()
    assert "cannot be read as a NumPy file" in refused("data", "check", tmp_path / "a.npz")
    assert refused("data", "check", tmp_path / "no") == (
        f"{tmp_path / 'no'} is not there; name a folder, .zip or .tar of images"
    )
    assert refused("data", "check", "digits").endswith("or make one: diffkit data import --data digits --to FOLDER")


def test_check_of_a_file_reports_where_values_lie(command: Command, refused: Refused, tmp_path: Path):
    values = np.linspace(0, 1, 6 * 16, dtype=np.float32).reshape(6, 4, 4, 1)
    np.savez(tmp_path / "a.npz", values, np.arange(6) % 3)
    np.save(tmp_path / "b.npy", (values * 255).astype(np.uint8))
    assert command("data", "check", tmp_path / "a.npz").out.splitlines() == [
        f"{tmp_path / 'a.npz'}: 6 examples of 1x4x4, continuous values in 0..1, 3 classes",
        "note: values lie in 0..1; networks expect about [-1, 1]: scale them by 2 * x - 1",
    ]
    found = command("data", "check", tmp_path / "b.npy")
    assert found.out == f"{tmp_path / 'b.npy'}: 6 examples of 1x4x4, 256 values\n" and found.code == 0
    text = refused("data", "check", tmp_path / "a.npz", "--size", "4")
    assert text == f"--size is for images; leave it out for {tmp_path / 'a.npz'}"
