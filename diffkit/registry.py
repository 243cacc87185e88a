"""Parts found by name: built-in files, this process, installed plugins.

A name is looked up in this order, and nothing is imported before it is asked for:

1. parts registered in this process with ``registry(kind).register(name)``;
2. built-ins: the module of that name in the kind's package (``schedule`` "cosine" is `diffkit.schedules.cosine`);
3. entry points of the group ``diffkit.<kind>``, whose value is the part's class.

A plugin never replaces a built-in; ``distribution:name`` always reaches it. The environment variable
DIFFKIT_PLUGINS holds an allow-list of distributions (unset: all; empty: none).

Metadata of installed distributions is read once, when a name is asked for that is no built-in, and a distribution
whose metadata cannot be read hides nobody else: `faults` says what was passed over.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import pkgutil
import re
import sys
import threading
from collections.abc import Callable, Iterator
from functools import reduce
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Generic, TypeVar, cast

import attrs
from attrs import frozen

from diffkit._elsewhere import elsewhere
from diffkit._errors import (
    AmbiguousComponentError,
    DiffkitError,
    DuplicateComponentError,
    OptionError,
    PluginLoadError,
    ProtocolError,
    UnknownComponentError,
    did_you_mean,
)

P = TypeVar("P")
F = TypeVar("F", bound=Callable[..., Any])

KINDS: dict[str, str] = {
    "schedule": "schedules",
    "mean": "means",
    "var": "variances",
    "loss": "losses",
    "timesteps": "timesteps",
    "sampler": "samplers",
    "backbone": "backbones",
}
"""Kind -> sub-package. The kind is also the compose keyword and the suffix of the entry-point group."""

BUILT_IN, LOCAL = "diffkit", "local"
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_VALUE = re.compile(r"(?P<module>[A-Za-z_]\w*(\.\w+)*)\s*:\s*(?P<attribute>[A-Za-z_]\w*(\.\w+)*)\s*(\[.*\])?")
_DISTRIBUTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_OURS = re.compile(r"diffkit(?![\w.-])", re.IGNORECASE)


@frozen
class Entry:
    """One line of a listing.

    Attributes:
        kind: Kind of part.
        name: Registered name.
        origin: "diffkit", "local", or the distribution that offers it.
        version: Version of that distribution; "" for local parts.
        value: ``module:attribute`` of the part.
        shadowed: True if the bare name means another part, so that only ``origin:name`` reaches this one.
        loaded: True if the part is already imported.
    """

    kind: str
    name: str
    origin: str
    version: str
    value: str
    shadowed: bool = False
    loaded: bool = False

    @property
    def qualified(self) -> str:
        """``origin:name``, which means this part and no other."""
        return f"{self.origin}:{self.name}"


@frozen
class Provenance:
    """Where a part comes from: registered name, distribution and its version."""

    name: str
    origin: str
    version: str


class Registry(Generic[P]):
    """All parts of one kind."""

    def __init__(self, kind: str, package: str):
        self.kind = kind
        self._package = package
        self._here: dict[str, Callable[..., P]] = {}
        self._imported: dict[str, Callable[..., P]] = {}
        self._provenance: dict[object, Provenance] = {}

    def register(self, name: str, *, replace: bool = False) -> Callable[[F], F]:
        """Return a decorator that gives a part its name in this process.

        Args:
            name: Lower-case words joined by "_".
            replace: Take the name even if a built-in, a plugin or an earlier registration holds it.
        Raises:
            OptionError: The name is not of that form.
            DuplicateComponentError: The name is taken, and this is not the same definition run again.
        """
        if not _NAME.fullmatch(canonical(name)):
            raise OptionError(f"{self.kind} name {name!r} cannot be used; use lower-case words joined by '_'")
        name = canonical(name)

        def decorate(part: F) -> F:
            if not _is_class_or_function(part):
                raise OptionError(f"{self.kind} {name!r} must be a class or a function, got {part!r}")
            if part.__module__ == f"{self._package}.{name}":
                self._imported[f"{BUILT_IN}:{name}"] = part
                self._provenance[part] = Provenance(name, BUILT_IN, _own_version())
                return part
            if any(p.name == name and p.defines(part) for p in _plugins(self.kind)):
                return part  # the class an entry point names: the installed plugin is already its registration
            holder = None if replace else self._holder(name, part)
            if holder:
                raise DuplicateComponentError(
                    f"{self.kind} {name!r} is taken by {holder}; choose another name or pass replace=True"
                )
            self._here[name] = part
            self._provenance[part] = Provenance(name, LOCAL, "")
            return part

        return decorate

    def names(self) -> tuple[str, ...]:
        """Every bare name that `get` accepts, sorted; imports no part."""
        return tuple(sorted({e.name for e in self.entries()}))

    def built_in_names(self) -> tuple[str, ...]:
        """Names of the built-in parts, sorted; reads no metadata and imports no part."""
        spec = find_spec(self._package)
        folders = spec.submodule_search_locations if spec else None
        return tuple(sorted(m.name for m in pkgutil.iter_modules(folders) if not m.name.startswith("_")))

    def entries(self) -> tuple[Entry, ...]:
        """Every known part, shadowed ones too, sorted by name; imports no part."""
        here = dict(self._here)  # another thread may register meanwhile
        found = [Entry(self.kind, n, LOCAL, "", _path(p), loaded=True) for n, p in here.items()]
        taken = set(here)
        for name in self.built_in_names():
            loaded = f"{BUILT_IN}:{name}" in self._imported
            value = f"{self._package}.{name}"
            found.append(Entry(self.kind, name, BUILT_IN, _own_version(), value, name in taken, loaded))
            taken.add(name)
        for point in _plugins(self.kind):
            loaded = f"{point.distribution}:{point.name}" in self._imported
            found.append(
                Entry(
                    self.kind, point.name, point.distribution, point.version, point.value, point.name in taken, loaded
                )
            )
        return tuple(sorted(found, key=lambda e: (e.name, e.shadowed, e.origin)))

    def get(self, name: str) -> Callable[..., P]:
        """Return the class or factory of that name, importing exactly one part.

        Args:
            name: Bare name, or ``distribution:name``.
        Raises:
            UnknownComponentError: No such name.
            AmbiguousComponentError: Two plugins offer it.
            PluginLoadError: The plugin cannot be imported.
            ProtocolError: The part does not honour its contract.
        """
        if not isinstance(name, str):
            raise OptionError(f"{self.kind} must be a name, a (name, options) pair or an instance, got {name!r}")
        if ":" in name:
            origin, _, bare = name.partition(":")
            return self._get_qualified(_normalized(origin), canonical(bare), name)
        bare = canonical(name)
        if bare in self._here:
            return self._here[bare]
        if f"{BUILT_IN}:{bare}" in self._imported or bare in self.built_in_names():
            return self._built_in(bare)
        return self._plugin([p for p in _plugins(self.kind) if p.name == bare], name)

    def shortest(self, name: str) -> str:
        """Return the bare name if it means the part that this one, which `get` knows, means; else the name."""
        name = canonical(name)
        bare = name.rpartition(":")[2]
        try:
            return bare if self.get(bare) is self.get(name) else name
        except DiffkitError:  # the bare name is ambiguous, or another's that is broken
            return name

    def create(self, name: str, /, **options: object) -> P:
        """Return the part of that name made with these options.

        Raises:
            OptionError: An option is unknown (the nearest is suggested), or its value is wrong.
        """
        factory = self.get(name)
        known = option_names(factory)
        unknown = [o for o in options if known is not None and o not in known]
        if unknown and known is not None:
            lines = (f"{self.kind} {name!r} has no option {o!r}{did_you_mean(o, known)}" for o in unknown)
            raise OptionError(f"{'; '.join(lines)} (options: {', '.join(known) or 'none'})")
        try:
            return factory(**options)
        except OptionError as error:
            raise OptionError(f"{self.kind} {name!r}: {error}") from error
        except DiffkitError:
            raise
        except (TypeError, ValueError) as error:
            raise OptionError(f"{self.kind} {name!r} cannot be made with these options: {error}") from error
        except Exception as error:  # a part of others may fail in any way, and the message should say which
            raise PluginLoadError(f"{self.kind} {name!r} cannot be made: {type(error).__name__}: {error}") from error

    def provenance(self, part: object) -> Provenance | None:
        """Name, distribution and version of an instance; None if its class has no registered name.

        The class of a plugin is known by whichever way it was imported.
        """
        known = self._provenance.get(type(part))
        if known is None:
            point = next((p for p in _plugins(self.kind) if p.imported() is type(part)), None)
            if point is not None:
                known = self._provenance[type(part)] = Provenance(point.name, point.distribution, point.version)
        return known

    def _holder(self, name: str, part: Callable[..., Any]) -> str | None:
        """Who holds the name already; None if nobody, or if it is the same definition run again."""
        if name in self._here and _path(self._here[name]) != _path(part):
            return f"{_path(self._here[name])} (registered in this process)"
        if name in self._here:
            return None
        if name in self.built_in_names():
            return f"the built-in {self._package}.{name}"
        points = [p for p in _plugins(self.kind) if p.name == name]
        return f"the plugin '{points[0].distribution}:{name}'" if points else None

    def _get_qualified(self, origin: str, bare: str, asked: str) -> Callable[..., P]:
        if origin == LOCAL and bare in self._here:
            return self._here[bare]
        if origin == BUILT_IN and bare in self.built_in_names():
            return self._built_in(bare)
        points = [p for p in _plugins(self.kind) if p.name == bare and _normalized(p.distribution) == origin]
        return self._plugin(points, asked)

    def _built_in(self, name: str) -> Callable[..., P]:
        key = f"{BUILT_IN}:{name}"
        if key not in self._imported:
            importlib.import_module(f"{self._package}.{name}")
        return self._imported[key]

    def _plugin(self, points: list[_Point], asked: str) -> Callable[..., P]:
        """The part that one entry point names; an error if none or several do."""
        if not points:
            raise self._unknown(asked)
        names = dict.fromkeys(f"'{p.distribution}:{p.name}'" for p in points)
        if len(names) > 1:
            raise AmbiguousComponentError(
                f"{self.kind} {points[0].name!r} is offered by {' and '.join(names)}; use one of these full names"
            )
        if len(points) > 1:
            values = " and ".join(p.value for p in points)
            raise AmbiguousComponentError(
                f"{self.kind} {points[0].name!r} stands for {values} in the metadata of {points[0].distribution}; "
                "only one can be meant"
            )
        return self._load(points[0])

    def _load(self, point: _Point) -> Callable[..., P]:
        key = f"{point.distribution}:{point.name}"
        if key in self._imported:
            return self._imported[key]
        source = f"{self.kind} {point.name!r} of {point.distribution} {point.version} ({point.value})"
        try:
            part = point.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may even call sys.exit() on import
            raise PluginLoadError(f"cannot load {source}: {point.describe(error)}") from error
        try:
            if not _is_class_or_function(part):
                raise ProtocolError(f"{source} is {_article(part)}; an entry point must name a class")
            _check_contract(self.kind, part, source)
        except ProtocolError as error:
            raise ProtocolError(f"{error}{point.skew()}") from None
        self._imported[key] = part
        self._provenance[part] = Provenance(point.name, point.distribution, point.version)
        return cast("Callable[..., P]", part)

    def _unknown(self, asked: str) -> UnknownComponentError:
        names = self.names()
        bare = canonical(asked).rpartition(":")[2]
        ours = None if ":" in asked else elsewhere(self.kind, asked, names)
        meant = {bare, (ours or "").rpartition(":")[2]}
        blocked = [p.distribution for p in _scan.blocked(self.kind) if p.name in meant]
        hint = _called_here(ours, names) if ours and not blocked else did_you_mean(bare, names)
        text = f"no {self.kind} named {asked!r}{hint} (known: {', '.join(names)})"
        if blocked:
            text += f"; {blocked[0]} offers it, but DIFFKIT_PLUGINS does not list that distribution"
        text += "".join(f"; note: {fault}" for fault in _scan.faults())
        return UnknownComponentError(text)


@frozen
class _Point:
    """One entry point, and what is known of the distribution that owns it without importing anything."""

    name: str
    value: str
    distribution: str
    version: str
    requirement: str

    def load(self) -> Any:
        """Import the module, and return what the value names in it."""
        match = _VALUE.fullmatch(self.value)
        if match is None:
            raise SyntaxError(f"the entry point's value {self.value!r} is not of the form 'module:Class'")
        module = importlib.import_module(match["module"])
        return reduce(getattr, match["attribute"].split("."), module)

    def imported(self) -> object | None:
        """What the value names, if its module is imported already."""
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
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and missing.partition(".")[0] != self.value.partition(":")[0].partition(".")[0].strip():
            text += f"; {self.distribution} needs {missing.partition('.')[0]!r}, which is not installed"
        return text

    def skew(self) -> str:
        """A line on which versions of diffkit the distribution was written for, if it says so."""
        if not self.requirement:
            return ""
        return f"\n{self.distribution} {self.version} asks for {self.requirement}; this is diffkit {_own_version()}"


class _Scan:
    """Entry points of all installed distributions, read once, on first need."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._points: dict[str, tuple[_Point, ...]] | None = None
        self._faults: tuple[str, ...] = ()

    def clear(self) -> None:
        with self._lock:
            self._points = None

    def allowed(self, kind: str) -> tuple[_Point, ...]:
        return tuple(p for p in self._of(kind) if _is_allowed(p.distribution))

    def blocked(self, kind: str) -> tuple[_Point, ...]:
        return tuple(p for p in self._of(kind) if not _is_allowed(p.distribution))

    def faults(self) -> tuple[str, ...]:
        self._of(next(iter(KINDS)))
        return self._faults

    def _of(self, kind: str) -> tuple[_Point, ...]:
        with self._lock:
            if self._points is None:
                faults: list[str] = []
                self._points = _read_points(faults)
                self._faults = tuple(faults)
            return self._points[kind]


