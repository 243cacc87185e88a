"""Pages of what was measured, from files of the repository: speed with its machine, stored numbers, guarantees."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffkit_docs.docstrings import inline
from diffkit_docs.files import title, write_pages
from diffkit_docs.names import ROOT

_MACHINES = {
    "results": "repository/benchmarks/results/README",
    "results/xeon": "repository/benchmarks/results/xeon/README",
    "results/amx": "repository/benchmarks/results/amx/README",
}
_GUARANTEES = ("tests/faults", "tests/compatibility", "tests/gates", "tests/laws", "tests/fuzz")


def write_proof(folder: Path) -> None:
    """Write the pages into a folder."""
    write_pages(folder, {"speed.rst": _speed(), "parity.rst": _parity(), "reliability.rst": _reliability()})


def _speed() -> str:
    lines = [
        title("Speed: what was measured, and where"),
        "Each line is a file of results in the repository. No GPU was at",
    ]
    lines += ["hand for any of them. A ratio means something within one file only.", ""]
    for place, page in _MACHINES.items():
        rows = []
        for path in sorted((ROOT / "benchmarks" / place).glob("*.json")):
            held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            machine = held["machine"]
            rows.append((held["benchmark"], held["about"], machine["device"], machine["torch"], machine["commit"]))
        lines += [title(f"benchmarks/{place}", "-"), f":doc:`All numbers </{page}>`", ""]
        lines += _table(("benchmark", "what", "machine", "torch", "commit"), rows)
    return "\n".join(lines)


def _parity() -> str:
    lines = [
        title("Parity: numbers of the published code"),
        "Stored numbers of improved-diffusion and guided-diffusion",
    ]
    lines += ["(``tests/golden/README.md`` says how they were made), and the tests that compare diffkit with them.", ""]
    rows = []
    for path in sorted((ROOT / "tests" / "golden").rglob("*.npz")):
        with np.load(path) as held:
            arrays = [held[name] for name in held.files]
        rows.append((str(path.relative_to(ROOT)), str(len(arrays)), f"{sum(each.size for each in arrays):,}"))
    lines += [*_tests("tests/parity"), title("Stored numbers", "-")]
    return "\n".join([*lines, *_table(("file", "arrays", "numbers"), rows)])


def _reliability() -> str:
    lines = [
        title("Reliability: what is tested"),
        "Guarantees here are tests, not results of one run: they are run again",
    ]
    lines += ["with every change, and ``make slow`` and ``make soak`` run their long forms.", ""]
    for folder in _GUARANTEES:
        lines += [title(folder, "-"), *_tests(folder)]
    return "\n".join(lines)


def _tests(folder: str) -> Iterator[str]:
    rows = []
    for path in sorted((ROOT / folder).glob("test_*.py")):
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        rows.append((path.name, inline(about.splitlines()[0]) if about else ""))
    return _table(("test", "what it holds"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield from (".. list-table::", "   :header-rows: 1", "")
    for row in (head, *rows):
        for i, cell in enumerate(row):
            yield f"   {'* -' if i == 0 else '  -'} {cell}"
    yield ""
