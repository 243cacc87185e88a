"""Which class each image file is of: from its folder, from its name, or from a table of labels."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from diffkit.errors import DataError
from diffkit.protocols import NO_CLASS
from diffkit.runtime.strict_json import parse_json

MOST_CLASSES = 100_000
"""Largest number of classes; larger labels are catalogue numbers, and would need as many rows in a network."""
_FRACTION = re.compile(r"\.0+$")
_SHOWN = 10
_DELIMITERS = (",", ";", "\t")


@frozen
class Labels:
    """The class of each file.

    Attributes:
        names: Class of each file, by name; None for a file without a class.
        classes: All classes in the order they are counted in; None counts those that occur, sorted.
    """

    names: tuple[str | None, ...]
    classes: tuple[str, ...] | None = None

    def counted(self, chosen: Sequence[int]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return the class numbers of the chosen files, (len(chosen),) int64, and the names of the classes.

        A file without a class has `NO_CLASS`.

        Raises:
            DataError: There is one class only, or none.
        """
        names = [self.names[i] for i in chosen]
        classes = tuple(sorted({name for name in names if name is not None})) if self.classes is None else self.classes
        if not classes or all(name is None for name in names):
            raise DataError("no image has a class", fix={"labels": "none"})
        if len(classes) == 1:
            raise DataError(f"all images are of one class, {classes[0]!r}", fix={"labels": "none"})
        number: dict[str | None, int] = {None: NO_CLASS, **{name: i for i, name in enumerate(classes)}}
        return np.array([number[name] for name in names], np.int64), classes


def labels_of(names: Sequence[str], how: str | None, where: Path, table: bytes | None = None) -> Labels | None:
    """Return the class of each file.

    Args:
        names: The files within the folder or archive, with "/" between folders.
        how: "folders", "prefix", the path of a .csv or .json table, or None for no classes.
        where: The folder or archive, for errors.
        table: Content of the table as bytes, if it is not the path of a file.
    Raises:
        DataError: A file has no class, or the table cannot be used.
    """
    if how is None:
        return None
    if how == "folders":
        return Labels(_by_folder(names, where))
    if how == "prefix":
        return Labels(tuple(name.rpartition("/")[2].split("_")[0] for name in names))
    found = _matched(names, read_table(Path(how), where, table), where)
    _check_complete(how, where, names, found)
    classes = _numbered(how, found)
    some = {label for label in found.values() if label is not None}
    return Labels(tuple(found[name] for name in names), classes or tuple(sorted(some)))


def within_top(names: Sequence[str]) -> list[str]:
    """Return names without the folders that hold all of them and nothing else, as most tools pack an archive."""
    found = list(names)
    while found and all(name.count("/") > 1 for name in found) and len({name.partition("/")[0] for name in found}) == 1:
        found = [name.partition("/")[2] for name in found]
    return found


def _by_folder(names: Sequence[str], where: Path) -> tuple[str, ...]:
    if where.is_file():
        names = within_top(names)
    loose = [name for name in names if "/" not in name]
    if loose:
        raise DataError(
            f"needs every image in a folder; {len(loose)} are in none below {str(where)!r} (first: {loose[0]!r})",
            option="labels",
            value="folders",
            fix={"labels": "prefix"},
        )
    found = tuple(name.partition("/")[0] for name in names)
    below = where / found[0]
    if len(set(found)) == 1 and below.is_dir() and all(name.count("/") > 1 for name in names):
        raise DataError(f"all images lie in the folder {found[0]!r} of {str(where)!r}; name that one: {str(below)!r}")
    return found


def _matched(names: Sequence[str], table: Mapping[str, str | None], where: Path) -> dict[str, str | None]:
    """Return the table with each file called as it is there, where only its spelling differs.

    Spellings of one name: composed and decomposed accents, as Macs write them, and with the folder itself in front.
    """
    found = dict(table)
    called = {spelled: name for name, spelled in _spellings(names, where) if name not in found}
    for file in found.keys() - set(names):
        plain = _plain(file)
        for spelled in (plain, plain.removeprefix(f"{where.name}/"), plain.removeprefix(f"{where.stem}/")):
            if spelled in called:
                found[called.pop(spelled)] = found.pop(file)
                break
    return found


def _spellings(names: Sequence[str], where: Path) -> list[tuple[str, str]]:
    """Each name with its plain spelling, without those that two files share."""
    inner = within_top(names) if where.is_file() else names
    plain = [_plain(name) for name in inner]
    count = Counter(plain)
    return [(name, spelled) for name, spelled in zip(names, plain, strict=True) if count[spelled] == 1]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def read_table(table: Path, where: Path, content: bytes | None = None) -> dict[str, str | None]:
    """Return file -> class of a table of labels, None for a file without a class.

    A .csv file has columns ``file`` and ``label``, and perhaps others; a .json file is ``{"labels": [["a.png", 3],
    ...]}``. Files are relative to the folder or archive, with "/" between folders; an empty cell, null, and -1 among
    numbers, mean no class.

    Args:
        table: Its path.
        where: The folder or archive.
        content: Its content, if it was read already.
    Raises:
        DataError: It is missing, damaged, of another form, or names a file twice.
    """
    if content is None and not table.is_file():
        inside = where / table
        hint = f"; there is one in the folder: pass {str(inside)!r}" if inside.is_file() else ""
        raise DataError(f"the labels {str(table)!r} do not exist{hint}")
    try:
        text = _decoded(table.read_bytes() if content is None else content)
        rows = _csv_rows(text) if table.suffix.lower() == ".csv" else _json_rows(text)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"the labels {str(table)!r} cannot be read: {error}") from error
    found: dict[str, str | None] = {}
    for file, label in _whole(rows):
        name = _within(file, where)
        if found.setdefault(name, label) != label:
            raise DataError(f"the labels {str(table)!r} give {file!r} two classes, {found[name]!r} and {label!r}")
    numbers = all(label is None or label == str(NO_CLASS) or _is_number(label) for label in found.values())
    return {name: None if numbers and label == str(NO_CLASS) else label for name, label in found.items()}


