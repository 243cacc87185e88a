"""Write a package with parts of your own: entry points, working examples to put your formulas in, and tests.

The tests are diffkit's conformance checks: they pass at once, and then test your parts. A command can be one of them.
"""

from __future__ import annotations

import keyword
import re
import sys
from importlib.util import find_spec
from pathlib import Path

from attrs import field, frozen

from diffkit.cli.parsing.options import POSITIONAL
from diffkit.cli.parsing.spec import CommandSpec, ParsedOptions
from diffkit.cli.templates import package_files
from diffkit.errors import OptionError
from diffkit.registry import BUILT_IN, LOCAL, registry
from diffkit.runtime.output import note


@frozen
class Options:
    """Options of ``diffkit new-plugin``.

    Attributes:
        name: Name of the distribution, such as diffkit-warp; its parts are named as what follows "diffkit-".
        kind: Kind of the part, such as schedule or sampler, command or adopter; several separated by commas.
        to: Folder to write; it must not exist yet. By default one of the distribution's name, here.
    """

    name: str = field(metadata=POSITIONAL)
    kind: tuple[str, ...]
    to: Path | None = None


SPEC = CommandSpec({"Options": Options})


def run(parsed: ParsedOptions) -> None:
    """Write the package, and print the next steps."""
    options = parsed.make(Options)
    kinds = tuple(dict.fromkeys(registry(kind).kind for kind in options.kind))
    distribution = _checked(options.name)
    part = distribution.removeprefix("diffkit-").replace("-", "_")
    for kind in kinds:
        if part in {name.rstrip("_") for name in registry(kind).built_in_names()}:
            raise OptionError(
                f"{kind} {part!r} is built in, and a plugin never replaces a built-in; choose another name"
            )
    folder = Path(distribution) if options.to is None else options.to
    if folder.exists():
        raise OptionError(f"{folder} is there already; name another folder with --to, nothing was written")
    from diffkit.runtime.publishing import new_folder  # which needs torch

    with new_folder(folder) as work:
        for path, text in package_files(kinds, distribution, part).items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_text(text, encoding="utf-8")
    package = distribution.replace("-", "_")
    for kind in kinds:
        note(f"{folder}: {kind} {part!r}; put your formula into {folder / 'src' / package / f'{kind}.py'}")
    note("then")
    note(f'  pip install -e "{folder}[test]"')
    note(f"  pytest {folder}")
    for kind in kinds:
        note(f"  diffkit list {kind}")


def _checked(name: str) -> str:
    distribution = name.strip().lower().replace("_", "-")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", distribution):
        raise OptionError(f"{name!r} cannot name a package; use lower-case words joined by '-', such as diffkit-warp")
    package, part = distribution.replace("-", "_"), distribution.removeprefix("diffkit-").replace("-", "_")
    taken = package in (BUILT_IN, LOCAL) or package in sys.stdlib_module_names or find_spec(package) is not None
    if taken or keyword.iskeyword(package) or keyword.iskeyword(part):
        why = "there is one of that name" if taken else "that is a word of Python"
        raise OptionError(f"{name!r} cannot name a package: {why}; choose another, such as diffkit-{part}-parts")
    return distribution
