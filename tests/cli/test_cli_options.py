"""Every option of every command and built-in part, with its type and default, is one of the listing in options.txt.

An option that is lost, renamed or has another default is a difference; a meant one is written down by
``python tests/cli/test_cli_options.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from attrs import NOTHING

from diffkit.cli.parsing.commands import built_in, load
from diffkit.cli.parsing.options import Option
from diffkit.cli.parsing.parts import part_options
from diffkit.cli.parsing.request import look
from diffkit.cli.parsing.values import has_word, is_flag, metavar
from diffkit.cli.shared.guidance import FOLDERS
from diffkit.options import python_objects
from diffkit.registry import KINDS, registry

LISTING = Path(__file__).with_name("options.txt")


def listed() -> Iterator[str]:
    for name, command in sorted(built_in().items()):
        spec = load(command).SPEC
        own = [option for option in look(name, spec, []).options if len(option.path) == 1]
        yield from sorted(f"{name} {line(option, spec.defaults)}" for option in own)
    for kind in sorted(KINDS):
        for name in sorted(registry(kind).built_in_names()):
            if name in FOLDERS or not python_objects(registry(kind).get(name)):
                yield from sorted(f"{kind} {name} {line(option, {})}" for option in part_options(kind, name))


def line(option: Option, defaults: Mapping[str, str]) -> str:
    """Spellings, type and default of an option."""
    spellings = [
        option.short,
        option.flag,
        option.negative if is_flag(option.kind) and option.default is not False else "",
    ]
    value = option.metavar or metavar(option.kind) if has_word(option.kind) else "in files only"
    default = defaults.get(option.key, "required" if option.default is NOTHING else option.default_text)
    words = f"{'|'.join(filter(None, spellings))} {value}".strip()
    return f"{words} = {default}" if default else words


def test_no_option_is_lost():
    assert list(listed()) == LISTING.read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    LISTING.write_text("".join(f"{each}\n" for each in listed()), encoding="utf-8")
