"""Entry points of installed distributions, read from their metadata without importing anything.

Read once, on first need. A distribution whose metadata cannot be read is skipped, and listed as a fault, a sentence
each.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache, reduce
from importlib import metadata
from typing import Any

from attrs import frozen

from diffkit._version import __version__
from diffkit.errors import did_you_mean, failure
from diffkit.registry.kinds import FOUND
from diffkit.runtime.output import printable

BUILT_IN, LOCAL = "diffkit", "local"
NAME = re.compile(r"[a-z][a-z0-9_]*")
_VALUE = re.compile(r"(?P<module>[A-Za-z_]\w*(\.\w+)*)\s*:\s*(?P<attribute>[A-Za-z_]\w*(\.\w+)*)\s*(\[.*\])?")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_DISTRIBUTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_OURS = re.compile(r"diffkit(?![\w.-])", re.IGNORECASE)


@frozen
class Point:
    """One entry point, and its distribution's name, version and requirement, without importing anything."""

    name: str
    value: str
    distribution: str
    version: str
    requirement: str

    def load(self, module: bool = False) -> Any:
        """Import the module, and return what the value names in it, or the module if that is what it names."""
        if module:
            if not _MODULE.fullmatch(self.value):
                raise SyntaxError(f"the entry point's value {self.value!r} is not the name of a module")
            return importlib.import_module(self.value)
        match = _VALUE.fullmatch(self.value)
        if match is None:
            raise SyntaxError(f"the entry point's value {self.value!r} is not of the form 'module:Class'")
        return reduce(getattr, match["attribute"].split("."), importlib.import_module(match["module"]))

    def imported(self) -> object | None:
        """The object of the value, if its module is imported already."""
        match = _VALUE.fullmatch(self.value)
        found: object | None = sys.modules.get(match["module"]) if match else None
        for name in match["attribute"].split(".") if match else ():
            found = getattr(found, name, None)
        return found

    def defines(self, part: Callable[..., Any]) -> bool:
        """True if the value names this very definition, perhaps by way of the package that holds its module."""
        match = _VALUE.fullmatch(self.value)
        if match is None or match["attribute"] != part.__qualname__:
            return False
        return f"{part.__module__}.".startswith(f"{match['module']}.")

    def describe(self, error: BaseException) -> str:
        """What went wrong on import, in one line."""
        text = failure(error)
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and missing.partition(".")[0] != self.value.partition(":")[0].partition(".")[0].strip():
            text += f"; {self.distribution} needs {missing.partition('.')[0]!r}, which is not installed"
        return text

    def skew(self) -> str:
        """A line with the versions of diffkit that the distribution requires, if it declares them."""
        if not self.requirement:
            return ""
        return f"\n{self.distribution} {self.version} requires {self.requirement}; this is diffkit {__version__}"


