"""Which images of a folder or archive are read, and tables of other tools."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from diffkit.data import load
from diffkit.data.ignored import split_ignored
from diffkit.errors import DataError, OptionError

Image = pytest.importorskip("PIL.Image")
NAMES = ["cats/a.png", "cats/a_mask.png", "dogs/b.png", "masks/c.png"]


@pytest.fixture(params=["folder", "zip"])
def place(request, tmp_path) -> Path:
    """The same images in a folder and in an archive."""
    root = tmp_path / "data"
    for i, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 10 * i, np.uint8)).save(root / name)
    if request.param == "folder":
        return root
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for name in NAMES:
            archive.write(root / name, name)
    return tmp_path / "data.zip"


def values(data) -> list[int]:
    return [int(image[0, 0, 0]) for image in data.batch(np.arange(len(data))).images]


@pytest.mark.parametrize(
    ("ignore", "left"),
    [((), [0, 10, 20, 30]), ("*_mask.png", [0, 20, 30]), (["masks", "*_mask.*"], [0, 20]), (["cats/*"], [20, 30])],
)
def test_patterns_leave_images_out(place, ignore, left):
    data = load(place, size=4, ignore=ignore)
    assert values(data) == left


def test_classes_are_those_of_the_images_that_are_read(place):
    data = load(place, size=4, labels="folders", ignore=["masks"])
    assert data.classes == ("cats", "dogs") and len(data) == 3


def test_a_pattern_that_matches_nothing_is_an_error(place):
    with pytest.raises(DataError, match=r"ignore 'mask' matches none of the 4 images in .*; did you mean 'masks'"):
        load(place, size=4, ignore=["*_mask.png", "mask"])
    with pytest.raises(DataError, match="holds no image"):
        load(place, size=4, ignore=["*"])
    with pytest.raises(OptionError, match=r"ignore must be a list of patterns, such as '\*_mask.png', got \(3,\)"):
        load(place, size=4, ignore=[3])


def test_a_pattern_without_a_folder_is_compared_with_every_part_of_the_path():
    names = ["a/b/c.png", "b.png", "a/x.png"]
    assert split_ignored(names, ["b"], Path("x")) == ["b", None, None]
    assert split_ignored(names, ["a/"], Path("x")) == ["a/", None, "a/"]


def test_a_folder_in_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for i, name in enumerate(["train/x/a.png", "train/y/b.png", "test/x/c.png"]):
            Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(tmp_path / "one.png")
            archive.write(tmp_path / "one.png", name)
    for within in ("train", "/train/"):
        data = load(tmp_path / "data.zip", size=4, within=within, labels="folders")
        assert values(data) == [0, 1] and data.classes == ("x", "y")
    whole = load(tmp_path / "data.zip", size=4)
    assert (
        whole.describe()["fingerprint"] != load(tmp_path / "data.zip", size=4, within="train").describe()["fingerprint"]
    )
    text = r"within 'tain' is not a folder with images in .*data.zip'.*known: 'test/x', 'train/x', 'train/y'"
    with pytest.raises(DataError, match=text):
        load(tmp_path / "data.zip", size=4, within="tain")


def test_metadata_of_an_image_folder_of_hugging_face(place):
    table = place.parent / "metadata.jsonl"
    rows = [{"file_name": name, "label": i % 2, "kind": f"k{i // 2}", "text": "..."} for i, name in enumerate(NAMES)]
    table.write_text("\n".join(map(json.dumps, rows)))
    data = load(place, size=4, labels=str(table))
    assert data.classes == ("0", "1") and data.labels.tolist() == [0, 1, 0, 1]
    named = load(place, size=4, labels=str(table), label_column="kind")
    assert named.classes == ("k0", "k1") and named.labels.tolist() == [0, 0, 1, 1]
    (place.parent / "metadata.csv").write_text(
        "file_name,kind\n" + "".join(f"{r['file_name']},{r['kind']}\n" for r in rows)
    )
    again = load(place, size=4, labels=str(place.parent / "metadata.csv"), label_column="kind")
    assert again.labels.tolist() == named.labels.tolist()


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            {"file_name": "cats/a.png", "caption": "x"},
            "line 1: a table needs columns file and label, this one has file_name, caption",
        ),
        ({"label": 1}, "line 1: a table needs columns file and label, this one has label"),
        ([1], "line 1 should be an object with file_name and label"),
        (
            {"file_name": "cats/a.png", "label": [1]},
            r"line 1 should have a text and a class, got \['cats/a.png', \[1\]\]",
        ),
    ],
)
def test_lines_that_name_no_class(place, line, text):
    table = place.parent / "metadata.jsonl"
    table.write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match=text):
        load(place, size=4, labels=str(table))