def _read_points(faults: list[str]) -> dict[str, tuple[_Point, ...]]:
    found: dict[str, set[_Point]] = {kind: set() for kind in KINDS}
    for distribution in _our_distributions(faults):
        try:
            for kind, point in _points_of(distribution, faults):
                found[kind].add(point)  # a set: an editable install may list the same twice
        except Exception as error:
            faults.append(_unreadable(distribution, error))
    return {
        kind: tuple(sorted(points, key=lambda p: (_normalized(p.distribution), p.name, p.value)))
        for kind, points in found.items()
    }


def _our_distributions(faults: list[str]) -> Iterator[metadata.Distribution]:
    """Distributions that offer parts, each once: of two by one name, the one that imports would find."""
    seen: set[str] = set()
    for distribution in _installed(faults):
        try:
            if "[diffkit." not in (distribution.read_text("entry_points.txt") or "").replace(" ", ""):
                continue
            name = _header(distribution, "Name")
            if not _DISTRIBUTION.fullmatch(name):
                faults.append(f"the metadata in {_where(distribution)} does not name its distribution")
            elif _normalized(name) in (LOCAL, BUILT_IN):
                faults.append(
                    f"the distribution in {_where(distribution)} cannot be called {name!r}; that name is ours"
                )
            elif _normalized(name) not in seen:
                found = metadata.distribution(name)
                seen.add(_normalized(name))
                yield found
        except Exception as error:  # one unreadable folder must not hide all others
            faults.append(_unreadable(distribution, error))


