"""The results as one page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

HEADER = """# Every public solver before the laws

Solvers of {libraries} libraries, {solvers} cases, on exact models: `python -m benchmarks.court` (torch {torch}, one CPU
thread, {seconds:.0f} CPU s). Thresholds are those of `diffkit.testing.check_solver` and of `benchmarks/court/rules.py`,
fixed before the first run, and the same for all: an order at most 0.2 below what the library or the method's paper
says, with its first steps, and errors of mean, spread, solution and level of at most 0.05 at the finest grid.
Stochastic solvers are held to a weak order of 1. An alarm counts if a fine Runge-Kutta reference, or {drawn:,} samples
with the library's own random numbers, show it too; on grids of a solver's own, whose ends move with the number of
steps, half an order has to be missing there. What is said holds for these versions and options, on these grids. Each
alarm has a [reproduction](reproductions.md) of a few lines, with its cause.
"""


def page(found: Sequence[Mapping[str, Any]]) -> str:
    """Return the page for the results of all libraries."""
    from benchmarks.court.rules import DRAWN

    present = [each for each in found if each["solvers"] and not each.get("older")]
    header = HEADER.format(
        libraries=len(present),
        solvers=sum(len(each["solvers"]) for each in present),
        torch=present[0]["torch"] if present else "",
        seconds=sum(each["cpu_seconds"] for each in present),
        drawn=DRAWN,
    )
    return "\n".join(
        [
            header,
            *_summary(present),
            "## Alarms",
            *_alarms(present),
            *_older([each for each in found if each.get("older")]),
            *_remarks(present),
            *_all(present),
            *_absent(found),
        ]
    )


def _summary(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    verdicts = ("keeps the laws", "lower by its first steps", "alarm", "not confirmed", "stopped")
    yield f"| library | version | {' | '.join(verdicts)} |"
    yield "| --- | --- |" + " ---: |" * len(verdicts)
    for each in found:
        counts = [sum(solver["verdict"] == verdict for solver in each["solvers"]) for verdict in verdicts]
        yield f"| {each['library']} | {each['version']} | {' | '.join(map(str, counts))} |"
    yield ""


def _alarms(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from ("", "| library | solver | path | law | found |", "| --- | --- | --- | --- | --- |")
    for each, solver in _of(found, "alarm"):
        for broken in solver["broken"]:
            figure = f"{broken['found']}; expected {broken['expected']} ({broken['where']})"
            yield f"| {_name(each)} | `{solver['solver']}` | {solver['path']} | {broken['law']} | {figure} |"
    yield ""


def _older(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if found:
        yield "## Alarms in older releases"
        yield ""
        yield "Solvers that a later release has mended, or warns of, by the same thresholds."
        yield from _alarms(found)


def _remarks(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    remarks = [*_of(found, "lower by its first steps"), *_of(found, "not confirmed"), *_of(found, "stopped")]
    if not remarks:
        return
    yield "## Remarks"
    yield ""
    yield (
        "No alarms: a method with a history that begins at first order has a lower order with it, and its own once the"
        " first steps are short; what the reference does not show is listed as not confirmed; a call that stopped at an"
        " error says so."
    )
    yield from ("", "| library | solver | path | verdict | found |", "| --- | --- | --- | --- | --- |")
    for each, solver in remarks:
        text = "; ".join(f"{broken['check']}: {broken['found']}" for broken in solver["broken"])
        yield f"| {_name(each)} | `{solver['solver']}` | {solver['path']} | {solver['verdict']} | {text} |"
    yield ""


def _all(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from ("## All solvers", "", "| library | solver | path | verdict | order | marginals | level |")
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for each in found:
        for solver in each["solvers"]:
            notes = solver["notes"]
            cells = [notes.get(name, "") for name in ("order_as_declared", "keeps_the_marginals")]
            level = notes.get("begins_where_the_last_ended", "").partition(" in log")[0]
            head = f"| {_name(each)} | `{solver['solver']}` | {solver['path']} | {solver['verdict']}"
            yield f"{head} | {cells[0]} | {cells[1].partition(' of a')[0]} | {level} |"
    yield ""


def _absent(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    missing = [each for each in found if "missing" in each]
    if missing:
        yield from ("## Not measured", "")
        yield from (f"* {each['library']}: {each['missing'].splitlines()[0]}" for each in missing)
        yield ""


def _name(each: Mapping[str, Any]) -> str:
    return f"{each['library']} {each['version']}"


def _of(found: Sequence[Mapping[str, Any]], verdict: str) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return [(each, solver) for each in found for solver in each["solvers"] if solver["verdict"] == verdict]
