"""Parts found by name: built-in files, this process, installed plugins.

A name is looked up in this order, and nothing is imported before its name is looked up:

1. parts registered in this process with ``registry(kind).register(name)``;
2. built-ins: the module of that name in the kind's package (``schedule`` "cosine" is `diffkit.parts.schedules.cosine`);
3. entry points of the kind's group (``diffkit.schedule``), whose value is the part's class.

A plugin never replaces a built-in; ``distribution:name`` always reaches it. The environment variable
DIFFKIT_PLUGINS holds an allow-list of distributions (unset: all; empty: none).

Metadata of installed distributions is read once, at the first lookup of a name that is not a built-in. A distribution
whose metadata cannot be read is skipped, and `faults` lists it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, Generic, TypeVar, cast

from attrs import frozen

from diffkit._version import __version__
from diffkit.errors import (
    AmbiguousComponentError,
    DiffkitError,
    DuplicateComponentError,
    OptionError,
    PluginLoadError,
    ProtocolError,
    UnknownComponentError,
    did_you_mean,
    failure,
    naming,
)
from diffkit.options import option_names, required_options
from diffkit.registry.aliases import alias_of
from diffkit.registry.entry_points import BUILT_IN as BUILT_IN
from diffkit.registry.entry_points import LOCAL as LOCAL
from diffkit.registry.entry_points import NAME, Point, Scan, normalized
from diffkit.registry.entry_points import canonical as canonical
from diffkit.registry.kinds import OFFERED, Kind

P = TypeVar("P")
F = TypeVar("F", bound=Callable[..., Any])


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

    def __init__(self, kind: Kind):
        self.kind = kind.name
        self._record = kind
        self._package = kind.package
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
        known = canonical(name)
        if not NAME.fullmatch(known):
            raise OptionError(f"{self.kind} name {name!r} cannot be used; use lower-case words joined by '_'")
        built_in = f"{self._package}.{known}"

        def decorate(part: F) -> F:
            with naming(f"{self.kind} {known!r}"):
                if getattr(part, "__module__", None) != built_in:
                    return take(part)
                self._imported[f"{BUILT_IN}:{known}"] = part
                self._provenance[part] = Provenance(known, BUILT_IN, __version__)
                return part

        def take(part: F) -> F:
            if not _is_class_or_function(part):
                raise OptionError(f"{self.kind} {known!r} must be a class or a function, got {part!r}")
            if any(p.name == known and p.defines(part) for p in _plugins(self.kind)):
                return part  # the class an entry point names: the installed plugin is already its registration
            holder = None if replace else self._holder(known, part)
            if holder:
                raise DuplicateComponentError(
                    f"{self.kind} {known!r} is taken by {holder}; choose another name or pass replace=True"
                )
            self._here[known] = part
            self._provenance[part] = Provenance(known, LOCAL, "")
            return part

        return decorate

    def names(self) -> tuple[str, ...]:
        """Every bare name that `get` accepts, sorted; imports no part."""
        return tuple(sorted({e.name for e in self.entries()}))

    def built_in_names(self) -> tuple[str, ...]:
        """Names of the built-in parts, sorted; reads no metadata and imports no part."""
        spec = find_spec(self._package) if self._package else None
        folders = (spec.submodule_search_locations if spec else None) or []
        return tuple(sorted([m.name for m in pkgutil.iter_modules(folders) if not m.name.startswith("_")]))

    def entries(self) -> tuple[Entry, ...]:
        """Every known part, shadowed ones too, sorted by name; imports no part."""
        here = dict(self._here)  # another thread may register meanwhile
        found = [Entry(self.kind, n, LOCAL, "", _path(p), loaded=True) for n, p in here.items()]
        taken = set(here)
        for name in self.built_in_names():
            loaded = f"{BUILT_IN}:{name}" in self._imported
            value = f"{self._package}.{name}"
            found.append(Entry(self.kind, name, BUILT_IN, __version__, value, name in taken, loaded))
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
            ProtocolError: The part violates its protocol.
        """
        if not isinstance(name, str):
            raise OptionError(f"{self.kind} must be a name, a (name, options) pair or an instance, got {name!r}")
        if ":" in name:
            origin, _, bare = name.partition(":")
            return self._get_qualified(normalized(origin), canonical(bare), name)
        bare = canonical(name)
        if bare in self._here:
            return self._here[bare]
        if f"{BUILT_IN}:{bare}" in self._imported or bare in self.built_in_names():
            return self._built_in(bare)
        return self._plugin([p for p in _plugins(self.kind) if p.name == bare], name)

    def shortest(self, name: str) -> str:
        """Return the bare name if `get` returns the same part for it as for this name; else this name."""
        name = canonical(name)
        bare = name.rpartition(":")[2]
        if bare == name:
            return name
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
        if known is not None and (unknown := options.keys() - {*known}):
            lines = (
                f"{self.kind} {name!r} has no option {o!r}{did_you_mean(o, known)}" for o in options if o in unknown
            )
            raise OptionError(f"{'; '.join(lines)} (options: {', '.join(known) or 'none'})")
        if missing := [o for o in required_options(factory) if o not in options]:
            needed = " and ".join(map(repr, missing))
            raise OptionError(f"{self.kind} {name!r} needs {needed} (options: {', '.join(known or missing)})")
        try:
            return factory(**options)
        except OptionError as error:
            raise error.in_part(self.kind, name) from error
        except DiffkitError:
            raise
        except (TypeError, ValueError) as error:
            raise OptionError(f"{self.kind} {name!r} cannot be made with these options: {error}") from error
        except (Exception, SystemExit) as error:  # foreign code may raise anything
            raise PluginLoadError(f"{self.kind} {name!r} cannot be made: {failure(error)}") from error

    def provenance(self, part: object) -> Provenance | None:
        """Name, distribution and version of an instance; None if its class has no registered name.

        A plugin's class is recognized however it was imported.
        """
        known = self._provenance.get(type(part))
        if known is None:
            point = next((p for p in _plugins(self.kind) if p.imported() is type(part)), None)
            if point is not None:
                known = self._provenance[type(part)] = Provenance(point.name, point.distribution, point.version)
        return known

    def _holder(self, name: str, part: Callable[..., Any]) -> str | None:
        """Current owner of the name; None if it is free, or if it is the same definition run again."""
        if name in self._here and _path(self._here[name]) != _path(part):
            return f"{_path(self._here[name])} (registered in this process)"
        if name in self._here:
            return None
        if name in self.built_in_names():
            return f"the built-in {self._package}.{name}"
        points = [p for p in _plugins(self.kind) if p.name == name]
        return f"the plugin '{points[0].distribution}:{name}'" if points else None

    def _get_qualified(self, origin: str, bare: str, name: str) -> Callable[..., P]:
        if origin == LOCAL and bare in self._here:
            return self._here[bare]
        if origin == BUILT_IN and bare in self.built_in_names():
            return self._built_in(bare)
        points = [p for p in _plugins(self.kind) if p.name == bare and normalized(p.distribution) == origin]
        return self._plugin(points, name)

    def _built_in(self, name: str) -> Callable[..., P]:
        key = f"{BUILT_IN}:{name}"
        if key not in self._imported:
            module = importlib.import_module(f"{self._package}.{name}")
            if self._record.module:
                self._imported[key] = cast("Callable[..., P]", module)
        return self._imported[key]

    def _plugin(self, points: list[Point], name: str) -> Callable[..., P]:
        """The part that one entry point names; an error if none or several do."""
        if not points:
            raise self._unknown(name)
        names = dict.fromkeys(f"'{p.distribution}:{p.name}'" for p in points)
        if len(names) > 1:
            raise AmbiguousComponentError(
                f"{self.kind} {points[0].name!r} is offered by {' and '.join(names)}; use one of these full names"
            )
        if len(points) > 1:
            values = " and ".join(p.value for p in points)
            raise AmbiguousComponentError(
                f"{points[0].distribution} registers {self.kind} {points[0].name!r} twice, as {values}; it has to "
                "remove one of these entry points"
            )
        return self._load(points[0])

    def _load(self, point: Point) -> Callable[..., P]:
        key = f"{point.distribution}:{point.name}"
        if key in self._imported:
            return self._imported[key]
        source = f"{self.kind} {point.name!r} of {point.distribution} {point.version} ({point.value})"
        try:
            part = point.load(self._record.module)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may even call sys.exit() on import
            raise PluginLoadError(f"cannot load {source}: {point.describe(error)}") from error
        try:
            if not self._record.module and not _is_class_or_function(part):
                raise ProtocolError(f"{source} is {_article(part)}; an entry point must name a class")
            if self._record.recipe:
                from diffkit.registry.contracts import check_contract  # needs the protocols, which `--help` does not

                check_contract(self.kind, part, source)
        except ProtocolError as error:
            raise ProtocolError(f"{error}{point.skew()}") from None
        self._imported[key] = part
        names = [p.name for p in _plugins(self.kind) if (p.distribution, p.value) == (point.distribution, point.value)]
        self._provenance[part] = Provenance(min(names), point.distribution, point.version)  # the same by any name
        return cast("Callable[..., P]", part)

    def _unknown(self, name: str) -> UnknownComponentError:
        names = self.names()
        bare = canonical(name).rpartition(":")[2]
        ours = None if ":" in name else alias_of(self.kind, name, names)
        meant = {bare, (ours or "").rpartition(":")[2]}
        blocked = [p.distribution for p in _scan.blocked(self.kind) if p.name in meant]
        hint = _called_here(ours, names) if ours and not blocked else did_you_mean(bare, names)
        text = f"no {self.kind} named {name!r}{hint} (known: {', '.join(names)})"
        if blocked:
            text += f"; {blocked[0]} offers it, but DIFFKIT_PLUGINS does not list that distribution"
        text += "".join(f"; note: {fault}" for fault in _scan.faults())
        return UnknownComponentError(text)