def _installed(faults: list[str]) -> Iterator[metadata.Distribution]:
    try:
        yield from metadata.distributions()
    except Exception as error:  # a finder that some other package put into sys.meta_path
        faults.append(f"installed distributions cannot all be listed: {type(error).__name__}: {error}")


def _unreadable(distribution: metadata.Distribution, error: Exception) -> str:
    return _printable(f"the metadata in {_where(distribution)} cannot be read: {type(error).__name__}: {error}")


def _points_of(distribution: metadata.Distribution, faults: list[str]) -> Iterator[tuple[str, _Point]]:
    name, version = _header(distribution, "Name"), _printable(_header(distribution, "Version") or "?")
    requirement = next((_printable(r) for r in distribution.requires or () if _OURS.match(r)), "")
    known, group, kind = [f"diffkit.{k}" for k in KINDS], "", ""
    for line in (distribution.read_text("entry_points.txt") or "").splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            group = line[1:-1].strip()
            kind = group.removeprefix("diffkit.")
            if kind != group and kind not in KINDS:
                faults.append(f"{name} offers parts under {_printable(group)!r}{did_you_mean(group, known)}")
        elif group in known and line and not line.startswith(("#", ";")):
            entry, equals, value = line.partition("=")
            if equals and _NAME.fullmatch(canonical(entry)):
                yield kind, _Point(canonical(entry), _printable(value.strip()), name, version, requirement)
            else:
                faults.append(
                    f"{name} offers a {kind} as {_printable(line)!r}, which is not of the form 'name = module:Class' "
                    "with a name of lower-case words joined by '_'"
                )


