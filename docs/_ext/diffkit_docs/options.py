"""The options of a part, or the fields of any attrs class: name, type, default, bounds, meaning."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
from attrs import frozen

from diffkit_docs.docstrings import inline, parse

_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


@frozen
class Option:
    """One option.

    Attributes:
        name: Its name.
        kind: Its type, as annotated.
        default: Its default as Python writes it; "" if it is required.
        allowed: Bounds or words, "" if there are none.
        about: Its text in the docstring.
    """

    name: str
    kind: str
    default: str
    allowed: str
    about: str


def options_of(cls: type) -> tuple[Option, ...]:
    """Return the options of an attrs class; those it inherits are explained where they are defined."""
    docs = [parse(base.__doc__) for base in cls.__mro__]
    return tuple(
        Option(
            field.alias or field.name,
            _type(field.type),
            _default(field.default),
            _allowed(field.validator),
            next(filter(None, (doc.entry(field.alias or field.name) for doc in docs)), ""),
        )
        for field in attrs.fields(cls)
        if field.init
    )


def _type(hint: Any) -> str:
    return hint if isinstance(hint, str) else getattr(hint, "__name__", str(hint))


def _default(value: Any) -> str:
    if value is attrs.NOTHING:
        return ""
    if isinstance(value, attrs.Factory):  # type: ignore[arg-type]
        return f"{getattr(value.factory, '__name__', 'made')}()"
    return repr(value)


def _allowed(validator: Any) -> str:
    """What a check made by `diffkit.options` allows: the bounds and words that its function holds."""
    if not inspect.isfunction(validator):
        return ""
    held = inspect.getclosurevars(validator).nonlocals
    bounds: Mapping[str, float] = held.get("bounds", {})
    among: Sequence[str] = held.get("among", ())
    words = [f"{_SIGNS[name]} {limit:g}" for name, limit in bounds.items() if name in _SIGNS]
    return ", ".join([*words, *(repr(word) for word in among)])


def signature(cls: type) -> str:
    """Return the arguments of an attrs class with their types, which attrs drops where a value is converted."""
    fields = [field for field in attrs.fields(cls) if field.init]
    shown = [
        f"{option.name}: {option.kind}{f' = {option.default}' if option.default else ''}" for option in options_of(cls)
    ]
    first = next((i for i, field in enumerate(fields) if field.kw_only), None)
    if first is not None:
        shown.insert(first, "*")
    return f"({', '.join(shown)})"


def table(options: Sequence[Option]) -> Iterator[str]:
    """Yield a table of options as reStructuredText."""
    yield ".. list-table::"
    yield "   :header-rows: 1"
    yield "   :class: options"
    yield "   :widths: 20 16 14 14 36"
    yield ""
    yield from _row("option", "type", "default", "allowed", "meaning")
    for each in options:
        yield from _row(
            f"``{each.name}``",
            f":py:obj:`{each.kind}`" if each.kind.isidentifier() else f"``{each.kind}``",
            f"``{each.default}``" if each.default else "required",
            f"``{each.allowed}``" if each.allowed else "\\ ",
            inline(each.about) or "\\ ",
        )


def _row(*cells: str) -> Iterator[str]:
    for i, cell in enumerate(cells):
        yield f"   {'* -' if i == 0 else '  -'} {cell}"
