"""Hold every installed library's solvers to the laws, and write benchmarks/results/court.

python -m benchmarks.court                    all libraries that are installed
python -m benchmarks.court --only azula       these anew; the results of the others stay
python -m benchmarks.court --only deepinv --older --match Preserving    some solvers of an older release
python -m benchmarks.court --draw             measure nothing: write the page again
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.court.confirm import confirmed
from benchmarks.court.entry import Entry
from benchmarks.court.report import page

LIBRARIES = sorted(path.stem for path in (Path(__file__).parent / "libraries").glob("[a-z]*.py"))
RESULTS = Path(__file__).parents[1] / "results" / "court"


def main() -> None:
    """Run, and write a JSON file for each library and one page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--draw", action="store_true", help="write the page from the results that are there")
    parser.add_argument("--confirm", action="store_true", help="only confirm what is there again")
    parser.add_argument("--older", action="store_true", help="put the results beside those of the last release")
    parser.add_argument("--match", default="", help="only solvers with this in their name or path")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    RESULTS.mkdir(parents=True, exist_ok=True)
    for library in () if arguments.draw else arguments.only:
        found = confirm_again(library) if arguments.confirm else measure(library, arguments.match)
        name = f"{library}-{found['version']}" if arguments.older else library
        (RESULTS / f"{name}.json").write_text(json.dumps(found | {"older": arguments.older}, indent=1) + "\n")
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    (RESULTS / "README.md").write_text(page(found))


def measure(library: str, match: str = "") -> dict[str, Any]:
    """Return what the laws say of a library's solvers, or why it could not be measured."""
    begun = time.process_time()
    module = importlib.import_module(f"benchmarks.court.libraries.{library}")
    found: dict[str, Any] = {"library": module.DISTRIBUTION, "torch": torch.__version__, "solvers": []}
    try:
        found["version"] = module.version() if hasattr(module, "version") else metadata.version(module.DISTRIBUTION)
        for entry in module.entries():
            if match not in f"{entry.solver} {entry.path.label}":
                continue
            found["solvers"].append(judge(entry))
            print(library, entry.solver, entry.path.label, found["solvers"][-1]["verdict"], flush=True)
    except (ImportError, OSError) as error:  # PackageNotFoundError is an ImportError
        found["missing"] = str(error)
    return found | {"cpu_seconds": round(time.process_time() - begun, 1)}


def confirm_again(library: str) -> dict[str, Any]:
    """Return the results of a library with each broken law before the reference once more."""
    found = json.loads((RESULTS / f"{library}.json").read_text())
    entries = importlib.import_module(f"benchmarks.court.libraries.{library}").entries()
    for entry, solver in zip(entries if found["solvers"] else (), found["solvers"], strict=True):
        if solver["verdict"] in ("alarm", "not confirmed"):
            failed = {broken["check"] for broken in solver["broken"] if "Error:" not in broken["found"]}
            stochastic = "keeps_the_marginals" in failed | set(solver["notes"])
            solver["verdict"] = "alarm" if confirmed(entry, failed, stochastic) else "not confirmed"
            print(library, entry.solver, solver["verdict"], flush=True)
    return found


def judge(entry: Entry) -> dict[str, Any]:
    """Return the verdict on a solver, with the figures."""
    results = entry.check()
    broken = [result for result in results if not result.ok]
    notes = {result.check: result.note for result in results if result.note}
    said = [
        {"law": r.law, "check": r.check, "expected": r.expected, "found": r.found, "where": str(r.where)}
        for r in broken
    ]
    return {
        "solver": entry.solver,
        "path": entry.path.label,
        "order": entry.order,
        "verdict": _verdict(entry, results, broken),
        "notes": notes,
        "broken": said,
    }


def _verdict(entry: Entry, results: Any, broken: Any) -> str:
    if not broken:
        return "keeps the laws"
    measured = [r for r in broken if not r.stopped]
    if not measured:
        return "stopped"
    if all(r.check == "order_as_declared" and r.cause.startswith("its first steps") for r in measured):
        return "lower by its first steps"
    stochastic = any(r.check == "keeps_the_marginals" and r.status != "skipped" for r in results)
    return "alarm" if confirmed(entry, {r.check for r in measured}, stochastic) else "not confirmed"


if __name__ == "__main__":
    main()