def _header(distribution: metadata.Distribution, key: str) -> str:
    """One field of the metadata; "" if it is not there, which later Pythons no longer answer with None."""
    found = distribution.metadata
    return str(found[key]) if key in found else ""


def _where(distribution: metadata.Distribution) -> str:
    """The folder a distribution's metadata is in; there is no public way to ask for it."""
    return _printable(str(getattr(distribution, "_path", "an unknown place")))


def _printable(text: str) -> str:
    """Text from foreign metadata, with anything that a terminal might obey spelled out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _called_here(ours: str, names: tuple[str, ...]) -> str:
    """Which part is meant by a name from elsewhere, and how to get it if it is a plugin's that is not here."""
    distribution, _, name = ours.rpartition(":")
    if name in names:
        return f"; it is called {name!r} here"
    return f"; it is {name!r} of the plugin {distribution}: pip install {distribution}"


def _is_class_or_function(part: object) -> bool:
    return isinstance(part, type) or inspect.isroutine(part)


def _article(part: object) -> str:
    kind = type(part).__name__
    return f"an instance of {kind}" if not inspect.ismodule(part) else "a module"


_scan = _Scan()
_registries: dict[str, Registry[Any]] = {kind: Registry(kind, f"diffkit.{package}") for kind, package in KINDS.items()}


