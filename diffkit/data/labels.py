"""Labels of image files: the class of each from its folder, from its name, or from a table of labels."""

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
"""Largest number of classes; larger labels are identifiers, and a network would need a row for each number."""
_FRACTION = re.compile(r"\.0+$")
_SHOWN = 10
_DELIMITERS = (",", ";", "\t")
_FILE_COLUMNS = ("file", "file_name")
"""Names of the column of files: ours, and that of Hugging Face's imagefolder."""


@frozen
class Labels:
    """Labels of image files: the class of each, by name.

    Attributes:
        names: Name of the class of each file; None for a file without a class.
        classes: Names of all classes in the order of their numbers; None for those that occur, sorted.
    """

    names: tuple[str | None, ...]
    classes: tuple[str, ...] | None = None

    def class_numbers(self, chosen: Sequence[int]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return the class numbers of the chosen files, (len(chosen),) int64, and the names of the classes.

        The number of a file without a class is `NO_CLASS`.

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


def read_labels(
    names: Sequence[str], how: str | None, where: Path, table: bytes | None = None, column: str = "label"
) -> Labels | None:
    """Return the labels of image files, from folders, names or a table.

    Args:
        names: Paths of the files in the folder or archive, with "/" between folders.
        how: "folders", "prefix", the path of a .csv, .json or .jsonl table, or None for no classes.
        where: The folder or archive.
        table: Content of the table as bytes, if it is in the archive.
        column: Column of the classes, of a .csv or .jsonl table.
    Raises:
        DataError: A file has no class, or the table cannot be used.
    """
    if how is None:
        return None
    if how == "folders":
        return Labels(_classes_by_folder(names, where))
    if how == "prefix":
        return Labels(tuple(name.rpartition("/")[2].split("_")[0] for name in names))
    found = _match_spellings(names, read_label_table(Path(how), where, table, column), where)
    _check_complete(how, where, names, found)
    classes = _numeric_class_names(how, found)
    some = {label for label in found.values() if label is not None}
    return Labels(tuple(found[name] for name in names), classes or tuple(sorted(some)))


def strip_common_folders(names: Sequence[str]) -> list[str]:
    """Return paths of files without the top folders that all of them share, with which most tools pack an archive."""
    found = list(names)
    while found and all(name.count("/") > 1 for name in found) and len({name.partition("/")[0] for name in found}) == 1:
        found = [name.partition("/")[2] for name in found]
    return found


def _classes_by_folder(names: Sequence[str], where: Path) -> tuple[str, ...]:
    if where.is_file():
        names = strip_common_folders(names)
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


def _match_spellings(names: Sequence[str], table: Mapping[str, str | None], where: Path) -> dict[str, str | None]:
    """Return a label table with each file named as in the folder, if only the spelling differs.

    Accents may be composed or, as on macOS, decomposed; and the folder's own name may stand in front.
    """
    found = dict(table)
    by_spelling = {spelled: name for name, spelled in _spellings(names, where) if name not in found}
    for file in found.keys() - set(names):
        plain = _normalize(file)
        for spelled in (plain, plain.removeprefix(f"{where.name}/"), plain.removeprefix(f"{where.stem}/")):
            if spelled in by_spelling:
                found[by_spelling.pop(spelled)] = found.pop(file)
                break
    return found


def _spellings(names: Sequence[str], where: Path) -> list[tuple[str, str]]:
    """Return each file's name with its normalized spelling, without spellings that two files share."""
    inner = strip_common_folders(names) if where.is_file() else names
    plain = [_normalize(name) for name in inner]
    count = Counter(plain)
    return [(name, spelled) for name, spelled in zip(names, plain, strict=True) if count[spelled] == 1]


def _normalize(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def read_label_table(
    table: Path, where: Path, content: bytes | None = None, column: str = "label"
) -> dict[str, str | None]:
    """Return the class of each file in a table of labels, None for a file without a class.

    A .csv file has columns ``file`` or ``file_name`` and ``label``, and maybe others, and so has each line of a .jsonl
    file; a .json file is ``{"labels": [["a.png", 3], ...]}``. Files are relative to the folder or archive, with "/"
    between folders. An empty cell, null, or -1 among numbers means no class.

    Args:
        table: Path of the table.
        where: The folder or archive.
        content: Content of the table, if it was read already.
        column: Column of the classes, of a .csv or .jsonl table.
    Raises:
        DataError: The table is missing, damaged, of another form, or gives a file two classes.
    """
    if content is None and not table.is_file():
        inside = where / table
        hint = f"; there is one in the folder: pass {str(inside)!r}" if inside.is_file() else ""
        raise DataError(f"the labels {str(table)!r} do not exist{hint}")
    try:
        text = _decode_text(table.read_bytes() if content is None else content)
        suffix = table.suffix.lower()
        if suffix in (".csv", ".jsonl"):
            rows = _csv_rows(text, column) if suffix == ".csv" else _jsonl_rows(text, column)
        else:
            rows = _json_rows(text)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"the labels {str(table)!r} cannot be read: {error}") from error
    found: dict[str, str | None] = {}
    for file, label in _as_integer_labels(rows):
        name = _path_in_folder(file, where)
        if found.setdefault(name, label) != label:
            raise DataError(f"the labels {str(table)!r} give {file!r} two classes, {found[name]!r} and {label!r}")
    numbers = all(label is None or label == str(NO_CLASS) or _is_number(label) for label in found.values())
    return {name: None if numbers and label == str(NO_CLASS) else label for name, label in found.items()}


def _decode_text(content: bytes) -> str:
    """Return the text of a table: UTF-8, or UTF-16 with a byte order mark, as spreadsheets write "Unicode text"."""
    return content.decode("utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")


def _path_in_folder(file: str, where: Path) -> str:
    """Return a file's path in the folder, with "/" between folders; a table may write it with "\\" or in full."""
    name = file if "/" in file or not _is_windows(file) else file.replace("\\", "/")
    name = os.path.normpath(name).replace(os.sep, "/")
    for root in (f"{each.as_posix().rstrip('/')}/" for each in (where, where.absolute(), where.resolve())):
        if name.startswith(root):
            return name.removeprefix(root)
    return name.lstrip("/")


def _is_windows(file: str) -> bool:
    """Whether a name is a path of Windows, with backslashes between folders that are not empty."""
    return "\\" in file and all(file.removeprefix(".\\").split("\\"))


def _csv_rows(text: str, label_column: str) -> list[tuple[str, str | None]]:
    head, wanted = text.partition("\n")[0], label_column.casefold()
    delimiter = max(_DELIMITERS, key=lambda each: len({*_FILE_COLUMNS, wanted} & set(_cells(head, each))))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True, delimiter=delimiter)
    columns = [name.strip().casefold() for name in next(reader, [])]
    named = next((name for name in _FILE_COLUMNS if name in columns), None)
    if named is None or wanted not in columns:
        raise ValueError(_columns_text(columns, label_column))
    file, label = columns.index(named), columns.index(wanted)
    rows = []
    for row in filter(None, reader):
        if len(row) <= max(file, label) or not row[file]:
            raise ValueError(f"line {reader.line_num} has no file or no label")
        rows.append((row[file], row[label].strip() or None))
    return rows