def _decoded(content: bytes) -> str:
    """Text of a table: UTF-8, or UTF-16 with a mark, as spreadsheets write "Unicode text"."""
    return content.decode("utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")


def _within(file: str, where: Path) -> str:
    """Name of a file within the folder, with "/" between folders, whether written so, with "\\" or from the root on."""
    name = file if "/" in file or not _is_windows(file) else file.replace("\\", "/")
    name = os.path.normpath(name).replace(os.sep, "/")
    for root in (f"{each.as_posix().rstrip('/')}/" for each in (where, where.absolute(), where.resolve())):
        if name.startswith(root):
            return name.removeprefix(root)
    return name.lstrip("/")


def _is_windows(file: str) -> bool:
    """Whether a name is a path of Windows: folders between backslashes, none of them empty."""
    return "\\" in file and all(file.removeprefix(".\\").split("\\"))


def _csv_rows(text: str) -> list[tuple[str, str | None]]:
    head = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=lambda each: ("file" in _cells(head, each)) + ("label" in _cells(head, each)))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True, delimiter=delimiter)
    columns = [name.strip().casefold() for name in next(reader, [])]
    if "file" not in columns or "label" not in columns:
        raise ValueError(f"a table needs columns file and label, this one has {', '.join(columns) or 'none'}")
    file, label = columns.index("file"), columns.index("label")
    rows = []
    for row in filter(None, reader):
        if len(row) <= max(file, label) or not row[file]:
            raise ValueError(f"line {reader.line_num} has no file or no label")
        rows.append((row[file], row[label].strip() or None))
    return rows


def _cells(line: str, delimiter: str) -> list[str]:
    return [cell.strip(' \r"').casefold() for cell in line.split(delimiter)]


def _json_rows(text: str) -> list[tuple[str, str | None]]:
    content = parse_json(text)
    rows = content.get("labels") if isinstance(content, Mapping) else None
    if not isinstance(rows, list):
        raise ValueError('it should read {"labels": [["a.png", 3], ...]}')
    for row in rows:
        if not _is_row(row):
            raise ValueError(f'each of "labels" should be a file and its class, such as ["a.png", 3], got {row!r}')
    return [(file, None if label is None else str(label)) for file, label in rows]


def _is_row(row: Any) -> bool:
    if not (isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)):
        return False
    return row[1] is None or (isinstance(row[1], str | int) and not isinstance(row[1], bool) and str(row[1]) != "")


def _check_complete(table: str, where: Path, names: Sequence[str], found: Mapping[str, str | None]) -> None:
    """Raise one error that names the files without a class and the classes without a file."""
    missing = [name for name in names if name not in found]
    unknown = sorted(found.keys() - set(names))
    empty = "" if unknown else "; give those without a class an empty label, or null in a .json"
    faults = [f"{len(missing)} images have no label: {_some(missing)}{empty}"] if missing else []
    faults += [f"{len(unknown)} labels are of files that are not images there: {_some(unknown)}"] if unknown else []
    faults += _near(missing, unknown)
    if faults:
        raise DataError("\n  ".join([f"the labels {table!r} do not fit {str(where)!r}:", *faults]))


def _near(missing: Sequence[str], unknown: Sequence[str]) -> list[str]:
    """The single difference between images without a label and labels without an image, if there is one."""
    for what, spelled in (
        ("in capital letters", str.casefold),
        ("in their endings", lambda name: os.path.splitext(name)[0]),  # noqa: PTH122 - a name, not a path here
        ("in their folders", lambda name: name.rpartition("/")[2]),
    ):
        count = Counter(map(spelled, missing))
        there = {spelled(name): name for name in missing if count[spelled(name)] == 1}
        both = [(there[spelled(file)], file) for file in unknown if spelled(file) in there]
        if both:
            return [f"names differ {what}: {both[0][0]!r} is {both[0][1]!r} in the table; write them alike"]
    return []


def _numbered(table: str, found: Mapping[str, str | None]) -> tuple[str, ...] | None:
    """Names "0" to the largest if every class is such a number, so that it is the network's label; else None."""
    labels = [label for label in found.values() if label is not None]
    if not labels or not all(map(_is_number, labels)):
        return None
    largest = max(map(int, labels))
    if largest >= MOST_CLASSES:
        raise DataError(f"the labels {table!r} go up to {largest}; number classes from 0, or name them")
    return tuple(str(i) for i in range(largest + 1))


def _whole(rows: list[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    """Return rows with 3 for 3.0 if all classes are such numbers, as a table gets them whose column has empty cells."""
    short = [(file, None if label is None else _FRACTION.sub("", label)) for file, label in rows]
    numbers = all(label is None or label == str(NO_CLASS) or _is_number(label) for _, label in short)
    return short if numbers else rows


def _is_number(label: str) -> bool:
    """Whether a class is a whole number from 0 as one would write it: 10, not 010 or 1.0, nor an endless one."""
    return label.isascii() and label.isdecimal() and len(label) < 20 and label == str(int(label))


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