def registry(kind: str) -> Registry[Any]:
    """Return the registry of one kind: schedule, mean, var, loss, timesteps, sampler or backbone."""
    try:
        return _registries[kind]
    except KeyError:
        raise OptionError(f"no kind {kind!r}{did_you_mean(kind, KINDS)} (kinds: {', '.join(KINDS)})") from None


def refresh() -> None:
    """Forget the scan of installed plugins, so that one installed since is seen; loaded parts stay loaded."""
    importlib.invalidate_caches()
    _scan.clear()


def faults() -> tuple[str, ...]:
    """Return one sentence for each piece of installed metadata that was passed over because it makes no sense."""
    return _scan.faults()


def describe(kind: str | None = None) -> str:
    """Return a table of all parts (or those of one kind): kind, name, origin, version, remarks."""
    rows = [("kind", "name", "origin", "version", "")]
    for k in KINDS if kind is None else (kind,):
        for e in registry(k).entries():
            rows.append((k, e.name, e.origin, e.version, f"shadowed; use {e.qualified}" if e.shadowed else ""))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def canonical(name: str) -> str:
    """Return the registered spelling of a name: "-" is read as "_"."""
    return name.strip().replace("-", "_")


def option_names(factory: Callable[..., object]) -> tuple[str, ...] | None:
    """Names of the options a part takes; None if they cannot be told: a function, or a class with its own __init__."""
    if not isinstance(factory, type):
        return None
    if attrs.has(factory):
        return tuple(f.alias or f.name for f in attrs.fields(factory) if f.init)
    if dataclasses.is_dataclass(factory):
        return tuple(f.name for f in dataclasses.fields(factory) if f.init)
    for base in factory.__mro__[:-1]:
        # Protocols bring an __init__ of typing's, which leaves object's own on the first class made with it.
        own = not vars(base).get("_is_protocol") and vars(base).get("__init__", object.__init__)
        if own and own is not object.__init__:
            return None
    return ()


def _plugins(kind: str) -> tuple[_Point, ...]:
    return _scan.allowed(kind)


def _is_allowed(distribution: str) -> bool:
    allowed = os.environ.get("DIFFKIT_PLUGINS")
    return allowed is None or _normalized(distribution) in {_normalized(a) for a in allowed.split(",")}


def _normalized(distribution: str) -> str:
    """PEP 503 spelling, so that diffkit_edm and diffkit-edm are one."""
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()


def _path(part: Callable[..., Any]) -> str:
    return f"{part.__module__}:{part.__qualname__}"


def _own_version() -> str:
    return cast("str", sys.modules["diffkit"].__version__)


def _check_contract(kind: str, part: object, source: str) -> None:
    # By name at run time: the registry is below the protocols and must not import them itself.
    importlib.import_module("diffkit.protocols").check_contract(kind, part, source)
