"""Families of objects that fill a slot: parts of a kind, data sources, guidance. Each has a name and options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from diffkit import data
from diffkit.cli.shared.guidance import factory
from diffkit.data.loading import registered_name, source_for
from diffkit.registry import KINDS, registry

Factory = Callable[..., Any]


@frozen
class Family:
    """The things that can fill one slot.

    Attributes:
        heading: Heading of the option that chooses one.
        help: Description of the slot.
        listed: Names that help shows; called late, since it may look at files.
        factory: Class or function of a name; raises for one that is not there.
        check: Raises unless the name is there; may be cheaper than `factory`.
        hidden: Options that the name itself decides.
        lasting: Options of one are meant for another that has them too.
    """

    heading: str
    help: str
    listed: Callable[[], Sequence[str]]
    factory: Callable[[str], Factory]
    check: Callable[[str], object]
    hidden: frozenset[str] = frozenset()
    lasting: bool = False


def family(kind: str) -> Family:
    """Return what can fill the slot of that name."""
    if kind in _OTHERS:
        return _OTHERS[kind]
    found = registry(kind)
    return Family("Parts", KINDS[kind].about, found.built_in_names, found.get, found.get)


def _source(name: str) -> Factory:
    """Which options a source of data has; it is looked at only when it is opened."""
    if registered := registered_name(name):
        found: Factory = registry("data").get(registered)
        return found
    return {".npz": data.NumpyFile, ".npy": data.NumpyFile, ".zip": data.Zip}.get(Path(name).suffix, data.Folder)


def _check_source(name: str) -> None:
    if registered := registered_name(name):
        registry("data").get(registered)
    elif not Path(name).is_dir() and not _is_file_of_data(Path(name)):
        source_for(name)  # raises if it is wrong


def _is_file_of_data(path: Path) -> bool:
    return path.suffix in (".npz", ".npy", ".zip") and path.is_file()


_DATA = Family(
    heading="Data",
    help="A folder or .zip of images, a .npz or .npy file, or a name.",
    listed=registry("data").names,
    factory=_source,
    check=_check_source,
    hidden=frozenset({"path"}),
    lasting=True,
)
_OTHERS = {
    "data": _DATA,
    "val": attrs.evolve(_DATA, help="Held-out data to validate on, as for --data."),
    "guidance": Family(
        heading="Parts",
        help=KINDS["guidance"].about,
        listed=registry("guidance").built_in_names,
        factory=factory,
        check=factory,
    ),
}