def _columns_text(columns: Sequence[str], label_column: str) -> str:
    return f"a table needs columns file and {label_column}, this one has {', '.join(columns) or 'none'}"


def _jsonl_rows(text: str, label_column: str) -> list[tuple[str, str | None]]:
    """Return file and class of each line of a metadata.jsonl, which the imagefolder of Hugging Face reads."""
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        fields = parse_json(line)
        if not isinstance(fields, Mapping):
            raise ValueError(f"line {number} should be an object with file_name and {label_column}")
        named = next((name for name in _FILE_COLUMNS if name in fields), None)
        if named is None or label_column not in fields:
            raise ValueError(f"line {number}: {_columns_text(list(fields), label_column)}")
        row = [fields[named], fields[label_column]]
        if not _is_row(row):
            raise ValueError(f"line {number} should have a text and a class, got {row!r}")
        rows.append((row[0], None if row[1] is None else str(row[1])))
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
    """Raise one error that names the images without a label and the labels without an image, if there are any."""
    missing = [name for name in names if name not in found]
    unknown = sorted(found.keys() - set(names))
    empty = "" if unknown else "; give those without a class an empty label, or null in a .json"
    faults = [f"{len(missing)} images have no label: {_names_text(missing)}{empty}"] if missing else []
    faults += (
        [f"{len(unknown)} labels are of files that are not images there: {_names_text(unknown)}"] if unknown else []
    )
    faults += _spelling_difference(missing, unknown)
    if faults:
        raise DataError("\n  ".join([f"the labels {table!r} do not fit {str(where)!r}:", *faults]))


def _spelling_difference(missing: Sequence[str], unknown: Sequence[str]) -> list[str]:
    """Return how names of images without a label differ from those of labels without an image, with an example."""
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


def _numeric_class_names(table: str, found: Mapping[str, str | None]) -> tuple[str, ...] | None:
    """Return the names "0" to the largest if every class is a number, so that it is the network's label; else None."""
    labels = [label for label in found.values() if label is not None]
    if not labels or not all(map(_is_number, labels)):
        return None
    largest = max(map(int, labels))
    if largest >= MOST_CLASSES:
        raise DataError(f"the labels {table!r} go up to {largest}; number classes from 0, or name them")
    return tuple(str(i) for i in range(largest + 1))


def _as_integer_labels(rows: list[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    """Return rows with 3 for 3.0 if all classes are numbers: empty cells make spreadsheets write integers so."""
    short = [(file, None if label is None else _FRACTION.sub("", label)) for file, label in rows]
    numbers = all(label is None or label == str(NO_CLASS) or _is_number(label) for _, label in short)
    return short if numbers else rows


def _is_number(label: str) -> bool:
    """Whether a class is an integer >= 0 in its usual form: 10, not 010 or 1.0, with fewer than 20 digits."""
    return label.isascii() and label.isdecimal() and len(label) < 20 and label == str(int(label))


def _names_text(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