def _called_here(ours: str, names: tuple[str, ...]) -> str:
    """Text with our name of a part, and how to install its plugin if that is missing."""
    distribution, _, name = ours.rpartition(":")
    if name in names:
        return f"; it is called {name!r} here"
    return f"; it is {name!r} of the plugin {distribution}: pip install {distribution}"


def _is_class_or_function(part: object) -> bool:
    return isinstance(part, type) or inspect.isroutine(part)


def _article(part: object) -> str:
    kind = type(part).__name__
    return f"an instance of {kind}" if not inspect.ismodule(part) else "a module"


_scan = Scan()
_registries: dict[str, Registry[Any]] = {kind.name: Registry(kind) for kind in OFFERED.values()}


@cache
def registry(kind: str) -> Registry[Any]:
    """Return the registry of a kind of part, or of commands, by its name in `OFFERED`."""
    try:
        return _registries[kind]
    except KeyError:
        raise OptionError(f"no kind {kind!r}{did_you_mean(kind, OFFERED)} (kinds: {', '.join(OFFERED)})") from None


def refresh() -> None:
    """Clear the cached scan of installed plugins, so that new ones are found; loaded parts stay loaded."""
    importlib.invalidate_caches()
    _scan.clear()


def faults() -> tuple[str, ...]:
    """Return one sentence for each piece of installed metadata that was skipped because it is malformed."""
    return _scan.faults()


def installed(kind: str) -> tuple[Point, ...]:
    """Return the entry points of a kind that DIFFKIT_PLUGINS allows; imports nothing."""
    return _scan.allowed(kind)


def _plugins(kind: str) -> tuple[Point, ...]:
    return _scan.allowed(kind)


def _path(part: Callable[..., Any]) -> str:
    return f"{part.__module__}:{part.__qualname__}"
