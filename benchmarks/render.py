"""Render every JSON file of a folder of results as one page of Markdown tables.

python benchmarks/render.py                # benchmarks/results -> benchmarks/results/README.md
python benchmarks/render.py FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

HEADER = """# Results

Rendered by `python benchmarks/render.py` from the JSON files beside it; `benchmarks/README.md` says how to measure.
Ratios are medians over pairs taken together, with the 10th and 90th percentile in brackets. On a CPU, times are the
process's CPU time with one thread.
"""


def page(results: Iterable[Mapping[str, Any]]) -> str:
    """Return the page for results as the benchmarks write them."""
    return "\n".join([HEADER, *(line for result in results for line in section(result))])


def section(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of one benchmark: what it is, where it was taken, its table."""
    yield f"## {result['benchmark']}\n"
    yield f"{result['about']}.\n"
    yield f"{facts(result['setup'] | result['machine'])}\n"
    rows = result["rows"]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    yield line(name.replace("_", " ") for name in columns)
    yield line("---:" if _is_number(rows, name) else "---" for name in columns)
    for row in rows:
        yield line(cell(row.get(name)) for name in columns)
    yield ""


def _is_number(rows: Iterable[Mapping[str, Any]], name: str) -> bool:
    return any(isinstance(row.get(name), int | float | Mapping) for row in rows)


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def cell(value: object) -> str:
    """A ratio with its range, a number without needless digits, anything else as it is."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return f"{value['median']:g} [{value['p10']:g}..{value['p90']:g}]"
    return f"{value:,.6g}".replace(",", " ") if isinstance(value, int | float) else str(value)


def facts(values: Mapping[str, Any]) -> str:
    """``name value`` of everything but what is empty, joined by commas."""
    shown = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {_short(each)}" for key, each in value.items())
        if isinstance(value, list):
            value = "x".join(map(str, value))
        if value not in (None, ""):
            shown.append(f"{name.replace('_', ' ')} {value}")
    return "; ".join(shown)


def _short(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def main(folder: Path) -> None:
    """Write FOLDER/README.md."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    (folder / "README.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "results")
