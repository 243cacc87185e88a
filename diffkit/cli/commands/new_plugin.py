"""Write a package with a part of your own: its entry point, a working example to put your formula in, and its tests.

The tests are diffkit's conformance checks: they pass at once, and then test your part.
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
from diffkit.cli.templates import kinds, package_files
from diffkit.errors import OptionError
from diffkit.registry import BUILT_IN, LOCAL, registry
from diffkit.runtime.output import note


@frozen
class Options:
    """Options of ``diffkit new-plugin``.

    Attributes:
        name: Name of the distribution, such as diffkit-warp; its part is named as what follows "diffkit-".
        kind: Kind of the part, such as schedule or sampler.
        to: Folder to write; it must not exist yet. By default one of the distribution's name, here.
    """

    name: str = field(metadata=POSITIONAL)
    kind: str
    to: Path | None = None


SPEC = CommandSpec({"Options": Options})


def run(parsed: ParsedOptions) -> None:
    """Write the package, and print the next steps."""
    options = parsed.make(Options)
    kind = registry(options.kind).kind
    if kind not in kinds():
        raise OptionError(f"there is no template of a {kind}; there are some of {', '.join(kinds())}")
    distribution = _checked(options.name)
    part = distribution.removeprefix("diffkit-").replace("-", "_")
    if part in registry(kind).built_in_names():
        raise OptionError(f"{kind} {part!r} is built in, and a plugin never replaces a built-in; choose another name")
    folder = Path(distribution) if options.to is None else options.to
    if folder.exists():
        raise OptionError(f"{folder} is there already; name another folder with --to, nothing was written")
    from diffkit.runtime.publishing import new_folder  # which needs torch

    with new_folder(folder) as work:
        for path, text in package_files(kind, distribution, part).items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_text(text, encoding="utf-8")
    package = distribution.replace("-", "_")
    note(f"{folder}: {kind} {part!r}; put your formula into {folder / 'src' / package / '__init__.py'}, then")
    note(f'  pip install -e "{folder}[test]"')
    note(f"  pytest {folder}")
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
