"""Show training runs side by side: progress, metrics, composition, and differences.

A folder that holds runs stands for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.errors import OptionError
from diffkit.options import flag
from diffkit.runtime.output import log, show
from diffkit.runtime.strict_json import word

if TYPE_CHECKING:
    from diffkit.training.runs import Run

NONE = "-"
"""What a table shows where there is nothing."""


@frozen
class Options:
    """Options of ``diffkit runs``.

    Attributes:
        run: Training runs, or folders of them.
        json: Print everything as JSON instead: "runs", each with its last metrics, and "differences" by name.
    """

    run: tuple[Path, ...] = field(metadata=POSITIONAL)
    json: bool = flag(False)


SPEC = CommandSpec({"Options": Options})


def run(parsed: ParsedOptions) -> None:
    """Print the runs."""
    from diffkit.training.runs import differences, expanded

    options = parsed.make(Options)
    found = _readable(expanded(options.run))
    different = differences(found)
    if options.json:
        show(json.dumps({"runs": [one.plain() for one in found], "differences": different}, indent=2))
        return
    show("\n".join(table([one.row() for one in found])))
    for line in _about_parts(found, different):
        show(line)


def _readable(folders: Sequence[Path]) -> list[Run]:
    """Read runs; print one line for each that cannot be read, unless none can.

    Raises:
        OptionError: There is none that can be read.
    """
    from diffkit.training.runs import read

    found, faults = list["Run"](), list[str]()
    for folder in folders:
        try:
            found.append(read(folder))
        except OptionError as error:
            faults.append(str(error))
    if not found:
        raise OptionError("\n  ".join(faults))
    for fault in faults:
        log(f"left out: {fault}")
    return found


def table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return rows as aligned lines, a column for each name; what a row lacks is a dash.

    The first row's columns come first, and the others' further ones before "lr".
    """
    names = list(rows[0])
    for name in dict.fromkeys(name for row in rows for name in row if name not in names):
        names.insert(names.index("lr") if "lr" in names else len(names), name)
    lines = [names, *([row.get(name, NONE) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    return ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _about_parts(runs: Sequence[Run], different: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """The parts of all runs, and a table of their differences."""
    same = {kind: name for kind, name in runs[0].parts.items() if kind not in different}
    if same:
        yield ""
        yield ("parts: " if len(runs) == 1 else "in all: ") + ", ".join(f"{kind} {name}" for kind, name in same.items())
    if different:
        yield ""
        rows = [
            {"differs": name} | {str(one.path): _shown(value) for one, value in zip(runs, values, strict=True)}
            for name, values in different.items()
        ]
        yield from table(rows)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_shown, value)) if len(value) <= 8 else f"{len(value)} of them"
    return NONE if value is None else str(value).lower() if isinstance(value, bool) else word(value)
