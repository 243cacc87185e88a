"""Classes of a folder's images: from folders, from names, and from tables that have to fit the folder."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import diffkit.data
from diffkit.data.exporting import Exporter
from diffkit.data.inspection import check_images
from diffkit.data.labels import read_label_table
from diffkit.data.matching import match_classes
from diffkit.errors import DataError, OptionError

FILES = ("a.png", "b.png", "sub/c.png", "sub/grüße 1.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for i, name in enumerate(FILES):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), 50 * i, np.uint8)).save(path)
    return root


def table(path: Path, rows) -> str:
    if path.suffix == ".json":
        path.write_text(json.dumps({"labels": [list(row) for row in rows]}))
    else:
        lines = [f'{i},"{file}","{label}"' for i, (file, label) in enumerate(rows)]
        path.write_text("\n".join(["number,file,label", *lines]), encoding="utf-8-sig")
    return str(path)


def load(folder: Path, labels: str, **more):
    return diffkit.data.loading.load(folder, size=8, labels=labels, **more)


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_names_are_kept_and_counted_in_order(folder, tmp_path, suffix):
    rows = list(zip(FILES, ("owl", "cat", "a, b", "cat"), strict=True))
    data = load(folder, table(tmp_path / f"t.{suffix}", reversed(rows)))
    assert data.classes == ("a, b", "cat", "owl") and data.labels.tolist() == [2, 1, 0, 1]
    assert data.describe()["class_counts"] == [1, 2, 1] and data.describe()["classes"] == ["a, b", "cat", "owl"]


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_numbers_are_what_the_network_sees(folder, tmp_path, suffix):
    """Sorted as text 10 would come before 2, and a split without some class would count others."""
    rows = zip(FILES, (2, 10, 0, 2), strict=True)
    data = load(folder, table(tmp_path / f"t.{suffix}", rows))
    assert data.labels.tolist() == [2, 10, 0, 2] and data.classes == tuple(map(str, range(11)))


def test_dataset_json_in_the_folder_itself(folder):
    path = folder / "dataset.json"
    table(path, zip(FILES, range(4), strict=True))
    data = load(folder, str(path))
    assert data.labels.tolist() == [0, 1, 2, 3] and ("dataset.json", "no image by its name") in data.skipped
    with pytest.raises(DataError, match=r"'dataset\.json' do not exist; there is one in the folder: pass '.*photos"):
        load(folder, "dataset.json")


def test_tables_as_people_write_them(folder, tmp_path):
    """Spaces after commas, Windows line ends, quoted names with a line break, unused columns."""
    odd = folder / "line\nbreak, and comma.png"
    (folder / "b.png").rename(odd)
    text = 'note,file, label\r\nx,a.png, cat\r\ny,"line\nbreak, and comma.png",dog\r\n'
    (tmp_path / "t.csv").write_bytes((text + "z,./sub/c.png,dog\r\n,sub/grüße 1.png,cat\r\n").encode())
    data = load(folder, str(tmp_path / "t.csv"))
    assert data.classes == ("cat", "dog") and data.labels.tolist() == [0, 1, 1, 0]


def test_missing_and_unknown_files_are_named_together(folder, tmp_path):
    path = table(tmp_path / "t.csv", [("a.png", "x"), ("b.png", "y"), ("gone.png", "x"), ("./sub/c.png", "y")])
    with pytest.raises(DataError) as caught:
        load(folder, path)
    assert str(caught.value).splitlines() == [
        f"the labels {path!r} do not fit {str(folder)!r}:",
        "  1 images have no label: 'sub/grüße 1.png'",
        "  1 labels are of files that are not images there: 'gone.png'",
    ]


def test_labels_are_checked_before_any_image_is_read(folder, tmp_path):
    (folder / "a.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="do not exist"):
        load(folder, str(tmp_path / "none.csv"))


def test_labels_follow_the_files_that_are_kept(folder, tmp_path):
    (folder / "b.png").write_bytes(b"broken")
    path = table(tmp_path / "t.json", zip(FILES, ("x", "y", "z", "x"), strict=True))
    data = load(folder, path, on_error="skip")
    assert data.labels.tolist() == [0, 2, 0] and data.classes == ("x", "y", "z")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "a,b\n1,2\n", "a table needs columns file and label, this one has a, b"),
        ("t.csv", "", "a table needs columns file and label, this one has none"),
        ("t.csv", "file,label\n,cat\n", "line 2 has no file or no label"),
        ("t.csv", "file,label\na.png\n", "line 2 has no file or no label"),
        ("t.csv", 'file,label\n"a.png,x\n', "unexpected end of data"),
        ("t.json", "{", "Expecting property name"),
        ("t.json", "[" * 100_000, "cannot be read"),
        ("t.json", '[["a.png", 3]]', 'it should read {"labels": [["a.png", 3], ...]}'),
        ("t.json", '{"labels": null}', 'it should read {"labels": [["a.png", 3], ...]}'),
        ("t.json", '{"labels": [["a.png", [0.5, 1]]]}', "such as [\"a.png\", 3], got ['a.png', [0.5, 1]]"),
        ("t.json", '{"labels": [["a.png", true]]}', "got ['a.png', True]"),
        ("t.json", '{"labels": [["a.png", 1], ["./a.png", 2]]}', "give './a.png' two classes, '1' and '2'"),
    ],
)
def test_tables_that_cannot_be_used(folder, tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        read_label_table(path, folder)


def test_tables_that_are_not_text(folder, tmp_path):
    (tmp_path / "t.csv").write_bytes(b"file,label\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="cannot be read: 'utf-8' codec"):
        read_label_table(tmp_path / "t.csv", folder)


def test_numbers_that_are_not_classes(folder, tmp_path):
    path = table(tmp_path / "t.csv", zip(FILES, (5, 6, 7, 1_000_042), strict=True))
    with pytest.raises(DataError, match="go up to 1000042; number classes from 0, or name them"):
        load(folder, path)
    path = table(tmp_path / "t.csv", zip(FILES, ("007", "8", "9", "10"), strict=True))
    assert load(folder, path).classes == ("007", "10", "8", "9")
    path = table(tmp_path / "t.csv", zip(FILES, ("1" * 5000, "8", "9", "10"), strict=True))
    assert load(folder, path).classes[1] == "1" * 5000


def test_one_class_only(folder, tmp_path):
    path = table(tmp_path / "t.csv", [(name, "owl") for name in FILES])
    with pytest.raises(DataError, match="all images are of one class, 'owl'; use labels='none'"):
        load(folder, path)


def test_ways_that_are_none(folder):
    with pytest.raises(OptionError, match=r"labels must be 'none', .* got 'prefixes'; use labels='prefix'"):
        load(folder, "prefixes")
    with pytest.raises(OptionError, match=r"a \.csv, \.json or \.jsonl file, got 'labels\.txt'"):
        load(folder, "labels.txt")


@pytest.mark.parametrize(
    "spelled",
    [
        lambda name: name,
        lambda name: f"./{name}",
        lambda name: f"/{name}",
        lambda name: name.replace("/", "\\"),
        lambda name: ".\\" + name.replace("/", "\\"),
        lambda name: f"photos/{name}",
        lambda name: unicodedata.normalize("NFD", name),
        lambda name: "photos\\" + unicodedata.normalize("NFD", name).replace("/", "\\"),
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_other_spellings_of_a_name(folder, tmp_path, spelled, form, suffix):
    """As Macs, Windows and tools with a root of their own write them."""
    (folder / FILES[3]).rename(folder / unicodedata.normalize(form, FILES[3]))
    path = table(tmp_path / f"t.{suffix}", [(spelled(name), "xyzx"[i]) for i, name in enumerate(FILES)])
    assert load(folder, path).labels.tolist() == [0, 1, 2, 0]


def test_full_paths_in_a_table(folder, tmp_path):
    path = table(tmp_path / "t.csv", [(str(folder / name), "xyzx"[i]) for i, name in enumerate(FILES)])
    assert load(folder, path).labels.tolist() == [0, 1, 2, 0]


def test_full_paths_in_a_table_for_a_folder_named_from_here(folder, tmp_path, monkeypatch):
    path = table(tmp_path / "t.csv", [(str(folder / name), "xyzx"[i]) for i, name in enumerate(FILES)])
    monkeypatch.chdir(tmp_path)
    assert load(Path("photos"), path).labels.tolist() == [0, 1, 2, 0]


def test_numbers_with_a_point_are_classes_by_number_only_if_all_are(folder, tmp_path):
    path = table(tmp_path / "t.csv", zip(FILES, ("2.0", "10.0", "0.0", "2.0"), strict=True))
    assert load(folder, path).labels.tolist() == [2, 10, 0, 2]
    words = table(tmp_path / "w.csv", zip(FILES, ("v1.0", "2.0", "2.0", "2.0"), strict=True))
    assert load(folder, words).classes == ("2.0", "v1.0")


def test_images_that_a_table_leaves_out_may_have_an_empty_label(folder, tmp_path):
    with pytest.raises(DataError, match=r"1 images have no label: 'b\.png'; give those without a class an empty label"):
        load(folder, table(tmp_path / "t.csv", [(name, "xyzx"[i]) for i, name in enumerate(FILES) if i != 1]))
    rows = [(name, "" if i == 1 else "xyzx"[i]) for i, name in enumerate(FILES)]
    assert load(folder, table(tmp_path / "t.csv", rows)).labels.tolist() == [0, -1, 1, 0]


def test_two_files_that_differ_in_their_spelling_only(folder, tmp_path):
    names = [unicodedata.normalize(form, "\u00e9.png") for form in ("NFC", "NFD")]
    for name in names:
        (folder / "a.png").rename(folder / name)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "a.png")
    rows = [*zip(FILES, "xyzx", strict=True), *zip(names, "yz", strict=True)]
    data = load(folder, table(tmp_path / "t.csv", rows))
    found = {data.pictures.name(i): data.classes[label] for i, label in enumerate(data.labels)}
    assert (found[names[0]], found[names[1]]) == ("y", "z")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (str.upper, "names differ in capital letters: 'a.png' is 'A.PNG' in the table; write them alike"),
        (lambda name: name.replace(".png", ".jpg"), "names differ in their endings: 'a.png' is 'a.jpg' in the table"),
        (lambda name: f"train/{name}", "names differ in their folders: 'a.png' is 'train/a.png' in the table"),
    ],
)
def test_what_differs_in_every_name_is_reported(folder, tmp_path, change, words):
    path = table(tmp_path / "t.csv", [(change(name), "x") for name in FILES])
    with pytest.raises(DataError, match=re.escape(words)):
        load(folder, path)


@pytest.mark.parametrize(
    "content",
    [
        "file;label\na.png;x\nb.png;y\nsub/c.png;x\nsub/gr\u00fc\u00dfe 1.png;y\n".encode(),
        "file\tlabel\na.png\tx\nb.png\ty\nsub/c.png\tx\nsub/gr\u00fc\u00dfe 1.png\ty\n".encode("utf-16"),
        'File, "Label"\r\na.png, x\r\nb.png,"y"\r\n\r\nsub/c.png,x \r\nsub/gr\u00fc\u00dfe 1.png,y\r\n'.encode(
            "utf-8-sig"
        ),
    ],
)
def test_tables_of_spreadsheets(folder, tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    data = load(folder, str(tmp_path / "t.csv"))
    assert data.classes == ("x", "y") and data.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("suffix", "labels", "classes"),
    [
        ("csv", ("owl", "", "cat", "owl"), ("cat", "owl")),
        ("json", ("owl", None, "cat", "owl"), ("cat", "owl")),
        ("csv", (1, -1, 0, 1), ("0", "1")),
        ("json", (1, -1, 0, 1), ("0", "1")),
        ("csv", (1, "", 0, 1), ("0", "1")),
        ("csv", ("1.0", "", "0.0", "1.0"), ("0", "1")),
        ("csv", ("1.0", "-1.0", "0.0", "1.0"), ("0", "1")),
    ],
)
def test_images_without_a_class(folder, tmp_path, suffix, labels, classes, capsys):
    """An empty cell, null, or -1 among numbers; with words -1 is a word. 1.0 is 1: so is a column with empty cells."""
    path = table(tmp_path / f"t.{suffix}", zip(FILES, labels, strict=True))
    data = load(folder, path)
    assert data.classes == classes and data.labels.tolist() == [1, -1, 0, 1]
    assert data.batch([1]).conditions["y"].tolist() == [-1]
    assert data.describe()["class_counts"] == [1, 2] and data.describe()["without_class"] == 1
    renumbered = match_classes(data, ("none", *reversed(classes)))
    if classes == ("cat", "owl"):
        assert renumbered.batch(range(4)).conditions["y"].tolist() == [1, -1, 2, 1]
        assert renumbered.describe()["class_counts"] == [0, 2, 1]
    report = check_images(folder, labels=path)
    assert report.classes == dict(zip(classes, (1, 2), strict=True)) and report.without_class == 1
    assert "1 images without a class" in str(report)
    with pytest.raises(DataError, match=r"1 examples have no class, .*; write a \.npz"):
        Exporter(data).to_folder(tmp_path / "out")
    Exporter(data).to_npz(tmp_path / "out.npz")
    assert diffkit.data.loading.load(tmp_path / "out.npz", labels=True).labels.tolist() == [1, -1, 0, 1]


def test_no_image_with_a_class(folder, tmp_path):
    path = table(tmp_path / "t.csv", zip(FILES, ("", "", "", ""), strict=True))
    with pytest.raises(DataError, match="no image has a class; use labels='none'"):
        load(folder, path)
    words = table(tmp_path / "w.csv", zip(FILES, ("-1", "cat", "cat", "cat"), strict=True))
    assert load(folder, words).classes == ("-1", "cat")
