"""Check whether installed parts obey the laws of their kind: diffkit's conformance kit on any part, by its name.

A part is named by itself, with its default options (diffkit check ddim), or by its option (diffkit check --sampler ddim
--sampler.eta 0.5). Exit code 1 if a law is broken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.parts import refuse_file
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.errors import OptionError, UnknownComponentError, did_you_mean
from diffkit.registry import KINDS, canonical, registry
from diffkit.registry.entry_points import normalized
from diffkit.runtime.output import show, show_cut

if TYPE_CHECKING:
    from diffkit.testing import CheckResult


@frozen
class Options:
    """Options of ``diffkit check``.

    Attributes:
        name: Name of the part, or distribution:name; of every kind that has one of that name.
        kind: Its kind, where parts of several kinds have that name.
        only: Names of checks to run, separated by commas; all of the kind by default.
    """

    name: str | None = field(default=None, metadata=POSITIONAL)
    kind: str | None = None
    only: tuple[str, ...] = ()


SPEC = CommandSpec({"Options": Options}, slots=dict.fromkeys(KINDS))


def run(parsed: ParsedOptions) -> None:
    """Print a table for each part, with its faults; exit with code 1 if there are any."""
    from diffkit.testing import check_component

    options = parsed.make(Options)
    failed = 0
    for kind, name, values in _parts(options, parsed):
        results = check_component(kind, registry(kind).create(name, **values), only=options.only)
        _print(kind, name, results)
        failed += sum(not result.ok for result in results)
    if failed:
        raise SystemExit(1)


def _parts(options: Options, parsed: ParsedOptions) -> list[tuple[str, str, dict[str, Any]]]:
    """Kind, name and options of every requested part."""
    kinds = () if options.name is None else _kinds_of(options.name, options.kind)
    named: list[tuple[str, str, dict[str, Any]]] = [(kind, str(options.name), {}) for kind in kinds]
    found = named + [(kind, name, dict(values)) for kind, (name, values) in parsed.parts.items()]
    if not found:
        raise OptionError("which part? write its name, as diffkit list shows it, or --sampler NAME and the like")
    return found


def _kinds_of(name: str, kind: str | None) -> list[str]:
    """The kinds that have a part of that name."""
    refuse_file(name)
    if kind is not None:
        registry(kind).get(name)
        return [kind]
    origin, _, bare = canonical(name).rpartition(":")
    named = [e for k in KINDS for e in registry(k).entries() if e.name == bare]
    kinds = list(dict.fromkeys(e.kind for e in named if not origin or normalized(e.origin) == normalized(origin)))
    if not kinds:
        known = sorted({entry.name for k in KINDS for entry in registry(k).entries()})
        raise UnknownComponentError(f"no part of any kind is named {name!r}{did_you_mean(bare, known)}")
    return kinds


def _print(kind: str, name: str, results: list[CheckResult]) -> None:
    for line in _lines(kind, name, results):
        show_cut(line)
    for result in results:
        if not result.ok:
            show(f"\n{result}")


def _lines(kind: str, name: str, results: list[CheckResult]) -> Iterator[str]:
    longest = max(len(result.check) for result in results)
    yield f"{kind} {name}: {results[0].part}"
    for result in results:
        yield f"  {result.status:7}  {result.check:{longest}}  {result.reason or result.note or result.law}"
    count = {status: sum(r.status == status for r in results) for status in ("passed", "failed", "skipped")}
    seconds = sum(result.seconds for result in results)
    yield "  " + ", ".join(f"{n} {status}" for status, n in count.items() if n) + f" in {seconds:.1f} s"