class Scan:
    """Entry points of all installed distributions, read once, on first need."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._points: dict[str, tuple[Point, ...]] | None = None
        self._faults: tuple[str, ...] = ()

    def clear(self) -> None:
        """Clear the cache, so that metadata is read again."""
        with self._lock:
            self._points = None

    def allowed(self, kind: str) -> tuple[Point, ...]:
        """Return the entry points of a kind, of the distributions that DIFFKIT_PLUGINS allows."""
        return tuple(p for p in self._of(kind) if is_allowed(p.distribution))

    def blocked(self, kind: str) -> tuple[Point, ...]:
        """Return the entry points of a kind that DIFFKIT_PLUGINS leaves out."""
        return tuple(p for p in self._of(kind) if not is_allowed(p.distribution))

    def faults(self) -> tuple[str, ...]:
        """Return one sentence for each piece of metadata that was skipped."""
        self._of(next(iter(FOUND)))
        return self._faults

    def _of(self, kind: str) -> tuple[Point, ...]:
        with self._lock:
            if self._points is None:
                faults: list[str] = []
                self._points = _read_points(faults)
                self._faults = tuple(faults)
            return self._points[kind]


def _read_points(faults: list[str]) -> dict[str, tuple[Point, ...]]:
    found: dict[str, set[Point]] = {kind: set() for kind in FOUND}
    for distribution in _our_distributions(faults):
        try:
            for kind, point in _points_of(distribution, faults):
                found[kind].add(point)  # a set: an editable install may list the same twice
        except TypeError:  # of importlib.metadata, for a line without "="
            faults.append(f"{_where(distribution)} has an entry point that is not of the form 'name = module:Class'")
        except Exception as error:
            faults.append(_unreadable(distribution, error))
    return {
        kind: tuple(sorted(points, key=lambda p: (normalized(p.distribution), p.name, p.value)))
        for kind, points in found.items()
    }


def _our_distributions(faults: list[str]) -> Iterator[metadata.Distribution]:
    """Distributions that offer parts, each once: of two with one name, the one that is imported."""
    seen: set[str] = set()
    for distribution in _installed(faults):
        try:
            if "[diffkit." not in (distribution.read_text("entry_points.txt") or "").replace(" ", ""):
                continue
            name = _header(distribution, "Name")
            if not _DISTRIBUTION.fullmatch(name):
                faults.append(f"the metadata in {_where(distribution)} does not name its distribution")
            elif normalized(name) in (LOCAL, BUILT_IN):
                faults.append(
                    f"the distribution in {_where(distribution)} cannot be called {name!r}; that name is ours"
                )
            elif normalized(name) not in seen:
                found = metadata.distribution(name)
                seen.add(normalized(name))
                yield found
        except Exception as error:  # one unreadable folder must not hide others
            faults.append(_unreadable(distribution, error))


def _installed(faults: list[str]) -> Iterator[metadata.Distribution]:
    try:
        yield from metadata.distributions()
    except Exception as error:  # a finder that some other package put into sys.meta_path
        faults.append(f"installed distributions cannot all be listed: {type(error).__name__}: {error}")


def _unreadable(distribution: metadata.Distribution, error: Exception) -> str:
    return printable(f"the metadata in {_where(distribution)} cannot be read: {type(error).__name__}: {error}")


def _points_of(distribution: metadata.Distribution, faults: list[str]) -> Iterator[tuple[str, Point]]:
    name, version = _header(distribution, "Name"), printable(_header(distribution, "Version") or "?")
    requirement = next((printable(r) for r in distribution.requires or () if _OURS.match(r)), "")
    known = {kind.group: kind.name for kind in FOUND.values()}
    entries = [(entry.group.strip(), entry) for entry in distribution.entry_points]
    for group in dict.fromkeys(group for group, _ in entries if group.startswith("diffkit.") and group not in known):
        faults.append(f"{name} offers parts under {printable(group)!r}{did_you_mean(group, known)}")
    for kind, entry in ((known[group], entry) for group, entry in entries if group in known):
        if NAME.fullmatch(canonical(entry.name)):
            yield kind, Point(canonical(entry.name), printable(entry.value), name, version, requirement)
        else:
            faults.append(
                f"{name} offers a {kind} as {printable(entry.name)!r}; a name is made of lower-case words joined by '_'"
            )


def _header(distribution: metadata.Distribution, key: str) -> str:
    """One field of the metadata; "" if it is not there, which later Pythons no longer answer with None."""
    found = distribution.metadata
    return str(found[key]) if key in found else ""


def _where(distribution: metadata.Distribution) -> str:
    """The folder a distribution's metadata is in; there is no public attribute for it."""
    return printable(str(getattr(distribution, "_path", "an unknown place")))


@lru_cache(1000)
def canonical(name: str) -> str:
    """Return the registered spelling of a name: "-" is read as "_"."""
    return name.strip().replace("-", "_")


def is_allowed(distribution: str) -> bool:
    """Return whether DIFFKIT_PLUGINS allows the parts of a distribution."""
    allowed = os.environ.get("DIFFKIT_PLUGINS")
    return allowed is None or normalized(distribution) in {normalized(a) for a in allowed.split(",")}


def normalized(distribution: str) -> str:
    """PEP 503 spelling, so that diffkit_edm and diffkit-edm are one."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()
