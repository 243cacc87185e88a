"""Which class each image file is of: from its folder, from its name, or from a table of labels."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from diffkit._errors import DataError
from diffkit._strict import parse_json

_SHOWN = 10
_MOST_NUMBERED = 100_000
"""Larger numbers are names, such as those of a catalogue, and would make as many rows in the network."""


@frozen
class Labels:
    """The class of each file.

    Attributes:
        names: Class of each file, by name.
        classes: All classes in the order they are counted in; None counts those that occur, sorted.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...] | None = None

    def counted(self, kept: Sequence[int]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Return the class numbers of the files that are kept, (len(kept),) int64, and the names they count.

        Raises:
            DataError: There is one class only.
        """
        names = [self.names[i] for i in kept]
        classes = tuple(sorted(set(names))) if self.classes is None else self.classes
        if len(classes) == 1:
            raise DataError(f"all images are of one class, {classes[0]!r}; pass labels='none', or check the labels")
        number = {name: i for i, name in enumerate(classes)}
        return np.array([number[name] for name in names], np.int64), classes


def labels_of(names: Sequence[str], how: str | None, where: Path, table: bytes | None = None) -> Labels | None:
    """Return the class of each file.

    Args:
        names: The files within the folder or archive, with "/" between folders.
        how: "folders", "prefix", the path of a .csv or .json table, or None for no classes.
        where: The folder or archive, for errors.
        table: What the table says, if it is not the path of a file; as bytes.
    Raises:
        DataError: A file has no class, or the table cannot be used.
    """
    if how is None:
        return None
    if how == "folders":
        return Labels(_by_folder(names, where))
    if how == "prefix":
        return Labels(tuple(name.rpartition("/")[2].split("_")[0] for name in names))
    found = read_table(Path(how), where, table)
    _check_complete(how, where, names, found)
    classes = _numbered(how, found)
    return Labels(tuple(found[name] for name in names), classes or tuple(sorted(set(found.values()))))


def _by_folder(names: Sequence[str], where: Path) -> tuple[str, ...]:
    loose = [name for name in names if "/" not in name]
    if loose:
        raise DataError(
            f"labels='folders', but {len(loose)} images are in no folder below {str(where)!r} (first: "
            f"{loose[0]!r}); move them, or pass labels='prefix' or None"
        )
    return tuple(name.partition("/")[0] for name in names)


def read_table(table: Path, where: Path, content: bytes | None = None) -> dict[str, str]:
    """Return file -> class of a table of labels.

    A .csv file has columns ``file`` and ``label``, and perhaps others; a .json file is ``{"labels": [["a.png", 3],
    ...]}``. Files are relative to the folder or archive, with "/" between folders.

    Args:
        table: Its path.
        where: The folder or archive.
        content: What it says, if it was read already.
    Raises:
        DataError: It is missing, damaged, of another form, or names a file twice.
    """
    if content is None and not table.is_file():
        inside = where / table
        hint = f"; there is one in the folder: pass {str(inside)!r}" if inside.is_file() else ""
        raise DataError(f"the labels {str(table)!r} are not there{hint}")
    try:
        text = (table.read_bytes() if content is None else content).decode("utf-8-sig")
        rows = _csv_rows(text) if table.suffix.lower() == ".csv" else _json_rows(text)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"the labels {str(table)!r} cannot be read: {error}") from error
    found: dict[str, str] = {}
    for file, label in rows:
        name = os.path.normpath(file).replace(os.sep, "/")
        if found.setdefault(name, label) != label:
            raise DataError(f"the labels {str(table)!r} give {file!r} two classes, {found[name]!r} and {label!r}")
    return found


def _csv_rows(text: str) -> list[tuple[str, str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    columns = reader.fieldnames or []
    if "file" not in columns or "label" not in columns:
        raise ValueError(f"a table needs columns file and label, this one has {', '.join(columns) or 'none'}")
    rows = [(row["file"], row["label"]) for row in reader]
    for number, row in enumerate(rows, 2):
        if not all(row):
            raise ValueError(f"line {number} has no file or no label")
    return rows


def _json_rows(text: str) -> list[tuple[str, str]]:
    content = parse_json(text)
    rows = content.get("labels") if isinstance(content, Mapping) else None
    if not isinstance(rows, list):
        raise ValueError('it should read {"labels": [["a.png", 3], ...]}')
    for row in rows:
        if not _is_row(row):
            raise ValueError(f'each of "labels" should be a file and its class, such as ["a.png", 3], got {row!r}')
    return [(file, str(label)) for file, label in rows]


def _is_row(row: Any) -> bool:
    if not (isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)):
        return False
    return isinstance(row[1], str | int) and not isinstance(row[1], bool) and str(row[1]) != ""


def _check_complete(table: str, where: Path, names: Sequence[str], found: Mapping[str, str]) -> None:
    """Raise one error that names the files without a class and the classes without a file."""
    missing = [name for name in names if name not in found]
    unknown = sorted(found.keys() - set(names))
    faults = [f"{len(missing)} images have no label: {_some(missing)}"] if missing else []
    faults += [f"{len(unknown)} labels are of files that are no image there: {_some(unknown)}"] if unknown else []
    if faults:
        raise DataError("\n  ".join([f"the labels {table!r} do not fit {str(where)!r}:", *faults]))


def _numbered(table: str, found: Mapping[str, str]) -> tuple[str, ...] | None:
    """Names "0" to the largest if every class is such a number, so that it is what the network sees; else None."""
    if not all(map(_is_number, found.values())):
        return None
    largest = max((int(label) for label in found.values()), default=0)
    if largest >= _MOST_NUMBERED:
        raise DataError(f"the labels {table!r} go up to {largest}; number classes from 0, or name them")
    return tuple(str(i) for i in range(largest + 1))


def _is_number(label: str) -> bool:
    """Whether a class is a whole number from 0 as one would write it: 10, not 010 or 1.0, nor an endless one."""
    return label.isascii() and label.isdecimal() and len(label) < 20 and label == str(int(label))


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
