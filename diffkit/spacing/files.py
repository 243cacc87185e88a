"""Grids of levels in JSON files: levels of one table, or noise levels that fit any.

A file holds one object with one of these keys:

    {"levels": [1, 40, 220, 1000], "num_steps": 1000}    levels of a table with that many
    {"sigma": [14.6, 3.9, 1.4, 0.4, 0.03]}               sigma / alpha; a 0 at the end is level 0, and left out
    {"log_snr": [-5.4, -2.7, -0.6, 1.8, 7.1]}            log_snr

The last two take the nearest levels of the table, or with ":exact" behind the name these noise levels themselves. They
can be stretched to another number of levels by interpolating log_snr. A file may hold any other keys, such as where it
comes from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffkit.errors import OptionError
from diffkit.options import check_integer, check_number
from diffkit.runtime.strict_json import json_object, reason
from diffkit.table import F64, ProcessTable, check_levels, nearest_levels

_FOLDER = Path(__file__).parent / "grids"
GRIDS: tuple[str, ...] = tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))
"""Names of the grids that come with diffkit."""
_KEYS = ("levels", "sigma", "log_snr")


def is_grid(text: str) -> bool:
    """Return whether a spacing names a grid: one of `GRIDS` or a file, with an optional number of levels after it."""
    return bool(re.fullmatch(r"(.+\.json|" + "|".join(GRIDS) + r")(:\d+)?(:exact)?", text))


def grid(text: str, table: ProcessTable) -> tuple[int, ...] | F64:
    """Return the levels of a table for a grid by name or file, ascending; of an exact one log_snr, descending.

    Args:
        text: "ays_sd15", "folder/grid.json", or either followed by ":20", ":exact" or both.
        table: The table.
    Raises:
        OptionError: The file cannot be read or is not a grid, or has more levels than the table.
    """
    match = re.fullmatch(r"(?P<name>.+?)(:(?P<count>\d+))?(?P<exact>:exact)?", text)
    assert match is not None, "any text but the empty one matches"
    name, count = match["name"], match["count"]
    path = _FOLDER / f"{name}.json" if name in GRIDS else Path(name)
    return _grid_of(_read(path), path, None if count is None else int(count), table, match["exact"] is not None)


def save_grid(path: str | Path, levels: Sequence[int], table: ProcessTable, **notes: Any) -> Path:
    """Write levels of a table to a file that `steps` takes.

    Args:
        path: Name of the file, ending in .json.
        levels: The levels.
        table: The table they belong to.
        notes: Further entries of the file, as JSON data.
    Raises:
        OptionError: The levels are not of that table, the name does not end in .json, or it cannot be written.
    """
    path = Path(path)
    if path.suffix != ".json":
        raise OptionError(f"the name of a grid must end in .json, got {str(path)!r}")
    selected = [int(k) for k in check_levels(levels, table.num_steps)]
    log_snr = [float(v) if np.isfinite(v) else None for v in table.log_snr[selected]]
    found = {"levels": selected, "num_steps": table.num_steps} | notes | {"log_snr_there": log_snr}
    from diffkit.runtime.files import write_atomically  # which needs torch

    try:
        write_atomically(path, (json.dumps(found) + "\n").encode())
    except OSError as error:
        raise OptionError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json_object(path)
    except (OSError, ValueError) as error:
        raise OptionError(f"cannot read a grid from {path}: {reason(error)}") from error
    keys = [key for key in _KEYS if key in found]
    if len(keys) != 1 or not isinstance(found[keys[0]], list) or not found[keys[0]]:
        raise OptionError(f"{path} is not a grid; it must hold one object with a list as one of {', '.join(_KEYS)}")
    return found


def _grid_of(
    found: dict[str, Any], path: Path, count: int | None, table: ProcessTable, exact: bool
) -> tuple[int, ...] | F64:
    if "levels" in found:
        if exact:
            raise OptionError(f"{path} holds levels, which are visited exactly; leave ':exact' out")
        if count is not None:
            raise OptionError(f"{path} holds levels, which cannot be stretched to {count}; only sigma or log_snr can")
        num_steps = check_integer(f"num_steps of {path}", found.get("num_steps", table.num_steps))
        if num_steps != table.num_steps:
            raise OptionError(
                f"{path} holds levels of a table with {num_steps} of them, this one has {table.num_steps}"
            )
        return tuple(int(k) for k in check_levels(found["levels"], table.num_steps))
    values = _stretched(_log_snr(found, path), count)
    if exact:
        return np.sort(values)[::-1]
    if len(values) > table.num_steps:
        raise OptionError(f"{path} has {len(values)} levels, more than the {table.num_steps} of the table")
    return nearest_levels(table, values)


def _log_snr(found: dict[str, Any], path: Path) -> F64:
    if "log_snr" in found:
        return np.array([check_number(f"each log_snr of {path}", value) for value in found["log_snr"]])
    sigma = np.array([check_number(f"each sigma of {path}", value, ge=0) for value in found["sigma"]])
    return np.asarray(-2 * np.log(sigma[sigma > 0]))


def _stretched(log_snr: F64, count: int | None) -> F64:
    """Log_snr at another number of places, linear in between."""
    if count is None or count == len(log_snr):
        return log_snr
    check_integer("steps", count, ge=1)
    ordered = np.sort(log_snr)
    places = np.linspace(0, len(ordered) - 1, count) if count > 1 else np.zeros(1)
    return np.asarray(np.interp(places, np.arange(len(ordered)), ordered))
